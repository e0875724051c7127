"""Reading notebooks without running them: parameters, metadata, profiles.

What a profile runs with stands in `notebooks/profiles.yaml`, `laptop` included, so that playing with a parameters cell
never changes what `hrlab run` makes. A notebook without an entry there runs, at `laptop`, with the values of its cell.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import BatchError, HRLibError, UnknownName, nearest
from . import yamls
from .place import root

PROFILES = ("laptop", "smoke", "paper")
FILE = "profiles.yaml"
_METADATA = {  # entry -> its kind and that of its items
    "title": (str, str),
    "section": (str, str),
    "makes": (list, str),
    "needs": (list, str),
    "minutes": (dict, (int, float)),
}


@dataclass(frozen=True)
class Notebook:
    """What a batch run needs to know about a notebook."""

    name: str
    path: Path
    title: str
    section: str
    makes: tuple[str, ...]  # names given to run.figure and run.table
    needs: tuple[str, ...]  # notebooks whose files this one reads
    minutes: Mapping[str, float]  # by profile, on two CPU cores (paper: one GPU)
    parameters: Mapping[str, Any]  # the laptop values: those of profiles.yaml, or else of the cell
    code: tuple[str, ...]  # sources of the code cells, the parameters cell left out
    cell: Mapping[str, Any] = field(default_factory=dict)  # the values in the parameters cell as it stands


def read(path: str | Path) -> Notebook:
    """Read a notebook file; raises `BatchError` when its parameters cell or metadata is not as the house needs it."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [(c["source"], c["metadata"].get("tags", ())) for c in content["cells"] if c["cell_type"] == "code"]
        sources, tags = ["".join(source) for source, _ in cells], [tag for _, tag in cells]
        tagged = [i for i, tag in enumerate(tags) if "parameters" in tag]
        meta = content["metadata"].get("hrlab")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise BatchError(
            f"{path} cannot be read as a notebook ({type(e).__name__}: {e})",
            expected="a notebook in JSON format 4",
            do="restore it from git",
        ) from e
    if not isinstance(meta, dict):
        raise BatchError(
            f"{path.name} has no `hrlab` entry in its metadata",
            expected='{"title", "section", "makes", "needs", "minutes"}',
            do="add it (in JupyterLab: Property Inspector, Advanced Tools, Notebook Metadata)",
        )
    for what, (kind, item) in _METADATA.items():
        value = meta.get(what, kind())
        items = value.values() if isinstance(value, dict) else value
        if not isinstance(value, kind) or not all(isinstance(i, item) and not isinstance(i, bool) for i in items):
            raise BatchError(
                f"{path.name}, `hrlab` in its metadata: {what} = {value!r}",
                expected={str: "text", list: "a list of names", dict: '{"profile": minutes}'}[kind],
                do="correct it",
            )
    if len(tagged) != 1:
        raise BatchError(
            f"{path.name} has {len(tagged)} cells tagged `parameters`",
            expected="exactly one",
            do="tag one code cell",
        )
    cell = _parameters(sources.pop(tagged[0]), path.name)
    return Notebook(
        name=path.stem,
        path=path,
        title=meta.get("title", path.stem),
        section=meta.get("section", ""),
        makes=tuple(meta.get("makes", ())),
        needs=tuple(meta.get("needs", ())),
        minutes=dict(meta.get("minutes", {})),
        parameters={**cell, **profiles(path.parent).get(path.stem, {}).get("laptop", {})},
        code=tuple(sources),
        cell=cell,
    )


def _parameters(source: str, where: str) -> dict[str, Any]:
    """The `name = literal` lines of a parameters cell."""
    values: dict[str, Any] = {}
    try:
        lines = ast.parse(source).body
    except (SyntaxError, ValueError) as e:  # ValueError: a NUL byte
        line = getattr(e, "lineno", None) or 1
        shown = (source.splitlines() or [""])[line - 1].strip()
        raise _not_literal(where, line, shown, "no line of Python" if isinstance(e, SyntaxError) else str(e)) from e
    for node in lines:
        try:
            if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
                raise ValueError("not of the form `name = value`")
            value = ast.literal_eval(node.value)
            if not _is_json(value):
                raise ValueError("changes on its way through JSON (a tuple, or a key that is no string)")
        except (ValueError, TypeError) as e:
            raise _not_literal(where, node.lineno, ast.unparse(node), str(e)) from e
        values[node.targets[0].id] = value
    return values


def _not_literal(where: str, line: int, shown: str, why: str) -> BatchError:
    return BatchError(
        f"parameters cell of {where}, line {line}: {shown} ({why})",
        expected="lines `name = value` with JSON values only",
        do="use numbers, strings, true lists and dicts; move everything else to the next cell",
    )


def _is_json(value: Any) -> bool:
    return json.loads(json.dumps(value, allow_nan=False)) == value


def scan(folder: Path | None = None) -> tuple[dict[str, Notebook], dict[str, HRLibError]]:
    """The notebooks of the repository (or of `folder`), by name, in reading order; and which are left out, and why.

    Somebody's Untitled.ipynb must not stop the work on the others. Hidden files are nobody's notebooks.
    """
    folder = folder or root() / "notebooks"
    profiles(folder)  # a slip in that file is an error of its own, of no single notebook
    known: dict[str, Notebook] = {}
    strays: dict[str, HRLibError] = {}
    for path in sorted(folder.glob("*.ipynb")):
        if not path.name.startswith("."):
            try:
                if re.search(r"-Copy\d+$", path.stem):
                    raise BatchError(
                        f"a copy that JupyterLab named {path.name}", expected="a name of its own", do="rename it"
                    )
                known[path.stem] = read(path)
            except BatchError as e:
                strays[path.stem] = e
    while lost := [(nb.name, need) for nb in known.values() for need in nb.needs if not _can_need(nb, need, known)]:
        for name, need in dict(lost).items():
            strays[name] = BatchError(
                f"{name}.ipynb needs {need!r}",
                expected="another notebook, one that is not left out",
                do="correct `needs` in its metadata, or what it needs",
            )
            del known[name]
    return known, strays


def _can_need(notebook: Notebook, need: str, known: Mapping[str, Notebook]) -> bool:
    found = _named(need, known)
    return len(found) == 1 and found != [notebook.name]


def _named(name: str, known: Mapping[str, Any]) -> list[str]:
    """The notebooks that a name, a file name or a beginning may mean."""
    stem = _stem(name)
    return [n for n in known if n == stem] or [n for n in known if n.startswith(stem)]


def _stem(name: str) -> str:
    return Path(name).name.removesuffix(".ipynb")


def catalogue(folder: Path | None = None) -> dict[str, Notebook]:
    """All notebooks of the repository (or of `folder`), by name, in reading order; see `scan`."""
    return scan(folder)[0]


def find(name: str, known: Mapping[str, Notebook]) -> str:
    """The full name for a name, a file name, or an unambiguous beginning such as "02".

    Raises:
        UnknownName: none or several of them. BatchError: it is there, and no notebook of the house.
    """
    stem, hits = _stem(name), _named(name, known)
    if len(hits) == 1:
        return hits[0]
    if not hits:
        strays = scan()[1]
        if len(left_out := _named(name, strays)) == 1:
            raise strays[left_out[0]]
    raise UnknownName(
        f"notebook {name!r} " + (f"could be any of {hits}" if hits else "does not exist"),
        expected=f"one of {list(known)}",
        do=nearest(stem, list(known)) or "see `hrlab list`",
    )


def profiles(folder: Path | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """The content of profiles.yaml beside the notebooks: notebook -> profile -> {parameter: value}; {} without a file.

    Raises:
        BatchError: no YAML, or not of that form; it names the line.
    """
    path = (folder or root() / "notebooks") / FILE
    return _profiles(path, path.stat().st_mtime_ns) if path.exists() else {}


@lru_cache(maxsize=4)
def _profiles(path: Path, _: int) -> dict[str, dict[str, dict[str, Any]]]:
    table = yamls.read(path, mappings=3) or {}
    table = {name: {profile: values or {} for profile, values in (by or {}).items()} for name, by in table.items()}
    for name, by_profile in table.items():
        for profile, values in by_profile.items():
            if profile not in PROFILES:
                raise UnknownName(f"{FILE}, {name}: {profile!r}", expected=f"one of {PROFILES}", do="correct it")
            for parameter, value in values.items():
                try:
                    good = isinstance(parameter, str) and _is_json(value)
                except (ValueError, TypeError):
                    good = False
                if not good:
                    raise BatchError(
                        f"{FILE}, {name}, {profile}: {parameter} = {value!r}",
                        expected="names with JSON values",
                        do="correct it",
                    )
    return table


def effective(profile: str, known: Mapping[str, Notebook]) -> dict[str, dict[str, Any]]:
    """Notebook -> all values it runs with at `profile`: those of `laptop`, and what the profile changes in them.

    Raises:
        UnknownName: no such profile, or profiles.yaml names a notebook or a parameter that there is not.
        BatchError: a value of another JSON type than at `laptop`, or there another one than in the cell.
    """
    if profile not in PROFILES:
        raise UnknownName(f"profile {profile!r}", expected=f"one of {PROFILES}", do=nearest(profile, list(PROFILES)))
    table, folder = profiles(), root() / "notebooks"
    if unknown := [name for name in table if name not in known and not (folder / f"{name}.ipynb").exists()]:
        raise UnknownName(f"{FILE} names {unknown}", expected=f"notebooks among {list(known)}", do="correct it")
    for name, nb in known.items():
        _check_pinned(nb, table.get(name, {}).get("laptop", {}))
    changes = {name: table.get(name, {}).get(profile, {}) for name in known}
    return {name: {**nb.parameters, **validated(nb, changes[name])} for name, nb in known.items()}


def _check_pinned(notebook: Notebook, values: Mapping[str, Any]) -> None:
    """Refuse slips in a `laptop` entry, as the parameters cell shows them.

    In the cell people try things out, and that must not stop a run: a number may stand for any number, None for
    anything, and a name that the cell lacks is a slip only where the entry leaves out one that the cell has.
    """
    left_out = [name for name in notebook.cell if name not in values]
    loose = {"integer": "number", "float": "number"}
    for name, value in values.items():
        if name not in notebook.cell:
            if left_out:
                raise UnknownName(
                    f"{FILE}, {notebook.name}, laptop: {name!r}",
                    expected=f"names of the parameters cell, of which {left_out} are not given",
                    do=nearest(name, left_out) or "correct it there or in the cell",
                )
            continue
        got, wanted = (loose.get(t, t) for t in map(_json_type, (value, notebook.cell[name])))
        if got != wanted and "null" not in (got, wanted):
            raise BatchError(
                f"{FILE}, {notebook.name}, laptop: {name} = {value!r} is of JSON type {got}",
                expected=f"{wanted}, as {notebook.cell[name]!r} in the parameters cell",
                do="correct it there or in the cell",
            )


def validated(notebook: Notebook, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` if every name is a parameter of the notebook and every value has the JSON type of its laptop value.

    A whole number may stand for a float; a laptop value of None takes any JSON value.
    """
    for name, value in changes.items():
        if name not in notebook.parameters:
            raise UnknownName(
                f"{notebook.name} has no parameter {name!r}",
                expected=f"one of {list(notebook.parameters)}",
                do=nearest(str(name), list(notebook.parameters)) or "see the notebook's parameters cell",
            )
        default = notebook.parameters[name]
        wanted, got = _json_type(default), _json_type(value)
        if got != wanted and wanted != "null" and not (wanted == "float" and got == "integer"):
            raise BatchError(
                f"{notebook.name}: parameter {name} = {value!r} is of JSON type {got}",
                expected=f"{wanted}, as its laptop value {default!r}",
                do="correct the value",
            )
    return dict(changes)


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "float"), (str, "string"), (list, "list")):
        if isinstance(value, kind):
            return name
    return "object" if isinstance(value, dict) else type(value).__name__


def profile_of(notebook: Notebook, values: Mapping[str, Any]) -> str:
    """The profile whose values these are, or "custom"."""
    changes = profiles().get(notebook.name, {})
    for profile in PROFILES:
        if {**notebook.parameters, **changes.get(profile, {})} == dict(values):
            return profile
    return "custom"
