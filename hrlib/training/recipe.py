"""What decides a training besides its data, as a frozen record; without torch, so that `--help` answers at once.

`Recipe` is the base of the recipes of all trainers. That of the GANs is here because the command line and the list of
shipped GANs need it; the others are beside their trainers. Numbers are checked by `errors.number`, whose messages say
what to do; pydantic would replace the dozen lines of `Recipe`, and its messages would have to be translated.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from ..errors import SEED, StoreError, number

# What decides the memory or the hours of one step has generous bounds: a number beyond them was mistyped.
WIDTH = "whole [1, 4096]"  # of a layer or a latent
MOST = 1_000_000  # pictures that are held, drawn or measured at once


class Recipe:
    """Base of frozen dataclasses. Making one checks its numbers; None passes where it is the default.

    Raises:
        InvalidValue: a field of `INTERVALS` is outside its interval (see `errors.number`).
    """

    INTERVALS: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        for name, interval in self.INTERVALS.items():
            value = getattr(self, name)
            if value is not None or getattr(type(self), name, 0) is not None:
                object.__setattr__(self, name, number(name, value, interval))

    def summary(self) -> dict[str, Any]:
        """The recipe as JSON-able data; `read` takes it back."""
        return asdict(self)

    @classmethod
    def read(cls, summary: dict[str, Any]) -> Self:
        """A recipe from its `summary`, or a JSON copy of it; `StoreError` unless it has exactly a recipe's fields."""
        if odd := sorted(set(summary) ^ {f.name for f in fields(cls)}):
            raise StoreError(
                f"a recipe with missing or unknown fields {odd}",
                expected=f"the fields of {cls.__module__}.{cls.__name__}",
                do="start the training again in another folder",
            )
        return cls(**{name: _numeric_keys(value) for name, value in summary.items()})


def _numeric_keys(value: Any) -> Any:
    """JSON turns the keys of {4: 96, 8: 96} into text; turn them back."""
    numeric = isinstance(value, dict) and all(isinstance(k, str) and k.isdecimal() for k in value)
    return {int(k): v for k, v in value.items()} if numeric else value


@dataclass(frozen=True)
class GanRecipe(Recipe):
    """The recipe of StyleGAN2 and Style-INR-GAN. Lengths are in images seen by the generator.

    The defaults are StyleGAN2-ADA's as far as Sec. IV-A names them; batch, widths and rates suit one CPU or a small
    GPU. The warm start (`warm_images`, `anchor`) needs a set with latents, so it is off by default.
    """

    network: str = "style_inr"  # or "stylegan2"
    source: str | None = None  # fine-tune all layers of this pair; one of half the resolution grows (growth.py)
    backbone_from: str | None = None  # take the layers that StyleGAN2 and Style-INR-GAN share from this pair
    # Architecture
    resolution: int = 128
    z_dim: int = 64
    w_dim: int = 128
    channels: dict[int, int] = field(default_factory=lambda: {4: 96, 8: 96, 16: 96, 32: 64, 64: 32, 128: 16})
    mapping_layers: int = 4
    conv_clamp: float | None = None
    inr_hidden: int = 32  # Style-INR-GAN only
    # Lengths
    batch: int = 16  # over all processes
    total_images: int = 1_000_000  # the paper's fine-tuning
    teach_images: int = 0  # the first ones, in which only the RGB layers learn, to draw the pictures of `backbone_from`
    warm_images: int = 0  # the next ones, by regression on pictures whose latents are known
    warm_set: int | None = None  # of the first pictures alone: others may still be being rendered
    # Optimisation
    lr: float = 0.003
    train_mapping: bool = True  # False keeps z -> w, and so the layout of the latent space, as in the source
    lr_fall: float = 0.0  # share of the run, at its end, over which all rates fall linearly to a tenth
    warm_mapping_gain: float = 30.0  # times lr for the mapping network in the warm start, to undo most of its lr_mul
    r1_gamma: float = 0.5
    r1_every: int = 16
    ema_images: int = 4_000  # half-life of the moving average
    mixing_prob: float = 0.9
    fresh_prob: float = 0.0  # share of adversarial steps with z ~ N(0, I) instead of the pictures' latents
    anchor: float = 0.0  # weight of the regression kept during adversarial training
    noise_strength: float = 0.12  # initial (without a source); not trained in the warm start, see `gan.start`
    noise_strength_gain: float = 0.01  # times lr for the noise strengths in adversarial training
    # Augmentation
    mirror: bool = True  # mirror half of the real pictures
    ada_target: float = 0.6  # of E[sign D(real)]; 0 switches adaptive augmentation off
    ada_images: int = 100_000  # in which the probability p may rise from 0 to 1
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
