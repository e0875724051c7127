"""Frechet distance between two sets of pictures (FID), with a declared protocol: whose features, at which size.

The features of "inception" are torch-fidelity's, as the paper's evaluation has them: the TensorFlow Inception of 2015,
pictures rounded to 8 bits and resized to 299x299 as TensorFlow 1 did, 2,048 pooled features. Those of "vgg16_thin" are
the shipped VGG16's, averaged over the picture, for the shipped world; their distances compare only among themselves.
The distance itself is `metrics.frechet_distance`. It depends on the number of pictures (fewer: larger), so compare
equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from . import image, metrics, pose, weights
from .errors import ShapeError, UnknownName, nearest, number

NETWORKS = {
    "inception": "torch-fidelity's InceptionV3 of 2015-12-05, 8-bit pictures resized to 299x299 as in TensorFlow 1, "
    "2,048 pooled features",
    "vgg16_thin": f"the shipped thin VGG16, taps {', '.join(pose.POOL_TAPS)} averaged over the picture, 160 features",
}


@torch.inference_mode()
def features(x: Tensor, network: str = "inception", size: int | None = None) -> Tensor:
    """The vectors [N, D] that the distance compares, on the CPU, of pictures [N, 3, H, W] in [-1, 1].

    Args:
        network: of `NETWORKS`.
        size: edge to which the pictures are first resized, bilinear with antialiasing; None leaves them. (The paper
            gives both 1024 and 256.)
    """
    if network not in NETWORKS:
        hint = nearest(network, list(NETWORKS)) or "choose one of them"
        raise UnknownName(f"features {network!r}", expected=f"one of {', '.join(NETWORKS)}", do=hint)
    if size is not None and x.shape[2:] != (size := number("size", size, "whole [1, inf)"),) * 2:
        x = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    if network == "vgg16_thin":
        return pose.grid_features(x.clamp(-1, 1), cells=1).cpu()
    pixels = torch.from_numpy(image.to_uint8(x)).permute(0, 3, 1, 2)
    return _inception()(pixels)[0].cpu()


@weights.kept(1)
def _inception() -> nn.Module:
    """torch-fidelity's extractor, filled with the catalogued weights as our own reader gives them."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    state, _ = weights.load_state("inception_fid")
    download, module.load_state_dict_from_url = module.load_state_dict_from_url, lambda *_, **__: state
    try:
        return module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    finally:
        module.load_state_dict_from_url = download


def distance(stylised: Tensor, reference: Tensor) -> float:
    """`metrics.frechet_distance` of `features`, [N, D] and [M, D]."""
    return metrics.frechet_distance(stylised, reference)


def by_person(stylised: Tensor, reference: Tensor, people: Sequence[str]) -> np.ndarray:
    """What each person contributes to the distance: jackknife pseudo-values, [number of people], in sorted order.

    n d - (n - 1) d_(i), where d_(i) leaves out all pictures of person i: pictures of one person are not independent.
    Their standard deviation over the root of n is the distance's standard error, and those of two methods can be
    subtracted person by person. (A bootstrap would not do: repeated pictures shrink the covariance, and the distance
    grows.)

    people: [N], whom each of the stylised pictures shows.
    """
    names, place = np.unique(list(people), return_inverse=True)
    if len(place) != len(stylised) or len(names) < 2:
        raise ShapeError(
            f"{len(place)} pictures of {len(names)} people for {len(stylised)} vectors",
            expected="the person of every picture, two people or more",
            do="name the person of each stylised picture",
        )
    n, whole = len(names), distance(stylised, reference)
    without = [distance(stylised[torch.from_numpy(place != i)], reference) for i in range(n)]
    return n * whole - (n - 1) * np.array(without)
