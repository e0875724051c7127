"""ST-LPIPS: LPIPS made tolerant of small shifts (Ghildyal and Liu 2022, https://arxiv.org/abs/2207.13686).

LPIPS compares positions, and pooling with strides changes its maps when a picture moves by a pixel. Here nothing is
sub-sampled without a blur: convolutions and max-pools have stride 1, and a binomial filter with stride 2 follows
(Zhang 2019). Trunk and heads were trained together on human judgements, so these are not ImageNet's features.
"""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .perceptual import CONVS_PER_BLOCK, FULL_CHANNELS

Maps = namedtuple("Maps", ["relu1", "relu2", "relu3", "relu4", "relu5"])
ALEX_TAPS, VGG_TAPS = (2, 6, 10, 12, 14), (3, 9, 17, 25, 33)  # the layers whose outputs are compared


class BlurPool(nn.Module):
    """Blur by [1, 2, 1] / 4 along both axes, then keep every second position.

    Two reflected pixels on each side, one more than the filter needs, as in the published networks: maps have
    (edge + 1) / 2 + 1 positions, rounded down.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filt", row.outer(row).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, about H/2, about W/2]."""
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class Trunk(nn.Module):
    """`layers`, with the numbers of the published network, and the ReLU maps at `taps`, finest first."""

    def __init__(self, layers: list[nn.Module], taps: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self.taps = nn.Sequential(*layers), taps

    def forward(self, x: Tensor) -> Maps:
        """The scaled images [N, 3, H, W] -> five ReLU maps."""
        maps = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        return Maps(*maps)


def alex() -> Trunk:
    """AlexNet's five convolutions; the first has stride 1, and a blur before and after its max-pool."""
    layers = [nn.Conv2d(3, 64, 11, padding=2), BlurPool(64), nn.ReLU(), nn.MaxPool2d(3, stride=1), BlurPool(64)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=1), BlurPool(192)]
    for c_in, c_out in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()]
    return Trunk(layers, ALEX_TAPS)


def vgg() -> Trunk:
    """VGG16's thirteen convolutions; each max-pool has stride 1 and a blur after it."""
    layers, c_in = [], 3
    for convs, c_out in zip(CONVS_PER_BLOCK, FULL_CHANNELS, strict=True):
        if layers:
            layers += [nn.MaxPool2d(2, stride=1), BlurPool(c_in)]
        for _ in range(convs):
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()]
            c_in = c_out
    return Trunk(layers, VGG_TAPS)


class _Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class STLPIPS(nn.Module):
    """The parts of the metric, under the names of the `lpips` package; `losses.LPIPS` has the formula.

    Args:
        trunk: "alex" or "vgg".

    Attributes:
        scaling_layer: images in [-1, 1] -> the trunk's input.
        net: the trunk; its input -> five maps.
        lins: the heads, one weight for each channel of a map, as 1x1 convolutions.
    """

    def __init__(self, trunk: str) -> None:
        super().__init__()
        self.scaling_layer, self.net = _Scaling(), {"alex": alex, "vgg": vgg}[trunk]()
        convs = [c for c in self.net.layers if isinstance(c, nn.Conv2d)]
        ends = [sum(CONVS_PER_BLOCK[: k + 1]) for k in range(5)] if trunk == "vgg" else range(1, 6)
        self.lins = nn.ModuleList(nn.Conv2d(convs[k - 1].out_channels, 1, 1, bias=False) for k in ends)


def translated(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published file's names as ours: "net.slice2.5.weight" -> "net.layers.5.weight", "lin0.model.1.weight" ->
    "lins.0.weight"; others as they are."""
    names = {}
    for key in state:
        part = key.split(".")
        if len(part) == 4 and part[0] == "net" and part[1].startswith("slice"):
            names[key] = ".".join(("net", "layers", *part[2:]))
        elif len(part) == 4 and part[0].startswith("lin") and part[1:3] == ["model", "1"]:
            names[key] = f"lins.{part[0].removeprefix('lin')}.{part[3]}"
    return {names.get(key, key): value for key, value in state.items()}
