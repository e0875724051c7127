"""The only code that writes results to disk: atomically, with checksums, inside the folder it was given.

A file is written beside its destination under a temporary name, flushed to the disk, and renamed over the destination;
a process killed at any moment leaves the old file or the new one, never a torn one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import StoreError

TEMP_PREFIX = ".partial-"


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` when the block ends without an error.

    Use this when a library insists on writing to a path; otherwise use `write_bytes` or `write_json`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temp = Path(name)
    try:
        yield temp
        mask = os.umask(0)
        os.umask(mask)
        temp.chmod(0o666 & ~mask)  # mkstemp makes 0600; results are as readable as any other file
        with open(temp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temp, path)
        _sync_folder(path.parent)
    finally:
        temp.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable (not possible, and not needed, on Windows)."""
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_bytes(path: str | os.PathLike, data: bytes) -> Path:
    """Write `data` to `path` atomically; returns the path."""
    with atomic(path) as temp:
        temp.write_bytes(data)
    return Path(path)


def write_json(path: str | os.PathLike, obj: Any, *, default: Callable[[Any], Any] | None = None) -> Path:
    """Write `obj` as indented JSON with sorted keys. NaN and infinity are refused: JSON has no such numbers."""
    text = json.dumps(obj, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False, default=default)
    return write_bytes(path, (text + "\n").encode())


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file; a damaged one raises `StoreError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise StoreError(
            f"{path} is not valid JSON ({e})", expected="a JSON file written by hrlib", do="delete it and make it again"
        ) from e


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def inside(root: str | os.PathLike, *parts: str) -> Path:
    """`root/parts...`, refused when it would leave `root` (by "..", an absolute part or a symbolic link)."""
    base = Path(root).resolve()
    hostile = any("\0" in part for part in parts)  # no file system takes it, and resolve() would raise its own error
    path = base if hostile else base.joinpath(*parts).resolve()
    if not path.is_relative_to(base) or path == base:
        raise StoreError(
            f"path {'/'.join(map(str, parts))!r} leaves the folder {base}",
            expected="a relative path below that folder",
            do="use plain file names without '..' or a leading '/'",
        )
    return path


def sweep_temps(folder: str | os.PathLike) -> int:
    """Delete temporary files that killed processes left below `folder`; returns how many."""
    count = 0
    for temp in Path(folder).rglob(TEMP_PREFIX + "*"):
        if temp.is_file():
            temp.unlink(missing_ok=True)
            count += 1
    return count
