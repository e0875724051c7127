"""Galleries built by a sweep: a run a picture, so that none is inverted twice and a bad one costs only itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from .. import devices, image, inversion, metrics, optim, store
from ..errors import BatchError, ImageError, plain
from ..gallery import Gallery, absolute, free
from ..worlds.pictures import listed, picture
from .inversions import generator_of, loss_of, png
from .sweep import Outcome, Swept, sweep

if TYPE_CHECKING:
    import pandas as pd

CODES = "codes.safetensors"


@dataclass(frozen=True)
class Built:
    """A gallery and how it came about.

    gallery: codes of the pictures that could be inverted. path: its file. table: a row a picture, with "psnr" (dB) of
    the inversion and "error" ("" when there is none). performed: how many were inverted now. images: the inversions,
    [N, 3, R, R] in [-1, 1] (8 bits), in the gallery's order. seconds: what each of these inversions took.
    """

    gallery: Gallery
    path: Path
    table: pd.DataFrame
    performed: int
    images: Tensor
    seconds: pd.Series


def build(
    images: Sequence[str],
    *,
    generator: str,
    path: str | Path,
    perceptual: str = "shipped",
    num_steps: int = 150,
    lr: float = 0.1,
    lam_mse: float = 3.0,
    seed: int = 0,
    fit: bool = False,
    device: str = "auto",
    workers: int = 0,
    label: str = "gallery",
    force: bool = False,
) -> Built:
    """Invert pictures into w+ of a generator, Eq. (5), and write them to `path`[.safetensors].

    The noise maps stay fixed: they are less editable than the codes (Sec. III-C). Each inversion is kept as a run of a
    sweep, so a build that was interrupted goes on where it stopped.

    Args:
        images: names for `lab.listed`: of pictures, ranges and folders.
        generator: catalogue name or file.
        perceptual: of the conv-based loss, Eq. (3).
        num_steps, lr, lam_mse, seed: as in `inversion.invert`.
        fit: crop, resize and flatten pictures that are not of the generator's size or are transparent; without it they
            are errors in the table.
        workers: as in `lab.sweep`.
        force: replace a file that is at `path`; never one of the pictures.

    Raises:
        StoreError, InvalidValue, UnknownName: before anything is inverted.
        BatchError: not one picture could be inverted; the message has the first error. Others are in the table.
    """
    how = dict(perceptual=perceptual, num_steps=num_steps, lr=lr, lam_mse=lam_mse, seed=seed, fit=fit, device=device)
    runs = requests(images, generator=generator, **how)
    path = free(path, (run["image"] for run in runs), force=force)
    swept = invert(runs, workers=workers, label=label)
    good = swept.table.index[swept.table["error"] == ""]
    if not len(good):
        raise BatchError(
            f"none of {len(runs)} pictures could be inverted; the first: {swept.table['error'][0]}",
            expected="at least one good picture",
            do="see the message of the first",
        )
    ws = torch.cat([safetensors.torch.load_file(swept.file(i, CODES))["ws"] for i in good])
    names = tuple(absolute(name) for name in swept.table["image"][good])
    fingerprint = store.fingerprint(generator_of(str(generator), "cpu").state_dict())
    found = Gallery(names, ws, fingerprint, json.dumps({"generator": str(generator), **how}))
    table = swept.table[["image", "psnr", "error"]] if "psnr" in swept.table else swept.table[["image", "error"]]
    pictures = torch.cat([swept.image(i) for i in good])
    return Built(found, found.save(path, force=force), table, swept.performed, pictures, swept.seconds[good])


def requests(
    images: Sequence[str],
    *,
    generator: str,
    perceptual: str = "shipped",
    num_steps: int = 150,
    lr: float = 0.1,
    lam_mse: float = 3.0,
    seed: int = 0,
    fit: bool = False,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """The runs that `build` asks for with the same arguments; a generator that is not there is an error here.

    Bad numbers are, too (`InvalidValue`).
    """
    how = plain(dict(num_steps=num_steps, lr=lr, lam_mse=lam_mse, seed=seed), inversion.RANGES)
    generator_of(str(generator), "cpu")
    how = {"generator": str(generator), "perceptual": perceptual, **how, "fit": fit, "device": device}
    return [{"image": name, **how} for name in listed(list(images))]


def invert(runs: Sequence[dict[str, Any]], *, workers: int = 0, label: str = "inversions") -> Swept:
    """Perform `requests`, of several galleries if need be: one sweep starts its workers once."""
    return sweep(perform, runs, name="galleries", workers=workers, label=label)


def perform(
    *,
    image: str,
    generator: str,
    perceptual: str,
    num_steps: int,
    lr: float,
    lam_mse: float,
    seed: int,
    fit: bool,
    device: str,
) -> Outcome:
    """Invert one picture: PSNR in dB, the code as codes.safetensors, the inversion as image.png."""
    where = str(devices.choose(device))
    G = generator_of(generator, where)
    x = exact(image, G.resolution, fit=fit).to(where)
    loss = loss_of("vgg_conv", perceptual, None, 0, where)
    options: dict[str, Any] = dict(num_steps=num_steps, lr=lr, lam_mse=lam_mse, seed=seed, optimise_noise=False)
    result = optim.solve(inversion.invert(G, x, loss, **options))
    codes = safetensors.torch.save({"ws": result.ws.cpu().contiguous()})
    return Outcome({"psnr": float(metrics.psnr(result.image, x)[0])}, {CODES: codes, "image.png": png(result.image)})


def exact(name: str, resolution: int, *, fit: bool = False) -> Tensor:
    """A picture [1, 3, R, R] as it is; `ImageError` for one of another size or with transparency, unless `fit`.

    name: for `lab.picture`; pictures that are no files come in any size.
    """
    if fit or not name.startswith("file:"):
        return picture(name, resolution)
    x = image.read(name.removeprefix("file:"), background=None)
    if x.shape[2:] != (resolution, resolution):
        raise ImageError(
            f"{name.removeprefix('file:')} has {x.shape[2]}x{x.shape[3]} pixels",
            expected=f"the generator's own {resolution}x{resolution}",
            do="crop and resize it, or let us: --fit (fit=True) takes the largest centred square",
        )
    return x
