"""A generator and its discriminator at twice their resolution, begun as the smaller pair behind an enlarger.

A new block of random layers breaks what the pair has learnt: a critic that sees its input through random layers has to
learn faces anew, settles at even odds, and the generator follows it nowhere (measured: accuracy .51 after 8,000 images,
against .78 when the new layers begin as here). So the generator's new block begins by enlarging the features of the one
before it, and the critic's by reducing the picture that it sees. Both then learn what the new resolution adds. This
replaces the fading-in of progressive growing (Karras et al. 2018), which needs both sizes at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import weights
from ..errors import LayoutMismatch
from ..nets import Discriminator, StyleINR

QUANTILE = 0.01  # of the features that the first leaky ReLU may compress
SAMPLES = 32  # pictures that this is measured on


def check(source: StyleINR, resolution: int, name: str) -> None:
    """Raise `LayoutMismatch` unless `source` can grow to `resolution`: a Style-INR-GAN of half of it."""
    if not isinstance(source, StyleINR) or source.resolution * 2 != resolution:
        raise LayoutMismatch(
            f"{name}, a {type(source).__name__} of {source.resolution} px, as the source of one of {resolution} px",
            expected=f"a generator of {resolution} px, or a Style-INR-GAN of {resolution // 2} px, which can grow",
            do="name such a source, or set resolution to its own",
        )


@torch.no_grad()
def enlarge(source: StyleINR, G: StyleINR, name: str) -> None:
    """Fill G with the layers of `source`, of half its resolution, so that it draws the source's pictures, enlarged.

    The new convolutions pass each channel on, the first through the FIR filter. The bias of the first lifts the
    features over zero, where a leaky ReLU leaves them as they are; that of the second takes the lift off again, so that
    what is negative is compressed once only. The new noise strengths begin as those of the block before.

    Raises:
        LayoutMismatch: the other layers differ, or the new block has not as many channels as the one before it.
    """
    res, width = G.resolution, source.channels[source.resolution]
    if G.channels[res] != width:
        raise LayoutMismatch(
            f"{G.channels[res]} channels at {res} px, and {width} before them in {name}",
            expected="as many: the new block begins by passing them on",
            do=f"set channels of {res} px to {width}",
        )
    own, theirs = G.state_dict(), source.state_dict()
    new = {key: tensor for key, tensor in own.items() if f"b{res}." in key}
    weights.load_strictly(G, theirs | new, name)
    features = _last_features(source)
    lift = -torch.quantile(features, QUANTILE, dim=1).clamp(max=0)  # [C]
    block, before = getattr(G.synthesis, f"b{res}"), getattr(source.synthesis, f"b{source.resolution}")
    for conv, its in ((block.conv0, before.conv0), (block.conv1, before.conv1)):
        conv.affine.weight.zero_()
        conv.affine.bias.fill_(1)
        conv.weight.zero_()
        conv.weight[range(width), range(width), 1, 1] = 1
        conv.bias.zero_()
        conv.noise_strength.copy_(its.noise_strength)
    block.conv0.bias.copy_(lift)
    block.conv1.bias.copy_(-(2**0.5) * lift)
    G.synthesis.inr.fc0.weight[:, :width] /= 2  # each activation has a gain of sqrt 2


def _last_features(G: StyleINR) -> Tensor:
    """[C, samples]: features of the last block, of a few pictures."""
    z = torch.randn(SAMPLES, G.z_dim, generator=torch.Generator().manual_seed(0))
    *_, (_, features, _) = G.synthesis.blocks(G.mapping(z))
    return features[:, :, ::4, ::4].transpose(0, 1).flatten(1)


@torch.no_grad()
def reduce(source: Discriminator, D: Discriminator, name: str) -> None:
    """Fill D with the layers of `source`, of half its resolution, so that it judges a picture as that judges its half.

    The new block's skip passes each channel of the source's fromRGB on, reduced; its other branch begins at zero.
    """
    top, res = f"b{source.resolution}.fromrgb", D.resolution
    theirs = {key.replace(top, f"b{res}.fromrgb"): tensor for key, tensor in source.state_dict().items()}
    new = {key: tensor for key, tensor in D.state_dict().items() if key.startswith(f"b{res}.") and "fromrgb" not in key}
    weights.load_strictly(D, theirs | new, f"the discriminator of {name}")
    block = getattr(D, f"b{res}")
    block.conv1.weight.zero_()
    block.skip.weight.zero_()
    width = block.skip.weight.shape[0]
    # The block multiplies its branches by sqrt 0.5, and the layer its weight by a gain.
    block.skip.weight[range(width), range(width), 0, 0] = 2**0.5 / block.skip.weight_gain
