"""What notebooks 05 to 07 work on: galleries of contents and references, and sweeps of variants over their pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import lso, store
from ..lab.place import root
from ..worlds.pictures import listed
from . import galleries, stylisation
from .sweep import Swept, sweep


def measures(judges: Mapping[str, str]) -> dict[str, str]:
    """What notebooks 05 to 07 measure of every synthesis, as name -> column of `stylisations.perform`.

    judges: "identity", "lpips" and "style" -> a measure of `metrics.METRICS`; "" where there is no such network, which
    leaves out what it would measure.
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
    """The codes that syntheses begin with: of the contents, and of the references of each target domain.

    contents: inverted in the source generator. styles: domain -> inverted in that domain's generator.
    """

    contents: galleries.Built
    styles: dict[str, galleries.Built]
    source: str
    generators: dict[str, str]
    perceptual: str

    def pairs(self, domain: str, n: int | None = None) -> list[tuple[str, str]]:
        """The first n contents (default: all), each with a reference; these take turns."""
        contents, styles = self.contents.gallery.names, self.styles[domain].gallery.names
        return [(c, styles[i % len(styles)]) for i, c in enumerate(contents[:n])]

    def fixed(self, domain: str) -> dict[str, Any]:
        """The settings for `stylisations.grid` that all syntheses in a domain share."""
        files = {"contents": self.contents.path, "styles": self.styles[domain].path}
        paths = {name: f"file:{path}" for name, path in files.items()}
        networks = {"source": self.source, "target": self.generators[domain], "perceptual": self.perceptual}
        return paths | networks

    def lam_reg(self, share: float, **changes: Any) -> float:
        """`lso.scaled_lam_reg` over all pairs of all domains with the default mixing, to two digits."""
        found = []
        for domain in self.styles:
            for run in stylisation.grid(self.pairs(domain), [changes], **self.fixed(domain)):
                s = stylisation.Start(run)
                found.append(lso.scaled_lam_reg(s.G, s.ws, s.x, s.loss, share=share))
        return float(f"{np.mean(found):.1e}")


@dataclass(frozen=True)
class Syntheses:
    """A finished sweep of variants over pairs.

    table: a row a run: "domain", "variant", "content", "style", the measures, "error".
    """

    table: pd.DataFrame
    _swept: Swept

    def values(self, measure: str, variant: str) -> pd.Series:
        """A measure of a variant by (domain, content, style); runs that failed, or without it, are left out."""
        rows = self.table[self.table["variant"] == variant].set_index(["domain", "content", "style"])
        return rows.get(measure, pd.Series(np.nan, rows.index)).astype(float).dropna()

    def difference(self, measure: str, a: str, b: str) -> pd.Series:
        """The measure of variant a minus that of variant b, pair by pair."""
        return (self.values(measure, a) - self.values(measure, b)).dropna()

    def image(self, domain: str, variant: str, content: str, style: str) -> Tensor | None:
        """The picture [1, 3, R, R] of one run; None when it failed."""
        wanted = {"domain": domain, "variant": variant, "content": content, "style": style}
        (row,) = self.table.index[(self.table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        return None if self.table["error"][row] else self._swept.image(row)

    def seconds(self, variant: str) -> pd.Series:
        """What each run of a variant took on its worker."""
        return self._swept.seconds[self.table["variant"] == variant]

    def images(self, variant: str) -> Tensor:
        """The pictures [N, 3, R, R] of a variant's good runs, in the table's order."""
        good = self.table.index[(self.table["variant"] == variant) & (self.table["error"] == "")]
        return torch.cat([self._swept.image(row) for row in good])


def synthesise(
    stage: Stage,
    variants: Mapping[str, Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    pairs: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    workers: int = 0,
    label: str = "syntheses",
    predict: bool = False,
    **fixed: Any,
) -> Syntheses:
    """Perform every variant for every pair of every domain, as one sweep, and say which runs failed.

    Args:
        stage: see `prepare`.
        variants: name -> changes of `stylisations.DEFAULTS`.
        columns: name of a measure -> column of `stylisations.perform`; see `measures`.
        pairs: domain -> pairs; default: every content of the stage with one reference.
        predict: say first how long every variant will take.
        fixed: changes that all variants share.
    """
    pairs = {domain: stage.pairs(domain) for domain in stage.styles} if pairs is None else pairs
    runs, keys = [], []
    for domain, some in pairs.items():
        more = stage.fixed(domain) | {"columns": list(columns.values())} | fixed
        runs += stylisation.grid(some, list(variants.values()), **more)
        keys += [(domain, variant, *pair) for variant in variants for pair in some]
    kept, place = [], {}  # two variants may ask for the same run
    for run in runs:
        kept += [run] if (key := json.dumps(run)) not in place else []
        place.setdefault(key, len(kept) - 1)
    rows = [place[json.dumps(run)] for run in runs]
    guess = stylisation.estimate if predict else None
    how = dict(name="stylisations", workers=workers, label=label, estimate=guess, within=stylisation.WITHIN)
    swept = sweep(stylisation.perform, kept, **how)
    found = swept.table.rename(columns={column: name for name, column in columns.items()})
    found = found.reindex(columns=[*columns, "error"]).iloc[rows].reset_index(drop=True)
    table = pd.concat([pd.DataFrame(keys, columns=["domain", "variant", "content", "style"]), found], axis=1)
    for bad in table[table["error"] != ""].itertuples():
        print(f"failed: {bad.variant} of {bad.content} and {bad.style}: {bad.error}")
    return Syntheses(table, swept.at(rows))


def prepare(
    contents: Sequence[str],
    targets: Mapping[str, Mapping[str, Any]],
    *,
    source: str,
    perceptual: str,
    limits: Mapping[str, int] | None = None,
    **how: Any,
) -> Stage:
    """Invert contents and references, Eq. (5), as far as that is not done yet; prints which pictures failed.

    Args:
        contents: names for `lab.listed`.
        targets: domain -> {"generator": name or file, "styles": names for `lab.listed`}.
        limits: "contents" and "styles" -> how many to keep of each list, the first ones; 0 keeps all.
        how: further arguments of `galleries.build`: num_steps, lr, lam_mse, workers ...
    """
    wanted = {"contents": (contents, source)} | {d: (t["styles"], t["generator"]) for d, t in targets.items()}
    keep = lambda name: (limits or {}).get("contents" if name == "contents" else "styles", 0)
    wanted = {name: (listed(list(images), keep(name)), str(g)) for name, (images, g) in wanted.items()}
    workers = how.pop("workers", 0)
    runs = [galleries.requests(i, generator=g, perceptual=perceptual, **how) for i, g in wanted.values()]
    galleries.invert([run for some in runs for run in some], workers=workers)
    built = {}
    for name, (images, generator) in wanted.items():
        what = store.digest([images, generator, perceptual, how])
        path = root() / "build" / "galleries" / f"{name}-{what[:12]}.safetensors"
        more = {"perceptual": perceptual, "label": f"gallery of {name}", "force": True, **how}  # a file of our own
        built[name] = galleries.build(images, generator=generator, path=path, **more)
        for bad in built[name].table.query("error != ''").itertuples():
            print(f"left out: {bad.image}: {bad.error}")
    generators = {domain: str(target["generator"]) for domain, target in targets.items()}
    return Stage(built.pop("contents"), built, source, generators, perceptual)
