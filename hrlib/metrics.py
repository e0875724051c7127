"""Measures of a reconstruction, each per image, and tidy tables of them.

Images are [N, 3, H, W] in [-1, 1]; values outside are clamped first, as they are when an image is saved, and nothing is
rounded to 8 bits. Every measure returns a float64 NumPy array [N].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.linalg
import torch
from skimage.color import rgb2lab
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn import functional as F

from . import features, losses
from . import weights as weight_files
from .errors import ShapeError, UnknownName, nearest, number


def psnr(recon: Tensor, target: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, over all pixels and channels; infinite for equal images. [N]."""
    a, b = _pair(recon, target)
    mse = (a - b).square().mean(dim=(1, 2, 3)).cpu().numpy()
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse)


def ssim(recon: Tensor, target: Tensor) -> np.ndarray:
    """Structural similarity by scikit-image: 7x7 uniform window, mean over the channels; 1 for equal images. [N].

    Raises:
        ShapeError: an image edge below 7 pixels.
    """
    a, b = _pair(recon, target)
    if min(a.shape[2:]) < 7:
        raise ShapeError(
            f"images of {a.shape[2]}x{a.shape[3]}", expected="at least 7x7, the window", do="use larger images"
        )
    pairs = zip(a.cpu().numpy(), b.cpu().numpy(), strict=True)
    return np.array([structural_similarity(x, y, win_size=7, data_range=1.0, channel_axis=0) for x, y in pairs])


@torch.no_grad()
def lpips(recon: Tensor, target: Tensor, net: str = "thin") -> np.ndarray:
    """LPIPS distance, 0 for equal images. [N].

    net: "alex" or "vgg" is the `lpips` package (needs the catalogued trunk); "thin", "resnet" and "resnet_thin" are the
    same formula on other networks, whose values compare only with each other. See `losses.LPIPS`.
    """
    a, b = _pair(recon, target)
    parts = _lpips(net).to(a.device).distances((a * 2 - 1).float(), (b * 2 - 1).float())
    return torch.stack(list(parts.values())).sum(0).double().cpu().numpy()


@weight_files.kept(5)
def _lpips(net: str) -> losses.LPIPS:
    return losses.LPIPS(net)


STYLE_TAPS = ("features_2", "features_7", "features_14", "features_21")  # ReLU layers, as Gatys et al. use them


@torch.no_grad()
def style_distance(recon: Tensor, target: Tensor, weights: str = "shipped") -> np.ndarray:
    """Distance of two pictures' styles, 0 for equal ones and blind to where things are. [N].

    Gram matrices G = F F^T / positions of ReLU features (Gatys et al. 2015), which keep what kinds of colour, line and
    texture there are and forget their places, so that a turned head costs little. Each tap's difference is taken in
    units of the matrices' own size, |G_a - G_b| / sqrt(|G_a| |G_b|) in Frobenius norms; the mean over four taps.

    weights: of the VGG16, "shipped" or "imagenet"; distances of different networks do not compare.
    """
    a, b = _pair(recon, target)
    grams = [_grams(weights, (x * 2 - 1).float()) for x in (a, b)]
    parts = []
    for g, h in zip(*grams, strict=True):
        norms = g.flatten(1).norm(dim=1) * h.flatten(1).norm(dim=1)
        parts.append((g - h).flatten(1).norm(dim=1) / norms.clamp(min=1e-20).sqrt())
    return torch.stack(parts).mean(0).double().cpu().numpy()


def _grams(weights: str, x: Tensor) -> list[Tensor]:
    """One matrix [N, C, C] a tap."""
    maps = _vgg_relu(weights).to(x.device)(x, STYLE_TAPS)
    flat = [maps[tap].flatten(2) for tap in STYLE_TAPS]  # [N, C, positions]
    return [f @ f.transpose(1, 2) / f.shape[2] for f in flat]


@weight_files.kept(2)
def _vgg_relu(weights: str) -> features.Features:
    return features.vgg16(weights, tap="relu")


def colour_distance(recon: Tensor, target: Tensor) -> np.ndarray:
    """Distance of two pictures' colour schemes in CIELAB, in units of Delta E; 0 for the same pixels anywhere. [N].

    The Wasserstein distance between the two distributions of each of L*, a*, b* over the pixels, the three as a
    Euclidean norm.
    """
    a, b = (rgb2lab(x.permute(0, 2, 3, 1).cpu().numpy()).reshape(len(x), -1, 3) for x in _pair(recon, target))
    by_channel = np.abs(np.sort(a, axis=1) - np.sort(b, axis=1)).mean(axis=1)  # [N, 3]
    return np.linalg.norm(by_channel, axis=1)


@torch.no_grad()
def colour_shift(recon: Tensor, target: Tensor, cell: int = 16) -> np.ndarray:
    """How far colours moved in place: CIELAB Delta E of the mean colours of cells, the mean over the cells. [N].

    cell: edge in pixels of the squares that are averaged; detail smaller than that, right or wrong, does not count.
    """
    cell = number("cell", cell, "whole [1, inf)")
    a, b = (
        rgb2lab(F.avg_pool2d(x, min(cell, *x.shape[2:]), ceil_mode=True).permute(0, 2, 3, 1).cpu().numpy())
        for x in _pair(recon, target)
    )
    return np.linalg.norm(a - b, axis=-1).mean(axis=(1, 2))


def identity_distance(recon: Tensor, target: Tensor, net: str = "identity_thin") -> np.ndarray:
    """Squared L2 distance, 0 to 4, of what an identity network sees in two pictures. [N].

    net: for `weights.load_identity`. Two pictures of one person are near 0; see the network's card for its limits.
    """
    a, b = _pair(recon, target)
    network = _identity(net).to(a.device)
    return (network.embed((a * 2 - 1).float()) - network.embed((b * 2 - 1).float())).square().sum(1).cpu().numpy()


@weight_files.kept(2)
def _identity(net: str) -> nn.Module:
    return weight_files.load_identity(net)


def artefact_energy(recon: Tensor, target: Tensor, factor: int = 4) -> np.ndarray:
    """Energy of (recon - target) at frequencies that a `factor`-fold down-sampled image cannot carry. [N].

    The paper's Fig. 1 as a number: a loss on a down-sampled input is blind above that input's Nyquist frequency,
    1 / (2 factor) cycles per pixel, and what the noise maps put there is never corrected. The unit is the mean square
    on the [0, 1] scale, averaged over the channels, so 1e-4 is an rms of 0.01 or 2.55 grey levels; it compares directly
    with the MSE behind PSNR. The band is everything outside the square |f_x|, |f_y| <= 1 / (2 factor), the
    frequencies of the down-sampled pixel grid. A Hann window (of unit mean square) keeps the image's borders from
    leaking into the band. It also counts detail that the reconstruction lacks: compare with a reconstruction that has
    none, or see `radial_spectrum`.
    """
    a, b = _pair(recon, target)
    factor = number("factor", factor, "[1, inf)")
    if min(a.shape[2:]) < 2 * factor:
        raise ShapeError(
            f"factor {factor} for images of {a.shape[2]}x{a.shape[3]}",
            expected="edges of at least twice the factor",
            do="use the factor between the image's edge and the edge the loss sees",
        )
    power, fy, fx = _power(a - b)
    limit = 1 / (2 * factor) + 1e-9
    band = (fy.abs()[:, None] > limit) | (fx.abs()[None, :] > limit)
    return (power * band).sum(dim=(2, 3)).mean(1).cpu().numpy()


def roughness(recon: Tensor, target: Tensor) -> np.ndarray:
    """Unevenness of the error where the target is smooth: the "non-smooth artifacts" of Sec. IV-B as a number. [N].

    The root mean square of the Laplacian of (recon - target), five-point stencil without the border, on the [0, 1]
    scale, over the half of the pixels where the target's own gradient is smallest. Unlike PSNR it does not count a
    wrong colour that is even, and unlike `artefact_energy` it does not count detail that is lost where there is some.
    """
    a, b = _pair(recon, target)
    if min(a.shape[2:]) < 3:
        raise ShapeError(f"images of {a.shape[2]}x{a.shape[3]}", expected="at least 3x3", do="use larger images")

    def inner(x: Tensor, dy: int, dx: int) -> Tensor:
        return x[..., 1 + dy : x.shape[2] - 1 + dy, 1 + dx : x.shape[3] - 1 + dx]

    d = a - b
    laplacian = inner(d, -1, 0) + inner(d, 1, 0) + inner(d, 0, -1) + inner(d, 0, 1) - 4 * inner(d, 0, 0)
    slope = (inner(b, 1, 0) - inner(b, -1, 0)).square() + (inner(b, 0, 1) - inner(b, 0, -1)).square()
    slope = slope.sum(1).flatten(1)  # [N, pixels]
    smooth = slope.argsort(dim=1, stable=True)[:, : (slope.shape[1] + 1) // 2]
    return laplacian.square().mean(1).flatten(1).gather(1, smooth).mean(1).sqrt().cpu().numpy()


def radial_spectrum(image: Tensor, bins: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The azimuthally averaged power spectrum of an image, or of a difference of two.

    image: [N, 3, H, W]; the channels' spectra are averaged. Not clamped; a Hann window is applied, after the mean is
    removed.

    Returns:
        (frequencies [bins] in cycles per pixel, the centres of equal rings from 0 to 0.5;
        power [N, bins]: the mean over a ring of the spectral density on the [0, 1] scale, whose average over *all*
        frequencies is the windowed variance; NaN for a ring that holds no frequency of so small an image).
    """
    bins = number("bins", bins, "whole [1, inf)")
    x = image.detach().double() / 2
    power, fy, fx = _power(x - x.mean(dim=(2, 3), keepdim=True))
    radius = torch.hypot(fy[:, None], fx[None, :]).flatten()
    ring = (radius / 0.5 * bins).long()
    inside = ring < bins
    density = (power.mean(1) * power[0, 0].numel()).flatten(1)[:, inside]
    count = torch.bincount(ring[inside], minlength=bins).double()
    total = torch.zeros(len(x), bins, dtype=torch.float64, device=x.device).index_add_(1, ring[inside], density)
    return (np.arange(bins) + 0.5) / bins * 0.5, (total / count).cpu().numpy()


def share_lost(recon: Tensor, target: Tensor, cutoff: float = 1 / 8) -> tuple[np.ndarray, np.ndarray]:
    """Energy of (recon - target) over the target's own, below and from `cutoff` cycles per pixel on: ([N], [N]).

    0 means that everything came back in that half of the spectrum, 1 that nothing did; NaN where the target has no
    energy that could be lost. From radial spectra up to 0.5 cycles per pixel, without the mean; each ring counts with
    its frequency, as a ring of that radius has that area. Rings that hold no frequency of a small picture do not count.
    """
    cutoff = number("cutoff", cutoff, "(0, 0.5)")
    own = target - target.mean(dim=(2, 3), keepdim=True)
    frequency, error = radial_spectrum(recon - target)
    theirs = radial_spectrum(own)[1]
    low = frequency < cutoff
    sums = [[np.nansum((power * frequency)[:, b], axis=1) for power in (error, theirs)] for b in (low, ~low)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return tuple(np.where(whole > 0, lost / whole, np.nan) for lost, whole in sums)


def _power(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|FFT|^2 of the windowed [N, C, H, W], scaled so that its sum is the mean square; and the two frequency axes."""
    h, w = x.shape[2:]
    wy, wx = (torch.hann_window(n, periodic=True, dtype=x.dtype, device=x.device) for n in (h, w))
    window = wy[:, None] * wx[None, :]
    window = window / window.square().mean().sqrt()
    power = torch.fft.fft2(x * window).abs().square() / (h * w) ** 2
    fy, fx = (torch.fft.fftfreq(n, dtype=x.dtype, device=x.device) for n in (h, w))
    return power, fy, fx


def frechet_distance(feats_a: np.ndarray | Tensor, feats_b: np.ndarray | Tensor) -> float:
    """Frechet distance of two Gaussians fitted to feature vectors: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    feats_a, feats_b: [N_a, D] and [N_b, D], at least two rows each. Covariances divide by N - 1 (torch-fidelity's and
    pytorch-fid's convention; NVlabs' code divides by N), and everything is in float64.
    """
    a, b = (np.asarray(torch.as_tensor(f).detach().cpu(), dtype=np.float64) for f in (feats_a, feats_b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ShapeError(
            f"features of shapes {a.shape} and {b.shape}",
            expected="[N_a, D] and [N_b, D] with two rows or more each",
            do="stack one feature vector per image",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ShapeError(
            "features with NaN or infinity", expected="finite numbers", do="look for the image they come from"
        )
    cov_a, cov_b = (np.atleast_2d(np.cov(f, rowvar=False)) for f in (a, b))
    # tr (C_a C_b)^(1/2) is the sum of the singular values of C_a^(1/2) C_b^(1/2): real, and stable for singular C
    values_a, vectors_a = scipy.linalg.eigh(cov_a)
    values_b, vectors_b = scipy.linalg.eigh(cov_b)
    root_a = vectors_a * np.sqrt(values_a.clip(min=0)) @ vectors_a.T
    root_b = vectors_b * np.sqrt(values_b.clip(min=0)) @ vectors_b.T
    trace = scipy.linalg.svdvals(root_a @ root_b).sum()
    distance = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * trace
    return float(max(distance, 0.0))


@dataclass(frozen=True)
class Retrieval:
    """What `id_retrieval` found.

    rate: share of the stylised pictures whose person was found, 0 to 1; chance: what guessing would reach;
    nearest [M]: the row of the closest content; distance [M]: the squared L2 distance to it; found [M]: bool;
    own [M]: the squared L2 distance to the right content; rank [M]: 1 + how many contents are closer than that.
    """

    rate: float
    chance: float
    nearest: np.ndarray
    distance: np.ndarray
    found: np.ndarray
    own: np.ndarray
    rank: np.ndarray


def id_retrieval(
    content: np.ndarray | Tensor,
    stylised: np.ndarray | Tensor,
    labels: Sequence[int] | np.ndarray | Tensor,
    threshold: float | None = None,
) -> Retrieval:
    """ID retrieval (Sec. III-D): how often the nearest face among the contents is that of the right person.

    Args:
        content: identity vectors [N, D] of the content pictures, one a person, as an identity network's `embed` gives
            them (unit length, so squared distances lie between 0 and 4).
        stylised: identity vectors [M, D]. At equal distances the first content counts as the nearest.
        labels: [M] rows of `content`: whom each stylised picture shows.
        threshold: count a stylised picture as found only if its squared distance is not above this (the authors' code
            offers 1.5); None: whatever the distance.

    Raises:
        ShapeError: shapes that do not fit, labels that are no rows, numbers that are not finite.
        InvalidValue: a threshold that is no distance.
    """
    threshold = np.inf if threshold is None else number("threshold", threshold, "[0, inf)")
    a, b = (np.asarray(torch.as_tensor(f).detach().cpu(), dtype=np.float64) for f in (content, stylised))
    y = np.asarray(torch.as_tensor(labels).cpu())
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or y.shape != b.shape[:1] or not len(a) or not len(b):
        raise ShapeError(
            f"contents {a.shape}, stylised {b.shape}, labels {y.shape}",
            expected="[N, D], [M, D] and [M], none of them empty",
            do="give one identity vector a picture and one label a stylised picture",
        )
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(a):
        raise ShapeError(
            f"labels of type {y.dtype} from {y.min()} to {y.max()}",
            expected=f"whole numbers from 0 to {len(a) - 1}",
            do="a label is the row of the picture's content",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ShapeError(
            "identity vectors with NaN or infinity", expected="finite numbers", do="look for the image they come from"
        )
    squared = np.square(a).sum(1) + np.square(b).sum(1)[:, None] - 2 * b @ a.T
    nearest = squared.argmin(1)
    distance = squared[np.arange(len(b)), nearest].clip(min=0)
    found = (nearest == y) & (distance <= threshold)
    own = squared[np.arange(len(b)), y]
    rank = 1 + (squared < own[:, None]).sum(1)
    return Retrieval(float(found.mean()), 1 / len(a), nearest, distance, found, own.clip(min=0), rank)


def precision_recall(real: np.ndarray | Tensor, fake: np.ndarray | Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, Eqs. 1 and 2) of two sets of feature vectors.

    A set's manifold is the union of balls around its vectors, each reaching to its k-th nearest neighbour in the set
    (itself not counted). Precision is the share of `fake` in the manifold of `real`, recall the share of `real` in the
    manifold of `fake`. Both depend on the features and fall with the number of vectors; compare equal numbers.

    real, fake: [N, D] and [M, D], more than k rows each. Memory is that of 1,024 rows of distances (float64).
    """
    k = number("k", k, "whole [1, inf)")
    a, b = (torch.as_tensor(f).detach().cpu().double() for f in (real, fake))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) <= k:
        raise ShapeError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}, k={k}",
            expected="[N, D] and [M, D] with more than k rows each",
            do="stack one feature vector per image",
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ShapeError(
            "features with NaN or infinity", expected="finite numbers", do="look for the image they come from"
        )
    a, b = a - a.mean(0), b - a.mean(0)  # distances from products lose fewer digits near the origin
    return _covered(b, a, k), _covered(a, b, k)


def _covered(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of `points` inside some ball around `centres` whose radius is the distance to its k-th neighbour."""
    chunks = centres.split(1024)
    radii = [torch.cdist(chunk, centres).kthvalue(k + 1, dim=1).values for chunk in chunks]  # the nearest is itself
    inside = torch.zeros(len(points), dtype=torch.bool)
    for chunk, radius in zip(chunks, radii, strict=True):
        inside |= (torch.cdist(chunk, points) <= radius[:, None]).any(0)
    return float(inside.double().mean())


METRICS = {
    "psnr": ("PSNR (dB)", psnr),
    "ssim": ("SSIM", ssim),
    **{f"lpips_{net}": (title, functools.partial(lpips, net=net)) for net, title in losses.LPIPS_TITLES.items()},
    "artefact_energy": ("artefact energy", artefact_energy),
    "roughness": ("roughness", roughness),
    "colour_shift": ("colour shift (Delta E)", colour_shift),
    "style_thin": ("style distance", style_distance),
    "style_vgg": ("style distance (VGG16)", functools.partial(style_distance, weights="imagenet")),
    "colour": ("colour distance (Delta E)", colour_distance),
    "identity_thin": ("identity distance", identity_distance),
}


def check_columns(which: Sequence[str]) -> None:
    """Raise `UnknownName`, with the nearest valid name, for a measure that is not in `METRICS`."""
    for metric in which:
        if metric not in METRICS:
            hint = nearest(metric, list(METRICS)) or "choose from the list"
            raise UnknownName(f"metric {metric!r}", expected=f"one of {', '.join(METRICS)}", do=hint)


def table(
    recon: Tensor,
    target: Tensor,
    which: Sequence[str] = ("psnr", "ssim", "lpips_thin", "artefact_energy"),
    *,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Several measures of several images as a tidy table with the columns image, metric, label and value.

    which: names out of `METRICS`. names: one per image; default "0", "1", ...
    """
    names = [str(i) for i in range(len(recon))] if names is None else list(names)
    if len(names) != len(recon):
        raise ShapeError(f"{len(names)} names for {len(recon)} images", expected="one each", do="name every image")
    check_columns(which)
    rows = []
    for metric in which:
        label, measure = METRICS[metric]
        values = measure(recon, target)
        rows += [(n, metric, label, float(v)) for n, v in zip(names, values, strict=True)]
    return pd.DataFrame(rows, columns=["image", "metric", "label", "value"])


def _pair(recon: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both batches, checked, clamped, in float64 on the [0, 1] scale."""
    for x in (recon, target):
        if x.ndim != 4 or x.shape[1] != 3 or not x.numel() or not x.is_floating_point():
            raise ShapeError(
                f"an image batch of shape {tuple(x.shape)} and type {x.dtype}",
                expected="[N, 3, H, W], one image or more, float, in [-1, 1]",
                do="read images with hrlib.image.read",
            )
    if recon.shape != target.shape:
        raise ShapeError(
            f"images of {tuple(recon.shape)} against {tuple(target.shape)}",
            expected="equal shapes",
            do="compare images of one size",
        )
    return tuple((x.detach().double().clamp(-1, 1) + 1) / 2 for x in (recon, target))
