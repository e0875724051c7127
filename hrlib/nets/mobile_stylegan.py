"""MobileStyleGAN (Belousov 2021) in plain PyTorch: StyleGAN2 distilled into few operations, for 1024-pixel faces.

It shares StyleGAN2's W space and the interface of `stylegan2.Generator`. Three things make it small:

- 3x3 convolutions are depthwise, followed by a pointwise one; demodulation does not depend on w and is part of the
  stored weights;
- features double in size by an inverse Haar transform, which turns four channels into 2x2 pixels and has no weights;
- only the last block makes a picture: its Haar coefficients at half the size.

The published noise is one constant map a layer, nearly zero at most of them. The noise maps of Eq. (1) are added to it,
with strengths of their own (`noise_strength`, a share of each layer's spread; the published network has none, see its
card). With noise="const", whatever the strengths, this is the published network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

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
from .windows import Window, checked, within


def inverse_haar(x: Tensor) -> Tensor:
    """[N, 4 C, H, W] -> [N, C, 2H, 2W]: the first C channels are averages, the others (lh, hl, hh) of each channel."""
    n, c, h, w = x.shape
    low, (lh, hl, hh) = x[:, : c // 4], x[:, c // 4 :].reshape(n, c // 4, 3, h, w).unbind(2)
    a, b = low + lh, low - lh
    d, e = hl + hh, hl - hh
    pixels = torch.stack([a + d, a - d, b + e, b - e], dim=2) / 2  # [N, C, 4, H, W]: rows of 2x2 pixels
    return F.pixel_shuffle(pixels.reshape(n, c, h, w), 2)


class Affine(nn.Module):
    """w -> styles, [N, w_dim] -> [N, C]: plain numbers, without the gains of an equalised learning rate."""

    def __init__(self, w_dim: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, w_dim) / math.sqrt(w_dim))
        self.bias = nn.Parameter(torch.ones(n_out))

    def forward(self, w: Tensor) -> Tensor:
        """[N, w_dim] -> [N, C, 1, 1]."""
        return F.linear(w, self.weight, self.bias)[:, :, None, None]


class FullyConnected(nn.Linear):
    """Fully connected layer, leaky ReLU, gain sqrt 2."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out]."""
        return F.leaky_relu(super().forward(x), 0.2) * SQRT2


class Mapping(StyleMapping):
    """z -> w: z scaled to unit mean square, then fully connected layers."""

    def __init__(self, z_dim: int, w_dim: int, num_ws: int, num_layers: int):
        sizes = [z_dim] + [w_dim] * num_layers
        super().__init__((FullyConnected(sizes[i], w_dim) for i in range(num_layers)), z_dim, w_dim, num_ws)


class StyledConv(nn.Module):
    """Modulation, 3x3 convolution (depthwise and pointwise, or `full`), noise, bias, leaky ReLU."""

    def __init__(self, n_in: int, n_out: int, w_dim: int, resolution: int, *, full: bool = False):
        super().__init__()
        self.affine, self.gain = Affine(w_dim, n_in), 1 / math.sqrt(9 * n_in)
        if not full:
            self.depthwise = nn.Parameter(torch.randn(n_in, 1, 3, 3))
        self.weight = nn.Parameter(torch.randn(n_out, n_in, *((3, 3) if full else (1, 1))))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.register_buffer("noise_const", torch.zeros(resolution, resolution))  # the published strength is in it
        self.noise_strength = nn.Parameter(torch.zeros([]))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None, part: Window, keep: Window) -> Tensor:
        """x [N, I, h, w], w [N, w_dim], noise None, [H, W] or [N, H, W] -> [N, O, H, W].

        part: the rows and columns of this layer's canvas that are computed. keep: where they lie in the convolution's
        output, which saw zeros instead of its neighbours at the inner edges of a window.
        """
        x = x * (self.affine(w) * self.gain).to(x.dtype)
        if hasattr(self, "depthwise"):
            x = frozen.conv2d(x, self.depthwise, padding=1, groups=x.shape[1])
        x = frozen.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)[:, :, *keep]
        if noise is not None:
            noise = noise if noise.ndim == 2 else noise[:, None]  # [H, W] or [N, 1, H, W]
            noise = self.published(part) + self.noise_strength * noise
        return frozen.activate(x, None, noise, self.bias)

    def published(self, part: Window) -> Tensor:
        """The constant map on part of a canvas of any size, [H, W]: it repeats beyond its own size."""
        rows, cols = (torch.arange(p.start, p.stop, device=self.noise_const.device) for p in part)
        h, w = self.noise_const.shape
        return self.noise_const[(rows % h)[:, None], cols % w]


class Up(nn.Module):
    """Modulation and inverse Haar transform: [N, C, H, W] -> [N, C / 4, 2H, 2W]."""

    def __init__(self, n_in: int, w_dim: int):
        super().__init__()
        self.affine = Affine(w_dim, n_in)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [N, C, H, W], w [N, w_dim]."""
        return inverse_haar(x * self.affine(w).to(x.dtype))


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to the Haar coefficients of RGB, and their inverse transform."""

    def __init__(self, n_in: int, w_dim: int):
        super().__init__()
        self.affine, self.gain = Affine(w_dim, n_in), 1 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.randn(12, n_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[N, C, H, W], [N, w_dim] -> [N, 3, 2H, 2W]."""
        coefficients = F.conv2d(x * (self.affine(w) * self.gain).to(x.dtype), self.weight, self.bias)
        return inverse_haar(full_precision(coefficients))


class Block(nn.Module):
    """One resolution: up, conv0, conv1 (at 4x4 conv1 alone), and the picture after the last."""

    def __init__(self, n_in: int, n_out: int, w_dim: int, resolution: int, *, rgb: bool):
        super().__init__()
        if n_in:
            self.up = Up(n_in, w_dim)
            self.conv0 = StyledConv(n_in // 4, n_out, w_dim, resolution)
            self.conv1 = StyledConv(n_out, n_out, w_dim, resolution)
        else:
            self.const = nn.Parameter(torch.randn(n_out, resolution, resolution))
            self.conv1 = StyledConv(n_out, n_out, w_dim, resolution, full=True)
        if rgb:
            self.torgb = ToRGB(n_out, w_dim)


class Synthesis(StyleSynthesis):
    """ws -> features of every block, and (with `rgb`) an image.

    Code 0 drives b4.conv1, code 2k - 1 the up and conv0 of b(4 * 2^k), code 2k its conv1, the last code the image.
    """

    def __init__(self, w_dim: int, resolution: int, channels: dict[int, int], *, rgb: bool = True):
        super().__init__(resolution, sorted(channels))  # the last block has half the picture's size
        self.rgb = rgb
        n_in = 0
        for res in self.resolutions:
            block = Block(n_in, channels[res], w_dim, res, rgb=rgb and res == self.resolutions[-1])
            setattr(self, f"b{res}", block)
            n_in = channels[res]

    def code_blocks(self) -> list[int]:
        """[4, 8, 8, 16, 16, ..., R/2, R/2, R/2]: the last code, which makes the picture, counts to the last block."""
        return [4, *(res for res in self.resolutions[1:] for _ in range(2)), self.resolutions[-1]]

    def blocks(
        self,
        ws: Tensor,
        noise: Noise = "const",
        size: tuple[int, int] | None = None,
        window: Window | None = None,
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yield (resolution, features [N, C, h, w], image or None) block by block; with `rgb`, the last has the image.

        Args:
            ws: [N, num_ws, w_dim].
            noise: "const" (the published maps alone), "none", or {layer: map [h, w] or [N, h, w]}, which are multiplied
                by the layer's strength and added to the published ones.
            size: (H, W) of the image; the constant input is resampled to ceil(H / 2^k) x ceil(W / 2^k).
            window: compute only these (rows, columns) of the image, with exactly the values of the whole; the blocks
                yield the part that it needs.
        """
        size = size or (self.resolution, self.resolution)
        canvas, parts, code = self.canvas(size), self.parts(size, window), 0
        maps = self.resolved(noise, len(ws), size, parts)
        for res in self.resolutions:
            block, name, image = getattr(self, f"b{res}"), f"b{res}.conv", None
            part0, part1 = parts[f"{name}0"], parts[f"{name}1"]
            if res == self.resolutions[0]:
                x = resampled(block.const, canvas[res])[:, *part0].expand(len(ws), -1, -1, -1)
            else:
                above = parts[f"b{res // 2}.conv1"]
                inside = [slice(n - 2 * p.start) for n, p in zip(canvas[res], above, strict=True)]
                x = block.up(x, ws[:, code])[:, :, *inside]  # an odd canvas doubles to one row too many
                x = block.conv0(x, ws[:, code], maps.get(f"{name}0"), part0, within(part0, above, scale=2))
                code += 1
            x = block.conv1(x, ws[:, code], maps.get(f"{name}1"), part1, within(part1, part0))
            code += 1
            if self.rgb and res == self.resolutions[-1]:
                image = block.torgb(x, ws[:, code])[:, :, *within(checked(window, size), part1, scale=2)]
            yield res, x, image

    def noise_maps(self, size: tuple[int, int] | None = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """One map per conv layer, {"b4.conv1": [h, w], ...}, for an image of `size`, added to the published ones.

        Standard normal draws, made on the CPU from (seed or 0, layer).
        """
        sizes = self.layer_sizes(size)
        return {name: draw(s, seed or 0, i).to(self._like(name)) for i, (name, s) in enumerate(sizes.items())}

    def const_maps(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Zeros: nothing is added to the published maps."""
        return {name: self._like(name).new_zeros(()).expand(s) for name, s in self.layer_sizes(size).items()}

    def _like(self, name: str) -> Tensor:
        return self.get_submodule(name).noise_strength  # get_parameter refuses what functional_call puts in place

    def forward(
        self,
        ws: Tensor,
        noise: Noise = "const",
        size: tuple[int, int] | None = None,
        *,
        window: Window | None = None,
    ) -> Tensor:
        """[N, num_ws, w_dim] -> image [N, 3, H, W], nominally in [-1, 1]; arguments as for `blocks`."""
        for _, _, image in self.blocks(ws, noise, size, window):
            pass
        return image


class MobileGenerator(StyleGenerator):
    """MobileStyleGAN: `mapping` z -> ws and `synthesis` ws -> image, of any size.

    Args:
        z_dim, w_dim: latent sizes.
        resolution: native image side; the last block has half of it.
        channels: {4: C4, 8: C8, ..., resolution / 2: C}; all but the last are divisible by 4.
        mapping_layers: depth of the mapping network.
    """

    any_size = True

    def __init__(self, *, z_dim: int, w_dim: int, resolution: int, channels: dict[int, int], mapping_layers: int = 8):
        if resolution < 16 or resolution & (resolution - 1):
            raise InvalidValue(
                f"resolution {resolution}", expected="a power of two from 16", do="take the configuration from the file"
            )
        wanted = [2**k for k in range(2, resolution.bit_length() - 1)]
        channels = checked_channels(channels, wanted, do="take the configuration from the file")
        super().__init__(
            dict(z_dim=z_dim, w_dim=w_dim, resolution=resolution, channels=channels, mapping_layers=mapping_layers)
        )
        self.synthesis = self._synthesis(w_dim, resolution, channels)
        self.mapping = Mapping(z_dim, w_dim, self.num_ws, mapping_layers)

    def _synthesis(self, w_dim: int, resolution: int, channels: dict[int, int]) -> Synthesis:
        return Synthesis(w_dim, resolution, channels)

    def own_maps(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """{}: the published noise is added beside the maps of Eq. (1)."""
        return {}
