"""People seen more than once: the training and test sets of the identity network.

A set on disk is a cache (rendering is deterministic): images.npy, uint8 [views * identities, 3, R, R], whose row i
shows person i % identities, and status.json. An interrupted rendering goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import image, store
from ..errors import StoreError
from ..worlds import portraits

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
    """Identities [n, 38]: the first half unrelated, the other in families of `lookalikes`."""
    return torch.cat([portraits.sample(n // 2, seed=seed).identity, lookalikes(n - n // 2, seed=seed + 1)])


def view(identity: Tensor, *, seed: int) -> portraits.Portraits:
    """Portraits of the people [N, 38], each with a pose, expression, light, background and detail of its own."""
    return portraits.sample(len(identity), seed=seed).replace(identity=identity)


def render_views(folder: Path, *, identities: int, views: int, resolution: int, seed: int) -> Iterator[int]:
    """Render `views` pictures of each of `half_lookalikes(identities)`; yields how many are done, at least once.

    The first view has 2x2 rays a pixel; the others have one, which is twice as fast.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, status, total = folder / "images.npy", folder / "status.json", views * identities
    what = {"identities": identities, "views": views, "resolution": resolution, "seed": seed}
    old = store.read_json(status) if status.exists() and path.exists() else {}
    if old.get("what") == what:
        images, done = np.lib.format.open_memmap(path, mode="r+"), old["done"]
    else:
        shape = (total, 3, resolution, resolution)
        images, done = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape), 0
    who = half_lookalikes(identities, seed=seed)
    with torch.inference_mode():
        while done < total:
            v, first = divmod(done, identities)
            some = view(who, seed=seed + 3 + v)[first : min(first + CHUNK, identities)]
            drawn = image.to_uint8(portraits.render(some, resolution, 2 if v == 0 else 1)).transpose(0, 3, 1, 2)
            images[done : done + len(some)] = drawn
            done += len(some)
            images.flush()
            store.write_json(status, {"what": what, "done": done})
            yield done
    yield done


def load_views(folder: Path) -> np.ndarray:
    """The whole set in `folder`, memory-mapped: uint8 [views * identities, 3, R, R].

    Raises:
        StoreError: it is not there, or not whole.
    """
    status = folder / "status.json"
    facts = store.read_json(status) if status.exists() else {"done": 0}
    if not facts["done"] or facts["done"] < facts["what"]["views"] * facts["what"]["identities"]:
        raise StoreError(
            f"{facts['done']} rendered views in {folder}",
            expected="all views of all people",
            do="run `hrlab train identity`, which renders them first",
        )
    return np.load(folder / "images.npy", mmap_mode="r")
