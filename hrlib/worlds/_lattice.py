"""Random numbers as functions of position, for pictures drawn block by block.

`Field` provides the parameters of n pictures at a set of samples; `noise`, `fractal` and `draw` are pure functions of a
sample's coordinates and its picture's seed. A sample therefore gets the same numbers in every block, tile, batch or
wider picture that contains it.
"""

from __future__ import annotations

import math
from copy import copy
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import hash01

PERIOD = 256  # lattice cells after which an octave of noise repeats; a sum of octaves repeats with its lowest
_STEP = 4  # table points per cell
_CELLS = 1 << 16
OCTAVE = 104  # channels of noise between an octave and the next
_CHANNELS = 12 * OCTAVE


@lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    """[1, 3, S + 1, S + 1]: isotropic noise of one octave around 0.4 cycles a cell, unit variance, and its slopes."""
    side = PERIOD * _STEP
    spectrum = torch.fft.fft2(torch.randn(side, side, generator=torch.Generator().manual_seed(31)))
    f = torch.fft.fftfreq(side) * _STEP
    radius = torch.hypot(f[None], f[:, None]).clamp(min=1e-6)
    spectrum = spectrum * (-(((radius / 0.4).log2() / 0.55) ** 2)).exp()
    value = torch.fft.ifft2(spectrum).real
    along = [torch.fft.ifft2(spectrum * (2j * math.pi * g)).real for g in (f[None], f[:, None])]
    table = torch.stack((value, *along))[None] / value.std()
    return F.pad(table, (0, 1, 0, 1), mode="circular").contiguous().to(device)


@lru_cache(maxsize=8)
def _uniform_table(device: torch.device) -> Tensor:
    """[65536, 4] uniform numbers, from which each lattice cell takes a row."""
    index = torch.arange(_CELLS)
    return torch.stack([hash01(index, torch.tensor(k)) for k in range(4)], 1).to(device)


class Field:
    """Parameters of n pictures at M samples.

    `field(name)` is [1] for one picture (it broadcasts) and [M] for several; `field.rgb(name)` [3, 1] or [3, M].
    """

    def __init__(self, columns: dict[str, Tensor], colours: dict[str, Tensor], seed: Tensor) -> None:
        self.columns, self.colours, self.seed = columns, colours, seed
        self.item: Tensor | None = None
        keys = torch.arange(_CHANNELS, device=seed.device)[:, None]
        axes = torch.tensor([7, 8], device=seed.device)
        self.offsets = hash01(seed[:, None, None], keys, axes)  # [n, channels, 2]

    def at(self, item: Tensor) -> Field:
        """The field at samples of the pictures `item` [M] (with a single picture, numbers broadcast, no look-up)."""
        other = copy(self)
        other.item = None if len(self.seed) == 1 else item
        return other

    def moved(self, shift: Tensor) -> Field:
        """A field whose noise is moved by shift [n, 2]."""
        other = copy(self)
        moved = self.offsets + shift[:, None]
        other.offsets = moved - moved.floor()
        return other

    def _gather(self, value: Tensor) -> Tensor:
        return value if self.item is None else value[self.item]

    def __call__(self, name: str) -> Tensor:
        return self._gather(self.columns[name])

    def rgb(self, name: str) -> Tensor:
        """A colour of the palette."""
        return self._gather(self.colours[name]).T

    def offset(self, channel: int) -> Tensor:
        """Where a picture's channel starts in the table: [2, 1] or [2, M]."""
        return self._gather(self.offsets[:, channel]).T


def noise(field: Field, x: Tensor, y: Tensor | float, channel: int, scale: float, slopes: bool = False) -> Tensor:
    """[1, M] noise with `scale` cells per unit of (x, y), or [3, M] with its derivatives per cell along x and y."""
    ox, oy = field.offset(channel)
    grid = torch.empty(1, 1, len(x), 2, device=x.device)
    torch.add(ox, x, alpha=scale / PERIOD, out=grid[0, 0, :, 0])
    if isinstance(y, Tensor):
        torch.add(oy, y, alpha=scale / PERIOD, out=grid[0, 0, :, 1])
    else:
        grid[0, 0, :, 1] = oy + y * (scale / PERIOD)
    grid.sub_(grid.floor()).mul_(2).sub_(1)
    table = _table(x.device)
    return F.grid_sample(table if slopes else table[:, :1], grid, align_corners=True)[0, :, 0]


def fade(cell_pixels: Tensor | float) -> Tensor | float:
    """How much of an octave a picture can show: 1 for cells above 1.6 pixels, 0 below 0.75 (Nyquist is about 0.8)."""
    t = (cell_pixels - 0.75) * (1 / 0.85)
    return t.clamp(0, 1) if isinstance(t, Tensor) else min(max(t, 0.0), 1.0)


def fractal(
    field: Field,
    x: Tensor,
    y: Tensor | float,
    channel: int,
    *,
    scale: float,
    pixel: Tensor | float,
    finest: float,
    gain: float = 0.5,
    octaves: int = 11,
    slopes: bool = False,
    creased: int = 0,
) -> Tensor:
    """Noise of many octaves, from `scale` cells per unit to the finest that the picture can show.

    Args:
        x, y: [M] coordinates.
        pixel: size of a pixel in units of (x, y), one number or one per sample; octaves fade out before they alias.
        finest: a lower bound of `pixel` over all blocks of the picture.
        gain: amplitude of an octave relative to the one before (with `slopes`, of the slopes).
        octaves: the largest number of octaves.
        slopes: return [3, M], with derivatives per cell of each octave, rather than [1, M].
        creased: the number of octaves that are -|noise|, which has sharp crests.
    """
    total: Tensor | None = None
    weight = 1.0
    for k in range(octaves):
        if fade(1 / (scale * finest)) == 0 and k > 0:
            break
        part = noise(field, x, y, channel + OCTAVE * k, scale, slopes)
        if k < creased:
            part = part * -part[:1].sign() + (0.7 if not slopes else 0.0)
        shown = fade((1 / scale) / pixel)
        part = part * (shown * weight)
        total = part if total is None else total.add_(part)
        scale, weight = scale * 2, weight * gain
    return total


def draw(field: Field, cx: Tensor, cy: Tensor | int, channel: int) -> Tensor:
    """[4, M] uniform numbers of the lattice cells (cx, cy), which are whole; each picture and channel has its own."""
    start = (field.offset(channel)[0] * _CELLS).to(torch.int32)
    cy = cy.to(torch.int32) if isinstance(cy, Tensor) else cy
    key = cx.to(torch.int32) * 7919 + cy * 104729 + start
    key = key ^ (key >> 7)
    key = (key * 40503 + (key >> 11)) & (_CELLS - 1)
    return _uniform_table(cx.device).index_select(0, key).T
