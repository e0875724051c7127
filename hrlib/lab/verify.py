"""Are a notebook's results complete and undamaged?"""

from __future__ import annotations

from pathlib import Path

from .. import store
from ..errors import HRLibError
from .figures import checked_alt
from .notebook import Notebook
from .records import FILE


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
        except (HRLibError, KeyError, TypeError) as e:
            found.append(f"{name}.json is damaged ({e})")
    for name in sorted(set(sidecars(folder)) - set(notebook.makes)):
        found.append(f"{name} was made, but `makes` in the notebook's metadata does not list it")
    try:
        store.read_json(folder / FILE)
    except FileNotFoundError:
        found.append(f"{FILE} was not written (the last cell calls run.finish())")
    except HRLibError as e:
        found.append(str(e))
    return found


def sidecars(folder: Path) -> dict[str, dict]:
    """The sidecars of the figures and tables in `folder`, by name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = store.read_json(path)
        if isinstance(content, dict) and content.get("kind") in ("figure", "table"):
            found[path.stem] = content
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
