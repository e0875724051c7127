"""The head of the procedural portraits: a star-shaped solid of skin and hair, and the maps baked from it.

Directions d on the unit sphere around the head's centre have coordinates in Lambert's equal-area chart,
(X, Y) = d.xy / sqrt((1 + d.z) / 2): the middle of the face is (0, 0), one chart unit is about one radian there, and the
back of the head is the circle of radius 2. The surface is |p| = r(X, Y). Everything smooth (r, normals, occlusion,
shadow, where hair and beard grow) is evaluated once per head on a grid over the chart; the rays look it up there.

Head frame: x to the right of the picture, y up, z out of the face; the unit is half the shorter side of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import Named, mix, smooth

EXTENT = 1.96  # the grid covers [-EXTENT, EXTENT]^2 of the chart
GRID = 192  # grid points per side, each about one pixel of a 128-pixel portrait
CENTRE_Y = 0.06  # height of the head's centre above the picture's middle in a frontal pose
EYE_Y, MOUTH_Y, NOSE_TIP_Y = 0.0, -0.56, -0.30  # heights of the features in the chart


@lru_cache(maxsize=8)
def _chart(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Axis coordinates [GRID] and the unit directions dx, dy, dz [1, GRID, GRID] of the grid points."""
    axis = torch.linspace(-EXTENT, EXTENT, GRID)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    rho2 = (x * x + y * y).clamp(max=3.98)
    s = (1 - rho2 / 4).sqrt() * (rho2 / (x * x + y * y).clamp(min=1e-9)).sqrt()
    return axis.to(device), *(t[None].to(device) for t in (x * s, y * s, 1 - rho2 / 2))


def to_chart(px: Tensor, py: Tensor, pz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Chart coordinates and distance from the centre of points given relative to the head's centre."""
    d2 = torch.addcmul(torch.addcmul(px * px, py, py), pz, pz)
    d = d2.sqrt()
    k = d2.addcmul_(d, pz).mul_(0.5).clamp_(min=1e-6).rsqrt_()
    return px * k, py * k, d


def eye_x(p: Named) -> Tensor:
    """[N, 1] chart abscissa of the right eye's middle."""
    return 0.345 + 0.02 * p["eye_spacing"] + 0.07 * (p["eye_scale"] - 1)


@dataclass(frozen=True)
class MouthShape:
    """The mouth's outline in the chart; all fields are [N, 1]."""

    half_width: Tensor
    y: Tensor
    curve: Tensor
    upper: Tensor
    lower: Tensor
    gap: Tensor


def mouth_shape(p: Named) -> MouthShape:
    """Where the lips are, from identity and expression."""
    smile, opened = p["smile"], p["mouth_open"]
    full = p["lip_fullness"]
    return MouthShape(
        half_width=0.235 + 0.03 * p["mouth_width"] + 0.045 * smile.clamp(min=0) - 0.02 * opened,
        y=MOUTH_Y + 0.015 * p["chin"],
        curve=0.012 + 0.075 * smile,
        upper=0.060 + 0.022 * full - 0.010 * smile.clamp(min=0),
        lower=0.080 + 0.026 * full - 0.008 * smile.clamp(min=0),
        gap=0.14 * opened + 0.055 * smile.clamp(min=0) * opened.clamp(max=0.3) / 0.3,
    )


def mouth_curves(m: MouthShape, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Heights of the four lip edges at chart abscissa x, top first, and the taper (1 in the middle, 0 at corners)."""
    q = x.abs() / m.half_width
    taper = (1 - q * q).clamp(min=0)
    mid = m.y + m.curve * (q * q).clamp(max=1.6)
    bow = 1 - 0.22 * torch.exp(-((q / 0.16) ** 2))  # Cupid's bow
    inner_up = mid + m.gap * 0.35 * taper
    inner_low = mid - m.gap * 0.65 * taper
    root = taper.clamp(min=1e-6).sqrt()
    return (
        inner_up + m.upper * bow * (0.35 * root + 0.65 * taper),
        inner_up,
        inner_low,
        inner_low - m.lower * root,
        taper,
    )


def _bumps(p: Named) -> list[tuple]:
    """Separable bumps of the face: (|X| centre, Y centre, X width, Y width, height in head units)."""
    age, fem = p["age"].clamp(min=0), p["femininity"]
    ex = eye_x(p)
    big, nose = p["eye_scale"], p["nose_scale"]
    slim = nose.sqrt()
    w = 0.012 * p["nose_width"]
    smile = p["smile"]
    thin = (-p["fullness"]).clamp(min=0)
    full = p["fullness"].clamp(min=0)
    return [
        (ex - 0.06, 0.17, 0.26, 0.08, 0.030 - 0.013 * fem),
        (0.0, 0.13, 0.12, 0.10, 0.012 - 0.006 * fem),
        (ex, EYE_Y, 0.17 * big, 0.115 * big, -0.062),
        (ex, EYE_Y + 0.005, 0.125 * big, 0.085 * big, 0.040),
        (ex, EYE_Y - 0.13 * big, 0.13 * big, 0.045, 0.004 + 0.012 * age),
        (0.50 + 0.02 * full, -0.26, 0.20, 0.15, 0.030 + 0.014 * p["cheeks"] + 0.014 * smile.clamp(min=0)),
        (0.36, -0.36, 0.13, 0.12, 0.012 + 0.016 * smile.clamp(min=0)),
        (0.66, -0.64, 0.22, 0.20, 0.020 * full - 0.036 * thin - 0.012 * age),
        (0.0, -0.55, 0.30, 0.20, 0.040),
        ((0.11 + w) * slim, NOSE_TIP_Y - 0.045, (0.058 + 0.4 * w) * slim, 0.052, (0.046 + 0.9 * w) * nose),
        (0.0, -0.44, 0.045, 0.06, -0.010),
        (0.0, -0.745, 0.17, 0.045, -0.024),
        (0.0, -0.93, 0.21, 0.14, 0.048 + 0.026 * p["chin"] - 0.006 * fem),
        (0.0, -1.10, 0.24, 0.12, 0.030 + 0.03 * p["chin"] + 0.02 * full),
        (0.27 + 0.04 * smile, MOUTH_Y + 0.06 * smile, 0.055, 0.06, -0.014),
        (0.86, 0.25, 0.24, 0.25, -0.026),
        (0.98, -0.82, 0.20, 0.20, 0.030 + 0.022 * p["jaw_width"]),
    ]


def _window(axis: Tensor, wide: float, low: float, high: float) -> tuple[Tensor, Tensor, tuple]:
    """Coordinates [1, 1, w] and [1, h, 1] of the grid points with |X| <= wide and low <= Y <= high, and their index."""
    spot = lambda v: round((v + EXTENT) * (GRID - 1) / (2 * EXTENT))
    columns, rows = slice(spot(-wide), spot(wide) + 1), slice(spot(low), spot(high) + 1)
    return axis[None, None, columns], axis[None, rows, None], (slice(None), rows, columns)


def skin_radius(p: Named) -> tuple[Tensor, Tensor]:
    """Radius of the bald head over the chart and the weight of its ears, both [N, GRID, GRID]."""
    axis, dx, dy, dz = _chart(p.device)
    low = smooth(0.05, 0.95, -dy)
    a = 0.575 * (1 + 0.055 * p.map("head_width") + 0.03 * p.map("fullness"))
    a = a * (1 - low * (0.13 - 0.09 * p.map("jaw_width") + 0.045 * p.map("femininity")))
    b = torch.where(dy > 0, 0.76 + 0.04 * p.map("head_height"), 0.80 + 0.035 * p.map("chin"))
    qy, qz = (dy / b) ** 2, (dz / 0.735) ** 2
    square = 0.15 + 0.75 * low * smooth(-0.1, 0.3, dz)  # the jaw is boxy in profile, the skull round
    qyz = mix(qy + qz, (qy * qy + qz * qz).sqrt(), square)
    qx = (dx / a) ** 2
    boxy = 0.22 * smooth(-0.2, 0.5, dz)  # a face is flatter than an ellipsoid
    r = mix(qx + qyz, (qx * qx + qyz * qyz).sqrt(), boxy).rsqrt()

    ax, ay = axis.abs()[None], axis[None]
    gx, gy = [], []
    for cx, cy, sx, sy, height in _bumps(p):
        gx.append((torch.exp(-(((ax - cx) / sx) ** 2)) * height).expand(len(p), -1))
        gy.append(torch.exp(-(((ay - cy) / sy) ** 2)).expand(len(p), -1))
    nose, w = p["nose_scale"], 0.012 * p["nose_width"]
    slim, proj, length = nose.sqrt(), p["nose_projection"], 0.02 * p["nose_length"]
    under = smooth(-0.43 - length, -0.32 - length, ay)
    for width, top, height in ((0.100, 0.14, 0.072), (0.075, 0.20, 0.034), (0.115, -0.12, 0.082)):
        gx.append(torch.exp(-((ax / (slim * (width + w))) ** 2)) * (nose * height * (1 + 0.22 * proj)))
        gy.append(smooth(top, NOSE_TIP_Y - 0.02, ay) * under)
    r = r + torch.einsum("nky,nkx->nyx", torch.stack(gy, 1), torch.stack(gx, 1))

    # what follows is zero outside its window, so it is only computed there
    x, y, lips = _window(axis, 0.8, -1.3, -0.2)
    m = MouthShape(**{k: v[:, :, None] for k, v in vars(mouth_shape(p)).items()})
    top, up, down, bottom, taper = mouth_curves(m, x)
    lip = lambda lo, hi: (4 * (y - lo) * (hi - y) / (hi - lo + 1e-3) ** 2).clamp(min=0).sqrt()
    r[lips] += (0.020 * lip(up, top) + 0.026 * lip(bottom, down)) * taper.sqrt() * (1 + 0.35 * p.map("lip_fullness"))
    r[lips] -= 0.05 * lip(down, up) * smooth(0.0, 0.03, up - down)

    # nasolabial folds and forehead lines, deeper with age and with a smile
    x, y, cheeks = _window(axis, 0.8, -0.8, -0.25)
    fold_x = 0.165 + 0.55 * (-0.33 - y).clamp(min=0)
    fold = torch.exp(-(((x.abs() - fold_x) / 0.035) ** 2)) * smooth(-0.30, -0.38, y) * smooth(-0.74, -0.58, y)
    r[cheeks] -= fold * (0.004 + 0.011 * p.map("age").clamp(min=0) + 0.007 * p.map("smile").clamp(min=0))
    x, y, forehead = _window(axis, 0.55, 0.2, 0.7)
    lines = (
        torch.cos((y + 0.06 * x * x) * 75) * smooth(0.26, 0.33, y) * smooth(0.62, 0.5, y) * smooth(0.5, 0.3, x.abs())
    )
    r[forehead] -= lines * (0.0035 * (p.map("age") - 0.1).clamp(min=0) + 0.002 * p.map("brow_raise").clamp(min=0))

    x, y, sides = _window(axis, EXTENT, -0.6, 0.5)
    ear_y = -0.06
    size = 1 + 0.16 * p.map("ear_size")
    t = (y - ear_y) / (0.235 * size)
    back = 1.44 + 0.06 * t
    ear = torch.exp(-(((x.abs() - back) / 0.085) ** 2)) * (1 - t**4).clamp(min=0) * smooth(-1.25, 0.1, t)
    bowl = torch.exp(-(((x.abs() - back + 0.075) / 0.06) ** 2) - ((t + 0.1) / 0.55) ** 2)
    shown = 1 - smooth(0.0, 0.3, p.map("hair_length"))
    r[sides] += (0.125 * size * ear - 0.02 * bowl) * shown
    whole = torch.zeros_like(r)
    whole[sides] = (ear * shown).clamp_(0, 1)
    return r.mul_(p.map("head_scale")), whole


def hair_cover(p: Named) -> tuple[Tensor, Tensor]:
    """Signed depth inside the region of hair (in about chart units, > 0 where hair grows), and the hair's thickness.

    Returns:
        Two [N, GRID, GRID] tensors.
    """
    _, dx, dy, dz = _chart(p.device)
    length, volume = p.map("hair_length"), p.map("hair_volume")
    hairy = smooth(-1.0, -0.82, length)
    long = smooth(0.0, 0.35, length)
    fringe = p.map("fringe").clamp(min=0)
    part = p.map("hair_part")

    bare = 1 - fringe
    line = 0.575 + 0.05 * p.map("hairline") - 0.10 * dx * dx
    line = line + 0.10 * p.map("hairline").clamp(min=0) * torch.exp(-(((dx.abs() - 0.33) / 0.16) ** 2))
    line = line - fringe * (0.36 - 0.06 * part * dx - 0.25 * dx * dx)
    # without a fringe, short hair is swept to one side; long hair parts and falls over the temples
    line = line + bare * (1 - long) * part * dx * 0.16
    line = line + bare * long * (0.13 * torch.exp(-(((dx - 0.22 * part) / 0.20) ** 2)) - 0.9 * (dx - 0.22 * part) ** 2)
    top = (dy - line) * 1.25
    slope = 0.20 + 0.30 * long  # cosine of the longitude where hair begins beside the face
    side = dx.abs() * slope - dz * (1 - slope * slope).sqrt()
    side = torch.minimum(side, ((dx * dx + dz * dz).sqrt() - 0.30) * 1.5)
    k = 0.09
    h = (0.5 + 0.5 * (top - side) / k).clamp(0, 1)
    inside = mix(side, top, h) + k * h * (1 - h)
    # short hair ends above the ear in front and at the nape behind
    nape = -0.12 - 0.50 * smooth(0.02, -0.35, dz)
    nape = mix(nape, torch.full_like(nape, -3.0), long)
    inside = torch.minimum(inside, (dy - nape) * 1.3)

    grown = smooth(0.0, 0.30, inside)
    grown = grown * (1 + 0.16 * torch.sin(7 * dx + 5 * part + 4 * dy) * torch.cos(6 * dz + 3 * dx) + 0.25 * part * dx)
    crown = smooth(-0.15, 0.55, dy)
    thick = 0.014 + grown * (0.085 + 0.055 * volume) * (0.35 + 0.65 * crown)
    thick = thick + 0.035 * fringe * smooth(0.0, 0.08, inside) * smooth(0.25, 0.5, dz)
    afro = p.map("hair_curl").clamp(min=0) * volume.clamp(min=0)
    thick = thick + 0.20 * afro * smooth(0.0, 0.22, inside)
    bx, by, bz = 0.0, 0.89, -0.456
    cosine = dx * bx + dy * by + dz * bz
    bun = smooth(0.0, 0.4, p.map("bun"))
    thick = thick * (1 - 0.5 * bun * smooth(0.93, 0.8, cosine)) + 0.20 * bun * smooth(0.925, 0.975, cosine)
    return torch.where(hairy > 0, inside, torch.full_like(inside, -1.0)), thick * hairy


def _long_hair(p: Named, r: Tensor, inside: Tensor) -> Tensor:
    """r with long hair hanging: a curtain around the head, down to the hair's length."""
    _, dx, dy, dz = _chart(p.device)
    long = smooth(0.0, 0.35, p.map("hair_length"))
    wide = 0.68 + 0.05 * p.map("hair_volume") + 0.05 * p.map("hair_curl").clamp(min=0)
    column = wide * (dx * dx + 0.85 * dz * dz).clamp(min=1e-4).rsqrt()
    bottom = (0.35 + 1.0 * p.map("hair_length")) / (-dy).clamp(min=0.05)
    hang = torch.minimum(column, bottom).clamp(max=1.9)
    weight = long * smooth(0.20, -0.35, dy) * smooth(0.0, 0.06, inside)
    return mix(r, torch.maximum(r, hang), weight)


@dataclass(frozen=True)
class Bake:
    """The baked maps of one batch of heads.

    radius: [N, 1, GRID, GRID]; maps: [N, C, GRID, GRID] with the channels of `MAPS`.
    """

    radius: Tensor
    maps: Tensor


MAPS = ("hair", "bald", "nx", "ny", "nz", "occlusion", "shadow", "beard", "blush", "cavity")


def named_maps(found: Tensor) -> dict[str, Tensor]:
    """Values [N, len(MAPS), M] as [N, M] each by the names of MAPS."""
    return dict(zip(MAPS, found.unbind(1), strict=True))


def lookup(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[N, C, M] values of [N, C, GRID, GRID] maps at the chart points x, y [N, M]."""
    grid = torch.empty(*x.shape, 1, 2, device=x.device)
    torch.mul(x, 1 / EXTENT, out=grid[:, :, 0, 0])
    torch.mul(y, 1 / EXTENT, out=grid[:, :, 0, 1])
    return F.grid_sample(maps, grid, align_corners=True, padding_mode="border")[..., 0]


def box_blur(t: Tensor, k: int) -> Tensor:
    """Mean over (2k + 1)^2 neighbours of [N, 1, H, W], with repeated edges."""
    # summing shifted views is much faster here than avg_pool2d
    h, w = t.shape[2:]
    t = F.pad(t, (k, k, k, k), mode="replicate")
    t = sum(t[..., i : i + w] for i in range(2 * k + 1))
    return sum(t[:, :, i : i + h] for i in range(2 * k + 1)) * (1 / (2 * k + 1) ** 2)


def _shadow(r: Tensor, light: Tensor) -> Tensor:
    """Soft self-shadow [N, GRID, GRID] in [0, 1] of the surface r, lit from the direction `light` [N, 3].

    From each point of a half-resolution grid, march over the chart toward the light and check what rises above the
    straight line to it.
    """
    axis, dx, dy, dz = (t[..., ::2] if t.dim() == 1 else t[:, ::2, ::2] for t in _chart(r.device))
    x, y, start = axis[None, None, :], axis[None, :, None], r[:, ::2, ::2]
    lx, ly, lz = light[:, 0, None, None], light[:, 1, None, None], light[:, 2, None, None]
    along = lx * dx + ly * dy + lz * dz
    tx, ty, tz = lx - along * dx, ly - along * dy, lz - along * dz
    k, m = (1 + dz).clamp(min=0.05).mul(0.5).rsqrt(), 1 / (2 * (1 + dz).clamp(min=0.1))
    sx, sy = tx * k - x * tz * m, ty * k - y * tz * m
    rise = along / (tx * tx + ty * ty + tz * tz).clamp(min=1e-3).sqrt()
    inv = (sx * sx + sy * sy).clamp(min=1e-4).rsqrt()
    sx, sy = sx * inv, sy * inv
    shadow = torch.zeros_like(sx)
    for step in (0.05, 0.10, 0.17, 0.26):
        there = lookup(r[:, None], (x + sx * step).flatten(1), (y + sy * step).flatten(1))[:, 0].view_as(sx)
        shadow = torch.maximum(shadow, smooth(0.0, 0.05, there - start * (1 + rise * step + 0.5 * step * step)))
    # the grid's even points lie half a cell before the centres that interpolation assumes; the blur hides that
    return F.interpolate(box_blur(shadow[:, None], 1), r.shape[1:], mode="bilinear", align_corners=False)[:, 0]


def bake(p: Named, light: Tensor) -> Bake:
    """Evaluate the head over the chart.

    Args:
        p: resolved parameters.
        light: [N, 3] unit vector toward the key light in the head frame.
    """
    axis, dx, dy, dz = _chart(p.device)
    skin, ear = skin_radius(p)
    inside, thick = hair_cover(p)
    x, y = axis[None, None, :], axis[None, :, None]
    ax = x.abs()
    blush = torch.exp(-(((ax - 0.50) / 0.22) ** 2) - ((y + 0.28) / 0.16) ** 2)
    blush = blush + 0.9 * torch.exp(-((ax / 0.13) ** 2) - ((y + 0.30) / 0.10) ** 2) + 0.6 * ear

    x, y, lower = _window(axis, EXTENT, -1.5, 0.0)
    m = mouth_shape(p)
    ax = x.abs()
    jaw = (
        smooth(-0.30, -0.62, y + 0.50 * (ax - 0.55).clamp(min=0))
        * smooth(1.35, 1.15, -y)
        * smooth(0.16, 0.42, ax - 0.2 * (-0.7 - y))
    )
    chin = smooth(-0.68, -0.78, y) * smooth(0.5, 0.25, ax) * smooth(-1.35, -1.15, y)
    side = smooth(0.45, 0.80, ax) * smooth(1.32, 1.22, ax) * smooth(-0.02, -0.30, y) * smooth(-1.3, -1.1, y)
    lip_top = m.y[:, :, None] + 0.06
    tash = (
        smooth(0.33, 0.20, ax)
        * smooth(-0.425, -0.455, y + 0.08 * ax)
        * smooth(lip_top - 0.02 - 0.35 * ax, lip_top + 0.01 - 0.3 * ax, y)
    )
    around = smooth(0.22, 0.29, ax) * smooth(0.46, 0.36, ax) * smooth(-0.44, -0.52, y) * smooth(-1.1, -0.9, y)
    here = p.map("beard").clamp(min=0) * torch.maximum(
        torch.maximum(jaw * smooth(0.2, 0.35, ax), chin), torch.maximum(side, around)
    )
    here = torch.maximum(here, p.map("moustache").clamp(min=0) * tash).clamp(0, 1)
    beard = torch.zeros_like(skin)
    beard[lower] = here * smooth(0.0, 0.10, dz[lower] + 0.35)

    covered = smooth(-0.015, 0.035, inside)
    r = skin + covered * thick * (1 - 0.85 * ear)
    r = _long_hair(p, r, inside)
    growth = 0.030 * beard * p.map("beard").clamp(min=0)
    r, bald = r + growth, skin + growth
    hair = torch.where(ear > 0.25, torch.minimum(inside, -0.3 * ear), inside)

    pad = [F.pad((r * c)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0] for c in (dx, dy, dz)]
    (ux, uy, uz), (vx, vy, vz) = (
        [q[:, 1:-1, 2:] - q[:, 1:-1, :-2] for q in pad],
        [q[:, 2:, 1:-1] - q[:, :-2, 1:-1] for q in pad],
    )
    nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    inv = (nx * nx + ny * ny + nz * nz).clamp(min=1e-20).rsqrt()

    one = r[:, None]
    near = box_blur(box_blur(one, 3), 3)
    wide = F.interpolate(
        box_blur(box_blur(F.avg_pool2d(one, 4), 2), 3), one.shape[2:], mode="bilinear", align_corners=False
    )
    cavity = ((near - one) * 22).clamp(-1, 1)
    occlusion = 1 - ((near - one) * 14).clamp(0, 0.5) - ((wide - one) * 4.0).clamp(0, 0.5)

    maps = torch.stack(
        (hair, bald, nx * inv, ny * inv, nz * inv, occlusion[:, 0], _shadow(r, light), beard, blush, cavity[:, 0]), 1
    )
    return Bake(one, maps)
