"""Training sets on disk: pictures rendered from a procedural world, with their latents, or packed from a folder.

A set is a folder of images.npy (uint8 [n, 3, R, R]), status.json (what it is, and how much of it is done) and, for
rendered sets, latents.npy (float32 [n, z_dim]). Making one is deterministic, so the folder is a cache and can be
deleted at any time. An interrupted making goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import image
from ..errors import ImageError, StoreError, UnknownName, nearest
from ..store import atomic, read_json, write_json
from ..worlds import portraits

CHUNK = 64
IMAGES, LATENTS, STATUS = "images.npy", "latents.npy", "status.json"
WORLDS = (*(f"portraits/{domain}" for domain in portraits.DOMAINS), "scenes")


@dataclass(frozen=True)
class RenderedSet:
    """Pictures and (for rendered worlds) their latents, possibly still being rendered by another process.

    images: uint8 [n, 3, R, R], memory-mapped; z: float32 [n, z_dim], each coordinate standard normal over the set, or
    None for pictures whose latents nobody knows.
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

    def wait_for(self, count: int) -> None:
        """Return once the first `count` pictures are there."""
        while read_json(self.folder / STATUS)["done"] < count:
            time.sleep(2)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images [B, 3, R, R] in [-1, 1] and latents [B, z_dim] (or None) of the given items."""
        x = torch.from_numpy(np.ascontiguousarray(self.images[index.numpy()])).float() / 127.5 - 1
        return x, None if self.z is None else self.z[index]


def explained(people: portraits.Portraits) -> Tensor:
    """The parameters that explain a portrait, one row a person: [N, P]. The detail seed explains nothing, by design."""
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
    if z_dim < p:
        raise StoreError(f"z_dim {z_dim}", expected=f"at least {p}, one for each parameter", do="give a larger z_dim")
    g = torch.Generator().manual_seed(seed)
    jitter = torch.rand(n, p, generator=g)
    order = np.lexsort((jitter.numpy(), values.numpy()), axis=0)  # by value, then by chance
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
) -> Iterator[int]:
    """Render a world into `folder`; yields how many pictures are done after each chunk. Picture i does not depend on n.

    Args:
        n: how many people (or scenes) the latents are made for: ranks are taken among n.
        world: one of `WORLDS`.
        z_dim: length of a latent, at least the number of parameters of the world.
        count: render the first `count` of the n only. So row i of a cartoon set of 6,000 of 16,000 people has the
            latent, and is the person, of row i of the photo set of 16,000.
    """
    if world not in WORLDS:
        raise UnknownName(f"world {world!r}", expected=f"one of {', '.join(WORLDS)}", do=nearest(world, list(WORLDS)))
    count = n if count is None else count
    if not 0 < count <= n:
        raise StoreError(f"count={count} of n={n}", expected="1 to n", do="render fewer pictures, or of more people")
    what = {"world": world, "seed": seed, "resolution": resolution, "n": n, "count": count, "z_dim": z_dim}
    done = _begun(folder, what)
    if done == count:
        return
    if world == "scenes":
        from ..worlds import scenes

        items, draw = scenes.sample(n, seed=seed), scenes.render
        parameters = scenes.explained
    else:
        domain = world.removeprefix("portraits/")
        items, draw = portraits.sample(n, seed=seed), lambda part, size: portraits.render(part, size, domain=domain)
        parameters = explained
    if done:
        images = np.lib.format.open_memmap(folder / IMAGES, mode="r+")
    else:
        with atomic(folder / LATENTS) as temp, open(temp, "wb") as f:
            np.save(f, gaussianise(parameters(items), z_dim, seed=seed)[:count].numpy())
        images = _create(folder, count, resolution)
    with torch.inference_mode():
        for start in range(done, count, CHUNK):
            stop = min(start + CHUNK, count)
            images[start:stop] = image.to_uint8(draw(items[start:stop], resolution)).transpose(0, 3, 1, 2)
            images.flush()
            write_json(folder / STATUS, {"what": what, "done": stop})
            yield stop


def pack_folder(source: Path, folder: Path, resolution: int) -> Iterator[int]:
    """Pack all pictures below `source` into the set `folder`; yields how many are done, and raises at the end if any
    was damaged.

    Each picture is cropped to its largest centred square and resampled with LANCZOS (antialiased). They are sorted by
    path. Nothing is trained on a part of what was meant: damaged files are all named in one `ImageError`, and the set
    remains unusable until they are repaired or removed.
    """
    source, folder = Path(source), Path(folder)
    files = sorted(f for f in source.rglob("*") if f.suffix.lower() in image.SUFFIXES and f.is_file())
    if not files:
        raise StoreError(
            f"no pictures below {source}", expected=f"files {' '.join(image.SUFFIXES)}", do="check the path"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (STATUS, LATENTS):
        (folder / stale).unlink(missing_ok=True)
    images, damaged = _create(folder, len(files), resolution), []
    for i, file in enumerate(files):
        try:
            images[i] = image.to_uint8(image.read(file, resolution))[0].transpose(2, 0, 1)
        except ImageError as e:
            damaged.append(f"{file.relative_to(source)} ({e.got})")
        yield i + 1
    if damaged:
        raise ImageError(
            f"{len(damaged)} of {len(files)} pictures cannot be read:\n    " + "\n    ".join(damaged),
            expected="whole pictures",
            do="repair or remove these files, then pack the folder again",
        )
    images.flush()
    what = {"folder": source.name, "resolution": resolution, "n": len(files)}
    write_json(folder / STATUS, {"what": what, "done": len(files)})


def _begun(folder: Path, what: dict[str, Any]) -> int:
    """How many pictures of exactly this set are in the folder."""
    status = folder / STATUS
    old = read_json(status) if status.exists() and (folder / IMAGES).exists() else {}
    return old["done"] if old.get("what") == what else 0


def _create(folder: Path, n: int, resolution: int) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(folder / IMAGES, mode="w+", dtype=np.uint8, shape=(n, 3, resolution, resolution))


def load_set(folder: Path) -> RenderedSet:
    """The set in `folder`, images memory-mapped."""
    folder = Path(folder)
    if not (folder / STATUS).exists():
        raise StoreError(
            f"no training set in {folder}",
            expected=STATUS,
            do="run `hrlab train render` or `hrlab train pack` first",
        )
    images = np.load(folder / IMAGES, mmap_mode="r")
    z = torch.from_numpy(np.load(folder / LATENTS)) if (folder / LATENTS).exists() else None
    return RenderedSet(folder, images, z)
