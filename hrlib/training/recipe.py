"""What decides a training run, as one frozen record (and without torch, so that the command's help comes at once).

`Checked` is the base of this recipe and of those of the other trainings: no recipe with senseless numbers is ever made.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from ..errors import SEED, StoreError, number

# What decides the memory or the hours of one step is bounded, generously: beyond, a number was mistyped.
WIDTH = "whole [1, 4096]"  # of a layer or a latent
MOST = 1_000_000  # pictures that are held, drawn or measured at once


class Checked:
    """A frozen dataclass whose numbers are checked, and made plain, as it is made; None stays where it is the default.

    Raises:
        InvalidValue: a field of `INTERVALS` outside its interval (see `errors.number`).
    """

    INTERVALS: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        for name, interval in self.INTERVALS.items():
            value = getattr(self, name)
            if value is not None or getattr(type(self), name) is not None:
                object.__setattr__(self, name, number(name, value, interval))


@dataclass(frozen=True)
class Recipe(Checked):
    """Everything that decides a training run beside its data. Lengths are in images seen by the generator.

    The defaults are StyleGAN2-ADA's as far as Sec. IV-A names them; batch, widths and rates suit one CPU or a small
    GPU. The warm start (`warm_images`, `anchor`) needs a data set with latents, so it is off unless asked for.
    """

    network: str = "style_inr"  # or "stylegan2"
    source: str | None = None  # fine-tuning: generator and discriminator begin as this pair, all layers are trained
    backbone_from: str | None = None  # the layers that StyleGAN2 and Style-INR-GAN share begin as this pair's
    # Architecture
    resolution: int = 128
    z_dim: int = 64
    w_dim: int = 128
    channels: dict[int, int] = field(default_factory=lambda: {4: 96, 8: 96, 16: 96, 32: 64, 64: 32, 128: 16})
    mapping_layers: int = 4
    conv_clamp: float | None = None
    inr_hidden: int = 32  # Style-INR-GAN only
    # Lengths
    batch: int = 16  # of all processes together
    total_images: int = 1_000_000  # the paper's fine-tuning
    teach_images: int = 0  # of which the RGB layers alone learn to draw the pictures of `backbone_from`
    warm_images: int = 0  # and then by regression on pictures whose latents are known
    warm_set: int | None = None  # the warm start draws from so many first pictures only: rendering can go on beside it
    # Optimisation
    lr: float = 0.003
    train_mapping: bool = True  # False keeps z -> w as it is: the layout of the latent space stays the source's
    lr_fall: float = 0.0  # last share of the run over which all rates fall linearly to a tenth
    warm_mapping_gain: float = 30.0  # times lr for the mapping network in the warm start, to undo most of its lr_mul
    r1_gamma: float = 0.5
    r1_every: int = 16
    ema_images: int = 4_000  # half-life of the moving average
    mixing_prob: float = 0.9
    fresh_prob: float = 0.0  # share of the adversarial steps whose z is drawn from N(0, I), not the pictures' latents
    anchor: float = 0.0  # weight of the regression kept during adversarial training
    noise_strength: float = 0.12  # initial (without a source); not trained in the warm start, see `gan.start`
    noise_strength_gain: float = 0.01  # times lr for the noise strengths in adversarial training
    # Augmentation
    mirror: bool = True  # real pictures are mirrored half of the time
    ada_target: float = 0.6  # of E[sign D(real)]; 0 switches adaptive augmentation off
    ada_images: int = 100_000  # within which the probability p may rise from 0 to 1
    # Numerics
    bf16: bool = True
    seed: int = 0

    INTERVALS: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("resolution", "z_dim", "w_dim", "inr_hidden"), WIDTH),
        "mapping_layers": "whole [1, 100]",
        "batch": f"whole [1, {MOST}]",
        **dict.fromkeys(("total_images", "warm_set", "r1_every", "ema_images", "ada_images"), "whole [1, inf)"),
        **dict.fromkeys(("teach_images", "warm_images"), "whole [0, inf)"),
        **dict.fromkeys(("conv_clamp", "lr"), "(0, inf)"),
        **dict.fromkeys(("warm_mapping_gain", "r1_gamma", "anchor", "noise_strength_gain"), "[0, inf)"),
        **dict.fromkeys(("lr_fall", "mixing_prob", "fresh_prob", "ada_target"), "[0, 1]"),
        "noise_strength": "(-inf, inf)",
        "seed": SEED,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for size, width in self.channels.items():
            number(f"channels of {size} px", width, WIDTH)

    def summary(self) -> dict[str, Any]:
        """The recipe as JSON-able data; `Recipe.read` takes it back."""
        return asdict(self)

    @classmethod
    def read(cls, summary: dict[str, Any]) -> Recipe:
        """A recipe from its `summary`, or a JSON copy of it; `StoreError` unless it has exactly a recipe's fields."""
        odd = sorted(set(summary) ^ {f.name for f in fields(cls)})
        if odd:
            raise StoreError(
                f"a recipe with missing or unknown fields {odd}",
                expected="the fields of training.recipe.Recipe",
                do="begin the training anew in another folder",
            )
        return cls(**summary | {"channels": {int(k): v for k, v in summary["channels"].items()}})
