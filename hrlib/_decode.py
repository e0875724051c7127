"""Bytes of a picture file -> upright sRGB pixels, exactly, or an `ImageError` (a part of `image.read`).

Pillow and imagecodecs decode; what is ours is the decision which files can be read exactly. pyvips would decode the
same formats through another 8 MB of native code, and these checks would stay.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from . import _colours
from .errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
MAX_PIXELS = 89_000_000  # just below the size at which Pillow warns of a decompression bomb
MAX_BYTES = 1 << 30
_ORIENTATION, _BITS_PER_SAMPLE = 0x0112, 258  # EXIF and TIFF tags


class Raster(NamedTuple):
    """Pixels as stored: `colour` [H, W, 3] (or [H, W], [H, W, 4] for CMYK), `alpha` [H, W] or None; uint8 or uint16."""

    colour: np.ndarray
    alpha: np.ndarray | None


def load_bytes(source: str | os.PathLike | bytes) -> tuple[bytes, str]:
    """The bytes of a file (or the bytes given) and a name for them in messages."""
    if isinstance(source, bytes):
        return source, "the given bytes"
    path = Path(source)
    if not path.is_file():
        raise ImageError(
            f"no file {path}" if not path.exists() else f"{path} is not a file",
            expected="the path of a picture",
            do=f"check the spelling; the working directory is {Path.cwd()}",
        )
    if path.stat().st_size > MAX_BYTES:
        raise ImageError(
            f"{path} is {path.stat().st_size / 2**20:.0f} MiB",
            expected=f"a file of at most {MAX_BYTES / 2**20:.0f} MiB",
            do="scale the picture down first",
        )
    try:
        return path.read_bytes(), str(path)
    except OSError as e:
        raise ImageError(
            f"{path} cannot be read ({e.strerror or e})",
            expected="a file that this user may read",
            do="correct its permissions",
        ) from e


def decode(data: bytes, name: str, *, max_pixels: int) -> Raster:
    """Decode a picture to sRGB pixels in upright orientation."""
    Image.init()  # registers formats that Pillow does not load by default (TIFF, WebP)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the pixel cap below is stricter
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as e:
        raise ImageError(
            f"{name} is not a picture in a format we read (it starts with {data[:12]!r})",
            expected="PNG, JPEG, WebP, TIFF or BMP",
            do="open it in a picture viewer and save it as PNG",
        ) from e
    except Exception as e:  # decoders raise many kinds of errors, all for unusable headers
        raise _damaged(name, e) from e
    with opened as im:
        if im.width * im.height > max_pixels:
            raise ImageError(
                f"{name} has {im.width} x {im.height} = {im.width * im.height / 1e6:.0f} megapixels",
                expected=f"at most {max_pixels / 1e6:.0f} megapixels",
                do="scale it down, or pass a larger max_pixels if you trust the file",
            )
        try:
            if im.format != "MPO" and getattr(im, "n_frames", 1) > 1:  # MPO: a phone's JPEG with a depth map behind it
                raise ImageError(
                    f"{name} holds {im.n_frames} frames", expected="one still picture", do="export one frame as PNG"
                )
            profile = _colours.profile_of(im, data, name)
            deep = _is_deep(im, data)
            if not deep:
                im.load()
            orientation = im.getexif().get(_ORIENTATION, 1)  # after load(): Pillow turns a TIFF upright by itself
            raster = _deep_pixels(im, data, name) if deep else _pixels(im, name)
            raster = raster._replace(colour=_colours.to_srgb(raster.colour, profile, name))
        except ImageError:
            raise
        except Exception as e:
            raise _damaged(name, e) from e
    return Raster(*(None if plane is None else _upright(plane, orientation) for plane in raster))


def _damaged(name: str, cause: Exception) -> ImageError:
    return ImageError(
        f"{name} is truncated or damaged ({type(cause).__name__}: {cause})",
        expected="a complete picture file",
        do="copy or download it again",
    )


def _is_deep(im: Image.Image, data: bytes) -> bool:
    """True for 16 bits a channel, which Pillow would reduce to 8."""
    if im.format == "PNG":
        return data[24] == 16  # the bit depth in the IHDR chunk, which always comes first
    return im.format == "TIFF" and max(im.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8


def _pixels(im: Image.Image, name: str) -> Raster:
    """Pixels of a file of at most 8 bits a channel; `im` is loaded."""
    if im.mode == "CMYK":
        return Raster(np.asarray(im), None)
    if im.mode in ("RGBa", "La", "LA", "PA", "RGBA") or im.has_transparency_data:
        rgba = np.asarray(im.convert("RGBA"))
        return Raster(rgba[..., :3], rgba[..., 3])
    if im.mode in ("1", "L"):
        return Raster(np.asarray(im.convert("L")), None)
    if im.mode in ("P", "RGB", "YCbCr"):
        return Raster(np.asarray(im.convert("RGB")), None)
    raise _unsupported(name, f"pixel mode {im.mode}")


def _deep_pixels(im: Image.Image, data: bytes, name: str) -> Raster:
    """Pixels of a 16-bit PNG or TIFF, all 65,536 levels kept."""
    premultiplied = inverted = False
    if im.format == "PNG":
        import imagecodecs

        array = imagecodecs.png_decode(data)
    else:
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            kind = page.photometric.name
            whole = page.dtype == np.uint16 and set(im.tag_v2[_BITS_PER_SAMPLE]) == {16}
            if not whole or kind not in ("MINISBLACK", "MINISWHITE", "RGB"):
                raise _unsupported(name, f"a {kind} TIFF of {page.bitspersample} bits ({page.dtype})")
            array = page.asarray()
            if array.ndim == 3 and page.planarconfig.name == "SEPARATE":
                array = np.moveaxis(array, 0, -1)
            premultiplied = tuple(map(int, page.extrasamples)) == (1,)
            inverted = kind == "MINISWHITE"
    if array.ndim == 2:
        array = array[..., None]
    # Pillow rotates TIFFs on opening, hence the product
    if array.shape[0] * array.shape[1] != im.height * im.width or array.shape[2] not in (1, 2, 3, 4):
        raise _unsupported(name, f"an array {array.shape} behind a header of {im.width} x {im.height}")
    colours = array.shape[2] - (array.shape[2] in (2, 4))
    colour, alpha = array[..., :colours], array[..., colours] if array.shape[2] > colours else None
    if premultiplied:
        colour = np.clip(np.rint(colour * (65535.0 / np.maximum(alpha, 1)[..., None])), 0, 65535).astype(np.uint16)
    if inverted:
        colour = 65535 - colour
    return Raster(colour[..., 0] if colours == 1 else colour, alpha)


def _unsupported(name: str, what: str) -> ImageError:
    return ImageError(
        f"{name} holds {what}",
        expected="whole numbers of 8 or 16 bits: grey, RGB (with or without alpha), palette or 8-bit CMYK",
        do="save it as an 8- or 16-bit RGB PNG",
    )


def _upright(plane: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the camera's EXIF orientation (1 to 8; anything else means upright)."""
    if orientation in (5, 6, 7, 8):
        plane = np.swapaxes(plane, 0, 1)
    if orientation in (3, 4, 7, 8):
        plane = plane[::-1]
    if orientation in (2, 3, 6, 7):
        plane = plane[:, ::-1]
    return np.ascontiguousarray(plane)
