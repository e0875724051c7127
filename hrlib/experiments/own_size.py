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

from .. import devices, inversion, metrics, optim, store
from ..errors import InvalidValue
from ..nets.mobile_stylegan import MobileGenerator
from ..nets.style_inr import StyleINR
from ..worlds.pictures import listed, picture
from .inversions import generator_of, loss_of, measured, png
from .panoramas import spare
from .sweep import Measured, check_numbers, sweep

if TYPE_CHECKING:
    import pandas as pd

TABLE, CODES, RECONSTRUCTION = "inversions.csv", "codes.safetensors", "image.png"
RANGES = {name: inversion.RANGES[name] for name in ("num_steps", "lr", "lam_mse", "eps_initial", "noise_start", "seed")}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a picture is inverted; the defaults are the published projector's, except for the number of steps.

    image: a picture's name. generator: catalogue name or file. loss: for `losses.named`, at full input. perceptual: its
    weights, "shipped", "imagenet" or a file. num_steps, lr, lam_mse, eps_initial, normalise_noise, noise_start, seed:
    as in `inversion.invert`. noise: optimise noise maps beside w+. columns: of `metrics.METRICS`. device: "auto" takes
    a GPU if there is one.

    Raises:
        InvalidValue: a number out of range.
    """

    image: str
    generator: str
    loss: str = "vgg_conv"
    perceptual: str = "shipped"
    num_steps: int = 150
    lr: float = 0.1
    lam_mse: float = 0.0
    noise: bool = True
    eps_initial: float = 0.05
    normalise_noise: bool = True
    noise_start: float = 1.0
    seed: int = 0
    columns: Sequence[str] = ("psnr", "ssim")
    device: str = "auto"

    def __post_init__(self) -> None:
        check_numbers(self, RANGES)


def any_size(generator: str) -> bool:
    """Whether `panoramas` can invert with this generator: a Style-INR-GAN made from StyleGAN2."""
    return isinstance(generator_of(generator, "cpu"), StyleINR)


def suited(generator: str) -> dict[str, Any]:
    """The settings that differ from the defaults for a generator: those of the recorded runs for a MobileStyleGAN."""
    if isinstance(generator_of(generator, "cpu"), MobileGenerator):
        return {
            "loss": "efficientnet_dense",
            "perceptual": "imagenet",
            "eps_initial": 0.0,
            "normalise_noise": False,
            "noise_start": 0.0,
        }
    return {}


def grid(
    names: Sequence[str],
    *,
    generator: str,
    loss: str | None = None,
    perceptual: str | None = None,
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
    given |= {"device": device}
    how = suited(generator) | {name: value for name, value in given.items() if value is not None}
    return [Settings(image=name, generator=generator, **how) for name in listed(list(names))]


def perform(s: Settings) -> Measured:
    """Invert one picture: the measures, the reconstruction as image.png, ws and noise maps as codes.safetensors."""
    where = str(devices.choose(s.device))
    G = generator_of(s.generator, where)
    x = picture(s.image, G.resolution).to(where)
    run = inversion.invert(
        G,
        x,
        loss_of(s.loss, s.perceptual, None, s.seed, where),
        num_steps=s.num_steps,
        lr=s.lr,
        lam_mse=s.lam_mse,
        optimise_noise=s.noise,
        eps_initial=s.eps_initial,
        normalise_noise=s.normalise_noise,
        noise_start=s.noise_start,
        seed=s.seed,
    )
    found = optim.solve(run)
    codes = {"ws": found.ws} | {inversion.NOISE + k: v for k, v in found.noise.items()}
    codes = safetensors.torch.save({k: v.cpu().contiguous() for k, v in codes.items()})
    return Measured(measured(found.image, x, s.columns), {RECONSTRUCTION: png(found.image), CODES: codes})


def invert_into(runs: Sequence[Settings], folder: str | Path, *, workers: int = 0, force: bool = False) -> pd.DataFrame:
    """Perform runs that differ in the picture alone, leave their results in a folder, and return the table.

    Args:
        runs: from `grid`. Pictures are cropped and resized to the generator's own size; of a face in a larger
            photograph, `hrlab align` makes an aligned picture.
        folder: new, empty, or that of an interrupted call with the same runs.
        workers: processes, as in `sweep`; 0 for none.
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
    names = [TABLE, *(f"{title}{suffix}" for title in titles for suffix in (".png", ".safetensors"))]
    for run in runs:
        if run.image.startswith("file:"):
            spare(Path(run.image.removeprefix("file:")), folder, names)
    identity = asdict(first) | {"image": [run.image for run in runs]}
    identity["weights"] = store.fingerprint(generator_of(first.generator, "cpu").state_dict())
    files = [glob.escape(name) for name in names]
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
