"""The cartoon domain: the same people as characters of a modern animated film.

Large eyes, a small nose and a soft head on narrow shoulders; shading in a few soft steps with a bright rim, clean
shapes of hair with broad highlights, saturated colours. Strands, freckles and a fine grain remain as random detail.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _features, _paint
from ._common import Named, colour, compact, dot, mix, noise, pick, put, smooth
from ._domain import Domain
from ._head import EYE_Y, NOSE_TIP_Y, eye_x, mouth_curves, mouth_shape
from ._paint import hsl, ramp
from ._rays import Hit

IRIS = [(0.34, 0.17, 0.07), (0.55, 0.33, 0.10), (0.50, 0.55, 0.16), (0.25, 0.62, 0.46), (0.20, 0.52, 0.85)]


def warp(p: Named) -> dict[str, Tensor]:
    """The proportions of an animated film, with more saturated clothes and walls."""
    one = torch.ones_like(p["yaw"])
    return {
        "eye_scale": 1.55 + 0.08 * p["eye_size"],
        "nose_scale": 0.66 + 0.05 * p["nose_length"],
        "head_scale": 1.03 * one,
        "body_scale": 0.80 * one,
        "age": 0.55 * p["age"].clamp(min=0) + p["age"].clamp(max=0),
        "cloth_saturation": 0.55 + 0.65 * p["cloth_saturation"],
        "cloth_lightness": 0.15 + 0.65 * p["cloth_lightness"],
    }


class Shader(_paint.Shader):
    """The photo's lights with more fill, and purer colours of skin and hair."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.fill_colour = self.fill_colour * 1.12
        self.skin, self.hair = pure(self.skin, 1.10), pure(self.hair, 1.14) * 1.2


def pure(rgb: Tensor, gain: float) -> Tensor:
    """Colours [N, 3, ...] with their distance from grey multiplied by `gain`."""
    grey = (rgb * colour(rgb, 0.30, 0.59, 0.11).view(1, 3, *[1] * (rgb.dim() - 2))).sum(1, keepdim=True)
    return (grey + gain * (rgb - grey)).clamp(min=0)


def steps(t: Tensor) -> Tensor:
    """Light in two soft steps: 0 in shadow, 0.62 in half-light, 1 in direct light."""
    return 0.62 * smooth(-0.28, 0.22, t) + 0.38 * smooth(0.40, 0.80, t)


def rim(s: _paint.Shader, n: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """[N, M] light from behind that separates the figure from the wall, stronger above and away from the key light."""
    facing = dot(s.view, n).clamp(0, 1)
    away = 0.55 + 0.45 * smooth(0.3, -0.6, dot(s.key, n))
    return smooth(0.42, 0.10, facing) * smooth(-0.5, 0.5, dot(s.up, n)) * away


def skin(s: _paint.Shader, hit: Hit, maps: dict[str, Tensor]) -> Tensor:
    """[N, 3, M] light leaving the skin with its freckles and beard; see `_paint.skin`."""
    p, x, y = s.p, hit.x, hit.y
    n = [maps["nx"], maps["ny"], maps["nz"]]
    ndl, amb = s.lit(n, maps["occlusion"])
    mottle = noise(x * 26, y * 26, s.seed, 0) + noise(x * 60, y * 60, s.seed, 1)
    albedo = s.skin * (1 + 0.012 * mottle[:, None])
    blush = (maps["blush"] * (1.15 + 0.45 * p["femininity"])).clamp(min=0)
    albedo = albedo * (1 + colour(x, 0.05, -0.24, -0.20) * blush[:, None])
    if bool((p["freckles"] > 0).any()):
        spots = smooth(1.05, 1.45, noise(x * 20, y * 20, s.seed, 8)) * p["freckles"].clamp(min=0)
        spots = spots * smooth(0.75, 0.40, (x * x + (y + 0.22) ** 2 * 2).sqrt())
        albedo = albedo * (1 - 0.6 * spots[:, None] * colour(x, 0.25, 0.5, 0.65))
    grow, cover = maps["beard"], torch.zeros_like(x)
    if bool((grow > 0).any()):  # a clean mass with a few bold strands
        at = compact(grow > 0)
        bx, by, grow = x.gather(1, at), y.gather(1, at), grow.gather(1, at)
        hairs = noise(bx * 30 + 5 * by, by * 9, s.seed, 9) + 0.8 * noise(bx * 70 - 9 * by, by * 20, s.seed, 10)
        whole = smooth(0.45, 0.60, p["beard"].maximum(p["moustache"]))  # 1 for a beard, 0 for the even tint of stubble
        thick = smooth(0.20, 0.50, grow + 0.07 * hairs) * whole
        thick = thick + (1 - whole) * (0.9 * smooth(0.02, 0.6, grow) + 0.05 * hairs * smooth(0.0, 0.2, grow)).clamp(
            0, 1
        )
        beard = s.hair * (0.90 + 0.22 * hairs[:, None]).clamp(min=0.3)
        albedo = put(albedo, at, mix(pick(albedo, at), beard, (0.95 * thick)[:, None]))
        cover = cover.scatter(1, at, thick)
    visible = 1 - 0.60 * maps["shadow"]
    lit = steps(ndl + 0.01 * mottle) * visible
    warm = mix(colour(x, 1.0, 0.80, 0.74), torch.ones_like(albedo[:, :, :1]), lit[:, None])  # blood in the half-light
    light = s.key_colour * (0.98 * lit[:, None]) + s.fill_colour * amb[:, None]
    light = light * (1 - 0.16 * maps["cavity"].clamp(min=0)[:, None])
    sheen = (smooth(0.55, 0.95, s.gloss(n, 3)) * 0.10 + 0.05 * s.gloss(n, 2)) * visible * (1 - cover)
    return (
        albedo * light * warm
        + s.key_colour * sheen[:, None]
        + (mix(albedo, 0 * albedo + 1, 0.45) * rim_colour(s)) * (0.55 * rim(s, n))[:, None]
    )


def rim_colour(s: _paint.Shader) -> Tensor:
    """[N, 3, 1] the colour of the light from behind: a pale tint of the wall."""
    tint = hsl(s.p["bg_hue"], torch.full_like(s.p["bg_hue"], 0.7), torch.full_like(s.p["bg_hue"], 0.75))
    return 0.35 + 0.75 * tint


def eyes(s: _paint.Shader, x: Tensor, y: Tensor, base: Tensor, n: list[Tensor], shadow: Tensor) -> Tensor:
    """Large round eyes with bright irises, a bold upper lash line and full brows; see `_features.brows_and_eyes`."""
    p = s.p
    fem, smile = p["femininity"], p["smile"].clamp(min=0)
    side = torch.where(x < 0, -1.0, 1.0)
    cx = eye_x(p)
    width = (0.160 + 0.012 * p["eye_size"]) * p["eye_scale"]
    ex, ey = (side * x - cx) / width, (y - EYE_Y) / width
    ey = ey - (0.04 + 0.08 * p["eye_tilt"]) * ex
    open_ = (0.78 + 0.05 * p["eye_size"] + 0.24 * p["lids"] - 0.07 * smile).clamp(min=0.05)
    low = 0.62 - 0.20 * smile + 0.05 * p["lids"]
    q = (1 - ex * ex).clamp(min=0)
    arch = q.sqrt() * 0.80 + q * 0.20
    upper = open_ * arch * (1 - 0.06 * ex)
    lower = -low * (0.55 * q.sqrt() + 0.45 * q) * (1 + 0.10 * ex) * (open_ / 0.6).clamp(max=1)
    px = s.pixel / width / 0.72
    inside = smooth(-0.6, 0.9, torch.minimum(upper - ey, ey - lower) / px) * (q > 0)

    gaze = F.normalize(0.55 * s.view + torch.tensor([0.0, 0.0, 0.45], device=x.device), dim=1)
    dx, dy = n[0] - gaze[:, 0, None] + 0.035 * side, n[1] - gaze[:, 1, None]
    radius = (dx * dx + dy * dy).sqrt()
    soft = px * 0.45
    iris = smooth(0.47 + soft, 0.47 - soft, radius)
    pupil = smooth(0.235 + soft, 0.235 - soft, radius)
    pigment = ramp(IRIS, 0.5 + 0.5 * p["iris_hue"])
    fibre = noise(torch.atan2(dy, dx) * 5, radius * 3 + 40 * side, s.seed, 30)
    glow = 0.55 + 1.25 * smooth(0.18, -0.42, dy) + 0.10 * fibre
    ring = smooth(0.37, 0.45, radius)
    eye = mix(colour(x, 0.92, 0.88, 0.86), pigment * (1.15 * glow * (1 - 0.70 * ring))[:, None], iris[:, None])
    eye = eye * (1 - 0.97 * pupil[:, None])
    light = s.key_colour * (0.46 * (1 - 0.4 * shadow))[:, None] + s.fill_colour
    lid_shadow = 0.58 + 0.42 * smooth(0.0, 0.30, upper - ey)
    eye = eye * light * lid_shadow[:, None]
    sx = torch.sign(s.key[:, :1] + 1e-6)
    spot = ((dx - 0.17 * sx) ** 2 + (dy - 0.19) ** 2).sqrt()
    spot2 = ((dx + 0.16 * sx) ** 2 + (dy + 0.20) ** 2).sqrt()
    eye = eye + (1.5 * smooth(0.115 + soft, 0.115 - soft, spot) + 0.45 * smooth(0.075, 0.02, spot2))[:, None]

    reach = smooth(1.20, 0.95, ex.abs())
    crease = torch.exp(-(((ey - upper - 0.17) / 0.05) ** 2)) * smooth(1.15, 0.7, ex.abs())
    lid = smooth(0.0, 0.05, ey - upper) * smooth(0.22, 0.12, ey - upper) * reach
    base = base * (1 - (0.28 * crease)[:, None] * colour(x, 0.7, 1.0, 1.0))
    shade = 0.10 + 0.22 * fem.clamp(min=0)
    base = base * (1 - (lid * shade)[:, None] * colour(x, 0.6, 1.0, 0.85))
    below = torch.exp(-(((ey - lower + 0.10) / 0.07) ** 2)) * smooth(1.1, 0.4, ex.abs())
    base = base * (1 - 0.14 * below[:, None] * colour(x, 0.6, 1.0, 1.0))
    out = mix(base, eye, inside[:, None])
    wing = smooth(-0.3, 1.05, ex)
    lash_w = 0.045 + (0.030 + 0.045 * wing) * (0.5 + 0.5 * fem)
    lash = smooth(lash_w + px * 0.5, lash_w * 0.4, (ey - upper - 0.3 * lash_w).abs()) * smooth(1.12, 1.0, ex.abs())
    flick = (
        smooth(0.06 + px, 0.02, (ey - 0.16 - 0.9 * (ex - 0.95)).abs()) * smooth(0.85, 0.95, ex) * smooth(1.26, 1.16, ex)
    )
    lash = torch.maximum(lash, flick * smooth(0.1, 0.5, fem))
    low_line = 0.40 * smooth(0.045 + px * 0.5, 0.0, (ey - lower).abs()) * smooth(1.05, 0.8, ex.abs())
    dark = s.hair * 0.08 + 0.010
    out = mix(out, dark, torch.maximum(0.92 * lash, low_line).clamp(0, 1)[:, None])

    bx = (side * x - cx) / (0.155 * p["eye_scale"])
    line = width * 1.22 + 0.060 * p["brow_raise"] + 0.05 * bx * p["brow_raise"].clamp(max=0)
    line = line + (0.035 + 0.020 * p["brow_arch"]) * (1 - ((bx - 0.2) / 0.9) ** 2)
    thick = (0.046 + 0.015 * p["brow_thickness"] - 0.008 * fem) * smooth(1.35, -0.4, bx) ** 0.5
    across = (y - line) / thick.clamp(min=0.006)
    hairs = noise(x * 45 - side * y * 35, y * 16 + side * x * 8 + 40 * side, s.seed, 33)
    brow = smooth(1.10, 0.75, across.abs() + 0.10 * hairs) * smooth(-1.02, -0.86, bx) * smooth(1.22, 1.08, bx)
    tone = mix(s.hair * 0.50, s.hair * 0.9, p["grey"].clamp(0, 1)[:, :, None]) * (0.9 + 0.22 * hairs[:, None])
    lum = (base.mean(1, keepdim=True) / s.skin.mean(1, keepdim=True)).clamp(0.3, 1.3)
    return mix(out, tone * lum, (0.94 * brow)[:, None])


def mouth(s: _paint.Shader, x: Tensor, y: Tensor, base: Tensor, maps: dict[str, Tensor]) -> Tensor:
    """Smooth lips around one clean row of teeth, and two small nostrils; see `_features.mouth`."""
    p = s.p
    m = mouth_shape(p)
    top, up, down, bottom, _ = mouth_curves(m, x)
    px, q = s.pixel / 0.75, x.abs() / m.half_width
    fem = p["femininity"]
    tint = mix(
        colour(x, 0.95, 0.62, 0.58), colour(x, 0.85, 0.22, 0.27), (0.85 * p["lip_tint"].clamp(min=0))[:, :, None]
    )
    lips = smooth(-0.7, 0.7, torch.minimum(top - y, y - bottom) / (px + 0.004)) * smooth(1.03, 0.97, q)
    shine = torch.exp(-(((y - 0.6 * down - 0.4 * bottom) / 0.016) ** 2) - (q / 0.45) ** 2)
    lip = base * tint * (1 - 0.14 * smooth(-0.005, 0.02, y - up))[:, None]
    lip = lip + s.key_colour * (0.12 * shine * (0.5 + 0.5 * fem))[:, None]
    out = mix(base, lip, ((0.70 + 0.2 * fem) * lips)[:, None])
    under = torch.exp(-(((y - bottom + 0.04) / 0.03) ** 2)) * smooth(0.8, 0.2, q)
    out = out * (1 - 0.13 * under[:, None])
    hole = smooth(-0.5, 0.5, torch.minimum(up - y, y - down) / (px * 0.8 + 0.002)) * smooth(1.0, 0.93, q)
    hole = hole * smooth(0.002, 0.012, m.gap)
    tooth_low = m.y + m.curve * q * q + 0.35 * m.gap - 0.088  # the row of teeth bends as the lips do
    tooth = smooth(-0.006, 0.008, y - tooth_low) * smooth(1.0, 0.8, q)
    tongue = smooth(0.02, -0.03, y - (m.y - 0.45 * m.gap) + 1.2 * x * x)
    deep = mix(colour(x, 0.10, 0.012, 0.016), colour(x, 0.52, 0.14, 0.15), tongue[:, None])
    lamp = s.key_colour * 0.62 + s.fill_colour * 0.65
    out = mix(out, mix(deep, colour(x, 0.88, 0.85, 0.80) * lamp, tooth[:, None]), hole[:, None])
    seam = torch.exp(-(((y - 0.5 * (up + down)) / (0.011 + px * 0.35)) ** 2)) * smooth(1.14, 0.98, q)
    out = out * (1 - 0.70 * (seam * (1 - hole))[:, None] * colour(x, 0.75, 1.0, 1.0))
    nx = (x.abs() - (0.070 + 0.012 * p["nose_width"]) * p["nose_scale"]) / 0.028
    ny = (y - NOSE_TIP_Y + 0.085 + 0.02 * p["nose_length"] - 0.01 * nx) / 0.020
    hollow = smooth(1.3, 0.4, (nx * nx + ny * ny).sqrt())
    return out * (1 - 0.75 * hollow[:, None] * colour(x, 0.68, 0.9, 0.92))


def hair(s: _paint.Shader, hit: Hit, maps: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Clean locks with a broad band of light; see `_paint.hair`."""
    it = _paint.strands(s, hit, base=7.0, octaves=4)
    locks, fine = it.locks, it.strands
    cover = _paint.hair_cover(s, hit, maps, 0.018 * fine + 0.022 * locks)
    n = maps["nx"], maps["ny"], maps["nz"]
    tangent = it.tangent(n, (0.22 * locks + 0.08 * fine) * (1 + it.curl))
    th = dot(s.half, tangent) + 0.05 * locks + 0.035 * fine
    ndl, amb = s.lit(n, maps["occlusion"])
    lit = steps(ndl + 0.10 * locks) * (1 - 0.5 * maps["shadow"])
    root = 0.70 + 0.30 * smooth(0.0, 0.16, maps["hair"])
    groove = 1 - 0.30 * smooth(0.35, 1.1, locks) - 0.20 * smooth(0.5, 1.2, fine) + 0.10 * smooth(-0.3, -1.2, fine)
    body = s.hair * (root * groove * (0.94 + 0.10 * smooth(0.2, -0.8, locks)))[:, None]
    light = s.key_colour * (0.85 * lit)[:, None] + s.fill_colour * (1.15 * amb)[:, None]
    band = smooth(0.30, 0.08, th.abs()) * smooth(-0.2, 0.5, ndl) * (1 - 0.6 * it.kink)
    tint = s.hair.sqrt() * 0.9 + 0.08
    out = body * light + s.key_colour * tint * (0.24 * band * root)[:, None]
    return out + (tint * rim_colour(s)) * (0.60 * rim(s, n))[:, None], cover, 0.5 * fine


def backdrop(s: _paint.Shader, x: Tensor, y: Tensor) -> Tensor:
    """[N, 3, M] a plain wall of saturated colour, lit behind the head."""
    p = s.p
    h, sat, light = p["bg_hue"], 0.14 + 0.34 * p["bg_saturation"], 0.34 + 0.42 * p["bg_lightness"]
    far = hsl((h + 0.08 * p["bg_shift"]) % 1.0, sat, light * 0.62)
    near = hsl(h, sat, (light * 1.18).clamp(max=0.92))
    glow = smooth(1.75, 0.15, ((x * 0.9) ** 2 + (y - 0.15) ** 2).sqrt())
    return mix(far, near, glow[:, None])


def film(s: _paint.Shader, linear: Tensor) -> Tensor:
    """The photo's film with purer colours and less grain."""
    return _paint.film(s, pure(linear, 1.08), grain=0.016)


CARTOON = Domain(
    warp=warp,
    shader=Shader,
    skin=skin,
    eyes=eyes,
    mouth=mouth,
    hair=hair,
    glasses=_features.glasses,
    backdrop=backdrop,
    film=film,
    eye_reach=(0.36, 0.42),
)
