"""Starts: codes read off a picture by a linear map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hrlib import losses, metrics, starts, weights
from hrlib.errors import InvalidValue, LayoutMismatch, StoreError
from hrlib.experiments import own_size
from hrlib.training import start as training
from hrlib.worlds.pictures import picture

GENERATOR = "portraits_inr128"


@pytest.fixture(scope="module")
def G():
    return weights.load_generator(GENERATOR)


@pytest.fixture(scope="module")
def portraits():
    return torch.cat([picture(f"portrait:{i}") for i in range(911, 915)])


def test_codes_are_the_linear_map_of_pooled_features(G, portraits):
    start = starts.load(f"{GENERATOR}_start")
    d = losses.named("vgg_conv", weights="shipped")
    maps = [d.features(portraits, [tap])[tap] for tap in d.weights]
    p = torch.cat([F.avg_pool2d(m, m.shape[-1] // 2).flatten(1) for m in maps], 1)  # means of the four quarters
    w = start.state["offset"] + (p - start.state["mean"]) * start.state["scale"] @ start.state["weight"]
    ws = start.codes(portraits, G)
    assert ws.shape == (4, G.num_ws, G.w_dim) and not ws.requires_grad
    assert torch.allclose(ws, w[:, None].expand_as(ws), atol=1e-4)


def test_a_start_is_nearer_than_the_mean_code(G, portraits):
    ws = starts.load(f"{GENERATOR}_start").codes(portraits, G)
    of = lambda ws: metrics.psnr(G.synthesis(ws).clamp(-1, 1), portraits)
    mean = G.w_avg.repeat(4, G.num_ws, 1)
    with torch.no_grad():
        assert (of(ws) - of(mean)).min() > 2, "dB, for pictures that are no samples of the generator"


def test_a_start_of_another_generator_is_refused(portraits):
    start = starts.load(f"{GENERATOR}_start")
    with pytest.raises(LayoutMismatch, match="another StyleINR"):
        start.codes(portraits, weights.load_generator("anime_inr128"))
    with pytest.raises(LayoutMismatch, match="without mapping"):
        starts.load("pose_thin")
    assert starts.of(GENERATOR) and not starts.of("anime_inr128")


def test_fitting_measures_itself_and_resumes(tmp_path, monkeypatch):
    how = dict(folder=tmp_path / "work", n=120, held=5)
    found = training.run(GENERATOR, tmp_path / "start.safetensors", **how, tell=lambda _: None)
    assert found["PSNR of w0, dB"] > found["PSNR of the mean code, dB"] + 2 and found["R^2 of w"] < 1
    card = (tmp_path / "start.md").read_text()
    assert f"{found['R^2 of w']:.2f}" in card and "120 samples" in card

    with pytest.raises(StoreError, match="there already"):
        training.run(GENERATOR, tmp_path / "start.safetensors", **how)
    with pytest.raises(InvalidValue, match="held"):
        training.run(GENERATOR, tmp_path / "other.safetensors", **how | {"held": 1})

    before = weights.load_state(tmp_path / "start.safetensors")
    (tmp_path / "work" / "samples_00100.safetensors").unlink()
    drawn = []
    sample = training.sample
    monkeypatch.setattr(training, "sample", lambda G, seed, i: drawn.append(i) or sample(G, seed, i))
    training.run(GENERATOR, tmp_path / "start.safetensors", **how, force=True, tell=lambda _: None)
    assert drawn[:100] == list(range(100, 200)), "the first hundred came from the cache"
    after = weights.load_state(tmp_path / "start.safetensors")
    assert after[1] == before[1] and all(torch.equal(after[0][k], t) for k, t in before[0].items())


def test_inversions_of_ones_own_pictures_begin_there(monkeypatch):
    (run,) = own_size.grid(["portrait:911"], generator=GENERATOR, num_steps=1)
    (mean,) = own_size.grid(["portrait:911"], generator=GENERATOR, num_steps=1, start="mean")
    assert run.start == f"{GENERATOR}_start"
    assert own_size.perform(run).values["psnr"] > own_size.perform(mean).values["psnr"] + 2
