"""Colours of the photo domain: skin, eyes, mouth, hair, glasses, clothes and backdrop, in linear light."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import Named, colour, compact, dot, hash01, mix, noise, pick, put, smooth
from ._rays import Components, Hit


def ramp(stops: list[tuple[float, float, float]], t: Tensor) -> Tensor:
    """[N, 3, 1] colours at t [N, 1] in [0, 1] between equally spaced sRGB stops, as linear light."""
    table = torch.tensor(stops, device=t.device) ** 2.2
    k = t.clamp(0, 1) * (len(stops) - 1)
    i = k.floor().clamp(max=len(stops) - 2).long()
    return mix(table[i[:, 0]], table[i[:, 0] + 1], k - i)[:, :, None]


def hsl(h: Tensor, s: Tensor, lightness: Tensor) -> Tensor:
    """[N, 3, 1] linear colours of hue, saturation and lightness [N, 1] in [0, 1]."""
    k = (h * 12 + torch.tensor([0.0, 8.0, 4.0], device=h.device)) % 12
    a = s * torch.minimum(lightness, 1 - lightness)
    c = lightness - a * torch.minimum(torch.minimum(k - 3, 9 - k), torch.ones_like(k)).clamp(min=-1)
    return c.clamp(0, 1).pow(2.2)[:, :, None]


NECK_TOP = -0.30  # the neck fades into the head above this height of the picture
SKIN = [
    (0.97, 0.83, 0.75),
    (0.94, 0.76, 0.65),
    (0.86, 0.65, 0.51),
    (0.73, 0.51, 0.37),
    (0.55, 0.36, 0.25),
    (0.37, 0.235, 0.165),
]
HAIR = [(0.075, 0.06, 0.06), (0.17, 0.11, 0.08), (0.33, 0.21, 0.13), (0.53, 0.36, 0.20), (0.82, 0.66, 0.42)]


def skin_colour(p: Named) -> Tensor:
    """[N, 3, 1] linear albedo."""
    base = ramp(SKIN, 0.5 + 0.5 * p["skin_tone"])
    warm = p.map("skin_warmth") * colour(base, 0.05, 0.0, -0.08)
    return base * (1 + warm)


def hair_colour(p: Named) -> Tensor:
    """[N, 3, 1] linear albedo, greyed by `grey`."""
    base = ramp(HAIR, 0.5 + 0.5 * p["hair_tone"])
    red = p["hair_red"].clamp(min=0)[:, :, None]
    base = base * (1 + red * colour(base, 0.75, -0.12, -0.55))
    grey = colour(base, 0.40, 0.395, 0.385)
    return mix(base, grey, p["grey"].clamp(0, 1)[:, :, None])


class Shader:
    """One batch's lighting and detail, shared by everything painted.

    Args:
        detail_seed: [N] int64.
        key, up, view: [N, 3] unit vectors in the head frame, toward the key light, the zenith and the camera.
        key_world: [N, 3] the key light's direction in the world, for the body.
        pixel: size of a ray's pixel in head units.
    """

    def __init__(
        self, p: Named, detail_seed: Tensor, key: Tensor, key_world: Tensor, up: Tensor, view: Tensor, pixel: float
    ) -> None:
        self.p, self.seed, self.pixel = p, detail_seed, pixel
        self.key, self.key_world, self.up, self.view = key, key_world, up, view
        self.half = F.normalize(key + view, dim=1)
        warm = p.map("light_warmth")
        tint = colour(key, 0.16, 0.0, -0.20)
        self.key_colour = (1 + tint * warm) * (1.30 * torch.exp(0.22 * p["light_strength"]))[:, :, None]
        self.fill_colour = (1 - 0.6 * tint * warm) * (0.44 + 0.16 * p["light_fill"])[:, :, None]
        self.skin, self.hair = skin_colour(p), hair_colour(p)

    def octaves(self, base: float) -> int:
        """The number of octaves from `base` lattice points per head unit up to the output's Nyquist limit."""
        count = 1
        while base * 2**count * self.pixel * 2 < 1.5 and count < 7:
            count += 1
        return count

    def lit(self, n: list[Tensor], occlusion: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine to the key light and light from the hemisphere above, [N, M] each, of normals n."""
        return dot(self.key, n), (0.66 + 0.34 * dot(self.up, n)) * occlusion

    def gloss(self, n: list[Tensor], sharp: int) -> Tensor:
        """Blinn highlight: (n . h)^(2^sharp)."""
        s = dot(self.half, n).clamp(min=0)
        for _ in range(sharp):
            s = s * s
        return s


def skin(s: Shader, hit: Hit, maps: dict[str, Tensor]) -> Tensor:
    """[N, 3, M] light leaving the bare skin (with beard), before eyes, brows and mouth."""
    p = s.p
    x, y = hit.x, hit.y
    fine = 0.0
    count = s.octaves(22.0)
    for k in range(count):
        f = 22.0 * 2**k
        fine = fine + noise(x * f, y * f, s.seed, k) * (0.45 if k < count - 2 else 0.8)
    age = p["age"].clamp(min=0)
    rough = 0.020 + 0.022 * age
    n = [maps["nx"], maps["ny"], maps["nz"]]
    ndl, amb = s.lit(n, maps["occlusion"])
    ndl = ndl + fine * rough
    visible = 1 - 0.75 * maps["shadow"]

    albedo = s.skin * (1 + 0.03 * fine[:, None])
    red = colour(x, 0.06, -0.16, -0.14)
    albedo = albedo * (1 + red * (maps["blush"] * (0.9 + 0.3 * p["femininity"]))[:, None])
    if bool((p["freckles"] > 0).any()):
        spots = (noise(x * 24, y * 24, s.seed, 8) - 1.3).clamp(0, 0.5)
        spots = spots * p["freckles"].clamp(min=0) * smooth(0.95, 0.45, (x * x + (y + 0.2) ** 2).sqrt())
        albedo = albedo * (1 - spots[:, None] * colour(x, 0.28, 0.5, 0.62))

    cover = torch.zeros_like(x)
    grow = maps["beard"]
    if bool((grow > 0).any()):  # stubble and beard: short strands, darkest at their gaps
        at = compact(grow > 0)
        bx, by, grow = x.gather(1, at), y.gather(1, at), grow.gather(1, at)
        hairs = noise(bx * 75 + 9 * by, by * 26, s.seed, 9) * 0.5 + noise(bx * 150 - 20 * by, by * 55, s.seed, 10) * 0.6
        thick = smooth(0.10, 0.62, grow + 0.30 * hairs * smooth(0, 0.15, grow))
        beard = s.hair * (0.85 + 0.55 * hairs[:, None]).clamp(min=0.15)
        albedo = put(albedo, at, mix(pick(albedo, at), beard, (0.93 * thick)[:, None]))
        cover = cover.scatter(1, at, thick)

    wrap = colour(x, 0.34, 0.18, 0.11)
    diffuse = ((ndl[:, None] + wrap) / (1 + wrap)).clamp(min=0)
    bleed = colour(x, 1.0, 0.86, 0.78)
    light = s.key_colour * diffuse * visible[:, None] * mix(bleed, torch.ones_like(bleed), visible[:, None])
    light = light + s.fill_colour * amb[:, None]
    dark = colour(x, 0.75, 1.0, 1.08)
    light = light * (1 - 0.22 * maps["cavity"].clamp(min=0)[:, None] * dark)
    out = albedo * light
    facing = dot(s.view, n).clamp(0, 1)
    sheen = (s.gloss(n, 5) * 0.17 + s.gloss(n, 3) * 0.10) * (1 + 0.22 * fine) * visible * (1 - cover)
    rim = (1 - facing) ** 3 * 0.10
    return out + s.key_colour * sheen[:, None] * 0.55 + s.fill_colour * rim[:, None]


@dataclass(frozen=True)
class Strands:
    """The direction of hair and its variation: noise of locks and of strands, [N, M], of about unit variance.

    axis, side: components [N, 1] of unit vectors: the axis whose meridians the strands follow, and one across it; curl,
    kink: [N, 1] in [0, 1].
    """

    locks: Tensor
    strands: Tensor
    axis: Components
    side: Components
    curl: Tensor
    kink: Tensor

    def tangent(self, n: Components, wobble: Tensor) -> Components:
        """Components [N, M] of the strands' unit tangents on a surface of normals n, swayed sideways by `wobble`."""
        along = sum(a * c for a, c in zip(self.axis, n, strict=True))
        t = [a - along * c + wobble * e * 0.5 for a, c, e in zip(self.axis, n, self.side, strict=True)]
        inv = (t[0] * t[0] + t[1] * t[1] + t[2] * t[2]).clamp(min=1e-4).rsqrt()
        return t[0] * inv, t[1] * inv, t[2] * inv


def strands(s: Shader, hit: Hit, base: float = 14.0, octaves: int = 9) -> Strands:
    """Strands as meridians around an axis through the parting, with noise stretched along them.

    Args:
        base: the strands' lowest frequency, in lattice points per head unit across them.
        octaves: the largest number of octaves; the picture's Nyquist frequency may allow fewer.
    """
    p = s.p
    part, curl = p["hair_part"], p["hair_curl"].clamp(min=0)
    tilt = 0.55 * part
    axis_x, axis_y, axis_z = tilt.sin() * 0.94, tilt.cos() * 0.94, torch.full_like(tilt, -0.30)
    inv = (axis_x**2 + axis_y**2 + axis_z**2).rsqrt()
    axis_x, axis_y, axis_z = axis_x * inv, axis_y * inv, axis_z * inv
    along = hit.px * axis_x + hit.py * axis_y + hit.pz * axis_z
    # e1 = right made orthogonal to the axis, e2 = axis x e1
    e1x, e1y, e1z = 1 - axis_x * axis_x, -axis_x * axis_y, -axis_x * axis_z
    k = (e1x**2 + e1y**2 + e1z**2).rsqrt()
    e1x, e1y, e1z = e1x * k, e1y * k, e1z * k
    e2x, e2y, e2z = axis_y * e1z - axis_z * e1y, axis_z * e1x - axis_x * e1z, axis_x * e1y - axis_y * e1x
    a = hit.px * e1x + hit.py * e1y + hit.pz * e1z
    b = hit.px * e2x + hit.py * e2y + hit.pz * e2z
    across = torch.atan2(a, -b) * 0.75
    wave = noise(across * 3.0, along * 1.6, s.seed, 16)
    bend = 0.03 * wave + curl * (0.07 * torch.sin(along * 17 + 5 * wave + across * 9) + 0.05 * wave)
    kink = smooth(0.6, 1.0, curl)
    bend = bend + kink * 0.16 * noise(across * 14, along * 14, s.seed, 17)
    across = across + bend
    stretch = mix(torch.full_like(curl, 0.10), torch.full_like(curl, 0.45), kink)

    count = min(s.octaves(base), octaves)
    total, clump = 0.0, noise(across * 9, along * 0.9 + 3 * kink * along, s.seed, 18)
    for k in range(count):
        f = base * 2**k
        total = total + noise(across * f, along * f * stretch * 0.7, s.seed, 19 + k) * (0.42 if k < count - 2 else 0.62)
    return Strands(clump, total, (axis_x, axis_y, axis_z), (e1x, e1y, e1z), curl, kink)


def hair_cover(s: Shader, hit: Hit, maps: dict[str, Tensor], ragged: Tensor) -> Tensor:
    """[N, M] coverage by hair; `ragged` is how far the hairline varies from strand to strand."""
    cover = smooth(-0.030, 0.030, maps["hair"] + ragged)
    lift = (
        (hit.px * hit.px + hit.py * hit.py + hit.pz * hit.pz).sqrt() - maps["bald"] - 2 * hit.gap
    )  # the sides of hanging hair
    return torch.maximum(cover, smooth(0.010, 0.030, lift) * smooth(0.0, 0.2, s.p["hair_length"]))


def hair(s: Shader, hit: Hit, maps: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Light leaving the hair [N, 3, M], its coverage [N, M] and the strands' noise [N, M].

    The strands' brightness is noise summed over octaves up to the picture's Nyquist frequency; the highlight is Kajiya
    and Kay's (SIGGRAPH 1989).
    """
    it = strands(s, hit)
    total, clump, curl, kink = it.strands, it.locks, it.curl, it.kink
    cover = hair_cover(s, hit, maps, 0.030 * total + 0.020 * clump)
    n = maps["nx"], maps["ny"], maps["nz"]
    tangent = it.tangent(n, (0.30 * clump + 0.16 * total) * (1 + curl))
    tl, th = dot(s.key, tangent), dot(s.half, tangent)
    ndl, amb = s.lit(n, maps["occlusion"])
    front = smooth(-0.35, 0.55, ndl) * (1 - 0.6 * maps["shadow"])
    diffuse = (1 - tl * tl).clamp(min=0).sqrt() * front
    th = th + 0.10 * total + 0.06 * clump
    spec = (1 - th * th).clamp(min=0)
    spec = spec * spec
    spec = spec * spec
    wide = spec * spec
    sharp = wide * wide
    sharp = sharp * sharp
    shade = (1 + 0.26 * clump + 0.36 * total).clamp(min=0.10)
    root = 0.55 + 0.45 * smooth(0.0, 0.22, maps["hair"])
    body = s.hair * (shade * root)[:, None]
    light = s.key_colour * (0.95 * diffuse)[:, None] + s.fill_colour * (1.05 * amb)[:, None]
    gloss = front * root * (1 - 0.75 * kink)
    tint = s.hair.sqrt()
    out = body * light + s.key_colour * (
        tint * (0.18 * wide * gloss * shade)[:, None] + (0.08 * sharp * gloss)[:, None]
    )
    return out, cover, total


def body(s: Shader, x: Tensor, y: Tensor, turn: Tensor, chin_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Neck, shoulders and clothes behind the head, as a surface of revolution with elliptical sections.

    Args:
        x, y: [N, M] world coordinates on the picture's plane.
        turn: [N, 1] sideways offset of the head's base.
        chin_y: [N, 1] height of the chin.

    Returns:
        light [N, 3, M], coverage [N, M], world depth z [N, M].
    """
    p = s.p
    size = p["body_scale"]
    neck = 0.275 - 0.045 * p["femininity"] + 0.03 * p["fullness"].clamp(min=0) + 0.02 * p["jaw_width"]
    neck = neck * size
    drop = (-0.72 - y).clamp(min=0)
    slope = 0.9 * drop * drop / (drop + 0.10) * 2.6
    flare = neck + 0.03 * drop + slope * size * (1.0 - 0.12 * p["femininity"])
    half = torch.minimum(flare, 1.12 * size + 0.12 * drop)
    centre = turn * smooth(-1.1, -0.55, y)
    u = (x - centre) / half
    cover = smooth(0.5, -0.5, (u.abs() - 1) * half / s.pixel) * smooth(NECK_TOP, NECK_TOP - 0.1, y)
    bulge = (1 - u * u).clamp(min=1e-4).sqrt()
    depth_r = 0.26 + 0.25 * smooth(-0.75, -1.25, y)
    z = -0.16 + depth_r * bulge
    # the section's normal in the world frame, tilted upward on the shoulders
    nx, nz = u / half, bulge / depth_r
    ny = 0.9 * smooth(0.02, 0.30, drop) * (1.2 - 0.6 * bulge)
    inv = (nx * nx + ny * ny + nz * nz).rsqrt()
    nx, ny, nz = nx * inv, ny * inv, nz * inv
    out = (u * half).abs()  # sideways from the middle
    vee = (0.10 + 0.16 * p["neckline"].clamp(min=0)) * (1 - out / 0.34).clamp(min=0) + 0.05 * out
    edge = -0.865 - vee + 0.10 * (out - neck).clamp(min=0) * 1.6
    cloth = smooth(0.5, -0.5, (y - edge) / s.pixel)
    lip = torch.exp(-(((y - edge + 0.018) / 0.012) ** 2))
    weave = noise(x * 42 + 0.4 * y, y * 42, s.seed, 40) * 0.5 + noise(x * 9 * (1 + u * u), y * 3, s.seed, 41) * 0.4
    dye = hsl(p["cloth_hue"], 0.06 + 0.42 * p["cloth_saturation"], 0.10 + 0.65 * p["cloth_lightness"])
    chin_shadow = smooth(-0.02, 0.30, chin_y - y + 0.35 * (x - turn).abs())
    albedo = mix(
        s.skin * (0.92 + 0.02 * weave)[:, None],
        dye * (1 + 0.10 * weave)[:, None] * (1 - 0.25 * lip)[:, None],
        cloth[:, None],
    )
    up, ndl = 0.62 + 0.38 * ny, dot(s.key_world, (nx, ny, nz))
    wrap = colour(x, 0.30, 0.17, 0.11)
    shade = mix(torch.full_like(chin_shadow, 0.22), torch.ones_like(chin_shadow), chin_shadow)
    under_collar = 1 - 0.35 * smooth(0.05, 0.0, y - edge) * (1 - cloth)
    light = s.key_colour * ((ndl[:, None] + wrap) / (1 + wrap)).clamp(min=0) * shade[:, None]
    light = light + s.fill_colour * (up * (0.45 + 0.55 * chin_shadow))[:, None]
    return albedo * light * under_collar[:, None], cover, z


def backdrop(s: Shader, x: Tensor, y: Tensor) -> Tensor:
    """[N, 3, M] a graded wall with two soft, out-of-focus shapes."""
    p = s.p
    h, sat, light = p["bg_hue"], 0.04 + 0.30 * p["bg_saturation"] ** 2, 0.28 + 0.58 * p["bg_lightness"]
    a = hsl(h, sat, light)
    b = hsl((h + 0.12 * p["bg_shift"]) % 1.0, sat, (light * (0.62 + 0.5 * p["bg_gradient"])).clamp(0.05, 0.95))
    angle = 6.2832 * p["bg_angle"]
    g = smooth(-1.3, 1.3, x * angle.cos() + y * angle.sin())
    gain = (1 - 0.13 * (x * x + y * y)).clamp(min=0.35).expand_as(g)  # vignette
    for k, (fx, fy, radius, more) in enumerate(((0.75, 0.55, 0.55, 0.45), (-0.8, -0.1, 0.75, -0.30))):
        cx, cy = fx + 0.3 * torch.sin(angle + 2.1 * k), fy + 0.4 * torch.cos(2 * angle + k)
        dist = ((x - cx) ** 2 + (y - cy) ** 2).sqrt()
        gain = gain * (1 + more * p["bg_blob"] * smooth(radius, radius * 0.35, dist))
    return mix(a, b, g[:, None]) * gain[:, None]


def film(s: Shader, linear: Tensor, grain: float = 0.030) -> Tensor:
    """Linear light [N, 3, H, W] -> picture in [-1, 1]: a soft shoulder, gamma 2.2, grain on every pixel."""
    n, _, height, width = linear.shape
    light = F.pad(linear.flatten(2).clamp(min=0), (0, -(height * width) % 256))  # padded: see _common.compact
    light = light * (1 + light * 0.10) / (1 + 0.32 * light)
    image = light.clamp(min=1e-5).pow(1 / 2.2)[:, :, : height * width].reshape(n, 3, height, width)
    row, col = torch.arange(height, device=linear.device)[:, None], torch.arange(width, device=linear.device)
    seed = s.seed[:, None, None]
    dust = hash01(seed, row, col) + hash01(seed + 77, row, col) - 1
    return ((image + grain * dust[:, None]) * 2 - 1).clamp(-1, 1)
