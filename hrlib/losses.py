"""Distances between images: Eq. (2), (3), (4) of the paper, LPIPS, MSE, and the noise regularisation of StyleGAN2.

The arguments of `Perceptual` say which features, taps, weights and input size a loss uses::

    loss = Perceptual(features.vgg16("imagenet", tap="conv"), HRINVERSION, resize=None)  # the paper's choice
    target = loss.prepare(x)                 # the target's features, computed once
    terms = loss(G.synthesis(ws), target)    # {"perceptual": scalar}

Losses can be added: `Perceptual(...) + MSE(0.1)` returns {"perceptual": ..., "mse": ...}. They do not check the
prediction for NaN; the loop does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import features as feature_nets
from . import store
from . import weights as weight_files
from ._lambdas import (
    DEIT_DEPTHS,
    DEIT_LAMBDA,
    EFFICIENTNET,
    EFFICIENTNET_HIGH,
    EFFICIENTNET_RANDOM,
    EFFICIENTNET_SPARSE,
    HIGH_LEVEL,
    HRINVERSION,
    IMAGE2STYLEGAN,
    RESNET50,
    VGG_RANDOM,
    equal_spreads,
    mean_squares,
)
from .errors import SEED, InvalidValue, ShapeError, UnknownName, nearest, number, sides
from .features import Features
from .image import check

WEIGHT = "[0, inf)"  # of a loss or of a tap: a negative one would reward distance
MAX_ABS = 10.0  # of a target: above the values of any image in [-1, 1], far below those of a 0..255 image


def _checked_resize(resize: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
    """An edge, (height, width) or None in the form it was given, checked by `errors.sides`."""
    if resize is None:
        return None
    pair = sides("resize", resize)
    return pair if isinstance(resize, (tuple, list)) else pair[0]


@dataclass(frozen=True)
class Target:
    """What a loss needs of a target image, computed once; only for the loss that prepared it.

    by: that loss. image: [N, 3, H, W]. maps: its features. targets: those of the losses in a `Sum`.
    """

    by: Loss
    image: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict, repr=False)
    targets: tuple[Target, ...] = ()


class Loss(nn.Module):
    """A distance between a batch of images and a target; `loss(pred, target) -> {term: scalar}`."""

    def prepare(self, image: Tensor) -> Target:
        """Compute once what the loss needs of the target image [N, 3, H, W] in [-1, 1].

        Raises:
            ShapeError, InvalidValue: as `image.check`.
        """
        return self._prepare(check(image.detach(), "a target", limit=MAX_ABS))

    def forward(self, pred: Tensor, target: Tensor | Target) -> dict[str, Tensor]:
        """The named terms, each a scalar to minimise; their sum is the loss.

        pred: [N, 3, H, W] in [-1, 1], takes gradients. target: an image of the same shape, or `prepare(image)`.
        """
        return self._terms(pred, self._target(pred, target))

    def describe(self) -> str:
        """One line with the features, taps, weights and input size, for records and for the check of a resumed run."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def __add__(self, other: Loss) -> Sum:
        return Sum(self, other)

    def _target(self, pred: Tensor, target: Tensor | Target) -> Target:
        if not isinstance(target, Target):
            target = self.prepare(target)
        if target.by is not self:
            raise InvalidValue(
                f"a target prepared by another loss ({target.by})",
                expected=f"one prepared by this loss ({self})",
                do="call prepare() of this loss, or pass the image itself",
            )
        if pred.shape != target.image.shape:
            raise ShapeError(
                f"an image of shape {tuple(pred.shape)} against a target of {tuple(target.image.shape)}",
                expected="equal shapes",
                do="synthesise at the target's size; with resize set, the loss resizes both images itself",
            )
        return target

    def _prepare(self, image: Tensor) -> Target:
        return Target(self, image)

    def _terms(self, pred: Tensor, target: Target) -> dict[str, Tensor]:
        raise NotImplementedError


class Perceptual(Loss):
    """d(x^, x) = sum_l || lambda_l (phi_l(x^) - phi_l(x)) ||_2^2, Eq. (2), (3) and (4), divided by the batch size only.

    The sum runs over channels and positions, so the value grows with the image's area. The features decide which
    equation it is: ReLU taps with resize are Eq. (2), conv taps at full size Eq. (3) with `HRINVERSION` and Eq. (4)
    with `HIGH_LEVEL`.

    Args:
        features: from `hrlib.features`.
        weights: {tap: lambda}, none negative; a tap with lambda 0 is not computed.
        resize: edge, or (height, width), to which both images are area-averaged after normalisation and before the
            network. None keeps their full size, as the paper recommends. Smaller images are enlarged, as in the
            authors' code.
        name: the term's name.
    """

    def __init__(
        self,
        features: Features,
        weights: Mapping[str, float] = HRINVERSION,
        resize: int | tuple[int, int] | None = None,
        *,
        name: str = "perceptual",
    ) -> None:
        super().__init__()
        features.check_taps(weights)
        self.features, self.resize, self.name = features, _checked_resize(resize), name
        lambdas = {tap: float(number(f"lambda of {tap}", w, WEIGHT)) for tap, w in weights.items()}
        self.weights = {tap: lam for tap, lam in lambdas.items() if lam != 0}
        features.check_taps(self.weights)  # at least one must be left

    def extra_repr(self) -> str:
        """The settings, for messages and sidecars; the network by its name and the hash of its weights."""
        network = f"{self.features.name} {self.features.fingerprint[:12]}"
        return f"{network}, weights={self.weights}, resize={self.resize}"

    def distances(self, pred: Tensor, target: Tensor | Target) -> dict[str, Tensor]:
        """|| lambda_l (phi_l(pred) - phi_l(target)) ||^2 for each image and tap, {tap: [N]}, without any division."""
        target = self._target(pred, target)
        maps = self.features(pred, self.weights, resize=self.resize)
        return {  # the terms of Eq. (2), (3) and (4)
            tap: lam**2 * (maps[tap] - target.maps[tap]).square().sum(dim=(1, 2, 3))
            for tap, lam in self.weights.items()
        }

    @torch.no_grad()
    def _prepare(self, image: Tensor) -> Target:
        return Target(self, image, self.features(image, self.weights, resize=self.resize))

    def _terms(self, pred: Tensor, target: Target) -> dict[str, Tensor]:
        each = self.distances(pred, target).values()
        return {self.name: torch.stack(list(each)).sum() / len(pred)}  # d(x^, x), Eq. (2), (3) and (4)


class MSE(Loss):
    """weight times the squared difference, averaged over batch, channels and pixels, on the [-1, 1] scale (Eq. 1).

    weight: 0 or more.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = float(number("weight", weight, WEIGHT))

    def extra_repr(self) -> str:
        """The weight, for messages and sidecars."""
        return f"weight={self.weight}"

    def _terms(self, pred: Tensor, target: Target) -> dict[str, Tensor]:
        return {"mse": self.weight * F.mse_loss(pred, target.image)}  # lam_mse d_mse, Eq. (1)


LPIPS_TITLES = {
    "vgg": "LPIPS (vgg)",
    "alex": "LPIPS (alex)",
    "thin": "LPIPS (thin)",
    "resnet": "LPIPS (ResNet50)",
    "resnet_thin": "LPIPS (ResNet50, thin)",
    "st_vgg": "ST-LPIPS (vgg)",
    "st_alex": "ST-LPIPS (alex)",
}


class LPIPS(Loss):
    """Learned perceptual image patch similarity (Zhang et al. 2018), averaged over the batch.

    Features are scaled to unit length at each position; squared differences are weighted by channel, averaged over
    positions and summed over five ReLU layers.

    Args:
        net: "vgg" or "alex": the `lpips` package (v0.1) with its calibrated linear heads; the ImageNet trunk comes
            from the catalogue (`vgg16_imagenet`, `alexnet_imagenet`) and is never downloaded implicitly. The next three
            use the same formula with all channel weights 1, and compare only with themselves: "thin" on the shipped
            thin VGG16; "resnet" and "resnet_thin" on the four stages of ResNet50 (ImageNet's or the shipped one), for a
            second opinion from a network other than VGG. "st_vgg" and "st_alex" are `nets.st_lpips` with its own trunk
            and heads, which hardly sees shifts of a pixel or two (Ghildyal and Liu 2022); `make faces` installs them.
        resize: as in `Perceptual`.
        weight: multiplies the term.

    Raises:
        MissingWeights: the trunk is not on this machine.
    """

    def __init__(self, net: str = "vgg", resize: int | tuple[int, int] | None = None, *, weight: float = 1.0) -> None:
        super().__init__()
        if net not in LPIPS_TITLES:
            raise UnknownName(
                f"LPIPS network {net!r}",
                expected=f"one of {', '.join(LPIPS_TITLES)}",
                do=nearest(net, list(LPIPS_TITLES)) or 'use "vgg", as the paper does',
            )
        self.net, self.resize, self.weight = net, _checked_resize(resize), float(number("weight", weight, WEIGHT))
        self.title, self.plain, self.package = LPIPS_TITLES[net], None, None
        if net in ("vgg", "alex"):
            self.package = _lpips_package(net)
        elif net in ("st_vgg", "st_alex"):
            self.package = weight_files.load_st_lpips(net.replace("st_", "st_lpips_"))
        elif net == "thin":
            self.plain = feature_nets.vgg16("shipped", tap="relu")
        else:
            self.plain = feature_nets.resnet50("shipped" if net == "resnet_thin" else "imagenet", tap="relu")
        self.taps = tuple(HRINVERSION if net == "thin" else RESNET50)  # of the plain networks
        self.fingerprint = store.fingerprint((self.plain or self.package).state_dict())

    def extra_repr(self) -> str:
        """The settings, for messages and sidecars."""
        return f"{self.title} {self.fingerprint[:12]}, resize={self.resize}, weight={self.weight}"

    def distances(self, pred: Tensor, target: Tensor | Target) -> dict[str, Tensor]:
        """The layers' contributions for each image, {layer: [N]}; their sum is LPIPS."""
        target, out = self._target(pred, target), {}
        for k, (layer, unit) in enumerate(self._unit_maps(pred).items()):
            squared = (unit - target.maps[layer]).square()
            weighted = self.package.lins[k](squared) if self.package else squared.sum(1, keepdim=True)
            out[layer] = weighted.mean(dim=(1, 2, 3))
        return out

    def _unit_maps(self, x: Tensor) -> dict[str, Tensor]:
        if self.plain:
            maps = self.plain(x, self.taps, resize=self.resize)
        else:
            x = self.package.scaling_layer(x)
            if self.resize is not None:
                x = F.interpolate(x, self.resize, mode="area")
            if min(x.shape[2:]) < 32:
                raise ShapeError(
                    f"{self.title} was given an image of {x.shape[2]}x{x.shape[3]} pixels",
                    expected="both edges at least 32 pixels",
                    do="use a larger image, or resize=32 or more",
                )
            maps = self.package.net(x)._asdict()
        # sqrt has an infinite derivative at 0, and thin ReLU maps can be 0 in all channels of a position
        return {k: m / (m.square().sum(1, keepdim=True) + 1e-20).sqrt() for k, m in maps.items()}

    @torch.no_grad()
    def _prepare(self, image: Tensor) -> Target:
        return Target(self, image, self._unit_maps(image))

    def _terms(self, pred: Tensor, target: Target) -> dict[str, Tensor]:
        return {"lpips": self.weight * torch.stack(list(self.distances(pred, target).values())).sum(0).mean()}


def _lpips_package(net: str) -> nn.Module:
    """The `lpips` package's model with its own heads and the trunk of the catalogue."""
    import lpips  # here, because it takes a second to import and most losses do not need it

    source = {"vgg": "vgg16_imagenet", "alex": "alexnet_imagenet"}[net]
    state, _ = weight_files.load_state(source)
    with warnings.catch_warnings():  # the package uses a deprecated argument of torchvision
        warnings.simplefilter("ignore", UserWarning)
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)  # pnet_rand: no download; filled below
    # the package's "slice2.5.weight" is torchvision's "features.5.weight"
    keys = {"features." + key.split(".", 1)[1]: key for key in model.net.state_dict()}
    trunk = {keys.get(k, k): v for k, v in state.items() if not k.startswith(feature_nets.CLASSIFIER_KEYS)}
    weight_files.load_strictly(model.net, trunk, source)
    return model.eval().requires_grad_(False)


class Sum(Loss):
    """The terms of several losses together; made by `a + b`."""

    def __init__(self, *losses: Loss) -> None:
        super().__init__()
        flat = [term for loss in losses for term in (loss.losses if isinstance(loss, Sum) else [loss])]
        self.losses = nn.ModuleList(flat)

    def describe(self) -> str:
        """The descriptions of the losses, joined by "+"."""
        return " + ".join(loss.describe() for loss in self.losses)

    def _prepare(self, image: Tensor) -> Target:
        return Target(self, image, targets=tuple(loss.prepare(image) for loss in self.losses))

    def _terms(self, pred: Tensor, target: Target) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for loss, prepared in zip(self.losses, target.targets, strict=True):
            for name, value in loss(pred, prepared).items():
                if name in terms:
                    raise InvalidValue(
                        f"two terms named {name!r}",
                        expected="different names",
                        do="set name=... of one of the two losses",
                    )
                terms[name] = value
        return terms


def noise_regularisation(maps: Mapping[str, Tensor] | Iterable[Tensor]) -> Tensor:
    """StyleGAN2's penalty on noise maps that carry a picture: squared autocorrelation at distance 1; a scalar.

    For each map [..., H, W], and its 2x2 averages down to an edge of 8 pixels: mean(n * roll(n, 1))^2 along each
    axis; summed over scales, axes and maps, averaged over leading (batch) dimensions. White noise gives about 0. Axes
    of one pixel are skipped: there the only neighbour is the pixel itself.
    """
    total = torch.zeros(())
    for noise in maps.values() if isinstance(maps, Mapping) else maps:
        if noise.ndim < 2:
            raise ShapeError(f"a noise map of shape {tuple(noise.shape)}", expected="[..., H, W]", do="pass 2-D maps")
        level = noise.reshape(-1, 1, *noise.shape[-2:])
        while True:
            for dim in (d for d in (2, 3) if level.shape[d] > 1):
                total = total.to(level) + (level * level.roll(1, dim)).mean(dim=(1, 2, 3)).square().mean()
            if min(level.shape[2:]) <= 8:
                break
            level = F.avg_pool2d(level, 2)
    return total


PERCEPTUAL = (
    "vgg_relu",
    "vgg_conv",
    "vgg_high",
    "vgg_random",
    "image2stylegan",
    "resnet50",
    "deit",
    "discriminator",
    "efficientnet_dense",
    "efficientnet_sparse",
    "efficientnet_high",
    "efficientnet_random",
)
NAMES = (*PERCEPTUAL, "lpips", "st_lpips", "mse")  # and "timm:NETWORK"


def named(name: str, *, weights: str = "imagenet", resize: int | tuple[int, int] | None = None, seed: int = 0) -> Loss:
    """A loss of Fig. 6, Fig. 12 and Table II by name, for parameters in notebooks and tables.

    Args:
        name: one of `NAMES`: "vgg_relu" (Eq. 2, with the lambdas of Eq. 3), "vgg_conv" (Eq. 3), "vgg_high" (Eq. 4),
            "vgg_random" (conv taps, `VGG_RANDOM`), "image2stylegan" (`IMAGE2STYLEGAN`, mean squares; needs a resize),
            "resnet50", "deit" (our taps and lambdas), "discriminator" (all blocks, mean squares; Sec. IV-G),
            "efficientnet_dense", "efficientnet_sparse", "efficientnet_high" (Eq. 3, 2 and 4 with `EFFICIENTNET`, ...),
            "efficientnet_random" (dense), "lpips", "st_lpips" (on AlexNet, the cheap one), "mse" (ignores resize), or
            "timm:NETWORK" for any network of timm ("timm:convnext_tiny"). A colon and taps joined by "+" select taps
            of a perceptual loss, with their lambdas: "vgg_conv:features_21+features_28" is Eq. (4),
            "efficientnet_dense:blocks_3" and "timm:convnext_tiny:stages_1" are one map each.
        weights: "imagenet", "shipped" (the thin networks), or a file; for "discriminator" what
            `weights.load_discriminator` takes. "lpips" and "vgg_random" have the first two only; "st_lpips" and
            "efficientnet_random" the first. EfficientNet and timm's networks have no thin version; those of timm take
            "random", too.
        resize: as in `Perceptual`.
        seed: of the random networks.

    Raises:
        UnknownName: an unknown loss or tap; the message has the nearest valid name. InvalidValue: no resize where one
            is needed, or a number out of range.
    """
    resize, seed = _checked_resize(resize), number("seed", seed, SEED)
    kind, colon, chosen = name.partition(":")
    if kind == "timm":
        network, colon, chosen = chosen.partition(":")
    elif kind not in NAMES:
        hint = nearest(kind, list(NAMES)) or 'use "vgg_conv", the paper\'s loss'
        raise UnknownName(f"loss {name!r}", expected=f"one of {', '.join(NAMES)}, timm:NETWORK", do=hint)
    _check_weights(kind, weights)
    if kind in ("lpips", "st_lpips", "mse"):
        if colon:
            raise UnknownName(
                f"loss {name!r}", expected=f"{kind!r}, which has no taps to select", do="remove the colon and the taps"
            )
        if kind == "mse":
            return MSE()
        return LPIPS("st_alex" if kind == "st_lpips" else {"shipped": "thin", "imagenet": "vgg"}[weights], resize)
    if kind == "timm":
        f = feature_nets.timm_network(network, weights, seed=seed)
        lambdas = equal_spreads(f)
    else:
        f, lambdas = _plan(kind, weights, resize, seed)
    if colon:
        taps = f.check_taps(chosen.split("+"))
        if without := [tap for tap in taps if tap not in lambdas]:
            raise UnknownName(
                f"tap {without[0]!r} of loss {kind!r}",
                expected=f"one of {', '.join(lambdas)}, the taps with a lambda in this loss",
                do=nearest(without[0], list(lambdas)) or "build a Perceptual with your own lambdas",
            )
        lambdas = {tap: lambdas[tap] for tap in taps}
    return Perceptual(f, lambdas, resize)


def _check_weights(kind: str, weights: str) -> None:
    """`InvalidValue` for weights that a kind of loss does not have."""
    only = {
        "lpips": ("imagenet", "shipped"),
        "vgg_random": ("imagenet", "shipped"),
        "st_lpips": ("imagenet",),
        "efficientnet_random": ("imagenet",),
    }
    if kind in only and weights not in only[kind]:
        raise InvalidValue(
            f"loss {kind!r} with weights={weights!r}",
            expected=" or ".join(f'"{w}"' for w in only[kind]),
            do="build LPIPS or Perceptual with your own network",
        )
    if weights == "shipped" and kind.startswith(("efficientnet", "timm")):
        raise InvalidValue(
            f"loss {kind!r} with weights='shipped'",
            expected='"imagenet" or a file; there is no thin version of this network',
            do='use weights="imagenet" (EfficientNet comes with `make faces`), or the loss "vgg_conv"',
        )


def _plan(
    kind: str, weights: str, resize: int | tuple[int, int] | None, seed: int
) -> tuple[Features, Mapping[str, float]]:
    """Features and {tap: lambda} of a perceptual loss."""
    if kind == "vgg_random":
        plan = feature_nets.THIN_CHANNELS if weights == "shipped" else feature_nets.FULL_CHANNELS
        return feature_nets.vgg16("random", seed=seed, channels=plan), VGG_RANDOM
    if kind == "efficientnet_random":
        return feature_nets.efficientnet_lite0("random", seed=seed), EFFICIENTNET_RANDOM
    if kind == "efficientnet_sparse":
        return feature_nets.efficientnet_lite0(weights, tap="sparse"), EFFICIENTNET_SPARSE
    if kind in ("efficientnet_dense", "efficientnet_high"):
        f = feature_nets.efficientnet_lite0(weights)
        return f, EFFICIENTNET if kind == "efficientnet_dense" else EFFICIENTNET_HIGH
    if kind == "resnet50":
        return feature_nets.resnet50(weights), RESNET50
    if kind == "deit":
        f = feature_nets.deit(weights)
        return f, dict.fromkeys([f.taps[round(share * len(f.taps)) - 1] for share in DEIT_DEPTHS], DEIT_LAMBDA)
    if kind == "discriminator":
        f = feature_nets.discriminator(weight_files.load_discriminator(weights))
        return f, mean_squares(f, f.taps, f.natural_size)
    if kind == "image2stylegan":
        if resize is None:
            raise InvalidValue(
                "loss 'image2stylegan' with resize=None",
                expected="a resize, because its terms are means over features of one size",
                do="set resize=256, as its paper does, or use 'vgg_relu' for ReLU features at full size",
            )
        f = feature_nets.vgg16(weights, tap="relu")
        return f, mean_squares(f, IMAGE2STYLEGAN, resize)
    f = feature_nets.vgg16(weights, tap="relu" if kind == "vgg_relu" else "conv")
    return f, HIGH_LEVEL if kind == "vgg_high" else HRINVERSION
