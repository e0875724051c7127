"""What a run of a sweep depends on: its task, its settings, the files that these name, and the code behind them.

Whatever could give two different runs the same key is refused here, before any run starts.
"""

from __future__ import annotations

import copy
import datetime
import importlib.metadata
import inspect
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from .. import store
from ..errors import BatchError
from ..gallery import absolute as absolute_name
from ..lab.provenance import LIBRARY, Hashes, closure

PACKAGES = (  # what tasks compute with
    "imagecodecs",
    "kornia",
    "lpips",
    "numpy",
    "pillow",
    "scikit-image",
    "scipy",
    "tifffile",
    "timm",
    "torch",
    "torch-fidelity",
    "torchvision",
)


def check_task(task: Any) -> None:
    """`BatchError` unless the task is a function that can be imported from its module by its name.

    Closures, lambdas and methods that differ may share a name, and workers cannot import them.
    """
    if not inspect.isfunction(task) or not _importable(task):
        raise BatchError(
            f"task {getattr(task, '__qualname__', repr(task))}, which cannot be imported by its name",
            expected="a function of a module (not of a notebook or script), which workers can import",
            do="define it with def at the top of a module, such as hrlib.experiments.inversions",
        )


def _importable(thing: Any) -> bool:
    """Whether the name of a function or class stands for it in its module."""
    module = sys.modules.get(thing.__module__)
    return thing.__module__ != "__main__" and getattr(module, thing.__qualname__, None) is thing


def dicts(runs: Sequence[Any]) -> list[dict[str, Any]]:
    """The settings of each run as a dict of JSON values; `BatchError` if they are not, or not all of one kind."""
    if len({type(run) if _is_instance(run) else dict for run in runs}) > 1:
        raise BatchError(
            f"runs of several types: {sorted({type(run).__qualname__ for run in runs})}",
            expected="dicts, or objects of one dataclass",
            do="make a sweep for each type",
        )
    if wrong := [run for run in runs if not isinstance(run, Mapping) and not _is_instance(run)]:
        raise BatchError(
            f"the run {wrong[0]!r}", expected="a dict or a dataclass of settings", do='pass dicts: [{"seed": 0}, ...]'
        )
    for kind in {kind for run in runs for kind in _classes(run)}:
        if not _importable(kind):
            raise BatchError(
                f"settings of the class {kind.__qualname__}, which cannot be imported by its name",
                expected="a class of a module (not of a notebook or script), which workers can import",
                do="define it at the top of the task's module",
            )
    try:
        found = [asdict(run) if _is_instance(run) else dict(run) for run in runs]
        json.dumps(found, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as e:  # ValueError: NaN or infinity, or a name that is no Unicode
        raise BatchError(
            f"settings that JSON cannot hold: {e}",
            expected="JSON values, finite numbers among them",
            do="pass names instead of objects, and None instead of NaN",
        ) from e
    return found


def keys(task: Callable, runs: Sequence[Any], files: Sequence[dict[str, str]], version: str) -> list[str]:
    """The key of each run, 32 hex digits; `BatchError` if two are equal, or if they have different settings."""
    settings = dicts(runs)
    if not runs or any(list(run) != list(settings[0]) for run in settings):
        raise BatchError(
            f"{len(runs)} runs with the settings {sorted({name for run in settings for name in run})}",
            expected="at least one run, and the same settings in the same order for all of them",
            do="give every run a value for every setting",
        )
    shared = {"task": _name(task), "version": version}
    classes = [[_name(kind) for kind in _classes(run)] for run in runs]
    found = [
        store.digest({**shared, "run": r, "classes": c, "files": f})[:32]
        for r, c, f in zip(settings, classes, files, strict=True)
    ]
    if len(set(found)) < len(found):
        twice = next(run for run, key in zip(settings, found, strict=True) if found.count(key) > 1)
        raise BatchError(f"the run {twice} twice", expected="every run once", do="remove one, or change its seed")
    return found


def sources(task: Callable, runs: Iterable[Any]) -> tuple[Path, ...]:
    """The files that define the task and the classes of the settings, sorted."""
    kinds = {kind for run in runs for kind in _classes(run)}
    # unwrapped, because the file of a decorated function is the decorator's
    return tuple(sorted({Path(inspect.getfile(thing)) for thing in (inspect.unwrap(task), *kinds)}))


def version(files: Sequence[Path]) -> str:
    """Hash of everything that decides a run's numbers except its settings and the files they name.

    files: the `sources` of the task.
    """
    hashes = Hashes()
    reached = closure(files, without=Path(__file__).with_name("sweep.py"))
    catalogue = LIBRARY.parent / "data" / "weights" / "catalogue.json"
    # without the local tag: torch for a CPU and torch for CUDA may share a sweep
    versions = {package: importlib.metadata.version(package).split("+")[0] for package in PACKAGES}
    known = sorted([path.name, hashes.of_code(path)] for path in reached)
    found = store.digest(
        [known, hashes.of(catalogue) if catalogue.exists() else None, versions, list(sys.version_info[:2])]
    )
    hashes.save()
    return found


def circumstances(version: str, threads: int) -> dict[str, Any]:
    """How a recorded run was made: the `version` of the code, the versions of packages, the machine and the day.

    threads: of each run.
    """
    return {
        "version": version,
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "machine": f"{_processor()}, {threads} thread{'s' * (threads != 1)}",
        "day": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    """The name of the GPU if there is one, else of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")  # on Linux, where platform.processor() is empty
    named = re.search(r"^model name\s*: (.*)$", about.read_text(), re.M) if about.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def absolute(value: Any) -> Any:
    """Settings with absolute paths for the files they name: a worker may have another current directory.

    All types stay. A dataclass is copied, not made again, so that fields with init=False keep their value.
    """
    if _is_instance(value):
        made = copy.copy(value)
        for f in fields(value):
            object.__setattr__(made, f.name, absolute(getattr(value, f.name)))  # it may be frozen
        return made
    if isinstance(value, Mapping):
        return {absolute(k): absolute(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [absolute(v) for v in value]
        return type(value)._make(parts) if hasattr(value, "_make") else type(value)(parts)
    path = _file(value)
    if path is None:
        return value
    return absolute_name(value) if value.startswith("file:") else str(path.absolute())


def hashed(runs: Iterable[Any]) -> tuple[list[Any], list[dict[str, str]], Hashes]:
    """Runs with absolute paths, the hashes of the files that each names, and where these hashes are kept."""
    runs, hashes = [absolute(run) for run in runs], Hashes()
    files = [named_files(run, hashes) for run in runs]
    hashes.save()
    return runs, files, hashes


def named_files(value: Any, hashes: Hashes) -> dict[str, str]:
    """Path -> hash, of the files that settings name; `BatchError` if they name a folder."""
    if parts := _parts(value):
        return {k: v for part in parts for k, v in named_files(part, hashes).items()}
    path = _file(value)
    return {} if path is None else {str(path): hashes.of(path)}


def _file(value: Any) -> Path | None:
    """The readable file that a setting names, as "file:PATH" or as a path with a suffix; else None."""
    if not isinstance(value, str):
        return None
    if value.startswith("folder:"):
        raise BatchError(
            f"the setting {value!r}, a folder",
            expected="the pictures themselves: a run is repeated when their content changes",
            do="expand it with hrlib.worlds.pictures.listed",
        )
    path = Path(value.removeprefix("file:"))
    named = path.suffix or value.startswith("file:")
    return path if named and os.path.isfile(path) and os.access(path, os.R_OK) else None


def _classes(value: Any) -> list[type]:
    """The dataclasses of settings, those of their fields included, in the order of the values."""
    own = [type(value)] if _is_instance(value) else []
    return own + [kind for part in _parts(value) for kind in _classes(part)]


def _parts(value: Any) -> list[Any]:
    """What a container or dataclass holds, the keys of a mapping included."""
    if _is_instance(value):
        return [getattr(value, f.name) for f in fields(value)]
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    return list(value) if isinstance(value, (list, tuple)) else []


def _is_instance(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _name(thing: Callable) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
