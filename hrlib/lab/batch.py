"""Run notebooks headlessly: in dependency order, in parallel, resumable, and honest about what failed.

A notebook runs in a partial folder. Its results are checked, the folder takes the place of the old one by a rename,
and the status file is written last. A run that is killed at any moment leaves the old results or the new ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import store
from ..errors import BatchError
from . import cache, verify
from .execute import kill_tree
from .lock import alone
from .notebook import Notebook, catalogue, find, overrides
from .place import cpus, figures_folder, root


@dataclass(frozen=True)
class Outcome:
    """What became of a notebook: "done", "cached", "failed" or "blocked" (something it needs failed)."""

    name: str
    state: str
    seconds: float = 0.0
    error: dict[str, Any] | None = None  # {"name", "message", "cell", "trace"}


@dataclass(frozen=True)
class Plan:
    """Notebooks in an order in which every one comes after those it needs."""

    profile: str
    known: Mapping[str, Notebook]
    order: tuple[str, ...]
    values: Mapping[str, dict[str, Any]]  # effective parameters
    changes: Mapping[str, dict[str, Any]]  # those the profile sets
    shared: Mapping[str, str] = field(repr=False)

    def why(self, name: str) -> str:
        """Why a notebook has to run now, "" when its results are good."""
        wanted = cache.inputs(self.known[name], self.values[name], self.shared, self.profile)
        return cache.stale(name, wanted, self.profile)


def plan(names: Sequence[str] = (), profile: str = "laptop") -> Plan:
    """Choose notebooks (all without names) with everything they need, and validate their parameters.

    Raises:
        UnknownName, BatchError: an unknown notebook, profile or parameter, a wrong type, or a circle of needs.
    """
    known = catalogue()
    changes = overrides(profile, known)
    order: list[str] = []

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise BatchError(f"{' -> '.join((*above, name))}", expected="needs without a circle", do="correct `needs`")
        if name in order:
            return
        for need in known[name].needs:
            add(find(need, known), (*above, name))
        order.append(name)

    for name in [find(n, known) for n in names] or known:
        add(name, ())
    hashes = cache.Hashes()
    shared = cache.surroundings(hashes)
    hashes.save()
    values = {name: {**known[name].parameters, **changes[name]} for name in known}
    return Plan(profile, known, tuple(order), values, changes, shared)


def run(
    chosen: Plan,
    *,
    jobs: int = 1,
    fresh: Sequence[str] = (),
    timeout: float | None = None,
    tell: Callable[[str], None] = print,
) -> list[Outcome]:
    """Run a plan; returns an outcome for every notebook in it.

    Args:
        chosen: see `plan`.
        jobs: how many notebooks run at a time; the machine's threads are divided among them.
        fresh: notebooks that run even though their results are good.
        timeout: seconds a notebook may take.
        tell: called with a line of text when something happens.

    Raises:
        BatchError: another run of the same profile is working.
    """
    figures = figures_folder(chosen.profile)
    lock = root() / "build" / f"run-{chosen.profile}.lock"
    with (
        alone(lock, f"`hrlab run` of profile {chosen.profile}"),
        tempfile.TemporaryDirectory(prefix="hrlab-") as scratch,
    ):
        _clean_up(figures)
        outcomes: dict[str, Outcome] = {}
        waiting, running = list(chosen.order), {}
        try:
            while waiting or running:
                for name in list(waiting):
                    needs = [find(n, chosen.known) for n in chosen.known[name].needs]
                    bad = [n for n in needs if n in outcomes and outcomes[n].state in ("failed", "blocked")]
                    if bad:
                        error = {"name": "Blocked", "message": f"needs {', '.join(bad)}", "cell": None, "trace": ""}
                        outcomes[name] = Outcome(name, "blocked", error=error)
                    elif any(n not in outcomes for n in needs):
                        continue
                    elif name not in fresh and not chosen.why(name):
                        seconds = (cache.status(name, chosen.profile) or {}).get("seconds", 0.0)
                        outcomes[name] = Outcome(name, "cached", seconds)
                    elif len(running) < jobs:
                        running[name] = _Task(chosen, name, Path(scratch), jobs, timeout)
                        tell(f"{name}: running")
                    else:
                        continue
                    waiting.remove(name)
                    if name in outcomes:
                        tell(_said(outcomes[name]))
                for name, task in list(running.items()):
                    if task.over():
                        del running[name]
                        outcomes[name] = task.outcome()
                        tell(_said(outcomes[name]))
                time.sleep(0.05)
        finally:  # an interrupt, or an error of ours
            for task in running.values():
                task.kill()
    return [outcomes[name] for name in chosen.order]


def _said(outcome: Outcome) -> str:
    if outcome.state == "done":
        return f"{outcome.name}: done in {outcome.seconds:.0f} s"
    if outcome.state == "cached":
        return f"{outcome.name}: up to date"
    message = outcome.error["message"].split("\n")[0]
    return f"{outcome.name}: {outcome.state} ({outcome.error['name']}: {message})"


class _Task:
    """One notebook at work in its own process and partial folder."""

    def __init__(self, chosen: Plan, name: str, scratch: Path, jobs: int, timeout: float | None) -> None:
        self.chosen, self.name, self.timeout = chosen, name, timeout
        self.notebook = chosen.known[name]
        self.folder = figures_folder(chosen.profile) / name
        self.partial = self.folder.with_name(store.TEMP_PREFIX + name)
        self.partial.mkdir(parents=True)
        executed = root() / "build" / "executed" / chosen.profile
        executed.mkdir(parents=True, exist_ok=True)
        self.executed, self.failed = executed / f"{name}.ipynb", executed / f"{name}-failed.ipynb"
        self.output, self.result = scratch / f"{name}.ipynb", scratch / f"{name}.result.json"
        self.log = scratch / f"{name}.log"
        # What the results depend on is taken now: an edit while the notebook runs makes them stale.
        self.wanted = cache.inputs(self.notebook, chosen.values[name], chosen.shared, chosen.profile)
        spec = {
            "notebook": str(self.notebook.path),
            "output": str(self.output),
            "parameters": chosen.changes[name],
            "result": str(self.result),
            "socket": str(scratch / name[:2]),  # short: a socket's path has 108 bytes at most
        }
        store.write_json(scratch / f"{name}.spec.json", spec)
        self.begun = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hrlib.lab.execute", str(scratch / f"{name}.spec.json")],
                env=self._environment(scratch, jobs),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _environment(self, scratch: Path, jobs: int) -> dict[str, str]:
        threads = str(max(1, cpus() // jobs))
        return {
            **os.environ,
            "HRLAB_LIVE": "0",
            "HRLAB_OUT": str(self.partial),
            "HRLAB_PROFILE": self.chosen.profile,
            "HRLAB_ROOT": str(root()),
            "HRLAB_UPSTREAM": str(self.folder.parent),
            "JUPYTER_PREFER_ENV_PATH": "1",  # "python3" is the kernel of this environment
            "JUPYTER_RUNTIME_DIR": str(scratch / "jupyter"),
            "MKL_NUM_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONHASHSEED": "0",
        }

    def over(self) -> bool:
        """Whether the process has ended (it is ended here when its time is up)."""
        if self.process.poll() is None and self.timeout and time.monotonic() - self.begun > self.timeout:
            kill_tree(self.process.pid)
            self.process.wait()
            self._error("Timeout", f"still running after {self.timeout:.0f} s")
        return self.process.poll() is not None

    def kill(self) -> None:
        """End the process and remove what it left."""
        kill_tree(self.process.pid)
        self.process.wait()
        shutil.rmtree(self.partial, ignore_errors=True)

    def outcome(self) -> Outcome:
        """Judge the run by its error and its files, and put the results in place."""
        seconds = time.monotonic() - self.begun
        if not self.result.exists():
            code = self.process.returncode
            how = f"signal {-code}" if code < 0 else f"status {code}"
            self._error(
                "WorkerDied", f"the process that ran the notebook ended with {how}", self.log.read_text()[-2000:]
            )
        error = store.read_json(self.result)["error"]
        # The executed notebook never decides: after a dead kernel it says that all is well.
        if error is None and (problems := verify.problems(self.partial, self.notebook)):
            error = {"name": "Results", "message": "; ".join(problems), "cell": None, "trace": ""}
        if self.output.exists():
            with store.atomic(self.failed if error else self.executed) as temp:
                shutil.copyfile(self.output, temp)
        if error:
            shutil.rmtree(self.partial, ignore_errors=True)
            cache.forget(self.name, self.chosen.profile)
            return Outcome(self.name, "failed", seconds, error)
        self.failed.unlink(missing_ok=True)
        _replace_folder(self.partial, self.folder)
        cache.commit(self.name, self.chosen.profile, self.wanted, seconds)
        return Outcome(self.name, "done", seconds)

    def _error(self, name: str, message: str, trace: str = "") -> None:
        error = {"name": name, "message": message, "cell": None, "trace": trace}
        store.write_json(self.result, {"error": error})


_OLD = ".old-"


def _replace_folder(new: Path, final: Path) -> None:
    """Put `new` in the place of `final`. A kill in between is repaired by `_clean_up`."""
    old = final.with_name(_OLD + final.name)
    if final.exists():
        os.rename(final, old)
    os.rename(new, final)
    shutil.rmtree(old, ignore_errors=True)


def _clean_up(figures: Path) -> None:
    """Undo what a killed run left: half-done folders go, a folder that was moved aside comes back."""
    figures.mkdir(parents=True, exist_ok=True)
    for old in figures.glob(_OLD + "*"):
        final = old.with_name(old.name.removeprefix(_OLD))
        if final.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, final)
    for partial in figures.glob(store.TEMP_PREFIX + "*"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    store.sweep_temps(root() / "build")
