"""The colour space of a picture file, and its conversion to sRGB (a part of `image.read`).

What decides, in this order; a file without any of these is taken as sRGB:

    PNG           the chunks cICP, iCCP, sRGB, then gAMA and cHRM (PNG, third edition, section 4.3)
    BMP           the colour space of a header of version 4 or 5
    TIFF          an ICC profile, then WhitePoint, PrimaryChromaticities and TransferFunction, then EXIF
    JPEG, WebP    an ICC profile, then EXIF, by which cameras mark Adobe RGB

Each of these becomes an ICC profile, so that there is one conversion. Colour spaces without an exact one are an
`ImageError`: HDR (PQ, HLG), the ambiguous curves of video, Apple's own PNG.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from .errors import ImageError

D65 = (0.3127, 0.3290)
SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x and y of red, green and blue
PRIMARIES = {1: SRGB, 9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046), 12: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)}
CURVES = {4: 2.2, 8: 1.0, 13: None}  # of cICP (ITU-T H.273): the exponent, None for sRGB's own curve
_NEAR = 0.003  # of chromaticities; of exponents 1.2 %, because 0.45, 0.4545 and 0.45455 are all in use for sRGB
_NO_OPTIMISE = 0x0100  # cmsFLAGS_NOOPTIMIZE: the 16-bit shortcut errs by up to 16 of 255 levels at the gamut's edge
_WHITE, _PRIMARIES, _TRANSFER = 318, 319, 301  # TIFF tags
_EXIF, _COLOUR_SPACE, _INTEROPERABILITY, _INDEX = 0x8769, 0xA001, 0xA005, 1


def profile_of(im: Image.Image, data: bytes, name: str) -> bytes | None:
    """The ICC profile of an opened file's colours, None for sRGB; `ImageError` if there is no exact conversion."""
    if im.format == "PNG":
        return _png(im, data, name)
    if im.format == "BMP":
        return _bmp(data, name)
    if profile := im.info.get("icc_profile"):
        return profile
    if im.format == "TIFF" and {_WHITE, _PRIMARIES, _TRANSFER} & set(im.tag_v2):
        return _tiff(im, name)
    return _built("adobergb") if im.mode in ("RGB", "YCbCr") and _is_adobe_rgb(im) else None


def _built(kind: str, **arguments: Any) -> bytes:
    """A profile made by imagecodecs, which is imported here because most pictures do not need it."""
    import imagecodecs

    return imagecodecs.cms_profile(kind, **arguments)


def to_srgb(colour: np.ndarray, profile: bytes | None, name: str) -> np.ndarray:
    """sRGB [H, W, 3] from colours [H, W], [H, W, 3] or CMYK [H, W, 4], of the same depth: uint8 or uint16."""
    kind = "GRAY" if colour.ndim == 2 else "CMYK" if colour.shape[2] == 4 else "RGB"
    if profile:
        description, space = _described(profile, name)
        if kind == "GRAY" and space == "RGB":
            colour, kind = np.repeat(colour[..., None], 3, axis=-1), "RGB"
        if space != kind:
            raise ImageError(
                f"{name} has {kind} pixels but embeds the {space} profile {description!r}",
                expected="a profile of the picture's own colour space",
                do="convert it to sRGB in a picture editor, or strip the profile",
            )
        if not _is_srgb(profile, description, kind):
            colour, kind = _transformed(colour, profile, kind), "RGB"
    if kind == "CMYK":  # without a profile, the plain formula: (1 - ink)(1 - black)
        colour = np.asarray(Image.fromarray(colour, "CMYK").convert("RGB"))
    return np.repeat(colour[..., None], 3, axis=-1) if colour.ndim == 2 else colour


def _transformed(colour: np.ndarray, profile: bytes, kind: str) -> np.ndarray:
    import imagecodecs

    return imagecodecs.cms_transform(
        np.ascontiguousarray(colour),
        profile,
        _built("srgb"),
        colorspace=kind.lower(),
        outcolorspace="rgb",
        flags=_NO_OPTIMISE,
    )


def _described(profile: bytes, name: str) -> tuple[str, str]:
    """(description, colour space) of a profile."""
    from PIL import ImageCms

    try:
        parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.getProfileDescription(parsed).strip(), parsed.profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError) as e:
        raise ImageError(
            f"{name} embeds an ICC profile that cannot be read ({e})",
            expected="a valid ICC profile or none",
            do="convert the picture to sRGB in a picture editor, or strip the profile",
        ) from e


def _is_srgb(profile: bytes, description: str, kind: str) -> bool:
    """Called sRGB, and equal to ours up to a few levels: linear variants of sRGB have "sRGB" in their names, too."""
    if "srgb" not in description.lower() or kind == "CMYK":
        return False
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    colour = levels[None] if kind == "GRAY" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    change = _transformed(colour, profile, kind).astype(int) - (colour[..., None] if kind == "GRAY" else colour)
    return bool(np.abs(change).max() <= 8)


# --- what a file says -------------------------------------------------------------------------------------------------


def _profile(primaries: Sequence[float], white: Sequence[float], exponent: float | None, name: str) -> bytes | None:
    """The profile of an RGB space, None for sRGB. exponent: of the transfer curve; None for sRGB's own curve."""
    near = np.allclose((*primaries, *white), (*SRGB, *D65), rtol=0, atol=_NEAR)
    if near and (exponent is None or abs(exponent / 2.2 - 1) < 0.012):
        return None
    curve = {"gamma": exponent}
    if exponent is None:
        x = np.linspace(0, 1, 4096)
        light = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        curve = {"transferfunction": np.rint(light * 65535).astype(np.uint16)}
    try:
        x, y = np.array([*primaries]).reshape(3, 2).T
        if min(*y, white[1]) <= 0 or abs(np.linalg.det([x, y, [1, 1, 1]])) < 1e-4 or not 0.1 <= (exponent or 1) <= 10:
            raise ValueError("impossible primaries, white or exponent")
        return _built("rgb", whitepoint=list(white), primaries=list(primaries), **curve)
    except (RuntimeError, ValueError) as e:
        what = f"primaries {list(primaries)}, white {list(white)}, exponent {exponent}"
        raise _unclear(name, f"the colour space {what} ({e})") from e


def _unclear(name: str, what: str) -> ImageError:
    return ImageError(
        f"{name} has {what}",
        expected="sRGB, an ICC profile, or a colour space with an exact conversion to sRGB",
        do="convert it to sRGB in a picture editor, and save it as PNG",
    )


def _png(im: Image.Image, data: bytes, name: str) -> bytes | None:
    chunks = _chunks(data)
    if b"CgBI" in chunks:
        raise ImageError(
            f"{name} is Apple's own kind of PNG (CgBI: blue first, colours multiplied by alpha)",
            expected="a standard PNG",
            do="convert it with `xcrun pngcrush -revert-iphone-optimizations IN OUT`, or use the original",
        )
    if (cicp := chunks.get(b"cICP")) is not None:
        primaries, curve, matrix, full = cicp if len(cicp) == 4 else (0, 0, 0, 0)
        if primaries not in PRIMARIES or curve not in CURVES or (matrix, full) != (0, 1):
            raise _unclear(name, f"the colour space cICP {'-'.join(map(str, cicp))}")  # 9-16-0-1: HDR, PQ
        return _profile(PRIMARIES[primaries], D65, CURVES[curve], name)
    if b"iCCP" in chunks:
        return im.info.get("icc_profile") or _unreadable(name)
    if b"sRGB" in chunks or not {b"gAMA", b"cHRM"} & chunks.keys():
        return None
    try:
        exponent = None
        if b"gAMA" in chunks:
            (gamma,) = struct.unpack(">I", chunks[b"gAMA"])
            exponent = 1e5 / max(gamma, 1)
        points = [n / 1e5 for n in struct.unpack(">8I", chunks[b"cHRM"])] if b"cHRM" in chunks else [*D65, *SRGB]
    except struct.error as e:
        raise _unclear(name, f"a damaged gAMA or cHRM chunk ({e})") from e
    return _profile(points[2:], points[:2], exponent, name)


def _unreadable(name: str) -> NoReturn:
    raise _unclear(name, "an ICC profile that cannot be unpacked")


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG before its pixels, the first of each kind. (Pillow has checked their checksums.)"""
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            break
        chunks.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 12 + size
    return chunks


def _bmp(data: bytes, name: str) -> bytes | None:
    header = data[14:138]
    if len(header) < 108 or int.from_bytes(header[:4], "little") < 108:
        return None  # older headers have no colour space
    kind = header[59:55:-1]
    if kind in (b"sRGB", b"Win "):
        return None
    if kind == b"MBED" and len(header) == 124:
        start, size = struct.unpack_from("<2I", header, 112)
        return data[14 + start : 14 + start + size] or _unreadable(name)
    ends, curves = np.frombuffer(header, "<u4", 9, 60).reshape(3, 3), np.frombuffer(header, "<u4", 3, 96) / 2**16
    if kind == b"\0\0\0\0" and not ends.any():
        return None
    if kind == b"\0\0\0\0":  # XYZ of the primaries, and exponents, which some programs write as 1 / 2.2
        points = (ends / np.maximum(ends.sum(1, keepdims=True), 1))[:, :2].ravel()
        usual = all(c == 0 or min(abs(c / 2.2 - 1), abs(c * 2.2 - 1)) < 0.012 for c in curves)
        if usual and np.allclose(points, SRGB, rtol=0, atol=_NEAR):
            return None
    raise _unclear(name, f"the BMP colour space {kind!r}")


def _tiff(im: Image.Image, name: str) -> bytes | None:
    if curves := im.tag_v2.get(_TRANSFER):
        bits = im.tag_v2[258][0]  # BitsPerSample
        if bits not in (8, 16) or len(curves) not in (2**bits, 3 * 2**bits):
            raise _unclear(name, f"a TransferFunction of {len(curves)} numbers")
        light = (np.linspace(0, 1, 2**bits)) ** 2.2
        if np.abs(np.reshape(curves, (-1, 2**bits)) / 65535 - light).max() > 0.01:
            raise _unclear(name, "a TransferFunction that is not sRGB's")
    points = [float(v) for v in (*im.tag_v2.get(_WHITE, D65), *im.tag_v2.get(_PRIMARIES, SRGB))]
    if len(points) != 8:
        raise _unclear(name, f"WhitePoint and PrimaryChromaticities of {len(points)} numbers")
    return _profile(points[2:], points[:2], None, name)


def _is_adobe_rgb(im: Image.Image) -> bool:
    """Whether EXIF says Adobe RGB: DCF's optional colour space ("R03"), or a ColorSpace of 2."""
    exif = im.getexif()
    try:
        space, index = exif.get_ifd(_EXIF).get(_COLOUR_SPACE), exif.get_ifd(_INTEROPERABILITY).get(_INDEX)
    except (KeyError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return False  # unreadable EXIF data counts as none
    return space == 2 or str(index).strip("\0 ") == "R03"
