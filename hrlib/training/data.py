"""Rendered portraits as a training set on disk, with the latent that belongs to each picture.

Rendering is deterministic, so the folder is a cache: images.npy (uint8 [n, 3, R, R]) and latents.npy (float32
[n, z_dim]) can be deleted at any time. An interrupted rendering goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import image
from ..errors import StoreError
from ..store import atomic, read_json, write_json
from ..worlds import portraits

CHUNK = 64
IMAGES, LATENTS, STATUS = "images.npy", "latents.npy", "status.json"


@dataclass(frozen=True)
class PortraitSet:
    """Rendered portraits and their latents, possibly still being rendered by another process.

    images: uint8 [n, 3, R, R], memory-mapped; z: float32 [n, z_dim], each coordinate standard normal over the set.
    """

    folder: Path
    images: np.ndarray
    z: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def wait_for(self, count: int) -> None:
        """Return once the first `count` pictures are rendered."""
        while read_json(self.folder / STATUS)["done"] < count:
            time.sleep(2)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, R, R] in [-1, 1] and latents [B, z_dim] of the given items."""
        x = torch.from_numpy(np.ascontiguousarray(self.images[index.numpy()])).float() / 127.5 - 1
        return x, self.z[index]


def explained(people: portraits.Portraits) -> Tensor:
    """The parameters that explain a picture, one row a person: [N, P]. The detail seed explains nothing, by design."""
    return torch.cat([getattr(people, group) for group in portraits.GROUPS], dim=1)


def gaussianise(values: Tensor, z_dim: int, *, seed: int) -> Tensor:
    """Parameters to latents that are distributed like z ~ N(0, I), nearly: [n, P] -> [n, z_dim].

    Each column is rank-transformed to a standard normal; ties (glasses or none) are broken by chance, which spreads
    them over their share of it. The columns are then decorrelated by the symmetric square root, which keeps each one
    as close to its parameter as possible (beards come with moustaches, age with grey hair), and unit normal draws fill
    up to z_dim. So a generator that learnt to draw the person z encodes can be sampled, and trained adversarially,
    with plain z.
    """
    n, p = values.shape
    g = torch.Generator().manual_seed(seed)
    jitter = torch.rand(n, p, generator=g)
    order = np.lexsort((jitter.numpy(), values.numpy()), axis=0)  # by value, then by chance
    ranks = torch.from_numpy(np.argsort(order, axis=0)).double()
    z = torch.special.ndtri((ranks + 0.5) / n)
    variance, axes = torch.linalg.eigh(torch.corrcoef(z.T))
    z = z @ (axes * variance.clamp(min=0.01).rsqrt()) @ axes.T  # clamped: a set smaller than P is degenerate
    return torch.cat([z.float(), torch.randn(n, z_dim - p, generator=g)], dim=1)


def render_set(folder: Path, n: int, *, resolution: int, z_dim: int, seed: int = 0) -> Iterator[int]:
    """Render n portraits into `folder`; yields how many are done after each chunk. Item i does not depend on n."""
    folder.mkdir(parents=True, exist_ok=True)
    people = portraits.sample(n, seed=seed)
    path, status = folder / IMAGES, folder / STATUS
    what = {"seed": seed, "resolution": resolution, "n": n}
    old = read_json(status) if status.exists() and path.exists() else {}
    if old.get("what") == what:
        images = np.lib.format.open_memmap(path, mode="r+")
    else:
        with atomic(folder / LATENTS) as temp, open(temp, "wb") as f:
            np.save(f, gaussianise(explained(people), z_dim, seed=seed).numpy())
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, 3, resolution, resolution))
        old = {"done": 0}
    with torch.inference_mode():
        for start in range(old["done"], n, CHUNK):
            stop = min(start + CHUNK, n)
            images[start:stop] = image.to_uint8(portraits.render(people[start:stop], resolution)).transpose(0, 3, 1, 2)
            images.flush()
            write_json(status, {"what": what, "done": stop})
            yield stop


def load_set(folder: Path) -> PortraitSet:
    """The set in `folder`, images memory-mapped."""
    if not (folder / STATUS).exists():
        raise StoreError(f"no rendered portraits in {folder}", expected=STATUS, do="run `hrlab train render` first")
    images = np.load(folder / IMAGES, mmap_mode="r")
    return PortraitSet(folder, images, torch.from_numpy(np.load(folder / LATENTS)))
