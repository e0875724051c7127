"""Draw one block of a landscape: find the layer that each sample sees, compute its light, develop the pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _flora, _terrain
from ._lattice import Field
from ._sky import sky

_UNIT = 256  # samples; with multiples of it, the kernels' vector loops leave no remainder that rounds differently


def block_side(supersample: int) -> int:
    """Side of a block in pixels: a multiple of 16, with at most 128 samples where possible."""
    return max(128 // supersample // 16 * 16, 16)


def _where(mask: Tensor) -> Tensor | None:
    """Positions of a flat mask's true entries, the last one repeated up to a multiple of _UNIT; None without any."""
    index = mask.nonzero()[:, 0]
    if len(index) == 0:
        return None
    missing = -len(index) % _UNIT
    return torch.cat((index, index[-1:].expand(missing))) if missing else index


def skylines(field: Field, u: Tensor) -> Tensor:
    """[n, 5, K] elevations of three ranges, the hills and the bank at positions u [K], without fine detail."""
    n, k = len(field.seed), len(u)
    at = field.at(torch.arange(n, device=u.device).repeat_interleave(k))
    u = u.repeat(n)
    coarse = 1 / 32
    lines = torch.cat(
        (_terrain.ranges(at, u, coarse), _terrain.hills(at, u, coarse)[:1], _terrain.bank(at, u, coarse)[None])
    )
    return lines.view(5, n, k).transpose(0, 1)


@dataclass(frozen=True)
class Strip:
    """What the blocks of one column share: positions u [m] of samples, the bank [n, m], the skylines [L, n, m]."""

    u: Tensor
    bank: Tensor
    lines: Tensor


def _steps(supersample: int, device: torch.device) -> Tensor:
    return (torch.arange(block_side(supersample) * supersample, device=device) + 0.5) / supersample


def strip(field: Field, size: tuple[int, int], left: int, supersample: int) -> Strip:
    """The strip of blocks whose first column of pixels is `left`, in a picture of that size."""
    (height, width), n, device = size, len(field.seed), field.seed.device
    u = (left + _steps(supersample, device) - 0.5 * width) * (1 / height)
    at, many = field.at(torch.arange(n, device=device).repeat_interleave(len(u))), u.repeat(n)
    lines = torch.cat((_terrain.ranges(at, many, 1 / height), _terrain.hills(at, many, 1 / height)))
    return Strip(u, _terrain.bank(at, many, 1 / height).view(n, -1), lines.view(len(lines), n, -1))


def block(
    field: Field, trees: list[_flora.Tree], ground: Strip, size: tuple[int, int], top: int, supersample: int
) -> Tensor:
    """[n, 3, b, b] pixels in [-1, 1] of the strip's block whose first row is `top`, in a picture of that size."""
    side, n, device = block_side(supersample), len(field.seed), field.seed.device
    m, pixel, columns = side * supersample, 1 / size[0], ground.u
    steps = _steps(supersample, device)
    grid = lambda line: line.view(-1, 1, m).expand(n, m, m).reshape(-1)
    item = torch.arange(n, device=device).repeat_interleave(m * m)
    at = field.at(item)
    u = grid(columns)
    e = (1 - (top + steps) * pixel)[None, :] - field.columns["horizon"][:, None]
    e = e[:, :, None].expand(n, m, m).reshape(-1)

    bank = grid(ground.bank)
    shore = at("shore")
    seen = e.clone()  # the elevation that a sample sees: on water, the mirrored one
    wet = _where((e < shore) & (e > bank))
    if wet is not None:
        f, ew = at.at(item[wet]), e[wet]
        waves = _terrain.ripples(f, u[wet], ew, pixel)
        depth = f("shore") - ew
        tilt = waves[2] * (0.004 + 0.05 * f("wind")) * (0.25 + 2.2 * depth) + waves[0] * 0.012 * f("wind")
        seen[wet] = f("shore") + (depth + tilt).abs()
    layer = torch.zeros(n, m, m, dtype=torch.int8, device=device)
    line = torch.zeros(n, m, m, device=device)
    seen = seen.view(n, m, m)
    if ground.lines.max() > seen.min():
        for k, edge in enumerate(ground.lines[:, :, None]):
            under = seen < edge
            layer.masked_fill_(under, k + 1)
            line = torch.where(under, edge, line)
    seen, line = seen.reshape(-1), line.reshape(-1)
    layer = layer.reshape(-1).masked_fill_(e <= bank, 100)

    light = torch.empty(3, n * m * m, device=device)

    def paint(mask: Tensor, draw: Callable) -> None:
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
    near = _where(_flora.grassy(e, bank, pixel))
    if near is not None:
        f = at.at(item[near])
        light[:, near] = _flora.grass(f, u[near], e[near], bank[near], light[:, near], pixel)
    e = e.view(n, m, m)
    right, high, low = columns[-1], e.amax(), e.amin()
    for tree in trees:
        if tree.left > right or tree.right < columns[0] or tree.bottom > high or tree.top < low:
            continue
        light = _planted(at, tree, item, u, e, bank, light, pixel)
    return _developed(light.view(3, n, side, supersample, side, supersample))


def _planted(
    at: Field, tree: _flora.Tree, item: Tensor, u: Tensor, e: Tensor, bank: Tensor, light: Tensor, pixel: float
) -> Tensor:
    """The block's light [3, n m m] with a tree and its shadow on the ground."""
    n, m, _ = e.shape
    grid, row, column = u.view(n, m, m), e[:, :, 0], u[:m]
    rows = ((row < tree.top) & (row > tree.bottom)).any(0).nonzero()[:, 0]
    cols = ((column > tree.left) & (column < tree.right)).nonzero()[:, 0]
    if len(rows) == 0 or len(cols) == 0:
        return light
    part = (slice(None), slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1))
    get = lambda name: tree.columns[name].view(n, 1, 1)
    # Only exactly rounded operations here, since this part's size may leave a remainder in the kernels' vector loops.
    x, y = (grid[part] - get("u")) / get("size"), (e[part] - get("foot")) / get("size")
    off = x + at.columns["light_x"].view(n, 1, 1) * 0.22
    ground = (1 - off * off * 3.4 - y * y * 90).clamp(min=0)
    shadow = 1 - ground * ground * (get("there") & (e[part] < bank.view(n, m, m)[part])) * 0.62
    light.view(3, n, m, m)[(slice(None), *part)] *= shadow
    inside = get("there") & (x.abs() < 0.5) & (y > -0.02) & (y < 1.05)
    flat = torch.arange(n * m * m, device=u.device).view(n, m, m)[part]
    for needles in (True, False):
        index = _where((inside & (get("needles") == needles)).flatten())
        if index is not None:
            index = flat.flatten()[index]
            f = at.at(item[index])
            light[:, index] = _flora.plant(
                f, tree, item[index], u[index], e.view(-1)[index], light[:, index], needles, pixel
            )
    return light


def _developed(light: Tensor) -> Tensor:
    """Samples of linear light [3, n, b, s, b, s] -> pixels [n, 3, b, b]: a film's shoulder, mean, sRGB curve."""
    light = light * 1.25
    light = light * (1 + light * 0.10) / (1 + light * 0.72)
    mean = light.mean((3, 5)).clamp(0, 1).transpose(0, 1)
    curve = torch.where(mean <= 0.0031308, mean * 12.92, 1.055 * mean.clamp(min=1e-6) ** (1 / 2.4) - 0.055)
    curve = curve + 1.1 * curve * (1 - curve) * (curve - 0.46)
    return (curve * 2 - 1).clamp(-1, 1)
