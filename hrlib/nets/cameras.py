"""Cameras on a sphere for 3D-aware generators: matrices [N, 4, 4] from the camera's frame to the object's.

A camera looks along its own -z, x to the right and y up. Three ways to make one:

    orbit(yaw, pitch)            # the head appears turned by yaw and pitch, as hrlib.worlds.portraits defines them
    sphere(theta, phi)           # CIPS-3D's angles: pi / 2 each is the frontal view
    look_at(position, direction) # a place and a viewing direction, the camera held upright
    read(path)                   # any of these from a JSON file

All are differentiable in their arguments.
"""

from __future__ import annotations

import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError, StoreError
from ..store import read_json

STEEPEST = 1.5  # radians of pitch: nearer the poles "up" is not defined well enough
FORMS = '{"yaw": 0.3, "pitch": 0}, {"position": [0, 0, 1], "direction": [0, 0, -1]} or {"matrix": 4 x 4}'


def orbit(yaw: Tensor | float, pitch: Tensor | float, radius: Tensor | float = 1.0) -> Tensor:
    """[N, 4, 4] cameras at `radius` that look at the origin and see a head at yaw and pitch.

    yaw, pitch: numbers or [N], radians; yaw > 0 turns the face to the picture's right, pitch > 0 up, exactly as
    `portraits.Portraits.pose` (the head pitches first, then turns).

    Raises:
        ShapeError: angles that are not finite, |yaw| > pi or |pitch| > 1.5, or a radius that is not positive.
    """
    yaw, pitch, radius = _numbers(yaw=yaw, pitch=pitch, radius=radius)
    _within("yaw", yaw, math.pi)
    _within("pitch", pitch, STEEPEST)
    if not bool((radius > 0).all()):
        raise ShapeError(f"radius {_extreme(radius)}", expected="a positive number", do="use 1 for networks of ours")
    (sy, sp), (cy, cp) = (yaw.sin(), pitch.sin()), (yaw.cos(), pitch.cos())
    zero = torch.zeros_like(sy)
    right = torch.stack((cy, -sy * sp, sy * cp), -1)  # the camera's axes, seen from the head
    up = torch.stack((zero, cp, sp), -1)
    back = torch.stack((-sy, -cy * sp, cy * cp), -1)
    return _matrix(right, up, back, back * radius[:, None])


def sphere(theta: Tensor | float, phi: Tensor | float, radius: Tensor | float = 1.0) -> Tensor:
    """[N, 4, 4] upright cameras that look at the origin, at CIPS-3D's angles theta (yaw) and phi (pitch).

    theta, phi: numbers or [N], radians, pi / 2 at the frontal view; phi must lie between 0 and pi.
    """
    theta, phi, radius = _numbers(theta=theta, phi=phi, radius=radius)
    _within("phi - pi / 2", phi - math.pi / 2, math.pi / 2 - 1e-5)
    place = torch.stack((phi.sin() * theta.cos(), phi.cos(), phi.sin() * theta.sin()), -1)
    return look_at(place * radius[:, None], -place)


def look_at(position: Tensor, direction: Tensor) -> Tensor:
    """[N, 4, 4] cameras at `position` [N, 3] that look along `direction` [N, 3] (of any length), held upright.

    Raises:
        ShapeError: other shapes, numbers that are not finite, a direction of length 0 or one that is vertical.
    """
    for name, value in (("position", position), ("direction", direction)):
        if value.ndim != 2 or value.shape[1] != 3 or len(value) != len(position) or not value.is_floating_point():
            raise ShapeError(
                f"camera {name} of shape {tuple(value.shape)} and type {value.dtype}",
                expected="float [N, 3], as many positions as directions",
                do="give one row a camera",
            )
        _finite(f"camera {name}", value)
    forward = F.normalize(direction, dim=-1)
    side = torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0]).to(forward).expand_as(forward))
    if not bool((side.norm(dim=-1) > 1e-4).all()):
        raise ShapeError(
            "a camera direction that is zero or vertical",
            expected="a direction at an angle to (0, 1, 0)",
            do="look from the side: see cameras.orbit",
        )
    right = F.normalize(side, dim=-1)
    return _matrix(right, torch.linalg.cross(right, forward), -forward, position)


def checked(camera: Tensor, n: int) -> Tensor:
    """The cameras [n, 4, 4] themselves ([1, 4, 4] is repeated), if they are cameras; `ShapeError` otherwise."""
    if not isinstance(camera, Tensor) or camera.shape[-2:] != (4, 4) or camera.ndim != 3 or len(camera) not in (1, n):
        got = tuple(camera.shape) if isinstance(camera, Tensor) else type(camera).__name__
        raise ShapeError(f"camera {got}", expected=f"[{n}, 4, 4] or [1, 4, 4]", do="make it with cameras.orbit")
    _finite("camera", camera)
    turn = camera[:, :3, :3].detach().double()
    off = (turn @ turn.mT - torch.eye(3).to(turn)).abs().max()
    bottom = (camera[:, 3].detach() - torch.tensor([0.0, 0.0, 0.0, 1.0]).to(camera)).abs().max()
    if off > 1e-3 or bottom > 1e-6 or bool((torch.linalg.det(turn) < 0).any()):
        raise ShapeError(
            "a camera matrix that is not a rotation and a place",
            expected="orthonormal right-handed axes and a last row of 0 0 0 1",
            do="make it with cameras.orbit or cameras.look_at",
        )
    return camera.expand(n, 4, 4)


def read(path: str | os.PathLike) -> Tensor:
    """[N, 4, 4] cameras of a JSON file: one object or a list of them, each in one of the forms of `FORMS`.

    Raises:
        ShapeError: it is no JSON, or an entry has none of the forms; the message names the entry.
    """
    try:
        content = read_json(path)
    except (OSError, StoreError) as e:
        told = e.got if isinstance(e, StoreError) else f"{path}: {e}"
        raise ShapeError(f"camera file {told}", expected=f"JSON: {FORMS}", do="correct the file") from e
    entries = content if isinstance(content, list) else [content]
    found = []
    for i, one in enumerate(entries):
        try:
            found.append(_entry(one))
        except (KeyError, TypeError, ValueError) as e:
            raise ShapeError(
                f"camera {i} of {path}: {one!r} ({type(e).__name__}: {e})", expected=FORMS, do="correct this entry"
            ) from e
        except ShapeError as e:
            raise ShapeError(f"camera {i} of {path}: {e.got}", expected=e.expected, do=e.do) from e
    if not found:
        raise ShapeError(f"camera file {path} holds no camera", expected=FORMS, do="add one")
    return torch.cat(found)


def _entry(one: dict) -> Tensor:
    if set(one) == {"matrix"}:
        return checked(torch.tensor(one["matrix"], dtype=torch.float32)[None], 1)
    if set(one) == {"position", "direction"}:
        return look_at(*(torch.tensor([one[k]], dtype=torch.float32) for k in ("position", "direction")))
    if not {"yaw", "pitch"} <= set(one) <= {"yaw", "pitch", "radius"}:
        raise ValueError(f"keys {', '.join(map(str, one))}")
    return orbit(**{k: float(v) for k, v in one.items()})


def _matrix(right: Tensor, up: Tensor, back: Tensor, place: Tensor) -> Tensor:
    top = torch.stack((right, up, back, place), -1)  # [N, 3, 4]
    return torch.cat([top, torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]).to(top).expand(len(top), 1, 4)], 1)


def _numbers(**named: Tensor | float) -> tuple[Tensor, ...]:
    """All as tensors [N] of one type and device; numbers and single values are repeated."""
    given = [v for v in named.values() if isinstance(v, Tensor) and v.is_floating_point()]
    like = given[0] if given else torch.zeros(())
    found = {k: torch.as_tensor(v, dtype=like.dtype, device=like.device) for k, v in named.items()}
    n = max((len(v) for v in found.values() if v.ndim), default=1)
    for name, value in found.items():
        if value.ndim > 1 or (value.ndim and len(value) not in (1, n)):
            raise ShapeError(
                f"{name} of shape {tuple(value.shape)}", expected=f"a number or [{n}]", do="give one angle a camera"
            )
        _finite(name, value)
    return tuple(v.reshape(-1).expand(n) for v in found.values())


def _finite(name: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise ShapeError(f"{name} with NaN or infinite numbers", expected="finite numbers", do="check its origin")


def _within(name: str, value: Tensor, most: float) -> None:
    if not bool((value.abs() <= most + 1e-6).all()):
        raise ShapeError(
            f"{name} of {_extreme(value):.4g} radians",
            expected=f"between -{most:.4g} and {most:.4g}",
            do="give angles in radians, not in degrees",
        )


def _extreme(value: Tensor) -> float:
    return float(value.detach().flatten()[value.detach().abs().argmax()])
