"""The ledger of claims: each statement of the paper that can be checked, and what the records say of it.

The rule. A condition's effect e is how far the recorded mean lies beyond the point of indifference (0, or the bound
that the condition names), in the direction that the paper states. The condition is *reproduced* when e exceeds the
spread, which is the standard deviation over images or seeds, and the 95 % interval of the mean (the t quantile times
spread / sqrt n each way, or the recorded bootstrap where that is wider) excludes indifference; *partly* when only the
interval does; *not reproduced* in every other case, a wrong sign included. A condition may state a null: that nothing
much happens, within a margin. It is *reproduced* when the whole interval lies within the margin, *partly* when only the
mean does, else *not reproduced*. Means count from n = 4 on; exact counts and truth values need no spread. A claim is
*reproduced* when all its conditions are, *not reproduced* when all are not, and *partly* otherwise. A claim has a
second verdict, by the same rule, where recorded runs at 1024 pixels can decide it. A claim that says what another says
of the same numbers is shown but not counted. For a claim that fails, the first cause whose control holds says why; a
control is a condition, too, and a cause without one is argued. If none holds, the numbers themselves say what they can:
that the mean is sure, and smaller than what images differ by; that it is surely the other way; or that the interval
includes indifference, so that more images would tell. A claim may hold at 1024 pixels all the same, which is no cause:
there all networks are others.
"""

# Entries are checked by hand: pydantic would replace the twenty lines of `_fields`, but its errors would have to be
# rewritten to name the claim and the nearest field, and the rules for conditions would only become validators.

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import BatchError, InvalidValue, StoreError, UnknownName, nearest
from ..lab import records, yamls
from ..lab.notebook import planned
from ..lab.place import figures_folder, root

FILE = "claims.yaml"
REPRODUCED, PARTLY, NOT_REPRODUCED = DECIDED = ("reproduced", "partly", "not reproduced")
PAPER_ONLY, NOT_YET = "needs the paper profile", "not yet computed"
VERDICTS = (*DECIDED, PAPER_ONLY, NOT_YET)
FEW = 4  # values; the spread of fewer says next to nothing
CAUSES = {  # what may be the reason that a claim fails
    "world": "the small world",
    "network": "a network",
    "experiment": "the experiment",
    "method": "the method",
    "paper": "the paper",
}
# What the numbers say where no control does
SMALLER = "the mean is sure, and smaller than what images differ by"
AGAINST = "surely the other way here; no control has told why"
UNSURE = "the interval includes no effect; more images would tell"
OUTSIDE = "the interval leaves the margin"
UNEXPLAINED = "no control has told why"
HOLDS_AT_1024 = "with the networks at 1024 pixels it is reproduced"

_NUMBER = r"([-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?)"
_FORMS = {
    rf"> {_NUMBER}": lambda low: (float(low), math.inf),
    rf"< {_NUMBER}": lambda high: (-math.inf, float(high)),
    rf"between \[{_NUMBER}, {_NUMBER}\]": lambda low, high: (float(low), float(high)),
    "is true": lambda: None,
}


@dataclass(frozen=True)
class Condition:
    """What one record must satisfy for a claim to hold.

    Attributes:
        key: the key of the record.
        expect: "> a", "< a", "between [a, b]" or "is true".
        exact: the record is a count or follows from the mathematics, so it has no spread.
        margin: it states that nothing much happens; the bounds are the margin.
    """

    key: str
    expect: str
    exact: bool = False
    margin: bool = False

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The open interval in which the statement holds; None for a truth value.

        Raises:
            InvalidValue: `expect` has none of the four forms, or its interval is empty.
        """
        for form, make in _FORMS.items():
            if found := re.fullmatch(form, self.expect):
                bounds = make(*found.groups())
                if bounds is None or bounds[0] < bounds[1]:
                    return bounds
        raise InvalidValue(
            f"{self.key}: expect {self.expect!r}",
            expected='"> a", "< a", "between [a, b]" with a < b, or "is true"',
            do="rewrite it in one of these forms in notebooks/claims.yaml",
        )

    def effect(self, value: float) -> float:
        """How far `value` lies inside the bounds: positive in the paper's direction, 0 at indifference."""
        low, high = self.bounds
        return min(value - low, high - value)


@dataclass(frozen=True)
class Cause:
    """Why a claim may fail.

    Attributes:
        what: one of `CAUSES`.
        says: the reason, in words.
        control: conditions under which this is the cause; with none, it is argued and not computed.
    """

    what: str
    says: str
    control: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A statement of the paper.

    Attributes:
        id: lower-case words joined by "-".
        section: of the paper, e.g. "IV-C".
        statement: in our words, faithful to the paper's.
        notebook: the notebook whose records decide it; one that is still planned will do.
        conditions: all must hold.
        paper: the paper's own numbers, as text.
        scale: "paper" if no other profile can decide it.
        note: why it is measured this way, or why it needs its scale.
        later: its notebook exists but does not record the evidence yet.
        at_1024: conditions on the recorded runs at 1024 pixels, which the same notebook reads; a verdict of its own.
        causes, causes_at_1024: why it may fail, the likeliest first.
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
    at_1024: tuple[Condition, ...] = ()
    causes: tuple[Cause, ...] = ()
    causes_at_1024: tuple[Cause, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What the record of one condition says.

    Attributes:
        effect: in the paper's direction; None for a truth value, or without evidence.
        spread: standard deviation over the n images or seeds; None for exact counts as well.
        sure: the 95 % interval lies on one side of indifference.
        why: what is lacking if there is no verdict.
        missing: the notebook ran and should have recorded it.
    """

    condition: Condition
    verdict: str
    effect: float | None = None
    spread: float | None = None
    n: int | None = None
    unit: str = ""
    sure: bool = False
    why: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict, and the findings behind it (none if no record was read).

    Attributes:
        why: why there is no verdict yet, or why it is not *reproduced*.
        at_1024: the same for the recorded runs at 1024 pixels; None if the claim has no conditions on them.
        restates: the id of another claim that says the same of the same numbers; "" if there is none.
        faults: what is wrong with the records besides the findings.
    """

    claim: Claim
    verdict: str
    why: str = ""
    findings: tuple[Finding, ...] = ()
    at_1024: Verdict | None = None
    restates: str = ""
    faults: tuple[str, ...] = ()

    @property
    def weakest(self) -> Finding | None:
        """The finding that limits the claim: the worst verdict, then the smallest effect in units of its spread."""
        rank = (NOT_YET, NOT_REPRODUCED, PARTLY, REPRODUCED)
        strength = lambda f: f.effect / f.spread if f.spread else math.inf
        return min(self.findings, key=lambda f: (rank.index(f.verdict), strength(f)), default=None)

    @property
    def problems(self) -> list[str]:
        """What is damaged, and what the notebook should have recorded but did not (if not marked `later`)."""
        lacking = [f"{f.condition.key}: {f.why}" for f in self.findings if f.missing]
        return [f"{self.claim.id}: {text}" for text in (*self.faults, *lacking) if not self.claim.later]


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: str | Path | None = None) -> list[Claim]:
    """The claims in a YAML file (default: notebooks/claims.yaml), in order.

    Raises:
        UnknownName: a field, notebook (of those beside the file, or planned) or scale that does not exist.
        InvalidValue: a field of another type, a malformed id or key, or an expectation that cannot be parsed.
        BatchError: the file is missing or not YAML, a field is missing, or an id is used twice.
    """
    path = Path(path or root() / "notebooks" / FILE)
    entries = yamls.read(path)
    if not isinstance(entries, list):
        raise BatchError(f"{path}: {type(entries).__name__}", expected="a list of claims", do='begin each with "- id:"')
    notebooks = [*sorted(p.stem for p in path.parent.glob("*.ipynb")), *planned(path.parent)]
    claims = [_claim(entry, notebooks) for entry in entries]
    if twice := [name for name, count in Counter(c.id for c in claims).items() if count > 1]:
        raise BatchError(f"{path.name}: {twice} more than once", expected="each id once", do="rename the later ones")
    return claims


def _claim(entry: Any, notebooks: Sequence[str]) -> Claim:
    where = f"claim {entry.get('id', entry)!r}" if isinstance(entry, dict) else f"claim {entry!r}"
    checked = _fields(entry, Claim, where)
    listed = {name: _conditions(checked.get(name, []), where) for name in ("conditions", "at_1024")}
    reasons = {name: _causes(checked.get(name, []), where) for name in ("causes", "causes_at_1024")}
    claim = Claim(**checked | listed | reasons)
    for name, value, valid in (("notebook", claim.notebook, notebooks), ("scale", claim.scale, ("", "paper"))):
        if value not in valid:
            raise UnknownName(
                f"{where}: {name} {value!r}",
                expected=f"one of {list(valid)}",
                do=nearest(str(value), list(valid)) or f"pick a {name} that exists",
            )
    if claim.causes_at_1024 and not claim.at_1024:
        what, hint = f"{where}: causes_at_1024 without at_1024", "add conditions at 1024 pixels, or remove the causes"
        raise InvalidValue(what, expected="both, or neither", do=hint)
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.id):
        raise InvalidValue(where, expected='an id of lower-case words joined by "-"', do="rename the claim")
    return claim


def _causes(entries: Sequence[Any], where: str) -> tuple[Cause, ...]:
    causes = []
    for entry in entries:
        checked = _fields(entry, Cause, where)
        if checked["what"] not in CAUSES:
            hint = nearest(checked["what"], list(CAUSES)) or "pick one of them"
            raise UnknownName(f"{where}: cause {checked['what']!r}", expected=f"one of {list(CAUSES)}", do=hint)
        causes.append(Cause(**checked | {"control": _conditions(checked.get("control", []), where)}))
    return tuple(causes)


def _conditions(entries: Sequence[Any], where: str) -> tuple[Condition, ...]:
    conditions = tuple(Condition(**_fields(c, Condition, where)) for c in entries)
    for c in conditions:
        if (c.bounds is None and (c.exact or c.margin)) or (c.exact and c.margin):
            raise InvalidValue(
                f"{where}: {c.key} {c.expect}" + ", exact" * c.exact + ", margin" * c.margin,
                expected="`exact` or `margin`, with numbers only",
                do="remove it: truth values and exact numbers have no margin, and truth values no spread",
            )
        if not records.KEY.fullmatch(c.key):
            raise InvalidValue(
                f"{where}: key {c.key!r}",
                expected='the key of a record, such as "psnr/conv/full"',
                do="copy the key from the notebook's `run.record`",
            )
    return conditions


def _fields(entry: Any, kind: type, where: str) -> dict[str, Any]:
    """`entry` if it is a mapping with the fields of the dataclass `kind`, each of the right type."""
    known = {f.name: f for f in fields(kind)}
    if not isinstance(entry, dict):
        form = f"a mapping with fields among {list(known)}"
        raise BatchError(f"{where}: {entry!r}", expected=form, do="write `field: value` lines")
    for name, value in entry.items():
        if name not in known:
            raise UnknownName(
                f"{where}: field {name!r}",
                expected=f"one of {list(known)}",
                do=nearest(str(name), list(known)) or "remove that field",
            )
        wanted = {"str": str, "bool": bool}.get(known[name].type, list)
        if not isinstance(value, wanted):
            hint = "put it in quotes" if wanted is str else f"write it as a {wanted.__name__}"
            raise InvalidValue(f"{where}: {name} = {value!r}", expected=f"a {wanted.__name__}", do=hint)
    needed = ("id", "section", "statement", "notebook", "conditions", "key", "expect", "what", "says")
    required = [n for n in needed if n in known]
    if missing := [n for n in required if not entry.get(n)]:
        what = ", ".join(missing)
        raise BatchError(f"{where} has no {what}", expected="all of " + ", ".join(required), do=f"add {what}")
    return entry


# --- judging ----------------------------------------------------------------------------------------------------------


def judge(claim: Claim, recorded: Mapping[str, dict[str, Any]] | StoreError | None, profile: str = "laptop") -> Verdict:
    """Apply the rule (see the head of this module) to one claim.

    Args:
        claim: what the paper states.
        recorded: key -> record of the claim's notebook (`records.read`); None if it has not run; the error if its
            records are damaged.
        profile: the scale at which the records were made.
    """
    if claim.at_1024:
        # Its runs may still be missing, and it has causes of its own.
        large = replace(claim, conditions=claim.at_1024, at_1024=(), causes=claim.causes_at_1024, scale="", later=True)
        here, there = judge(replace(claim, at_1024=()), recorded, profile), judge(large, recorded)
        if here.why in (SMALLER, AGAINST, UNSURE, OUTSIDE, UNEXPLAINED) and there.verdict == REPRODUCED:
            here = replace(here, why=f"{here.why}; {HOLDS_AT_1024}")
        return replace(here, claim=claim, at_1024=there)
    if claim.scale == "paper" and profile != "paper":
        return Verdict(claim, PAPER_ONLY, claim.note)
    if recorded is None:
        return Verdict(claim, NOT_YET, f"{claim.notebook} has not run at {profile}")
    if isinstance(recorded, StoreError):
        return Verdict(claim, NOT_YET, recorded.got, faults=(recorded.got,))
    findings = tuple(_examine(c, recorded, claim) for c in claim.conditions)
    kinds = {f.verdict for f in findings}
    if NOT_YET in kinds:
        return Verdict(claim, NOT_YET, "; ".join(f"{f.condition.key}: {f.why}" for f in findings if f.why), findings)
    verdict = kinds.pop() if len(kinds) == 1 else PARTLY
    tried = [(cause, [_examine(c, recorded, claim) for c in cause.control]) for cause in claim.causes]
    faults = tuple(f"control {f.condition.key}: {f.why}" for _, found in tried for f in found if f.missing)
    found = Verdict(claim, verdict, findings=findings, faults=faults)
    return found if verdict == REPRODUCED else replace(found, why=_why(tried, found.weakest))


def _why(tried: Sequence[tuple[Cause, Sequence[Finding]]], weakest: Finding) -> str:
    """The first cause whose control holds, in words, or what the numbers say.

    tried: the causes, and what their controls found. weakest: what limits the claim.
    """
    for cause, found in tried:
        if all(f.verdict in (REPRODUCED, PARTLY) for f in found):
            return f"{CAUSES[cause.what]}: {cause.says}" + " (argued)" * (not found)
    if weakest.spread is None:
        return UNEXPLAINED
    if weakest.condition.margin:
        return OUTSIDE
    if not weakest.sure:
        return UNSURE
    return SMALLER if weakest.effect > 0 else AGAINST


def half_width(spread: float, n: int) -> float:
    """Half of the 95 % t interval of a mean of n values, 2 or more, with this standard deviation."""
    from scipy.stats import t  # here: it takes half a second to load, and every command about notebooks imports this

    return float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n)


def _examine(c: Condition, recorded: Mapping[str, dict[str, Any]], claim: Claim) -> Finding:
    def lacking(why: str, missing: bool = True) -> Finding:
        return Finding(c, NOT_YET, why=why, missing=missing)

    if c.key not in recorded:
        hint = nearest(c.key, list(recorded))
        ran = f"{claim.notebook} ran and did not record it" + f"; {hint}" * bool(hint)
        return lacking(f"{claim.notebook} is still to record it" if claim.later else ran)
    record = recorded[c.key]
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
    half = half_width(spread, n)
    ends = [c.effect(end) for end in (value - half, value + half, *(record["interval"] or ()))]
    surely, sure = min(ends) > 0, min(ends) > 0 or max(ends) < 0
    whole, half_way = (surely, e > 0) if c.margin else (surely and e > spread, surely)
    return Finding(c, REPRODUCED if whole else PARTLY if half_way else NOT_REPRODUCED, e, spread, n, unit, sure)


def ledger(profile: str = "laptop") -> list[Verdict]:
    """The verdict of every claim of notebooks/claims.yaml, from the records of a profile's last runs."""
    claims = load()
    recorded: dict[str, Any] = {}
    for name in {claim.notebook for claim in claims}:
        try:
            recorded[name] = records.read(figures_folder(profile) / name)
        except OSError:  # it has not run
            recorded[name] = None
        except StoreError as e:
            recorded[name] = e
    return distinct([judge(claim, recorded[claim.notebook], profile) for claim in claims])


def distinct(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Mark each claim whose evidence, and verdict, are part of another's: the same numbers against the same bounds.

    Of two with the same evidence the earlier one counts.
    """
    evidence = [{_numbers(verdict, f) for f in verdict.findings} for verdict in verdicts]
    marked = []
    for i, verdict in enumerate(verdicts):
        for j, other in enumerate(verdicts):
            less = evidence[i] < evidence[j] or (evidence[i] == evidence[j] and j < i)
            if evidence[i] and less and _verdicts(verdict) == _verdicts(other) and not verdict.restates:
                verdict = replace(verdict, restates=other.claim.id)
        marked.append(verdict)
    return marked


def _verdicts(verdict: Verdict) -> tuple[str, str]:
    """At both scales; "" where a claim has none."""
    return verdict.verdict, verdict.at_1024.verdict if verdict.at_1024 else ""


def _numbers(verdict: Verdict, finding: Finding) -> tuple:
    """What a finding rests on. A number that two notebooks record under two names is still one number."""
    if finding.effect is None or not finding.spread:
        return verdict.claim.notebook, finding.condition.key, finding.condition.expect
    return finding.effect, finding.spread, finding.n
