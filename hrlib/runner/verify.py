"""Are a notebook's results complete and undamaged, and are they the same as before?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import store
from ..errors import HRLibError, StoreError
from ..lab import records
from ..lab.figures import checked_alt
from ..lab.notebook import Notebook
from ..lab.records import FILE


def problems(folder: Path, notebook: Notebook) -> list[str]:
    """What is wrong with the results in `folder`, in words; an empty list when nothing is.

    Everything the notebook promises in `makes` must be there with its files intact, and nothing that it does not
    promise; the numbers must have been written, which is the last thing a notebook does.
    """
    found: list[str] = []
    for name in notebook.makes:
        try:
            found += _damage(folder, name)
        except FileNotFoundError:
            found.append(f"{name} was not made")
        except (HRLibError, OSError, KeyError, TypeError, AttributeError) as e:
            found.append(f"{name}.json is damaged ({e})")
    for name in sorted(set(sidecars(folder)) - set(notebook.makes)):
        found.append(f"{name} was made, but `makes` in the notebook's metadata does not list it")
    try:
        records.read(folder)
    except FileNotFoundError:
        found.append(f"{FILE} was not written (the last cell calls run.finish())")
    except (HRLibError, OSError) as e:
        found.append(str(e))
    return found


def sidecars(folder: Path) -> dict[str, dict[str, Any]]:
    """The sidecars of the figures and tables in `folder`, by name; other files, whatever they are, are passed over."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = store.read_json(path)
        except (OSError, StoreError):
            continue
        if isinstance(content, dict) and content.get("kind") in ("figure", "table"):
            whole = content.get("name") == path.stem and isinstance(content.get("files"), dict)
            if whole and all(isinstance(content.get(k, ""), str) for k in ("caption", "alt")):
                found[path.stem] = {"caption": "", "alt": "", **content}
    return found


def repeated(new: Path, old: Path, notebook: Notebook, made: Iterable[str]) -> bool:
    """Whether the results in `new` are those in `old`, but for what is declared volatile (seconds, peak memory).

    made: the files in `old` that the run before made. Old results that are not whole are never the same.
    """
    if problems(old, notebook):
        return False
    return _lasting(new, (p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file())) == _lasting(old, made)


def _lasting(folder: Path, made: Iterable[str]) -> dict[str, Any]:
    """What the same run gives again: file -> hash, and of a volatile result all but its content."""
    found: dict[str, Any] = {name: store.sha256(folder / name) for name in made if (folder / name).is_file()}
    for name, side in sidecars(folder).items():
        if side.get("volatile"):
            found |= dict.fromkeys(side["files"]) | {f"{name}.json": side | {"files": sorted(side["files"])}}
    rows = records.read(folder).values()
    measured = dict.fromkeys(("value", "spread", "interval"))
    found[FILE] = [row | measured if row["volatile"] else row for row in rows]
    return found


def _damage(folder: Path, name: str) -> list[str]:
    sidecar = store.read_json(folder / f"{name}.json")
    if sidecar["kind"] == "figure":
        checked_alt(sidecar["alt"], sidecar["caption"])
    found = [] if sidecar["files"] else [f"{name} has no files"]
    for file, sha in sidecar["files"].items():
        path = folder / file
        if not path.exists() or path.stat().st_size == 0:
            found.append(f"{file} is missing or empty")
        elif store.sha256(path) != sha:
            found.append(f"{file} is not what its sidecar says")
    return found
