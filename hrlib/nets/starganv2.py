"""StarGAN v2 (Choi et al. 2020, the paper's [63]): restyles a picture with a style code taken from a reference picture.

Parameter names are those of the official files `*_nets_ema.ckpt`, whose three networks are the modules `generator`,
`mapping_network` and `style_encoder`. The layers and their order follow the article's appendix and
github.com/clovaai/stargan-v2. The widths can be chosen, so that a small network trains on a CPU.

Images are float32 [N, 3, R, R] in [-1, 1]; the generator does not clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue, ShapeError, UnknownName, nearest

HALF = math.sqrt(0.5)  # scales the sum of shortcut and residual branch, which keeps the variance
MASKED = (32, 64, 128)  # resolutions at which masked, high-passed content features are added


def plan(img_size: int, max_conv_dim: int, width: int | None) -> list[int]:
    """Channels from the full resolution down, doubling from `width` (official: 2^14 / img_size) to `max_conv_dim`."""
    if img_size < 32 or img_size & (img_size - 1):
        raise InvalidValue(
            f"img_size {img_size}", expected="a power of two, 32 or more", do="use the nearest power of two"
        )
    first = 2**14 // img_size if width is None else width
    return [first, *(min(first * 2**k, max_conv_dim) for k in range(1, int(math.log2(img_size)) - 1))]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, each after a leaky ReLU; `down` halves the resolution between them."""

    def __init__(self, n_in: int, n_out: int, *, normalise: bool = False, down: bool = False):
        super().__init__()
        self.normalise, self.down = normalise, down
        self.conv1 = nn.Conv2d(n_in, n_in, 3, padding=1)
        self.conv2 = nn.Conv2d(n_in, n_out, 3, padding=1)
        if normalise:
            self.norm1 = nn.InstanceNorm2d(n_in, affine=True)
            self.norm2 = nn.InstanceNorm2d(n_in, affine=True)
        if n_in != n_out:
            self.conv1x1 = nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] -> [N, O, H, W], or [N, O, H/2, W/2] with `down`."""
        half = (lambda y: F.avg_pool2d(y, 2)) if self.down else (lambda y: y)
        norm1, norm2 = (self.norm1, self.norm2) if self.normalise else (nn.Identity(), nn.Identity())
        short = half(self.conv1x1(x) if hasattr(self, "conv1x1") else x)
        y = half(self.conv1(F.leaky_relu(norm1(x), 0.2)))
        return (short + self.conv2(F.leaky_relu(norm2(y), 0.2))) * HALF


class AdaIN(nn.Module):
    """Adaptive instance normalisation: (1 + gamma) times the normalised map plus beta, both linear in the style."""

    def __init__(self, style_dim: int, channels: int):
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=False)
        self.fc = nn.Linear(style_dim, 2 * channels)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """[N, C, H, W], [N, style_dim] -> [N, C, H, W]."""
        gamma, beta = self.fc(s)[:, :, None, None].chunk(2, dim=1)
        return (1 + gamma) * self.norm(x) + beta


class StyledBlock(nn.Module):
    """The decoder's residual block: AdaIN before each convolution; `up` doubles the resolution (nearest neighbour)."""

    def __init__(self, n_in: int, n_out: int, style_dim: int, *, up: bool, shortcut: bool):
        super().__init__()
        self.up, self.shortcut = up, shortcut
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.norm1 = AdaIN(style_dim, n_in)
        self.norm2 = AdaIN(style_dim, n_out)
        if n_in != n_out:
            self.conv1x1 = nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """[N, I, H, W], [N, style_dim] -> [N, O, H, W], or [N, O, 2H, 2W] with `up`."""
        double = (lambda y: F.interpolate(y, scale_factor=2, mode="nearest")) if self.up else (lambda y: y)
        y = self.conv1(double(F.leaky_relu(self.norm1(x, s), 0.2)))
        y = self.conv2(F.leaky_relu(self.norm2(y, s), 0.2))
        if not self.shortcut:
            return y
        x = double(x)
        return (y + (self.conv1x1(x) if hasattr(self, "conv1x1") else x)) * HALF


class HighPass(nn.Module):
    """A Laplacian with gain 1 / w_hpf, which passes masked detail of the content to the decoder."""

    def __init__(self, w_hpf: float):
        super().__init__()
        kernel = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, 8.0, -1.0], [-1.0, -1.0, -1.0]])
        self.register_buffer("filter", kernel / w_hpf)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return F.conv2d(x, self.filter.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])


class Translator(nn.Module):
    """The image-to-image network: an encoder to 16x16 (8x8 with w_hpf > 0), and a decoder modulated by the style."""

    def __init__(self, channels: Sequence[int], style_dim: int, w_hpf: float):
        super().__init__()
        halvings = len(channels) - 3 + (w_hpf > 0)  # len(channels) - 1 halvings would reach 4x4
        halvings = min(halvings, len(channels) - 1)
        self.from_rgb = nn.Conv2d(3, channels[0], 3, padding=1)
        encode, decode = [], []
        for n_in, n_out in pairwise(channels[: halvings + 1]):
            encode.append(ResidualBlock(n_in, n_out, normalise=True, down=True))
            decode.insert(0, StyledBlock(n_out, n_in, style_dim, up=True, shortcut=w_hpf == 0))
        middle = channels[halvings]
        for _ in range(2):
            encode.append(ResidualBlock(middle, middle, normalise=True))
            decode.insert(0, StyledBlock(middle, middle, style_dim, up=False, shortcut=w_hpf == 0))
        self.encode, self.decode = nn.ModuleList(encode), nn.ModuleList(decode)
        self.to_rgb = nn.Sequential(
            nn.InstanceNorm2d(channels[0], affine=True), nn.LeakyReLU(0.2), nn.Conv2d(channels[0], 3, 1)
        )
        if w_hpf > 0:
            self.hpf = HighPass(w_hpf)

    def forward(self, x: Tensor, s: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """x [N, 3, R, R], s [N, style_dim], masks None or two of [N, 1, h, w] (32; 64 and 128 px) -> [N, 3, R, R]."""
        x, kept = self.from_rgb(x), {}
        for block in self.encode:
            if masks is not None and x.shape[2] in MASKED:
                kept[x.shape[2]] = x
            x = block(x)
        for block in self.decode:
            x = block(x, s)
            if masks is not None and (edge := x.shape[2]) in kept:
                mask = F.interpolate(masks[0 if edge == 32 else 1], size=(edge, edge), mode="bilinear")
                x = x + self.hpf(mask * kept[edge])
        return self.to_rgb(x)


def _of_domain(layers: nn.ModuleList, h: Tensor, y: Tensor) -> Tensor:
    """Each row of h through the layers of its own domain: [N, K], [N] -> [N, style_dim]."""
    out = torch.stack([layer(h) for layer in layers], dim=1)  # [N, domains, style_dim]
    return out[torch.arange(len(y), device=y.device), y]


class MappingNetwork(nn.Module):
    """Latent z and domain y -> style: four shared layers, then four layers per domain."""

    def __init__(self, latent_dim: int, style_dim: int, num_domains: int, hidden: int):
        super().__init__()
        layers = lambda *sizes: [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())]
        self.shared = nn.Sequential(*layers(latent_dim, hidden, hidden, hidden, hidden))
        own = lambda: nn.Sequential(*layers(hidden, hidden, hidden, hidden), nn.Linear(hidden, style_dim))
        self.unshared = nn.ModuleList(own() for _ in range(num_domains))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """[N, latent_dim], [N] int64 -> [N, style_dim]."""
        return _of_domain(self.unshared, self.shared(z), y)


def _pyramid(channels: Sequence[int]) -> list[nn.Module]:
    """The layers of both style encoder and discriminator: down to 4x4, then a 4x4 convolution, [N, C, 1, 1]."""
    downs = [ResidualBlock(i, o, down=True) for i, o in pairwise(channels)]
    last = channels[-1]
    return [
        nn.Conv2d(3, channels[0], 3, padding=1),
        *downs,
        nn.LeakyReLU(0.2),
        nn.Conv2d(last, last, 4),
        nn.LeakyReLU(0.2),
    ]


class StyleEncoder(nn.Module):
    """Picture and its domain -> style: a pyramid to one vector, then one linear layer per domain."""

    def __init__(self, channels: Sequence[int], style_dim: int, num_domains: int):
        super().__init__()
        self.shared = nn.Sequential(*_pyramid(channels))
        self.unshared = nn.ModuleList(nn.Linear(channels[-1], style_dim) for _ in range(num_domains))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """[N, 3, R, R], [N] int64 -> [N, style_dim]."""
        return _of_domain(self.unshared, self.shared(x).flatten(1), y)


class Discriminator(nn.Module):
    """Picture and domain -> logit (large: real and of that domain). Only training needs it."""

    def __init__(self, channels: Sequence[int], num_domains: int):
        super().__init__()
        self.main = nn.Sequential(*_pyramid(channels), nn.Conv2d(channels[-1], num_domains, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """[N, 3, R, R], [N] int64 -> [N]."""
        return self.main(x).flatten(1).gather(1, y[:, None])[:, 0]


class StarGANv2(nn.Module):
    """The three networks that stylise: `generator`, `mapping_network`, `style_encoder`.

    Args:
        img_size: side of the pictures (256 in the official models).
        style_dim, latent_dim: lengths of a style (64) and of z (16).
        num_domains: 2 in the official CelebA-HQ model, 3 in the AFHQ model.
        max_conv_dim: largest number of channels of a layer (512).
        w_hpf: 1 in the official CelebA-HQ model, whose decoder has no shortcuts and accepts masks; 0 otherwise.
        hidden: width of the mapping network (512).
        width: channels at full resolution; None for 2^14 / img_size, as in the official models.
        domains: their names; the official files have none, so there they are "0", "1", ...
    """

    def __init__(
        self,
        *,
        img_size: int = 256,
        style_dim: int = 64,
        latent_dim: int = 16,
        num_domains: int = 2,
        max_conv_dim: int = 512,
        w_hpf: float = 1,
        hidden: int = 512,
        width: int | None = None,
        domains: Sequence[str] = (),
    ):
        super().__init__()
        self.config = dict(
            img_size=img_size,
            style_dim=style_dim,
            latent_dim=latent_dim,
            num_domains=num_domains,
            max_conv_dim=max_conv_dim,
            w_hpf=w_hpf,
            hidden=hidden,
            width=width,
            domains=list(domains),
        )
        self.resolution, self.latent_dim, self.domains = (
            img_size,
            latent_dim,
            tuple(domains) or tuple(map(str, range(num_domains))),
        )
        self.channels = plan(img_size, max_conv_dim, width)
        self.generator = Translator(self.channels, style_dim, w_hpf)
        self.mapping_network = MappingNetwork(latent_dim, style_dim, num_domains, hidden)
        self.style_encoder = StyleEncoder(self.channels, style_dim, num_domains)

    def stylise(self, x: Tensor, reference: Tensor, domain: str | int, masks: Sequence[Tensor] | None = None) -> Tensor:
        """The contents x in the style of the reference pictures, which belong to `domain` (reference-guided synthesis).

        x, reference: [N, 3, R, R] in [-1, 1] each. domain: a name or an index of `domains`. masks: see `Translator`.

        Returns:
            [N, 3, R, R].

        Raises:
            ShapeError: pictures of another size. UnknownName: an unknown domain.
        """
        for what, batch in {"contents": x, "references": reference}.items():
            if batch.ndim != 4 or batch.shape[1:] != (3, self.resolution, self.resolution):
                raise ShapeError(
                    f"{what} of shape {tuple(batch.shape)}",
                    expected=f"[N, 3, {self.resolution}, {self.resolution}]",
                    do=f"read them with hrlib.image.read(path, {self.resolution})",
                )
        if domain not in (*self.domains, *range(len(self.domains))):
            hint = nearest(str(domain), list(self.domains)) or "use one of these names, or its index"
            raise UnknownName(f"domain {domain!r}", expected=f"one of {list(self.domains)}", do=hint)
        index = domain if isinstance(domain, int) else self.domains.index(domain)
        y = torch.full((len(x),), index, device=x.device)
        return self.generator(x, self.style_encoder(reference, y), masks)
