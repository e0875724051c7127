"""Measures of a reconstruction for each image, and tidy tables of them.

Images are [N, 3, H, W] in [-1, 1]. Values outside are clamped first, as when an image is saved, but not rounded to 8
bits. Every measure returns a float64 NumPy array [N].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from skimage.color import rgb2lab
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn import functional as F

from . import features, losses, spectra
from . import weights as weight_files
from .errors import ShapeError, UnknownName, nearest, number
from .fid import frechet_distance  # noqa: F401 - also reachable under this name
from .image import comparable
from .retrieval import id_retrieval, view  # noqa: F401

if TYPE_CHECKING:
    import pandas as pd


def psnr(recon: Tensor, target: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio in dB over all pixels and channels; infinite for equal images. [N]."""
    a, b = comparable(recon, target)
    mse = (a - b).square().mean(dim=(1, 2, 3)).cpu().numpy()
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse)


def ssim(recon: Tensor, target: Tensor) -> np.ndarray:
    """Structural similarity by scikit-image: 7x7 uniform window, mean over the channels; 1 for equal images. [N].

    Raises:
        ShapeError: an image edge below 7 pixels.
    """
    a, b = comparable(recon, target)
    if min(a.shape[2:]) < 7:
        raise ShapeError(
            f"images of {a.shape[2]}x{a.shape[3]}", expected="at least 7x7, the window's size", do="use larger images"
        )
    pairs = zip(a.cpu().numpy(), b.cpu().numpy(), strict=True)
    return np.array([structural_similarity(x, y, win_size=7, data_range=1.0, channel_axis=0) for x, y in pairs])


@torch.no_grad()
def lpips(recon: Tensor, target: Tensor, net: str = "thin") -> np.ndarray:
    """LPIPS distance, 0 for equal images. [N].

    net: "alex" or "vgg" is the `lpips` package (needs the catalogue's trunk); "st_alex" or "st_vgg" its shift-tolerant
    successor (needs `make faces`); "thin", "resnet" and "resnet_thin" use the same formula on other networks, and each
    compares only with itself. See `losses.LPIPS`.
    """
    a, b = comparable(recon, target)
    layers = _lpips(net).to(a.device).distances((a * 2 - 1).float(), (b * 2 - 1).float())
    return torch.stack(list(layers.values())).sum(0).double().cpu().numpy()


@weight_files.cached(7)
def _lpips(net: str) -> losses.LPIPS:
    return losses.LPIPS(net)


STYLE_TAPS = ("features_2", "features_7", "features_14", "features_21")  # ReLU layers, as Gatys et al. use them


@torch.no_grad()
def style_distance(recon: Tensor, target: Tensor, weights: str = "shipped") -> np.ndarray:
    """Distance between two pictures' styles, 0 for equal styles, whatever their layout. [N].

    Gram matrices G = F F^T / positions of ReLU features (Gatys et al. 2015) describe which colours, lines and textures
    occur and not where, so a turned head changes little. The distance is relative to the size of the matrices,
    |G_a - G_b| / sqrt(|G_a| |G_b|) in Frobenius norms, averaged over four taps.

    weights: of the VGG16, "shipped" or "imagenet"; distances from different networks do not compare.
    """
    a, b = comparable(recon, target)
    grams = [_grams(weights, (x * 2 - 1).float()) for x in (a, b)]
    by_tap = []
    for g, h in zip(*grams, strict=True):
        norms = g.flatten(1).norm(dim=1) * h.flatten(1).norm(dim=1)
        by_tap.append((g - h).flatten(1).norm(dim=1) / norms.clamp(min=1e-20).sqrt())
    return torch.stack(by_tap).mean(0).double().cpu().numpy()


def _grams(weights: str, x: Tensor) -> list[Tensor]:
    """One matrix [N, C, C] a tap."""
    maps = _vgg_relu(weights).to(x.device)(x, STYLE_TAPS)
    flat = [maps[tap].flatten(2) for tap in STYLE_TAPS]  # [N, C, positions]
    return [f @ f.transpose(1, 2) / f.shape[2] for f in flat]


@weight_files.cached(2)
def _vgg_relu(weights: str) -> features.Features:
    return features.vgg16(weights, tap="relu")


def colour_distance(recon: Tensor, target: Tensor) -> np.ndarray:
    """Distance between two pictures' colour schemes in CIELAB, in Delta E; 0 for the same pixels in any order. [N].

    The Wasserstein distances between the pictures' distributions of L*, a* and b* over the pixels, combined as a
    Euclidean norm.
    """
    a, b = (rgb2lab(x.permute(0, 2, 3, 1).cpu().numpy()).reshape(len(x), -1, 3) for x in comparable(recon, target))
    by_channel = np.abs(np.sort(a, axis=1) - np.sort(b, axis=1)).mean(axis=1)  # [N, 3]
    return np.linalg.norm(by_channel, axis=1)


@torch.no_grad()
def colour_shift(recon: Tensor, target: Tensor, cell: int = 16) -> np.ndarray:
    """Local change of colour: CIELAB Delta E between the mean colours of square cells, averaged over the cells. [N].

    cell: edge of the cells in pixels; detail smaller than that does not count.
    """
    cell = number("cell", cell, "whole [1, inf)")
    a, b = (
        rgb2lab(F.avg_pool2d(x, min(cell, *x.shape[2:]), ceil_mode=True).permute(0, 2, 3, 1).cpu().numpy())
        for x in comparable(recon, target)
    )
    return np.linalg.norm(a - b, axis=-1).mean(axis=(1, 2))


def identity_distance(recon: Tensor, target: Tensor, net: str = "identity_thin", face: str = "whole") -> np.ndarray:
    """Squared L2 distance between the identity vectors of two pictures; small for the same person. [N].

    It lies between 0 and 4, but for "dlib", whose vectors are not of unit length: below 0.36 by its own rule for the
    same person (0.6, squared), and about 0.6 for two people.

    net: a name for `weights.load_identity`; see the network's card for its limits. face: see `retrieval.view`.

    Raises:
        FaceError: net is "dlib", face is "whole", and not exactly one face is found in one of the pictures.
    """
    a, b = comparable(recon, target)
    look = view(_identity(net).to(a.device), face)
    return (look((a * 2 - 1).float()) - look((b * 2 - 1).float())).square().sum(1).cpu().numpy()


@weight_files.cached(2)
def _identity(net: str) -> nn.Module:
    return weight_files.load_identity(net)


METRICS = {
    "psnr": ("PSNR (dB)", psnr),
    "ssim": ("SSIM", ssim),
    **{f"lpips_{net}": (title, functools.partial(lpips, net=net)) for net, title in losses.LPIPS_TITLES.items()},
    "artefact_energy": ("artefact energy", spectra.artefact_energy),
    "excess_energy": ("excess energy", spectra.excess_energy),
    "incoherent_energy": ("incoherent energy", spectra.incoherent_energy),
    "coherence": ("coherence of the fine texture", spectra.coherence),
    # what a loss whose input is reduced to half cannot see, and what it can
    "excess_above_quarter": (
        "excess energy above 1/4 cycle per pixel",
        functools.partial(spectra.excess_energy, cutoff=0.25),
    ),
    "incoherent_above_quarter": (
        "incoherent energy above 1/4 cycle per pixel",
        functools.partial(spectra.incoherent_energy, cutoff=0.25),
    ),
    "coherence_above_quarter": (
        "coherence above 1/4 cycle per pixel",
        functools.partial(spectra.coherence, cutoff=0.25),
    ),
    "psnr_below_quarter": ("PSNR up to 1/4 cycle per pixel (dB)", lambda a, b: spectra.psnr_split(a, b, 2)[0]),
    "psnr_above_quarter": ("PSNR above 1/4 cycle per pixel (dB)", lambda a, b: spectra.psnr_split(a, b, 2)[1]),
    "grain": ("grain on smooth surfaces", spectra.grain),
    "low_lost": ("error energy below 1/8 cycle per pixel, relative", lambda a, b: spectra.share_lost(a, b)[0]),
    "high_lost": ("error energy from 1/8 cycle per pixel on, relative", lambda a, b: spectra.share_lost(a, b)[1]),
    "roughness": ("roughness", spectra.roughness),
    "colour_shift": ("colour shift (Delta E)", colour_shift),
    "style_thin": ("style distance", style_distance),
    "style_vgg": ("style distance (VGG16)", functools.partial(style_distance, weights="imagenet")),
    "colour": ("colour distance (Delta E)", colour_distance),
    "identity_thin": ("identity distance", identity_distance),
    "dlib": ("identity distance (dlib)", functools.partial(identity_distance, net="dlib")),
    "dlib_crop": (
        "identity distance (dlib, face in its place)",
        functools.partial(identity_distance, net="dlib", face="crop"),
    ),
}


def check_columns(which: Sequence[str]) -> None:
    """Raise `UnknownName`, with the nearest valid name, for a measure that is not in `METRICS`."""
    for metric in which:
        if metric not in METRICS:
            hint = nearest(metric, list(METRICS)) or "use a name from the list, which is also in metrics.METRICS"
            raise UnknownName(f"metric {metric!r}", expected=f"one of {', '.join(METRICS)}", do=hint)


def table(
    recon: Tensor,
    target: Tensor,
    which: Sequence[str] = ("psnr", "ssim", "lpips_thin", "artefact_energy"),
    *,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Several measures of several images as a tidy table with the columns image, metric, label and value.

    Args:
        recon, target: [N, 3, H, W] in [-1, 1].
        which: names from `METRICS`.
        names: one for each image; "0", "1", ... by default.
    """
    import pandas as pd

    names = [str(i) for i in range(len(recon))] if names is None else list(names)
    if len(names) != len(recon):
        raise ShapeError(f"{len(names)} names for {len(recon)} images", expected="equal numbers", do="name every image")
    check_columns(which)
    rows = []
    for metric in which:
        label, measure = METRICS[metric]
        values = measure(recon, target)
        rows += [(n, metric, label, float(v)) for n, v in zip(names, values, strict=True)]
    return pd.DataFrame(rows, columns=["image", "metric", "label", "value"])
