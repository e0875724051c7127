"""Run notebooks headlessly: in dependency order, in parallel, resumable, and honest about what failed.

A notebook runs in a folder aside. Its results are checked, the folder takes the place of the old one by a rename, and
the status file is written last. A run that is killed at any moment leaves the old results or the new ones, a failed one
changes nothing, and one that finds the same again (but for measured seconds and bytes) changes nothing either.
"""

from __future__ import annotations

import functools
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
from ..errors import BatchError, StoreError
from ..lab.notebook import Notebook, catalogue, effective, find
from ..lab.place import cpus, figures_folder, root
from ..lab.provenance import Hashes
from ..lab.records import FILE
from . import cache, report, verify
from .execute import kill_tree

WORK = ".hrlab"  # in a folder of results: where those of a run at work are, and old ones on their way out


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
    values: Mapping[str, dict[str, Any]]  # all parameters; a cell that somebody has edited decides none of them
    around: Mapping[str, dict[str, str]] = field(repr=False)  # by notebook; see `cache.surroundings`

    def why(self, name: str) -> str:
        """Why a notebook has to run now, "" when its results are good."""
        wanted = cache.inputs(self.known[name], self.values[name], self.around[name], self.profile)
        return cache.stale(name, wanted, self.profile)


def plan(names: Sequence[str] = (), profile: str = "laptop") -> Plan:
    """Choose notebooks (all without names) with everything they need, and validate their parameters.

    Raises:
        UnknownName, BatchError: an unknown notebook, profile or parameter, a wrong type, or a circle of needs.
    """
    known = catalogue()
    values = effective(profile, known)
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
    hashes = Hashes()
    around = cache.surroundings([known[name] for name in order], hashes, profile)
    hashes.save()
    return Plan(profile, known, tuple(order), values, around)


def run(
    chosen: Plan,
    *,
    jobs: int = 1,
    fresh: Sequence[str] = (),
    timeout: float | None = None,
    tell: Callable[[str], None] = print,
) -> list[Outcome]:
    """Run a plan, and write index and ledger when something is good; returns an outcome for every notebook in it.

    Args:
        chosen: see `plan`.
        jobs: how many notebooks run at a time; the machine's threads are divided among them.
        fresh: notebooks that run even though their results are good.
        timeout: seconds a notebook may take.
        tell: called with a line of text when something happens.

    Raises:
        StoreError: another run of the same profile is working, or results cannot be written.
    """
    figures = figures_folder(chosen.profile)
    lock = root() / "build" / f"run-{chosen.profile}.lock"
    with (
        store.alone(lock, f"`hrlab run` of profile {chosen.profile}"),
        tempfile.TemporaryDirectory(prefix="hrlab-") as scratch,
    ):
        _recover(store.ready(figures))
        store.sweep_temps(root() / "build", older=86_400)  # others may be at work there, but not for a day on one file
        outcomes: dict[str, Outcome] = {}
        waiting, running = list(chosen.order), {}
        good = functools.cache(lambda name: name not in fresh and not chosen.why(name))  # it reads all files: once each
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
                    elif good(name):
                        outcomes[name] = Outcome(name, "cached")
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
            _recover(figures)
            if any(outcome.state in ("done", "cached") for outcome in outcomes.values()):
                report.write(chosen.profile, chosen.known)
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
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise StoreError(f"{self.folder} is no folder", expected=f"a place for {name}", do="move it away")
        self.partial = store.ready(self.folder.parent / WORK / "new" / name)
        executed = store.ready(root() / "build" / "executed" / chosen.profile)
        self.executed, self.failed = executed / f"{name}.ipynb", executed / f"{name}-failed.ipynb"
        self.output, self.result = scratch / f"{name}.ipynb", scratch / f"{name}.result.json"
        self.log = scratch / f"{name}.log"
        # What the results depend on is taken now: an edit while the notebook runs makes them stale.
        self.wanted = cache.inputs(self.notebook, chosen.values[name], chosen.around[name], chosen.profile)
        spec = {
            "notebook": str(self.notebook.path),
            "output": str(self.output),
            "parameters": chosen.values[name],  # all: what somebody tried in the notebook's own cell decides nothing
            "result": str(self.result),
            "socket": str(scratch / name[:2]),  # short: a socket's path has 108 bytes at most
        }
        store.write_json(scratch / f"{name}.spec.json", spec)
        self.begun = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hrlib.runner.execute", str(scratch / f"{name}.spec.json")],
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
        if error is None:
            before = _made_before(self.folder, self.chosen.profile)
            if problems := verify.problems(self.partial, self.notebook) or _clashes(self.partial, self.folder, before):
                error = {"name": "Results", "message": "; ".join(problems), "cell": None, "trace": ""}
        if error:
            shutil.rmtree(self.partial, ignore_errors=True)  # first: a full disk may be what went wrong
        if self.output.exists():
            with store.atomic(self.failed if error else self.executed) as temp:
                shutil.copyfile(self.output, temp)
        if error:
            cache.failed(self.name, self.chosen.profile, error=error, seconds=seconds)
            return Outcome(self.name, "failed", seconds, error)
        self.failed.unlink(missing_ok=True)
        if verify.repeated(self.partial, self.folder, self.notebook, before):
            files = cache.files(self.folder, before)
            shutil.rmtree(self.partial)
        else:
            files = cache.files(self.partial)
            _replace_folder(self.partial, self.folder, before)
        cache.succeeded(self.name, self.chosen.profile, inputs=self.wanted, files=files, seconds=seconds)
        return Outcome(self.name, "done", seconds)

    def _error(self, name: str, message: str, trace: str = "") -> None:
        error = {"name": name, "message": message, "cell": None, "trace": trace}
        store.write_json(self.result, {"error": error})


def _made_before(folder: Path, profile: str) -> set[str]:
    """The files in a notebook's folder that its last run made, by status and sidecars; all others are the user's."""
    found = set(cache.statuses(profile).get(folder.name, {}).get("files", ()))
    for name, side in verify.sidecars(folder).items():
        found |= {f"{name}.json", *side["files"]}
    return found | {FILE}


def _theirs(final: Path, before: set[str]) -> list[Path]:
    """What is in a folder of results and not ours: files, symlinks (whatever they point to) and empty folders."""
    found = (path for path in final.rglob("*") if path.relative_to(final).as_posix() not in before)
    return [path for path in found if not _is_folder(path) or not any(path.iterdir())]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _clashes(new: Path, final: Path, before: set[str]) -> list[str]:
    """What the user has where results would go, and is not the same as they."""
    problems = []
    for path in _theirs(final, before):
        name = path.relative_to(final)
        above = [new / parent for parent in reversed(name.parents)]
        met = next(
            (p for p in above if not _is_folder(p)), new / name
        )  # a file of ours may be where a folder is theirs
        if not os.path.lexists(met) or (_is_folder(path) and _is_folder(met)):
            continue
        plain = path.is_file() and not path.is_symlink() and met == new / name and met.is_file()
        if not (plain and store.sha256(path) == store.sha256(met)):
            problems.append(f"{path} is in the way of a result, and no run is known to have made it: move it away")
    return problems


def _replace_folder(new: Path, final: Path, before: set[str]) -> None:
    """Put `new` in the place of `final`, and keep what is not ours. A kill in between is repaired by `_recover`."""
    aside = final.parent / WORK / "old" / final.name
    aside.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        for path in _theirs(final, before):
            to = new / path.relative_to(final)
            if _is_folder(path):
                to.mkdir(parents=True, exist_ok=True)
            elif not os.path.lexists(to):
                _copy(path, to)  # until the old folder goes, it is in both
        os.rename(final, aside)
    os.rename(new, final)
    shutil.rmtree(aside, ignore_errors=True)


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, to, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(path, to, follow_symlinks=False)


def _recover(figures: Path) -> None:
    """Undo what a killed run left: a folder that was moved aside comes back, half-done ones go."""
    for aside in (figures / WORK / "old").glob("*"):
        if not (figures / aside.name).exists():
            os.rename(aside, figures / aside.name)
    shutil.rmtree(figures / WORK, ignore_errors=True)
