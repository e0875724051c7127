"""The anime domain: flat tones with crisp borders, ink lines of one width, and hair in vivid, pointed clumps.

Everything is painted in display values from 0 to 1, without a film curve, so tones appear as they are painted. Lines
outside the silhouette come from the distance by which a ray misses the head, lines inside it from second differences of
depth and material. Their width is thus a length in head units, and pictures of every size look alike. Faces are in
`_anime_face`, hair in `_anime_hair`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._anime_face import eyes, glasses, mouth, nose
from ._anime_hair import cel, clumps, hair
from ._common import Named, colour, compact, dot, hash01, mix, noise, pick, put, smooth
from ._domain import Domain, Layers
from ._paint import NECK_TOP, SKIN, Shader, hsl, ramp
from ._rays import Hit
from ._scene import DISTANCE, REACH

LINE = 0.0165  # width of the outline outside the silhouette and of the lines inside, in head units
JUMP = 0.075  # a step of this many head units in depth is a line
IRIS = [(0.60, 0.25, 0.10), (0.90, 0.52, 0.10), (0.22, 0.70, 0.30), (0.06, 0.66, 0.72), (0.14, 0.42, 0.96)]


@dataclass(frozen=True)
class Palette:
    """The flat colours of one batch, display values [N, 3, 1]: each material in light and in shade, and some more."""

    skin: Tensor
    skin_shade: Tensor
    hair: Tensor
    hair_shade: Tensor
    hair_light: Tensor
    ink: Tensor
    iris: Tensor
    cloth: Tensor
    cloth_shade: Tensor


def _flat(h: Tensor, s: Tensor | float, lightness: Tensor | float) -> Tensor:
    """[N, 3, 1] display colours of hue, saturation and lightness."""
    full = lambda v: v if isinstance(v, Tensor) else torch.full_like(h, v)
    return hsl(h % 1.0, full(s), full(lightness)).pow(1 / 2.2)


def vivid_hair(p: Named) -> Tensor:
    """[N, 3, 1] the hair's flat display colour, a continuous function of the identity alone.

    Black hair becomes teal to violet, brown hair rose to amber, blond hair gold; red stays red, and grey becomes silver
    or lavender. The shape of the face determines the hue within each range.
    """
    tone, w = p["hair_tone"], torch.tanh(1.5 * (p["cheeks"] + p["eye_spacing"] + p["head_width"]))
    dark = _flat(0.655 + 0.20 * w, 0.50, 0.30 + 0.10 * (tone + 0.8))
    brown = _flat(0.035 + 0.055 * w, 0.62, 0.45 + 0.15 * tone)
    blond = _flat(0.125 + 0.035 * w, 0.88, 0.64)
    out = mix(mix(brown, dark, smooth(-0.35, -0.65, tone)[:, :, None]), blond, smooth(0.15, 0.55, tone)[:, :, None])
    red = _flat(0.995 + 0.045 * w, 0.78, 0.50 + 0.06 * tone)
    out = mix(out, red, smooth(0.1, 0.6, p["hair_red"])[:, :, None])
    silver = _flat(0.69 + 0.13 * w, 0.30, 0.81)
    return mix(out, silver, smooth(0.1, 0.8, p["grey"])[:, :, None])


def palette(p: Named) -> Palette:
    """The flat colours of N people."""
    skin = ramp(SKIN, 0.5 + 0.5 * p["skin_tone"]).pow(1 / 2.2)
    skin = (skin + 0.22 * (skin - skin.mean(1, keepdim=True)) + 0.035).clamp(0, 1)
    skin = skin * (1 + p.map("skin_warmth") * colour(skin, 0.02, 0.0, -0.04))
    hair = vivid_hair(p)
    cloth = _flat(p["cloth_hue"], 0.25 + 0.45 * p["cloth_saturation"], 0.28 + 0.50 * p["cloth_lightness"])
    warm = 1 + p.map("light_warmth") * colour(skin, 0.04, 0.0, -0.05) + 0.03 * p.map("light_strength")
    lit = lambda c: (c * warm).clamp(0, 1)
    light = mix(hair, torch.ones_like(hair), torch.full_like(hair[:, :1], 0.62))
    iris = ramp(IRIS, 0.5 + 0.5 * p["iris_hue"]).pow(1 / 2.2)
    return Palette(
        skin=lit(skin),
        skin_shade=lit(skin * colour(skin, 0.845, 0.70, 0.72)),
        hair=lit(hair),
        hair_shade=lit(hair * colour(skin, 0.66, 0.60, 0.78)),
        hair_light=lit(light),
        ink=hair * 0.16 + skin * colour(skin, 0.07, 0.03, 0.05) + colour(skin, 0.03, 0.015, 0.04),
        iris=iris,
        cloth=lit(cloth),
        cloth_shade=lit(cloth * colour(skin, 0.70, 0.68, 0.80)),
    )


class Inked(Shader):
    """The photo's shader, with the anime domain's flat colours."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.flat = palette(self.p)


def skin(s: Inked, hit: Hit, maps: dict[str, Tensor]) -> Tensor:
    """[N, 3, M] the bare face with nose, blush, wrinkles and beard in flat tones."""
    p, c, x, y = s.p, s.flat, hit.x, hit.y
    field = clumps(s, hit, maps).field
    ax, px = x.abs(), s.pixel / 0.72
    soft = 2.0 * px
    ndl = cel(s, hit, maps, 0.35)
    dark = smooth(0.5, -0.5, (ndl - 0.02) / soft)
    drop = smooth(-0.5, 0.5, (field + 0.050 + 0.03 * s.key[:, 1, None]) / soft) * (maps["hair"] > -0.5)
    ear = smooth(0.5, -0.5, ((ax - 1.40).abs() - 0.035) / soft) * smooth(0.13, 0.10, (y + 0.07).abs())
    dark = torch.maximum(torch.maximum(dark, drop), ear)
    out = mix(c.skin, c.skin_shade, dark[:, None])
    fem, old = p["femininity"], smooth(0.1, 0.9, p["age"])
    bx, by = (ax - 0.47) / 0.15, (y + 0.285) / 0.062
    blush = smooth(0.5, -0.5, ((bx * bx + by * by).sqrt() - 1) * 0.06 / px)
    rose = c.skin * colour(x, 1.06, 0.70, 0.72)
    out = mix(out, rose, (blush * (0.34 + 0.20 * fem.clamp(min=-0.6)))[:, None])
    line = s.pixel / 0.72
    stroke = lambda d, w: smooth(0.6, -0.6, (d.abs() - w) / line)
    if bool((old > 0).any()):
        fold = stroke(ax - 0.20 - 0.5 * (-0.36 - y).clamp(min=0), 0.006) * (y < -0.36) * (y > -0.38 - 0.13 * old)
        bag = stroke(y + 0.31 - 0.8 * (ax - 0.36) ** 2, 0.005) * ((ax - 0.33).abs() < 0.09 * old)
        brow = stroke(y - 0.42 - 0.05 * torch.cos(x * 5), 0.005) * (ax < 0.24 * old)
        lines = torch.maximum(torch.maximum(fold, bag), brow) * old
        out = mix(out, c.skin_shade * 0.80, (0.85 * lines)[:, None])
    if bool((p["freckles"] > 0).any()):
        spots = smooth(1.15, 1.35, noise(x * 26, y * 26, s.seed, 8)) * smooth(
            0.62, 0.5, (x * x + (y + 0.2) ** 2).sqrt()
        )
        out = mix(out, c.skin_shade * 0.85, (0.8 * spots * p["freckles"].clamp(min=0))[:, None])
    out = nose(s, c, x, y, out)
    bald = smooth(-0.80, -0.95, p["hair_length"])
    if bool((bald > 0).any()):
        half = F.normalize(s.up + 0.8 * s.key + 0.5 * s.view, dim=1)
        inv = (hit.px * hit.px + hit.py * hit.py + hit.pz * hit.pz).rsqrt()
        shine = dot(half, (hit.px * inv, hit.py * inv, hit.pz * inv)) - 0.972
        shine = smooth(-0.5, 0.5, shine / (0.4 * px))
        out = mix(out, (c.skin * 1.06 + 0.10).clamp(0, 1), (0.55 * shine * bald)[:, None])
    grow = maps["beard"]
    if bool((grow > 0.05).any()):
        at = compact(grow > 0.05)
        bx, by = x.gather(1, at), y.gather(1, at)
        grow = grow.gather(1, at) / torch.maximum(p["beard"], p["moustache"]).clamp(min=0.15)
        jag = 0.10 * torch.sin(bx * 46 + 9 * by) + 0.06 * noise(bx * 60 + 9 * by, by * 14, s.seed, 9)
        full = smooth(0.44, 0.52, torch.maximum(p["beard"], p["moustache"]))
        thick = smooth(0.5, -0.5, (0.42 + jag - grow) * 0.25 / line) * full
        stubble = smooth(0.5, -0.5, (0.35 + 0.5 * jag - grow) * 0.25 / line) * (1 - full)
        part = pick(out, at)
        part = mix(part, c.skin_shade * 0.55 + c.hair_shade * 0.32, (0.55 * stubble)[:, None])
        tone = mix(c.hair, c.hair_shade, torch.full_like(c.hair[:, :1], 0.55))
        strands = smooth(0.45, 0.75, noise(bx * 48 + 5 * by, by * 12, s.seed, 10)) * 0.8
        tone = mix(tone, c.hair_shade * 0.8, strands[:, None])
        rim = smooth(0.5, -0.5, ((0.42 + jag - grow).abs() - 0.05) * 0.25 / line)
        part = mix(part, tone, thick[:, None])
        out = put(out, at, mix(part, c.ink, (0.7 * rim * full)[:, None]))
    return out


def ink(s: Inked, layers: Layers) -> Tensor:
    """[N, 3, M] the picture with outlines: around the silhouette, and inside it where depth or material jumps.

    The second difference, over a step of half a line's width, responds on both sides of a jump but not to slopes.
    """
    hit, at = layers.hit, layers.at
    gap = hit.gap * (1 - hit.deep)
    torso_all = torch.where(layers.body > 0.5, DISTANCE + 1 - layers.body_z, 0.0)
    depth, torso = hit.t * REACH, DISTANCE - layers.body_z.gather(1, at)
    over = layers.body.gather(1, at) * smooth(-0.02, 0.02, depth - torso)  # the torso covers the head
    around = smooth(0.6, -0.6, (gap - LINE) / s.pixel) * smooth(-0.2, 0.6, (gap - 0.004) / s.pixel) * (1 - over)
    # a ray that passes just below the chin may stop before the hair behind it: it shows the neck's shade
    neck = layers.body.gather(1, at) > 0.5
    sliver = neck & (hit.gap > 0.001) & (hit.deep > 0.01) & (hit.px.abs() < 0.3) & ((hit.py + 0.76).abs() < 0.25)
    rgb = put(layers.rgb, at, torch.where(sliver[:, None], s.flat.skin_shade, pick(layers.rgb, at)))
    over = torch.where(sliver, 1.0, over)
    hidden = sliver | (layers.alpha < 0.5) & neck
    value = torch.where(hidden, torso + 1, depth + 0.6 * layers.hair)
    value = layers.grid(torso_all.scatter(1, at, value))

    def jumps(step: int) -> Tensor:
        v = F.pad(value, (step,) * 4, mode="replicate")
        h, w = layers.size
        shift = lambda i, j: v[:, :, step + i : step + i + h, step + j : step + j + w]
        d = max(1, round(step * 0.7071))
        most = torch.zeros_like(value)
        for i, j in ((0, step), (step, 0), (d, d), (d, -d)):
            most = torch.maximum(most, (shift(i, j) + shift(-i, -j) - 2 * value).abs_())
        return smooth(JUMP * 0.8, JUMP * 1.2, most)

    half = 0.5 * LINE / s.pixel
    low = int(half)
    lines = jumps(max(low, 1)) * (half if low == 0 else 1.0)
    if low and half - low > 0.04:
        lines = mix(lines, jumps(low + 1), torch.full_like(lines, half - low))
    lines = F.pad(lines.view(len(at), -1), (0, layers.rgb.shape[2] - value[0].numel())).gather(1, at)
    lips = (hit.x.abs() < 0.21) & ((hit.y + 0.57).abs() < 0.17)  # painted by `mouth`, so their relief draws no lines
    lines = lines * torch.maximum(layers.alpha, over) * ~(lips & (over < 0.5))
    dark = layers.spread(torch.maximum(around, lines))
    return mix(rgb, s.flat.ink, dark[:, None])


def body(s: Inked, x: Tensor, y: Tensor, turn: Tensor, chin_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Neck, shoulders and a collar in flat tones; see `_paint.body`."""
    p, c, px = s.p, s.flat, s.pixel
    neck = 0.205 - 0.035 * p["femininity"] + 0.02 * p["fullness"].clamp(min=0)
    drop = (-0.74 - y).clamp(min=0)
    flare = neck + 0.02 * drop + 2.1 * drop * drop / (drop + 0.12) * (1.0 - 0.12 * p["femininity"])
    half = torch.minimum(flare, 1.05 + 0.12 * drop)
    out = x - turn * smooth(-1.1, -0.55, y)
    u = out / half
    steep = 1 / (1 + (4.0 * smooth(0.0, 0.25, drop)) ** 2).sqrt()  # from sideways distance to distance from the border
    away = (u.abs() - 1) * half * steep
    top = smooth(NECK_TOP, NECK_TOP - 0.1, y)
    cover = smooth(0.5, -0.5, (away - LINE) / px) * top
    z = -0.16 + (0.26 + 0.25 * smooth(-0.75, -1.25, y)) * (1 - u * u).clamp(min=1e-4).sqrt()
    side = out.abs()
    vee = (0.14 + 0.18 * p["neckline"].clamp(min=0)) * (1 - side / 0.30).clamp(min=0)
    edge = -0.84 - vee
    cloth = smooth(-0.5, 0.5, (edge - y) / px)
    collar = smooth(-0.5, 0.5, (y - edge + 0.085) / px) * cloth
    light_x = s.key_world[:, 0, None]
    fold = smooth(-0.5, 0.5, (-u * torch.sign(light_x) - 0.62 + 0.25 * (y + 1)) / px * 0.5)
    dye = mix(c.cloth, c.cloth_shade, fold[:, None])
    band = mix(c.cloth, torch.ones_like(c.cloth), torch.full_like(c.cloth[:, :1], 0.62))
    dye = mix(dye, band, collar[:, None])
    under = smooth(0.5, -0.5, (chin_y - 0.10 - 0.5 * side - y) / px)
    bare = mix(c.skin, c.skin_shade, torch.maximum(under, smooth(-0.5, 0.5, (fold - 0.5)))[:, None])
    rgb = mix(bare, dye, cloth[:, None])
    stroke = lambda d: smooth(0.6, -0.6, (d.abs() - LINE * 0.45) / px)
    ink = torch.maximum(torch.maximum(stroke(y - edge), stroke(y - edge + 0.085)), smooth(-0.5, 0.5, away / px))
    return mix(rgb, c.ink, ink[:, None]), cover, z


def backdrop(s: Inked, x: Tensor, y: Tensor) -> Tensor:
    """[N, 3, M] two flat tones, joined by a screen of dots that grow toward the darker one."""
    p = s.p
    sat, light = 0.20 + 0.34 * p["bg_saturation"], 0.62 + 0.26 * p["bg_lightness"]
    a = _flat(p["bg_hue"], sat, light)
    b = _flat(p["bg_hue"] + 0.10 * p["bg_shift"], sat, light - 0.07 - 0.10 * p["bg_gradient"])
    angle = 6.2832 * p["bg_angle"]
    g = x * angle.cos() + y * angle.sin() + 0.5 * p["bg_blob"] - 0.25
    zero = torch.zeros_like(s.seed)
    u = (x + y) * 11 + 16 + hash01(s.seed, zero + 50)[:, None]
    v = (x - y) * 11 + 16 + hash01(s.seed, zero + 51)[:, None]
    jitter = hash01(s.seed[:, None], u.long(), v.long())
    dist = ((torch.frac(u) - 0.5) ** 2 + (torch.frac(v) - 0.5) ** 2).sqrt()
    size = 0.42 * smooth(-0.75, 0.15, g) * (0.8 + 0.4 * jitter)
    dots = smooth(0.6, -0.6, (dist - size) / (15.6 * s.pixel)) * smooth(0.02, 0.08, size)
    flat = smooth(-0.5, 0.5, (g - 0.15) / s.pixel)
    return mix(a, b, torch.maximum(dots, flat)[:, None])


def film(s: Inked, display: Tensor) -> Tensor:
    """Display values [N, 3, H, W] -> picture in [-1, 1] on grained paper."""
    height, width = display.shape[2:]
    row, col = torch.arange(height, device=display.device)[:, None], torch.arange(width, device=display.device)
    seed = s.seed[:, None, None]
    grain = hash01(seed, row, col) + hash01(seed + 77, row, col) - 1
    return ((display + 0.024 * grain[:, None]) * 2 - 1).clamp(-1, 1)


def warp(p: Named) -> dict[str, Tensor]:
    """The parameters as drawn in this domain: a small nose and mouth, a pointed chin, more hair."""
    one = torch.ones_like(p["yaw"])
    return {
        "eye_scale": 1.30 * one,
        "nose_scale": 0.42 * one,
        "mouth_width": -1.6 + 0.8 * p["mouth_width"],
        "mouth_open": 1.4 * p["mouth_open"],
        "jaw_width": -0.9 + 0.8 * p["jaw_width"],
        "chin": -1.4 + 0.7 * p["chin"],
        "fullness": 0.6 * p["fullness"],
        "hair_volume": 0.45 + 0.6 * p["hair_volume"],
    }


ANIME = Domain(
    warp=warp,
    shader=Inked,
    skin=skin,
    eyes=eyes,
    mouth=mouth,
    hair=hair,
    glasses=glasses,
    body=body,
    backdrop=backdrop,
    ink=ink,
    film=film,
    eye_reach=(0.34, 0.40),
)
