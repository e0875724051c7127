"""Networks and Adam optimisers in one file of tensors, so that a training goes on exactly where it stopped.

A training folder belongs to one training: `training` claims it by recipe, data and beginning.
"""

from __future__ import annotations

import json
import math
import pickle
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import image, weights
from ..errors import InvalidValue, NonFiniteLoss, StoreError, number
from ..store import atomic, claimed, new, sweep_temps, write_bytes

FILE, LOG, SHEET = "checkpoint.safetensors", "log.csv", "samples.png"
RECIPE, SNAPSHOTS = "recipe.json", "snapshots"
FILES = (FILE, "checkpoint.pt", LOG, SHEET, RECIPE, f"{SNAPSHOTS}/*.safetensors")  # of all our training folders
Parts = Mapping[str, nn.Module | torch.optim.Optimizer]


def gather(parts: Parts) -> dict[str, Tensor]:
    """{"part/key": copy on the CPU} of the parameters, buffers and moments of all parts."""
    out: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            out |= {f"{name}/{k}": v for k, v in part.state_dict().items()}
        else:
            for i, moments in part.state_dict()["state"].items():
                out |= {f"{name}/{i}/{k}": v for k, v in moments.items()}
    return {k: v.detach().cpu().contiguous().clone() for k, v in out.items()}


def restore(parts: Parts, tensors: Mapping[str, Tensor]) -> None:
    """Put what `gather` returned back into the parts; a network that it does not fit is a `LayoutMismatch`."""
    for name, part in parts.items():
        own = {k.removeprefix(name + "/"): v for k, v in tensors.items() if k.startswith(name + "/")}
        if isinstance(part, nn.Module):
            weights.load_strictly(part, own, "the checkpoint")
            continue
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in own.items():
            i, what = key.split("/")
            moments.setdefault(int(i), {})[what] = value
        part.load_state_dict({"state": moments, "param_groups": part.state_dict()["param_groups"]})


def save(file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Replace `file` atomically; the facts (step, recipe, ...) are in it, so that they never disagree with the rest."""
    with atomic(file) as temp:
        save_file(dict(tensors), temp, dict(facts))


def diverged(got: str, file: Path) -> NonFiniteLoss:
    """The error of a training whose loss is not finite; `file` is its checkpoint, if there is one yet."""
    return NonFiniteLoss(got, expected="finite numbers", do="lower lr" + f"; {file} is from before" * file.exists())


def log_lines(log: Path, last: float) -> list[str]:
    """The heading of a log, and its rows up to step `last`; `StoreError` if it is damaged."""
    try:
        head, *rows = log.read_text().splitlines()
        return [head, *(row for row in rows if int(row.split(",")[0]) <= last)]
    except ValueError as e:
        raise _damaged_log(log, e) from e


def _damaged_log(log: Path, e: Exception) -> StoreError:
    do = "repair it, or delete it: the training then goes on with a new one"
    return StoreError(f"{log} is damaged ({e})", expected="one row of numbers for each checkpoint", do=do)


def load(file: Path, *needed: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, facts) of a checkpoint; `StoreError` where it is not there or does not say what is `needed`."""
    if not file.exists():
        raise StoreError(f"no {file}", expected="a training folder", do="train first: see `hrlab train --help`")
    try:
        with safe_open(file, framework="pt") as f:
            facts, tensors = f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as e:
        raise StoreError(f"{file} is damaged ({e})", expected="a checkpoint of ours", do="train anew") from e
    if missing := [name for name in needed if name not in facts]:
        raise StoreError(
            f"{file} does not say its {' and '.join(missing)}",
            expected="a checkpoint written by a training of ours",
            do="train anew",
        )
    return tensors, facts


def save_torch(file: str | Path, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Replace a checkpoint of state_dicts, schedules among them, atomically; it says of which training it is."""
    with atomic(file) as temp:
        torch.save({**state, "identity": json.dumps(identity)}, temp)


def load_torch(file: str | Path | None, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What `save_torch` wrote, {} where there is nothing yet.

    Raises:
        StoreError: the file is something else, or of another training; or nobody may write there.
    """
    if file is None or not Path(file).exists():
        if file is not None:
            new(file)
        return {}
    try:
        state = torch.load(file, weights_only=True)
        theirs = state["identity"]
    except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, KeyError, TypeError) as e:
        raise StoreError(
            f"{file} is no checkpoint of ours, or damaged ({type(e).__name__})",
            expected="a file that a training of this network wrote, or none",
            do="give another name",
        ) from e
    if json.loads(theirs) != json.loads(json.dumps(identity)):
        raise StoreError(
            f"{file} is of another training: {theirs}",
            expected=json.dumps(identity),
            do="give the same options as before to go on, or another file to begin anew",
        )
    return state


def hardware(device: torch.device) -> str:
    """What computes here, in words: the GPU, or the kind of CPU and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of a CPU ({platform.machine()})"


# --- a run in its folder ----------------------------------------------------------------------------------------------


@contextmanager
def training(
    folder: Path,
    what: str,
    recipe: Mapping[str, Any],
    *,
    data: Mapping[str, Any],
    start: str | None = None,
    force: bool = False,
) -> Iterator[None]:
    """Train in `folder`, alone, from the beginning or where the same training stopped.

    Args:
        folder: new, empty, or of this very training.
        what: is trained, in words.
        recipe: JSON-able. All of it must be as it was, but its "total_images": a training can be prolonged.
        data: JSON-able; what it is trained on, such as `RenderedSet.what`.
        start: what the networks began as, with a hash, where that is more than the recipe says.
        force: take the folder whatever is in it; files of the names of our trainings are then removed, unless they are
            this training's.

    Raises:
        StoreError: the folder holds something else, such as the same training on other data; or it cannot be written.
    """
    identity = {k: v for k, v in recipe.items() if k != "total_images"} | {"start": start}
    identity |= {f"data.{k}": v for k, v in data.items()}  # one by one, so that an error names what differs
    with claimed(folder, f"training of {what}", identity, files=FILES, force=force, again=True):
        sweep_temps(folder)
        yield


def check_length(folder: Path, step: int, recipe: Mapping[str, Any]) -> None:
    """Raise `InvalidValue` if a training that is at `step` should be shorter than it is already."""
    seen, total = step * recipe["batch"], recipe["total_images"]
    if seen >= total + recipe["batch"]:
        raise InvalidValue(
            f"total_images = {total}",
            expected=f"at least {seen}, which the training in {folder} has seen",
            do="give a larger number to prolong it, or another folder to begin anew",
        )


def follow(
    folder: Path,
    what: str,
    recipe: Mapping[str, Any],
    state: Any,
    steps: Iterable[Mapping[str, float]],
    *,
    data: Mapping[str, Any],
    start: str | None = None,
    every: int,
    sheet: Callable[[], Tensor],
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> float:
    """Consume a training from where the folder's checkpoint ends; return the seconds it has taken in all.

    Args:
        folder: gets checkpoint.safetensors, log.csv (means since the row before) and samples.png.
        what, recipe, data, start, force: see `training`.
        state: has `parts` (see `gather`) and `step`, which the steps advance.
        steps: yields {"step", "images", loss terms}; it is not begun before the checkpoint is restored.
        every: images between two checkpoints.

    Raises:
        InvalidValue: the training is longer than the recipe's already.
        StoreError: the folder holds something else, or cannot be written.
        NonFiniteLoss: a loss is not finite any more; the checkpoint before it is kept.
    """
    every = number("every", every, "whole [1, inf)")
    with training(folder, what, recipe, data=data, start=start, force=force):
        return _follow(folder, recipe, state, steps, every=every, sheet=sheet, tell=tell)


def _follow(
    folder: Path,
    recipe: Mapping[str, Any],
    state: Any,
    steps: Iterable[Mapping[str, float]],
    *,
    every: int,
    sheet: Callable[[], Tensor],
    tell: Callable[[str], None],
) -> float:
    file, log, before = folder / FILE, folder / LOG, 0.0
    if file.exists():
        tensors, facts = load(file, "step", "seconds")
        check_length(folder, int(facts["step"]), recipe)
        restore(state.parts, tensors)
        state.step, before = int(facts["step"]), float(facts["seconds"])
    try:
        rows = pd.read_csv(log).astype({"step": int}).to_dict("records") if log.exists() else []
    except (ValueError, KeyError) as e:
        raise _damaged_log(log, e) from e
    networks = [part for part in state.parts.values() if isinstance(part, nn.Module)]
    where = hardware(next(networks[0].parameters()).device)
    rows, since, start, seen = [r for r in rows if r["step"] <= state.step], [], time.perf_counter(), None

    def settle() -> None:
        mean = pd.DataFrame(since).mean()
        seconds = round(before + time.perf_counter() - start, 1)
        rows.append({**mean, "step": since[-1]["step"], "images": since[-1]["images"], "seconds": seconds})
        since.clear()
        image.write(sheet(), folder / SHEET)
        write_bytes(log, pd.DataFrame(rows).to_csv(index=False, float_format="%.5g").encode())
        facts = {"step": str(state.step), "seconds": str(seconds), "recipe": json.dumps(recipe), "hardware": where}
        save(file, gather(state.parts), facts)
        tell("  ".join(f"{k} {v:.4g}" for k, v in rows[-1].items()))

    for row in steps:
        if bad := {k: v for k, v in row.items() if not math.isfinite(v)}:
            raise diverged(f"{bad} at step {row['step']}", file)
        since.append(row)
        if seen is not None and row["images"] // every > seen // every:
            settle()
        seen = row["images"]
    if since:
        settle()
    return rows[-1]["seconds"]
