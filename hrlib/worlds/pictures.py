"""The pictures a notebook works on, by name, so that a parameters cell can say which."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from .. import image
from ..errors import SEED, InvalidValue, UnknownName, number
from . import portraits, scenes

DRAWN = {"portrait": "photo", **{d: d for d in portraits.DOMAINS if d != "photo"}}  # kind -> domain
SEEDED = (*DRAWN, "scene")
DIGITS = re.compile("[0-9]+")  # not str.isdigit, which takes "²" for one
KINDS = (*(f"{kind}:SEED" for kind in SEEDED), "photo:NAME", "file:PATH")


def picture(name: str, size: int | tuple[int, int] | None = None) -> Tensor:
    """One picture [1, 3, H, W] in [-1, 1].

    name: "portrait:7" renders a person drawn with seed 7 (seed 0 drew the training set: use others), and "cartoon:7",
    "caricature:7", "anime:7" the same person in another domain; "scene:7" a landscape; "photo:astronaut" is a
    photograph from `image.SAMPLES`; "file:PATH" reads a file, relative to the current directory (which `lab.begin` sets
    to the repository's root). size: side or (H, W), photographs by a centred crop; None keeps a photograph's own size
    and draws the others at 128.

    Raises:
        UnknownName: a name of no such form. InvalidValue: a seed or a size out of range.
    """
    kind, _, what = name.partition(":")
    size = None if size is None else image.sides(size)
    if (people := drawn(name)) is not None:
        return portraits.render(people, size or 128, domain=DRAWN[kind])
    if kind == "scene" and DIGITS.fullmatch(what):
        return scenes.render(scenes.sample(1, seed=_seed(what)), size or 128)
    if kind == "photo":
        return image.sample(what, size)
    if kind == "file" and what:
        return image.read(what, size)
    raise UnknownName(f"picture {name!r}", expected=f"one of {', '.join(KINDS)}", do='write for instance "portrait:7"')


def drawn(name: str) -> portraits.Portraits | None:
    """Whom a rendered picture shows, with pose and all; None for the name of any other picture."""
    kind, _, what = name.partition(":")
    return portraits.sample(1, seed=_seed(what)) if kind in DRAWN and DIGITS.fullmatch(what) else None


def _seed(digits: str) -> int:
    """A seed as it is written in a name; one of a hundred digits is out of range, too, and not worth converting."""
    return number("seed", int(digits.lstrip("0")[:20] or "0"), SEED)


def listed(names: list[str], limit: int = 0) -> list[str]:
    """Names for `picture`, with "portrait:3..9" and "folder:PATH" replaced by what they stand for; all different.

    Ranges work for landscapes and every domain. A folder stands for the pictures in it, sorted by name. limit: keep the
    first so many; 0 keeps all.

    Raises:
        UnknownName: a folder that is not there or holds no picture, or no name at all. InvalidValue: a range of seeds
            that ends before it begins, or a number out of range.
    """
    limit = number("limit", limit, "whole [0, inf)")
    found: list[str] = []
    for name in names:
        if several := re.fullmatch(rf"({'|'.join(SEEDED)}):([0-9]+)\.\.([0-9]+)", name):
            first, last = _seed(several[2]), _seed(several[3])
            if first > last:
                raise InvalidValue(
                    f"{name!r}", expected="a range FIRST..LAST of seeds", do="write the smaller one first"
                )
            found += [f"{several[1]}:{seed}" for seed in range(first, last + 1)]
        elif name.startswith("folder:"):
            folder = name.removeprefix("folder:")
            files = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in image.SUFFIXES)
            if not files:
                raise UnknownName(f"{name!r}: no picture there", expected="a folder of pictures", do="check the path")
            found += [f"file:{folder}/{p.name}" for p in files]
        else:
            found.append(name)
    if not found:
        raise UnknownName("no picture at all", expected=f"one or more of {', '.join(KINDS)}", do="name a picture")
    return list(dict.fromkeys(found))[: limit or None]


def pictures(names: list[str], size: int | tuple[int, int]) -> Tensor:
    """Several pictures of one size: [N, 3, H, W]."""
    return torch.cat([picture(name, size) for name in names])
