"""The one loop of every trainer: it runs a generator of steps in a folder, and resumes exactly where it was stopped.

The folder belongs to one training, identified by recipe, data and starting point, and holds

    checkpoint.safetensors    all that resuming needs (checkpoints.py), its step inside, replaced atomically
    log.csv                   means of the loss terms since the row before
    samples.png               what the networks draw now, if the trainer has a sheet
    recipe.json               the recipe, to read
    snapshots/                networks that a GAN keeps on the way

pandas reads and writes the log, whose columns grow as loss terms appear. No trainer framework (Lightning, Ignite): the
trainers are plain generators, and a resumed run has to end in the same bits, which their loaders and callbacks do not
promise.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from .. import image
from ..errors import InvalidValue, NonFiniteLoss, StoreError, number
from ..store import claimed, sweep_temps, write_bytes, write_json
from .checkpoints import State, gather, load, restore, save
from .recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECKPOINT, LOG, SHEET = "checkpoint.safetensors", "log.csv", "samples.png"
RECIPE, SNAPSHOTS = "recipe.json", "snapshots"
FILES = (CHECKPOINT, LOG, SHEET, RECIPE, f"{SNAPSHOTS}/*.safetensors")
Row = dict[str, float]  # of the log


def follow(
    folder: str | Path,
    what: str,
    recipe: Recipe,
    state: State,
    steps: Iterable[Mapping[str, float]],
    *,
    data: Mapping[str, Any],
    start: str | None = None,
    every: int,
    sheet: Callable[[], Tensor] | None = None,
    hooks: Sequence[tuple[int, Callable[[int], Row]]] = (),
    prepare: Callable[[], None] | None = None,
    accelerator: Accelerator | None = None,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> Row:
    """Run a training to its end, from where the folder's checkpoint stops; return the last row of the log.

    With several processes, only the first claims the folder, writes and tells; all read the same checkpoint.

    Args:
        folder: new, empty, or holding this same training.
        what: the network, in words.
        recipe: must be the same when resuming, except that `total_images` may grow.
        state: is advanced by `steps`.
        steps: yields {"step", "images", loss terms}; starts only after the checkpoint is restored.
        data: JSON-able; the training data, such as `PictureSet.what`. Must be the same when resuming.
        start: where the networks began, with a hash, if the recipe does not say it all. Must be the same when resuming.
        every: images between two checkpoints; 0 for one at the end only. The last step always ends with one.
        sheet: draws samples [1, 3, H, W] in [-1, 1].
        hooks: (every, hook): the hook is called with the images seen, every so many images (0: never); the row of the
            log gets the columns it returns.
        prepare: called once the folder is claimed, before anything else.
        accelerator: this process's place among several.
        force: take the folder whatever is in it. Files with the names above are removed, unless they are this
            training's.
        tell: called with a line for each row of the log.

    Raises:
        InvalidValue: the training is already longer than the recipe's `total_images`.
        StoreError: the folder holds something else, such as the same training on other data, or cannot be written.
        NonFiniteLoss: a loss is no longer finite; the checkpoint before it is kept.
    """
    folder, every = Path(folder), number("every", every, "whole [0, inf)")
    main = accelerator is None or accelerator.is_main_process
    wait = accelerator.wait_for_everyone if accelerator else lambda: None
    with _claim(folder, what, recipe, data=data, start=start, force=force) if main else nullcontext():
        if main and prepare:
            prepare()
        wait()  # the folder is ours, and emptied if that was forced
        last = _resume(folder, recipe, state)
        wait()  # every process has read the checkpoint
        if not main:
            for _ in steps:
                pass
            return last
        tell(f"{what}: {start or 'random weights'}; from step {state.step}")
        write_json(folder / RECIPE, recipe.summary())
        rows, since = _read_log(folder / LOG, state.step), []
        begun = time.perf_counter() - last.get("seconds", 0.0)

        def settle(measured: Row) -> Row:
            row = _means(since, round(time.perf_counter() - begun, 1)) | measured
            rows.append(row)
            since.clear()
            if sheet:
                image.write(sheet(), folder / SHEET)
            write_bytes(folder / LOG, pd.DataFrame(rows).to_csv(index=False, float_format="%.5g").encode())
            facts = {"step": str(state.step), "recipe": json.dumps(recipe.summary()), "row": json.dumps(row)}
            save(folder / CHECKPOINT, gather(state.parts), facts | {"hardware": _hardware(state)})
            tell("  ".join(f"{k} {v if isinstance(v, int) else format(v, '.4g')}" for k, v in row.items()))
            return row

        for row in steps:
            if bad := {k: v for k, v in row.items() if not math.isfinite(v)}:
                raise diverged(f"{bad} at step {row['step']}", folder / CHECKPOINT)
            since.append(row)
            seen = row["images"]
            due = lambda n, seen=seen: n and seen // n > (seen - recipe.batch) // n
            called = [hook for n, hook in hooks if due(n)]
            if called or due(every):
                last = settle({k: v for hook in called for k, v in hook(seen).items()})
        return settle({}) if since else last


@contextmanager
def _claim(
    folder: Path, what: str, recipe: Recipe, *, data: Mapping[str, Any], start: str | None, force: bool
) -> Iterator[None]:
    identity = {k: v for k, v in recipe.summary().items() if k != "total_images"} | {"start": start}
    identity |= {f"data.{k}": v for k, v in data.items()}  # one by one, so that an error names what differs
    with claimed(folder, f"training of {what}", identity, files=FILES, force=force, again=True):
        sweep_temps(folder)
        yield


def _resume(folder: Path, recipe: Recipe, state: State) -> Row:
    """Restore `state` from the folder's checkpoint, if there is one; return its row of the log."""
    if not (folder / CHECKPOINT).exists():
        return {}
    tensors, facts = load(folder / CHECKPOINT, "step", "row")
    seen = int(facts["step"]) * recipe.batch
    if (total := getattr(recipe, "total_images", math.inf)) + recipe.batch <= seen:
        raise InvalidValue(
            f"total_images = {total}",
            expected=f"at least {seen}, which the training in {folder} has seen",
            do="give a larger number to prolong the training, or another folder to start again",
        )
    restore(state.parts, tensors)
    state.step = int(facts["step"])
    return json.loads(facts["row"])


def _read_log(log: Path, last: int) -> list[Row]:
    """The rows up to step `last`: later ones were written just before a kill, and their steps are taken again."""
    if not log.exists():
        return []
    try:
        rows = pd.read_csv(log).astype({"step": int}).to_dict("records")
    except (ValueError, KeyError) as e:
        raise StoreError(
            f"{log} is damaged ({e})",
            expected="one row of numbers for each checkpoint",
            do="repair or delete it: the training then resumes with a new log",
        ) from e
    return [row for row in rows if row["step"] <= last]


def _means(rows: Sequence[Mapping[str, float]], seconds: float) -> Row:
    """The row of the log after some steps: each loss term is averaged over the steps that had it."""
    terms = dict.fromkeys(k for row in rows for k in row if k not in ("step", "images"))
    values = {k: [row[k] for row in rows if k in row] for k in terms}
    done = {"step": rows[-1]["step"], "images": rows[-1]["images"], "seconds": seconds}
    return done | {k: sum(v) / len(v) for k, v in values.items()}


def diverged(got: str, file: Path) -> NonFiniteLoss:
    """The error for a loss that is no longer finite; `file` is the checkpoint, if there is one yet."""
    return NonFiniteLoss(got, expected="finite numbers", do="lower lr" + f"; {file} is from before" * file.exists())


def _hardware(state: State) -> str:
    """What computes here, in words: the GPU, or the kind of CPU and the number of threads."""
    networks = [part for part in state.parts.values() if isinstance(part, nn.Module)]
    device = next(networks[0].parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of a CPU ({platform.machine()})"


# --- what a folder holds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What a training left in its folder: the tensors of its state, and what a model card says of it."""

    tensors: dict[str, Tensor]
    recipe: dict[str, Any]  # its summary
    step: int
    images: int
    seconds: float
    row: Row  # the last of the log
    hardware: str
    history: str  # history.md, where somebody intervened by hand and says so

    @property
    def where(self) -> str:
        """Hardware and time, in words."""
        return f"{self.hardware}, {self.seconds / 60:.0f} minutes on a shared machine"

    @property
    def intervention(self) -> str:
        """The history as a line of its own, or nothing."""
        return self.history and f"\n{self.history}"


def trained(folder: str | Path) -> Trained:
    """What the folder's checkpoint holds; raises `StoreError` if there is none."""
    folder = Path(folder)
    tensors, facts = load(folder / CHECKPOINT, "step", "row", "recipe", "hardware")
    row, history = json.loads(facts["row"]), folder / "history.md"
    return Trained(
        tensors,
        json.loads(facts["recipe"]),
        step=int(facts["step"]),
        images=int(row["images"]),
        seconds=row["seconds"],
        row=row,
        hardware=facts["hardware"],
        history=history.read_text(encoding="utf-8").strip() if history.exists() else "",
    )
