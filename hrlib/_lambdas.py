"""The lambdas of the named losses, which multiply features *before* squaring; use them as `losses.HRINVERSION`, ..."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from .errors import sides
from .features import Features, pink_noise

# The lambdas of Eq. (3) and (4).
HRINVERSION: Mapping[str, float] = {
    "features_2": 0.0002,
    "features_7": 0.0001,
    "features_14": 0.0001,
    "features_21": 0.0002,
    "features_28": 0.0005,
}
HIGH_LEVEL: Mapping[str, float] = {"features_21": 0.0002, "features_28": 0.0005}
# The activations of a random VGG16 are smaller; 20 times the lambdas give its gradients the size of the trained one's.
# Adam ignores a common factor, but not where gradients come near its epsilon (1e-8), as those of noise maps would here.
VGG_RANDOM: Mapping[str, float] = {tap: 20 * lam for tap, lam in HRINVERSION.items()}
# The paper names no taps and no lambdas for these two. Our choice: equal lambdas over the depth, of a size that gives
# the shipped networks' gradients the magnitude of those of the shipped VGG16 with HRINVERSION.
RESNET50: Mapping[str, float] = dict.fromkeys(("layer1", "layer2", "layer3", "layer4"), 0.004)
DEIT_DEPTHS, DEIT_LAMBDA = (1 / 4, 1 / 2, 3 / 4, 1.0), 0.002  # the blocks that end these shares of the depth
# The four ReLU layers of Image2StyleGAN (Abdal et al. 2019: conv1_1, conv1_2, conv3_2, conv4_2).
IMAGE2STYLEGAN = ("features_0", "features_2", "features_12", "features_19")

# EfficientNet-Lite0, and other networks of timm: lambda_l = SIZE / (sigma_l sqrt(N_l)). sigma_l is the spread of a tap
# around its channels' means, N_l its channels times positions at 1024 px, so that there every tap weighs the same in
# units of its own variance: two unrelated pictures are about 2 SIZE^2 apart in each, 400 in eight, the order of
# the paper's loss. Gradients of noise maps stay far above Adam's epsilon, also with resize=256, which sums over a
# sixteenth of the positions. The sigmas in the comments are those of eight pictures of ffhq_mobile1024 at 1024 px
# (truncation 0.7).
SIZE, EDGE = 5.0, 1024
EFFICIENTNET: Mapping[str, float] = {
    "stem": 0.00065,  # sigma 2.64, N 8,388,608
    "blocks_0": 0.00054,  # 4.48, 4,194,304
    "blocks_1": 0.00068,  # 5.82, 1,572,864
    "blocks_2": 0.0012,  # 5.07, 655,360
    "blocks_3": 0.0019,  # 4.62, 327,680
    "blocks_4": 0.0017,  # 4.34, 458,752
    "blocks_5": 0.0025,  # 4.59, 196,608
    "blocks_6": 0.0040,  # 2.20, 327,680
}
EFFICIENTNET_SPARSE: Mapping[str, float] = {
    "stem": 0.0013,  # sigma 1.28
    "blocks_0": 0.00097,  # 2.52
    "blocks_1": 0.0011,  # 3.68
    "blocks_2": 0.0021,  # 2.95
    "blocks_3": 0.0031,  # 2.78
    "blocks_4": 0.0028,  # 2.61
    "blocks_5": 0.0038,  # 2.97
    "blocks_6": 0.0065,  # 1.34
}
EFFICIENTNET_RANDOM: Mapping[str, float] = {  # the mean sigmas of five seeds, each within a third of the mean
    "stem": 0.0020,  # sigma 0.86
    "blocks_0": 0.0044,  # 0.55
    "blocks_1": 0.0062,  # 0.64
    "blocks_2": 0.010,  # 0.60
    "blocks_3": 0.012,  # 0.74
    "blocks_4": 0.0093,  # 0.79
    "blocks_5": 0.012,  # 0.97
    "blocks_6": 0.018,  # 0.48
}
# d_h, as in Eq. (4): the last maps of the two coarsest resolutions, which features_21 and features_28 are in VGG16.
EFFICIENTNET_HIGH: Mapping[str, float] = {tap: EFFICIENTNET[tap] for tap in ("blocks_4", "blocks_6")}


@torch.no_grad()
def mean_squares(f: Features, taps: Iterable[str], size: int | tuple[int, int]) -> dict[str, float]:
    """The lambdas that turn each tap's sum of squares into a mean over channels and positions: lambda_l = N_l^(-1/2).

    size: edge, or (height, width), of the images that enter the network.
    """
    blank = torch.zeros(1, 3, *sides("size", size))
    return {tap: m.numel() ** -0.5 for tap, m in f(blank, taps).items()}


@torch.no_grad()
def equal_spreads(f: Features) -> dict[str, float]:
    """The lambdas of any network by the rule for EfficientNet, SIZE / (sigma_l sqrt(N_l)), without photographs.

    sigma_l is measured over four pictures of 1/f noise (seed 0) at the network's natural size. Taps are all of a
    pyramid of at most six maps; of a deeper network, as a vision transformer, those that end the quarters of its depth.
    """
    depth = len(f.taps)
    taps = f.taps if depth <= 6 else [f.taps[round(share * depth) - 1] for share in DEIT_DEPTHS]
    noise = pink_noise(4, f.natural_size, torch.Generator().manual_seed(0))
    scale = (EDGE / f.natural_size) ** 2  # positions at 1024 px for each one here
    lambdas = {}
    for tap, m in f(noise, taps).items():
        variance = m.var(dim=(0, 2, 3)).mean()  # sigma_l^2
        # two digits, so that rounding on another machine does not make it another loss
        lambdas[tap] = float(f"{SIZE / (variance * m[0].numel() * scale).sqrt().item():.2g}")
    return lambdas
