"""Rendered portraits as a training set on disk, with the latent that belongs to each picture.

Rendering is deterministic, so the folder is a cache: images.npy (uint8 [n, 3, R, R]) and latents.npy (float32 [n, z_dim])
can be deleted at any time. An interrupted rendering goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..store import atomic, read_json, write_json
from ..worlds import portraits

CHUNK = 32


@dataclass(frozen=True)
class PortraitSet:
    """Rendered portraits and their latents.

    images: uint8 [n, 3, R, R]; z: float32 [n, z_dim], each coordinate standard normal over the set.
    """

    images: np.ndarray
    z: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, R, R] in [-1, 1] and latents [B, z_dim] of the given items."""
        x = torch.from_numpy(np.ascontiguousarray(self.images[index.numpy()])).float() / 127.5 - 1
        return x, self.z[index]


def flatten(params: portraits.Portraits) -> Tensor:
    """The parameters that explain a picture, one row a person: [N, P]. The detail seed explains nothing, by design."""
    return params.vector()


def gaussianise(values: Tensor, z_dim: int, *, seed: int) -> Tensor:
    """Rank-transform each column to a standard normal and fill up to z_dim with unit normal draws.

    [n, P] -> [n, z_dim]. The parameters are drawn independently, so the result is distributed like z ~ N(0, I): a
    generator that learnt to draw the person z encodes can be sampled, and trained adversarially, with plain z. Ties
    (glasses or none) are broken by chance, which spreads them over their share of the normal.
    """
    n, p = values.shape
    g = torch.Generator().manual_seed(seed)
    jitter = torch.rand(n, p, generator=g)
    order = np.lexsort((jitter.numpy(), values.numpy()), axis=0)  # by value, then by chance
    ranks = torch.from_numpy(np.argsort(order, axis=0)).double()
    z = torch.special.ndtri((ranks + 0.5) / n).float()
    return torch.cat([z, torch.randn(n, z_dim - p, generator=g)], dim=1)


def render_set(folder: Path, n: int, *, resolution: int, z_dim: int, seed: int = 0):
    """Render n portraits into `folder`; yields the number finished after each chunk, then use `load_set`.

    Item i is the same whatever n is, so a larger set extends a smaller one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    params = portraits.sample(n, seed=seed)
    path, status = folder / "images.npy", folder / "status.json"
    what = {"seed": seed, "resolution": resolution, "n": n}
    done = 0
    if status.exists() and path.exists() and (old := read_json(status)).get("what") == what:
        done = old["done"]
        images = np.lib.format.open_memmap(path, mode="r+")
    else:
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, 3, resolution, resolution))
    with torch.inference_mode():
        for start in range(done, n, CHUNK):
            stop = min(start + CHUNK, n)
            x = portraits.render(params[start:stop], size=resolution)
            images[start:stop] = (x * 127.5 + 127.5).round().clamp(0, 255).byte().numpy()
            if (stop // CHUNK) % 16 == 0 or stop == n:
                images.flush()
                write_json(status, {"what": what, "done": stop})
            yield stop
    with atomic(folder / "latents.npy") as temp, open(temp, "wb") as f:
        np.save(f, gaussianise(flatten(params), z_dim, seed=seed).numpy())


def load_set(folder: Path) -> PortraitSet:
    """The set in `folder`, images memory-mapped."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    return PortraitSet(images, torch.from_numpy(np.load(folder / "latents.npy")))
