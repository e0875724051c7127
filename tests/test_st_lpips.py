"""ST-LPIPS: its layers by their definitions, and its distances against those that its package computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hrlib import image, losses, metrics, weights
from hrlib.errors import InvalidValue, LayoutMismatch, ShapeError
from hrlib.nets.st_lpips import STLPIPS, BlurPool, translated

RECORDED = Path(__file__).parent / "fixtures" / "12_st_lpips" / "distances.npz"
needs_package = pytest.mark.skipif(
    weights.status("st_lpips_alex") == "missing", reason="its package is absent: `make faces`"
)


def published(net: STLPIPS) -> dict[str, torch.Tensor]:
    """A state dict with names as in the published files."""
    state = {}
    for key, value in net.state_dict().items():
        part = key.split(".")
        if part[0] == "lins":
            key = f"lin{part[1]}.model.1.{part[2]}"
        elif part[0] == "net":
            key = f"net.slice9.{part[2]}.{part[3]}"
        state[key] = value
    return state


def pair(seed: int, height: int, width: int) -> list[torch.Tensor]:
    """The recorded inputs: squares of 8 pixels with fine noise."""
    rng, made = np.random.RandomState(seed), []
    for _ in "ab":
        x = np.kron(rng.rand(2, 3, height // 8, width // 8), np.ones((1, 1, 8, 8))) + 0.2 * rng.rand(
            2, 3, height, width
        )
        made.append(torch.from_numpy((x / 1.2 * 2 - 1).astype(np.float32)))
    return made


@pytest.mark.parametrize("edge", [7, 8])
def test_blurring_before_every_second_position(edge):
    x = torch.randn(1, 2, edge, edge, generator=torch.Generator().manual_seed(0))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    for axis in (2, 3):
        n = padded.shape[axis] - 2
        left, middle, right = (padded.take(range(i, n + i), axis) for i in range(3))
        padded = (left + 2 * middle + right) / 4
    torch.testing.assert_close(BlurPool(2)(x), torch.from_numpy(padded[:, :, ::2, ::2]))


@pytest.mark.parametrize(("trunk", "channels"), [("alex", (64, 192, 384, 256, 256)), ("vgg", (64, 128, 256, 512, 512))])
def test_files_with_the_published_names_and_no_others(trunk, channels, tmp_path):
    torch.manual_seed(0)
    net = STLPIPS(trunk).eval()
    torch.save(published(net), tmp_path / "st.pth")
    loaded = weights.load_st_lpips(tmp_path / "st.pth")
    x = torch.rand(1, 3, 40, 48)
    with torch.no_grad():
        maps = loaded.net(x)
        assert all(torch.equal(a, b) for a, b in zip(maps, net.net(x), strict=True))
    assert tuple(m.shape[1] for m in maps) == channels and all(m.min() == 0 for m in maps)
    torch.save(dict(list(published(net).items())[:-1]), tmp_path / "short.pth")
    with pytest.raises(LayoutMismatch, match=r"lins\.4\.weight"):
        weights.load_st_lpips(tmp_path / "short.pth")
    assert translated({"lin0.model.3.weight": 1}) == {"lin0.model.3.weight": 1}, "others stay, and are then refused"


def test_the_loss_has_imagenets_weights_only():
    with pytest.raises(InvalidValue, match="st_lpips"):
        losses.named("st_lpips", weights="shipped")
    assert {"lpips_st_vgg", "lpips_st_alex"} <= set(metrics.METRICS)


@needs_package
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_distances_are_those_of_the_package(net):
    recorded = np.load(RECORDED)
    loss = losses.LPIPS(f"st_{net}")
    for k, size in enumerate([(64, 64), (56, 96)]):
        a, b = pair(k, *size)
        with torch.no_grad():
            got = sum(loss.distances(a, b).values()).numpy()
        np.testing.assert_allclose(got, recorded[f"{net}_{k}"], atol=1e-5, rtol=0)
        np.testing.assert_allclose(metrics.lpips(a, b, net=f"st_{net}"), recorded[f"{net}_{k}"], atol=1e-5, rtol=0)
    assert loss(a, a)["lpips"] == 0
    with pytest.raises(ShapeError, match="31x40"):
        loss(torch.zeros(1, 3, 31, 40), torch.zeros(1, 3, 31, 40))


@needs_package
def test_it_tolerates_a_shift_and_gives_gradients():
    x = image.sample("astronaut", 128)
    loss = losses.named("st_lpips")
    shifted, blurred = x.roll(1, 3), F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    assert loss(shifted, x)["lpips"] < 0.2 * loss(blurred, x)["lpips"]
    assert F.mse_loss(shifted, x) > F.mse_loss(blurred, x), "as pixels, the shift is the larger change"
    y = blurred.clone().requires_grad_()
    loss(y, x)["lpips"].backward()
    assert torch.isfinite(y.grad).all() and y.grad.abs().max() > 0
    assert all(p.grad is None for p in loss.parameters())
