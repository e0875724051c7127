"""Pictures for the 3D-aware GAN: rendered heads on a plain ground, their masks, and poses read off the pictures.

A portrait turns its head under a fixed light, before a fixed wall and on shoulders that stay where they are. Seen from
the head, the camera turns and wall and shoulders come along, which no rigid scene does. So the head alone is kept, by
the renderer's mask, on a plain ground. No true pose is stored: `poses` is what `hrlib.pose.read` says of the picture.

A set on disk is a cache (rendering is deterministic): images.npy, masks.npy, poses.npy, latents.npy and status.json. An
interrupted rendering goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import pose
from ..errors import StoreError
from ..store import read_json, write_json
from ..worlds import portraits
from .data import gaussianise

GROUND = -0.2  # of every channel, about what the wall below is
WALL = dict(bg_saturation=0, bg_lightness=0.3, bg_gradient=0.76, bg_blob=0, bg_shift=0, bg_angle=0)
EXPLAIN = ("identity", "expression", "light")  # groups of parameters that are a latent; the pose is not among them
EDGE, FINE, CHUNK = 64, 128, 40
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


@torch.no_grad()
def draw(people: portraits.Portraits, edge: int = EDGE) -> tuple[Tensor, Tensor, Tensor]:
    """Heads on the plain ground [N, 3, edge, edge], their masks [N, 1, edge, edge], and the portraits [N, 3, 128, 128].

    The portraits are the whole pictures that poses are read off; the others are area means of them.
    """
    truth = portraits.render_with_truth(people.replace(background=WALL), FINE, 1)
    head = truth.image * truth.head_mask + GROUND * (1 - truth.head_mask)
    return F.avg_pool2d(head, FINE // edge), F.avg_pool2d(truth.head_mask, FINE // edge), truth.image


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
        image, mask, whole = draw(people[some])
        arrays["images"][some] = ((image + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        arrays["masks"][some] = (mask * 255).round().byte().numpy()
        arrays["poses"][some] = pose.read(whole).numpy()
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
