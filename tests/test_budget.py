"""The memory this process may still use: its own limits, control groups of both versions, and what a plan says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hrlib import losses
from hrlib.errors import InvalidValue, UnknownName
from hrlib.nets.style_inr import StyleINR
from hrlib.tiling import budget, limits

ROOMY, TIGHT = limits.Headroom(10**11, "the machine's free memory", False), limits.Headroom(10**8, "a group", True)


@pytest.fixture
def G():
    torch.manual_seed(0)
    return StyleINR(
        z_dim=8, w_dim=8, resolution=32, channels={4: 8, 8: 8, 16: 8, 32: 8}, mapping_layers=2, inr_hidden=8
    )


def plan(G, monkeypatch, headrooms, size=(64, 64), **how):
    monkeypatch.setattr(limits, "memory", lambda device: (10**8, headrooms))
    return budget.plan(G, losses.MSE(), size, **how)


def group(folder: Path, **files: str | int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")


def test_the_tightest_limit_decides_and_the_plan_says_so(G, monkeypatch):
    planned = plan(G, monkeypatch, [ROOMY, TIGHT])
    assert planned.budget == 10**8 + budget.WARM_UP + int(0.8 * TIGHT.free)
    assert "four fifths of what a group leaves" in str(planned) and "WARNING" not in str(planned)
    assert "the machine's free memory" in str(plan(G, monkeypatch, [ROOMY]))


def test_a_budget_above_a_limit_is_a_plan_with_a_warning(G, monkeypatch):
    small = plan(G, monkeypatch, [ROOMY, TIGHT], memory="60GB")
    assert "as requested" in str(small) and "WARNING" not in str(small), "it fits all the same"
    large = plan(G, monkeypatch, [ROOMY, TIGHT], size=(1500, 1500), memory="60GB")
    assert "WARNING" in str(large) and "a group allows 300 MB" in str(large)
    machine = limits.Headroom(10**6, "the machine's free memory", False)  # it could swap
    assert "WARNING" not in str(plan(G, monkeypatch, [machine], size=(1500, 1500), memory="60GB"))


def test_files_do_not_help_against_a_limit_of_the_address_space(G, monkeypatch):
    size, how = (2000, 2000), {"moments": "file", "tile": 512}
    inside = plan(G, monkeypatch, [limits.Headroom(10**11, limits.ADDRESSES, True)], size, **how)
    outside = plan(G, monkeypatch, [ROOMY], size, **how)
    assert inside.needs["Adam's moments"] == 4 * outside.needs["Adam's moments"]


def test_limits_of_the_process():
    code = "from hrlib.tiling import limits; print(limits.process_limits())"
    limited = f"import resource as r; r.setrlimit(r.RLIMIT_AS, (8 * 10**9,) * 2); {code}"
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=True)
    assert "ulimit -v" in done.stdout and "ulimit -d" not in done.stdout
    free = int(done.stdout.split("free=")[1].split(",")[0])
    assert 10**9 < free < 8 * 10**9, "what is used already is subtracted"


def test_control_groups_of_version_2(tmp_path):
    proc, mount = tmp_path / "cgroup", tmp_path / "fs"
    proc.write_text("0::/slurm/job/step\n")
    group(mount, memory_stat="inactive_file 0")
    group(mount / "slurm/job/step", memory_max="max", memory_high="max", memory_current=7)
    assert limits.group_limits(proc, mount) == []
    group(mount / "slurm/job", memory_max=1000, memory_high=900, memory_current=500, memory_stat="inactive_file 100")
    ((free, limit, hard),) = limits.group_limits(proc, mount)
    assert free == 900 - (500 - 100) and "slurm/job" in limit and hard
    group(mount / "slurm", memory_max=600, memory_current=550)
    assert sorted(headroom.free for headroom in limits.group_limits(proc, mount)) == [50, 500]


def test_control_groups_of_version_1_and_inside_a_container(tmp_path):
    proc, mount = tmp_path / "cgroup", tmp_path / "fs"
    proc.write_text("4:cpu,memory:/docker/abc\n0::/\n")  # the host's path, which is not there inside
    group(
        mount / "memory", memory_limit_in_bytes=2000, memory_usage_in_bytes=700, memory_stat="total_inactive_file 200"
    )
    assert [headroom.free for headroom in limits.group_limits(proc, mount)] == [1500]
    group(mount / "memory", memory_limit_in_bytes=9223372036854771712)
    assert limits.group_limits(proc, mount) == []
    assert limits.group_limits(tmp_path / "none", mount) == []


@pytest.mark.parametrize("memory", ["nan GB", "-1GB", "0", 0, 0.4, -5, float("nan"), float("inf"), "1.2.3GB", True])
def test_wrong_sizes_of_memory(memory):
    with pytest.raises(InvalidValue, match="memory"):
        budget.bytes_of(memory)


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 0}, {"batch": 1.5}, {"tile": 0}, {"tile": (64, -1)}, {"size": (0, 64)}, {"size": (64, float("nan"))}],
)
def test_numbers_out_of_range(G, monkeypatch, wrong):
    with pytest.raises(InvalidValue, match=next(iter(wrong))):
        plan(G, monkeypatch, [ROOMY], **wrong)
    for name in ("keep", "moments"):
        with pytest.raises(UnknownName, match=name):
            plan(G, monkeypatch, [ROOMY], **{name: "files"})
