"""`hrlab run`: what is good is kept, what failed is said and never cached, what is killed is not lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hrlib.errors import BatchError, UnknownName
from hrlib.lab import batch, cache, report

# Cheap stand-ins for what lab writes; one notebook below uses the real thing.
RECORDS = """
import json, os, pathlib
out = pathlib.Path(os.environ["HRLAB_OUT"])
(out / "records.json").write_text("[]")
"""
MAKE = """
import hashlib
(out / "fig.png").write_bytes(b"png of %d" % steps)
sums = {"fig.png": hashlib.sha256(b"png of %d" % steps).hexdigest()}
side = {"kind": "figure", "name": "fig", "files": sums, "caption": "c", "alt": "a grey square that fills the picture"}
(out / "fig.json").write_text(json.dumps(side))
"""
REAL = [
    """
from hrlib import lab
run = lab.begin("00_good", globals())
""",
    """
import torch
image = lab.image_grid([torch.rand(3, 8, 8)])
run.figure(image, "fig", alt="a small square of noise, all grey", caption="Noise.")
run.record("steps", steps, unit="1")
""",
    """
import ipywidgets
live = lab.Live(lambda n: iter(torch.zeros(n, 3, 4, 4)), controls={"n": ipywidgets.IntSlider(2)},
                render=lambda x: x, alt="a small black square, nothing else")
live.show()
""",
    "run.finish()",
]


def go(*names: str, profile: str = "laptop", **options) -> dict[str, batch.Outcome]:
    chosen = batch.plan(names, profile)
    outcomes = batch.run(chosen, tell=lambda text: None, **options)
    report.write(chosen, outcomes)
    return {o.name: o for o in outcomes}


def test_one_batch_with_every_kind_of_notebook(repo, write_notebook):
    write_notebook("00_good", "steps = 2", REAL, makes=["fig"])
    sees = "assert 'fig.png' in os.listdir(os.environ['HRLAB_UPSTREAM'] + '/00_good')"
    write_notebook("01_needs_good", "steps = 1", [RECORDS, sees], needs=["00_good"])
    write_notebook("02_raises", "steps = 1", [RECORDS, MAKE, "1 / 0"], makes=["fig"])
    write_notebook("03_needs_bad", "steps = 1", [RECORDS], needs=["02_raises"])
    write_notebook("04_dies", "steps = 1", [RECORDS, "os.kill(os.getpid(), 9)"])
    write_notebook("05_makes_nothing", "steps = 1", [RECORDS], makes=["fig"])
    write_notebook("06_makes_more", "steps = 1", [RECORDS, MAKE])
    write_notebook("07_no_finish", "steps = 1", ["1"])
    write_notebook("08_spoils", "steps = 1", [RECORDS, MAKE, "(out / 'fig.png').write_bytes(b'')"], makes=["fig"])
    out = go(jobs=3)

    assert {n: o.state for n, o in out.items()} == {
        "00_good": "done",
        "01_needs_good": "done",
        "02_raises": "failed",
        "03_needs_bad": "blocked",
        **dict.fromkeys(["04_dies", "05_makes_nothing", "06_makes_more", "07_no_finish", "08_spoils"], "failed"),
    }
    said = {n: f"{o.error['name']}: {o.error['message']}" for n, o in out.items() if o.error}
    assert said["02_raises"].startswith("ZeroDivisionError") and out["02_raises"].error["cell"] is not None
    assert "Dead" in said["04_dies"]
    assert "fig was not made" in said["05_makes_nothing"]
    assert "does not list it" in said["06_makes_more"]
    assert "run.finish()" in said["07_no_finish"]
    assert "missing or empty" in said["08_spoils"]
    # A failure leaves nothing in the figures folder, but the notebook as far as it came.
    assert sorted(p.name for p in (repo / "figures").iterdir()) == [
        "00_good",
        "01_needs_good",
        "index.md",
        "status.json",
    ]
    assert (repo / "build/executed/laptop/02_raises-failed.ipynb").exists()
    index = (repo / "figures/index.md").read_text()
    assert "![a small square of noise, all grey](00_good/fig.png)" in index and "**failed** ZeroDivisionError" in index
    words = report.failures(batch.plan(), list(out.values()), repo / "build/executed/laptop")
    assert "02_raises failed" in words and "division by zero" in words and "03_needs_bad: not run" in words
    # The static picture of the widget is in the executed notebook.
    assert "nothing else" in (repo / "build/executed/laptop/00_good.ipynb").read_text()

    # Again: the good ones are kept, the failed ones are tried again.
    chosen = batch.plan()
    assert [n for n in chosen.order if not chosen.why(n)] == ["00_good", "01_needs_good"]
    record = json.loads((repo / "figures/00_good/records.json").read_text())
    plain = {"key": "steps", "value": 2, "unit": "1", "n": 1, "spread": None, "interval": None, "paper": None}
    assert record == [plain]


def test_profiles_change_values_and_folders(repo, write_notebook):
    write_notebook("00_a", "steps = 7\nname = 'x'", [RECORDS, MAKE], makes=["fig"])
    (repo / "notebooks/profiles.yaml").write_text("00_a:\n  smoke: {steps: 1}\n")
    assert go(profile="smoke")["00_a"].state == "done"
    assert (repo / "build/figures-smoke/00_a/fig.png").read_bytes() == b"png of 1"
    assert not (repo / "figures").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("code", "changed: code"),
        ("parameters", "changed: parameters"),
        ("data", "changed: data"),
        ("lock", "changed: environment"),
        ("result", "changed: results"),
        ("markdown", ""),
    ],
)
def test_what_makes_results_stale(repo, write_notebook, change, reason):
    """The status is written as a run would write it, without running."""
    path = write_notebook("00_a", "steps = 7", ["x = 1"])
    folder = repo / "figures/00_a"
    folder.mkdir(parents=True)
    (folder / "records.json").write_text("[]")
    chosen = batch.plan()
    wanted = cache.inputs(chosen.known["00_a"], chosen.values["00_a"], chosen.shared, "laptop")
    cache.commit("00_a", "laptop", wanted, 1.0)
    assert batch.plan().why("00_a") == ""
    content = json.loads(path.read_text())
    if change == "code":
        content["cells"][1]["source"] = "x = 2"
    elif change == "parameters":
        content["cells"][0]["source"] = "steps = 8"
    elif change == "markdown":
        content["cells"].append({"cell_type": "markdown", "id": "m", "metadata": {}, "source": "words"})
    elif change == "data":
        (repo / "data/new.bin").write_bytes(b"1")
    elif change == "lock":
        (repo / "requirements.lock").write_text("numpy==1\n")
    elif change == "result":
        (folder / "records.json").write_text("[ ]")
    path.write_text(json.dumps(content))
    assert batch.plan().why("00_a") == reason


def test_upstream_results_count(repo, write_notebook):
    write_notebook("00_a", "steps = 7", [])
    write_notebook("01_b", "steps = 7", [], needs=["00_a"])
    chosen = batch.plan(["01"])
    assert chosen.order == ("00_a", "01_b")
    before = cache.inputs(chosen.known["01_b"], {}, {}, "laptop")
    (repo / "figures/00_a").mkdir(parents=True)
    (repo / "figures/00_a/records.json").write_text("[]")
    cache.commit("00_a", "laptop", {}, 1.0)
    assert cache.inputs(chosen.known["01_b"], {}, {}, "laptop") != before


def test_a_failure_is_never_cached_and_keeps_the_old_figures(repo, write_notebook):
    write_notebook("00_a", "steps = 7", [RECORDS, MAKE, "assert not pathlib.Path('fail').exists()"], makes=["fig"])
    assert go()["00_a"].state == "done"
    (repo / "notebooks/fail").touch()
    assert go()["00_a"].state == "cached"
    assert go(fresh=["00_a"])["00_a"].state == "failed"
    assert (repo / "figures/00_a/fig.png").read_bytes() == b"png of 7"
    assert "What follows is from an earlier run" in (repo / "figures/index.md").read_text()
    assert batch.plan().why("00_a") == "not run yet"


def test_timeout(repo, write_notebook):
    write_notebook("00_a", "steps = 7", ["import time; time.sleep(60)"])
    begun = time.monotonic()
    out = go(timeout=3.0)["00_a"]
    assert (out.state, out.error["name"]) == ("failed", "Timeout") and time.monotonic() - begun < 30


def test_killed_run_leaves_the_old_figures_and_resumes(repo, write_notebook):
    """SIGKILL in the middle of a notebook: no kernel survives, the old figures stand, the next run finishes."""
    body = [RECORDS, MAKE, "import time\n(out.parent.parent / 'there').touch()\ntime.sleep(steps)"]
    write_notebook("00_a", "steps = 0", body, makes=["fig"])
    assert go()["00_a"].state == "done"
    write_notebook("00_a", "steps = 100", body, makes=["fig"])
    (repo / "there").unlink()
    running = subprocess.Popen(
        [sys.executable, "-m", "hrlib.cli", "run"], cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (repo / "there").exists():
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.05)
    below = psutil.Process(running.pid).children(recursive=True)
    with pytest.raises(BatchError, match="another"):
        go()
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert (repo / "figures/00_a/fig.png").read_bytes() == b"png of 0"
    gone, alive = psutil.wait_procs(below, timeout=20)
    assert len(gone) >= 2 and not alive, "the worker and its kernel end with the run"
    assert (repo / "figures/.partial-00_a").exists()
    write_notebook("00_a", "steps = 1", body, makes=["fig"])
    assert go()["00_a"].state == "done"
    assert (repo / "figures/00_a/fig.png").read_bytes() == b"png of 1"
    assert not list((repo / "figures").glob(".*"))


def test_kill_between_the_two_renames_is_repaired(repo):
    aside = repo / "figures/.old-00_a"
    aside.mkdir(parents=True)
    (aside / "fig.png").write_bytes(b"old")
    batch._clean_up(repo / "figures")
    assert (repo / "figures/00_a/fig.png").read_bytes() == b"old" and not aside.exists()


@pytest.mark.parametrize(
    ("yaml", "error", "words"),
    [
        ("00_a: {smoke: {stpes: 1}}", UnknownName, "did you mean 'steps'"),
        ("00_a: {smoke: {steps: '1'}}", BatchError, "JSON type string"),
        ("00_a: {smoke: {steps: 1.5}}", BatchError, "JSON type float"),
        ("00_a: {smoke: {steps: true}}", BatchError, "JSON type boolean"),
        ("00_a: {smoke: {rate: [1]}}", BatchError, "JSON type list"),
        ("00_b: {smoke: {steps: 1}}", UnknownName, "00_b"),
        ("00_a: {smok: {steps: 1}}", UnknownName, "smok"),
        ("00_a: {laptop: {steps: 1}}", UnknownName, "laptop"),
    ],
)
def test_parameters_are_validated_before_launch(repo, write_notebook, yaml, error, words):
    write_notebook("00_a", "steps = 7\nrate = 0.1\nimage = None", [])
    (repo / "notebooks/profiles.yaml").write_text(yaml)
    with pytest.raises(error, match=words):
        batch.plan(profile="smoke")


def test_parameters_that_are_right(repo, write_notebook):
    write_notebook("00_a", "steps = 7\nrate = 0.1\nimage = None", [])
    (repo / "notebooks/profiles.yaml").write_text("00_a: {smoke: {rate: 1, image: [a, b]}}")
    assert batch.plan(profile="smoke").values["00_a"] == {"steps": 7, "rate": 1, "image": ["a", "b"]}


@pytest.mark.parametrize(
    "source", ["size = (1, 2)", "a = b = 1", "x = 1 + 1", "import os", "x = {1: 2}", "x = float('nan')"]
)
def test_parameters_cell_holds_json_literals_only(write_notebook, source):
    write_notebook("00_a", source, [])
    with pytest.raises(BatchError, match="parameters cell of 00_a"):
        batch.plan()


def test_names_and_circles(write_notebook):
    write_notebook("00_a", "x = 1", [], needs=["01_b"])
    write_notebook("01_b", "x = 1", [], needs=["00_a"])
    with pytest.raises(BatchError, match="00_a -> 01_b -> 00_a"):
        batch.plan()
    with pytest.raises(UnknownName, match="does not exist"):
        batch.plan(["07"])
    with pytest.raises(UnknownName, match="could be any of"):
        batch.plan(["0"])
