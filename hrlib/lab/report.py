"""What a batch run leaves for readers: status.json, index.md with every figure, its caption and its alt text, and the
ledger of claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import store
from ..errors import StoreError
from . import claims, figures, ledger, verify
from .batch import Outcome, Plan
from .notebook import Notebook
from .place import figures_folder, root
from .records import FILE


def write(chosen: Plan, outcomes: Sequence[Outcome]) -> Path:
    """Write status.json, index.md and the ledger for all notebooks into the profile's folder; returns the folder.

    Notebooks that were not part of this run keep the state of the one before.
    """
    folder = figures_folder(chosen.profile)
    try:
        before = store.read_json(folder / "status.json")["notebooks"]
    except (FileNotFoundError, StoreError, KeyError):
        before = {}
    now = {o.name: _state(o) for o in outcomes}
    table = {
        name: {**(now.get(name) or before.get(name) or {"state": "not run"}), "results": _results(folder / name)}
        for name in chosen.known
    }
    store.write_json(
        folder / "status.json", {"profile": chosen.profile, "versions": figures.versions(), "notebooks": table}
    )
    sections = [_section(folder, chosen.known[name], entry) for name, entry in table.items()]
    head = f"# Figures and tables, profile `{chosen.profile}`\n\nWritten by `hrlab run`; not edited by hand.\n"
    if (root() / "notebooks" / claims.FILE).exists():
        head += f"\n[The ledger of claims](claims.md): {ledger.summary(ledger.write(chosen.profile))}.\n"
    store.write_bytes(folder / "index.md", "\n".join([head, *sections]).encode())
    return folder


def _state(outcome: Outcome) -> dict[str, Any]:
    state = {"state": "done" if outcome.state == "cached" else outcome.state}
    if outcome.error:
        return {**state, "error": f"{outcome.error['name']}: {outcome.error['message']}"}
    return {**state, "seconds": round(outcome.seconds, 1)}


def _results(folder: Path) -> list[dict[str, Any]]:
    keys = ("kind", "name", "alt", "caption")
    return [{k: side[k] for k in keys if k in side} for side in verify.sidecars(folder).values()]


def _section(folder: Path, notebook: Notebook, entry: dict[str, Any]) -> str:
    lines = [
        f"## {notebook.title}",
        "",
        f"`{notebook.name}`" + f", paper section {notebook.section}" * bool(notebook.section),
    ]
    if entry["state"] != "done":
        lines += ["", f"**{entry['state']}** {entry.get('error', '')}".rstrip()]
        if entry["results"]:
            lines += ["", "What follows is from an earlier run."]
    order = {name: i for i, name in enumerate(notebook.makes)}
    for item in sorted(entry["results"], key=lambda r: order.get(r["name"], len(order))):
        if item["kind"] == "figure":
            alt = item["alt"].replace("[", "(").replace("]", ")")
            lines += ["", f"![{alt}]({notebook.name}/{item['name']}.png)", "", f"*{item['caption']}*"]
        else:
            table = (folder / notebook.name / f"{item['name']}.md").read_text(encoding="utf-8")
            lines += ["", f"*{item['caption']}*", "", table.rstrip()]
    if (folder / notebook.name / FILE).exists():
        lines += ["", f"Numbers: [{FILE}]({notebook.name}/{FILE})"]
    return "\n".join(lines) + "\n"


def failures(chosen: Plan, outcomes: Sequence[Outcome], executed: Path) -> str:
    """A report of what went wrong, for the terminal; "" when nothing did."""
    parts = []
    for o in outcomes:
        if o.state == "blocked":
            parts.append(f"{o.name}: not run, because it {o.error['message']}, which failed")
        elif o.state == "failed":
            where = "" if o.error["cell"] is None else f", cell {o.error['cell']}"
            text = [f"{o.name} failed{where}: {o.error['name']}: {o.error['message']}"]
            if o.error["trace"].strip():
                text += ["    " + line for line in o.error["trace"].strip().splitlines()[-12:]]
            saved = executed / f"{o.name}-failed.ipynb"
            text.append(f"    as far as it came: {saved}" if saved.exists() else "    nothing of it was executed")
            text.append(f"    try again: hrlab run {o.name} --profile {chosen.profile}")
            parts.append("\n".join(text))
    return "\n\n".join(parts)
