"""The INR head on MobileStyleGAN: it is the network's own last step, at any size, in windows and tiles; its command."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from hrlib import directions, inversion, losses, metrics, mixing, optim, tiling, weights
from hrlib.errors import InvalidValue, LayoutMismatch, MissingWeights, ShapeError
from hrlib.nets import MobileGenerator, MobileINR
from hrlib.nets.style_inr import pixel_grid
from hrlib.training import inr_head
from hrlib.training.cli import app

TINY = dict(z_dim=8, w_dim=8, resolution=32, channels={4: 16, 8: 16, 16: 20}, mapping_layers=2)


@pytest.fixture
def G() -> MobileGenerator:
    torch.manual_seed(3)
    G = MobileGenerator(**TINY).eval().requires_grad_(False)
    for name, v in (*G.named_parameters(), *G.named_buffers()):
        if name.endswith(("bias", "noise_strength", "noise_const", "w_avg")):  # they start as zeros or ones
            v.add_(0.2 * torch.randn_like(v))
    return G


@pytest.fixture
def S(G) -> MobileINR:
    return inr_head.attach(G, hidden=9).requires_grad_(False)


@pytest.mark.parametrize("size", [None, (32, 32), (33, 70), (41, 18)])
def test_the_head_is_the_networks_own_last_step(G, S, size):
    ws, maps = G.mapping(torch.randn(2, 8), 0.7), G.noise_maps(size, seed=4)
    torch.testing.assert_close(S.synthesis(ws, maps, size), G.synthesis(ws, maps, size), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(S.synthesis(ws, "const", size), G.synthesis(ws, "const", size), rtol=1e-5, atol=1e-5)
    assert S.num_ws == G.num_ws and S.code_blocks == G.code_blocks and S.any_size


def test_windows_tiles_grids_and_canvases(S):
    S = S.double()
    size = (37, 50)
    ws, maps = S.mapping(torch.randn(1, 8).double()), S.noise_maps(size, seed=1)
    whole = S.synthesis(ws, maps, size)
    window = (slice(9, 26), slice(31, 50))
    torch.testing.assert_close(S.synthesis(ws, maps, size, window=window), whole[:, :, *window], rtol=0, atol=1e-12)
    tiled = tiling.TiledGenerator(S, (16, 20)).synthesis(ws, maps, size)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-12)
    by_grid = S.synthesis(ws, maps, size, grid=pixel_grid(size).double())
    torch.testing.assert_close(by_grid, whole, rtol=0, atol=1e-4)  # the grid is float32
    assert S.synthesis(ws, size=(20, 64), canvas=(40, 40)).shape == (1, 3, 20, 64)
    with pytest.raises(InvalidValue, match="window"):
        S.synthesis(ws, size=size, canvas=(40, 40), window=window)
    with pytest.raises(ShapeError, match="grid"):
        S.synthesis(ws, grid=torch.zeros(3, 3))


def test_it_is_inverted_mixed_and_factorised_like_any_generator(S):
    x = S.synthesis(S.mapping(torch.ones(1, 8)), size=(40, 64)).clamp(-1, 1)
    done = optim.solve(inversion.invert(S, x, losses.MSE(), num_steps=3, w_samples=100))
    assert done.image.shape == x.shape and list(done.noise) == S.synthesis.conv_names()
    other = inr_head.attach(MobileGenerator(**TINY), hidden=9)
    G_m = mixing.lerp_generators(S, other, {4: 0, 8: 0, 16: 1})
    assert torch.equal(G_m.synthesis.inr.weight, other.synthesis.inr.weight), "the head belongs to the last block"
    assert torch.equal(G_m.synthesis.b8.conv1.weight, S.synthesis.b8.conv1.weight)
    assert directions.layer_names(S)[-1] == "inr" and directions.closed_form(S)[1].shape == (8, 8)
    with pytest.raises(LayoutMismatch, match="MobileINR"):
        inr_head.attach(S)


def test_training_steps_teach_a_head_that_was_changed(G):
    recipe = inr_head.InrHeadRecipe(steps=40, batch=2, points=300, updates=3, hidden=12, canvas_prob=0.5, lr=0.003)
    state = inr_head.State(recipe, G)
    with torch.no_grad():
        state.S.synthesis.inr.weight.add_(0.1 * torch.randn_like(state.S.synthesis.inr.weight))
    rows = list(inr_head.train(recipe, G, state))
    assert rows[-1]["mse"] < 0.3 * rows[0]["mse"]


def test_the_command_makes_measures_and_ships_it(G, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights.save_network(G, tmp_path / "mobile.safetensors")
    words = "style-inr --from mobile.safetensors --out nets/inr --n 4 --threads 1 --device cpu"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    S = weights.load_generator(tmp_path / "nets/inr.safetensors")
    assert type(S) is MobileINR and S.config["inr_hidden"] == 32
    ws = S.w_avg.repeat(1, S.num_ws, 1)
    assert float(metrics.psnr(S.synthesis(ws), G.synthesis(ws))[0]) > 90
    card = (tmp_path / "nets/inr.md").read_text()
    assert "MobileStyleGAN `mobile.safetensors`" in card and "StyleGAN2" not in card and "steps 0" in card


def test_the_real_head_draws_the_published_picture():
    try:
        G = weights.load_generator("ffhq_mobile1024")
    except MissingWeights:
        pytest.skip("the package random-face is missing: make faces")
    S = inr_head.attach(G, hidden=6)
    ws, size = G.mapping(torch.ones(1, G.z_dim), 0.7), (320, 257)
    torch.testing.assert_close(S.synthesis(ws, size=size), G.synthesis(ws, size=size), rtol=0, atol=1e-5)


def test_the_catalogue_says_how_the_head_is_made():
    entry = weights.entry("ffhq_inr1024")
    assert entry.made_here and entry.path.parent.name == "faces" and entry.path.parents[1].name == "build"
    assert "hrlab train style-inr --from ffhq_mobile1024 --out build/faces/" in entry.by_hand
