"""Large pictures as a zoomable page: tiles at every scale, and OpenSeadragon (BSD licence, in `viewer/`).

The page needs no server and no network. A run may rewrite it again and again, and a reader who has it open sees the new
pictures within seconds.

By hand, because pyvips.dzsave and openslide's DeepZoomGenerator would save the fifteen lines of `pyramid`, at the price
of two more packages and 8 or 3 MB of native code; the care is in `write`, which neither of them has.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from .. import store
from ..errors import ShapeError, StoreError
from ..image import to_uint8

TILE, OVERLAP, QUALITY = 254, 1, 90
VIEWER = Path(__file__).parent / "viewer"
FILES = ("index.html", "openseadragon.min.js", "openseadragon.LICENSE.txt")  # of the viewer
STATUS = "status.js"  # says what the page shows; written last
TILES = re.compile(r"\d+-[0-9a-f]{16}")  # names of tile folders: index of the picture, digest of its pixels


def levels(width: int, height: int) -> int:
    """The highest level of a pyramid, which has the full size; level 0 is a single pixel."""
    return (max(width, height) - 1).bit_length()


def pyramid(x: Tensor, folder: Path) -> Path:
    """Write LEVEL/COLUMN_ROW.jpg of a picture [1, 3, H, W] in [-1, 1] to `folder`, each level half the next."""
    if x.ndim != 4 or len(x) != 1:
        raise ShapeError(
            f"a picture of shape {tuple(x.shape)}", expected="[1, 3, H, W]", do="write one picture at a time"
        )
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


def prepare(folder: str | Path, *, force: bool = False) -> list[str]:
    """Check a page's folder before any work; returns the tile folders of an earlier page there, if any.

    A missing folder is not created yet.

    Raises:
        StoreError: the folder cannot be written to, is a link, or has other files with the names of a page's; `force`
            allows `write` to replace those.
    """
    folder = Path(folder)
    if folder.is_symlink():  # its files belong to something else
        raise StoreError(f"{folder} is a link to {folder.readlink()}", expected="a folder", do="remove the link")
    if not folder.exists():
        store.ready(folder.parent)
        return []
    shown = _shown(folder / STATUS)
    for file in (*FILES, STATUS):
        ours = shown is not None or ((folder / file).is_file() and file in FILES and _is_viewers(folder / file))
        store.new(folder / file, force=force or ours)
    return shown or []


def _is_viewers(path: Path) -> bool:
    """Whether it is a file of the viewer, which a run killed before writing its status left here."""
    return path.read_bytes() == (VIEWER / path.name).read_bytes()


def _shown(status: Path) -> list[str] | None:
    """The tile folders that a page's status names; None if `write` did not write the file."""
    try:
        text = status.read_text(encoding="utf-8")
        folders = [layer["folder"] for layer in json.loads(text.removeprefix("shown(").removesuffix(");\n"))["layers"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folders if all(TILES.fullmatch(name) for name in folders) else None


def write(
    pictures: Mapping[str, Tensor], folder: str | Path, *, title: str, caption: str = "", force: bool = False
) -> Path:
    """Write or update the page FOLDER/index.html, and return its path.

    pictures: name -> [1, 3, H, W] in [-1, 1], all of one size; a slider blends each into the next. Pictures that have
    not changed are not written again. The tiles of an earlier page are deleted after the new ones are in place; nothing
    else is deleted. force: as in `prepare`, whose errors this raises as well.
    """
    sizes = {tuple(x.shape[2:]) for x in pictures.values()}
    if len(sizes) != 1:
        raise ShapeError(
            f"pictures of sizes {sorted(sizes)}", expected="one or more of one size", do="resize them with image.resize"
        )
    (height, width), folder = sizes.pop(), Path(folder)
    before, layers = prepare(folder, force=force), []
    for k, (name, x) in enumerate(pictures.items()):
        digest = f"{_digest(x):016x}"
        tiles = store.inside(folder, f"{k}-{digest}")
        if not tiles.exists():
            partial = folder / f"{store.TEMP_PREFIX}{k}-{digest}"
            shutil.rmtree(partial, ignore_errors=True)
            with store.writing(tiles):
                pyramid(x, partial).rename(tiles)
        layers.append(
            {"name": name, "folder": tiles.name, "width": width, "height": height, "tile": TILE, "overlap": OVERLAP}
        )
    for file in FILES:
        store.write_bytes(folder / file, (VIEWER / file).read_bytes())
    version = " ".join(layer["folder"] for layer in layers)
    status = json.dumps({"title": title, "caption": caption, "version": version, "layers": layers})
    store.write_bytes(folder / STATUS, f"shown({status});\n".encode())
    for old in set(before) - {layer["folder"] for layer in layers}:
        shutil.rmtree(folder / old, ignore_errors=True)
    return folder / "index.html"


def _digest(x: Tensor) -> int:
    return zlib.crc32(np.ascontiguousarray(to_uint8(x)).data) << 32 | x.numel()
