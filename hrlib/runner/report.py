"""What a batch run leaves for readers: index.md with every figure, caption and alt text, the ledger of claims, and the
report of failures in the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import store
from ..lab.notebook import Notebook
from ..lab.place import figures_folder, root
from ..lab.records import FILE
from . import claims, ledger
from .verify import Results

if TYPE_CHECKING:
    from .batch import Job, Plan


def write(profile: str, known: Mapping[str, Notebook]) -> Path:
    """Write index.md and the ledger from all results in the profile's folder; returns the folder."""
    folder = figures_folder(profile)
    head = f"# Figures and tables, profile `{profile}`\n\nWritten by `hrlab run`; not edited by hand.\n"
    if (root() / "notebooks" / claims.FILE).exists():
        head += f"\n[The ledger of claims](claims.md): {ledger.summary(ledger.write(profile))}.\n"
    sections = [_section(folder / notebook.name, notebook) for notebook in known.values()]
    store.write_bytes(folder / "index.md", "\n".join([head, *sections]).encode())
    return folder


def _section(folder: Path, notebook: Notebook) -> str:
    lines = [
        f"## {notebook.title}",
        "",
        f"`{notebook.name}`" + f", paper section {notebook.section}" * bool(notebook.section),
    ]
    made = Results(folder).sidecars
    for name in notebook.makes:
        files = [f for f in made.get(name, {}).get("files", ()) if not f.endswith((".svg", ".csv"))]
        if len(files) != 1 or not (folder / files[0]).is_file():
            lines += ["", f"`{name}` has not been made yet."]
        elif made[name]["kind"] == "figure":
            alt = made[name]["alt"].replace("[", "(").replace("]", ")")
            lines += ["", f"![{alt}]({notebook.name}/{files[0]})", "", f"*{made[name]['caption']}*"]
        else:
            table = (folder / files[0]).read_text(encoding="utf-8")
            lines += ["", f"*{made[name]['caption']}*", "", table.rstrip()]
    if (folder / FILE).exists():
        lines += ["", f"Numbers: [{FILE}]({notebook.name}/{FILE})"]
    return "\n".join(lines) + "\n"


def failures(chosen: Plan, jobs: Sequence[Job], executed: Path) -> str:
    """A report of what went wrong, for the terminal; "" if nothing did."""
    parts = []
    for job in jobs:
        error = job.error
        if job.state == "blocked":
            parts.append(f"{job.name}: not run, because it {error['message']}, which failed")
        elif job.state == "failed":
            where = "" if error["cell"] is None else f", cell {error['cell']}"
            text = [f"{job.name} failed{where}: {error['name']}: {error['message']}"]
            if error["trace"].strip():
                text += ["    " + line for line in error["trace"].strip().splitlines()[-12:]]
            saved = executed / f"{job.name}-failed.ipynb"
            text.append(f"    executed up to the error: {saved}" if saved.exists() else "    no cell was executed")
            text.append(f"    try again: hrlab run {job.name} --profile {chosen.profile}")
            parts.append("\n".join(text))
    return "\n\n".join(parts)
