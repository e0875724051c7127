"""Yaw and pitch of a drawn head, estimated from the picture: how far does stylisation turn the content's head?

The estimator is a linear map on coarse VGG features, fitted on renders of all four domains (`hrlab train pose`), so it
also works between two domains. It works for the heads of `hrlib.worlds.portraits` only.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import features, weights
from .errors import LayoutMismatch, ShapeError
from .image import check

POOL_TAPS = ("features_14", "features_21", "features_28")
CHUNK = 32  # pictures at a time
NAME = "pose_thin"  # in the catalogue
EDGE, CELLS = 128, 4  # edge of the pictures it was fitted on, and cells a side over which features are averaged


@weights.cached(1)
def vgg() -> features.Features:
    """The shipped thin VGG16 with conv taps."""
    return features.vgg16("shipped", tap="conv")


@torch.inference_mode()
def grid_features(images: Tensor, cells: int = CELLS) -> Tensor:
    """Three taps of the shipped thin VGG16, averaged over a grid of cells x cells: [N, C cells^2].

    images: [N, 3, H, W] in [-1, 1].
    """
    net, chunks = vgg().to(images.device), []
    for x in images.split(CHUNK):
        maps = net(x, POOL_TAPS)
        chunks.append(torch.cat([F.adaptive_avg_pool2d(maps[t], cells).flatten(1) for t in POOL_TAPS], dim=1))
    return torch.cat(chunks)


def read(images: Tensor) -> Tensor:
    """Yaw and pitch in radians, [N, 2], of images [N, 3, H, W] in [-1, 1] that show one head, as the renders do.

    Pictures of other sizes than 128 x 128 are resized first (bilinear, antialiased).

    Raises:
        ShapeError, InvalidValue: as `image.check`. LayoutMismatch: the estimator was fitted on another VGG16.
    """
    check(images)
    if images.shape[2:] != (EDGE, EDGE):
        images = F.interpolate(images, (EDGE, EDGE), mode="bilinear", antialias=True)
    reader = _reader()
    x = grid_features(images).cpu().double()
    return (x - reader["mean"]) @ reader["weight"] + reader["offset"]


def error(images: Tensor, truth: Tensor) -> np.ndarray:
    """Angle in degrees, [N], between the estimated poses of images and the true ones [N, 2] (yaw, pitch in radians).

    Raises:
        ShapeError: not one true pose for each image; and as `read`.
    """
    if truth.shape != (len(images), 2):
        raise ShapeError(
            f"true poses of shape {tuple(truth.shape)} for {len(images)} images",
            expected=f"[{len(images)}, 2]: yaw and pitch",
            do="pass one row an image, for instance people.pose",
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
            expected="an estimator fitted on the shipped VGG16",
            do="fit it again with `hrlab train pose`",
        )
    return {name: t.double() for name, t in state.items()}
