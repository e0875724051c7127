"""Heads on a plain background: the cut, the ground truth, and what turning leaves unchanged."""

from __future__ import annotations

import pytest
import torch

from hrlib.errors import InvalidValue
from hrlib.worlds import heads, portraits


@pytest.fixture(scope="module")
def people():
    return portraits.sample(2, seed=904)


@pytest.mark.parametrize("edge", [64, 96, 256])
def test_the_ground_is_plain_and_the_depth_belongs_to_the_head(people, edge):
    found = heads.draw(people, edge)
    assert found.image.shape == (2, 3, edge, edge) and found.face.shape == (2, 1, edge, edge)
    outside = (found.mask == 0).expand_as(found.image)
    assert outside.float().mean() > 0.3 and (found.image - heads.GROUND)[outside].abs().max() < 1e-5
    inside = torch.isfinite(found.depth)
    assert (inside == (found.mask > 0.5)).float().mean() > 0.9
    assert (found.face <= found.mask + 1e-6).all() and 0.1 < found.face.mean() < found.mask.mean()
    assert 4.5 < found.depth[inside].min() < found.depth[inside].max() < 6.5


def test_sizes_agree(people):
    small, middle, large = (heads.draw(people, edge).image for edge in (64, 96, 128))
    assert torch.allclose(torch.nn.functional.avg_pool2d(large, 2), small, atol=1e-5)
    assert (torch.nn.functional.interpolate(middle, 64, mode="area") - small).abs().mean() < 0.03


def test_turning_turns_the_head_and_the_light_with_it(people):
    same = heads.turned(people, 0.2)
    assert torch.allclose(same.get("yaw"), torch.full((2,), 0.2)) and torch.equal(same.identity, people.identity)
    moved = same.get("light_azimuth") - people.get("light_azimuth")
    assert torch.allclose(moved, 0.2 - people.get("yaw"), atol=1e-6)
    left, right = (heads.draw(heads.turned(people, a), 64) for a in (-0.6, 0.6))
    nose = lambda h: (h.depth.nan_to_num(9).flatten(2).argmin(2) % 64).float().mean()  # the nearest point
    assert nose(right) - nose(left) > 8


def test_odd_sizes_are_refused(people):
    for edge in (0, 32, 100, 200):
        with pytest.raises(InvalidValue, match="64, 96, 128"):
            heads.draw(people, edge)
