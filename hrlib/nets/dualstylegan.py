"""DualStyleGAN (Yang et al. 2022, the paper's [65]): a StyleGAN2 with a second, extrinsic style path.

The intrinsic path is the face generator, unchanged. The extrinsic path carries the style of an artistic portrait. In
the coarse layers (codes 0 to `res_index`) it adds residual blocks modulated by that style (structure); in the fine
layers it blends the codes with linear maps of that style (colour). Its parameters have the names of the official
`generator.pt` (`style.*`, `res.*`); `generator.*` is our StyleGAN2, whose names `hrlib.weights` translates. The layers
and their order follow the article and github.com/williamyang1991/DualStyleGAN.

Images are float32 [N, 3, R, R] in [-1, 1]; the generator does not clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue, ShapeError
from .stylegan2 import SQRT2, Generator, Linear, Noise, upsample_image
from .stylegan2_discriminator import Conv
from .windows import whole

STRUCTURE, COLOUR = 0.75, 1.0  # the authors' default weights of the extrinsic style's coarse and fine parts


class AdaIN(nn.Module):
    """Adaptive instance normalisation: gamma times the normalised map plus beta, both linear in the style."""

    def __init__(self, channels: int, w_dim: int):
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=False)
        self.style = nn.Linear(w_dim, 2 * channels)
        with torch.no_grad():
            self.style.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """[N, C, H, W], [N, w_dim] -> [N, C, H, W]."""
        gamma, beta = self.style(s)[:, :, None, None].chunk(2, dim=1)
        return gamma * self.norm(x) + beta


class Activation(nn.Module):
    """Bias, leaky ReLU 0.2, gain sqrt 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return F.leaky_relu(x + self.bias[:, None, None], 0.2) * SQRT2


class ModResBlock(nn.Module):
    """The modulative residual block: two AdaIN-modulated convolutions, added with a weight; initially almost zero."""

    def __init__(self, channels: int, w_dim: int):
        super().__init__()
        self.conv = nn.Sequential(Conv(channels, channels, 3, bias=False, act=False), Activation(channels))
        self.conv2 = nn.Sequential(Conv(channels, channels, 3, bias=False, act=False), Activation(channels))
        self.norm, self.norm2 = AdaIN(channels, w_dim), AdaIN(channels, w_dim)
        with torch.no_grad():
            self.conv[0].weight.mul_(0.01)
            self.conv2[0].weight.mul_(0.01)

    def forward(self, x: Tensor, s: Tensor, weight: float) -> Tensor:
        """x [N, C, H, W] + weight * residual(x, s [N, w_dim])."""
        if weight == 0:
            return x
        return x + weight * self.conv2(self.norm2(self.conv(self.norm(x, s)), s))


class PixelNorm(nn.Module):
    """Each row divided by its root mean square."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, K] -> [N, K]."""
        return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class DualStyleGAN(nn.Module):
    """The face generator `generator` and the extrinsic path `style`, `res`.

    Args:
        generator: configuration of `nets.stylegan2.Generator`.
        res_index: the last code of the structure part, an even number (6: up to 32x32).
    """

    def __init__(self, *, generator: dict, res_index: int = 6):
        super().__init__()
        self.generator = Generator(**generator)
        G, w_dim = self.generator, self.generator.w_dim
        if res_index % 2 or not 0 <= res_index <= G.num_ws - 2:
            raise InvalidValue(
                f"res_index {res_index}",
                expected=f"an even number from 0 to {G.num_ws - 2}",
                do="use 6, as the authors do",
            )
        self.config = {"generator": G.config, "res_index": res_index}
        self.res_index, self.num_ws, self.w_dim, self.z_dim = res_index, G.num_ws, w_dim, G.z_dim
        self.resolution = G.resolution
        wide = lambda: Linear(w_dim, w_dim, lr_mul=0.01, act=True)
        self.style = nn.Sequential(PixelNorm(), wide(), wide())
        layers: list[nn.Module] = []
        for i in range(self.num_ws):
            edge = 4 if i == 0 else 8 << (i - 1) // 2  # resolution of the layer that code i drives
            layers.append(ModResBlock(G.channels[edge], w_dim) if i <= res_index else _near_identity(w_dim))
        self.res = nn.ModuleList(layers)

    def weights(self, structure: float = STRUCTURE, colour: float = COLOUR) -> list[float]:
        """One weight per code: `structure` for the residual blocks, `colour` for the codes after them."""
        return [structure if i <= self.res_index else colour for i in range(self.num_ws)]

    def extrinsic(self, zplus: Tensor) -> Tensor:
        """Artistic codes in Z+ (refined_exstyle_code.npy) [N, num_ws, z_dim] -> W+, through the mapping network."""
        return self.generator.mapping.w(zplus.flatten(0, 1)).unflatten(0, zplus.shape[:2])

    def blocks(
        self, ws: Tensor, exstyle: Tensor, weights: Sequence[float] | None = None, noise: Noise = "const"
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (resolution, features [N, C, h, w], image so far) block by block; arguments as for `synthesis`."""
        shape = (len(ws), self.num_ws, self.w_dim)
        ex = exstyle if exstyle.ndim == 3 else exstyle[:, None].expand(-1, self.num_ws, -1)
        share = self.weights(1.0, 1.0) if weights is None else list(weights)
        if ws.shape != shape or ex.shape != shape or len(share) != self.num_ws:
            raise ShapeError(
                f"ws {tuple(ws.shape)}, exstyle {tuple(exstyle.shape)} and {len(share)} weights",
                expected=f"{shape} for both (or exstyle [N, {self.w_dim}]) and {self.num_ws} weights",
                do="take ws from generator.mapping, exstyle from extrinsic and weights from weights()",
            )
        s = self.style(ex.flatten(0, 1)).unflatten(0, shape[:2])  # T_c, which modulates the structure

        def code(i: int) -> Tensor:  # colour: blended with a linear map of the extrinsic style
            return ws[:, i] if i <= self.res_index else share[i] * self.res[i](ex[:, i]) + (1 - share[i]) * ws[:, i]

        def structured(x: Tensor, i: int) -> Tensor:
            return self.res[i](x, s[:, i], share[i]) if i <= self.res_index else x

        synthesis, x, img, i = self.generator.synthesis, None, None, 0
        maps, canvas = synthesis.resolved(noise, len(ws)), synthesis.canvas(None)
        for edge in synthesis.resolutions:
            block = getattr(synthesis, f"b{edge}")
            if edge == 4:
                x = block.const.expand(len(ws), -1, -1, -1)
            for name in ("conv0", "conv1")[edge == 4 :]:
                x = getattr(block, name)(x, code(i), maps.get(f"b{edge}.{name}"), whole(canvas[edge]))
                x, i = structured(x, i), i + 1
            rgb = block.torgb(x, code(i))
            img = rgb if img is None else upsample_image(img) + rgb
            yield edge, x, img

    def synthesis(
        self, ws: Tensor, exstyle: Tensor, weights: Sequence[float] | None = None, noise: Noise = "const"
    ) -> Tensor:
        """Intrinsic codes of a face and extrinsic codes of an artistic portrait -> picture [N, 3, R, R].

        Args:
            ws: [N, num_ws, w_dim], the face, in the W+ of `generator`.
            exstyle: [N, num_ws, w_dim] or [N, w_dim], the portrait, in the same space.
            weights: one per code, from 0 (the face's own style) to 1 (the portrait's style only; the default).
            noise: as for `Generator.synthesis`.
        """
        for _, _, img in self.blocks(ws, exstyle, weights, noise):
            pass
        return img

    def stylise(self, ws: Tensor, exstyle: Tensor, *, structure: float = STRUCTURE, colour: float = COLOUR) -> Tensor:
        """`synthesis` with one weight for the structure and one for the colours, and the constant noise maps."""
        return self.synthesis(ws, exstyle, self.weights(structure, colour))


def _near_identity(dim: int) -> Linear:
    """A linear layer initialised close to the identity."""
    layer = Linear(dim, dim)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(dim) * math.sqrt(dim) + 0.01 * torch.randn(dim, dim))
    return layer
