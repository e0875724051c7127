"""Did the numbers move? Each kind of change, the tolerance of each kind of record, and a verdict that turns."""

from __future__ import annotations

import json
import subprocess

import pytest
from typer.testing import CliRunner

from hrlib.cli import app
from hrlib.errors import BatchError, StoreError
from hrlib.lab.records import Records
from hrlib.runner import compare
from hrlib.runner.compare import ALONE, BEYOND, GONE, NEW, SAME, WITHIN


def recorded(**rows: dict) -> dict[str, dict]:
    records = Records()
    for key, row in rows.items():
        records.add(key, **row)
    return {row["key"]: row for row in records.rows()}


def kind(before: dict | None, after: dict | None) -> str | None:
    sides = (recorded(**({"k": row} if row else {})) for row in (before, after))
    found = compare.changes(*sides)
    return found[0].kind if found else None


MEAN = {"value": 10.0, "n": 4, "spread": 2.0}


@pytest.mark.parametrize(
    ("before", "after", "right"),
    [
        (MEAN, MEAN, SAME),
        (MEAN, MEAN | {"value": 10.0 + 1e-7}, SAME),
        (MEAN | {"interval": (9.0, 11.0)}, MEAN | {"value": 10.9}, WITHIN),
        (MEAN | {"interval": (9.0, 11.0)}, MEAN | {"value": 11.1}, BEYOND),
        (MEAN, MEAN | {"value": 13.1}, WITHIN),  # t_3(.975) = 3.18, times 2 / sqrt 4
        (MEAN, MEAN | {"value": 13.3}, BEYOND),
        (MEAN | {"n": 100}, MEAN | {"value": 10.3, "n": 100}, WITHIN),
        (MEAN | {"n": 100}, MEAN | {"value": 10.5, "n": 100}, BEYOND),
        ({"value": 10.0}, {"value": 10.05}, WITHIN),
        ({"value": 10.0}, {"value": 10.2}, ALONE),
        ({"value": -10.0}, {"value": 10.0}, ALONE),
        ({"value": 30_000}, {"value": 30_100}, WITHIN),
        ({"value": True}, {"value": True}, SAME),
        ({"value": True}, {"value": False}, BEYOND),
        ({"value": True}, {"value": 1.0}, BEYOND),
        ({"value": "a"}, {"value": "b"}, BEYOND),
        (MEAN, MEAN | {"n": 5}, BEYOND),
        (MEAN, MEAN | {"unit": "dB"}, BEYOND),
        (None, MEAN, NEW),
        (MEAN, None, GONE),
        ({"value": 3.0, "volatile": True}, {"value": 9.0, "volatile": True}, None),
    ],
)
def test_each_kind_of_change(before, after, right):
    assert kind(before, after) == right


def test_a_rate_of_one_has_an_interval_of_no_width_and_may_still_move_by_a_hundredth():
    rate = {"value": 1.0, "n": 500, "spread": 0.0, "interval": (1.0, 1.0)}
    assert kind(rate, rate | {"value": 0.995}) == WITHIN and kind(rate, rate | {"value": 0.95}) == BEYOND


def test_a_verdict_that_turns_is_told_at_either_scale():
    key = "at_1024/reduced_minus_full/psnr"
    row = {"n": 6, "spread": 1.0}
    small = {"psnr_gain/full_over_reduced": row | {"value": 5.0}, "psnr_gain/full_over_regularised": row | {"value": 5}}
    before = recorded(
        **small, **{key: row | {"value": -5.0}, "at_1024/full_minus_regularised/psnr": row | {"value": 5}}
    )
    after = before | recorded(**{key: row | {"value": 5.0}})
    stated = [claim for claim in compare.claims.load() if claim.notebook == "02_loss_diagnostics"]
    told = compare.verdicts(stated, before, after)
    assert told == [("full-input-restores-detail at 1024 px", "reproduced", "partly")]
    one = compare.Comparison("02_loss_diagnostics", compare.changes(before, after), told)
    assert (
        [c.key for c in one.told] == [key]
        and "3 the same, 1 beyond" in one.summary()
        and "reproduced -> partly" in one.summary()
    )
    assert "| `at_1024/reduced_minus_full/psnr` | beyond | -5 | 5 | ± 1 |" in compare.markdown([one])
    assert not compare.Comparison("x", compare.changes(before, before), []).told
    lone = compare.Comparison("x", compare.changes(recorded(k={"value": 1.0}), recorded(k={"value": 9.0})), [])
    assert "| `k` | without a spread | 1 | 9 | ± 0.01 |" in compare.markdown([lone])


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small repository with one notebook's committed records."""
    home = tmp_path / "figures" / "00_start_here"
    home.mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    (home / "records.json").write_text(json.dumps(list(recorded(k=MEAN).values())))
    git = lambda *words: subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "x")
    monkeypatch.setenv("HRLAB_ROOT", str(tmp_path))
    monkeypatch.setattr(compare.claims, "load", lambda: [])
    return home


def test_against_a_commit(clone):
    (found,) = compare.compare(["00_start_here"])
    assert [c.kind for c in found.changes] == [SAME]
    (clone / "records.json").write_text(json.dumps(list(recorded(k=MEAN | {"value": 20.0}, new=MEAN).values())))
    (found,) = compare.compare(["00_start_here"])
    assert [c.kind for c in found.changes] == [BEYOND, NEW]
    (none,) = compare.compare(["01_style_inr_gan"])
    assert none.summary() == "01_style_inr_gan: 0 numbers"
    (clone / "records.json").unlink()
    (gone,) = compare.compare(["00_start_here"])
    assert [c.kind for c in gone.changes] == [GONE]
    with pytest.raises(BatchError, match="no commit 'nowhere'"):
        compare.compare(revision="nowhere")


@pytest.mark.parametrize("text", ["{[", '{"a": 1}', '[{"key": "a"}]', '[{"key": "a", "value": 1.0, "m": 2}]'])
def test_damaged_commits_are_told(clone, text):
    (clone / "records.json").write_text(text)
    git = ["git", "-C", clone, "-c", "user.name=a", "-c", "user.email=b", "commit", "-qam", "x"]
    subprocess.run(git, check=True, capture_output=True)
    (clone / "records.json").write_text(json.dumps(list(recorded(k=MEAN).values())))
    with pytest.raises(StoreError, match=r"HEAD:\./figures/00_start_here/records\.json is not a list"):
        compare.compare(["00_start_here"])
    old = compare.compare(["00_start_here"], revision="HEAD~1")
    assert [c.kind for c in old[0].changes] == [SAME]


def test_the_command_compares_the_committed_results(tmp_path):
    page = tmp_path / "page.md"
    said = CliRunner().invoke(app, ["compare", "05", "--page", str(page)])
    assert said.exit_code == 0, said.output
    assert said.output.startswith("05_cross_domain_synthesis: ")
    assert "## 05_cross_domain_synthesis" in page.read_text()
    page.write_text("mine")
    with pytest.raises(StoreError, match="is there already"):
        CliRunner().invoke(app, ["compare", "05", "--page", str(page)], catch_exceptions=False)
    assert page.read_text() == "mine"
    assert (
        CliRunner()
        .invoke(app, ["compare", "05", "05_cross_domain_synthesis", "--page", str(page), "--force"])
        .exit_code
        == 0
    )
    assert page.read_text().count("## 05_cross_domain_synthesis") == 1
