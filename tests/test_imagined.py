"""People who do not exist: cutting out, warping and the camera by their definitions; names; and the pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hrlib import image, weights
from hrlib.errors import InvalidValue, MissingWeights, UnknownName
from hrlib.worlds import imagined, pictures


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# --- cutting out ------------------------------------------------------------------------------------------------------


def test_a_box_is_the_mean_of_what_is_inside_the_picture():
    x = random(1, 2, 9, 12)
    mean = imagined._box(x, 3)
    for i, j in ((0, 0), (4, 6), (8, 11), (2, 10)):
        part = x[:, :, max(i - 3, 0) : i + 4, max(j - 3, 0) : j + 4]
        torch.testing.assert_close(mean[:, :, i, j], part.mean((2, 3)))


def test_colours_move_the_outline_to_where_the_picture_has_it():
    edge, believed = 128, 136  # the probe is wrong by 8 columns, and unsure over 28
    column = torch.arange(256.0).expand(256, 256)
    picture = torch.where(column < edge, 0.25, 0.7).expand(1, 3, -1, -1) + 0.05 * random(1, 3, 256, 256)
    matte = imagined._matted(((believed - column) / 24)[None, None], picture)
    assert matte[0, 0, 40:-40, : edge - 2].min() > 0.9 and matte[0, 0, 40:-40, edge + 2 :].max() < 0.1


def test_without_a_difference_in_colour_the_probe_decides():
    column = torch.arange(256.0).expand(1, 1, 256, 256)
    matte = imagined._matted((140 - column) / 40, torch.full((1, 3, 256, 256), 0.5))
    assert matte[..., :110].min() > 0.95 and matte[..., 170:].max() < 0.05
    assert 0.4 < float(matte[..., 140].mean()) < 0.6


def test_layers_take_the_background_out_of_mixed_pixels():
    column = torch.arange(256.0).expand(1, 1, 256, 256)
    matte = ((140 - column) / 24).clamp(0, 1)  # half-transparent hair, say, between columns 116 and 140
    person, behind = torch.tensor([0.2, 0.1, 0.05])[:, None, None], torch.tensor([0.1, 0.5, 0.9])[:, None, None]
    head, _ = imagined._layers(matte * person + (1 - matte) * behind, matte)
    mixed = (matte > 0.2) & (matte < 0.9)
    assert float((head - person).abs().amax(1, keepdim=True)[mixed].max()) < 0.12  # of up to 0.7


# --- geometry and surroundings ----------------------------------------------------------------------------------------


def test_the_warp_moves_everything_a_little_and_shrinks_nothing_by_more_than_a_quarter():
    side = 64
    ramp = torch.stack(torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij"))[None]
    moved = []
    for seed in range(30):
        view, bend = imagined._geometry(draws(seed))
        seen = imagined._warp(ramp, view, bend)[0, :, 8:-8, 8:-8]  # where each pixel's light comes from
        moved.append(float((seen - ramp[0, :, 8:-8, 8:-8]).norm(dim=0).mean()))
        dy, dx = seen[:, 1:, :-1] - seen[:, :-1, :-1], seen[:, :-1, 1:] - seen[:, :-1, :-1]
        jacobian = torch.stack([dy, dx], -1).permute(1, 2, 0, 3) * side
        assert torch.linalg.svdvals(jacobian).max() < 4 / 3
        assert torch.linalg.det(jacobian).min() > 0.4, "nothing folds"
    assert min(moved) > 0.01 and max(moved) < 0.06


def test_defocus_is_a_disc_and_keeps_the_light():
    point = torch.zeros(1, 3, 64, 64)
    point[..., 30, 33] = 1
    disc = imagined._disc(point, 6.0)[0, 0]
    assert float(disc.sum()) == pytest.approx(1, abs=1e-4)
    v, u = torch.meshgrid(torch.arange(64) - 30, torch.arange(64) - 33, indexing="ij")
    radius = (u**2 + v**2).double().sqrt()
    assert (
        float(disc[radius <= 5].std() / disc[radius <= 5].mean()) < 1e-3 and float(disc[radius > 7].abs().max()) < 1e-6
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_background_keeps_half_of_the_scenes_brightness(seed):
    behind = torch.full((1, 3, 128, 128), 0.05)
    light = imagined._background(behind, draws(seed))
    assert light.shape == behind.shape and float(light.min()) >= 0 and torch.isfinite(light).all()
    brighter = imagined._background(4 * behind, draws(seed))
    torch.testing.assert_close(brighter, 2 * light, rtol=1e-4, atol=1e-5)


# --- the camera -------------------------------------------------------------------------------------------------------


def test_srgb_and_back():
    x = torch.linspace(0, 1, 101)
    torch.testing.assert_close(imagined._srgb(imagined._linear(x)), x, atol=1e-6, rtol=1e-5)
    assert float(imagined._linear(torch.tensor(0.5))) == pytest.approx(0.2140, abs=1e-4)  # IEC 61966-2-1


def test_noise_is_correlated_as_demosaicing_leaves_it():
    assert torch.equal(imagined._demosaiced(torch.ones(1, 3, 8, 8))[..., 2:-2, 2:-2], torch.ones(1, 3, 4, 4))
    noise = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    seen = imagined._demosaiced(noise)
    assert torch.equal(seen[:, 0, ::2, ::2], noise[:, 0, ::2, ::2])  # a red pixel's own measurement
    for channel, expected in ((0, 0.60), (1, 0.47), (2, 0.60)):  # of neighbours in a row
        a, b = seen[0, channel, :, :-1].flatten(), seen[0, channel, :, 1:].flatten()
        assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) == pytest.approx(expected, abs=0.15)


def test_the_camera_exposes_halfway_for_the_person_and_its_grain_is_that_of_photons():
    matte = torch.ones(1, 1, 128, 128)
    shots = {level: imagined._camera(torch.full((1, 3, 128, 128), level), matte, draws(3)) for level in (0.05, 0.2)}
    again = imagined._camera(torch.full((1, 3, 128, 128), 0.05), matte, draws(3))
    assert all(x.shape == (128, 128, 3) and x.dtype == np.uint8 for x in shots.values())
    assert np.array_equal(again, shots[0.05])
    dark, bright = (float(imagined._linear(torch.tensor(x / 255)).mean()) for x in shots.values())
    assert 1.5 < bright / dark < 2.8  # a factor of 4 in the scene
    patch = (slice(48, 80), slice(48, 80))  # without the vignetting
    snr = [float(x[patch].astype(float).mean() / x[patch].astype(float).std()) for x in shots.values()]
    assert snr[1] > 1.1 * snr[0] and 10 < snr[0] < 200


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_of_imagined_people():
    assert pictures.listed(["imagined:1..3", "imagined:2", "imagined:2.1"]) == [
        "imagined:1", "imagined:2", "imagined:3", "imagined:2.1",
    ]  # fmt: skip
    for name in ("imagined:", "imagined:x", "imagined:1.", "imagined:1.2.3", "imagined:-1"):
        with pytest.raises(UnknownName, match=r"imagined:SEED\.SHOT"):
            pictures.picture(name)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(weights.files, "packaged", lambda package, file: tmp_path / file)
    for cache in (imagined._generator, imagined._taken):
        cache.cache_clear()
    with pytest.raises(MissingWeights, match="make faces"):
        pictures.picture("imagined:1", 64)
    for seed, shot in ((-1, 0), (0, -1), (0.5, 0)):
        with pytest.raises(InvalidValue):
            imagined.render(seed, shot=shot)


def test_the_astronauts_face_is_framed_as_in_ffhq():
    face = pictures.picture("photo:astronaut_face", 256)
    assert face.shape == (1, 3, 256, 256) and pictures.picture("photo:astronaut_face").shape == (1, 3, 173, 173)
    whole = pictures.picture("photo:astronaut")
    assert torch.equal(pictures.picture("photo:astronaut_face"), whole[:, :, 22:195, 138:311])


# --- the pictures -----------------------------------------------------------------------------------------------------

needs_faces = pytest.mark.skipif(
    weights.status("ffhq_mobile1024") != "ok", reason="needs the package random-face: run `make faces`"
)


@needs_faces
def test_a_picture_is_a_function_of_seed_and_shot():
    person = imagined.CHOSEN[0]
    first = imagined.render(person)
    assert first.shape == (1, 3, 1024, 1024) and torch.equal(image.from_uint8(image.to_uint8(first)), first)
    assert torch.equal(pictures.picture(f"imagined:{person}"), first)
    assert torch.equal(imagined.render(person, 256), image.resize(first, 256))
    threads = torch.get_num_threads()
    imagined._taken.cache_clear()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        assert torch.equal(imagined.render(person), first), "whatever the number of threads"
    finally:
        torch.set_num_threads(threads)


@needs_faces
def test_a_picture_is_off_the_generators_manifold_but_near_its_sample():
    person = imagined.CHOSEN[0]
    w = imagined.identity(person)
    assert w.shape == (512,) and torch.equal(w, imagined.identity(person))
    with torch.no_grad():
        sample = imagined._generator().synthesis(w.expand(1, 16, 512), size=(1024, 1024)).clamp(-1, 1)
    x = imagined.render(person, 64)
    same, other = (float((x - image.resize(y, 64)).abs().mean()) for y in (sample, imagined.render(imagined.CHOSEN[1])))
    assert 0.05 < same < other


@needs_faces
def test_other_shots_are_other_pictures_of_the_same_person():
    dlib = pytest.importorskip("dlib", reason="needs dlib: run `make faces`")
    detect = dlib.get_frontal_face_detector()
    points = dlib.shape_predictor(str(weights.path("dlib_landmarks5")))
    recognise = dlib.face_recognition_model_v1(str(weights.path("dlib_recognition")))

    def embedded(seed: int, shot: int) -> np.ndarray:
        x = image.to_uint8(imagined.render(seed, 512, shot=shot))[0]
        (face,) = detect(x, 0)
        return np.array(recognise.compute_face_descriptor(x, points(x, face)))

    people = imagined.CHOSEN[:3]
    first, others = (np.stack([embedded(seed, shot) for seed in people]) for shot in (0, 1))
    distance = np.linalg.norm(others[:, None] - first[None], axis=2)
    assert (distance.diagonal() < 0.6).all() and (distance.argmin(1) == np.arange(len(people))).all()
    assert distance.diagonal().min() > 0.1, "another picture"
