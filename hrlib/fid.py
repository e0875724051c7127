"""Frechet distance between two sets of pictures (FID), with an explicit protocol: which features, at which size.

The "inception" features are torch-fidelity's, which the paper's evaluation uses: the TensorFlow Inception of 2015,
pictures rounded to 8 bits and resized to 299x299 as in TensorFlow 1, 2,048 pooled features. The "vgg16_thin" features
are the shipped VGG16's, averaged over the picture, for the shipped world; their distances compare only with each other.
The distance itself is `frechet_distance`. It grows as the number of pictures falls, so compare equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn

from . import image, pose, weights
from .errors import InvalidValue, ShapeError, UnknownName, nearest, number

NETWORKS = {
    "inception": "torch-fidelity's InceptionV3 of 2015-12-05, 8-bit pictures resized to 299x299 as in TensorFlow 1, "
    "2,048 pooled features",
    "vgg16_thin": f"the shipped thin VGG16, taps {', '.join(pose.POOL_TAPS)} averaged over the picture, 160 features",
}


def check_network(network: str) -> None:
    """Raise `UnknownName`, with the nearest valid name, for a network that is not in `NETWORKS`."""
    if network not in NETWORKS:
        hint = nearest(network, list(NETWORKS)) or 'use "inception", as the paper does'
        raise UnknownName(f"features {network!r}", expected=f"one of {', '.join(NETWORKS)}", do=hint)


@torch.inference_mode()
def features(x: Tensor, network: str = "inception", size: int | None = None) -> Tensor:
    """Feature vectors [N, D] for the distance, on the CPU.

    Args:
        x: pictures [N, 3, H, W] in [-1, 1].
        network: a name from `NETWORKS`.
        size: edge to which the pictures are resized first, bilinear with antialiasing; None keeps their size. (The
            paper reports both 1024 and 256.)
    """
    check_network(network)
    if size is not None and x.shape[2:] != (size := number("size", size, "whole [1, inf)"),) * 2:
        x = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    if network == "vgg16_thin":
        return pose.grid_features(x.clamp(-1, 1), cells=1).cpu()
    pixels = torch.from_numpy(image.to_uint8(x)).permute(0, 3, 1, 2)
    return _inception()(pixels)[0].cpu()


@weights.cached(1)
def _inception() -> nn.Module:
    """torch-fidelity's extractor with the catalogue's weights, read by our own loader."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    state, _ = weights.load_state("inception_fid")
    download, module.load_state_dict_from_url = module.load_state_dict_from_url, lambda *_, **__: state
    try:
        return module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    finally:
        module.load_state_dict_from_url = download


def frechet_distance(feats_a: np.ndarray | Tensor, feats_b: np.ndarray | Tensor) -> float:
    """Frechet distance of two Gaussians fitted to feature vectors: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    Covariances divide by N - 1 (as in torch-fidelity and pytorch-fid; NVlabs' code divides by N); all in float64.

    feats_a, feats_b: [N_a, D] and [N_b, D], at least two rows each.

    Raises:
        ShapeError: other shapes. InvalidValue: NaN or infinity.
    """
    a, b = (np.asarray(torch.as_tensor(f).detach().cpu(), dtype=np.float64) for f in (feats_a, feats_b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ShapeError(
            f"features of shapes {a.shape} and {b.shape}",
            expected="[N_a, D] and [N_b, D] with two rows or more each",
            do="stack one feature vector an image",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InvalidValue(
            "features with NaN or infinity", expected="finite numbers", do="find the images they come from"
        )
    cov_a, cov_b = (np.atleast_2d(np.cov(f, rowvar=False)) for f in (a, b))
    # tr (C_a C_b)^(1/2) is the sum of the singular values of C_a^(1/2) C_b^(1/2): real, and stable if C is singular
    values_a, vectors_a = scipy.linalg.eigh(cov_a)
    values_b, vectors_b = scipy.linalg.eigh(cov_b)
    root_a = vectors_a * np.sqrt(values_a.clip(min=0)) @ vectors_a.T
    root_b = vectors_b * np.sqrt(values_b.clip(min=0)) @ vectors_b.T
    trace = scipy.linalg.svdvals(root_a @ root_b).sum()
    distance = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace
    return float(max(distance, 0.0))


def precision_recall(real: np.ndarray | Tensor, fake: np.ndarray | Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, Eqs. 1 and 2) of two sets of feature vectors.

    A set's manifold is the union of balls around its vectors, each with the distance to the k-th nearest other vector
    of the set as its radius. Precision is the fraction of `fake` in the manifold of `real`, recall the fraction of
    `real` in the manifold of `fake`. Both depend on the features and fall with the number of vectors, so compare equal
    numbers. Memory: 1,024 rows of distances (float64) at a time.

    real, fake: [N, D] and [M, D], more than k rows each.

    Raises:
        ShapeError: other shapes. InvalidValue: NaN or infinity, or a bad k.
    """
    k = number("k", k, "whole [1, inf)")
    a, b = (torch.as_tensor(f).detach().cpu().double() for f in (real, fake))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) <= k:
        raise ShapeError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}, k={k}",
            expected="[N, D] and [M, D] with more than k rows each",
            do="stack one feature vector an image, or lower k",
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise InvalidValue(
            "features with NaN or infinity", expected="finite numbers", do="find the images they come from"
        )
    a, b = a - a.mean(0), b - a.mean(0)  # cdist loses fewer digits near the origin
    return _covered(b, a, k), _covered(a, b, k)


def _covered(points: Tensor, centres: Tensor, k: int) -> float:
    """The fraction of `points` inside any ball around one of `centres` up to that centre's k-th neighbour."""
    chunks = centres.split(1024)
    radii = [torch.cdist(chunk, centres).kthvalue(k + 1, dim=1).values for chunk in chunks]  # the nearest is itself
    inside = torch.zeros(len(points), dtype=torch.bool)
    for chunk, radius in zip(chunks, radii, strict=True):
        inside |= (torch.cdist(chunk, points) <= radius[:, None]).any(0)
    return float(inside.double().mean())


def by_person(stylised: Tensor, reference: Tensor, people: Sequence[str]) -> np.ndarray:
    """Each person's contribution to the distance: jackknife pseudo-values, [number of people], sorted by person.

    n d - (n - 1) d_(i), where d_(i) leaves out all pictures of person i, because pictures of one person are not
    independent. Their standard deviation over sqrt(n) is the standard error of the distance, and the values of two
    methods can be subtracted person by person. (A bootstrap does not work here: repeated pictures shrink the
    covariance, and the distance grows.)

    Args:
        stylised, reference: feature vectors [N, D] and [M, D].
        people: [N], the person in each stylised picture.
    """
    names, place = np.unique(list(people), return_inverse=True)
    if len(place) != len(stylised) or len(names) < 2:
        raise ShapeError(
            f"{len(place)} pictures of {len(names)} people for {len(stylised)} vectors",
            expected="a person for each picture, and two people or more",
            do="name the person in each stylised picture",
        )
    n, whole = len(names), frechet_distance(stylised, reference)
    without = [frechet_distance(stylised[torch.from_numpy(place != i)], reference) for i in range(n)]
    return n * whole - (n - 1) * np.array(without)


@dataclass(frozen=True)
class Jackknife:
    """A Frechet distance with its uncertainty over people.

    value: the distance. by_person: each person's contribution, as the function of this name returns it.
    """

    value: float
    by_person: np.ndarray

    @property
    def half(self) -> float:
        """Half of the 95 % interval of the distance."""
        return 1.96 * float(self.by_person.std(ddof=1)) / len(self.by_person) ** 0.5


def jackknife(stylised: Tensor, reference: Tensor, people: Sequence[str]) -> Jackknife:
    """`frechet_distance` of two sets of features with what each person contributes to it; see `by_person`."""
    return Jackknife(frechet_distance(stylised, reference), by_person(stylised, reference, people))
