"""Networks, one per file; `build` makes one from the architecture and configuration that a weight file names."""

from __future__ import annotations

from torch import nn

from ..errors import UnknownName, nearest
from .cips3d import CIPS3D
from .dualstylegan import DualStyleGAN
from .identity import Identity
from .ir_se import IRSE
from .mobile_inr import MobileINR
from .mobile_stylegan import MobileGenerator
from .starganv2 import StarGANv2
from .style_inr import StyleINR
from .stylegan2 import Generator
from .stylegan2_discriminator import Discriminator

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "stylegan2": Generator,
    "stylegan2_discriminator": Discriminator,
    "style_inr": StyleINR,
    "mobile_stylegan": MobileGenerator,
    "mobile_inr": MobileINR,
    "identity": Identity,
    "ir_se": IRSE,
    "dualstylegan": DualStyleGAN,
    "starganv2": StarGANv2,
    "cips3d": CIPS3D,
}


def build(architecture: str, config: dict) -> nn.Module:
    """A randomly initialised network of that architecture, with constructor arguments `config`.

    `hrlib.weights` loads trained weights into it, strictly.
    """
    if architecture not in ARCHITECTURES:
        raise UnknownName(
            f"architecture {architecture!r}",
            expected=f"one of {sorted(ARCHITECTURES)}",
            do=nearest(architecture, sorted(ARCHITECTURES)) or "make the file with weights.save_network",
        )
    return ARCHITECTURES[architecture](**config)
