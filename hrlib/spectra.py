"""Spectra of pictures and of regions: how much fine texture a reconstruction has, and how much of it is right.

A region such as hair is not a rectangle, and a filter or a transform of the whole picture would count its outline, and
what is outside, as texture. So the spectra of regions are Welch's: averages over many small round Hann windows that lie
completely inside the region. Nothing outside the region enters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from .errors import InvalidValue, ShapeError, number
from .image import check, comparable

INSIDE = 0.99  # mask values from here on count as inside the region


# --- whole pictures ---------------------------------------------------------------------------------------------------


def artefact_energy(recon: Tensor, target: Tensor, factor: int = 4) -> np.ndarray:
    """Energy of (recon - target) at frequencies that a `factor`-fold down-sampled image cannot carry. [N].

    The paper's Fig. 1 as a number: a loss on a down-sampled input does not see frequencies above that input's Nyquist
    frequency, 1 / (2 factor) cycles per pixel, so it never corrects what the noise maps put there. The unit is the mean
    square on the [0, 1] scale, averaged over the channels, so 1e-4 is an rms of 0.01 or 2.55 grey levels; it compares
    directly with the MSE behind PSNR. The band is everything outside the square |f_x|, |f_y| <= 1 / (2 factor), the
    frequencies of the down-sampled pixel grid. A Hann window (of unit mean square) stops the image's borders from
    leaking into the band. The energy includes detail that the reconstruction lacks: compare it with a reconstruction
    without detail, or see `radial_spectrum`.
    """
    a, b = comparable(recon, target)
    factor = number("factor", factor, "[1, inf)")
    if min(a.shape[2:]) < 2 * factor:
        raise ShapeError(
            f"factor {factor} for images of {a.shape[2]}x{a.shape[3]}",
            expected="edges of at least twice the factor",
            do="use the ratio of the image's edge to the edge of the loss's input",
        )
    power, fy, fx = _power(a - b)
    limit = 1 / (2 * factor) + 1e-9
    band = (fy.abs()[:, None] > limit) | (fx.abs()[None, :] > limit)
    return (power * band).sum(dim=(2, 3)).mean(1).cpu().numpy()


def psnr_split(recon: Tensor, target: Tensor, factor: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """PSNR in dB of the error below and above the Nyquist frequency of a `factor`-fold reduced image: ([N], [N]).

    The second is `artefact_energy` on the scale of PSNR. The first tells whether two losses reproduce equally well what
    both can see; PSNR itself mixes the two. A Hann window weighs the middle of the pictures, so the energies of the two
    parts add up to the windowed error, not to that behind `metrics.psnr`. Infinite where a part has no error.

    Raises:
        ShapeError: as `artefact_energy`.
    """
    out_of_band = artefact_energy(recon, target, factor)
    a, b = comparable(recon, target)
    whole = _power(a - b)[0].sum(dim=(2, 3)).mean(1).cpu().numpy()
    with np.errstate(divide="ignore"):
        return tuple(-10 * np.log10(np.maximum(part, 0)) for part in (whole - out_of_band, out_of_band))


def excess_energy(recon: Tensor, target: Tensor, cutoff: float = 1 / 8, window: int = 32) -> np.ndarray:
    """Fine texture that the reconstruction has in excess of the target's, relative to the target's. [N].

    Local energies at `cutoff` cycles per pixel and above, in Hann windows of `window` pixels that overlap by half: the
    sum of what the reconstruction has in excess of the target, over the sum of the target's. Grain on smooth skin
    counts, and hair that came back too smooth cannot hide it. `artefact_energy` also counts detail that is missing, or
    that is a little displaced. A wrong texture as strong as the right one does not count: see `incoherent_energy`.
    0 is a reconstruction without excess; NaN if the target has no such energy.

    Raises:
        ShapeError: images smaller than the window.
    """
    found, own, _ = _local_energies(recon, target, cutoff, window)
    return _relative((found - own).clamp(min=0).sum(1), own.sum(1))


def incoherent_energy(recon: Tensor, target: Tensor, cutoff: float = 1 / 8, window: int = 32) -> np.ndarray:
    """Fine texture of the reconstruction that does not agree with the target's, relative to the target's. [N].

    In the windows and band of `excess_energy`, r = a t + n with n uncorrelated with t: the energy of n, over the
    target's. Detail that faded evenly over the band does not count; where only the upper part of the band is missing,
    up to a quarter of the target's energy does. Texture in the wrong place counts, be it grid or believable hair.
    0 is a reconstruction without artefacts; NaN if the target has no such energy.

    Raises:
        ShapeError: images smaller than the window.
    """
    found, own, cross = _local_energies(recon, target, cutoff, window)
    right = torch.where(own > 0, cross.clamp(min=0).square() / own, 0.0)
    return _relative((found - right).sum(1), own.sum(1))


def coherence(recon: Tensor, target: Tensor, cutoff: float = 1 / 8, window: int = 32) -> np.ndarray:
    """Share of the reconstruction's fine texture that is right: its squared correlation with the target's, 0 to 1. [N].

    In the windows and band of `excess_energy`. An evenly faded copy has full coherence, a blurred one less; texture of
    the right strength in the wrong places has none. NaN if either has no such energy; 0 if the correlation is negative.

    Raises:
        ShapeError: images smaller than the window.
    """
    found, own, cross = (energy.sum(1) for energy in _local_energies(recon, target, cutoff, window))
    return _relative(cross.clamp(min=0).square(), found * own)


def _local_energies(recon: Tensor, target: Tensor, cutoff: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Energies of recon and target and their cross energy [N, windows] from `cutoff` on; see `excess_energy`."""
    a, b = comparable(recon, target)
    cutoff, window = number("cutoff", cutoff, "(0, 0.5)"), number("window", window, "whole [8, inf)")
    if min(a.shape[2:]) < window:
        raise ShapeError(
            f"images of {a.shape[2]}x{a.shape[3]}", expected=f"at least the window, {window}", do="use larger images"
        )
    f = torch.fft.fftfreq(window, dtype=torch.float64, device=a.device)
    band = torch.hypot(f[:, None], f[None, :]) >= cutoff - 1e-9
    hann = torch.hann_window(window, dtype=torch.float64, device=a.device)
    taper = hann[:, None] * hann[None, :]

    def transformed(x: Tensor) -> Tensor:
        """[N, 3, windows, w, w]."""
        cut = x.unfold(2, window, window // 2).unfold(3, window, window // 2).flatten(2, 3)
        return torch.fft.fft2((cut - cut.mean((3, 4), keepdim=True)) * taper)

    def energy(x: Tensor, y: Tensor) -> Tensor:
        return ((x * y.conj()).real * band).sum((1, 3, 4))

    r, t = transformed(a), transformed(b)
    return energy(r, r), energy(t, t), energy(r, t)


def _relative(part: Tensor, whole: Tensor) -> np.ndarray:
    """`part` over `whole`, both [N]; NaN where the whole is nothing."""
    return torch.where(whole > 0, part / whole, torch.nan).cpu().numpy()


def roughness(recon: Tensor, target: Tensor) -> np.ndarray:
    """Unevenness of the error where the target is smooth: the "non-smooth artifacts" of Sec. IV-B as a number. [N].

    The root mean square of the Laplacian of (recon - target), five-point stencil without the border, on the [0, 1]
    scale, over the half of the pixels where the target's gradient is smallest. Unlike PSNR it ignores an even error of
    colour, and unlike `artefact_energy` it ignores detail lost where the target has detail.
    """
    a, b = comparable(recon, target)
    smooth = _smooth(b)
    return _laplacian(a - b).square().mean(1).flatten(1).gather(1, smooth).mean(1).sqrt().cpu().numpy()


def grain(recon: Tensor, target: Tensor) -> np.ndarray:
    """How much more uneven than the target a reconstruction is where the target is smooth; below 0: smoother. [N].

    The root mean square of the Laplacian of recon minus that of target, five-point stencil, on the [0, 1] scale, over
    the half of the pixels where the target's gradient is smallest. Unlike `roughness`, which is taken of the error, it
    does not grow with every error: a shifted picture is as smooth as its target, a blurred one smoother. White noise of
    standard deviation s on a flat target gives sqrt(20) s.
    """
    a, b = comparable(recon, target)
    smooth = _smooth(b)
    of = [_laplacian(x).square().mean(1).flatten(1).gather(1, smooth).mean(1).sqrt() for x in (a, b)]
    return (of[0] - of[1]).cpu().numpy()


def _inner(x: Tensor, dy: int, dx: int) -> Tensor:
    """x without its border, moved by up to a pixel: the neighbours of the inner pixels."""
    return x[..., 1 + dy : x.shape[2] - 1 + dy, 1 + dx : x.shape[3] - 1 + dx]


def _laplacian(x: Tensor) -> Tensor:
    """[N, C, H - 2, W - 2]: five-point stencil."""
    return _inner(x, -1, 0) + _inner(x, 1, 0) + _inner(x, 0, -1) + _inner(x, 0, 1) - 4 * _inner(x, 0, 0)


def _smooth(target: Tensor) -> Tensor:
    """[N, pixels / 2]: the inner pixels where the gradient is smallest."""
    if min(target.shape[2:]) < 3:
        raise ShapeError(
            f"images of {target.shape[2]}x{target.shape[3]}", expected="at least 3x3", do="use larger images"
        )
    gradient = (_inner(target, 1, 0) - _inner(target, -1, 0)).square()
    gradient = gradient + (_inner(target, 0, 1) - _inner(target, 0, -1)).square()
    gradient = gradient.sum(1).flatten(1)  # squared magnitude
    return gradient.argsort(dim=1, stable=True)[:, : (gradient.shape[1] + 1) // 2]


def radial_spectrum(image: Tensor, bins: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The azimuthally averaged power spectrum of an image, or of a difference of two.

    Args:
        image: [N, 3, H, W]. It is not clamped; the mean is removed, and a Hann window applied. The channels' spectra
            are averaged.
        bins: number of rings.

    Returns:
        (frequencies [bins] in cycles per pixel, the centres of equal rings from 0 to 0.5;
        power [N, bins]: the mean over a ring of the spectral density on the [0, 1] scale, whose average over *all*
        frequencies is the windowed variance; NaN for a ring without a frequency, in small images).
    """
    bins = number("bins", bins, "whole [1, inf)")
    x = check(image, "an image").detach().double() / 2
    power, fy, fx = _power(x - x.mean(dim=(2, 3), keepdim=True))
    radius = torch.hypot(fy[:, None], fx[None, :]).flatten()
    ring = (radius / 0.5 * bins).long()
    inside = ring < bins
    density = (power.mean(1) * power[0, 0].numel()).flatten(1)[:, inside]
    count = torch.bincount(ring[inside], minlength=bins).double()
    total = torch.zeros(len(x), bins, dtype=torch.float64, device=x.device).index_add_(1, ring[inside], density)
    return (np.arange(bins) + 0.5) / bins * 0.5, (total / count).cpu().numpy()


def share_lost(recon: Tensor, target: Tensor, cutoff: float = 1 / 8) -> tuple[np.ndarray, np.ndarray]:
    """Energy of (recon - target) relative to the target's, below `cutoff` and from there on: ([N], [N]).

    0 means that this part of the spectrum came back completely, 1 that nothing did, more that what came is wrong; NaN
    if the target has no energy there. Computed from radial spectra up to 0.5 cycles per pixel, without the mean; each
    ring is weighted by its frequency, to which its area is proportional. Rings without a frequency, in small pictures,
    do not count.

    cutoff: in cycles per pixel.
    """
    cutoff = number("cutoff", cutoff, "(0, 0.5)")
    comparable(recon, target)
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

    radius [K]: magnitude of each frequency, in cycles per pixel (up to 0.71, in the corners). target, recon [K]:
    power. cross [K]: real part of the cross power. These are sums over windows and channels, in units that cancel in
    the ratios below. step: distance between two frequencies. windows: how many fitted into the region.
    """

    radius: np.ndarray
    target: np.ndarray
    recon: np.ndarray
    cross: np.ndarray
    step: float
    windows: int

    def energy(self, cutoff: float) -> float:
        """Energy of the reconstruction relative to the target's at `cutoff` cycles per pixel and above; 1 is right.

        NaN if the target has none there.
        """
        high = self.radius >= cutoff
        return float(_ratio(self.recon[high].sum(), self.target[high].sum()))

    def coherence(self, cutoff: float) -> float:
        """Fraction of the reconstruction's energy at `cutoff` and above that agrees with the target, 0 to 1.

        This is the squared correlation of the two: r = a t + n, with n uncorrelated with t, gives a^2 |t|^2 / |r|^2.
        Noise, or strands in the wrong places, add energy but no coherence; a faded copy has full coherence. 0 if either
        has no energy there, or if the correlation is negative.
        """
        high = self.radius >= cutoff
        return _coherence(self.target[high].sum(), self.recon[high].sum(), self.cross[high].sum())

    def rings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(frequency, energy ratio, coherence) of rings one frequency step wide, up to 0.5 cycles per pixel.

        The lowest ring begins at 1.5 steps: below that, a Hann window cannot separate texture from shading.
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
        mask: [1, 1, H, W] in [0, 1]; 1 is the region. A pixel counts as inside from 0.99 on.
        window: diameter of the round Hann windows in pixels, even and at least 8; they are a quarter of it apart. It is
            the longest wavelength that can be seen, and 1 / window the distance between two frequencies.

    Raises:
        ShapeError: other shapes. InvalidValue: a bad window, or a region without room for a single one.
    """
    if target.ndim != 4 or recon.shape != target.shape or len(target) != 1 or mask.shape != target[:, :1].shape:
        raise ShapeError(
            f"a reconstruction {tuple(recon.shape)}, a target {tuple(target.shape)}, a mask {tuple(mask.shape)}",
            expected="[1, 3, H, W] twice and [1, 1, H, W]",
            do="measure one picture at a time",
        )
    window = number("window", window, "whole [8, inf)")
    if window % 2:
        raise InvalidValue(f"window = {window}", expected="an even number, at least 8", do=f"choose {window + 1}")
    taper = _taper(window).to(target.device)
    outside = F.conv2d((mask < INSIDE).double(), (taper > 0).double()[None, None], stride=window // 4)[0, 0]
    at = (outside < 0.5).nonzero().tolist()
    if not at:
        raise InvalidValue(
            f"a region of {int((mask >= INSIDE).sum())} pixels without room for a disc of {window} pixels",
            expected="a larger or rounder region",
            do="use a smaller window, or another picture",
        )
    t, r = (_windows(x, at, taper) for x in (target, recon))
    power = [(a * b.conj()).real.sum((0, 1)).flatten().cpu().numpy() for a, b in ((t, t), (r, r), (r, t))]
    f = np.fft.fftfreq(window)
    return RegionSpectra(np.hypot(f[:, None], f[None, :]).ravel(), *power, step=1 / window, windows=len(at))


def detail(x: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """A picture minus its Gaussian blur inside a region, 0 outside. [N, 3, H, W].

    The blur is the Gaussian mean of the region's own pixels (the blurred masked x over the blurred mask), so that the
    region's outline does not count as detail.

    Args:
        x: [N, 3, H, W].
        mask: [N, 1, H, W] in [0, 1]; a pixel counts as inside from 0.99 on.
        sigma: of the blur, in pixels.
    """
    sigma = number("sigma", sigma, "(0, inf)")
    inside, kernel = (mask >= INSIDE).to(x), 2 * int(4 * sigma + 0.5) + 1
    low = gaussian_blur(inside * x, kernel, sigma) / gaussian_blur(inside, kernel, sigma).clamp(min=1e-6)
    return inside * (x - low)


def _taper(window: int) -> Tensor:
    """A round Hann window [window, window]; 0 outside the disc."""
    axis = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    r = torch.hypot(axis[:, None], axis[None, :]) / window
    return torch.where(r < 0.5, (torch.pi * r).cos().square(), 0.0)


def _windows(x: Tensor, at: list[list[int]], taper: Tensor) -> Tensor:
    """Fourier transforms [windows, 3, w, w] of the tapered windows at `at` (row, column), without their means."""
    w = len(taper)
    grid = x.detach().double()[0].unfold(1, w, w // 4).unfold(2, w, w // 4)  # [3, rows, columns, w, w], a view
    cut = torch.stack([grid[:, row, column] for row, column in at])
    mean = (cut * taper).sum((2, 3), keepdim=True) / taper.sum()
    return torch.fft.fft2((cut - mean) * taper)


def _coherence(target: float, recon: float, cross: float) -> float:
    return float(max(cross, 0.0) ** 2 / (target * recon)) if target * recon > 0 else 0.0


def _ratio(recon: float, target: float) -> float:
    return recon / target if target > 0 else math.nan
