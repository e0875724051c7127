"""The ledger of claims as readers see it: a page, plain data, and a block in the README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .. import store
from ..errors import StoreError
from ..lab.place import figures_folder
from . import claims
from .claims import DECIDED, NOT_REPRODUCED, PAPER_ONLY, PARTLY, REPRODUCED, VERDICTS, Finding, Verdict

ABOUT = (
    "Every statement of the paper that can be checked, and what the recorded numbers say of it. Verdicts are computed "
    "from the records by one rule, never written by hand; effects count in the direction that the paper states. At "
    "1024 pixels EfficientNet-Lite0 stands in for VGG16: the outputs of its blocks for convolutional features, the "
    "same after a ReLU for ReLU features."
)
RULE = " ".join(claims.__doc__.split("The rule. ")[1].split())


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many claims have which verdict, in one line; those that restate another are not counted."""
    own = [v for v in verdicts if not v.restates]
    count = Counter(v.verdict for v in own)
    said = lambda kind: kind if count[kind] == 1 else kind.replace("needs", "need")
    total = "1 claim" if len(own) == 1 else f"{len(own)} claims"
    if again := len(verdicts) - len(own):
        total += f" (and {again} that {'restates' if again == 1 else 'restate'} others on the same numbers)"
    return f"{total}: " + ", ".join(f"{count[kind]} {said(kind)}" for kind in VERDICTS)


def evidence(finding: Finding) -> str:
    """A finding as text: effect ± spread, a truth value, or why there is neither."""
    if finding.why:
        return finding.why
    if finding.condition.bounds is None:
        return "true" if finding.verdict == REPRODUCED else "false"
    plain = lambda value, digits: f"{value:.{digits}g}" if abs(value) < 100 else f"{value:.0f}"
    spread = "exactly" if finding.spread is None else f"± {plain(finding.spread, 2)}"
    return f"{'+' * (finding.effect >= 0)}{plain(finding.effect, 3)} {spread} {finding.unit}".rstrip()


def cells(verdict: Verdict) -> tuple[str, str, str]:
    """A verdict as text, the evidence of its weakest condition, and that condition's n."""
    weakest = verdict.weakest
    if weakest is None:
        return verdict.verdict, verdict.why, ""
    return verdict.verdict, evidence(weakest), str(weakest.n or "")


def at_1024(verdict: Verdict) -> str:
    """The verdict of the recorded runs at 1024 pixels in a cell, with the evidence; "" for a claim without one."""
    if verdict.at_1024 is None:
        return ""
    said, shown, n = cells(verdict.at_1024)
    return f"{said}: {shown}" + f", n = {n}" * bool(n)


def reason(verdict: Verdict) -> str:
    """Why a claim is not reproduced, or only partly, at either scale; "" if it is."""
    parts = [verdict.why] * (verdict.verdict in (PARTLY, NOT_REPRODUCED))
    if verdict.at_1024 and verdict.at_1024.verdict in (PARTLY, NOT_REPRODUCED):
        parts.append(f"At 1024 px: {verdict.at_1024.why}")
    return ". ".join(part[0].upper() + part[1:] for part in parts)


def markdown(verdicts: Sequence[Verdict], profile: str) -> str:
    """The whole ledger as a page: the rule, the counts, and a table for each section."""
    lines = ["# The ledger of claims", "", ABOUT, "", RULE, "", f"Profile `{profile}`. {summary(verdicts)}."]
    for section in dict.fromkeys(v.claim.section for v in verdicts):
        lines += [
            "",
            f"## Section {section}",
            "",
            *_head("claim", "verdict", "effect ± spread", "n", "at 1024 px", "why", "paper"),
        ]
        for v in (v for v in verdicts if v.claim.section == section):
            note = f" *{v.claim.note}*" * bool(v.claim.note and v.verdict != PAPER_ONLY)
            note += f" *The same numbers as {v.restates}; not counted.*" * bool(v.restates)
            shown = [f"`{f.condition.key}` {f.condition.expect}: {evidence(f)}" for f in v.findings] or [v.why]
            verdict, _, n = cells(v)
            texts = (v.claim.statement + note, verdict, "<br>".join(shown), n, at_1024(v), reason(v), v.claim.paper)
            lines.append(_row(*texts))
    return "\n".join(lines) + "\n"


def with_block(readme: str, verdicts: Sequence[Verdict]) -> str:
    """The README's text, with the counts and the decided claims, restatements left out, between its two marks.

    Raises:
        StoreError: the marks are missing.
    """
    before, opened, rest = readme.partition("<!-- claims -->\n")
    _, closed, after = rest.partition("<!-- /claims -->\n")
    if not closed:
        raise StoreError(
            "README.md lacks the lines <!-- claims --> and <!-- /claims -->", expected="both", do="put them back"
        )
    shown = [v for v in verdicts if v.verdict in DECIDED and not v.restates]
    rows = [_row(v.claim.section, v.claim.statement, *cells(v), at_1024(v), reason(v)) for v in shown]
    head = _head("paper", "claim", "verdict", "effect ± spread", "n", "at 1024 px", "why")
    lines = [f"{summary(verdicts)}.", "", *head, *rows]
    return before + opened + "\n".join(lines) + "\n" + closed + after


def _head(*names: str) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def tidy(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The ledger as plain data, one entry per claim, with effect, spread and n of its weakest condition."""
    return [
        _take(v.claim, "id", "section", "statement", "paper", "notebook", "scale", "note")
        | _take(v, "verdict", "why", "restates")
        | _take(v.weakest, "effect", "spread", "n")
        | {"conditions": _conditions(v)}
        | (
            {"at_1024": _take(v.at_1024, "verdict", "why") | {"conditions": _conditions(v.at_1024)}}
            if v.at_1024
            else {}
        )
        for v in verdicts
    ]


def _conditions(verdict: Verdict) -> list[dict[str, Any]]:
    return [
        _take(f.condition, "key", "expect", "exact", "margin")
        | _take(f, "verdict", "effect", "spread", "n", "unit", "why")
        for f in verdict.findings
    ]


def _take(source: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(source, name, None) for name in names}


def write(profile: str) -> list[Verdict]:
    """Write claims.md and claims.json into the profile's folder; returns the ledger."""
    verdicts, folder = claims.ledger(profile), figures_folder(profile)
    store.write_bytes(folder / "claims.md", markdown(verdicts, profile).encode())
    store.write_json(folder / "claims.json", tidy(verdicts))
    return verdicts
