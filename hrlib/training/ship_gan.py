"""From a GAN's training folder to data/weights: generator, discriminator, log and model cards.

A card says what the training left in its folder (checkpoint with the recipe, log.csv, and history.md if somebody
intervened by hand), copied to `<name>.json` and `<name>.log.csv`; and what `record` entered when it was measured on the
shipped weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from .. import weights
from ..errors import StoreError, UnknownName, nearest
from ..store import read_json, write_json
from . import gan, gan_cards, gan_measures, loop, shipped_gans, shipping
from .picture_sets import PictureSet
from .recipe import GanRecipe

HALF_DB = 50.0  # files are stored in 16 bits if that changes the pictures by less: PSNR against those of 32-bit weights


def free(name: str, *, out: Path | None = None, force: bool = False) -> Path:
    """The folder `out` (None: data/weights), if all files of the pair may be written there; see `shipping.free`."""
    shipped_gans.named(name)  # a wrong name is found first
    out = Path(out or shipping.shipped())
    file, critic = _files(name, out)
    shipping.free(file, ".json", ".log.csv", force=force)
    shipping.free(critic, force=force)
    return out


def _files(name: str, out: Path) -> tuple[Path, Path]:
    """Of generator and discriminator."""
    return out / f"{name}.safetensors", out / f"{name}_discriminator.safetensors"


def ship(folder: Path, *, name: str, out: Path | None = None, force: bool = False) -> Path:
    """Write G_ema and D of a training folder, with log, facts and cards, to a folder; return the facts' file.

    Earlier measures are dropped: they belong to other weights.

    Args:
        folder: of the training.
        name: of the shipped pair.
        out: a folder; None is data/weights, and the pair enters its catalogue.
        force: replace a pair of that name.

    Raises:
        StoreError: `folder` holds no training; files of the pair exist in `out`, or cannot be written there.
    """
    out, network = free(name, out=out, force=force), shipped_gans.named(name)
    trained = loop.trained(folder)
    state, recipe = gan.finished(trained), GanRecipe.read(trained.recipe)
    G, D = state.G_ema.eval(), state.D.eval()
    decibel = _halved(G)
    half = decibel >= HALF_DB
    facts = {
        "world": network.world,
        "people": [network.count, network.n],
        "recipe": {**recipe.summary(), **_begun(recipe)},
        "images": trained.images,
        "seconds": trained.seconds,
        "hardware": trained.hardware,
        "history": trained.history,
        "codes": [G.num_ws, G.w_dim],
        "parameters": {"G": _size(G), "D": _size(D)},
        "noise_strengths": {
            k: float(G.synthesis.get_parameter(f"{k}.noise_strength")) for k in G.synthesis.conv_names()
        },
        "accuracy": trained.row.get("accuracy"),
        "half": half,
        "half_psnr": decibel if math.isfinite(decibel) else None,
        "measures": {},
    }
    file, critic = _files(name, out)
    for net, to, what, log in ((G, file, "generator", folder), (D, critic, "discriminator", None)):
        sentence = f"{what} of {network.world}, trained by hrlib: {trained.images:,} images"
        card = getattr(gan_cards, what)(name, facts)
        shipping.ship(net, to, card=card, sentence=sentence, half=half, folder=log)
    write_json(out / f"{name}.json", facts)
    return out / f"{name}.json"


def record(name: str, measured: str, value: Mapping[str, Any], *, out: Path | None = None) -> None:
    """Enter a measure of the shipped weights ("ladder", "layout" or "inversion") in the facts, and renew the cards."""
    if measured not in gan_cards.SECTIONS:
        raise UnknownName(
            f"measure {measured!r}",
            expected=f"one of {', '.join(gan_cards.SECTIONS)}",
            do=nearest(measured, list(gan_cards.SECTIONS)) or "name one of these measures",
        )
    facts = _facts(name, out)
    facts["measures"][measured] = dict(value)
    write_json(_facts_file(name, out), facts)
    write_cards(name, out=out)


def ladder(name: str, *, n: int = 10_000, other: PictureSet | None = None, out: Path | None = None) -> pd.DataFrame:
    """`gan_measures.ladder` of a shipped generator, recorded."""
    world = _facts(name, out)["world"]
    table = gan_measures.ladder(_generator(name, out), world, n=n, other=other)
    record(name, "ladder", {"n": n, "training_set": other is not None, "rows": rows(table)}, out=out)
    return table


def layout(
    name: str, *, n: int = 500, sets: tuple[PictureSet, PictureSet] | None = None, out: Path | None = None
) -> pd.DataFrame:
    """`gan_measures.pose_correlation` of a shipped generator with its source, which is the catalogue's, recorded.

    sets: renders of the source's and of its own world, on which the readings are fitted; by default they are made now.
    """
    facts = _facts(name, out)
    if not gan_cards.shares_layout(facts):
        raise UnknownName(
            f"the layout of {name}",
            expected="a generator of another portrait domain",
            do="name cartoon_inr128, caricature_inr128 or anime_inr128",
        )
    source = facts["recipe"]["source"]
    generators = weights.load_generator(source), _generator(name, out)
    if sets is None:
        worlds = (shipped_gans.named(source).world, facts["world"])
        size = dict(resolution=facts["recipe"]["resolution"], seed=gan_measures.SEEDS[0])
        sets = tuple(gan_measures.renders(world, 2500, **size) for world in worlds)
    table = gan_measures.pose_correlation(*generators, *sets, n=n)
    record(name, "layout", {"n": n, "source": source, "rows": rows(table)}, out=out)
    return table


def measures(name: str, *, n: int, out: Path | None = None) -> Iterator[tuple[str, pd.DataFrame]]:
    """Measure everything that applies to this generator; yields (what, table) one after the other."""
    yield "ladder", ladder(name, n=n, out=out)
    if gan_cards.shares_layout(_facts(name, out)):
        yield "layout", layout(name, out=out)


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON-able rows, NaN as None."""
    return [{k: None if v != v else v for k, v in row.items()} for row in table.to_dict("records")]


def write_cards(name: str, *, out: Path | None = None) -> None:
    """Write both model cards from the facts and measures in `<name>.json`, and renew the catalogue's entries."""
    facts, (file, critic) = _facts(name, out), _files(name, Path(out or shipping.shipped()))
    shipping.enter(file, gan_cards.generator(name, facts))
    shipping.enter(critic, gan_cards.discriminator(name, facts))


def _generator(name: str, out: Path | None) -> nn.Module:
    return weights.load_generator(Path(out or shipping.shipped()) / f"{name}.safetensors")


def _facts_file(name: str, out: Path | None) -> Path:
    return Path(out or shipping.shipped()) / f"{name}.json"


def _facts(name: str, out: Path | None) -> dict[str, Any]:
    file = _facts_file(name, out)
    if not file.exists():
        raise StoreError(f"no {file}", expected="a shipped generator", do=f"run `hrlab train ship {name}` first")
    return read_json(file)


@torch.inference_mode()
def _halved(G: nn.Module, n: int = 64) -> float:
    """PSNR in dB of G's pictures with weights rounded to 16 bits, against those with its own, on n equal draws."""
    own = gan_measures.draw(G, n, seed=0)
    state = {k: v.clone() for k, v in G.state_dict().items()}
    rounded = {k: v.half().float() if v.is_floating_point() else v for k, v in state.items()}
    G.load_state_dict(rounded)
    other: Tensor = gan_measures.draw(G, n, seed=0)
    G.load_state_dict(state)
    return float(-10 * math.log10(max(float(((own - other) / 2).square().mean()), 1e-30)))


def _begun(recipe: GanRecipe) -> dict[str, str | None]:
    """Where the networks started: a name of the catalogue, or the name of a file without its folder."""
    return {k: v and Path(v).name for k in ("source", "backbone_from") for v in [getattr(recipe, k)]}


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
