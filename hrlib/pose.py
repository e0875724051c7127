"""Yaw and pitch of a drawn head, read off the picture: how far stylisation turns the content's head.

The reader is a linear map on coarse VGG features, fitted on renders of all four domains (`hrlab train pose`), so it
reads what lies between two domains, too. It knows the heads of `hrlib.worlds.portraits` and nothing else.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import features, weights
from .errors import LayoutMismatch, ShapeError

POOL_TAPS = ("features_14", "features_21", "features_28")
CHUNK = 32  # pictures whose features are computed at once
NAME = "pose_thin"  # in the catalogue
EDGE, CELLS = 128, 4  # of the pictures it was fitted on, and of the parts over which features are averaged


@weights.cached(1)
def vgg() -> features.Features:
    """The shipped thin VGG16, before its ReLUs."""
    return features.vgg16("shipped", tap="conv")


@torch.inference_mode()
def grid_features(images: Tensor, cells: int = CELLS) -> Tensor:
    """Three taps of the shipped thin VGG16, each averaged over cells x cells parts of the picture.

    images: [N, 3, H, W] in [-1, 1]. Returns [N, C cells^2].
    """
    net, parts = vgg().to(images.device), []
    for x in images.split(CHUNK):
        maps = net(x, POOL_TAPS)
        parts.append(torch.cat([F.adaptive_avg_pool2d(maps[t], cells).flatten(1) for t in POOL_TAPS], dim=1))
    return torch.cat(parts)


def read(images: Tensor) -> Tensor:
    """Yaw and pitch in radians, [N, 2], of images [N, 3, H, W] in [-1, 1] that show one head as the renders do.

    Pictures of another size than 128 x 128 are resized first (bilinear, antialiased).

    Raises:
        ShapeError: no batch of RGB images. LayoutMismatch: the reader was fitted on another VGG16 than the shipped one.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ShapeError(
            f"images of shape {tuple(images.shape)} and type {images.dtype}",
            expected="[N, 3, H, W], float, in [-1, 1]",
            do="read images with hrlib.image.read",
        )
    if images.shape[2:] != (EDGE, EDGE):
        images = F.interpolate(images, (EDGE, EDGE), mode="bilinear", antialias=True)
    reader = _reader()
    x = grid_features(images).cpu().double()
    return (x - reader["mean"]) @ reader["weight"] + reader["offset"]


def error(images: Tensor, truth: Tensor) -> np.ndarray:
    """Angle in degrees, [N], between the poses read off images and the true ones [N, 2] (yaw, pitch in radians).

    Raises:
        ShapeError: not one true pose an image; and as `read`.
    """
    if truth.shape != (len(images), 2):
        raise ShapeError(
            f"true poses of shape {tuple(truth.shape)} for {len(images)} images",
            expected=f"[{len(images)}, 2]: yaw and pitch",
            do="give one row an image, as people.pose has them",
        )
    apart = read(images) - truth.cpu().double()
    return np.degrees(torch.hypot(apart[:, 0], apart[:, 1]).numpy())


@weights.cached(1)
def _reader() -> dict[str, Tensor]:
    state, metadata = weights.load_state(NAME)
    if metadata.get("vgg") != vgg().fingerprint:
        raise LayoutMismatch(
            f"{NAME} was fitted on the VGG16 {str(metadata.get('vgg'))[:12]}, and the shipped one is "
            f"{vgg().fingerprint[:12]}",
            expected="a reader fitted on the shipped VGG16",
            do="fit it again with `hrlab train pose`",
        )
    return {name: t.double() for name, t in state.items()}
