"""The one way a trained network leaves its folder: its file, its card and its log, and data/weights' catalogue.

Every command that trains a network calls `free` before it begins and `ship` at the end (or `enter`, if it writes the
file itself). A network that exists already is replaced only with `force`, together with all that belongs to it.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from .. import weights
from ..store import destination, new, write_bytes
from ..weights import files
from .loop import LOG


def shipped() -> Path:
    """The folder of the shipped networks, data/weights."""
    return files.DATA / "weights"


def place(name: str, out: str | Path | None = None) -> Path:
    """The file `out`, NAME.safetensors; None is the shipped network of that name."""
    return destination(out, ".safetensors") if out else shipped() / f"{name}.safetensors"


def free(file: Path, *more: str, force: bool = False, source: str | os.PathLike | None = None) -> Path:
    """Return `file` if it and what belongs to it may be written.

    Args:
        file: NAME.safetensors; its card NAME.md belongs to it.
        more: endings, after NAME, of other files that belong to it: ".log.csv".
        force: they may be replaced.
        source: a file that none of them may be.

    Raises:
        StoreError: one of them exists and `force` is not set, or cannot be written.
    """
    for ending in (file.suffix, ".md", *more):
        new(file.with_name(file.stem + ending), force=force, source=source)
    return file


def as_stored(net: nn.Module) -> nn.Module:
    """The network, on the CPU, as a file of 16-bit numbers holds it, for measuring; edits `net`."""
    state = {k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in net.cpu().state_dict().items()}
    return weights.load_strictly(net, state, "the trained network").eval().requires_grad_(False)


def ship(
    net: nn.Module, file: Path, *, card: str, sentence: str, half: bool = True, folder: Path | None = None
) -> Path:
    """Write a finished network: see `free` for what must have been asked before.

    Args:
        net: of an architecture that `weights` knows.
        file: NAME.safetensors.
        card: Markdown.
        sentence: what it is, inside the file.
        half: store 16-bit numbers.
        folder: the training's; its log is copied to NAME.log.csv.
    """
    if folder:
        write_bytes(file.with_name(f"{file.stem}.log.csv"), (Path(folder) / LOG).read_bytes())
    weights.save_network(net, file, card=sentence, half=half, force=True)
    return enter(file, card)


def enter(file: Path, card: str, *, licence: str = "MIT") -> Path:
    """Write the card, Markdown, of a finished file; one in data/weights enters the catalogue, with its licence."""
    if file.resolve().parent == shipped().resolve():
        weights.register(file.stem, file, card=card, licence=licence)
    else:
        write_bytes(file.with_suffix(".md"), card.strip().encode() + b"\n")
    return file
