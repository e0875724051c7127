"""Counter-based randomness and small helpers shared by the procedural worlds.

Everything is a pure function of integers, so an item's numbers depend neither on the batch around it nor on the device.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

TABLE = 512  # side of the shared noise table; crops of it at per-item offsets serve as independent textures
_MASK = 0xFFFFFFFF


def hash01(*keys: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), one for each broadcast tuple of int64 keys (a 32-bit avalanche hash, 24 bits kept)."""
    x = torch.zeros((), dtype=torch.int64, device=keys[0].device)
    for key in keys:
        x = (x * 0x9E3779B1 + key + 0x7F4A7C15) & _MASK
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
        x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
        x = x ^ (x >> 16)
    return (x >> 8).to(torch.float32) * (1.0 / (1 << 24))


@lru_cache(maxsize=8)
def noise_table(device: torch.device) -> Tensor:
    """[1, 1, 2 TABLE + 1, 2 TABLE + 1] standard normal numbers of period TABLE.

    Two periods, so that sampling coordinates 0 to 1 (the second half of grid_sample's range) meet one whole period.
    """
    table = torch.randn(TABLE, TABLE, generator=torch.Generator().manual_seed(20)).repeat(2, 2)
    return F.pad(table[None, None], (0, 1, 0, 1), mode="circular").to(device)


def noise(u: Tensor, v: Tensor, detail_seed: Tensor, channel: int) -> Tensor:
    """Band-limited noise at the texture coordinates (u, v), one lattice point a unit; about unit variance at nodes.

    Args:
        u, v: [N, M] coordinates in lattice units (any range, the table tiles).
        detail_seed: [N] int64; picks each item's crop.
        channel: which of an item's independent textures.
    """
    k = torch.full_like(detail_seed, channel)
    ou = hash01(detail_seed, k, torch.zeros_like(k))[:, None]
    ov = hash01(detail_seed, k, torch.ones_like(k))[:, None]
    gu, gv = u * (1 / TABLE) + (ou + 8), v * (1 / TABLE) + (ov + 8)  # positive, where frac is x - floor(x)
    grid = torch.empty(*gu.shape, 1, 2, device=gu.device)
    torch.frac(gu, out=grid[:, :, 0, 0])
    torch.frac(gv, out=grid[:, :, 0, 1])
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
