"""Spectra of a region: known textures, known changes to them, and nothing from outside the region."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from hrlib import spectra
from hrlib.errors import InvalidValue, ShapeError

SIZE = 96
CUTOFF = 1 / 8


def noise(seed: int, scale: float = 0.1) -> torch.Tensor:
    """White noise of three equal channels, so that no channel is idle: [1, 3, SIZE, SIZE]."""
    return scale * torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    """A crescent, as hair is: a disc without a smaller one; [1, 1, SIZE, SIZE]."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    big = torch.hypot(x - 48.0, y - 48.0) < 44
    return (big & (torch.hypot(x - 48.0, y - 70.0) > 30)).float()[None, None]


def test_a_faded_copy_has_less_energy_and_full_coherence(mask):
    x = noise(0)
    found = spectra.region(0.6 * x + 0.2, x, mask)  # another mean is no texture
    assert found.windows > 20
    assert found.energy(CUTOFF) == pytest.approx(0.36, rel=1e-6)
    assert found.coherence(CUTOFF) == pytest.approx(1, rel=1e-6)
    _, ratio, coherence = found.rings()
    np.testing.assert_allclose(ratio, 0.36, rtol=1e-6)
    np.testing.assert_allclose(coherence, 1, rtol=1e-6)


def test_added_noise_raises_energy_and_lowers_coherence(mask):
    x = noise(0)
    found = spectra.region(x + noise(1), x, mask)
    assert found.energy(CUTOFF) == pytest.approx(2, rel=0.05)
    assert found.coherence(CUTOFF) == pytest.approx(0.5, abs=0.03)
    other = spectra.region(noise(1), x, mask)
    assert other.energy(CUTOFF) == pytest.approx(1, rel=0.05)
    assert other.coherence(CUTOFF) < 0.01, "another texture of the same kind"
    assert spectra.region(-x, x, mask).coherence(CUTOFF) == 0, "the opposite is no agreement"


def test_a_blur_lowers_each_frequency_by_its_transfer_function(mask):
    x, sigma = noise(2), 0.8
    blurred = torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="wrap", truncate=6.0))
    frequency, ratio, _ = spectra.region(blurred, x, mask).rings()
    expected = np.exp(-((2 * math.pi * sigma * frequency) ** 2))
    np.testing.assert_allclose(ratio[frequency <= 0.3], expected[frequency <= 0.3], rtol=0.12)
    assert spectra.region(blurred, x, mask).energy(CUTOFF) < 0.3


@pytest.mark.parametrize("cycles", [0.1875, 0.3125, 0.4375])
def test_a_grating_is_found_at_its_frequency(mask, cycles):
    grating = 0.2 * torch.sin(2 * math.pi * cycles * torch.arange(SIZE)).expand(1, 3, SIZE, SIZE)
    x = noise(3, 0.02)
    frequency, ratio, _ = spectra.region(x + grating, x, mask).rings()
    assert frequency[ratio.argmax()] == pytest.approx(cycles)
    away = np.abs(frequency - cycles) > 0.13  # the main lobe of a Hann window is two steps wide on each side
    assert ratio[away].max() < 0.02 * ratio.max()


def test_what_lies_outside_the_region_does_not_matter(mask):
    x, r = noise(0), noise(1)
    painted = [torch.where(mask > 0, image, noise(9, 5.0)) for image in (r, x)]
    inside, elsewhere = spectra.region(r, x, mask), spectra.region(*painted, mask)
    for name in ("target", "recon", "cross"):
        np.testing.assert_array_equal(getattr(elsewhere, name), getattr(inside, name))


def test_even_shading_is_no_texture(mask):
    slope = torch.linspace(-0.5, 0.5, SIZE).expand(1, 3, SIZE, SIZE)
    x = noise(4, 0.05)
    assert spectra.region(x + slope, x, mask).energy(CUTOFF) == pytest.approx(1, abs=0.03), (
        "ten times the texture's size"
    )


def test_a_flat_reconstruction_has_recovered_nothing(mask):
    found = spectra.region(torch.full_like(noise(0), 0.25), noise(0), mask)
    assert found.energy(CUTOFF) < 1e-20 and found.coherence(CUTOFF) < 1e-6


def test_detail_knows_only_the_region(mask):
    x, sigma = noise(5), 1.5
    h = spectra.detail(x, mask, sigma)
    assert (h[(mask == 0).expand_as(h)] == 0).all()
    torch.testing.assert_close(spectra.detail(torch.where(mask > 0, x, 7.0), mask, sigma), h, atol=1e-6, rtol=0)
    assert spectra.detail(torch.full_like(x, 0.3), mask, sigma).abs().max() < 1e-6, "an outline is no detail"
    deep = 48, 13  # row and column far from the outline, where it is a plain Gaussian high-pass
    plane = x[0, 0].numpy()
    expected = plane - ndimage.gaussian_filter(plane, sigma, truncate=4.0)
    assert mask[0, 0, 42:55, 7:20].all()
    assert h[0, 0][deep] == pytest.approx(float(expected[deep]), abs=1e-4)


def test_what_cannot_be_measured_is_refused(mask):
    x = noise(0)
    with pytest.raises(InvalidValue, match="without room for a disc"):
        spectra.region(x, x, mask, window=80)
    with pytest.raises(InvalidValue, match="without room"):
        spectra.region(x, x, torch.full_like(mask, 0.5))
    with pytest.raises(ShapeError, match="one picture at a time"):
        spectra.region(x.expand(2, -1, -1, -1), x.expand(2, -1, -1, -1), mask)
    with pytest.raises(InvalidValue, match="even number"):
        spectra.region(x, x, mask, window=9)


def test_a_target_without_energy_is_no_division(mask):
    x, flat = noise(0), torch.zeros(1, 3, SIZE, SIZE)
    for recon in (x, flat):
        found = spectra.region(recon, flat, mask)
        assert math.isnan(found.energy(CUTOFF)) and found.coherence(CUTOFF) == 0
        _, ratio, coherence = found.rings()
        assert np.isnan(ratio).all() and (coherence == 0).all()


# --- excess energy ----------------------------------------------------------------------------------------------------


def half_textured() -> torch.Tensor:
    """Noise on the left, an even grey on the right: hair beside skin."""
    x = noise(0)
    x[..., SIZE // 2 :] = 0.1
    return x


def test_excess_is_what_the_target_does_not_have_there():
    x = half_textured()
    assert spectra.excess_energy(x, x) == 0
    smooth = torch.zeros_like(x)
    assert spectra.excess_energy(smooth, x) == 0, "missing detail is no excess"
    grain = x.clone()
    grain[..., SIZE // 2 :] += noise(1)[..., SIZE // 2 :]
    assert spectra.excess_energy(grain, x)[0] == pytest.approx(1, abs=0.1), "as much as the target has, elsewhere"
    lost_and_found = grain.clone()
    lost_and_found[..., : SIZE // 2] = 0
    assert spectra.excess_energy(lost_and_found, x)[0] > 0.8, "hair that is lost does not hide grain on skin"
    both = spectra.excess_energy(torch.cat([x, grain]), torch.cat([x, x]))
    assert both.shape == (2,) and both[0] == 0


@pytest.mark.parametrize(("cycles", "counts"), [(1 / 4, True), (1 / 32, False)])
def test_excess_counts_from_the_cutoff_on(cycles, counts):
    x = noise(0)
    grating = 0.1 * torch.sin(2 * math.pi * cycles * torch.arange(SIZE)).expand_as(x)
    assert (spectra.excess_energy(x + grating, x)[0] > 0.1) == counts


def test_incoherent_energy_and_coherence_tell_right_texture_from_wrong():
    x, other = noise(0), noise(1)
    faded, mixed = 0.3 * x, 0.6 * x + 0.8 * other
    rows = {"same": x, "faded": faded, "mixed": mixed, "other": other, "none": torch.zeros_like(x), "negative": -x}
    wrong = {name: spectra.incoherent_energy(r, x)[0] for name, r in rows.items()}
    right = {name: spectra.coherence(r, x)[0] for name, r in rows.items()}
    assert max(wrong["same"], wrong["faded"]) < 1e-9, "what is missing is not incoherent"
    assert min(right["same"], right["faded"]) == pytest.approx(1)
    assert wrong["mixed"] == pytest.approx(0.64, abs=0.05) and right["mixed"] == pytest.approx(0.36, abs=0.05)
    assert wrong["other"] == pytest.approx(1, abs=0.05) and right["other"] < 0.01
    assert wrong["negative"] == pytest.approx(1) and right["negative"] == 0
    assert wrong["none"] == 0 and np.isnan(right["none"])


def test_wrong_texture_of_the_right_strength_is_no_excess_but_incoherent():
    x = half_textured()
    replaced = x.clone()
    replaced[..., : SIZE // 2] = 0.8 * noise(1)[..., : SIZE // 2]
    assert spectra.excess_energy(replaced, x)[0] < 0.1 < 0.5 < spectra.incoherent_energy(replaced, x)[0]


@pytest.mark.parametrize("measure", [spectra.excess_energy, spectra.incoherent_energy, spectra.coherence])
def test_excess_of_unusable_pictures_is_refused(measure):
    x = noise(0)
    with pytest.raises(ShapeError, match="at least the window"):
        measure(x[..., :16], x[..., :16])
    with pytest.raises(InvalidValue, match="cutoff"):
        measure(x, x, cutoff=0.7)
    assert np.isnan(measure(x, torch.zeros_like(x))[0])


# --- the bias of each measure, on changes with known answers ----------------------------------------------------------


def changed(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """One picture, changed in the ways that a reconstruction may be."""
    blur = torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, 0, 1.2, 1.2), mode="wrap"))
    grid = 0.1 * torch.cos(torch.pi * torch.arange(SIZE)).expand_as(x)
    return {
        "same": x,
        "blurred": blur,
        "noisy": x + noise(7, 0.1),
        "gridded": x + grid,
        "moved": x.roll((1, 1), (2, 3)),
        "tinted": x + torch.tensor([0.1, -0.05, 0.02])[None, :, None, None],
        "faded": 0.7 * x,
    }


@pytest.fixture(scope="module")
def head() -> torch.Tensor:
    """Even shading with texture in one half: skin and hair; [1, 3, SIZE, SIZE]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    shade = 0.3 * torch.cos(2 * x) * torch.cos(2 * y)
    soft = torch.from_numpy(ndimage.gaussian_filter(noise(1, 0.5).numpy(), (0, 0, 0.8, 0.8), mode="wrap"))
    return (shade + soft * (y < 0)).float()


def of(measure, head) -> dict[str, float]:
    return {name: float(measure(x, head)[0]) for name, x in changed(head).items()}


def test_grain_counts_noise_and_grids_and_no_other_error(head):
    found = of(spectra.grain, head)
    assert found["same"] == 0 and found["blurred"] <= 0 and found["faded"] <= 0
    assert abs(found["tinted"]) < 1e-6 and abs(found["moved"]) < 0.1 * found["noisy"]
    assert found["noisy"] > 0.1 and found["gridded"] > 0.1
    flat = torch.zeros(1, 3, SIZE, SIZE)
    assert spectra.grain(noise(3, 0.1), flat)[0] == pytest.approx(0.05 * 20**0.5, rel=0.05), "on the [0, 1] scale"
    rough = of(spectra.roughness, head)
    assert rough["moved"] > 0.01 and rough["blurred"] > 0.01, "the error of a moved or blurred picture is uneven"


def test_excess_counts_noise_and_grids_and_no_missing_or_moved_detail(head):
    found = of(lambda a, b: spectra.excess_energy(a, b, cutoff=0.25), head)
    assert found["same"] == 0 and max(found["blurred"], found["faded"], found["tinted"]) < 1e-6
    assert found["moved"] < 0.2 < 0.5 < found["noisy"] and found["gridded"] > 0.5


def test_incoherent_energy_counts_what_is_wrong_and_not_what_is_missing(head):
    found = of(lambda a, b: spectra.incoherent_energy(a, b, cutoff=0.25), head)
    assert max(found["same"], found["faded"], found["tinted"]) < 1e-6 and found["blurred"] < 0.25
    assert min(found["moved"], found["noisy"], found["gridded"]) > 0.5


def test_coherence_falls_with_what_is_wrong_and_not_with_what_is_missing(head):
    found = of(lambda a, b: spectra.coherence(a, b, cutoff=0.25), head)
    assert min(found["same"], found["faded"], found["tinted"]) > 0.999 and found["blurred"] > 0.6, (
        "a blur fades the upper part more"
    )
    assert max(found["moved"], found["noisy"], found["gridded"]) < 0.6


def test_psnr_is_split_at_the_nyquist_frequency_of_the_reduced_picture(head):
    across = torch.arange(SIZE).float()
    for cycles, seen in ((1 / 16, True), (3 / 8, False)):
        wave = head + 0.2 * torch.sin(2 * math.pi * cycles * across).expand_as(head)
        below, above = (float(part[0]) for part in spectra.psnr_split(wave, head, 2))
        inside, outside = (below, above) if seen else (above, below)
        assert inside == pytest.approx(-10 * math.log10(0.1**2 / 2), abs=0.2) and outside > inside + 25
    below, above = (float(part[0]) for part in spectra.psnr_split(head + noise(7, 0.2), head, 2))
    # white noise: a quarter of the frequencies lies in the square that a picture of half the size can carry
    assert below == pytest.approx(-10 * math.log10(0.25 * 0.01), abs=0.3)
    assert above == pytest.approx(-10 * math.log10(0.75 * 0.01), abs=0.3)
    energy = spectra.artefact_energy(head + noise(7, 0.2), head, 2)[0]
    assert above == pytest.approx(-10 * math.log10(energy)), "the same energy as artefact_energy"
    assert np.isinf(spectra.psnr_split(head, head, 2)[1][0])
