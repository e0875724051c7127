"""Reading notebooks without running them: parameters, metadata, profiles.

The values of every profile, `laptop` included, are in `notebooks/profiles.yaml`, so that trying things out in a
parameters cell never changes what `hrlab run` makes. Without an entry there, `laptop` uses the values in the cell.

Checked by hand: a notebook's own cell is the schema of its parameters, known only after it is read, so pydantic would
need a model built per notebook, and its errors rewritten to name the file, the notebook and the nearest name.
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

from ..errors import BatchError, HRLibError, InvalidValue, UnknownName, nearest
from . import yamls
from .place import PROFILES, root

FILE, PLANNED = "profiles.yaml", "planned.yaml"
_METADATA = {  # entry -> its type and that of its items
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
    parameters: Mapping[str, Any] = field(default_factory=dict)  # laptop: from profiles.yaml, or else from the cell
    code: tuple[str, ...] = ()  # sources of the code cells, without the parameters cell
    cell: Mapping[str, Any] = field(default_factory=dict)  # the values in the parameters cell as it stands


def read(path: str | Path) -> Notebook:
    """Read a notebook file; raises `BatchError` if its parameters cell or metadata is not as `Notebook` needs it."""
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
    meta = _metadata(meta, f"{path.name}, `hrlab` in its metadata")
    if len(tagged) != 1:
        raise BatchError(
            f"{path.name} has {len(tagged)} cells tagged `parameters`",
            expected="exactly one",
            do="tag the cell with the parameters, and no other",
        )
    cell = _parameters(sources.pop(tagged[0]), path.name)
    parameters = {**cell, **profiles(path.parent).get(path.stem, {}).get("laptop", {})}
    return _described(path, meta, parameters=parameters, code=tuple(sources), cell=cell)


def planned(folder: Path | None = None) -> dict[str, Notebook]:
    """The notebooks that planned.yaml beside the others announces and nobody has written yet, by name.

    Raises:
        BatchError: the file is not YAML, or an entry is not a notebook's metadata.
    """
    folder = folder or root() / "notebooks"
    entries = (yamls.read(folder / PLANNED, mappings=2) or {}) if (folder / PLANNED).exists() else {}
    paths = {name: folder / f"{name}.ipynb" for name in entries}
    metas = {name: _metadata(entry or {}, f"{PLANNED}, {name}") for name, entry in entries.items()}
    return {name: _described(paths[name], meta) for name, meta in metas.items() if not paths[name].exists()}


def _metadata(meta: dict[str, Any], where: str) -> dict[str, Any]:
    """`meta` if its entries have the types of `_METADATA`."""
    for what, (kind, item) in _METADATA.items():
        value = meta.get(what, kind())
        items = value.values() if isinstance(value, dict) else value
        if not isinstance(value, kind) or not all(isinstance(i, item) and not isinstance(i, bool) for i in items):
            form = {str: "text", list: "a list of names", dict: '{"profile": minutes}'}[kind]
            raise BatchError(f"{where}: {what} = {value!r}", expected=form, do=f"write `{what}` in that form")
    return meta


def _described(path: Path, meta: Mapping[str, Any], **content: Any) -> Notebook:
    return Notebook(
        name=path.stem,
        path=path,
        title=meta.get("title", path.stem),
        section=meta.get("section", ""),
        makes=tuple(meta.get("makes", ())),
        needs=tuple(meta.get("needs", ())),
        minutes=dict(meta.get("minutes", {})),
        **content,
    )


def _parameters(source: str, where: str) -> dict[str, Any]:
    """The `name = literal` lines of a parameters cell."""
    values: dict[str, Any] = {}
    try:
        lines = ast.parse(source).body
    except (SyntaxError, ValueError) as e:  # ValueError: a NUL byte
        line = getattr(e, "lineno", None) or 1
        shown = (source.splitlines() or [""])[line - 1].strip()
        raise _not_literal(where, line, shown, "not Python" if isinstance(e, SyntaxError) else str(e)) from e
    for node in lines:
        try:
            if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
                raise ValueError("not of the form `name = value`")
            value = ast.literal_eval(node.value)
            if not _is_json(value):
                raise ValueError("JSON would change it (a tuple, or a key that is not a string)")
        except (ValueError, TypeError) as e:
            raise _not_literal(where, node.lineno, ast.unparse(node), str(e)) from e
        values[node.targets[0].id] = value
    return values


def _not_literal(where: str, line: int, shown: str, why: str) -> BatchError:
    return BatchError(
        f"parameters cell of {where}, line {line}: {shown} ({why})",
        expected="lines `name = value` with JSON values only",
        do="use numbers, strings, lists and dicts; move everything else to the next cell",
    )


def _is_json(value: Any) -> bool:
    return json.loads(json.dumps(value, allow_nan=False)) == value


def scan(folder: Path | None = None) -> tuple[dict[str, Notebook], dict[str, HRLibError]]:
    """The notebooks of the repository (or of `folder`), by name in reading order, and the files left out, with reasons.

    A stray Untitled.ipynb must not stop the work on the others. Hidden files are ignored.
    """
    folder = folder or root() / "notebooks"
    profiles(folder)  # an error in that file concerns no single notebook
    known: dict[str, Notebook] = {}
    strays: dict[str, HRLibError] = {}
    for path in sorted(folder.glob("*.ipynb")):
        if not path.name.startswith("."):
            try:
                if re.search(r"-Copy\d+$", path.stem):
                    raise BatchError(
                        f"a copy that JupyterLab named {path.name}",
                        expected="a notebook with its own name",
                        do="rename it or delete it",
                    )
                known[path.stem] = read(path)
            except BatchError as e:
                strays[path.stem] = e
    while lost := [(nb.name, need) for nb in known.values() for need in nb.needs if not _can_need(nb, need, known)]:
        for name, need in dict(lost).items():
            strays[name] = BatchError(
                f"{name}.ipynb needs {need!r}",
                expected="the name of another notebook, one that is not left out itself",
                do="correct `needs` in its metadata, or repair the notebook it needs",
            )
            del known[name]
    return known, strays


def _can_need(notebook: Notebook, need: str, known: Mapping[str, Notebook]) -> bool:
    found = _named(need, known)
    return len(found) == 1 and found != [notebook.name]


def _named(name: str, known: Mapping[str, Any]) -> list[str]:
    """The notebooks that a name, a file name or a prefix may mean."""
    stem = _stem(name)
    return [n for n in known if n == stem] or [n for n in known if n.startswith(stem)]


def _stem(name: str) -> str:
    return Path(name).name.removesuffix(".ipynb")


def catalogue(folder: Path | None = None) -> dict[str, Notebook]:
    """All notebooks of the repository (or of `folder`), by name, in reading order; see `scan`."""
    return scan(folder)[0]


def find(name: str, known: Mapping[str, Notebook]) -> str:
    """The full name for a name, a file name, or an unambiguous prefix such as "02".

    Raises:
        UnknownName: it matches no notebook, or several. BatchError: the file is there but is left out (see `scan`).
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
        do=nearest(stem, list(known)) or "pick a name that `hrlab list` shows",
    )


def profiles(folder: Path | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """The content of profiles.yaml beside the notebooks: notebook -> profile -> {parameter: value}; {} without a file.

    Raises:
        BatchError: the file is not YAML, or not of that form; the message names the line.
        UnknownName: a profile that does not exist.
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
                hint = nearest(str(profile), list(PROFILES)) or "rename the profile or remove it"
                raise UnknownName(f"{FILE}, {name}: {profile!r}", expected=f"one of {PROFILES}", do=hint)
            for parameter, value in values.items():
                try:
                    good = isinstance(parameter, str) and _is_json(value)
                except (ValueError, TypeError):
                    good = False
                if not good:
                    raise BatchError(
                        f"{FILE}, {name}, {profile}: {parameter} = {value!r}",
                        expected="a name with a JSON value",
                        do="use numbers, strings, lists and dicts; quote dates and times",
                    )
    return table


def effective(profile: str, known: Mapping[str, Notebook]) -> dict[str, dict[str, Any]]:
    """Notebook -> all values it runs with at `profile`: those of `laptop`, updated with those of the profile.

    Raises:
        UnknownName: the profile, or a notebook or parameter that profiles.yaml names, does not exist.
        InvalidValue: a value whose JSON type differs from that at `laptop`, or a `laptop` value from that in the cell.
    """
    if profile not in PROFILES:
        hint = nearest(profile, list(PROFILES)) or "pick one of these profiles"
        raise UnknownName(f"profile {profile!r}", expected=f"one of {PROFILES}", do=hint)
    table, folder = profiles(), root() / "notebooks"
    if unknown := [name for name in table if name not in known and not (folder / f"{name}.ipynb").exists()]:
        hint = nearest(unknown[0], list(known)) or "rename or remove that entry"
        raise UnknownName(f"{FILE} names {unknown}", expected=f"notebooks among {list(known)}", do=hint)
    for name, nb in known.items():
        _check_pinned(nb, table.get(name, {}).get("laptop", {}))
    changes = {name: table.get(name, {}).get(profile, {}) for name in known}
    return {name: {**nb.parameters, **validated(nb, changes[name])} for name, nb in known.items()}


def _check_pinned(notebook: Notebook, values: Mapping[str, Any]) -> None:
    """Compare a `laptop` entry with the parameters cell, and refuse what must be a mistake in the entry.

    People try things out in the cell, and that must not stop a run: any number may replace a number, and None anything;
    a name that the cell lacks is a mistake only if the entry leaves out a name that the cell has.
    """
    left_out = [name for name in notebook.cell if name not in values]
    loose = {"integer": "number", "float": "number"}
    for name, value in values.items():
        if name not in notebook.cell:
            if left_out:
                raise UnknownName(
                    f"{FILE}, {notebook.name}, laptop: {name!r}",
                    expected=f"a name in the parameters cell; the entry lacks {left_out}",
                    do=nearest(name, left_out) or "rename it there or in the cell",
                )
            continue
        got, wanted = (loose.get(t, t) for t in map(_json_type, (value, notebook.cell[name])))
        if got != wanted and "null" not in (got, wanted):
            raise InvalidValue(
                f"{FILE}, {notebook.name}, laptop: {name} = {value!r} is of JSON type {got}",
                expected=f"{wanted}, as {notebook.cell[name]!r} in the parameters cell",
                do="change the value there or in the cell",
            )


def validated(notebook: Notebook, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` if every name is a parameter of the notebook and every value has the JSON type of its laptop value.

    A whole number may replace a float; any JSON value may replace a laptop value of None.

    Raises:
        UnknownName: the notebook has no such parameter. InvalidValue: another JSON type.
    """
    for name, value in changes.items():
        if name not in notebook.parameters:
            raise UnknownName(
                f"{notebook.name} has no parameter {name!r}",
                expected=f"one of {list(notebook.parameters)}",
                do=nearest(str(name), list(notebook.parameters)) or "use a name from the notebook's parameters cell",
            )
        default = notebook.parameters[name]
        wanted, got = _json_type(default), _json_type(value)
        if got != wanted and wanted != "null" and not (wanted == "float" and got == "integer"):
            raise InvalidValue(
                f"{notebook.name}: parameter {name} = {value!r} is of JSON type {got}",
                expected=f"{wanted}, as its laptop value {default!r}",
                do=f"give a value of type {wanted}",
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
