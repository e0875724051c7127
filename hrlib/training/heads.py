"""Pictures for the 3D-aware GAN: rendered heads (`worlds.heads`), their masks, and poses read off the pictures.

No true pose is stored: `poses` is what `hrlib.pose.read` says of the whole portrait.

A set on disk is a cache (rendering is deterministic): images.npy, masks.npy, poses.npy, latents.npy and status.json. An
interrupted rendering goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import pose
from ..errors import StoreError
from ..store import read_json, write_json
from ..worlds import heads, portraits
from .data import gaussianise

EXPLAIN = ("identity", "expression", "light")  # groups of parameters that are a latent; the pose is not among them
EDGE, CHUNK = 64, 40
PARTS = {"images": ((3, EDGE, EDGE), np.uint8), "masks": ((1, EDGE, EDGE), np.uint8), "poses": ((2,), np.float32)}


@dataclass(frozen=True)
class Heads:
    """images uint8 [n, 3, 64, 64], masks uint8 [n, 1, 64, 64], poses [n, 2] as read, z [n, z_dim] standard normal."""

    images: np.ndarray
    masks: np.ndarray
    poses: Tensor
    z: Tensor

    def __len__(self) -> int:
        return len(self.poses)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, 64, 64] in [-1, 1] and masks [B, 1, 64, 64] in [0, 1]."""
        images, masks = (torch.from_numpy(part[index.numpy()]).float() for part in (self.images, self.masks))
        return images / 127.5 - 1, masks / 255


def render(folder: Path, n: int, *, z_dim: int, seed: int) -> Iterator[int]:
    """Render the first n people of `seed` into `folder`; yields how many are done after each chunk, at least once."""
    folder.mkdir(parents=True, exist_ok=True)
    status, what = folder / "status.json", {"n": n, "z_dim": z_dim, "seed": seed}
    files = {name: folder / f"{name}.npy" for name in PARTS}
    old = read_json(status) if status.exists() and all(f.exists() for f in files.values()) else {}
    done = old["done"] if old.get("what") == what else 0
    people = portraits.sample(n, seed=seed)
    if not done:
        explained = torch.cat([getattr(people, group) for group in EXPLAIN], 1)
        np.save(folder / "latents.npy", gaussianise(explained, z_dim, seed=seed).numpy())
    arrays = {
        name: np.lib.format.open_memmap(files[name], mode="r+" if done else "w+", dtype=kind, shape=(n, *shape))
        for name, (shape, kind) in PARTS.items()
    }
    while done < n:
        some = slice(done, min(done + CHUNK, n))
        drawn = heads.draw(people[some], EDGE)
        arrays["images"][some] = ((drawn.image + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        arrays["masks"][some] = (drawn.mask * 255).round().byte().numpy()
        arrays["poses"][some] = pose.read(drawn.portrait).numpy()
        for array in arrays.values():
            array.flush()
        done = some.stop
        write_json(status, {"what": what, "done": done})
        yield done
    yield done


def load(folder: Path) -> Heads:
    """The whole set in `folder`, in memory; `StoreError` where it is not there, or not whole."""
    status = folder / "status.json"
    facts = read_json(status) if status.exists() else {"done": 0, "what": {"n": 1}}
    if facts["done"] < facts["what"]["n"]:
        raise StoreError(
            f"{facts['done']} rendered heads in {folder}",
            expected="all of them",
            do="run `hrlab train gan3d`, which renders them first",
        )
    images, masks, poses, z = (np.load(folder / f"{name}.npy") for name in (*PARTS, "latents"))
    return Heads(images, masks, torch.from_numpy(poses), torch.from_numpy(z))
