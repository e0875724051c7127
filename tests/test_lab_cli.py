"""The command `hrlab`, and notebooks run without it."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hrlib import retrieval, store, weights
from hrlib.cli import app, main, methods
from hrlib.errors import BatchError, InvalidValue, MissingWeights, UnknownName
from hrlib.experiments import galleries, panoramas, sweep_workers
from hrlib.experiments import own_size as own
from hrlib.lab import notebook
from hrlib.runner import batch, doctor
from hrlib.training.cli import app as training
from hrlib.weights import download, files

ROOT = Path(__file__).resolve().parents[1]


def hrlab(*arguments: str):
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_list_plan_and_figures(write_notebook):
    write_notebook("00_a", "steps = 7", [], title="First", section="III-B", makes=["fig"], minutes={"laptop": 2.5})
    words = ("00_a", "First", "III-B", "laptop 2.5", "figures", "not run yet")
    assert all(word in hrlab("list").stdout for word in words)
    done = hrlab("plan")
    assert done.exit_code == 0 and "run (not run yet)" in done.stdout and "2.5" in done.stdout
    done = hrlab("figures")
    assert done.exit_code == 1 and "not made" in done.stdout and " fig " in done.stdout


def test_list_and_plan_say_whether_figures_are_up_to_date(write_notebook, monkeypatch):
    """What the cache finds is what they show."""
    write_notebook("00_good", "steps = 7", [])
    write_notebook("01_old", "steps = 7", [])
    why = {"00_good": "", "01_old": "made by an earlier version"}
    monkeypatch.setattr(batch.Plan, "why", lambda self, name: why[name])
    shown = hrlab("list").stdout
    assert shown.count("up to date") == 1 and "earlier" in shown
    planned = hrlab("plan").stdout
    assert "up to date" in planned and "run (made by an earlier version)" in planned


def test_names_are_whole_on_a_narrow_terminal():
    """They are what the reader types next."""
    for command in ("list", "plan"):
        assert all(name in hrlab(command).stdout for name in notebook.catalogue())


@pytest.mark.parametrize(
    "options", [("--timeout", "nan"), ("--timeout", "-1"), ("--timeout", "inf"), ("--jobs", "0"), ("--jobs", "-2")]
)
def test_numbers_of_run_are_checked_before_work(write_notebook, options):
    write_notebook("00_a", "steps = 7", ["raise ValueError"])
    with pytest.raises(InvalidValue, match=options[0]):
        hrlab("run", "00", *options)


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "library", "same"),
    [
        (methods.invert, panoramas.Settings, {"generator", "seed"}),
        (methods.invert, panoramas.reconstruct_into, {"every", "force"}),
        (methods.build_gallery, galleries.build, {"perceptual", "num_steps", "lr", "lam_mse", "fit", "workers"}),
        (methods.id_retrieval, retrieval.evaluate, {"face", "batch", "threshold"}),
    ],
)
def test_defaults_are_the_librarys(command, library, same):
    """The commands repeat them: to read them from the library, help would have to import torch."""
    here, there = (inspect.signature(f).parameters for f in (command, library))
    assert {name: here[name].default for name in same} == {name: there[name].default for name in same}


def test_defaults_of_both_ways_of_invert_are_in_its_help():
    command = typer.main.get_command(app).commands["invert"]
    said = {p.name: re.findall(r"[0-9.]*[0-9]", p.help) for p in command.params if p.param_type_name == "option"}
    any_size, own_size = panoramas.Settings(), own.Settings(image="", generator="")
    for name, (one, other) in {"num_steps": ("num_steps",) * 2, "lr": ("lr",) * 2, "mse": ("mse", "lam_mse")}.items():
        assert [float(v) for v in said[name]] == [getattr(any_size, one), getattr(own_size, other)], name


@pytest.mark.parametrize("top", [app, training])
def test_arguments_are_named_in_capitals_without_brackets(top):
    """Typer adds the brackets and the dots."""
    commands = list(typer.main.get_command(top).commands.values())
    commands += [inner for c in commands for inner in getattr(c, "commands", {}).values()]
    named = {(c.name, p.name): p.metavar or "" for c in commands for p in c.params if p.param_type_name == "argument"}
    assert named and all(metavar.isalpha() and metavar.isupper() for metavar in named.values()), named


def test_train_has_no_options_of_typers():
    assert "completion" not in hrlab("train", "--help").stdout


# --- notebooks that are none ------------------------------------------------------------------------------------------


def strays(repo: Path) -> dict[str, str]:
    """Files that turn up in notebooks/: file name -> what is said of it ("": nothing, it is hidden)."""
    plain = json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    files = {
        "Untitled.ipynb": (plain.encode(), "no `hrlab` entry"),
        "damaged.ipynb": (b"{<<<<<<< HEAD", "cannot be read as a notebook"),
        "latin.ipynb": (b"\xff\xfe", "cannot be read as a notebook"),
        "list.ipynb": (b"[]", "cannot be read as a notebook"),
        "odd.ipynb": (b'{"cells": [{"cell_type": "code"}], "metadata": {}}', "cannot be read as a notebook"),
        "words.ipynb": (b'{"cells": [], "metadata": {"hrlab": {"makes": 5}}}', "makes = 5"),
        "._00_a.ipynb": (b"x", ""),
        ".hidden.ipynb": (plain.encode(), ""),
    }
    for name, (content, _) in files.items():
        (repo / "notebooks" / name).write_bytes(content)
    return {name: said for name, (_, said) in files.items()}


def test_stray_notebooks_stop_nothing(write_notebook, repo, monkeypatch):
    write_notebook("00_a", "steps = 7", [])
    said = strays(repo)
    monkeypatch.setattr(doctor, "_packages", lambda profile: iter(()))
    monkeypatch.setattr(weights, "catalogue", dict)
    for command in ("list", "plan"):
        done = hrlab(command)
        assert done.exit_code == 0 and "00_a" in done.stdout
        for name, words in said.items():
            assert (f"left out: notebooks/{name}" in done.stderr) == bool(words) and words in done.stderr
    assert hrlab("plan", "00").stderr == "" and "00_a" in hrlab("figures").output
    done = hrlab("doctor")
    assert done.exit_code == 0 and "notebook Untitled: left out" in done.stdout
    for name, words in said.items():
        if words:
            with pytest.raises(BatchError, match=words):
                hrlab("run", name)
    with pytest.raises(UnknownName, match="does not exist"):
        hrlab("run", ".hidden.ipynb")


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"minutes": {"laptop": "x"}}, "minutes = {'laptop': 'x'}"),
        ({"minutes": {"laptop": None}}, "minutes = {'laptop': None}"),
        ({"needs": [1]}, "needs = [1]"),
        ({"makes": [1]}, "makes = [1]"),
        ({"title": 5}, "title = 5"),
        ({"needs": ["nope"]}, "01_b.ipynb needs 'nope'"),
        ({"needs": ["01_b"]}, "01_b.ipynb needs '01_b'"),
        ({"needs": ["01"]}, "01_b.ipynb needs '01'"),
    ],
)
def test_bad_metadata_stops_nothing_but_what_needs_it(write_notebook, meta, words):
    write_notebook("00_a", "steps = 7", [])
    write_notebook("01_b", "steps = 7", [], **meta)
    write_notebook("02_c", "steps = 7", [], needs=["01_b"])
    for command in ("list", "plan"):
        done = hrlab(command)
        assert done.exit_code == 0 and "00_a" in done.stdout and "01_b" not in done.stdout
        (line,) = [x for x in done.stderr.splitlines() if x.startswith("left out: notebooks/01_b.ipynb")]
        assert words in line
        assert "left out: notebooks/02_c.ipynb (02_c.ipynb needs '01_b')" in done.stderr
    with pytest.raises(BatchError, match="01_b"):
        hrlab("plan", "01")


def test_titles_captions_and_names_are_no_markup(write_notebook, repo):
    write_notebook("00_[b]", "steps = 7", [], title="[/red]x", section="[/i]", makes=["fig"])
    side = {"kind": "figure", "name": "fig", "files": {"fig.png": "0"}, "caption": "[/red]y", "alt": "words"}
    (repo / "figures/00_[b]").mkdir(parents=True)
    (repo / "figures/00_[b]/fig.json").write_text(json.dumps(side))
    listed = hrlab("list").stdout
    assert "[/red]x" in listed and "[/i]" in listed
    assert "00_[b]" in hrlab("plan").stdout and "[/red]y" in hrlab("figures").stdout


def test_copies_that_jupyterlab_makes_are_left_out(write_notebook):
    for name in ("00_start_here", "00_start_here-Copy1", "00_start_here-Copy12"):
        write_notebook(name, "steps = 7", [])
    assert batch.plan(["00"]).order == batch.plan().order == ("00_start_here",)
    assert hrlab("plan").stderr.count("a copy that JupyterLab named") == 2
    with pytest.raises(BatchError, match="a copy that JupyterLab named"):
        hrlab("run", "00_start_here-Copy1")


def test_claims_without_a_file_of_claims(repo):
    with pytest.raises(BatchError, match=r"claims.yaml cannot be read \(No such file"):
        hrlab("claims")


def test_a_notebook_of_the_house_that_is_damaged_is_no_stray(write_notebook, repo, monkeypatch):
    write_notebook("00_a", "steps = 7", [])
    write_notebook("01_b", "%matplotlib inline\nsteps = 7", [])
    (repo / "notebooks/profiles.yaml").write_text("01_b: {laptop: {steps: 7}}")
    monkeypatch.setattr(batch, "run", lambda chosen, **_: [batch.Job(name, "done") for name in chosen.order])
    done = hrlab("run")
    assert done.exit_code == 1 and "1 of 1 notebooks good" in done.stdout
    assert "left out: notebooks/01_b.ipynb (parameters cell of 01_b.ipynb, line 1: %matplotlib inline" in done.stderr
    with pytest.raises(BatchError, match="line 1: %matplotlib"):
        hrlab("plan", "01")


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("forked")
def test_run_says_what_failed_and_fails(write_notebook, repo):
    write_notebook("00_a", "steps = 7", ["raise ValueError('a clear reason')"])
    done = hrlab("run", "00")
    assert done.exit_code == 1
    assert "00_a failed, cell 1: ValueError: a clear reason" in done.stderr
    assert "try again: hrlab run 00_a" in done.stderr and "0 of 1 notebooks good" in done.stdout
    assert not list((repo / "figures").iterdir()), "a failure changes nothing among the results"
    assert json.loads((repo / "build/runs/laptop.json").read_text())["00_a"]["error"]["name"] == "ValueError"


@pytest.mark.usefixtures("forked")
def test_run_takes_the_sweeps_to_a_scheduler(write_notebook, repo, monkeypatch):
    monkeypatch.setenv(sweep_workers.ENVIRONMENT, "")  # put back what the command sets
    begin = "import os\nfrom hrlib import lab\nrun = lab.begin('00_a', globals())\n"
    cell = begin + f"run.record('asked', os.environ['{sweep_workers.ENVIRONMENT}'])"
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


def test_errors_of_the_file_system_are_messages(monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "build/hashes.json")

    monkeypatch.setattr(batch, "plan", full)
    monkeypatch.setattr(sys, "argv", ["hrlab", "plan"])
    with pytest.raises(SystemExit) as caught:
        main()
    err = capsys.readouterr().err
    assert caught.value.code == 2 and "No space left on device: 'build/hashes.json'" in err and "what to do" in err


@pytest.mark.parametrize(
    ("command", "target", "goes_on"),
    [
        (("run",), "hrlib.runner.batch.plan", True),
        (("train", "pose"), "hrlib.training.pose.run", True),
        (("list",), "hrlib.runner.batch.plan", False),
        (("doctor",), "hrlib.runner.doctor.examine", False),
    ],
)
def test_an_interruption_says_whether_the_command_goes_on(monkeypatch, command, target, goes_on):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(target, interrupted)
    done = hrlab(*command)
    assert done.exit_code == 130 and done.stderr.startswith("interrupted")
    assert ("same command" in done.stderr) == goes_on


def test_wrong_options_of_train_are_messages():
    for arguments in (("train", "gan", "--nope"), ("train", "gan"), ("train", "nothing")):
        done = hrlab(*arguments)
        assert done.exit_code == 2 and "Error" in done.stderr and "Traceback" not in done.output


# --- doctor and fetch -------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(doctor, "_packages", lambda profile: iter(()))
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
    found = {f.what: f for f in doctor._packages("laptop")}
    assert not found["packages"].good and "no-such-package missing" in found["packages"].found
    assert "packages of real networks" not in found
    (repo / "requirements-faces.lock").write_text("no-such-face==2 \\\n    --hash=sha256:00\n")
    faces = {f.what: f for f in doctor._packages("ffhq")}["packages of real networks"]
    assert not faces.good and "no-such-face missing (lock: 2)" in faces.found and "make faces" in faces.do
    assert found["Jupyter kernel"].good


def test_doctor_takes_no_domain_for_a_data_set(monkeypatch):
    """The shipped notebooks name "anime" and "caricature" as domains: nothing is missing at the default profile."""
    monkeypatch.setattr(doctor, "_packages", lambda profile: iter(()))
    monkeypatch.setattr(doctor, "_machine", lambda profile: iter(()))
    done = hrlab("doctor")
    assert done.exit_code == 0 and "data set" not in done.stdout and "✗" not in done.stdout


def test_doctor_finds_everything_that_the_paper_profile_uses():
    known = notebook.catalogue()
    wanted = notebook.effective("paper", known)
    used = {f.what.split()[-1] for f in doctor._catalogued(wanted, "paper") if f.needed}
    paper = {name for name, e in weights.catalogue().items() if e.profile == "paper"}
    nobodys = {"ffhq", "alexnet_imagenet", "stylegan2_ffhq_original", "cips3d_cartoon", "dualstylegan_encoder"}
    nobodys |= {"starganv2_celeba_hq", "starganv2_wing"}
    nobodys |= {f"dualstylegan_{style}_codes" for style in ("cartoon", "caricature", "anime")}
    assert paper - used == nobodys


def test_every_word_of_doctor_is_of_the_catalogue():
    known = weights.catalogue()
    assert set(doctor.WORDS.values()) | {f"{trunk}_imagenet" for trunk in doctor.TRUNKS} <= set(known)


@pytest.mark.parametrize(
    ("values", "used"),
    [
        ({"generator": "a-net"}, {"a-net"}),
        ({"targets": {"anime": {"generator": "b-net"}}}, {"b-net"}),
        ({"domains": ["anime"]}, set()),
        ({"anime": 1}, set()),
        ({"images": ["folder:data/sets/anime"]}, {"anime"}),
        ({"image": "file:data/sets/anime/0.png"}, {"anime"}),
        ({"image": "file:data/sets/anime_hair/0.png"}, set()),
        ({"net": "{}-net", "targets": {"a": 1}}, {"a-net"}),
        ({"perceptual": "imagenet", "losses": ["deit", "vgg_relu"]}, {"vgg16_imagenet", "deit_imagenet"}),
        ({"perceptual": "shipped", "losses": ["deit"]}, set()),
    ],
)
def test_what_parameters_use(values, used):
    known = {"a-net", "b-net", "anime", "vgg16_imagenet", "deit_imagenet"}
    assert doctor._used(values, {"anime": "sets/anime"}) & known == used


@pytest.fixture
def catalogued(monkeypatch, tmp_path):
    """A catalogue of a file with a link, one without, and one that ships."""
    common = dict(kind="network", licence="CC0", origin="us")
    entries = [
        weights.Entry(name="linked", file="linked.bin", profile="paper", url="https://example.org/linked", **common),
        weights.Entry(name="by-hand", file="by-hand.bin", profile="paper", prepare="Ask us", **common),
        weights.Entry(name="shipped", file="shipped.bin", profile="laptop", **common),
    ]
    (tmp_path / "shipped.bin").write_bytes(b"1")
    monkeypatch.setattr(files, "DATA", tmp_path)
    monkeypatch.delenv("HRLIB_DATA", raising=False)
    monkeypatch.setattr(files, "catalogue", lambda: {e.name: e for e in entries})
    asked: list[str] = []

    def downloaded(url, target, **_):
        asked.append(url)
        store.write_bytes(target, b"2")

    monkeypatch.setattr(download, "download", downloaded)
    return asked


def test_fetch_downloads_and_says_what_and_where(catalogued, tmp_path):
    done = hrlab("fetch", "linked", "shipped")
    assert done.exit_code == 0 and catalogued == ["https://example.org/linked"]
    for words in ("linked: from us; licence: CC0", str(tmp_path / "linked.bin"), str(tmp_path / "shipped.bin")):
        assert words in done.stdout
    assert hrlab("fetch", "linked").exit_code == 0 and len(catalogued) == 1, "it is there"


@pytest.mark.parametrize(
    ("name", "error", "words"), [("linkd", UnknownName, "linked"), ("by-hand", MissingWeights, "Ask us")]
)
def test_fetch_looks_at_all_names_before_it_downloads(catalogued, name, error, words):
    with pytest.raises(error, match=words):
        hrlab("fetch", "linked", name)
    assert catalogued == []


def test_convert_hands_over(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(weights, "convert", lambda src, dst, **how: seen.append((src, dst, *how.values())))
    assert hrlab("convert", str(tmp_path / "net.pkl")).exit_code == 0
    assert hrlab("convert", str(tmp_path / "faces.pth"), "--which", "identity").exit_code == 0
    assert hrlab("convert", "a.pt", "b", "--half", "--force").exit_code == 0
    assert seen == [
        (tmp_path / "net.pkl", None, "G_ema", False, False),
        (tmp_path / "faces.pth", None, "identity", False, False),
        (Path("a.pt"), Path("b"), "G_ema", True, True),
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
    records = json.loads((repo / "build/live/00_a/records.json").read_text())
    assert records[0]["value"] == 9
    outputs = [c["outputs"] for c in json.loads((repo / "out.ipynb").read_text())["cells"]]
    text = "".join("".join(o.get("text", "")) for cell in outputs for o in cell)
    assert text.count("counting: 50 steps") == 1 and "counting: 1" not in text
