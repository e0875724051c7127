"""What a 3D-aware inversion found, as a solid: a mesh or points for any viewer, and a film of turning it."""

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
from ..errors import ShapeError, number
from ..image import to_uint8
from ..inversion3d import styles_of
from ..nets import volume
from ..nets.cips3d import CIPS3D, View

CHUNK = 100_000  # points whose density is asked for at once


@torch.inference_mode()
def mesh(G: CIPS3D, variables: dict[str, Tensor], resolution: int = 96) -> trimesh.Trimesh:
    """The surface where one sample of a ray stops half of the light, with colours; for `export`.

    variables: of a `inversion3d.Result` of one picture. resolution: cells along each side of the cube that is searched.
    Vertices are in the object's frame (x right, y up, z to the viewer; the camera's distance is 1). A vertex has the
    colour that the INR head gives to its features alone.

    Raises:
        ShapeError: several pictures, or a density that reaches the level nowhere.
    """
    resolution = number("resolution", resolution, "whole [2, inf)")
    styles = styles_of(G, variables)
    if len(styles["nerf"]) != 1:
        raise ShapeError(f"styles of {len(styles['nerf'])} pictures", expected="of one", do="pick one of them")
    near, far, count = (float(G.camera[k]) for k in ("ray_start", "ray_end", "num_steps"))
    level = math.log(2) * (count - 1) / (far - near)  # 1 - exp(-density x length) = 1/2
    half = max(math.tan(math.radians(float(G.camera["fov"])) / 2), 1 - near)
    axis = torch.linspace(-half, half, resolution)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    density = torch.cat(
        [G.siren(part[None].to(styles["nerf"]), styles["nerf"])[1][0, :, 0] for part in grid.split(CHUNK)]
    )
    reached = grid.norm(dim=1) < min(1 - near, far - 1)  # what rays from every side have sampled
    density = torch.where(reached, density.cpu(), torch.zeros(())).reshape(resolution, resolution, resolution)
    if not bool((density > level).any()):
        raise ShapeError(
            f"a density of at most {float(density.max()):.3g}",
            expected=f"{level:.3g}, at which a sample stops half of the light, somewhere",
            do="train the generator for longer",
        )
    places, faces, _, _ = marching_cubes(density.numpy(), level, spacing=(2 * half / (resolution - 1),) * 3)
    places = places - half
    at = torch.from_numpy(places).float()[None].to(styles["nerf"])
    colours = G.inr_net(G.siren(at, styles["nerf"])[0], styles["inr"])[0]
    # marching_cubes' faces turn their backs on the denser side; ours look outwards.
    return trimesh.Trimesh(places, faces[:, ::-1], vertex_colors=_bytes(colours), process=False)


def points(G: CIPS3D, view: View, camera: Tensor, opaque: float = 0.9) -> trimesh.PointCloud:
    """The points of one view [1, 3, H, W] where light comes from at least `opaque` of the density, with its colours.

    In the object's frame, as `mesh`; for `export`.
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
    """Write a mesh or points as .ply or .glb, whole or not at all; returns the path.

    force: replace a file that is there; without it that is a `StoreError`.
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
    """Write a film that turns to and fro over `yaws`, as an animated .webp, .png or .gif; returns its path.

    look: yaw in radians -> picture [1, 3, H, W] in [-1, 1]. seconds: of one turn to and fro. force: as in `export`; the
    path is tried before the first picture is drawn.
    """
    path = store.new(_named(path, ".webp", ".png", ".gif", what="a film"), force=force)
    seconds = number("seconds", seconds, "(0, inf)")
    if not len(yaws):
        raise ShapeError("a film without a yaw", expected="one or more", do="give the yaws to look from")
    frames = [Image.fromarray(to_uint8(look(float(yaw)))[0]) for yaw in yaws]
    frames += frames[-2:0:-1]
    with store.atomic(path) as temp:
        how = {"format": path.suffix[1:], "save_all": True, "append_images": frames[1:], "loop": 0}
        frames[0].save(temp, duration=round(1000 * seconds / len(frames)), **how)
    return path


def _named(path: str | Path, *suffixes: str, what: str) -> Path:
    """The path, if it ends in one of `suffixes`."""
    path = Path(path)
    if path.suffix not in suffixes:
        known = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise ShapeError(f"{what} called {path.name}", expected=known, do="change the suffix")
    return path
