"""The result of a 3D-aware inversion as a solid: clay, a mesh or point cloud for any viewer, a turntable film."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from PIL import Image
from skimage.measure import marching_cubes
from torch import Tensor

from .. import store
from ..errors import InvalidValue, ShapeError, UnknownName, number
from ..image import to_uint8
from ..inversion3d import styles_of
from ..nets import cameras, volume
from ..nets.cips3d import CIPS3D, Styles, View

CHUNK = 100_000  # points evaluated at once
QUALITY = 85  # of a film, out of 100


@torch.inference_mode()
def mesh(
    G: CIPS3D, variables: dict[str, Tensor], resolution: int = 96, *, seen_from: Sequence[float] | None = None
) -> trimesh.Trimesh:
    """The coloured surface at which one sample of a ray absorbs half of the light; for `export`.

    variables: from an `inversion3d.Result` of one picture. resolution: cells along each side of the sampled cube.
    seen_from: yaws of level cameras, radians; what none of them sees, such as the inside and the back of a head that
    was only ever seen from the front, is left out. Vertices are in the object's frame (x right, y up, z to the viewer;
    the camera is at distance 1). The colour of a vertex is what the INR head gives for its features alone.

    Raises:
        ShapeError: several pictures. InvalidValue: the density is too low everywhere.
    """
    resolution = number("resolution", resolution, "whole [2, inf)")
    styles = styles_of(G, variables)
    if len(styles["nerf"]) != 1:
        raise ShapeError(
            f"styles of {len(styles['nerf'])} pictures", expected="of one", do="index one picture, as v[:1]"
        )
    near, far, level = float(G.camera["ray_start"]), float(G.camera["ray_end"]), G.level
    half = max(math.tan(math.radians(float(G.camera["fov"])) / 2), 1 - near)
    axis = torch.linspace(-half, half, resolution)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    density = torch.cat(
        [G.siren.density(part[None].to(styles["nerf"]), styles["nerf"])[0, :, 0] for part in grid.split(CHUNK)]
    )
    if seen_from is None:
        reached = grid.norm(dim=1) < min(1 - near, far - 1)  # what rays from every side sample
        density = torch.where(reached, density.cpu(), torch.zeros(()))
    density = density.cpu().reshape(resolution, resolution, resolution)
    if not bool((density > level).any()):
        raise InvalidValue(
            f"a density of at most {float(density.max()):.3g}",
            expected=f"{level:.3g} somewhere, at which a sample absorbs half of the light",
            do="train the generator for longer",
        )
    places, faces, _, _ = marching_cubes(density.numpy(), level, spacing=(2 * half / (resolution - 1),) * 3)
    places = places - half
    if seen_from is not None:
        places, faces = _seen(G, styles, places, faces, seen_from, 2 * half / (resolution - 1))
    at = torch.from_numpy(places).float()[None].to(styles["nerf"])
    colours = G.inr_net(G.siren(at, styles["nerf"])[0], styles["inr"])[0]
    # The faces of marching_cubes point to the denser side; ours point outwards.
    return trimesh.Trimesh(places, faces[:, ::-1], vertex_colors=_bytes(colours), process=False)


def _seen(
    G: CIPS3D, styles: Styles, places: np.ndarray, faces: np.ndarray, yaws: Sequence[float], cell: float
) -> tuple[np.ndarray, np.ndarray]:
    """The faces with a corner near what some camera sees first, and the vertices they use."""
    at, seen = torch.from_numpy(places).float().to(styles["nerf"]), np.zeros(len(places), bool)
    for yaw in yaws:
        camera = cameras.orbit(float(yaw), 0.0).to(at)
        there = (at - camera[0, :3, 3]) @ camera[0, :3, :3]
        flat = there[:, :2] / -there[:, 2:] / math.tan(math.radians(float(G.camera["fov"])) / 2)
        depth = G.synthesis(styles, camera, 2 * G.resolution, chunk=CHUNK // 10).depth
        grid = (flat * torch.tensor([1.0, -1.0]).to(flat))[None, None]
        first = F.grid_sample(depth, grid, align_corners=False, padding_mode="border")[0, 0, 0]
        inside = flat.abs().amax(1) < 1
        seen |= ((there.norm(dim=1) < first + 3 * cell) & inside).numpy(force=True)
    faces = faces[seen[faces].any(1)]
    used, faces = np.unique(faces, return_inverse=True)
    return places[used], faces.reshape(-1, 3)


def clay(depth: Tensor, opacity: Tensor, fov: float) -> Tensor:
    """The shape of views alone, as grey clay under one lamp: pictures [N, 3, H, W] in [-1, 1] from their depths.

    depth, opacity: [N, 1, H, W], as in a `View` with rays through pixel centres. fov: of the camera, in degrees. The
    lamp is to the upper right of the camera.
    """
    height, width = depth.shape[2:]
    ray = volume.directions(height, width, fov, centres=True, like=depth).T.reshape(1, 3, height, width)
    places = ray * depth
    normal = F.normalize(torch.linalg.cross(_step(places, 2), _step(places, 3), dim=1), dim=1)
    lamp = F.normalize(torch.tensor((0.4, 0.5, 0.77)).to(depth), dim=0).reshape(1, 3, 1, 1)
    shade = 0.15 + 0.8 * (normal * lamp).sum(1, keepdim=True).clamp(min=0)
    return ((shade * opacity + 0.5 * (1 - opacity)) * 2 - 1).expand(-1, 3, -1, -1)


def _step(places: Tensor, dim: int) -> Tensor:
    """From each point to the next along a dimension, or from the one before: whichever is the shorter step, so that the
    edge of a nearer part has the slope of that part."""
    step = places.diff(dim=dim)
    after = torch.cat((step, step.narrow(dim, -1, 1)), dim)
    before = torch.cat((step.narrow(dim, 0, 1), step), dim)
    return torch.where(after.norm(dim=1, keepdim=True) < before.norm(dim=1, keepdim=True), after, before)


def points(G: CIPS3D, view: View, camera: Tensor, opaque: float = 0.9) -> trimesh.PointCloud:
    """The coloured points of one view [1, 3, H, W] whose opacity exceeds `opaque`; for `export`.

    In the object's frame, as in `mesh`.
    """
    opaque = number("opaque", opaque, "[0, 1)")
    height, width = view.image.shape[2:]
    local = volume.directions(height, width, float(G.camera["fov"]), centres=G.centres, like=view.image)
    places = camera[0, :3, 3] + (local @ camera[0, :3, :3].T) * view.depth.reshape(-1, 1)
    kept = view.opacity.reshape(-1) > opaque
    colours = view.image[0].flatten(1).T[kept]
    return trimesh.PointCloud(places[kept].numpy(force=True), colors=_bytes(colours))


def _bytes(colours: Tensor) -> np.ndarray:
    """[P, 3] in [-1, 1] -> uint8 [P, 3]."""
    return to_uint8(colours.T[None, :, None])[0, 0]


def export(solid: trimesh.Trimesh | trimesh.PointCloud, path: str | Path, *, force: bool = False) -> Path:
    """Write a mesh or points as .ply or .glb, completely or not at all, and return the path.

    force: replace an existing file; without it, one is a `StoreError`.
    """
    path = _named(path, ".ply", ".glb", what="a solid")
    data = solid.export(file_type=path.suffix[1:])
    return store.write_bytes(store.new(path, force=force), data)


def turntable(
    look: Callable[[float], Tensor],
    yaws: Sequence[float],
    path: str | Path,
    *,
    seconds: float = 4.0,
    force: bool = False,
) -> Path:
    """Write a film that turns back and forth over `yaws`, as an animated .webp, .png or .gif, and return its path.

    look: yaw in radians -> picture [1, 3, H, W] in [-1, 1]. seconds: duration of one turn back and forth. force: as in
    `export`; the path is checked before the first picture is rendered.
    """
    path = store.new(_named(path, ".webp", ".png", ".gif", what="a film"), force=force)
    seconds = number("seconds", seconds, "(0, inf)")
    if not len(yaws):
        raise InvalidValue("a film without a yaw", expected="one or more", do="pass the yaws to look from")
    frames = [Image.fromarray(to_uint8(look(float(yaw)))[0]) for yaw in yaws]
    frames += frames[-2:0:-1]
    with store.atomic(path) as temp:
        how = {"format": path.suffix[1:], "save_all": True, "append_images": frames[1:], "loop": 0, "quality": QUALITY}
        frames[0].save(temp, duration=round(1000 * seconds / len(frames)), **how)
    return path


def _named(path: str | Path, *suffixes: str, what: str) -> Path:
    """The path, if it has one of `suffixes`; `UnknownName` otherwise."""
    path = Path(path)
    if path.suffix not in suffixes:
        known = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UnknownName(
            f"{what} called {path.name}", expected=known, do=f"change the suffix, such as to {suffixes[0]}"
        )
    return path
