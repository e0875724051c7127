"""The state of a training in one safetensors file: networks, Adam's moments and the step, so that it resumes exactly.

Learning rates and random draws are functions of the step, so nothing else has to be saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import weights
from ..errors import StoreError
from ..store import atomic

Parts = Mapping[str, nn.Module | torch.optim.Optimizer | Tensor]


class State(Protocol):
    """What a trainer advances: `parts` that `gather` saves, and the number of steps taken."""

    step: int

    @property
    def parts(self) -> Parts:
        """Networks, optimisers and other tensors by name."""


def gather(parts: Parts) -> dict[str, Tensor]:
    """{"part/key": copy on the CPU} of the parameters, buffers and moments of all parts."""
    out: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, Tensor):
            out[name] = part
        elif isinstance(part, nn.Module):
            out |= {f"{name}/{k}": v for k, v in part.state_dict().items()}
        else:
            for i, moments in part.state_dict()["state"].items():
                out |= {f"{name}/{i}/{k}": v for k, v in moments.items()}
    return {k: v.detach().cpu().contiguous().clone() for k, v in out.items()}


def restore(parts: Parts, tensors: Mapping[str, Tensor]) -> None:
    """Put what `gather` returned back into the parts; raises `LayoutMismatch` where a network does not fit."""
    for name, part in parts.items():
        own = {k.removeprefix(name + "/"): v for k, v in tensors.items() if k.startswith(name + "/")}
        if isinstance(part, Tensor):
            part.copy_(tensors[name])
        elif isinstance(part, nn.Module):
            weights.load_strictly(part, own, "the checkpoint")
        else:
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in own.items():
                i, what = key.split("/")
                moments.setdefault(int(i), {})[what] = value
            part.load_state_dict({"state": moments, "param_groups": part.state_dict()["param_groups"]})


def save(file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Replace `file` atomically. The facts (step, recipe, ...) are inside, so they never disagree with the tensors."""
    with atomic(file) as temp:
        save_file(dict(tensors), temp, dict(facts))


def load(file: Path, *needed: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, facts) of a checkpoint; raises `StoreError` if it is missing, damaged, or lacks a fact in `needed`."""
    again = "start the training again in a new folder"
    if not file.exists():
        raise StoreError(f"no {file}", expected="a training folder", do="train first: see `hrlab train --help`")
    try:
        with safe_open(file, framework="pt") as f:
            facts, tensors = f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as e:
        raise StoreError(f"{file} is damaged ({e})", expected="a checkpoint of a training", do=again) from e
    if missing := [name for name in needed if name not in facts]:
        raise StoreError(
            f"{file} does not say its {' and '.join(missing)}", expected="a checkpoint of a training", do=again
        )
    return tensors, facts
