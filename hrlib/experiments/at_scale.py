"""The recorded runs: the paper's experiments at 1024 pixels, on people who do not exist (profile `ffhq`).

`FIGURES` lists them by figure, in the order in which they are made, so that what is missing is the end of the list::

    record("fig1")       # perform what data/recorded lacks: hours on a CPU, minutes on a GPU; can be interrupted
    found("fig1")        # the numbers and pictures that are there; needs no network

The generator is MobileStyleGAN and the perceptual network EfficientNet-Lite0, because they install from the Python
package index; the paper has StyleGAN2 and VGG16. Dense taps stand for the paper's convolutional features, and sparse
taps for its ReLU features. All settings of the inversion are those of the published projector, except its 1000 steps:
ours are a CPU's compromise, and the PSNR gained over the last 50 steps says how far a run is from its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from .. import weights
from ..errors import UnknownName, nearest
from . import inversions
from .inversions import Settings
from .sweep import Results, kept, sweep

FOLDER = "inversions"  # below data/recorded
GENERATOR = "ffhq_mobile1024"
SIZE, REDUCED = 1024, 256  # edges of the picture and of the reduced input, pixels, as in the paper
STEPS = 150
PEOPLE = tuple(f"imagined:{seed}" for seed in range(1, 7))
SHOWN = PEOPLE[:3]
DENSE, SPARSE, RANDOM = "efficientnet_dense", "efficientnet_sparse", "efficientnet_random"
LAM_MSE = 1.0
NOISE_WEIGHT = 1.0
COLUMNS = ("psnr", "ssim", "lpips_st_alex", "artefact_energy", "excess_energy", "roughness")


def _runs(
    losses: Sequence[str],
    inputs: Sequence[int],
    *,
    people: Sequence[str] = PEOPLE,
    noise: bool = True,
    lam_mse: float = 0.0,
    noise_regularisation: float = 0.0,
) -> list[Settings]:
    """Every loss and input for every picture, one picture after the other."""
    return [
        Settings(
            image=image,
            loss=loss,
            input=edge,
            noise=noise,
            seed=0,
            generator=GENERATOR,
            perceptual="imagenet",
            discriminator="",
            size=SIZE,
            num_steps=STEPS,
            lr=0.1,
            lam_mse=lam_mse,
            noise_regularisation=noise_regularisation,
            space="w+",
            columns=list(COLUMNS),
            lossy=True,
            device="auto",
        )
        for image, loss, edge in product(people, losses, inputs)
    ]


def _fig1() -> list[Settings]:
    """(b) reduced, (d) full and (c) reduced with regularised noise maps."""
    regularised = _runs([DENSE], [REDUCED], people=SHOWN, noise_regularisation=NOISE_WEIGHT)
    return _runs([DENSE], [REDUCED, SIZE], people=SHOWN) + regularised


def _table2() -> list[Settings]:
    """Dense and sparse taps, reduced and full; w alone; and the same with a pixel loss, which sees the full size."""
    inputs = [REDUCED, SIZE]
    plain = _runs([DENSE, SPARSE], inputs) + _runs([SPARSE], [REDUCED], noise=False)
    return plain + _runs([DENSE, SPARSE], inputs, lam_mse=LAM_MSE)


def _fig6() -> list[Settings]:
    """Two networks more: the same one with random weights, and LPIPS."""
    return _runs([RANDOM, "st_lpips"], [REDUCED, SIZE], people=SHOWN)


def _fig12() -> list[Settings]:
    """w alone, by the features of one depth after the other."""
    taps = ["stem", *(f"blocks_{i}" for i in range(7))]
    return _runs(["mse", *(f"{DENSE}:{tap}" for tap in taps), DENSE], [SIZE], people=SHOWN[:2], noise=False)


FIGURES: dict[str, Callable[[], list[Settings]]] = {"fig1": _fig1, "table2": _table2, "fig6": _fig6, "fig12": _fig12}


def runs(figure: str) -> list[Settings]:
    """The settings of a figure's runs, without repetitions; `UnknownName` for a figure that is not in `FIGURES`."""
    if figure not in FIGURES:
        raise UnknownName(
            f"recorded runs of {figure!r}",
            expected=f"one of {', '.join(FIGURES)}",
            do=nearest(figure, list(FIGURES)) or "use a name from at_scale.FIGURES",
        )
    return list({repr(run): run for run in FIGURES[figure]()}.values())


def record(figure: str, *, workers: int = 0) -> Results:
    """Perform those runs of a figure that data/recorded lacks, and return them all.

    workers: as in `sweep`.

    Raises:
        MissingWeights: before anything starts; the packages of `make faces` are not there.
    """
    weights.load_generator(GENERATOR)
    wanted = runs(figure)
    for loss in dict.fromkeys(run.loss for run in wanted):
        inversions.loss_of(loss, "imagenet", None, 0, "cpu")
    return sweep(inversions.perform, wanted, name=f"recorded/{figure}", workers=workers, label=figure, keep=FOLDER)


def found(figure: str) -> Results:
    """Those runs of a figure that are in data/recorded, in the order of `runs`; `StoreError` if there is none."""
    return kept(inversions.perform, runs(figure), FOLDER)
