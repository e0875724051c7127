"""Training of the 3D-aware GAN: its set is right, it learns, resumes to the same, and what ships is measured."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hrlib import weights
from hrlib.errors import StoreError
from hrlib.nets import cameras, volume
from hrlib.training import checkpoints, gan3d, human_heads, loop, ship_gan3d
from hrlib.worlds import heads as world
from hrlib.worlds import portraits

SMALL = dict(z_dim=gan3d.Z_DIM, z_dim_inr=gan3d.Z_DIM, nerf_hidden=16, rgb_dim=8, nerf_style=16, inr_hidden=16)
SMALL |= dict(inr_style=16, inr_blocks=4, nerf_mapping=2, inr_mapping=2, resolution=96, centres=True)


def recipe(**changes):
    config = SMALL | {"camera": gan3d.Gan3dRecipe().config["camera"] | {"num_steps": 4, "focus": 3}}
    small = dict(
        config=config, critic={64: 4, 32: 4, 16: 4, 8: 4, 4: 4}, batch=4, rays=64, adversarial_every=2, held_out=2
    )
    return dataclasses.replace(
        gan3d.Gan3dRecipe(), **small | dict(ray_images=16, whole_images=4, total_images=28) | changes
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    assert list(human_heads.render(root, 8, z_dim=gan3d.Z_DIM, seed=0))[-1] == 8
    return root


@pytest.fixture(scope="module")
def data(folder):
    return human_heads.load(folder)


class Stop(Exception):
    pass


def test_the_set_holds_heads_their_poses_and_depths(data, folder):
    x, mask, distance = data.batch(torch.arange(8))
    assert x.shape == (8, 3, 96, 96) and mask.shape == (8, 2, 96, 96) and data.z.shape == (8, gan3d.Z_DIM)
    assert (x - world.GROUND).abs()[(mask[:, :1] == 0).expand_as(x)].max() < 0.01
    assert (mask[:, 1] <= mask[:, 0] + 0.01).all(), "a face is part of its head"
    _, poses = human_heads.people(8, 0)
    assert torch.equal(data.poses, poses) and poses[:, 0].abs().max() <= human_heads.YAW
    near = torch.isfinite(distance)
    assert ((mask[:, :1] > 0.9) <= near).float().mean() > 0.99 and 0.8 < distance[near].min() < distance[
        near
    ].max() < 1.2
    before = (folder / "images.npy").stat().st_mtime_ns
    assert list(human_heads.render(folder, 8, z_dim=gan3d.Z_DIM, seed=0)) == [8]
    assert (folder / "images.npy").stat().st_mtime_ns == before


def test_depths_of_two_views_of_a_head_agree():
    """Points of one view, seen from another camera, have the depths of the other view."""
    people, fov = portraits.sample(4, seed=3), human_heads.FOV
    local = volume.directions(96, 96, fov, centres=True, like=people.pose)[:, 2].reshape(96, 96)
    views = []
    for yaw, pitch in ((0.0, 0.0), (0.3, 0.1)):
        drawn = world.draw(world.turned(people, yaw, pitch), 96)
        distance = (drawn.depth / -local / world.DISTANCE).nan_to_num(2.0)
        views.append((drawn.image, distance, cameras.orbit(yaw, pitch)))
    (x, z, first), (y, other, second) = views
    warped, seen = volume.reproject(x, z, first, other, second, fov, tolerance=0.004)
    assert seen[other < 2].mean() > 0.6
    assert ((warped - y).abs() * seen).sum() / seen.sum() / 3 < 0.1


def test_a_latent_says_nothing_of_the_pose():
    people = portraits.sample(8, seed=5)
    turned = world.turned(people, 0.4, 0.1)
    assert torch.allclose(human_heads.explained(people), human_heads.explained(turned), atol=1e-6)


def test_an_interrupted_rendering_goes_on_to_the_same_end(data, tmp_path, monkeypatch):
    monkeypatch.setattr(human_heads, "CHUNK", 5)
    assert next(human_heads.render(tmp_path, 8, z_dim=gan3d.Z_DIM, seed=0)) == 5
    with pytest.raises(StoreError, match="5 rendered heads"):
        human_heads.load(tmp_path)
    assert list(human_heads.render(tmp_path, 8, z_dim=gan3d.Z_DIM, seed=0)) == [8, 8]
    again = human_heads.load(tmp_path)
    assert (again.images == data.images).all() and torch.equal(again.poses, data.poses)
    with pytest.raises(StoreError, match="hrlab train gan3d"):
        human_heads.load(tmp_path / "none")


def test_a_stopped_training_goes_on_to_the_same_end(data, tmp_path):
    told, left = [], [3]

    def tell(text):
        told.append(text)
        left[0] -= 1
        if not left[0]:
            raise Stop

    whole = gan3d.run(data, tmp_path / "whole", recipe=recipe(), every=8, tell=told.append)
    with pytest.raises(Stop):
        gan3d.run(data, tmp_path / "parts", recipe=recipe(), every=8, tell=tell)
    parts = gan3d.run(data, tmp_path / "parts", recipe=recipe(), every=8, tell=told.append)
    a, b = (checkpoints.gather(s.parts) for s in (whole, parts))
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
    assert (tmp_path / "whole" / "samples.png").exists() and whole.step == 7
    with pytest.raises(StoreError, match="rays"):
        gan3d.run(data, tmp_path / "parts", recipe=recipe(rays=32), tell=told.append)


def test_it_learns(data):
    state = gan3d.State(recipe(ray_images=160, whole_images=0, total_images=160))
    rows = list(gan3d.train(recipe(ray_images=160, whole_images=0, total_images=160), data, state))
    mean = lambda part: sum(r["mse"] + r["aux"] + r["mask"] for r in part) / len(part)
    assert mean(rows[-5:]) < 0.8 * mean(rows[:5])


def test_what_ships_is_measured_and_loads(data, tmp_path):
    run = tmp_path / "run"
    gan3d.run(data, run, recipe=recipe(), tell=lambda text: None)
    found = ship_gan3d.ship(run, data, tmp_path, n=8)
    assert {"own PSNR", "depth error", "reprojected", "Frechet distance"} <= set(found)
    assert all(
        v == v
        for k, v in found.items()
        if "depth" not in k and "shape" not in k and k not in ("reprojected", "unwarped", "glasses seen")
    )
    G = weights.load_generator3d(tmp_path / f"{gan3d.NAME}.safetensors")
    D = weights.load_discriminator(tmp_path / f"{gan3d.NAME}_discriminator.safetensors")
    assert D(G(torch.randn(4, G.z_dim), cameras.orbit(0.1, 0.0))[:, :, 16:80, 16:80]).shape == (4, 1)
    assert (tmp_path / f"{gan3d.NAME}.log.csv").exists() and (tmp_path / f"{gan3d.NAME}_discriminator.md").exists()
    with pytest.raises(StoreError, match="is there already"):
        ship_gan3d.ship(run, data, tmp_path, n=8)


def test_reprojection_of_a_known_scene():
    """A plane facing the first camera: by its depth the second camera's picture is found, except what only it sees."""
    fov, size = 20.0, 64
    first, second = cameras.orbit(0.0, 0.0), cameras.orbit(0.2, 0.0)

    def plane(camera):
        ray = volume.directions(size, size, fov, centres=True, like=camera) @ camera[0, :3, :3].T
        distance = -camera[0, 2, 3] / ray[:, 2]
        point = camera[0, :3, 3] + ray * distance[:, None]
        colour = (point * torch.tensor([20.0, 30.0, 0.0])).sin()
        return colour.T.reshape(1, 3, size, size), distance.reshape(1, 1, size, size)

    (x, z), (y, other) = plane(first), plane(second)
    warped, seen = volume.reproject(x, z, first, other, second, fov)
    assert seen.mean() > 0.9
    assert ((warped - y).abs() * seen).max() < 0.05 < (x - y).abs().max()


def test_cards_say_what_the_checkpoint_says(data, tmp_path):
    run = tmp_path / "run"
    gan3d.run(data, run, recipe=recipe(), tell=lambda text: None)
    told = loop.trained(run)
    assert told.images == 28
    yaws = {f"{kind} at yaw {yaw:+.2f}": 20.0 for yaw in ship_gan3d.YAWS for kind in ("PSNR", "flat PSNR")}
    others = ("own PSNR", "glasses seen", "none seen", "depth error", "depth bias", "shape error", "flat shape error")
    others += ("reprojected", "unwarped")
    others += ("Frechet distance", "of their latents", "of other renders")
    card = ship_gan3d._card(told, gan3d.State(recipe()).ema, yaws | dict.fromkeys(others, 1.0), 8)
    for part in (
        "16 pictures by regression at 64 rays",
        "Then 4 at windows",
        "Then 8 more",
        "| +0.26 | 20.0 | 20.0 |",
    ):
        assert part in card


def test_the_shipped_network_turns_heads():
    """Views turn as portraits do, colours stay on the surface, and another size shows the same head."""
    from hrlib import pose

    G = weights.load_generator3d(gan3d.NAME)
    styles = G.mapping(torch.randn(8, G.z_dim, generator=torch.Generator().manual_seed(0)), truncation_psi=0.7)
    with torch.no_grad():
        a, b = (G.synthesis(styles, cameras.orbit(yaw, 0.0)) for yaw in (-0.3, 0.3))
        large = G.synthesis(styles, cameras.orbit(0.3, 0.0), 192)
    turned = (pose.read(b.image) - pose.read(a.image))[:, 0]
    assert (turned > 0.25).all(), "the reader of poses sees them turn"
    small = torch.nn.functional.avg_pool2d(large.image, 2)
    assert (small - b.image).abs().mean() < 0.02
    fov = G.camera["fov"]
    warped, seen = volume.reproject(a.image, a.depth, cameras.orbit(-0.3, 0.0), b.depth, cameras.orbit(0.3, 0.0), fov)
    seen = (seen * (b.opacity > 0.9)).expand_as(warped) > 0
    assert (warped - b.image)[seen].abs().mean() < 0.6 * (a.image - b.image)[seen].abs().mean()
