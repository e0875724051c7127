"""Pictures of any size, inverted within a given memory: planned, resumable, followed on a page that zooms.

What `hrlab invert` and notebook 09 do. A run lives in a folder:

    state.safetensors     the checkpoint, while it goes on
    zoom/index.html       the picture and the reconstruction so far, to zoom into; written anew with each checkpoint
    reconstruction.png    (or .jpg, .tif), when it has ended, with
    codes.safetensors     ws and noise maps, and
    facts.json, regions.csv   how it was made, and what was measured
    .hrlab.json               whose run it is, and whether it is finished
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from .. import image, inversion, losses, metrics, optim, store, weights
from ..errors import StoreError, number
from ..lab import deepzoom
from ..lab.progress_bar import progress
from ..tiling import budget, tiles
from ..worlds.pictures import picture

STATE, CODES, FACTS, REGIONS = "state.safetensors", "codes.safetensors", "facts.json", "regions.csv"
FILES = (STATE, CODES, FACTS, REGIONS, *(f"reconstruction{suffix}" for suffix in image.SUFFIXES))  # of a run


@dataclass(frozen=True)
class Recipe:
    """How a large picture is inverted; the rest is as `inversion.invert` has it. `InvalidValue` for bad numbers.

    mse: weight of the squared pixel error, *summed* over pixels and channels: Eq. (3) is a sum over positions, and a
    lambda_mse on a mean would weigh less the larger the picture is. The rest is for few steps. The published projector
    takes a thousand of 0.1; fifty must stride (lr), may not be called back to unit size after each (normalise_noise),
    have no time to unlearn a draw (noise_start), nor for Adam to forget the first gradients at its usual pace (beta2).
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
        intervals = {name: inversion.RANGES[name] for name in self.settings() if name in inversion.RANGES}
        for name, interval in (intervals | {"mse": "[0, inf)"}).items():
            object.__setattr__(self, name, number(name, getattr(self, name), interval))

    def loss(self, size: tuple[int, int]) -> losses.Loss:
        """d of Eq. (3) and the pixel error, for a picture (H, W)."""
        d = losses.named("vgg_conv", weights=self.perceptual)
        return d + losses.MSE(self.mse * 3 * size[0] * size[1]) if self.mse else d

    def settings(self) -> dict[str, Any]:
        """For `inversion.invert`."""
        return {k: v for k, v in asdict(self).items() if k not in ("generator", "perceptual", "mse")}


def plan(recipe: Recipe, size: tuple[int, int], *, memory: str | float | None = None, **decided: Any) -> budget.Plan:
    """`budget.plan` for a recipe's generator and loss. decided: keep, moments, tile."""
    return budget.plan(weights.load_generator(recipe.generator), recipe.loss(size), size, memory=memory, **decided)


def solve(
    x: Tensor,
    recipe: Recipe,
    planned: budget.Plan,
    *,
    checkpoint: Path | None = None,
    every: int = 10,
    watch: Any = iter,
) -> inversion.Result:
    """Invert x [1, 3, H, W] in [-1, 1] as planned; `checkpoint`, `every` and `watch` as in `optim.solve`."""
    G = weights.load_generator(recipe.generator, device=x.device)
    how = planned.apply(G, recipe.loss(planned.size).to(x.device)) | recipe.settings()
    return optim.solve(inversion.invert(x=x, **how), checkpoint=checkpoint, every=every, watch=watch)


def invert(
    x: Tensor,
    folder: str | Path,
    recipe: Recipe,
    *,
    title: str = "panorama",
    memory: str | float | None = None,
    every: int = 10,
    suffix: str = ".png",
    source: str | Path | None = None,
    force: bool = False,
    **decided: Any,
) -> dict[str, Any]:
    """Invert x [1, 3, H, W] in [-1, 1] in a folder, going on where a run that was interrupted there stopped.

    Args:
        folder: a new or an empty one, or that of the interrupted run: the same recipe, networks and picture.
        title: of the zooming page.
        memory, decided: as in `plan`.
        every: steps between two checkpoints, at which the page is written anew, too.
        suffix: format of the reconstruction: .png, .jpg, .tif or another of `image.SUFFIXES`.
        source: the file that x was read from, which is never replaced.
        force: take the folder whatever is in it, and start afresh; files of a run's own names are then replaced.

    Returns:
        The facts, as in facts.json.

    Raises:
        BudgetError: it does not fit. StoreError: the folder cannot be written, holds anything else or another or a
        finished run, or another process works in it; or the source lies in it under a name of the run's.
        ImageError: a suffix that cannot hold the picture. InvalidValue: `every`; all before the first step.
    """
    folder, size, suffix = Path(folder), tuple(x.shape[2:]), suffix.lower()
    every = number("every", every, "whole [1, inf)")
    image.writable(f"reconstruction{suffix}", size)
    planned = plan(recipe, size, memory=memory, **decided)
    G = weights.load_generator(recipe.generator)
    identity = recipe.settings() | {
        "mse": recipe.mse,
        "size": size,
        "picture": store.fingerprint({"x": x}),
        "generator": store.fingerprint(G.state_dict()),
        "loss": planned.apply(G, recipe.loss(size))["loss"].describe(),
    }
    if source is not None:
        _spare(Path(source), folder)
    page = lambda: deepzoom.prepare(folder / "zoom", force=force)
    with store.claimed(folder, "run of `hrlab invert`", identity, files=FILES, force=force, check=page) as resumed:
        if resumed:
            store.sweep_temps(folder)
        print(planned, flush=True)
        how = dict(title=title, every=every, suffix=suffix, force=force)
        return _inverted(x, folder, recipe, planned, **how)


def _spare(source: Path, folder: Path) -> None:
    """Refuse a source picture that lies in the run's folder where a result will be, forced or not.

    In whatever case its name is written: not every disk tells reconstruction.PNG from reconstruction.png.
    """
    named = [p for p in folder.glob("*") if p.name.lower() in FILES and p.exists()]
    if any(p.samefile(source) for p in named) or source.resolve().is_relative_to((folder / "zoom").resolve()):
        raise StoreError(
            f"the picture {source} lies in {folder} under a name that the run's own files have",
            expected="a picture that the run does not replace",
            do="give another folder, or move the picture",
        )


def _inverted(
    x: Tensor, folder: Path, recipe: Recipe, planned: budget.Plan, *, title: str, every: int, suffix: str, force: bool
) -> dict[str, Any]:
    """`invert` in a folder that is claimed."""
    show = lambda pictures, caption: deepzoom.write(
        pictures, folder / "zoom", title=title, caption=caption, force=force
    )

    def watch(iterates: Iterator[optim.Iterate]) -> Iterator[optim.Iterate]:
        said = lambda it: f"loss {it.total:.4g}"
        for it in progress(iterates, total=recipe.num_steps, label="inversion", status=said):
            yield it
            if (it.step + 1) % every == 0:
                shown = {"original": x, f"after step {it.step + 1}": it.image}
                show(shown, f"step {it.step + 1}, {said(it)}")

    result = solve(x, recipe, planned, checkpoint=folder / STATE, every=every, watch=watch)
    image.write(result.image, folder / f"reconstruction{suffix}")
    with store.atomic(folder / CODES) as temp:
        save_file({"ws": result.ws} | {inversion.NOISE + k: v.contiguous() for k, v in result.noise.items()}, temp)
    regions = by_region(result.image, x)
    store.write_bytes(folder / REGIONS, regions.to_csv(index=False, float_format="%.5g").encode())
    steps = [row["seconds"] for row in result.history]
    facts = {
        "recipe": asdict(recipe),
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


def apart(name: str, size: tuple[int, int], folder: str | Path, recipe: Recipe, **how: Any) -> dict[str, Any]:
    """`invert` of `targets.picture(name, size)` in a process of its own, so that "peak" is of this picture alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_apart, name, size, folder, recipe, how).result()


def _apart(name: str, size: tuple[int, int], folder: Path, recipe: Recipe, how: dict[str, Any]) -> dict[str, Any]:
    return invert(picture(name, size), folder, recipe, **how)


MEASURES = {"psnr": "psnr", "lpips": "lpips_thin", "colour_shift": "colour_shift"}


def by_region(recon: Tensor, target: Tensor, edge: int = 256, columns: dict[str, str] | None = None) -> pd.DataFrame:
    """Measures of every square of `edge` pixels, a row each: top, left, height, width, then the columns.

    columns: name -> measure of `metrics.METRICS`; PSNR, LPIPS and colour shift unless told. Squares at the right and
    lower edge are smaller; slivers below 32 pixels, which LPIPS cannot take, are joined to their neighbours.
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
    """Sides near `edge` that cut a picture (H, W) into parts of nearly one size, so that no sliver is left."""
    return tuple(-(-n // max(1, round(n / edge))) for n in size)


def whole(regions: pd.DataFrame) -> dict[str, float]:
    """The measures of the whole picture from those of its regions: PSNR by the mean squared error, else the mean."""
    area = regions["height"] * regions["width"]
    found = {}
    for name in regions.columns[4:]:
        if name == "psnr":
            found[name] = float(-10 * np.log10(np.average(10 ** (-regions[name] / 10), weights=area)))
        else:
            found[name] = float(np.average(regions[name], weights=area))
    return found
