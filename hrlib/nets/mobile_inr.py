"""MobileStyleGAN with an INR head (Sec. III-A): the paper's generator on real faces at 1024 pixels.

The last features have half of the picture's size, so they are first brought to its size in the way in which this
network always doubles: modulation and the inverse Haar transform, which leaves a quarter of the channels; a 1x1
convolution between the two chooses which. From there on it is the paper's head: grid sampling, concatenation with the
coordinates, a 3-layer MLP.

Why not sample the features as they are: MobileStyleGAN draws the four pixels of a feature's cell by four different
linear maps. An MLP would have to tell the four apart by where a point lies in its cell, which is no smooth function of
(x, y), and between the pixel centres it would be undefined. After this step one linear map draws all pixels, so the
head can be exactly the published network (`training.inr_head.attach`), and any grid can be sampled.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mobile_stylegan import Affine, MobileGenerator, Synthesis, inverse_haar
from .style_inr import INRHead, INRSynthesis
from .windows import Window, checked, within


class MobileINRHead(INRHead):
    """Modulation, 1x1 convolution, inverse Haar transform; then as `INRHead`."""

    def __init__(self, n_features: int, w_dim: int, hidden: int):
        super().__init__(Affine(w_dim, n_features), n_features // 4, hidden)
        self.gain = 1 / math.sqrt(n_features)
        self.weight = nn.Parameter(torch.randn(n_features, n_features, 1, 1))
        self.bias = nn.Parameter(torch.zeros(n_features))

    def modulated(self, features: Tensor, w: Tensor) -> Tensor:
        """[N, C, h, w], [N, w_dim] -> [N, C / 4, 2h, 2w]."""
        x = features * (self.affine(w) * self.gain).to(features.dtype)
        return inverse_haar(F.conv2d(x, self.weight, self.bias))


class MobileINRSynthesis(Synthesis):
    """MobileStyleGAN's synthesis network with an INR head for its last step: pictures of any size and aspect ratio."""

    def __init__(self, w_dim: int, resolution: int, channels: dict[int, int], *, hidden: int):
        super().__init__(w_dim, resolution, channels, rgb=False)
        self.inr = MobileINRHead(channels[self.resolutions[-1]], w_dim, hidden)

    def kept(self, canvas: tuple[int, int], window: Window | None) -> Window:
        """The part of the head's modulated features that belongs to `window`: an odd edge doubles to one row more."""
        last = self.parts(canvas, window)[f"b{self.resolutions[-1]}.conv1"]
        return within(checked(window, canvas), last, scale=2)

    forward = INRSynthesis.forward  # the arguments and the steps are the same


class MobileINR(MobileGenerator):
    """MobileStyleGAN with an INR head: `mapping` z -> ws, `synthesis(ws, size=(H, W))` -> image.

    inr_hidden: width of the MLP's two hidden layers. The other arguments are those of `MobileGenerator`.
    """

    def __init__(
        self,
        *,
        z_dim: int,
        w_dim: int,
        resolution: int,
        channels: dict[int, int],
        mapping_layers: int = 8,
        inr_hidden: int = 32,
    ):
        self._hidden = inr_hidden
        super().__init__(
            z_dim=z_dim, w_dim=w_dim, resolution=resolution, channels=channels, mapping_layers=mapping_layers
        )
        self.config["inr_hidden"] = inr_hidden

    def _synthesis(self, w_dim: int, resolution: int, channels: dict[int, int]) -> Synthesis:
        return MobileINRSynthesis(w_dim, resolution, channels, hidden=self._hidden)
