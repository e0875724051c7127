"""FID: the protocol, the formula against torch-fidelity's own, and the standard error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hrlib import fid, image, weights
from hrlib.cli import app
from hrlib.errors import InvalidValue, MissingWeights, ShapeError, UnknownName

FIXTURE = Path(__file__).parent / "fixtures" / "08_metrics" / "metrics_io.npz"


def test_the_distance_is_that_of_torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # after hrlib

    with np.load(FIXTURE) as f:
        real, fake, expected = (f[k] for k in ("in/feat_real", "in/feat_gen", "out/fid_torch_fidelity"))
    a, b = torch.from_numpy(fake), torch.from_numpy(real)
    assert fid.frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-5)
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in (a, b)), verbose=False)
    assert fid.frechet_distance(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


def test_shipped_features_of_pictures():
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = fid.features(x, "vgg16_thin")
    assert found.shape == (3, 160)
    assert torch.equal(fid.features(x * 3, "vgg16_thin"), fid.features((x * 3).clamp(-1, 1), "vgg16_thin"))
    small = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(fid.features(x, "vgg16_thin", 32), fid.features(small, "vgg16_thin"))
    assert torch.equal(fid.features(x, "vgg16_thin", 64), found)
    with pytest.raises(UnknownName, match="vgg16_thin"):
        fid.features(x, "vgg16")


def test_inception_is_never_random(monkeypatch, tmp_path):
    monkeypatch.setenv("HRLIB_DATA", str(tmp_path))
    fid._inception.cache_clear()
    with pytest.raises(MissingWeights, match="inception_fid"):
        fid.features(torch.zeros(1, 3, 32, 32))


def test_inception_sees_8_bits_and_our_own_reader_fills_it(monkeypatch):
    """With weights of our own making: what torch-fidelity computes of the same bytes with the same weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    state = {}
    with monkeypatch.context() as m:
        m.setattr(module, "load_state_dict_from_url", lambda *_, **__: state)
        m.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, s: None)
        torch.manual_seed(0)
        theirs = module.FeatureExtractorInceptionV3("theirs", ["2048"])
    state |= theirs.state_dict()
    monkeypatch.setattr(weights, "load_state", lambda name: (dict(state), {}))
    fid._inception.cache_clear()
    x = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1)) * 2.4 - 1.2
    pixels = torch.from_numpy(image.to_uint8(x)).permute(0, 3, 1, 2)
    assert torch.equal(fid.features(x), theirs(pixels)[0])
    assert module.load_state_dict_from_url.__module__ != __name__  # their download is put back
    fid._inception.cache_clear()


def test_the_standard_error_is_that_of_people():
    g = torch.Generator().manual_seed(0)
    reference = torch.randn(400, 4, generator=g)
    errors, distances = [], []
    for _ in range(30):
        people = torch.randn(40, 1, 4, generator=g) + 0.5
        pictures = (people + 0.1 * torch.randn(40, 5, 4, generator=g)).flatten(0, 1)
        values = fid.by_person(pictures, reference, [str(i // 5) for i in range(200)])
        assert len(values) == 40
        errors.append(values.std(ddof=1) / 40**0.5)
        distances.append(fid.frechet_distance(pictures, reference))
    assert np.mean(errors) == pytest.approx(np.std(distances), rel=0.35)


@pytest.mark.parametrize("people", [["a"] * 4, ["a", "b", "c"]])
def test_people_that_do_not_fit(people):
    with pytest.raises(ShapeError, match="people"):
        fid.by_person(torch.randn(4, 2), torch.randn(4, 2), people)


def test_sizes_that_do_not_fit(tmp_path):
    for name, edge in {"a": 32, "b": 32, "c": 40}.items():
        image.write(torch.zeros(1, 3, edge, edge), tmp_path / f"{name}.png")
    done = CliRunner().invoke(app, ["fid", str(tmp_path), str(tmp_path), "--network", "vgg16_thin"])
    assert isinstance(done.exception, ShapeError) and "c.png of 40x40" in str(done.exception)
    with pytest.raises(InvalidValue, match="size"):
        fid.features(torch.zeros(1, 3, 32, 32), "vgg16_thin", 0)
