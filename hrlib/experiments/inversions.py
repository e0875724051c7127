"""One inversion as a run of a sweep: a picture and a loss by name, inverted and measured."""

from __future__ import annotations

import functools
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import devices, inversion, losses, metrics, optim, weights
from ..errors import number
from ..image import to_pil
from ..optim import Iterate
from ..worlds.pictures import listed, picture
from .sweep import Measured, Results, check_numbers, sweep

if TYPE_CHECKING:
    import pandas as pd

CACHED = 16  # networks and losses that a worker keeps
EDGE = "whole [1, inf)"  # of a picture or of the input of a loss, in pixels
Look = Callable[["Settings", Tensor, Tensor], tuple[dict[str, float | None], dict[str, Any]]]
RANGES = {name: inversion.RANGES[name] for name in ("num_steps", "lr", "lam_mse", "noise_regularisation", "seed")} | {
    "size": EDGE
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One inversion.

    image: a picture's name. size: its edge in pixels.
    loss: for `losses.named`, taps included. input: the edge in pixels to which the loss resizes its input; `size`
    leaves the picture as it is. perceptual: weights of the perceptual loss, "shipped", "imagenet" or a file.
    discriminator: weights of a "discriminator" loss.
    generator: catalogue name or file. noise: optimise noise maps and w+, optim(w, n), or w+ alone, optim(w).
    num_steps, lr, eps_initial, lam_mse, noise_regularisation, normalise_noise, noise_start, space: as in
    `inversion.invert`. seed: of the inversion, and of a random network.
    columns: measures out of `metrics.METRICS`. lossy: leave the picture as a WebP file of high quality instead of PNG.
    device: "auto" takes the CUDA device of the worker when it has one.

    Raises:
        InvalidValue: a number out of range.
    """

    image: str
    loss: str
    input: int
    noise: bool
    seed: int
    generator: str
    perceptual: str
    discriminator: str
    size: int
    num_steps: int
    lr: float
    eps_initial: float
    lam_mse: float
    noise_regularisation: float
    normalise_noise: bool
    noise_start: float
    space: str
    columns: Sequence[str]
    lossy: bool
    device: str

    def __post_init__(self) -> None:
        check_numbers(self, RANGES | {"input": EDGE})


def grid(
    *,
    images: Sequence[str],
    losses: Sequence[str],
    inputs: Sequence[int] = (),
    noise: Sequence[bool] = (True,),
    seeds: Sequence[int] = (0,),
    generator: str,
    perceptual: str,
    size: int,
    num_steps: int,
    lr: float,
    columns: Sequence[str],
    eps_initial: float = 0.05,
    lam_mse: float = 0.0,
    noise_regularisation: float = 0.0,
    normalise_noise: bool = True,
    noise_start: float = 1.0,
    space: str = "w+",
    discriminator: str = "",
    lossy: bool = False,
    device: str = "auto",
) -> list[Settings]:
    """Every combination of pictures, losses, inputs, noise and seeds, as runs for `perform`; all names are checked.

    Args:
        images: names for `lab.listed`: pictures, ranges and folders.
        losses: names for `losses.named`, taps included ("vgg_conv:features_21", "discriminator:b64").
        inputs: edges in pixels to which the loss resizes its input; by default `size`, the picture as it is.
        noise: True optimises noise maps with w+, optim(w, n); False only w+, optim(w).
        seeds: of the inversion, and of the random VGG.
        generator, perceptual, size, num_steps, lr, columns, eps_initial, lam_mse, noise_regularisation,
            normalise_noise, noise_start, space, discriminator, lossy, device: as in `Settings`.

    Raises:
        UnknownName, InvalidValue: a loss, tap, column, picture or network that does not exist, or a number out of
            range; before anything is computed.
        MissingWeights: a network that is not on this machine.
    """
    metrics.check_columns(columns)
    images = listed(list(images))
    size, *inputs = (number("size", edge, EDGE) for edge in (size, *inputs))
    inputs = inputs or [size]
    runs = [
        Settings(
            image=image,
            loss=loss,
            input=edge,
            noise=n,
            seed=seed,
            generator=generator,
            perceptual=perceptual,
            discriminator=discriminator,
            size=size,
            num_steps=num_steps,
            lr=lr,
            eps_initial=eps_initial,
            lam_mse=lam_mse,
            noise_regularisation=noise_regularisation,
            normalise_noise=normalise_noise,
            noise_start=noise_start,
            space=space,
            columns=list(columns),
            lossy=lossy,
            device=device,
        )
        for loss, edge, n, image, seed in itertools.product(losses, inputs, noise, images, seeds)
    ]
    for name in images:
        _check(name, size)
    generator_of(generator, "cpu")
    for loss, edge in itertools.product(losses, inputs):
        loss_of(loss, _source(loss, perceptual, discriminator), _resize(edge, size), seeds[0], "cpu")
    return runs


def perform(s: Settings) -> Measured:
    """Invert one picture and measure the reconstruction.

    Returns:
        {column: value}, "psnr_gain_of_last_50" (dB; None for a run of fewer than 51 steps), which says whether the run
        has converged, and two files: the reconstruction as image.png (or image.webp; it is measured before it is
        rounded), and run.json with the settings of `inversion.Result`, the curve of PSNR and the peak memory.
    """
    return together([s])[0]


def together(runs: Sequence[Settings], look: Look | None = None) -> list[Measured]:
    """`perform` of several runs that differ in their picture alone, as one batch.

    Eq. (1) is a sum over pictures, and each has the noise maps and the eps that it has alone, so a run ends as it would
    alone, but for rounding and for the step that is kept: it is the best step of the batch.

    look: what else to measure: (run, reconstruction [1, 3, H, W], target) -> further columns, and facts for run.json.
    """
    s = runs[0]
    x = torch.cat([picture(run.image, s.size) for run in runs]).to(devices.choose(s.device))
    curve: dict[int, list[float]] = {}

    def watch(iterates: Iterator[Iterate]) -> Iterator[Iterate]:
        for it in iterates:
            if (s.num_steps - it.step - 1) % 10 == 0:
                curve[it.step + 1] = [round(float(v), 3) for v in metrics.psnr(it.image, x)]
            yield it

    result = optim.solve(_inversion(s, x), watch=watch)
    shared = {"config": result.config, "peak_bytes": result.peak_bytes, "best_step": result.best_step}
    found = []
    for i, image in enumerate(result.image.split(1)):
        values: dict[str, float | None] = {**measured(image, x[i : i + 1], s.columns)}
        before = curve.get(s.num_steps - 50)
        values["psnr_gain_of_last_50"] = None if before is None else curve[s.num_steps][i] - before[i]
        facts = shared | {"batch": len(runs), "psnr": {step: each[i] for step, each in curve.items()}}
        more, also = look(runs[i], image, x[i : i + 1]) if look else ({}, {})
        values, facts = values | more, facts | also
        name, data = ("image.webp", webp(image)) if s.lossy else ("image.png", png(image))
        found.append(Measured(values, {name: data, "run.json": json.dumps(facts, indent=1).encode()}))
    return found


@dataclass(frozen=True)
class Inverted:
    """Pictures inverted in several ways; made by `inverted`.

    swept: a row a run. rows: (way, image, seed) -> row.
    """

    swept: Results
    rows: Mapping[tuple[str, str, int], int]

    def values(self, column: str, seed: int = 0) -> pd.DataFrame:
        """A measure as a table: a row an image, a column a way; NaN where a run failed or was not asked for."""
        import pandas as pd

        rows = {key: i for key, i in self.rows.items() if key[2] == seed}
        series = pd.to_numeric(self.swept.table[column]) if column in self.swept.table else None
        images, ways = (list(dict.fromkeys(key[k] for key in rows)) for k in (1, 0))
        found = pd.DataFrame(np.nan, index=images, columns=ways)
        for (way, image, _), i in rows.items():
            found.loc[image, way] = np.nan if series is None else series[i]
        return found

    def picture(self, way: str, image: str, seed: int = 0) -> Tensor:
        """The reconstruction [1, 3, H, W] in [-1, 1], of 8 bits."""
        return self.swept.image(self.rows[way, image, seed])

    @property
    def performed(self) -> str:
        """In words: how many runs are recorded, and how they were made; how many were performed here."""
        made, here = self.swept.made(), sum(not note for note in self.swept.recorded)
        return "; ".join(filter(None, [made, f"{here} performed on this machine" if here else ""]))


def inverted(
    ways: Mapping[str, Sequence[Settings]],
    *,
    task: Callable[[Settings], Measured] = perform,
    together: Callable[[Sequence[Settings]], Sequence[Measured]] = together,
    name: str,
    keep: str = "",
    record: bool = False,
    workers: int = 0,
    batch: int = 4,
) -> Inverted:
    """Perform the runs of `grid` that belong to each way; recorded ones are read. Prints the runs that failed.

    Args:
        ways: what a group of runs is called -> the runs.
        task, together: what performs a run, and several in a batch.
        name, keep, record, workers, batch: as in `sweep`.
    """
    runs = [run for group in ways.values() for run in group]
    keys = [(way, run.image, run.seed) for way, group in ways.items() for run in group]
    swept = sweep(
        task,
        runs,
        name=name,
        keep=keep,
        record=record,
        workers=workers,
        together=together,
        batch=batch,
        label="inversions",
    )
    for i in swept.table.index[swept.table["error"] != ""]:
        print(f"failed: {keys[i]}: {swept.table['error'][i]}")
    return Inverted(swept, {key: i for i, key in enumerate(keys)})


def measured(recon: Tensor, target: Tensor, columns: Sequence[str]) -> dict[str, float]:
    """{column: value} of one reconstruction [1, 3, H, W], by the measures of `metrics.METRICS`."""
    return {column: float(metrics.METRICS[column][1](recon, target)[0]) for column in columns}


def webp(x: Tensor) -> bytes:
    """A picture [1, 3, H, W] in [-1, 1] as the bytes of a WebP file of quality 90."""
    return _file(x, format="WebP", quality=90, method=6)


def png(x: Tensor) -> bytes:
    """A picture [1, 3, H, W] in [-1, 1] as the bytes of a PNG file."""
    return _file(x, format="PNG")


def _file(x: Tensor, **how: str | int) -> bytes:
    buffer = io.BytesIO()
    to_pil(x.clamp(-1, 1)).save(buffer, **how)
    return buffer.getvalue()


def estimate(s: Settings) -> float:
    """Seconds that `perform` will take here, from the second and third step of the run; loading is not counted."""
    steps = _inversion(s, picture(s.image, s.size).to(devices.choose(s.device)))
    next(steps)
    begun, count = time.perf_counter(), 0
    for _ in itertools.islice(steps, 2):
        count += 1
    steps.close()
    return s.num_steps * (time.perf_counter() - begun) / max(count, 1)


def _inversion(s: Settings, x: Tensor) -> optim.Run[inversion.Result]:
    where = str(x.device)
    source = _source(s.loss, s.perceptual, s.discriminator)
    G = generator_of(s.generator, where)
    options = {}
    if len(x) > 1:  # every picture has the draws that it has alone
        size = None if s.size == G.resolution else (s.size, s.size)
        if s.noise:
            options["noise_init"] = {k: s.noise_start * m for k, m in G.noise_maps(size, seed=s.seed + 1).items()}
        options["draw"] = same_draws(G, s.seed, len(x))
    return inversion.invert(
        G,
        x,
        loss_of(s.loss, source, _resize(s.input, s.size), s.seed, where),
        optimise_noise=s.noise,
        num_steps=s.num_steps,
        lr=s.lr,
        eps_initial=s.eps_initial,
        lam_mse=s.lam_mse,
        noise_regularisation=s.noise_regularisation,
        normalise_noise=s.normalise_noise,
        noise_start=s.noise_start,
        space=s.space,
        seed=s.seed,
        **options,
    )


@functools.lru_cache(1024)
def _check(name: str, size: int) -> None:
    """Raise what `picture` raises, at the first call: a portrait takes a fifth of a second to draw."""
    picture(name, size)


def same_draws(G: torch.nn.Module, seed: int, n: int) -> Callable[[int], Tensor]:
    """`draw` for `inversion.invert` of n pictures at once: each has the eps [n, num_ws, w_dim] that it has alone."""
    shape = (1, G.num_ws, G.w_dim)
    return lambda step: optim.unit_draw(shape, seed=seed, step=step).expand(n, -1, -1)


def _source(loss: str, perceptual: str, discriminator: str) -> str:
    return discriminator if loss.partition(":")[0] == "discriminator" else perceptual


def _resize(edge: int, size: int) -> int | None:
    return None if edge == size else edge


@weights.cached(CACHED)
def generator_of(name: str, device: str) -> torch.nn.Module:
    """A generator by catalogue name or file, kept by the process that uses it."""
    return weights.load_generator(name, device=device)


@weights.cached(CACHED)
def loss_of(name: str, source: str, resize: int | None, seed: int, device: str) -> losses.Loss:
    """A loss of `losses.named` with weights `source`, kept by the process that uses it."""
    return losses.named(name, weights=source, resize=resize, seed=seed).to(device)
