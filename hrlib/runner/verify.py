"""Are a notebook's results complete and undamaged, and are they the same as before?"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import store
from ..errors import HRLibError, StoreError
from ..lab import records
from ..lab.figures import checked_alt
from ..lab.notebook import Notebook
from ..lab.records import FILE


class Results:
    """The figures, tables and numbers that a run left in a folder, among whatever else lies there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def sidecars(self) -> dict[str, dict[str, Any]]:
        """The sidecars of figures and tables by name, read once; other files are passed over, whatever they are."""
        sides = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                content = store.read_json(path)
            except (OSError, StoreError):
                continue
            if isinstance(content, dict) and content.get("kind") in ("figure", "table"):
                whole = content.get("name") == path.stem and isinstance(content.get("files"), dict)
                if whole and all(isinstance(content.get(k, ""), str) for k in ("caption", "alt")):
                    sides[path.stem] = {"caption": "", "alt": "", **content}
        return sides

    def problems(self, notebook: Notebook) -> list[str]:
        """What is wrong with the results, in words; an empty list if nothing is.

        Everything that the notebook lists in `makes`, and nothing else, must be there with its files intact. The
        numbers must be there as well, since writing them is the last thing a notebook does.
        """
        problems: list[str] = []
        for name in notebook.makes:
            try:
                problems += _damage(self.folder, name)
            except FileNotFoundError:
                problems.append(f"{name} was not made")
            except (HRLibError, OSError, KeyError, TypeError, AttributeError) as e:
                problems.append(f"{name}.json is damaged ({e})")
        for name in sorted(set(self.sidecars) - set(notebook.makes)):
            problems.append(f"{name} was made, but `makes` in the notebook's metadata does not list it")
        try:
            records.read(self.folder)
        except FileNotFoundError:
            problems.append(f"{FILE} was not written (the last cell calls run.finish())")
        except (HRLibError, OSError) as e:
            problems.append(str(e))
        return problems

    def repeat(self, old: Results, notebook: Notebook, made: Iterable[str]) -> bool:
        """Whether these results equal the old ones, apart from what is declared volatile (seconds, peak memory).

        made: the files in the old folder that the run before made. Damaged old results never count as equal.
        """
        if old.problems(notebook):
            return False
        files = (p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        return self._lasting(files) == old._lasting(made)

    def _lasting(self, made: Iterable[str]) -> dict[str, Any]:
        """What a repeated run reproduces: file -> hash, and of a volatile result everything but its content."""
        lasting: dict[str, Any] = {n: store.sha256(self.folder / n) for n in made if (self.folder / n).is_file()}
        for name, side in self.sidecars.items():
            if side.get("volatile"):
                lasting |= dict.fromkeys(side["files"]) | {f"{name}.json": side | {"files": sorted(side["files"])}}
        measured = dict.fromkeys(("value", "spread", "interval"))
        rows = records.read(self.folder).values()
        lasting[FILE] = [row | measured if row["volatile"] else row for row in rows]
        return lasting


def _damage(folder: Path, name: str) -> list[str]:
    sidecar = store.read_json(folder / f"{name}.json")
    if sidecar["kind"] == "figure":
        checked_alt(sidecar["alt"], sidecar["caption"])
    problems = [] if sidecar["files"] else [f"{name} has no files"]
    for file, sha in sidecar["files"].items():
        path = folder / file
        if not path.exists() or path.stat().st_size == 0:
            problems.append(f"{file} is missing or empty")
        elif store.sha256(path) != sha:
            problems.append(f"{file} is not what its sidecar says")
    return problems
