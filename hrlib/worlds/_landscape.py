"""One block of a landscape: which layer each sample sees, the layers' light, the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _flora, _terrain
from ._lattice import Field
from ._sky import sky

_UNIT = 256  # samples; kernels' vector loops leave no remainder that would round otherwise


def block_side(supersample: int) -> int:
    """Pixels along a block's edge: at most 128 samples where possible, a multiple of 16 pixels."""
    return max(128 // supersample // 16 * 16, 16)


def _where(mask: Tensor) -> Tensor | None:
    """Positions of a flat mask's true entries, the last repeated up to a multiple of _UNIT; None if there are none."""
    index = mask.nonzero()[:, 0]
    if len(index) == 0:
        return None
    missing = -len(index) % _UNIT
    return torch.cat((index, index[-1:].expand(missing))) if missing else index


def skylines(field: Field, u: Tensor) -> Tensor:
    """[n, 5, K] elevations of three ranges, the hills' ground and the bank at the places u [K], without fine detail."""
    n, k = len(field.seed), len(u)
    at = field.at(torch.arange(n, device=u.device).repeat_interleave(k))
    u = u.repeat(n)
    coarse = 1 / 32
    lines = torch.cat(
        (_terrain.ranges(at, u, coarse), _terrain.hills(at, u, coarse)[:1], _terrain.bank(at, u, coarse)[None])
    )
    return lines.view(5, n, k).transpose(0, 1)


def block(
    field: Field, trees: list[_flora.Tree], size: tuple[int, int], top: int, left: int, supersample: int
) -> Tensor:
    """[n, 3, b, b] pixels in [-1, 1] of the block at (top, left) of a picture of that size."""
    height, width = size
    side, n, device = block_side(supersample), len(field.seed), field.seed.device
    m, pixel = side * supersample, 1 / height
    steps = (torch.arange(m, device=device) + 0.5) / supersample
    columns = (left + steps - 0.5 * width) * pixel
    across = field.at(torch.arange(n, device=device).repeat_interleave(m))  # one entry a column of the block
    uc = columns.repeat(n)
    grid = lambda line: line.view(n, 1, m).expand(n, m, m).reshape(-1)
    item = torch.arange(n, device=device).repeat_interleave(m * m)
    at = field.at(item)
    u = grid(uc)
    e = (1 - (top + steps) * pixel)[None, :] - field.columns["horizon"][:, None]
    e = e[:, :, None].expand(n, m, m).reshape(-1)

    bank = grid(_terrain.bank(across, uc, pixel))
    shore = at("shore")
    seen = e.clone()  # the elevation that a sample looks at: on the water, the mirrored one
    wet = _where((e < shore) & (e > bank))
    if wet is not None:
        f, ew = at.at(item[wet]), e[wet]
        waves = _terrain.ripples(f, u[wet], ew, pixel)
        depth = f("shore") - ew
        tilt = waves[2] * (0.004 + 0.05 * f("wind")) * (0.25 + 2.2 * depth) + waves[0] * 0.012 * f("wind")
        seen[wet] = f("shore") + (depth * 1.0 + tilt).abs()
    layer = torch.zeros(n * m * m, dtype=torch.int8, device=device)
    lines = _terrain.ranges(across, uc, pixel)
    line = torch.zeros_like(e)
    for k in range(_terrain.RANGES):
        edge = grid(lines[k])
        under = seen < edge
        layer = torch.where(under, k + 1, layer)
        line = torch.where(under, edge, line)
    for k, edge in enumerate(_terrain.hills(across, uc, pixel)):
        edge = grid(edge)
        under = seen < edge
        layer = torch.where(under, k + 1 + _terrain.RANGES, layer)
        line = torch.where(under, edge, line)
    layer = torch.where(e <= bank, 100, layer)

    light = torch.empty(3, n * m * m, device=device)

    def paint(mask: Tensor, draw: callable) -> None:
        index = _where(mask)
        if index is not None:
            light[:, index] = draw(at.at(item[index]), u[index], index)

    paint(layer == 0, lambda f, x, i: sky(f, x, seen[i], pixel))
    paint(
        (layer > 0) & (layer <= _terrain.RANGES),
        lambda f, x, i: _terrain.mountains(f, x, seen[i], line[i], layer[i].long() - 1, pixel),
    )
    paint(
        (layer > _terrain.RANGES) & (layer < 100),
        lambda f, x, i: _terrain.forest(f, x, seen[i], layer[i].float() - 4, line[i] - seen[i], pixel),
    )
    if wet is not None:
        light[:, wet] = _terrain.water(at.at(item[wet]), light[:, wet], u[wet], e[wet], waves)
    paint(layer == 100, lambda f, x, i: _terrain.meadow(f, x, e[i], pixel))
    near = _where(e < bank + _flora.REACH_OVER * bank.abs())
    if near is not None:
        f = at.at(item[near])
        light[:, near] = _flora.grass(f, u[near], e[near], bank[near], light[:, near], pixel)
    low, high = 1 - (top + side) * pixel - float(field.columns["horizon"].max()), 1 - top * pixel
    high = high - float(field.columns["horizon"].min())
    for tree in trees:
        if tree.left > float(columns[-1]) or tree.right < float(columns[0]) or tree.bottom > high or tree.top < low:
            continue
        get = lambda name, t=tree.columns: t[name][item] if n > 1 else t[name]
        x, y = (u - get("u")) / get("size"), (e - get("foot")) / get("size")
        ground = (1 - (x + 0.22 * at("light_x")).square() * 3.4 - y.square() * 90).clamp(min=0)
        light = light * torch.where(get("there") & (e < bank), 1 - 0.62 * ground * ground, 1.0)
        inside = get("there") & (x.abs() < 0.5) & (y > -0.02) & (y < 1.05)
        for needles in (True, False):
            index = _where(inside & (get("needles") == needles))
            if index is not None:
                f = at.at(item[index])
                light[:, index] = _flora.plant(
                    f, tree, item[index], u[index], e[index], light[:, index], needles, pixel
                )
    return _developed(light.view(3, n, side, supersample, side, supersample))


def _developed(light: Tensor) -> Tensor:
    """Samples [3, n, b, s, b, s] of linear light -> pixels [n, 3, b, b]: a film's shoulder, the mean, the sRGB curve."""
    light = light * 1.25
    light = light * (1 + light * 0.10) / (1 + light * 0.72)
    mean = light.mean((3, 5)).clamp(0, 1).transpose(0, 1)
    curve = torch.where(mean <= 0.0031308, mean * 12.92, 1.055 * mean.clamp(min=1e-6) ** (1 / 2.4) - 0.055)
    curve = curve + 1.1 * curve * (1 - curve) * (curve - 0.46)
    return (curve * 2 - 1).clamp(-1, 1)
