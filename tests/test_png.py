"""What files say of their colours: the chunks of a PNG, and the like in BMP, TIFF and EXIF; truth computed by hand."""

from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from hrlib import image
from hrlib.errors import ImageError

RGB = np.random.default_rng(3).integers(0, 256, (6, 8, 3)).astype(np.uint8)
SRGB, D65 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06), (0.3127, 0.3290)
P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
LINEAR = (b"gAMA", struct.pack(">I", 100_000))
SRGB_CHUNK = (b"sRGB", b"\0")


def png(pixels, *chunks, kind=2, before=b""):
    """A PNG written from the specification; pixels [H, W] or [H, W, C] of uint8 or uint16."""

    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    depth = 8 * pixels.dtype.itemsize
    rows = b"".join(b"\0" + row.astype(f">u{pixels.dtype.itemsize}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, kind, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + before + chunk(b"IHDR", header) + b"".join(chunk(*c) for c in chunks)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chrm(primaries, white=D65):
    return b"cHRM", struct.pack(">8I", *(round(v * 1e5) for v in (*white, *primaries)))


def to_light(v):
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def from_light(v):
    return np.where(v <= 0.0031308, 12.92 * v, 1.055 * np.maximum(v, 0) ** (1 / 2.4) - 0.055)


def to_xyz(primaries):
    """3x3: light of the primaries -> XYZ, white D65 at (1, 1, 1)."""
    full = lambda x, y: np.array([x / y, 1, (1 - x - y) / y])
    columns = np.stack([full(*p) for p in np.reshape(primaries, (3, 2))], 1)
    return columns * np.linalg.solve(columns, full(*D65))


def truth(colour, primaries, exponent=None):
    """sRGB in [0, 1] of colours in [0, 1]; exponent None is sRGB's curve."""
    light = to_light(colour) if exponent is None else colour**exponent
    return np.clip(from_light(light @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T), 0, 1)


def read(data, **how):
    return ((image.read(data, **how)[0].permute(1, 2, 0).double().numpy()) + 1) / 2


@pytest.mark.parametrize(("gamma", "level"), [(100_000, 188), (55_556, 146)])
def test_gamma_of_a_grey_level_by_hand(gamma, level):
    exponent = 1e5 / gamma
    assert round(float(from_light((128 / 255) ** exponent)) * 255) == level
    grey = np.full((4, 4, 3), 128, np.uint8)
    assert (image.to_uint8(image.read(png(grey, (b"gAMA", struct.pack(">I", gamma))))) == level).all()


@pytest.mark.parametrize(
    ("chunks", "primaries", "exponent"),
    [
        ([LINEAR], SRGB, 1.0),
        ([(b"gAMA", struct.pack(">I", 45455)), chrm(ADOBE)], ADOBE, 2.2),
        ([chrm(P3)], P3, None),
        ([(b"cICP", bytes([12, 13, 0, 1]))], P3, None),
        ([(b"cICP", bytes([1, 8, 0, 1])), (b"gAMA", struct.pack(">I", 45455)), SRGB_CHUNK], SRGB, 1.0),
    ],
    ids=["gAMA", "gAMA and cHRM", "cHRM", "P3 by cICP", "cICP before sRGB"],
)
@pytest.mark.parametrize("depth", [8, 16])
def test_colours_are_converted(chunks, primaries, exponent, depth):
    pixels = RGB if depth == 8 else RGB.astype(np.uint16) * 257
    right = truth(RGB / 255, primaries, exponent)
    assert np.abs(read(png(pixels, *chunks)) - right).max() < (0.6 / 255 if depth == 8 else 2e-4)


def test_grey_palette_and_alpha():
    right = truth(np.repeat(RGB[..., :1], 3, 2) / 255, SRGB, 1.0)
    for pixels in (RGB[..., 0], RGB[..., 0].astype(np.uint16) * 257):
        assert np.abs(read(png(pixels, LINEAR, kind=0)) - right).max() < 0.6 / 255
    index = (np.arange(48) % 4).astype(np.uint8).reshape(6, 8)
    data = png(index, LINEAR, (b"PLTE", RGB[0, :4].tobytes()), (b"tRNS", bytes([0, 255, 255, 255])), kind=3)
    behind = np.where(index[..., None] == 0, 0.25, truth(RGB[0, :4] / 255, SRGB, 1.0)[index])
    assert np.abs(read(data, background=(-0.5,) * 3) - behind).max() < 0.6 / 255
    alpha = RGB[..., 1:2]
    mixed = truth(RGB / 255, SRGB, 1.0) * (alpha / 255) + 1 - alpha / 255
    assert np.abs(read(png(np.concatenate([RGB, alpha], 2), LINEAR, kind=6)) - mixed).max() < 0.6 / 255


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [(b"gAMA", struct.pack(">I", 45455))],
        [(b"gAMA", struct.pack(">I", 45000)), chrm(SRGB)],
        [chrm(SRGB)],
        [SRGB_CHUNK, LINEAR, chrm(P3)],
        [(b"cICP", bytes([1, 13, 0, 1])), LINEAR],
    ],
)
def test_srgb_is_left_as_it_is(chunks):
    assert (image.to_uint8(image.read(png(RGB, *chunks))) == RGB).all()


def test_a_profile_comes_before_srgb_and_after_cicp():
    profile = (b"iCCP", b"p\0\0" + zlib.compress(imagecodecs.cms_profile("adobergb")))
    right = truth(RGB / 255, ADOBE, 563 / 256)
    assert np.abs(read(png(RGB, profile, SRGB_CHUNK)) - right).max() < 0.6 / 255
    assert (image.to_uint8(image.read(png(RGB, (b"cICP", bytes([1, 13, 0, 1])), profile))) == RGB).all()


@pytest.mark.parametrize(
    "chunk",
    [
        (b"cICP", bytes([9, 16, 0, 1])),  # PQ
        (b"cICP", bytes([9, 18, 0, 1])),  # HLG
        (b"cICP", bytes([1, 1, 0, 1])),  # a camera's curve
        (b"cICP", bytes([1, 13, 0, 0])),  # narrow range
        (b"cICP", b"\1"),
        (b"gAMA", b"\0\0\0\0"),
        chrm((0.3, 0.3) * 3),
        chrm(SRGB, (0.3, 0.0)),
    ],
)
def test_what_cannot_be_converted_is_refused(chunk):
    with pytest.raises(ImageError, match="sRGB"):
        image.read(png(RGB, chunk))


def test_apples_png_is_refused():
    before = struct.pack(">I", 4) + b"CgBI" + b"\x50\0\x20\2" + struct.pack(">I", zlib.crc32(b"CgBI\x50\0\x20\2"))
    with pytest.raises(ImageError, match="revert-iphone"):
        image.read(png(RGB, before=before))


def test_a_linear_profile_that_is_called_srgb_is_no_srgb():
    profile = bytearray(imagecodecs.cms_profile("rgb", whitepoint=D65, primaries=SRGB, gamma=1.0))
    assert b"R\0G\0B\0 \0b\0u\0i\0l\0t" in profile
    profile = profile.replace(b"\0R\0G\0B\0 \0b\0u\0i\0l\0t", b"\0s\0R\0G\0B\0 \0g\0 \0 \0 ")
    data = png(RGB, (b"iCCP", b"p\0\0" + zlib.compress(bytes(profile))))
    assert np.abs(read(data) - truth(RGB / 255, SRGB, 1.0)).max() < 0.6 / 255


# --- other formats ----------------------------------------------------------------------------------------------------


def bmp(kind, ends=(0,) * 9, gamma=(0,) * 3, profile=b""):
    """A BMP with a header of version 5."""
    pixels = RGB[::-1, :, ::-1].tobytes()  # rows of 24 bytes need no padding
    header = struct.pack("<IiiHHIIiiII", 124, 8, 6, 1, 24, 0, len(pixels), 2835, 2835, 0, 0) + bytes(16)
    header += kind[::-1] + struct.pack("<12I", *ends, *gamma)
    header += struct.pack("<4I", 4, 124 + len(pixels) if profile else 0, len(profile), 0)
    data = header + pixels + profile
    return struct.pack("<2sIHHI", b"BM", 14 + len(data), 0, 0, 138) + data


def test_bmp():
    usual = [round(v * 2**30) for x, y in np.reshape(SRGB, (3, 2)) for v in (x, y, 1 - x - y)]
    power = (round(2.2 * 2**16),) * 3
    for data in (bmp(b"sRGB"), bmp(b"Win "), bmp(b"\0\0\0\0"), bmp(b"\0\0\0\0", usual, power)):
        assert (image.to_uint8(image.read(data)) == RGB).all()
    embedded = bmp(b"MBED", profile=imagecodecs.cms_profile("adobergb"))
    assert np.abs(read(embedded) - truth(RGB / 255, ADOBE, 563 / 256)).max() < 0.6 / 255
    for data in (bmp(b"LINK"), bmp(b"\0\0\0\0", usual, (2**16,) * 3), bmp(b"\0\0\0\0", usual[::-1], power)):
        with pytest.raises(ImageError, match="BMP colour space"):
            image.read(data)


def test_tiff():
    def tiff(*tags):
        out = io.BytesIO()
        tifffile.imwrite(out, RGB, photometric="rgb", extratags=tags)
        return out.getvalue()

    points = tuple(n for v in P3 for n in (round(v * 10_000), 10_000))
    wide = tiff((318, "2I", 2, (3127, 10_000, 3290, 10_000), True), (319, "2I", 6, points, True))
    assert np.abs(read(wide) - truth(RGB / 255, P3)).max() < 0.6 / 255
    curve = lambda exponent: tuple(np.rint(65535 * (np.arange(256) / 255) ** exponent).astype(int).tolist())
    assert (image.to_uint8(image.read(tiff((301, "H", 256, curve(2.2), True)))) == RGB).all()
    with pytest.raises(ImageError, match="TransferFunction"):
        image.read(tiff((301, "H", 256, curve(1.0), True)))


def test_adobe_rgb_of_a_camera():
    smooth = np.tile(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (1, 32, 3)) // np.array(
        [1, 2, 3], np.uint8
    )
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 65535
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    files = {}
    for name, more in {"plain": {}, "camera": {"exif": exif.tobytes()}}.items():
        out = io.BytesIO()
        Image.fromarray(smooth).save(out, "JPEG", quality=100, subsampling=0, **more)
        files[name] = read(out.getvalue())
    assert np.abs(files["camera"] - truth(files["plain"], ADOBE, 563 / 256)).max() < 0.6 / 255
