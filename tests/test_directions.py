"""Closed-form factorisation: parity with both published versions, and what its vectors must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recorded import FIXTURES

from hrlib import directions, weights
from hrlib.errors import InvalidValue, UnknownName
from hrlib.nets import StyleINR

IO = np.load(FIXTURES / "05_sefa" / "sefa_io.npz")


@pytest.fixture(scope="module")
def G64():
    return weights.load_generator(FIXTURES / "01_stylegan2_ada" / "network-snapshot-res64.pkl")


@pytest.fixture(scope="module")
def inr():
    torch.manual_seed(0)
    return StyleINR(z_dim=8, w_dim=8, resolution=16, channels={4: 8, 8: 6, 16: 4}, mapping_layers=2, inr_hidden=8)


def test_the_layers_are_genforces(G64):
    *convs, last = directions.layer_names(G64)
    ours = [*(f"layer{i}={name}" for i, name in enumerate(convs)), f"output4={last}"]
    assert ours == IO["out/layer_map"].tolist() and len(ours) == G64.num_ws


@pytest.mark.parametrize(("name", "layers"), [("all", "all"), ("0-4", range(5)), ("5-9", range(5, 10))])
def test_parity_with_genforce(G64, name, layers):
    values, vectors = directions.closed_form(G64, layers)
    expected = IO[f"out/{name}/f64_eigenvalues"]
    assert np.abs(values.numpy() - expected).max() <= 1e-4 * expected.max()
    cosine = (vectors[:, :30].T.numpy() * IO[f"out/{name}/f64_eigenvectors"]).sum(1)
    assert np.abs(cosine).min() >= 0.999


def test_parity_with_rosinality():
    G = weights.load_generator(FIXTURES / "02_rosinality" / "rosinality-64.pt")
    layers = ["b4.torgb", *G.synthesis.conv_names()]
    assert len(layers) == len(IO["out/rosi_keys"])
    _, vectors = directions.closed_form(G, layers, normalise=False)
    assert np.abs((vectors[:, :30].T.numpy() * IO["out/rosi_V"]).sum(1)).min() >= 0.999


def test_vectors_are_orthonormal_sorted_and_signed(G64):
    values, vectors = directions.closed_form(G64)
    assert values.shape == (32,) and vectors.shape == (32, 32) and vectors.dtype == torch.float64
    assert torch.allclose(vectors.T @ vectors, torch.eye(32, dtype=torch.float64), atol=1e-10)
    assert (values.diff() <= 0).all()
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_the_first_direction_changes_the_styles_most(G64):
    names = directions.layer_names(G64)
    A = torch.cat([G64.synthesis.get_submodule(f"{n}.affine").weight for n in names]).double()
    A = A / A.norm(dim=1, keepdim=True)
    values, vectors = directions.closed_form(G64)
    others = torch.randn(32, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    others = others / others.norm(dim=0)
    assert (A @ vectors[:, 0]).square().sum() == pytest.approx(float(values[0]), rel=1e-9)
    assert (A @ others).square().sum(0).max() < values[0]


def test_only_the_chosen_layers_count_and_their_scale_does_not(inr):
    base = directions.closed_form(inr, [0, 2])
    assert all(
        torch.equal(a, b) for a, b in zip(base, directions.closed_form(inr, ["b4.conv1", "b8.conv1"]), strict=True)
    )
    with torch.no_grad():
        inr.synthesis.b8.conv1.affine.weight *= 3.0
        inr.synthesis.b16.conv0.affine.weight.zero_()
    again = directions.closed_form(inr, [0, 2])
    assert torch.allclose(base[0], again[0], atol=1e-6) and torch.allclose(base[1], again[1], atol=1e-4)
    assert not torch.allclose(directions.closed_form(inr, [0, 2], normalise=False)[0], base[0])


def test_the_last_code_of_a_style_inr_gan_drives_its_head(inr):
    assert directions.layer_names(inr)[-1] == "inr" and len(directions.layer_names(inr)) == inr.num_ws
    a, b = directions.closed_form(inr, [inr.num_ws - 1]), directions.closed_form(inr, "inr")
    assert torch.equal(a[0], b[0])


def test_layers_that_do_not_exist(inr):
    for layers, match in (
        ([6], "layer 6"),
        ([-1], "layer -1"),
        (["b8.conv2"], "did you mean 'b8.conv"),
        (["b8.conv0", "b4.torgb"], "layer 'b4.torgb'"),  # a Style-INR-GAN has none
        ("b32", "b32"),
    ):
        with pytest.raises(UnknownName, match=match):
            directions.closed_form(inr, layers)
    with pytest.raises(InvalidValue, match="no layers"):
        directions.closed_form(inr, [])
