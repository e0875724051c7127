"""The commands about notebooks: list, plan, run, figures, claims, compare, doctor."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UnknownName, nearest, number
from ..lab.place import PROFILES

app = typer.Typer()


Profile = StrEnum("Profile", [(name, name) for name in PROFILES])
Names = Annotated[
    list[str] | None,
    typer.Argument(help='Notebooks, by name or number, such as "02"; default: all.', metavar="NB"),
]
Scale = Annotated[Profile, typer.Option("--profile", "-p", help="The profile whose parameter values are used.")]


@app.command("list")
def list_(profile: Scale = Profile.laptop) -> None:
    """List the notebooks: paper section, minutes, and whether their figures are up to date."""
    from rich.console import Console
    from rich.table import Column, Table

    from ..runner.batch import plan as make_plan

    chosen = make_plan((), profile.value)
    table = Table(Column("notebook", no_wrap=True), "title", "paper", "minutes", "figures")
    for nb in chosen.known.values():
        minutes = ", ".join(f"{p} {m:g}" for p, m in nb.minutes.items())
        table.add_row(nb.name, nb.title, nb.section, minutes, chosen.why(nb.name) or "up to date")
    Console(markup=False).print(table)
    _report_strays()


def _report_strays() -> list[str]:
    """Print a line for each file in notebooks/ that is left out; return those that profiles.yaml names."""
    from ..lab.notebook import profiles, scan

    strays = scan()[1]
    for name, problem in strays.items():
        print(f"left out: notebooks/{name}.ipynb ({problem.got})", file=sys.stderr)
    return [name for name in strays if name in profiles()]


@app.command()
def plan(notebooks: Names = None, profile: Scale = Profile.laptop) -> None:
    """Show what `run` would do, and why, without running anything."""
    from rich.console import Console
    from rich.table import Column, Table

    from ..runner.batch import plan as make_plan

    chosen = make_plan(notebooks or (), profile.value)
    table = Table(Column("notebook", no_wrap=True), "needs", "minutes", "action")
    for name in chosen.order:
        nb = chosen.known[name]
        why = chosen.why(name)
        minutes = nb.minutes.get(profile.value)
        action = f"run ({why})" if why else "up to date"
        table.add_row(name, ", ".join(nb.needs), f"{minutes:g}" if minutes else "", action)
    Console(markup=False).print(table)
    if not notebooks:
        _report_strays()


@app.command()
def run(
    notebooks: Names = None,
    profile: Scale = Profile.laptop,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Number of notebooks to run in parallel.")] = 1,
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="Skip notebooks whose results are up to date, or rerun those named."),
    ] = True,
    timeout: Annotated[float, typer.Option(help="Time limit per notebook, in minutes; 0 for none.")] = 0,
    scheduler: Annotated[
        str,
        typer.Option(help="Address of a Dask scheduler whose workers run the sweeps, e.g. tcp://10.0.0.5:8786."),
    ] = "",
) -> None:
    """Run notebooks and everything they need, and rewrite their figures, tables and numbers."""
    from ..lab.place import figures_folder, root
    from ..runner import batch, report

    jobs, timeout = number("--jobs", jobs, "whole [1, inf)"), number("--timeout", timeout, "[0, inf)")
    if scheduler:
        os.environ["HRLAB_SCHEDULER"] = scheduler  # the kernels inherit it; experiments/sweep.py reads it
    damaged = [] if notebooks else _report_strays()
    chosen = batch.plan(notebooks or (), profile.value)
    named = [batch.find(n, chosen.known) for n in notebooks] if notebooks else chosen.order
    ended = batch.run(
        chosen,
        jobs=jobs,
        fresh=() if resume else named,
        timeout=timeout * 60 or None,
        tell=lambda text: print(text, flush=True),
    )
    folder = figures_folder(profile.value)
    executed = root() / "build" / "executed" / profile.value
    failed = report.failures(chosen, ended, executed)
    good = sum(job.state in ("done", "cached") for job in ended)
    print(f"{good} of {len(ended)} notebooks good; see {os.path.relpath(folder / 'index.md')}")
    _report_moves([job.name for job in ended if job.state == "done"], profile)
    if failed:
        print(f"\n{failed}", file=sys.stderr)
    if failed or damaged:
        raise typer.Exit(1)


def _report_moves(ran: list[str], profile: Profile) -> None:
    """After a run: how its numbers compare with the committed ones, a line a notebook."""
    from ..lab.place import git
    from ..runner import compare as moves

    if not ran or profile != Profile.laptop or git("rev-parse", "HEAD") is None:  # nothing is committed
        return
    found = moves.compare(ran)
    print("\nbeside the committed numbers:")
    for one in found:
        print(f"  {one.summary()}")
    told = [one.notebook for one in found if one.told or one.verdicts]
    print(f"  which they are: hrlab compare {' '.join(told)}" if told else "  nothing moved beyond its tolerance")


@app.command()
def figures(profile: Scale = Profile.laptop) -> None:
    """List every figure and table with its caption, and check that its files are intact."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from ..lab.notebook import catalogue
    from ..lab.place import figures_folder
    from ..runner.verify import Results

    table, bad = Table("notebook", Column("name", no_wrap=True), "caption"), []
    for name, nb in catalogue().items():
        results = Results(figures_folder(profile.value) / name)
        made = results.sidecars
        for item in nb.makes:
            table.add_row(name, item, made[item]["caption"] if item in made else Text("not made", "red"))
        bad += [f"{name}: {problem}" for problem in results.problems(nb)]
    Console(markup=False).print(table)
    if bad:
        print("\n".join(bad), file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def claims(
    profile: Scale = Profile.laptop,
    section: Annotated[
        str, typer.Option(help='Show only the claims of one section of the paper, e.g. "IV-C" or "IV".')
    ] = "",
    readme: Annotated[
        bool, typer.Option("--readme", help="Also update the table of claims in README.md (laptop profile only).")
    ] = False,
) -> None:
    """Print the ledger: each claim of the paper, and the verdict that the recorded numbers give."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from .. import store
    from ..lab.place import root
    from ..runner import ledger
    from ..runner.claims import ledger as judged

    if readme and profile != Profile.laptop:
        raise typer.BadParameter("README.md shows the laptop profile", param_hint="--readme")
    verdicts = judged(profile.value)
    chosen = [v for v in verdicts if not section or f"{v.claim.section}-".startswith(f"{section}-")]
    if verdicts and not chosen:
        known = list(dict.fromkeys(v.claim.section for v in verdicts))
        hint = nearest(section, known) or "leave out --section to see all claims"
        raise UnknownName(f"section {section!r}", expected=f"one of {known}", do=hint)
    console = Console(highlight=False)
    for v in chosen:  # a list and not a table: it fits any width, and can be searched by line
        verdict, shown, n = ledger.cells(v)
        console.print(Text.assemble(f"{v.claim.section}  ", (v.claim.id, "bold"), ": ", (verdict, "bold")))
        about = {"": v.claim.statement, "effect: ": f"{shown}, n = {n}" if n else shown}
        about |= {"at 1024 px: ": ledger.at_1024(v), "why: ": ledger.reason(v), "paper: ": v.claim.paper}
        for label, text in about.items():
            if text:
                console.print(Padding(Text(label + text), (0, 0, 0, 4)))
    print(ledger.summary(chosen))
    if problems := [p for v in chosen for p in v.problems]:
        print("\n".join(problems), file=sys.stderr)
        raise typer.Exit(1)
    if readme:
        path = root() / "README.md"
        store.write_bytes(path, ledger.with_block(path.read_text(encoding="utf-8"), verdicts).encode())


@app.command()
def compare(
    notebooks: Names = None,
    against: Annotated[str, typer.Option(help="A commit, branch or tag.", metavar="COMMIT")] = "HEAD",
    page: Annotated[Path | None, typer.Option(help="Also write the comparison to this Markdown file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Hold the numbers in figures/ against the committed ones: what moved beyond its tolerance, and which verdicts."""
    from rich.console import Console
    from rich.table import Column, Table

    from .. import store
    from ..lab.notebook import catalogue
    from ..lab.place import figures_folder
    from ..runner import compare as moves
    from ..runner.batch import find

    known = catalogue()
    names = list(dict.fromkeys(find(n, known) for n in notebooks or ()))
    found = moves.compare(names, revision=against)
    if page is not None:
        results = figures_folder("laptop").rglob("*")
        store.write_bytes(store.new(page, force=force, source=results), moves.markdown(found, against).encode())
    table = Table(Column("number", overflow="fold"), "moved", "before", "after", "tolerance")
    for one in found:
        print(one.summary())
        for change in one.told:
            table.add_row(f"{one.notebook[:2]} {change.key}", *moves.shown(change)[1:])
    if table.row_count:
        Console(markup=False).print(table)


@app.command()
def doctor(profile: Scale = Profile.laptop) -> None:
    """Check whether everything a profile needs is here, and say how to get what is missing."""
    from rich.console import Console
    from rich.markup import escape

    from ..runner.doctor import examine

    console, missing = Console(highlight=False), 0
    for check in examine(profile.value):
        mark = "[green]✓[/green]" if check.good else "[red]✗[/red]" if check.needed else "[yellow]○[/yellow]"
        console.print(f"{mark} {escape(check.what)}: {escape(check.found)}", soft_wrap=True)
        if not check.good and check.do:
            console.print(f"    {escape(check.do)}", soft_wrap=True)
        missing += check.needed and not check.good
    console.print(f"{missing} missing" if missing else f"ready for profile {profile.value}")
    if missing:
        raise typer.Exit(1)
