"""StyleGAN2's generator (Karras et al. 2020, the paper's [3]) in plain PyTorch, on any device.

Parameter names and numerics are those of NVlabs' stylegan2-ada-pytorch, so its checkpoints load unchanged once
converted. One thing differs, for speed, with equal results (the parity tests check it): modulation multiplies the
activations and demodulation the result, so one shared convolution serves a whole batch.

Images are float32 [N, 3, H, W], nominally in [-1, 1]: the generator does not clip.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue
from . import frozen
from .style_based import (
    SQRT2,
    Noise,
    StyleGenerator,
    StyleMapping,
    StyleSynthesis,
    checked_channels,
    draw,
    full_precision,
    resampled,
)
from .windows import Window, within

FIR = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64.0  # sums to one


def block_resolutions(resolution: int) -> list[int]:
    """[4, 8, ..., resolution]; `InvalidValue` unless resolution is a power of two from 16 to 1024."""
    if resolution not in (16, 32, 64, 128, 256, 512, 1024):
        raise InvalidValue(
            f"resolution {resolution}", expected="a power of two from 16 to 1024", do="use the nearest power of two"
        )
    return [2**k for k in range(2, int(math.log2(resolution)) + 1)]


def channel_plan(resolution: int, *, base: int = 32768, most: int = 512) -> dict[int, int]:
    """Channels per block, min(base // res, most), as in NVlabs' code; defaults as in its 1024-pixel models."""
    return {res: min(base // res, most) for res in block_resolutions(resolution)}


def upsample_image(x: Tensor) -> Tensor:
    """FIR up-sampling by two, [N, C, H, W] -> [N, C, 2H, 2W].

    Away from the border, the filter [1, 3, 3, 1] is bilinear interpolation; outside it sees zeros, hence the padding.
    """
    return F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2, mode="bilinear")[:, :, 2:-2, 2:-2]


def upsample_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Stride-2 transposed 3x3 convolution, then the FIR filter with gain 4: [N, I, H, W] -> [N, O, 2H, 2W]."""
    x = frozen.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # [N, O, 2H + 1, 2W + 1]
    return frozen.conv2d(x, (FIR * 4).to(x).expand(x.shape[1], 1, 4, 4), padding=1, groups=x.shape[1])


class Linear(nn.Module):
    """Fully connected layer with an equalised learning rate: weight * lr_mul / sqrt(in), bias * lr_mul."""

    def __init__(self, n_in: int, n_out: int, *, lr_mul: float = 1.0, bias_init: float = 0.0, act: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((n_out,), float(bias_init)))
        self.gain, self.lr_mul, self.act = lr_mul / math.sqrt(n_in), lr_mul, act

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if not self.act:
            return F.linear(x, self.weight * self.gain, self.bias * self.lr_mul)
        # lrelu(a) * sqrt 2 = lrelu(a * sqrt 2): multiplying the parameters saves a pass over x.
        return F.leaky_relu(F.linear(x, self.weight * (self.gain * SQRT2), self.bias * (self.lr_mul * SQRT2)), 0.2)


class Mapping(StyleMapping):
    """z -> w: z scaled to unit mean square, then fully connected layers with lr_mul 0.01."""

    def __init__(self, z_dim: int, w_dim: int, num_ws: int, num_layers: int = 8):
        sizes = [z_dim] + [w_dim] * num_layers
        layers = (Linear(sizes[i], w_dim, lr_mul=0.01, act=True) for i in range(num_layers))
        super().__init__(layers, z_dim, w_dim, num_ws)


class ModulatedConv(nn.Module):
    """Style-modulated 3x3 convolution with noise, bias and leaky ReLU; `up` doubles the resolution."""

    def __init__(self, n_in: int, n_out: int, w_dim: int, resolution: int, *, up: bool, clamp: float | None):
        super().__init__()
        self.up, self.clamp = up, clamp
        self.affine = Linear(w_dim, n_in, bias_init=1)
        self.weight = nn.Parameter(torch.randn(n_out, n_in, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None, keep: Window) -> Tensor:
        """x [N, I, h, w], w [N, w_dim], noise None, [H, W] or [N, H, W] -> [N, O, H, W].

        keep: the H rows and W columns of the convolution's output to keep. Doubling gives an odd canvas one row too
        many, and at the inner edges of a window the convolution saw zeros instead of its neighbours.
        """
        style = self.affine(w)  # [N, I]
        # Demodulation divides by the norm of each output channel's modulated kernel.
        norm2 = style.square() @ self.weight.square().sum((2, 3)).t()  # [N, O]
        demod = (norm2 + 1e-8).rsqrt()
        x = x * style[:, :, None, None].to(x.dtype)
        x = upsample_conv(x, self.weight) if self.up else frozen.conv2d(x, self.weight, padding=1)
        x = x[:, :, keep[0], keep[1]]
        # As in Linear, the gain sqrt 2 multiplies the small factors.
        if noise is not None:
            noise = (noise if noise.ndim == 2 else noise[:, None]) * (self.noise_strength * SQRT2)
        x = frozen.activate(x, demod * SQRT2, noise, self.bias * SQRT2)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToRGB(nn.Module):
    """1x1 convolution to RGB: modulated, not demodulated; the gain 1/sqrt(in) multiplies the styles."""

    def __init__(self, n_in: int, w_dim: int, *, clamp: float | None):
        super().__init__()
        self.clamp, self.gain = clamp, 1 / math.sqrt(n_in)
        self.affine = Linear(w_dim, n_in, bias_init=1)
        self.weight = nn.Parameter(torch.randn(3, n_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[N, I, H, W], [N, w_dim] -> [N, 3, H, W]."""
        style = self.affine(w) * self.gain
        y = F.conv2d(x * style[:, :, None, None].to(x.dtype), self.weight)
        y = full_precision(y) + self.bias[:, None, None]
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """One resolution of the synthesis network: up-sampling conv0 (not at 4x4), conv1, and toRGB with `rgb`."""

    def __init__(self, n_in: int, n_out: int, w_dim: int, resolution: int, *, rgb: bool, clamp: float | None):
        super().__init__()
        if n_in == 0:
            self.const = nn.Parameter(torch.randn(n_out, resolution, resolution))
        else:
            self.conv0 = ModulatedConv(n_in, n_out, w_dim, resolution, up=True, clamp=clamp)
        self.conv1 = ModulatedConv(n_out, n_out, w_dim, resolution, up=False, clamp=clamp)
        if rgb:
            self.torgb = ToRGB(n_out, w_dim, clamp=clamp)


class Synthesis(StyleSynthesis):
    """ws -> features of every block, and (with `rgb`) an image by skip connections.

    Code i modulates layer i of [b4.conv1, b8.conv0, b8.conv1, b16.conv0, ...]; a block's toRGB shares the code of the
    next block's conv0. num_ws = 2 log2(R) - 2; the last code is used by the last toRGB only.
    """

    def __init__(
        self,
        w_dim: int,
        resolution: int,
        channels: dict[int, int],
        *,
        rgb: bool = True,
        conv_clamp: float | None = None,
    ):
        super().__init__(resolution, block_resolutions(resolution))
        self.rgb = rgb
        n_in = 0
        for res in self.resolutions:
            block = SynthesisBlock(n_in, channels[res], w_dim, res, rgb=rgb, clamp=conv_clamp)
            setattr(self, f"b{res}", block)
            n_in = channels[res]

    def blocks(
        self,
        ws: Tensor,
        noise: Noise = "const",
        size: tuple[int, int] | None = None,
        window: Window | None = None,
    ):
        """Yield (resolution, features [N, C, h, w], image or None) block by block.

        Args:
            ws: [N, num_ws, w_dim].
            noise: "const" (the checkpoint's maps), "none", or {layer: map [h, w] or [N, h, w]}.
            size: (H, W) of the last block; the constant input is resampled to ceil(H / 2^k) x ceil(W / 2^k).
            window: compute only these (rows, columns) of the last block, with exactly the values of the whole; earlier
                blocks yield the part that it needs (`windows.needed`). There is no image then.
        """
        canvas, x, img, code = self.canvas(size), None, None, 0
        parts = self.parts(size, window)
        maps = self.resolved(noise, len(ws), size, parts)
        for res in self.resolutions:
            block, name = getattr(self, f"b{res}"), f"b{res}.conv"
            if res == 4:
                x = resampled(block.const, canvas[4])[:, *parts[f"{name}0"]].expand(len(ws), -1, -1, -1)
            else:
                keep = within(parts[f"{name}0"], parts[f"b{res // 2}.conv1"], scale=2)
                x = block.conv0(x, ws[:, code], maps.get(f"{name}0"), keep)
                code += 1
            keep = within(parts[f"{name}1"], parts[f"{name}0"])
            x = block.conv1(x, ws[:, code], maps.get(f"{name}1"), keep)
            code += 1
            if self.rgb and window is None:
                if img is not None:
                    img = upsample_image(img)[:, :, : canvas[res][0], : canvas[res][1]]
                rgb = block.torgb(x, ws[:, code])
                img = rgb if img is None else img + rgb
            yield res, x, img

    def noise_maps(self, size: tuple[int, int] | None = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """One map per conv layer, {"b4.conv1": [h, w], ...}, for an image of `size`.

        At the native size, the checkpoint's constant maps; at any other size, or with a seed, standard normal draws,
        made on the CPU from (seed or 0, layer).
        """
        maps = {}
        for i, (name, shape) in enumerate(self.layer_sizes(size).items()):
            const = self.get_buffer(f"{name}.noise_const")
            own = seed is None and tuple(const.shape) == shape
            maps[name] = const if own else draw(shape, seed or 0, i).to(const)
        return maps

    def const_maps(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """The same as `noise_maps`."""
        return self.noise_maps(size)


class Generator(StyleGenerator):
    """StyleGAN2 generator: `mapping` z -> ws and `synthesis` ws -> image.

    Args:
        z_dim, w_dim: latent sizes (512 in the paper).
        resolution: native image side, a power of two from 16 to 1024.
        channels: {4: C4, 8: C8, ...}, see `channel_plan`.
        mapping_layers: depth of the mapping network.
        conv_clamp: bound on the activations (256 in NVlabs' mixed-precision models), None for no bound.
    """

    def __init__(
        self,
        *,
        z_dim: int,
        w_dim: int,
        resolution: int,
        channels: dict[int, int],
        mapping_layers: int = 8,
        conv_clamp: float | None = None,
    ):
        do = "make it with channel_plan(resolution)"
        channels = checked_channels(channels, block_resolutions(resolution), do=do)
        super().__init__(
            dict(
                z_dim=z_dim,
                w_dim=w_dim,
                resolution=resolution,
                channels=channels,
                mapping_layers=mapping_layers,
                conv_clamp=conv_clamp,
            )
        )
        self.synthesis = self._synthesis(w_dim, resolution, channels, conv_clamp)
        self.mapping = Mapping(z_dim, w_dim, self.num_ws, mapping_layers)

    def _synthesis(self, w_dim: int, resolution: int, channels: dict[int, int], conv_clamp: float | None) -> Synthesis:
        return Synthesis(w_dim, resolution, channels, conv_clamp=conv_clamp)
