"""Reading notebooks without running them: parameters, metadata, profiles.

A notebook's own parameters cell holds the `laptop` values. `notebooks/profiles.yaml` holds what other profiles change.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BatchError, UnknownName, nearest
from .place import root

PROFILES = ("smoke", "laptop", "paper")


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
    parameters: Mapping[str, Any]  # the laptop values
    code: tuple[str, ...]  # sources of the code cells, the parameters cell left out


def read(path: str | Path) -> Notebook:
    """Read a notebook file; raises `BatchError` when its parameters cell or metadata is not as the house needs it."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [c for c in content["cells"] if c["cell_type"] == "code"]
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
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise BatchError(
            f"{path.name} has {len(tagged)} cells tagged `parameters`",
            expected="exactly one",
            do="tag one code cell",
        )
    return Notebook(
        name=path.stem,
        path=path,
        title=str(meta.get("title", path.stem)),
        section=str(meta.get("section", "")),
        makes=tuple(meta.get("makes", ())),
        needs=tuple(meta.get("needs", ())),
        minutes=dict(meta.get("minutes", {})),
        parameters=_parameters("".join(tagged[0]["source"]), path.name),
        code=tuple("".join(c["source"]) for c in cells if c is not tagged[0]),
    )


def _parameters(source: str, where: str) -> dict[str, Any]:
    """The `name = literal` lines of a parameters cell."""
    values: dict[str, Any] = {}
    for node in ast.parse(source).body:
        try:
            if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
                raise ValueError("not of the form `name = value`")
            value = ast.literal_eval(node.value)
            if json.loads(json.dumps(value, allow_nan=False)) != value:
                raise ValueError("changes on its way through JSON (a tuple, or a key that is no string)")
        except (ValueError, TypeError) as e:
            raise BatchError(
                f"parameters cell of {where}, line {node.lineno}: {ast.unparse(node)} ({e})",
                expected="lines `name = value` with JSON values only",
                do="use numbers, strings, true lists and dicts; move everything else to the next cell",
            ) from e
        values[node.targets[0].id] = value
    return values


def catalogue(folder: Path | None = None) -> dict[str, Notebook]:
    """All notebooks of the repository (or of `folder`), by name, in reading order."""
    paths = sorted((folder or root() / "notebooks").glob("*.ipynb"))
    return {p.stem: read(p) for p in paths}


def find(name: str, known: Mapping[str, Notebook]) -> str:
    """The full name for a name, a file name, or an unambiguous beginning such as "02"."""
    stem = Path(name).name.removesuffix(".ipynb")
    hits = [n for n in known if n == stem] or [n for n in known if n.startswith(stem)]
    if len(hits) == 1:
        return hits[0]
    raise UnknownName(
        f"notebook {name!r} " + (f"could be any of {hits}" if hits else "does not exist"),
        expected=f"one of {list(known)}",
        do=nearest(stem, list(known)) or "see `hrlab list`",
    )


def profiles() -> dict[str, dict[str, dict[str, Any]]]:
    """The content of notebooks/profiles.yaml: notebook -> profile -> {parameter: value}; {} when there is no file."""
    import yaml

    path = root() / "notebooks" / "profiles.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


def overrides(profile: str, known: Mapping[str, Notebook]) -> dict[str, dict[str, Any]]:
    """Notebook -> the parameter values that `profile` changes, validated against each notebook's parameters cell."""
    if profile not in PROFILES:
        raise UnknownName(f"profile {profile!r}", expected=f"one of {PROFILES}", do=nearest(profile, list(PROFILES)))
    table = profiles()
    if unknown := sorted(set(table) - set(known)):
        raise UnknownName(f"profiles.yaml names {unknown}", expected=f"notebooks among {list(known)}", do="correct it")
    for name, by_profile in table.items():
        if unknown := sorted(set(by_profile or {}) - {"smoke", "paper"}):
            raise UnknownName(
                f"profiles.yaml, {name}: {unknown}",
                expected="smoke or paper (the laptop values stand in the notebook itself)",
                do="correct it",
            )
    return {name: validated(nb, (table.get(name) or {}).get(profile) or {}) for name, nb in known.items()}


def validated(notebook: Notebook, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` if every name is a parameter of the notebook and every value has the JSON type of its default.

    A whole number may stand for a float; a default of None takes any JSON value.
    """
    for name, value in changes.items():
        if name not in notebook.parameters:
            raise UnknownName(
                f"{notebook.name} has no parameter {name!r}",
                expected=f"one of {list(notebook.parameters)}",
                do=nearest(name, list(notebook.parameters)) or "see the notebook's parameters cell",
            )
        default = notebook.parameters[name]
        wanted, got = _json_type(default), _json_type(value)
        if got != wanted and wanted != "null" and not (wanted == "float" and got == "integer"):
            raise BatchError(
                f"{notebook.name}: parameter {name} = {value!r} is of JSON type {got}",
                expected=f"{wanted}, as its default {default!r}",
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
    changes = profiles().get(notebook.name) or {}
    for profile in ("laptop", "smoke", "paper"):
        if {**notebook.parameters, **(changes.get(profile) or {})} == dict(values):
            return profile
    return "custom"
