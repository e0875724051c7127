"""What a result depends on: the code that made it, as far as imports show it, and the files that were read.

Two results of equal provenance are the same result. Code is compared by its syntax tree without docstrings, so a better
comment makes no figure stale. Of this library, only the modules that are imported count, directly or indirectly.

By hand, because packages such as modulefinder or grimp list the modules that a program imports, but neither tells a
comment from code nor follows the lazy names of `hrlib.lab`, and joblib's caches look at one function's own source.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .. import store
from ..errors import StoreError
from .place import root

LIBRARY = Path(__file__).parents[1]


class Hashes:
    """SHA-256 of files, kept in build/hashes.json by path, size and time stamp, so that no data set is read twice."""

    def __init__(self) -> None:
        self.path = root() / "build" / "hashes.json"
        self._known = read_object(self.path)

    def of(self, path: Path) -> str:
        """The hash of a file's bytes."""
        return self._kept(str(path), path, store.sha256)

    def of_code(self, path: Path) -> str:
        """The hash of what a Python file does; see `code`."""
        return self._kept(f"code {path}", path, lambda p: code(p.read_text(encoding="utf-8")), rule=_rule())

    def save(self) -> None:
        """Keep the hashes for the next process; a folder that cannot be written to is no error."""
        with contextlib.suppress(StoreError):
            store.write_json(self.path, self._known)

    def _kept(self, key: str, path: Path, compute: Callable[[Path], str], rule: str = "") -> str:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, rule]
        match self._known.get(key):
            case [*before, str(found)] if before == stamp:
                return found
        self._known[key] = [*stamp, found := compute(path)]
        return found


@functools.cache
def _rule() -> str:
    """What `code` depends on besides the source: how it is written here, and the syntax trees of this Python."""
    return f"{sys.version_info[:2]} {store.sha256(Path(__file__))[:16]}"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be lost without harm; {} if it is missing or damaged."""
    try:
        content = store.read_json(path)
    except (OSError, StoreError):
        return {}
    return content if isinstance(content, dict) else {}


def code(source: str) -> str:
    """SHA-256 of Python source as a syntax tree without docstrings: comments and layout do not count.

    Source that is not Python (a cell with a shell command) counts as it stands.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # ValueError: a NUL byte
        return hashlib.sha256(source.encode()).hexdigest()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                node.body[:1] = [] if len(node.body) > 1 else [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def closure(start: Iterable[Path], *, without: Path | None = None) -> set[Path]:
    """The files `start`, and the files of this library that they import, directly or indirectly.

    without: a file to leave out, together with what it alone imports.
    """
    reached: set[Path] = set()
    todo = list(start)
    while todo:
        path = todo.pop()
        if path not in reached and path != without:
            reached.add(path)
            todo += _imported_by(path, path.stat().st_mtime_ns)
    return reached


@functools.lru_cache(maxsize=1000)
def _imported_by(path: Path, changed: int) -> tuple[Path, ...]:
    """`imported` for a file; `changed`, its time stamp, is there for the cache."""
    inside = path.is_relative_to(LIBRARY)
    package = path.relative_to(LIBRARY.parent).parts[:-1] if inside else ()
    return imported(path.read_text(encoding="utf-8"), ".".join(package))


def imported(source: str, package: str = "") -> tuple[Path, ...]:
    """The files of this library that Python source imports: at its top, inside functions, or only for type checkers.

    A module counts with the packages that contain it. A package that imports on first use, in a `__getattr__`, counts
    with the modules that it names relatively (".session"). Source that is not Python may import anything: all files.

    package: the dotted name of the package that the source belongs to; "" for none.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # see `code`
        return tuple(sorted(LIBRARY.rglob("*.py")))
    lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
    files: dict[Path, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif lazy and isinstance(node, ast.Constant) and re.fullmatch(r"\.+\w[\w.]*", str(node.value)):
            names = [importlib.util.resolve_name(node.value, package)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            files |= dict.fromkeys(f for end in range(len(parts)) if (f := _file(parts[: end + 1])))
    return tuple(files)


def _file(parts: list[str]) -> Path | None:
    """The file of a module or package of this library; None if there is none of that name."""
    place = LIBRARY.parent.joinpath(*parts)
    if not place.is_relative_to(LIBRARY):
        return None
    return next((f for f in (place / "__init__.py", place.with_suffix(".py")) if f.is_file()), None)
