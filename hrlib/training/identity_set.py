"""People seen more than once: the training and test sets of the identity network.

A set on disk is a cache (see set_files.py): images.npy, uint8 [views * identities, 3, R, R], whose row i shows
person i % identities, and status.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import image
from ..errors import SEED, StoreError, number
from ..worlds import portraits
from . import set_files
from .set_files import STATUS

SHAPE_NAMES = (  # what tells look-alikes apart
    "head_width", "head_height", "jaw_width", "chin", "cheeks", "fullness", "eye_size", "eye_spacing", "eye_tilt",
    "nose_length", "nose_width", "nose_projection", "mouth_width", "lip_fullness", "ear_size",
    "brow_thickness", "brow_arch",
)  # fmt: skip
FAMILY = 4  # look-alikes
CHUNK = 50  # portraits rendered between two saves


def lookalikes(n: int, *, seed: int) -> Tensor:
    """Identities [n, 38] in families of four, equal but for the proportions named in `SHAPE_NAMES`."""
    own, shared = portraits.sample(n, seed=seed).identity, portraits.sample(-(-n // FAMILY), seed=seed + 1).identity
    mixed = shared.repeat_interleave(FAMILY, 0)[:n].clone()
    shape = [portraits.IDENTITY_NAMES.index(name) for name in SHAPE_NAMES]
    mixed[:, shape] = own[:, shape]
    return mixed


def half_lookalikes(n: int, *, seed: int) -> Tensor:
    """Identities [n, 38]: the first half unrelated, the second half in families of `lookalikes`."""
    return torch.cat([portraits.sample(n // 2, seed=seed).identity, lookalikes(n - n // 2, seed=seed + 1)])


def view(identity: Tensor, *, seed: int) -> portraits.Portraits:
    """Portraits of the people [N, 38], each with its own pose, expression, light, background and detail."""
    return portraits.sample(len(identity), seed=seed).replace(identity=identity)


def render_views(folder: Path, *, identities: int, views: int, resolution: int, seed: int) -> Iterator[int]:
    """Render `views` pictures of each of `half_lookalikes(identities)`; yields the number done, at least once.

    The first view has 2x2 rays a pixel; the others have one, which is twice as fast.

    Raises:
        InvalidValue: a number is out of range.
        StoreError: the folder holds something else, or cannot be written.
    """
    what = {"identities": number("identities", identities, "whole [2, inf)")}
    what |= {"views": number("views", views, "whole [1, inf)")}
    what |= {"resolution": number("resolution", resolution, "whole [8, inf)"), "seed": number("seed", seed, SEED)}
    total, who = views * identities, half_lookalikes(identities, seed=seed)
    arrays = {"images": ((total, 3, resolution, resolution), np.uint8)}
    with set_files.making(folder, what, arrays) as made:
        while made.done < total:
            v, first = divmod(made.done, identities)
            some = view(who, seed=seed + 3 + v)[first : min(first + CHUNK, identities)]
            with torch.inference_mode():
                drawn = portraits.render(some, resolution, 2 if v == 0 else 1)
            yield made.add({"images": image.to_uint8(drawn).transpose(0, 3, 1, 2)})
    yield total


def load_views(folder: Path) -> np.ndarray:
    """The whole set in `folder`, memory-mapped: uint8 [views * identities, 3, R, R].

    Raises:
        StoreError: it is missing or incomplete.
    """
    facts = set_files.status(folder) if (folder / STATUS).exists() else {"done": 0}
    if not facts["done"] or facts["done"] < facts["what"]["views"] * facts["what"]["identities"]:
        raise StoreError(
            f"{facts['done']} rendered views in {folder}",
            expected="all views of all people",
            do="run `hrlab train identity`, which renders them first",
        )
    return set_files.array(folder / "images.npy")
