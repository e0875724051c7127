"""store.py: files appear whole or not at all, and stay inside their folder."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hrlib import errors, store
from hrlib.errors import StoreError


def test_bytes_and_json_round_trip(tmp_path):
    file = store.write_bytes(tmp_path / "deep" / "a.bin", b"\x00\xff")
    assert file.read_bytes() == b"\x00\xff" and list(file.parent.iterdir()) == [file]
    file = store.write_json(tmp_path / "a.json", {"b": [1, 2.5, "µ"], "a": None})
    assert json.loads(file.read_text()) == {"b": [1, 2.5, "µ"], "a": None} == store.read_json(file)
    assert file.read_text().index('"a"') < file.read_text().index('"b"')


def test_json_refuses_what_json_cannot_hold(tmp_path):
    for bad in (float("nan"), float("inf"), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            store.write_json(tmp_path / "a.json", {"x": bad})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"<html>"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.json is not valid JSON"):
        store.read_json(tmp_path / "a.json")


def test_an_error_inside_atomic_leaves_the_old_file(tmp_path):
    store.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), store.atomic(tmp_path / "a") as temp:
        temp.write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        file = store.write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


WRITER = """
import sys
from hrlib import store
n = 0
while True:
    n += 1
    store.write_bytes(sys.argv[1], bytes([n % 256]) * (4 << 20))
"""


def test_killed_writers_leave_whole_files(tmp_path):
    """SIGKILL at twelve arbitrary moments: the file is always one whole version."""
    file = tmp_path / "a.bin"
    for i in range(12):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(file)], cwd=Path(__file__).parent.parent)
        deadline = time.monotonic() + 30
        while not (file.exists() or list(tmp_path.glob(f"{store.TEMP_PREFIX}*"))) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.02 + 0.013 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if file.exists():
            content = file.read_bytes()
            assert len(content) == 4 << 20 and len(set(content)) == 1
            file.unlink()
    left = len(list(tmp_path.glob(f"{store.TEMP_PREFIX}*")))
    assert store.sweep_temps(tmp_path) == left and not list(tmp_path.iterdir())


def test_sweep_touches_only_temporary_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".partial-x").write_bytes(b"")
    (tmp_path / "keep").write_bytes(b"")
    assert store.sweep_temps(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["keep", "sub"]


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert store.sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    (tmp_path / "b").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert store.sha256(tmp_path / "b") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


OUTSIDE = [("..", "x"), ("a", "../../x"), ("/etc/passwd",), (".",), ("a/..",), ("link", "x"), ("a\0b",)]


@pytest.mark.parametrize("parts", OUTSIDE)
def test_paths_that_leave_the_folder_are_refused(tmp_path, parts):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="leaves the folder"):
        store.inside(root, *parts)


def test_paths_inside_are_given(tmp_path):
    assert store.inside(tmp_path, "a", "b.png") == tmp_path.resolve() / "a" / "b.png"
    assert store.inside(tmp_path, "a", "..", "b") == tmp_path.resolve() / "b"


@given(st.lists(st.text(alphabet="ab./\\~ \0", max_size=6), min_size=1, max_size=4))
def test_inside_never_gives_a_path_outside(tmp_path_factory, parts):
    root = tmp_path_factory.getbasetemp() / "root"
    root.mkdir(exist_ok=True)
    try:
        path = store.inside(root, *parts)
    except StoreError:
        return
    assert root.resolve() in path.parents


def test_errors_survive_pickling_between_processes():
    import pickle

    e = errors.MissingWeights("no x", expected="y", do="z")
    again = pickle.loads(pickle.dumps(e))
    assert type(again) is type(e) and str(again) == str(e) and again.do == "z"
    assert str(e) == "no x\n  expected: y\n  what to do: z"


def test_nearest_spelling():
    assert errors.nearest("astronot", ["astronaut", "coffee"]) == "did you mean 'astronaut'?"
    assert errors.nearest("qqq", ["astronaut"]) == ""


# --- places that the user names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "becomes"),
    [
        ("lr_0.1", "lr_0.1.safetensors"),
        ("a.safetensors", "a.safetensors"),
        ("A.SAFETENSORS", "A.SAFETENSORS"),
        ("net.pkl", "net.pkl.safetensors"),
        (".hidden", ".hidden.safetensors"),
        ("v1.", "v1..safetensors"),
    ],
)
def test_suffixes_are_appended_and_never_cut_off(name, becomes):
    assert store.destination(f"some.folder/{name}", ".safetensors") == Path("some.folder") / becomes


def test_a_new_file_is_promised_before_the_work(tmp_path):
    file = store.new(tmp_path / "deep" / "a")
    assert file.parent.is_dir() and not list(file.parent.iterdir())
    file.write_bytes(b"of the user")
    with pytest.raises(StoreError, match="is there already"):
        store.new(file)
    assert store.new(file, force=True).read_bytes() == b"of the user", "replaced when the result is there, not before"
    with pytest.raises(StoreError, match="is a folder"):
        store.new(tmp_path / "deep", force=True)
    with pytest.raises(StoreError, match="is the source itself"):
        store.new(file, force=True, source=tmp_path / "deep" / ".." / "deep" / "a")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is there already"):
        store.new(tmp_path / "dangling")
    for impossible in (file / "below", tmp_path / ("x" * 300) / "a", Path("a\0b")):
        with pytest.raises(StoreError, match=r"cannot be written|cannot be a path"):
            store.new(impossible)


@pytest.fixture
def unwritable(tmp_path, monkeypatch):
    """A folder into which nobody may write; root may everywhere, so the system's answer is played."""
    folder = tmp_path / "unwritable"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:

        def refuse(*_, dir=None, real, **options):
            if Path(dir) == folder:
                raise PermissionError(13, "Permission denied", str(dir))
            return real(*_, dir=dir, **options)

        for name in ("mkstemp", "TemporaryFile"):
            real = getattr(store.tempfile, name)
            monkeypatch.setattr(store.tempfile, name, lambda *a, real=real, **o: refuse(*a, real=real, **o))
    return folder


def test_where_nobody_may_write(unwritable):
    for attempt in (
        lambda: store.new(unwritable / "a"),
        lambda: store.claimed(unwritable, "run", {}).__enter__(),
        lambda: store.write_bytes(unwritable / "a", b"x"),
    ):
        with pytest.raises(StoreError, match=r"cannot be written \(Permission denied\)"):
            attempt()


def claim(folder, seed=0, fail=False, **options) -> bool:
    with store.claimed(folder, "run", {"seed": seed, "size": (2, 3)}, files=["out.*"], **options) as resumed:
        (folder / "out.txt").write_text(f"{seed}")
        if fail:
            raise KeyboardInterrupt
    return resumed


def test_a_folder_is_taken_gone_on_with_and_then_kept(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        claim(folder, fail=True)
    with pytest.raises(StoreError, match="a run with seed = 0"):
        claim(folder, seed=1)
    assert claim(folder) is True
    with pytest.raises(StoreError, match="already, finished"):
        claim(folder)
    with pytest.raises(StoreError, match="a run with seed = 0"):
        claim(folder, seed=1)
    assert (folder / "out.txt").read_text() == "0"
    (folder / "out.old").write_text("of the first run")
    assert claim(folder, seed=1, force=True) is False
    assert (folder / "out.txt").read_text() == "1" and not (folder / "out.old").exists()
    with pytest.raises(StoreError, match="holds a run"), store.claimed(folder, "training", {}):
        pass


def test_a_folder_of_the_users_is_refused_and_force_takes_only_names_of_ours(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "out.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"is not empty \(letters, notes.txt, out.txt\)"):
        claim(tmp_path)
    assert (tmp_path / "out.txt").read_text() == "mine" and not (tmp_path / store.LOCK).exists()
    assert claim(tmp_path, force=True) is False
    assert (tmp_path / "notes.txt").read_text() == "precious" and (tmp_path / "letters").is_dir()


def test_nothing_is_removed_before_everything_that_is_in_the_way_is_told(tmp_path):
    claim(tmp_path)
    (tmp_path / "out.d").mkdir()
    with pytest.raises(StoreError, match=r"out\.d is a folder"):
        claim(tmp_path, force=True)
    (tmp_path / "out.d").rmdir()
    with pytest.raises(ZeroDivisionError):
        claim(tmp_path, force=True, check=lambda: 1 / 0)
    assert (tmp_path / "out.txt").read_text() == "0"
    with pytest.raises(StoreError, match="already, finished"):
        claim(tmp_path)


def test_a_run_that_wrote_nothing_leaves_its_folder_to_another(tmp_path):
    with pytest.raises(ZeroDivisionError), store.claimed(tmp_path, "run", {"lr": 1e9}):
        raise ZeroDivisionError
    with store.claimed(tmp_path, "run", {"lr": 0.1}) as resumed:
        assert not resumed


@pytest.mark.parametrize("marker", ["{}", "[]", '{"what": "run", "identity": 3, "finished": false}', "<html>"])
def test_a_marker_that_is_not_of_our_making(tmp_path, marker):
    (tmp_path / store.MARKER).write_text(marker)
    with pytest.raises(StoreError, match=r"\.hrlab\.json is not"):
        claim(tmp_path)
    assert claim(tmp_path, force=True) is False


def test_two_runs_never_share_a_folder(tmp_path):
    with store.claimed(tmp_path / "a", "run", {}):
        for force in (False, True):
            with pytest.raises(StoreError, match=r"another run in .* is working"):
                claim(tmp_path / "a", force=force)


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "a").write_text("precious")
    with pytest.raises(StoreError, match="cannot be written"):
        claim(tmp_path / "a", force=True)
    assert (tmp_path / "a").read_text() == "precious"


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "interval", "plain"),
    [
        (0.1, "(0, inf)", 0.1),
        (1, "[0, 1]", 1),
        (2.0, "whole [1, inf)", 2),
        (np.int64(3), errors.SEED, 3),
        (np.float32(0.5), "(0, 1)", 0.5),
        (np.array(4), "whole [1, inf)", 4),
        (torch.tensor(1.5), "(-inf, inf)", 1.5),
    ],
)
def test_numbers_in_range_come_out_plain(value, interval, plain):
    got = errors.number("x", value, interval)
    assert got == plain and type(got) in (int, float) and not (interval.startswith("whole") and type(got) is float)


@pytest.mark.parametrize(
    ("value", "interval"),
    [
        (0.0, "(0, inf)"),
        (-1, "[0, inf)"),
        (1, "[0, 1)"),
        (float("nan"), "(-inf, inf)"),
        (float("inf"), "(0, inf)"),
        (1.5, "whole [1, inf)"),
        (True, "[0, 1]"),
        ("1", "[0, 1]"),
        (None, "[0, 1]"),
        (np.array([1, 2]), "[0, 3]"),
        (1 + 2j, "[0, 3]"),
        (2**32, errors.SEED),
    ],
)
def test_numbers_out_of_range(value, interval):
    with pytest.raises(errors.InvalidValue, match="x = ") as e:
        errors.number("x", value, interval)
    assert interval.removeprefix("whole ") in e.value.expected and isinstance(e.value, ValueError)


def test_numbers_by_name():
    intervals = {"steps": "whole [1, inf)", "lr": "(0, inf)", "unused": "[0, 1]"}
    plain = errors.plain({"steps": 2.0, "lr": np.float64(0.5)}, intervals)
    assert plain == {"steps": 2, "lr": 0.5} and [type(v) for v in plain.values()] == [int, float]
    with pytest.raises(errors.InvalidValue, match="lr = 0"):
        errors.plain({"steps": 2, "lr": 0}, intervals)


@pytest.mark.parametrize(
    ("interval", "advice"),
    [
        ("whole [1, inf)", "choose 1 <= x"),
        ("(0, 1]", "choose 0 < x <= 1"),
        ("(-inf, 3)", "choose x < 3"),
        ("(-inf, inf)", "choose a finite number"),
    ],
)
def test_the_advice_says_which_numbers_are_good(interval, advice):
    with pytest.raises(errors.InvalidValue) as e:
        errors.number("x", "text", interval)
    assert e.value.do == advice


def test_sides_of_a_size():
    assert errors.sides("size", 8) == (8, 8) and errors.sides("size", [4.0, np.int64(6)]) == (4, 6)
    for bad in (0, 1.5, (8,), (8, 8, 3), (8, 0), "8"):
        with pytest.raises(errors.InvalidValue, match="size = "):
            errors.sides("size", bad)


def test_what_the_file_system_says_is_one_kind_of_error(tmp_path):
    with pytest.raises(StoreError, match="No space left"), store.writing(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    with pytest.raises(StoreError, match="cannot be written"), store.writing(tmp_path / "no" / "a"):
        save_file({"a": torch.zeros(1)}, tmp_path / "no" / "a")  # safetensors has an error of its own for it
