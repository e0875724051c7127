"""Reading notebooks and profiles.yaml: what `hrlab run` takes its values from, and what it says of slips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hrlib import lab
from hrlib.errors import BatchError, InvalidValue, UnknownName
from hrlib.lab import notebook, place, yamls
from hrlib.runner import batch, cache

ROOT = Path(__file__).resolve().parents[1]


def edit(path: Path, change) -> None:
    """Rewrite the parameters cell, as JupyterLab saves it: {name: value} -> source."""
    content = json.loads(path.read_text())
    (cell,) = [c for c in content["cells"] if "parameters" in c["metadata"].get("tags", [])]
    cell["source"] = change(notebook.read(path).cell)
    path.write_text(json.dumps(content))


def lines(values: dict) -> str:
    return "\n".join(f"{name} = {value!r}" for name, value in values.items())


@pytest.mark.parametrize("name", ["00_start_here", "02_loss_diagnostics", "05_cross_domain_synthesis"])
@pytest.mark.parametrize(
    "change",
    [
        lambda cell: lines({**cell, "seed": 7, "device": "cpu", "perceptual": "imagenet"}),
        lambda cell: lines({k: v for k, v in cell.items() if k != "perceptual"}),  # a line deleted
        lambda cell: lines({**cell, "perceptual": None, "seed": 1.5}),  # other types
    ],
)
def test_an_edited_cell_changes_nothing_that_the_batch_makes(repo, name, change):
    path = repo / "notebooks" / f"{name}.ipynb"
    shutil.copyfile(ROOT / "notebooks" / path.name, path)
    table = yamls.read(ROOT / "notebooks/profiles.yaml")
    (repo / "notebooks/profiles.yaml").write_text(json.dumps({name: table[name]}))
    known = {profile: notebook.effective(profile, notebook.catalogue())[name] for profile in notebook.PROFILES}
    chosen = batch.plan()
    before = cache.inputs(chosen.known[name], chosen.values[name], {}, "laptop")
    edit(path, change)
    for profile, values in known.items():
        chosen = batch.plan(profile=profile)
        assert json.dumps(chosen.values[name], sort_keys=True) == json.dumps(values, sort_keys=True)
    chosen = batch.plan()
    assert cache.inputs(chosen.known[name], chosen.values[name], {}, "laptop") == before
    assert notebook.profile_of(chosen.known[name], known["laptop"]) == "laptop"


def test_the_batch_passes_the_pinned_values(repo, write_notebook):
    """Really run: the notebook's own cell says 9."""
    cells = ["from hrlib import lab\nrun = lab.begin('00_a', globals())\nrun.record('steps', steps)", "run.finish()"]
    write_notebook("00_a", "steps = 9\nnames = ['x']", cells)
    (repo / "notebooks/profiles.yaml").write_text("00_a: {laptop: {steps: 7, names: [y]}, smoke: {steps: 1}}")
    (outcome,) = batch.run(batch.plan(profile="smoke"), tell=lambda text: None)
    assert outcome.state == "done", outcome.error
    (record,) = json.loads((place.figures_folder("smoke") / "00_a/records.json").read_text())
    assert record["value"] == 1


def test_values_that_somebody_tries_out_are_of_no_profile(repo, write_notebook):
    write_notebook("00_a", "steps = 9", [])
    assert lab.begin("00_a", {"steps": 9}).profile == "laptop", "without an entry the cell counts"
    (repo / "notebooks/profiles.yaml").write_text("00_a: {laptop: {steps: 7}, smoke: {steps: 1}}")
    found = {steps: lab.begin("00_a", {"steps": steps}).profile for steps in (7, 1, 9)}
    assert found == {7: "laptop", 1: "smoke", 9: "custom"}


def test_without_an_entry_the_cell_counts(repo, write_notebook):
    write_notebook("00_a", "steps = 9\nrate = 0.5", [])
    assert batch.plan().values["00_a"] == {"steps": 9, "rate": 0.5}
    (repo / "notebooks/profiles.yaml").write_text("00_a: {smoke: {rate: 1}}")
    assert batch.plan(profile="smoke").values["00_a"] == {"steps": 9, "rate": 1}
    (repo / "notebooks/profiles.yaml").write_text("00_a: {laptop: {steps: 7}}")
    assert batch.plan().values["00_a"] == {"steps": 7, "rate": 0.5}, "a parameter that nobody pinned is of the cell"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("00_a:\n\tsmoke:\n", 2, "cannot start any token"),
        ("00_a: 5\n", 1, "'5' where a mapping belongs"),
        ("00_a:\n  smoke: [1]\n", 2, "where a mapping belongs"),
        ("- 00_a\n", 1, "where a mapping belongs"),
        ("00_a:\n  smoke: {steps: 1}\n  smoke: {steps: 2}\n", 3, "'smoke' is given twice (first in line 2)"),
        ("00_a: {}\n00_a: {}\n", 2, "given twice"),
        ("00_a:\n  smoke:\n    insets: {a: 1,\n             a: 2}\n", 4, "given twice"),
        ("00_a: {smoke: {steps: 1}\n", 2, "expected"),
        ("00_a: &x\n  smoke: *x\n", 1, "contains itself"),
        ("00_a:\n  smoke: {steps: 2020-13-45}\n", 0, "month"),
    ],
)
def test_slips_in_yaml_are_one_error_with_the_line(repo, write_notebook, text, line, words):
    write_notebook("00_a", "steps = 7", [])
    (repo / "notebooks/profiles.yaml").write_text(text)
    with pytest.raises(BatchError) as caught:
        batch.plan()
    assert words in str(caught.value) and "profiles.yaml" in str(caught.value)
    assert f"profiles.yaml, line {line}:" in str(caught.value) or not line


def test_a_file_that_is_no_text_is_one_error(tmp_path):
    for content in (b"\xff\xfe\x00", b"a: \x07"):
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(BatchError, match=r"x\.yaml"):
            yamls.read(tmp_path / "x.yaml")
    with pytest.raises(BatchError, match=r"no_such.yaml cannot be read \(No such file(.|\n)*restore it"):
        yamls.read(tmp_path / "no_such.yaml")


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "00_a:\n", "00_a:\n  smoke:\n"])
def test_empty_entries_are_fine(repo, write_notebook, text):
    write_notebook("00_a", "steps = 7", [])
    (repo / "notebooks/profiles.yaml").write_text(text)
    assert batch.plan(profile="smoke").values["00_a"] == {"steps": 7}


@pytest.mark.parametrize(
    ("entry", "words"), [("{smoke: {steps: 2020-01-02}}", "JSON"), ("{smoke: {steps: .nan}}", "JSON")]
)
def test_values_of_yaml_that_are_no_json(repo, write_notebook, entry, words):
    write_notebook("00_a", "steps = None", [])
    (repo / "notebooks/profiles.yaml").write_text(f"00_a: {entry}")
    with pytest.raises(BatchError, match=words):
        batch.plan(profile="smoke")


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("%matplotlib inline\nseed = 1", 1, "%matplotlib inline"),
        ("seed = 1\n!ls", 2, "!ls"),
        ("seed = 1\nlr = ", 2, "lr ="),
        ("seed = 1\n\n  lr = 1", 3, "lr = 1"),
        ("seed = (1", 1, "seed = (1"),
        ("seed = 1\nlr = 1 + 1", 2, "lr = 1 + 1"),
    ],
)
def test_slips_in_the_parameters_cell_are_one_error_with_the_line(write_notebook, source, line, words):
    write_notebook("00_a", source, [])
    with pytest.raises(BatchError) as caught:
        batch.plan(["00_a"])
    assert f"parameters cell of 00_a.ipynb, line {line}: {words}" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "threads"), [("4", 4), ("4,2", 4), (" 3 ", 3), ("1.0", 1), ("0", None), ("many", None), ("", None)]
)
def test_threads_as_openmp_reads_them(monkeypatch, given, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    found = place.cpus()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert found == (threads or place.cpus())


def test_unknown_profile_in_the_table(repo, write_notebook):
    write_notebook("00_a", "steps = 7", [])
    (repo / "notebooks/profiles.yaml").write_text("00_a: {smok: {steps: 1}}")
    with pytest.raises(UnknownName, match="smok"):
        batch.plan()


@pytest.mark.parametrize(
    ("entry", "error", "words"),
    [
        ("{seeds: 1, lr: 0.1, size: 8}", UnknownName, "did you mean 'seed'"),
        ("{seed: x, lr: 0.1, size: 8}", InvalidValue, "JSON type string"),
        ("{seed: [1], lr: 0.1, size: 8}", InvalidValue, "JSON type list"),
        ("{seed: 1, lr: true, size: 8}", InvalidValue, "JSON type boolean"),
        ("{1: 2}", BatchError, "1 = 2"),
    ],
)
def test_slips_in_a_laptop_entry_are_errors(repo, write_notebook, entry, error, words):
    write_notebook("00_a", "seed = 0\nlr = 0.5\nsize = None", [])
    (repo / "notebooks/profiles.yaml").write_text(f"00_a: {{laptop: {entry}}}")
    for profile in notebook.PROFILES:
        with pytest.raises(error, match=words):
            batch.plan(profile=profile)


@pytest.mark.parametrize("cell", ["seed = 1.5\nlr = 1", "seed = None", "seed = 3\nlr = None"])
def test_what_somebody_tries_out_in_the_cell_stops_no_run(repo, write_notebook, cell):
    write_notebook("00_a", cell, [])
    (repo / "notebooks/profiles.yaml").write_text("00_a: {laptop: {seed: 0, lr: 0.5}}")
    assert batch.plan().values["00_a"] == {"seed": 0, "lr": 0.5}


def test_planned_notebooks(repo, write_notebook):
    assert notebook.planned() == {}
    write_notebook("00_a", "seed = 0", [])
    text = "01_b: {title: To come, section: IV-C, needs: [00_a]}\n00_a: {title: Is there}\n02_c:\n"
    (repo / "notebooks/planned.yaml").write_text(text)
    planned = notebook.planned()
    assert list(planned) == ["01_b", "02_c"] and list(notebook.catalogue()) == ["00_a"]
    assert (planned["01_b"].title, planned["01_b"].needs, planned["02_c"].title) == ("To come", ("00_a",), "02_c")
    for text, words in (("01_b: {title: 5}", "planned.yaml, 01_b: title = 5"), ("01_b: x", "where a mapping belongs")):
        (repo / "notebooks/planned.yaml").write_text(text)
        with pytest.raises(BatchError, match=words):
            notebook.planned()
