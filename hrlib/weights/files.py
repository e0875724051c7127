"""The catalogue of weight files and data sets, and the files it names: verified, downloaded, or clearly missing.

Its functions are used as `hrlib.weights.path`, `.status`, `.fetch`, `.catalogue`, `.entry`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .. import store
from ..errors import DamagedFile, MissingWeights, UnknownName, nearest
from ..image import SUFFIXES

F = TypeVar("F", bound=Callable)
DATA = Path(__file__).resolve().parents[2] / "data"  # holds weights/catalogue.json and all that ships


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One catalogued weight file or data set.

    Attributes:
        kind: "network" (ours or foreign, loadable here), "file" (read by other code), or "dataset" (a folder).
        file: path below the data folder; `path` is the absolute one.
        profile: "laptop" for what ships with the repository, "paper" for what the user brings.
        url: direct link, or None (shipped, or to be fetched by hand as `prepare` says).
        size, sha256: of the file; None where the origin publishes none (the first use then pins the hash, beside it).
        min_files: for a data set, the least number of pictures below its folder.
        prepare: how to get it and bring it into the form we read.
    """

    name: str
    kind: str
    file: str
    licence: str
    origin: str
    profile: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    architecture: str | None = None
    min_files: int = 0
    prepare: str = ""

    @property
    def path(self) -> Path:
        """Where the file or folder belongs."""
        return data_root(self.profile) / self.file

    @property
    def by_hand(self) -> str:
        """How to get it, as a sentence for error messages."""
        if self.profile == "laptop":
            return f"it ships with the repository: git checkout -- data/{self.file}"
        command = f"`hrlab fetch {self.name}`, or download {self.url}" if self.url else self.prepare
        return f"{command}; put it at {self.path} ({self.origin}; licence: {self.licence})"


def data_root(profile: str) -> Path:
    """The data folder: the repository's, or $HRLIB_DATA for what does not ship (large files on another disk)."""
    return DATA if profile == "laptop" else Path(os.environ.get("HRLIB_DATA", DATA))


def catalogue() -> dict[str, Entry]:
    """Every weight file and data set the project knows, by name (`data/weights/catalogue.json`)."""
    file = catalogue_file()
    return dict(_catalogue(file, file.stat().st_mtime_ns))


def catalogue_file() -> Path:
    """The catalogue itself, JSON."""
    return DATA / "weights" / "catalogue.json"


@functools.lru_cache(maxsize=2)
def _catalogue(path: Path, _: int) -> dict[str, Entry]:
    return {name: Entry(name=name, **fields) for name, fields in store.read_json(path).items()}


def entry(name: str) -> Entry:
    """The catalogue's entry of that name; `UnknownName` with the nearest spelling otherwise."""
    known = catalogue()
    if name not in known:
        raise UnknownName(
            f"no weights or data named {name!r}",
            expected=f"a file, or one of {', '.join(known)}",
            do=nearest(name, list(known)) or "choose one of these, or give the path of a file",
        )
    return known[name]


def is_path(name: str) -> bool:
    """Whether a text names a file rather than an entry of the catalogue: it has a folder or a suffix.

    A relative path is relative to the current directory, here and everywhere.
    """
    return os.sep in name or bool(Path(name).suffix)


def kept(most: int) -> Callable[[F], F]:
    """`functools.lru_cache` for functions of names: what came of a file is made anew when that file has changed.

    Files are found in the function's texts: paths, with or without "file:". A change of the catalogue counts, too.
    """

    def decorate(function: F) -> F:
        @functools.lru_cache(most)
        def keep(_: tuple, *args: Any, **more: Any) -> Any:
            return function(*args, **more)

        @functools.wraps(function)
        def look(*args: Any, **more: Any) -> Any:
            texts = [v for v in (*args, *more.values()) if isinstance(v, str)]
            return keep((_state(catalogue_file()), *map(_state_of, texts)), *args, **more)

        look.cache_clear = keep.cache_clear
        return look

    return decorate


def _state_of(text: str) -> tuple | None:
    path = text.removeprefix("file:")
    return _state(Path(path)) if path != text or is_path(path) else None


def _state(path: Path) -> tuple | None:
    """What tells that a file is another than it was: place, inode, time and size; None when it is not there."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return str(path.absolute()), stat.st_ino, stat.st_mtime_ns, stat.st_size


# --- what is there ----------------------------------------------------------------------------------------------------


def path(name_or_path: str | os.PathLike) -> Path:
    """The verified file (or data-set folder) of a catalogue name, or of a path.

    Raises:
        MissingWeights: it is not on this machine; says where to get it and where to put it.
        DamagedFile: its size or SHA-256 is not the catalogue's, or it changed since its first use.
        UnknownName: neither a catalogue name nor a path.
    """
    if isinstance(name_or_path, str) and not is_path(name_or_path):
        found = entry(name_or_path)
    else:
        file = Path(name_or_path)
        if not (os.path.isfile(file) and os.access(file, os.R_OK)):
            raise MissingWeights(
                f"{file} cannot be read" if os.path.isfile(file) else f"no file {file}",
                expected="a weight file, or a catalogue name",
                do=f"check the spelling of the path; the working directory is {Path.cwd()}",
            )
        found = next((e for e in catalogue().values() if e.path == file.resolve()), None)
        if found is None:
            return file
    if not found.path.exists():
        raise MissingWeights(f"{found.name} is not on this machine", expected=str(found.path), do=found.by_hand)
    _verify(found)
    return found.path


def status(name: str) -> str:
    """The state of a catalogued item on this machine, without changing anything.

    "ok", "missing", "damaged", or "unverified": it is there but its origin publishes no hash, so that it can only be
    compared with what it was at its first use.
    """
    found = entry(name)
    if not found.path.exists():
        return "missing"
    try:
        return _verify(found, pin=False)
    except DamagedFile:
        return "damaged"


def fetch(name: str) -> Path:
    """Download a catalogued file (resuming what is there), verify it and return its path.

    By calling this you accept the licence that `entry(name).licence` names.
    """
    from .download import download

    found = entry(name)
    if not os.path.lexists(found.path):  # whatever is there is verified, never replaced
        if found.url is None:
            raise MissingWeights(
                f"{name} has no direct link", expected="a catalogue entry with a URL", do=f"by hand: {found.by_hand}"
            )
        by_hand = f"download {found.url} in a browser and put it at {found.path}"
        download(found.url, found.path, sha256=found.sha256, size=found.size, by_hand=by_hand)
    return path(name)


def _verify(found: Entry, *, pin: bool = True) -> str:
    """Give "ok" or "unverified"; `DamagedFile` when size, hash or number of pictures is wrong."""
    if found.kind == "dataset":
        count = _count_pictures(found.path)
        if count < found.min_files:
            raise DamagedFile(
                f"{found.path} holds {count} pictures", expected=f"at least {found.min_files}", do=found.prepare
            )
        return "ok"
    stat = found.path.stat()
    if found.size is not None and stat.st_size != found.size:
        raise _damaged(found, f"{stat.st_size} bytes", f"{found.size} bytes")
    digest = _sha256(found.path, stat.st_mtime_ns, stat.st_size)
    if found.sha256 is not None:
        if digest != found.sha256:
            raise _damaged(found, f"SHA-256 {digest}", f"SHA-256 {found.sha256}")
        return "ok"
    pinned = found.path.with_name(found.path.name + ".sha256")
    if pinned.exists():
        if pinned.read_text().strip() != digest:
            raise _damaged(found, f"SHA-256 {digest}", f"what it was at its first use (recorded in {pinned.name})")
    elif pin:
        store.write_bytes(pinned, f"{digest}\n".encode())
    return "unverified"


def _damaged(found: Entry, got: str, expected: str) -> DamagedFile:
    return DamagedFile(f"{found.path} has {got}", expected=expected, do=f"delete it, then {found.by_hand}")


@functools.lru_cache(maxsize=256)
def _sha256(file: Path, mtime_ns: int, size: int) -> str:
    """Hashed once a process, unless the file's time or size changes."""
    return store.sha256(file)


def _count_pictures(folder: Path) -> int:
    return sum(f.suffix.lower() in SUFFIXES for f in folder.rglob("*"))
