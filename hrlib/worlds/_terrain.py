"""Land and water: ranges of mountains with rock and snow, wooded hills, the lake, the meadow.

Elevation e is measured in picture heights above the horizon, u in picture heights to the right of the middle. A skyline
is a function of u alone, so a block computes it once per column, whatever its number of octaves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import smooth
from ._lattice import OCTAVE, Field, draw, fade, fractal, noise
from ._sky import air

RANGES = 3  # ranges of mountains, farthest first
ROWS = 7  # rows of trees on the wooded hills
_SCALE = (3.0, 4.2, 5.5)  # cells per picture height along the skylines
_ROUGH = (0.50, 0.47, 0.44)


def ranges(field: Field, u: Tensor, pixel: float) -> Tensor:
    """[RANGES, M] elevations of the mountains' skylines."""
    lines = []
    for k in range(RANGES):
        n = fractal(
            field, u, 0.37 * k, 10 + k, scale=_SCALE[k] * 0.5, pixel=pixel, finest=pixel, gain=_ROUGH[k], creased=6
        )[0]
        height, peaks = field(f"range{k + 1}"), field("ruggedness")
        summit = 0.0
        if k == 0:
            summit = field("peak") * (1 - (u - field("peak_u")).abs() * 3.2).clamp(min=0) ** 1.3
        lines.append(height * (0.62 + (0.18 + 0.30 * peaks) * n).clamp(min=0.05) + summit * (1 + 0.10 * n))
    return torch.stack(lines)


def _row(field: Field, u: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The trees of a row [M] at u [M]: their height (up to 1), whether they are conifers (0 or 1), and their tone."""
    x = u / (0.006 + 0.006 / (ROWS - 1) * row) + 17.3 * row
    height, kind, tone = torch.zeros_like(x), torch.zeros_like(x), torch.ones_like(x)
    for stand in (0, 1):  # two interleaved rows
        cell = (x + 0.5 * stand).floor()
        uniform = draw(field, cell, 2 * row + stand, 21)
        off = (x + 0.5 * stand - cell - 0.5 - 0.3 * (uniform[1] - 0.5)).abs() * (1.9 + uniform[2])
        conifer = (uniform[3] * 7.13).frac() < field("conifers")
        point = torch.where(conifer, 1 - off, 0.75 * (1 - off * off)).clamp(min=0)
        there = (uniform[3] < 0.25 + 0.75 * field("forest")).float().clamp(min=0.4)  # or a bush
        high = (0.45 + 0.55 * uniform[0]) * point * there
        taller = high > height
        height = torch.where(taller, high, height)
        kind = torch.where(taller, conifer.float(), kind)
        tone = torch.where(taller, 0.72 + 0.5 * uniform[1], tone)
    return height, kind, tone


def hills(field: Field, u: Tensor, pixel: float) -> Tensor:
    """[ROWS, M] skylines of the rows of trees that descend to the shore, farthest first."""
    swell = fractal(field, u, 0.0, 20, scale=1.6, pixel=pixel, finest=pixel, octaves=3, gain=0.4)[0]
    top, shore = field("hills") * (0.55 + 0.45 * swell).clamp(min=0.05), field("shore")
    rows = torch.arange(ROWS, device=u.device)
    t = (rows * (1 / (ROWS - 1)))[:, None]
    ground = shore + (top - shore) * (1 - t) ** 1.4
    many = field if field.item is None else field.at(field.item.repeat(ROWS))
    tree = _row(many, u.repeat(ROWS), rows.repeat_interleave(len(u)).float())[0]
    wide = (3.1 * t).expand(ROWS, len(u)).flatten()
    wood = fractal(many, u.repeat(ROWS), wide, 22, scale=2.5, pixel=pixel, finest=pixel, octaves=2)[0]
    wood = 0.35 + 0.65 * smooth(0.9, 0.2, wood + 1.7 - 2.6 * many("forest"))
    return ground + (0.020 + 0.020 * t) * (tree * wood).view(ROWS, -1)


def bank(field: Field, u: Tensor, pixel: float) -> Tensor:
    """[M] upper edge of the near land; between it and the shore is water."""
    n = fractal(field, u, 0.0, 30, scale=1.1, pixel=pixel, finest=pixel, octaves=6, gain=0.36)[0]
    shore = field("shore")
    level = shore - field("lake") * (0.42 + shore - 0.06)
    edge = level + 0.11 * field("lake").clamp(max=0.6) * n + field("bank_tilt") * 0.16 * u.clamp(-1.5, 1.5)
    return torch.minimum(edge, shore)


def ripples(field: Field, u: Tensor, e: Tensor, pixel: float) -> Tensor:
    """[3, M] waves on the water in perspective (value and slopes), calm in the distance."""
    s = (field("shore") - e).clamp(min=0.5 * pixel) + 0.012
    inverse = s.reciprocal()
    x, z = u * inverse * 0.34, 1.9 * s.log()
    return fractal(
        field, x + 0.6 * z, z * 4.2, 40, scale=2.0, pixel=9.5 * pixel * inverse, finest=9.5 * pixel / 0.6, slopes=True
    )


def relit(field: Field, albedo: Tensor, light: Tensor) -> Tensor:
    """Albedo [3, M] or [3, 1] lit by the sun (light [M], 0 to 1) and the sky."""
    return albedo * (field.rgb("ambient") + field.rgb("sun") * light)


def mountains(field: Field, u: Tensor, e: Tensor, line: Tensor, which: Tensor, pixel: float) -> Tensor:
    """[3, M] rock and snow of the range `which` [M] below its skyline [M]."""
    w = which.to(torch.float32)
    size = 1 - 0.14 * w  # nearer ranges have coarser detail
    x, y = u * size + 3.7 * w, e * size * 0.85 + 1.9 * w
    bend = fractal(field, x, y, 50, scale=5.0, pixel=pixel, finest=pixel, octaves=2)[0]
    x = x + 0.016 * bend  # small enough never to fold
    n = fractal(field, x + 0.5 * y, y, 52, scale=9.0, pixel=pixel, finest=pixel, gain=0.88, slopes=True, creased=3)
    lx, ly = field("light_x"), field("light_y")
    slope = n[1] * lx * 0.19 - n[2] * 0.11
    light = (0.30 + 0.38 * ly - slope).clamp(0.02, 1.2)
    strata = 1 + 0.10 * n[0]
    steep = (n[1].square() + n[2].square()) * 0.010
    snow_line = field("snow_line") + 0.05 * w + 0.020 * n[0] - 0.02 * bend
    snow = smooth(-0.022, 0.022, e - snow_line) * smooth(0.85, 0.25, steep - 0.55 * smooth(0.0, 0.16, e - snow_line))
    green = smooth(0.04, -0.05, e - 0.55 * snow_line - 0.03 * n[0]) * (0.25 + 0.33 * w) * (1 - 0.6 * field("winter"))
    rock = field.rgb("rock") * strata
    rock = torch.lerp(rock, field.rgb("conifer") * 1.6 + 0.2 * field.rgb("grass"), green)
    white = torch.tensor([0.86, 0.90, 0.97], device=u.device)[:, None]
    albedo = torch.lerp(rock, white, snow)
    lit = relit(field, albedo, light)
    return hazed(field, lit, u, e, 0.66 - 0.19 * w)


def hazed(field: Field, light: Tensor, u: Tensor, e: Tensor, distance: Tensor | float) -> Tensor:
    """Aerial perspective over `distance`, denser in the valleys."""
    thick = distance * (0.20 + 1.3 * field("haze")) + field("haze") * distance * smooth(0.16, 0.0, e) * 0.9
    amount = 1 - (-thick).exp()
    mist = field("mist") * (-((e - field("shore")) * 17).clamp(min=0)).exp() * 0.75 * distance
    return torch.lerp(light, air(field, u, e), (amount + mist * (1 - amount)).clamp(0, 1))


def forest(field: Field, u: Tensor, e: Tensor, row: Tensor, depth: Tensor, pixel: float) -> Tensor:
    """[3, M] trees of the rows [M], at `depth` [M] below their tops."""
    t = row.to(torch.float32) * (1 / (ROWS - 1))
    n = fractal(field, u + 0.21 * row, e * 1.6, 60, scale=60.0, pixel=pixel * 1.3, finest=pixel * 1.3, gain=0.72)[0]
    _, conifer, tone = _row(field, u, row)
    albedo = torch.lerp(field.rgb("leaf") * 0.6, field.rgb("conifer"), 0.2 + 0.8 * conifer) * tone
    crown = smooth(0.035, 0.0, depth)
    light = (0.10 + 0.42 * crown + 0.16 * n * (0.4 + crown)).clamp(0.02, 1)
    albedo = albedo * (1 + 0.35 * n).clamp(0.3, 2) * (0.75 + 0.25 * crown)
    return hazed(field, relit(field, albedo, light), u, e, 0.34 - 0.16 * t)


def water(field: Field, mirrored: Tensor, u: Tensor, e: Tensor, waves: Tensor) -> Tensor:
    """[3, M] the lake: the mirrored scene, weaker at steeper views, over the water's own colour."""
    s = (field("shore") - e).clamp(min=0)
    facing = (0.86 - 0.75 * s - 0.10 * waves[2] * field("wind")).clamp(0.12, 0.96)
    own = field.rgb("water") * (field.rgb("ambient") * 1.4 + 0.5 * field.rgb("sun"))
    return torch.lerp(own, mirrored * 0.90, facing)


def meadow(field: Field, u: Tensor, e: Tensor, pixel: float) -> Tensor:
    """[3, M] open ground: patches of colour and undulations in perspective, and grass grain at every distance."""
    s = (-e).clamp(min=0.02)
    inverse = s.reciprocal()
    x, z = u * inverse * 0.35, 2.2 * s.log()
    n = fractal(
        field, x, z, 70, scale=2.0, pixel=3.4 * pixel * inverse, finest=3.4 * pixel / 0.6, octaves=4, slopes=True
    )
    wide = fractal(field, u * inverse * 0.12, z * 0.4, 71, scale=1.5, pixel=pixel * inverse, finest=pixel, octaves=2)[0]
    grain, scale, k = torch.zeros_like(e), 24.0, 0
    while fade(1 / (scale * pixel)) > 0:  # tufts appear as large as their distance allows
        part = noise(field, u, e * 0.7, 73 + OCTAVE * k, scale)[0]
        grain += part * (smooth(4.0, 11.0, scale * s) * fade(1 / (scale * pixel)) * (1 + 4.0 / (scale * s)))
        scale, k = scale * 2, k + 1
    grass = field.rgb("grass")
    other = torch.lerp(grass, field.rgb("leaf"), 0.35) * 0.8 + 0.012
    albedo = torch.lerp(grass, other, smooth(-0.6, 0.9, wide + 0.25 * n[0]))
    far = smooth(0.22, 0.03, s)
    albedo = albedo * (1 + 0.13 * n[0] + 0.16 * grain).clamp(0.3, 2.0)
    light = 0.46 + 0.25 * field("light_y") - 0.06 * (n[1] * field("light_x") - n[2])
    light = light * (0.72 + 0.28 * smooth(-0.8, 0.4, wide))
    return hazed(field, relit(field, albedo, light.clamp(0.05, 1.1)), u, e, 0.16 * far + 0.01)
