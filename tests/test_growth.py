"""A grown pair begins as the smaller one behind an enlarger and a reducer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from hrlib import weights
from hrlib.errors import LayoutMismatch
from hrlib.training import gan, shipped_gans

RECIPE = shipped_gans.named("portraits_inr256").recipe


def test_a_grown_pair_draws_and_judges_as_the_smaller_one():
    state = gan.start(RECIPE)
    G, D = gan.pair(RECIPE.source)
    assert state.origin.endswith("grown to 256 px")
    z = torch.randn(4, G.z_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        small, grown = (net.synthesis(net.mapping(z), noise="none") for net in (G, state.G_ema))
        error = (F.avg_pool2d(grown, 2) - small).square().mean().sqrt()
        assert error < 0.5 * small.std(), "only what is negative is compressed"
        large = F.interpolate(small, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(state.D(large), D(small), atol=0.4, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resolution": 64, "channels": {4: 96, 8: 96, 16: 96, 32: 64, 64: 32}}, "which can grow"),
        ({"channels": RECIPE.channels | {256: 8}}, "as many"),
        ({"source": "portraits_sg128", "network": "stylegan2"}, "which can grow"),
    ],
)
def test_what_cannot_grow_is_refused(change, words):
    with pytest.raises(LayoutMismatch, match=words):
        gan.start(replace(RECIPE, **change))


def test_the_shipped_pair_is_of_that_layout():
    assert weights.load_generator("portraits_inr256").config["channels"] == RECIPE.channels
