"""Pictures at a generator's own size, inverted one by one into a folder of the user's: `hrlab invert FOLDER`.

Each inversion is a run of a sweep, so an interrupted command goes on where it stopped, and a bad picture costs only
itself. The folder then holds

    NAME.png             the reconstruction
    NAME.safetensors     its ws and noise maps
    inversions.csv       a line a picture: its measures, seconds, and what went wrong
    .hrlab.json          which run the folder belongs to, and whether it is finished
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
from torch import Tensor

from .. import devices, inversion, metrics, optim, starts, store, weights
from ..errors import InvalidValue
from ..lab.place import cpus
from ..nets.mobile_stylegan import MobileGenerator
from ..nets.style_inr import StyleINR
from ..worlds.pictures import listed, picture
from .inversions import generator_of, loss_of, measured, png
from .panoramas import spare
from .sweep import Measured, check_numbers, sweep

if TYPE_CHECKING:
    import pandas as pd

TABLE, CODES, RECONSTRUCTION = "inversions.csv", "codes.safetensors", "image.png"
NUMBERS = ("num_steps", "lr", "beta2", "noise_gain", "lr_ramp_down", "lam_mse", "eps_initial", "noise_start", "seed")
MEAN = "mean"  # as a start: the projector's
SMALL, MANY = 256, 8  # edge of a generator whose layers gain nothing from threads; pictures that pay for new processes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a picture is inverted; the defaults are those for few steps, `inversion.QUICK`, not the projector's.

    image: a picture's name. generator: catalogue name or file. loss: for `losses.named`, at full input. perceptual: its
    weights, "shipped", "imagenet" or a file. start: "mean" begins at the mean code, as the projector does; otherwise
    a start of `hrlib.starts`, by catalogue name or file. num_steps, lr, beta2, noise_gain, lr_ramp_down, lam_mse,
    eps_initial, normalise_noise, noise_start, seed: as in `inversion.invert`. noise: optimise noise maps beside w+.
    columns: of `metrics.METRICS`. device: "auto" takes a GPU if there is one.

    Raises:
        InvalidValue: a number out of range.
    """

    image: str
    generator: str
    loss: str = "vgg_conv"
    perceptual: str = "shipped"
    start: str = MEAN
    num_steps: int = inversion.QUICK["num_steps"]
    lr: float = inversion.QUICK["lr"]
    beta2: float = inversion.QUICK["beta2"]
    noise_gain: float = 1.0
    lr_ramp_down: float = inversion.QUICK["lr_ramp_down"]
    lam_mse: float = 0.0
    noise: bool = True
    eps_initial: float = inversion.QUICK["eps_initial"]
    normalise_noise: bool = True
    noise_start: float = 1.0
    seed: int = 0
    columns: Sequence[str] = ("psnr", "ssim")
    device: str = "auto"

    def __post_init__(self) -> None:
        check_numbers(self, {name: inversion.RANGES[name] for name in NUMBERS})


def any_size(generator: str) -> bool:
    """Whether `panoramas` can invert with this generator: a Style-INR-GAN made from StyleGAN2."""
    return isinstance(generator_of(generator, "cpu"), StyleINR)


def suited(generator: str) -> dict[str, Any]:
    """The settings that differ from the defaults for a generator; for a MobileStyleGAN, as in the recorded runs."""
    start = {"start": name} if (name := starts.of(generator)) else {}
    if isinstance(generator_of(generator, "cpu"), MobileGenerator):
        return start | {
            "loss": "efficientnet_dense",
            "perceptual": "imagenet",
            "lr": 0.05,  # its codes are a third as wide as a StyleGAN2's: at 0.2 a run of 60 steps ends 3 dB lower
            "noise_gain": 4.0,  # its noise strengths are small
            "normalise_noise": False,
            "noise_start": 0.0,
        }
    return start


def grid(
    names: Sequence[str],
    *,
    generator: str,
    loss: str | None = None,
    perceptual: str | None = None,
    start: str | None = None,
    num_steps: int | None = None,
    lr: float | None = None,
    lam_mse: float | None = None,
    noise: bool | None = None,
    seed: int | None = None,
    device: str | None = None,
) -> list[Settings]:
    """A run for `perform` for each picture of `worlds.pictures.listed(names)`.

    The other arguments are those of `Settings`; None stands for what suits the generator.
    """
    given = dict(loss=loss, perceptual=perceptual, num_steps=num_steps, lr=lr, lam_mse=lam_mse, noise=noise, seed=seed)
    given |= {"device": device, "start": start}
    how = suited(generator) | {name: value for name, value in given.items() if value is not None}
    return [Settings(image=name, generator=generator, **how) for name in listed(list(names))]


def inversion_of(s: Settings, x: Tensor) -> optim.Run[inversion.Result]:
    """The run that inverts pictures x [N, 3, H, W] in [-1, 1], on their device, as the settings say."""
    where = str(x.device)
    G = generator_of(s.generator, where)
    return inversion.invert(
        G,
        x,
        loss_of(s.loss, s.perceptual, None, s.seed, where),
        num_steps=s.num_steps,
        lr=s.lr,
        beta2=s.beta2,
        noise_gain=s.noise_gain,
        lr_ramp_down=s.lr_ramp_down,
        lam_mse=s.lam_mse,
        optimise_noise=s.noise,
        ws_init=None if s.start == MEAN else start_of(s.start).codes(x, G),
        eps_initial=s.eps_initial,
        normalise_noise=s.normalise_noise,
        noise_start=s.noise_start,
        seed=s.seed,
    )


def perform(s: Settings) -> Measured:
    """Invert one picture: the measures, the reconstruction as image.png, ws and noise maps as codes.safetensors."""
    where = str(devices.choose(s.device))
    x = picture(s.image, generator_of(s.generator, where).resolution).to(where)
    found = optim.solve(inversion_of(s, x))
    codes = {"ws": found.ws} | {inversion.NOISE + k: v for k, v in found.noise.items()}
    codes = safetensors.torch.save({k: v.cpu().contiguous() for k, v in codes.items()})
    return Measured(measured(found.image, x, s.columns), {RECONSTRUCTION: png(found.image), CODES: codes})


@weights.cached(4)
def start_of(name: str) -> starts.Start:
    """A start of `hrlib.starts` by catalogue name or file, kept by the process that uses it."""
    return starts.load(name)


def invert_into(
    runs: Sequence[Settings], folder: str | Path, *, workers: int | None = None, force: bool = False
) -> pd.DataFrame:
    """Perform runs that differ in the picture alone, leave their results in a folder, and return the table.

    Args:
        runs: from `grid`. Pictures are cropped and resized to the generator's own size; of a face in a larger
            photograph, `hrlab align` makes an aligned picture.
        folder: new, empty, or that of an interrupted call with the same runs.
        workers: processes, as in `sweep`; 0 for none. None: one a CPU where that is quicker, with many pictures of
            small networks, whose layers gain nothing from threads; else none.
        force: take the folder whatever it holds, replacing only files with the names of this call's.

    Raises:
        StoreError: before anything is inverted: the folder holds something else, or one of the pictures under the name
            of a result. InvalidValue: two pictures of one name. UnknownName, MissingWeights: a loss. What is wrong with
            one picture goes into its line of the table.
    """
    folder, first = Path(folder), runs[0]
    titles = [_title(run.image) for run in runs]
    if twice := sorted({t for t in titles if titles.count(t) > 1}):
        raise InvalidValue(
            f"{titles.count(twice[0])} pictures called {twice[0]!r}",
            expected="different names, since each reconstruction is called after its picture",
            do="rename one, or invert them into different folders",
        )
    metrics.check_columns(first.columns)
    loss_of(first.loss, first.perceptual, None, first.seed, "cpu")
    if first.start != MEAN:
        start_of(first.start).check(generator_of(first.generator, "cpu"))
    names = [TABLE, *(f"{title}{suffix}" for title in titles for suffix in (".png", ".safetensors"))]
    for run in runs:
        if run.image.startswith("file:"):
            spare(Path(run.image.removeprefix("file:")), folder, names)
    identity = asdict(first) | {"image": [run.image for run in runs]}
    identity["weights"] = store.fingerprint(generator_of(first.generator, "cpu").state_dict())
    files = [glob.escape(name) for name in names]
    if workers is None:
        small = generator_of(first.generator, "cpu").resolution <= SMALL
        pays = small and len(runs) >= MANY and cpus() > 1 and devices.choose(first.device).type == "cpu"
        workers = cpus() if pays else 0
    with store.claimed(folder, "run of `hrlab invert`", identity, files=files, force=force):
        found = sweep(perform, runs, name="own_size", workers=workers, label="inversions")
        table = found.table[["image", *first.columns, "error"]].assign(seconds=found.seconds.round(1))
        for i in table.index[table["error"] == ""]:
            store.write_bytes(folder / f"{titles[i]}.png", found.file(i, RECONSTRUCTION).read_bytes())
            store.write_bytes(folder / f"{titles[i]}.safetensors", found.file(i, CODES).read_bytes())
        store.write_bytes(folder / TABLE, table.to_csv(index=False, float_format="%.5g").encode())
    return table


def _title(name: str) -> str:
    """What the results of a picture are called: the stem of its file, or its name without a colon."""
    kind, _, what = name.partition(":")
    return Path(what).stem if kind == "file" else name.replace(":", "_")
