"""The one optimisation loop of this library: Adam on named variables, as a generator of iterates.

Plotting, saving, progress bars and cancelling consume the generator. The schedules are pure functions of
t = step / num_steps; their constants come from the authors' published projector (and through it from NVlabs').
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import store
from .errors import SEED, DamagedFile, NonFiniteLoss, StoreError, UnknownName, number

Variables = dict[str, Tensor]
Result = TypeVar("Result")
RANGES = {  # of settings that several kinds of run share
    "num_steps": "whole [1, inf)",
    "lr": "(0, inf)",
    "lr_ramp_up": "(0, 1]",
    "lr_ramp_down": "(0, 1]",
    "eps_initial": "[0, inf)",
    "eps_length": "(0, inf)",
    "w_samples": "whole [2, inf)",  # a single w has no spread
    "seed": SEED,
}


def lr_ramp(t: float, *, ramp_up: float = 0.05, ramp_down: float = 0.25) -> float:
    """Learning-rate factor in [0, 1]: linear warm-up over the first 5 %, cosine decay over the last 25 %.

    The first step's factor is 0: nothing moves, but Adam's moments start.
    """
    down = min(1.0, (1.0 - t) / ramp_down)
    return (0.5 - 0.5 * math.cos(down * math.pi)) * min(1.0, t / ramp_up)


def exploration_scale(t: float, *, w_std: float, initial: float = 0.05, length: float = 0.75) -> float:
    """Standard deviation of eps in Eq. (1): 0.05 w_std at the start, fading quadratically to 0 at t = 0.75."""
    return w_std * initial * max(0.0, 1.0 - t / length) ** 2


def unit_draw(shape: tuple[int, ...], *, seed: int, step: int) -> Tensor:
    """A unit normal draw that depends only on (seed, step), made on the CPU; step -1 is for initial values."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step + 1)
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class Best:
    """The variables with the lowest loss met so far, and that loss."""

    step: int
    total: float
    variables: Variables


@dataclass(frozen=True)
class State:
    """What `descend` needs to resume with the bitwise same result (on a CPU): variables, Adam's moments, best, ..."""

    step: int
    variables: Variables
    moments: dict[str, tuple[Tensor, Tensor]]
    best: Best | None
    history: list[dict[str, float]]
    config: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a safetensors file; config and history travel in its metadata.

        force: replace an existing file, which is a `StoreError` otherwise.
        """
        path = store.new(path, force=force)
        tensors = {f"variables/{k}": v for k, v in self.variables.items()}
        for k, (m, v) in self.moments.items():
            tensors |= {f"exp_avg/{k}": m, f"exp_avg_sq/{k}": v}
        if self.best is not None:
            tensors |= {f"best/{k}": v for k, v in self.best.variables.items()}
        meta = {
            "format": "hrlib.optim/1",
            "step": self.step,
            "best": None if self.best is None else [self.best.step, self.best.total],
            "history": self.history,
            "config": self.config,
        }
        with store.atomic(path) as temp:
            save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, temp, {"state": json.dumps(meta)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> State:
        """Read what `save` wrote; `DamagedFile` for anything else, `StoreError` if the file cannot be read."""
        try:
            with safe_open(path, "pt") as f:
                meta = json.loads(f.metadata()["state"])
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
            if meta["format"] != "hrlib.optim/1":
                raise KeyError(meta["format"])
            part = lambda name: {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
            m, v = part("exp_avg/"), part("exp_avg_sq/")
            best = None if meta["best"] is None else Best(*meta["best"], part("best/"))
            moments = {k: (m[k], v[k]) for k in m}
            return cls(meta["step"], part("variables/"), moments, best, meta["history"], meta["config"])
        except OSError as e:
            raise StoreError(f"{path} cannot be read ({e})", expected="a saved state", do="check the path") from e
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as e:
            raise DamagedFile(
                f"{path} is not a saved state ({e})",
                expected="a file written by State.save",
                do="check the path, or delete the file and start the run again",
            ) from e


@dataclass(frozen=True)
class Iterate:
    """One finished step.

    step: counts from 0. total, terms: the loss at the variables *before* this step's update. variables: detached
    copies *after* it. image: what the loss saw, [N, 3, H, W] (eps included). history: one dict a step so far. stage:
    the name of the current stage, in runs with several.
    """

    step: int
    total: float
    terms: dict[str, float]
    variables: Variables
    image: Tensor
    best: Best
    history: list[dict[str, float]]
    _snapshot: Callable[[int], State] = field(repr=False)
    stage: str = ""

    def state(self) -> State:
        """What a later run needs to resume here. Call it before the next iterate: the moments live in the loop."""
        return self._snapshot(self.step)


def require_finite(terms: dict[str, Tensor], *, step: int, best: Best | None) -> Tensor:
    """The sum of the terms; `NonFiniteLoss` names terms that are not finite and carries `.step`, `.terms`, `.best`."""
    values = {name: float(v.detach()) for name, v in terms.items()}
    bad = [f"{name} = {v}" for name, v in values.items() if not math.isfinite(v)]
    if bad:
        error = NonFiniteLoss(
            f"at step {step} the loss is not finite: {', '.join(bad)} (all terms: {values})",
            expected="finite loss terms",
            do="lower lr, or use the best iterate, which this error carries as .best",
        )
        error.step, error.terms, error.best = step, values, best
        raise error
    return sum(terms.values())


def descend(
    variables: Variables,
    objective: Callable[[int, Variables], tuple[dict[str, Tensor], Tensor]],
    *,
    num_steps: int,
    lr: float = 0.1,
    gains: dict[str, float] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    lr_schedule: Callable[[float], float] = lr_ramp,
    after_step: Callable[[Variables], None] | None = None,
    resume: State | None = None,
    config: dict[str, Any] | None = None,
    moments: str = "memory",
) -> Iterator[Iterate]:
    """Minimise the sum of `objective(step, variables)[0]` with Adam; yield one Iterate a step.

    Args:
        variables: initial values by name; copied, so the caller's tensors do not change.
        objective: (step, leaves) -> ({term: scalar}, image).
        num_steps: number of steps.
        lr: peak learning rate.
        gains: {variable: factor of its learning rate}; the default factor is 1.
        betas: Adam's decay rates for the averages of the gradient and of its square, in [0, 1).
        lr_schedule: t = step / num_steps -> factor of the learning rate.
        after_step: changes the variables in place after each update, for instance to re-normalise noise maps.
        resume: a state of the same run; the loop continues after it.
        config: stored in states; a `resume` with another config is a `StoreError`.
        moments: where Adam's moments are kept: "memory", or "file" for temporary memory-mapped files (CPU only). The
            numbers are the same.

    Raises:
        InvalidValue, UnknownName, StoreError: before the first step. NonFiniteLoss: carries `.best`.
    """
    num_steps, lr = number("num_steps", num_steps, RANGES["num_steps"]), number("lr", lr, RANGES["lr"])
    betas = tuple(number(f"beta{i}", beta, "[0, 1)") for i, beta in enumerate(betas, 1))
    check_moments(moments)
    config = config or {}
    if resume is not None:
        check_same(resume.config, config)
    source = variables if resume is None else {k: resume.variables[k].to(variables[k]) for k in variables}
    leaves = {k: v.detach().clone().requires_grad_() for k, v in source.items()}
    adam_of = lambda leaf: torch.optim.Adam([leaf], lr=lr, betas=betas)
    adams = {k: adam_of(leaf) for k, leaf in leaves.items()}  # one a variable, so that one's moments load at a time
    files = {k: (_Mapped(leaf), _Mapped(leaf)) for k, leaf in leaves.items()} if moments == "file" else {}
    for k, leaf in leaves.items():
        m, v = (f.tensor for f in files[k]) if files else (torch.zeros_like(leaf), torch.zeros_like(leaf))
        if resume is not None:
            m.copy_(resume.moments[k][0])
            v.copy_(resume.moments[k][1])
        step_count = torch.tensor(float(resume.step if resume else 0))
        adams[k].state[leaf] = {"step": step_count, "exp_avg": m.detach(), "exp_avg_sq": v.detach()}
    best = resume.best if resume else None
    history = list(resume.history) if resume else []
    first = resume.step if resume else 0
    del resume, source, variables  # they have been copied, and for a large picture they take gigabytes
    current = -1

    def snapshot(step: int) -> State:
        if step != current:
            raise StoreError(
                f"state() of step {step}, called after step {current}",
                expected="a call before the next iterate",
                do="call state() on the newest iterate",
            )
        moments = {
            k: tuple(adams[k].state[leaf][name].clone() for name in ("exp_avg", "exp_avg_sq"))
            for k, leaf in leaves.items()
        }
        return State(step + 1, detached(leaves), moments, best, list(history), config)

    for step in range(first, num_steps):
        start = time.perf_counter()
        terms, image = objective(step, leaves)
        total = require_finite(terms, step=step, best=best)
        value = float(total.detach())
        if best is None or value < best.total:
            best = Best(step, value, detached(leaves))
        total.backward()
        rate = lr * lr_schedule(step / num_steps)
        for k, adam in adams.items():
            adam.param_groups[0]["lr"] = rate * (gains or {}).get(k, 1.0)
            adam.step()
            adam.zero_grad(set_to_none=True)
            for file in files.get(k, ()):
                file.release()
        if after_step is not None:
            with torch.no_grad():
                after_step(leaves)
        values = {k: float(v.detach()) for k, v in terms.items()}
        del terms, total  # frees their graph before the next step builds its own
        row = {"step": step, "total": value, **values, "lr": rate}
        history.append(row | {"seconds": time.perf_counter() - start})
        current = step
        yield Iterate(step, value, values, detached(leaves), image.detach(), best, history, snapshot)


def check_moments(moments: str) -> None:
    """Raise `UnknownName` unless it says where Adam's moments can be kept: "memory" or "file"."""
    if moments not in ("memory", "file"):
        raise UnknownName(
            f"moments={moments!r}", expected='"memory" or "file"', do='use "file" if the moments do not fit into memory'
        )


def check_same(saved: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise `StoreError`, naming the differences, unless a saved run has this configuration."""
    if odd := sorted(k for k in config.keys() | saved.keys() if config.get(k) != saved.get(k)):
        raise StoreError(
            f"the saved run differs in {odd}",
            expected="the configuration it was started with",
            do="use those settings, or start a new run without the saved state",
        )


def detached(variables: Variables) -> Variables:
    """Detached copies."""
    return {k: v.detach().clone() for k, v in variables.items()}


def last(iterates: Iterator[Iterate]) -> Iterate:
    """Run to the end and return the last iterate; `StoreError` if there is none."""
    iterate = None
    for iterate in iterates:
        pass
    if iterate is None:
        raise StoreError("no step was left to run", expected="a run with steps to do", do="set up a new run")
    return iterate


# --- a run and its result ---------------------------------------------------------------------------------------------


class Run(Iterator[Iterate], Generic[Result]):
    """An optimisation whose settings have been checked, as an iterator of its steps; the first one starts the work.

    Like any iterator it can be used once: a second loop continues where the first one stopped.

    Args:
        steps: (state to resume from, or None) -> the iterates, usually from `descend`.
        finish: (the last iterate, seconds) -> the result, for `solve`.
        config: the settings by name, and what else decides the result; shown by repr.
        num_steps: number of steps in all.
        resume: a state to start from.
    """

    def __init__(
        self,
        steps: Callable[[State | None], Iterator[Iterate]],
        finish: Callable[[Iterate, float], Result],
        *,
        config: dict[str, Any],
        num_steps: int,
        resume: State | None = None,
    ) -> None:
        self.finish, self.config, self.num_steps = finish, config, num_steps
        self.done = 0 if resume is None else resume.step  # steps
        self._steps, self._resume, self._iterates = steps, resume, None

    def __repr__(self) -> str:
        settings = "".join(f"\n  {name} = {value!r}" for name, value in self.config.items())
        return f"Run: {self.done} of {self.num_steps} steps done{settings}"

    def __next__(self) -> Iterate:
        it = next(self._started())
        self.done = it.step + 1
        return it

    def _started(self) -> Iterator[Iterate]:
        if self._iterates is None:
            self._iterates = self._steps(self._resume)
            self._resume = None  # not kept: for a large picture it takes gigabytes
        return self._iterates

    def resume(self, state: State) -> None:
        """Start from `state`; a `StoreError` after the first iterate."""
        if self._iterates is not None:
            raise StoreError(
                f"a run with {self.done} steps done", expected="a run that has not started", do="set up a new run"
            )
        self._resume, self.done = state, state.step

    def close(self) -> None:
        """End the run and free its memory; there are no further iterates."""
        if self._iterates is None:
            self._iterates, self._resume = iter(()), None
        elif hasattr(self._iterates, "close"):
            self._iterates.close()


def solve(
    run: Run[Result],
    *,
    watch: Callable[[Iterator[Iterate]], Iterator[Iterate]] = iter,
    checkpoint: str | Path | None = None,
    every: int = 50,
) -> Result:
    """Run to the end (or to the end of `watch`) and return the result: an `inversion.Result`, for instance.

    Args:
        run: from `inversion.invert`, `lso.optimise` or `inversion3d.invert`. One that has started continues.
        watch: wraps the iterator: a progress bar, `until_flat`, itertools.islice, ...
        checkpoint: a state file, written every `every` steps and deleted at the end. If it exists, the run resumes from
            it. A hidden lock file beside it keeps other runs away.
        every: steps between two checkpoints.

    Raises:
        StoreError: before the first step: the checkpoint belongs to another run, is in use, or cannot be written, or it
            exists and the run has already started; or no step is left.
        DamagedFile: the checkpoint is not a saved state; the file is left alone. NonFiniteLoss: carries `.best`.
    """
    begun, every = time.perf_counter(), number("every", every, "whole [1, inf)")
    path = None if checkpoint is None else store.new(checkpoint, force=True)  # State.load refuses any other file
    with contextlib.ExitStack() as stack:
        if path:
            stack.enter_context(store.alone(path.with_name(f".{path.name}.lock"), f"run with the checkpoint {path}"))
        if path and path.exists():
            run.resume(State.load(path))
        it = None
        for it in watch(run):
            if path and (it.step + 1) % every == 0 and it.step + 1 < run.num_steps:
                it.state().save(path, force=True)
        if it is None:
            raise StoreError(
                f"no step was run, with {run.done} of {run.num_steps} steps done",
                expected="a run with steps to do, and a `watch` that passes its iterates on",
                do="set up a new run: one can be solved once",
            )
        result = run.finish(it, time.perf_counter() - begun)
        if path:
            path.unlink(missing_ok=True)
    return result


def ended(it: Iterate, num_steps: int) -> str:
    """Why a run ended after `it`, in words."""
    return "all steps done" if it.step + 1 == num_steps else f"stopped by its watcher after step {it.step}"


def until_flat(iterates: Iterator[Iterate], *, patience: int = 50, min_gain: float = 1e-3) -> Iterator[Iterate]:
    """Pass iterates on until the best loss has not fallen by a fraction `min_gain` for `patience` steps."""
    patience, min_gain = number("patience", patience, "whole [1, inf)"), number("min_gain", min_gain, "[0, 1)")
    mark, since = math.inf, 0
    for it in iterates:
        yield it
        if it.best.total < mark * (1 - min_gain):
            mark, since = it.best.total, it.step
        elif it.step - since >= patience:
            return


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_bytes(device: torch.device | str = "cpu") -> int:
    """Peak memory in bytes: the CUDA allocator's on a GPU, else the process's peak resident set size."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # on Linux, ru_maxrss also counts the parent process
    if status.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Mapped:
    """A tensor of zeros in an anonymous temporary file: Adam's moments of a large picture.

    The file disappears with the object, or with the process. `release` frees the memory of its pages; their contents
    stay in the file.

    Args:
        like: a CPU tensor of the wanted shape and type.
    """

    def __init__(self, like: torch.Tensor) -> None:
        size = max(1, like.numel() * like.element_size())
        with tempfile.TemporaryFile(prefix="hrlib-moments-") as file:
            file.truncate(size)
            self.pages = mmap.mmap(file.fileno(), size)  # keeps the file open
        self.tensor = torch.frombuffer(self.pages, dtype=like.dtype, count=like.numel()).view(like.shape)

    def release(self) -> None:
        """Write the changed pages, and free their memory."""
        self.pages.flush()
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.pages.madvise(mmap.MADV_DONTNEED)
