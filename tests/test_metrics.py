"""Metrics against fixture 08_metrics, scikit-image, SciPy and plain NumPy."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import skimage.metrics
import torch
from PIL import Image
from skimage.color import rgb2lab

from hrlib import fid, image, metrics, retrieval, spectra, weights
from hrlib.errors import InvalidValue, ShapeError, UnknownName
from hrlib.worlds import portraits

HERE = Path(__file__).parent / "fixtures" / "08_metrics"


@pytest.fixture(scope="module")
def io():
    return np.load(HERE / "metrics_io.npz")


def pair(k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(
        torch.from_numpy(np.array(Image.open(HERE / f"pair{k}_{s}.png"))).permute(2, 0, 1)[None] / 127.5 - 1
        for s in "ab"
    )


def test_psnr_and_ssim_of_the_fixture(io):
    got = [(metrics.psnr(*pair(k))[0], metrics.ssim(*pair(k))[0]) for k in range(3)]
    np.testing.assert_allclose(np.array(got)[:, 0], io["out/psnr"], rtol=2e-5)
    np.testing.assert_allclose(np.array(got)[:, 1], io["out/ssim"], rtol=2e-5)


def test_measures_are_per_image_and_clamp():
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 3, 24, 32) * 2 - 1
    for measure in (metrics.psnr, metrics.ssim, spectra.artefact_energy):
        whole = measure(a, b)
        assert whole.shape == (3,)
        np.testing.assert_allclose(whole, [measure(a[i : i + 1], b[i : i + 1])[0] for i in range(3)], rtol=1e-12)
    one = (a[:1].numpy()[0] + 1) / 2, (b[:1].numpy()[0] + 1) / 2
    assert metrics.psnr(a, b)[0] == pytest.approx(skimage.metrics.peak_signal_noise_ratio(*one, data_range=1), rel=1e-6)
    assert np.isinf(metrics.psnr(a, a)).all()
    np.testing.assert_allclose(metrics.ssim(a, a), 1)
    np.testing.assert_array_equal(metrics.psnr(a * 3, b), metrics.psnr((a * 3).clamp(-1, 1), b))


def test_frechet_distance_of_the_fixture(io):
    a, b = io["in/feat_real"], io["in/feat_gen"]
    assert fid.frechet_distance(a, b) == pytest.approx(float(io["out/fid_scipy_f64"]), rel=1e-9)
    assert fid.frechet_distance(a, b) == pytest.approx(float(io["out/fid_torch_fidelity"]), rel=1e-5)
    assert fid.frechet_distance(torch.from_numpy(b), a) == pytest.approx(float(io["out/fid_scipy_f64"]), rel=1e-9)
    assert abs(fid.frechet_distance(a, a)) < 1e-8
    assert fid.frechet_distance(a, b) != pytest.approx(float(io["out/fid_nvlabs"]), rel=1e-4)  # N - 1, not N


def test_frechet_distance_with_singular_covariances():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 20)), rng.normal(1, 2, size=(9, 20))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    eigenvalues = np.linalg.eigvals(ca @ cb).real.clip(min=0)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca + cb) - 2 * np.sqrt(eigenvalues).sum()
    assert fid.frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    full = rng.normal(size=(50, 4)), rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))
    ca, cb = (np.cov(f, rowvar=False) for f in full)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = np.sum((full[0].mean(0) - full[1].mean(0)) ** 2) + np.trace(ca + cb - 2 * root)
    assert fid.frechet_distance(*full) == pytest.approx(expected, rel=1e-8)
    shift = np.array([3, 4, 0, 0])
    assert fid.frechet_distance(full[0], full[0] + shift) == pytest.approx(25)  # equal covariances: means only
    with pytest.raises(ShapeError, match=r"\[N_a, D\]"):
        fid.frechet_distance(a[:1], b)
    with pytest.raises(InvalidValue, match="NaN"):
        fid.frechet_distance(a * np.nan, b)


def wave(fy: float, fx: float, amplitude: float, size: int = 64) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (amplitude * torch.sin(2 * torch.pi * (fy * y + fx * x) + 0.3)).expand(1, 3, size, size)


@pytest.mark.parametrize(
    ("fy", "fx", "inside"),
    [(0, 0.25, True), (0.25, 0, True), (0.05, 0.3, True), (0, 5 / 64, False), (5 / 64, 5 / 64, False), (0, 0, False)],
)
def test_artefact_energy_of_a_wave(fy, fx, inside):
    """A wave of amplitude a on [-1, 1] has the mean square a^2 / 8 on [0, 1]; in the band, all of it counts."""
    fy, fx = round(fy * 64) / 64, round(fx * 64) / 64  # whole periods
    got = spectra.artefact_energy(wave(fy, fx, 0.2), torch.zeros(1, 3, 64, 64), factor=4)[0]
    assert got == pytest.approx(0.2**2 / 8, rel=1e-6) if inside else got < 1e-12


def test_artefact_energy_ignores_borders_and_sees_what_area_sampling_cannot():
    ramp = torch.linspace(-0.5, 0.5, 128).expand(1, 3, 128, 128)  # not periodic: without a window this leaks
    assert spectra.artefact_energy(ramp, torch.zeros_like(ramp))[0] < 1e-7
    torch.manual_seed(0)
    blocks = torch.randn(1, 3, 32, 4, 32, 4) * 0.1
    blind = (blocks - blocks.mean((3, 5), keepdim=True)).reshape(1, 3, 128, 128)  # zero after 4-fold area averaging
    assert torch.nn.functional.avg_pool2d(blind, 4).abs().max() < 1e-6
    share = spectra.artefact_energy(blind, torch.zeros_like(blind))[0] / (blind.square().mean().item() / 4)
    assert 0.9 < share < 1.1
    assert spectra.artefact_energy(blind, torch.zeros_like(blind), factor=1)[0] < 1e-12  # nothing beyond Nyquist
    with pytest.raises(ShapeError, match="factor 4"):
        spectra.artefact_energy(ramp[..., :7], ramp[..., :7])


def test_roughness_counts_unevenness_where_the_target_is_smooth():
    torch.manual_seed(0)
    target = torch.zeros(1, 3, 64, 64)
    target[..., 40:] = torch.rand(1, 3, 64, 24) * 2 - 1  # texture on the right
    even, right, left = target + 0.05, target.clone(), target.clone()
    checker = 0.1 * (-1.0) ** (torch.arange(64)[:, None] + torch.arange(64))
    right[..., 44:] += checker[:, 44:]
    left[..., :28] += checker[:, :28]
    assert spectra.roughness(even.clamp(-1, 1)[..., :32], target[..., :32])[0] < 1e-6  # a wrong but even colour
    assert spectra.roughness(right.clamp(-1, 1), target)[0] < 1e-6  # unevenness that texture hides
    whole = spectra.roughness(target * 0 + checker, target * 0)[0]
    assert whole == pytest.approx(8 * 0.1 / 2)  # the stencil's gain at the checkerboard, on the [0, 1] scale
    got = spectra.roughness(left, target)[0]
    assert 0.8 * whole < got < whole


@pytest.mark.parametrize("net", ["thin", "resnet_thin"])
def test_plain_lpips_orders_degradations(net):
    x = image.sample("astronaut", 128)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    values = [metrics.lpips((x + s * noise).clamp(-1, 1), x, net=net)[0] for s in (0, 0.05, 0.2, 0.6)]
    assert values[0] == 0 and values == sorted(values) and values[1] > 0


def renders(seed: int, domain: str = "photo", **changes) -> torch.Tensor:
    return portraits.render(portraits.sample(4, seed=seed).replace(**changes), 64, domain=domain)


def test_style_distance_notices_the_domain_and_hardly_the_pose():
    plain = renders(3, pose={"yaw": 0.0})
    assert (metrics.style_distance(plain, plain) == 0).all()
    turned = metrics.style_distance(plain, renders(3, pose={"yaw": 0.3}))
    drawn = metrics.style_distance(plain, renders(3, "anime", pose={"yaw": 0.0}))
    assert (1.5 * turned < drawn).all()
    assert np.allclose(metrics.style_distance(plain, plain.flip(0)), metrics.style_distance(plain.flip(0), plain))


def test_colour_distance_is_blind_to_places():
    x = renders(4)
    shuffled = x.flatten(2)[:, :, torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(0))]
    assert np.allclose(metrics.colour_distance(x, shuffled.reshape(x.shape)), 0, atol=1e-9)
    grey = torch.zeros(1, 3, 8, 8)
    lab = rgb2lab(np.full((1, 1, 3), 0.75)) - rgb2lab(np.full((1, 1, 3), 0.5))
    assert metrics.colour_distance(grey + 0.5, grey)[0] == pytest.approx(np.linalg.norm(lab), rel=1e-5)


def test_identity_distance_is_that_of_the_embeddings():
    a, b = renders(5), renders(6)
    net = weights.load_identity()
    with torch.no_grad():
        expected = (net.embed(a) - net.embed(b)).square().sum(1)
    assert np.allclose(metrics.identity_distance(a, b), expected, atol=1e-5)
    assert (metrics.identity_distance(a, a) == 0).all() and metrics.identity_distance(a, b).max() <= 4


def test_share_lost_by_band():
    torch.manual_seed(0)
    slow, fine = wave(3 / 64, 0, 0.4), wave(0, 20 / 64, 0.3)
    target = torch.cat([slow + fine, torch.rand(1, 3, 64, 64) - 0.5])
    low, high = spectra.share_lost(0.5 * target, target)
    np.testing.assert_allclose(low[0], 0.25, rtol=1e-6)  # half the amplitude is missing everywhere
    np.testing.assert_allclose([high[0], high[1]], 0.25, rtol=1e-6)
    low, high = spectra.share_lost(slow, target[:1])  # the fine wave is missing, the slow one is there
    assert low[0] < 1e-3 and high[0] == pytest.approx(1, abs=1e-3)


def test_artefact_energy_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, size=(2, 1, 3, 40, 48))
    window = np.outer(np.hanning(41)[:40], np.hanning(49)[:48])
    window /= np.sqrt(np.mean(window**2))
    power = np.abs(np.fft.fft2((a - b) / 2 * window)) ** 2 / (40 * 48) ** 2
    fy, fx = np.abs(np.fft.fftfreq(40))[:, None], np.abs(np.fft.fftfreq(48))[None, :]
    expected = (power * ((fy > 0.25) | (fx > 0.25))).sum((2, 3)).mean(1)
    got = spectra.artefact_energy(torch.from_numpy(a), torch.from_numpy(b), factor=2)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_radial_spectrum():
    torch.manual_seed(0)
    noise = torch.randn(2, 3, 128, 128) * 0.4
    frequency, power = spectra.radial_spectrum(noise, bins=16)
    assert frequency.shape == (16,) and power.shape == (2, 16)
    np.testing.assert_allclose(power[:, 2:], 0.4**2 / 4, rtol=0.2)  # white: flat, at the variance on the [0, 1] scale
    frequency, power = spectra.radial_spectrum(wave(0, 20 / 64, 0.5))
    assert abs(frequency[power[0].argmax()] - 20 / 64) < 0.5 / 32


def test_table_is_tidy():
    torch.manual_seed(0)
    a, b = torch.rand(2, 2, 3, 40, 40) * 2 - 1
    t = metrics.table(a, b, names=["cat", "dog"])
    assert list(t.columns) == ["image", "metric", "label", "value"] and len(t) == 2 * 4
    assert t.set_index(["image", "metric"]).value["dog", "psnr"] == metrics.psnr(a, b)[1]
    assert "LPIPS (thin)" in set(t.label)
    np.testing.assert_allclose(metrics.lpips(a, a), 0, atol=1e-6)
    assert (metrics.lpips(a, b) > 0).all()
    with pytest.raises(UnknownName, match="did you mean 'ssim'"):
        metrics.table(a, b, ["sim"])
    with pytest.raises(ShapeError, match="equal shapes"):
        metrics.psnr(a, b[..., :20])


def brute_force(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """Precision and recall by the definition, one pair of points at a time."""

    def covered(points, centres):
        inside = 0
        for p in points:
            hit = False
            for i, c in enumerate(centres):
                others = sorted(np.linalg.norm(c - d) for j, d in enumerate(centres) if j != i)
                hit = hit or np.linalg.norm(p - c) <= others[k - 1]
            inside += hit
        return inside / len(points)

    return covered(fake, real), covered(real, fake)


def test_precision_and_recall_by_the_definition():
    rng = np.random.default_rng(0)
    for k, n, m in ((1, 20, 30), (3, 25, 20)):
        real, fake = rng.normal(50, 1, size=(n, 4)), rng.normal(50.7, 0.8, size=(m, 4))
        expected = brute_force(real, fake, k)
        assert fid.precision_recall(real, torch.from_numpy(fake), k) == pytest.approx(expected, abs=1e-12)
        assert fid.precision_recall(fake, real, k) == pytest.approx(expected[::-1], abs=1e-12)
        assert min(expected) > 0 and max(expected) < 1, "a case that can fail"


def test_precision_and_recall_of_known_cases():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 1100, 3))  # more rows than a chunk
    assert min(fid.precision_recall(a, b)) > 0.9
    assert fid.precision_recall(a, a) == (1, 1)
    narrow = fid.precision_recall(a, b * 0.05)  # every fake is realistic, and all are alike
    assert narrow[0] > 0.99 and narrow[1] < 0.05
    wide = fid.precision_recall(a, b * 20)
    assert wide[0] < 0.05 and wide[1] > 0.9
    assert fid.precision_recall(a, b + 100) == (0, 0)
    half = np.concatenate([a[:550], a[:550] + 100])  # half of the fakes are far off: half the precision, not the recall
    precision, recall = fid.precision_recall(a, half)
    assert precision == 0.5 and recall > 0.85


def test_precision_and_recall_refuse_what_they_cannot_measure():
    a = np.zeros((4, 2))
    for real, fake, k in ((a[:3], a, 3), (a, a[:, :1], 3), (a[0], a, 1)):
        with pytest.raises(ShapeError, match="more than k rows"):
            fid.precision_recall(real, fake, k)
    with pytest.raises(InvalidValue, match="k = 0"):
        fid.precision_recall(a, a, 0)
    with pytest.raises(InvalidValue, match="NaN"):
        fid.precision_recall(a * np.nan, a)


def test_numbers_and_batches_that_measure_nothing():
    x = torch.rand(1, 3, 32, 32)
    for bad in (0.5, math.nan, -4):
        with pytest.raises(InvalidValue, match="factor"):
            spectra.artefact_energy(x, x, factor=bad)
    for bad in (0, 0.5, math.nan):
        with pytest.raises(InvalidValue, match="cutoff"):
            spectra.share_lost(x, x, cutoff=bad)
    for bad in (-1.0, math.nan):
        with pytest.raises(InvalidValue, match="threshold"):
            retrieval.id_retrieval(np.eye(2), np.eye(2), [0, 1], threshold=bad)
    for name, (_, measure) in metrics.METRICS.items():
        if "thin" in name or name in ("psnr", "ssim", "roughness", "colour"):
            with pytest.raises(ShapeError, match="one or more images"):
                measure(x[:0], x[:0])


def test_share_lost_of_small_and_of_flat_pictures():
    """At 32 pixels some rings hold no frequency; a flat target has nothing that could be lost."""
    target = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    for share in spectra.share_lost(0.5 * target, target):
        np.testing.assert_allclose(share, 0.25, rtol=1e-6)
    target[1] = 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = spectra.share_lost(0.5 * target, target)
    assert np.isfinite([low[0], high[0]]).all() and np.isnan([low[1], high[1]]).all()
