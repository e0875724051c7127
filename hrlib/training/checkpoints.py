"""Networks and Adam optimisers in one file of tensors, so that a training goes on exactly where it stopped."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import image, weights
from ..errors import NonFiniteLoss, StoreError
from ..store import atomic, write_bytes

FILE, LOG, SHEET = "checkpoint.safetensors", "log.csv", "samples.png"
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


def load(file: Path, *needed: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, facts) of a checkpoint; `StoreError` where it is not there or does not say what is `needed`."""
    if not file.exists():
        raise StoreError(f"no {file}", expected="a training folder", do="train first: see `hrlab train --help`")
    with safe_open(file, framework="pt") as f:
        facts, tensors = f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
    if missing := [name for name in needed if name not in facts]:
        raise StoreError(
            f"{file} does not say its {' and '.join(missing)}",
            expected="a checkpoint written by a training of ours",
            do="train anew",
        )
    return tensors, facts


def hardware(device: torch.device) -> str:
    """What computes here, in words: the GPU, or the kind of CPU and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of a CPU ({platform.machine()})"


# --- a run in its folder ----------------------------------------------------------------------------------------------


def follow(
    folder: Path,
    recipe: Mapping[str, Any],
    state: Any,
    steps: Iterable[Mapping[str, float]],
    *,
    every: int,
    sheet: Callable[[], Tensor],
    tell: Callable[[str], None] = print,
) -> float:
    """Consume a training from where the folder's checkpoint ends; return the seconds it has taken in all.

    Args:
        folder: gets checkpoint.safetensors, log.csv (means since the row before) and samples.png.
        recipe: JSON-able; a checkpoint of another one is refused, unless only its "total_images" differ: a training
            can be prolonged.
        state: has `parts` (see `gather`) and `step`, which the steps advance.
        steps: yields {"step", "images", loss terms}; it is not begun before the checkpoint is restored.
        every: images between two checkpoints.

    Raises:
        StoreError: the folder holds the training of another recipe.
        NonFiniteLoss: a loss is not finite any more; the checkpoint before it is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, log, summary, before = folder / FILE, folder / LOG, json.dumps(recipe), 0.0
    if file.exists():
        tensors, facts = load(file, "step", "seconds", "recipe")
        theirs, ours = json.loads(facts["recipe"]), json.loads(summary)
        if differ := [k for k in ours.keys() | theirs.keys() if k != "total_images" and ours.get(k) != theirs.get(k)]:
            raise StoreError(
                f"the training in {folder} has " + ", ".join(f"{k}={theirs.get(k)!r}" for k in sorted(differ)),
                expected=", ".join(f"{k}={ours.get(k)!r}" for k in sorted(differ)),
                do="give the same options as before to go on, or another folder to begin anew",
            )
        restore(state.parts, tensors)
        state.step, before = int(facts["step"]), float(facts["seconds"])
    rows = pd.read_csv(log).to_dict("records") if log.exists() else []
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
        facts = {"step": str(state.step), "seconds": str(seconds), "recipe": summary, "hardware": where}
        save(file, gather(state.parts), facts)
        tell("  ".join(f"{k} {v:.4g}" for k, v in rows[-1].items()))

    for row in steps:
        if bad := {k: v for k, v in row.items() if not math.isfinite(v)}:
            raise NonFiniteLoss(
                f"{bad} at step {row['step']}", expected="finite numbers", do=f"lower lr; {file} is from before"
            )
        since.append(row)
        if seen is not None and row["images"] // every > seen // every:
            settle()
        seen = row["images"]
    if since:
        settle()
    return rows[-1]["seconds"]
