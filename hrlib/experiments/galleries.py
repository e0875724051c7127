"""Galleries built by a sweep, a run a picture: no picture is inverted twice, and a bad one costs only itself.

Codes that never change can be recorded, in data/recorded/galleries, and are read from there: `prepare` of `syntheses`
with record=True records those that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from .. import devices, image, inversion, metrics, optim, store
from ..errors import BatchError, ImageError, LayoutMismatch
from ..gallery import Gallery, absolute, free
from ..worlds.pictures import listed, picture
from .inversions import generator_of, loss_of, same_draws
from .sweep import Measured, Results, check_numbers, sweep

if TYPE_CHECKING:
    import pandas as pd

CODES = "codes.safetensors"
SHELF = "galleries"  # below data/recorded
AT_ONCE = 4  # pictures inverted or drawn in a batch
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
    images: the inversions, [N, 3, R, R] in [-1, 1], in the gallery's order. seconds: what each of these took.
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
    record: bool = False,
) -> BuiltGallery:
    """Invert pictures into w+ of a generator, Eq. (5), and write them to `path`[.safetensors].

    The noise maps stay fixed: they are less editable than the codes (Sec. III-C). Each inversion is kept as a run of a
    sweep, so an interrupted build goes on where it stopped. Recorded inversions are read.

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
        record: keep what is inverted in data/recorded.

    Raises:
        StoreError, InvalidValue, UnknownName: before anything is inverted.
        BatchError: no picture could be inverted; the message has the first error. Other errors are in the table.
        LayoutMismatch: a recorded code belongs to another generator of that name.
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
    swept = invert_pictures(runs, workers=workers, label=label, record=record)
    good = swept.table.index[swept.table["error"] == ""]
    if not len(good):
        raise BatchError(
            f"none of {len(runs)} pictures could be inverted; the first: {swept.table['error'][0]}",
            expected="at least one picture that can be inverted",
            do="correct what the first error names, and build again",
        )
    names = tuple(absolute(name) for name in swept.table["image"][good])
    G = generator_of(str(generator), "cpu")
    fingerprint = store.fingerprint(G.state_dict())
    ws = torch.cat([_read(swept.file(i, CODES), fingerprint) for i in good])
    made = {name: value for name, value in asdict(runs[0]).items() if name != "image"}
    found = Gallery(names, ws, fingerprint, json.dumps(made))
    table = swept.table[["image", "psnr", "error"]] if "psnr" in swept.table else swept.table[["image", "error"]]
    with torch.no_grad():
        pictures = torch.cat([G.synthesis(part).clamp(-1, 1) for part in ws.split(AT_ONCE)])
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


def invert_pictures(
    runs: Sequence[Settings], *, workers: int = 0, label: str = "inversions", record: bool = False
) -> Results:
    """Perform runs of `grid`, of several galleries if need be: one sweep starts its workers only once."""
    how = dict(name="galleries", keep=SHELF, record=record, together=together, batch=AT_ONCE)
    return sweep(perform, runs, workers=workers, label=label, **how)


def perform(s: Settings) -> Measured:
    """Invert one picture: PSNR in dB, and the code as codes.safetensors, with the generator's fingerprint."""
    return together([s])[0]


def together(runs: Sequence[Settings]) -> list[Measured]:
    """`perform` of several runs that differ in their picture alone, as one batch; see `inversions.together`."""
    s = runs[0]
    where = str(devices.choose(s.device))
    G = generator_of(s.generator, where)
    x = torch.cat([exact(run.image, G.resolution, fit=s.fit) for run in runs]).to(where)
    loss = loss_of("vgg_conv", s.perceptual, None, 0, where)
    how = dict(num_steps=s.num_steps, lr=s.lr, lam_mse=s.lam_mse, seed=s.seed, optimise_noise=False)
    result = optim.solve(inversion.invert(G, x, loss, draw=same_draws(G, s.seed, len(x)), **how))
    made_by = {"generator": store.fingerprint(G.state_dict())}
    codes = [safetensors.torch.save({"ws": ws.cpu().contiguous()}, made_by) for ws in result.ws.split(1)]
    psnr = metrics.psnr(result.image, x)
    return [Measured({"psnr": float(p)}, {CODES: code}) for p, code in zip(psnr, codes, strict=True)]


def _read(path: Path, fingerprint: str) -> Tensor:
    """The code [1, num_ws, w_dim] in a file of `perform`; `LayoutMismatch` if another generator than this has it."""
    with safe_open(path, "pt") as f:
        if f.metadata()["generator"] != fingerprint:
            raise LayoutMismatch(
                f"{path} holds a code of another generator than the one of that name",
                expected="codes of this generator",
                do=f"delete {path.parent} and {path.parent}.json, and run again",
            )
        return f.get_tensor("ws")


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
