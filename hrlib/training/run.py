"""A training run in its folder: what `gan.train` yields becomes a log, checkpoints, snapshots and a live sample sheet.

The folder belongs to one training (`checkpoints.training`). It holds recipe.json, checkpoint.safetensors (everything
that resuming needs, one file, replaced atomically, its step inside, so that weights and step can never disagree),
log.csv, samples.png (rewritten), and snapshots/ (kept).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torchvision.utils import make_grid

from .. import fid, image, weights
from ..store import write_bytes, write_json
from . import checkpoints, gan
from .checkpoints import FILE as CHECKPOINT
from .checkpoints import LOG, RECIPE, SHEET, SNAPSHOTS
from .data import RenderedSet
from .measure import CHUNK, drawn, pooled_features
from .recipe import MOST, Checked, Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

COLUMNS = (
    *("step", "images", "seconds", "lesson", "regression", "adversarial", "anchor", "D_fake", "D_real", "accuracy"),
    *("sign", "augment_p", "R1", "frechet"),
)


@dataclass(frozen=True)
class Every(Checked):
    """How often, in images; 0 for never."""

    checkpoint: int = 4_000  # with a row of the log and a new sample sheet
    snapshot: int = 0  # generator and discriminator, kept
    frechet: int = 0  # distance of `frechet_n` samples from as many training pictures, in thin VGG16 features
    frechet_n: int = 1_000

    INTERVALS: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("checkpoint", "snapshot", "frechet"), "whole [0, inf)"),
        "frechet_n": f"whole [2, {MOST}]",
    }

    def due(self, before: int, after: int) -> set[str]:
        """What falls due between two counts of images."""
        every = {"checkpoint": self.checkpoint, "snapshot": self.snapshot, "frechet": self.frechet}
        return {what for what, n in every.items() if n and after // n > before // n}


EVERY = Every()


def run(
    recipe: Recipe,
    data: RenderedSet,
    folder: Path,
    *,
    every: Every = EVERY,
    device: str | torch.device = "cpu",
    accelerator: Accelerator | None = None,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> gan.State:
    """Train to the end of the recipe, going on from the folder's checkpoint if there is one; return the final state.

    In several processes, the first alone claims the folder, writes and tells; all read the same checkpoint.

    Args:
        recipe: a checkpoint of another one is refused, unless only `total_images` differ: runs can be prolonged.
        data: what is trained on; a run never goes on with other pictures.
        folder: see `checkpoints.training`.
        every: how often what is written.
        device: of this process.
        accelerator: this process's place among several.
        force: take the folder from another training, or from whatever is in it.
        tell: is given a line for each row of the log.

    Raises:
        InvalidValue: the run is longer than `total_images` already.
        StoreError: the folder belongs to another training, or to something else, or cannot be written.
        NonFiniteLoss: a loss is no longer finite; the checkpoint before it is kept.
    """
    folder = Path(folder)
    main = accelerator is None or accelerator.is_main_process
    gan.check(recipe, data, accelerator.num_processes if accelerator else 1)
    state = gan.start(recipe, device=device)
    begun_with = dict(data=data.what, start=state.origin, force=force)
    with checkpoints.training(folder, recipe.network, recipe.summary(), **begun_with) if main else nullcontext():
        if accelerator:
            accelerator.wait_for_everyone()  # the folder is ours, and emptied if that was forced
        spent = resume(folder, recipe, state) if (folder / CHECKPOINT).exists() else 0.0
        if main:
            tell(f"{recipe.network}: {state.origin}; from step {state.step}")
            write_json(folder / RECIPE, recipe.summary())
            _forget_after(folder / LOG, state.step)
        if accelerator:
            accelerator.wait_for_everyone()  # all have read the checkpoint
        _train(recipe, data, state, folder, every, spent, accelerator, tell if main else None)
    return state


def _train(
    recipe: Recipe,
    data: RenderedSet,
    state: gan.State,
    folder: Path,
    every: Every,
    spent: float,
    accelerator: Accelerator | None,
    tell: Callable[[str], None] | None,
) -> None:
    """The steps that are left, with what is due after them; nothing is written where `tell` is None."""
    start, sums = time.perf_counter(), {}
    for row in gan.train(recipe, data, state, accelerator):
        if tell is None:
            continue
        for k, v in row.items():
            sums.setdefault(k, []).append(v)
        due = every.due(int(row["images"]) - recipe.batch, int(row["images"]))
        if not due and row["images"] < recipe.total_images:
            continue
        means = {k: sum(v) / len(v) for k, v in sums.items()} | {"step": row["step"], "images": row["images"]}
        sums.clear()
        if not all(math.isfinite(v) for v in means.values()):
            raise checkpoints.diverged(f"loss terms {means}", folder / CHECKPOINT)
        if "frechet" in due:
            means["frechet"] = frechet(state, data, every.frechet_n)
        if "snapshot" in due:
            snapshot(state, folder / SNAPSHOTS, int(row["images"]))
        image.write(sheet(state, data), folder / SHEET)
        means["seconds"] = round(spent + time.perf_counter() - start, 1)
        _append(folder / LOG, means)
        save(folder, recipe, state, means["seconds"])
        tell("  ".join(f"{k} {means[k]:.4g}" for k in COLUMNS if k in means))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save(folder: Path, recipe: Recipe, state: gan.State, seconds: float) -> None:
    """Replace the folder's checkpoint: all tensors, and step, seconds and recipe as metadata of the same file."""
    facts = {"step": str(state.step), "seconds": str(seconds), "recipe": json.dumps(recipe.summary())}
    facts["hardware"] = checkpoints.hardware(state.G.w_avg.device)
    checkpoints.save(folder / CHECKPOINT, state.tensors(), facts)


def load(folder: Path) -> tuple[Recipe, dict[str, Tensor], int, float]:
    """(recipe, tensors, step, seconds) of the folder's checkpoint."""
    tensors, facts = checkpoints.load(Path(folder) / CHECKPOINT, "step", "seconds", "recipe")
    return Recipe.read(json.loads(facts["recipe"])), tensors, int(facts["step"]), float(facts["seconds"])


def resume(folder: Path, recipe: Recipe, state: gan.State) -> float:
    """Put the folder's checkpoint, which is of this recipe, into `state`; return the seconds spent before it."""
    _, tensors, step, seconds = load(folder)
    checkpoints.check_length(folder, step, recipe.summary())
    state.load(tensors, step)
    return seconds


def finished(folder: Path) -> gan.State:
    """The state that the folder's checkpoint holds, for shipping or looking at."""
    recipe, tensors, step, _ = load(folder)
    state = gan.start(Recipe(**recipe.summary() | {"source": None, "backbone_from": None}))
    state.load(tensors, step)
    return state


def snapshot(state: gan.State, folder: Path, images: int) -> None:
    """Write G_ema and D as a pair of network files named by the images seen, ready to be a `source`."""
    card = f"snapshot of a training after {images} images; began from {state.origin}"
    weights.save_network(state.G_ema, folder / f"{images:09d}.safetensors", card=card, force=True)
    weights.save_network(state.D, folder / f"{images:09d}_discriminator.safetensors", card=card, force=True)


# --- what one looks at ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def sheet(state: gan.State, data: RenderedSet) -> Tensor:
    """[1, 3, H, W]: a row of training pictures over two rows of samples, of the same latents if they are known."""
    index = torch.arange(24) % len(data)
    real, z = data.batch(index)
    if z is None:
        z = torch.randn(24, state.G_ema.z_dim, generator=torch.Generator().manual_seed(0))
    G = state.G_ema
    fake = G.synthesis(G.mapping(z.to(G.w_avg.device)), noise=G.noise_maps()).cpu()
    return make_grid(torch.cat([real[:12], fake]), nrow=12, padding=2)[None].clamp(-1, 1)


def frechet(state: gan.State, data: RenderedSet, n: int) -> float:
    """Frechet distance of n samples of G_ema from the first n pictures of the set (thin VGG16 features)."""
    count, device = min(n, len(data)), state.G_ema.w_avg.device
    data.wait_for(count)
    chunks = (data.batch(index)[0].to(device) for index in torch.arange(count).split(CHUNK))
    real, fake = ([pooled_features(x).cpu() for x in part] for part in (chunks, drawn(state.G_ema, n, seed=0)))
    return fid.frechet_distance(torch.cat(real), torch.cat(fake))


def _append(log: Path, row: dict[str, float]) -> None:
    """Add a row. The file is small and is written anew: a killed run leaves no half of a row."""
    before = log.read_text() if log.exists() else ",".join(COLUMNS) + "\n"
    write_bytes(log, f"{before}{','.join(str(row.get(k, '')) for k in COLUMNS)}\n".encode())


def _forget_after(log: Path, step: int) -> None:
    """Drop the rows of steps that no checkpoint kept: they will come again."""
    if log.exists():
        write_bytes(log, "".join(f"{line}\n" for line in checkpoints.log_lines(log, step)).encode())
