"""Inversions by one block of a network at a time, Sec. IV-G-a, and how much of the hair's detail each recovers.

The hair is measured when a run ends, on the reconstruction as it is: the picture that is kept is a lossy file, and the
finest texture is what such files lose first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import spectra
from ..worlds import portraits
from ..worlds.pictures import picture
from . import inversions
from .sweep import Measured


@dataclass(frozen=True, kw_only=True)
class Settings(inversions.Settings):
    """One inversion whose hair is measured.

    cutoff: detail begins here, in cycles per pixel. window: edge of the windows laid over the hair, in pixels.
    hair_masks: pattern of names of the masks of photographs, {} for the picture's name; "" for none.
    """

    cutoff: float
    window: int
    hair_masks: str


def measured(
    runs: Sequence[inversions.Settings], *, cutoff: float, window: int, hair_masks: str = ""
) -> list[Settings]:
    """The runs of `inversions.grid` as runs for `perform`; the hair of every picture is looked at first.

    Raises:
        InvalidValue: a window that does not fit into the hair of a picture that has some.
    """
    for name, size in {(run.image, run.size) for run in runs}:
        if (mask := hair_mask(name, size, hair_masks)) is not None:
            x = picture(name, size)
            spectra.region(x, x, mask, window=window)
    more = {"cutoff": cutoff, "window": window, "hair_masks": hair_masks}
    return [Settings(**asdict(run), **more) for run in runs]


def hair_mask(name: str, size: int, hair_masks: str = "") -> Tensor | None:
    """The mask [1, 1, H, W] in [0, 1] of a picture's hair; None where there is no hair, or no mask.

    The renderer knows which pixels of a portrait are hair; a photograph needs a mask of its own.
    """
    kind, _, what = name.partition(":")
    if kind == "portrait":
        found = portraits.render_with_truth(portraits.sample(1, seed=int(what)), size).hair_mask
    elif kind == "file" and hair_masks:
        found = (picture(hair_masks.format(Path(what).stem), size)[:, :1] + 1) / 2
    else:
        return None
    return found if bool((found >= spectra.INSIDE).any()) else None


def perform(s: Settings) -> Measured:
    """`inversions.perform`, with columns "hair_energy" and "hair_coherence", None where there is no hair.

    They are those of `spectra.RegionSpectra`. run.json also has its `rings` as "hair": lists "frequency" (cycles per
    pixel), "energy" and "coherence".
    """
    return together([s])[0]


def together(runs: Sequence[Settings]) -> list[Measured]:
    """`perform` of several runs that differ in their picture alone, as one batch."""
    return inversions.together(runs, look=_hair)


def _hair(s: Settings, recon: Tensor, target: Tensor) -> tuple[dict[str, float | None], dict[str, Any]]:
    mask = hair_mask(s.image, s.size, s.hair_masks)
    if mask is None:
        return {"hair_energy": None, "hair_coherence": None}, {}
    found = spectra.region(recon, target, mask.to(target), window=s.window)
    rings = dict(zip(("frequency", "energy", "coherence"), found.rings(), strict=True))
    values = {"hair_energy": found.energy(s.cutoff), "hair_coherence": found.coherence(s.cutoff)}
    return values, {"hair": {name: [round(float(v), 4) for v in ring] for name, ring in rings.items()}}
