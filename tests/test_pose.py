"""The pose reader: good enough on people it has not seen, in every domain, and honest about what it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hrlib import pose, weights
from hrlib.errors import InvalidValue, LayoutMismatch, ShapeError, StoreError
from hrlib.training import pose as training
from hrlib.worlds import portraits

PEOPLE = portraits.sample(8, seed=977)


@pytest.mark.parametrize("domain", portraits.DOMAINS)
def test_it_reads_unseen_people_in_every_domain(domain):
    x = portraits.render(PEOPLE, 128, domain=domain)
    errors = pose.error(x, PEOPLE.pose)
    assert errors.shape == (8,) and np.median(errors) < 4.5  # degrees
    guess = np.degrees(np.hypot(*(PEOPLE.pose - PEOPLE.pose.mean(0)).T.numpy()))
    assert errors.mean() < 0.5 * guess.mean()


def test_other_sizes_are_resized():
    x = portraits.render(PEOPLE, 256)
    assert np.median(pose.error(x, PEOPLE.pose)) < 6


def test_turning_the_head_is_noticed():
    left, right = (portraits.render(PEOPLE.replace(pose={"yaw": y}), 128) for y in (-0.3, 0.3))
    turned = pose.read(right) - pose.read(left)
    assert turned[:, 0].mean().item() == pytest.approx(0.6, abs=0.12) and turned[:, 1].mean().abs() < 0.06


def test_what_it_refuses(monkeypatch):
    for bad in (torch.zeros(3, 128, 128), torch.zeros(1, 1, 128, 128), torch.zeros(1, 3, 128, 128).int()):
        with pytest.raises(ShapeError, match="images"):
            pose.read(bad)
    for truth in (torch.zeros(2), torch.zeros(1, 2), torch.zeros(2, 3)):
        with pytest.raises(ShapeError, match="true poses"):
            pose.error(torch.zeros(2, 3, 128, 128), truth)
    state, about = (load := weights.load_state)(pose.NAME)
    wrong = lambda name: (state, {**about, "vgg": "0" * 64}) if name == pose.NAME else load(name)
    monkeypatch.setattr(weights, "load_state", wrong)
    pose._reader.cache_clear()
    with pytest.raises(LayoutMismatch, match="VGG16 000000000000"):
        pose.read(torch.zeros(1, 3, 128, 128))
    monkeypatch.undo()
    pose._reader.cache_clear()


def test_fitting_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STEP", 8)
    table = training.run(tmp_path / "work", tmp_path / "pose.safetensors", fit=16, held=8, seed=5)
    assert list(table["pictures"].str.removesuffix(", blurred").unique()) == sorted(training.KINDS)
    state, about = weights.load_state(tmp_path / "pose.safetensors")
    assert state["weight"].shape[1] == 2 and about["vgg"] == pose.vgg().fingerprint
    calls = []
    monkeypatch.setattr(training.portraits, "render", lambda *a, **k: calls.append(a))
    run = lambda out="pose.safetensors", **more: training.run(
        tmp_path / "work", tmp_path / out, **dict(fit=16, held=8, seed=5) | more
    )
    with pytest.raises(StoreError, match="is there already"):
        run()
    with pytest.raises(InvalidValue, match="held = 0"):
        run("other", held=0)
    assert run(force=True).equals(table) and not calls  # features are cached
    assert "| photo |" in (tmp_path / "pose.md").read_text()
    assert "| photo |" in training.card(table, fit=16, held=8, seed=5)
