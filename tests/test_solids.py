"""Meshes, points and films of 3D-aware generators, against a ball whose surface is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import nn

from hrlib.errors import InvalidValue, ShapeError, StoreError, UnknownName
from hrlib.lab import solids
from hrlib.nets import cameras
from hrlib.nets.cips3d import CIPS3D

RADIUS = 0.1


class Ball(nn.Module):
    """In place of the NeRF: a ball, dense within; features say which way is up."""

    def forward(self, points, styles):
        density = 40_000 * (RADIUS - points.norm(dim=-1, keepdim=True))
        return torch.cat((points[..., 1:2] * 10, torch.zeros(*points.shape[:-1], 7)), -1), density

    def density(self, points, styles):
        return self(points, styles)[1]


@pytest.fixture(scope="module")
def G():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CIPS3D(
            z_dim=8, z_dim_inr=8, nerf_hidden=16, rgb_dim=8, nerf_style=8, inr_hidden=12, inr_style=8, inr_blocks=4,
            nerf_mapping=2, inr_mapping=2, resolution=32, centres=True,
            camera=dict(num_steps=40, hierarchical_sample=False, fov=16.0),
        )  # fmt: skip
    return net.eval().requires_grad_(False)


@pytest.fixture
def ball(G, monkeypatch):
    monkeypatch.setattr(G.siren, "forward", Ball().forward)
    monkeypatch.setattr(G.siren, "density", Ball().density)
    return G


def test_the_mesh_is_the_ball_with_its_outside_out(ball, tmp_path):
    found = solids.mesh(ball, ball.average(), 64)
    assert np.allclose(np.linalg.norm(found.vertices, axis=1), RADIUS, atol=0.003)
    assert found.is_watertight and found.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.1)
    assert (np.einsum("ij,ij->i", found.vertex_normals, found.vertices) > 0).mean() > 0.99
    found.export(tmp_path / "ball.ply")
    again = trimesh.load(tmp_path / "ball.ply")
    assert len(again.faces) == len(found.faces) and again.visual.vertex_colors.shape == (len(found.vertices), 4)
    top, bottom = (again.visual.vertex_colors[again.vertices[:, 1] * s > 0.08][:, :3].mean(0) for s in (1, -1))
    assert np.abs(top - bottom).max() > 2, "vertices have colours of their own"


def test_what_no_camera_sees_is_left_out_of_a_mesh(ball):
    found = solids.mesh(ball, ball.average(), 64, seen_from=(-0.5, 0.0, 0.5))
    whole = solids.mesh(ball, ball.average(), 64)
    front = whole.vertices[:, 2] > 0.02
    assert 0.98 * front.sum() < (found.vertices[:, 2] > 0.02).sum() and found.vertices[:, 2].min() > -0.085
    assert np.allclose(np.linalg.norm(found.vertices, axis=1), RADIUS, atol=0.003)


def test_clay_is_lit_from_the_lamp_and_stands_on_grey(ball):
    with torch.no_grad():
        view = ball.synthesis(ball.average(), cameras.orbit(0.0, 0.0), 64)
    found = solids.clay(view.depth, view.opacity, 16.0)
    assert found.shape == (1, 3, 64, 64) and found.abs().max() <= 1 and found[0, :, 0, 0].abs().max() < 0.05
    lit, dark = found[0, 0, 20:28, 36:44].mean(), found[0, 0, 36:44, 20:28].mean()
    assert lit > dark + 0.5


def test_points_of_a_view_lie_on_the_near_side(ball):
    camera = cameras.orbit(0.4, 0.1)
    with torch.no_grad():
        view = ball.synthesis(ball.average(), camera)
    found = solids.points(ball, view, camera)
    assert 100 < len(found.vertices) < 32 * 32
    assert np.allclose(np.linalg.norm(found.vertices, axis=1), RADIUS, atol=0.012)
    assert (found.vertices @ camera[0, :3, 2].numpy() > -0.01).all(), "towards the camera"


def test_a_density_that_is_nowhere_solid_is_no_mesh(G, monkeypatch):
    monkeypatch.setattr(G.siren, "density", lambda points, styles: torch.zeros(*points.shape[:-1], 1))
    with pytest.raises(InvalidValue, match="absorbs half of the light"):
        solids.mesh(G, G.average(), 16)
    two = {k: v.expand(2, -1, -1) for k, v in G.average().items()}
    with pytest.raises(ShapeError, match="of 2 pictures"):
        solids.mesh(G, two, 16)


def test_a_turntable_goes_to_and_fro(tmp_path):
    look = lambda yaw: torch.full((1, 3, 8, 8), yaw)
    path = solids.turntable(look, [-0.8, 0.0, 0.8], tmp_path / "film.webp", seconds=1)
    with Image.open(path) as film:
        assert film.n_frames == 4 and film.info["loop"] == 0
        shades = [np.asarray(frame.convert("L")).mean() for frame in map(lambda k: film.seek(k) or film, range(4))]
    assert shades[0] < shades[1] < shades[2] and shades[1] == pytest.approx(shades[3], abs=2)
    with pytest.raises(StoreError, match="there already"):
        solids.turntable(lambda yaw: pytest.fail("work began"), [0.0], path)
    assert solids.turntable(look, [0.0], path, force=True) == path
    with pytest.raises(UnknownName, match=r"\.webp, \.png or \.gif"):
        solids.turntable(look, [0.0], tmp_path / "film.mp4")


def test_a_solid_is_exported_whole_or_not_at_all(tmp_path):
    solid = trimesh.creation.box()
    for name in ("box.ply", "box.glb"):
        path = solids.export(solid, tmp_path / name)
        assert len(trimesh.load(path, force="mesh").faces) == 12
        before = path.read_bytes()
        with pytest.raises(StoreError, match="there already"):
            solids.export(solid, path)
        assert path.read_bytes() == before
    cloud = solids.export(trimesh.PointCloud(np.eye(3)), tmp_path / "box.ply", force=True)
    assert len(trimesh.load(cloud).vertices) == 3
    with pytest.raises(UnknownName, match=r"\.ply or \.glb"):
        solids.export(solid, tmp_path / "box.obj")
    assert not list(tmp_path.glob(".partial*"))
