"""What a result depends on: the code that made it, as far as it can tell, and the files that were read.

Two results of equal provenance are the same result. Code counts by what it does: its syntax tree without docstrings,
so that a better comment makes no figure stale. Of this library only what is imported counts, directly or not.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import store
from ..errors import StoreError
from .place import root

LIBRARY = Path(__file__).parents[1]


class Hashes:
    """SHA-256 of files, remembered by path, size and time stamp: data sets are not read again for every plan."""

    def __init__(self) -> None:
        self.path = root() / "build" / "hashes.json"
        self._known: dict[str, str] = _remembered(self.path)

    def of(self, path: Path) -> str:
        """The hash of a file's bytes."""
        return self._kept("", path, store.sha256)

    def of_code(self, path: Path) -> str:
        """The hash of what a Python file does; see `code`."""
        return self._kept("code ", path, lambda p: code(p.read_text(encoding="utf-8")))

    def save(self) -> None:
        """Remember for next time, where that can be written."""
        with contextlib.suppress(StoreError):
            store.write_json(self.path, self._known)

    def _kept(self, kind: str, path: Path, compute: Any) -> str:
        stat = path.stat()
        key = f"{kind}{path} {stat.st_size} {stat.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = compute(path)
        return self._known[key]


def _remembered(path: Path) -> dict[str, str]:
    try:
        found = store.read_json(path)
    except (OSError, StoreError):
        return {}
    return found if isinstance(found, dict) else {}


def code(source: str) -> str:
    """SHA-256 of Python source as its syntax tree without docstrings: comments and layout do not count.

    Source that is no Python (a cell with a shell command) counts as it stands.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # ValueError: a NUL byte
        return hashlib.sha256(source.encode()).hexdigest()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                first.value.value = ""
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def closure(start: Iterable[Path], *, without: Path | None = None) -> set[Path]:
    """The files `start`, and those of this library that they import, directly or not.

    without: a file that is left out, with what it alone imports.
    """
    found: set[Path] = set()
    todo = list(start)
    while todo:
        path = todo.pop()
        if path not in found and path != without:
            found.add(path)
            todo += _imported_by(path, path.stat().st_mtime_ns)
    return found


@functools.lru_cache(maxsize=1000)
def _imported_by(path: Path, changed: int) -> tuple[Path, ...]:
    """The files of this library that one file names in its imports; read once, and again when it was `changed`."""
    inside = path.is_relative_to(LIBRARY)
    package = path.relative_to(LIBRARY.parent).parts[:-1] if inside else ()
    return imported(path.read_text(encoding="utf-8"), ".".join(package))


def imported(source: str, package: str = "") -> tuple[Path, ...]:
    """The files of this library that Python source names in its imports, anywhere in it.

    A module counts with the packages it lies in, and a package that imports its modules on first use with all of them.

    package: dotted, that the source is in; "" for none.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # see `code`
        return ()
    found: dict[Path, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                found |= dict.fromkeys(_files(LIBRARY.parent.joinpath(*parts[:end])))
    return tuple(found)


def _files(place: Path) -> list[Path]:
    """The file of the module or package at `place`, a path without suffix; [] when there is none in this library."""
    if not place.is_relative_to(LIBRARY):
        return []
    module, package = place.with_suffix(".py"), place / "__init__.py"
    if not package.is_file():
        return [module] if module.is_file() else []
    if "def __getattr__" in package.read_text(encoding="utf-8"):
        return sorted(place.glob("*.py"))
    return [package]
