"""The recorded runs at 1024 pixels and the script for a GPU: what they list, what they keep, what they need."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hrlib import weights
from hrlib.errors import MissingWeights, StoreError, UnknownName
from hrlib.experiments import at_scale, inversions
from hrlib.experiments.at_scale import FIGURES, Figure
from hrlib.weights import files
from hrlib.worlds.pictures import picture

ROOT = Path(__file__).resolve().parents[1]
needs_packages = pytest.mark.skipif(
    any(weights.status(name) == "missing" for name in (at_scale.GENERATOR, "efficientnet_lite0_imagenet")),
    reason="the packages of real networks are missing: make faces",
)


def test_what_is_recorded_is_the_papers_experiment():
    runs = {name: {repr(run) for run in figure.runs} for name, figure in FIGURES.items()}
    assert all(len(runs[name]) == len(figure.runs) for name, figure in FIGURES.items()), "no run twice"
    assert len(runs["fig1"] & runs["table2"]) == 2 * len(at_scale.PEOPLE), "Table II takes up the runs of Fig. 1"
    assert len(runs["fig4"] & runs["table2"]) == len(at_scale.PEOPLE), (
        "Table II has the codes of Fig. 4, layer by layer"
    )
    settings = [run for name in ("fig1", "fig4", "table2", "fig6", "fig12") for run in FIGURES[name].runs]
    assert {run.size for run in settings} == {1024} and {run.input for run in settings} == {256, 1024}
    assert min(run.num_steps for run in settings) >= 150 and len(at_scale.PEOPLE) >= 6
    assert {run.lam_mse for run in FIGURES["table2"].runs} == {0.0, at_scale.LAM_MSE}
    assert not any("photo" in run.image or "file" in run.image for run in settings), "nobody who exists"


@pytest.fixture
def small(repo, monkeypatch):
    """Recorded runs of a folder of their own, in the small world."""
    monkeypatch.setattr(at_scale, "GENERATOR", "portraits_inr128")
    made = {
        "targets": Figure(at_scale.show, [{"image": f"portrait:{i}", "size": 64} for i in (1, 2)], "targets"),
        "stages": Figure(
            at_scale.stages,
            [{"image": "portrait:1", "loss": "mse", "num_steps": 3, "steps": [1, 3], "size": 128, "shown": 32}],
            "stages",
        ),
        "pivotal": Figure(
            at_scale.tuned,
            [
                {
                    "image": "portrait:1",
                    "loss": "mse",
                    "pivot_steps": 2,
                    "num_steps": 3,
                    "size": 128,
                    "columns": ["psnr", "high_lost"],
                }
            ],
            "pivotal",
        ),
        "oblong": Figure(
            at_scale.oblong,
            [
                {
                    "image": "portrait:1",
                    "loss": "mse",
                    "noise": True,
                    "num_steps": 2,
                    "size": [96, 128],
                    "columns": ["psnr"],
                }
            ],
            "oblong",
        ),
    }
    monkeypatch.setattr(at_scale, "INR", "portraits_inr128")
    monkeypatch.setattr(at_scale, "SIZE", 128)
    monkeypatch.setattr(at_scale, "FIGURES", made)
    return repo / "data" / "recorded"


def test_results_are_read_without_being_made_and_made_once(small, monkeypatch):
    monkeypatch.setattr(weights, "path", lambda name: Path(name))  # the packages need not be there
    with pytest.raises(StoreError, match="none of 2 recorded runs"):
        at_scale.results("targets")
    made = at_scale.results("targets", perform=True, workers=0)
    assert made.performed == 0 and made.image(1).shape == (1, 3, 64, 64)
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    assert at_scale.results("targets", perform=True, workers=0).table["image"].tolist() == ["portrait:1", "portrait:2"]
    assert list(at_scale.originals()) == ["portrait:1", "portrait:2"]
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before
    next(small.glob("targets/*.json")).unlink()
    assert len(at_scale.results("targets").table) == 1, "what is missing is left out"


def test_stages_and_tuning_leave_pictures_and_numbers(small, monkeypatch):
    monkeypatch.setattr(weights, "path", lambda name: ROOT / "data" / "weights" / f"{name}.safetensors")
    stages = at_scale.results("stages", perform=True, workers=0)
    assert not stages.table["error"][0] and stages.table["psnr_3"][0] > stages.table["psnr_1"][0]
    assert stages.file(0, "step_3.webp").read_bytes()[8:12] == b"WEBP"
    tuned = at_scale.results("pivotal", perform=True, workers=0)
    assert tuned.table["psnr"][0] > tuned.table["psnr_of_pivot"][0] and tuned.image(0).shape == (1, 3, 128, 128)
    assert tuned.table["high_lost"][0] > 0


def test_a_picture_that_is_not_square_is_inverted_in_its_shape(small, monkeypatch):
    monkeypatch.setattr(weights, "path", lambda name: ROOT / "data" / "weights" / f"{name}.safetensors")
    oblong = at_scale.results("oblong", perform=True, workers=0)
    assert oblong.image(0).shape == oblong.image(0, "target.webp").shape == (1, 3, 96, 128)
    assert oblong.table["psnr"][0] > 5


@needs_packages
def test_a_person_is_looked_up_among_others(monkeypatch):
    wrong = picture(at_scale.CROWD[0], 512)
    monkeypatch.setattr(at_scale.optim, "solve", lambda run: SimpleNamespace(image=wrong))
    found = at_scale.recognised(image=at_scale.CROWD[1], crowd=3, loss="mse", num_steps=1, size=512)
    assert found.values["rank_another"] == 1 and found.values["distance_another"] < 0.36, "the same person"
    assert found.values["rank_inverted"] > 1 and found.values["distance_inverted"] > 0.36, "somebody else"
    assert len(set(at_scale.CROWD)) == 50 and set(found.files) == {"image.webp"}


def test_without_the_packages_nothing_starts(monkeypatch, repo):
    monkeypatch.setattr(files, "packaged", lambda package, file: Path("/nowhere") / file)
    monkeypatch.setattr(at_scale, "sweep", lambda *_, **__: pytest.fail("something started"))
    with pytest.raises(MissingWeights, match="make faces"):
        at_scale.results("fig1", perform=True)
    with pytest.raises(UnknownName, match="did you mean 'fig1'"):
        at_scale.results("fig_1")


# --- the script for a GPU ---------------------------------------------------------------------------------------------


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """The script, with its folder of networks in a temporary place."""
    spec = importlib.util.spec_from_file_location("on_gpu", ROOT / "benchmarks" / "on_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FACES", tmp_path)
    monkeypatch.setattr(module, "GENERATOR", tmp_path / "generator.safetensors")
    monkeypatch.setattr(module, "NETWORK", tmp_path / "network.safetensors")
    return module


@needs_packages
def test_the_script_for_a_gpu_runs_on_a_cpu_and_goes_on_where_it_stopped(on_gpu, tmp_path, capsys):
    on_gpu.prepare(128, people=1)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 64 << 20, "it travels"
    tiny = {"num_steps": 1, "size": 128, "people": 1, "device": "cpu"}
    out = tmp_path / "out"
    on_gpu.run(out, minutes=0, **tiny)
    assert not list(out.iterdir()) and "tasks are left" in capsys.readouterr().out
    tasks = list(on_gpu.tasks(**tiny))
    assert tasks[0][0] == "timings" and len({name for name, _, _ in tasks}) == len(tasks) == 20
    (out / f"{tasks[0][0]}.json").write_text("{}")
    for name, _, _ in tasks[3:]:
        (out / f"{name}.json").write_text("{}")
    on_gpu.run(out, minutes=10, **tiny)
    assert "all done" in capsys.readouterr().out
    found = json.loads((out / f"{tasks[1][0]}.json").read_text())
    assert found["run"]["image"] == at_scale.PEOPLE[0] and found["run"]["num_steps"] == 1
    assert found["values"]["psnr"] > 3 and (out / f"{tasks[1][0]}_image.webp").exists()
    assert on_gpu.timings(size=128, device="cpu")[0]["values"].keys() >= {"inversion/seconds", "generation/seconds"}


def test_a_settings_field_that_runs_lack_is_noticed():
    """A new field of `inversions.Settings` needs a value in the recorded runs, or all of them would be made again."""
    assert set(inversions.Settings.__dataclass_fields__) == {
        *("image", "loss", "input", "noise", "seed", "generator", "perceptual", "discriminator", "size", "num_steps"),
        *("lr", "eps_initial", "lam_mse", "noise_regularisation", "normalise_noise", "noise_start", "space"),
        *("columns", "lossy", "device"),
    }
