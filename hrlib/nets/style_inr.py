"""Style-INR-GAN (Sec. III-A, Fig. 3b): an implicit neural representation (INR) that reads StyleGAN2's features.

The paper says: features of the synthesis network (not RGB) are grid-sampled at (x, y), concatenated with the
coordinates, and mapped to RGB by a 3-layer MLP. It does not say the following, which we chose:

- the last code, which modulates the last toRGB in StyleGAN2, modulates the sampled features in the same way, so that
  all 2 log2(R) - 2 codes stay in use;
- hidden layers are `inr_hidden` wide, with leaky ReLU 0.2;
- x and y run from -1 to 1 between the outer edges of the image (the convention of grid_sample).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue, ShapeError
from .style_based import full_precision
from .stylegan2 import Generator, Linear, Noise, Synthesis
from .windows import Window, checked


def pixel_grid(size: tuple[int, int], *, window: Window | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Coordinates (x, y) of the pixel centres of an H x W image: [H, W, 2]; the image's edges lie at -1 and 1.

    window: return only these (rows, columns).
    """
    spans = zip(checked(window, size), size, strict=True)
    axes = [(torch.arange(part.start, part.stop, device=device) * 2 + 1) / n - 1 for part, n in spans]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y], dim=-1)


class INRHead(nn.Module):
    """Modulation, grid sampling, concatenation with the coordinates, 3-layer MLP to RGB."""

    def __init__(self, affine: nn.Module, n_features: int, hidden: int):
        super().__init__()
        self.affine = affine  # w -> styles
        self.fc0 = Linear(n_features + 2, hidden, act=True)
        self.fc1 = Linear(hidden, hidden, act=True)
        self.fc2 = Linear(hidden, 3)

    def modulated(self, features: Tensor, w: Tensor) -> Tensor:
        """[N, C, h, w], [N, w_dim] -> what is sampled; modulation is linear in the features, so it can come first."""
        return features * self.affine(w)[:, :, None, None].to(features.dtype)

    def forward(
        self,
        features: Tensor,
        w: Tensor,
        grid: Tensor | None,
        *,
        sample: bool = True,
        part: Window | None = None,
    ) -> Tensor:
        """features [N, C, h, w], w [N, w_dim], grid [H, W, 2] -> RGB [N, 3, H, W].

        grid None stands for the features' own pixel centres. There bilinear sampling is the identity, so it is skipped.
        sample=False skips it too: for a window of larger features, with the grid of the window's own pixel centres.
        part: the rows and columns of the modulated features that are used; None for all.
        """
        n, x = len(features), self.modulated(features, w)
        x = x if part is None else x[:, :, *part]
        if grid is None:
            grid = pixel_grid(x.shape[2:], device=x.device)
        elif sample:
            x = F.grid_sample(
                x, grid.to(x).expand(n, -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
            )
        x = torch.cat([x.permute(0, 2, 3, 1), grid.to(x).expand(n, -1, -1, -1)], dim=-1)  # [N, H, W, C + 2]
        x = self.fc2(self.fc1(self.fc0(x)))
        return full_precision(x.permute(0, 3, 1, 2))


class INRSynthesis(Synthesis):
    """Synthesis network and INR head: images of any size and aspect ratio."""

    def __init__(
        self, w_dim: int, resolution: int, channels: dict[int, int], *, hidden: int, conv_clamp: float | None = None
    ):
        super().__init__(w_dim, resolution, channels, rgb=False, conv_clamp=conv_clamp)
        self.inr = INRHead(Linear(w_dim, channels[resolution], bias_init=1), channels[resolution], hidden)

    def kept(self, canvas: tuple[int, int], window: Window | None) -> Window | None:
        """The part of the head's modulated features that belongs to `window`; None for all."""
        return None

    def forward(
        self,
        ws: Tensor,
        noise: Noise = "const",
        size: tuple[int, int] | None = None,
        *,
        canvas: tuple[int, int] | None = None,
        grid: Tensor | None = None,
        window: Window | None = None,
    ) -> Tensor:
        """[N, num_ws, w_dim] -> image [N, 3, H, W], nominally in [-1, 1].

        Args:
            size: (H, W) of the image; default: the native square.
            canvas: (H, W) of the last features, and so of the finest noise maps; default: `size`, since ten megapixels
                of detail need ten million noise values (Sec. IV-F). A canvas of the native size with another `size`
                only resamples the features.
            grid: [H, W, 2] coordinates in [-1, 1] to sample instead of the pixel centres of `size`, such as a rotated
                part of the picture.
            window: (rows, columns) of the picture to draw alone, exactly as in the whole picture, at the cost of the
                window; needs canvas = size and no grid.
        """
        if grid is not None and (grid.ndim != 3 or grid.shape[-1] != 2):
            raise ShapeError(
                f"grid of shape {tuple(grid.shape)}", expected="[H, W, 2] of (x, y)", do="start from pixel_grid(size)"
            )
        size = size or canvas or (self.resolution, self.resolution)
        canvas = canvas or size
        if window is not None and (grid is not None or canvas != size):
            raise InvalidValue(
                f"a window of a picture with {'a grid' if grid is not None else f'canvas {canvas}'}",
                expected=f"canvas equal to size {size}, and no grid",
                do="leave out canvas and grid, or draw the whole picture",
            )
        for _, features, _ in self.blocks(ws, noise, canvas, window):
            pass
        part = self.kept(canvas, window)
        if grid is not None:
            return self.inr(features, ws[:, -1], grid, part=part)
        grid = pixel_grid(size, window=window, device=ws.device)
        return self.inr(features, ws[:, -1], grid, sample=canvas != size, part=part)


class StyleINR(Generator):
    """Style-INR-GAN: `mapping` z -> ws, `synthesis(ws, size=(H, W))` -> image.

    inr_hidden: width of the MLP's two hidden layers. The other arguments are those of `Generator`.
    """

    any_size = True

    def __init__(
        self,
        *,
        z_dim: int,
        w_dim: int,
        resolution: int,
        channels: dict[int, int],
        mapping_layers: int = 8,
        conv_clamp: float | None = None,
        inr_hidden: int = 64,
    ):
        self._hidden = inr_hidden
        super().__init__(
            z_dim=z_dim,
            w_dim=w_dim,
            resolution=resolution,
            channels=channels,
            mapping_layers=mapping_layers,
            conv_clamp=conv_clamp,
        )
        self.config["inr_hidden"] = inr_hidden

    def _synthesis(self, w_dim: int, resolution: int, channels: dict[int, int], conv_clamp: float | None) -> Synthesis:
        return INRSynthesis(w_dim, resolution, channels, hidden=self._hidden, conv_clamp=conv_clamp)
