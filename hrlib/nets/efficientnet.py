"""EfficientNet-Lite0 (Tan and Le 2019; the Lite variant has ReLU6 and no squeeze-and-excitation), from timm's classes.

A small ImageNet network whose blocks end in linear bottlenecks: convolution and batch normalisation without an
activation after them, so their outputs are dense.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import LayoutMismatch
from .perceptual import pink_noise

NORMS = {  # the normalisation after each convolution, in the network itself and in its two kinds of blocks
    "EfficientNet": {"conv_stem": "bn1"},
    "DepthwiseSeparableConv": {"conv_dw": "bn1", "conv_pw": "bn2"},
    "InvertedResidual": {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"},
}


def efficientnet_lite0() -> nn.Module:
    """timm's `tf_efficientnet_lite0` with its classifier of 1000 classes, in evaluation mode."""
    return timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()


def fill(net: nn.Module, state: dict[str, Tensor], source: str) -> nn.Module:
    """The network with these weights, whose names are timm's, or others in timm's order.

    The published file has names of its own, but its 296 entries stand in the order of timm's. Each must have the shape
    and the kind (weight, bias, running_mean, ...) of its place. A safetensors file keeps no order: there, timm's names
    are needed.

    Raises:
        LayoutMismatch: another number of entries, or an entry that does not fit its place.
    """
    own = net.state_dict()
    pairs = {k: k for k in own} if own.keys() == state.keys() else dict(zip(own, state, strict=False))
    wrong = [
        f"{theirs} {list(state[theirs].shape)} for {ours} {list(own[ours].shape)}"
        for ours, theirs in pairs.items()
        if own[ours].shape != state[theirs].shape or ours.rpartition(".")[2] != theirs.rpartition(".")[2]
    ]
    if len(state) != len(own) or wrong:
        first = f"; the first that does not fit its place is {wrong[0]}" if wrong else ""
        raise LayoutMismatch(
            f"{source} has {len(state)} entries{first}",
            expected=f"the {len(own)} entries of timm's tf_efficientnet_lite0, under its names or in its order",
            do="use the file of `make faces`, efficientnet_lite0_imagenet, or timm's own",
        )
    net.load_state_dict({ours: state[theirs] for ours, theirs in pairs.items()})
    return net


@torch.no_grad()
def randomise(net: nn.Module, seed: int) -> nn.Module:
    """The network with random weights: He-normal convolutions, and normalisations that scale but do not centre.

    Weights have variance 2 / fan-in; every batch normalisation then divides by the root mean square of its own input
    over four seeded pictures of 1/f noise, so that maps neither vanish nor grow with depth, whatever the seed.

    It leaves the channels' means alone, unlike a trained one. Centred random ReLU layers are chaotic: each pulls two
    similar inputs further apart. Nineteen twentieths of the way from one face to another (codes interpolated), the
    features of the last block would still be 60 to 80 % of the whole distance away, and no descent would find the rest;
    uncentred it is 4 to 8 %, trained 2 %.
    """
    rng = torch.Generator().manual_seed(seed)
    hooks = []
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="relu", generator=rng)
        elif isinstance(m, nn.BatchNorm2d):
            m.reset_parameters()
            hooks.append(m.register_forward_pre_hook(_measure))
    net.eval().forward_features(pink_noise(4, 256, rng))
    for hook in hooks:
        hook.remove()
    return net


def _measure(norm: nn.Module, given: tuple[Tensor]) -> None:
    norm.running_var.fill_(given[0].square().mean())


@torch.no_grad()
def folded(net: nn.Module) -> nn.Module:
    """The features of a trained network with every batch normalisation merged into the convolution before it.

    The same function up to rounding, in four fifths of the time and three quarters of the memory (forward and backward
    at 1024 px on a CPU). Changes `net`, whose head and classifier are dropped.
    """
    for module in net.modules():
        for conv, bn in NORMS.get(type(module).__name__, {}).items():
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, bn)))
            setattr(module, bn, getattr(module, bn).act)
    net.conv_head = net.bn2 = net.global_pool = net.classifier = nn.Identity()
    return net
