"""Galleries built by a sweep, a run a picture: no picture is inverted twice, and a bad one costs only itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor

from .. import devices, image, inversion, metrics, optim, store
from ..errors import BatchError, ImageError
from ..gallery import Gallery, absolute, free
from ..worlds.pictures import listed, picture
from .inversions import generator_of, loss_of, png
from .sweep import Measured, Results, check_numbers, sweep

if TYPE_CHECKING:
    import pandas as pd

CODES = "codes.safetensors"
RANGES = {name: inversion.RANGES[name] for name in ("num_steps", "lr", "lam_mse", "seed")}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The inversion of one picture into w+, Eq. (5); `build` has the defaults.

    image: a picture's name. generator: catalogue name or file. perceptual: weights of the conv-based loss, Eq. (3).
    num_steps, lr, lam_mse, seed: as in `inversion.invert`. fit: see `exact`.

    Raises:
        InvalidValue: a number out of range.
    """

    image: str
    generator: str
    perceptual: str
    num_steps: int
    lr: float
    lam_mse: float
    seed: int
    fit: bool
    device: str

    def __post_init__(self) -> None:
        check_numbers(self, RANGES)


@dataclass(frozen=True)
class BuiltGallery:
    """A gallery, and the inversions behind it.

    gallery: codes of the pictures that could be inverted. path: its file. table: a row a picture, with "psnr" (dB) of
    the inversion and "error" ("" when there is none). performed: how many pictures this build inverted itself.
    images: the inversions, [N, 3, R, R] in [-1, 1] (8 bits), in the gallery's order. seconds: what each of these took.
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
) -> BuiltGallery:
    """Invert pictures into w+ of a generator, Eq. (5), and write them to `path`[.safetensors].

    The noise maps stay fixed: they are less editable than the codes (Sec. III-C). Each inversion is kept as a run of a
    sweep, so an interrupted build goes on where it stopped.

    Args:
        images: names for `lab.listed`: pictures, ranges and folders.
        generator: catalogue name or file.
        perceptual: weights of the conv-based loss, Eq. (3): "shipped", "imagenet" or a file.
        num_steps, lr, lam_mse, seed: as in `inversion.invert`.
        fit: crop, resize and flatten pictures that are transparent or have another size than the generator; without it
            they are errors in the table.
        device: "auto" takes the CUDA device of the worker when it has one.
        workers: as in `sweep`.
        label: for the progress line.
        force: replace a file at `path`; never one of the pictures.

    Raises:
        StoreError, InvalidValue, UnknownName: before anything is inverted.
        BatchError: no picture could be inverted; the message has the first error. Other errors are in the table.
    """
    runs = grid(
        images,
        generator=generator,
        perceptual=perceptual,
        num_steps=num_steps,
        lr=lr,
        lam_mse=lam_mse,
        seed=seed,
        fit=fit,
        device=device,
    )
    path = free(path, (run.image for run in runs), force=force)
    swept = invert_pictures(runs, workers=workers, label=label)
    good = swept.table.index[swept.table["error"] == ""]
    if not len(good):
        raise BatchError(
            f"none of {len(runs)} pictures could be inverted; the first: {swept.table['error'][0]}",
            expected="at least one picture that can be inverted",
            do="correct what the first error names, and build again",
        )
    ws = torch.cat([safetensors.torch.load_file(swept.file(i, CODES))["ws"] for i in good])
    names = tuple(absolute(name) for name in swept.table["image"][good])
    fingerprint = store.fingerprint(generator_of(str(generator), "cpu").state_dict())
    made = {name: value for name, value in asdict(runs[0]).items() if name != "image"}
    found = Gallery(names, ws, fingerprint, json.dumps(made))
    table = swept.table[["image", "psnr", "error"]] if "psnr" in swept.table else swept.table[["image", "error"]]
    pictures = torch.cat([swept.image(i) for i in good])
    return BuiltGallery(found, found.save(path, force=force), table, swept.performed, pictures, swept.seconds[good])


def grid(
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
) -> list[Settings]:
    """The runs that `build` performs with the same arguments.

    Raises:
        UnknownName, MissingWeights: a generator that does not exist or is not here. InvalidValue: a number.
    """
    generator_of(str(generator), "cpu")
    return [
        Settings(
            image=name,
            generator=str(generator),
            perceptual=perceptual,
            num_steps=num_steps,
            lr=lr,
            lam_mse=lam_mse,
            seed=seed,
            fit=fit,
            device=device,
        )
        for name in listed(list(images))
    ]


def invert_pictures(runs: Sequence[Settings], *, workers: int = 0, label: str = "inversions") -> Results:
    """Perform runs of `grid`, of several galleries if need be: one sweep starts its workers only once."""
    return sweep(perform, runs, name="galleries", workers=workers, label=label)


def perform(s: Settings) -> Measured:
    """Invert one picture: PSNR in dB, the code as codes.safetensors, the inversion as image.png."""
    where = str(devices.choose(s.device))
    G = generator_of(s.generator, where)
    x = exact(s.image, G.resolution, fit=s.fit).to(where)
    loss = loss_of("vgg_conv", s.perceptual, None, 0, where)
    run = inversion.invert(
        G, x, loss, num_steps=s.num_steps, lr=s.lr, lam_mse=s.lam_mse, seed=s.seed, optimise_noise=False
    )
    result = optim.solve(run)
    codes = safetensors.torch.save({"ws": result.ws.cpu().contiguous()})
    return Measured({"psnr": float(metrics.psnr(result.image, x)[0])}, {CODES: codes, "image.png": png(result.image)})


def exact(name: str, resolution: int, *, fit: bool = False) -> Tensor:
    """A picture [1, 3, R, R] by name, unchanged; `ImageError` if its file has another size or transparency.

    fit: crop, resize and flatten such a file instead. Rendered pictures and samples come in any size.
    """
    if fit or not name.startswith("file:"):
        return picture(name, resolution)
    x = image.read(name.removeprefix("file:"), background=None)
    if x.shape[2:] != (resolution, resolution):
        raise ImageError(
            f"{name.removeprefix('file:')} has {x.shape[2]}x{x.shape[3]} pixels",
            expected=f"the generator's own {resolution}x{resolution}",
            do="crop and resize it, or take the largest centred square with --fit (fit=True)",
        )
    return x
