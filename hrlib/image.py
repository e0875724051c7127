"""Files <-> tensors, and the one image convention of the library: float32 [N, 3, H, W], RGB (sRGB), in [-1, 1].

Reading is exact: the camera's orientation is applied, 16-bit files keep their levels, transparent pixels are laid on a
background colour, and colours in another space (as an ICC profile or the chunks of a PNG say: see `_colours`) are
converted to sRGB. A file that cannot be read exactly is an `ImageError`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from . import errors
from ._decode import MAX_PIXELS, decode, load_bytes
from .errors import ImageError, InvalidValue, ShapeError, UnknownName, nearest, number
from .store import atomic

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = {".jpg": 65_500, ".webp": 16_383}  # longest side in pixels that the format allows
MOST_MADE = 1 << 28  # most pixels of a picture that is drawn or resized: 3 GB in float32, before any computation
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Sample:
    """A real photograph inside the scikit-image package, with its origin and licence.

    box: the part of it that is shown, (left, top, right, bottom) in pixels; None for all of it.
    """

    file: str
    title: str
    licence: str
    origin: str
    box: tuple[int, int, int, int] | None = None


_SKIMAGE = "https://scikit-image.org/docs/stable/api/skimage.data.html"
_NASA = "NASA Great Images, https://flic.kr/p/r9qvLn"
SAMPLES = {
    "astronaut": Sample("astronaut.png", "Eileen Collins", "public domain", _NASA),
    # framed as in FFHQ: the eyes at 47 % of the height, a quarter of the width apart
    "astronaut_face": Sample("astronaut.png", "Eileen Collins", "public domain", _NASA, box=(138, 22, 311, 195)),
    "chelsea": Sample("chelsea.png", "Chelsea the cat", "CC0", f"Stefan van der Walt, {_SKIMAGE}"),
    "coffee": Sample("coffee.png", "a cup of coffee", "CC0", f"Rachel Michetti, {_SKIMAGE}"),
    "rocket": Sample("rocket.jpg", "launch of a Falcon 9", "public domain", f"SpaceX, {_SKIMAGE}"),
    "camera": Sample("camera.png", "a cameraman (grey)", "CC0", f"Lav Varshney, {_SKIMAGE}"),
    "hubble": Sample("hubble_deep_field.jpg", "Hubble eXtreme Deep Field", "public domain", f"NASA, {_SKIMAGE}"),
    "brick": Sample("brick.png", "a brick wall (grey)", "CC0", f"CC0Textures, {_SKIMAGE}"),
    "grass": Sample("grass.png", "grass (grey)", "CC0", f"linolafett, {_SKIMAGE}"),
    "gravel": Sample("gravel.png", "gravel (grey)", "CC0", f"CC0Textures, {_SKIMAGE}"),
}


# --- files -> tensors -------------------------------------------------------------------------------------------------


def read(
    source: str | os.PathLike | bytes,
    size: int | tuple[int, int] | None = None,
    *,
    background: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Read one picture as a tensor [1, 3, H, W], float32 RGB in [-1, 1].

    Args:
        source: a file, or its bytes: PNG, JPEG, WebP, TIFF or BMP, with 8 or 16 bits a channel.
        size: None keeps the picture's own size; an edge or (H, W) takes the largest centred part of that aspect ratio
            and resamples it with LANCZOS, as the authors' projector does (bit for bit, for 8-bit pictures).
        background: RGB in [-1, 1] behind transparent pixels; None makes a transparent picture an error.
        max_pixels: larger pictures are an error, raised before they are decoded.

    Raises:
        ImageError: the file is missing, not in one of these formats, truncated, animated, too large, of a kind without
            a defined range (floating point, 32 bits), of colours without an exact conversion to sRGB (HDR), or
            transparent without a background.
        InvalidValue: a size, max_pixels or background outside its range.
    """
    size = None if size is None else sides(size)
    behind = None if background is None else _behind(background)
    data, name = load_bytes(source)
    raster = decode(data, name, max_pixels=number("max_pixels", max_pixels, "whole [1, inf)"))
    colour = raster.colour
    if raster.alpha is not None and (raster.alpha < _top(raster.alpha)).any():
        if behind is None:
            raise ImageError(
                f"{name} has transparent pixels",
                expected="an opaque picture",
                do="flatten it onto a colour, or pass the colour behind it as `background`",
            )
        opacity = _unit(raster.alpha)[..., None]
        colour = _unit(colour) * opacity + behind * (1 - opacity)
    if size is not None:
        colour = _fit(colour, size)
    return torch.from_numpy(_unit(colour) * 2 - 1).permute(2, 0, 1)[None].contiguous()


def sample(name: str, size: int | tuple[int, int] | None = None) -> Tensor:
    """A real photograph from `SAMPLES`, without a download, as `read` returns it: [1, 3, H, W] in [-1, 1].

    "astronaut_face" has 173 pixels of its own; at the networks' 256 it is enlarged.
    """
    if name not in SAMPLES:
        hint = nearest(name, list(SAMPLES))
        raise UnknownName(
            f"no sample photograph {name!r}", expected=f"one of {', '.join(SAMPLES)}", do=hint or "see image.SAMPLES"
        )
    import skimage

    found = SAMPLES[name]
    path = Path(skimage.__file__).parent / "data" / found.file
    if found.box is None:
        return read(path, size)
    left, top, right, bottom = found.box
    part = read(path)[:, :, top:bottom, left:right].contiguous()
    return part if size is None else resize(part, size)


# --- sizes and depths -------------------------------------------------------------------------------------------------


def resize(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The largest centred part of x [N, 3, H, W] with the aspect ratio of `size` (int: a square), LANCZOS-resampled.

    Computed in float32 without gradients (losses have their own, differentiable, down-sampling); LANCZOS overshoots at
    edges, so the result is clamped to [-1, 1].
    """
    images = check(x).detach().cpu().permute(0, 2, 3, 1).numpy()
    fitted = np.stack([_fit((image + 1) / 2, sides(size)) for image in images])
    return torch.from_numpy(fitted * 2 - 1).permute(0, 3, 1, 2).contiguous().to(x.device)


def _behind(background: tuple[float, float, float]) -> np.ndarray:
    """The colour in [0, 1]."""
    colour = [number("background", v, "[-1, 1]") for v in background]
    if len(colour) != 3:
        raise InvalidValue(f"background = {background!r}", expected="red, green and blue", do="give three numbers")
    return (np.asarray(colour, np.float32) + 1) / 2


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a picture to be made, from an edge or (H, W).

    Raises:
        InvalidValue: a side that is not a whole number above 0, or more than `MOST_MADE` pixels in all.
    """
    height, width = errors.sides("size", size)
    if height * width > MOST_MADE:
        raise InvalidValue(
            f"size {width} x {height} = {height * width / 1e6:.0f} megapixels",
            expected=f"at most {MOST_MADE / 1e6:.0f} megapixels",
            do="choose a smaller size",
        )
    return height, width


def _fit(colour: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Centre-crop [H, W, 3] to the aspect ratio of `size` and resample: 8 bits stay 8, the rest is float in [0, 1]."""
    (height, width), (out_height, out_width) = colour.shape[:2], size
    crop_height = min(height, max(1, round(width * out_height / out_width)))
    crop_width = min(width, max(1, round(height * out_width / out_height)))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    colour = colour[top : top + crop_height, left : left + crop_width]
    if colour.shape[:2] == size:
        return colour
    if colour.dtype == np.uint8:
        return np.asarray(Image.fromarray(colour).resize((out_width, out_height), Image.Resampling.LANCZOS))
    planes = [
        Image.fromarray(plane).resize((out_width, out_height), Image.Resampling.LANCZOS)  # mode "F": float32
        for plane in np.ascontiguousarray(np.moveaxis(_unit(colour), -1, 0))
    ]
    return np.clip(np.stack([np.asarray(plane) for plane in planes], axis=-1), 0, 1)


def _top(array: np.ndarray) -> int:
    return np.iinfo(array.dtype).max


def _unit(array: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] from uint8, uint16, or float already in [0, 1]."""
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    return (array / np.float64(_top(array))).astype(np.float32)


# --- tensors -> files -------------------------------------------------------------------------------------------------


def check(x: Tensor, what: str = "images", *, limit: float = math.inf) -> Tensor:
    """Return x if it is a batch of images [N, 3, H, W]: one or more, float, finite, no value beyond +-limit.

    what: the tensor's role, for the error.

    Raises:
        ShapeError: another shape or type. InvalidValue: values that are not finite, or beyond the limit.
    """
    is_tensor = isinstance(x, torch.Tensor)
    if not is_tensor or x.ndim != 4 or x.shape[1] != 3 or not x.numel() or not x.is_floating_point():
        kind = f"shape {tuple(x.shape)} and type {x.dtype}" if is_tensor else f"type {type(x).__name__}"
        raise ShapeError(
            f"{what} of {kind}",
            expected="one or more images [N, 3, H, W], float, RGB in [-1, 1]",
            do="read images with image.read, or convert 8-bit arrays with image.from_uint8",
        )
    low, high = (float(v) for v in x.detach().aminmax())  # both are NaN if any value is
    if not (math.isfinite(low) and math.isfinite(high) and max(-low, high) <= limit):
        raise InvalidValue(
            f"{what} with values in [{low:.4g}, {high:.4g}]",
            expected="finite values in [-1, 1]",
            do="convert 0..255 images with image.from_uint8, or find the step that made NaN",
        )
    return x


def comparable(recon: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches [N, 3, H, W] for a measure: checked, of equal shape, clamped, in float64 on the [0, 1] scale.

    Raises:
        ShapeError, InvalidValue: as `check`; ShapeError also for different shapes.
    """
    check(recon, "a reconstruction"), check(target, "a target")
    if recon.shape != target.shape:
        raise ShapeError(
            f"images of {tuple(recon.shape)} against {tuple(target.shape)}",
            expected="equal shapes",
            do="compare images of one size",
        )
    return tuple((x.detach().double().clamp(-1, 1) + 1) / 2 for x in (recon, target))


def to_uint8(x: Tensor) -> np.ndarray:
    """uint8 [N, H, W, 3] from x [N, 3, H, W]: clamped to [-1, 1], then *rounded*.

    The authors' code truncates, which darkens pictures by half a level on average, so a file written here can be one
    level brighter than theirs.
    """
    levels = (check(x).detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def from_uint8(array: np.ndarray) -> Tensor:
    """float32 [N, 3, H, W] in [-1, 1] from uint8 [N, H, W, 3] or [H, W, 3]; `to_uint8` gives the same bytes back."""
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
        raise ShapeError(
            f"an array of shape {array.shape} and type {array.dtype}",
            expected="uint8 [N, H, W, 3] or [H, W, 3]",
            do="convert it to uint8 with three channels, or use image.read for files",
        )
    batch = array if array.ndim == 4 else array[None]
    return torch.from_numpy(_unit(batch) * 2 - 1).permute(0, 3, 1, 2).contiguous()


def to_pil(x: Tensor) -> Image.Image:
    """A Pillow picture from x [1, 3, H, W] in [-1, 1] (for display in a notebook); rounded as `to_uint8` does."""
    if len(check(x)) != 1:
        raise ShapeError(f"a batch of {len(x)} images", expected="one image [1, 3, H, W]", do="pass x[i : i + 1]")
    return Image.fromarray(to_uint8(x)[0])


def writable(path: str | os.PathLike, size: tuple[int, int]) -> str:
    """The format, as a suffix, in which `write` would write a picture of size (H, W) to `path`.

    Raises:
        ImageError: a suffix that is not in `SUFFIXES`, or a side longer than the format allows.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(
            f"cannot write {path.name!r}: unknown suffix {path.suffix!r}",
            expected=f"one of {', '.join(SUFFIXES)}",
            do="change the file's suffix, for instance to .png",
        )
    kind = {".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)
    if max(size) > (most := LONGEST.get(kind, math.inf)):
        raise ImageError(
            f"a picture of {size[1]} x {size[0]} pixels as {path.name}",
            expected=f"sides of at most {most} pixels in this format",
            do="write a .png or a .tif",
        )
    return kind


def write(x: Tensor, path: str | os.PathLike) -> Path:
    """Write x [1, 3, H, W] in [-1, 1] as an 8-bit picture; the suffix names the format; returns the path.

    PNG, WebP, TIFF and BMP are lossless; JPEG is written at quality 95 without chroma subsampling; TIFF in tiles of 256
    pixels, so that a viewer can read a part of a large one. Values are rounded to the nearest level (see `to_uint8`).
    The file is written completely or not at all.
    """
    path = Path(path)
    kind = writable(path, tuple(check(x).shape[2:]))
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}
    picture = to_pil(x)
    with atomic(path) as temp:
        if kind == ".tif":
            _write_tiles(picture, temp)
        else:
            picture.save(temp, **options.get(kind, {}))
    return path


def _write_tiles(picture: Image.Image, path: Path) -> None:
    import tifffile  # here: most pictures are not TIFF

    pixels = np.asarray(picture)
    how = {"tile": (256, 256), "compression": "deflate", "predictor": True, "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, pixels, bigtiff=pixels.nbytes > 2**32 - 2**25, **how)
