"""Training sets on disk: pictures rendered from a procedural world, with their latents, or packed from a folder.

A set is a folder with images.npy (uint8 [n, 3, R, R]), status.json (what it is, and how much of it is done) and, for
rendered sets, latents.npy (float32 [n, z_dim]). Making one is deterministic, so the folder is a cache and can be
deleted at any time; set_files.py says what happens to a folder that exists.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import image
from ..errors import SEED, ImageError, InvalidValue, StoreError, UnknownName, nearest, number
from ..store import LOCK, atomic, claimed, sweep_temps, write_json
from ..worlds import portraits
from . import set_files
from .recipe import MOST, WIDTH
from .set_files import STATUS

CHUNK = 64
IMAGES, LATENTS = "images.npy", "latents.npy"
WORLDS = (*(f"portraits/{domain}" for domain in portraits.DOMAINS), "scenes")


@dataclass(frozen=True)
class PictureSet:
    """Pictures and, for rendered worlds, their latents; another process may still be rendering them.

    images: uint8 [n, 3, R, R], memory-mapped; z: float32 [n, z_dim], each coordinate standard normal over the set, or
    None for packed pictures, whose latents are unknown.
    """

    folder: Path
    images: np.ndarray
    z: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> int:
        """Side of the pictures in pixels."""
        return self.images.shape[-1]

    @property
    def what(self) -> dict[str, Any]:
        """What is in the set, JSON-able: world and draws, or a folder's name and the hash of its packed pictures."""
        return set_files.status(self.folder)["what"]

    def wait_for(self, count: int) -> None:
        """Wait until the first `count` pictures are there; raises `StoreError` if no process is rendering them."""
        while set_files.status(self.folder)["done"] < count:
            busy = _at_work(self.folder)  # checked first: a process counts its last pictures before it ends
            if not busy and (done := set_files.status(self.folder)["done"]) < count:
                raise StoreError(
                    f"{done} pictures in {self.folder}, and no process is rendering",
                    expected=f"{count} pictures",
                    do="finish the set with `hrlab train render`",
                )
            time.sleep(2 * busy)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images [B, 3, R, R] in [-1, 1] and latents [B, z_dim] (or None) of the given items."""
        return set_files.from_bytes(self.images[index.numpy()]), None if self.z is None else self.z[index]


def _at_work(folder: Path) -> bool:
    """Whether some process holds the lock of a set."""
    from filelock import FileLock

    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except OSError:  # held (Timeout is an OSError), or not ours to try: another user may hold it
        return True


def explained(people: portraits.Portraits) -> Tensor:
    """The parameters that explain a portrait, one row for each person: [N, P]; the detail seed is none of them."""
    return torch.cat([getattr(people, group) for group in portraits.GROUPS], dim=1)


def check_latents(z_dim: int, parameters: int) -> None:
    """Raise `InvalidValue` unless latents of z_dim numbers have room for so many parameters."""
    if z_dim < parameters:
        raise InvalidValue(
            f"z_dim {z_dim}", expected=f"at least {parameters}, one for each parameter", do=f"set z_dim to {parameters}"
        )


def gaussianise(values: Tensor, z_dim: int, *, seed: int) -> Tensor:
    """Parameters to latents that are distributed like z ~ N(0, I), nearly: [n, P] -> [n, z_dim].

    Each column is rank-transformed to a standard normal; ties (glasses or none) are broken at random, which spreads
    them over their share of it. The symmetric square root then decorrelates the columns (beards come with moustaches,
    age with grey hair) and keeps each as close to its parameter as possible; unit normal draws fill up to z_dim. So a
    generator that learnt to draw the person that z encodes can be sampled, and trained adversarially, with plain z.
    """
    n, p = values.shape
    check_latents(z_dim, p)
    g = torch.Generator().manual_seed(seed)
    jitter = torch.rand(n, p, generator=g)
    order = np.lexsort((jitter.numpy(), values.numpy()), axis=0)  # by value, then at random
    ranks = torch.from_numpy(np.argsort(order, axis=0)).double()
    z = torch.special.ndtri((ranks + 0.5) / n)
    variance, axes = torch.linalg.eigh(torch.corrcoef(z.T))
    z = z @ (axes * variance.clamp(min=0.01).rsqrt()) @ axes.T  # clamped: a set smaller than P is degenerate
    return torch.cat([z.float(), torch.randn(n, z_dim - p, generator=g)], dim=1)


def render_set(
    folder: Path,
    n: int,
    *,
    world: str = "portraits/photo",
    resolution: int,
    z_dim: int,
    seed: int = 0,
    count: int | None = None,
    force: bool = False,
) -> Iterator[int]:
    """Render a world into `folder`; yields the number done after each chunk. Picture i does not depend on n.

    An interrupted rendering of the same set resumes; a finished set is left as it is.

    Args:
        folder: of the set, and of nothing else.
        n: number of people (or scenes) that get latents: ranks are taken among n.
        world: one of `WORLDS`.
        z_dim: length of a latent, at least the number of parameters of the world.
        count: render only the first `count` of the n. So row i of a cartoon set of 6,000 of 16,000 people shows the
            person, and has the latent, of row i of the photo set of 16,000.
        resolution: side of the pictures in pixels, 8 or more.
        seed: of the draws.
        force: make the set again whatever is in the folder (see `set_files.making`).

    Raises:
        InvalidValue, UnknownName: a number is out of range; there is no such world.
        StoreError: the folder holds something else, or cannot be written.
    """
    resolution, z_dim = number("resolution", resolution, "whole [8, inf)"), number("z_dim", z_dim, WIDTH)
    n, seed = number("n", n, f"whole [1, {MOST}]"), number("seed", seed, SEED)
    if world not in WORLDS:
        raise UnknownName(
            f"world {world!r}",
            expected=f"one of {', '.join(WORLDS)}",
            do=nearest(world, list(WORLDS)) or "name one of these worlds",
        )
    count = n if count is None else number("count", count, "whole (-inf, inf)")
    if not 0 < count <= n:
        raise InvalidValue(f"count={count} of n={n}", expected="1 to n", do=f"set count to {n} at most, or raise n")
    what = {"world": world, "seed": seed, "resolution": resolution, "n": n, "count": count, "z_dim": z_dim}
    if world == "scenes":
        from ..worlds import scenes

        items, draw = scenes.sample(n, seed=seed), scenes.render
        parameters = scenes.explained
    else:
        domain = world.removeprefix("portraits/")
        items, draw = portraits.sample(n, seed=seed), lambda part, size: portraits.render(part, size, domain=domain)
        parameters = explained
    check_latents(z_dim, parameters(items[:1]).shape[1])
    arrays = {"images": ((count, 3, resolution, resolution), np.uint8)}
    with set_files.making(folder, what, arrays, force=force) as made:
        if not made.done:
            with atomic(made.folder / LATENTS) as temp, open(temp, "wb") as f:
                np.save(f, gaussianise(parameters(items), z_dim, seed=seed)[:count].numpy())
        while made.done < count:
            with torch.inference_mode():  # not across the yield: it would hold for the caller, too
                drawn = draw(items[made.done : min(made.done + CHUNK, count)], resolution)
            yield made.add({"images": image.to_uint8(drawn).transpose(0, 3, 1, 2)})


def pack_folder(source: Path, folder: Path, resolution: int, *, force: bool = False) -> Iterator[int]:
    """Pack all pictures below `source` into the set `folder`; yields the number done.

    Each picture is cropped to its largest centred square and resampled with LANCZOS (antialiased), in the order of the
    paths. A set is never a part of what was meant: one `ImageError` at the end names all damaged files, and there is no
    set until they are repaired or removed.

    Args:
        source: a folder of pictures, searched with its subfolders.
        folder: of the set, and of nothing else.
        resolution: side of the packed pictures in pixels.
        force: pack again whatever is in the folder (see `set_files.making`).

    Raises:
        ImageError: pictures are damaged.
        InvalidValue: the resolution is out of range.
        StoreError: there are no pictures; the folder holds something else or a finished set, or cannot be written.
    """
    source, folder = Path(source), Path(folder)
    resolution = number("resolution", resolution, "whole [1, inf)")
    if source.resolve() == folder.resolve():
        raise StoreError(
            f"{folder} is the source itself", expected="another folder for the set", do="name a new folder"
        )
    files = sorted(f for f in source.rglob("*") if f.suffix.lower() in image.SUFFIXES and f.is_file())
    if not files:
        raise StoreError(
            f"no pictures below {source}", expected=f"files {' '.join(image.SUFFIXES)}", do="check the path"
        )
    origin, damaged, digest = {"pictures of": str(source.resolve()), "resolution": resolution}, [], hashlib.sha256()
    shape = (len(files), 3, resolution, resolution)
    set_files.check_room(folder, {"images": (shape, np.uint8)})
    with claimed(folder, set_files.KIND, origin, files=set_files.FILES, force=force):
        sweep_temps(folder)  # of a packing that was killed: it starts again
        with atomic(folder / IMAGES) as temp:
            set_files.create(temp, shape, np.uint8)
            for i, file in enumerate(files):
                try:
                    packed = image.to_uint8(image.read(file, resolution)).transpose(0, 3, 1, 2)
                    set_files.write(temp, i, packed)
                    digest.update(packed.tobytes())
                except ImageError as e:
                    damaged.append(f"{file.relative_to(source)} ({e.got})")
                yield i + 1
            if damaged:
                raise ImageError(
                    f"{len(damaged)} of {len(files)} pictures cannot be read:\n    " + "\n    ".join(damaged),
                    expected="whole pictures",
                    do="repair or remove these files, then pack the folder again",
                )
        what = {"folder": source.resolve().name, "pictures": digest.hexdigest()[:16]}
        what |= {"resolution": resolution, "n": len(files)}
        write_json(folder / STATUS, {"what": what, "done": len(files)})


def load_set(folder: Path) -> PictureSet:
    """The set in `folder`, images memory-mapped; raises `StoreError` if there is none, or it is damaged."""
    folder = Path(folder)
    if not (folder / STATUS).exists():
        raise StoreError(
            f"no training set in {folder}",
            expected=STATUS,
            do="run `hrlab train render` or `hrlab train pack` first",
        )
    set_files.status(folder)
    images, latents = set_files.array(folder / IMAGES), folder / LATENTS
    z = torch.from_numpy(np.array(set_files.array(latents))) if latents.exists() else None
    return PictureSet(folder, images, z)
