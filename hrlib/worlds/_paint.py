"""Colours of the photo domain: skin, eyes, mouth, hair, glasses, clothes and backdrop, in linear light."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hrlib.worlds._head import EYE_Y, NOSE_TIP_Y, Hit, compact, mouth_curves, mouth_shape, pick, put
from hrlib.worlds._noise import mix, noise, smooth


def ramp(stops: list[tuple[float, float, float]], t: Tensor) -> Tensor:
    """[N, 3, 1] colours at t [N, 1] in [0, 1] along equally spaced sRGB stops, as linear light."""
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
SKIN = [(0.97, 0.83, 0.75), (0.94, 0.76, 0.65), (0.86, 0.65, 0.51), (0.73, 0.51, 0.37), (0.55, 0.36, 0.25), (0.37, 0.235, 0.165)]
HAIR = [(0.075, 0.06, 0.06), (0.17, 0.11, 0.08), (0.33, 0.21, 0.13), (0.53, 0.36, 0.20), (0.82, 0.66, 0.42)]
IRIS = [(0.22, 0.12, 0.06), (0.42, 0.25, 0.10), (0.42, 0.42, 0.20), (0.35, 0.50, 0.42), (0.30, 0.48, 0.68)]


def skin_colour(p) -> Tensor:
    """[N, 3, 1] linear albedo."""
    base = ramp(SKIN, 0.5 + 0.5 * p["skin_tone"])
    warm = p["skin_warmth"][:, :, None] * torch.tensor([0.05, 0.0, -0.08], device=base.device)[None, :, None]
    return base * (1 + warm)


def hair_colour(p) -> Tensor:
    """[N, 3, 1] linear albedo, greyed by `grey`."""
    base = ramp(HAIR, 0.5 + 0.5 * p["hair_tone"])
    red = p["hair_red"].clamp(min=0)[:, :, None]
    base = base * (1 + red * torch.tensor([0.75, -0.12, -0.55], device=base.device)[None, :, None])
    grey = torch.tensor([0.40, 0.395, 0.385], device=base.device)[None, :, None]
    return mix(base, grey, p["grey"].clamp(0, 1)[:, :, None])


class Shader:
    """One batch's lighting and detail, shared by everything painted.

    view, key: unit vectors in the head frame, [N, 3]; colours [N, 3, 1]; pixel: size of a fine pixel in head units.
    """

    def __init__(self, p, detail_seed: Tensor, key: Tensor, up: Tensor, view: Tensor, pixel: float) -> None:
        self.p, self.seed, self.key, self.up, self.view, self.pixel = p, detail_seed, key, up, view, pixel
        half = F.normalize(key + view, dim=1)
        self.half = half
        warm = p["light_warmth"][:, :, None]
        tint = torch.tensor([0.16, 0.0, -0.20], device=key.device)[None, :, None]
        self.key_colour = (1 + tint * warm) * (1.30 * torch.exp(0.22 * p["light_strength"]))[:, :, None]
        self.fill_colour = (1 - 0.6 * tint * warm) * (0.44 + 0.16 * p["light_fill"])[:, :, None]
        self.skin, self.hair = skin_colour(p), hair_colour(p)

    def octaves(self, base: float) -> int:
        """How many doublings from `base` lattice points a head unit until the noise reaches the output's Nyquist limit."""
        count = 1
        while base * 2**count * self.pixel * 2 < 1.5 and count < 7:
            count += 1
        return count

    def lit(self, n: list[Tensor], occlusion: Tensor, shadow: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and ambient term: n . key [N, M], hemisphere light [N, M]."""
        ndl = sum(self.key[:, i, None] * n[i] for i in range(3))
        ndu = sum(self.up[:, i, None] * n[i] for i in range(3))
        return ndl, (0.66 + 0.34 * ndu) * occlusion

    def gloss(self, n: list[Tensor], sharp: int) -> Tensor:
        """Blinn highlight: (n . h)^(2^sharp)."""
        s = sum(self.half[:, i, None] * n[i] for i in range(3)).clamp(min=0)
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
    nx, ny, nz = maps["nx"], maps["ny"], maps["nz"]
    ndl, amb = s.lit([nx, ny, nz], maps["occlusion"], maps["shadow"])
    ndl = ndl + fine * rough
    visible = 1 - 0.75 * maps["shadow"]

    albedo = s.skin * (1 + 0.03 * fine[:, None])
    red = torch.tensor([0.06, -0.16, -0.14], device=x.device)[None, :, None]
    albedo = albedo * (1 + red * (maps["blush"] * (0.9 + 0.3 * p["femininity"]))[:, None])
    if bool((p["freckles"] > 0).any()):
        spots = (noise(x * 24, y * 24, s.seed, 8) - 1.3).clamp(0, 0.5)
        spots = spots * p["freckles"].clamp(min=0) * smooth(0.95, 0.45, (x * x + (y + 0.2) ** 2).sqrt())
        albedo = albedo * (1 - spots[:, None] * torch.tensor([0.28, 0.5, 0.62], device=x.device)[None, :, None])

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

    wrap = torch.tensor([0.34, 0.18, 0.11], device=x.device)[None, :, None]
    diffuse = ((ndl[:, None] + wrap) / (1 + wrap)).clamp(min=0)
    bleed = torch.tensor([1.0, 0.86, 0.78], device=x.device)[None, :, None]
    light = s.key_colour * diffuse * (visible[:, None] ** 1.0) * mix(bleed, torch.ones_like(bleed), visible[:, None])
    light = light + s.fill_colour * (amb[:, None] * 1.0)
    dark = torch.tensor([0.75, 1.0, 1.08], device=x.device)[None, :, None]
    light = light * (1 - 0.22 * maps["cavity"].clamp(min=0)[:, None] * dark)
    out = albedo * light
    n = [nx, ny, nz]
    facing = sum(s.view[:, i, None] * n[i] for i in range(3)).clamp(0, 1)
    sheen = (s.gloss(n, 5) * 0.17 + s.gloss(n, 3) * 0.10) * (1 + 0.22 * fine) * visible * (1 - cover)
    rim = (1 - facing) ** 3 * 0.10
    return out + s.key_colour * sheen[:, None] * 0.55 + s.fill_colour * rim[:, None]


def hair(s: Shader, hit: Hit, maps: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Light leaving the hair [N, 3, M], its coverage [N, M] and the strands' noise [N, M].

    Strands are meridians around an axis through the parting; their brightness is noise stretched along them, summed over
    octaves up to the picture's Nyquist frequency; the highlight is Kajiya and Kay's (SIGGRAPH 1989).
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

    count = s.octaves(14.0)
    total, clump = 0.0, noise(across * 9, along * 0.9 + 3 * kink * along, s.seed, 18)
    for k in range(count):
        f = 14.0 * 2**k
        total = total + noise(across * f, along * f * stretch * 0.7, s.seed, 19 + k) * (0.42 if k < count - 2 else 0.62)

    cover = smooth(-0.030, 0.030, maps["hair"] + 0.030 * total + 0.020 * clump)
    lift = (hit.px * hit.px + hit.py * hit.py + hit.pz * hit.pz).sqrt() - maps["bald"] - 2 * hit.gap  # the sides of hanging hair
    cover = torch.maximum(cover, smooth(0.010, 0.030, lift) * smooth(0.0, 0.2, p["hair_length"]))
    nx, ny, nz = maps["nx"], maps["ny"], maps["nz"]
    tn = axis_x * nx + axis_y * ny + axis_z * nz
    wob = (0.30 * clump + 0.16 * total) * (1 + curl)
    tx, ty, tz = axis_x - tn * nx + wob * e1x * 0.5, axis_y - tn * ny + wob * e1y * 0.5, axis_z - tn * nz + wob * e1z * 0.5
    inv = (tx * tx + ty * ty + tz * tz).clamp(min=1e-4).rsqrt()
    tl = (tx * s.key[:, 0, None] + ty * s.key[:, 1, None] + tz * s.key[:, 2, None]) * inv
    th = (tx * s.half[:, 0, None] + ty * s.half[:, 1, None] + tz * s.half[:, 2, None]) * inv
    ndl, amb = s.lit([nx, ny, nz], maps["occlusion"], maps["shadow"])
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
    out = body * light + s.key_colour * (tint * (0.18 * wide * gloss * shade)[:, None] + (0.08 * sharp * gloss)[:, None])
    return out, cover, total


def brows_and_eyes(s: Shader, x: Tensor, y: Tensor, base: Tensor, ball: dict[str, Tensor]) -> Tensor:
    """Paint the eyes with their lids, lashes and brows over `base` [N, 3, M] at the chart points x, y [N, M].

    ball: the eyeball's unit normal where the ray meets it ("nx", "ny", "nz"), shadow and occlusion of the face there.
    """
    p = s.p
    fem, age = p["femininity"], p["age"].clamp(min=0)
    side = torch.where(x < 0, -1.0, 1.0)
    apart = 40 * side  # where the right eye's noise lies, away from the left one's
    cx = 0.345 + 0.02 * p["eye_spacing"]
    width = 0.168 + 0.016 * p["eye_size"]
    tilt = 0.05 + 0.08 * p["eye_tilt"]
    ex, ey = (side * x - cx) / width, (y - EYE_Y) / width
    ey = ey - tilt * ex
    open_ = (0.58 + 0.06 * p["eye_size"] + 0.17 * p["lids"] - 0.06 * p["smile"].clamp(min=0) - 0.05 * age).clamp(min=0.03)
    low = 0.35 - 0.09 * p["smile"].clamp(min=0) + 0.04 * p["lids"]
    q = (1 - ex * ex).clamp(min=0)
    arch = q.sqrt() * 0.55 + q * 0.45
    upper = open_ * arch * (1 - 0.10 * ex)
    lower = -low * (0.3 * q.sqrt() + 0.7 * q) * (1 + 0.12 * ex) * (open_ / 0.5).clamp(max=1)
    px = s.pixel / width / 0.72
    edge = torch.minimum(upper - ey, ey - lower)
    inside = smooth(-0.6, 0.9, edge / px) * (q > 0)

    n = [ball["nx"], ball["ny"], ball["nz"]]
    gaze = F.normalize(0.62 * s.view + torch.tensor([0.0, 0.0, 0.38], device=x.device), dim=1)
    dx, dy, dz = n[0] - gaze[:, 0, None] + 0.03 * side, n[1] - gaze[:, 1, None], n[2] - gaze[:, 2, None]
    radius = (dx * dx + dy * dy + dz * dz).sqrt()
    soft = px * 0.55
    iris_r, pupil_r = 0.56, 0.23
    iris = smooth(iris_r + soft * 0.6, iris_r - soft * 0.6, radius)
    pupil = smooth(pupil_r + soft * 0.5, pupil_r - soft * 0.5, radius)
    fibre = noise(torch.atan2(dy, dx) * 7, radius * 4 + apart, s.seed, 30)
    colour = ramp(IRIS, 0.5 + 0.5 * p["iris_hue"])
    glow = (0.95 + 1.1 * smooth(0.1, -0.55, dy) + 0.25 * fibre).clamp(min=0.2)
    ring = smooth(0.42, 0.58, radius)
    eye = colour * (1.25 * glow * (1 - 0.72 * ring))[:, None]
    white = torch.tensor([0.80, 0.765, 0.745], device=x.device)[None, :, None]
    veins = 1 - 0.10 * smooth(0.5, 1.0, ex.abs())[:, None] * torch.tensor([0.1, 1.0, 1.0], device=x.device)[None, :, None]
    eye = mix(white * veins, eye, iris[:, None])
    eye = eye * (1 - 0.97 * pupil[:, None])
    ndl = sum(s.key[:, i, None] * n[i] for i in range(3))
    amb = 0.70 + 0.3 * n[1]
    lid_shadow = 0.40 + 0.60 * smooth(0.0, 0.34, upper - ey)
    lid_shadow = lid_shadow * (0.75 + 0.25 * smooth(0.0, 0.15, ey - lower)) * smooth(1.05, 0.75, ex.abs()).mul(0.35).add(0.65)
    light = s.key_colour * (0.25 + 0.60 * (0.5 + 0.5 * ndl).clamp(min=0) * (1 - 0.5 * ball["shadow"]))[:, None] + s.fill_colour * amb[:, None]
    eye = eye * light * lid_shadow[:, None]
    # two catch-lights: the key light seen on the cornea and a smaller soft box on the other side
    hx, hy = s.half[:, 0, None] - gaze[:, 0, None], s.half[:, 1, None] - gaze[:, 1, None]
    reach = (hx * hx + hy * hy).sqrt().clamp(min=1e-3)
    scale = torch.minimum(torch.full_like(reach, 0.34), reach) / reach
    spot = ((dx - hx * scale) ** 2 + (dy - (hy * scale).clamp(min=0.14)) ** 2).sqrt()
    eye = eye + (1.3 * smooth(0.12 + 0.5 * soft, 0.12 - 0.5 * soft, spot))[:, None]
    spot2 = ((dx + hx * scale) ** 2 + (dy + 0.24) ** 2).sqrt()
    eye = eye + (0.16 * smooth(0.22, 0.06, spot2))[:, None]
    corner = torch.exp(-(((ex + 0.93) / 0.13) ** 2))
    eye = mix(eye, s.skin * light * torch.tensor([0.95, 0.55, 0.52], device=x.device)[None, :, None], (0.75 * corner)[:, None])

    # lids: crease, soft upper shadow, wet lower rim, lashes
    reach_x = smooth(1.22, 0.9, ex.abs())
    crease_at = upper + 0.17 + 0.05 * p["lids"] + 0.03 * fem
    crease = torch.exp(-(((ey - crease_at) / 0.055) ** 2)) * reach_x
    below = torch.exp(-(((ey - lower + 0.30 + 0.1 * age) / 0.08) ** 2)) * smooth(1.1, 0.5, ex.abs())
    lid = smooth(0.0, 0.05, ey - upper) * smooth(0.0, 0.06, crease_at - ey) * reach_x
    base = base * (1 - (0.36 * crease + (0.05 + 0.17 * age) * below)[:, None])
    base = base * (1 - (lid * (0.10 + 0.16 * fem.clamp(min=0)))[:, None] * torch.tensor([0.8, 1.0, 0.9], device=x.device)[None, :, None])
    rim = smooth(0.085, 0.03, (ey - lower).abs() + 0.02) * smooth(1.0, 0.8, ex.abs())
    base = mix(base, base * torch.tensor([1.06, 0.84, 0.82], device=x.device)[None, :, None], (0.8 * rim)[:, None])
    out = mix(base, eye, inside[:, None])
    lash_w = 0.055 + 0.03 * fem.clamp(min=0)
    wing = smooth(-0.4, 1.0, ex)
    comb = 0.75 + 0.25 * noise(ex * 22 + 8 * (ey - upper) * ex, ey * 2 + apart, s.seed, 32)
    lash = smooth(lash_w * (1 + 0.8 * wing) + px * 0.5, 0.012, (ey - upper - 0.015).abs()) * smooth(1.16, 0.98, ex.abs()) * comb
    lash_low = 0.35 * smooth(0.05, 0.0, (ey - lower + 0.015).abs()) * smooth(1.05, 0.7, ex.abs()) * (0.5 + 0.5 * wing)
    dark = s.hair * 0.10 + 0.008
    out = mix(out, dark, (torch.maximum(lash * (0.80 + 0.15 * fem), lash_low)).clamp(0, 1)[:, None])

    # brow
    rise = 0.035 * p["brow_raise"]
    bx = (side * x - cx) / 0.19
    line = 0.205 + rise + 0.012 * fem + (0.022 + 0.016 * p["brow_arch"]) * (1 - ((bx - 0.25) / 0.9) ** 2)
    line = line - 0.010 * (bx - 0.0) * p["brow_raise"].clamp(max=0) * -3
    thick = (0.035 + 0.012 * p["brow_thickness"] - 0.006 * fem) * smooth(1.22, -0.2, bx) ** 0.5
    across = (y - line) / thick.clamp(min=0.004)
    hairs = noise(x * 70 - side * y * 55, y * 30 + side * x * 14 + apart, s.seed, 33)
    body = smooth(1.25, 0.35, across.abs() + 0.28 * hairs) * smooth(-1.0, -0.72, bx + 0.05 * hairs) * smooth(1.25, 1.0, bx)
    tone = mix(s.hair * 0.55, s.hair, p["grey"].clamp(0, 1)[:, :, None]) * (0.8 + 0.4 * hairs[:, None]).clamp(min=0.3)
    lum = (base.mean(1, keepdim=True) / s.skin.mean(1, keepdim=True)).clamp(0.1, 1.5)
    return mix(out, tone * lum, (0.86 * body)[:, None])


def mouth(s: Shader, x: Tensor, y: Tensor, base: Tensor, maps: dict[str, Tensor]) -> Tensor:
    """Paint lips, teeth and nostrils over `base` [N, 3, M]."""
    p = s.p
    m = mouth_shape(p)
    top, up, down, bottom, taper = mouth_curves(m, x)
    px = s.pixel / 0.75
    inx = smooth(1.03, 0.97, x.abs() / m.half_width)
    lips = smooth(-0.7, 0.7, torch.minimum(top - y, y - bottom) / (px + 0.006)) * inx
    crinkle = noise(x * 60, y * 8, s.seed, 36)
    fem = p["femininity"]
    tint = torch.tensor([0.92, 0.52, 0.50], device=x.device)[None, :, None]
    make_up = torch.tensor([0.95, 0.30, 0.32], device=x.device)[None, :, None]
    tint = mix(tint, make_up, (0.75 * p["lip_tint"].clamp(min=0))[:, :, None])
    lip = base * tint * (1 + 0.05 * crinkle[:, None])
    n = [maps["nx"], maps["ny"], maps["nz"]]
    shine = s.gloss(n, 5) * (0.14 + 0.10 * fem.clamp(min=0)) * (1 + 0.5 * crinkle) * (1 - maps["shadow"])
    upper_dark = smooth(-0.005, 0.02, y - up) * 0.16
    lip = lip * (1 - upper_dark[:, None]) + s.key_colour * shine[:, None]
    out = mix(base, lip, (0.9 * lips)[:, None])
    under = torch.exp(-(((y - bottom + 0.035) / 0.03) ** 2)) * smooth(0.9, 0.3, x.abs() / m.half_width)
    out = out * (1 - 0.18 * under[:, None])
    # inside: teeth lit from the front, dark toward the corners and the throat
    hole = smooth(-0.5, 0.5, torch.minimum(up - y, y - down) / (px * 0.8 + 0.002)) * smooth(1.0, 0.93, x.abs() / m.half_width)
    hole = hole * smooth(0.002, 0.012, m.gap)
    tooth_low = m.y + m.gap * 0.35 - 0.082
    tooth = smooth(-0.01, 0.012, y - tooth_low - 0.6 * x * x) * smooth(1.02, 0.55, x.abs() / m.half_width)
    gaps = 1 - 0.16 * torch.exp(-((((x.abs() / 0.052) % 1.0) - 0.5).abs() - 0.5).abs() * 16)
    deep = torch.tensor([0.055, 0.016, 0.016], device=x.device)[None, :, None]
    white = torch.tensor([0.78, 0.71, 0.60], device=x.device)[None, :, None] * (0.45 + 0.55 * smooth(0.0, 0.03, up - y))[:, None]
    lamp = (s.key_colour * 0.62 + s.fill_colour * 0.6) * gaps[:, None]
    out = mix(out, mix(deep, white * lamp, tooth[:, None]), hole[:, None])
    seam = torch.exp(-(((y - 0.5 * (up + down)) / (0.010 + px * 0.35)) ** 2)) * smooth(1.12, 0.95, x.abs() / m.half_width)
    out = out * (1 - 0.72 * (seam * (1 - hole))[:, None] * torch.tensor([0.85, 1.0, 1.0], device=x.device)[None, :, None])
    # nostrils
    nx = (x.abs() - 0.078 - 0.012 * p["nose_width"]) / 0.045
    ny = (y - NOSE_TIP_Y + 0.080 + 0.02 * p["nose_length"] - 0.02 * nx) / 0.026
    hollow = smooth(1.3, 0.4, (nx * nx + ny * ny).sqrt())
    return out * (1 - hollow[:, None] * torch.tensor([0.72, 0.86, 0.88], device=x.device)[None, :, None])


def glasses(s: Shader, hit: Hit, o: Tensor, front: Tensor, rgb: Tensor) -> Tensor:
    """Draw spectacles over `rgb` [N, 3, M]; o: [N, 3] the camera in the head frame; front: [N, 1] depth of the eyes there."""
    p = s.p
    d = (hit.dx, hit.dy, hit.dz)
    wear = smooth(0.45, 0.55, p["glasses"])
    z = front + 0.05
    t = (z - o[:, 2, None]) / d[2]
    gx, gy = o[:, 0, None] + t * d[0], o[:, 1, None] + t * d[1]
    shape = p["glasses_shape"]
    cx = 0.262
    qx, qy = (gx.abs() - cx).abs(), (gy - (EYE_Y - 0.012)).abs()
    rx, ry = 0.178 + 0.012 * shape, 0.142 - 0.022 * shape
    corner = 0.125 - 0.06 * shape
    ax, ay = qx - rx + corner, qy - ry + corner
    dist = (ax.clamp(min=0) ** 2 + ay.clamp(min=0) ** 2).sqrt() + torch.maximum(ax, ay).clamp(max=0) - corner
    bar = 0.013 + 0.008 * p["brow_thickness"].abs()
    line = smooth(0.5, -0.5, (dist.abs() - bar) / s.pixel)
    bridge = ((gy - 0.045 + 1.2 * gx * gx).abs() - bar) / s.pixel
    line = torch.maximum(line, smooth(0.5, -0.5, bridge) * (gx.abs() < cx - rx + 0.01))
    visible = (t < hit.t + 0.01).to(line)
    lens = smooth(0.5, -0.5, dist / s.pixel) * visible
    metal = hsl(p["cloth_hue"], 0.25 + 0 * shape, 0.10 + 0.07 * (1 + shape))
    gleam = smooth(-0.35, 0.4, s.key[:, 1, None] * 0.6 + 0.4 * torch.sin(gx * 9 + gy * 5))
    frame = metal * (0.5 + 0.7 * gleam)[:, None] + 0.02
    streak = smooth(0.05, 0.0, ((gx - 0.35 * gy) * 1.0 - 0.30 * torch.sign(gx) + 0.05).abs() - 0.012)
    out = rgb * (1 - 0.10 * lens * wear)[:, None] + (0.045 * (lens * wear) * (0.35 + streak))[:, None]
    # temples: straight bars from the frame's outer edge back to the ears, on the planes x = +-(cx + rx)
    sx = torch.sign(o[:, 0, None])
    edge_x = (cx + rx + bar) * sx
    tt = (edge_x - o[:, 0, None]) / torch.where(d[0].abs() < 1e-4, torch.full_like(d[0], 1e-4), d[0])
    ty, tz = o[:, 1, None] + tt * d[1], o[:, 2, None] + tt * d[2]
    arm = smooth(0.5, -0.5, ((ty - 0.03).abs() - bar) / s.pixel) * (tz < z) * (tz > -0.05) * (tt < hit.t + 0.012) * (tt > 0)
    arm = torch.maximum(arm, line * visible) * wear
    return mix(out, frame, arm[:, None])


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
    neck = 0.275 - 0.045 * p["femininity"] + 0.03 * p["fullness"].clamp(min=0) + 0.02 * p["jaw_width"]
    drop = (-0.72 - y).clamp(min=0)
    slope = 0.9 * drop * drop / (drop + 0.10) * 2.6
    flare = neck + 0.03 * drop + slope * (1.0 - 0.12 * p["femininity"])
    half = torch.minimum(flare, 1.12 + 0.12 * drop)
    centre = turn * smooth(-1.1, -0.55, y)
    u = (x - centre) / half
    cover = smooth(0.5, -0.5, (u.abs() - 1) * half / s.pixel) * smooth(NECK_TOP, NECK_TOP - 0.1, y)
    bulge = (1 - u * u).clamp(min=1e-4).sqrt()
    depth_r = 0.26 + 0.25 * smooth(-0.75, -1.25, y)
    z = -0.16 + depth_r * bulge
    # world-frame normal of the section, leaning up on the shoulders
    nx, nz = u / half, bulge / depth_r
    ny = 0.9 * smooth(0.02, 0.30, drop) * (1.2 - 0.6 * bulge)
    inv = (nx * nx + ny * ny + nz * nz).rsqrt()
    nx, ny, nz = nx * inv, ny * inv, nz * inv
    collar = -0.845 - 0.10 * (1 - p["neckline"]) * 0.5 * 0 - 0.02
    vee = (0.10 + 0.16 * p["neckline"].clamp(min=0)) * (1 - (u * half / 0.34).abs()).clamp(min=0) + 0.05 * (u * half).abs()
    edge = collar - vee + 0.10 * ((u * half).abs() - neck).clamp(min=0) * 1.6
    cloth = smooth(0.5, -0.5, (y - edge) / s.pixel)
    lip = torch.exp(-(((y - edge + 0.018) / 0.012) ** 2))
    weave = noise(x * 42 + 0.4 * y, y * 42, s.seed, 40) * 0.5 + noise(x * 9 * (1 + u * u), y * 3, s.seed, 41) * 0.4
    colour = hsl(p["cloth_hue"], 0.06 + 0.42 * p["cloth_saturation"], 0.10 + 0.65 * p["cloth_lightness"])
    chin_shadow = smooth(-0.02, 0.30, chin_y - y + 0.35 * (x - turn).abs())
    albedo = mix(s.skin * (0.92 + 0.02 * weave)[:, None], colour * (1 + 0.10 * weave)[:, None] * (1 - 0.25 * lip)[:, None], cloth[:, None])
    key, up = p["key_world"], 0.62 + 0.38 * ny
    ndl = key[:, 0, None] * nx + key[:, 1, None] * ny + key[:, 2, None] * nz
    wrap = torch.tensor([0.30, 0.17, 0.11], device=x.device)[None, :, None]
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
    rgb = mix(a, b, g[:, None])
    for k, (fx, fy, rad, gain) in enumerate(((0.75, 0.55, 0.55, 0.45), (-0.8, -0.1, 0.75, -0.30))):
        cx = fx + 0.3 * torch.sin(angle + 2.1 * k)
        cy = fy + 0.4 * torch.cos(2 * angle + k)
        dist = ((x - cx) ** 2 + (y - cy) ** 2).sqrt()
        rgb = rgb * (1 + gain * p["bg_blob"] * smooth(rad, rad * 0.35, dist))[:, None]
    vignette = 1 - 0.13 * (x * x + y * y)
    return rgb * vignette.clamp(min=0.35)[:, None]

