"""What StyleGAN2 and MobileStyleGAN share: codes from z, sizes of features, noise maps, and the checks of both."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Mapping as MappingABC

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue, ShapeError, UnknownName, nearest
from .windows import Window, checked, needed, whole

Noise = str | MappingABC[str, Tensor]
SQRT2 = math.sqrt(2.0)


class StyleMapping(nn.Module):
    """z -> w: z scaled to unit mean square, then the fully connected layers `fc0`, `fc1`, ..."""

    def __init__(self, layers: Iterable[nn.Module], z_dim: int, w_dim: int, num_ws: int):
        super().__init__()
        self.z_dim, self.num_ws, self.num_layers = z_dim, num_ws, 0
        for layer in layers:
            setattr(self, f"fc{self.num_layers}", layer)
            self.num_layers += 1
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def w(self, z: Tensor) -> Tensor:
        """[N, z_dim] -> [N, w_dim], not truncated."""
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ShapeError(
                f"z of shape {tuple(z.shape)}", expected=f"[N, {self.z_dim}]", do="draw z with torch.randn(N, G.z_dim)"
            )
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        return x

    def forward(self, z: Tensor, truncation_psi: float = 1.0, truncation_cutoff: int | None = None) -> Tensor:
        """[N, z_dim] -> ws [N, num_ws, w_dim]; the first `truncation_cutoff` codes (default: all) are truncated."""
        ws = self.w(z).unsqueeze(1).repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            cut = self.num_ws if truncation_cutoff is None else truncation_cutoff
            ws = torch.cat([self.w_avg.lerp(ws[:, :cut], truncation_psi), ws[:, cut:]], dim=1)
        return ws


class StyleSynthesis(nn.Module):
    """Blocks b4, b8, ...: what does not depend on how a block computes.

    A subclass yields the blocks' features in `blocks` and says in `const_maps` what noise="const" stands for.
    """

    def __init__(self, resolution: int, resolutions: list[int]):
        super().__init__()
        self.resolution, self.resolutions = resolution, resolutions  # of the image, of the blocks
        self.num_ws = 2 * len(resolutions)

    def code_blocks(self) -> list[int]:
        """The resolution that each code belongs to when two codes are mixed: pairs, as in the authors' code."""
        return [res for res in self.resolutions for _ in range(2)]

    def conv_names(self) -> list[str]:
        """["b4.conv1", "b8.conv0", "b8.conv1", ...]: the layers that add noise, in the order of their codes."""
        return [f"b{r}.{c}" for r in self.resolutions for c in ("conv0", "conv1") if (r, c) != (4, "conv0")]

    def canvas(self, size: tuple[int, int] | None) -> dict[int, tuple[int, int]]:
        """Feature size per block for an image of `size` (default: the native square): ceil(H / 2^k) x ceil(W / 2^k)."""
        height, width = size or (self.resolution, self.resolution)
        shrink = {res: self.resolution // res for res in self.resolutions}
        return {res: (-(-height // s), -(-width // s)) for res, s in shrink.items()}

    def layer_sizes(self, size: tuple[int, int] | None) -> dict[str, tuple[int, int]]:
        """{"b4.conv1": (h, w), ...}: the size of each layer's noise map for an image of `size`."""
        canvas = self.canvas(size)
        return {name: canvas[int(name.split(".")[0][1:])] for name in self.conv_names()}

    def parts(self, size: tuple[int, int] | None, window: Window | None) -> dict[str, Window]:
        """What each layer must compute for `window` of an image of `size` (None: all of it); see `windows.needed`."""
        window = checked(window, size or (self.resolution, self.resolution))
        scale = self.resolution // self.resolutions[-1]  # pixels of the image per pixel of the last block
        return needed(tuple(slice(w.start // scale, -(-w.stop // scale)) for w in window), self.canvas(size))

    def const_maps(self, size: tuple[int, int] | None) -> dict[str, Tensor]:
        """The noise maps that noise="const" stands for."""
        raise NotImplementedError

    def resolved(
        self,
        noise: Noise,
        batch: int,
        size: tuple[int, int] | None = None,
        parts: MappingABC[str, Window] | None = None,
    ) -> dict[str, Tensor]:
        """The noise maps that the argument `noise` of `blocks` stands for: {layer: [h, w] or [N, h, w]}, {} for "none".

        parts: {layer: window}; whole maps are cropped to these, maps of the windows' sizes are used as they are.

        Raises:
            UnknownName: neither "const", "none" nor one map per layer. ShapeError: a map of another size.
        """
        if isinstance(noise, str):
            if noise not in ("const", "none"):
                raise UnknownName(
                    f"noise={noise!r}",
                    expected='"const", "none" or a dict of noise maps',
                    do=nearest(noise, ["const", "none"]) or "pass maps made by G.noise_maps()",
                )
            if noise == "none":
                return {}
            noise = self.const_maps(size)
        sizes, found = self.layer_sizes(size), {}
        if set(noise) != set(sizes):
            odd = sorted(set(noise) ^ set(sizes))
            raise UnknownName(
                f"noise maps with missing or unknown layers {odd}",
                expected=f"exactly {list(sizes)}",
                do="start from G.noise_maps()",
            )
        for name, full in sizes.items():
            given = noise[name]
            rows, cols = parts[name] if parts else whole(full)
            part = (rows.stop - rows.start, cols.stop - cols.start)
            if tuple(given.shape) not in (full, (batch, *full), part, (batch, *part)):
                raise ShapeError(
                    f"noise map {name} of shape {tuple(given.shape)}",
                    expected=f"{full} or {(batch, *full)}",
                    do="make the maps with G.noise_maps(size), for the size of the image",
                )
            found[name] = given if tuple(given.shape[-2:]) == part else given[..., rows, cols]
        return found

    def forward(self, ws: Tensor, noise: Noise = "const", size: tuple[int, int] | None = None) -> Tensor:
        """[N, num_ws, w_dim] -> image [N, 3, H, W], nominally in [-1, 1]."""
        for _, _, image in self.blocks(ws, noise, size):
            pass
        return image


class StyleGenerator(nn.Module):
    """`mapping` z -> ws and `synthesis` ws -> image; a subclass makes these two after this constructor.

    config: arguments of the subclass's constructor, with z_dim, w_dim, resolution and channels.
    """

    any_size = False  # whether `synthesis` draws sizes other than its own

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        self.z_dim, self.w_dim = config["z_dim"], config["w_dim"]
        self.resolution, self.channels = config["resolution"], config["channels"]

    @property
    def num_ws(self) -> int:
        """The number of codes of an image."""
        return self.synthesis.num_ws

    @property
    def code_blocks(self) -> list[int]:
        """[num_ws]: the resolution that each code belongs to when two codes are mixed (`mixing.lerp_ws`)."""
        return self.synthesis.code_blocks()

    @property
    def w_avg(self) -> Tensor:
        """[w_dim]: the mean of w."""
        return self.mapping.w_avg

    def noise_maps(self, size: tuple[int, int] | None = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """See `noise_maps` of the synthesis network."""
        return self.synthesis.noise_maps(size, seed=seed)

    def own_maps(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """The maps of Eq. (1) that noise="const" stands for; {} where its noise is no such map."""
        return self.synthesis.const_maps(size)

    def forward(self, z: Tensor, truncation_psi: float = 1.0, noise: Noise = "const") -> Tensor:
        """[N, z_dim] -> image [N, 3, R, R]."""
        return self.synthesis(self.mapping(z, truncation_psi), noise=noise)


def full_precision(x: Tensor) -> Tensor:
    """float32 for bfloat16 and half (from autocast); float32 and float64 unchanged."""
    return x.float() if x.dtype.itemsize < 4 else x


def draw(shape: tuple[int, int], seed: int, layer: int) -> Tensor:
    """A standard normal noise map, made on the CPU from (seed, layer)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1_000_003 * seed + layer))


def resampled(const: Tensor, size: tuple[int, int]) -> Tensor:
    """The constant input [C, 4, 4] at another size, [C, h, w]."""
    same = tuple(const.shape[1:]) == tuple(size)
    return const if same else F.interpolate(const[None], size=size, mode="bilinear")[0]


def checked_channels(channels: MappingABC, resolutions: list[int], *, do: str) -> dict[int, int]:
    """{resolution: channels} with whole numbers as keys (JSON has texts); `InvalidValue` unless one for each block."""
    channels = {int(res): int(c) for res, c in channels.items()}
    if set(channels) != set(resolutions):
        raise InvalidValue(
            f"channel plan for {sorted(channels)}", expected=f"one entry for each of {resolutions}", do=do
        )
    return channels
