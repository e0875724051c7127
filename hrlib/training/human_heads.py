"""The training set of the 3D-aware GAN: rendered human heads (`worlds.heads`), masks, and poses read off the pictures.

No true pose is stored: `poses` is what `hrlib.pose.read` reads off the whole portrait.

A set on disk is a cache (see set_files.py): images.npy, masks.npy, poses.npy, latents.npy and status.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import image, pose
from ..errors import SEED, StoreError, number
from ..store import atomic
from ..worlds import heads, portraits
from . import set_files
from .picture_sets import check_latents, gaussianise
from .recipe import MOST, WIDTH
from .set_files import STATUS

EXPLAIN = ("identity", "expression", "light")  # groups of parameters in a latent: not the pose
EDGE, CHUNK = 64, 40
PARTS = {"images": ((3, EDGE, EDGE), np.uint8), "masks": ((1, EDGE, EDGE), np.uint8), "poses": ((2,), np.float32)}


@dataclass(frozen=True)
class HumanHeads:
    """images uint8 [n, 3, 64, 64], masks uint8 [n, 1, 64, 64], poses [n, 2] as read, z [n, z_dim] standard normal.

    what: the draws that made the set, JSON-able.
    """

    images: np.ndarray
    masks: np.ndarray
    poses: Tensor
    z: Tensor
    what: dict[str, Any]

    def __len__(self) -> int:
        return len(self.poses)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, 64, 64] in [-1, 1] and masks [B, 1, 64, 64] in [0, 1]."""
        rows = index.numpy()
        return set_files.from_bytes(self.images[rows]), torch.from_numpy(self.masks[rows]).float() / 255


def render(folder: Path, n: int, *, z_dim: int, seed: int) -> Iterator[int]:
    """Render the first n people of `seed` into `folder`; yields the number done after each chunk, at least once.

    Raises:
        InvalidValue: a number is out of range.
        StoreError: the folder holds something else, or cannot be written.
    """
    n, seed = number("n", n, f"whole [1, {MOST}]"), number("seed", seed, SEED)
    what = {"n": n, "z_dim": number("z_dim", z_dim, WIDTH), "seed": seed}
    people = portraits.sample(n, seed=seed)
    arrays = {name: ((n, *shape), kind) for name, (shape, kind) in PARTS.items()}
    explained = torch.cat([getattr(people, group) for group in EXPLAIN], 1)
    check_latents(z_dim, explained.shape[1])
    with set_files.making(folder, what, arrays) as made:
        if not made.done:
            with atomic(made.folder / "latents.npy") as temp, open(temp, "wb") as f:
                np.save(f, gaussianise(explained, z_dim, seed=seed).numpy())
        while made.done < n:
            drawn = heads.draw(people[made.done : min(made.done + CHUNK, n)], EDGE)
            rows = {
                "images": image.to_uint8(drawn.image).transpose(0, 3, 1, 2),
                "masks": (drawn.mask * 255).round().byte().numpy(),
                "poses": pose.read(drawn.portrait).numpy(),
            }
            yield made.add(rows)
    yield n


def load(folder: Path) -> HumanHeads:
    """The whole set in `folder`, in memory; raises `StoreError` if it is missing or incomplete."""
    facts = set_files.status(folder) if (folder / STATUS).exists() else {"done": 0, "what": {"n": 1}}
    if facts["done"] < facts["what"]["n"]:
        raise StoreError(
            f"{facts['done']} rendered heads in {folder}",
            expected="all of them",
            do="run `hrlab train gan3d`, which renders them first",
        )
    images, masks, poses, z = (np.array(set_files.array(folder / f"{name}.npy")) for name in (*PARTS, "latents"))
    return HumanHeads(images, masks, torch.from_numpy(poses), torch.from_numpy(z), facts["what"])
