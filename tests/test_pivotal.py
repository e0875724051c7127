"""Pivotal tuning: the generator changes, the code and the caller's generator do not."""

from __future__ import annotations

import itertools

import pytest
import torch

from hrlib import inversion, losses, metrics, optim, pivotal, weights
from hrlib.errors import InvalidValue, ShapeError
from hrlib.worlds.pictures import picture


@pytest.fixture(scope="module")
def found():
    """(G, target, loss, an inversion in W without noise maps)."""
    G, x = weights.load_generator("portraits_inr128"), picture("portrait:7", 128)
    loss = losses.named("vgg_conv", weights="shipped")
    it = inversion.invert(G, x, loss, num_steps=20, lr=0.3, space="w", optimise_noise=False, w_samples=500)
    return G, x, loss, optim.solve(it)


def test_tuning_beats_its_pivot_and_leaves_the_generator_alone(found):
    G, x, loss, pivot = found
    before = {k: v.clone() for k, v in G.state_dict().items()}
    tuned = optim.solve(pivotal.tune(G, pivot.ws, x, loss, num_steps=40, lr=3e-3))
    assert metrics.psnr(tuned.image, x)[0] > metrics.psnr(pivot.image, x)[0] + 3
    assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items())
    assert not any(p.requires_grad for p in tuned.generator.parameters())
    assert torch.equal(tuned.ws, pivot.ws) and tuned.ended == "all steps done" and len(tuned.history) == 40
    torch.testing.assert_close(tuned.generator.synthesis(tuned.ws), tuned.image)
    assert torch.equal(tuned.generator.mapping.w_avg, G.w_avg), "the mapping network is not tuned"
    mean = G.w_avg.expand_as(tuned.ws)
    moved = (tuned.generator.synthesis(mean) - G.synthesis(mean)).abs()
    assert moved.mean() > 1e-4, "the tuned weights take part in other pictures, too"


def test_a_resumed_tuning_is_the_same(found):
    G, x, loss, pivot = found
    whole = optim.last(pivotal.tune(G, pivot.ws, x, loss, num_steps=4))
    for it in itertools.islice(pivotal.tune(G, pivot.ws, x, loss, num_steps=4), 2):
        state = it.state()
    again = optim.last(pivotal.tune(G, pivot.ws, x, loss, num_steps=4, resume=state))
    assert all(torch.equal(v, again.variables[k]) for k, v in whole.variables.items())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"num_steps": 0}, InvalidValue, "num_steps"),
        ({"lam_mse": -1.0}, InvalidValue, "lam_mse"),
        ({"loss": None}, InvalidValue, "loss"),
        ({"ws": torch.zeros(1, 1, 512)}, ShapeError, "ws of shape"),
        ({"x": torch.zeros(1, 3, 128)}, ShapeError, "target"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(found, change, error, words):
    G, x, loss, pivot = found
    with pytest.raises(error, match=words):
        pivotal.tune(**{"G": G, "ws": pivot.ws, "x": x, "loss": loss} | change)
