"""Training of the 3D-aware GAN: it learns, resumes to the same, never meets a true pose, and what ships is measured."""

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
SMALL |= dict(inr_style=16, inr_blocks=4, nerf_mapping=2, inr_mapping=2, resolution=64, centres=True)


def recipe(**changes):
    config = SMALL | {"camera": gan3d.Gan3dRecipe().config["camera"] | {"num_steps": 4}}
    small = dict(config=config, critic={64: 4, 32: 4, 16: 4, 8: 4, 4: 4}, batch=4, rays=64, adversarial_every=2)
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


def test_heads_are_on_the_ground_and_their_poses_are_read(data, folder):
    x, mask = data.batch(torch.arange(8))
    assert x.shape == (8, 3, 64, 64) and mask.shape == (8, 1, 64, 64) and data.z.shape == (8, gan3d.Z_DIM)
    assert (x - world.GROUND).abs()[(mask == 0).expand_as(x)].max() < 0.01
    true = portraits.sample(8, seed=0).pose
    error = (data.poses - true).abs()
    assert 0 < error.mean() < 0.08 and not torch.equal(data.poses, true)
    before = (folder / "images.npy").stat().st_mtime_ns
    assert list(human_heads.render(folder, 8, z_dim=gan3d.Z_DIM, seed=0)) == [8]
    assert (folder / "images.npy").stat().st_mtime_ns == before


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


def test_training_is_given_no_true_pose(data, tmp_path, monkeypatch):
    """The set's poses are the reader's alone, and a latent says nothing of the pose."""
    monkeypatch.setattr(human_heads.pose, "read", lambda x: torch.full((len(x), 2), 0.123))
    real = portraits.sample
    turned = lambda n, seed: (p := real(n, seed=seed)).replace(pose=p.pose.flip(0))
    monkeypatch.setattr(portraits, "sample", turned)
    list(human_heads.render(tmp_path, 8, z_dim=gan3d.Z_DIM, seed=0))
    other = human_heads.load(tmp_path)
    assert (other.poses == 0.123).all() and torch.equal(other.z, data.z) and not (other.images == data.images).all()


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
    assert {"training PSNR", "depth error", "reprojected", "Frechet distance"} <= set(found)
    assert all(
        v == v
        for k, v in found.items()
        if "depth" not in k and "shape" not in k and k not in ("reprojected", "unwarped")
    )
    G = weights.load_generator3d(tmp_path / f"{gan3d.NAME}.safetensors")
    D = weights.load_discriminator(tmp_path / f"{gan3d.NAME}_discriminator.safetensors")
    assert D(G(torch.randn(4, G.z_dim), cameras.orbit(0.1, 0.0))).shape == (4, 1)
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
    others = ("training PSNR", "pose error", "depth error", "depth bias", "shape error", "flat shape error")
    others += ("reprojected", "unwarped")
    others += ("Frechet distance", "of the training latents", "of other renders")
    card = ship_gan3d._card(told, gan3d.State(recipe()).ema, yaws | dict.fromkeys(others, 1.0), 8)
    for part in (
        "16 pictures by regression at 64 rays",
        "4 whole ones",
        "8 pictures follow",
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
        large = G.synthesis(styles, cameras.orbit(0.3, 0.0), 128)
    turned = (pose.read(b.image) - pose.read(a.image))[:, 0]
    assert (turned > 0.25).all(), "the reader of poses sees them turn"
    small = torch.nn.functional.avg_pool2d(large.image, 2)
    assert (small - b.image).abs().mean() < 0.02
    fov = G.camera["fov"]
    warped, seen = volume.reproject(a.image, a.depth, cameras.orbit(-0.3, 0.0), b.depth, cameras.orbit(0.3, 0.0), fov)
    seen = (seen * (b.opacity > 0.9)).expand_as(warped) > 0
    assert (warped - b.image)[seen].abs().mean() < 0.6 * (a.image - b.image)[seen].abs().mean()
