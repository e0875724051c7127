"""The pictures in data/sheets, which show what the worlds draw; `python -m hrlib.worlds.sheets` makes them again.

Each sheet is a function of a size (the side of one portrait in pixels) and returns one picture [1, 3, H, W].
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

from .. import image
from . import portraits, scenes

FOLDER = Path(__file__).resolve().parents[2] / "data" / "sheets"


def grid(pictures: Tensor, columns: int) -> Tensor:
    """[N, 3, H, W] pictures in rows of `columns`, with a thin white line between them."""
    return make_grid(pictures, nrow=columns, padding=2, pad_value=1.0)[None].clamp(-1, 1)


def people(domain: str, size: int) -> Tensor:
    """Thirty-two people of one domain, as the training sets draw them."""
    return grid(portraits.render(portraits.sample(32, seed=5), size, domain=domain), 8)


def domains(size: int) -> Tensor:
    """The same eight people in every domain, one domain a row."""
    same = portraits.sample(8, seed=11)
    return grid(torch.cat([portraits.render(same, size, domain=d) for d in portraits.DOMAINS]), 8)


def views(size: int) -> Tensor:
    """One person in every domain from seven sides, over the range the world is made for."""
    one = portraits.sample(8, seed=11)[torch.full((7,), 3)]
    turned = one.replace(pose={"yaw": torch.linspace(-0.7, 0.7, 7), "pitch": torch.linspace(-0.2, 0.2, 7)})
    return grid(torch.cat([portraits.render(turned, size, domain=d) for d in portraits.DOMAINS]), 7)


def between(size: int) -> Tensor:
    """From one person to another in eight equal steps of all parameters, in three pairs."""
    a, b = portraits.sample(3, seed=21), portraits.sample(3, seed=22)
    rows = []
    for t in torch.linspace(0, 1, 8).tolist():
        mixed = a.replace(**{g: torch.lerp(getattr(a, g), getattr(b, g), t) for g in portraits.GROUPS})
        rows.append(portraits.render(mixed, size))
    return grid(torch.stack(rows, 1).flatten(0, 1), 8)


def landscapes(size: int) -> Tensor:
    """Eighteen scenes, wider than high."""
    return grid(scenes.render(scenes.sample(18, seed=3), (size, 3 * size // 2)), 6)


def panorama(size: int) -> Tensor:
    """One scene in the aspect ratio of the paper's widest panorama, 6143 x 1677 (Fig. 10)."""
    return scenes.render(scenes.sample(2, seed=8)[[1]], (3 * size, 3 * size * 6143 // 1677))


SHEETS: dict[str, Callable[[int], Tensor]] = {
    **{f"people_{domain}": partial(people, domain) for domain in portraits.DOMAINS},
    "domains": domains,
    "views": views,
    "between": between,
    "landscapes": landscapes,
    "panorama": panorama,
}


def make(folder: Path = FOLDER, *, size: int = 128) -> list[Path]:
    """Write every sheet as FOLDER/NAME.jpg; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [image.write(draw(size), folder / f"{name}.jpg") for name, draw in SHEETS.items()]


if __name__ == "__main__":
    for file in make(*map(Path, sys.argv[1:2])):
        print(file)
