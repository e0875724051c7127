"""The only code that writes results to disk: atomically, with checksums, inside the folder it was given.

A file is written beside its destination under a temporary name, flushed to the disk, and renamed to the destination. A
process that is killed at any moment leaves the old file or the new one, never a half-written one.

The rule for all output: without `--force` (force=True), only what this program made is overwritten or removed, and no
finished result is replaced:

    a file that the user names         `path = new(destination(path, ".safetensors"), force=force)`, before work starts
    a folder that the user names       `with claimed(folder, ...)` around the work: marks it as ours and locks it
    our own files in such folders      `atomic`, `write_bytes`, `write_json`
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from .errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor

TEMP_PREFIX = ".partial-"
MARKER, LOCK = ".hrlab.json", ".hrlab.lock"  # in a folder of results: which run it belongs to; held while one works


# --- files of our own -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block ends without an error.

    This is for libraries that write to a path; otherwise use `write_bytes` or `write_json`.

    Raises:
        StoreError: the file cannot be written (no permission, no space, a name that is too long, ...).
    """
    path, temp = Path(path), None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, suffix=path.suffix, dir=path.parent)
            os.close(handle)
            temp = Path(name)
            yield temp
            mask = os.umask(0)
            os.umask(mask)
            temp.chmod(0o666 & ~mask)  # mkstemp makes 0600; results should be as readable as other files
            with open(temp, "rb") as f:
                os.fsync(f.fileno())
            os.replace(temp, path)
            _sync_folder(path.parent)
    finally:
        if temp is not None:
            temp.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn errors of the file system, or of safetensors, into a `StoreError` while `path` is written."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        raise _unwritable(Path(path), e) from e


def _unwritable(path: Path, e: Exception) -> StoreError:
    return StoreError(
        f"{path} cannot be written ({getattr(e, 'strerror', None) or e})",
        expected="a place that this user may write to, with enough space",
        do="use another path, free some space, or correct the permissions",
    )


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable (on Windows this is neither possible nor needed)."""
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
    """Write `obj` as indented JSON with sorted keys; NaN and infinity, which JSON lacks, raise `ValueError`."""
    text = json.dumps(obj, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False, default=default)
    return write_bytes(path, (text + "\n").encode())


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, force: bool = False
) -> Path:
    """Write tensors to NAME.safetensors, and facts with the tensors' fingerprint to NAME.json; returns the first.

    path: NAME, with or without .safetensors. force: replace existing files, which are a `StoreError` otherwise, raised
    before either file is written.
    """
    from safetensors.torch import save_file  # here: it loads torch, which would slow down the command line

    path = new(destination(path, ".safetensors"), force=force)
    beside = new(path.with_suffix(".json"), force=force)
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with atomic(path) as temp:
        save_file(tensors, temp)
    write_json(beside, {**facts, "tensors": fingerprint(tensors)})
    return path


# --- places that the user names ---------------------------------------------------------------------------------------


def destination(path: str | os.PathLike, suffix: str) -> Path:
    """`path` with `suffix` appended, unless it ends in it; no suffix is replaced: lr_0.1 -> lr_0.1.safetensors."""
    path = Path(path)
    return path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)


def new(
    path: str | os.PathLike,
    *,
    force: bool = False,
    source: str | os.PathLike | Iterable[str | os.PathLike] | None = None,
) -> Path:
    """The path of a file that will be written; call this before the work starts.

    Args:
        path: as the user named it. Missing folders are made.
        force: replace an existing file.
        source: the file or files that the result is made from, which are never replaced.

    Raises:
        StoreError: the file exists and force is not set, it is a folder or a source, or it cannot be written.
    """
    path = Path(path)
    try:
        path.lstat()  # of a link itself: a broken link exists, too
        there = True
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except (OSError, ValueError) as e:  # a name that is too long, a NUL byte
        shown = f"{str(path)[:80]!r}"
        raise StoreError(f"{shown} cannot be a path ({e})", expected="a file name", do="use a shorter name") from e
    if path.is_dir():
        raise StoreError(f"{path} is a folder", expected="a file name", do="add a file name to the path")
    sources = [source] if isinstance(source, (str, os.PathLike)) else source or ()
    if path.resolve() in (Path(file).resolve() for file in sources):
        raise StoreError(f"{path} is the source itself", expected="another file", do="use another name")
    if there and not force:
        raise StoreError(
            f"{path} is there already",
            expected="a new file",
            do="use another name, or replace the file with --force (force=True)",
        )
    ready(path.parent)
    return path


def ready(folder: Path) -> Path:
    """`folder`, made if missing, after a trial write: work whose results could not be saved must not begin.

    Raises:
        StoreError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(b"0")
    except OSError as e:  # also a file of that name
        raise _unwritable(folder, e) from e
    return folder


@contextlib.contextmanager
def claimed(
    folder: str | os.PathLike,
    what: str,
    identity: Mapping[str, Any],
    *,
    files: Sequence[str] = (),
    force: bool = False,
    again: bool = False,
    check: Callable[[], Any] | None = None,
) -> Iterator[bool]:
    """Work in a folder that the user named: mark it as ours, and lock it until the block ends.

    Yields whether the folder holds an interrupted run of the same identity, to be continued. A block that ends without
    an error marks the run as finished; one that fails before it has written anything leaves the folder unclaimed.

    Args:
        folder: made if missing; accepted if it is empty, or holds an interrupted run of the same identity.
        what: the kind of run, in words that follow "a": "inversion".
        identity: JSON values that decide the result.
        files: glob patterns of the files that such runs write. With `force` they are removed first, and nothing else.
        force: accept the folder whatever it holds; locks are still respected.
        again: continue a run of the same identity even if it is finished, or if `force` is set, for instance a
            training that is prolonged.
        check: called when the folder is ours and before anything is removed; may raise further errors.

    Raises:
        StoreError: the folder holds something else, another run, a finished one or one that is working now, or a folder
            under a name from `files`; or it cannot be written.
    """
    folder, identity = Path(folder), json.loads(json.dumps(dict(identity)))
    ready(folder)
    if not (folder / MARKER).exists():  # leave no lock file in a folder that is refused
        _taken(folder, what, identity, force=force, again=again)
    with alone(folder / LOCK, f"run in {folder}"):
        resumed = _taken(folder, what, identity, force=force, again=again)
        old = [file for pattern in files for file in folder.glob(pattern)]
        for name in (file for file in old if file.is_dir()):
            raise StoreError(f"{name} is a folder", expected="no folder where the run writes a file", do="move it away")
        if check:
            check()
        for file in old if not resumed else ():
            file.unlink(missing_ok=True)  # two patterns may match the same file
        marker = {"made by": "hrlab", "what": what, "identity": identity}
        write_json(folder / MARKER, marker | {"finished": False})
        try:
            yield resumed
        except BaseException:
            with contextlib.suppress(OSError):  # the first error matters more
                if not _contents(folder):
                    (folder / MARKER).unlink()
            raise
        write_json(folder / MARKER, marker | {"finished": True})


def _taken(folder: Path, what: str, identity: dict[str, Any], *, force: bool, again: bool) -> bool:
    """Whether to continue the run in `folder` (True) or begin a new one (False); `StoreError` if neither is allowed."""
    try:
        return _resumable(folder, what, identity, again=again) and (again or not force)
    except StoreError:
        if force:
            return False
        raise


def _resumable(folder: Path, what: str, identity: dict[str, Any], *, again: bool) -> bool:
    """Whether `folder` holds an interrupted run of this identity; `StoreError` for anything else, unless it is empty.

    again: accept a finished run, too.
    """
    do = "use another folder, or --force (force=True), which replaces only files with names that this run writes"
    if not (folder / MARKER).exists():
        if others := _contents(folder):
            shown = ", ".join(others[:4]) + ", ..." * (len(others) > 4)
            raise StoreError(f"{folder} is not empty ({shown})", expected="a new or empty folder", do=do)
        return False
    marker = read_json(folder / MARKER)
    try:
        theirs, kind, finished = dict(marker["identity"]), marker["what"], marker["finished"]
    except (KeyError, TypeError, ValueError) as e:
        raise StoreError(f"{folder / MARKER} is not hrlab's marker", expected="a new or empty folder", do=do) from e
    if kind != what:
        raise StoreError(f"{folder} holds a {kind}", expected=f"a {what}, or an empty folder", do=do)
    if odd := sorted(k for k in identity.keys() | theirs.keys() if identity.get(k) != theirs.get(k)):
        say = lambda values: ", ".join(f"{k} = {_short(values.get(k))}" for k in odd)
        raise StoreError(f"{folder} holds a {what} with {say(theirs)}", expected=say(identity), do=do)
    if finished and not again:
        raise StoreError(f"{folder} holds this {what} already, finished", expected="an unfinished run", do=do)
    return True


def _contents(folder: Path) -> list[str]:
    """The names in `folder`, without the marker and locks, which runs leave behind."""
    return sorted(p.name for p in folder.iterdir() if p.name != MARKER and not fnmatch(p.name, ".*.lock"))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file at `path`; the system releases it when this process ends, however it ends.

    what: names the work that the lock protects, for the error.

    Raises:
        StoreError: another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as e:  # a subclass of OSError
        raise StoreError(f"another {what} is working", expected="one at a time", do="wait until it ends") from e
    except OSError as e:
        raise _unwritable(path, e) from e
    try:
        yield
    finally:
        lock.release()


# --- reading ----------------------------------------------------------------------------------------------------------


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file; a damaged one is a `StoreError`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise StoreError(
            f"{path} is not valid JSON ({e})", expected="a JSON file written by hrlib", do="delete it and make it again"
        ) from e


def inside(root: str | os.PathLike, *parts: str) -> Path:
    """`root/parts...`; `StoreError` if that leaves `root` (by "..", an absolute part or a symbolic link)."""
    base = Path(root).resolve()
    hostile = any("\0" in part for part in parts)  # no file system accepts it, and resolve() raises another error
    path = base if hostile else base.joinpath(*parts).resolve()
    if not path.is_relative_to(base) or path == base:
        raise StoreError(
            f"path {'/'.join(map(str, parts))!r} leaves the folder {base}",
            expected="a relative path below that folder",
            do="use plain file names without '..' or a leading '/'",
        )
    return path


def sweep_temps(folder: str | os.PathLike, *, older: float = 0.0) -> int:
    """Delete temporary files that killed processes left below `folder`; returns how many.

    older: only files not written to for this many seconds, where other processes may be working.
    """
    count, before = 0, time.time() - older
    for temp in Path(folder).rglob(TEMP_PREFIX + "*"):
        if temp.is_file() and temp.stat().st_mtime <= before:
            temp.unlink(missing_ok=True)
            count += 1
    return count


# --- hashes -----------------------------------------------------------------------------------------------------------


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, 64 hex digits; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes of tensors, 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        digest.update(t.numpy().tobytes())
    return digest.hexdigest()
