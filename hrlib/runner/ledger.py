"""The ledger of claims as readers see it: a page, plain data, and a block in the README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .. import store
from ..errors import StoreError
from ..lab.place import figures_folder
from . import claims
from .claims import DECIDED, PAPER_ONLY, REPRODUCED, VERDICTS, Finding, Verdict

ABOUT = (
    "Every statement of the paper that can be checked, and what the recorded numbers say of it. Verdicts are computed "
    "from the records by one rule, never written by hand; effects count in the direction that the paper states. At "
    "1024 pixels EfficientNet-Lite0 stands in for VGG16: the outputs of its blocks for convolutional features, the "
    "same after a ReLU for ReLU features."
)
RULE = " ".join(claims.__doc__.split("The rule. ")[1].split())


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many claims have which verdict, in one line."""
    count = Counter(v.verdict for v in verdicts)
    said = lambda kind: kind if count[kind] == 1 else kind.replace("needs", "need")
    total = "1 claim" if len(verdicts) == 1 else f"{len(verdicts)} claims"
    return f"{total}: " + ", ".join(f"{count[kind]} {said(kind)}" for kind in VERDICTS)


def evidence(finding: Finding) -> str:
    """A finding as text: effect ± spread, a truth value, or why there is neither."""
    if finding.why:
        return finding.why
    if finding.condition.bounds is None:
        return "true" if finding.verdict == REPRODUCED else "false"
    spread = "exactly" if finding.spread is None else f"± {finding.spread:.2g}"
    return f"{finding.effect:+.3g} {spread} {finding.unit}".rstrip()


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


def markdown(verdicts: Sequence[Verdict], profile: str) -> str:
    """The whole ledger as a page: the rule, the counts, and a table for each section."""
    lines = ["# The ledger of claims", "", ABOUT, "", RULE, "", f"Profile `{profile}`. {summary(verdicts)}."]
    for section in dict.fromkeys(v.claim.section for v in verdicts):
        lines += [
            "",
            f"## Section {section}",
            "",
            *_head("claim", "verdict", "effect ± spread", "n", "at 1024 px", "paper"),
        ]
        for v in (v for v in verdicts if v.claim.section == section):
            note = f" *{v.claim.note}*" * bool(v.claim.note and v.verdict != PAPER_ONLY)
            shown = [f"`{f.condition.key}` {f.condition.expect}: {evidence(f)}" for f in v.findings] or [v.why]
            verdict, _, n = cells(v)
            lines.append(_row(v.claim.statement + note, verdict, "<br>".join(shown), n, at_1024(v), v.claim.paper))
    return "\n".join(lines) + "\n"


def with_block(readme: str, verdicts: Sequence[Verdict]) -> str:
    """The README's text, with the counts and the decided claims between its two marks.

    Raises:
        StoreError: the marks are missing.
    """
    before, opened, rest = readme.partition("<!-- claims -->\n")
    _, closed, after = rest.partition("<!-- /claims -->\n")
    if not closed:
        raise StoreError(
            "README.md lacks the lines <!-- claims --> and <!-- /claims -->", expected="both", do="put them back"
        )
    rows = [_row(v.claim.section, v.claim.statement, *cells(v), at_1024(v)) for v in verdicts if v.verdict in DECIDED]
    head = _head("paper", "claim", "verdict", "effect ± spread", "n", "at 1024 px")
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
        | _take(v, "verdict", "why")
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
        _take(f.condition, "key", "expect", "exact") | _take(f, "verdict", "effect", "spread", "n", "unit", "why")
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
