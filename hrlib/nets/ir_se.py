"""IR-SE50, the face recognition network of the paper's ID retrieval (Sec. III-D, ArcFace, the paper's [78]).

Parameter names are those of `model_ir_se50.pth`; the layers follow github.com/PeterouZh/ID_retrieval, whose
configuration is the default. Other widths and depths are for tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .identity import SqueezeExcite, whole_square

EDGE = 112  # side in pixels of the pictures that the network was trained on


class _Unit(nn.Module):
    """Norm, 3x3, PReLU, 3x3 (with the stride), norm, gate, beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)  # takes every stride-th pixel
        if c_in != c_out:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            nn.PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            SqueezeExcite(c_out, 16, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut_layer(x) + self.res_layer(x)


class IRSE(nn.Module):
    """Faces -> unit vectors that are close (squared L2 distance, 0 to 4) for pictures of the same person.

    Args:
        channels, units: of each of the four stages; a stage's first unit halves the resolution.
        dim: length of the embedding.
        bgr: feed the colours in the order of the network's training data. The paper and pSp feed RGB.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (64, 128, 256, 512),
        units: Sequence[int] = (3, 4, 14, 3),
        dim: int = 512,
        bgr: bool = False,
    ) -> None:
        super().__init__()
        self.config = dict(channels=list(channels), units=list(units), dim=dim, bgr=bgr)
        self.dim, self.bgr = dim, bgr
        first, c_in, body = channels[0], channels[0], []
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        for c_out, n in zip(channels, units, strict=True):
            for i in range(n):
                body.append(_Unit(c_in, c_out, 2 if i == 0 else 1))
                c_in = c_out
        self.body = nn.Sequential(*body)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(c_in * (EDGE // 16) ** 2, dim),
            nn.BatchNorm1d(dim),
        )

    def embed(self, x: Tensor) -> Tensor:
        """RGB images [N, 3, H, W] in [-1, 1], of any size -> unit vectors [N, dim].

        Pictures are resized, uncropped, to 112x112 with an antialiased bilinear filter, as in the paper's evaluation.

        Raises:
            ShapeError: x is not a batch of RGB images.
        """
        x = whole_square(x, EDGE)
        x = x.flip(1) if self.bgr else x
        return F.normalize(self.output_layer(self.body(self.input_layer(x))).float(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """`embed`."""
        return self.embed(x)
