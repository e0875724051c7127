"""EfficientNet-Lite0 and other networks of timm as perceptual networks: loading, taps, lambdas, gradients."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from skimage import data
from torch.nn import functional as F

from hrlib import features, losses, weights
from hrlib.errors import InvalidValue, LayoutMismatch, MissingWeights, ShapeError, UnknownName
from hrlib.nets import efficientnet as nets

PACKAGE = "efficientnet_lite0_imagenet"
needs_package = pytest.mark.skipif(weights.status(PACKAGE) == "missing", reason="its package is absent: `make faces`")
LAMBDAS = {
    ("imagenet", "dense"): losses.EFFICIENTNET,
    ("imagenet", "sparse"): losses.EFFICIENTNET_SPARSE,
    ("random", "dense"): losses.EFFICIENTNET_RANDOM,
}


def pictures(n: int = 1, size: int = 64) -> torch.Tensor:
    return features.pink_noise(n, size, torch.Generator().manual_seed(5)).clamp(-1, 1)


def foreign(net: torch.nn.Module, path: Path, change: tuple = ()) -> str:
    """A file with names of its own in timm's order, as the published one; `change` gives one entry another value."""
    state = OrderedDict((f"_{k.replace('blocks', 'layers')}", v.clone()) for k, v in net.state_dict().items())
    state |= dict([change] if change else [])
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def random_net() -> torch.nn.Module:
    return nets.randomise(nets.efficientnet_lite0(), seed=3)


def test_taps_are_those_of_timms_own_forward_pass(random_net, tmp_path):
    dense, sparse = (
        features.efficientnet_lite0(foreign(random_net, tmp_path / "e.pth"), tap) for tap in ("dense", "sparse")
    )
    x = pictures(2)
    expected, hooks = {}, []
    hooks.append(random_net.bn1.act.register_forward_pre_hook(lambda m, a: expected.update(stem=a[0].clone())))
    for i, block in enumerate(random_net.blocks):
        hooks.append(block.register_forward_hook(lambda m, a, out, i=i: expected.update({f"blocks_{i}": out.clone()})))
    with torch.no_grad():
        random_net.forward_features(((x + 1) * 127.5 - 127) / 128)
    for hook in hooks:
        hook.remove()
    assert tuple(expected) == dense.taps == sparse.taps
    got = dense(x)
    for tap, m in expected.items():
        assert (got[tap] - m).abs().max() <= 5e-5 * m.abs().max()  # normalisation is merged into the convolutions
    for tap, m in sparse(x).items():
        assert torch.equal(m, got[tap].relu())
    assert [x.shape[2] // m.shape[2] for m in got.values()] == [2, 2, 4, 8, 16, 16, 32, 32]


def test_no_activation_overwrites_a_tap(random_net, tmp_path):
    f = features.efficientnet_lite0(foreign(random_net, tmp_path / "e.pth"))
    x = pictures()
    together = f(x)
    for tap in f.taps:  # a ReLU6 in place would change the map of the tap before it
        assert together[tap].min() < 0 and torch.equal(together[tap], f(x, [tap])[tap])
    zeros = {tap: (m == 0).float().mean().item() for tap, m in together.items()}
    assert max(zeros.values()) == 0
    sparse = features.efficientnet_lite0(foreign(random_net, tmp_path / "e.pth"), "sparse")(x)
    assert min((m == 0).float().mean().item() for m in sparse.values()) > 0.2


def test_weights_by_order_or_by_timms_names_but_never_others(random_net, tmp_path):
    by_order = features.efficientnet_lite0(foreign(random_net, tmp_path / "order.pth"))
    save_file({k: v.contiguous() for k, v in random_net.state_dict().items()}, tmp_path / "names.safetensors")
    by_name = features.efficientnet_lite0(str(tmp_path / "names.safetensors"))  # its entries are in another order
    assert by_order.fingerprint == by_name.fingerprint
    with pytest.raises(LayoutMismatch, match=r"_layers\.2\.0\.conv_pw\.weight \[1\] for blocks\.2\.0\.conv_pw\.weight"):
        features.efficientnet_lite0(
            foreign(random_net, tmp_path / "shape.pth", ("_layers.2.0.conv_pw.weight", torch.ones(1)))
        )
    with pytest.raises(LayoutMismatch, match=r"297 entries"):
        features.efficientnet_lite0(foreign(random_net, tmp_path / "long.pth", ("more.weight", torch.ones(1))))
    state = dict(random_net.state_dict())
    keys = list(state)
    i, j = keys.index("bn1.weight"), keys.index("bn1.bias")  # equal shapes, other kinds
    keys[i], keys[j] = keys[j], keys[i]
    torch.save(OrderedDict((f"x.{k}", state[k]) for k in keys), tmp_path / "swapped.pth")
    with pytest.raises(LayoutMismatch, match=r"x\.bn1\.bias \[32\] for bn1\.weight"):
        features.efficientnet_lite0(str(tmp_path / "swapped.pth"))
    with pytest.raises(UnknownName, match="did you mean 'dense'"):
        features.efficientnet_lite0("random", "dens")


@pytest.mark.parametrize("seed", [0, 1])
def test_random_weights_keep_the_size_of_maps_and_depend_on_their_seed(seed):
    f, same, other = (features.efficientnet_lite0("random", seed=s) for s in (seed, seed, seed + 10))
    assert f.fingerprint == same.fingerprint != other.fingerprint and f.natural_size is None
    for m in f(pictures(2, 256)).values():
        assert 0.2 < m.std() < 5


@pytest.mark.parametrize("seed", [0, 1])
def test_random_features_of_similar_pictures_are_similar(seed):
    """Centred layers fail: nine tenths of the way, their last maps are still four fifths of the distance away."""
    f, (a, b) = features.efficientnet_lite0("random", seed=seed), pictures(2, 256).split(1)
    start, near, end = (f(a.lerp(b, t)) for t in (0.0, 0.9, 1.0))
    for tap in f.taps:
        left = (near[tap] - end[tap]).square().mean() / (start[tap] - end[tap]).square().mean()
        assert left < 0.25, f"{tap}: {left:.2f} of the distance is left"


@pytest.mark.parametrize("tap", ["dense", "sparse"])
def test_gradients_in_float64_agree_with_finite_differences(random_net, tmp_path, tap):
    f = features.efficientnet_lite0(foreign(random_net, tmp_path / "e.pth"), tap).double()
    loss = losses.Perceptual(f, dict.fromkeys(f.taps, 0.01))
    x, y = pictures(2, 32).double().chunk(2)
    target = loss.prepare(y)
    value = lambda v: loss(v, target)["perceptual"]
    assert value(x) > 0 and value(y) == 0
    assert torch.autograd.gradcheck(value, x.requires_grad_(), fast_mode=True, eps=1e-7, atol=1e-6)


def test_the_high_level_loss_is_part_of_the_dense_one():
    assert losses.EFFICIENTNET_HIGH.items() < losses.EFFICIENTNET.items()


def test_there_is_no_thin_version_and_there_are_no_tiles():
    for name in ("efficientnet_dense", "efficientnet_sparse", "efficientnet_high", "timm:resnet18"):
        with pytest.raises(InvalidValue, match="no thin version"):
            losses.named(name, weights="shipped")
    with pytest.raises(InvalidValue, match="efficientnet_random"):
        losses.named("efficientnet_random", weights="shipped")
    with pytest.raises(UnknownName, match="features are local"):
        features.efficientnet_lite0("random").reach(["stem"])


@pytest.mark.parametrize("resize", [None, 48])
def test_losses_by_name_with_random_weights(resize):
    loss = losses.named("efficientnet_random:blocks_3+blocks_5", resize=resize, seed=2)
    assert loss.weights == {tap: losses.EFFICIENTNET_RANDOM[tap] for tap in ("blocks_3", "blocks_5")}
    x, y = pictures(2).chunk(2)
    x.requires_grad_()
    assert loss(y, y)["perceptual"] == 0
    loss(x, y)["perceptual"].backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 1e-6


# --- the published weights --------------------------------------------------------------------------------------------


def photograph(name: str, size: int) -> torch.Tensor:
    x = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 127.5 - 1
    top, left = ((edge - min(x.shape[2:])) // 2 for edge in x.shape[2:])
    square = x[..., top : top + min(x.shape[2:]), left : left + min(x.shape[2:])]
    return F.interpolate(square, (size, size), mode="area")


@needs_package
@pytest.mark.parametrize(("name", "label"), [("chelsea", 285), ("coffee", 967)])
def test_the_classifier_knows_a_cat_and_an_espresso(name, label):
    """So the 296 entries are in their places, and the pictures arrive as the weights expect them."""
    net = nets.fill(nets.efficientnet_lite0(), weights.load_state(PACKAGE)[0], PACKAGE)
    with torch.no_grad():
        logits = net(features.efficientnet_lite0().normalise(photograph(name, 224)))
    assert logits.argmax().item() == label


@needs_package
@pytest.mark.parametrize("kind", LAMBDAS, ids="-".join)
def test_every_tap_weighs_the_same(kind):
    """Two unrelated photographs are about 2 SIZE^2 apart in each tap; here within a factor of 3, at 256 instead of
    1024 px and so with a sixteenth of the positions."""
    f = features.efficientnet_lite0(*kind)
    assert LAMBDAS[kind].keys() == set(f.taps)
    assert all(float(f"{lam:.2g}") == lam for lam in LAMBDAS[kind].values())
    apart = losses.Perceptual(f, LAMBDAS[kind]).distances(photograph("chelsea", 256), photograph("astronaut", 256))
    for d in apart.values():
        assert 50 / 16 / 3 < d.item() < 50 / 16 * 3


@needs_package
def test_published_losses_by_name():
    x = photograph("astronaut", 64).requires_grad_()
    for name in ("efficientnet_dense", "efficientnet_sparse", "efficientnet_high"):
        loss = losses.named(name)
        assert loss(x, x.detach())["perceptual"] == 0
        loss(x, photograph("chelsea", 64))["perceptual"].backward()
        assert x.grad.abs().max() > 0
    assert losses.named("efficientnet_dense:blocks_4+blocks_6").describe() == loss.describe()


# --- any network of timm ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "taps", "size"),
    [
        ("convnext_atto", ("stages_0", "stages_1", "stages_2", "stages_3"), 96),
        ("resnet18", ("act1", "layer1", "layer2", "layer3", "layer4"), 64),
        ("vit_tiny_patch16_224", tuple(f"blocks_{i}" for i in range(12)), 224),
    ],
)
def test_a_network_of_timm(network, taps, size):
    before = torch.random.get_rng_state()
    f = features.timm_network(network, "random", seed=4)
    assert torch.equal(before, torch.random.get_rng_state()), "drawing its weights leaves the caller's numbers alone"
    assert f.taps == taps and f.fingerprint == features.timm_network(network, "random", seed=4).fingerprint
    x = pictures(1, size)
    mean, std = (torch.tensor(f.net.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        expected = f.net.forward_intermediates(((x + 1) / 2 - mean) / std, intermediates_only=True)
    got = f(x, reversed(taps))
    assert list(got) == list(reversed(taps))
    for tap, m in zip(taps, expected, strict=True):
        torch.testing.assert_close(got[tap], m, rtol=1e-4, atol=1e-4)
    if network.startswith("vit"):
        with pytest.raises(ShapeError, match="resize=224"):
            f(pictures(1, 64))
    loss = losses.named(f"timm:{network}", weights="random", seed=4, resize=size)
    assert len(loss.weights) == (4 if network.startswith("vit") else len(taps))
    x.requires_grad_()
    assert loss(x, x.detach())["perceptual"] == 0
    loss(x, x.detach().flip(-1))["perceptual"].backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 0
    one = losses.named(f"timm:{network}:{taps[2]}", weights="random", seed=4)
    assert one.weights == {taps[2]: loss.weights[taps[2]]}


def test_a_network_of_timm_from_a_file(tmp_path):
    import timm

    torch.manual_seed(0)
    net = timm.create_model("resnet18")
    save_file(net.state_dict(), tmp_path / "r.safetensors")
    f = features.timm_network("resnet18", str(tmp_path / "r.safetensors"))
    assert torch.equal(f.net.layer1[0].conv1.weight, net.layer1[0].conv1.weight)
    with pytest.raises(LayoutMismatch):
        features.timm_network("convnext_atto", str(tmp_path / "r.safetensors"))


def test_names_and_downloads_that_fail_say_so(monkeypatch):
    with pytest.raises(UnknownName, match="did you mean 'convnext_"):
        features.timm_network("convnext_tinny", "random")
    with pytest.raises(UnknownName, match="timm network ''"):
        losses.named("timm:", weights="random")
    with pytest.raises(UnknownName, match="did you mean 'stages_1'"):
        losses.named("timm:convnext_atto:stage_1", weights="random")

    def offline(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nmore")

    monkeypatch.setattr(features.timm, "create_model", offline)
    with pytest.raises(MissingWeights, match=r"convnext_tiny .*couldn't connect") as error:
        losses.named("timm:convnext_tiny")
    assert 'weights="random"' in error.value.do
