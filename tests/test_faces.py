"""Real faces: the geometry of FFHQ's frame without dlib; with it, what is found, aligned, recognised and refused."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from hrlib import faces, image, metrics, retrieval, weights
from hrlib.cli import app
from hrlib.errors import FaceError, InvalidValue, MissingWeights, ShapeError, StoreError
from hrlib.nets.dlib_faces import FFHQ_POINTS, DlibFaces, Face, chosen


@pytest.fixture(scope="module")
def packages():
    pytest.importorskip("dlib", reason="dlib is not installed: run `make faces`")
    for name in ("dlib_landmarks5", "dlib_recognition"):
        if weights.status(name) == "missing":
            pytest.skip(f"{name} is not installed: run `make faces`")


@pytest.fixture(scope="module")
def net(packages):
    return weights.load_identity("dlib")


@pytest.fixture(scope="module")
def astronaut():
    return image.sample("astronaut")


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", [None, faces.POINT_WEIGHTS])
def test_a_similarity_is_recovered_exactly(importance):
    for scale, degrees, shift in ((3.0, 25, 40 - 7j), (0.01, -170, 0), (700, 90, 1e3j)):
        m = scale * np.exp(1j * math.radians(degrees))
        moved = m * (FFHQ_POINTS @ (1, 1j)) + shift
        found = faces.similarity(FFHQ_POINTS, np.stack([moved.real, moved.imag], axis=1), importance)
        assert found == pytest.approx((m, shift), rel=1e-10, abs=1e-9)


def test_the_fit_is_the_best_similarity_and_never_mirrors():
    g = np.random.default_rng(0)
    to = FFHQ_POINTS + 0.05 * g.normal(size=(5, 2))
    m, t = faces.similarity(FFHQ_POINTS, to, faces.POINT_WEIGHTS)
    a, b = (p @ (1, 1j) for p in (FFHQ_POINTS, to))
    error = lambda m, t: faces.POINT_WEIGHTS @ np.abs(m * a + t - b) ** 2
    for step in (1e-4, -1e-4, 1e-4j, -1e-4j):
        assert error(m + step, t) > error(m, t) < error(m, t + step)
    mirrored = FFHQ_POINTS * (-1, 1)  # a mirror would fit exactly
    m, t = faces.similarity(FFHQ_POINTS, mirrored)
    assert np.abs(m * a + t - mirrored @ (1, 1j)).max() > 0.05


@pytest.mark.parametrize(
    ("points", "to", "importance", "error", "match"),
    [
        (np.ones((5, 2)), FFHQ_POINTS, None, InvalidValue, "one place"),
        (np.full((5, 2), np.nan), FFHQ_POINTS, None, InvalidValue, "finite"),
        (FFHQ_POINTS[:1], FFHQ_POINTS[:1], None, ShapeError, "K >= 2"),
        (FFHQ_POINTS, FFHQ_POINTS[:4], None, ShapeError, "K, 2"),
        (FFHQ_POINTS, FFHQ_POINTS, np.zeros(5), InvalidValue, "above 0"),
        (FFHQ_POINTS, FFHQ_POINTS, np.ones(4), ShapeError, "weights of shape"),
    ],
)
def test_points_that_place_nothing_are_refused(points, to, importance, error, match):
    with pytest.raises(error, match=match):
        faces.similarity(points, to, importance)


def test_a_square_is_where_its_points_say():
    place = faces.square(FFHQ_POINTS * 200 + (30, 50))
    assert (place.x, place.y, place.side, place.degrees) == pytest.approx((130, 150, 200, 0), abs=1e-9)
    assert place.corner == pytest.approx(30 + 50j) and place.outside((400, 400)) == 0
    assert place.outside((400, 130)) == pytest.approx(0.5, abs=0.01)


def test_cutting_at_the_picture_itself_changes_nothing_and_a_quarter_turn_is_exact(astronaut):
    x = F.interpolate(astronaut, (64, 64), mode="bilinear", antialias=True)
    whole = faces.Square(32, 32, 64, 0)
    assert torch.allclose(faces.cut(x, whole, 64), x, atol=1e-5)
    assert torch.allclose(faces.cut(x, faces.Square(32, 32, 64, 90), 64), x.rot90(1, (2, 3)), atol=1e-4)
    assert torch.allclose(faces.cut(x, faces.Square(32, 48, 32, 0), 32), x[..., 32:64, 16:48], atol=1e-5)


def test_beyond_the_edge_the_picture_is_mirrored(astronaut):
    x = F.interpolate(astronaut, (64, 64), mode="bilinear", antialias=True)
    beyond = faces.cut(x, faces.Square(0, 32, 64, 0), 64)  # its left half is outside
    assert torch.allclose(beyond, torch.cat([x[..., :32].flip(3), x[..., :32]], dim=3), atol=1e-5)


def test_a_reduced_picture_does_not_alias():
    stripes = torch.ones(1, 3, 512, 512)
    stripes[..., ::2] = -1  # sampled at every eighth pixel these would be black or white
    small = faces.cut(stripes, faces.Square(256, 256, 512, 0), 64)
    assert small[..., 4:-4].abs().max() < 0.05


def test_a_batch_is_no_picture(astronaut):
    with pytest.raises(ShapeError, match="batch of 2"):
        faces.cut(astronaut.repeat(2, 1, 1, 1), faces.Square(32, 32, 64, 0), 64)


# --- which face -------------------------------------------------------------------------------------------------------


def a_face(eyes: float, left: float = 0.0) -> Face:
    points = FFHQ_POINTS * eyes * 4 + (left, 0)
    return Face(points, (left, 0, left + 2 * eyes, 2 * eyes), 1.0)


def test_the_face_that_is_meant():
    large, small = a_face(60), a_face(30, left=300)
    assert large.eyes == pytest.approx(59, abs=0.5)
    assert chosen([large], (256, 512)) is large
    assert chosen([large, small], (256, 512), face=1) is small
    for some, how, match in (
        ([], {}, "no face found in me.jpg of 512x256 px"),
        ([large, small], {}, r"2 faces found in .*1: around \(360, 62\)"),
        ([large, small], {"face": 2}, "face 2 of 2"),
        ([a_face(14)], {}, r"tiny face .* 13\.\d px apart"),
        ([small], {"smallest": 32}, "at least 32 px"),
    ):
        with pytest.raises(FaceError, match=match):
            chosen(some, (256, 512), what="me.jpg", **how)
    with pytest.raises(InvalidValue, match="face = -1"):
        chosen([large], (256, 512), face=-1)


def test_without_dlib_one_error_says_make_faces(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(MissingWeights, match="make faces"):
        DlibFaces("landmarks.dat")


# --- pictures without a vector ----------------------------------------------------------------------------------------


class FaceAtLeft(torch.nn.Module):
    """Stands for a network that looks for faces: it finds none in a picture whose first pixel is dark."""

    dim, unit_length, same_person = 3, False, 0.25

    def embed(self, x):
        """The mean colour."""
        if (x[:, 0, 0, 0] < -0.9).any():
            raise FaceError("no face found", expected="a face", do="look")
        return x.mean((2, 3))

    def embed_aligned(self, x):
        """Always a vector."""
        return x.mean((2, 3))


def test_a_picture_without_a_face_is_an_error_or_a_row_of_nan():
    x = torch.rand(4, 3, 8, 8) * 0.5
    x[2] = -1
    with pytest.raises(FaceError, match="no face"):
        retrieval.embed(FaceAtLeft(), x)
    vectors = retrieval.embed(FaceAtLeft(), x, keep_lost=True)
    assert vectors.isnan().all(1).tolist() == [False, False, True, False]
    assert torch.equal(vectors[[0, 1, 3]], x[[0, 1, 3]].mean((2, 3))), "of their own length"
    assert torch.equal(retrieval.embed(FaceAtLeft(), x, "crop"), x.mean((2, 3))), "nothing is looked for"


def test_lost_pictures_count_as_misses_and_are_counted():
    content = np.array([[0.0, 0], [1, 0], [np.nan, np.nan], [0, 5]])
    stylised = np.array([[0.1, 0], [np.nan, np.nan], [0.2, 0], [0, 5.0]])
    found = retrieval.id_retrieval(content, stylised, [0, 0, 2, 3])
    assert found.rate == 0.5 and found.found.tolist() == [True, False, False, True]
    assert found.lost.tolist() == [False, True, False, False] and found.lost_contents.tolist() == [False] * 2 + [
        True,
        False,
    ]
    assert found.nearest.tolist() == [0, -1, 0, 3] and found.rank.tolist() == [1, 4, 4, 1]
    people = retrieval.by_person(content, torch.from_numpy(stylised).view(2, 2, 2), list("abcd"), ["a", "d"])
    assert people.confusion().tolist() == [[1, 0, 0, 0], [1, 0, 0, 1]]
    for bad in (content * np.nan, np.where(content == 5, np.inf, content), np.where(content == 5, np.nan, content)):
        with pytest.raises(InvalidValue, match="finite"):
            retrieval.id_retrieval(bad, stylised, [0, 0, 2, 3])


def test_a_networks_own_threshold():
    assert retrieval.threshold_of(FaceAtLeft()) == 0.25
    assert retrieval.threshold_of(lambda x: x) == retrieval.THRESHOLD == 1.5


# --- with dlib --------------------------------------------------------------------------------------------------------


def test_the_astronaut_is_found_where_she_is(packages, astronaut):
    (face,) = faces.find(astronaut)
    by_eye = [(256, 104), (238, 105), (196, 101), (212, 104), (224, 135)]
    assert np.abs(face.points - by_eye).max() < 3
    assert 40 < face.eyes < 46


@pytest.mark.parametrize("degrees", [0, -15, 20])
def test_alignment_recovers_a_known_similarity(packages, astronaut, degrees):
    straight = faces.square(faces.the_face(astronaut).points)
    moved = faces.Square(235, 118, 330, degrees)  # the astronaut, turned and enlarged, in a picture of 700 px
    seen = faces.cut(astronaut, moved, 700)
    place = faces.square(faces.the_face(seen).points)
    back = moved.corner + moved.axis / 700 * (place.corner + place.axis * np.array([0, 1, 1j, 1 + 1j]))
    corners = straight.corner + straight.axis * np.array([0, 1, 1j, 1 + 1j])
    assert np.abs(back - corners).max() < 12 / 1024 * straight.side, "12 pixels of 1024 at the corners"


def test_an_aligned_face_has_its_points_in_their_place(packages, astronaut, tmp_path):
    x = faces.align(astronaut, 512)
    assert x.shape == (1, 3, 512, 512) and x.abs().max() <= 1
    (face,) = faces.find(x)
    assert np.abs(face.points / 512 - FFHQ_POINTS)[:4].max() * 1024 < 20
    again = faces.square(face.points)
    assert abs(again.degrees) < 1 and abs(again.side / 512 - 1) < 0.03
    file = image.write(astronaut, tmp_path / "me.png")
    assert torch.equal(faces.align(file, 512), x)


def test_pictures_without_one_usable_face_are_refused(packages, net, astronaut):
    for look in (faces.align, net.embed):
        with pytest.raises(FaceError, match="no face found"):
            look(image.sample("coffee"))
        with pytest.raises(FaceError, match="2 faces found"):
            look(torch.cat([astronaut, astronaut], dim=3))
        with pytest.raises(FaceError, match="tiny face"):
            look(image.sample("astronaut", 60))
    with pytest.raises(FaceError, match="tiny face"):
        faces.align(image.sample("astronaut", 300), 1024)  # it would be enlarged tenfold
    pair = torch.cat([astronaut, astronaut], dim=3)
    assert faces.align(pair, 256, face=1).shape == (1, 3, 256, 256)


def test_the_same_person_is_nearer_than_strangers(net, astronaut):
    own = net.embed(astronaut)
    assert own.shape == (1, net.dim) and own.norm() > 1.2, "dlib's vectors are not of unit length"
    assert (net.embed(astronaut.flip(3)) - own).norm() < 0.6
    aligned = faces.align(astronaut, 256)
    assert (net.embed_aligned(aligned) - own).norm() < 0.35, "the face is where it is taken to be"
    squared = metrics.identity_distance(aligned, aligned.flip(3), net="dlib")
    assert squared.shape == (1,) and 0 < squared[0] < net.same_person
    assert metrics.METRICS["dlib_crop"][1](aligned, aligned)[0] == 0
    with pytest.raises(ShapeError, match="squares"):
        net.embed_aligned(astronaut[..., :300])


def test_imagined_people_are_strangers_and_identical_pictures_are_found(net, astronaut, tmp_path):
    if weights.status("ffhq_mobile1024") == "missing":
        pytest.skip("random-face is not installed: run `make faces`")
    G = weights.load_generator("ffhq_mobile1024")
    with torch.inference_mode():
        z = torch.cat([torch.randn(1, 512, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
        two = F.avg_pool2d(G.synthesis(G.mapping(z, truncation_psi=0.7)).clamp(-1, 1), 4)
    people = torch.cat([two, F.interpolate(faces.align(astronaut, 256), (256, 256))])
    vectors = retrieval.embed(net, people)
    assert torch.pdist(vectors).min() > 0.6
    assert retrieval.id_retrieval(vectors, vectors, range(3), net.same_person).rate == 1
    for i, x in enumerate(people.split(1)):
        image.write(x, tmp_path / f"content/{i}.png")
        image.write(x, tmp_path / f"stylised/{i}/same.png")
    command = ["id-retrieval", str(tmp_path / "content"), str(tmp_path / "stylised"), "--network", "dlib"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "100.00% of 3 pictures" in done.output and "distance of 0.36: 100.00%" in done.output
    image.write(image.sample("coffee", 256), tmp_path / "stylised/0/cup.png")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and "75.00% of 4 pictures" in done.output and "no face found" in done.output
    assert "1 pictures could not be looked up and count as not found" in done.output


# --- the command ------------------------------------------------------------------------------------------------------


def test_align_never_replaces_a_picture(tmp_path, astronaut):
    picture = image.write(astronaut, tmp_path / "me.png")
    before = picture.read_bytes()
    for folder, more in ((tmp_path, []), (tmp_path, ["--force"])):
        done = CliRunner().invoke(app, ["align", str(picture), "--out", str(folder), *more])
        assert isinstance(done.exception, StoreError)
    image.write(astronaut, tmp_path / "other" / "me.png")
    done = CliRunner().invoke(app, ["align", str(picture), str(tmp_path / "other" / "me.png"), "--out", "new"])
    assert isinstance(done.exception, StoreError) and "different file names" in str(done.exception)
    assert picture.read_bytes() == before


def test_align_writes_what_it_can_and_says_what_it_cannot(packages, tmp_path, astronaut):
    me = image.write(astronaut, tmp_path / "me.png")
    cup = image.write(image.sample("coffee"), tmp_path / "cup.png")
    out = tmp_path / "aligned"
    done = CliRunner().invoke(app, ["align", str(cup), str(me), "--out", str(out), "--size", "256"])
    assert done.exit_code == 1 and "no face found" in done.output
    assert re.search(r"me.png: a square of 17\d px, turned by \+[23]\.\d degrees", done.output)
    assert [p.name for p in out.iterdir()] == ["me.png"] and image.read(out / "me.png").shape == (1, 3, 256, 256)
    assert isinstance(CliRunner().invoke(app, ["align", str(me), "--out", str(out)]).exception, StoreError)
