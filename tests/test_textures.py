"""The procedural classification set: deterministic, varied, and in the library's image convention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from hrlib import store
from hrlib.errors import InvalidValue, StoreError, UnknownName
from hrlib.training import checkpoints, loop, perceptual
from hrlib.training.cli import app
from hrlib.worlds import textures


@pytest.mark.parametrize("name", textures.CLASSES)
def test_every_class_draws_varied_images_of_any_size(name):
    x = textures.render(name, 6, size=33, seed=2)
    assert x.shape == (6, 3, 33, 33) and x.dtype == torch.float32
    assert x.min() >= -1 and x.max() <= 1 and torch.isfinite(x).all()
    assert all(image.std() > 0.02 for image in x)  # something is drawn
    assert all((x[0] - other).abs().mean() > 0.05 for other in x[1:])  # and not the same thing


def test_draws_depend_on_the_seed_only():
    a = textures.render("marble", 4, seed=1)
    torch.manual_seed(123)
    assert torch.equal(a, textures.render("marble", 4, seed=1))
    for other in ({"seed": 2}, {"seed": 1, "part": 1}):
        assert not torch.equal(a, textures.render("marble", 4, **other))
    assert len(textures.CLASSES) == len(set(textures.CLASSES)) >= 40


def test_dataset_is_in_class_order_and_rounded_to_bytes():
    images, labels = textures.dataset(3, size=24, seed=5)
    assert images.dtype == torch.uint8 and images.shape == (3 * len(textures.CLASSES), 3, 24, 24)
    assert labels.tolist() == [k for k in range(len(textures.CLASSES)) for _ in range(3)]
    k = textures.CLASSES.index("face")
    expected = textures.render("face", 3, size=24, seed=5)
    assert (images[3 * k : 3 * k + 3] / 127.5 - 1 - expected).abs().max() <= 0.5 / 127.5 + 1e-6


def test_mistakes_are_named():
    with pytest.raises(UnknownName, match="did you mean 'checker'"):
        textures.render("cheker", 1)
    with pytest.raises(InvalidValue, match="n = 0"):
        textures.render("checker", 0)
    with pytest.raises(UnknownName, match="did you mean 'resnet50'"):
        perceptual.shipped_recipe("resnet5")


def test_batches_are_a_function_of_seed_and_step():
    images, labels = textures.dataset(2, size=perceptual.RENDER_SIZE)
    sizes = set()
    for step in range(3):
        x, y = perceptual.batch_of(images, labels, n=16, seed=3, step=step)
        again, _ = perceptual.batch_of(images, labels, n=16, seed=3, step=step)
        assert torch.equal(x, again) and len(x) == len(y) == 16
        sizes.add(x.shape[-1])
    assert sizes == set(perceptual.HOME_SIZES)


SMALL = perceptual.PerceptualRecipe("vgg16", {"channels": [4, 4, 4, 8, 8]}, steps=6, lr=1e-3, batch=8, per_class=2)


def test_a_resumed_training_run_is_the_same_run(tmp_path, monkeypatch):
    whole = perceptual.State(SMALL)
    for _ in perceptual.train(SMALL, whole):
        pass
    stopped = False

    def interrupt(*args, **kwargs):
        nonlocal stopped
        if kwargs["step"] == 4 and not stopped:
            stopped = True
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    def follow():
        steps = perceptual.train(SMALL, state := perceptual.State(SMALL))
        how = dict(data={}, every=3 * SMALL.batch, tell=lambda text: None)
        loop.follow(tmp_path / "run", "vgg16", SMALL, state, steps, **how)
        return state

    original = perceptual.batch_of
    monkeypatch.setattr(perceptual, "batch_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        follow()
    assert loop.trained(tmp_path / "run").step == 3
    resumed = follow()
    assert resumed.step == whole.step == 6
    a, b = (checkpoints.gather(state.parts) for state in (whole, resumed))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    perceptual.save(SMALL, resumed.net, tmp_path / "x.safetensors", card="test")
    assert 0 <= perceptual.accuracy(resumed.net, edge=40, per_class=2) <= 1


def test_a_perceptual_run_replaces_nothing_and_begins_with_what_it_can_finish(tmp_path, monkeypatch):
    monkeypatch.setitem(perceptual.SHIPPED, "vgg16", replace(SMALL, steps=2))
    monkeypatch.setattr(perceptual, "accuracy", lambda net, **_: 0.5)
    out, folder = tmp_path / "vgg_0.1", tmp_path / "run"
    run = lambda to=out, **more: perceptual.run("vgg16", to, **{"folder": folder, "tell": lambda text: None} | more)
    assert run()["steps"] == 2
    names = {"vgg_0.1.safetensors", "vgg_0.1.md", "run"}
    assert {f.name for f in tmp_path.iterdir()} == names

    def never(*_):
        pytest.fail("nothing is trained from here on")
        yield

    monkeypatch.setattr(perceptual, "train", never)
    with pytest.raises(StoreError, match=r"vgg_0.1.safetensors is there already"):
        run()
    with pytest.raises(StoreError, match=r"vgg16_thin.safetensors is there already"):
        run(None)
    with pytest.raises(StoreError, match="with seed = 0"):
        run(tmp_path / "other", seed=1)
    with store.alone(folder / store.LOCK, "x"), pytest.raises(StoreError, match="another run"):
        run(tmp_path / "other")
    for wrong in ({"steps": 0}, {"steps": -5}, {"seed": -1}, {"threads": 0}):
        with pytest.raises(InvalidValue, match=next(iter(wrong))):
            run(tmp_path / "other", **wrong)
    done = CliRunner().invoke(app, ["perceptual", "vgg16", "--out", str(tmp_path / "other"), "--steps", "0"])
    assert isinstance(done.exception, InvalidValue) and "steps = 0" in str(done.exception)
    assert {f.name for f in tmp_path.iterdir()} == names


def test_colour_labels_name_each_quadrant():
    x = torch.full((1, 3, 8, 8), -1.0)
    x[0, 0, :4, 4:] = 1.0  # upper right red, the rest black
    x[0, :, 4:, :4] = 0.1  # lower left just above the middle: level 2 of 0 .. 3
    top = perceptual.LEVELS**2 * 3
    assert perceptual.colour_labels(x).tolist() == [[0, top, 2 * (16 + 4 + 1), 0]]


def test_grain_is_pixel_fine_of_the_stated_strength_and_repeats():
    x = torch.zeros(1000, 3, 16, 16)
    y, kind = perceptual.grained(x, seed=1, step=2)
    again, _ = perceptual.grained(x, seed=1, step=2)
    assert torch.equal(y, again) and not torch.equal(y, perceptual.grained(x, seed=1, step=3)[0])
    assert set(kind.tolist()) == set(range(perceptual.GRAINS))
    assert y[kind == 0].abs().max() == 0
    rms = y[kind > 0].square().mean((1, 2, 3)).sqrt()
    assert rms.min() > 0.02 and rms.max() < 0.4
    grating = y[kind % 4 != 1]  # all but white noise average out over 2 x 2 pixels
    assert F.avg_pool2d(grating, 2).abs().max() < 1e-6
