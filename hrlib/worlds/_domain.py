"""What a domain of the portraits is: the same people in other proportions, drawn with another hand.

A domain changes the parameters before the head is shaped (`warp`), and may replace any of the painters. All of them
are the photo's unless said otherwise, so a domain says only what is different about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _features, _paint
from ._common import Named
from ._rays import Hit

# Proportions that no person has of their own: 1 is a photograph's.
PROPORTIONS = ("eye_scale", "nose_scale", "head_scale", "body_scale")


@dataclass(frozen=True)
class Layers:
    """What a domain's `ink` draws on: one chunk of portraits at the resolution of the rays, pixels flat.

    rgb [N, 3, M]: linear light of the whole picture; x, y [1, M]: picture coordinates, y up; body, body_z [N, M]:
    the torso's coverage and depth; hit: the rays that come near the head, at flat indices `at` [N, K]; maps: what
    `_head.MAPS` names, [N, K] each; alpha, hair [N, K]: coverage by the head and, within it, by hair;
    size: rows and columns, row by row in the first rows * columns of M.
    """

    rgb: Tensor
    x: Tensor
    y: Tensor
    body: Tensor
    body_z: Tensor
    hit: Hit
    at: Tensor
    maps: dict[str, Tensor]
    alpha: Tensor
    hair: Tensor
    size: tuple[int, int]

    def spread(self, value: Tensor, off: float = 0.0) -> Tensor:
        """[N, M] picture of values [N, K] of the rays near the head; `off` everywhere else."""
        return torch.full_like(self.rgb[:, 0], off).scatter(1, self.at, value)

    def grid(self, value: Tensor) -> Tensor:
        """[N, 1, rows, columns] view of a flat picture [N, M]."""
        return value[:, : self.size[0] * self.size[1]].reshape(len(value), 1, *self.size)


@dataclass(frozen=True)
class Domain:
    """How portraits are drawn; `s` is the batch's `Shader`, colours are linear light, shapes as in the photo's painter.

    warp: parameters of the person -> those that are drawn (change proportions here, never in a painter: the truth is
    computed from what it returns); eye_reach: half the width and height, in the chart, of the box around each eye's
    middle (a little above it) in which `eyes` paints; ink: called last, at the resolution of the rays, it returns the
    rgb of the layers with lines drawn (None: no lines); film: linear light [N, 3, H, W] -> picture in [-1, 1];
    shader: makes the `Shader` (lights and base colours).
    """

    warp: Callable[[Named], Mapping[str, Tensor]] = lambda p: {}
    shader: Callable[..., _paint.Shader] = _paint.Shader
    skin: Callable[..., Tensor] = _paint.skin
    eyes: Callable[..., Tensor] = _features.brows_and_eyes
    mouth: Callable[..., Tensor] = _features.mouth
    hair: Callable[..., tuple[Tensor, Tensor, Tensor]] = _paint.hair
    glasses: Callable[..., Tensor] = _features.glasses
    body: Callable[..., tuple[Tensor, Tensor, Tensor]] = _paint.body
    backdrop: Callable[[_paint.Shader, Tensor, Tensor], Tensor] = _paint.backdrop
    ink: Callable[[_paint.Shader, Layers], Tensor] | None = None
    film: Callable[[_paint.Shader, Tensor], Tensor] = _paint.film
    eye_reach: tuple[float, float] = (0.30, 0.27)

    def parameters(self, p: Named) -> Named:
        """The parameters as drawn: a person's own, the photo's proportions, and what `warp` changes."""
        one = torch.ones_like(p["yaw"])
        whole = p.replace(dict.fromkeys(PROPORTIONS, one))
        return whole.replace(self.warp(whole))


PHOTO = Domain()
