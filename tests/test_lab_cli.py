"""The command `hrlab`, and notebooks run without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hrlib import weights
from hrlib.cli import app, main
from hrlib.lab import doctor, sweeps

ROOT = Path(__file__).resolve().parents[1]


def hrlab(*arguments: str):
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_list_plan_and_figures(write_notebook):
    write_notebook("00_a", "steps = 7", [], title="First", section="III-B", makes=["fig"], minutes={"laptop": 2.5})
    assert all(word in hrlab("list").stdout for word in ("00_a", "First", "III-B", "laptop 2.5", "fig"))
    done = hrlab("plan")
    assert done.exit_code == 0 and "run (not run yet)" in done.stdout and "2.5" in done.stdout
    done = hrlab("figures")
    assert done.exit_code == 1 and "not made" in done.stdout


def test_run_says_what_failed_and_fails(write_notebook, repo):
    write_notebook("00_a", "steps = 7", ["raise ValueError('a clear reason')"])
    done = hrlab("run", "00")
    assert done.exit_code == 1
    assert "00_a failed, cell 1: ValueError: a clear reason" in done.stderr
    assert "try again: hrlab run 00_a" in done.stderr and "0 of 1 notebooks good" in done.stdout
    assert json.loads((repo / "figures/status.json").read_text())["notebooks"]["00_a"]["state"] == "failed"


def test_run_takes_the_sweeps_to_a_scheduler(write_notebook, repo, monkeypatch):
    monkeypatch.setenv(sweeps.ENVIRONMENT, "")  # put back what the command sets
    begin = "import os\nfrom hrlib import lab\nrun = lab.begin('00_a', globals())\n"
    cell = begin + f"run.record('asked', os.environ['{sweeps.ENVIRONMENT}'])"
    write_notebook("00_a", "steps = 7", [cell, "run.finish()"])
    assert hrlab("run", "00", "--scheduler", "tcp://10.0.0.5:8786").exit_code == 0
    (record,) = json.loads((repo / "figures/00_a/records.json").read_text())
    assert record["value"] == "tcp://10.0.0.5:8786"


def test_errors_of_ours_are_messages(repo, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hrlab", "run", "77"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert (
        err.startswith("UnknownName: notebook '77' does not exist") and "what to do" in err and "Traceback" not in err
    )


def test_doctor_counts_what_is_missing(write_notebook, monkeypatch):
    write_notebook("00_a", "generator = 'a-net'", [])
    entries = {
        name: weights.Entry(
            name=name, kind=kind, file=f"weights/{name}", licence="MIT", origin="us", profile="paper", prepare="ask us"
        )
        for name, kind in (("a-net", "network"), ("b-net", "network"), ("faces", "dataset"))
    }
    state = dict.fromkeys(entries, "missing")
    monkeypatch.setattr(weights, "catalogue", lambda: entries)
    monkeypatch.setattr(weights, "status", state.get)
    monkeypatch.setattr(doctor, "_packages", lambda: iter(()))
    done = hrlab("doctor")
    assert done.exit_code == 1 and "a-net: missing" in done.stdout and "ask us" in done.stdout
    assert "b-net" not in done.stdout, "the laptop profile does not ask for it"
    state["a-net"] = "unverified"
    done = hrlab("doctor", "--profile", "paper")
    assert "✗" not in done.stdout.split("weights a-net")[1] and "○ weights b-net: missing" in done.stdout
    assert "data set faces" in done.stdout
    state["a-net"] = "damaged"
    assert hrlab("doctor").exit_code == 1


def test_doctor_knows_the_environment(repo):
    (repo / "requirements.lock").write_text("numpy==0.0.1\nno-such-package==1\n")
    found = {f.what: f for f in doctor._packages()}
    assert not found["packages"].good and "no-such-package missing" in found["packages"].found
    assert found["Jupyter kernel"].good


def test_convert_hands_over(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(weights, "convert", lambda src, dst, which: seen.append((src, dst, which)))
    assert hrlab("convert", str(tmp_path / "net.pkl")).exit_code == 0
    assert hrlab("convert", str(tmp_path / "faces.pth"), "--which", "identity").exit_code == 0
    assert seen == [
        (tmp_path / "net.pkl", tmp_path / "net.safetensors", "G_ema"),
        (tmp_path / "faces.pth", tmp_path / "faces.safetensors", "identity"),
    ]


def test_train_is_a_command_of_its_own():
    done = subprocess.run(
        [sys.executable, "-m", "hrlib.cli", "train", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "hrlab train" in done.stdout


def test_a_notebook_also_runs_by_the_plain_papermill_command(repo, write_notebook):
    cells = [
        "from hrlib import lab\nrun = lab.begin('00_a', globals())\nrun.record('steps', steps)",
        "for i in lab.progress(range(50), label='counting'): pass",
        "run.finish()",
    ]
    path = write_notebook("00_a", "steps = 7", cells)
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(path),
        str(repo / "out.ipynb"),
        "-k",
        "python3",
        "-p",
        "steps",
        "9",
    ]
    environment = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", "IPYTHONDIR": str(repo / "ipython")}
    subprocess.run(command, cwd=repo, env=environment, check=True, capture_output=True)
    records = json.loads((repo / "build/figures-custom/00_a/records.json").read_text())
    assert records[0]["value"] == 9
    outputs = [c["outputs"] for c in json.loads((repo / "out.ipynb").read_text())["cells"]]
    text = "".join("".join(o.get("text", "")) for cell in outputs for o in cell)
    assert text.count("counting: 50 steps") == 1 and "counting: 1" not in text
