"""3D-aware inversion: stages, spaces, what is recovered where the truth is known, and refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from hrlib import inversion3d, losses, optim
from hrlib.errors import InvalidValue, ShapeError, StoreError, UnknownName
from hrlib.nets import cameras
from hrlib.nets.cips3d import CIPS3D

POSE = dict(pose_steps=60, num_steps=1, starts=(0.0,))


@pytest.fixture(scope="module")
def G():
    """A small network whose ball of features is solid enough to show which way it is turned."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = CIPS3D(
            z_dim=8, z_dim_inr=8, nerf_hidden=16, rgb_dim=8, nerf_style=8, inr_hidden=12, inr_style=8, inr_blocks=4,
            nerf_mapping=2, inr_mapping=2, resolution=24, centres=True,
            camera=dict(num_steps=6, hierarchical_sample=False),
        )  # fmt: skip
        net.siren.final_layer.weight.data *= 50
        for rgb in net.inr_net.to_rgbs.values():
            rgb.linear.weight.data *= 20
    return net.eval().requires_grad_(False)


def own_view(G, yaw, pitch, seed=None, n=1):
    styles = (
        G.average() if seed is None else G.mapping(torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)))
    )
    styles = {k: v.expand(len(yaw), -1, -1) for k, v in styles.items()}
    return G.synthesis(styles, cameras.orbit(torch.tensor(yaw), torch.tensor(pitch))).image


def test_the_pose_of_an_own_view_is_found(G):
    x = own_view(G, [0.12, -0.2], [0.05, 0.0])
    result = optim.solve(inversion3d.invert(G, x, losses.MSE(), **POSE))
    assert torch.allclose(result.yaw, torch.tensor([0.12, -0.2]), atol=0.03)
    assert torch.allclose(result.pitch, torch.tensor([0.05, 0.0]), atol=0.03)


def test_of_several_starts_each_picture_keeps_its_best(G):
    x = own_view(G, [0.5, -0.5], [0.0, 0.0])
    first = next(inversion3d.invert(G, x, losses.MSE(), pose_steps=2, num_steps=1, starts=(-0.5, 0.0, 0.5)))
    assert first.stage == "pose" and first.variables["yaw"].tolist() == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize("space", inversion3d.SPACES)
def test_appearance_follows_in_every_space(G, space):
    x = own_view(G, [0.1], [0.0], seed=5)
    settings = dict(pose_steps=0, num_steps=40, space=space, lr_style=0.03)
    found = list(inversion3d.invert(G, x, losses.MSE(), **settings))
    assert {f.stage for f in found} == {"appearance"} and len(found) == 40
    assert found[-1].total < 0.9 * found[0].total
    shapes = {k: tuple(v.shape) for k, v in found[-1].variables.items() if k in ("z", "nerf", "inr")}
    assert (
        shapes
        == {
            "z": {"z": (1, 8)},
            "w": {"nerf": (1, 1, 8), "inr": (1, 1, 8)},
            "w+": {"nerf": (1, 3, 8), "inr": (1, 8, 8)},
        }[space]
    )


@pytest.mark.parametrize("space", inversion3d.SPACES)
def test_styles_begin_at_the_latent_that_was_found(G, space):
    x = own_view(G, [0.1, 0.0], [0.0, 0.1], seed=5, n=2)
    settings = dict(pose_steps=2, latent_steps=30, num_steps=2, starts=(0.0,))
    found = list(inversion3d.invert(G, x, losses.MSE(), space=space, **settings))
    assert [f.stage for f in found] == ["pose"] * 2 + ["latent"] * 30 + ["appearance"] * 2
    assert found[31].total < 0.9 * found[2].total and found[32].total < 1.1 * found[31].total
    assert ("z" in found[-1].variables) == (space == "z")
    alone = next(inversion3d.invert(G, x, losses.MSE(), pose_steps=0, num_steps=1))
    assert found[2].total < alone.total, "the best of many latents is better than the average"


def test_the_decoder_is_refined_and_geometry_is_left_alone(G):
    x = own_view(G, [0.1], [0.0], seed=6).flip(2)
    before = {k: v.clone() for k, v in G.state_dict().items()}
    result = optim.solve(inversion3d.invert(G, x, losses.MSE(), pose_steps=0, num_steps=5, decoder_steps=30))
    by_stage = {s: [h["total"] for h in result.history if h["stage"] == s] for s in inversion3d.STAGES}
    assert by_stage["decoder"][-1] < by_stage["decoder"][0] <= by_stage["appearance"][0]
    assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items()), "G itself stays as it was"
    refined, plain = (
        inversion3d.render(G, v, cameras.orbit(0.2, 0.0))
        for v in (result.variables, {k: v for k, v in result.variables.items() if not k.startswith("decoder/")})
    )
    assert torch.equal(refined.depth, plain.depth) and not torch.equal(refined.image, plain.image)


def test_the_mirrored_picture_counts(G):
    x = own_view(G, [0.15], [0.0], seed=7)
    settings = dict(pose_steps=0, num_steps=3)
    alone = next(inversion3d.invert(G, x, losses.MSE(), **settings))
    both = next(inversion3d.invert(G, x, losses.MSE(), lam_mirror=0.5, **settings))
    view = inversion3d.render(G, G.average(), cameras.orbit(0.0, 0.0)).image  # both poses are frontal at first
    assert both.terms["mirror"] == pytest.approx(0.5 * float((view - x.flip(3)).square().mean()), rel=1e-5)
    assert both.total == pytest.approx(alone.total + both.terms["mirror"], rel=1e-6)


def test_the_prior_draws_styles_to_their_average(G):
    x, settings = own_view(G, [0.0], [0.0], seed=8), dict(pose_steps=0, num_steps=30, lr_style=0.05)
    off = {}
    for lam in (0.0, 10.0):
        v = optim.solve(inversion3d.invert(G, x, losses.MSE(), lam_prior=lam, **settings)).variables
        off[lam] = float((v["nerf"] - G.average()["nerf"]).norm())
    assert off[10.0] < 0.5 * off[0.0]


def test_rates_are_those_of_their_kind(G):
    """Adam's first full step moves every variable by its rate; the warm-up's factor is known."""
    x = own_view(G, [0.3], [0.1], seed=9)
    found = list(inversion3d.invert(G, x, losses.MSE(), pose_steps=0, num_steps=20, lr_style=0.02))[:2]
    moved = (found[1].variables["nerf"] - found[0].variables["nerf"]).abs().max()
    assert float(moved) == pytest.approx(0.02, rel=0.05)


def test_a_result_can_be_seen_from_anywhere_at_any_size_and_saved(G, tmp_path):
    result = optim.solve(inversion3d.invert(G, own_view(G, [0.1], [0.0]), losses.MSE(), pose_steps=2, num_steps=2))
    view = inversion3d.render(G, result.variables, cameras.orbit(-0.4, 0.1), (10, 31), chunk=50)
    assert view.image.shape == (1, 3, 10, 31) and view.depth.shape == (1, 1, 10, 31)
    path = result.save(tmp_path / "found_0.1")
    assert path.name == "found_0.1.safetensors"
    with pytest.raises(StoreError, match="there already"):
        result.save(tmp_path / "found_0.1")
    result.save(tmp_path / "found_0.1", force=True)
    assert torch.equal(load_file(path)["image"], result.image)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert [h["stage"] for h in facts["history"]] == ["pose"] * 2 + ["appearance"] * 2
    assert len(facts["config"]["generator"]) == 64 and facts["config"]["space"] == "w+"


@pytest.mark.parametrize("at", [1, 3, 4, 5, 7, 10])  # within a stage, and at the end of one
def test_a_resumed_run_ends_like_a_whole_one(G, tmp_path, at):
    x, path = own_view(G, [0.1], [0.0]), tmp_path / "state.safetensors"
    run = lambda **more: inversion3d.invert(
        G, x, losses.MSE(), **dict(pose_steps=3, latent_steps=2, num_steps=4, decoder_steps=3, starts=(0.1,)) | more
    )
    whole = optim.solve(run())
    for it in run():
        if it.step + 1 == at:
            it.state().save(path)
            break
    resumed = optim.solve(run(), checkpoint=path)
    assert [row["total"] for row in resumed.history] == [row["total"] for row in whole.history]
    assert [row["step"] for row in whole.history] == list(range(12)) and whole.ended == "all steps done"
    assert all(torch.equal(v, whole.variables[k]) for k, v in resumed.variables.items())
    it.state().save(path)
    with pytest.raises(StoreError, match=r"differs in \['lam_mse'\]"):
        optim.solve(run(lam_mse=0.5), checkpoint=path)


def test_poses_stay_where_training_saw_any(G):
    x = torch.rand(1, 3, 24, 24) * 2 - 1
    result = optim.solve(inversion3d.invert(G, x, losses.MSE(), pose_steps=30, num_steps=1, lr_camera=1.0))
    assert abs(float(result.yaw)) <= 3 * G.camera["h_stddev"] + 1e-6
    assert abs(float(result.pitch)) <= 3 * G.camera["v_stddev"] + 1e-6


def test_refusals_come_before_the_first_step(G):
    x = own_view(G, [0.0], [0.0])
    with pytest.raises(UnknownName, match="space='v'"):
        inversion3d.invert(G, x, losses.MSE(), space="v")
    with pytest.raises(TypeError, match="lr_styles"):
        inversion3d.invert(G, x, losses.MSE(), lr_styles=1)
    with pytest.raises(InvalidValue, match="starts"):
        inversion3d.invert(G, x, losses.MSE(), starts=())
    with pytest.raises(ShapeError, match="one picture, because"):
        inversion3d.invert(G, x.expand(2, -1, -1, -1), losses.MSE(), decoder_steps=5)
    numbers = {
        "pose_steps": -1,
        "latent_steps": -1,
        "num_steps": 0,
        "lam_prior": -1.0,
        "lr_style": 0.0,
        "beta2": 1.0,
        "starts": (math.nan,),
    }
    for name, bad in numbers.items():
        with pytest.raises(InvalidValue, match=name):
            inversion3d.invert(G, x, losses.MSE(), **{name: bad})
    for bad in (x[0], x[:0]):
        with pytest.raises(ShapeError, match="target of shape"):
            inversion3d.invert(G, bad, losses.MSE())
    for bad in (x + 3, torch.full_like(x, math.nan)):
        with pytest.raises(InvalidValue, match="target with values"):
            inversion3d.invert(G, bad, losses.MSE())
