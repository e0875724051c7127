"""Tables of runs on Dask: many settings, one task, any number of workers; nothing is done twice, nothing is lost.

A run is a dict of JSON settings, or a frozen dataclass of them; a task is an importable function that performs it::

    def perform(*, image, loss) -> Measured   # or perform(settings: Settings): the numbers, and the files to keep

    swept = sweep(perform, [{"image": "portrait:1", "loss": "vgg_conv"}, ...], name="my_losses", workers=2)
    swept.table                               # a row a run: settings, numbers, error

Each run is written atomically as soon as it ends, its description last; only a run with a description counts as
finished. A sweep that is killed and started again therefore repeats at most the runs that were in progress, and ends
with the same table. A failed run stays in the table with its error, and the next sweep tries it again.

A run is recognised by its settings, by the content of the files they name ("file:PATH", or a path with a suffix; in
lists and dicts, too; relative to the current directory), and by whatever else decides its numbers: the code of the
task, of its dataclass and of everything they import from this library, the catalogue of weights, and the versions of
Python, torch and the other packages of `sweep_keys.PACKAGES`. Old results stay in build/sweeps; delete the folder to
free the disk.

Recorded runs, `sweep(..., keep="table2")`, are runs of hours whose results belong to the repository, in
data/recorded/table2. The code and the versions of packages do not decide whether such a run is finished: they are
written beside its numbers, with the machine. `sweep(..., keep="table2", record=False)` reads what is there and performs
the others in build/sweeps; `kept(perform, runs, "table2")` reads what is there and performs nothing.

Runs that differ in their picture alone can be performed in a batch, `sweep(..., together=perform_all, batch=4)`: on a
CPU four small pictures take two thirds of the time that they take one by one, and each must end as it would alone.

Where runs are performed::

    workers=0                                in this process, one after the other
    workers=2                                two processes here, which share the machine's threads; with CUDA one a GPU
    HRLAB_SCHEDULER=tcp://10.0.0.5:8786      on the workers of that scheduler, however they were started

The last is also `hrlab run --scheduler ADDRESS`; the README shows it for SLURM. Such workers need this library, its
data folder and the pictures under the same paths (a shared file system), and should have one thread for tasks each
(`--nthreads 1`). Workers may come and go: another takes over what a lost worker was doing.

Why results are kept here and not by joblib.Memory or Dask: joblib keys a function's own source and arguments, not the
modules it imports, the files it reads or the weights; Dask keeps results only as long as its scheduler lives.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .. import devices, image, store
from ..errors import BatchError, StoreError, number, plain
from ..lab.place import RECORDED, cpus, root
from ..lab.progress_bar import progress
from . import sweep_keys, sweep_workers

if TYPE_CHECKING:
    import pandas as pd
    from dask.distributed import Client
    from torch import Tensor

T = TypeVar("T")
LOOK = 10  # seconds between two checks for new workers


@dataclass(frozen=True)
class Measured:
    """What a task returns: numbers or words by column, and the bytes of files by name.

    A number may be NaN or infinite, such as the PSNR of equal pictures.
    """

    values: Mapping[str, float | str | None]
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """A finished sweep.

    table: a row a run, in the order of the runs: the settings, the task's values, and "error" ("" when there is none);
    it does not depend on when or where the runs were performed. seconds: what each run took on its worker.
    performed: how many runs this call performed.
    """

    table: pd.DataFrame
    seconds: pd.Series
    performed: int
    _places: tuple[Path, ...] = field(repr=False)

    def file(self, row: int, name: str) -> Path:
        """The file `name` that the task of a row left; `StoreError` when that run failed or left no such file."""
        path = self._places[row].with_suffix("") / name
        if self.table["error"][row] or not path.exists():
            raise StoreError(
                f"row {row} has no file {name!r}: {self.table['error'][row] or 'its task left none'}",
                expected="a run that succeeded and left that file",
                do='look at the column "error" of the table',
            )
        return path

    def image(self, row: int, name: str = "") -> Tensor:
        """The picture [1, 3, H, W] in [-1, 1], of 8 bits, that a row left as `name`, or as image.png or image.webp."""
        lossy = self._places[row].with_suffix("") / "image.webp"
        return image.read(self.file(row, name or ("image.webp" if lossy.exists() else "image.png")))

    @property
    def recorded(self) -> list[dict[str, Any]]:
        """Of each row, how it was made if it is recorded (see `sweep_keys.circumstances`), else {}."""
        return [store.read_json(place).get("made", {}) for place in self._places]

    def made(self) -> str:
        """How the recorded runs among them were made, in a phrase: how many, hours, machines, days; "" if none was."""
        found = list(zip(self.recorded, self.seconds, strict=True))
        if not (notes := [note for note, _ in found if note]):
            return ""
        machines, days = (sorted({note[name].split(", ")[0] for note in notes}) for name in ("machine", "day"))
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        hours = sum(s for note, s in found if note) / 3600
        return (
            f"{len(notes)} recorded run{'s' * (len(notes) != 1)}, {hours:.1f} hours on {' and '.join(machines)}, {when}"
        )

    def at(self, rows: Sequence[int]) -> Results:
        """The same sweep with only these rows, in this order; a row may be given more than once."""
        table, seconds = (part.iloc[list(rows)].reset_index(drop=True) for part in (self.table, self.seconds))
        return Results(table, seconds, self.performed, tuple(self._places[i] for i in rows))


def sweep(
    task: Callable[..., Measured],
    runs: Sequence[Any],
    *,
    name: str,
    workers: int = 0,
    scheduler: str | None = None,
    label: str = "",
    estimate: Callable[..., float] | None = None,
    within: Sequence[str] = ("image", "seed"),
    keep: str = "",
    record: bool = True,
    together: Callable[[Sequence[Any]], Sequence[Measured]] | None = None,
    batch: int = 1,
) -> Results:
    """Perform those of `runs` that are not finished yet, and return them all.

    Args:
        task: a function of a module that takes the settings of a run as keywords, or the dataclass.
        runs: dicts, or objects of one dataclass, of JSON values, all different.
        name: of the folder below build/sweeps.
        workers: processes on this machine, 0 for none (see above); ignored when a scheduler is given.
        scheduler: address of a Dask scheduler; None takes $HRLAB_SCHEDULER, "" insists on this machine.
        label: for the progress line.
        estimate: takes what `task` takes and returns the seconds that the run will need. It is called on a worker for
            one run of each row before anything else starts, and the prediction is printed. A row is a group of runs
            that differ only in the settings named in `within`.
        within: see `estimate`.
        keep: a folder below data/recorded for recorded runs (see above); "" keeps the results in build/sweeps.
        record: False only reads that folder, and keeps the results of other runs in build/sweeps.
        together: a function of the same module as `task` that performs several runs, which differ in "image" only.
            Should it fail, they are performed one by one.
        batch: how many runs it gets at most.

    Raises:
        BatchError: a task that cannot be imported; runs that are equal, that JSON cannot hold, that name a folder, or
            that have different settings; a scheduler that does not answer. Errors of the task itself go into the table.
        StoreError: another sweep of that name is at work, or the name is no folder below build/sweeps.
        InvalidValue: `workers`, `batch`.
    """
    sweep_keys.check_task(task)
    batch = number("batch", batch, "whole [1, inf)") if together else 1
    asked = sweep_keys.dicts(runs)
    runs, files, hashes = sweep_keys.hashed(runs)
    sources = sweep_keys.sources(task, runs)
    version = sweep_keys.version(sources)
    sweeps, recorded = root() / "build" / "sweeps", bool(keep) and record
    folder, lock = store.inside(sweeps, name), store.inside(sweeps, name) / "sweep.lock"
    places = [folder / f"{key}.json" for key in sweep_keys.keys(task, runs, files, version)]
    if keep:
        shelf = store.inside(root() / RECORDED, keep)
        shelved = [shelf / f"{key}.json" for key in sweep_keys.keys(task, runs, files, "")]
        there = [record or _succeeded(place) for place in shelved]
        places = [on_shelf if here else place for on_shelf, here, place in zip(shelved, there, places, strict=True)]
    if recorded:
        folder, lock = shelf, sweeps / "recorded" / keep / "sweep.lock"
        devices.keep_memory()  # before a thread of this process performs runs of many minutes
    todo = [i for i, place in enumerate(places) if not _succeeded(place)]
    if todo:
        address = os.environ.get(sweep_workers.ENVIRONMENT, "") if scheduler is None else scheduler
        with (
            store.alone(lock, f"sweep named {name}"),
            sweep_workers.client(workers, address, frugal=not recorded) as client,
        ):
            store.sweep_temps(folder)
            if estimate is not None:
                _predict(client, estimate, runs, todo, within)
            work = functools.partial(_perform, task, together, sources, version)
            groups = _groups(sweep_keys.dicts(runs), todo, batch)
            for i, done in progress(_performed(client, work, runs, groups), len(todo), label or name, unit="run"):
                if sweep_keys.named_files(runs[i], hashes) != files[i]:
                    done = (None, f"BatchError: {', '.join(files[i])} changed during this run", "", done[-1])
                threads = max(1, cpus() // max(1, workers))
                made = {"made": sweep_keys.circumstances(version, threads)} if recorded else {}
                _write(places[i], sweep_keys.dicts([runs[i]])[0], *done, made)
    return _collect(asked, places, len(todo))


def kept(task: Callable[..., Measured], runs: Sequence[Any], name: str) -> Results:
    """Those of `runs` that are finished in data/recorded/NAME, in their order; `task` is not performed.

    Raises:
        BatchError: as `sweep`. StoreError: there is none.
    """
    asked, folder = sweep_keys.dicts(runs), store.inside(root() / RECORDED, name)
    runs, files, _ = sweep_keys.hashed(runs)
    places = [folder / f"{key}.json" for key in sweep_keys.keys(task, runs, files, "")]
    there = [i for i, place in enumerate(places) if _succeeded(place)]
    if not there:
        raise StoreError(
            f"none of {len(runs)} recorded runs in {folder}",
            expected="runs that the repository ships, or that `hrlab run --profile ffhq` has made",
            do=f"restore them with `git checkout -- {RECORDED / name}`, or make them",
        )
    return _collect([asked[i] for i in there], [places[i] for i in there], 0)


def check_numbers(settings: Any, intervals: Mapping[str, str]) -> None:
    """Check fields of a frozen dataclass from its `__post_init__`, and make them plain numbers.

    intervals: name -> interval, as in `errors.number`, which raises `InvalidValue`.
    """
    for name, value in plain({name: getattr(settings, name) for name in intervals}, intervals).items():
        object.__setattr__(settings, name, value)


def keyed(results: Results, keys: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """`keys`, a row a run, beside results of these runs and "error"; also prints a line for each run that failed.

    columns: name in the new table -> column of the results, which is empty if no run has it.
    """
    import pandas as pd

    found = results.table.reindex(columns=[*columns.values(), "error"]).set_axis([*columns, "error"], axis=1)
    for i in found.index[found["error"] != ""]:
        print(f"failed: {', '.join(map(str, keys.loc[i]))}: {found['error'][i]}")
    return pd.concat([keys, found], axis=1)


# --- what is finished -------------------------------------------------------------------------------------------------


def _finished(place: Path) -> dict[str, Any] | None:
    """The description of a run; None when it is missing, damaged, or does not match its files."""
    try:
        match found := store.read_json(place):
            case {"values": dict(), "files": dict(files), "error": str(), "seconds": float() | int()}:
                whole = all(store.sha256(place.with_suffix("") / name) == sha for name, sha in files.items())
                return {**found, "values": {k: _read(v) for k, v in found["values"].items()}} if whole else None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, StoreError, KeyError, TypeError, ValueError):
        pass  # the last three: numbers or file names that `_write` would not have written
    return None


def _succeeded(place: Path) -> bool:
    """Whether a run is finished, without an error."""
    found = _finished(place)
    return found is not None and not found["error"]


def _written(value: float | str | None) -> Any:
    """A value as JSON, which has no word for NaN and infinity: {"float": "nan"}."""
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _read(value: Any) -> float | str | None:
    """The value that `_written` was given."""
    return float(value["float"]) if isinstance(value, dict) else value


def _write(
    place: Path,
    run: Mapping[str, Any],
    measured: Measured | None,
    error: str,
    trace: str,
    seconds: float,
    made: Mapping[str, Any],
) -> None:
    """Keep a run's results: first the files, then the description, which marks it as finished.

    made: further entries of the description, which say how a recorded run was made.
    """
    files = dict(measured.files) if measured else {}
    for name, data in files.items():
        store.write_bytes(store.inside(place.with_suffix(""), name), data)
    found = {
        "run": run,
        "values": {k: _written(v) for k, v in measured.values.items()} if measured else {},
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "error": error,
        "trace": trace,
        "seconds": round(seconds, 3),
        **made,
    }
    store.write_json(place, found)


def _collect(runs: Sequence[dict[str, Any]], places: Sequence[Path], performed: int) -> Results:
    import pandas as pd

    found = [_finished(place) for place in places]
    if lost := [str(p) for p, f in zip(places, found, strict=True) if f is None]:
        raise StoreError(f"{lost[0]} vanished", expected="the results just written", do="run the sweep again")
    rows = [{**run, **f["values"], "error": f["error"]} for run, f in zip(runs, found, strict=True)]
    table = pd.DataFrame(rows)
    table["error"] = table.pop("error")  # last, whichever run came first
    return Results(table, pd.Series([f["seconds"] for f in found], name="seconds"), performed, tuple(places))


# --- on the workers ---------------------------------------------------------------------------------------------------


@functools.cache
def _loaded(sources: tuple[Path, ...]) -> str:
    """The version of a task that this process has in memory: that of its first run."""
    return sweep_keys.version(sources)


def _call(function: Callable[..., T], run: Any) -> T:
    return function(**run) if isinstance(run, dict) else function(run)


Done = tuple[Measured | None, str, str, float]  # what was measured, error, traceback, seconds


def _perform(
    task: Callable[..., Measured],
    together: Callable[[Sequence[Any]], Sequence[Measured]] | None,
    sources: tuple[Path, ...],
    version: str,
    runs: Sequence[Any],
) -> list[Done]:
    """Perform one run, or several together. A task's error is a result: Dask need not pickle it."""
    sweep_workers.take_share()
    begun = time.perf_counter()
    try:
        if _loaded(sources) != version:
            raise BatchError(
                f"a worker that loaded other sources, networks or libraries for {task.__qualname__} than there are now",
                expected="the same on all workers",
                do="restart the workers, or this kernel if it performs the runs itself",
            )
        found = [_checked(m) for m in ([_call(task, runs[0])] if len(runs) == 1 else together(runs))]
        if len(found) != len(runs):
            raise BatchError(
                f"{len(found)} results for {len(runs)} runs", expected="one for each", do="correct `together`"
            )
        return [(measured, "", "", (time.perf_counter() - begun) / len(runs)) for measured in found]
    except Exception as e:
        if len(runs) > 1:
            return [done for run in runs for done in _perform(task, None, sources, version, [run])]
        # the name of a file may hold bytes that are no Unicode
        words = [
            t.encode(errors="backslashreplace").decode() for t in (f"{type(e).__name__}: {e}", traceback.format_exc())
        ]
        return [(None, *words, time.perf_counter() - begun)]


def _checked(measured: Any) -> Measured:
    """What a task returned, its values plain (a NumPy number, or a tensor of one element, is a float)."""
    try:
        values = {k: v if v is None or isinstance(v, (str, int)) else float(v) for k, v in measured.values.items()}
        files = {store.inside("files", name) and name: bytes(memoryview(d)) for name, d in measured.files.items()}
        "".join([*values, *(v for v in values.values() if isinstance(v, str)), *files]).encode()  # all Unicode
    except (AttributeError, TypeError, ValueError, RuntimeError) as e:  # RuntimeError: a tensor of several elements
        raise BatchError(
            f"a task that returned {type(measured).__name__} ({e})",
            expected="Measured: a number, a word or None for each column, and bytes for each file",
            do="return Measured(values, files)",
        ) from e
    return Measured(values, files)


def _groups(settings: Sequence[Mapping[str, Any]], todo: Sequence[int], batch: int) -> list[list[int]]:
    """The runs to do, in groups of at most `batch` that differ in their picture alone."""
    alike: dict[str, list[list[int]]] = {}
    for i in todo:
        groups = alike.setdefault(repr({k: v for k, v in settings[i].items() if k != "image"}), [])
        if not groups or len(groups[-1]) == batch:
            groups.append([])
        groups[-1].append(i)
    return sorted((group for groups in alike.values() for group in groups), key=lambda group: group[0])


def _performed(
    client: Client, work: Callable[[Sequence[Any]], list[Done]], runs: Sequence[Any], groups: Sequence[list[int]]
) -> Iterator[tuple[int, Done]]:
    """(number of the run, its end), in the order in which runs end.

    A group is handed out only when a worker is free, because a worker that outlives this process would go on with its
    queue. Workers that join later get their first runs within `LOOK` seconds.
    """
    from dask.distributed import wait
    from distributed.client import FuturesCancelledError

    waiting, flying = list(reversed(groups)), {}
    while waiting or flying:
        hands = max(1, sum(client.nthreads().values()))
        while waiting and len(flying) < hands:
            group = waiting.pop()
            flying[client.submit(work, [runs[i] for i in group], pure=False)] = group
        try:
            with client.as_current():
                done = wait(list(flying), timeout=LOOK, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            continue
        except FuturesCancelledError as e:
            raise BatchError(
                f"the Dask scheduler is gone ({e})",
                expected="a scheduler that runs until the sweep ends",
                do="start a scheduler and run the sweep again: finished runs are kept",
            ) from e
        for future in done:
            group = flying.pop(future)
            if future.status == "finished":
                yield from zip(group, future.result(), strict=True)
            else:  # its worker died, `ATTEMPTS` times
                lost = (None, f"{type(future.exception()).__name__}: {future.exception()}", "", 0.0)
                yield from ((i, lost) for i in group)
            future.release()  # or the pictures of finished runs would fill the memory


def _predict(
    client: Client, estimate: Callable[..., float], runs: Sequence[Any], todo: Sequence[int], within: Sequence[str]
) -> None:
    """Print the time that each row will take, predicted from one run of it."""
    settings, rows = sweep_keys.dicts([runs[i] for i in todo]), {}
    fixed = [name for name in settings[0] if len({repr(run[name]) for run in settings}) == 1]
    for i, run in zip(todo, settings, strict=True):
        said = ", ".join(f"{k} {v}" for k, v in run.items() if k not in within and k not in fixed)
        rows.setdefault(said or "all runs", []).append(runs[i])
    futures = {said: client.submit(_estimated, estimate, group[0], pure=False) for said, group in rows.items()}
    hands, total = max(1, sum(client.nthreads().values())), 0.0
    print(f"predicted on {hands} worker{'s' if hands > 1 else ''}, before anything starts:")
    for said, future in futures.items():
        each, count = future.result(), len(rows[said])
        if isinstance(each, str):
            print(f"  {said}: no prediction ({each})")
            continue
        total += each * count
        print(f"  {said}: {count} of {_words(each)}, {_words(each * count / min(hands, count))}")
    print(f"  together {_words(total / hands)}", flush=True)


def _estimated(estimate: Callable[..., float], run: Any) -> float | str:
    try:
        return _call(estimate, run)
    except Exception as e:  # the run itself will say more
        return f"{type(e).__name__}: {e}".splitlines()[0]


def _words(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86_400:.3g} days"
