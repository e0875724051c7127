"""Inversions whose hair is measured: the measure is that of the reconstruction, and impossible windows are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from hrlib import image, spectra
from hrlib.errors import InvalidValue
from hrlib.experiments import inversions, layerwise
from hrlib.worlds.pictures import picture

SIZE, BALD = 32, "portrait:21"


def runs(generator, images, *, window=8, lossy=False):
    asked = inversions.grid(
        images=images,
        losses=["mse"],
        noise=[False],
        generator=generator,
        perceptual="shipped",
        size=SIZE,
        num_steps=2,
        lr=0.1,
        columns=["psnr"],
        lossy=lossy,
    )
    return layerwise.measured(asked, cutoff=0.125, window=window)


def test_the_hair_is_that_of_the_reconstruction(tiny, tmp_path):
    name = "portrait:22"
    (run,) = runs(tiny(1), [name])
    found = layerwise.perform(run)
    (tmp_path / "image.png").write_bytes(found.files["image.png"])
    recon = image.read(tmp_path / "image.png")
    mask = layerwise.hair_mask(name, SIZE)
    expected = spectra.region(recon, picture(name, SIZE), mask, window=8)
    assert found.values["hair_energy"] == pytest.approx(expected.energy(0.125), rel=0.05)  # 8 bits
    assert found.values["hair_coherence"] == pytest.approx(expected.coherence(0.125), abs=0.05)
    hair = json.loads(found.files["run.json"])["hair"]
    np.testing.assert_allclose(hair["frequency"], expected.rings()[0], atol=1e-4)
    assert len(hair["energy"]) == len(hair["coherence"]) == len(hair["frequency"])


def test_a_batch_measures_each_picture_and_a_bald_one_has_no_hair(tiny):
    asked = runs(tiny(1), ["portrait:22", BALD, "portrait:23"], lossy=True)
    together = layerwise.together(asked)
    for run, found in zip(asked, together, strict=True):
        alone = layerwise.perform(run).values["hair_energy"]
        assert found.values["hair_energy"] == (None if alone is None else pytest.approx(alone, rel=1e-3))
        assert ("hair" in json.loads(found.files["run.json"])) == (run.image != BALD)
    assert together[1].values["hair_energy"] is None and together[0].values["hair_energy"] > 0


def test_a_window_that_does_not_fit_is_refused_before_anything_is_inverted(tiny, monkeypatch):
    monkeypatch.setattr(inversions, "together", lambda *_, **__: pytest.fail("something was computed"))
    with pytest.raises(InvalidValue, match="without room for a disc of 32 pixels"):
        runs(tiny(1), ["portrait:22"], window=32)


def test_a_photograph_needs_a_mask_of_its_own(tmp_path):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:16] = 255
    Image.fromarray(mask).save(tmp_path / "a_hair.png")
    Image.fromarray(mask).save(tmp_path / "a.png")
    pattern = f"file:{tmp_path}/{{}}_hair.png"
    assert layerwise.hair_mask(f"file:{tmp_path}/a.png", SIZE) is None
    found = layerwise.hair_mask(f"file:{tmp_path}/a.png", SIZE, pattern)
    assert found.shape == (1, 1, SIZE, SIZE)
    assert bool((found[0, 0, :16] == 1).all()) and float(found[0, 0, 16:].max()) == 0
    assert layerwise.hair_mask("photo:coffee", SIZE, pattern) is None
