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

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
