"""Spectra of a region of any shape: how much fine texture a reconstruction has there, and how much of it is right.

The outline of hair is no rectangle, and a filter or a transform of the whole picture would count that outline, and what
lies beyond it, as texture. So the spectra are Welch's: means over many small round Hann windows that lie wholly inside
the region. Nothing outside the region enters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from .errors import ShapeError, number
from .image import comparable

INSIDE = 0.99  # of a mask in [0, 1]: pixels wholly in the region


# --- whole pictures ---------------------------------------------------------------------------------------------------


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
    a, b = comparable(recon, target)
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
    a, b = comparable(recon, target)
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


# --- a region ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RegionSpectra:
    """Power of two pictures and their cross power in one region, by frequency; made by `region`.

    radius [K]: distance of each frequency from zero, in cycles per pixel (up to 0.71, the corners). target, recon [K]:
    power. cross [K]: real part of the cross power. All are sums over the windows and the channels, in units that
    cancel in every ratio below. step: distance between two frequencies. windows: how many fitted into the region.
    """

    radius: np.ndarray
    target: np.ndarray
    recon: np.ndarray
    cross: np.ndarray
    step: float
    windows: int

    def energy(self, cutoff: float) -> float:
        """Energy of the reconstruction over that of the target at `cutoff` cycles per pixel and above; 1 is right.

        NaN for a target without any there.
        """
        high = self.radius >= cutoff
        return float(_ratio(self.recon[high].sum(), self.target[high].sum()))

    def coherence(self, cutoff: float) -> float:
        """Share of the reconstruction's energy at `cutoff` and above that agrees with the target, 0 to 1.

        The squared correlation of the two there: r = a t + n with n unlike t gives a^2 |t|^2 / |r|^2. Noise or strands
        in other places bring energy and no coherence; a faded copy has full coherence. 0 for a reconstruction or a
        target without energy, and for one that opposes the target.
        """
        high = self.radius >= cutoff
        return _coherence(self.target[high].sum(), self.recon[high].sum(), self.cross[high].sum())

    def rings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(frequency, energy ratio, coherence) of rings one frequency step wide, up to 0.5 cycles per pixel.

        The lowest ring begins at 1.5 steps: below, a Hann window cannot tell texture from the shading it removes.
        """
        ring = np.rint(self.radius / self.step).astype(int)
        wanted = range(2, round(0.5 / self.step) + 1)
        sums = [[power[ring == k].sum() for power in (self.target, self.recon, self.cross)] for k in wanted]
        frequency = self.step * np.array(wanted)
        return frequency, np.array([_ratio(r, t) for t, r, _ in sums]), np.array([_coherence(*s) for s in sums])


def region(recon: Tensor, target: Tensor, mask: Tensor, *, window: int = 16) -> RegionSpectra:
    """The spectra of one reconstruction and its target inside a region.

    Args:
        recon, target: [1, 3, H, W] in [-1, 1].
        mask: [1, 1, H, W] in [0, 1]; 1 is the region. A pixel counts as inside from 0.99.
        window: diameter of the round Hann windows in pixels, even and at least 8; they are a quarter of it apart. It is
            the longest wave that can be seen, and 1 / window the distance between two frequencies.

    Raises:
        ShapeError: other shapes, or a region without room for a single window.
    """
    if target.ndim != 4 or recon.shape != target.shape or len(target) != 1 or mask.shape != target[:, :1].shape:
        raise ShapeError(
            f"a reconstruction {tuple(recon.shape)}, a target {tuple(target.shape)}, a mask {tuple(mask.shape)}",
            expected="[1, 3, H, W] twice and [1, 1, H, W]",
            do="measure one picture at a time",
        )
    window = number("window", window, "whole [8, inf)")
    if window % 2:
        raise ShapeError(f"window={window}", expected="an even number of pixels from 8", do="take 16")
    taper = _taper(window).to(target.device)
    outside = F.conv2d((mask < INSIDE).double(), (taper > 0).double()[None, None], stride=window // 4)[0, 0]
    at = (outside < 0.5).nonzero().tolist()
    if not at:
        raise ShapeError(
            f"a region of {int((mask >= INSIDE).sum())} pixels without room for a disc of {window} pixels",
            expected="a larger or rounder region",
            do="take a smaller window, or another picture",
        )
    t, r = (_windows(x, at, taper) for x in (target, recon))
    power = [(a * b.conj()).real.sum((0, 1)).flatten().cpu().numpy() for a, b in ((t, t), (r, r), (r, t))]
    f = np.fft.fftfreq(window)
    return RegionSpectra(np.hypot(f[:, None], f[None, :]).ravel(), *power, step=1 / window, windows=len(at))


def detail(x: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """What a picture has in a region beyond a Gaussian blur of `sigma` pixels; 0 outside. [N, 3, H, W].

    The blur is the Gaussian mean of the region's own pixels (x blurred in the mask over the mask blurred), so that the
    region's outline is no detail. x: [N, 3, H, W]; mask: [N, 1, H, W] in [0, 1]; a pixel counts as inside from 0.99.
    """
    sigma = number("sigma", sigma, "(0, inf)")
    inside, kernel = (mask >= INSIDE).to(x), 2 * int(4 * sigma + 0.5) + 1
    low = gaussian_blur(inside * x, kernel, sigma) / gaussian_blur(inside, kernel, sigma).clamp(min=1e-6)
    return inside * (x - low)


def _taper(window: int) -> Tensor:
    """A round Hann window [window, window], 0 outside the disc."""
    axis = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    r = torch.hypot(axis[:, None], axis[None, :]) / window
    return torch.where(r < 0.5, (torch.pi * r).cos().square(), 0.0)


def _windows(x: Tensor, at: list[list[int]], taper: Tensor) -> Tensor:
    """Transforms [windows, 3, w, w] of the tapered windows number `at` (row, column), their own means removed."""
    w = len(taper)
    grid = x.detach().double()[0].unfold(1, w, w // 4).unfold(2, w, w // 4)  # [3, rows, columns, w, w], a view
    cut = torch.stack([grid[:, row, column] for row, column in at])
    mean = (cut * taper).sum((2, 3), keepdim=True) / taper.sum()
    return torch.fft.fft2((cut - mean) * taper)


def _coherence(target: float, recon: float, cross: float) -> float:
    return float(max(cross, 0.0) ** 2 / (target * recon)) if target * recon > 0 else 0.0


def _ratio(recon: float, target: float) -> float:
    return recon / target if target > 0 else math.nan
