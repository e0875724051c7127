"""Helpers shared by the worlds: parameters by name, counter-based random numbers, small tensor functions.

Random numbers are pure functions of integers, so an item's numbers depend neither on its batch nor on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidValue, number

TABLE = 512  # side of the shared noise table; crops of it at per-item offsets serve as independent textures
_MASK, _WRAP = 0xFFFFFFFF, 1 << 32


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture to draw; `InvalidValue` unless both are whole numbers from 8."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise InvalidValue(
            f"size {size!r}", expected="a side or (height, width)", do="pass one or two numbers of pixels"
        )
    height, width = (number("size", n, "whole [8, inf)") for n in pair)
    return height, width


def hash01(*keys: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), one for each broadcast tuple of int64 keys (a 32-bit avalanche hash, 24 bits kept)."""
    x = torch.zeros((), dtype=torch.int32, device=keys[0].device)
    for key in keys:
        # int32 wraps as uint32 does, but its right shifts copy the sign bit, so those bits are masked off
        x = (x * (0x9E3779B1 - _WRAP)).add((key & _MASK).to(torch.int32)).add_(0x7F4A7C15)
        x = x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
        x = x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - _WRAP)
        x = x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    return (x >> 8).bitwise_and_(0xFFFFFF).to(torch.float32).mul_(1.0 / (1 << 24))


@lru_cache(maxsize=8)
def noise_table(device: torch.device) -> Tensor:
    """[1, 1, 2 TABLE + 1, 2 TABLE + 1] standard normal numbers with period TABLE.

    It holds two periods, so that the sampling coordinates 0 to 1 (the second half of grid_sample's range) span one.
    """
    table = torch.randn(TABLE, TABLE, generator=torch.Generator().manual_seed(20)).repeat(2, 2)
    return F.pad(table[None, None], (0, 1, 0, 1), mode="circular").to(device)


def noise(u: Tensor, v: Tensor, detail_seed: Tensor, channel: int) -> Tensor:
    """[N, M] band-limited noise at the texture coordinates (u, v), with about unit variance at lattice points.

    Args:
        u, v: [N, M] coordinates in lattice units, of any range (the table repeats).
        detail_seed: [N] int64, selects each item's crop.
        channel: selects one of an item's independent textures.
    """
    device = u.device
    crop = hash01(detail_seed[:, None], torch.tensor(channel, device=device), torch.arange(2, device=device)) + 8
    grid = torch.empty(len(crop), u.shape[1], 1, 2, device=device)
    torch.add(crop[:, :1], u, alpha=1 / TABLE, out=grid[:, :, 0, 0])
    torch.add(crop[:, 1:], v, alpha=1 / TABLE, out=grid[:, :, 0, 1])
    grid.frac_()  # x - floor(x), since x is positive
    table = noise_table(u.device).expand(len(grid), -1, -1, -1)
    return F.grid_sample(table, grid, align_corners=True)[:, 0, :, 0]


def smooth(lo: float | Tensor, hi: float | Tensor, x: Tensor) -> Tensor:
    """Cubic step: 0 below lo, 1 above hi (lo > hi gives the falling step)."""
    t = x - lo
    t = (t.mul_(1 / (hi - lo)) if isinstance(lo, float) and isinstance(hi, float) else t / (hi - lo)).clamp_(0, 1)
    return t.mul(-2).add_(3).mul_(t).mul_(t)


def mix(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """a where t = 0, b where t = 1."""
    return torch.lerp(a, b, t)


def colour(like: Tensor, r: float, g: float, b: float) -> Tensor:
    """[1, 3, 1] linear colour on the device of `like`."""
    return torch.tensor([r, g, b], device=like.device)[None, :, None]


def dot(a: Tensor, b: Sequence[Tensor]) -> Tensor:
    """[N, ...] dot products of the vectors a [N, 3] with a field of vectors, its three components [N, ...] in b."""
    shape = (len(a), *[1] * (b[0].dim() - 1))
    return sum(a[:, i].view(shape) * b[i] for i in range(3))


def compact(mask: Tensor) -> Tensor:
    """[N, K] positions of the true entries of [N, M] in ascending order, padded with zeros to a common K.

    K is a multiple of 256: otherwise the kernels' remainder loops could round an item differently in another batch.
    """
    n, m = mask.shape
    chosen = mask.long()
    rank = chosen.cumsum(1)
    k = (int(rank[:, -1].max()) // 256 + 1) * 256
    index = torch.zeros(n, k + 1, dtype=torch.int64, device=mask.device)
    index.scatter_(1, rank.mul_(chosen), torch.arange(m, device=mask.device).expand(n, m))  # column 0 collects the rest
    return index[:, 1:].contiguous()


def pick(value: Tensor, index: Tensor) -> Tensor:
    """[N, C, K] entries of [N, C, M] at index [N, K] of the last axis."""
    return value.gather(2, index[:, None].expand(-1, value.shape[1], -1))


def put(value: Tensor, index: Tensor, part: Tensor) -> Tensor:
    """A copy of [N, C, M] with the entries at index [N, K] replaced by part [N, C, K]."""
    return value.scatter(2, index[:, None].expand(-1, value.shape[1], -1), part)


class Named:
    """The parameters of N portraits by name, [N, 1] each."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self._columns = columns
        first = next(iter(columns.values()))
        self.device, self._n = first.device, len(first)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, name: str) -> Tensor:
        return self._columns[name]

    def replace(self, columns: Mapping[str, Tensor]) -> Named:
        """A copy with columns [N, 1] changed or added."""
        return Named({**self._columns, **columns})

    def map(self, name: str) -> Tensor:
        """[N, 1, 1], to broadcast over maps on the chart or colours of pixels."""
        return self._columns[name][:, :, None]
