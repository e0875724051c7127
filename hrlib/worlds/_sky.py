"""Light and air of a landscape: the palette of an hour and a season, the sky with its sun and clouds, the haze."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import smooth
from ._lattice import Field, fractal

# Linear light. Knots over the season: spring, summer, autumn, winter.
_GRASS = ((0.115, 0.235, 0.045), (0.100, 0.170, 0.035), (0.260, 0.180, 0.055), (0.62, 0.66, 0.72))
_LEAF = ((0.150, 0.290, 0.045), (0.060, 0.140, 0.025), (0.560, 0.190, 0.025), (0.42, 0.43, 0.46))
_CONIFER = ((0.035, 0.085, 0.035), (0.030, 0.070, 0.030), (0.040, 0.072, 0.030), (0.085, 0.12, 0.115))
_ROCK = (((0.20, 0.165, 0.135), (0.165, 0.17, 0.185)), ((0.26, 0.17, 0.12), (0.15, 0.15, 0.16)))


def _rgb(value: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(value, device=like.device)[None]


def _knots(values: tuple, t: Tensor) -> Tensor:
    """[n, 3] colours interpolated between knots at 0, 1, 2, ..."""
    table = torch.tensor(values, device=t.device)
    low = t.floor().clamp(0, len(values) - 2).long()
    return torch.lerp(table[low], table[low + 1], (t - low)[:, None])


def palette(c: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Colours [n, 3] and further columns [n] that follow from the parameters."""
    height, cover, season = c["sun_elevation"], c["clouds"], c["season"]
    low = smooth(0.5, 0.02, height)[:, None]  # the golden hour
    dusk = smooth(0.04, -0.12, height)[:, None]
    grey = (smooth(0.55, 1.0, cover) * 0.75)[:, None]
    lerp = torch.lerp

    def hours(day: tuple, gold: tuple, night: tuple, cloudy: tuple) -> Tensor:
        clear = lerp(lerp(_rgb(day, height), _rgb(gold, height), low), _rgb(night, height), dusk)
        level = lerp(lerp(torch.ones_like(low), 0.72 * torch.ones_like(low), low), 0.34 * torch.ones_like(low), dusk)
        return lerp(clear, _rgb(cloudy, height) * level, grey)

    zenith = hours((0.075, 0.205, 0.52), (0.11, 0.20, 0.44), (0.035, 0.06, 0.18), (0.36, 0.40, 0.46))
    horizon = hours((0.50, 0.66, 0.84), (0.98, 0.60, 0.34), (0.52, 0.24, 0.25), (0.60, 0.63, 0.67))
    far = hours((0.46, 0.60, 0.78), (0.62, 0.47, 0.46), (0.22, 0.16, 0.26), (0.55, 0.59, 0.64))  # away from the sun
    sun = hours((1.45, 1.36, 1.16), (1.60, 0.86, 0.40), (0.30, 0.17, 0.18), (0.42, 0.42, 0.42))
    ambient = hours((0.34, 0.42, 0.54), (0.30, 0.31, 0.40), (0.17, 0.17, 0.28), (0.52, 0.54, 0.58))
    winter = smooth(2.2, 2.9, season)
    warm = c["rock_warmth"][:, None] * 0.5 + 0.5
    rocks = lerp(_rgb(_ROCK[0][1], height), _rgb(_ROCK[1][0], height), warm)
    dry = c["dryness"][:, None] * (1 - winter[:, None])
    grass = lerp(_knots(_GRASS, season), _rgb((0.30, 0.23, 0.085), height), 0.65 * dry)
    colours = {
        "zenith": zenith, "horizon": horizon, "far": far, "sun": sun, "ambient": ambient, "rock": rocks,
        "grass": grass, "leaf": _knots(_LEAF, season), "conifer": _knots(_CONIFER, season),
        "water": lerp(_rgb((0.018, 0.060, 0.075), height), _rgb((0.045, 0.105, 0.085), height), warm),
        "flower": _knots(((0.95, 0.80, 0.10), (0.80, 0.12, 0.12), (0.55, 0.25, 0.70), (0.80, 0.82, 0.88)), season),
    }  # fmt: skip
    side = c["sun_azimuth"]
    columns = {
        "sun_u": side * 1.1,
        "sun_e": 0.012 + 0.62 * height,
        "low": low[:, 0],
        "dusk": dusk[:, 0],
        "clear": 1 - grey[:, 0],
        "winter": winter,
        "light_x": side.clamp(-1.4, 1.4) / 1.4 * (1 - 0.35 * height.clamp(0, 1)),
        "light_y": 0.35 + 0.6 * height.clamp(0, 1),
    }
    return colours, columns


def air(field: Field, u: Tensor, e: Tensor) -> Tensor:
    """[3, M] colour of hazy air in the direction (u, e) near the horizon, without the sun's disc."""
    toward = (1 + ((u - field("sun_u")) * 0.9).square()).reciprocal()
    return torch.lerp(field.rgb("far"), field.rgb("horizon"), toward)


def sky(field: Field, u: Tensor, e: Tensor, pixel: float) -> Tensor:
    """[3, M] light of the sky at elevation e >= 0 (in picture heights above the horizon)."""
    up = e.clamp(min=0)
    base = air(field, u, e)
    depth = (up * (-5.2 + 1.6 * field("low"))).exp_()
    base = torch.lerp(field.rgb("zenith"), base, depth)
    away = (u - field("sun_u")).square() + (e - field("sun_e")).square()
    glow = field.rgb("sun") * field("clear") * (1 - 0.55 * field("dusk"))
    halo = 0.34 / (1 + 38 * away) + 0.16 / (1 + 5 * away)
    base = base + glow * (halo * (0.5 + 0.5 * field("low")))
    disc = smooth(1.25, 0.85, away.sqrt() * (1 / 0.021))
    base = base + glow * (disc * 2.6 * (1 - field("dusk")))
    return _clouds(field, u, up, pixel, base, away)


def _clouds(field: Field, u: Tensor, up: Tensor, pixel: float, base: Tensor, away: Tensor) -> Tensor:
    """A flat deck of clouds seen from below, lit from the sun's side, and thin near the hazy horizon."""
    t = (up + 0.11).reciprocal()
    stretch = 1 + 0.9 * field("cloud_streaks")
    x, z = u * t * (1 / stretch), t * 0.62
    streak = field("cloud_streaks")
    n = fractal(
        field,
        x + 0.35 * streak * z,
        z,
        1,
        scale=2.2,
        pixel=pixel * 0.62 * t * t,
        finest=pixel * 1.6,
        gain=0.57,
        slopes=True,
    )
    cover = field("clouds")
    threshold = 1.15 - 2.1 * cover
    body = n[0] - threshold
    density = smooth(0.0, 1.0, body * (1.1 - 0.55 * streak)) * (1 - 0.45 * streak)
    toward = (field("sun_u") - u) * n[1] * 0.16 + n[2] * -0.09
    shade = (0.62 - 0.26 * body - toward).clamp(0, 1)
    lit = field.rgb("sun") * (0.60 + 0.5 / (1 + 9 * away)) + 0.25 * field.rgb("ambient")
    dark = torch.lerp(field.rgb("ambient") * 0.95, field.rgb("far"), 0.35)
    colour = torch.lerp(dark, lit, shade * (0.35 + 0.65 * field("clear")))
    veil = smooth(0.0, 0.13, up)
    colour = torch.lerp(base, colour, 0.35 + 0.65 * veil)
    return torch.lerp(base, colour, density * (0.25 + 0.75 * veil))
