"""Every cell of every notebook runs at the smoke profile, twice, through the same batch run that makes the figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from hrlib.lab import notebook
from hrlib.lab.place import figures_folder
from hrlib.runner import batch, cache

NAMES = sorted(notebook.catalogue())
pytestmark = pytest.mark.timeout(900)  # all notebooks run in one go, two at a time


def run_all(fork, fresh=()):
    with pytest.MonkeyPatch.context() as patch:
        fork(patch)
        return {o.name: o for o in batch.run(batch.plan((), "smoke"), jobs=2, fresh=fresh)}


@pytest.fixture(scope="module")
def outcomes(fork):
    return run_all(fork)


@pytest.mark.parametrize("name", NAMES)
def test_runs_at_smoke(name, outcomes):
    assert outcomes[name].state in ("done", "cached"), outcomes[name].error


def test_a_second_run_changes_no_byte(outcomes, fork):
    """The first notebook by a user's command, in processes of its own; the others from a warm one again."""
    before = cache.files(figures_folder("smoke"))
    again = run_all(fork, fresh=NAMES[1:])
    assert {name: o.error for name, o in again.items() if o.state != "done"} == {NAMES[0]: None}
    command = [sys.executable, "-m", "hrlib.cli", "run", NAMES[0], "--profile", "smoke", "--fresh"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"{NAMES[0]}: done" in done.stdout, done.stderr
    after = cache.files(figures_folder("smoke"))
    assert {path for path in before | after if before.get(path) != after.get(path)} == set()


def test_the_map_in_notebook_00_agrees_with_the_metadata():
    known = notebook.catalogue()
    cells = json.loads(known["00_start_here"].path.read_text(encoding="utf-8"))["cells"]
    text = "".join(next(cell["source"] for cell in cells if cell["id"] == "chapters"))
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \| ([\d.]+) \|$", text, re.M)
    assert rows == [(nb.name, nb.section, f"{nb.minutes['laptop']:g}") for nb in known.values()]


def test_notebooks_are_there():
    assert {"00_start_here", "01_style_inr_gan", "02_loss_diagnostics"} <= set(NAMES)
