"""Features against timm's own forward passes, and the rules that keep the taps what their names say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from hrlib import features
from hrlib.errors import LayoutMismatch, MissingWeights, ShapeError, UnknownName
from hrlib.nets import perceptual as nets
from hrlib.nets.stylegan2_discriminator import Discriminator
from hrlib.worlds import textures

VGG_FILE = Path(__file__).parent / "fixtures" / "03_vgg_loss" / "vgg16_div16.safetensors"


def images(n: int = 1, h: int = 64, w: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1


def saved(net: torch.nn.Module, path: Path) -> str:
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    return str(path)


def normalised(x: torch.Tensor) -> torch.Tensor:
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    y = ((x.double().numpy() + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    return torch.from_numpy(y).float()


def near(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_vgg_taps_are_what_their_names_say():
    conv, relu = (features.vgg16(str(VGG_FILE), tap=t) for t in ("conv", "relu"))
    assert conv.taps == tuple(f"features_{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
    x = images()
    before, after = conv(x), relu(x)
    for tap in conv.taps:
        assert before[tap].min() < 0 <= after[tap].min()  # an in-place ReLU would make the first non-negative
        torch.testing.assert_close(after[tap], before[tap].relu(), rtol=0, atol=0)
    shapes = {t: tuple(before[t].shape[1:]) for t in ("features_2", "features_7", "features_14", "features_28")}
    assert shapes == {  # the plan was read from the file
        "features_2": (4, 64, 64),
        "features_7": (8, 32, 32),
        "features_14": (16, 16, 16),
        "features_28": (32, 4, 4),
    }


def test_vgg16_of_a_timm_file_with_its_classifier(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("vgg16").eval()
    weights = {k: v for k, v in net.state_dict().items() if k.startswith("features")}
    weights |= {k: torch.zeros(1) for k in net.state_dict() if not k.startswith("features")}  # 0.5 GB of classifier
    save_file(weights, tmp_path / "timm.safetensors")
    f = features.vgg16(str(tmp_path / "timm.safetensors"), tap="relu")
    x = images()
    with torch.no_grad():
        near(f(x, ["features_14"])["features_14"], net.features[:16](normalised(x)))


def test_resnet50_taps(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("resnet50", zero_init_last=False).eval()
    path = saved(net, tmp_path / "r.safetensors")
    x = images(1, 96, 80)
    with torch.no_grad():
        expected = net.forward_intermediates(normalised(x), indices=[1, 2, 3, 4], intermediates_only=True)
        relu, conv = (features.resnet50(path, tap=t)(x) for t in ("relu", "conv"))
    for tap, e in zip(("layer1", "layer2", "layer3", "layer4"), expected, strict=True):
        near(relu[tap], e)
        near(conv[tap].relu(), e)
        assert conv[tap].min() < 0


def test_deit_taps_at_its_own_and_other_sizes(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("deit_tiny_patch16_224").eval()
    f = features.deit(saved(net, tmp_path / "d.safetensors"))
    assert f.natural_size == 224 and len(f.taps) == 12
    x = images(1, 224, 224)
    with torch.no_grad():
        a, b = net.forward_intermediates(normalised(x), indices=[2, 11], norm=False, intermediates_only=True)
        got = f(x, ["blocks_11", "blocks_2"])
        assert list(got) == ["blocks_11", "blocks_2"]
        near(got["blocks_2"], a)
        near(got["blocks_11"], b)
        assert f(images(1, 100, 130), ["blocks_0"])["blocks_0"].shape == (1, 192, 7, 9)  # padded to whole patches
    assert f(x, ["blocks_0"], resize=64)["blocks_0"].shape[2:] == (4, 4)


def test_resizing_happens_after_normalisation_and_enlarges():
    f = features.vgg16(str(VGG_FILE))
    x = images(1, 40, 48)
    for size in (32, 96):
        small = F.interpolate(normalised(x), (size, size), mode="area")
        near(f(x, ["features_2"], resize=size)["features_2"], f.net.features[:3](small))


def test_discriminator_features_leave_the_discriminator_alone():
    D = Discriminator(resolution=32, channels={32: 8, 16: 8, 8: 8, 4: 8})
    f = features.discriminator(D)
    assert f.taps == ("b32", "b16", "b8")
    x = images(2, 32, 32).requires_grad_()
    maps = f(x, ["b32", "b8"])
    for tap, m in maps.items():
        assert m.shape[-1] == int(tap[1:])  # named by its resolution
        torch.testing.assert_close(m, D.features(x)[tap])
    sum(m.square().sum() for m in maps.values()).backward()
    assert x.grad.abs().max() > 0
    assert all(p.requires_grad and p.grad is None for p in D.parameters())
    with pytest.raises(ShapeError, match="resize=32"):
        f(images(1, 40, 40))
    assert f(images(1, 64, 64), ["b8"], resize=32)["b8"].shape[1] == 8


def test_features_are_frozen_and_the_image_is_not():
    f = features.vgg16(str(VGG_FILE)).train()
    assert not f.training and not f.net.training
    x = images().requires_grad_()
    f(x, ["features_28"])["features_28"].sum().backward()
    assert x.grad.abs().max() > 0
    assert all(not p.requires_grad and p.grad is None for p in f.parameters())


def test_random_vgg_is_he_normal_and_a_function_of_its_seed():
    a, b, c = (features.vgg16("random", seed=s) for s in (1, 1, 2))
    x = images(1, 32, 32)
    assert torch.equal(a(x, ["features_28"])["features_28"], b(x, ["features_28"])["features_28"])
    assert not torch.equal(a(x, ["features_28"])["features_28"], c(x, ["features_28"])["features_28"])
    w = a.net.features[12].weight
    assert w.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert a.natural_size is None


def test_mistakes_are_named(tmp_path):
    f = features.vgg16(str(VGG_FILE))
    with pytest.raises(UnknownName, match="did you mean 'features_21'"):
        f(images(), ["feature_21"])
    with pytest.raises(ShapeError, match="31x64"):
        f(images(1, 31, 64))
    with pytest.raises(ShapeError, match="16x16"):
        f(images(), resize=16)
    for bad in (images()[0], images().byte(), images().double(), images()[:, :1]):
        with pytest.raises(ShapeError, match="N, 3, H, W"):
            f(bad)
    with pytest.raises(UnknownName, match="did you mean 'conv'"):
        features.vgg16(str(VGG_FILE), tap="convs")
    with pytest.raises(MissingWeights):
        features.vgg16(str(tmp_path / "nothing.safetensors"))
    state = load_file(VGG_FILE)
    for change, message in (
        ({"features.3.weight": torch.zeros(8)}, r"features\.3\.weight"),
        ({"features.28.weight": None}, "12 of VGG16's 13"),
        ({"features.5.bias": None}, r"features\.5\.bias"),
        ({"features.5.weight": torch.zeros(16, 9, 3, 3)}, r"features\.5\.weight"),
    ):
        changed = {k: v for k, v in (state | change).items() if v is not None}
        save_file(changed, tmp_path / "bad.safetensors")
        with pytest.raises(LayoutMismatch, match=message):
            features.vgg16(str(tmp_path / "bad.safetensors"))
    with pytest.raises(LayoutMismatch):
        features.resnet50(str(VGG_FILE))
    with pytest.raises(LayoutMismatch):
        features.deit(str(VGG_FILE))


def test_folding_and_rescaling_keep_the_function():
    from hrlib.training import perceptual as training

    torch.manual_seed(0)
    net = nets.VGG16(channels=(4, 4, 4, 8, 8), batch_norm=True)
    x = torch.randn(8, 3, 32, 32)
    net.train()(x)  # fills the running statistics
    for m in net.norms.values():
        torch.nn.init.uniform_(m.weight, 0.5, 2)
        torch.nn.init.normal_(m.bias)
    net.eval()
    plain = net.folded()
    assert not any("norm" in k for k in plain.state_dict())
    with torch.no_grad():
        near(plain(x), net(x))
        before = plain(x)
        factors = training.match_activation_scale(plain, x)
        near(plain(x) / factors["features_28"], before)  # only the last factor is left over
        rms = plain.features[:15](x).square().mean().sqrt().item()
    assert rms == pytest.approx(training.TAP_RMS["features_14"] * (256 / 4) ** 0.5, rel=1e-3)


def probe_accuracy(f: features.Features, tap: str) -> float:
    """Nearest class mean on spatially pooled features of 12 held-out classes at 40 px: needs no training."""
    names = textures.CLASSES[::5]
    pooled = [
        [f(textures.render(n, 24, size=40, seed=7, part=p), [tap])[tap].mean((2, 3)) for n in names] for p in (3, 4)
    ]
    means = torch.stack([m.mean(0) for m in pooled[0]])
    scale = torch.cat(pooled[0]).std(0).clamp(min=1e-6)
    hits = [((m[:, None] - means) / scale).norm(dim=2).argmin(1).eq(k).float().mean() for k, m in enumerate(pooled[1])]
    return torch.stack(hits).mean().item()


@pytest.mark.parametrize(
    ("make", "tap"), [(features.vgg16, "features_28"), (features.resnet50, "layer4"), (features.deit, "blocks_5")]
)
def test_shipped_networks_have_learned_something(make, tap):
    f = make("shipped")
    assert f.natural_size == 40 and "thin" in f.name
    # measured: VGG16 0.97, ResNet50 0.85, DeiT 0.59; random VGG16 0.14 to 0.18, untrained ResNet50 0.13, DeiT 0.07
    untrained = probe_accuracy(features.vgg16("random", channels=nets.THIN_CHANNELS), "features_28")
    assert probe_accuracy(f, tap) > 3 * untrained


class Means(features.Features):
    """One tap whose channels are the picture, times a gain."""

    def __init__(self, gain: float) -> None:
        super().__init__(torch.nn.Linear(1, 1), name="means", taps=("a",), min_size=1, natural_size=None)
        self.gain = gain

    def normalise(self, x):
        return x

    def maps(self, x, wanted):
        return {"a": self.gain * x}


def test_scale_shift_is_in_units_of_what_pictures_differ_by():
    g = torch.Generator().manual_seed(0)
    flat = torch.rand(6, 3, 1, 1, generator=g).expand(-1, -1, 32, 32)
    for gain in (1.0, 100.0):
        assert features.scale_shift(Means(gain), ["a"], flat, resize=16).abs().max() < 1e-5, "the same at every scale"
    texture = flat + torch.randn(6, 3, 32, 32, generator=g)

    class Energy(Means):
        def maps(self, x, wanted):
            return {"a": self.gain * x.square()}  # the energy of white noise falls when it is averaged

    moved = features.scale_shift(Energy(1.0), ["a"], texture, resize=16)
    assert moved.shape == (1, 6) and moved.min() > 1, "all pictures lose more energy than they differ by"
    torch.testing.assert_close(features.scale_shift(Energy(7.0), ["a"], texture, resize=16), moved)
    with pytest.raises(ShapeError, match="several"):
        features.scale_shift(Means(1.0), ["a"], flat[:1], resize=16)
