"""A face recognition network in the manner of IR-SE (Deng et al. 2019), thin enough to be trained on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidValue, ShapeError

SLOPE = 0.25  # of the leaky ReLUs; IR-SE's PReLUs start there, but learning it takes a third of the time on a CPU


def whole_square(x: Tensor, edge: int) -> Tensor:
    """Pictures [N, 3, H, W] resized, uncropped, to [N, 3, edge, edge]: bilinear, antialiased (Sec. III-D).

    Raises:
        ShapeError: x is not a batch of RGB images.
    """
    if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
        raise ShapeError(
            f"a batch of shape {tuple(x.shape)} and type {x.dtype}",
            expected="[N, 3, H, W], float, in [-1, 1]",
            do="read images with hrlib.image.read",
        )
    return x if x.shape[2:] == (edge, edge) else F.interpolate(x, (edge, edge), mode="bilinear", antialias=True)


class SqueezeExcite(nn.Module):
    """Squeeze and excitation: scale each channel by a gate in (0, 1) computed from the means of all channels."""

    def __init__(self, channels: int, reduction: int, *, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=bias)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class _Unit(nn.Module):
    """IR-SE's residual unit: norm, 3x3, leaky ReLU, 3x3 (with the stride), norm, gate, beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int, reduction: int) -> None:
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(c_out, c_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            SqueezeExcite(c_out, reduction, bias=True),
        )
        if c_in == c_out and stride == 1:
            self.shortcut_layer: nn.Module = nn.Identity()
        else:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut_layer(x) + self.res_layer(x)


class Identity(nn.Module):
    """Images -> unit vectors that are close (squared L2 distance, 0 to 4) for pictures of the same person.

    The whole picture is used, without face detection or cropping, as in the paper's ID retrieval (Sec. III-D); it is
    resized to a square of `edge` pixels with an antialiased bilinear filter.

    Args:
        edge: side of the square that the convolutions see, a multiple of 2 ** (stages + 1).
        channels: output channels of each stage; the first convolution and each stage's first unit halve the resolution.
        blocks: residual units in each stage.
        dim: length of the embedding.
        reduction: of the channels inside squeeze and excitation.
    """

    def __init__(
        self,
        *,
        edge: int = 64,
        channels: Sequence[int] = (48, 96, 128),
        blocks: Sequence[int] = (1, 2, 2),
        dim: int = 128,
        reduction: int = 8,
    ) -> None:
        super().__init__()
        shrink = 2 ** (len(channels) + 1)
        if len(channels) != len(blocks) or edge % shrink or edge < shrink or min(blocks) < 1:
            raise InvalidValue(
                f"edge {edge}, channels {list(channels)}, blocks {list(blocks)}",
                expected="one positive number of blocks per stage, and an edge divisible by 2 ** (stages + 1)",
                do=f"use an edge divisible by {shrink}, and lists of equal length",
            )
        self.edge, self.dim = edge, dim
        self.config = {
            "edge": edge,
            "channels": list(channels),
            "blocks": list(blocks),
            "dim": dim,
            "reduction": reduction,
        }
        first, units = channels[0] // 2, []
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 5, 2, padding=2, bias=False), nn.BatchNorm2d(first), nn.LeakyReLU(SLOPE)
        )
        c_in = first
        for c_out, n in zip(channels, blocks, strict=True):
            for i in range(n):
                units.append(_Unit(c_in, c_out, 2 if i == 0 else 1, reduction))
                c_in = c_out
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(c_in * (edge // shrink) ** 2, dim, bias=False),
            nn.BatchNorm1d(dim),
        )

    def embed(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [-1, 1], of any size -> unit vectors [N, dim].

        Raises:
            ShapeError: x is not a batch of RGB images.
        """
        x = whole_square(x, self.edge)
        return F.normalize(self.output_layer(self.body(self.input_layer(x))).float(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """`embed`."""
        return self.embed(x)
