"""The domains of the portraits: the same people in each, drawn where the truth says, and an unchanged photo domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hrlib.errors import UnknownName
from hrlib.worlds import portraits

DRAWN = [name for name in portraits.DOMAINS if name != "photo"]
NEUTRAL = {"smile": 0.0, "mouth_open": 0.0, "brow_raise": 0.0, "lids": 0.0}
PLAIN = {"fringe": 0.0, "bun": 0.0, "glasses": 0.0, "beard": 0.0, "moustache": 0.0, "hair_length": -0.6}


def plain(n: int, seed: int = 3, yaw: float = 0.0, pitch: float = 0.0) -> portraits.Portraits:
    """Portraits whose eyes nothing covers."""
    people = portraits.sample(n, seed=seed)
    return people.replace(pose={"yaw": yaw, "pitch": pitch}, expression=NEUTRAL, identity=PLAIN)


def reseeded(people: portraits.Portraits) -> portraits.Portraits:
    return portraits.Portraits(**{**vars(people), "detail_seed": people.detail_seed + 1})


def project(truth: portraits.Truth) -> torch.Tensor:
    """[N, 6, 2] pixels of the landmarks."""
    q = (truth.camera[:, None] @ F.pad(truth.landmarks, (0, 1), value=1.0)[..., None])[..., 0]
    return q[..., :2] / q[..., 2:]


def iris_weight(people: portraits.Portraits, size: int, domain: str) -> torch.Tensor:
    """[N, H, W] how much recolouring the irises changes the picture: where the irises are drawn."""
    brown, blue = (people.replace(identity={"iris_hue": hue}) for hue in (-1.0, 1.0))
    a, b = (portraits.render(x, size, domain=domain) for x in (brown, blue))
    return (a - b).abs().sum(1)


def test_the_domains_and_what_is_said_of_others():
    assert set(portraits.DOMAINS) == {"photo", "cartoon", "caricature", "anime"}
    people = portraits.sample(1)
    with pytest.raises(UnknownName, match="cartoon"):
        portraits.render(people, 32, domain="carton")
    with pytest.raises(UnknownName, match="photo"):
        portraits.render_with_truth(people, 32, domain="oil")


def test_the_photo_is_what_it_was():
    """Compared with pictures drawn before there were domains, reduced by four: networks were trained on those."""
    people = portraits.sample(4, seed=77)
    photo = portraits.render(people, 128)
    assert torch.equal(photo, portraits.render(people, 128, domain="photo"))
    with Image.open(Path(__file__).parent / "fixtures" / "portraits_photo.png") as picture:
        stored = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
    shrunk = torch.cat(list(F.avg_pool2d(photo, 4)), 2)
    assert (shrunk - stored).abs().mean() < 1.5 / 255


@pytest.mark.parametrize("domain", DRAWN)
def test_pictures_are_bitwise_the_same_alone_in_a_batch_and_again(domain):
    people = portraits.sample(5, seed=2)
    for size in (64, (45, 67)):
        together = portraits.render(people, size, domain=domain)
        assert torch.equal(together, portraits.render(people, size, domain=domain, chunk=2))
        for i in (0, 3):
            assert torch.equal(together[i : i + 1], portraits.render(people[[i]], size, domain=domain))


@pytest.mark.parametrize("domain", DRAWN)
@pytest.mark.parametrize("size,supersample", [(32, 2), ((40, 72), 1), ((51, 33), 3)])
def test_any_size_and_range(domain, size, supersample):
    height, width = (size, size) if isinstance(size, int) else size
    truth = portraits.render_with_truth(portraits.sample(2, seed=8), size, supersample, domain=domain)
    assert truth.image.shape == (2, 3, height, width) and truth.image.dtype == torch.float32
    assert truth.image.isfinite().all() and truth.image.abs().max() <= 1
    assert truth.image.std(dim=(1, 2, 3)).min() > 0.1
    for mask in (truth.head_mask, truth.hair_mask):
        assert mask.shape == (2, 1, height, width) and mask.min() >= 0 and mask.max() <= 1 + 1e-5
    assert (truth.hair_mask <= truth.head_mask + 1e-5).all()


@pytest.mark.parametrize("domain", DRAWN)
def test_sizes_show_the_same_scene(domain):
    people = portraits.sample(3, seed=4)
    small = portraits.render(people, 64, domain=domain)
    large = F.avg_pool2d(portraits.render(people, 192, domain=domain), 3)
    error = (F.avg_pool2d(small - large, 4) / 2).square().mean()
    assert -10 * error.log10() > 27


@pytest.mark.parametrize("domain", DRAWN)
@pytest.mark.parametrize("yaw,pitch", [(0.0, 0.0), (0.3, 0.1), (-0.3, -0.15)])
def test_the_truth_says_where_the_eyes_are_drawn(domain, yaw, pitch):
    size = 80
    people = plain(2, yaw=yaw, pitch=pitch)
    truth = portraits.render_with_truth(people, size, domain=domain)
    assert torch.equal(truth.camera, portraits.camera(people, size))
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    for weight, at in zip(iris_weight(people, size, domain), project(truth), strict=True):
        left = x < at[:2, 0].mean()
        for k, half in enumerate((left, ~left)):
            w = weight * half
            centre = torch.stack(((x * w).sum(), (y * w).sum())) / w.sum()
            assert (centre - at[k]).norm() < 0.04 * size, (k, centre, at[k])


@pytest.mark.parametrize("domain", ["cartoon", "anime"])
def test_drawn_eyes_are_large(domain):
    people = plain(3)
    area = lambda d: (iris_weight(people, 96, d) > 0.15).float().sum((1, 2))
    assert (area(domain) > 1.5 * area("photo")).all()


@pytest.mark.parametrize("domain", DRAWN)
def test_the_detail_seed_has_a_part_in_every_domain(domain):
    people = portraits.sample(4, seed=11)
    a, b = (portraits.render(x, 96, domain=domain) for x in (people, reseeded(people)))
    assert (a - b).std() > 0.02
    stranger = portraits.render(portraits.sample(4, seed=12), 96, domain=domain)
    assert F.avg_pool2d(a - b, 16).std() < 0.2 * F.avg_pool2d(a - stranger, 16).std()


def colours(people: portraits.Portraits, domain: str) -> torch.Tensor:
    """[N, 9] mean colours of skin, hair and clothes, each relative to all people of that domain."""
    truth = portraits.render_with_truth(people, 64, domain=domain)
    cloth = torch.zeros_like(truth.head_mask)
    cloth[:, :, 60:, 24:40] = 1
    masks = (truth.head_mask * (1 - truth.hair_mask), truth.hair_mask, cloth * (1 - truth.head_mask))
    means = [(truth.image * m).sum((2, 3)) / m.sum((2, 3)).clamp(min=1) for m in masks]
    every = torch.cat(means, 1)
    return (every - every.mean(0)) / every.std(0)


@pytest.mark.parametrize("domain", DRAWN)
def test_a_person_has_the_same_colours_in_every_domain(domain):
    """Chance would be one in sixteen; the setting is the same for all, so only the person can tell them apart."""
    people = portraits.sample(16, seed=31)
    one = {name: getattr(people, name)[:1].expand(16, -1).contiguous() for name in ("pose", "expression", "light")}
    people = people.replace(**one, identity={"hair_length": 0.6, "glasses": 0.0})
    distance = torch.cdist(colours(people, "photo"), colours(people, domain))
    own = distance.diagonal()
    others = (distance.sum(1) - own) / 15
    assert own.mean() < 0.5 * others.mean()
    assert (distance.argmin(1) == torch.arange(16)).float().mean() >= 0.6


def test_the_caricature_exaggerates_what_the_photo_shows():
    """Landmarks of a head lie farther from the mean head's, in the same direction."""
    people = plain(12, seed=5)
    mean = people.replace(identity=torch.zeros_like(people.identity)).replace(identity=PLAIN)

    def deviation(domain: str) -> torch.Tensor:
        a, b = (portraits.render_with_truth(x, 16, 1, domain=domain).landmarks for x in (people, mean))
        return (a - b).flatten(1)

    photo, drawn = deviation("photo"), deviation("caricature")
    assert (drawn.norm(dim=1) > 1.4 * photo.norm(dim=1)).all()
    assert F.cosine_similarity(photo, drawn).mean() > 0.6
