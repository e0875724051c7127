"""The methods of Table III as runs of a sweep: one content in the styles of all references of a domain, at once.

A run keeps what the table is made of: the pictures (a strip of 8 bits), their identity vectors and the features of
their Frechet distances, all of the pictures as a file would hold them. Methods are "starganv2" and "dualstylegan", the
paper's rivals; those of `stylisations.METHODS`, with LSO or without; and `OTHERS`, which ignore the content.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from .. import devices, fid, image, lso, optim, retrieval, weights
from ..errors import UnknownName, nearest, number
from ..worlds.pictures import picture
from . import stylisation
from .inversions import CACHED, generator_of, png
from .sweep import Outcome, Swept, sweep

RIVALS = ("starganv2", "dualstylegan")
OTHERS = ("samples", "pictures")  # what a target generator draws of itself; pictures as they are
METHODS = (*RIVALS, *stylisation.METHODS, *OTHERS)
DEFAULTS: Mapping[str, Any] = {
    **{k: v for k, v in stylisation.DEFAULTS.items() if k not in ("style", "columns")},
    "references": (),  # names, of pictures in the gallery `styles`
    "stylist": "",  # the rival's network, for `weights.load_stylist`
    "domain": "",  # of the references, as StarGAN v2's network calls it
    "structure": 0.75,  # DualStyleGAN's weight of the coarse layers, and of the colours
    "colour": 1.0,
    "bf16": False,  # LSO looks for the codes under bfloat16 autocast; the pictures are drawn in full precision
    "batch": 10,  # references at a time: LSO at 1024 px fills a GPU with a few
    "judge": "identity_thin",  # for `weights.load_identity`
    "fid": "vgg16_thin",  # of `fid.NETWORKS`, and the edges at which it looks
    "edges": (128, 64),
}
RANGES = stylisation.RANGES | {"structure": "[0, 1]", "colour": "[0, 1]", "batch": "whole [1, inf)"}
Changes = Mapping[str, Any] | Callable[[str], Mapping[str, Any]]
VECTORS, STRIP, SECONDS = "vectors.safetensors", "image.png", "seconds.json"


def grid(people: Sequence[str], variants: Sequence[Mapping[str, Any]], **fixed: Any) -> list[dict[str, Any]]:
    """Every variant for every content picture as runs for `perform`, variant by variant; all names are checked.

    Raises:
        UnknownName: a setting, method, picture or network that there is not. MissingWeights: one that is not here.
        InvalidValue: a number out of range.
    """
    runs = []
    for variant in variants:
        for name in (changes := {**fixed, **variant}):
            if name not in DEFAULTS:
                hint = nearest(name, list(DEFAULTS)) or "see it"
                raise UnknownName(f"setting {name!r}", expected=f"one of {list(DEFAULTS)}", do=hint)
        row = {**DEFAULTS, **changes}
        row |= {name: number(name, row[name], interval) for name, interval in RANGES.items()}
        row |= {name: list(row[name]) for name in ("references", "edges")}
        row["edges"] = [number("edge", edge, "whole [1, inf)") for edge in row["edges"]]
        _check(row, people)
        runs += [{**row, "content": content} for content in people]
    return runs


def _check(row: Mapping[str, Any], people: Sequence[str]) -> None:
    method = row["method"]
    if method not in METHODS:
        hint = nearest(method, list(METHODS)) or "choose one of them"
        raise UnknownName(f"method {method!r}", expected=f"one of {', '.join(METHODS)}", do=hint)
    _judge(row["judge"], "cpu")
    if method in RIVALS:
        stylist(row["stylist"], "cpu")
    if method in ("dualstylegan", *stylisation.METHODS):
        for which, generator, names in (("contents", "source", people), ("styles", "target", row["references"])):
            found = stylisation.codes(row[which], row[generator])
            for name in names:
                found[name]


def perform(**settings: Any) -> Outcome:
    """Stylise one content by all references and keep what the table needs; the settings are those of `grid`.

    Returns:
        The number of pictures, and as files image.png (the pictures side by side), seconds.json (what a picture took,
        without loading and measuring) and vectors.safetensors: "whole" and "crop", identity vectors [S, D] by
        `retrieval.FACES`, and "fid128", "fid64" ... [S, F] for each of the edges that the pictures have.
    """
    s = dict(settings)
    where = s["device"] = str(devices.choose(s["device"]))
    if s["method"] not in OTHERS:
        warm = {"num_steps": min(s["num_steps"], 1), "references": s["references"][:1]}
        stylise({**s, **warm})  # networks are loaded, and caches warm
    begun = time.perf_counter()
    parts = [s["references"][i : i + s["batch"]] for i in range(0, len(s["references"]), s["batch"])]
    x = torch.cat([stylise({**s, "references": part}) for part in parts])
    seconds = (time.perf_counter() - begun) / len(x)
    x = image.from_uint8(image.to_uint8(x)).to(where)  # what a file would show
    seen = x.split(s["batch"])
    look = lambda see: torch.cat([see(part) for part in seen])
    judge = _judge(s["judge"], where)
    found = {face: look(lambda part, face=face: retrieval.embed(judge, part, face)) for face in retrieval.FACES}
    edges = [edge for edge in s["edges"] if edge <= x.shape[2]]
    found |= {f"fid{edge}": look(lambda part, edge=edge: fid.features(part, s["fid"], edge)) for edge in edges}
    strip = make_grid(x.cpu(), nrow=len(x), padding=0)[None]
    files = {VECTORS: safetensors.torch.save({k: v.contiguous() for k, v in found.items()})}
    files |= {STRIP: png(strip), SECONDS: json.dumps(seconds).encode()}
    return Outcome({"pictures": len(x)}, files)


def stylise(s: Mapping[str, Any]) -> Tensor:
    """One content in the styles of the references, by the run's method: [S, 3, R, R] in [-1, 1], R the method's own."""
    if s["method"] == "pictures":
        return torch.cat([picture(name, s["edges"][0]) for name in s["references"]])
    if s["method"] == "samples":
        G = generator_of(s["target"], s["device"])
        g = torch.Generator().manual_seed(s["seed"] + zlib.crc32(f"{s['content']} {s['references'][0]}".encode()))
        with torch.inference_mode():
            z = torch.randn(len(s["references"]), G.z_dim, generator=g).to(s["device"])
            return G.synthesis(G.mapping(z)).clamp(-1, 1)
    if s["method"] == "starganv2":
        net = stylist(s["stylist"], s["device"])
        references = torch.cat([picture(name, net.resolution) for name in s["references"]]).to(s["device"])
        x = picture(s["content"], net.resolution).to(s["device"]).expand_as(references)
        with torch.inference_mode():
            return net.stylise(x, references, s["domain"]).clamp(-1, 1)
    if s["method"] == "dualstylegan":
        net = stylist(s["stylist"], s["device"])
        styles = stylisation.codes(s["styles"], s["target"])
        exstyle = torch.cat([styles[name] for name in s["references"]]).to(s["device"])  # [S, num_ws, w_dim]
        ws = stylisation.codes(s["contents"], s["source"])[s["content"]].to(s["device"])
        with torch.inference_mode():
            return net.stylise(ws.expand_as(exstyle), exstyle, structure=s["structure"], colour=s["colour"]).clamp(
                -1, 1
            )
    mixed = {k: s[k] for k in stylisation.DEFAULTS if k in s} | {"style": list(s["references"])}
    start = stylisation.Start(mixed)
    if not (s["bf16"] and s["num_steps"]):
        return start.optimised(mixed).detach().clamp(-1, 1)
    with torch.autocast(torch.device(s["device"]).type, torch.bfloat16):
        found = optim.solve(lso.optimise(start.G, start.ws, start.x, start.loss, **stylisation.options(start.G, mixed)))
    with torch.inference_mode():
        return start.G.synthesis(found.ws).clamp(-1, 1)


@weights.kept(CACHED)
def stylist(name: str, device: str) -> nn.Module:
    """A rival's network, kept by the process that asks for it."""
    return weights.load_stylist(name, device)


@weights.kept(2)
def _judge(name: str, device: str) -> nn.Module:
    return weights.load_identity(name, device)


# --- a whole comparison -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A finished comparison.

    table: a row a run, with "domain", "variant", "content", "pictures" and "error".
    """

    table: pd.DataFrame
    _swept: Swept

    def people(self, domain: str, variant: str) -> list[str]:
        """The contents whose pictures are there, in order."""
        return list(self.table["content"][self._rows(domain, variant)])

    def vectors(self, domain: str, variant: str, what: str) -> Tensor:
        """One of the tensors that `perform` keeps, of all people: [people, styles, D]."""
        files = [self._swept.file(row, VECTORS) for row in self._rows(domain, variant)]
        return torch.stack([safetensors.torch.load_file(file)[what] for file in files])

    def pictures(self, domain: str, variant: str, content: str) -> Tensor:
        """The pictures of one content in all styles, [styles, 3, R, R]."""
        (row,) = [r for r in self._rows(domain, variant) if self.table["content"][r] == content]
        strip = self._swept.image(row)
        return torch.cat(strip.split(strip.shape[2], dim=3))

    def seconds(self, domain: str, variant: str) -> list[float]:
        """Seconds that one picture took, of each of the people."""
        return [json.loads(self._swept.file(row, SECONDS).read_bytes()) for row in self._rows(domain, variant)]

    def _rows(self, domain: str, variant: str) -> list[int]:
        t = self.table
        return list(t.index[(t["domain"] == domain) & (t["variant"] == variant) & (t["error"] == "")])


def compare(
    people: Sequence[str],
    variants: Mapping[str, Mapping[str, Changes]],
    *,
    workers: int = 0,
    label: str = "comparison",
    **fixed: Any,
) -> Compared:
    """Perform every variant of every domain for every content, as one sweep, and say which runs failed.

    Args:
        people: names of content pictures.
        variants: domain -> name -> changes of `DEFAULTS`, or a function from the content's name to them.
        fixed: changes that all share.
    """
    runs, keys = [], []
    for domain, some in variants.items():
        for name, changes in some.items():
            own = changes if callable(changes) else lambda _, same=changes: same
            for content in people:
                runs += grid([content], [own(content)], **fixed)
            keys += [(domain, name, content) for content in people]
    swept = sweep(perform, runs, name="comparisons", workers=workers, label=label)
    found = swept.table.reindex(columns=["pictures", "error"])
    table = pd.concat([pd.DataFrame(keys, columns=["domain", "variant", "content"]), found], axis=1)
    for bad in table[table["error"] != ""].itertuples():
        print(f"failed: {bad.variant} of {bad.content}, {bad.domain}: {bad.error}")
    return Compared(table, swept)
