"""Perceptual networks: VGG16 of any width, and thin versions of ResNet50 and DeiT built from timm's own classes.

Parameters have the names of torchvision's VGG16 (`features.{i}.weight`) and of timm's ResNet and VisionTransformer, so
one loader serves the small networks shipped with this library and the paper's ImageNet networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

CONVS_PER_BLOCK = (2, 2, 3, 3, 3)
CONV_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of `features`; a ReLU follows each
FULL_CHANNELS = (64, 128, 256, 512, 512)
THIN_CHANNELS = (16, 16, 32, 64, 64)


class VGG16(nn.Module):
    """The convolutional part of VGG16 (Simonyan and Zisserman 2015), with any channel plan.

    `features` has torchvision's layer numbers: 3x3 convolutions at `CONV_INDICES`, each followed by a ReLU, and five
    2x2 max-pools. The ReLUs are not in place, or they would overwrite the convolutions' outputs, which Eq. (3)
    compares.

    Args:
        channels: output channels of the convolutions: five numbers (one per block) or thirteen (one per convolution).
        num_classes: 0 for no classifier; otherwise the mean over positions feeds one linear layer, `head`.
        batch_norm: normalise between convolution and ReLU, for training; `folded()` merges it into the convolutions.
    """

    def __init__(
        self, *, channels: Sequence[int] = FULL_CHANNELS, num_classes: int = 0, batch_norm: bool = False
    ) -> None:
        super().__init__()
        if len(channels) == len(CONVS_PER_BLOCK):
            channels = [c for c, n in zip(channels, CONVS_PER_BLOCK, strict=True) for _ in range(n)]
        self.config = {"channels": list(channels)}
        widths, layers, c_in = iter(channels), [], 3
        for n in CONVS_PER_BLOCK:
            for _ in range(n):
                c_out = next(widths)
                layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(inplace=False)]
                c_in = c_out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.norms = nn.ModuleDict(
            {str(i): nn.BatchNorm2d(self.features[i].out_channels) for i in CONV_INDICES if batch_norm}
        )
        self.head = nn.Linear(c_in, num_classes) if num_classes else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> logits [N, num_classes], or the last pool's maps if there is no head."""
        for i, layer in enumerate(self.features):
            x = layer(x)
            if str(i) in self.norms:
                x = self.norms[str(i)](x)
        return x if self.head is None else self.head(x.mean((2, 3)))

    @torch.no_grad()
    def folded(self) -> VGG16:
        """The same features in evaluation mode from plain convolutions, without batch normalisation and head."""
        plain = VGG16(channels=self.config["channels"])
        for i in CONV_INDICES:
            conv, bn, out = self.features[i], self.norms[str(i)] if self.norms else None, plain.features[i]
            gain = bn.weight / (bn.running_var + bn.eps).sqrt() if bn else torch.ones_like(conv.bias)
            out.weight.copy_(conv.weight * gain[:, None, None, None])
            out.bias.copy_((conv.bias - bn.running_mean) * gain + bn.bias if bn else conv.bias)
        return plain.eval()


def resnet50(*, channels: Sequence[int] = (64, 128, 256, 512), num_classes: int = 0) -> ResNet:
    """timm's ResNet50 (bottleneck blocks 3, 4, 6, 3); each stage outputs four times its inner width in `channels`."""
    return ResNet(Bottleneck, [3, 4, 6, 3], num_classes=num_classes, channels=tuple(channels))


def deit(
    *,
    img_size: int = 224,
    patch_size: int = 16,
    embed_dim: int = 384,
    depth: int = 12,
    num_heads: int = 6,
    num_classes: int = 0,
) -> VisionTransformer:
    """timm's vision transformer as DeiT uses it (Touvron et al. 2021; the defaults are deit_small_patch16_224).

    Position embeddings are interpolated to the input's size, and inputs are padded (right, bottom) to whole patches.
    """
    return VisionTransformer(
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        num_classes=num_classes,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )


def pink_noise(n: int, size: int, rng: torch.Generator) -> Tensor:
    """Pictures [n, 3, size, size] of noise with the amplitude spectrum 1 / f that photographs have on average.

    Their spread is 0.5, on the scale of [-1, 1]. They stand in for photographs where a network's statistics are wanted.
    """
    frequency = torch.fft.fftfreq(size)[:, None].hypot(torch.fft.rfftfreq(size)).clamp(min=1 / size)
    x = torch.fft.irfft2(torch.fft.rfft2(torch.randn(n, 3, size, size, generator=rng)) / frequency, s=(size, size))
    return x / (2 * x.std())
