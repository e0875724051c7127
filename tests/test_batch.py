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
from typer.testing import CliRunner

from hrlib import store
from hrlib.cli import app
from hrlib.errors import BatchError, InvalidValue, StoreError, UnknownName
from hrlib.lab import notebook
from hrlib.lab.records import Records
from hrlib.runner import batch, cache, report, verify

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


# Results of which some are measured: a record, a table and its sidecar differ from run to run.
MEASURE = """
import hashlib, json, os, pathlib, time
out = pathlib.Path(os.environ["HRLAB_OUT"])
row = {"unit": "", "n": 1, "spread": None, "interval": None, "paper": None}
rows = [{"key": "steps", "value": steps, "volatile": False}, {"key": "time", "value": time.time(), "volatile": True}]
(out / "records.json").write_text(json.dumps([r | row for r in rows]))
for name, data, volatile in (("fig", f"{steps}", False), ("tab", f"{time.time()}", True)):
    (out / f"{name}.png").write_text(data)
    sums = {f"{name}.png": hashlib.sha256(data.encode()).hexdigest()}
    side = {"kind": "figure", "name": name, "files": sums, "caption": "c", "alt": "a grey square that fills all of it"}
    (out / f"{name}.json").write_text(json.dumps(side | {"volatile": volatile}))
(out / "points.ply").write_text(f"{steps}")
"""


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def go(*names: str, profile: str = "laptop", **options) -> dict[str, batch.Job]:
    chosen = batch.plan(names, profile)
    outcomes = batch.run(chosen, tell=lambda text: None, **options)
    return {o.name: o for o in outcomes}


@pytest.mark.usefixtures("forked")
def test_one_batch_with_every_kind_of_notebook(repo, write_notebook):
    write_notebook("00_good", "steps = 2", REAL, makes=["fig"])
    sees = "assert 'fig.webp' in os.listdir(os.environ['HRLAB_UPSTREAM'] + '/00_good')"
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
    assert "![a small square of noise, all grey](00_good/fig.webp)" in index and "ZeroDivisionError" not in index
    assert sorted(json.loads((repo / "figures/status.json").read_text())["notebooks"]) == ["00_good", "01_needs_good"]
    words = report.failures(batch.plan(), list(out.values()), repo / "build/executed/laptop")
    assert "02_raises failed" in words and "division by zero" in words and "03_needs_bad: not run" in words
    # The static picture of the widget is in the executed notebook.
    assert "nothing else" in (repo / "build/executed/laptop/00_good.ipynb").read_text()

    # Again: the good ones are kept, the failed ones are tried again.
    chosen = batch.plan()
    assert [n for n in chosen.order if not chosen.why(n)] == ["00_good", "01_needs_good"]
    record = json.loads((repo / "figures/00_good/records.json").read_text())
    plain = {"key": "steps", "value": 2, "unit": "1", "n": 1, "spread": None, "interval": None, "paper": None}
    assert record == [plain | {"volatile": False}]


@pytest.mark.usefixtures("forked")
def test_profiles_change_values_and_folders(repo, write_notebook):
    write_notebook("00_a", "steps = 7\nname = 'x'", [RECORDS, MAKE], makes=["fig"])
    (repo / "notebooks/profiles.yaml").write_text("00_a:\n  smoke: {steps: 1}\n")
    assert go(profile="smoke")["00_a"].state == "done"
    assert (repo / "build/figures-smoke/00_a/fig.png").read_bytes() == b"png of 1"
    assert not (repo / "figures").exists()


def test_a_mapping_of_parameters_keeps_its_order(repo, write_notebook):
    """The first domain of the cell is the first in the batch, too."""
    cell = "(out / 'records.json').write_text('[]'); (out / 'order').write_text(' '.join(targets))"
    write_notebook(
        "00_a",
        "targets = {'cartoon': 1, 'anime': 2}",
        ["import os, pathlib", f"out = pathlib.Path(os.environ['HRLAB_OUT']); {cell}"],
    )
    assert go()["00_a"].state == "done"
    assert (repo / "figures/00_a/order").read_text() == "cartoon anime"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("code", "made by an earlier version (changed: code)"),
        ("parameters", "made by an earlier version (changed: parameters)"),
        ("data", "made by an earlier version (changed: data)"),
        ("lock", "made by an earlier version (changed: environment)"),
        ("result", "changed: results"),
        ("markdown", ""),
        ("foreign", ""),
        ("status", "made by an earlier version"),
    ],
)
def test_what_makes_results_stale(repo, write_notebook, change, reason):
    """The status is written as a run would write it, without running."""
    path = write_notebook("00_a", "steps = 7", ["x = 1"])
    folder = repo / "figures/00_a"
    folder.mkdir(parents=True)
    (folder / "records.json").write_text("[]")
    chosen = batch.plan()
    wanted = cache.inputs(chosen.known["00_a"], chosen.values["00_a"], chosen.around["00_a"], "laptop")
    cache.succeeded("00_a", "laptop", inputs=wanted, files=cache.files(folder), seconds=1.0)
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
    elif change == "foreign":
        (folder / "notes.json").write_text("{")
    elif change == "status":
        (repo / "figures/status.json").write_text("<<<<<<< HEAD")
    path.write_text(json.dumps(content))
    assert batch.plan().why("00_a") == reason


def test_a_map_of_the_series_depends_on_the_other_notebooks(repo, write_notebook):
    write_notebook("00_map", "x = 1", ["from hrlib.lab.notebook import catalogue\nprint(catalogue())"])
    write_notebook("01_b", "x = 1", [], title="First")
    around = batch.plan().around
    write_notebook("01_b", "x = 1", [], title="Second")
    (repo / "notebooks/planned.yaml").write_text("02_c: {title: To come}")
    after = batch.plan().around
    assert around["01_b"] == after["01_b"]
    changed = {what for what in after["00_map"] if around["00_map"][what] != after["00_map"][what]}
    assert changed == {"the other notebooks"}


def test_upstream_results_count(repo, write_notebook):
    write_notebook("00_a", "steps = 7", [])
    write_notebook("01_b", "steps = 7", [], needs=["00_a"])
    chosen = batch.plan(["01"])
    assert chosen.order == ("00_a", "01_b")
    before = cache.inputs(chosen.known["01_b"], {}, {}, "laptop")
    (repo / "figures/00_a").mkdir(parents=True)
    (repo / "figures/00_a/records.json").write_text("[]")
    cache.succeeded("00_a", "laptop", inputs={}, files=cache.files(repo / "figures/00_a"), seconds=1.0)
    assert cache.inputs(chosen.known["01_b"], {}, {}, "laptop") != before


@pytest.mark.usefixtures("forked")
def test_a_failure_is_never_cached_and_keeps_the_old_figures(repo, write_notebook):
    write_notebook("00_a", "steps = 7", [RECORDS, MAKE, "assert not pathlib.Path('fail').exists()"], makes=["fig"])
    assert go()["00_a"].state == "done"
    (repo / "notebooks/fail").touch()
    assert go()["00_a"].state == "cached"
    before = tree(repo / "figures")
    assert go(fresh=["00_a"])["00_a"].state == "failed"
    assert tree(repo / "figures") == before and before["00_a/fig.png"] == b"png of 7"
    assert batch.plan().why("00_a") == "failed last time"


@pytest.mark.usefixtures("forked")
def test_a_run_that_finds_the_same_changes_no_byte(repo, write_notebook):
    write_notebook("00_a", "steps = 1", [MEASURE], makes=["fig", "tab"])
    go()
    first = tree(repo / "figures")
    assert {"00_a/fig.png", "00_a/tab.png", "00_a/points.ply", "index.md", "status.json"} <= set(first)
    assert go(fresh=["00_a"])["00_a"].state == "done"
    assert tree(repo / "figures") == first, "measured times are kept while nothing else changes"
    ran = json.loads((repo / "build/runs/laptop.json").read_text())["00_a"]
    assert ran["state"] == "done" and ran["seconds"] > 0 and {"commit", "ended"} <= set(ran)

    # What the user put there stays, whatever it is called; what this run no longer makes goes.
    theirs = {"mine.png": b"1", "notes.json": b"{", "sub/deep.txt": b"2", ".old-mine": b"3"}
    for name, data in theirs.items():
        (repo / "figures/00_a" / name).parent.mkdir(exist_ok=True)
        (repo / "figures/00_a" / name).write_bytes(data)
    for name in (".old-copy", ".partial-mine"):
        (repo / "figures" / name).mkdir()
        (repo / "figures" / name / "thesis.txt").write_bytes(b"4")
    write_notebook(
        "00_a", "steps = 2", [MEASURE.replace('(out / "points.ply")', '(out / "other.ply")')], makes=["fig", "tab"]
    )
    assert batch.plan().why("00_a") == "made by an earlier version (changed: code, parameters)"
    go()
    second = tree(repo / "figures/00_a")
    assert {name: second[name] for name in theirs} == theirs
    assert {p.parent.name for p in (repo / "figures").rglob("thesis.txt")} == {".old-copy", ".partial-mine"}
    assert "other.ply" in second and "points.ply" not in second
    assert second["fig.png"] == b"2" and second["tab.png"] != first["00_a/tab.png"], "new numbers, new times"
    assert not (repo / "figures" / batch.WORK).exists()


def test_what_repeats(tmp_path):
    """A volatile result may differ in its content alone; damage, a fact or another number is a change."""

    def results(folder: str, **changed) -> Path:
        facts = {"seed": 0, "seconds": 1.0, "steps": 5, "volatile": True} | changed
        out = tmp_path / folder
        out.mkdir()
        (out / "tab.csv").write_text(str(facts["seconds"]))
        side = {"kind": "table", "name": "tab", "caption": "c", "seed": facts["seed"], "volatile": facts["volatile"]}
        store.write_json(out / "tab.json", side | {"files": {"tab.csv": store.sha256(out / "tab.csv")}})
        records = Records()
        records.add("seconds", facts["seconds"], volatile=facts["volatile"])
        records.add("steps", facts["steps"])
        store.write_json(out / "records.json", records.rows())
        return out

    nb = notebook.Notebook("a", tmp_path, "", "", ("tab",), (), {}, {}, ())
    old = results("old")
    made = [p.name for p in old.iterdir()]
    repeated = lambda new: verify.Results(new).repeat(verify.Results(old), nb, made)
    assert repeated(results("slower", seconds=2.0))
    for what, change in {"seed": {"seed": 1}, "number": {"steps": 6}, "declared": {"volatile": False}}.items():
        assert not repeated(results(what, seconds=2.0, **change)), what
    (old / "tab.csv").write_text("torn")
    assert not repeated(tmp_path / "slower")


def test_foreign_files_among_the_results_break_no_command(repo, write_notebook):
    write_notebook("00_a", "steps = 1", [], makes=["fig", "tab", "old"])
    folder = repo / "figures/00_a"
    (folder / "dir.json").mkdir(parents=True)
    odd = {"records": "[]", "notes": "{", "list": "[1]", "fig": '{"kind": "figure", "name": "fig", "files": 5}'}
    odd |= {"tab": '{"kind": "table", "name": "tab", "files": {"tab.md": "0"}}', "._fig": "\0", "old": "[2]"}
    for name, text in odd.items():
        (folder / f"{name}.json").write_text(text)
    (repo / "figures/status.json").write_text("<<<<<<< HEAD")
    before = tree(repo / "figures")
    chosen = batch.plan()
    assert chosen.why("00_a") == "made by an earlier version"
    found = verify.Results(folder).problems(chosen.known["00_a"])
    assert [p.split()[0] for p in found] == ["fig.json", "tab.md", "old.json"]
    assert CliRunner().invoke(app, ["figures"], catch_exceptions=False).exit_code == 1
    assert tree(repo / "figures") == before
    report.write("laptop", chosen.known)
    assert "`tab` has not been made yet." in (repo / "figures/index.md").read_text()


def test_nothing_is_written_where_a_notebook_finds_no_place(repo, write_notebook):
    write_notebook("00_a", "steps = 1", [])
    (repo / "figures").mkdir()
    (repo / "figures/00_a").write_text("a file of the user's")
    with pytest.raises(StoreError, match="00_a is not a folder"):
        go()
    assert tree(repo / "figures") == {"00_a": b"a file of the user's"}


@pytest.mark.usefixtures("forked")
def test_timeout(repo, write_notebook):
    write_notebook("00_a", "steps = 7", ["import time; time.sleep(60)"])
    begun = time.monotonic()
    out = go(timeout=3.0)["00_a"]
    assert (out.state, out.error["name"]) == ("failed", "Timeout") and time.monotonic() - begun < 30


def test_killed_run_leaves_the_old_figures_and_resumes(repo, write_notebook):
    """SIGKILL in the middle of a notebook: no kernel survives, the old figures stand, the next run finishes."""
    body = [RECORDS, MAKE, "import time\n(pathlib.Path.cwd().parent / 'there').touch()\ntime.sleep(steps)"]
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
    with pytest.raises(StoreError, match="another"):
        go()
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert (repo / "figures/00_a/fig.png").read_bytes() == b"png of 0"
    gone, alive = psutil.wait_procs(below, timeout=20)
    assert len(gone) >= 2 and not alive, "the worker and its kernel end with the run"
    assert (repo / "figures/.hrlab/new/00_a").exists()
    write_notebook("00_a", "steps = 1", body, makes=["fig"])
    assert go()["00_a"].state == "done"
    assert (repo / "figures/00_a/fig.png").read_bytes() == b"png of 1"
    assert not list((repo / "figures").glob(".*"))


def test_kill_between_the_two_renames_is_repaired(repo):
    aside = repo / "figures/.hrlab/old/00_a"
    aside.mkdir(parents=True)
    (aside / "fig.png").write_bytes(b"old")
    batch._recover(repo / "figures")
    assert (repo / "figures/00_a/fig.png").read_bytes() == b"old" and not aside.exists()


def results(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.png").write_text(text)
    return folder


def test_links_and_empty_folders_of_the_user_stay(tmp_path):
    old, new = results(tmp_path / "figures/00_a", fig="old", gone="old"), results(tmp_path / "new", fig="new")
    mine = results(tmp_path / "mine", photo="mine")
    (old / "sub/empty").mkdir(parents=True)
    (old / "album").symlink_to(mine, target_is_directory=True)
    (old / "nowhere").symlink_to("nothing")
    (old / "made").mkdir()
    (old / "made/deep.png").write_text("old")
    before = {"fig.png", "gone.png", "made/deep.png"}
    assert not batch._clashes(new, old, before)
    batch._replace_folder(new, old, before)
    assert (old / "sub/empty").is_dir() and os.readlink(old / "nowhere") == "nothing"
    assert (old / "album").is_symlink() and (old / "album/photo.png").read_text() == "mine"
    assert {p.name for p in old.iterdir()} == {"fig.png", "sub", "album", "nowhere"}
    assert (old / "fig.png").read_text() == "new" and not mine.is_symlink()


@pytest.mark.parametrize("kind", ["file", "same", "link", "empty", "folder", "above"])
def test_what_the_user_has_in_the_place_of_a_result(tmp_path, kind):
    old, new = results(tmp_path / "figures/00_a", old="1"), results(tmp_path / "new/sub", fig="new").parent
    place = old / "sub/fig.png"
    if kind == "above":
        (old / "sub").write_text("mine")
    elif kind in ("empty", "folder"):
        place.mkdir(parents=True)
        if kind == "folder":
            (place / "mine.txt").write_text("mine")
    else:
        place.parent.mkdir()
        place.symlink_to("nothing") if kind == "link" else place.write_text("new" if kind == "same" else "mine")
    found = batch._clashes(new, old, {"old.png"})
    assert len(found) == (kind != "same") and all("move it away" in text for text in found)


def test_a_file_of_the_user_is_never_replaced_by_a_result(repo, write_notebook):
    write_notebook("00_a", "steps = 7", [RECORDS, MAKE], makes=["fig"])
    results(repo / "figures/00_a", fig="mine")
    out = go()["00_a"]
    assert out.state == "failed" and "fig.png is in the way" in out.error["message"]
    assert tree(repo / "figures") == {"00_a/fig.png": b"mine"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupt_between_the_two_renames_brings_the_old_results_back(repo, write_notebook, monkeypatch, error):
    write_notebook("00_a", "steps = 1", [])
    old = results(repo / "figures/00_a", fig="old")

    class Process:
        """A notebook that is done at once."""

        def __init__(self, chosen, name, *_):
            self.new = results(repo / "figures" / batch.WORK / "new" / name, fig="new")

        over = staticmethod(lambda: True)
        finish = lambda self: batch._replace_folder(self.new, old, {"fig.png"})

    rename, calls = os.rename, []

    def fails(*args):
        calls.append(args)
        if len(calls) == 2:
            raise error
        rename(*args)

    chosen = batch.plan()
    monkeypatch.setattr(batch, "_Process", Process)
    monkeypatch.setattr(batch.os, "rename", fails)
    with pytest.raises(error):
        batch.run(chosen, tell=lambda text: None)
    assert tree(repo / "figures") == {"00_a/fig.png": b"old"} and len(calls) == 3


@pytest.mark.parametrize(
    ("yaml", "error", "words"),
    [
        ("00_a: {smoke: {stpes: 1}}", UnknownName, "did you mean 'steps'"),
        ("00_a: {smoke: {steps: '1'}}", InvalidValue, "JSON type string"),
        ("00_a: {smoke: {steps: 1.5}}", InvalidValue, "JSON type float"),
        ("00_a: {smoke: {steps: true}}", InvalidValue, "JSON type boolean"),
        ("00_a: {smoke: {rate: [1]}}", InvalidValue, "JSON type list"),
        ("00_b: {smoke: {steps: 1}}", UnknownName, "00_b"),
        ("00_a: {smok: {steps: 1}}", UnknownName, "smok"),
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
        batch.plan(["00_a"])


def test_names_and_circles(write_notebook):
    write_notebook("00_a", "x = 1", [], needs=["01_b"])
    write_notebook("01_b", "x = 1", [], needs=["00_a"])
    with pytest.raises(BatchError, match="00_a -> 01_b -> 00_a"):
        batch.plan()
    with pytest.raises(UnknownName, match="does not exist"):
        batch.plan(["07"])
    with pytest.raises(UnknownName, match="could be any of"):
        batch.plan(["0"])
