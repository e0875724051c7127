"""The heads of the portraits alone, on a plain ground: a rigid scene, for 3D-aware generators, with the truth.

A portrait turns its head under a fixed light, before a fixed wall and on shoulders that stay where they are. Seen from
the head, the camera turns and wall and shoulders come along, which no rigid scene does. So the head alone is kept, by
the renderer's mask. `turned` turns the light with it: the same head from another side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from . import portraits

GROUND = -0.2  # of every channel, about what the wall below is
WALL = dict(bg_saturation=0, bg_lightness=0.3, bg_gradient=0.76, bg_blob=0, bg_shift=0, bg_angle=0)
DISTANCE = 5.74  # from the portraits' camera to the point that heads turn about, in half picture sides
FINE, CHUNK = 128, 20  # edge of the portraits that heads are cut from; how many are rendered at once


@dataclass(frozen=True)
class Heads:
    """image [N, 3, H, H] in [-1, 1] on `GROUND`; mask [N, 1, H, H]; depth [N, 1, H, H] along the optical axis, in half
    picture sides, NaN off the head; portrait [N, 3, 128, 128], the whole picture that the head was cut from."""

    image: Tensor
    mask: Tensor
    depth: Tensor
    portrait: Tensor


@torch.no_grad()
def draw(people: portraits.Portraits, edge: int = 64) -> Heads:
    """Render the heads of people, before a plain wall, and cut them out.

    edge: side of image, mask and depth. At 64, images are area means of portraits of 128 pixels.

    Raises:
        ShapeError: an edge that is neither 64 nor a multiple of 128.
    """
    if edge != FINE // 2 and (edge < FINE or edge % FINE):
        raise ShapeError(f"heads of {edge} pixels", expected="64, 128, 256, 384 ...", do="resize one of these")
    fine, found = max(FINE, edge), []
    for i in range(0, len(people), CHUNK):
        truth = portraits.render_with_truth(people[i : i + CHUNK].replace(background=WALL), fine, 1)
        head = truth.image * truth.head_mask + GROUND * (1 - truth.head_mask)
        pool = lambda part: F.avg_pool2d(part, fine // edge)
        known = torch.isfinite(truth.depth).float()
        depth = pool(truth.depth.nan_to_num(0.0)) / pool(known)  # 0 / 0 is NaN where nothing is known
        found.append((pool(head), pool(truth.head_mask), depth, F.avg_pool2d(truth.image, fine // FINE)))
    return Heads(*(torch.cat(part) for part in zip(*found, strict=True)))


def turned(people: portraits.Portraits, yaw: float, pitch: float = 0.0) -> portraits.Portraits:
    """The people at that pose (radians), the light turned with the head about the vertical axis, as another camera at
    that yaw would see them."""
    light = {"light_azimuth": people.get("light_azimuth") + yaw - people.get("yaw")}
    return people.replace(pose={"yaw": yaw, "pitch": pitch}, light=light)
