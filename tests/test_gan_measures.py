"""The measures of shipped generators, on worlds and generators where the answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from hrlib import features
from hrlib.errors import InvalidValue, ShapeError
from hrlib.nets import StyleINR
from hrlib.training import gan_measures
from hrlib.worlds import portraits

SHAPE = dict(z_dim=8, w_dim=8, resolution=32, channels={4: 8, 8: 8, 16: 8, 32: 8}, mapping_layers=2, inr_hidden=8)


@pytest.fixture(scope="module")
def G():
    torch.manual_seed(0)
    G = StyleINR(**SHAPE).eval().requires_grad_(False)
    for name in G.synthesis.conv_names():
        G.synthesis.get_parameter(f"{name}.noise_strength").fill_(0.1)
    return G


class Drawer:
    """A perfect generator: its code w begins with yaw, pitch and head_width, and it draws that person."""

    resolution, z_dim, num_ws, w_avg = 32, 3, 2, torch.zeros(3)

    def __init__(self, sign: float = 1.0):
        self.sign = sign

    def noise_maps(self):
        return {"b4.conv1": torch.zeros(4, 4)}

    def mapping(self, z):
        return z[:, None].repeat(1, self.num_ws, 1)

    def synthesis(self, ws, noise):
        yaw, pitch, width = (ws[:, 0] * torch.tensor([0.26 * self.sign, 0.1, 0.4])).T
        assert noise["b4.conv1"].shape == (len(ws), 4, 4)
        people = portraits.sample(len(ws), seed=9)
        people = people.replace(pose={"yaw": yaw.clamp(-0.69, 0.69), "pitch": pitch.clamp(-0.34, 0.34)})
        return portraits.render(people.replace(identity={"head_width": width.clamp(-1, 1)}), 32, 1)


def test_pooled_features_are_means_of_the_taps():
    x = torch.rand(3, 3, 64, 128) * 2 - 1
    maps = features.vgg16("shipped", tap="conv")(x, gan_measures.POOL_TAPS)
    expected = torch.cat([m.mean((2, 3)) for m in maps.values()], dim=1)
    torch.testing.assert_close(gan_measures.pooled_features(x), expected, atol=1e-5, rtol=1e-5)
    grid = gan_measures.grid_features(x).view(3, -1, 16)
    torch.testing.assert_close(grid.mean(2), expected, atol=1e-4, rtol=1e-4)  # equal cells
    assert grid.shape[1] == expected.shape[1]


def test_samples_have_noise_of_their_own_and_depend_on_the_seed_alone(G, monkeypatch):
    a = gan_measures.draw(G, 6, seed=3)
    assert a.shape == (6, 3, 32, 32) and a.abs().max() <= 1
    assert torch.equal(a, gan_measures.draw(G, 6, seed=3)) and not torch.equal(a, gan_measures.draw(G, 6, seed=4))
    ws = G.mapping(torch.randn(1, 8)).repeat(6, 1, 1)
    same = torch.cat(list(gan_measures.drawn(G, 6, seed=3, ws=ws)))
    assert not torch.equal(same[0], same[1])  # one code, two noises
    monkeypatch.setattr(gan_measures, "CHUNK", 4)
    assert [len(x) for x in gan_measures.drawn(G, 6, seed=3)] == [4, 2]


def test_blur_against_scipy():
    from scipy.ndimage import gaussian_filter

    x = torch.rand(1, 3, 24, 24) * 2 - 1
    assert gan_measures.blur(x, 0.0) is x
    for sigma in gan_measures.BLURS:
        expected = gaussian_filter(x[0].numpy(), (0, sigma, sigma), mode="mirror", truncate=4)
        np.testing.assert_allclose(gan_measures.blur(x, sigma)[0], expected, atol=1e-5)


def test_renders_are_cached_and_never_the_training_set(tmp_path, monkeypatch):
    with pytest.raises(InvalidValue, match="seed = 0"):
        gan_measures.renders("portraits/photo", 4, resolution=32, seed=0, cache=tmp_path)
    got = gan_measures.renders("portraits/photo", 4, resolution=32, seed=1, cache=tmp_path)
    torch.testing.assert_close(
        got.batch(torch.arange(4))[0], portraits.render(portraits.sample(4, seed=1), 32), atol=1 / 127, rtol=0
    )
    found = {s: gan_measures.render_features(got, 4, sigma=s) for s in (0.0, 2.0)}
    assert not torch.equal(found[0.0], found[2.0])
    with pytest.raises(ShapeError, match="4 pictures"):
        gan_measures.render_features(got, 5)
    monkeypatch.setattr(portraits, "render", None)  # nothing is rendered again, nothing looked at again
    monkeypatch.setattr(gan_measures, "grid_features", None)
    again = gan_measures.renders("portraits/photo", 4, resolution=32, seed=1, cache=tmp_path)
    assert torch.equal(gan_measures.render_features(again, 4), found[0.0])


def test_the_ladder_rises_with_the_blur_and_a_perfect_generator_stands_on_its_first_rung(G, tmp_path, monkeypatch):
    n = 40
    draw = lambda G, n, seed: portraits.render(portraits.sample(n, seed=77), 32).split(20)
    random = gan_measures.ladder(G, "portraits/photo", n=n, cache=tmp_path).set_index("pictures")
    monkeypatch.setattr(gan_measures, "drawn", draw)
    perfect = gan_measures.ladder(G, "portraits/photo", n=n, cache=tmp_path).set_index("pictures")
    assert perfect.drop("generator").equals(random.drop("generator"))
    floor, half, one, two = perfect.frechet[:4]
    assert floor < half < one < two
    assert perfect.frechet["generator"] < 2 * floor < random.frechet["generator"]
    assert perfect.precision["generator"] > 0.6 and perfect.recall["generator"] > 0.6
    assert random.precision["generator"] < 0.1
    same = gan_measures.renders("portraits/photo", n, resolution=32, seed=gan_measures.SEEDS[0], cache=tmp_path)
    itself = gan_measures.ladder(G, "portraits/photo", n=n, other=same, cache=tmp_path).set_index("pictures")
    assert itself.frechet["other renders"] < 1e-3 and itself.frechet["generator"] == perfect.frechet["generator"]


def test_ridge_finds_a_linear_map_and_refuses_to_learn_noise():
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(300, 40, generator=g), torch.randn(40, 2, generator=g).double()
    x[:, 7] = 3.0  # no variance
    y = x.double() @ w + 5
    y[:, 1] = torch.randn(300, generator=g)
    model = gan_measures.Ridge(x[:200], y[:200])
    error = model(x[200:]) - y[200:]
    assert error[:, 0].abs().max() < 0.05
    assert error[:, 1].square().mean() < 1.1 * y[200:, 1].square().mean()  # hardly worse than predicting nothing
    wide = gan_measures.Ridge(torch.randn(50, 400, generator=g), torch.randn(50, 1, generator=g))
    assert torch.isfinite(wide.weight).all()


def test_pose_correlation_of_the_same_and_of_mirrored_generators(tmp_path):
    people, others = (
        gan_measures.renders("portraits/photo", 190, resolution=32, seed=s, cache=tmp_path) for s in (1, 2)
    )
    run = lambda target, data: gan_measures.pose_correlation(
        Drawer(), target, people, data, names=("yaw", "pitch"), fit=160, held_out=30, n=40
    ).set_index("parameter")
    same, mirrored = run(Drawer(), people), run(Drawer(sign=-1.0), people)
    assert isinstance(same, pd.DataFrame) and same.r2_source["yaw"] > 0.3
    assert same.correlation.min() > 0.999 and (same.renders > 0.999).all()
    assert mirrored.correlation["yaw"] < -0.3 < 0.3 < mirrored.correlation["pitch"]
    assert (mirrored.low < mirrored.correlation).all() and (mirrored.correlation < mirrored.high).all()
    with pytest.raises(ShapeError, match=r"seeds \[1, 2\]"):
        run(Drawer(), others)


def test_correlation_against_numpy():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(200, 2, generator=g).double()
    b = a * torch.tensor([1.0, -0.5]) + torch.randn(200, 2, generator=g)
    expected = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(2)]
    np.testing.assert_allclose(gan_measures._correlation(a, b), expected, rtol=1e-9)
