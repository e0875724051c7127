"""The one optimisation loop of this library: Adam on named variables, as a generator of iterates.

Plotting, saving, progress bars and cancelling are consumers of the generator. The schedules are pure functions of
t = step / num_steps; their constants are those of the authors' published projector (which inherits NVlabs').
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
RANGES = {  # of the settings that all runs of this loop share
    "num_steps": "whole [1, inf)",
    "lr": "(0, inf)",
    "lr_ramp_up": "(0, 1]",
    "lr_ramp_down": "(0, 1]",
    "eps_initial": "[0, inf)",
    "eps_length": "(0, inf)",
    "w_samples": "whole [2, inf)",  # one has no spread
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
    """A unit normal draw that depends on (seed, step) alone, made on the CPU; step -1 serves initial values."""
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
    """All a descent needs to go on to the bitwise same result (on a CPU): variables, Adam's moments, best, history."""

    step: int
    variables: Variables
    moments: dict[str, tuple[Tensor, Tensor]]
    best: Best | None
    history: list[dict[str, float]]
    config: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a safetensors file; config and history travel in its metadata.

        force: replace a file that is there; without it that is a `StoreError`.
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
        """Read what `save` wrote; `DamagedFile` for anything else, `StoreError` when nothing can be read there."""
        try:
            with safe_open(path, "pt") as f:
                meta = json.loads(f.metadata()["state"])
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
            if meta["format"] != "hrlib.optim/1":
                raise KeyError(meta["format"])
        except OSError as e:
            raise StoreError(f"{path} cannot be read ({e})", expected="a saved state", do="check the path") from e
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as e:
            raise DamagedFile(
                f"{path} is not a saved descent ({e})",
                expected="a file written by State.save",
                do="start the run afresh",
            ) from e
        part = lambda name: {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
        m, v = part("exp_avg/"), part("exp_avg_sq/")
        best = None if meta["best"] is None else Best(*meta["best"], part("best/"))
        moments = {k: (m[k], v[k]) for k in m}
        return cls(meta["step"], part("variables/"), moments, best, meta["history"], meta["config"])


@dataclass(frozen=True)
class Iterate:
    """One finished step.

    step: from 0. total, terms: the loss at the variables *before* this step's update. variables: detached copies
    *after* it. image: what the loss saw, [N, 3, H, W] (eps included). history: one dict a step so far. stage: the part
    of a run that has several.
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
        """What a later run needs to go on from here. Ask before the next iterate: the moments live in the loop."""
        return self._snapshot(self.step)


def require_finite(terms: dict[str, Tensor], *, step: int, best: Best | None) -> Tensor:
    """Sum of the terms; `NonFiniteLoss` names the terms that are not finite and carries `.step`, `.terms`, `.best`."""
    values = {name: float(v.detach()) for name, v in terms.items()}
    bad = [f"{name} = {v}" for name, v in values.items() if not math.isfinite(v)]
    if bad:
        error = NonFiniteLoss(
            f"at step {step} the loss is not finite: {', '.join(bad)} (all terms: {values})",
            expected="finite loss terms",
            do="lower lr, check the target for NaN, or use the best iterate, which this error carries as .best",
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
        variables: initial values by name; copied, the caller's tensors stay as they are.
        objective: (step, leaves) -> ({term: scalar}, image).
        gains: factors of the learning rate, by variable; 1 where none is given.
        betas: how slowly Adam forgets the gradients, and their squares; in [0, 1).
        after_step: projects the variables in place after each update (noise re-normalisation, say).
        resume: a state of an equal run; the steps it has done are skipped.
        config: stored in states; a `resume` with another config is refused (`StoreError`).
        moments: where Adam's are, "memory" or "file": temporary memory-mapped files, on a CPU; the same numbers.

    Raises:
        InvalidValue, UnknownName, StoreError: before the first step. NonFiniteLoss: carries `.best`.
    """
    num_steps, lr = number("num_steps", num_steps, RANGES["num_steps"]), number("lr", lr, RANGES["lr"])
    betas = tuple(number(f"beta{i}", beta, "[0, 1)") for i, beta in enumerate(betas, 1))
    if moments not in ("memory", "file"):
        raise UnknownName(f"moments={moments!r}", expected='"memory" or "file"', do="leave it to tiling.budget.plan")
    config = config or {}
    if resume is not None:
        check_same(resume.config, config)
    source = variables if resume is None else {k: resume.variables[k].to(variables[k]) for k in variables}
    leaves = {k: v.detach().clone().requires_grad_() for k, v in source.items()}
    one = lambda leaf: torch.optim.Adam([leaf], lr=lr, betas=betas)
    adams = {k: one(leaf) for k, leaf in leaves.items()}  # one each: moments come and go with it
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
    del resume, source, variables  # they have been copied, and of a large picture they weigh
    current = -1

    def snapshot(step: int) -> State:
        if step != current:
            raise StoreError(
                f"state() of step {step} was asked for after step {current} began",
                expected="a call before the next iterate",
                do="save the state while the loop waits",
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
        del terms, total  # and the graph behind them, before the next step makes its own
        row = {"step": step, "total": value, **values, "lr": rate}
        history.append(row | {"seconds": time.perf_counter() - start})
        current = step
        yield Iterate(step, value, values, detached(leaves), image.detach(), best, history, snapshot)


def check_same(saved: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise `StoreError`, which names what differs, unless a saved run has this configuration."""
    if odd := sorted(k for k in config.keys() | saved.keys() if config.get(k) != saved.get(k)):
        raise StoreError(
            f"the saved run differs in {odd}",
            expected="the configuration it was started with",
            do="start the run afresh",
        )


def detached(variables: Variables) -> Variables:
    """Detached copies."""
    return {k: v.detach().clone() for k, v in variables.items()}


def last(iterates: Iterator[Iterate]) -> Iterate:
    """Run to the end and return the last iterate."""
    iterate = None
    for iterate in iterates:
        pass
    if iterate is None:
        raise StoreError("a run without a step", expected="num_steps > the steps already done", do="raise num_steps")
    return iterate


# --- a run and its result ---------------------------------------------------------------------------------------------


class Run(Iterator[Iterate], Generic[Result]):
    """An optimisation that is set up, its settings checked, and not begun: an iterator of its steps.

    Args:
        steps: (state to resume from, or None) -> the iterates, usually by `descend`.
        finish: (the last iterate, seconds) -> the result, for `solve`.
        num_steps: how many iterates there are in all.
        resume: a state to begin from.
    """

    def __init__(
        self,
        steps: Callable[[State | None], Iterator[Iterate]],
        finish: Callable[[Iterate, float], Result],
        *,
        num_steps: int,
        resume: State | None = None,
    ) -> None:
        self.finish, self.num_steps = finish, num_steps
        self._steps, self._resume, self._at = steps, resume, None

    def __next__(self) -> Iterate:
        return next(self._begun())

    def _begun(self) -> Iterator[Iterate]:
        if self._at is None:
            state, self._resume = self._resume, None  # handed over, not kept: of a large picture it weighs
            self._at = self._steps(state)
        return self._at

    def resume(self, state: State | None) -> None:
        """Begin from `state` (None: from the start); call it before the first iterate."""
        if self._at is not None:
            raise StoreError("a run that has begun", expected="one without a step yet", do="set up another run")
        self._resume = state

    def close(self) -> None:
        """Free what the loop holds; a run that was closed has no further iterate."""
        self._begun().close()


def solve(
    run: Run[Result],
    *,
    watch: Callable[[Iterator[Iterate]], Iterator[Iterate]] = iter,
    checkpoint: str | Path | None = None,
    every: int = 50,
) -> Result:
    """Take a run to its end (or to the end of `watch`) and return its result: that of `inversion`, `lso`, ...

    Args:
        run: from `inversion.invert`, `lso.optimise` or `inversion3d.invert`.
        watch: wraps the iterator: a progress bar, `until_flat`, itertools.islice ...
        checkpoint: a state file; written every `every` steps and resumed from when it exists; deleted at the end.
            A hidden lock beside it keeps other runs out.
        every: steps between two checkpoints.

    Raises:
        StoreError: the checkpoint is of another run, in use by another, or cannot be written; before the first step.
        DamagedFile: it is no saved state; it stays as it is. NonFiniteLoss: carries `.best`.
    """
    begun, every = time.perf_counter(), number("every", every, "whole [1, inf)")
    path = None if checkpoint is None else store.new(checkpoint, force=True)  # State.load refuses what is no state
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
            raise StoreError("a run without a step", expected="a watcher that passes iterates on", do="check `watch`")
        result = run.finish(it, time.perf_counter() - begun)
        if path:
            path.unlink(missing_ok=True)
    return result


def ended(it: Iterate, num_steps: int) -> str:
    """Why a run ended after `it`, in words."""
    return "all steps done" if it.step + 1 == num_steps else f"stopped by its watcher after step {it.step}"


def until_flat(iterates: Iterator[Iterate], *, patience: int = 50, min_gain: float = 1e-3) -> Iterator[Iterate]:
    """Pass iterates on; stop when the best loss has not fallen by a fraction `min_gain` in `patience` steps."""
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
    """Peak memory in bytes: of the CUDA allocator on a GPU, else the process's peak resident set."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # Linux; its ru_maxrss would count the parent from which a process was started
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Mapped:
    """A zero tensor in an anonymous temporary file, written and read like any other: Adam's moments of a large picture.

    The file is deleted with the object, or by the system should the process die. `release` lets go of the memory that
    its pages take; what they hold stays in the file.

    Args:
        like: gives shape and type; a CPU tensor.
    """

    def __init__(self, like: torch.Tensor) -> None:
        size = max(1, like.numel() * like.element_size())
        with tempfile.TemporaryFile(prefix="hrlib-moments-") as file:
            file.truncate(size)
            self.pages = mmap.mmap(file.fileno(), size)  # keeps the file open
        self.tensor = torch.frombuffer(self.pages, dtype=like.dtype, count=like.numel()).view(like.shape)

    def release(self) -> None:
        """Write what changed, and let go of the pages."""
        self.pages.flush()
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.pages.madvise(mmap.MADV_DONTNEED)
