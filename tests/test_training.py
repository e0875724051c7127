"""The GAN recipe on a tiny scale: the set on disk, the latents, the two phases, exact resuming."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hrlib.errors import StoreError
from hrlib.training import data, gan

TINY = gan.Recipe(
    resolution=16,
    z_dim=70,
    w_dim=8,
    channels={4: 8, 8: 8, 16: 4},
    mapping_layers=2,
    inr_hidden=8,
    batch=4,
    warm_images=12,
    warm_set=8,
    total_images=40,
    r1_every=2,
    mixing_prob=0.5,
)


@pytest.fixture(scope="module")
def portraits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    for done in data.render_set(folder, 16, resolution=16, z_dim=TINY.z_dim, seed=3):
        pass
    assert done == 16
    return data.load_set(folder)


def run(recipe, portraits, state, steps):
    rows = []
    for row in gan.train(recipe, portraits, state):
        rows.append(row)
        if len(rows) == steps:
            break
    return rows


def test_rendering_resumes_and_does_not_depend_on_n(portraits, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 4)
    rendering = data.render_set(tmp_path, 12, resolution=16, z_dim=TINY.z_dim, seed=3)
    assert next(rendering) == 4  # then the process dies
    rendering.close()
    assert list(data.render_set(tmp_path, 12, resolution=16, z_dim=TINY.z_dim, seed=3)) == [8, 12]
    assert np.array_equal(data.load_set(tmp_path).images, portraits.images[:12])


def test_latents_are_standard_normal_uncorrelated_and_close_to_their_parameters():
    g = torch.Generator().manual_seed(0)
    skewed, normal = torch.rand(4000, generator=g) ** 3, torch.randn(4000, generator=g)
    values = torch.stack([skewed, (torch.rand(4000, generator=g) < 0.3).float(), normal, normal + 3 * skewed], dim=1)
    z = data.gaussianise(values, 6, seed=1)
    assert z.shape == (4000, 6)
    assert z.mean(0).abs().max() < 0.1 and (z.std(0) - 1).abs().max() < 0.1
    assert torch.corrcoef(z.T).fill_diagonal_(0).abs().max() < 0.06
    assert (z[:, :4].T.corrcoef() - torch.eye(4)).abs().max() < 1e-3
    across = torch.corrcoef(torch.cat([z[:, :4], values], dim=1).T)[:4, 4:]  # [latent, parameter]
    assert torch.equal(across.abs().argmax(1), torch.arange(4))  # each latent still follows its own parameter most
    assert across.diagonal().min() > 0.6
    assert torch.equal(z, data.gaussianise(values, 6, seed=1))


def test_missing_set(tmp_path):
    with pytest.raises(StoreError, match="hrlab train render"):
        data.load_set(tmp_path)


def test_the_warm_start_leaves_the_noise_strengths_alone_and_the_gan_phase_does_not(portraits):
    state = gan.start(TINY)
    strength = lambda: torch.stack(
        [state.G.synthesis.get_parameter(f"{n}.noise_strength").detach() for n in state.G.synthesis.conv_names()]
    )
    rows = run(TINY, portraits, state, 3)
    assert all(set(row) == {"step", "images", "regression"} for row in rows)
    assert torch.equal(strength(), torch.full((5,), TINY.noise_strength))
    rows = run(TINY, portraits, state, 7)
    assert {"adversarial", "D_fake", "D_real", "R1"} <= set().union(*rows)
    assert not torch.equal(strength(), torch.full((5,), TINY.noise_strength))
    assert state.step * TINY.batch == TINY.total_images


def test_regression_lowers_its_loss(portraits):
    recipe = gan.Recipe(**{**gan.summary(TINY), "warm_images": 400, "total_images": 400, "bf16": False})
    rows = run(recipe, portraits, gan.start(recipe), 100)
    mean = lambda part: np.mean([row["regression"] for row in part])
    assert mean(rows[-10:]) < 0.8 * mean(rows[:10])


def test_a_resumed_training_is_the_same_training(portraits, tmp_path):
    whole, first = gan.start(TINY), gan.start(TINY)
    run(TINY, portraits, whole, 10)
    run(TINY, portraits, first, 5)
    save_file(first.tensors(), tmp_path / "checkpoint.safetensors")
    second = gan.start(gan.Recipe(**{**gan.summary(TINY), "seed": 7}))  # other initial values, all overwritten
    second.load(load_file(tmp_path / "checkpoint.safetensors"), step=5)
    run(TINY, portraits, second, 5)
    for name, value in whole.tensors().items():
        assert torch.equal(value, second.tensors()[name]), name


def test_the_average_generator_lags_behind_and_tracks_w(portraits):
    state = gan.start(TINY)
    before = state.G_ema.synthesis.inr.fc2.weight.clone()
    run(TINY, portraits, state, 10)
    moved = (state.G_ema.synthesis.inr.fc2.weight - before).norm()
    assert moved > 0 and not torch.equal(state.G_ema.synthesis.inr.fc2.weight, state.G.synthesis.inr.fc2.weight)
    assert state.G_ema.mapping.w_avg.abs().max() > 0
