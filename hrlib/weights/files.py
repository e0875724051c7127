"""The catalogue of weight files and data sets: where each file belongs, whether it is there and intact, how to get it.

Use these functions as `hrlib.weights.path`, `.status`, `.fetch`, `.catalogue`, `.entry`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .. import store
from ..errors import DamagedFile, MissingWeights, UnknownName, nearest
from ..image import SUFFIXES

F = TypeVar("F", bound=Callable)
DATA = Path(__file__).resolve().parents[2] / "data"  # the catalogue, weights/catalogue.json, and everything that ships


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A weight file or data set of the catalogue.

    Attributes:
        kind: "network" (ours or foreign, loadable by this package), "file" (read by other code), or "dataset" (a
            folder).
        file: path relative to the data folder, to the installed package, or to the folder build; `path` is the absolute
            one.
        profile: "laptop" if it ships with the repository, "ffhq" if it is inside a package that `make faces` installs,
            or made from such a file by one of our commands, below the folder build; "paper" if the user provides it.
        package: the package's name in the Python package index, with the version that was tested. We read its files
            and never import it.
        beside: names of the entries that are verified with this one, because its reader opens their files too.
        url: direct link; None if the file ships or must be fetched by hand (see `prepare`).
        size, sha256: of the file; None if the origin publishes none. The hash found at the first use is then written
            beside the file, and later changes are refused.
        min_files: for a data set, the smallest number of pictures that its folder must hold.
        prepare: how to get it and convert it to the form we read.
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
    package: str = ""
    beside: tuple[str, ...] | list[str] = ()
    min_files: int = 0
    prepare: str = ""

    @property
    def path(self) -> Path:
        """Where the file or folder belongs."""
        return packaged(self.package, self.file) if self.package else data_root(self.profile) / self.file

    @property
    def made_here(self) -> bool:
        """Whether one of our commands makes the file on this machine, so that no hash of it is known."""
        return self.profile == "ffhq" and not self.package

    @property
    def by_hand(self) -> str:
        """How to get the file, as a phrase for error messages."""
        if self.profile == "laptop":
            return f"restore it with `git checkout -- data/{self.file}` (it ships with the repository)"
        if self.package:
            return f"run `make faces`, which installs {self.package} ({self.origin}; licence: {self.licence})"
        if self.made_here:
            return f"{self.prepare} ({self.origin}; licence: {self.licence})"
        command = f"run `hrlab fetch {self.name}`, or download {self.url}" if self.url else self.prepare
        return f"{command}; put it at {self.path} ({self.origin}; licence: {self.licence})"


def packaged(package: str, file: str) -> Path:
    """Where `file` of an installed package ("NAME==VERSION") is; where it would be, if the package is not installed."""
    try:
        return Path(str(importlib.metadata.distribution(package.partition("==")[0]).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        return Path(sysconfig.get_path("purelib")) / file


def data_root(profile: str) -> Path:
    """The folder of a catalogue entry's file: the repository's data if it ships, its build folder if it is made there
    ("ffhq"); otherwise $HRLIB_DATA, if that is set.

    $HRLIB_DATA moves only what is opened by its catalogue name, not pictures that a profile names by path.
    """
    if profile == "ffhq":
        return DATA.parent / "build"
    return DATA if profile == "laptop" else Path(os.environ.get("HRLIB_DATA", DATA))


def catalogue() -> dict[str, Entry]:
    """Every weight file and data set that the project knows, by name."""
    file = catalogue_file()
    return dict(_catalogue(file, file.stat().st_mtime_ns))


def catalogue_file() -> Path:
    """The catalogue itself, `data/weights/catalogue.json`."""
    return DATA / "weights" / "catalogue.json"


@functools.lru_cache(maxsize=2)
def _catalogue(path: Path, _: int) -> dict[str, Entry]:
    return {name: Entry(name=name, **fields) for name, fields in store.read_json(path).items()}


def entry(name: str) -> Entry:
    """The catalogue's entry `name`; `UnknownName`, suggesting the nearest spelling, if there is none."""
    known = catalogue()
    if name not in known:
        raise UnknownName(
            f"no weights or data named {name!r}",
            expected=f"the path of a file, or one of {', '.join(known)}",
            do=nearest(name, list(known)) or "check the name; a path must have a suffix or a folder, as in ./NAME",
        )
    return known[name]


def is_path(name: str) -> bool:
    """Whether `name` is a file's path rather than an entry of the catalogue: it has a folder or a suffix.

    Relative paths are relative to the current directory, here as everywhere.
    """
    return os.sep in name or bool(Path(name).suffix)


def cached(maxsize: int) -> Callable[[F], F]:
    """`functools.lru_cache` for functions that read files: a result is computed again once its file has changed.

    Every string argument that is a path, with or without "file:" before it, counts as a file; so does the catalogue.
    """

    def decorate(function: F) -> F:
        @functools.lru_cache(maxsize)
        def compute(_: tuple, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        @functools.wraps(function)
        def look_up(*args: Any, **kwargs: Any) -> Any:
            texts = [v for v in (*args, *kwargs.values()) if isinstance(v, str)]
            return compute((_state(catalogue_file()), *map(_state_of, texts)), *args, **kwargs)

        look_up.cache_clear = compute.cache_clear
        return look_up

    return decorate


def _state_of(text: str) -> tuple | None:
    path = text.removeprefix("file:")
    return _state(Path(path)) if path != text or is_path(path) else None


def _state(path: Path) -> tuple | None:
    """What changes when a file is replaced or edited: path, inode, time and size; None if it is missing."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return str(path.absolute()), stat.st_ino, stat.st_mtime_ns, stat.st_size


# --- the files --------------------------------------------------------------------------------------------------------


def path(name_or_path: str | os.PathLike) -> Path:
    """The file (or data-set folder) of a catalogue name or a path, verified if the catalogue knows it.

    Raises:
        MissingWeights: it is not on this machine; the message says where to get it and where to put it.
        DamagedFile: its size or SHA-256 differs from the catalogue's, or it changed since its first use.
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
                do=f"check the path's spelling and permissions; the working directory is {Path.cwd()}",
            )
        found = next((e for e in catalogue().values() if e.path == file.resolve()), None)
        if found is None:
            return file
    for each in (found, *map(entry, found.beside)):
        if not each.path.exists():
            raise MissingWeights(f"{each.name} is not on this machine", expected=str(each.path), do=each.by_hand)
        _verify(each)
    return found.path


def status(name: str) -> str:
    """The state of a catalogue entry on this machine: "ok", "missing", "damaged" or "unverified". Changes nothing.

    "unverified": it is there, but its origin publishes no hash, so it can only be compared with its first use.
    """
    found = entry(name)
    if not found.path.exists():
        return "missing"
    try:
        return _verify(found, pin=False)
    except DamagedFile:
        return "damaged"


def fetch(name: str) -> Path:
    """Download a file of the catalogue (resuming an interrupted download), verify it and return its path.

    By calling this you accept its licence, `entry(name).licence`.
    """
    from .download import download

    found = entry(name)
    if not os.path.lexists(found.path):  # an existing file is verified, never replaced
        if found.url is None:
            raise MissingWeights(
                f"{name} has no direct link",
                expected="a catalogue entry with a URL",
                do=found.by_hand if found.package else f"get it by hand: {found.by_hand}",
            )
        by_hand = f"download {found.url} in a browser and put it at {found.path}"
        download(found.url, found.path, sha256=found.sha256, size=found.size, by_hand=by_hand)
    return path(name)


def _verify(found: Entry, *, pin: bool = True) -> str:
    """Return "ok" or "unverified"; `DamagedFile` if the size, the hash or the number of pictures is wrong."""
    if found.kind == "dataset":
        count = _count_pictures(found.path)
        if count < found.min_files:
            raise DamagedFile(
                f"{found.path} holds {count} pictures", expected=f"at least {found.min_files}", do=found.prepare
            )
        return "ok"
    if found.made_here:
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
            raise _damaged(found, f"SHA-256 {digest}", f"the SHA-256 of its first use (recorded in {pinned.name})")
    elif pin:
        store.write_bytes(pinned, f"{digest}\n".encode())
    return "unverified"


def _damaged(found: Entry, got: str, expected: str) -> DamagedFile:
    return DamagedFile(f"{found.path} has {got}", expected=expected, do=f"delete it, then {found.by_hand}")


@functools.lru_cache(maxsize=256)
def _sha256(file: Path, mtime_ns: int, size: int) -> str:
    """Hashed once per process, and again if the file's time or size changes."""
    return store.sha256(file)


def _count_pictures(folder: Path) -> int:
    return sum(f.suffix.lower() in SUFFIXES for f in folder.rglob("*"))
