"""StyleGAN2's residual discriminator (Karras et al. 2020); parameter names and numerics as in `stylegan2`."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ShapeError
from .style_based import full_precision
from .stylegan2 import FIR, SQRT2, Linear, block_resolutions


@lru_cache
def blur_matrix(k: int) -> Tensor:
    """[k k, (k + 3)^2]: full convolution of a k x k kernel with the FIR filter, as a matrix on the flattened kernel."""
    basis = torch.eye(k * k, dtype=torch.float64).reshape(k * k, 1, k, k)
    return F.conv2d(basis, FIR.double()[None, None], padding=3).reshape(k * k, -1)


def downsample_conv(x: Tensor, weight: Tensor) -> Tensor:
    """The FIR filter, then a stride-2 convolution: [N, I, H, W] -> [N, O, H/2, W/2], in one call."""
    o, i, k, _ = weight.shape
    blurred = (weight.reshape(o, i, k * k) @ blur_matrix(k).to(weight)).reshape(o, i, k + 3, k + 3)
    return F.conv2d(x, blurred, stride=2, padding=(k - 1) // 2 + 1)


def activate(x: Tensor, *, gain: float = SQRT2, clamp: float | None = None) -> Tensor:
    """Leaky ReLU 0.2 times gain; `clamp` bounds the result and scales with the layer's gain (gain / sqrt 2)."""
    x = F.leaky_relu(x, 0.2) * gain
    return x if clamp is None else x.clamp(-clamp * gain / SQRT2, clamp * gain / SQRT2)


class Conv(nn.Module):
    """Convolution with an equalised learning rate; `down` halves the resolution with the FIR filter."""

    def __init__(self, n_in: int, n_out: int, k: int, *, down=False, bias=True, act=True, clamp: float | None = None):
        super().__init__()
        self.down, self.act, self.clamp = down, act, clamp
        self.weight = nn.Parameter(torch.randn(n_out, n_in, k, k))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None
        self.weight_gain = 1 / math.sqrt(n_in * k * k)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """[N, I, H, W] -> [N, O, H, W], halved with `down`; `gain` scales the output after the activation."""
        weight = self.weight * self.weight_gain
        x = downsample_conv(x, weight) if self.down else F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if self.bias is not None:
            x = x + self.bias[:, None, None].to(x.dtype)
        if self.act:
            return activate(x, gain=SQRT2 * gain, clamp=self.clamp)
        return x * gain


class DiscriminatorBlock(nn.Module):
    """Residual block: fromRGB (first block only), conv0, halving conv1; plus a 1x1 skip; both branches * sqrt(1/2)."""

    def __init__(self, n_in: int, n_out: int, *, top: bool, clamp: float | None):
        super().__init__()
        if top:
            self.fromrgb = Conv(3, n_in, 1, clamp=clamp)
        self.conv0 = Conv(n_in, n_in, 3, clamp=clamp)
        self.conv1 = Conv(n_in, n_out, 3, down=True, clamp=clamp)
        self.skip = Conv(n_in, n_out, 1, down=True, bias=False, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] -> [N, O, H/2, W/2]."""
        return self.skip(x, gain=math.sqrt(0.5)) + self.conv1(self.conv0(x), gain=math.sqrt(0.5))


class Epilogue(nn.Module):
    """The last, 4x4 block: minibatch standard deviation, convolution, two fully connected layers."""

    def __init__(self, n_in: int, *, group_size: int, clamp: float | None):
        super().__init__()
        self.group_size = group_size
        self.conv = Conv(n_in + 1, n_in, 3, clamp=clamp)
        self.fc = Linear(n_in * 16, n_in, act=True)
        self.out = Linear(n_in, 1)

    def minibatch_std(self, x: Tensor) -> Tensor:
        """Append each group's mean standard deviation as a channel: [N, C, 4, 4] -> [N, C + 1, 4, 4]."""
        n = len(x)
        groups = min(self.group_size, n)
        if n % groups:
            raise ShapeError(
                f"a batch of {n}", expected=f"a multiple of the group size {groups}", do="remove or add images"
            )
        y = full_precision(x).reshape(groups, -1, *x.shape[1:])  # [G, N/G, C, H, W]: a group holds every (N/G)-th image
        y = (y - y.mean(0)).square().mean(0)
        y = (y + 1e-8).sqrt().mean((1, 2, 3)).reshape(-1, 1, 1, 1)
        return torch.cat([x, y.repeat(groups, 1, *x.shape[2:]).to(x.dtype)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, 4, 4] -> logits [N, 1]."""
        return full_precision(self.out(self.fc(self.conv(self.minibatch_std(x)).flatten(1))))


class Discriminator(nn.Module):
    """StyleGAN2's residual discriminator; through `features` also a perceptual network (Sec. IV-G-a)."""

    def __init__(
        self,
        *,
        resolution: int,
        channels: dict[int, int],
        mbstd_group_size: int = 4,
        conv_clamp: float | None = None,
    ):
        super().__init__()
        channels = {int(res): int(c) for res, c in channels.items()}
        self.resolution, self.channels = resolution, channels
        self.config = dict(
            resolution=resolution, channels=channels, mbstd_group_size=mbstd_group_size, conv_clamp=conv_clamp
        )
        self.resolutions = block_resolutions(resolution)[:0:-1]  # [R, ..., 8]
        for res in self.resolutions:
            block = DiscriminatorBlock(channels[res], channels[res // 2], top=res == resolution, clamp=conv_clamp)
            setattr(self, f"b{res}", block)
        self.b4 = Epilogue(channels[4], group_size=mbstd_group_size, clamp=conv_clamp)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """{"b128": [N, C, 128, 128], ..., "b4": [N, C, 4, 4]}: what each block reads, for images of any size.

        A map is named by its resolution (with images of `resolution`), as in Sec. IV-G-a. b128 here is the colours in
        C channels, after one nonlinearity; each block turns its map into the next one.
        """
        first, *others = self.resolutions
        x = getattr(self, f"b{first}").fromrgb(x)
        feats = {f"b{first}": x}
        for res, below in zip(self.resolutions, [*others, 4], strict=True):
            x = feats[f"b{below}"] = getattr(self, f"b{res}")(x)
        return feats

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, R, R] -> logits [N, 1] (large: real); each depends on its batch through the minibatch statistic."""
        if x.shape[1:] != (3, self.resolution, self.resolution):
            raise ShapeError(
                f"images of shape {tuple(x.shape)}",
                expected=f"[N, 3, {self.resolution}, {self.resolution}]",
                do="resize them, or call features(), which takes any size",
            )
        return self.b4(self.features(x)["b4"])
