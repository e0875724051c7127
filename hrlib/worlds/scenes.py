"""Procedural landscapes with known parameters, at any size and aspect ratio, streamed by tile.

    views = sample(16, seed=1)
    x = render(views, 128)                               # [16, 3, 128, 128] in [-1, 1]
    wide = render(views[:1], (128, 512))                 # the same land, more of it to either side
    write_panorama(views[0], (1677, 6143), "lake.tif")   # in the memory of a few tiles

The picture's height always spans the same part of the land, so a larger picture of a scene is the same scene with more
detail (octaves of noise, needles, leaves, blades of grass, down to the pixel), and a wider one shows more of it. Every
number is a function of a pixel's coordinates and the scene's parameters; the parameters fix the light, the season and
the layout, `detail_seed` the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as _replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ShapeError, UnknownName, nearest
from ._common import hash01
from ._flora import Tree
from ._flora import trees as planted
from ._landscape import Strip, block, block_side, skylines, strip
from ._lattice import Field
from ._sky import palette

# name: lowest and highest value sampled. Lengths are in picture heights, u to the right of the picture's middle.
RANGES = {
    "sun_azimuth": (-1.3, 1.3),  # the sun stands at u = 1.1 times this
    "sun_elevation": (-0.14, 1.0),  # below 0 dusk, up to 0.4 the golden hour, 1 noon
    "clouds": (0.0, 1.0),  # cover
    "cloud_streaks": (0.0, 1.0),  # heaps to wisps
    "haze": (0.0, 1.0),
    "mist": (0.0, 1.0),  # over the shore
    "season": (0.0, 3.0),  # spring, summer, autumn, winter
    "dryness": (0.0, 1.0),  # of the grass
    "wind": (0.0, 1.0),  # waves
    "horizon": (0.36, 0.52),  # its height above the lower edge
    "range1": (0.12, 0.30),  # typical heights of the mountains, the farthest first
    "range2": (0.06, 0.19),
    "range3": (0.02, 0.10),
    "peak": (0.0, 0.24),  # one summit of the farthest range, and its place
    "peak_u": (-0.5, 0.5),
    "ruggedness": (0.0, 1.0),
    "rock_warmth": (-1.0, 1.0),
    "snow_line": (0.02, 0.40),
    "hills": (0.005, 0.09),  # their height above the horizon
    "forest": (0.0, 1.0),  # how much of them is wooded
    "conifers": (0.0, 1.0),  # their share among the trees
    "shore": (-0.06, -0.015),  # elevation of the far shore
    "lake": (0.0, 1.0),  # how far it reaches towards the lower edge; 0: none
    "bank_tilt": (-0.5, 0.5),  # the near bank rises to the right
    "trees": (0.0, 1.0),  # how densely the near land is wooded
    "tree_height": (0.7, 1.4),
    "flowers": (0.0, 1.0),
}
NAMES: tuple[str, ...] = tuple(RANGES)
PROBES = (-0.4, -0.2, 0.0, 0.2, 0.4)  # places u at which `explained` reports the skylines


@dataclass(frozen=True)
class Scenes:
    """Parameters of N landscapes: values [N, 27] float32, columns named by NAMES; detail_seed [N] int64."""

    values: Tensor
    detail_seed: Tensor

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.detail_seed), len(NAMES)) or self.values.dtype != torch.float32:
            raise ShapeError(
                f"values of shape {list(self.values.shape)} and type {self.values.dtype}",
                expected=f"float32 [{len(self.detail_seed)}, {len(NAMES)}]",
                do="give one column for each of scenes.NAMES",
            )

    def __len__(self) -> int:
        return len(self.detail_seed)

    def __getitem__(self, index: int | slice | Tensor | list[int]) -> Scenes:
        """The scenes at `index` (a number gives a set of one)."""
        if isinstance(index, int):
            index = [index]
        return Scenes(self.values[index], self.detail_seed[index])

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.values.device

    def to(self, device: str | torch.device) -> Scenes:
        """The same scenes on another device."""
        return Scenes(self.values.to(device), self.detail_seed.to(device))

    def get(self, name: str) -> Tensor:
        """[N] values of one named parameter."""
        return self.values[:, _column(name)]

    def named(self) -> dict[str, Tensor]:
        """All parameters by name, [N] each."""
        return {name: self.values[:, i] for i, name in enumerate(NAMES)}

    def replace(self, changes: Mapping[str, float | Tensor] | None = None, **more: float | Tensor) -> Scenes:
        """A copy with some parameters changed: `views.replace(season=2.0, lake=0.8)`, a number or [N] for each."""
        values = self.values.clone()
        for name, value in {**(changes or {}), **more}.items():
            values[:, _column(name)] = torch.as_tensor(value, dtype=torch.float32, device=values.device)
        return _replace(self, values=values)


def _column(name: str) -> int:
    if name not in RANGES:
        raise UnknownName(
            f"no scene parameter {name!r}",
            expected=f"one of {', '.join(NAMES)}",
            do=nearest(name, list(NAMES)) or "see scenes.NAMES",
        )
    return NAMES.index(name)


def sample(n: int, seed: int = 0, *, device: str | torch.device = "cpu") -> Scenes:
    """Draw n scenes; item i depends on (seed, i) alone.

    Parameters are drawn evenly over RANGES, except that some hours, weathers and lakes are likelier than others.
    """
    index = torch.arange(n)
    taken = 0

    def u() -> Tensor:
        nonlocal taken
        taken += 1
        return hash01(torch.tensor(seed), index, torch.tensor(taken))

    v = {name: lo + (hi - lo) * u() for name, (lo, hi) in RANGES.items()}
    v["sun_elevation"] = torch.where(u() < 0.45, 0.02 + 0.30 * u(), v["sun_elevation"])
    v["clouds"] = 0.08 + 0.92 * torch.where(u() < 0.75, 0.62 * u(), v["clouds"])
    v["haze"] = v["haze"] ** 2.5
    v["mist"] = v["mist"] * (u() < 0.5).float()
    v["lake"] = torch.where(u() < 0.25, 0 * v["lake"], 0.25 + 0.75 * v["lake"])
    v["peak"] = v["peak"] * (u() < 0.6).float()
    v["wind"] = v["wind"] ** 1.5
    v["flowers"] = v["flowers"] * (v["season"] < 2.3).float() * (u() < 0.6).float()
    detail = (hash01(torch.tensor(seed), index, torch.tensor(-1)) * (1 << 24)).long()
    return Scenes(torch.stack([v[name] for name in NAMES], 1).float(), detail).to(device)


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 8 for n in pair):
        raise ShapeError(f"size {size!r}", expected="(height, width), at least 8 each", do="ask for a larger picture")
    return pair


def _supersample(supersample: int) -> int:
    if not (isinstance(supersample, int) and 1 <= supersample <= 8):
        raise ShapeError(f"supersample {supersample}", expected="a whole number from 1 to 8", do="2 is a good choice")
    return supersample


def _field(scenes: Scenes) -> Field:
    columns = scenes.named()
    colours, more = palette(columns)
    return Field(columns | more, colours, scenes.detail_seed)


@dataclass(frozen=True)
class _Picture:
    """What all blocks of a picture share."""

    field: Field
    trees: list[Tree]
    size: tuple[int, int]
    supersample: int
    strips: dict[int, Strip]


def _picture(scenes: Scenes, size: tuple[int, int], supersample: int) -> _Picture:
    field, reach = _field(scenes), 0.5 * size[1] / size[0]
    return _Picture(field, planted(field, -reach, reach), size, supersample, {})


@contextmanager
def _workers(device: torch.device) -> Iterator[Callable]:
    """A `map` over as many threads as torch has: blocks are too small for torch to split, so they share the blocks."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        yield map
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map


def _window(picture: _Picture, rows: slice, cols: slice, mapped: Callable) -> Tensor:
    """[n, 3, h, w] part of the picture: the blocks of a grid fixed to the picture that meet it, each drawn alone."""
    side, seed = block_side(picture.supersample), picture.field.seed
    out = torch.empty(len(seed), 3, rows.stop - rows.start, cols.stop - cols.start, device=seed.device)

    def draw(corner: tuple[int, int]) -> Tensor:
        y, x = corner
        with torch.no_grad():  # a setting of the thread
            if x not in picture.strips:
                picture.strips[x] = strip(picture.field, picture.size, x, picture.supersample)
            ground = picture.strips[x]
            return block(picture.field, picture.trees, ground, picture.size, y, picture.supersample)

    corners = [
        (y, x)
        for y in range(rows.start // side * side, rows.stop, side)
        for x in range(cols.start // side * side, cols.stop, side)
    ]
    for (y, x), part in zip(corners, mapped(draw, corners), strict=True):
        top, left = max(y, rows.start), max(x, cols.start)
        bottom, right = min(y + side, rows.stop), min(x + side, cols.stop)
        out[:, :, top - rows.start : bottom - rows.start, left - cols.start : right - cols.start] = part[
            :, :, top - y : bottom - y, left - x : right - x
        ]
    return out


def render(
    scenes: Scenes, size: int | tuple[int, int] = 128, supersample: int = 2, *, chunk: int | None = None
) -> Tensor:
    """[N, 3, H, W] pictures in [-1, 1].

    Args:
        scenes: what to draw.
        size: side in pixels or (height, width), at least 8 each.
        supersample: samples a pixel along each axis, 1 to 8; the mean of their light is the pixel.
        chunk: scenes drawn at once; 1 on a CPU and 16 elsewhere unless told. On a CPU the result does not depend on it.

    Raises:
        ShapeError: a size or supersample out of range.
    """
    size, supersample = _size(size), _supersample(supersample)
    chunk = chunk or (1 if scenes.device.type == "cpu" else 16)
    whole = slice(0, size[0]), slice(0, size[1])
    with torch.no_grad(), _workers(scenes.device) as mapped:
        return torch.cat(
            [
                _window(_picture(scenes[i : i + chunk], size, supersample), *whole, mapped)
                for i in range(0, len(scenes), chunk)
            ]
        )


def tiles(
    scene: Scenes, size: int | tuple[int, int], tile: int = 512, supersample: int = 2
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Draw one scene tile by tile, in rows from the top left; each is exactly that crop of the whole picture.

    Args:
        scene: a set of one.
        size: (height, width) of the whole picture.
        tile: side of a tile; those at the right and lower edges are smaller. Multiples of 64 waste no work.
        supersample: as in `render`.

    Yields:
        (rows, columns, image [3, h, w] in [-1, 1]).
    """
    if len(scene) != 1 or tile < 1:
        raise ShapeError(
            f"{len(scene)} scenes, tile {tile}", expected="one scene and a positive tile", do="index the set: scenes[0]"
        )
    size, supersample = _size(size), _supersample(supersample)
    return _tiles(scene, size, tile, supersample)


def _tiles(scene: Scenes, size: tuple[int, int], tile: int, supersample: int) -> Iterator[tuple[slice, slice, Tensor]]:
    with torch.no_grad():
        picture = _picture(scene, size, supersample)
    with _workers(scene.device) as mapped:
        for y in range(0, size[0], tile):
            for x in range(0, size[1], tile):
                rows, cols = slice(y, min(y + tile, size[0])), slice(x, min(x + tile, size[1]))
                yield rows, cols, _window(picture, rows, cols, mapped)[0]


def explained(scenes: Scenes) -> Tensor:
    """[N, 62] float32: what explains a picture, each column at most about 2 in size.

    The 27 parameters, brought to [-1, 1] by RANGES; then at each of the five PROBES four times the elevations of the
    skylines (three ranges, the hills, the near bank), whether a tree stands there (1 a conifer, -1 a broad-leaved one,
    0 none), and its top.
    """
    with torch.no_grad():
        return torch.cat([_explained(scenes[i : i + 256]) for i in range(0, len(scenes), 256)])


def _explained(scenes: Scenes) -> Tensor:
    low, high = (torch.tensor([RANGES[name][k] for name in NAMES], device=scenes.device) for k in (0, 1))
    probes = torch.tensor(PROBES, device=scenes.device)
    field = _field(scenes)
    lines = skylines(field, probes) * 4
    kind = torch.zeros(len(scenes), len(PROBES), device=scenes.device)
    top = torch.zeros_like(kind)
    for tree in planted(field, PROBES[0], PROBES[-1]):
        of = {name: column[:, None] for name, column in tree.columns.items()}
        here = of["there"] & ((probes - of["u"]).abs() < 0.22 * of["size"])
        kind = torch.where(here, torch.where(of["needles"], 1.0, -1.0), kind)
        top = torch.where(here, torch.maximum(top, of["foot"] + of["size"]), top)
    return torch.cat(((scenes.values - low) / (high - low) * 2 - 1, lines.flatten(1), kind, top * 2), 1)


def write_panorama(
    scene: Scenes, size: tuple[int, int], path: str | os.PathLike, *, supersample: int = 2, force: bool = False
) -> Path:
    """Draw one scene into a tiled TIFF (8 bits, deflate), never holding more than a tile of it; return its path.

    Args:
        scene: a set of one.
        size: (height, width); more than 4 GB of pixels become a BigTIFF.
        path: a file name, to which .tif is appended where it is missing; the file appears when it is complete.
        supersample: as in `render`.
        force: replace a file that is there.

    Raises:
        ShapeError: a size or supersample out of range, or not one scene.
        StoreError: the file is there already, or nobody may write there; nothing is drawn then.
    """
    import tifffile

    from ..store import atomic, destination, new

    tile, (height, width) = 512, _size(size)
    drawn = tiles(scene, size, tile, supersample)
    path = Path(path) if Path(path).suffix.lower() == ".tiff" else destination(path, ".tif")
    path = new(path, force=force)

    def encoded() -> Iterator:
        for _, _, image in drawn:
            full = torch.zeros(tile, tile, 3, dtype=torch.uint8)
            full[: image.shape[1], : image.shape[2]] = (
                (image.permute(1, 2, 0) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
            )
            yield full.numpy()

    with atomic(path) as temporary:
        tifffile.imwrite(
            temporary,
            encoded(),
            shape=(height, width, 3),
            dtype="uint8",
            tile=(tile, tile),
            photometric="rgb",
            compression="deflate",
            maxworkers=1,  # several would collect hundreds of MB of tiles first
            predictor=True,
            bigtiff=height * width * 3 > 2**32 - 2**25,
        )
    return path


__all__ = [
    "NAMES", "PROBES", "RANGES", "Scenes", "explained", "render", "sample", "tiles", "write_panorama",
]  # fmt: skip
