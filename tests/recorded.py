"""Reading tests/fixtures, where what the authors' formulas gave is kept in few bytes; its README says how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures"


def arrays(path: Path, group: str) -> dict[str, torch.Tensor]:
    """Arrays "group/name" of an npz file by name: bytes are pictures in [-1, 1], half precision only saves space."""
    with np.load(path) as f:
        found = {k.removeprefix(f"{group}/"): f[k] for k in f.files if k.startswith(f"{group}/")}
    return {name: _tensor(value) for name, value in found.items() if value.dtype.kind in "iuf"}


def _tensor(value: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(value)
    if x.dtype == torch.uint8:
        return x.float() / 127.5 - 1
    return x.float() if x.dtype == torch.float16 else x


def kept(ours: torch.Tensor, like: torch.Tensor | np.ndarray) -> torch.Tensor:
    """The places of `ours` that `like` holds: all, or of a large map every third row and column."""
    if tuple(ours.shape) != tuple(like.shape):
        ours = ours[..., ::3, ::3]
    assert tuple(ours.shape) == tuple(like.shape)
    return ours
