"""Are a notebook's results up to date? Its inputs, and the status file that records those of its last success.

`status.json` lies among the results of a profile, so that a fresh clone knows the committed ones. It is written last,
after the results are in place, and only for a success: what a killed or failed run leaves behind is not trusted. The
facts of a single run (when, how long, at which commit, what failed) go to `build/runs`.

By hand: doit compares files. Here code counts by its syntax tree, the user's data by size and time, and results without
what is volatile: with three checkers of our own, only doit's database would be left, and ours is one committed file.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import store
from ..lab import records
from ..lab.notebook import Notebook, catalogue, planned
from ..lab.place import RECORDED, figures_folder, git, root
from ..lab.provenance import LIBRARY, Hashes, closure, code, imported, read_object

READERS = ("at_scale", "inversions", "syntheses")  # names in the code of a notebook that reads recorded runs
STATUS = "status.json"  # {"profile", "notebooks": {name: status}}
Status = dict[str, dict[str, str]]  # {"inputs": {what: sha256}, "files": {relative path: sha256}}


def surroundings(notebooks: Iterable[Notebook], hashes: Hashes, profile: str) -> dict[str, dict[str, str]]:
    """Notebook -> what its results depend on besides itself: the library's code, the data, the environment.

    Of the library, only what the notebook imports counts, directly or indirectly; see `provenance.closure`.
    """
    lock = root() / "requirements.lock"
    shared = {
        "data": store.digest(_data(hashes, shipped_alone=profile != "paper")),
        "environment": store.digest([hashes.of(lock) if lock.exists() else None, sys.version_info[:2]]),
    }
    return {
        notebook.name: {
            "library": _library(notebook, hashes),
            **shared,
            **_catalogue(notebook),
            **_recorded(notebook, hashes),
        }
        for notebook in notebooks
    }


def _catalogue(notebook: Notebook) -> dict[str, str]:
    """What a notebook that draws a map of the series depends on: the metadata of all notebooks."""
    if not any("catalogue()" in cell for cell in notebook.code):
        return {}
    known = [*catalogue().values(), *planned().values()]
    facts = [[nb.name, nb.title, nb.section, nb.needs, dict(nb.minutes)] for nb in known]
    return {"the other notebooks": store.digest(facts)}


def _recorded(notebook: Notebook, hashes: Hashes) -> dict[str, str]:
    """What a notebook that reads recorded runs depends on: all of them."""
    if not any(name in cell for cell in notebook.code for name in READERS):
        return {}
    files = sorted(path for path in (root() / RECORDED).rglob("*") if path.is_file())
    return {"recorded runs": store.digest([[path.name, hashes.of(path)] for path in files])}


def _library(notebook: Notebook, hashes: Hashes) -> str:
    files = closure(path for cell in notebook.code for path in imported(cell))
    return store.digest(sorted([path.relative_to(LIBRARY).as_posix(), hashes.of_code(path)] for path in files))


def _data(hashes: Hashes, *, shipped_alone: bool) -> dict[str, Any]:
    """Shipped data count by content; the user's own (up to 70,000 photographs) by size and time stamp.

    The profiles that need only the shipped data ignore the rest, so that a fresh clone agrees with the machine that
    made the committed results, whatever else lies there. Recorded runs count only for the notebooks that show them, and
    the catalogue and the model cards for none: the weights themselves count.
    """
    own = root() / "data"
    shipped = git("ls-files", "-z", "data")
    names = set(shipped.split("\0")) if shipped else None  # without git, everything here came with the archive
    facts: dict[str, Any] = {}
    for folder in dict.fromkeys([own, Path(os.environ.get("HRLIB_DATA", own))]):
        for path in _files(folder, linked=not shipped_alone):
            if path.is_file() and not path.name.startswith(".") and not _about(path):
                mine = folder == own and (names is None or path.relative_to(root()).as_posix() in names)
                stat = path.stat()
                if mine or not shipped_alone:
                    key = path.relative_to(folder).as_posix()
                    facts[key] = hashes.of(path) if mine else [stat.st_size, stat.st_mtime_ns]
    return facts


def _about(path: Path) -> bool:
    """Whether a file below data/ only describes weights, or is a recorded run."""
    return path.suffix == ".md" or path.name == "catalogue.json" or path.is_relative_to(root() / RECORDED)


def _files(folder: Path, *, linked: bool) -> Iterator[Path]:
    """The files below a folder, sorted by folder.

    linked: enter linked folders, too, as pathlib does only since Python 3.13, but none that contains its own link.
    """
    above = {str(folder): [os.path.realpath(folder)]}  # folder -> the real paths of it and of those it was reached by
    for place, folders, names in os.walk(folder, followlinks=linked):
        real = {name: os.path.realpath(os.path.join(place, name)) for name in sorted(folders)}
        folders[:] = [name for name, path in real.items() if path not in above[place]]
        above |= {os.path.join(place, name): [*above[place], real[name]] for name in folders}
        yield from (Path(place, name) for name in sorted(names))


def inputs(notebook: Notebook, values: Mapping[str, Any], around: Mapping[str, str], profile: str) -> dict[str, str]:
    """Everything a notebook's results depend on, as {what: hash}.

    values: its effective parameters. around: its `surroundings`.
    """
    known = statuses(profile)
    upstream = {name: known.get(name, {}).get("files") for name in notebook.needs}
    return {
        "code": store.digest([[code(cell) for cell in notebook.code], notebook.makes]),
        "parameters": store.digest(dict(values)),
        "upstream": store.digest(upstream),
        **around,
    }


def statuses(profile: str) -> dict[str, Status]:
    """Notebook -> the inputs and the files of its last success; damaged entries are left out."""
    table = read_object(figures_folder(profile) / STATUS).get("notebooks")
    entries = table.items() if isinstance(table, dict) else ()
    whole = lambda entry: isinstance(entry, dict) and all(isinstance(entry.get(k), dict) for k in ("inputs", "files"))
    return {name: entry for name, entry in entries if whole(entry)}


def stale(name: str, wanted: Mapping[str, str], profile: str) -> str:
    """Why the notebook has to run; "" if its results are up to date."""
    if read_object(_runs(profile)).get(name, {}).get("state") == "failed":
        return "failed last time"
    folder, status = figures_folder(profile) / name, statuses(profile).get(name)
    if status is None and not (folder / records.FILE).exists():
        return "not run yet"
    if not (status and status["inputs"]):
        return "made by an earlier version"
    made_from = status["inputs"]
    if changed := sorted(w for w in wanted.keys() | made_from.keys() if wanted.get(w) != made_from.get(w)):
        return f"made by an earlier version (changed: {', '.join(changed)})"
    if files(folder, status["files"]) != status["files"]:
        return "changed: results"
    return ""


def files(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below `folder`, or of those among `names` that exist."""
    if names is None:
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    return {name: store.sha256(folder / name) for name in names if (folder / name).is_file()}


def succeeded(name: str, profile: str, *, inputs: Mapping[str, str], files: Mapping[str, str], seconds: float) -> None:
    """Record that the files now in place are the results of these inputs."""
    table = statuses(profile) | {name: {"inputs": dict(inputs), "files": dict(files)}}
    store.write_json(figures_folder(profile) / STATUS, {"profile": profile, "notebooks": table})
    _note(name, profile, {"state": "done", "seconds": round(seconds, 1)})


def failed(name: str, profile: str, *, error: Mapping[str, Any], seconds: float) -> None:
    """Record a failure, so that the notebook runs next time; the results of its last success stay as they are."""
    _note(name, profile, {"state": "failed", "seconds": round(seconds, 1), "error": dict(error)})


def _note(name: str, profile: str, run: dict[str, Any]) -> None:
    """Record the facts of this run."""
    head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "hrlib", "notebooks")
    run |= {"commit": head and head + " + changes" * bool(changes)}
    run |= {"ended": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
    store.write_json(_runs(profile), read_object(_runs(profile)) | {name: run})


def _runs(profile: str) -> Path:
    return root() / "build" / "runs" / f"{profile}.json"
