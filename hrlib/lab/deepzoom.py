"""Large pictures as a page to zoom into: tiles of every scale, and OpenSeadragon (BSD licence, in `viewer/`).

The page needs no server and no network. While a run goes on it may be written again and again: a reader who has it open
sees the new pictures within seconds.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from .. import store
from ..errors import ShapeError
from ..image import to_uint8

TILE, OVERLAP, QUALITY = 254, 1, 90
VIEWER = Path(__file__).parent / "viewer"


def levels(width: int, height: int) -> int:
    """The highest level of a pyramid, at full size; level 0 is a single pixel."""
    return (max(width, height) - 1).bit_length()


def pyramid(x: Tensor, folder: Path) -> Path:
    """Write LEVEL/COLUMN_ROW.jpg of a picture [1, 3, H, W] in [-1, 1] below `folder`, each level half the next."""
    if x.ndim != 4 or len(x) != 1:
        raise ShapeError(f"a picture of shape {tuple(x.shape)}", expected="[1, 3, H, W]", do="write one at a time")
    picture = Image.fromarray(to_uint8(x)[0])
    for level in range(levels(*picture.size), -1, -1):
        (folder / str(level)).mkdir(parents=True, exist_ok=True)
        width, height = picture.size
        for column in range(-(-width // TILE)):
            for row in range(-(-height // TILE)):
                x0, y0 = max(0, column * TILE - OVERLAP), max(0, row * TILE - OVERLAP)
                box = (x0, y0, min(width, (column + 1) * TILE + OVERLAP), min(height, (row + 1) * TILE + OVERLAP))
                picture.crop(box).save(folder / str(level) / f"{column}_{row}.jpg", quality=QUALITY)
        picture = picture.resize((-(-width // 2), -(-height // 2)), Image.Resampling.BOX)
    return folder


def write(pictures: Mapping[str, Tensor], folder: str | Path, *, title: str, caption: str = "") -> Path:
    """Write the page FOLDER/index.html, or write it anew; returns its path.

    pictures: name -> [1, 3, H, W] in [-1, 1], of one size; a slider blends each into the next. A picture whose pixels
    are those of the last time is not written again. Tiles of earlier times are deleted once the new ones are there.
    """
    sizes = {tuple(x.shape[2:]) for x in pictures.values()}
    if len(sizes) != 1:
        raise ShapeError(f"pictures of sizes {sorted(sizes)}", expected="one or more of one size", do="resize them")
    (height, width), folder = sizes.pop(), Path(folder)
    layers = []
    for k, (name, x) in enumerate(pictures.items()):
        digest = f"{_digest(x):016x}"
        tiles = store.inside(folder, f"{k}-{digest}")
        if not tiles.exists():
            partial = folder / f"{store.TEMP_PREFIX}{k}-{digest}"
            shutil.rmtree(partial, ignore_errors=True)
            pyramid(x, partial).rename(tiles)
        layers.append(
            {"name": name, "folder": tiles.name, "width": width, "height": height, "tile": TILE, "overlap": OVERLAP}
        )
    for file in ("index.html", "openseadragon.min.js", "openseadragon.LICENSE.txt"):
        store.write_bytes(folder / file, (VIEWER / file).read_bytes())
    version = " ".join(layer["folder"] for layer in layers)
    status = json.dumps({"title": title, "caption": caption, "version": version, "layers": layers})
    store.write_bytes(folder / "status.js", f"shown({status});\n".encode())
    kept = {layer["folder"] for layer in layers}
    for old in folder.iterdir():
        if old.is_dir() and old.name not in kept:
            shutil.rmtree(old)
    return folder / "index.html"


def _digest(x: Tensor) -> int:
    return zlib.crc32(np.ascontiguousarray(to_uint8(x)).data) << 32 | x.numel()
