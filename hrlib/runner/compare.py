"""Did the numbers move? The records of the last runs beside those that are committed.

Another processor rounds otherwise, and hundreds of steps of Adam enlarge that, so a repeated run never gives the same
digits. A number is *within* its tolerance when it moved by no more than half of its 95 % interval: where a mean over
other pictures could lie as well. Without an interval that half is the t quantile times spread / sqrt n. Any number may
move by one part in a hundred, truth values and words not at all. A number *without a spread* that moved by more
decides nothing: it has no measure of how far it may. Seconds and peak memory differ from machine to
machine and are left out.

A number over other pictures or in another unit is not the same number, and counts as moved beyond. The claims are
judged by today's rule on both sides, so that a verdict that changed says: the numbers or their spreads did.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BatchError, StoreError
from ..lab import records
from ..lab.notebook import catalogue
from ..lab.place import figures_folder, git
from . import claims

SAME, WITHIN, ALONE, BEYOND, NEW, GONE = KINDS = ("the same", "within", "without a spread", "beyond", "new", "gone")
ROUNDING = 1e-6  # of a value: two numbers that differ by less are the same
LEAST = 0.01  # of a value: the least tolerance of a number

Recorded = Mapping[str, dict[str, Any]]  # key -> record, see `records.read`


@dataclass(frozen=True)
class Change:
    """One record before and after.

    Attributes:
        key: of the record.
        kind: one of `KINDS`.
        before, after: its value; None if there was, or is, no such record.
        tolerance: how far it may move, in its own unit; 0 for truth values and words.
    """

    key: str
    kind: str
    before: float | bool | str | None = None
    after: float | bool | str | None = None
    tolerance: float = 0.0
    unit: str = ""


@dataclass(frozen=True)
class Comparison:
    """What moved in one notebook.

    Attributes:
        notebook: its name.
        changes: one for each lasting record, by key.
        verdicts: (claim, before, after) of the claims whose verdict changed.
    """

    notebook: str
    changes: Sequence[Change]
    verdicts: Sequence[tuple[str, str, str]]

    @property
    def told(self) -> list[Change]:
        """What a reader should look at: all but what is the same or within its tolerance."""
        return [c for c in self.changes if c.kind not in (SAME, WITHIN)]

    def summary(self) -> str:
        """One line: how many numbers are the same, within their tolerance, beyond it; and the changed verdicts."""
        count = Counter(c.kind for c in self.changes)
        parts = [f"{count[kind]} {kind}" for kind in KINDS if count[kind]]
        parts += [f"{claim}: {before} -> {after}" for claim, before, after in self.verdicts]
        return f"{self.notebook}: " + ", ".join([f"{len(self.changes)} numbers", *parts])


def tolerance(record: Mapping[str, Any]) -> float:
    """How far a number may move; see the head of this module."""
    value, n, spread, interval = (record[k] for k in ("value", "n", "spread", "interval"))
    if isinstance(value, (bool, str)):
        return 0.0
    half = 0.0
    if interval is not None and all(map(math.isfinite, interval)):
        half = (interval[1] - interval[0]) / 2
    elif spread is not None and n > 1:
        half = claims.half_width(spread, n)
    return max(half, LEAST * abs(value))


def changes(before: Recorded, after: Recorded) -> list[Change]:
    """Every lasting record of either side, sorted by key."""
    found = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if any(side["volatile"] for side in (old, new) if side):
            continue
        if old is None or new is None:
            values = (old and old["value"], new and new["value"])
            found.append(Change(key, NEW if old is None else GONE, *values, unit=(old or new)["unit"]))
            continue
        a, b, may = old["value"], new["value"], tolerance(old)
        if any(old[name] != new[name] for name in ("n", "unit")):
            kind = BEYOND
        elif any(isinstance(v, (bool, str)) for v in (a, b)):
            kind = SAME if a == b and type(a) is type(b) else BEYOND
        else:
            far = ALONE if old["spread"] is None else BEYOND
            kind = SAME if math.isclose(a, b, rel_tol=ROUNDING) else WITHIN if abs(a - b) <= may else far
        found.append(Change(key, kind, a, b, may, new["unit"]))
    return found


def verdicts(stated: Iterable[claims.Claim], before: Recorded, after: Recorded) -> list[tuple[str, str, str]]:
    """(claim, verdict before, verdict after) of each of a notebook's claims whose verdict changed, at either scale."""
    found = []
    for claim in stated:
        old, new = claims.judge(claim, before), claims.judge(claim, after)
        found.append((claim.id, old.verdict, new.verdict))
        if old.at_1024 and new.at_1024:
            found.append((f"{claim.id} at 1024 px", old.at_1024.verdict, new.at_1024.verdict))
    return [each for each in found if each[1] != each[2]]


def committed(notebook: str, revision: str = "HEAD") -> Recorded | None:
    """The records of a notebook's laptop results in a commit; None if it has none there.

    Raises:
        StoreError: they are damaged there.
    """
    place = f"{revision}:./figures/{notebook}/{records.FILE}"
    if (text := git("show", place)) is None:
        return None
    try:
        return records.parse(json.loads(text), place)
    except ValueError as e:
        raise StoreError(
            f"{place} is not a list of records: {e}", expected="a list of records", do="compare with another commit"
        ) from e


def compare(notebooks: Iterable[str] = (), *, revision: str = "HEAD") -> list[Comparison]:
    """Hold the laptop results of notebooks (default: of all) against those of a commit.

    Where one side has none, all numbers are new, or gone; where both have none, there are no changes.

    Raises:
        BatchError: there is no such commit, or no git. StoreError: damaged records.
    """
    if git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") is None:
        raise BatchError(
            f"no commit {revision!r} to compare with",
            expected="a clone of the repository, and a commit, branch or tag in it",
            do="name one that `git log` lists; an unpacked archive has none",
        )
    found, stated = [], claims.load()
    for name in notebooks or catalogue():
        folder, before = figures_folder("laptop") / name, committed(name, revision) or {}
        after = records.read(folder) if (folder / records.FILE).exists() else {}
        own = [claim for claim in stated if claim.notebook == name]
        turned = verdicts(own, before, after) if before and after else ()
        found.append(Comparison(name, changes(before, after), turned))
    return found


def shown(change: Change) -> tuple[str, ...]:
    """A change as cells: key, kind, before, after, tolerance."""
    value = lambda v: f"{v:.4g}" if isinstance(v, float) else "–" if v is None else str(v)
    unit = f" {change.unit}" if change.unit else ""
    may = f"± {change.tolerance:.2g}{unit}" if change.kind in (WITHIN, ALONE, BEYOND) else ""
    return change.key, change.kind, value(change.before) + unit, value(change.after) + unit, may


def markdown(found: Sequence[Comparison], revision: str = "HEAD") -> str:
    """The comparison as a page: a line for each notebook, and what moved beyond its tolerance."""
    lines = ["# This run beside the committed one", "", " ".join(__doc__.split("\n\n")[1].split()), ""]
    lines += [f"Committed: `{revision}`.", ""]
    for one in found:
        lines += [f"## {one.notebook}", "", one.summary() + ".", ""]
        if rows := [shown(c) for c in one.told]:
            lines += ["| number | moved | before | after | tolerance |", "| --- | --- | --- | --- | --- |"]
            lines += ["| " + " | ".join((f"`{key}`", *rest)) + " |" for key, *rest in rows] + [""]
    return "\n".join(lines)
