"""Faces of the anime domain: large eyes, thin brows over the fringe, a small mouth and nose, flat spectacles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._common import colour, mix, smooth
from ._head import EYE_Y, NOSE_TIP_Y, eye_x, mouth_curves, mouth_shape
from ._paint import hsl
from ._rays import Hit

if TYPE_CHECKING:
    from ._anime import Inked, Palette


def _fill(edge: Tensor, px: float | Tensor) -> Tensor:
    """1 where edge > 0, else 0, with a transition of about one pixel."""
    return smooth(-0.6, 0.6, edge / px)


def eyes(s: Inked, x: Tensor, y: Tensor, base: Tensor, ball: list[Tensor], shadow: Tensor) -> Tensor:
    """Paint both eyes and brows over `base` [N, 3, M] at the chart points x, y [N, M]; ball and shadow are not used."""
    p, c = s.p, s.flat
    fem, old = p["femininity"], p["age"].clamp(min=0)
    side = torch.where(x < 0, -1.0, 1.0)
    width = 0.205 + 0.016 * p["eye_size"] + 0.006 * fem
    ex, ey = (side * x - eye_x(p)) / width, (y - EYE_Y) / width
    ey = ey - (0.06 + 0.09 * p["eye_tilt"]) * ex
    px = s.pixel / 0.72 / width
    smile = p["smile"].clamp(min=0)
    tall = 0.95 + 0.14 * p["eye_size"] + 0.13 * fem - 0.16 * old
    lid = (1 + 1.15 * p["lids"].clamp(max=0) + 0.25 * p["lids"].clamp(min=0) - 0.06 * smile).clamp(0.05, 1.15)
    q2 = (ex * ex).clamp(max=1)
    arch = (1 - q2 * q2.sqrt()).clamp(min=0).sqrt() * (1 + 0.10 * ex)
    bowl = (1 - q2 * q2).clamp(min=0).sqrt() * (1 - 0.06 * ex)
    floor = -(0.86 - 0.10 * smile - 0.08 * old) * (0.25 + 0.75 * lid.clamp(max=1))
    upper = tall * lid * arch - 0.35 * (1 - lid).clamp(min=0)
    lower = floor * bowl
    lower = torch.minimum(lower, upper)
    inside = _fill(torch.minimum(upper - ey, ey - lower), px) * (q2 < 1)

    # the iris: a tall ellipse that faces the camera, dark above and bright below
    gx = (0.30 * s.view[:, 0, None]).clamp(-0.28, 0.28)
    gy = 0.01 + (0.30 * s.view[:, 1, None]).clamp(-0.2, 0.2)
    ix, iy = (side * ex - gx) / 0.63, (ey - gy) / 0.90
    radius = (ix * ix + iy * iy).sqrt()
    iris = _fill((1 - radius) * 0.66, px)
    ring = _fill((radius - 0.84) * 0.66, px)
    bright = smooth(0.35, -0.75, iy)
    tone = c.iris * (0.42 + 0.62 * bright)[:, None] + (0.16 * smooth(-0.1, -0.8, iy))[:, None]
    tone = mix(tone, c.iris * 0.30, (0.9 * ring)[:, None])
    cx, cy = ix / 0.42, (iy - 0.06) / 0.46
    pupil = _fill((1 - (cx * cx + cy * cy).sqrt()) * 0.3, px)
    tone = mix(tone, c.iris * 0.12, pupil[:, None])
    moon = _fill((0.62 - ((ix * ix) + (iy + 0.62) ** 2 * 2.2).sqrt()) * 0.6, px) * (1 - pupil)
    tone = mix(tone, (c.iris * 1.15 + 0.12).clamp(0, 1), (0.55 * moon)[:, None])
    shade = _fill(0.20 + ey - upper, px)
    white = mix(colour(x, 0.985, 0.985, 1.0), colour(x, 0.80, 0.80, 0.90), shade[:, None])
    eye = mix(white, tone, iris[:, None])
    lamp = torch.where(s.key_world[:, 0, None] < 0, -1.0, 1.0)
    hx, hy = (ix - 0.36 * lamp) / 0.34, (iy - 0.42) / 0.26
    gleam = _fill((1 - (hx * hx + hy * hy).sqrt()) * 0.18, px)
    hx, hy = (ix + 0.42 * lamp) / 0.17, (iy + 0.44) / 0.13
    gleam = torch.maximum(gleam, _fill((1 - (hx * hx + hy * hy).sqrt()) * 0.09, px))
    eye = mix(eye, torch.ones_like(eye[:, :, :1]), gleam[:, None])
    out = mix(base, eye, inside[:, None])

    # lids: a thick upper lash line with a wing, a hint of the lower one, a crease
    wing = smooth(-0.6, 1.1, ex)
    thick = 0.115 + 0.10 * wing + 0.05 * fem.clamp(min=0) * wing
    top = torch.minimum(torch.minimum(upper + thick - ey, ey - upper + 0.07), 1.06 - ex.abs())
    corner = 0.55 * (ex - 0.80)  # the wing rises from the outer corner
    tip = torch.minimum(0.09 - (ey - corner - 0.04).abs(), torch.minimum(ex - 0.72, 1.24 + 0.1 * fem - ex))
    lash = torch.maximum(_fill(top, px), _fill(tip, px))
    low = _fill(0.035 - (ey - lower + 0.01).abs(), px) * smooth(-0.25, 0.15, ex) * (ex < 0.97)
    low = low + 0.35 * _fill(0.025 - (ey - lower + 0.01).abs(), px) * (q2 < 0.9)
    crease = _fill(0.025 - (ey - upper - 0.22 - 0.06 * fem).abs(), px) * (ex > -0.55) * (ex < 0.85)
    out = mix(out, c.skin_shade * 0.72, (0.75 * crease)[:, None])
    out = mix(out, c.ink, torch.maximum(lash, low.clamp(0, 1) * 0.85)[:, None])
    return brows(s, c, x, y, out, 0.95)


def brows(s: Inked, c: Palette, x: Tensor, y: Tensor, base: Tensor, strength: float) -> Tensor:
    """Paint thin brows over face or fringe."""
    p = s.p
    fem = p["femininity"]
    px = s.pixel / 0.72
    bx = (x.abs() - eye_x(p)) / 0.20
    rise = 0.045 * p["brow_raise"]
    line = 0.300 + rise + 0.01 * fem + (0.025 + 0.018 * p["brow_arch"]) * (1 - ((bx - 0.2) / 0.9) ** 2)
    line = line + 0.035 * bx * p["brow_raise"].clamp(max=0)
    thick = (0.019 + 0.008 * p["brow_thickness"] - 0.005 * fem) * smooth(1.15, -0.6, bx).sqrt()
    body = _fill(thick - (y - line).abs(), px) * (bx > -0.95) * (bx < 1.1) * (x.abs() < 0.9)
    tone = mix(c.hair_shade * 0.55, c.hair_shade * 0.75, p["grey"].clamp(0, 1)[:, :, None])
    return mix(base, tone, (body * strength)[:, None])


def mouth(s: Inked, x: Tensor, y: Tensor, base: Tensor, maps: dict[str, Tensor]) -> Tensor:
    """Paint a small mouth over `base` [N, 3, M]."""
    p, c = s.p, s.flat
    m = mouth_shape(p)
    px = s.pixel / 0.72
    _, up, down, _, taper = mouth_curves(m, x)
    q = x.abs() / m.half_width
    lip = 0.030 + 0.008 * p["lip_fullness"]
    root = taper.sqrt()
    lips = _fill(torch.minimum(up + 0.7 * lip * root - y, y - down + lip * root), px) * (q < 1)
    out = mix(base, c.skin * colour(x, 0.96, 0.46, 0.50), (lips * (0.14 + 0.70 * p["lip_tint"].clamp(min=0)))[:, None])
    hole = _fill(torch.minimum(up - y, y - down), px) * (q < 1) * smooth(0.004, 0.014, m.gap)
    deep = colour(x, 0.56, 0.15, 0.17)
    tongue = _fill(0.55 - ((x / m.half_width) ** 2 + ((y - down) / (m.gap + 0.02)) ** 2).sqrt(), px * 6)
    inner = mix(deep, colour(x, 0.93, 0.46, 0.46), tongue[:, None])
    row = m.y + m.curve * q * q + 0.35 * m.gap - 0.040 * smooth(0.03, 0.12, m.gap)
    teeth = _fill(y - row, px) * smooth(0.02, 0.05, m.gap) * (q < 0.8)
    inner = mix(inner, colour(x, 0.99, 0.98, 0.97), teeth[:, None])
    out = mix(out, inner, hole[:, None])
    stroke = lambda d, w: _fill(w - d.abs(), px)
    width = 0.0095 * (0.5 + 0.5 * smooth(1.02, 0.6, q)) + 0.004 * smooth(0.7, 1.0, q)
    ink = torch.maximum(stroke(y - up, width), stroke(y - down, width * 0.9)) * smooth(1.06, 1.0, q)
    out = mix(out, c.ink * 0.6 + c.skin_shade * colour(x, 0.26, 0.08, 0.08), (0.95 * ink)[:, None])
    under = stroke(y - down + lip + 0.040, 0.007) * (q < 0.32)
    out = mix(out, c.skin_shade * 0.85, (0.8 * under)[:, None])
    return out


def nose(s: Inked, c: Palette, x: Tensor, y: Tensor, base: Tensor) -> Tensor:
    """Mark the nose over `base` [N, 3, M]: a short shadow beside its tip, on the side away from the light."""
    px = s.pixel / 0.72
    lean = (-1.4 * s.key[:, 0, None]).clamp(-0.7, 0.7)
    ny = y - NOSE_TIP_Y
    wedge = torch.minimum(
        torch.minimum(ny + 0.02, 0.085 - ny), (0.030 * (1 - ny / 0.085) * lean.abs() + 0.006) - (x - 0.026 * lean).abs()
    )
    out = mix(base, c.skin_shade * 0.93, _fill(wedge, px)[:, None])
    mark = torch.minimum(0.0085 - (ny + 0.022 - 3 * x * x).abs(), 0.036 - (x - 0.015 * lean).abs())
    return mix(out, c.ink * 0.45 + c.skin_shade * 0.45, (0.9 * _fill(mark, px))[:, None])


def glasses(s: Inked, hit: Hit, o: Tensor, front: Tensor, rgb: Tensor) -> Tensor:
    """Draw spectacles over `rgb` [N, 3, M]; see `_features.glasses`."""
    p, c = s.p, s.flat
    d, px = (hit.dx, hit.dy, hit.dz), s.pixel
    z = front + 0.06
    t = (z - o[:, 2, None]) / d[2]
    gx, gy = o[:, 0, None] + t * d[0], o[:, 1, None] + t * d[1]
    shape = p["glasses_shape"]
    cx = 0.275
    rx, ry, corner = 0.200 + 0.012 * shape, 0.178 - 0.022 * shape, 0.150 - 0.085 * shape
    ax, ay = (gx.abs() - cx).abs() - rx + corner, (gy - EYE_Y + 0.012).abs() - ry + corner
    dist = (ax.clamp(min=0) ** 2 + ay.clamp(min=0) ** 2).sqrt() + torch.maximum(ax, ay).clamp(max=0) - corner
    bar = 0.0125
    bridge = (gy - 0.05 + 1.2 * gx * gx).abs() - bar
    line = torch.maximum(_fill(bar - dist.abs(), px), _fill(-bridge, px) * (gx.abs() < cx - rx + 0.01))
    seen = (t < hit.t + 0.02).to(line)
    lens = _fill(-dist, px) * seen
    sheen = _fill(0.030 - (gx - 0.45 * gy - torch.sign(gx) * cx + 0.05).abs(), px)
    rgb = mix(rgb, torch.ones_like(c.skin), (lens * (0.10 + 0.32 * sheen))[:, None])
    frame = hsl(p["cloth_hue"], torch.full_like(shape, 0.55), 0.22 + 0.06 * shape).pow(1 / 2.2)
    sx = torch.sign(o[:, 0, None])
    edge = (cx + rx + bar) * sx
    away = (edge - o[:, 0, None]) / torch.where(d[0].abs() < 1e-4, torch.full_like(d[0], 1e-4), d[0])
    ty, tz = o[:, 1, None] + away * d[1], o[:, 2, None] + away * d[2]
    arm = _fill(bar - (ty - 0.03).abs(), px) * (tz < z) * (tz > -0.05) * (away < hit.t + 0.012) * (away > 0)
    return mix(rgb, frame, torch.maximum(arm, line * seen)[:, None])
