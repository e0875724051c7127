"""The methods of Table III as runs of a sweep: one content in the styles of all references of a domain, at once.

A run keeps what the table is made of: the pictures (a strip of 8 bits), their identity vectors and the features of
their Frechet distances, all of the pictures as a file would hold them. Methods are "starganv2" and "dualstylegan", the
paper's rivals, and those of `stylisations.METHODS`, with LSO or without.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from .. import fid, image, retrieval, weights
from ..errors import UnknownName, nearest
from . import stylisations
from .inversions import CACHED, png
from .sweeps import Outcome
from .targets import picture

RIVALS = ("starganv2", "dualstylegan")
METHODS = (*RIVALS, *stylisations.METHODS)
DEFAULTS: Mapping[str, Any] = {
    **{k: v for k, v in stylisations.DEFAULTS.items() if k not in ("style", "columns")},
    "references": (),  # names, of pictures in the gallery `styles`
    "stylist": "",  # the rival's network, for `weights.load_stylist`
    "domain": "",  # of the references, as StarGAN v2's network calls it
    "structure": 0.75,  # DualStyleGAN's weight of the coarse layers, and of the colours
    "colour": 1.0,
    "judge": "identity_thin",  # for `weights.load_identity`
    "face": "whole",  # of `retrieval.FACES`
    "fid": "vgg16_thin",  # of `fid.NETWORKS`, and the edges at which it looks
    "edges": (128, 64),
}
VECTORS, STRIP = "vectors.safetensors", "strip.png"


def grid(contents: Sequence[str], variants: Sequence[Mapping[str, Any]], **fixed: Any) -> list[dict[str, Any]]:
    """Every variant for every content as runs for `perform`, variant by variant; all names are checked.

    Raises:
        UnknownName: a setting, method, picture or network that there is not. MissingWeights: one that is not here.
    """
    runs = []
    for variant in variants:
        for name in (changes := {**fixed, **variant}):
            if name not in DEFAULTS:
                hint = nearest(name, list(DEFAULTS)) or "see it"
                raise UnknownName(f"setting {name!r}", expected=f"one of {list(DEFAULTS)}", do=hint)
        row = {**DEFAULTS, **changes}
        row |= {name: list(row[name]) for name in ("references", "edges")}
        if row["method"] not in METHODS:
            hint = nearest(row["method"], list(METHODS)) or "choose one of them"
            raise UnknownName(f"method {row['method']!r}", expected=f"one of {', '.join(METHODS)}", do=hint)
        _judge(row["judge"], "cpu")
        if row["method"] in RIVALS:
            stylist(row["stylist"], "cpu")
        if row["method"] != "starganv2":
            for which, generator, names in (("contents", "source", contents), ("styles", "target", row["references"])):
                found = stylisations.codes(row[which], row[generator])
                for name in names:
                    found[name]
        runs += [{**row, "content": content} for content in contents]
    return runs


def perform(**settings: Any) -> Outcome:
    """Stylise one content by all references and keep what the table needs; the settings are those of `grid`.

    Returns:
        No values, and as files strip.png (the pictures side by side) and vectors.safetensors: "identity" [S, D], and
        "fid128", "fid64" ... [S, F] for each of the edges.
    """
    s = dict(settings)
    where = s["device"] = ("cuda" if torch.cuda.is_available() else "cpu") if s["device"] == "auto" else s["device"]
    x = image.from_uint8(image.to_uint8(stylise(s))).to(where)  # what a file would show
    found = {"identity": retrieval.embed(_judge(s["judge"], where), x, s["face"])}
    found |= {f"fid{edge}": fid.features(x, s["fid"], edge) for edge in s["edges"] if edge <= x.shape[2]}
    strip = make_grid(x.cpu(), nrow=len(x), padding=0)[None]
    return Outcome(
        {}, {VECTORS: safetensors.torch.save({k: v.contiguous() for k, v in found.items()}), STRIP: png(strip)}
    )


def stylise(s: Mapping[str, Any]) -> Tensor:
    """One content in the styles of the references, by the run's method: [S, 3, R, R] in [-1, 1], R the method's own."""
    if s["method"] == "starganv2":
        net = stylist(s["stylist"], s["device"])
        references = torch.cat([picture(name, net.resolution) for name in s["references"]]).to(s["device"])
        x = picture(s["content"], net.resolution).to(s["device"]).expand_as(references)
        with torch.inference_mode():
            return net.stylise(x, references, s["domain"]).clamp(-1, 1)
    if s["method"] == "dualstylegan":
        net = stylist(s["stylist"], s["device"])
        styles = stylisations.codes(s["styles"], s["target"])
        exstyle = torch.cat([styles[name] for name in s["references"]]).to(s["device"])  # [S, num_ws, w_dim]
        ws = stylisations.codes(s["contents"], s["source"])[s["content"]].to(s["device"])
        with torch.inference_mode():
            return net.stylise(ws.expand_as(exstyle), exstyle, structure=s["structure"], colour=s["colour"]).clamp(
                -1, 1
            )
    mixed = {k: s[k] for k in stylisations.DEFAULTS if k in s} | {"style": list(s["references"])}
    return stylisations.Start(mixed).optimised(mixed).detach().clamp(-1, 1)


@functools.lru_cache(CACHED)
def stylist(name: str, device: str) -> nn.Module:
    """A rival's network, kept by the process that asks for it."""
    return weights.load_stylist(name, device)


@functools.lru_cache(2)
def _judge(name: str, device: str) -> nn.Module:
    return weights.load_identity(name, device)
