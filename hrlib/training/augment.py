"""Adaptive discriminator augmentation (Karras et al. 2020, the paper's [4]), which makes 317 pictures enough.

The discriminator never sees an original picture: real and generated ones pass through `augment`, which applies each
transformation to each picture with probability p. p follows a sign of overfitting: how often the discriminator is sure
that a training picture is real (`adjust`).

As in the reference, geometry comes before colour, and both are linear: one affine map of the picture (one resampling,
with reflected borders) and one of its colours. Unlike in the reference, resampling is bilinear, without wavelet
filters: 4 % of a training step on a CPU instead of half of it. Flips, quarter turns and whole-pixel shifts are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from kornia.geometry.conversions import axis_angle_to_rotation_matrix
from kornia.geometry.transform import warp_affine
from torch import Tensor

ADJUST_EVERY = 4  # steps


def augment(x: Tensor, p: float, *, generator: torch.Generator) -> Tensor:
    """x [N, 3, R, R] -> [N, 3, R, R], differentiable in x; the draws are made on the CPU from `generator`.

    p in [0, 1] is the probability of each transformation; 0 returns x itself. Values may leave [-1, 1].
    """
    if p <= 0:
        return x
    size = tuple(x.shape[-2:])
    moves = geometry(len(x), size, p, generator=generator)[:, :2].to(x)
    x = warp_affine(x, moves, size, mode="bilinear", padding_mode="reflection", align_corners=False)
    dyes = colour(len(x), p, generator=generator).to(x)  # [N, 3, 4]
    return torch.baddbmm(dyes[:, :, 3:], dyes[:, :, :3], x.flatten(2)).view_as(x)


def mirror(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """x [N, 3, H, W], each picture mirrored with probability 1/2."""
    coins = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(coins.to(x.device)[:, None, None, None], x.flip(3), x)


def geometry(n: int, size: tuple[int, int], p: float, *, generator: torch.Generator) -> Tensor:
    """[n, 3, 3]: where each pixel (x, y, 1) of a picture of `size` goes."""
    height, width = size
    chance, normal, uniform = _draws(n, generator)
    eye = torch.eye(3).expand(n, 3, 3)
    side = torch.tensor([width, height], dtype=torch.float32)
    m = eye
    m = torch.where(chance(p / 2), _scale(-torch.ones(n), torch.ones(n)), eye) @ m  # flip: one of two states
    m = torch.where(chance(p), _rotate((uniform() * 4).floor() * math.pi / 2, exact=True), eye) @ m
    whole = ((torch.stack([uniform(), uniform()], 1) * 2 - 1) * 0.125 * side).round()
    m = torch.where(chance(p), _translate(whole), eye) @ m
    zoom = torch.exp2(normal() * 0.2)
    m = torch.where(chance(p), _scale(zoom, zoom), eye) @ m
    once = 1 - math.sqrt(1 - p)  # two rotations, before and after the anisotropic scale: p for at least one
    m = torch.where(chance(once), _rotate((uniform() * 2 - 1) * math.pi), eye) @ m
    stretch = torch.exp2(normal() * 0.2)
    m = torch.where(chance(p), _scale(stretch, 1 / stretch), eye) @ m
    m = torch.where(chance(once), _rotate((uniform() * 2 - 1) * math.pi), eye) @ m
    m = torch.where(chance(p), _translate(torch.stack([normal(), normal()], 1) * 0.125 * side), eye) @ m
    centre = (side - 1).expand(n, 2) / 2
    return _translate(centre) @ m @ _translate(-centre)


def colour(n: int, p: float, *, generator: torch.Generator) -> Tensor:
    """[n, 3, 4]: affine maps of RGB in [-1, 1]."""
    chance, normal, uniform = _draws(n, generator)
    eye = torch.eye(3).expand(n, 3, 3)
    grey = torch.full((3,), 3**-0.5)
    luma = torch.outer(grey, grey)
    shift = torch.where(chance(p)[:, 0], normal()[:, None] * 0.2, 0.0).expand(n, 3)[:, :, None]  # brightness
    contrast = torch.where(chance(p), torch.exp2(normal() * 0.5)[:, None, None], 1.0)
    flip = torch.where(chance(p / 2), eye - 2 * luma, eye)
    hue = torch.where(chance(p), axis_angle_to_rotation_matrix((uniform() * 2 - 1)[:, None] * math.pi * grey), eye)
    saturation = torch.where(chance(p), luma + (eye - luma) * torch.exp2(normal())[:, None, None], eye)
    m = saturation @ hue @ flip * contrast
    return torch.cat([m, m @ shift], dim=2)


def adjust(state: Tensor, signs: Tensor, *, target: float, images: int, step: int) -> None:
    """Count the signs of D(real) of a step into `state` and move p every `ADJUST_EVERY` steps, in place.

    Args:
        state: [3]: p, sum of signs since the last move, number of signs since then.
        signs: [2]: sum of the signs of the step and their number, over all processes.
        target: p rises while the mean sign is above, and falls while it is below.
        images: in which p may rise from 0 to 1.
    """
    state[1:] += signs
    if (step + 1) % ADJUST_EVERY == 0:
        p, total, number = state.tolist()
        direction = (total / number > target) - (total / number < target)
        state.copy_(torch.tensor([min(max(p + direction * number / images, 0.0), 1.0), 0.0, 0.0]))


def _draws(n: int, generator: torch.Generator) -> tuple[Callable[[float], Tensor], Callable[[], Tensor], Callable]:
    """(n coins [n, 1, 1] that fall with probability p, n normal numbers, n uniform numbers), one call each."""
    uniform = lambda: torch.rand(n, generator=generator)
    return lambda p: (uniform() < p)[:, None, None], lambda: torch.randn(n, generator=generator), uniform


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """[[a, b, 0], [c, d, 0], [0, 0, 1]] for vectors of n: [n, 3, 3]."""
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([a, b, zero, c, d, zero, zero, zero, one], dim=1).view(-1, 3, 3)


def _scale(x: Tensor, y: Tensor) -> Tensor:
    return _matrix(x, torch.zeros_like(x), torch.zeros_like(x), y)


def _rotate(angle: Tensor, *, exact: bool = False) -> Tensor:
    """exact: for quarter turns, whose sines and cosines are whole numbers."""
    sin, cos = (angle.sin().round(), angle.cos().round()) if exact else (angle.sin(), angle.cos())
    return _matrix(cos, -sin, sin, cos)


def _translate(by: Tensor) -> Tensor:
    """by: [n, 2] pixels (x, y)."""
    m = torch.eye(3).repeat(len(by), 1, 1)
    m[:, :2, 2] = by
    return m
