"""The files of training sets: arrays with one row for each picture, filled in order, and status.json, which says what
the set is and how many rows are there.

Each set is deterministic, so its folder is a cache; but it may be hours of work, and the user may choose its place. So
the folder is claimed, a finished set is used as it is, an interrupted one is resumed, and anything else is left alone
(see store.py). Rows are written as plain bytes, not through a memory map: a full disk kills a process that writes to a
map, while here it raises an error.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import StoreError
from ..store import claimed, read_json, write_json

STATUS = "status.json"
KIND = "training set"  # of a claimed folder
FILES = (
    STATUS,
    *(f"{name}.npy" for name in ("images", "latents", "masks", "depths", "poses", "features_*")),
)  # of every set
Arrays = Mapping[str, tuple[tuple[int, ...], type]]  # name: (shape, kind of number)


@dataclass
class Making:
    """A set in the making: `done` of its rows are there."""

    folder: Path
    what: dict[str, Any]
    done: int

    def add(self, rows: Mapping[str, np.ndarray]) -> int:
        """Write the next rows of every array, by name, then count them; returns the number of rows there are."""
        for name, part in rows.items():
            write(self.folder / f"{name}.npy", self.done, part, sync=True)
        self.done += len(part)
        write_json(self.folder / STATUS, {"what": self.what, "done": self.done})
        return self.done


@contextmanager
def making(folder: Path, what: dict[str, Any], arrays: Arrays, *, force: bool = False) -> Iterator[Making]:
    """Make a set in `folder`, or resume it; nothing is written if it is finished.

    Args:
        folder: created if it is missing.
        what: JSON values that decide the set.
        arrays: all of the same length.
        force: make it again whatever is in the folder; files with the names of a set's are then replaced.

    Raises:
        StoreError: the folder holds something else, another process works in it, or there is no room for the set.
    """
    folder = Path(folder)
    (total,) = {shape[0] for shape, _ in arrays.values()}
    done = 0 if force else _done(folder, what, arrays)
    if done == total:
        yield Making(folder, what, total)
        return
    if not done:
        check_room(folder, arrays)
    with claimed(folder, KIND, what, files=FILES, force=force, again=not force):
        if not (done := _done(folder, what, arrays)):
            for name, (shape, kind) in arrays.items():
                create(folder / f"{name}.npy", shape, kind)
        yield Making(folder, what, done)


def _done(folder: Path, what: dict[str, Any], arrays: Arrays) -> int:
    """The number of rows of exactly this set in the folder."""
    if not all(file.exists() for file in (folder / STATUS, *(folder / f"{name}.npy" for name in arrays))):
        return 0
    found = status(folder)
    if found["what"] != what:
        return 0
    for name, (shape, kind) in arrays.items():
        if (held := array(file := folder / f"{name}.npy")).shape != shape or held.dtype != kind:
            raise _damaged(file, f"{held.dtype} {list(held.shape)}", f"{np.dtype(kind)} {list(shape)}")
    return found["done"]


def status(folder: Path) -> dict[str, Any]:
    """{"what": the set, "done": the number of rows}; raises `StoreError` if the file is damaged."""
    found = read_json(file := Path(folder) / STATUS)
    if not (isinstance(found, dict) and isinstance(found.get("what"), dict) and isinstance(found.get("done"), int)):
        raise _damaged(file, str(found)[:60], "what the set is, and how much of it is done")
    return found


def array(file: Path) -> np.ndarray:
    """An array of a set, memory-mapped; raises `StoreError` if it is damaged or missing."""
    try:
        return np.load(file, mmap_mode="r")
    except (ValueError, EOFError, OSError) as e:
        raise _damaged(file, str(e), "an array of a training set") from e


def _damaged(file: Path, got: str, expected: str) -> StoreError:
    do = "delete the folder, or make the set again with --force (force=True)"
    return StoreError(f"{file} is damaged ({got})", expected=expected, do=do)


def check_room(folder: Path, arrays: Arrays) -> None:
    """Raise `StoreError` if there is no room for a set; files with its names are counted as room."""
    disk = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    held = sum(file.stat().st_size for pattern in FILES for file in folder.glob(pattern))
    need = sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in arrays.values())
    free = shutil.disk_usage(disk).free
    if need > free + held:
        raise StoreError(
            f"a set in {folder} needs {_size(need)}, and {_size(free)} are free there",
            expected="room for the whole set",
            do="free some space, use a folder on another disk, or make fewer or smaller pictures",
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 5e8 else f"{count / 1e6:.3g} MB"


def from_bytes(pictures: np.ndarray | Tensor) -> Tensor:
    """float32 in [-1, 1] from rows of a set: uint8 pictures of any shape."""
    x = pictures if isinstance(pictures, Tensor) else torch.from_numpy(np.ascontiguousarray(pictures))
    return x.float() / 127.5 - 1


def create(file: Path, shape: tuple[int, ...], kind: type) -> None:
    """A .npy file of zeros, in its full length."""
    with _room_for(file):
        np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=shape)


def write(file: Path, first: int, rows: np.ndarray, *, sync: bool = False) -> None:
    """Replace rows of a file of `create`, from row `first` on; with `sync` they are on the disk when it returns."""
    held = array(file)
    rows = rows.astype(held.dtype).reshape(-1, *held.shape[1:])
    with _room_for(file), open(file, "r+b") as f:
        f.seek((first - len(held)) * rows[0].nbytes, os.SEEK_END)
        f.write(rows.tobytes())
        if sync:
            f.flush()
            os.fsync(f.fileno())


@contextmanager
def _room_for(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise StoreError(
            f"{file} cannot be written ({e.strerror or e})",
            expected="room on that disk, and the right to write there",
            do="free some space or choose another folder, then run the same command again",
        ) from e
