"""Procedural landscapes with known parameters, at any size and aspect ratio, drawn tile by tile.

    views = sample(16, seed=1)
    x = render(views, 128)                               # [16, 3, 128, 128] in [-1, 1]
    wide = render(views[:1], (128, 512))                 # the same land, and more of it to either side
    write_panorama(views[0], (1677, 6143), "lake.tif")   # needs memory for a few tiles only

A picture's height always spans the same part of the land. So a larger picture shows the same scene in more detail
(octaves of noise, needles, leaves, blades of grass, down to the pixel), and a wider one shows more of it. Each pixel is
a function of its coordinates and of the scene's parameters, which determine light, season and layout; `detail_seed`
determines the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as _replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ShapeError, UnknownName, nearest, number
from ._common import hash01, sides
from ._flora import Tree
from ._flora import trees as planted
from ._landscape import Strip, block, block_side, skylines, strip
from ._lattice import Field
from ._sky import palette

# name: lowest and highest sampled value. Lengths are in picture heights; u is measured from the middle to the right.
RANGES = {
    "sun_azimuth": (-1.3, 1.3),  # the sun stands at u = 1.1 times this
    "sun_elevation": (-0.14, 1.0),  # below 0: dusk, up to 0.4: golden hour, 1: noon
    "clouds": (0.0, 1.0),  # cover
    "cloud_streaks": (0.0, 1.0),  # from heaps to wisps
    "haze": (0.0, 1.0),
    "mist": (0.0, 1.0),  # over the shore
    "season": (0.0, 3.0),  # spring, summer, autumn, winter
    "dryness": (0.0, 1.0),  # of the grass
    "wind": (0.0, 1.0),  # waves
    "horizon": (0.36, 0.52),  # its height above the lower edge
    "range1": (0.12, 0.30),  # typical heights of the mountain ranges, farthest first
    "range2": (0.06, 0.19),
    "range3": (0.02, 0.10),
    "peak": (0.0, 0.24),  # a summit in the farthest range, and where it is
    "peak_u": (-0.5, 0.5),
    "ruggedness": (0.0, 1.0),
    "rock_warmth": (-1.0, 1.0),
    "snow_line": (0.02, 0.40),
    "hills": (0.005, 0.09),  # their height above the horizon
    "forest": (0.0, 1.0),  # the share of them that is wooded
    "conifers": (0.0, 1.0),  # the share of conifers among the trees
    "shore": (-0.06, -0.015),  # elevation of the far shore
    "lake": (0.0, 1.0),  # how far it extends towards the lower edge; 0: no lake
    "bank_tilt": (-0.5, 0.5),  # how much the near bank rises to the right
    "trees": (0.0, 1.0),  # how densely the near land is wooded
    "tree_height": (0.7, 1.4),
    "flowers": (0.0, 1.0),
}
NAMES: tuple[str, ...] = tuple(RANGES)
SUPERSAMPLE = "whole [1, 8]"  # samples per pixel along each axis, an interval of `errors.number`
PROBES = (-0.4, -0.2, 0.0, 0.2, 0.4)  # positions u at which `explained` reports the skylines


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
                do="pass one column for each of scenes.NAMES",
            )

    def __len__(self) -> int:
        return len(self.detail_seed)

    def __getitem__(self, index: int | slice | Tensor | list[int]) -> Scenes:
        """The scenes at `index` (an integer gives a set of one)."""
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

    def replace(self, **parameters: float | Tensor) -> Scenes:
        """A copy with parameters of `NAMES` changed to numbers or [N]: `views.replace(season=2.0, lake=0.8)`."""
        values = self.values.clone()
        for name, value in parameters.items():
            values[:, _column(name)] = torch.as_tensor(value, dtype=torch.float32, device=values.device)
        return _replace(self, values=values)


def _column(name: str) -> int:
    if name not in RANGES:
        raise UnknownName(
            f"no scene parameter {name!r}",
            expected=f"one of {', '.join(NAMES)}",
            do=nearest(name, list(NAMES)) or "use a name listed in scenes.NAMES",
        )
    return NAMES.index(name)


def sample(n: int, seed: int = 0, *, device: str | torch.device = "cpu") -> Scenes:
    """Sample n scenes; item i depends only on (seed, i).

    Parameters are uniform over RANGES, except that some hours, weather and lakes are more likely than others.
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


def _field(scenes: Scenes) -> Field:
    columns = scenes.named()
    colours, more = palette(columns)
    return Field(columns | more, colours, scenes.detail_seed)


@dataclass(frozen=True)
class _Picture:
    """What the blocks of a picture share."""

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
    """A `map` over as many threads as torch uses: blocks are too small for torch to split, so threads share blocks."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        yield map
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map


def _window(picture: _Picture, rows: slice, cols: slice, mapped: Callable) -> Tensor:
    """[n, 3, h, w] part of the picture, from the blocks that overlap it; the grid of blocks is fixed to the picture."""
    side, seed = block_side(picture.supersample), picture.field.seed
    out = torch.empty(len(seed), 3, rows.stop - rows.start, cols.stop - cols.start, device=seed.device)

    def draw(corner: tuple[int, int]) -> Tensor:
        y, x = corner
        with torch.no_grad():  # it only applies to the current thread
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
        supersample: samples per pixel along each axis, 1 to 8; a pixel is the mean of their light.
        chunk: scenes drawn at once; default 1 on a CPU and 16 elsewhere. On a CPU the result does not depend on it.

    Raises:
        InvalidValue: a size or supersample out of range.
    """
    size, supersample = sides(size), number("supersample", supersample, SUPERSAMPLE)
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
    """Draw one scene tile by tile, row by row from the top left; each tile is exactly that crop of the whole picture.

    Args:
        scene: a set of one.
        size: side or (height, width) of the whole picture.
        tile: side of a tile; those at the right and lower edges may be smaller. Multiples of 64 waste no work.
        supersample: as in `render`.

    Yields:
        (rows, columns, image [3, h, w] in [-1, 1]).

    Raises:
        ShapeError: not one scene. InvalidValue: a size, tile or supersample out of range.
    """
    if len(scene) != 1:
        raise ShapeError(f"{len(scene)} scenes", expected="one scene", do="index the set: views[0]")
    tile, supersample = number("tile", tile, "whole [1, inf)"), number("supersample", supersample, SUPERSAMPLE)
    return _tiles(scene, sides(size), tile, supersample)


def _tiles(scene: Scenes, size: tuple[int, int], tile: int, supersample: int) -> Iterator[tuple[slice, slice, Tensor]]:
    with torch.no_grad():
        picture = _picture(scene, size, supersample)
    with _workers(scene.device) as mapped:
        for y in range(0, size[0], tile):
            for x in range(0, size[1], tile):
                rows, cols = slice(y, min(y + tile, size[0])), slice(x, min(x + tile, size[1]))
                yield rows, cols, _window(picture, rows, cols, mapped)[0]


def explained(scenes: Scenes) -> Tensor:
    """[N, 62] float32: numbers that explain a picture, each at most about 2 in size.

    The 27 parameters, scaled to [-1, 1] by RANGES; then, at each of the five PROBES, four times the elevations of the
    skylines (three ranges, the hills, the near bank), whether a tree stands there (1: conifer, -1: broad-leaved, 0:
    none) and its top.
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
    """Draw one scene into a tiled TIFF (8 bits, deflate), holding only one tile in memory; return the file's path.

    Args:
        scene: a set of one.
        size: (height, width); more than 4 GB of pixels become a BigTIFF.
        path: gets the suffix .tif if it lacks it; the file appears once it is complete.
        supersample: as in `render`.
        force: replace an existing file.

    Raises:
        ShapeError: not one scene. InvalidValue: a size or supersample out of range.
        StoreError: the file exists or cannot be written; nothing is drawn then.
    """
    import tifffile

    from ..store import atomic, destination, new

    tile, (height, width) = 512, sides(size)
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
            maxworkers=1,  # several workers would first collect hundreds of MB of tiles
            predictor=True,
            bigtiff=height * width * 3 > 2**32 - 2**25,
        )
    return path


__all__ = [
    "NAMES", "PROBES", "RANGES", "Scenes", "explained", "render", "sample", "tiles", "write_panorama",
]  # fmt: skip
