"""Sweeps: nothing done twice, nothing lost, failures kept, on threads, processes and any scheduler."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from hrlib import image, inversion, lab, losses, metrics, optim, store, weights
from hrlib.errors import BatchError, InvalidValue, StoreError, UnknownName
from hrlib.experiments import galleries, inversions, sweep, sweep_keys, sweep_workers
from hrlib.lab.provenance import LIBRARY, closure

TASK = """
import functools, os, time
from dataclasses import dataclass, field
from pathlib import Path
import numpy as np
import torch
from hrlib.experiments.sweep import Measured

def work(*, n, journal, seconds=0.0, fails="", image="a", seed=0):
    with open(journal, "a") as f:
        f.write(f"{n}\\n")
    time.sleep(seconds)
    if fails == "always" or fails and not Path(fails).exists():
        raise ValueError(f"no luck with {n}")
    if fails == "dies":
        os._exit(1)
    env = os.environ
    where = {"pid": os.getpid(), "threads": env["OMP_NUM_THREADS"], "gpu": env.get("CUDA_VISIBLE_DEVICES")}
    where["trim"] = env.get("MALLOC_TRIM_THRESHOLD_", "")
    return Measured({"square": n * n, **(where if fails == "where" else {})}, {"n.txt": str(n).encode()})

def guess(*, n, journal, **_):
    assert not Path(journal).exists(), "something has started"
    return 10.0 * (n + 1)

@dataclass(frozen=True)
class Settings:
    n: int
    journal: str
    image: str = ""

def work_on(s):
    return work(n=s.n, journal=s.journal, fails="" if Path(s.image.removeprefix("file:")).is_absolute() else "always")

def guess_of(s):
    return guess(n=s.n, journal=s.journal)

HOW = []

def work_all(runs):
    assert len({(run["n"], run.get("seed")) for run in runs}) == 1
    if "raises" in HOW:
        raise ValueError("together, no")
    found = [work(**run) for run in runs]
    found = [Measured({**m.values, "batch": len(runs)}, m.files) for m in found]
    return found[:1] if "forgets" in HOW else found

@torch.no_grad()
def decorated(*, n, journal):
    return work(n=n, journal=journal)

@dataclass(frozen=True)
class Inner:
    path: str

@dataclass(frozen=True)
class Rich:
    n: int
    pair: tuple[int, int] = (1, 2)
    inner: Inner = Inner("p.txt")
    twice: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "twice", 2 * self.n)

@dataclass(frozen=True)
class Alike(Settings):
    pass

def of_rich(s):
    return Measured({"hash": hash(s) and 1, "absolute": Path(s.inner.path).is_absolute(), "four": 2 * s.twice})

def any_of(s):
    return Measured({"kind": type(s).__name__})

RETURNS = {
    "inf": Measured({"psnr": float("inf"), "down": -np.inf, "none": np.nan, "one": np.float32(1.5), "void": None}),
    "tensor": Measured({"psnr": torch.ones(2)}),
    "list": Measured({"psnr": [1.0]}),
    "dict": {"psnr": 1.0},
    "nothing": None,
    "text": Measured({}, {"a.txt": "text"}),
    "outside": Measured({}, {"../a.txt": b""}),
    "name": Measured({1: 1.0}),
    "bytes": Measured({"psnr": "\\udc80"}),
    "fine": Measured({"psnr": torch.tensor(2.5)}),
}

def returning(*, what):
    if what == "raises":
        raise ValueError("\\udc80")
    return RETURNS[what]

def maker(factor):
    def closure(*, n, journal):
        return Measured({"square": factor * n})
    return closure

class Group:
    def method(self, *, n, journal):
        return Measured({})
    def __call__(self, *, n, journal):
        return Measured({})

nameless = lambda *, n, journal: Measured({})
partial = functools.partial(work, seconds=0.0)
renamed = maker(2)
"""


@pytest.fixture
def task(repo, tmp_path, monkeypatch):
    """A module with a task, which workers can import."""
    (tmp_path / "sweep_task.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(sweep_workers.ENVIRONMENT, raising=False)
    sys.modules.pop("sweep_task", None)
    return importlib.import_module("sweep_task")


@pytest.fixture
def journal(tmp_path) -> Path:
    return tmp_path / "journal"  # no suffix: a file that a setting names decides whether a run is repeated


def runs_of(journal: Path, count: int, **more) -> list[dict]:
    return [{"n": n, "journal": str(journal), **more} for n in range(count)]


def started(journal: Path) -> list[int]:
    return sorted(map(int, journal.read_text().split())) if journal.exists() else []


def test_finished_runs_are_not_repeated(task, journal):
    first = sweep.sweep(task.work, runs_of(journal, 3), name="s")
    assert first.table["square"].tolist() == [0, 1, 4] and not first.table["error"].any()
    assert first.file(2, "n.txt").read_text() == "2" and first.performed == 3
    again = sweep.sweep(task.work, runs_of(journal, 4)[::-1], name="s")  # one more, in another order
    assert again.performed == 1 and started(journal) == [0, 1, 2, 3]
    assert again.table["square"].tolist() == [9, 4, 1, 0]
    with pytest.raises(StoreError, match="left none"):
        again.file(0, "other.txt")


def test_what_decides_the_numbers_decides_whether_to_repeat(task, journal, repo, tmp_path):
    picture = tmp_path / "p.txt"
    picture.write_text("one")
    runs = runs_of(journal, 1, image=f"file:{picture}")
    assert sweep.sweep(task.work, runs, name="s").performed == 1
    assert sweep.sweep(task.work, runs, name="s").performed == 0
    picture.write_text("another")
    assert sweep.sweep(task.work, runs, name="s").performed == 1
    with open(tmp_path / "sweep_task.py", "a") as f:
        f.write("# the same, better explained\n")
    assert sweep.sweep(task.work, runs, name="s").performed == 0
    with open(tmp_path / "sweep_task.py", "a") as f:
        f.write("CHANGED = True\n")
    table = sweep.sweep(task.work, runs, name="s").table
    assert "restart" in table["error"][0], "this process has the old one in its memory"
    sweep._loaded.cache_clear()  # as after a restart
    again = sweep.sweep(task.work, runs, name="s")
    assert again.performed == 1 and not again.table["error"].any() and len(started(journal)) == 3


def test_a_run_depends_on_what_its_task_imports():
    found = {
        p.relative_to(LIBRARY).as_posix() for p in closure([Path(inversions.__file__)], without=Path(sweep.__file__))
    }
    assert {"inversion.py", "optim.py", "metrics.py", "nets/style_inr.py", "worlds/_head.py"} <= found
    assert not {"experiments/sweep.py", "lab/session.py", "training/gan.py", "cli.py"} & found


def test_damaged_results_are_made_again(task, journal):
    swept = sweep.sweep(task.work, runs_of(journal, 3), name="s")
    swept.file(0, "n.txt").write_text("7")
    place = swept.file(1, "n.txt").parent.with_suffix(".json")
    place.write_text(place.read_text()[:-20])
    again = sweep.sweep(task.work, runs_of(journal, 3), name="s")
    assert again.performed == 2 and again.file(0, "n.txt").read_text() == "0"
    assert again.table.equals(swept.table)


def test_failures_stay_in_the_table_and_are_tried_again(task, journal, tmp_path):
    luck = tmp_path / "luck"
    runs = [*runs_of(journal, 2, fails=""), *runs_of(journal, 1, fails=str(luck))]
    swept = sweep.sweep(task.work, runs, name="s")
    assert swept.table["error"].tolist() == ["", "", "ValueError: no luck with 0"]
    assert swept.table["square"].tolist()[:2] == [0, 1] and np.isnan(swept.table["square"][2])
    with pytest.raises(StoreError, match="no luck"):
        swept.file(2, "n.txt")
    luck.touch()
    again = sweep.sweep(task.work, runs, name="s")
    assert again.performed == 1 and not again.table["error"].any()


def test_two_processes_share_the_threads(task, journal, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    runs = runs_of(journal, 6, fails="where", seconds=0.4)
    Path("where").touch()
    try:
        table = sweep.sweep(task.work, runs, name="s", workers=2).table
    finally:
        Path("where").unlink()
    assert table["pid"].nunique() == 2 and os.getpid() not in set(table["pid"])
    assert set(table["threads"]) == {"3"}
    assert set(table["trim"]) == {""}, "Dask's setting doubles the time of a step"


def test_one_worker_for_each_gpu(task, journal, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep_workers, "_gpus", lambda: ("3", "GPU-5"))
    monkeypatch.chdir(tmp_path)
    Path("where").touch()
    table = sweep.sweep(task.work, runs_of(journal, 6, fails="where", seconds=0.4), name="s", workers=1).table
    assert set(table["gpu"]) == {"3", "GPU-5"}
    assert table.groupby("gpu")["pid"].nunique().tolist() == [1, 1]


def test_a_worker_that_dies_costs_one_run(task, journal, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("dies").touch()
    runs = [*runs_of(journal, 2, fails=""), {"n": 9, "journal": str(journal), "fails": "dies"}]
    table = sweep.sweep(task.work, runs, name="s", workers=1).table
    assert table["error"].tolist()[:2] == ["", ""] and "KilledWorker" in table["error"][2]
    assert started(journal).count(9) == sweep_workers.ATTEMPTS


def test_any_scheduler(task, journal, monkeypatch):
    from dask.distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        monkeypatch.setenv(sweep_workers.ENVIRONMENT, cluster.scheduler_address)
        assert sweep.sweep(task.work, runs_of(journal, 3), name="s").table["square"].tolist() == [0, 1, 4]
        assert cluster.scheduler_info["workers"], "a foreign cluster goes on"


def test_no_scheduler_there(task, journal, monkeypatch):
    monkeypatch.setattr(sweep_workers, "PATIENCE", "1 s")
    with pytest.raises(BatchError, match=r"tcp://127\.0\.0\.1:9"):
        sweep.sweep(task.work, runs_of(journal, 1), name="s", scheduler="tcp://127.0.0.1:9")


def test_one_sweep_of_a_name_at_a_time(task, journal, repo):
    with store.alone(repo / "build/sweeps/s/sweep.lock", "x"), pytest.raises(StoreError, match="another sweep named s"):
        sweep.sweep(task.work, runs_of(journal, 1), name="s")
    assert sweep.sweep(task.work, runs_of(journal, 1), name="s").performed == 1


def test_prediction_comes_first(task, journal, capsys):
    runs = [{**run, "image": i, "seed": 0} for i in "ab" for run in runs_of(journal, 2)]
    sweep.sweep(task.work, runs, name="s", estimate=task.guess)
    said = capsys.readouterr().out
    assert said.index("predicted") < said.index("4 runs in")
    assert "n 0: 2 of 10 s, 20 s" in said and "n 1: 2 of 20 s, 40 s" in said and "together 60 s" in said
    with pytest.raises(AssertionError):  # the estimate does look
        task.guess(n=0, journal=journal)


def test_runs_may_be_dataclasses(task, journal, repo, capsys):
    (repo / "p.txt").write_text("one")
    runs = [task.Settings(n, str(journal), "file:p.txt") for n in range(3)]
    first = sweep.sweep(task.work_on, runs, name="s", estimate=task.guess_of)
    assert "n 1: 1 of 20 s" in capsys.readouterr().out
    assert first.table["square"].tolist() == [0, 1, 4] and not first.table["error"].any()
    assert list(first.table.columns) == ["n", "journal", "image", "square", "error"]
    assert sweep.sweep(task.work_on, runs, name="s").performed == 0
    (repo / "p.txt").write_text("another")
    assert sweep.sweep(task.work_on, runs[:1], name="s").performed == 1


def test_mistakes(task, journal):
    run = runs_of(journal, 1)
    for runs, words in ((run * 2, "twice"), ([], "0 runs"), ([*run, {"n": 1}], "the same settings")):
        with pytest.raises(BatchError, match=words):
            sweep.sweep(task.work, runs, name="s")
    with pytest.raises(BatchError, match="JSON"):
        sweep.sweep(task.work, [{**run[0], "seed": object()}], name="s")
    with pytest.raises(InvalidValue, match="workers = -1"):
        sweep.sweep(task.work, run, name="s", workers=-1)
    at_home = lambda **_: sweep.Measured({})
    at_home.__module__ = "__main__"
    with pytest.raises(BatchError, match="a module"):
        sweep.sweep(at_home, run, name="s")
    assert started(journal) == []


@pytest.mark.parametrize(
    "find",
    [
        lambda m: m.maker(2),
        lambda m: m.renamed,
        lambda m: m.nameless,
        lambda m: m.Group().method,
        lambda m: m.Group(),
        lambda m: m.Group,
        lambda m: m.partial,
        lambda m: len,
    ],
)
def test_tasks_that_share_a_name_are_refused(task, journal, find):
    with pytest.raises(BatchError, match="cannot be imported by its name"):
        sweep.sweep(find(task), runs_of(journal, 1), name="s")


def test_a_decorated_task_is_known_by_its_own_file(task, journal, tmp_path):
    assert sweep_keys.sources(task.decorated, []) == (tmp_path / "sweep_task.py",)
    assert [sweep.sweep(task.decorated, runs_of(journal, 2), name="s").performed for _ in range(2)] == [2, 0]
    with open(tmp_path / "sweep_task.py", "a") as f:
        f.write("CHANGED = True\n")
    sweep._loaded.cache_clear()
    assert sweep.sweep(task.decorated, runs_of(journal, 2), name="s").performed == 2


def test_versions_of_what_tasks_compute_with_count(task, journal, monkeypatch):
    files = sweep_keys.sources(task.work, [])
    before, read = sweep_keys.version(files), sweep_keys.importlib.metadata.version
    for package in ("scikit-image", "pillow", "imagecodecs", "lpips", "torchvision", "scipy", "torch-fidelity"):
        monkeypatch.setattr(
            sweep_keys.importlib.metadata, "version", lambda p, other=package: "0" if p == other else read(p)
        )
        assert sweep_keys.version(files) != before, package
    monkeypatch.setattr(sweep_keys.importlib.metadata, "version", lambda p: read(p).split("+")[0] + "+other")
    assert sweep_keys.version(files) == before, "a local tag does not count"
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert sweep_keys.version(files) != before


def test_recorded_runs_outlive_the_code_and_say_how_they_were_made(task, journal, tmp_path, monkeypatch):
    runs = runs_of(journal, 3)
    with pytest.raises(StoreError, match="none of 3 recorded runs"):
        sweep.kept(task.work, runs, "some")
    assert sweep.sweep(task.work, runs[:2], name="s", keep="some").performed == 2
    monkeypatch.setattr(sweep_keys, "version", lambda files: "another")
    sweep._loaded.cache_clear()
    assert sweep.sweep(task.work, runs, name="s", keep="some").performed == 1, "the code does not decide"
    there = sweep.kept(task.work, [runs[2], runs[0]], "some")
    assert there.table["square"].tolist() == [4, 0] and there.file(0, "n.txt").read_text() == "2"
    folder = lab.root() / "data" / "recorded" / "some"
    made = [store.read_json(path)["made"] for path in sorted(folder.glob("*.json"))]
    assert {m["version"] for m in made} == {"another", sorted({m["version"] for m in made} - {"another"})[0]}
    assert all(m["packages"]["torch"] == torch.__version__ and "thread" in m["machine"] for m in made)
    assert there.made().startswith("2 recorded runs, 0.0 hours on ") and there.made().endswith(made[0]["day"])
    damaged = next(folder.glob("*/n.txt"))
    damaged.write_text("nonsense")
    assert len(sweep.kept(task.work, runs, "some").table) == 2, "a damaged run does not count"
    assert sweep.sweep(task.work, runs, name="s", keep="some").performed == 1
    with pytest.raises(StoreError, match="leaves"):
        sweep.kept(task.work, runs, "../some")


def test_recorded_runs_are_read_and_the_others_performed_elsewhere(task, journal):
    runs = runs_of(journal, 3)
    sweep.sweep(task.work, runs[:2], name="s", keep="some")
    shelf = lab.root() / "data" / "recorded" / "some"
    before = sorted(path.name for path in shelf.rglob("*"))
    found = sweep.sweep(task.work, runs, name="s", keep="some", record=False)
    assert found.performed == 1 and found.table["square"].tolist() == [0, 1, 4]
    assert sorted(path.name for path in shelf.rglob("*")) == before, "nothing is recorded unless asked"
    assert found.made().startswith("2 recorded runs") and found.at([2]).made() == ""
    assert sweep.sweep(task.work, runs, name="s", keep="some", record=False).performed == 0
    assert sweep.sweep(task.work, runs, name="s", keep="some").performed == 1, "a run elsewhere is not recorded"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_what_differs_in_the_picture_alone(task, journal, workers):
    runs = [{"n": n, "journal": str(journal), "image": image} for image in "abc" for n in (1, 2)]
    found = sweep.sweep(task.work, runs, name="s", together=task.work_all, batch=2, workers=workers)
    assert found.table["square"].tolist() == [1, 4] * 3 and found.performed == 6
    assert sorted(found.table["batch"].fillna(1).tolist()) == [1, 1, 2, 2, 2, 2]
    assert sweep.sweep(task.work, runs, name="s").performed == 0, "the batch is no part of a run"


@pytest.mark.parametrize("how", ["raises", "forgets"])
def test_a_batch_that_fails_is_performed_one_by_one(task, journal, how):
    runs = [{"n": 1, "journal": str(journal), "image": image, "fails": f} for image, f in (("a", ""), ("b", ""))]
    task.HOW.append(how)
    found = sweep.sweep(task.work, runs, name="s", together=task.work_all, batch=2)
    assert found.table["error"].tolist() == ["", ""] and "batch" not in found.table
    with pytest.raises(InvalidValue, match="batch"):
        sweep.sweep(task.work, runs, name="s", together=task.work_all, batch=0)


def test_inversions_in_a_batch_end_as_they_would_alone():
    # a small rate: every step is the best so far, for the batch and for each picture
    settings = GRID | {"images": ["portrait:1", "portrait:2"], "num_steps": 4, "lr": 0.02, "eps_initial": 0.05}
    for change in ({}, {"noise": [False]}, {"lam_mse": 3.0, "noise_regularisation": 1.0}):
        runs = inversions.grid(**settings | change)
        for one, of_batch in zip(map(inversions.perform, runs), inversions.together(runs), strict=True):
            for name in settings["columns"]:
                assert one.values[name] == pytest.approx(of_batch.values[name], rel=2e-3)


def test_the_class_of_the_settings_counts(task, journal, tmp_path):
    own, alike = task.Settings(1, str(journal)), task.Alike(1, str(journal))
    assert sweep.sweep(task.any_of, [own], name="s").table["kind"].tolist() == ["Settings"]
    assert sweep.sweep(task.any_of, [alike], name="s").table["kind"].tolist() == ["Alike"]
    for runs in ([own, task.Alike(2, str(journal))], [own, asdict(task.Settings(2, str(journal)))]):
        with pytest.raises(BatchError, match="several types"):
            sweep.sweep(task.any_of, runs, name="s")
    (run,) = inversions.grid(**GRID)
    assert Path(inversions.__file__) in sweep_keys.sources(task.any_of, [run])

    @dataclass
    class Local:
        n: int = 0

    with pytest.raises(BatchError, match=r"class .*Local"):
        sweep.sweep(task.any_of, [Local()], name="s")
    with pytest.raises(BatchError, match="a dict or a dataclass"):
        sweep.sweep(task.any_of, ["portrait:1"], name="s")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_task_gets_the_dataclass_itself(task, repo, workers):
    (repo / "p.txt").write_text("one")
    runs = [task.Rich(1), task.Rich(2)]
    for performed in (2, 0):
        swept = sweep.sweep(task.of_rich, runs, name="s", workers=workers)
        assert swept.table["error"].tolist() == ["", ""] and swept.performed == performed
        assert swept.table["absolute"].all() and swept.table["four"].tolist() == [4, 8]
    (repo / "p.txt").write_text("two")
    assert sweep.sweep(task.of_rich, runs, name="s").performed == 2


def test_a_folder_is_no_setting(task, journal):
    for setting in ("folder:faces", ["folder:faces"], {"folder:faces": 1}):
        with pytest.raises(BatchError, match=r"pictures\.listed"):
            sweep.sweep(task.work, runs_of(journal, 1, image=setting), name="s")
    assert started(journal) == []


def test_files_that_are_keys_count(task, journal, tmp_path):
    (tmp_path / "p.txt").write_text("one")
    runs = runs_of(journal, 1, image={"p.txt": 1})
    assert [sweep.sweep(task.work, runs, name="s").performed for _ in range(2)] == [1, 0]
    (tmp_path / "p.txt").write_text("two")
    assert sweep.sweep(task.work, runs, name="s").performed == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\udc80"])
def test_settings_are_what_json_can_hold(task, journal, value):
    for settings in ({"seed": value}, {"image": [{"a": value}]}):
        with pytest.raises(BatchError, match="JSON"):
            sweep.sweep(task.work, runs_of(journal, 1, **settings), name="s")
    assert started(journal) == []


def test_results_need_not_be_finite_and_a_wrong_result_costs_its_run(task):
    runs = [{"what": what} for what in [*task.RETURNS, "raises"]]
    swept = sweep.sweep(task.returning, runs, name="s")
    table = swept.table.set_index("what")
    wrong = {"tensor", "list", "dict", "nothing", "text", "name", "bytes"}
    bad = wrong | {"outside", "raises"}
    assert set(table.index[table["error"] != ""]) == bad
    assert all("BatchError: a task that returned" in e for e in table["error"][[*wrong]])
    assert table["error"]["raises"] == r"ValueError: \udc80"
    assert "leaves the folder" in table["error"]["outside"]
    assert table["psnr"]["inf"] == np.inf and table["down"]["inf"] == -np.inf and table["psnr"]["fine"] == 2.5
    assert np.isnan(table["none"]["inf"]) and table["one"]["inf"] == 1.5
    again = sweep.sweep(task.returning, runs, name="s")
    assert again.performed == len(bad) and again.table.equals(swept.table)
    assert again.table.dtypes.equals(swept.table.dtypes)


@pytest.mark.parametrize("damage", ["", "[]", "null", "{}", "files", "values", "error", "seconds", "number", "name"])
def test_a_damaged_description_is_no_result(task, journal, damage):
    swept = sweep.sweep(task.work, runs_of(journal, 1), name="s")
    place = swept.file(0, "n.txt").parent.with_suffix(".json")
    found = json.loads(place.read_text())
    found |= {"number": {"values": {"a": {"float": []}}}, "name": {"files": {"\0": ""}}}.get(damage, {damage: None})
    place.write_text(damage if damage in ("", "[]", "null", "{}") else json.dumps(found))
    again = sweep.sweep(task.work, runs_of(journal, 1), name="s")
    assert again.performed == 1 and again.table.equals(swept.table)


@pytest.mark.parametrize("name", ["", ".", "../../../x", "/x", "a/../../x"])
def test_a_sweep_stays_in_its_folder(task, journal, repo, name):
    with pytest.raises(StoreError, match="leaves the folder"):
        sweep.sweep(task.work, runs_of(journal, 1), name=name)
    assert started(journal) == []


def test_killed_at_any_moment(task, journal, repo, tmp_path):
    """SIGKILL, several times: the same table in the end, and no run but those in flight is repeated."""
    count, workers = 24, 2
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from sweep_task import work
        from hrlib.experiments.sweep import sweep
        if __name__ == "__main__":
            runs = [{{"n": n, "journal": {str(journal)!r}, "seconds": 0.15}} for n in range({count})]
            swept = sweep(work, runs, name="killed", workers={workers})
            swept.table.to_csv(sys.argv[1])
        """)
    )
    environment = {**os.environ, "HRLAB_ROOT": str(repo)}
    kills, dice = 0, random.Random(0)
    for attempt in range(8):
        before = len(started(journal))
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "got.csv")], env=environment)
        while len(started(journal)) == before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 0.8))
        if process.poll() is None and attempt < 3:
            process.send_signal(signal.SIGKILL)
            kills += 1
            process.wait()
            time.sleep(1.5)  # its workers notice, and end what they are at
        elif process.wait(timeout=120) == 0:
            break
    assert kills >= 2
    assert len(started(journal)) <= count + kills * workers and set(started(journal)) == set(range(count))
    journal.unlink()
    sweep.sweep(task.work, runs_of(journal, count, seconds=0.15), name="undisturbed").table.to_csv(
        tmp_path / "want.csv"
    )
    assert (tmp_path / "got.csv").read_text() == (tmp_path / "want.csv").read_text()
    assert not list((repo / "build").rglob(store.TEMP_PREFIX + "*"))


# --- inversions -------------------------------------------------------------------------------------------------------

GRID = {
    "images": ["portrait:11"],
    "losses": ["vgg_conv"],
    "generator": "portraits_inr128",
    "perceptual": "shipped",
    "size": 128,
    "num_steps": 3,
    "lr": 0.3,
    "columns": ["psnr", "artefact_energy"],
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"losses": ["vgg_conv", "vgg_cnov"]}, "did you mean 'vgg_conv'"),
        ({"losses": ["vgg_conv:feature_21"]}, "did you mean 'features_21'"),
        ({"columns": ["psrn"]}, "did you mean 'psnr'"),
        ({"images": ["portrat:1"]}, "portrait:7"),
        ({"generator": "portraits_inr12"}, "did you mean 'portraits_inr128'"),
        ({"losses": ["discriminator:b256"], "discriminator": "portraits_inr128_discriminator"}, "b128"),
    ],
)
def test_misspelt_names_are_refused_before_anything_is_computed(change, words, monkeypatch):
    monkeypatch.setattr(inversion, "invert", lambda *_, **__: pytest.fail("something was computed"))
    with pytest.raises(UnknownName, match=words):
        inversions.grid(**GRID | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"lr": float("nan")}, "lr"),
        ({"lam_mse": -1}, "lam_mse"),
        ({"seeds": [0, -1]}, "seed"),
        ({"size": 0}, "size"),
        ({"inputs": [32, 0.5]}, "size"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_computed(change, words):
    with pytest.raises(InvalidValue, match=words):
        inversions.grid(**GRID | change)


def test_a_grid_is_the_product_of_its_lists():
    runs = inversions.grid(**GRID | {"inputs": [32, 128], "noise": [True, False], "seeds": [0, 1]})
    assert len(runs) == 8 and len({json.dumps(asdict(run)) for run in runs}) == 8
    assert {run.input for run in inversions.grid(**GRID)} == {128}


@pytest.mark.parametrize(("edge", "noise"), [(128, True), (32, False)])
def test_a_run_is_an_inversion(edge, noise):
    (run,) = inversions.grid(**GRID | {"inputs": [edge], "noise": [noise], "seeds": [3]})
    found = inversions.perform(run)
    x = lab.picture("portrait:11", 128)
    loss = losses.named("vgg_conv", weights="shipped", resize=None if edge == 128 else edge)
    G = weights.load_generator("portraits_inr128")
    result = optim.solve(inversion.invert(G, x, loss, num_steps=3, lr=0.3, seed=3, optimise_noise=noise))
    assert found.values["psnr"] == pytest.approx(metrics.psnr(result.image, x)[0], abs=1e-3)
    assert found.files["image.png"][:4] == b"\x89PNG" and found.values["psnr_gain_of_last_50"] is None
    facts = json.loads(found.files["run.json"])
    assert facts["config"] == result.config and list(facts["psnr"]) == ["3"]
    assert 0 < inversions.estimate(run) < 60


# --- the files that settings name -------------------------------------------------------------------------------------


def test_a_relative_path_is_the_same_file_in_keys_and_on_workers(task, journal, tmp_path, monkeypatch):
    here = tmp_path / "elsewhere"
    store.write_bytes(here / "p.txt", b"one")
    monkeypatch.chdir(here)  # neither the repository nor the workers' own folder
    runs = runs_of(journal, 1, image="file:p.txt", fails=["p.txt", "none.txt", "0.5"])
    named = sweep_keys.absolute(runs[0])
    assert named["image"] == f"file:{here}/p.txt" and named["fails"] == [f"{here}/p.txt", "none.txt", "0.5"]
    runs = runs_of(journal, 1, image="file:p.txt")
    swept = sweep.sweep(task.work, runs, name="s")
    assert swept.table["image"].tolist() == ["file:p.txt"], "a table has the names that were given"
    monkeypatch.chdir(tmp_path)
    runs[0]["image"] = "file:elsewhere/p.txt"
    assert sweep.sweep(task.work, runs, name="s").performed == 0
    (here / "p.txt").write_text("two")
    assert sweep.sweep(task.work, runs, name="s").performed == 1


def test_files_in_lists_and_without_a_suffix_count(task, journal, tmp_path):
    (tmp_path / "one").write_text("a")
    runs = runs_of(journal, 1, image=["portrait:1", f"file:{tmp_path}/one"])
    assert [sweep.sweep(task.work, runs, name="s").performed for _ in range(2)] == [1, 0]
    (tmp_path / "one").write_text("b")
    assert sweep.sweep(task.work, runs, name="s").performed == 1


def test_a_file_that_changes_during_a_run_gives_no_result(task, journal, tmp_path, monkeypatch):
    file = tmp_path / "g.txt"
    file.write_text("one")
    perform = sweep._perform

    def changing(*args):
        file.write_text("another")
        return perform(*args)

    monkeypatch.setattr(sweep, "_perform", changing)
    swept = sweep.sweep(task.work, runs_of(journal, 1, image=str(file)), name="s")
    assert "changed during this run" in swept.table["error"][0]
    monkeypatch.undo()


def test_a_file_that_holds_another_network_gives_other_codes(repo, tiny, monkeypatch):
    here = repo / "pictures"
    x = lab.picture("portrait:5", 32)
    image.write(x, here / "a.png")
    monkeypatch.chdir(here)
    how = dict(generator="./g.safetensors", num_steps=2)
    built = []
    for seed in (1, 2):
        Path("g.safetensors").write_bytes(Path(tiny(seed)).read_bytes())
        found = galleries.build(["folder:."], path=here / f"{seed}.codes", **how)
        G = weights.load_generator("./g.safetensors")
        assert found.performed == 1 and found.gallery.generator == store.fingerprint(G.state_dict())
        assert torch.equal(inversions.generator_of("./g.safetensors", "cpu").w_avg, G.w_avg)
        built.append(found.gallery)
    assert built[0].names == (f"file:{here / 'a.png'}",) and not torch.equal(built[0].ws, built[1].ws)


def test_a_grid_takes_folders_and_ranges(repo, tiny):
    for name in ("b", "a"):
        image.write(lab.picture("portrait:5", 32), repo / "my_faces" / f"{name}.png")
    how = dict(generator=tiny(1), perceptual="shipped", size=32, num_steps=2, lr=0.1, columns=["psnr"])
    runs = inversions.grid(images=["folder:my_faces", "anime:3..4"], losses=["mse"], **how)
    assert [run.image for run in runs] == ["file:my_faces/a.png", "file:my_faces/b.png", "anime:3", "anime:4"]


def test_a_notebook_works_in_the_root(repo, write_notebook, tmp_path, monkeypatch):
    write_notebook("00_a", "seed = 0\ndevice = 'cpu'\n", [])
    (repo / "notebooks").joinpath("x").mkdir()
    monkeypatch.chdir(repo / "notebooks")
    monkeypatch.setenv("HRLAB_ROOT", "..")
    lab.begin("00_a", {"seed": 0, "device": "cpu"})
    assert Path.cwd() == repo and lab.root() == repo
