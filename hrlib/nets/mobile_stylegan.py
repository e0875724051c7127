"""MobileStyleGAN (Belousov 2021) in plain PyTorch: StyleGAN2 distilled into few operations, for 1024-pixel faces.

It shares StyleGAN2's W space and the interface of `stylegan2.Generator`. Three things make it small:

- 3x3 convolutions are depthwise, followed by a pointwise one; demodulation does not depend on w and is part of the
  stored weights;
- features double in size by an inverse Haar transform, which turns four channels into 2x2 pixels and has no weights;
- only the last block makes a picture: its Haar coefficients at half the size.

The published noise is one constant map a layer, nearly zero at most of them. The noise maps of Eq. (1) are added to it,
with strengths of their own (`noise_strength`). At strength 0, as it is loaded, this is the published network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ShapeError, UnknownName, nearest
from .stylegan2 import SQRT2, Noise


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


class Mapping(nn.Module):
    """z -> w: the second moment of z is normalised, then fully connected layers with leaky ReLU and gain sqrt 2."""

    def __init__(self, z_dim: int, w_dim: int, num_ws: int, num_layers: int):
        super().__init__()
        self.z_dim, self.num_ws, self.num_layers = z_dim, num_ws, num_layers
        for i in range(num_layers):
            setattr(self, f"fc{i}", nn.Linear(z_dim if i == 0 else w_dim, w_dim))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def w(self, z: Tensor) -> Tensor:
        """[N, z_dim] -> [N, w_dim], not truncated."""
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ShapeError(
                f"z of shape {tuple(z.shape)}", expected=f"[N, {self.z_dim}]", do="draw z with torch.randn(N, G.z_dim)"
            )
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for i in range(self.num_layers):
            x = F.leaky_relu(getattr(self, f"fc{i}")(x), 0.2) * SQRT2
        return x

    def forward(self, z: Tensor, truncation_psi: float = 1.0) -> Tensor:
        """[N, z_dim] -> ws [N, num_ws, w_dim]."""
        w = self.w_avg.lerp(self.w(z), truncation_psi) if truncation_psi != 1 else self.w(z)
        return w.unsqueeze(1).repeat(1, self.num_ws, 1)


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

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """x [N, I, H, W], w [N, w_dim], noise None or [H, W] or [N, 1, H, W] -> [N, O, H, W]."""
        x = x * (self.affine(w) * self.gain).to(x.dtype)
        if hasattr(self, "depthwise"):
            x = F.conv2d(x, self.depthwise, padding=1, groups=x.shape[1])
        x = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)
        if noise is not None:
            x = x + noise.to(x.dtype)
        return F.leaky_relu(x + self.bias[:, None, None].to(x.dtype), 0.2)


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
        return inverse_haar(F.conv2d(x * (self.affine(w) * self.gain).to(x.dtype), self.weight, self.bias))


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


class Synthesis(nn.Module):
    """ws -> image. Code 0 drives b4.conv1, code 2k - 1 the up and conv0 of b(4 * 2^k), code 2k its conv1, the last the
    picture."""

    def __init__(self, w_dim: int, resolution: int, channels: dict[int, int]):
        super().__init__()
        self.resolution, self.resolutions = resolution, sorted(channels)  # the last block has half the picture's size
        self.num_ws = 2 * len(self.resolutions)
        n_in = 0
        for res in self.resolutions:
            block = Block(n_in, channels[res], w_dim, res, rgb=res == self.resolutions[-1])
            setattr(self, f"b{res}", block)
            n_in = channels[res]

    def conv_names(self) -> list[str]:
        """["b4.conv1", "b8.conv0", "b8.conv1", ...]: the layers that take noise, in the order of their codes."""
        return [f"b{r}.{c}" for r in self.resolutions for c in ("conv0", "conv1") if (r, c) != (4, "conv0")]

    def canvas(self, size: tuple[int, int] | None) -> dict[int, tuple[int, int]]:
        """Feature size per block for an image of `size` (default: the native square): ceil(H / 2^k) x ceil(W / 2^k)."""
        height, width = size or (self.resolution, self.resolution)
        return {r: (-(-height * r // self.resolution), -(-width * r // self.resolution)) for r in self.resolutions}

    def blocks(
        self, ws: Tensor, noise: Noise = "const", size: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yield (resolution, features [N, C, h, w], image or None) block by block.

        ws: [N, num_ws, w_dim]. noise: "const" (the published maps alone), "none", or {layer: map [h, w] or [N, h, w]},
        which are added to the published ones. size: (H, W) of the image; the constant input is resampled.
        """
        canvas, maps, code = self.canvas(size), self.resolved(noise, len(ws), size), 0
        for res in self.resolutions:
            block, (height, width) = getattr(self, f"b{res}"), canvas[res]
            if res == self.resolutions[0]:
                x = block.const.unsqueeze(0)
                if tuple(x.shape[2:]) != (height, width):
                    x = F.interpolate(x, size=(height, width), mode="bilinear")
                x = x.expand(len(ws), -1, -1, -1)
            else:
                x = block.up(x, ws[:, code])[:, :, :height, :width]  # an odd canvas doubles to one row too many
                x = block.conv0(x, ws[:, code], maps.get(f"b{res}.conv0"))
                code += 1
            x = block.conv1(x, ws[:, code], maps.get(f"b{res}.conv1"))
            code += 1
            image = None
            if res == self.resolutions[-1]:
                height, width = size or (self.resolution, self.resolution)
                image = block.torgb(x, ws[:, code])[:, :, :height, :width]
            yield res, x, image

    def resolved(self, noise: Noise, batch: int, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """What each layer adds to its features, [h, w] or [N, 1, h, w]: published noise and strength times the maps."""
        if isinstance(noise, str):
            if noise not in ("const", "none"):
                raise UnknownName(
                    f"noise={noise!r}",
                    expected='"const", "none" or a dict of noise maps',
                    do=nearest(noise, ["const", "none"]) or "make maps with G.noise_maps()",
                )
            return {} if noise == "none" else self._published(size)
        names, canvas, published = self.conv_names(), self.canvas(size), self._published(size)
        if set(noise) != set(names):
            odd = sorted(set(noise) ^ set(names))
            raise UnknownName(
                f"noise maps with missing or unknown layers {odd}",
                expected=f"exactly {names}",
                do="start from G.noise_maps()",
            )
        added = {}
        for name in names:
            full, given = canvas[int(name.split(".")[0][1:])], noise[name]
            if tuple(given.shape) not in (full, (batch, *full)):
                raise ShapeError(
                    f"noise map {name} of shape {tuple(given.shape)}",
                    expected=f"{full} or {(batch, *full)}",
                    do="make the maps with G.noise_maps(size) for the size you synthesise",
                )
            given = given if given.ndim == 2 else given[:, None]
            added[name] = published[name] + self.get_parameter(f"{name}.noise_strength") * given
        return added

    def _published(self, size: tuple[int, int] | None) -> dict[str, Tensor]:
        """The published maps; at another size, normal draws with their standard deviations."""
        canvas, maps = self.canvas(size), {}
        for i, name in enumerate(self.conv_names()):
            const, shape = self.get_buffer(f"{name}.noise_const"), canvas[int(name.split(".")[0][1:])]
            maps[name] = const if tuple(const.shape) == shape else _draw(shape, i, like=const) * const.std()
        return maps

    def noise_maps(self, size: tuple[int, int] | None = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """One map per conv layer, {"b4.conv1": [h, w], ...}, for an image of `size`, added to the published ones.

        Unit normal draws, made on the CPU from (seed or 0, layer).
        """
        canvas, maps = self.canvas(size), {}
        for i, name in enumerate(self.conv_names()):
            shape, const = canvas[int(name.split(".")[0][1:])], self.get_buffer(f"{name}.noise_const")
            maps[name] = _draw(shape, 1_000_003 * (seed or 0) + i, like=const)
        return maps

    def forward(self, ws: Tensor, noise: Noise = "const", size: tuple[int, int] | None = None) -> Tensor:
        """[N, num_ws, w_dim] -> image [N, 3, H, W], nominally in [-1, 1]."""
        for _, _, image in self.blocks(ws, noise, size):
            pass
        return image


def _draw(shape: tuple[int, int], seed: int, *, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like)


class MobileGenerator(nn.Module):
    """MobileStyleGAN: `mapping` z -> ws and `synthesis` ws -> image, of any size.

    Args:
        z_dim, w_dim: latent sizes.
        resolution: native image side; the last block has half of it.
        channels: {4: C4, 8: C8, ..., resolution / 2: C}; all but the last are divisible by 4.
        mapping_layers: depth of the mapping network.
    """

    any_size = True

    def __init__(self, *, z_dim: int, w_dim: int, resolution: int, channels: dict[int, int], mapping_layers: int = 8):
        super().__init__()
        channels = {int(res): int(c) for res, c in channels.items()}  # JSON keys are strings
        wanted = [2**k for k in range(2, resolution.bit_length() - 1)]
        if sorted(channels) != wanted or 2 * wanted[-1] != resolution:
            raise ShapeError(
                f"channels for {sorted(channels)} of a {resolution}-pixel network",
                expected="one entry for each of 4, 8, ..., resolution / 2",
                do="take the configuration from the file",
            )
        self.z_dim, self.w_dim, self.resolution, self.channels = z_dim, w_dim, resolution, channels
        self.config = dict(
            z_dim=z_dim, w_dim=w_dim, resolution=resolution, channels=channels, mapping_layers=mapping_layers
        )
        self.synthesis = Synthesis(w_dim, resolution, channels)
        self.num_ws = self.synthesis.num_ws
        self.mapping = Mapping(z_dim, w_dim, self.num_ws, mapping_layers)

    @property
    def w_avg(self) -> Tensor:
        """[w_dim]: the mean of w."""
        return self.mapping.w_avg

    def noise_maps(self, size: tuple[int, int] | None = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """See `Synthesis.noise_maps`."""
        return self.synthesis.noise_maps(size, seed=seed)

    def forward(self, z: Tensor, truncation_psi: float = 1.0, noise: Noise = "const") -> Tensor:
        """[N, z_dim] -> image [N, 3, R, R]."""
        return self.synthesis(self.mapping(z, truncation_psi), noise=noise)
