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
written beside its numbers, with the machine. `kept(perform, runs, "table2")` reads what is there and performs nothing.

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

import contextlib
import functools
import hashlib
import logging
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
from . import sweep_keys

if TYPE_CHECKING:
    import pandas as pd
    from dask.distributed import Client
    from torch import Tensor

T = TypeVar("T")
ENVIRONMENT = "HRLAB_SCHEDULER"
PATIENCE = "20 s"  # how long to wait for a scheduler to answer
LOOK = 10  # seconds between two checks for new workers
ATTEMPTS = 3  # a run whose worker has died this often counts as failed


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

    def made(self) -> str:
        """How recorded runs were made, in a phrase: how many, hours, machines, days."""
        notes = [store.read_json(place)["made"] for place in self._places]
        machines, days = (sorted({note[name].split(", ")[0] for note in notes}) for name in ("machine", "day"))
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        hours = self.seconds.sum() / 3600
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

    Raises:
        BatchError: a task that cannot be imported; runs that are equal, that JSON cannot hold, that name a folder, or
            that have different settings; a scheduler that does not answer. Errors of the task itself go into the table.
        StoreError: another sweep of that name is at work, or the name is no folder below build/sweeps.
        InvalidValue: `workers`.
    """
    sweep_keys.check_task(task)
    asked = sweep_keys.dicts(runs)
    runs, files, hashes = sweep_keys.hashed(runs)
    sources = sweep_keys.sources(task, runs)
    version = sweep_keys.version(sources)
    folder = store.inside(root() / "build" / "sweeps", name)
    lock = folder / "sweep.lock"
    if keep:
        folder = store.inside(root() / RECORDED, keep)
        devices.keep_memory()  # before a thread of this process performs runs of many minutes
    places = [folder / f"{key}.json" for key in sweep_keys.keys(task, runs, files, "" if keep else version)]
    todo = [i for i, place in enumerate(places) if not _succeeded(place)]
    if todo:
        address = os.environ.get(ENVIRONMENT, "") if scheduler is None else scheduler
        with store.alone(lock, f"sweep named {name}"), _client(workers, address, frugal=not keep) as client:
            store.sweep_temps(folder)
            if estimate is not None:
                _predict(client, estimate, runs, todo, within)
            for i, done in progress(
                _performed(client, task, sources, version, runs, todo), len(todo), label or name, unit="run"
            ):
                if sweep_keys.named_files(runs[i], hashes) != files[i]:
                    done = (None, f"BatchError: {', '.join(files[i])} changed during this run", "", done[-1])
                made = {"made": sweep_keys.circumstances(version, max(1, cpus() // max(1, workers)))} if keep else {}
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


def _perform(
    task: Callable[..., Measured], sources: tuple[Path, ...], version: str, run: Any
) -> tuple[Measured | None, str, str, float]:
    """(what was measured, error, traceback, seconds). A task's error is a result: Dask need not pickle it."""
    begun = time.perf_counter()
    try:
        if _loaded(sources) != version:
            raise BatchError(
                f"a worker that loaded other sources, networks or libraries for {task.__qualname__} than there are now",
                expected="the same on all workers",
                do="restart the workers, or this kernel if it performs the runs itself",
            )
        return _checked(_call(task, run)), "", "", time.perf_counter() - begun
    except Exception as e:
        # the name of a file may hold bytes that are no Unicode
        words = [
            t.encode(errors="backslashreplace").decode() for t in (f"{type(e).__name__}: {e}", traceback.format_exc())
        ]
        return None, *words, time.perf_counter() - begun


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


def _performed(
    client: Client,
    task: Callable[..., Measured],
    sources: tuple[Path, ...],
    version: str,
    runs: Sequence[Any],
    todo: Sequence[int],
) -> Iterator[tuple[int, tuple[Measured | None, str, str, float]]]:
    """(number of the run, what `_perform` returned), in the order in which runs end.

    A run is handed out only when a worker is free, because a worker that outlives this process would go on with its
    queue. Workers that join later get their first run within `LOOK` seconds.
    """
    from dask.distributed import wait
    from distributed.client import FuturesCancelledError

    waiting, flying = list(reversed(todo)), {}
    while waiting or flying:
        hands = max(1, sum(client.nthreads().values()))
        while waiting and len(flying) < hands:
            i = waiting.pop()
            flying[client.submit(_perform, task, sources, version, runs[i], pure=False)] = i
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
            i = flying.pop(future)
            if future.status == "finished":
                yield i, future.result()
            else:  # its worker died, `ATTEMPTS` times
                yield i, (None, f"{type(future.exception()).__name__}: {future.exception()}", "", 0.0)
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


# --- the workers ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _client(workers: int, scheduler: str, *, frugal: bool) -> Iterator[Client]:
    """A client of the scheduler at an address, or of a cluster on this machine that ends with the block.

    frugal: workers return freed memory to the system, as malloc does by itself.
    """
    from dask import config
    from dask.distributed import Client

    settings = {
        "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
        "distributed.admin.tick.limit": "10 min",  # a step of torch may keep a worker's loop waiting
        # Dask makes workers return freed memory at once (MALLOC_TRIM_THRESHOLD_); page faults then double the time of
        # an inversion (94 ms a step against 42).
        "distributed.nanny.pre-spawn-environ": {}
        if frugal
        else {k: str(v) for k, (_, v) in devices.KEEP_MEMORY.items()},
    }
    with config.set(settings):
        if scheduler:
            try:
                client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
            except (OSError, ValueError) as e:
                raise BatchError(
                    f"no Dask scheduler at {scheduler!r} ({e})",
                    expected="the address of a running scheduler, such as tcp://10.0.0.5:8786",
                    do=f"start one (`dask scheduler`), or unset {ENVIRONMENT} to work on this machine",
                ) from e
            with client:
                yield client
            return
        with _cluster(workers) as cluster, Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(len(cluster.worker_spec), timeout=120)
            yield client


def _cluster(workers: int) -> Any:
    """Workers on this machine: threads of this process for 0, else processes, with CUDA one for each GPU."""
    from dask.distributed import LocalCluster, Nanny, Scheduler, SpecCluster

    workers = number("workers", workers, "whole [0, inf)")
    quiet = {"silence_logs": logging.CRITICAL}
    if workers == 0:
        return LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, **quiet)
    gpus = _gpus()
    count = len(gpus) or workers
    threads = str(max(1, cpus() // count))
    shared = {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    shared |= {"HRLAB_ROOT": str(root()), "PYTHONHASHSEED": "0"}
    # No memory limit: Dask would kill a worker at its share of the machine, and tensors cannot be spilled anyway.
    options = [{"nthreads": 1, "memory_limit": 0, "env": shared, **quiet} for _ in range(count)]
    for option, gpu in zip(options, gpus, strict=False):
        option["env"] = shared | {"CUDA_VISIBLE_DEVICES": gpu}
    return SpecCluster(
        workers={i: {"cls": Nanny, "options": option} for i, option in enumerate(options)},
        scheduler={"cls": Scheduler, "options": {"dashboard": False, "host": "127.0.0.1", "port": 0}},
        name="hrlab",
        **quiet,
    )


@functools.cache
def _gpus() -> tuple[str, ...]:
    """The CUDA devices of this process, as $CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = [n for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.strip()]
    return tuple(named or map(str, range(torch.cuda.device_count()))) if torch.cuda.is_available() else ()
