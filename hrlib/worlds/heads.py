"""Human heads cut out of portraits, on a plain background: a rigid scene for 3D-aware generators, with ground truth.

In a portrait, the head turns while the light, the wall and the shoulders stay. A camera that circles the head would see
all of these move with it, which no rigid scene does. So only the head is kept, by the renderer's mask, and `turned`
turns the light with the head: the same head seen from another side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidValue
from . import portraits

GROUND = -0.2  # the background's value in every channel, about that of the wall below
WALL = dict(bg_saturation=0, bg_lightness=0.3, bg_gradient=0.76, bg_blob=0, bg_shift=0, bg_angle=0)
DISTANCE = 5.74  # from the portraits' camera to the point that heads turn about, in half picture sides
SMALL = (64, 96)  # sides of pictures that are area means of portraits of twice that size
LARGE, CHUNK = 128, 20  # other sides are multiples of this; portraits rendered at once


@dataclass(frozen=True)
class RenderedHeads:
    """Pictures of N heads and their ground truth.

    image [N, 3, H, H] in [-1, 1], on `GROUND`; mask and face [N, 1, H, H] in [0, 1], of the head and of the head
    without its hair; depth [N, 1, H, H] along the optical axis in half picture sides, NaN off the head.
    """

    image: Tensor
    mask: Tensor
    face: Tensor
    depth: Tensor


@torch.no_grad()
def draw(people: portraits.Portraits, edge: int = 64) -> RenderedHeads:
    """Render people in front of a plain wall and cut out their heads.

    edge: side of image, masks and depth. At 64 and 96, they are area means of portraits of twice that size.

    Raises:
        InvalidValue: an edge that is neither 64 nor 96 nor a multiple of 128.
    """
    if edge not in SMALL and (edge < LARGE or edge % LARGE):
        raise InvalidValue(
            f"heads of {edge} pixels",
            expected="64, 96, 128, 256, 384 ...",
            do="draw them at one of these sizes and resize them",
        )
    shrink, found = 2 if edge in SMALL else 1, []
    pool = lambda part: F.avg_pool2d(part, shrink)
    for i in range(0, len(people), CHUNK):
        some = people[i : i + CHUNK].replace(background=WALL)
        truth = portraits.render_with_truth(some, edge * shrink, 1)
        head = truth.image * truth.head_mask + GROUND * (1 - truth.head_mask)
        face = (truth.head_mask - truth.hair_mask).clamp(min=0)
        known = torch.isfinite(truth.depth).float()
        depth = pool(truth.depth.nan_to_num(0.0)) / pool(known)  # 0 / 0 gives NaN where no depth is known
        found.append((pool(head), pool(truth.head_mask), pool(face), depth))
    return RenderedHeads(*(torch.cat(part) for part in zip(*found, strict=True)))


def turned(people: portraits.Portraits, yaw: float | Tensor, pitch: float | Tensor = 0.0) -> portraits.Portraits:
    """The people at another pose (radians), with the light turned about the vertical axis as far as the head: what a
    camera at that yaw would see."""
    light = {"light_azimuth": people.get("light_azimuth") + yaw - people.get("yaw")}
    return people.replace(pose={"yaw": yaw, "pitch": pitch}, light=light)
