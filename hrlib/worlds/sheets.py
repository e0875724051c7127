"""The pictures in data/sheets, which show what the worlds draw.

    python -m hrlib.worlds.sheets --force       # draws them again
    python -m hrlib.worlds.sheets FOLDER        # draws them in another folder

Each sheet is a function from a size (the side of one portrait in pixels) to a picture [1, 3, H, W].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

from .. import image
from ..errors import HRLibError, number
from ..store import atomic, new
from . import portraits, scenes

FOLDER = Path(__file__).resolve().parents[2] / "data" / "sheets"


def grid(pictures: Tensor, columns: int) -> Tensor:
    """The pictures [N, 3, H, W] in a grid of `columns` columns, with thin white lines between them."""
    return make_grid(pictures, nrow=columns, padding=2, pad_value=1.0)[None].clamp(-1, 1)


def people(domain: str, size: int) -> Tensor:
    """Thirty-two people in one domain, sampled like the training sets."""
    return grid(portraits.render(portraits.sample(32, seed=5), size, domain=domain), 8)


def domains(size: int) -> Tensor:
    """The same eight people in every domain, one row per domain."""
    same = portraits.sample(8, seed=11)
    return grid(torch.cat([portraits.render(same, size, domain=d) for d in portraits.DOMAINS]), 8)


def views(size: int) -> Tensor:
    """One person in every domain, from seven sides, over the range of poses that the world is designed for."""
    one = portraits.sample(8, seed=11)[torch.full((7,), 3)]
    turned = one.replace(pose={"yaw": torch.linspace(-0.7, 0.7, 7), "pitch": torch.linspace(-0.2, 0.2, 7)})
    return grid(torch.cat([portraits.render(turned, size, domain=d) for d in portraits.DOMAINS]), 7)


def between(size: int) -> Tensor:
    """Three pairs of people, interpolated in eight equal steps of all parameters."""
    a, b = portraits.sample(3, seed=21), portraits.sample(3, seed=22)
    rows = []
    for t in torch.linspace(0, 1, 8).tolist():
        mixed = a.replace(**{g: torch.lerp(getattr(a, g), getattr(b, g), t) for g in portraits.GROUPS})
        rows.append(portraits.render(mixed, size))
    return grid(torch.stack(rows, 1).flatten(0, 1), 8)


def landscapes(size: int) -> Tensor:
    """Eighteen scenes, wider than tall."""
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


def make(folder: Path = FOLDER, *, size: int = 128, force: bool = False) -> list[Path]:
    """Write every sheet to FOLDER/NAME.webp; return the files.

    Args:
        folder: created if it is missing.
        size: side of a portrait in pixels, at least 8.
        force: replace existing files.

    Raises:
        InvalidValue: a size out of range.
        StoreError: a file exists or cannot be written; nothing is drawn then.
    """
    size = number("size", size, "whole [8, inf)")
    files = {name: new(Path(folder) / f"{name}.webp", force=force) for name in SHEETS}
    for name, draw in SHEETS.items():
        with atomic(files[name]) as temp:
            image.to_pil(draw(size)).save(temp, format="WebP", quality=85, method=6)  # lossy: they are many
    return list(files.values())


def main(argv: list[str] | None = None) -> None:
    """The command line: call `make` and print the files."""
    parser = argparse.ArgumentParser(
        prog="python -m hrlib.worlds.sheets", description="Draw the sheets of sample pictures."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: data/sheets")
    parser.add_argument("--force", action="store_true", help="replace existing sheets")
    try:
        print("\n".join(map(str, make(**vars(parser.parse_args(argv))))))
    except HRLibError as e:  # a message, not a traceback
        sys.exit(f"{type(e).__name__}: {e}")


if __name__ == "__main__":
    main()
