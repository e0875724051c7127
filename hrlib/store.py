"""The only code that writes results to disk: atomically, with checksums, inside the folder it was given.

A file is written beside its destination under a temporary name, flushed to the disk, and renamed over the destination;
a process killed at any moment leaves the old file or the new one, never a torn one.

The rule for all output. Nothing that this program did not make itself is overwritten or removed unless that was asked
for (`--force`, force=True), and a finished result is not replaced in silence either:

    a file that the user names         `path = new(destination(path, ".safetensors"), force=force)`, before work starts
    a folder that the user names       `with claimed(folder, ...)` around the work: it is marked as ours and locked
    files of our own, in such folders  `atomic`, `write_bytes`, `write_json`
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
MARKER, LOCK = ".hrlab.json", ".hrlab.lock"  # in a folder of results: whose it is, and who is working in it


# --- files of our own -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` when the block ends without an error.

    Use this when a library insists on writing to a path; otherwise use `write_bytes` or `write_json`.

    Raises:
        StoreError: it cannot be written there (no permission, no space, a name that is too long, ...).
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
            temp.chmod(0o666 & ~mask)  # mkstemp makes 0600; results are as readable as any other file
            with open(temp, "rb") as f:
                os.fsync(f.fileno())
            os.replace(temp, path)
            _sync_folder(path.parent)
    finally:
        if temp is not None:
            temp.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Make a `StoreError` of what the file system, or safetensors on its behalf, says while `path` is written."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        raise _unwritable(Path(path), e) from e


def _unwritable(path: Path, e: Exception) -> StoreError:
    return StoreError(
        f"{path} cannot be written ({getattr(e, 'strerror', None) or e})",
        expected="a place where this user may write, with room for it",
        do="give another path, or mend the permissions",
    )


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


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, force: bool = False
) -> Path:
    """Write tensors to NAME.safetensors, and facts with the tensors' fingerprint to NAME.json; returns the first.

    path: NAME, with .safetensors or without. force: replace files that are there; without it that is a `StoreError`
    before either is written.
    """
    from safetensors.torch import save_file  # here: it loads torch, which the command line should not wait for

    path = new(destination(path, ".safetensors"), force=force)
    beside = new(path.with_suffix(".json"), force=force)
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with atomic(path) as temp:
        save_file(tensors, temp)
    write_json(beside, {**facts, "tensors": fingerprint(tensors)})
    return path


# --- places that the user names ---------------------------------------------------------------------------------------


def destination(path: str | os.PathLike, suffix: str) -> Path:
    """`path`, with `suffix` appended unless it ends in it; nothing is cut off: lr_0.1 -> lr_0.1.safetensors."""
    path = Path(path)
    return path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)


def new(
    path: str | os.PathLike,
    *,
    force: bool = False,
    source: str | os.PathLike | Iterable[str | os.PathLike] | None = None,
) -> Path:
    """The path of a file that will be written there; call it before the work starts.

    Args:
        path: as the user named it. Missing folders are made.
        force: replace a file that is there.
        source: the file, or files, that the result is made of, which it may never replace.

    Raises:
        StoreError: something is there and force is not set, it is a folder or the source, or nobody may write there.
    """
    path = Path(path)
    try:
        path.lstat()  # of a link itself: one that leads nowhere is there too
        there = True
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except (OSError, ValueError) as e:  # a name that is too long, a NUL byte
        shown = f"{str(path)[:80]!r}"
        raise StoreError(f"{shown} is no usable path ({e})", expected="the name of a file", do="give another") from e
    if path.is_dir():
        raise StoreError(f"{path} is a folder", expected="the name of a file", do="add a file name")
    sources = [source] if isinstance(source, (str, os.PathLike)) else source or ()
    if path.resolve() in (Path(file).resolve() for file in sources):
        raise StoreError(f"{path} is the source itself", expected="another file", do="give another name")
    if there and not force:
        raise StoreError(
            f"{path} is there already",
            expected="a new file",
            do="give another name, or force it (--force, force=True) to replace that file",
        )
    ready(path.parent)
    return path


def ready(folder: Path) -> Path:
    """`folder`, made if it is missing and written into once: no work is begun that could not be kept.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(b"0")
    except OSError as e:  # a file in its way, too
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
    check: Callable[[], Any] = lambda: None,
) -> Iterator[bool]:
    """Work in a folder that the user named: it is marked as ours, and locked until the block ends.

    Yields whether an interrupted run of the same identity is in it, to go on with. A block that ends without an error
    marks the run as finished; one that fails before it has written anything leaves the folder to any other run.

    Args:
        folder: made if it is missing; one that is empty, or of an interrupted run of the same identity, is taken.
        what: the kind of run, in words that follow "a": "inversion".
        identity: JSON values that decide the result.
        files: glob patterns of the files that such runs write. With `force` they are removed first; nothing else is.
        force: take the folder whatever is in it; nobody's lock is broken.
        again: a run of the same identity is gone on with even if it is finished, or if `force` is set: a training that
            may be prolonged.
        check: called once the folder is ours and before anything in it is removed: raises what `files` cannot tell.

    Raises:
        StoreError: the folder holds something else, another or a finished run, a run that is at work now, a folder
            under a name of `files`, or it cannot be written.
    """
    folder, identity = Path(folder), json.loads(json.dumps(dict(identity)))
    ready(folder)
    if not (folder / MARKER).exists():  # a folder of the user's is refused without a lock file left in it
        _taken(folder, what, identity, force=force, again=again)
    with alone(folder / LOCK, f"run in {folder}"):
        resumed = _taken(folder, what, identity, force=force, again=again)
        found = [file for pattern in files for file in folder.glob(pattern)]
        for name in (file for file in found if file.is_dir()):
            raise StoreError(f"{name} is a folder", expected="room for a file of the run's", do="move it away")
        check()
        for file in found if not resumed else ():
            file.unlink(missing_ok=True)  # two patterns may find one
        marker = {"made by": "hrlab", "what": what, "identity": identity}
        write_json(folder / MARKER, marker | {"finished": False})
        try:
            yield resumed
        except BaseException:
            with contextlib.suppress(OSError):  # what failed matters more
                if not _contents(folder):
                    (folder / MARKER).unlink()
            raise
        write_json(folder / MARKER, marker | {"finished": True})


def _taken(folder: Path, what: str, identity: dict[str, Any], *, force: bool, again: bool) -> bool:
    """Whether to go on with what is in `folder`, or begin there; `StoreError` for neither."""
    try:
        return _resumable(folder, what, identity, again=again) and (again or not force)
    except StoreError:
        if force:
            return False
        raise


def _resumable(folder: Path, what: str, identity: dict[str, Any], *, again: bool) -> bool:
    """Whether an interrupted run of this identity is in `folder`; `StoreError` for anything else but emptiness.

    again: one that is finished is as good.
    """
    do = "give another folder, or force it (--force, force=True): only files of the run's own names are then replaced"
    if not (folder / MARKER).exists():
        if others := _contents(folder):
            shown = ", ".join(others[:4]) + ", ..." * (len(others) > 4)
            raise StoreError(f"{folder} is not empty ({shown})", expected="a new or empty folder", do=do)
        return False
    found = read_json(folder / MARKER)
    try:
        theirs, kind, finished = dict(found["identity"]), found["what"], found["finished"]
    except (KeyError, TypeError, ValueError) as e:
        raise StoreError(f"{folder / MARKER} is not of our making", expected="a new or empty folder", do=do) from e
    if kind != what:
        raise StoreError(f"{folder} holds a {kind}", expected=f"a {what}, or an empty folder", do=do)
    if odd := sorted(k for k in identity.keys() | theirs.keys() if identity.get(k) != theirs.get(k)):
        say = lambda values: ", ".join(f"{k} = {_short(values.get(k))}" for k in odd)
        raise StoreError(f"{folder} holds a {what} with {say(theirs)}", expected=say(identity), do=do)
    if finished and not again:
        raise StoreError(f"{folder} holds this {what} already, finished", expected="a run to go on with", do=do)
    return True


def _contents(folder: Path) -> list[str]:
    """Names of what is in `folder`; neither the marker nor a lock, which runs leave behind, is anything."""
    return sorted(p.name for p in folder.iterdir() if p.name != MARKER and not fnmatch(p.name, ".*.lock"))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file at `path`, which the system releases when this process ends, however it ends.

    Raises:
        StoreError: somebody else holds it; `what` says what they are doing.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as e:  # which is an OSError, too
        raise StoreError(f"another {what} is working", expected="one at a time", do="wait until it ends") from e
    except OSError as e:
        raise _unwritable(path, e) from e
    try:
        yield
    finally:
        lock.release()


# --- reading ----------------------------------------------------------------------------------------------------------


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file; a damaged one raises `StoreError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise StoreError(
            f"{path} is not valid JSON ({e})", expected="a JSON file written by hrlib", do="delete it and make it again"
        ) from e


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


def sweep_temps(folder: str | os.PathLike, *, older: float = 0.0) -> int:
    """Delete temporary files that killed processes left below `folder`; returns how many.

    older: only those that nobody has written to for so many seconds, for a folder in which others may be at work.
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
