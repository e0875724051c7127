"""The result of a 3D-aware inversion as a solid: a mesh or point cloud for any viewer, and a turntable film."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image
from skimage.measure import marching_cubes
from torch import Tensor

from .. import store
from ..errors import InvalidValue, ShapeError, UnknownName, number
from ..image import to_uint8
from ..inversion3d import styles_of
from ..nets import volume
from ..nets.cips3d import CIPS3D, View

CHUNK = 100_000  # points evaluated at once


@torch.inference_mode()
def mesh(G: CIPS3D, variables: dict[str, Tensor], resolution: int = 96) -> trimesh.Trimesh:
    """The coloured surface at which one sample of a ray absorbs half of the light; for `export`.

    variables: from an `inversion3d.Result` of one picture. resolution: cells along each side of the sampled cube.
    Vertices are in the object's frame (x right, y up, z to the viewer; the camera is at distance 1). The colour of a
    vertex is what the INR head gives for its features alone.

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
        [G.siren(part[None].to(styles["nerf"]), styles["nerf"])[1][0, :, 0] for part in grid.split(CHUNK)]
    )
    reached = grid.norm(dim=1) < min(1 - near, far - 1)  # what rays from every side sample
    density = torch.where(reached, density.cpu(), torch.zeros(())).reshape(resolution, resolution, resolution)
    if not bool((density > level).any()):
        raise InvalidValue(
            f"a density of at most {float(density.max()):.3g}",
            expected=f"{level:.3g} somewhere, at which a sample absorbs half of the light",
            do="train the generator for longer",
        )
    places, faces, _, _ = marching_cubes(density.numpy(), level, spacing=(2 * half / (resolution - 1),) * 3)
    places = places - half
    at = torch.from_numpy(places).float()[None].to(styles["nerf"])
    colours = G.inr_net(G.siren(at, styles["nerf"])[0], styles["inr"])[0]
    # The faces of marching_cubes point to the denser side; ours point outwards.
    return trimesh.Trimesh(places, faces[:, ::-1], vertex_colors=_bytes(colours), process=False)


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
        how = {"format": path.suffix[1:], "save_all": True, "append_images": frames[1:], "loop": 0}
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
