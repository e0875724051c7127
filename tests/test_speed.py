"""The yardstick of the speed benchmark computes the same as the library."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from hrlib import losses, weights
from hrlib.nets.mobile_stylegan import MobileGenerator
from hrlib.nets.stylegan2 import Generator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import reference
import speed


def generators():
    torch.manual_seed(0)
    yield weights.load_generator("portraits_inr128")
    yield Generator(z_dim=16, w_dim=16, resolution=32, channels=dict.fromkeys((4, 8, 16, 32), 8))
    yield MobileGenerator(z_dim=16, w_dim=16, resolution=32, channels=dict.fromkeys((4, 8, 16), 16))


@pytest.mark.parametrize("G", list(generators()), ids=lambda G: type(G).__name__)
def test_textbook_operations_draw_the_same_picture_with_the_same_gradient(G):
    G = G.requires_grad_(False).double()
    for name, p in G.named_parameters():
        if name.endswith("noise_strength"):
            p.fill_(0.1)
    rng = torch.Generator().manual_seed(1)
    ws = G.mapping(torch.randn(2, G.z_dim, generator=rng, dtype=torch.float64)).requires_grad_()
    n = {k: torch.randn(2, *m.shape, generator=rng, dtype=torch.float64) for k, m in G.noise_maps().items()}
    pictures = reference.synthesis(G, ws, n), G.synthesis(ws, noise=n)
    torch.testing.assert_close(*pictures, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(picture.square().sum(), ws)[0] for picture in pictures]
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-9)


def test_textbook_distance_is_the_loss():
    d = losses.named("vgg_conv", weights="shipped")
    a, b = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    found = reference.distance(d, a, reference.features(d, b))
    torch.testing.assert_close(found, d(a, b)["perceptual"])


def test_rows_have_different_names_and_a_measurement_has_both_numbers():
    assert len({str(row) for row in speed.ROWS}) == len(speed.ROWS)
    for which, task in (("ours", "w+, n"), ("reference", "lso"), ("reference", "generation")):
        found = speed.ask(speed.Row(task, "shipped", 128, 1, 3), which, "cpu")
        assert found["seconds"] > 0 and found["memory"] > 0
