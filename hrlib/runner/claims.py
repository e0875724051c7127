"""The ledger of claims: each statement of the paper that can be checked, and what the records say of it.

The rule. A condition's effect e is how far the recorded mean lies beyond the point of indifference (0, or the bound
that the condition names), in the direction that the paper states. The condition is *reproduced* when e exceeds the
spread, which is the standard deviation over images or seeds; *partly* when it does not, but the 95 % interval of the
mean (the recorded one, else 1.96 spread / sqrt n each way) excludes indifference; *not reproduced* in every other case,
a wrong sign included. Means count from n = 4 on, where more than a spread is also more than 1.96 standard errors; exact
counts and truth values need no spread. A claim is *reproduced* when all its conditions are, *not reproduced* when all
are not, and *partly* otherwise.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import BatchError, StoreError, UnknownName, nearest
from ..lab import records, yamls
from ..lab.place import figures_folder, root

FILE = "claims.yaml"
REPRODUCED, PARTLY, NOT_REPRODUCED = DECIDED = ("reproduced", "partly", "not reproduced")
PAPER_ONLY, NOT_YET = "needs the paper profile", "not yet computed"
VERDICTS = (*DECIDED, PAPER_ONLY, NOT_YET)
FEW = 4  # values; below, sqrt(n) < 1.96 and a mean may exceed its spread without excluding indifference

# The table of contents of the series: claims are listed before the notebooks that decide them are written.
NOTEBOOKS = (
    "00_start_here",
    "01_style_inr_gan",
    "02_loss_diagnostics",
    "03_loss_benchmark",
    "04_layerwise_discriminator",
    "05_cross_domain_synthesis",
    "06_lso_ablations",
    "07_direction_constraints",
    "08_id_retrieval",
    "09_panoramas",
    "10_style_transfer",
    "11_inversion_3d",
    "12_training",
    "13_studio",
)
_NUMBER = r"([-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?)"
_FORMS = {
    rf"> {_NUMBER}": lambda low: (float(low), math.inf),
    rf"< {_NUMBER}": lambda high: (-math.inf, float(high)),
    rf"between \[{_NUMBER}, {_NUMBER}\]": lambda low, high: (float(low), float(high)),
    "is true": lambda: None,
}


@dataclass(frozen=True)
class Condition:
    """What one record must be like for a claim to hold.

    Attributes:
        key: of the record.
        expect: "> a", "< a", "between [a, b]" or "is true".
        exact: the record is a count or follows from the mathematics, so it has no spread.
    """

    key: str
    expect: str
    exact: bool = False

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The open interval in which the statement holds; None for a truth value.

        Raises:
            BatchError: `expect` has none of the four forms, or an empty interval.
        """
        for form, make in _FORMS.items():
            if found := re.fullmatch(form, self.expect):
                bounds = make(*found.groups())
                if bounds is None or bounds[0] < bounds[1]:
                    return bounds
        raise BatchError(
            f"{self.key}: expect {self.expect!r}",
            expected='"> a", "< a", "between [a, b]" with a < b, or "is true"',
            do="correct it in notebooks/claims.yaml",
        )

    def effect(self, value: float) -> float:
        """How far `value` lies inside the bounds: positive in the paper's direction, 0 at indifference."""
        low, high = self.bounds
        return min(value - low, high - value)


@dataclass(frozen=True)
class Claim:
    """A statement of the paper.

    Attributes:
        id: lower-case words joined by "-".
        section: of the paper, e.g. "IV-C".
        statement: in our words, faithful to the paper's.
        notebook: whose records decide it; it need not exist yet.
        conditions: all of them must hold.
        paper: the paper's own numbers, as text.
        scale: "paper" when no other profile can decide it.
        note: why it is measured in this way, or why it needs its scale.
        later: its notebook exists and does not record the evidence yet.
    """

    id: str
    section: str
    statement: str
    notebook: str
    conditions: tuple[Condition, ...]
    paper: str = ""
    scale: str = ""
    note: str = ""
    later: bool = False


@dataclass(frozen=True)
class Finding:
    """What the record of one condition says.

    Attributes:
        effect: in the paper's direction; None for a truth value, and where there is no evidence.
        spread: standard deviation over the n images or seeds; None for exact counts too.
        why: for want of what there is no verdict.
        missing: the notebook ran and ought to have recorded it.
    """

    condition: Condition
    verdict: str
    effect: float | None = None
    spread: float | None = None
    n: int | None = None
    unit: str = ""
    why: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict, why there is none yet, and the findings it is made of (none where no record was read)."""

    claim: Claim
    verdict: str
    why: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def weakest(self) -> Finding | None:
        """The finding that limits the claim: the worst verdict, then the least effect in units of its spread."""
        rank = (NOT_YET, NOT_REPRODUCED, PARTLY, REPRODUCED)
        strength = lambda f: f.effect / f.spread if f.spread else math.inf
        return min(self.findings, key=lambda f: (rank.index(f.verdict), strength(f)), default=None)

    @property
    def problems(self) -> list[str]:
        """What the notebook should have recorded and did not; none for a claim that is marked `later`."""
        lacking = [f for f in self.findings if f.missing and not self.claim.later]
        return [f"{self.claim.id}: {f.condition.key}: {f.why}" for f in lacking]


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: str | Path | None = None) -> list[Claim]:
    """The claims of a YAML file (default: notebooks/claims.yaml), in its order.

    Raises:
        UnknownName: a field, notebook or scale that there is not.
        BatchError: no such file or no YAML, a missing field, an id used twice, or an expectation that cannot be read.
    """
    path = Path(path or root() / "notebooks" / FILE)
    entries = yamls.read(path)
    if not isinstance(entries, list):
        raise BatchError(f"{path}: {type(entries).__name__}", expected="a list of claims", do="correct it")
    claims = [_claim(entry) for entry in entries]
    if twice := [name for name, count in Counter(c.id for c in claims).items() if count > 1]:
        raise BatchError(f"{path.name}: {twice} more than once", expected="each id once", do="rename the later ones")
    return claims


def _claim(entry: Any) -> Claim:
    where = f"claim {entry.get('id', entry)!r}" if isinstance(entry, dict) else f"claim {entry!r}"
    claim = Claim(**{**_fields(entry, Claim, where), "conditions": _conditions(entry, where)})
    for name, value, valid in (("notebook", claim.notebook, NOTEBOOKS), ("scale", claim.scale, ("", "paper"))):
        if value not in valid:
            raise UnknownName(
                f"{where}: {name} {value!r}",
                expected=f"one of {list(valid)}",
                do=nearest(str(value), list(valid)) or "correct it",
            )
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.id):
        raise BatchError(f"{where}", expected='an id of lower-case words joined by "-"', do="rename it")
    return claim


def _conditions(entry: dict[str, Any], where: str) -> tuple[Condition, ...]:
    conditions = tuple(Condition(**_fields(c, Condition, where)) for c in entry["conditions"])
    for c in conditions:
        if c.bounds is None and c.exact:
            raise BatchError(
                f"{where}: {c.key} is true, exact", expected="no `exact`", do="truth values have no spread"
            )
        if not records.KEY.fullmatch(c.key):
            raise BatchError(f"{where}: key {c.key!r}", expected="a key of a record", do="see hrlib/lab/records.py")
    return conditions


def _fields(entry: Any, kind: type, where: str) -> dict[str, Any]:
    """`entry` if it is a mapping with the fields of the dataclass `kind`, each of the right type."""
    known = {f.name: f for f in fields(kind)}
    if not isinstance(entry, dict):
        raise BatchError(f"{where}: {entry!r}", expected=f"a mapping with {list(known)}", do="correct it")
    for name, value in entry.items():
        if name not in known:
            raise UnknownName(
                f"{where}: field {name!r}",
                expected=f"one of {list(known)}",
                do=nearest(str(name), list(known)) or "remove it",
            )
        wanted = {"str": str, "bool": bool}.get(known[name].type, list)
        if not isinstance(value, wanted):
            raise BatchError(
                f"{where}: {name} = {value!r}", expected=f"a {wanted.__name__}", do="quote it or correct it"
            )
    required = [n for n in ("id", "section", "statement", "notebook", "conditions", "key", "expect") if n in known]
    if missing := [n for n in required if not entry.get(n)]:
        raise BatchError(f"{where} has no {', '.join(missing)}", expected="all of " + ", ".join(required), do="add it")
    return entry


# --- judging ----------------------------------------------------------------------------------------------------------


def judge(claim: Claim, found: Mapping[str, dict[str, Any]] | None, profile: str = "laptop") -> Verdict:
    """Apply the rule (see the head of this module) to one claim.

    Args:
        claim: what is stated.
        found: key -> record of the claim's notebook (`records.read`); None when it has not run.
        profile: at which scale the records were made.
    """
    if claim.scale == "paper" and profile != "paper":
        return Verdict(claim, PAPER_ONLY, claim.note)
    if found is None:
        return Verdict(claim, NOT_YET, f"{claim.notebook} has not run at {profile}")
    findings = tuple(_examine(c, found, claim) for c in claim.conditions)
    kinds = {f.verdict for f in findings}
    if NOT_YET in kinds:
        return Verdict(claim, NOT_YET, "; ".join(f"{f.condition.key}: {f.why}" for f in findings if f.why), findings)
    return Verdict(claim, kinds.pop() if len(kinds) == 1 else PARTLY, "", findings)


def _examine(c: Condition, found: Mapping[str, dict[str, Any]], claim: Claim) -> Finding:
    def lacking(why: str, missing: bool = True) -> Finding:
        return Finding(c, NOT_YET, why=why, missing=missing)

    if c.key not in found:
        hint = nearest(c.key, list(found))
        ran = f"{claim.notebook} ran and did not record it" + f"; {hint}" * bool(hint)
        return lacking(f"{claim.notebook} is still to record it" if claim.later else ran)
    record = found[c.key]
    value, unit, n, spread = (record[k] for k in ("value", "unit", "n", "spread"))
    if isinstance(value, bool) != (c.bounds is None) or isinstance(value, str):
        return lacking(f"{value!r} cannot be held against {c.expect!r}")
    if c.bounds is None:
        return Finding(c, REPRODUCED if value else NOT_REPRODUCED, n=n)
    e = c.effect(value)
    if c.exact:
        return Finding(c, REPRODUCED if e > 0 else NOT_REPRODUCED, e, unit=unit)
    if spread is None:
        return lacking(f"recorded without a spread (n = {n})")
    if n < FEW:
        return lacking(f"a mean of {n} values, and means count from {FEW} on", missing=False)
    half = 1.96 * spread / math.sqrt(n)
    surely = min(c.effect(end) for end in record["interval"] or (value - half, value + half))
    verdict = REPRODUCED if e > spread else PARTLY if surely > 0 else NOT_REPRODUCED
    return Finding(c, verdict, e, spread, n, unit)


def ledger(profile: str = "laptop") -> list[Verdict]:
    """The verdict of every claim of notebooks/claims.yaml, from the records of a profile's last runs."""
    found: dict[str, Any] = {}
    for name in NOTEBOOKS:
        try:
            found[name] = records.read(figures_folder(profile) / name)
        except (OSError, StoreError):  # it has not run, or its records are damaged, of which `hrlab figures` speaks
            found[name] = None
    return [judge(c, found[c.notebook], profile) for c in load()]
