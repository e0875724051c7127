"""The recorded runs: the paper's experiments at 1024 pixels, on people who do not exist (profile `ffhq`).

`FIGURES` lists them in the order in which they are made, so that what is missing is the end of the list::

    results("fig1")                  # the numbers and pictures that are in data/recorded; needs no network
    results("fig1", perform=True)    # makes the others first: hours on a CPU, minutes on a GPU; can be interrupted

The generator is MobileStyleGAN and the perceptual network EfficientNet-Lite0, because they install from the Python
package index; the paper has StyleGAN2 and VGG16. Dense taps stand for the paper's convolutional features, and sparse
taps for its ReLU features. The inversion is the published projector's, with three differences:

- 150 steps instead of 1000, a CPU's compromise; the PSNR gained over the last 50 says how far a run is from its end;
- no exploration noise: the projector's eps is as wide as the codes themselves, and MobileStyleGAN, which lacks
  StyleGAN2's demodulation by w, answers with a grey picture for most of so short a run;
- noise maps that start at zero and are not normalised, so that whatever they hold at the end was put there by the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from .. import devices, features, inversion, losses, metrics, optim, pivotal, weights
from ..errors import UnknownName, nearest
from ..image import resize
from ..optim import Iterate
from ..retrieval import id_retrieval
from ..worlds import imagined
from ..worlds.pictures import picture
from . import inversions
from .inversions import Settings
from .sweep import Measured, Results, kept, sweep

GENERATOR, INR = "ffhq_mobile1024", "ffhq_inr1024"
SIZE, REDUCED = 1024, 256  # edges of the picture and of the reduced input, pixels, as in the paper
STEPS = 150
PEOPLE = tuple(f"imagined:{seed}" for seed in imagined.CHOSEN[:6])
EYE, CHEEK, HAIR = (0.32, 0.42, 0.13, 0.13), (0.28, 0.56, 0.13, 0.13), (0.42, 0.05, 0.13, 0.13)  # of lab.image_grid
# Of ID retrieval; the first of them are looked up.
CROWD = tuple(f"imagined:{seed}" for seed in (*imagined.CHOSEN, *range(60, 60 + 50 - len(imagined.CHOSEN))))
DENSE, SPARSE, RANDOM = "efficientnet_dense", "efficientnet_sparse", "efficientnet_random"
LAM_MSE = 1000.0  # of the pixel loss where there is one: its term is 40 at 20 dB, 4 at 30 dB
SLOWER = 0.03  # rate for single taps: at 0.1 some codes leave all faces, and stay in a blur
NOISE_WEIGHT = 1000.0  # of the regularisation of the noise maps in Fig. 1 (c)
# Of an inversion; the head of this file gives the reasons.
NO_EPS, FREE_NOISE = {"eps_initial": 0.0}, {"normalise_noise": False, "noise_start": 0.0}
COLUMNS = (
    "psnr",
    "ssim",
    "lpips_st_alex",
    "artefact_energy",
    "excess_energy",
    "incoherent_energy",
    "coherence",
    "roughness",
    "low_lost",
    "high_lost",
)


# --- the tasks --------------------------------------------------------------------------------------------------------


def show(*, image: str, size: int) -> Measured:
    """A target as image.webp, so that a reader sees it without the generator that drew it."""
    return Measured({}, {"image.webp": inversions.webp(picture(image, size))})


def stages(*, image: str, loss: str, num_steps: int, steps: Sequence[int], size: int, shown: int) -> Measured:
    """One inversion, watched: the picture that the loss saw in each of `steps` as step_N.webp, `shown` pixels large.

    psnr_N is that picture's PSNR. The settings are those of the recorded inversions.
    """
    x, G, d = _ready(image, size, loss)
    values, files = {}, {}

    def watch(iterates: Iterator[Iterate]) -> Iterator[Iterate]:
        for it in iterates:
            if it.step + 1 in steps:
                values[f"psnr_{it.step + 1}"] = float(metrics.psnr(it.image, x)[0])
                files[f"step_{it.step + 1}.webp"] = inversions.webp(resize(it.image.clamp(-1, 1), shown))
            yield it

    optim.solve(inversion.invert(G, x, d, num_steps=num_steps, **NO_EPS, **FREE_NOISE), watch=watch)
    return Measured(values, files)


def tuned(*, image: str, loss: str, pivot_steps: int, num_steps: int, size: int, columns: Sequence[str]) -> Measured:
    """Pivotal tuning: an inversion in W without noise maps, then the generator's weights; see `hrlib.pivotal`."""
    x, G, d = _ready(image, size, loss)
    pivot = optim.solve(inversion.invert(G, x, d, num_steps=pivot_steps, space="w", optimise_noise=False, **NO_EPS))
    found = optim.solve(pivotal.tune(G, pivot.ws, x, d, num_steps=num_steps, lam_mse=LAM_MSE))
    values = inversions.measured(found.image, x, columns)
    return Measured(
        values | {"psnr_of_pivot": float(metrics.psnr(pivot.image, x)[0])}, {"image.webp": inversions.webp(found.image)}
    )


def oblong(
    *, image: str, loss: str, noise: bool, num_steps: int, size: Sequence[int], columns: Sequence[str]
) -> Measured:
    """A target of (H, W) pixels, as target.webp, inverted with the Style-INR-GAN, as image.webp (Fig. 4).

    It is the upper left part of a square picture: there the network, which has seen faces in the middle of a square
    only, expects the face on a canvas of this size.
    """
    height, width = size
    x, G, d = _ready(image, SIZE, loss, generator=INR)
    x = x[:, :, :height, :width].contiguous()
    found = optim.solve(inversion.invert(G, x, d, num_steps=num_steps, optimise_noise=noise, **NO_EPS, **FREE_NOISE))
    values = inversions.measured(found.image, x, columns)
    return Measured(values, {"target.webp": inversions.webp(x), "image.webp": inversions.webp(found.image)})


def recognised(*, image: str, crowd: int, loss: str, num_steps: int, size: int) -> Measured:
    """ID retrieval (Sec. III-D) by dlib: is the person of `image` found among `crowd` people?

    Two pictures are looked up: "inverted", by codes alone, and "another", which shows the same person in another pose
    and light. rank_WHICH: 1 + how many people are nearer than the right one; distance_WHICH: squared, to that person.
    """
    x, G, d = _ready(image, size, loss)
    found = optim.solve(inversion.invert(G, x, d, num_steps=num_steps, optimise_noise=False, **NO_EPS))
    look = weights.load_identity("dlib").embed
    shown = {"inverted": found.image.clamp(-1, 1).cpu(), "another": picture(f"{image}.1", size)}
    labels = [CROWD.index(image)] * len(shown)
    result = id_retrieval(_vectors(crowd, size), torch.cat([look(picture) for picture in shown.values()]), labels)
    values = {f"rank_{which}": float(rank) for which, rank in zip(shown, result.rank, strict=True)}
    values |= {f"distance_{which}": float(own) for which, own in zip(shown, result.own, strict=True)}
    return Measured(values, {"image.webp": inversions.webp(resize(shown["inverted"], size // 4))})


@lru_cache(maxsize=1)
def _vectors(crowd: int, size: int) -> Tensor:
    """[crowd, 128]: dlib's vectors of the first people of CROWD."""
    look = weights.load_identity("dlib").embed
    return torch.cat([look(picture(name, size)) for name in CROWD[:crowd]])


def _ready(image: str, size: int, loss: str, generator: str = "") -> tuple[Tensor, nn.Module, losses.Loss]:
    """(the target, the generator, the loss at full input) on the worker's device."""
    x = picture(image, size).to(devices.choose("auto"))
    where = str(x.device)
    return (
        x,
        inversions.generator_of(generator or GENERATOR, where),
        inversions.loss_of(loss, "imagenet", None, 0, where),
    )


@torch.no_grad()
def seen(*, image: str, size: int, reduced: int) -> Measured:
    """Dense and sparse features of a picture, means over the taps: zeros_KIND, the share of zeros, and shift_KIND.

    The shift is how far the mean responses of the channels move when the input is reduced, in units of their spread.
    """
    x, values = picture(image, size), {}
    for kind in ("dense", "sparse"):
        f = features.efficientnet_lite0("imagenet", kind)
        full, small = (f(x, f.taps, resize=edge) for edge in (None, reduced))
        moved = [(full[t].mean((2, 3)) - small[t].mean((2, 3))).norm() / full[t].std((2, 3)).norm() for t in f.taps]
        values[f"zeros_{kind}"] = float(torch.stack([(full[t] == 0).float().mean() for t in f.taps]).mean())
        values[f"shift_{kind}"] = float(torch.stack(moved).mean())
    return Measured(values)


# --- what is recorded -------------------------------------------------------------------------------------------------

NEEDS = (GENERATOR, "efficientnet_lite0_imagenet", "st_lpips_alex")


@dataclass(frozen=True)
class Figure:
    """The runs behind a figure or table: `task` for each of `runs`; kept in data/recorded/`folder`.

    needs: catalogue names of what the task reads, so that a missing one is reported before the first run starts.
    """

    task: Callable[..., Measured]
    runs: Sequence[Any]
    folder: str
    needs: Sequence[str] = NEEDS


def _inversions(*groups: Sequence[Settings]) -> Figure:
    return Figure(
        inversions.perform, list({repr(run): run for group in groups for run in group}.values()), "inversions"
    )


def _runs(
    losses: Sequence[str],
    inputs: Sequence[int],
    *,
    people: Sequence[str] = PEOPLE,
    space: str = "w+",
    noise: bool = True,
    lam_mse: float = 0.0,
    noise_regularisation: float = 0.0,
    lr: float = 0.1,
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
            lr=lr,
            **NO_EPS,
            lam_mse=lam_mse,
            noise_regularisation=noise_regularisation,
            **FREE_NOISE,
            space=space,
            columns=list(COLUMNS),
            lossy=True,
            device="auto",
        )
        for image, loss, edge in product(people, losses, inputs)
    ]


def _fig1(image: str) -> list[list[Settings]]:
    regularised = _runs([DENSE], [REDUCED], people=[image], noise_regularisation=NOISE_WEIGHT)
    return [_runs([DENSE], BOTH, people=[image]), regularised]


BOTH = [REDUCED, SIZE]
TAPS = ["stem", *(f"blocks_{i}" for i in range(7))]
FIGURES = {
    "targets": Figure(show, [{"image": image, "size": SIZE} for image in PEOPLE], "targets"),
    "stages": Figure(
        stages,
        [
            {
                "image": PEOPLE[0],
                "loss": DENSE,
                "num_steps": STEPS,
                "steps": [1, 3, 6, 10, 15, 22, 30, 40, 55, 75, 100, STEPS],
                "size": SIZE,
                "shown": 384,
            }
        ],
        "stages",
    ),
    "features": Figure(seen, [{"image": image, "size": SIZE, "reduced": REDUCED} for image in PEOPLE], "features"),
    # (b) reduced, (d) full, (c) reduced with regularised noise maps
    "fig1": _inversions(*(part for image in PEOPLE for part in _fig1(image))),
    # somebody who exists; the face is too small for measures of fine texture
    "photograph": _inversions(_runs([DENSE], [SIZE], people=["photo:astronaut_face"])),
    # w alone, beside Fig. 1 (d): a code per layer, and one code for all
    "fig4": _inversions(*(_runs([DENSE], [SIZE], noise=False, space=space) for space in ("w+", "w"))),
    # dense and sparse taps; w alone; the same with a pixel loss, which sees the full size in every row
    "table2": _inversions(
        _runs([DENSE, SPARSE], BOTH),
        _runs([DENSE], [SIZE], noise=False),
        _runs([DENSE, SPARSE], BOTH, lam_mse=LAM_MSE),
    ),
    "pivotal": Figure(
        tuned,
        [
            {
                "image": image,
                "loss": DENSE,
                "pivot_steps": STEPS // 2,
                "num_steps": STEPS // 2,
                "size": SIZE,
                "columns": list(COLUMNS),
            }
            for image in PEOPLE
        ],
        "pivotal",
    ),
    # a picture that is not square, by codes alone and by codes and noise maps
    "oblong": Figure(
        oblong,
        [
            {
                "image": PEOPLE[2],
                "loss": DENSE,
                "noise": noise,
                "num_steps": STEPS,
                "size": [SIZE, 832],
                "columns": list(COLUMNS),
            }
            for noise in (False, True)
        ],
        "oblong",
        needs=(*NEEDS, INR),
    ),
    "recognised": Figure(
        recognised,
        [{"image": image, "crowd": len(CROWD), "loss": DENSE, "num_steps": 75, "size": SIZE} for image in CROWD[:20]],
        "recognised",
        needs=(*NEEDS, "dlib_recognition", "dlib_landmarks5"),
    ),
    # the same network with random weights
    "fig6": _inversions(_runs([RANDOM], BOTH)),
    # w alone, by the features of one depth after the other
    "fig12": _inversions(
        _runs(["mse", *(f"{DENSE}:{tap}" for tap in TAPS), DENSE], [SIZE], people=PEOPLE[:1], noise=False, lr=SLOWER)
    ),
}


def originals(*, perform: bool = False) -> dict[str, Tensor]:
    """The targets, {name: [1, 3, H, W]}; arguments and errors as for `results`."""
    found = results("targets", perform=perform)
    return {name: found.image(i) for i, name in enumerate(found.table["image"])}


def results(figure: str, *, perform: bool = False, workers: int = 2) -> Results:
    """The runs of a figure that are in data/recorded, in the order of `FIGURES`.

    Args:
        figure: a key of `FIGURES`.
        perform: make those that are missing first.
        workers: as in `sweep`.

    Raises:
        UnknownName: no such figure. StoreError: nothing is there. MissingWeights: before anything starts, if runs are
        to be made and the packages of `make faces` are not there.
    """
    if figure not in FIGURES:
        raise UnknownName(
            f"recorded runs of {figure!r}",
            expected=f"one of {', '.join(FIGURES)}",
            do=nearest(figure, list(FIGURES)) or "use a name from at_scale.FIGURES",
        )
    f = FIGURES[figure]
    if perform:
        for name in f.needs:
            weights.path(name)
        made = sweep(f.task, f.runs, name=f"recorded_{figure}", workers=workers, label=figure, keep=f.folder).table
        for _, failed in made[made["error"] != ""].iterrows():
            print(f"failed: {figure}, {failed['image']}: {failed['error']}")
    return kept(f.task, f.runs, f.folder)
