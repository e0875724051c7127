"""Cameras for 3D-aware generators: matrices [N, 4, 4] from the camera's frame to the object's.

In its own frame a camera looks along -z, with x to the right and y up. Four ways to make one:

    orbit(yaw, pitch)             # the head appears turned by yaw and pitch, as in hrlib.worlds.portraits
    sphere(theta, phi)            # CIPS-3D's angles; both are pi / 2 in the frontal view
    look_at(position, direction)  # a position and a viewing direction; the camera is upright
    read(path)                    # any of these, from a JSON file

The first three are differentiable in their arguments.
"""

from __future__ import annotations

import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import HRLibError, InvalidValue, ShapeError, StoreError
from ..store import read_json

STEEPEST = 1.5  # radians of pitch; closer to the poles, "up" is ill-defined
FORMS = '{"yaw": 0.3, "pitch": 0}, {"position": [0, 0, 1], "direction": [0, 0, -1]} or {"matrix": 4 x 4}'


def orbit(yaw: Tensor | float, pitch: Tensor | float, radius: Tensor | float = 1.0) -> Tensor:
    """[N, 4, 4] cameras at distance `radius` from the origin, which see a head there turned by yaw and pitch.

    yaw, pitch: numbers or [N], radians. yaw > 0 turns the face to the picture's right, pitch > 0 turns it up, exactly
        as in `portraits.Portraits.pose` (the head pitches first, then turns).

    Raises:
        InvalidValue: numbers that are not finite, |yaw| > pi, |pitch| > 1.5, or a radius that is not positive.
        ShapeError: tensors of different lengths.
    """
    yaw, pitch, radius = _numbers(yaw=yaw, pitch=pitch, radius=radius)
    _within("yaw", yaw, math.pi)
    _within("pitch", pitch, STEEPEST)
    if not bool((radius > 0).all()):
        raise InvalidValue(
            f"radius {float(radius.detach().min()):g}",
            expected="a positive number",
            do="use 1, the distance at which the shipped networks are trained",
        )
    (sy, sp), (cy, cp) = (yaw.sin(), pitch.sin()), (yaw.cos(), pitch.cos())
    zero = torch.zeros_like(sy)
    right = torch.stack((cy, -sy * sp, sy * cp), -1)  # the camera's axes in the head's frame
    up = torch.stack((zero, cp, sp), -1)
    back = torch.stack((-sy, -cy * sp, cy * cp), -1)
    return _matrix(right, up, back, back * radius[:, None])


def sphere(theta: Tensor | float, phi: Tensor | float, radius: Tensor | float = 1.0) -> Tensor:
    """[N, 4, 4] upright cameras that look at the origin, at CIPS-3D's angles theta (yaw) and phi (pitch).

    theta, phi: numbers or [N], radians; both are pi / 2 in the frontal view, and 0 < phi < pi.

    Raises:
        InvalidValue: numbers that are not finite, or a phi out of range. ShapeError: tensors of different lengths.
    """
    theta, phi, radius = _numbers(theta=theta, phi=phi, radius=radius)
    _within("phi - pi / 2", phi - math.pi / 2, math.pi / 2 - 1e-5)
    position = torch.stack((phi.sin() * theta.cos(), phi.cos(), phi.sin() * theta.sin()), -1)
    return look_at(position * radius[:, None], -position)


def look_at(position: Tensor, direction: Tensor) -> Tensor:
    """[N, 4, 4] upright cameras at `position` [N, 3] that look along `direction` [N, 3], of any length.

    Raises:
        ShapeError: other shapes or dtypes.
        InvalidValue: numbers that are not finite, or a direction that is zero or vertical.
    """
    for name, value in (("position", position), ("direction", direction)):
        if value.ndim != 2 or value.shape[1] != 3 or len(value) != len(position) or not value.is_floating_point():
            raise ShapeError(
                f"camera {name} of shape {tuple(value.shape)} and type {value.dtype}",
                expected="float [N, 3], with one position and one direction per camera",
                do="pass two tensors of the same length, one row per camera",
            )
        _finite(f"camera {name}", value)
    forward = F.normalize(direction, dim=-1)
    side = torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0]).to(forward).expand_as(forward))
    if not bool((side.norm(dim=-1) > 1e-4).all()):
        raise InvalidValue(
            "a camera direction that is zero or vertical",
            expected="a direction at an angle to (0, 1, 0)",
            do="tilt it slightly, or make the camera with cameras.orbit",
        )
    right = F.normalize(side, dim=-1)
    return _matrix(right, torch.linalg.cross(right, forward), -forward, position)


def checked(camera: Tensor, n: int) -> Tensor:
    """`camera` as [n, 4, 4] ([1, 4, 4] is repeated); `ShapeError` or `InvalidValue` unless it holds camera matrices."""
    if not isinstance(camera, Tensor) or camera.shape[-2:] != (4, 4) or camera.ndim != 3 or len(camera) not in (1, n):
        got = tuple(camera.shape) if isinstance(camera, Tensor) else type(camera).__name__
        raise ShapeError(f"camera {got}", expected=f"[{n}, 4, 4] or [1, 4, 4]", do="make it with cameras.orbit")
    _finite("camera", camera)
    turn = camera[:, :3, :3].detach().double()
    off = (turn @ turn.mT - torch.eye(3).to(turn)).abs().max()
    bottom = (camera[:, 3].detach() - torch.tensor([0.0, 0.0, 0.0, 1.0]).to(camera)).abs().max()
    if off > 1e-3 or bottom > 1e-6 or bool((torch.linalg.det(turn) < 0).any()):
        raise InvalidValue(
            "a camera matrix that is not a rotation and a translation",
            expected="orthonormal right-handed axes and a last row of 0 0 0 1",
            do="make it with cameras.orbit or cameras.look_at",
        )
    return camera.expand(n, 4, 4)


def read(path: str | os.PathLike) -> Tensor:
    """[N, 4, 4] cameras from a JSON file: one object or a list of objects, each in one of the `FORMS`.

    Raises:
        InvalidValue, ShapeError: the file cannot be read, is not JSON, or has a wrong entry, which the message names.
    """
    try:
        content = read_json(path)
    except (OSError, StoreError) as e:
        problem = e.got if isinstance(e, StoreError) else f"{path}: {e}"
        raise InvalidValue(
            f"camera file {problem}", expected=f"JSON: {FORMS}", do="check the path, and the file with a JSON editor"
        ) from e
    entries = content if isinstance(content, list) else [content]
    found = []
    for i, one in enumerate(entries):
        try:
            found.append(_entry(one))
        except HRLibError as e:
            raise type(e)(f"camera {i} of {path}: {e.got}", expected=e.expected, do=e.do) from e
        except (KeyError, TypeError, ValueError) as e:
            raise InvalidValue(
                f"camera {i} of {path}: {one!r} ({type(e).__name__}: {e})",
                expected=FORMS,
                do="write this entry in one of these forms",
            ) from e
    if not found:
        raise InvalidValue(f"no camera in {path}", expected=FORMS, do="add an entry in one of these forms")
    return torch.cat(found)


def _entry(one: dict) -> Tensor:
    if set(one) == {"matrix"}:
        return checked(torch.tensor(one["matrix"], dtype=torch.float32)[None], 1)
    if set(one) == {"position", "direction"}:
        return look_at(*(torch.tensor([one[k]], dtype=torch.float32) for k in ("position", "direction")))
    if not {"yaw", "pitch"} <= set(one) <= {"yaw", "pitch", "radius"}:
        raise ValueError(f"keys {', '.join(map(str, one))}")
    return orbit(**{k: float(v) for k, v in one.items()})


def _matrix(right: Tensor, up: Tensor, back: Tensor, position: Tensor) -> Tensor:
    top = torch.stack((right, up, back, position), -1)  # [N, 3, 4]
    return torch.cat([top, torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]).to(top).expand(len(top), 1, 4)], 1)


def _numbers(**named: Tensor | float) -> tuple[Tensor, ...]:
    """All as tensors [N] of one dtype and device; numbers and single values are repeated."""
    given = [v for v in named.values() if isinstance(v, Tensor) and v.is_floating_point()]
    like = given[0] if given else torch.zeros(())
    found = {k: torch.as_tensor(v, dtype=like.dtype, device=like.device) for k, v in named.items()}
    n = max((len(v) for v in found.values() if v.ndim), default=1)
    for name, value in found.items():
        if value.ndim > 1 or (value.ndim and len(value) not in (1, n)):
            raise ShapeError(
                f"{name} of shape {tuple(value.shape)}", expected=f"a number or [{n}]", do="pass one number per camera"
            )
        _finite(name, value)
    return tuple(v.reshape(-1).expand(n) for v in found.values())


def _finite(name: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise InvalidValue(
            f"{name} with NaN or infinite numbers", expected="finite numbers", do="check the computation it comes from"
        )


def _within(name: str, value: Tensor, most: float) -> None:
    if not bool((value.abs() <= most + 1e-6).all()):
        raise InvalidValue(
            f"{name} of {float(value.detach().flatten()[value.detach().abs().argmax()]):.4g} radians",
            expected=f"between -{most:.4g} and {most:.4g}",
            do="use a smaller angle, in radians, not in degrees",
        )
