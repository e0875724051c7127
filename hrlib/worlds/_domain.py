"""A domain of the portraits: the same people with other proportions, drawn in another style.

A domain changes the parameters before the head is shaped (`warp`) and may replace any of the painters. Defaults are the
photo's, so a domain lists only its differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _features, _paint
from ._common import Named
from ._rays import Hit

# Proportions that only a domain sets; 1 in a photograph.
PROPORTIONS = ("eye_scale", "nose_scale", "head_scale", "body_scale")


@dataclass(frozen=True)
class Layers:
    """What a domain's `ink` draws on: one chunk of portraits at the resolution of the rays, with flattened pixels.

    rgb [N, 3, M]: linear light of the whole picture; x, y [1, M]: picture coordinates, y up; body, body_z [N, M]:
    the torso's coverage and depth; hit: the rays that pass near the head, at flat indices `at` [N, K]; maps: those
    named in `_head.MAPS`, [N, K] each; alpha, hair [N, K]: coverage by the head and, within it, by hair; size: (rows,
    columns), whose pixels are the first rows * columns of M, row by row.
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
        """[N, M] picture of the values [N, K] at the rays near the head, and `off` everywhere else."""
        return torch.full_like(self.rgb[:, 0], off).scatter(1, self.at, value)

    def grid(self, value: Tensor) -> Tensor:
        """[N, 1, rows, columns] view of a flat picture [N, M]."""
        return value[:, : self.size[0] * self.size[1]].reshape(len(value), 1, *self.size)


@dataclass(frozen=True)
class Domain:
    """How portraits are drawn. Painters take the batch's `Shader` and return linear light, shaped as in the photo
    domain.

    warp: parameters of the person -> parameters as drawn. Change proportions here, never in a painter: the ground truth
        is computed from what `warp` returns.
    eye_reach: half the width and half the height, in the chart, of the box that `eyes` paints, centred a little above
        each eye's middle.
    ink: called last, at the resolution of the rays; returns the layers' rgb with lines drawn. None: no lines.
    film: linear light [N, 3, H, W] -> picture in [-1, 1].
    shader: creates the `Shader` (lights and base colours).
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
        """The parameters as drawn: the person's own and the photo's proportions, changed by `warp`."""
        one = torch.ones_like(p["yaw"])
        whole = p.replace(dict.fromkeys(PROPORTIONS, one))
        return whole.replace(self.warp(whole))


PHOTO = Domain()
