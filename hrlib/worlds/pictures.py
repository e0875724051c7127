"""Pictures by name, so that a parameters cell can choose them."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from .. import image
from ..errors import SEED, InvalidValue, UnknownName, number
from . import imagined, portraits, scenes

DRAWN = {"portrait": "photo", **{d: d for d in portraits.DOMAINS if d != "photo"}}  # kind -> domain
SEEDED = (*DRAWN, "scene", "imagined")
DIGITS = re.compile("[0-9]+")  # unlike str.isdigit, not "²"
SHOT = re.compile(r"([0-9]+)(?:\.([0-9]+))?")
KINDS = (*(f"{kind}:SEED" for kind in SEEDED), "imagined:SEED.SHOT", "photo:NAME", "file:PATH")


def picture(name: str, size: int | tuple[int, int] | None = None) -> Tensor:
    """One picture [1, 3, H, W] in [-1, 1].

    Args:
        name: "portrait:7" renders the person of seed 7 (the training set has seed 0: use others), and "cartoon:7",
            "caricature:7" or "anime:7" the same person in another domain; "scene:7" renders a landscape; "imagined:7"
            makes a picture of a person who does not exist, and "imagined:7.1" another one of that person;
            "photo:astronaut" is a photograph from `image.SAMPLES`; "file:PATH" reads a file, relative to the current
            directory (which `lab.begin` sets to the repository's root).
        size: edge or (H, W); photographs are cropped centrally. None keeps a photograph's own size, makes
            imagined ones at 1024 and renders the others at 128.

    Raises:
        UnknownName: a name of another form. InvalidValue: a seed or a size out of range.
        MissingWeights: an imagined person without the packages of `make faces`.
    """
    kind, _, what = name.partition(":")
    size = None if size is None else image.sides(size)
    if (people := drawn(name)) is not None:
        return portraits.render(people, size or 128, domain=DRAWN[kind])
    if kind == "scene" and DIGITS.fullmatch(what):
        return scenes.render(scenes.sample(1, seed=_seed(what)), size or 128)
    if kind == "imagined" and (numbers := SHOT.fullmatch(what)):
        return imagined.render(_seed(numbers[1]), size or imagined.SIDE, shot=_seed(numbers[2] or "0"))
    if kind == "photo":
        return image.sample(what, size)
    if kind == "file" and what:
        return image.read(what, size)
    raise UnknownName(f"picture {name!r}", expected=f"one of {', '.join(KINDS)}", do='write "portrait:7", for instance')


def drawn(name: str) -> portraits.Portraits | None:
    """The parameters of the person in a rendered picture; None for the name of any other picture."""
    kind, _, what = name.partition(":")
    return portraits.sample(1, seed=_seed(what)) if kind in DRAWN and DIGITS.fullmatch(what) else None


def _seed(digits: str) -> int:
    """The seed in a name; only its first 20 digits are converted, since longer ones are out of range anyway."""
    return number("seed", int(digits.lstrip("0")[:20] or "0"), SEED)


def listed(names: list[str], limit: int = 0) -> list[str]:
    """Names for `picture`, with ranges ("portrait:3..9") and folders ("folder:PATH") expanded, without repetitions.

    Ranges work for landscapes, for imagined people (shot 0) and for every domain. A folder stands for the pictures in
    it, sorted by name.

    limit: keep only the first names; 0 keeps all.

    Raises:
        UnknownName: a folder that is missing or has no pictures, or no names at all. InvalidValue: a range of seeds
            that ends before it begins, or a number out of range.
    """
    if isinstance(names, str):
        raise InvalidValue(f"names = {names!r}", expected="a list of names", do=f"write [{names!r}]")
    limit = number("limit", limit, "whole [0, inf)")
    expanded: list[str] = []
    for name in names:
        if several := re.fullmatch(rf"({'|'.join(SEEDED)}):([0-9]+)\.\.([0-9]+)", name):
            first, last = _seed(several[2]), _seed(several[3])
            if first > last:
                raise InvalidValue(
                    f"{name!r}", expected="a range FIRST..LAST of seeds", do="write the smaller one first"
                )
            expanded += [f"{several[1]}:{seed}" for seed in range(first, last + 1)]
        elif name.startswith("folder:"):
            folder = name.removeprefix("folder:")
            files = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in image.SUFFIXES)
            if not files:
                raise UnknownName(f"{name!r}: no picture there", expected="a folder of pictures", do="check the path")
            expanded += [f"file:{folder}/{p.name}" for p in files]
        else:
            expanded.append(name)
    if not expanded:
        raise UnknownName("no picture at all", expected=f"one or more of {', '.join(KINDS)}", do="name a picture")
    return list(dict.fromkeys(expanded))[: limit or None]


def pictures(names: list[str], size: int | tuple[int, int]) -> Tensor:
    """Several pictures of one size: [N, 3, H, W]."""
    return torch.cat([picture(name, size) for name in names])
