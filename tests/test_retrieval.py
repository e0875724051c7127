"""ID retrieval on folders: the published cases exactly, and every way in which users' folders are wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from hrlib import image, retrieval, stats, weights
from hrlib.cli import app
from hrlib.errors import InvalidValue, ShapeError, StoreError, UnknownName
from hrlib.lab import retrieval_report
from hrlib.nets.ir_se import IRSE

FACES = Path(__file__).parent / "fixtures" / "06_id_retrieval"
CONTENT, TRANSFER = FACES / "eval" / "content", FACES / "eval" / "transfer"


def means(x):
    """A network of a user's own: the colours of the four quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def last(reports):
    *_, report = reports
    return report


@pytest.fixture(scope="module")
def published():
    net = IRSE(channels=[16, 16, 24, 32], units=[2, 2, 3, 2], dim=16).eval()
    return weights.load_strictly(net, weights.load_state(FACES / "ir_se_small.pt")[0], "ir_se_small.pt")


@pytest.fixture
def folders(tmp_path):
    """Three people of plain colours, three pictures of each, all of which are found."""
    g = torch.Generator().manual_seed(0)
    for i, name in enumerate(("ann", "bob", "cyd")):
        base = torch.zeros(1, 3, 16, 16)
        base[:, i] = 0.9
        image.write(base, tmp_path / "content" / f"{name}.png")
        for k in range(3):
            noise = 0.05 * torch.randn(base.shape, generator=g)
            image.write((base + noise).clamp(-1, 1), tmp_path / "stylised" / name / f"{k}.png")
    return tmp_path / "content", tmp_path / "stylised"


# --- the published evaluation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5, 64])
@pytest.mark.parametrize("threshold", [1.5, 0.5])
def test_the_published_folders_give_the_published_numbers(published, threshold, batch):
    report = last(retrieval.evaluate(CONTENT, TRANSFER, published, threshold=threshold, batch=batch))
    with np.load(FACES / "eval_folders_io.npz") as f:
        expected = {k.removeprefix("out/"): f[k] for k in f}
    assert list(report.contents) == expected["content_order"].tolist()
    place = {name: i for i, name in enumerate(report.contents)}
    assert [place[name] for name in report.table["id"]] == expected["label"].tolist()
    assert [place[name] for name in report.table["nearest"]] == expected[f"thr{threshold}/min_idx"].tolist()
    within = [
        i if d <= threshold else -1 for i, d in zip(report.table["nearest"], report.table["distance"], strict=True)
    ]
    theirs = expected[f"thr{threshold}/min_idx_thresholded"].tolist()
    assert [place.get(name, -1) for name in within] == [i if i in place.values() else -1 for i in theirs]
    assert np.abs(report.table["distance"] - expected[f"thr{threshold}/min_dist"]).max() < 2e-5
    printed = [f"{report.rates()[name]:.2%}" for name in ("top1", "top1_within")]
    assert printed == expected[f"thr{threshold}/printed"].tolist()


def test_published_embeddings_give_the_published_rates():
    with np.load(FACES / "embeddings_io.npz") as f:
        given = {k: f[k] for k in f}
    content, transfer, label = (given[f"in/{k}"] for k in ("emb_content", "emb_transfer", "label"))
    plain = retrieval.id_retrieval(content, transfer, label)
    assert plain.nearest.tolist() == given["out/min_idx"].tolist()
    assert plain.distance == pytest.approx(given["out/min_dist"], rel=2e-5)
    assert plain.rate == pytest.approx(float(given["out/top1"]), abs=1e-7)
    assert retrieval.id_retrieval(content, transfer, label, 1.5).rate == pytest.approx(
        float(given["out/top1_thresholded"])
    )
    distances = given["out/dist"]  # [contents, pictures]
    own = distances[label, np.arange(len(label))]
    assert plain.own == pytest.approx(own, rel=1e-4)
    assert plain.rank.tolist() == (1 + (distances < own).sum(0)).tolist()


def test_a_picture_at_the_threshold_counts():
    content, stylised = np.array([[1.0, 0], [0, 1.0]]), np.array([[0.0, 0.0]])
    at = retrieval.id_retrieval(content, stylised, [0])
    assert retrieval.id_retrieval(content, stylised, [0], threshold=at.distance[0]).rate == 1
    assert retrieval.id_retrieval(content, stylised, [0], threshold=at.distance[0] - 1e-6).rate == 0


# --- any folders ------------------------------------------------------------------------------------------------------


def test_progress_comes_before_the_report(folders):
    reports = list(retrieval.evaluate(*folders, means, batch=5))
    assert [(r.done, r.total) for r in reports] == [(5, 12), (10, 12), (12, 12)]
    report = reports[-1]
    assert report.rates()["top1"] == 1
    assert report.chance == pytest.approx(1 / 3)
    assert report.confusion().tolist() == (3 * np.eye(3, dtype=int)).tolist()
    assert not len(report.problems)
    assert "100.00% of 9 pictures of 3 people among 3 contents" in report.text()
    assert "chance 33.33%" in report.text()


def test_identical_pictures_are_found_and_shuffled_ones_are_not(folders):
    content, stylised = folders
    shutil.rmtree(stylised)
    names = sorted(p.stem for p in content.iterdir())
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        (stylised / name).mkdir(parents=True)
        shutil.copy(content / f"{name}.png", stylised / name / "same.png")
    assert last(retrieval.evaluate(content, stylised, means)).rates()["top1"] == 1
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        shutil.copy(content / f"{other}.png", stylised / name / "same.png")
    report = last(retrieval.evaluate(content, stylised, means))
    assert report.rates()["top1"] == 0
    assert report.table["rank"].min() > 1


def test_nothing_wrong_changes_the_denominator_silently(folders):
    content, stylised = folders
    (stylised / "ann" / "1.png").write_bytes(b"not a picture")  # unreadable
    image.write(torch.zeros(1, 3, 8, 8), stylised / "dan" / "0.png")  # nobody's
    (stylised / "cyd" / "notes.txt").write_text("later")  # not a picture
    (stylised / "eve").mkdir()  # empty
    image.write(torch.zeros(1, 3, 8, 8), stylised / "stray.png")
    image.write(torch.zeros(1, 3, 16, 16), content / "fay.png")  # never stylised
    report = last(retrieval.evaluate(content, stylised, means))
    assert len(report.table) == 10
    assert report.rates()["top1"] == 0.8
    assert report.rates()["top1_usable"] == 1
    assert (
        "2 pictures could not be looked up and count as not found; of the 8 others 100.00% were found" in report.text()
    )
    named = dict(zip(report.problems["where"].map(lambda p: Path(p).name), report.problems["what"], strict=True))
    assert set(named) == {"1.png", "dan", "notes.txt", "eve", "stray.png", "fay.png"}
    assert "cannot be read" in named["1.png"]
    assert "no content dan.*" in named["dan"]
    assert named["fay.png"] == "has no stylised pictures"
    assert len(report.contents) == 4  # whom nobody shows can still be taken for somebody


def test_an_unreadable_content_takes_its_pictures_along(folders):
    content, stylised = folders
    (content / "bob.png").write_bytes(b"")
    report = last(retrieval.evaluate(content, stylised, means))
    assert report.contents == ("ann", "cyd")
    assert report.rates()["top1"] == pytest.approx(6 / 9)
    assert set(report.table.query("id == 'bob'")["problem"]) == {"its content cannot be read"}


def test_two_contents_of_one_id_are_refused(folders):
    content, stylised = folders
    image.write(torch.zeros(1, 3, 8, 8), content / "bob.jpg")
    with pytest.raises(StoreError, match=r"bob\.jpg, bob\.png"):
        last(retrieval.evaluate(content, stylised, means))


@pytest.mark.parametrize("what", ["no content", "no stylised", "no folder", "all broken"])
def test_nothing_to_look_up_is_an_error(folders, what):
    content, stylised = folders
    if what == "no content":
        for path in content.iterdir():
            path.unlink()
    elif what == "no stylised":
        shutil.rmtree(stylised)
        stylised.mkdir()
    elif what == "no folder":
        content = content / "missing"
    else:
        for path in content.iterdir():
            path.write_bytes(b"x")
    with pytest.raises(StoreError):
        last(retrieval.evaluate(content, stylised, means))


def test_pictures_of_any_size_and_a_network_that_misbehaves(folders):
    content, stylised = folders
    x = image.read(content / "ann.png")
    image.write(torch.nn.functional.interpolate(x, (40, 24)), stylised / "ann" / "large.png")
    assert last(retrieval.evaluate(content, stylised, means)).rates()["top1"] == 1
    cropped = last(retrieval.evaluate(content, stylised, means, face="crop"))
    (problem,) = cropped.problems["what"]
    assert "40x24" in problem and "square" in problem
    with pytest.raises(StoreError, match=r"one vector a picture"):
        last(retrieval.evaluate(content, stylised, lambda x: x))
    with pytest.raises(UnknownName, match="'head'"):
        last(retrieval.evaluate(content, stylised, means, face="head"))


def test_vectors_that_are_no_numbers_cost_only_their_picture(folders):
    content, stylised = folders
    first = next(p for p in sorted(content.iterdir()) if p.suffix)
    bad = image.read(first)

    def net(x):
        vectors = means(x)
        vectors[[torch.equal(one, bad[0]) for one in x]] = float("nan")
        return vectors

    with pytest.raises(InvalidValue, match="non-finite vectors for 1 of 1 pictures"):
        retrieval.embed(net, bad)
    report = last(retrieval.evaluate(content, stylised, net))
    named = report.problems["where"][report.problems["what"].str.contains("non-finite")]
    assert str(first) in set(named) and len(report.contents) > 0
    assert not {Path(p).name for p in named} - {first.name}


def test_the_crop_is_that_of_an_aligned_portrait():
    x = torch.arange(256.0).repeat(1, 3, 256, 1) / 256
    assert torch.equal(retrieval.crop_face(x), x[:, :, 35:223, 32:220])
    assert retrieval.crop_face(x[:, :, :128, :128]).shape == (1, 3, 94, 94)
    with pytest.raises(ShapeError, match="256x128"):
        retrieval.crop_face(x[..., :128])


def test_the_interval_resamples_people():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 25)
    alike = np.repeat(rng.random(40) < 0.5, 25).astype(float)  # all pictures of a person agree
    independent = (rng.random(1000) < 0.5).astype(float)
    wide, narrow = (np.ptp(stats.interval(v, groups)) for v in (alike, independent))
    assert 3 < wide / narrow < 8  # five times: as if there were 25 times fewer
    table = pd.DataFrame({"found": [True, True, False, True], "id": ["a", "a", "b", "c"]})
    report = lambda rows: retrieval.Report(4, 4, table[:rows], ("a", "b", "c"), pd.DataFrame(), 1.5, "whole")
    assert report(4).interval() == stats.interval([1, 1, 0, 1], ["a", "a", "b", "c"]) == (0, 1)
    assert report(3).interval() == (0, 1), "two people are too few for an interval"


# --- the command and its files ----------------------------------------------------------------------------------------


def test_a_report_is_written(folders, tmp_path):
    report = last(retrieval.evaluate(*folders, means))
    files = retrieval_report.write(report, folders[0], tmp_path / "out")
    assert all(f.stat().st_size for f in files)
    facts = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert facts["top1"] == 1 and facts["pictures"] == 9 and facts["chance"] == pytest.approx(1 / 3)
    table = pd.read_csv(tmp_path / "out" / "pictures.csv")
    assert list(table["id"]) == list(report.table["id"])
    assert image.read(tmp_path / "out" / "strips.png").std() > 0.1


def test_the_command_takes_the_users_own_network(folders, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net(x):\n    return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)\n"
    )
    (folders[1] / "bob" / "2.png").write_bytes(b"broken")
    command = [sys.executable, "-m", "hrlib.cli", "id-retrieval", *map(str, folders), "--network", "mine:net"]
    done = subprocess.run([*command, "--out", "found"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "ID retrieval 88.89% of 9 pictures" in done.stdout
    assert "2.png: cannot be read" in done.stderr
    assert (tmp_path / "found" / "confusion.png").exists()
    done = subprocess.run([*command[:-1], "mine:nothing"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "module:function" in done.stderr


@pytest.fixture
def command(folders, tmp_path, monkeypatch):
    """`hrlab id-retrieval` with the user's own network, in this process."""
    (tmp_path / "mine_too.py").write_text(
        "import torch\ndef net(x):\n    return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    return lambda *more: CliRunner().invoke(
        app, ["id-retrieval", *map(str, folders), "--network", "mine_too:net", *more]
    )


def test_a_report_never_replaces_what_is_there(command, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.json").write_text("mine")
    refused = command("--out", "out")
    assert isinstance(refused.exception, StoreError) and "is not empty" in str(refused.exception)
    assert (out / "summary.json").read_text() == "mine"
    assert command("--out", "new", "--threshold", "2").exit_code == 0
    again = command("--out", "new", "--threshold", "2")
    assert isinstance(again.exception, StoreError) and "already, finished" in str(again.exception)
    (tmp_path / "new" / "notes.txt").write_text("mine")
    assert command("--out", "new", "--force").exit_code == 0
    assert json.loads((tmp_path / "new" / "summary.json").read_text())["threshold"] == 1.5
    assert (tmp_path / "new" / "notes.txt").read_text() == "mine"
    in_the_way = command("--out", "mine_too.py")
    assert isinstance(in_the_way.exception, StoreError) and "cannot be written" in str(in_the_way.exception)


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("--device", "gpu", UnknownName),
        ("--device", "cuda:77", UnknownName),
        ("--threshold", "nan", InvalidValue),
        ("--threshold", "-1", InvalidValue),
        ("--network", ":f", UnknownName),
        ("--network", "mine_too:", UnknownName),
        ("--network", "..:f", UnknownName),
        ("--network", "os:name", UnknownName),
        ("--network", "broken:net", UnknownName),
        ("--face", "x", UnknownName),
    ],
)
def test_options_that_cannot_be_are_told_before_out_is_taken(command, tmp_path, option, value, kind):
    (tmp_path / "broken.py").write_text("1 / 0")
    done = command(option, value, "--out", "out")
    assert isinstance(done.exception, kind) and not (tmp_path / "out").exists()


def test_a_network_of_the_users_that_raises_is_one_error(command):
    done = command("--network", "os:system")
    assert isinstance(done.exception, UnknownName) and "'os:system' (TypeError" in str(done.exception)


def test_a_report_never_lies_among_the_pictures(command, folders):
    picture = next(folders[0].iterdir()).rename(folders[0] / "strips.png")
    (folders[1] / "strips").mkdir()
    (folders[1] / "link").symlink_to(folders[0])
    report = last(retrieval.evaluate(*folders, means))
    for out in (*folders, folders[0] / "new", folders[1] / "link"):
        done = command("--out", str(out), "--force")
        assert isinstance(done.exception, StoreError) and "lies among the pictures" in str(done.exception)
    with pytest.raises(StoreError, match="lies among the pictures"):
        retrieval_report.write(report, folders[0], folders[0], force=True)
    assert picture.stat().st_size and not (folders[0] / "new").exists()


def test_a_batch_of_none_is_refused(folders):
    with pytest.raises(InvalidValue, match="batch"):
        last(retrieval.evaluate(*folders, means, batch=0))
