"""The training set of the 3D-aware GAN: rendered human heads (`worlds.heads`) with their masks, depths and true poses.

Each person is seen once, from a pose of its own that is drawn here: wider than those of the portraits, so that cheeks
and hair are seen from the side too. The renderer's cameras and depths are stored as they are. So the training of
gan3d.py is supervised regression on renders, unlike CIPS-3D's own, which is given neither.

A set on disk is a cache (see set_files.py): images, masks, depths, poses and latents (.npy), and status.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import image
from ..errors import SEED, StoreError, number
from ..nets import volume
from ..store import atomic
from ..worlds import heads, portraits
from . import set_files
from .picture_sets import check_latents, gaussianise
from .recipe import MOST, WIDTH
from .set_files import STATUS

EXPLAIN = ("identity", "expression", "light")  # groups of parameters in a latent: not the pose
EDGE, CHUNK = 96, 40
FOV = 2 * math.degrees(math.atan(1 / 5.65))  # of the portraits' camera, whose picture is 2 wide at a distance of 5.65
YAW, PITCH = 0.75, 0.12  # poses: yaw uniform in +-YAW, and the standard deviation of pitch, radians
PARTS = {
    "images": ((3, EDGE, EDGE), np.uint8),
    "masks": ((2, EDGE, EDGE), np.uint8),
    "depths": ((1, EDGE, EDGE), np.float16),
    "poses": ((2,), np.float32),
}


@dataclass(frozen=True)
class HumanHeads:
    """Rendered heads of n people.

    images uint8 [n, 3, 96, 96]; masks uint8 [n, 2, 96, 96]: of the head, and of the head without its hair; depths
    float16 [n, 1, 96, 96]: distance along the ray, less 1, in units of the camera's distance, NaN off the head; poses
    [n, 2]: true yaw and pitch, radians; z [n, z_dim] standard normal; what: the draws that made the set, JSON-able.
    """

    images: np.ndarray
    masks: np.ndarray
    depths: np.ndarray
    poses: Tensor
    z: Tensor
    what: dict[str, Any]

    def __len__(self) -> int:
        return len(self.poses)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [B, 3, 96, 96] in [-1, 1], masks [B, 2, 96, 96] in [0, 1], and distances [B, 1, 96, 96]."""
        rows = index.numpy()
        masks, depths = torch.from_numpy(self.masks[rows]), torch.from_numpy(self.depths[rows])
        return set_files.from_bytes(self.images[rows]), masks.float() / 255, depths.float() + 1


def people(n: int, seed: int) -> tuple[portraits.Portraits, Tensor]:
    """The first n people of `seed`, and the poses [n, 2] from which the set shows them."""
    g = torch.Generator().manual_seed(seed)
    draws = torch.rand(n, 2, generator=g)
    pitch = PITCH * torch.special.ndtri(0.02 + 0.96 * draws[:, 1])  # within two standard deviations
    return portraits.sample(n, seed=seed), torch.stack((YAW * (2 * draws[:, 0] - 1), pitch), 1)


def explained(some: portraits.Portraits) -> Tensor:
    """The parameters [n, 47] that explain a head from any side: the light's azimuth is counted from the face."""
    light = some.replace(light={"light_azimuth": some.get("light_azimuth") - some.get("yaw")})
    return torch.cat([getattr(light, group) for group in EXPLAIN], 1)


def render(folder: Path, n: int, *, z_dim: int, seed: int) -> Iterator[int]:
    """Render the first n people of `seed` into `folder`; yields the number done after each chunk, at least once.

    Raises:
        InvalidValue: a number is out of range.
        StoreError: the folder holds something else, or cannot be written.
    """
    n, seed = number("n", n, f"whole [1, {MOST}]"), number("seed", seed, SEED)
    what = {"n": n, "z_dim": number("z_dim", z_dim, WIDTH), "seed": seed, "edge": EDGE}
    everybody, poses = people(n, seed)
    arrays = {name: ((n, *shape), kind) for name, (shape, kind) in PARTS.items()}
    known = explained(everybody)
    check_latents(z_dim, known.shape[1])
    local = volume.directions(EDGE, EDGE, FOV, centres=True, like=poses)[:, 2].reshape(EDGE, EDGE)
    with set_files.making(folder, what, arrays) as made:
        if not made.done:
            with atomic(made.folder / "latents.npy") as temp, open(temp, "wb") as f:
                np.save(f, gaussianise(known, z_dim, seed=seed).numpy())
        while made.done < n:
            at = slice(made.done, min(made.done + CHUNK, n))
            drawn = heads.draw(heads.turned(everybody[at], *poses[at].T), EDGE)
            rows = {
                "images": image.to_uint8(drawn.image).transpose(0, 3, 1, 2),
                "masks": (torch.cat((drawn.mask, drawn.face), 1) * 255).round().byte().numpy(),
                "depths": (drawn.depth / -local / heads.DISTANCE - 1).half().numpy(),
                "poses": poses[at].numpy(),
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
    images, masks, depths, poses, z = (
        np.array(set_files.array(folder / f"{name}.npy")) for name in (*PARTS, "latents")
    )
    return HumanHeads(images, masks, depths, torch.from_numpy(poses), torch.from_numpy(z), facts["what"])
