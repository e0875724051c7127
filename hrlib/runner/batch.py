"""Run notebooks headlessly: in dependency order, in parallel, resumable, and honest about what failed.

A notebook writes to a temporary folder. Its results are checked, a rename puts the folder in the place of the old one,
and the status file is written last. A run killed at any moment leaves either the old results or the new ones; a failed
run changes nothing, and neither does one that gets the same results again (apart from measured seconds and bytes).

By hand: doit would replace the forty lines of the loop in `run`, but nothing of what needs care here: the swap of whole
folders, the user's files among the results, dead kernels, and a status file that is committed.
"""

from __future__ import annotations

import functools
import json
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
from . import cache, report
from .execute import kill_tree
from .verify import Results

WORK = ".hrlab"  # subfolder of the results: those of a run in progress, and old ones about to be deleted


@dataclass(frozen=True)
class Job:
    """How a notebook fared in a batch: "done", "cached", "failed" or "blocked" (a notebook it needs failed)."""

    name: str
    state: str
    seconds: float = 0.0
    error: dict[str, Any] | None = None  # {"name", "message", "cell", "trace"}


@dataclass(frozen=True)
class Plan:
    """Notebooks in an order in which each comes after those it needs."""

    profile: str
    known: Mapping[str, Notebook]
    order: tuple[str, ...]
    values: Mapping[str, dict[str, Any]]  # all parameters; the notebooks' own cells do not count
    around: Mapping[str, dict[str, str]] = field(repr=False)  # by notebook; see `cache.surroundings`

    def why(self, name: str) -> str:
        """Why a notebook has to run; "" if its results are up to date."""
        wanted = cache.inputs(self.known[name], self.values[name], self.around[name], self.profile)
        return cache.stale(name, wanted, self.profile)


def plan(names: Sequence[str] = (), profile: str = "laptop") -> Plan:
    """Choose notebooks (all by default) together with those they need, and validate their parameters.

    Raises:
        UnknownName: an unknown notebook, profile or parameter. InvalidValue: a parameter of another type.
        BatchError: a damaged notebook or profiles.yaml, or notebooks that need each other in a circle.
    """
    known = catalogue()
    values = effective(profile, known)
    order: list[str] = []

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise BatchError(
                f"{' -> '.join((*above, name))}: these notebooks need each other",
                expected="no circle",
                do="remove one of them from another's `needs`",
            )
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
) -> list[Job]:
    """Run a plan and, unless everything failed, write the index and the ledger; returns a job for each notebook.

    Args:
        chosen: see `plan`.
        jobs: how many notebooks run in parallel; they share the machine's threads.
        fresh: notebooks that run even if their results are up to date.
        timeout: seconds a notebook may take.
        tell: called with a line of text for each event.

    Raises:
        StoreError: another run of the same profile is in progress, or results cannot be written.
    """
    figures = figures_folder(chosen.profile)
    lock = root() / "build" / f"run-{chosen.profile}.lock"
    with (
        store.alone(lock, f"`hrlab run` of profile {chosen.profile}"),
        tempfile.TemporaryDirectory(prefix="hrlab-") as scratch,
    ):
        _recover(store.ready(figures))
        store.sweep_temps(root() / "build", older=86_400)  # younger ones may belong to another process
        ended: dict[str, Job] = {}
        waiting, running = list(chosen.order), {}
        good = functools.cache(lambda name: name not in fresh and not chosen.why(name))  # it hashes all results
        try:
            while waiting or running:
                for name in list(waiting):
                    needs = [find(n, chosen.known) for n in chosen.known[name].needs]
                    bad = [n for n in needs if n in ended and ended[n].state in ("failed", "blocked")]
                    if bad:
                        error = {"name": "Blocked", "message": f"needs {', '.join(bad)}", "cell": None, "trace": ""}
                        ended[name] = Job(name, "blocked", error=error)
                    elif any(n not in ended for n in needs):
                        continue
                    elif good(name):
                        ended[name] = Job(name, "cached")
                    elif len(running) < jobs:
                        running[name] = _Process(chosen, name, Path(scratch), jobs, timeout)
                        tell(f"{name}: running")
                    else:
                        continue
                    waiting.remove(name)
                    if name in ended:
                        tell(_line(ended[name]))
                for name, process in list(running.items()):
                    if process.over():
                        del running[name]
                        ended[name] = process.finish()
                        tell(_line(ended[name]))
                time.sleep(0.05)
        finally:  # an interrupt, or an error of ours
            for process in running.values():
                process.kill()
            _recover(figures)
            if any(job.state in ("done", "cached") for job in ended.values()):
                report.write(chosen.profile, chosen.known)
    return [ended[name] for name in chosen.order]


def _line(job: Job) -> str:
    if job.state == "done":
        return f"{job.name}: done in {job.seconds:.0f} s"
    if job.state == "cached":
        return f"{job.name}: up to date"
    message = job.error["message"].split("\n")[0]
    return f"{job.name}: {job.state} ({job.error['name']}: {message})"


class _Process:
    """The process that runs one notebook, and the partial folder its results go to."""

    def __init__(self, chosen: Plan, name: str, scratch: Path, jobs: int, timeout: float | None) -> None:
        self.chosen, self.name, self.timeout = chosen, name, timeout
        self.notebook = chosen.known[name]
        self.folder = figures_folder(chosen.profile) / name
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            what = f"{self.folder} is not a folder"
            raise StoreError(what, expected=f"a folder for the results of {name}, or nothing", do="move it away")
        self.partial = store.ready(self.folder.parent / WORK / "new" / name)
        executed = store.ready(root() / "build" / "executed" / chosen.profile)
        self.executed, self.failed = executed / f"{name}.ipynb", executed / f"{name}-failed.ipynb"
        self.output, self.result = scratch / f"{name}.ipynb", scratch / f"{name}.result.json"
        self.log = scratch / f"{name}.log"
        # Taken before the start: an edit while the notebook runs makes its results stale.
        self.wanted = cache.inputs(self.notebook, chosen.values[name], chosen.around[name], chosen.profile)
        spec = {
            "notebook": str(self.notebook.path),
            "output": str(self.output),
            "parameters": chosen.values[name],  # all of them: the values in the notebook's own cell do not count
            "result": str(self.result),
            "socket": str(scratch / name[:2]),  # short: the path of a socket has at most 108 bytes
        }
        # not sorted, as write_json does: the order of a mapping of domains decides the order of panels and rows
        store.write_bytes(scratch / f"{name}.spec.json", json.dumps(spec).encode())
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
        """Whether the process has ended; kills it if its time is up."""
        if self.process.poll() is None and self.timeout and time.monotonic() - self.begun > self.timeout:
            kill_tree(self.process.pid)
            self.process.wait()
            self._error("Timeout", f"still running after {self.timeout:.0f} s")
        return self.process.poll() is not None

    def kill(self) -> None:
        """Kill the process and remove its partial results."""
        kill_tree(self.process.pid)
        self.process.wait()
        shutil.rmtree(self.partial, ignore_errors=True)

    def finish(self) -> Job:
        """Check the error and the files that the process left, and put good results in place."""
        seconds = time.monotonic() - self.begun
        if not self.result.exists():
            code = self.process.returncode
            how = f"signal {-code}" if code < 0 else f"status {code}"
            self._error(
                "WorkerDied", f"the process that ran the notebook ended with {how}", self.log.read_text()[-2000:]
            )
        error = store.read_json(self.result)["error"]
        # The executed notebook is no evidence: after a dead kernel it shows no error.
        if error is None:
            new, old = Results(self.partial), Results(self.folder)
            before = _made_before(old, self.chosen.profile)
            if problems := new.problems(self.notebook) or _clashes(self.partial, self.folder, before):
                error = {"name": "Results", "message": "; ".join(problems), "cell": None, "trace": ""}
        if error:
            shutil.rmtree(self.partial, ignore_errors=True)  # first: the disk may be full
        if self.output.exists():
            with store.atomic(self.failed if error else self.executed) as temp:
                shutil.copyfile(self.output, temp)
        if error:
            cache.failed(self.name, self.chosen.profile, error=error, seconds=seconds)
            return Job(self.name, "failed", seconds, error)
        self.failed.unlink(missing_ok=True)
        if new.repeat(old, self.notebook, before):
            files = cache.files(self.folder, before)
            shutil.rmtree(self.partial)
        else:
            files = cache.files(self.partial)
            _replace_folder(self.partial, self.folder, before)
        cache.succeeded(self.name, self.chosen.profile, inputs=self.wanted, files=files, seconds=seconds)
        return Job(self.name, "done", seconds)

    def _error(self, name: str, message: str, trace: str = "") -> None:
        error = {"name": name, "message": message, "cell": None, "trace": trace}
        store.write_json(self.result, {"error": error})


def _made_before(old: Results, profile: str) -> set[str]:
    """The files of a notebook that its last run made, by status and sidecars; all others are the user's."""
    names = set(cache.statuses(profile).get(old.folder.name, {}).get("files", ()))
    for name, side in old.sidecars.items():
        names |= {f"{name}.json", *side["files"]}
    return names | {FILE}


def _foreign(final: Path, before: set[str]) -> list[Path]:
    """The user's files, symlinks (whatever they point to) and empty folders in a folder of results."""
    others = (path for path in final.rglob("*") if path.relative_to(final).as_posix() not in before)
    return [path for path in others if not _is_folder(path) or not any(path.iterdir())]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _clashes(new: Path, final: Path, before: set[str]) -> list[str]:
    """The user's files that stand where results have to go, unless they are the same."""
    problems = []
    for path in _foreign(final, before):
        name = path.relative_to(final)
        above = [new / parent for parent in reversed(name.parents)]
        # A file of ours may have the name of one of the user's folders.
        met = next((p for p in above if not _is_folder(p)), new / name)
        if not os.path.lexists(met) or (_is_folder(path) and _is_folder(met)):
            continue
        plain = path.is_file() and not path.is_symlink() and met == new / name and met.is_file()
        if not (plain and store.sha256(path) == store.sha256(met)):
            problems.append(f"{path} is in the way of a result, and no known run made it: move it away")
    return problems


def _replace_folder(new: Path, final: Path, before: set[str]) -> None:
    """Put `new` in the place of `final`, keeping the user's files. `_recover` repairs what a kill in between leaves."""
    aside = final.parent / WORK / "old" / final.name
    aside.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        for path in _foreign(final, before):
            to = new / path.relative_to(final)
            if _is_folder(path):
                to.mkdir(parents=True, exist_ok=True)
            elif not os.path.lexists(to):
                _copy(path, to)  # it is in both until the old folder is deleted
        os.rename(final, aside)
    os.rename(new, final)
    shutil.rmtree(aside, ignore_errors=True)


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, to, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(path, to, follow_symlinks=False)


def _recover(figures: Path) -> None:
    """Clean up after a killed run: restore a folder that was moved aside, and delete partial ones."""
    for aside in (figures / WORK / "old").glob("*"):
        if not (figures / aside.name).exists():
            os.rename(aside, figures / aside.name)
    shutil.rmtree(figures / WORK, ignore_errors=True)
