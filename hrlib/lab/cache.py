"""When a notebook's results are still good: its inputs, and the status file that says what they were.

A status file is written last, after the results are in place, and only for a success. So whatever a killed or failed
run leaves behind, it is not trusted.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import store
from ..errors import StoreError
from .notebook import Notebook
from .place import figures_folder, git, root

Status = dict[str, Any]  # {"inputs": {what: sha256}, "files": {relative path: sha256}, "seconds": float}


class Hashes:
    """SHA-256 of files, remembered by path, size and time stamp: data sets are not read again for every plan."""

    def __init__(self) -> None:
        self.path = root() / "build" / "hashes.json"
        try:
            self._known: dict[str, str] = store.read_json(self.path)
        except (FileNotFoundError, StoreError):  # it is only a memory
            self._known = {}

    def of(self, path: Path) -> str:
        """The hash of one file."""
        stat = path.stat()
        key = f"{path} {stat.st_size} {stat.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = store.sha256(path)
        return self._known[key]

    def save(self) -> None:
        """Remember for next time."""
        store.write_json(self.path, self._known)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def surroundings(hashes: Hashes) -> dict[str, str]:
    """The inputs that all notebooks share: the library's source, the data, the environment."""
    library, lock = Path(__file__).parents[1], root() / "requirements.lock"
    return {
        "library": digest({str(p.relative_to(library)): hashes.of(p) for p in sorted(library.rglob("*.py"))}),
        "data": digest(_data(hashes)),
        "environment": digest([hashes.of(lock) if lock.exists() else None, sys.version_info[:2]]),
    }


def _data(hashes: Hashes) -> dict[str, Any]:
    """Shipped data go by content; what the user brought (up to 70,000 photographs) by size and time stamp."""
    own = root() / "data"
    shipped = git("ls-files", "data")
    names = None if shipped is None else set(shipped.splitlines())  # no git: all that is there was in the archive
    found: dict[str, Any] = {}
    for folder in dict.fromkeys([own, Path(os.environ.get("HRLIB_DATA", own))]):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                mine = folder == own and (names is None or path.relative_to(root()).as_posix() in names)
                stat = path.stat()
                found[str(path.relative_to(folder))] = hashes.of(path) if mine else [stat.st_size, stat.st_mtime_ns]
    return found


def inputs(notebook: Notebook, values: Mapping[str, Any], shared: Mapping[str, str], profile: str) -> dict[str, str]:
    """Everything a notebook's results depend on, as {what: hash}; `values` are its effective parameters."""
    upstream = {name: (status(name, profile) or {}).get("files") for name in notebook.needs}
    return {
        "code": digest([notebook.code, notebook.makes]),
        "parameters": digest(dict(values)),
        "upstream": digest(upstream),
        **shared,
    }


def status_path(name: str, profile: str) -> Path:
    """Where a notebook's status file is."""
    return root() / "build" / "status" / profile / f"{name}.json"


def status(name: str, profile: str) -> Status | None:
    """The status of the last success, or None."""
    try:
        return store.read_json(status_path(name, profile))
    except (FileNotFoundError, StoreError):
        return None


def stale(name: str, wanted: Mapping[str, str], profile: str) -> str:
    """Why the notebook has to run: "" when its results are good."""
    found = status(name, profile)
    if found is None:
        return "not run yet"
    if changed := sorted(what for what in wanted if wanted[what] != found["inputs"].get(what)):
        return "changed: " + ", ".join(changed)
    if files(figures_folder(profile) / name) != found["files"]:
        return "changed: results"
    return ""


def files(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below `folder`."""
    if not folder.is_dir():
        return {}
    return {p.relative_to(folder).as_posix(): store.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def commit(name: str, profile: str, wanted: Mapping[str, str], seconds: float) -> None:
    """Write the status file: from now on the results in place count as the results of these inputs."""
    content = {"inputs": dict(wanted), "files": files(figures_folder(profile) / name), "seconds": round(seconds, 1)}
    store.write_json(status_path(name, profile), content)


def forget(name: str, profile: str) -> None:
    """Trust the results no longer: the notebook failed, and a failure is never a reason to skip it next time."""
    status_path(name, profile).unlink(missing_ok=True)
