"""The anime domain of the portraits: flat tones, ink lines, one hair colour for one person, any size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hrlib.worlds import portraits
from hrlib.worlds._anime import LINE, vivid_hair

PLAIN = {"fringe": 0.0, "bun": 0.0, "hair_curl": 0.0, "glasses": 0.0, "beard": 0.0, "moustache": 0.0, "freckles": 0.0}


def plain(n: int, seed: int = 3, **identity: float) -> portraits.Portraits:
    """Frontal people without accessories, lit from the front."""
    people = portraits.sample(n, seed=seed)
    return people.replace(
        pose={"yaw": 0.0, "pitch": 0.0},
        expression={"smile": 0.0, "mouth_open": 0.0, "brow_raise": 0.0, "lids": 0.0},
        light={"light_azimuth": 0.0, "light_elevation": 0.3},
        identity={**PLAIN, **identity},
    )


def render(people: portraits.Portraits, size: int | tuple[int, int] = 64, supersample: int = 2, **more) -> torch.Tensor:
    return portraits.render(people, size, supersample, domain="anime", **more)


def pixels(people: portraits.Portraits, size: int, **more) -> torch.Tensor:
    """[N, 6, 2] landmarks in pixels."""
    truth = portraits.render_with_truth(people, size, domain="anime", **more)
    q = (truth.camera[:, None] @ F.pad(truth.landmarks, (0, 1), value=1.0)[..., None])[..., 0]
    return q[..., :2] / q[..., 2:]


@pytest.mark.parametrize("size", [48, (45, 67)])
def test_pictures_are_bitwise_the_same_alone_in_a_batch_and_again(size):
    people = portraits.sample(5, seed=2)
    together = render(people, size)
    assert torch.equal(together, render(people, size, chunk=2))
    for i in (0, 3):
        assert torch.equal(together[i : i + 1], render(people[[i]], size))


@pytest.mark.parametrize("size", [32, (40, 72), (33, 51)])
@pytest.mark.parametrize("supersample", [1, 3])
def test_any_size_and_range(size, supersample):
    x = render(portraits.sample(2, seed=8), size, supersample)
    assert x.shape == (2, 3, *((size, size) if isinstance(size, int) else size))
    assert x.isfinite().all() and x.abs().max() <= 1 and x.std(dim=(1, 2, 3)).min() > 0.1


def test_sizes_show_the_same_lines():
    people = portraits.sample(4, seed=4)
    small, large = render(people, 64), F.avg_pool2d(render(people, 192), 3)
    error = (F.avg_pool2d(small - large, 2) / 2).square().mean()
    assert -10 * error.log10() > 25
    dark = lambda x: (-0.3 - x.mean(1)).clamp(min=0).mean()  # a thinner or wider line would change how much is ink
    assert abs(dark(small) / dark(large) - 1) < 0.25


def test_a_forehead_has_one_tone_and_a_photograph_many():
    people = plain(4, hair_length=-1.0, age=-0.8)
    spread = {}
    for domain in ("photo", "anime"):
        at = pixels(people, 128)[:, :2].mean(1).long()
        x = portraits.render(people, 128, domain=domain)
        boxes = [im[:, y - 15 : y - 9, c - 4 : c + 5].flatten(1) for im, (c, y) in zip(x, at.tolist(), strict=True)]
        from_middle = torch.stack(boxes) - torch.stack(boxes).median(-1, keepdim=True).values
        spread[domain] = from_middle.abs().median()
    assert spread["anime"] < 0.018 < 1.5 * 0.018 < spread["photo"]  # the paper's grain alone has 0.014


def test_an_outline_is_darker_than_both_its_sides():
    people = plain(4, hair_length=-1.0).replace(background={"bg_lightness": 1.0})
    truth = portraits.render_with_truth(people, 128, domain="anime")
    for x, mask in zip(truth.image.mean(1), truth.head_mask[:, 0], strict=True):
        row = 38  # above the eyes
        edge = int((mask[row] > 0.5).nonzero()[0])
        line = x[row, edge - 3 : edge + 2].min()
        assert line < x[row, edge - 12 : edge - 6].mean() - 0.3 and line < x[row, edge + 6 : edge + 12].mean() - 0.3
        assert (x[row, edge - 8 : edge + 8] < line + 0.25).sum() <= 2 + LINE * 64


def test_hair_is_vivid_and_the_same_in_every_pose_and_light():
    people = portraits.sample(40, seed=5)
    turned = people.replace(pose={"yaw": 0.5}, light={"light_azimuth": 0.9}, expression={"smile": 1.0})
    assert torch.equal(vivid_hair(people.named()), vivid_hair(turned.named()))
    colours = vivid_hair(people.replace(identity={"grey": 0.0}).named())[..., 0]
    assert (colours.amax(1) - colours.amin(1)).min() > 0.15
    person = plain(2, hair_length=0.6)
    views = [person.replace(pose={"yaw": a}) for a in (-0.4, 0.0, 0.4)]
    drawn = []
    for view in views:
        truth = portraits.render_with_truth(view, 64, domain="anime")
        drawn.append(
            torch.stack(
                [x[:, m > 0.99].median(1).values for x, m in zip(truth.image, truth.hair_mask[:, 0], strict=True)]
            )
        )
    assert max((drawn[0] - d).abs().max() for d in drawn[1:]) < 0.15
    assert (drawn[0][0] - drawn[0][1]).abs().max() > 0.15  # two people


def test_grey_hair_turns_silver():
    young, old = (vivid_hair(portraits.sample(20, seed=1).replace(identity={"grey": g}).named()) for g in (0.0, 1.0))
    assert old.mean(1).min() > 0.7 and (old.amax(1) - old.amin(1)).max() < 0.25
    assert (young.amax(1) - young.amin(1)).mean() > 0.4


def test_eyes_are_larger_than_in_a_photograph_and_where_the_truth_says():
    people = plain(3, hair_length=-1.0)
    brown, green = (people.replace(identity={"iris_hue": hue}) for hue in (-1.0, 0.0))
    area = {}
    for domain in ("photo", "anime"):
        change = (portraits.render(brown, 96, domain=domain) - portraits.render(green, 96, domain=domain)).abs().sum(1)
        area[domain] = (change > 0.15).float().sum((1, 2))
    assert (area["anime"] > 2.5 * area["photo"]).all()
    change = (render(brown, 96) - render(green, 96)).abs().sum(1)
    columns = (change * (torch.arange(96) + 0.5)).sum((1, 2)) / change.sum((1, 2))
    rows = (change * (torch.arange(96)[:, None] + 0.5)).sum((1, 2)) / change.sum((1, 2))
    at = pixels(people, 96)[:, :2].mean(1)
    assert (torch.stack((columns, rows), 1) - at).norm(dim=1).max() < 0.04 * 96


def test_lids_close_the_eyes():
    people = plain(2, hair_length=-1.0)
    seen = []
    for lids in (0.0, -0.4, -0.8):
        brown, blue = (people.replace(identity={"iris_hue": hue}, expression={"lids": lids}) for hue in (-1.0, 1.0))
        seen.append((render(brown) - render(blue)).abs().sum())
    assert seen[0] > 1.3 * seen[1] > 1.3 * 1.3 * seen[2]


def test_the_detail_seed_changes_the_detail_and_nothing_else():
    people = portraits.sample(4, seed=11)
    a, b = (
        render(people, 128),
        render(portraits.Portraits(**{**vars(people), "detail_seed": people.detail_seed + 1}), 128),
    )
    coarse = F.avg_pool2d(a - b, 16)
    assert (a - b).std() > 0.03 and coarse.std() < 0.4 * (a - b).std()


@pytest.mark.parametrize("size", [64, 192])
def test_hair_has_random_strands_up_to_the_nyquist_frequency(size):
    people = plain(2, hair_length=0.6, hair_tone=0.6)
    truth = portraits.render_with_truth(people, size, domain="anime")
    d = truth.image - render(portraits.Portraits(**{**vars(people), "detail_seed": people.detail_seed + 1}), size)
    across = F.conv2d(d.mean(1, keepdim=True), torch.tensor([[[[1.0, -2.0, 1.0]]]]) / 4, padding=(0, 1)).square()
    hair = -F.max_pool2d(-truth.hair_mask, 5, 1, 2) > 0.99
    eyes = pixels(people, size)[:, :2].mean(1).long()
    skin = torch.stack([across[i, 0, y + size // 8, x - 3 : x + 4].mean() for i, (x, y) in enumerate(eyes.tolist())])
    assert across[hair].mean() > 2 * skin.mean() > 0
