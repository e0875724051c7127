"""Pictures of any size, inverted within a given memory: planned, resumable, and shown on a page that zooms.

`hrlab invert` is `reconstruct_into`. Its run has a folder of its own:

    state.safetensors         the checkpoint, until the run ends
    zoom/index.html           the picture and the reconstruction so far, to zoom into; updated with each checkpoint
    reconstruction.png        (or .jpg, .tif) the result, and
    codes.safetensors         its ws and noise maps
    facts.json, regions.csv   how it was made, and what was measured
    .hrlab.json               which run the folder belongs to, and whether it is finished
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import image, inversion, losses, metrics, optim, store, weights
from ..errors import StoreError, number
from ..lab import deepzoom
from ..lab.progress_bar import progress
from ..tiling import budget, tiles
from ..worlds.pictures import picture
from .sweep import check_numbers

STATE, CODES, FACTS, REGIONS = "state.safetensors", "codes.safetensors", "facts.json", "regions.csv"
FILES = (STATE, CODES, FACTS, REGIONS, *(f"reconstruction{suffix}" for suffix in image.SUFFIXES))  # of a run


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a large picture is inverted; other settings are the defaults of `inversion.invert`.

    generator: a Style-INR-GAN, by catalogue name or file. perceptual: VGG16's weights: "shipped", "imagenet", a file.
    mse: weight of the squared pixel error, *summed* over pixels and channels: Eq. (3) is a sum over positions, so the
    weight of a *mean* would count for less the larger the picture is.
    num_steps, lr, normalise_noise, noise_start, beta1, beta2, seed: as in `inversion.invert`. The published projector
    takes 1,000 steps at lr 0.1. The defaults here are for few steps: a larger lr, noise maps that start at zero and
    keep the size they reach, and an Adam that forgets the first, large gradients sooner.

    Raises:
        InvalidValue: a number out of range.
    """

    generator: str = "scenes_inr128"
    perceptual: str = "shipped"
    num_steps: int = 50
    lr: float = 1.0
    mse: float = 0.001
    normalise_noise: bool = False
    noise_start: float = 0.0
    beta1: float = 0.8
    beta2: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        intervals = {name: inversion.RANGES[name] for name in self.options() if name in inversion.RANGES}
        check_numbers(self, intervals | {"mse": "[0, inf)"})

    def loss(self, size: tuple[int, int]) -> losses.Loss:
        """d of Eq. (3) and the pixel error, for a picture (H, W)."""
        d = losses.named("vgg_conv", weights=self.perceptual)
        return d + losses.MSE(self.mse * 3 * size[0] * size[1]) if self.mse else d

    def options(self) -> dict[str, Any]:
        """The arguments of `inversion.invert` among these settings."""
        return {k: v for k, v in asdict(self).items() if k not in ("generator", "perceptual", "mse")}


def plan(
    settings: Settings,
    size: tuple[int, int],
    *,
    memory: str | float | None = None,
    keep: str | None = None,
    moments: str | None = None,
    tile: int | tuple[int, int] | None = None,
) -> budget.Plan:
    """`budget.plan` for the generator and the loss of the settings; the other arguments are the same."""
    G, loss = weights.load_generator(settings.generator), settings.loss(size)
    return budget.plan(G, loss, size, memory=memory, keep=keep, moments=moments, tile=tile)


def reconstruct(
    x: Tensor,
    settings: Settings,
    planned: budget.Plan,
    *,
    checkpoint: Path | None = None,
    every: int = 10,
    watch: Any = iter,
) -> inversion.Result:
    """Invert x [1, 3, H, W] in [-1, 1] as planned; `checkpoint`, `every` and `watch` are those of `optim.solve`."""
    G = weights.load_generator(settings.generator, device=x.device)
    how = planned.apply(G, settings.loss(planned.size).to(x.device)) | settings.options()
    return optim.solve(inversion.invert(x=x, **how), checkpoint=checkpoint, every=every, watch=watch)


def reconstruct_into(
    x: Tensor,
    folder: str | Path,
    settings: Settings,
    *,
    title: str = "panorama",
    memory: str | float | None = None,
    keep: str | None = None,
    moments: str | None = None,
    tile: int | tuple[int, int] | None = None,
    every: int = 10,
    suffix: str = ".png",
    source: str | Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Invert x [1, 3, H, W] in [-1, 1] in a folder; a run that was interrupted there goes on where it stopped.

    Args:
        folder: a new or empty one, or that of an interrupted run with the same settings, networks and picture.
        title: of the zooming page.
        memory, keep, moments, tile: as in `budget.plan`.
        every: steps between two checkpoints, each of which also updates the page.
        suffix: format of the reconstruction: .png, .jpg, .tif or another of `image.SUFFIXES`.
        source: the file that x was read from; it is never replaced.
        force: take the folder whatever it holds, and start afresh, replacing only files with the names of a run's.

    Returns:
        The facts, as in facts.json.

    Raises:
        BudgetError: the run does not fit into the memory. StoreError: the folder cannot be written, holds other files
        or another or a finished run, or another process works in it; or the source lies in it under a name of the
        run's. ImageError: a suffix that cannot hold the picture. InvalidValue: `every`. All before the first step.
    """
    folder, size, suffix = Path(folder), tuple(x.shape[2:]), suffix.lower()
    every = number("every", every, "whole [1, inf)")
    image.writable(f"reconstruction{suffix}", size)
    planned = plan(settings, size, memory=memory, keep=keep, moments=moments, tile=tile)
    G = weights.load_generator(settings.generator)
    identity = settings.options() | {
        "mse": settings.mse,
        "size": size,
        "picture": store.fingerprint({"x": x}),
        "generator": store.fingerprint(G.state_dict()),
        "loss": planned.apply(G, settings.loss(size))["loss"].describe(),
    }
    if source is not None:
        spare(Path(source), folder, (*FILES, "zoom"))
    page = lambda: deepzoom.prepare(folder / "zoom", force=force)
    with store.claimed(folder, "run of `hrlab invert`", identity, files=FILES, force=force, check=page) as resumed:
        if resumed:
            store.sweep_temps(folder)
        print(planned, flush=True)
        return _inverted(x, folder, settings, planned, title=title, every=every, suffix=suffix, force=force)


def spare(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Refuse a source picture that lies in the run's folder where a result will be written, forced or not.

    Upper and lower case count as the same: not every disk distinguishes reconstruction.PNG and reconstruction.png.

    names: of files and folders that the run writes.
    """
    written = {name.lower() for name in names}
    named = [p for p in folder.glob("*") if p.name.lower() in written and p.exists()]
    if source.exists() and any(p.samefile(source) or source.resolve().is_relative_to(p.resolve()) for p in named):
        raise StoreError(
            f"the picture {source} lies in {folder} under a name that the run's own files have",
            expected="a picture that does not lie there under the name of a result",
            do="choose another folder, or move the picture",
        )


def _inverted(
    x: Tensor,
    folder: Path,
    settings: Settings,
    planned: budget.Plan,
    *,
    title: str,
    every: int,
    suffix: str,
    force: bool,
) -> dict[str, Any]:
    """`reconstruct_into` a folder that is claimed."""
    show = lambda pictures, caption: deepzoom.write(
        pictures, folder / "zoom", title=title, caption=caption, force=force
    )

    def watch(iterates: Iterator[optim.Iterate]) -> Iterator[optim.Iterate]:
        said = lambda it: f"loss {it.total:.4g}"
        for it in progress(iterates, total=settings.num_steps, label="inversion", status=said):
            yield it
            if (it.step + 1) % every == 0:
                shown = {"original": x, f"after step {it.step + 1}": it.image}
                show(shown, f"step {it.step + 1}, {said(it)}")

    result = reconstruct(x, settings, planned, checkpoint=folder / STATE, every=every, watch=watch)
    image.write(result.image, folder / f"reconstruction{suffix}")
    codes = {"ws": result.ws} | {inversion.NOISE + k: v for k, v in result.noise.items()}
    weights.save_state(codes, folder / CODES, force=True)
    regions = by_region(result.image, x)
    store.write_bytes(folder / REGIONS, regions.to_csv(index=False, float_format="%.5g").encode())
    steps = [row["seconds"] for row in result.history]
    facts = {
        "recipe": asdict(settings),
        "size": planned.size,
        "plan": str(planned),
        "predicted_peak": planned.peak,
        "peak": result.peak_bytes,
        "threads": torch.get_num_threads(),
        "seconds_per_step": float(np.median(steps)),
        "history": [{k: row[k] for k in ("step", "total", "seconds")} for row in result.history],
        "whole": whole(regions),
        "torch": torch.__version__,
    }
    store.write_json(folder / FACTS, facts)
    caption = ", ".join(f"{name} {value:.3g}" for name, value in facts["whole"].items())
    show({"original": x, "reconstruction": result.image}, caption)
    return facts


def reconstruct_apart(
    name: str, size: tuple[int, int], folder: str | Path, settings: Settings, *, memory: str | float | None = None
) -> dict[str, Any]:
    """`reconstruct_into` for a picture by name, in a process of its own: the fact "peak" is then this picture's alone.

    name, size: for `worlds.pictures.picture`.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_apart, name, size, folder, settings, memory).result()


def _apart(
    name: str, size: tuple[int, int], folder: str | Path, settings: Settings, memory: str | float | None
) -> dict[str, Any]:
    return reconstruct_into(picture(name, size), folder, settings, memory=memory)


MEASURES = {"psnr": "psnr", "lpips": "lpips_thin", "colour_shift": "colour_shift"}


def by_region(recon: Tensor, target: Tensor, edge: int = 256, columns: dict[str, str] | None = None) -> pd.DataFrame:
    """Measures of each square of about `edge` pixels, a row each: top, left, height, width, then the columns.

    columns: name -> measure of `metrics.METRICS`; by default PSNR, LPIPS and colour shift. The picture is cut into
    parts of nearly equal size, because LPIPS cannot take a sliver of less than 32 pixels.
    """
    columns, edge = columns or MEASURES, number("edge", edge, "whole [1, inf)")
    metrics.check_columns(list(columns.values()))
    rows = []
    for window in tiles(tuple(recon.shape[2:]), _even(tuple(recon.shape[2:]), edge)):
        a, b = recon[:, :, *window], target[:, :, *window]
        place = {"top": window[0].start, "left": window[1].start, "height": a.shape[2], "width": a.shape[3]}
        rows.append(place | {c: float(metrics.METRICS[m][1](a, b)[0]) for c, m in columns.items()})
    return pd.DataFrame(rows)


def _even(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """Sides near `edge` that cut a picture (H, W) into parts of nearly equal size."""
    return tuple(-(-n // max(1, round(n / edge))) for n in size)


def whole(regions: pd.DataFrame) -> dict[str, float]:
    """Measures of the whole picture from those of its regions, weighted by area; PSNR from the mean squared error."""
    area = regions["height"] * regions["width"]
    found = {}
    for name in regions.columns[4:]:
        if name == "psnr":
            found[name] = float(-10 * np.log10(np.average(10 ** (-regions[name] / 10), weights=area)))
        else:
            found[name] = float(np.average(regions[name], weights=area))
    return found
