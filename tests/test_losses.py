"""Losses against the authors' code (fixture 03_vgg_loss), the lpips package (08_metrics), and float64 gradients."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import FIXTURES as HERE
from recorded import arrays, kept
from safetensors.torch import save_file
from torch import nn

from hrlib import features, losses
from hrlib.errors import InvalidValue, LayoutMismatch, ShapeError, UnknownName
from hrlib.nets import perceptual as nets

VGG_FILE = HERE / "03_vgg_loss" / "vgg16_div16.safetensors"
# No shipped weights: these have tests of their own here, and in test_efficientnet.py and test_st_lpips.py.
UNSHIPPED = {"discriminator", "image2stylegan", "st_lpips"} | {n for n in losses.NAMES if n.startswith("efficientnet")}
TOLERANCE = 4e-5  # the fixture's own: max|a - b| / max|b|
VARIANTS = {
    "conv": ("conv", losses.HRINVERSION),
    "relu": ("relu", losses.HRINVERSION),
    "high": ("conv", losses.HIGH_LEVEL),
}


def close(got, expected, tolerance=TOLERANCE) -> None:
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def recorded(name: str) -> dict[str, torch.Tensor]:
    path = HERE / "03_vgg_loss" / name
    return {f"{group}/{k}": v for group in ("in", "out") for k, v in arrays(path, group).items()}


def check_case(f, io, size: str, variant: str, resize: int | None) -> None:
    tap, lambdas = VARIANTS[variant]
    case = f"out/{size}/{variant}" + (f"_ds{resize}" if resize else "")
    loss = losses.Perceptual(f, lambdas, resize)
    pred = io[f"in/pred_{size}"].clone().requires_grad_()
    target = loss.prepare(io[f"in/target_{size}"])
    terms = loss(pred, target)
    assert list(terms) == ["perceptual"]
    # the authors sum over the batch; ours divides by its size
    close(terms["perceptual"].item() * len(pred), io[f"{case}/loss"])
    (grad,) = torch.autograd.grad(terms["perceptual"] * len(pred), pred)
    close(kept(grad, io[f"{case}/grad"]), io[f"{case}/grad"])
    close(sum(loss.distances(pred.detach(), target).values()), io[f"{case}/dist"])
    maps = f(pred.detach(), lambdas, resize=resize)
    if variant != "high":  # there the fixture counts features multiplied by 0 too
        assert sum(m[0].numel() for m in maps.values()) == io[f"{case}/vec_len"]
    compared = 0
    for name, m in maps.items():
        number = int(name.removeprefix("features_")) + (tap == "relu")
        key = f"{case}/fea_features_{number}"
        if key in io:
            expected = io[key]
            close(kept(m[:1, : expected.shape[1]], expected), expected)
            compared += 1
    if variant == "conv":
        assert compared == 5


@pytest.fixture(scope="module")
def div16():
    return recorded("vgg_div16_io.npz")


@pytest.mark.parametrize("resize", [None, 32])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", ["64x64", "33x47"])
def test_parity_with_the_authors_loss(div16, size, variant, resize):
    check_case(features.vgg16(str(VGG_FILE), tap=VARIANTS[variant][0]), div16, size, variant, resize)


def test_parity_at_full_width(tmp_path):
    io = recorded("vgg_full_recipe_io.npz")
    state = {}
    for key, value in nets.VGG16().state_dict().items():  # the recipe stated in the fixture's manifest, seed 3002
        draw = np.random.RandomState((zlib.crc32(key.encode()) + 3002) % 2**32).randn(*value.shape)
        scale = 0.05 if key.endswith("bias") else np.sqrt(2 / (value.shape[0] * 9))
        state[key] = torch.from_numpy((draw * scale).astype(np.float32))
    save_file(state, tmp_path / "full.safetensors")
    for variant, (tap, _) in VARIANTS.items():
        check_case(features.vgg16(str(tmp_path / "full.safetensors"), tap=tap), io, "32x32", variant, None)


def test_float64_gradients():
    torch.manual_seed(0)
    f = features.vgg16("random", seed=3, channels=(2, 2, 2, 2, 2)).double()
    pred = torch.rand(1, 3, 32, 32, dtype=torch.float64) * 2 - 1
    target = torch.rand(1, 3, 32, 32, dtype=torch.float64) * 2 - 1
    loss = losses.Perceptual(f, {t: 1.0 for t in losses.HRINVERSION}) + losses.MSE(0.5)
    prepared = loss.prepare(target)
    assert torch.autograd.gradcheck(lambda x: sum(loss(x, prepared).values()), pred.requires_grad_(), fast_mode=True)
    noise = {"a": torch.randn(16, 24, dtype=torch.float64, requires_grad=True)}
    assert torch.autograd.gradcheck(lambda a: losses.noise_regularisation({"a": a}), noise["a"], fast_mode=True)


def test_target_features_are_computed_once_and_the_network_sees_the_full_image():
    f = features.vgg16("random", channels=nets.THIN_CHANNELS)
    seen = []
    f.net.features[0].register_forward_hook(lambda m, i, o: seen.append(tuple(i[0].shape[2:])))
    loss = losses.Perceptual(f)
    x = torch.rand(1, 3, 50, 70) * 2 - 1
    target = loss.prepare(x)
    for _ in range(3):
        loss(x, target)
    assert seen == [(50, 70)] * 4  # not resized, and once for the target
    losses.Perceptual(f, resize=32)(x, x)
    assert seen[4:] == [(32, 32)] * 2
    assert not target.maps["features_2"].requires_grad


def test_distance_is_zero_only_for_equal_images():
    f = features.vgg16("random", channels=nets.THIN_CHANNELS)
    loss = losses.Perceptual(f) + losses.MSE()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert all(v == 0 for v in loss(x, x).values())
    assert all(v > 0 for v in loss(x, x.flip(-1)).values())


def test_sum_names_its_terms():
    f = features.vgg16("random", channels=nets.THIN_CHANNELS)
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    a, b = losses.Perceptual(f), losses.Perceptual(f, resize=40, name="small")
    terms = (a + b + losses.MSE(3.0))(x, y)
    assert list(terms) == ["perceptual", "small", "mse"]
    assert terms["mse"].item() == pytest.approx(3 * (x - y).square().mean().item(), rel=1e-6)
    assert terms["small"].item() == pytest.approx(b(x, y)["small"].item())
    with pytest.raises(InvalidValue, match="two terms named 'perceptual'"):
        (a + losses.Perceptual(f))(x, y)


def test_descriptions_tell_losses_apart():
    made = [
        losses.named("vgg_conv", weights="shipped"),
        losses.named("vgg_conv", weights="shipped", resize=32),
        losses.named("vgg_relu", weights="shipped"),
        losses.named("vgg_random", weights="shipped", seed=1),
        losses.named("vgg_random", weights="shipped", seed=2),
        losses.LPIPS("thin"),
        losses.MSE(),
        losses.MSE(2.0) + losses.LPIPS("thin"),
    ]
    texts = [loss.describe() for loss in made]
    assert len(set(texts)) == len(texts)
    assert losses.named("vgg_conv", weights="shipped").describe() == texts[0]


def test_bad_input_is_refused():
    loss = losses.Perceptual(features.vgg16("random", channels=nets.THIN_CHANNELS))
    x = torch.rand(1, 3, 32, 32)
    with pytest.raises(ShapeError, match="equal shapes"):
        loss(x, torch.rand(1, 3, 40, 32))
    with pytest.raises(InvalidValue, match=r"values in \[255, 255\]"):
        loss.prepare(x * 0 + 255)
    with pytest.raises(InvalidValue, match="nan"):
        loss.prepare(x * float("nan"))
    with pytest.raises(ShapeError, match="float"):
        loss.prepare(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(InvalidValue, match="another loss"):
        losses.MSE()(x, loss.prepare(x))
    with pytest.raises(UnknownName, match="did you mean 'features_14'"):
        losses.Perceptual(loss.features, {"feature_14": 1.0})
    with pytest.raises(UnknownName, match="no tap at all"):
        losses.Perceptual(loss.features, {"features_2": 0.0})
    with pytest.raises(UnknownName, match="did you mean 'vgg_conv'"):
        losses.named("vgg_cnov")
    with pytest.raises(UnknownName, match='use "vgg_conv"'):
        losses.named("qqq")
    with pytest.raises(UnknownName, match="did you mean 'features_21'"):
        losses.named("vgg_conv:feature_21", weights="shipped")
    with pytest.raises(UnknownName, match="with a lambda in this loss"):
        losses.named("vgg_conv:features_0", weights="shipped")
    with pytest.raises(UnknownName, match="no taps"):
        losses.named("mse:features_2")
    with pytest.raises(InvalidValue, match="a resize"):
        losses.named("image2stylegan", weights="shipped")


def test_noise_regularisation_against_numpy():
    rng = np.random.default_rng(0)
    maps = {"b4": rng.normal(size=(4, 4)), "b16": rng.normal(size=(16, 16)), "wide": rng.normal(size=(32, 64))}
    expected = 0.0
    for m in maps.values():
        while True:
            expected += np.mean(m * np.roll(m, 1, 0)) ** 2 + np.mean(m * np.roll(m, 1, 1)) ** 2
            if min(m.shape) <= 8:
                break
            m = m.reshape(m.shape[0] // 2, 2, m.shape[1] // 2, 2).mean((1, 3))
    got = losses.noise_regularisation({k: torch.from_numpy(v) for k, v in maps.items()})
    assert got.item() == pytest.approx(expected, rel=1e-12)
    picture = torch.linspace(-1, 1, 32).expand(32, 32)
    assert losses.noise_regularisation([picture]) > 100 * losses.noise_regularisation([torch.randn(512, 512)])


def recipe_trunk(net: str) -> dict[str, torch.Tensor]:
    """The trunk of the fixture (seed 8001), with torchvision's keys."""
    import torchvision

    architecture, state = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[net], {}
    slices = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}[net]
    starts = {"alex": (0, 2, 5, 8, 10), "vgg": (0, 4, 9, 16, 23)}[net]  # of the package's five slices
    layers = architecture(weights=None).features
    for i, kind in ((i, k) for i in slices for k in ("weight", "bias")):
        value = layers[i].get_parameter(kind)
        key = f"slice{sum(i >= s for s in starts)}.{i}.{kind}"
        draw = np.random.RandomState((zlib.crc32(key.encode()) + 8001) % 2**32).randn(*value.shape)
        scale = 0.05 if key.endswith("bias") else np.sqrt(2 / np.prod(value.shape[1:]))
        state[f"features.{i}.{kind}"] = torch.from_numpy((draw * scale).astype(np.float32))
    return state


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_against_the_package(net, monkeypatch):
    trunk = recipe_trunk(net)
    monkeypatch.setattr(losses.weight_files, "load_state", lambda name: (trunk, {}))
    io = np.load(HERE / "08_metrics" / "metrics_io.npz")
    loss, values = losses.LPIPS(net), []
    for k in range(3):
        a, b = (
            torch.from_numpy(np.array(Image.open(HERE / "08_metrics" / f"pair{k}_{s}.png"))).permute(2, 0, 1)[None]
            / 127.5
            - 1
            for s in "ab"
        )
        parts = loss.distances(a, b)
        if k == 0:
            close(torch.cat(list(parts.values())), io[f"out/lpips_{net}_recipe_perlayer_pair0"], 2e-5)
        values.append(sum(parts.values()).item())
        assert loss(a, b)["lpips"].item() == pytest.approx(values[-1])
    close(values, io[f"out/lpips_{net}_recipe"], 2e-5)
    with pytest.raises(ShapeError, match="31x40"):
        loss(torch.zeros(1, 3, 31, 40), torch.zeros(1, 3, 31, 40))
    del trunk[next(iter(trunk))]
    with pytest.raises(LayoutMismatch, match=r"slice1\.0\.weight"):
        losses.LPIPS(net)


def test_thin_lpips_is_the_formula_and_has_finite_gradients():
    loss = losses.named("lpips", weights="shipped")
    assert loss.title == "LPIPS (thin)"
    torch.manual_seed(1)
    a, b = torch.rand(2, 2, 3, 48, 40) * 2 - 1
    f = features.vgg16("shipped", tap="relu")
    expected = np.zeros(2)
    for tap in losses.HRINVERSION:
        u, v = f(a, [tap])[tap].double().numpy(), f(b, [tap])[tap].double().numpy()
        u, v = (m / (np.linalg.norm(m, axis=1, keepdims=True) + 1e-10) for m in (u, v))
        expected += np.square(u - v).sum(1).mean((1, 2))
    close(sum(loss.distances(a, b).values()), expected, 1e-5)
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    loss(flat, a[:1, :, :32, :32])["lpips"].backward()
    assert torch.isfinite(flat.grad).all()


def test_taps_of_a_named_loss():
    x, y = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in (0, 1))
    high = losses.named("vgg_high", weights="shipped")
    same = losses.named("vgg_conv:features_21+features_28", weights="shipped")
    assert same.describe() == high.describe()
    full = losses.named("vgg_conv", weights="shipped").distances(x, y)
    one = losses.named("vgg_conv:features_14", weights="shipped").distances(x, y)
    close(one["features_14"], full["features_14"], 1e-6)


@pytest.mark.parametrize(
    ("name", "weights", "resize"),
    [("image2stylegan", "shipped", 32), ("discriminator:b64+b8", "portraits_inr128_discriminator", None)],
)
def test_mean_squares_are_means(name, weights, resize):
    loss = losses.named(name, weights=weights, resize=resize)
    x, y = (torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in (0, 1))
    a, b = (loss.features(v, loss.weights, resize=resize) for v in (x, y))
    expected = sum((a[tap] - b[tap]).square().mean() for tap in loss.weights)  # a mean over the batch, too
    close(loss(x, y)["perceptual"], expected, 1e-5)


@pytest.mark.parametrize("name", [n for n in losses.NAMES if n not in UNSHIPPED])
@pytest.mark.parametrize("resize", [None, 32])
def test_every_named_loss_works_on_the_shipped_networks(name, resize):
    torch.manual_seed(0)
    loss = losses.named(name, weights="shipped", resize=resize)
    x = (torch.rand(1, 3, 48, 56) * 2 - 1).requires_grad_()
    total = sum(loss(x, torch.rand(1, 3, 48, 56) * 2 - 1).values())
    total.backward()
    assert total > 0 and torch.isfinite(x.grad).all() and x.grad.abs().max() > 0
    assert all(p.grad is None for p in loss.parameters())
    assert isinstance(loss, nn.Module)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), "1"])
def test_weights_that_would_turn_a_distance_round(bad):
    vgg = features.vgg16("shipped")
    for make in (
        lambda: losses.MSE(bad),
        lambda: losses.LPIPS("thin", weight=bad),
        lambda: losses.Perceptual(vgg, {"features_2": bad}),
    ):
        with pytest.raises(InvalidValue, match="in \\[0, inf\\)"):
            make()
    assert losses.MSE(0).weight == 0.0


def test_sizes_seeds_and_empty_batches_are_refused():
    for resize in (0, -8, 2.5, (32, 0)):
        with pytest.raises(InvalidValue, match="resize"):
            losses.named("vgg_conv", weights="shipped", resize=resize)
    with pytest.raises(InvalidValue, match="seed"):
        losses.named("vgg_random", weights="shipped", seed=-1)
    with pytest.raises(ShapeError, match="one or more images"):
        losses.MSE().prepare(torch.zeros(0, 3, 8, 8))


def test_noise_regularisation_of_maps_of_a_pixel():
    """A single number has no neighbour; an axis of one pixel says nothing about the other."""
    assert float(losses.noise_regularisation([torch.full((2, 1, 1), 3.0)])) == 0
    row = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    expected = (row * row.roll(1, 1)).mean().square()
    assert float(losses.noise_regularisation([row])) == pytest.approx(float(expected))
