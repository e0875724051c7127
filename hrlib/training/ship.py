"""From a training folder to data/weights: generator, discriminator, the log of the run, and model cards.

Everything a card says comes from two places: what the training left in its folder (checkpoint with the recipe, log.csv,
and history.md where somebody intervened by hand and says so), copied to `<name>.json` and `<name>.log.csv` at
shipping; and what was measured of the shipped weights, entered by `record` whenever it is measured.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from torch import Tensor, nn

from .. import weights
from .._catalogue import DATA
from ..errors import StoreError, UnknownName
from ..store import read_json, write_json
from . import cards, family, measure, run
from .data import RenderedSet
from .recipe import Recipe

HALF_DB = 50.0  # PSNR of pictures by 16-bit weights against 32-bit ones from which the files are stored in 16 bits


def ship(folder: Path, *, name: str, out: Path = DATA / "weights") -> Path:
    """Enter G_ema and D of a training folder in the catalogue, with log, facts and cards; return the facts' file.

    Earlier measures are forgotten: they belong to other weights.
    """
    member, folder = family.member(name), Path(folder)
    recipe, _, step, seconds = run.load(folder)
    with safe_open(folder / run.CHECKPOINT, framework="pt") as f:
        hardware = f.metadata()["hardware"]
    state = run.finished(folder)
    G, D = state.G_ema.eval(), state.D.eval()
    decibel = _halved(G)
    half = decibel >= HALF_DB
    with open(folder / run.LOG, newline="") as f:
        log = list(csv.DictReader(f))
    history = folder / "history.md"
    facts = {
        "world": member.world,
        "people": [member.count, member.n],
        "recipe": {**recipe.summary(), **_begun(recipe)},
        "images": step * recipe.batch,
        "seconds": seconds,
        "hardware": hardware,
        "history": history.read_text(encoding="utf-8").strip() if history.exists() else "",
        "codes": [G.num_ws, G.w_dim],
        "parameters": {"G": _size(G), "D": _size(D)},
        "noise_strengths": {
            k: float(G.synthesis.get_parameter(f"{k}.noise_strength")) for k in G.synthesis.conv_names()
        },
        "accuracy": float(log[-1]["accuracy"]) if log[-1]["accuracy"] else None,
        "half": half,
        "half_psnr": decibel if math.isfinite(decibel) else None,
        "measures": {},
    }
    shutil.copyfile(folder / run.LOG, out / f"{name}.log.csv")
    for net, key, what in ((G, name, "generator"), (D, f"{name}_discriminator", "discriminator")):
        sentence = f"{what} of {member.world}, trained by hrlib: {facts['images']:,} images"
        weights.save_network(net, out / f"{key}.safetensors", card=sentence, half=half)
    write_json(out / f"{name}.json", facts)
    write_cards(name, out=out)
    return out / f"{name}.json"


def record(name: str, measured: str, value: Mapping[str, Any], *, out: Path = DATA / "weights") -> None:
    """Enter a measure of the shipped weights ("ladder", "layout" or "inversion") in the facts, and renew the cards."""
    if measured not in cards.SECTIONS:
        raise UnknownName(
            f"measure {measured!r}", expected=f"one of {', '.join(cards.SECTIONS)}", do="choose one of them"
        )
    facts = _facts(name, out)
    facts["measures"][measured] = dict(value)
    write_json(out / f"{name}.json", facts)
    write_cards(name, out=out)


def ladder(
    name: str, *, n: int = 10_000, other: RenderedSet | None = None, out: Path = DATA / "weights"
) -> pd.DataFrame:
    """`measure.ladder` of a shipped generator, recorded."""
    world = _facts(name, out)["world"]
    table = measure.ladder(weights.load_generator(out / f"{name}.safetensors"), world, n=n, other=other)
    record(name, "ladder", {"n": n, "training_set": other is not None, "rows": rows(table)}, out=out)
    return table


def layout(
    name: str, *, n: int = 500, sets: tuple[RenderedSet, RenderedSet] | None = None, out: Path = DATA / "weights"
) -> pd.DataFrame:
    """`measure.pose_correlation` of a shipped generator with its source, recorded.

    sets: renders of the source's and of its own world, on which the readings are fitted; by default they are made now.
    """
    facts = _facts(name, out)
    if not cards.shares_layout(facts):
        raise UnknownName(
            f"the layout of {name}", expected="a generator of another portrait domain", do="see training/family.py"
        )
    source = facts["recipe"]["source"]
    generators = [weights.load_generator(out / f"{key}.safetensors") for key in (source, name)]
    if sets is None:
        worlds = (_facts(source, out)["world"], facts["world"])
        size = dict(resolution=facts["recipe"]["resolution"], seed=measure.SEEDS[0])
        sets = tuple(measure.renders(world, 2500, **size) for world in worlds)
    table = measure.pose_correlation(*generators, *sets, n=n)
    record(name, "layout", {"n": n, "source": source, "rows": rows(table)}, out=out)
    return table


def measures(name: str, *, n: int, out: Path = DATA / "weights") -> Iterator[tuple[str, pd.DataFrame]]:
    """Measure all that concerns this kind of generator; yields (what, table) one after the other."""
    yield "ladder", ladder(name, n=n, out=out)
    if cards.shares_layout(_facts(name, out)):
        yield "layout", layout(name, out=out)


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON-able rows, NaN as None."""
    return [{k: None if v != v else v for k, v in row.items()} for row in table.to_dict("records")]


def write_cards(name: str, *, out: Path = DATA / "weights") -> None:
    """Write both model cards from the facts and measures in `<name>.json`, and renew their catalogue entries."""
    facts = _facts(name, out)
    for key, text in ((name, cards.generator), (f"{name}_discriminator", cards.discriminator)):
        weights.register(key, out / f"{key}.safetensors", card=text(name, facts))


def _facts(name: str, out: Path) -> dict[str, Any]:
    file = out / f"{name}.json"
    if not file.exists():
        raise StoreError(f"no {file}", expected="a shipped generator", do=f"run `hrlab train ship {name}` first")
    return read_json(file)


@torch.inference_mode()
def _halved(G: nn.Module, n: int = 64) -> float:
    """PSNR in dB of G's pictures with weights rounded to 16 bits, against those with its own, on n equal draws."""
    own = measure.draw(G, n, seed=0)
    state = {k: v.clone() for k, v in G.state_dict().items()}
    rounded = {k: v.half().float() if v.is_floating_point() else v for k, v in state.items()}
    G.load_state_dict(rounded)
    other: Tensor = measure.draw(G, n, seed=0)
    G.load_state_dict(state)
    return float(-10 * math.log10(max(float(((own - other) / 2).square().mean()), 1e-30)))


def _begun(recipe: Recipe) -> dict[str, str | None]:
    """Where the networks began: catalogue names as they are, of a file on this machine the name without its folder."""
    return {k: v and Path(v).name for k in ("source", "backbone_from") for v in [getattr(recipe, k)]}


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
