"""Where a trained network goes: into data/weights and its catalogue, or beside its card wherever the user wants it.

Every command that trains and then writes a network calls `free` before it begins and `enter` at the end. A network that
is there, shipped or not, is replaced only if that was asked for, with everything that belongs to it.
"""

from __future__ import annotations

import os
from pathlib import Path

from .. import weights
from ..store import new, write_bytes
from ..weights import files


def shipped() -> Path:
    """The folder of the shipped networks, data/weights."""
    return files.DATA / "weights"


def free(file: Path, *more: str, force: bool = False, source: str | os.PathLike | None = None) -> Path:
    """`file`, if it and what belongs to it may be written.

    Args:
        file: NAME.safetensors; NAME.md, its card, belongs to it.
        more: endings after NAME of what else belongs to it: ".log.csv".
        force: they may be replaced.
        source: a file that may be no such one.

    Raises:
        StoreError: one of them is there and `force` is not set, or nobody may write there.
    """
    for ending in (file.suffix, ".md", *more):
        new(file.with_name(file.stem + ending), force=force, source=source)
    return file


def enter(file: Path, card: str) -> None:
    """Write the card, Markdown, of a finished file; one in data/weights enters the catalogue as well."""
    if file.resolve().parent == shipped().resolve():
        weights.register(file.stem, file, card=card)
    else:
        write_bytes(file.with_suffix(".md"), card.strip().encode() + b"\n")
