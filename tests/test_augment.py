"""Adaptive augmentation: exact where it can be, reproducible, differentiable, as probable as it says."""

import pytest
import torch

from hrlib.training import augment


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x():
    return torch.randn(8, 3, 16, 16, generator=rng(1))


def moved(x, matrix):
    """What `augment` does with the first geometric transformations alone."""
    from kornia.geometry.transform import warp_affine

    return warp_affine(x, matrix[:, :2], (16, 16), padding_mode="reflection", align_corners=False)


def centred(m, side=16):
    c = augment._translate(torch.full((1, 2), (side - 1) / 2))
    return (c @ m @ augment._translate(torch.full((1, 2), -(side - 1) / 2))).expand(8, 3, 3)


def test_p_zero_is_the_identity_and_draws_are_reproducible(x):
    assert augment.augment(x, 0.0, generator=rng()) is x
    assert torch.equal(augment.augment(x, 0.7, generator=rng(3)), augment.augment(x, 0.7, generator=rng(3)))
    assert not torch.equal(augment.augment(x, 0.7, generator=rng(3)), augment.augment(x, 0.7, generator=rng(4)))


def test_pictures_that_no_coin_falls_for_are_untouched(x):
    y = augment.augment(x, 0.02, generator=rng(5))
    same = (y - x).abs().amax((1, 2, 3)) < 1e-5
    assert 4 <= same.sum() < 8 or same.all()
    y = augment.augment(x, 1e-6, generator=rng(5))
    assert torch.allclose(y, x, atol=1e-5)


def test_flips_quarter_turns_and_whole_shifts_are_exact(x):
    one = torch.ones(1)
    assert torch.allclose(moved(x, centred(augment._scale(-one, one))), x.flip(3), atol=1e-4)
    turned = moved(x, centred(augment._rotate(one * torch.pi / 2, exact=True)))
    assert min((turned - torch.rot90(x, k, (2, 3))).abs().max() for k in (1, 3)) < 1e-4
    shifted = moved(x, centred(augment._translate(torch.tensor([[2.0, -3.0]]))))
    assert torch.allclose(shifted[:, :, :13, 2:], x[:, :, 3:, :14], atol=1e-4)


def test_colours_keep_what_they_should():
    m = augment.colour(4000, 1.0, generator=rng())
    assert m.shape == (4000, 3, 4)
    grey = m[:, :, :3] @ torch.ones(3)  # hue and saturation leave grey grey: equal channels
    assert (grey - grey.mean(1, keepdim=True)).abs().max() < 1e-4
    assert torch.allclose(augment.colour(5, 0.0, generator=rng())[:, :, :3], torch.eye(3).expand(5, 3, 3))
    assert augment.colour(5, 0.0, generator=rng())[:, :, 3].abs().max() == 0
    some = augment.colour(4000, 0.3, generator=rng())
    untouched = (some[:, :, :3] - torch.eye(3)).abs().amax((1, 2)) < 1e-6
    assert abs(untouched.float().mean() - 0.7**3 * 0.85) < 0.03  # contrast, hue, saturation; the luma flip at half


def test_geometry_happens_as_often_as_p_says():
    m = augment.geometry(4000, (16, 16), 0.2, generator=rng())
    untouched = (m - torch.eye(3)).abs().amax((1, 2)) < 1e-4
    # two thirds of a p: quarter turns by 0, shifts by 0 and the like leave some more untouched than 0.8^6 * 0.9
    assert 0.9 * 0.8**6 < untouched.float().mean() < 0.9 * 0.8**6 * 1.15
    assert torch.linalg.det(m).abs().log2().abs().max() < 2


def test_gradients_pass(x):
    x = x.double()[:2, :, :6, :6].requires_grad_()
    assert torch.autograd.gradcheck(lambda t: augment.augment(t, 0.9, generator=rng(2)).mean((2, 3)), x)


def test_mirror_flips_half(x):
    x = x.repeat(50, 1, 1, 1)
    y = augment.mirror(x, generator=rng())
    flipped = (y == x.flip(3)).all(-1).all(-1).all(-1)
    assert ((y == x).all(-1).all(-1).all(-1) ^ flipped).all()
    assert 160 < flipped.sum() < 240


def test_p_rises_while_the_discriminator_is_too_sure_and_falls_otherwise():
    state = torch.zeros(3)
    signs = lambda mean: torch.tensor([mean * 16, 16.0])
    for step in range(40):
        augment.adjust(state, signs(0.9), target=0.6, images=1600, step=step)
    assert state.tolist() == pytest.approx([0.4, 0, 0])  # 640 of 1600 images
    augment.adjust(state, signs(0.9), target=0.6, images=1600, step=40)
    assert state.tolist() == pytest.approx([0.4, 14.4, 16])  # counted, not yet acted upon
    for step in range(41, 200):
        augment.adjust(state, signs(0.1), target=0.6, images=1600, step=step)
    assert state[0] == 0
