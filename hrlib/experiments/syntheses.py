"""Galleries of contents and references, and sweeps of variants of cross-domain synthesis over their pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import lso, store
from ..lab.place import root
from ..worlds.pictures import listed
from . import galleries, stylisation
from .sweep import Results, keyed, sweep

DEFAULTS = stylisation.Settings()


def measures(judges: Mapping[str, str]) -> dict[str, str]:
    """Measures of a synthesis against its content, mixed image and reference: name -> column of `stylisation.Settings`.

    judges: "identity", "lpips" and "style" -> a measure of `metrics.METRICS`; "" leaves out what it would measure.
    """
    found = {"colour_to_content": "content:colour", "colour_change": "mixed:colour", "roughness": "content:roughness"}
    found |= {"pose_error": "pose_error", "background_change": "background", "loss": "loss"}
    for judge, names in {
        "identity": {"identity_distance": "content"},
        "lpips": {"lpips": "content"},
        "style": {"style_to_content": "content", "style_to_mixed": "mixed", "style_to_target": "reference"},
    }.items():
        if metric := judges.get(judge):
            found |= {name: f"{against}:{metric}" for name, against in names.items()}
    return found


@dataclass(frozen=True)
class Stage:
    """The codes that syntheses start from.

    contents: the contents, inverted in the source generator. styles: domain -> its references, inverted in its
    generator. source: the source generator. generators: domain -> target generator. perceptual: weights of the losses.
    """

    contents: galleries.BuiltGallery
    styles: dict[str, galleries.BuiltGallery]
    source: str
    generators: dict[str, str]
    perceptual: str

    def pairs(self, domain: str, n: int | None = None) -> list[tuple[str, str]]:
        """The first n contents (default: all), each with one reference; the references take turns."""
        contents, styles = self.contents.gallery.names, self.styles[domain].gallery.names
        return [(c, styles[i % len(styles)]) for i, c in enumerate(contents[:n])]

    def fixed(self, domain: str) -> dict[str, Any]:
        """The settings of a domain: its galleries and networks, as changes of `stylisation.Mix`."""
        files = {"contents": self.contents.path, "styles": self.styles[domain].path}
        paths = {name: f"file:{path}" for name, path in files.items()}
        networks = {"source": self.source, "target": self.generators[domain], "perceptual": self.perceptual}
        return paths | networks

    def lam_reg(self, share: float, settings: stylisation.Settings = DEFAULTS) -> float:
        """`lso.scaled_lam_reg` as a mean over all pairs of all domains, to two digits.

        settings: how contents and references are mixed, and the loss.
        """
        found = []
        for domain in self.styles:
            for run in stylisation.grid(self.pairs(domain), [self.fixed(domain)], settings):
                s = stylisation.Mixed(run, [run.style])
                found.append(lso.scaled_lam_reg(s.G, s.ws, s.x, s.loss, share=share))
        return float(f"{np.mean(found):.1e}")


@dataclass(frozen=True)
class Syntheses:
    """A finished sweep of variants over pairs.

    table: a row a run: "domain", "variant", "content", "style", the measures, "error".
    """

    table: pd.DataFrame
    _results: Results

    def values(self, measure: str, variant: str) -> pd.Series:
        """A measure of a variant by (domain, content, style), without runs that failed or do not have it."""
        rows = self.table[self.table["variant"] == variant].set_index(["domain", "content", "style"])
        return rows.get(measure, pd.Series(np.nan, rows.index)).astype(float).dropna()

    def difference(self, measure: str, a: str, b: str) -> pd.Series:
        """The measure of variant a minus that of variant b, pair by pair."""
        return (self.values(measure, a) - self.values(measure, b)).dropna()

    def image(self, domain: str, variant: str, content: str, style: str) -> Tensor | None:
        """The picture [1, 3, R, R] of one run; None when it failed."""
        wanted = {"domain": domain, "variant": variant, "content": content, "style": style}
        (row,) = self.table.index[(self.table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        return None if self.table["error"][row] else self._results.image(row)

    def seconds(self, variant: str) -> pd.Series:
        """The seconds that each run of a variant took on its worker."""
        return self._results.seconds[self.table["variant"] == variant]

    def images(self, variant: str) -> Tensor:
        """The pictures [N, 3, R, R] of a variant's successful runs, in the table's order."""
        good = self.table.index[(self.table["variant"] == variant) & (self.table["error"] == "")]
        return torch.cat([self._results.image(row) for row in good])


def synthesise(
    stage: Stage,
    variants: Mapping[str, Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    settings: stylisation.Settings = DEFAULTS,
    pairs: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    workers: int = 0,
    label: str = "syntheses",
    predict: bool = False,
) -> Syntheses:
    """Perform every variant for every pair of every domain, as one sweep, and print which runs failed.

    Args:
        stage: see `prepare`; it decides the galleries and networks.
        variants: name -> changes of `settings`.
        columns: name of a measure -> column of `stylisation.Settings`; see `measures`.
        settings: what all variants share.
        pairs: domain -> pairs (content, style); by default `Stage.pairs`.
        workers, label: as in `sweep`.
        predict: print first how long every variant will take.
    """
    pairs = {domain: stage.pairs(domain) for domain in stage.styles} if pairs is None else pairs
    runs, keys = [], []
    settings = replace(settings, columns=list(columns.values()))
    for domain, some in pairs.items():
        runs += stylisation.grid(some, list(variants.values()), settings.changed(stage.fixed(domain)))
        keys += [(domain, variant, *pair) for variant in variants for pair in some]
    names = [json.dumps(asdict(run)) for run in runs]  # two variants may ask for the same run
    kept = dict(zip(names, runs, strict=True))
    place = {name: i for i, name in enumerate(kept)}
    swept = sweep(
        stylisation.perform,
        list(kept.values()),
        name="stylisations",
        workers=workers,
        label=label,
        estimate=stylisation.estimate if predict else None,
        within=stylisation.WITHIN,
    ).at([place[name] for name in names])
    table = keyed(swept, pd.DataFrame(keys, columns=["domain", "variant", "content", "style"]), columns)
    return Syntheses(table, swept)


def prepare(
    contents: Sequence[str],
    targets: Mapping[str, Mapping[str, Any]],
    *,
    source: str,
    perceptual: str,
    limits: Mapping[str, int] | None = None,
    num_steps: int = 150,
    lr: float = 0.1,
    lam_mse: float = 3.0,
    seed: int = 0,
    device: str = "auto",
    workers: int = 0,
    record: bool = False,
) -> Stage:
    """Invert the contents and references that have not been inverted yet, Eq. (5), and print which pictures failed.

    Args:
        contents: names for `lab.listed`.
        targets: domain -> {"generator": name or file, "styles": names for `lab.listed`}.
        source: generator of the contents.
        limits: "contents" and "styles" -> how many to keep of each list, from its start; 0 keeps all.
        perceptual, num_steps, lr, lam_mse, seed, device, workers, record: as in `galleries.build`.
    """
    wanted = {"contents": (contents, source)} | {d: (t["styles"], t["generator"]) for d, t in targets.items()}
    keep = lambda name: (limits or {}).get("contents" if name == "contents" else "styles", 0)
    wanted = {name: (listed(list(images), keep(name)), str(g)) for name, (images, g) in wanted.items()}
    how = dict(perceptual=perceptual, num_steps=num_steps, lr=lr, lam_mse=lam_mse, seed=seed, device=device)
    runs = [galleries.grid(images, generator=g, **how) for images, g in wanted.values()]
    galleries.invert_pictures([run for some in runs for run in some], workers=workers, record=record)
    built = {}
    for name, (images, generator) in wanted.items():
        what = store.digest([images, generator, how])
        path = root() / "build" / "galleries" / f"{name}-{what[:12]}.safetensors"  # a file of our own: force
        label = f"gallery of {name}"
        built[name] = galleries.build(images, generator=generator, path=path, label=label, force=True, **how)
        for bad in built[name].table.query("error != ''").itertuples():
            print(f"left out: {bad.image}: {bad.error}")
    generators = {domain: str(target["generator"]) for domain, target in targets.items()}
    return Stage(built.pop("contents"), built, source, generators, perceptual)
