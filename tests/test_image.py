"""image.py against files made here byte by byte or by other libraries, never by image.py itself."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from hrlib import image
from hrlib.errors import ImageError, InvalidValue, ShapeError, StoreError, UnknownName

FIXTURES = Path(__file__).parent / "fixtures"
RNG = np.random.default_rng(0)
RGB8 = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (24, 32, 3), dtype=np.uint16)


def smooth(height=48, width=64):
    """A picture without noise, so that lossy formats stay close to it."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)


def encoded(array, fmt, **options):
    out = io.BytesIO()
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(out, fmt, **options)
    return out.getvalue()


def png(array, colour_type, depth, *extra, interlaced=False):
    """A PNG written from the specification (big-endian samples, filter 0)."""

    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], depth, colour_type, 0, 0, 0)
    middle = b"".join(chunk(*e) for e in extra)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def expected(unit):
    """[1, 3, H, W] in [-1, 1] from [H, W, 3] in [0, 1], in float64."""
    return torch.from_numpy(np.moveaxis(np.asarray(unit, np.float64) * 2 - 1, -1, 0)[None])


def assert_same(x, unit, atol=1e-6):
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), expected(unit), rtol=0, atol=atol)


# --- depth, grey, palette, alpha, CMYK --------------------------------------------------------------------------------


def test_rgb_of_8_bits(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(png(RGB8, 2, 8))
    assert_same(image.read(file), RGB8 / 255)
    assert image.read(str(file)).is_contiguous()
    assert_same(image.read(file.read_bytes()), RGB8 / 255)


@pytest.mark.parametrize("fmt", ["BMP", "TIFF", "PNG"])
def test_lossless_formats(fmt):
    assert_same(image.read(encoded(RGB8, fmt)), RGB8 / 255)


def test_lossless_webp():
    assert_same(image.read(encoded(RGB8, "WEBP", lossless=True)), RGB8 / 255)


def test_jpeg_is_close():
    assert_same(image.read(encoded(smooth(), "JPEG", quality=98)), smooth() / 255, atol=0.06)


def test_16_bit_grey_keeps_every_level():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    x = image.read(png(levels, 0, 16))
    assert_same(x, np.repeat(levels[..., None], 3, -1) / 65535, atol=2e-7)
    assert len(x[0, 1].unique()) == 65536


def test_16_bit_rgb_keeps_every_level():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    x = image.read(png(np.stack([levels, levels.T, levels[::-1]], -1), 2, 16))
    assert all(len(x[0, c].unique()) == 65536 for c in range(3))
    assert_same(x, np.stack([levels, levels.T, levels[::-1]], -1) / 65535, atol=2e-7)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_rgb_tiff(compression, planar, order):
    data = np.moveaxis(RGB16, -1, 0) if planar == "separate" else RGB16
    out = io.BytesIO()
    tifffile.imwrite(out, data, photometric="rgb", planarconfig=planar, compression=compression, byteorder=order)
    assert_same(image.read(out.getvalue()), RGB16 / 65535, atol=2e-7)


@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
def test_16_bit_grey_tiff(kind):
    out = io.BytesIO()
    tifffile.imwrite(out, RGB16[..., 0], photometric=kind)
    grey = RGB16[..., :1] / 65535
    assert_same(image.read(out.getvalue()), np.repeat(grey if kind == "minisblack" else 1 - grey, 3, -1), atol=2e-7)


def test_premultiplied_16_bit_tiff():
    alpha = RNG.integers(20000, 65536, (24, 32, 1), dtype=np.uint16)
    stored = np.concatenate([np.rint(RGB16 * (alpha / 65535)).astype(np.uint16), alpha], -1)
    out = io.BytesIO()
    tifffile.imwrite(out, stored, photometric="rgb", extrasamples=["assocalpha"])
    a = alpha / 65535
    x = image.read(out.getvalue(), background=(-1, -1, -1))
    assert_same(x, RGB16 / 65535 * a, atol=1e-4)  # on black, premultiplied colours come back


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_grey_and_palette(mode):
    picture = Image.fromarray(RGB8[..., 0]).convert(mode)
    truth = np.asarray(picture.convert("L"))[..., None] / 255
    assert_same(image.read(encoded(picture, "PNG")), np.repeat(truth, 3, -1))


def test_colour_palette():
    palette = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
    index = RNG.integers(0, 16, (24, 32), dtype=np.uint8)
    data = png(index, 3, 8, (b"PLTE", palette.tobytes()))
    assert_same(image.read(data), palette[index] / 255)


def test_palette_with_transparent_entry():
    palette = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    index = RNG.integers(0, 2, (24, 32), dtype=np.uint8)
    data = png(index, 3, 8, (b"PLTE", palette.tobytes()), (b"tRNS", bytes([0, 255])))
    truth = np.where(index[..., None] == 0, np.array([0, 255, 0]), np.array([0, 0, 255]))
    assert_same(image.read(data, background=(-1, 1, -1)), truth / 255)


@pytest.mark.parametrize("depth", [8, 16])
def test_alpha_is_laid_on_the_background_and_hides_the_hidden_colour(depth):
    top = 255 if depth == 8 else 65535
    rgba = RNG.integers(0, top + 1, (24, 32, 4)).astype(np.uint16 if depth == 16 else np.uint8)
    rgba[0] = 0, top, 0, 0  # bright green, wholly transparent
    data = png(rgba, 6, depth)
    background = np.array([0.25, -0.5, 1.0])
    a = rgba[..., 3:] / top
    assert_same(
        image.read(data, background=tuple(background)), rgba[..., :3] / top * a + (background + 1) / 2 * (1 - a)
    )
    assert (image.read(data)[0, :, 0] == 1).all()  # white unless told


def test_without_a_background_transparent_pictures_are_refused():
    rgba = np.full((8, 8, 4), 200, np.uint8)
    out = io.BytesIO()
    Image.fromarray(rgba).save(out, format="PNG")
    with pytest.raises(ImageError, match="transparent pixels"):
        image.read(out.getvalue(), background=None)
    rgba[..., 3] = 255  # an alpha channel that hides nothing is no transparency
    out = io.BytesIO()
    Image.fromarray(rgba).save(out, format="PNG")
    assert image.read(out.getvalue(), background=None).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("depth", [8, 16])
def test_colour_key_transparency(depth):
    pixels = (RGB8 if depth == 8 else RGB16).copy()
    pixels[3, 4] = pixels[0, 0]
    data = png(pixels, 2, depth, (b"tRNS", pixels[0, 0].astype(">u2").tobytes()))
    truth = pixels / (255 if depth == 8 else 65535)
    truth[0, 0] = truth[3, 4] = 0
    assert_same(image.read(data, background=(-1, -1, -1)), truth)


def test_cmyk():
    ink = RNG.integers(0, 256, (24, 32, 4), dtype=np.uint8)
    out = io.BytesIO()
    tifffile.imwrite(out, ink, photometric="separated")
    cmy, black = ink[..., :3] / 255, ink[..., 3:] / 255
    assert_same(image.read(out.getvalue()), (1 - cmy) * (1 - black), atol=0.01)


def test_cmyk_jpeg_is_not_inverted():
    sheet = np.zeros((16, 16, 4), np.uint8)
    sheet[:, 8:, 3] = 255  # white paper on the left, full black on the right
    x = image.read(encoded(Image.fromarray(sheet, "CMYK"), "JPEG"))
    assert x[..., :6].min() > 0.95 and x[..., 10:].max() < -0.95


# --- colour profiles --------------------------------------------------------------------------------------------------


def srgb_of_adobe(unit):
    """Adobe RGB (1998) -> sRGB from the two standards' primaries (both D65), clipped to the gamut."""
    to_xyz = [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
    to_rgb = [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ]
    linear = np.clip(unit ** (563 / 256) @ np.transpose(to_xyz) @ np.transpose(to_rgb), 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_adobe_rgb_of_8_bits_becomes_srgb():
    profile = imagecodecs.cms_profile("adobergb")
    x = image.read(encoded(RGB8, "PNG", icc_profile=profile))
    assert_same(x, srgb_of_adobe(RGB8 / 255), atol=3 / 255)
    converted = ImageCms.profileToProfile(
        Image.fromarray(RGB8), ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    )
    assert_same(x, np.asarray(converted) / 255, atol=2.1 / 255)
    assert (x - image.read(encoded(RGB8, "PNG"))).abs().max() > 0.2  # and it matters


def test_adobe_rgb_of_16_bits_keeps_its_levels():
    ramp = np.zeros((64, 256, 3), np.uint16)
    ramp[..., 1] = ramp[..., 0] = ramp[..., 2] = np.linspace(0, 65535, 64 * 256).reshape(64, 256)
    ramp[..., 0] //= 2
    data = png(ramp, 2, 16, (b"iCCP", b"p\0\0" + zlib.compress(imagecodecs.cms_profile("adobergb"))))
    x = image.read(data)
    assert_same(x, srgb_of_adobe(ramp / 65535), atol=0.003)
    assert len(x[0, 1].unique()) > 10_000


def test_srgb_profile_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_same(image.read(encoded(RGB8, "PNG", icc_profile=profile)), RGB8 / 255)


def test_grey_profile():
    gamma = imagecodecs.cms_profile("gray", gamma=1.8)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    linear = (ramp / 255) ** 1.8
    truth = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert_same(image.read(encoded(ramp, "PNG", icc_profile=gamma)), np.repeat(truth[..., None], 3, -1), atol=0.02)


def test_grey_pixels_with_an_rgb_profile():
    profile = imagecodecs.cms_profile("adobergb")
    x = image.read(encoded(RGB8[..., 0], "PNG", icc_profile=profile))
    assert_same(x, srgb_of_adobe(np.repeat(RGB8[..., :1], 3, -1) / 255), atol=3 / 255)


def cmyk_profile():
    """A CMYK printer profile (ICC 2, `mft1` table of 2^4 grid points to Lab) of ideal inks: Lab of each overprint."""
    lab = ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB", renderingIntent=1)
    table = b""
    for corner in range(16):
        c, m, y, k = ((corner >> s) & 1 for s in (3, 2, 1, 0))
        rgb = tuple(int(255 * (1 - v) * (1 - k)) for v in (c, m, y))
        table += bytes(ImageCms.applyTransform(Image.new("RGB", (1, 1), rgb), to_lab).getpixel((0, 0)))
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + table + identity * 3
    desc = b"desc\0\0\0\0" + struct.pack(">I", 9) + b"test inks"[:8] + b"\0" + bytes(78)
    tags = [(b"desc", desc), (b"A2B0", lut), (b"wtpt", b"XYZ \0\0\0\0" + struct.pack(">3I", 63190, 65536, 54061))]
    body, directory, offset = b"", struct.pack(">I", len(tags)), 128 + 4 + 12 * len(tags)
    for name, data in tags:
        data += bytes(-len(data) % 4)
        directory += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    size = 128 + len(directory) + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ") + bytes(12) + b"acsp"
    header += bytes(28) + struct.pack(">3I", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + directory + body


def test_cmyk_profile():
    sheet = RNG.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    sheet[0, 0], sheet[0, 1], sheet[0, 2] = (0, 0, 0, 0), (0, 0, 0, 255), (255, 0, 0, 0)  # paper, black, cyan
    picture = Image.fromarray(sheet, "CMYK")
    profile = cmyk_profile()
    x = image.read(encoded(picture, "TIFF", icc_profile=profile))
    inks, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    truth = ImageCms.profileToProfile(picture, inks, srgb, outputMode="RGB", flags=ImageCms.Flags.NOOPTIMIZE)
    assert_same(x, np.asarray(truth) / 255, atol=2.1 / 255)
    paper, black, cyan = x[0, :, 0, :3].T
    assert paper.min() > 0.9 and black.max() < -0.8 and cyan[0] < -0.4 < 0.6 < cyan[2]


def test_damaged_and_mismatched_profiles_are_refused():
    with pytest.raises(ImageError, match="ICC profile"):
        image.read(encoded(RGB8, "PNG", icc_profile=b"not a profile" * 20))
    with pytest.raises(ImageError, match="RGB pixels but embeds the GRAY profile"):
        image.read(encoded(RGB8, "PNG", icc_profile=imagecodecs.cms_profile("gray", gamma=2.2)))


# --- orientation ------------------------------------------------------------------------------------------------------

# EXIF 2.32, tag 274: where the stored row 0 and column 0 lie in the upright picture, and hence where the stored
# corners (top left, top right, bottom left) come to lie in it, as (row, column) with 0 and -1.
CORNERS = {
    1: ((0, 0), (0, -1), (-1, 0)),
    2: ((0, -1), (0, 0), (-1, -1)),
    3: ((-1, -1), (-1, 0), (0, -1)),
    4: ((-1, 0), (-1, -1), (0, 0)),
    5: ((0, 0), (-1, 0), (0, -1)),
    6: ((0, -1), (-1, -1), (0, 0)),
    7: ((-1, -1), (0, -1), (-1, 0)),
    8: ((-1, 0), (0, 0), (-1, -1)),
}


def oriented(array, fmt, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    if array.dtype == np.uint16:
        if fmt == "TIFF":
            out = io.BytesIO()
            tifffile.imwrite(out, array, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
            return out.getvalue()
        return png(array, 2, 16, (b"eXIf", exif.tobytes()[6:]))
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(fmt, {})
    return encoded(array, fmt, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt,depth", [("JPEG", 8), ("PNG", 8), ("WEBP", 8), ("TIFF", 8), ("PNG", 16), ("TIFF", 16)])
def test_all_eight_orientations(fmt, depth, orientation):
    stored = np.zeros((16, 24, 3), np.uint8)
    colours = {(0, 0): (255, 0, 0), (0, -1): (0, 255, 0), (-1, 0): (0, 0, 255)}
    stored[:8, :8], stored[:8, -8:], stored[-8:, :8] = colours.values()
    if depth == 16:
        stored = stored.astype(np.uint16) * 257
    x = image.read(oriented(stored, fmt, orientation))
    assert x.shape[-2:] == ((16, 24) if orientation < 5 else (24, 16))
    for (row, column), colour in zip(CORNERS[orientation], colours.values(), strict=True):
        assert ((x[0, :, row, column] + 1) * 127.5 - torch.tensor(colour)).abs().max() < 12
    outside = {(0, 0), (0, -1), (-1, 0), (-1, -1)} - set(CORNERS[orientation])
    assert x[0, :, *outside.pop()].max() < -0.9


def test_phone_picture_with_a_second_one_behind_it():
    out = io.BytesIO()
    Image.fromarray(smooth()).save(out, "MPO", save_all=True, append_images=[Image.fromarray(255 - smooth())])
    assert_same(image.read(out.getvalue()), smooth() / 255, atol=0.2)


# --- size -------------------------------------------------------------------------------------------------------------


def test_int_size_is_the_reference_projectors_crop_and_lanczos():
    """The oracle is the tensor that the authors' projector made of the same file."""
    target = torch.from_numpy(np.load(FIXTURES / "target_96x72_to_64.npy"))
    x = image.read(FIXTURES / "target_96x72.png", size=64)
    assert torch.equal(image.from_uint8(np.rint((target[0].permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)), x)
    torch.testing.assert_close(x, target, rtol=0, atol=1e-6)


def test_pair_size_crops_to_the_aspect_ratio():
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 255  # the centred square
    assert (image.read(encoded(pixels, "PNG"), size=(20, 20)) == 1).all()
    assert image.read(encoded(pixels, "PNG"), size=(33, 77)).shape == (1, 3, 33, 77)
    assert_same(image.read(encoded(pixels, "PNG"), size=(40, 100)), pixels / 255)


def test_deep_pictures_are_resampled_without_falling_to_8_bits():
    ramp = np.repeat(np.linspace(0, 4000, 256 * 256).reshape(256, 256)[..., None], 3, -1).astype(np.uint16)
    x = image.read(png(ramp, 2, 16), size=128)
    assert len(x[0, 0].unique()) > 1000
    box = ramp.reshape(128, 2, 128, 2, 3).mean((1, 3)) / 65535
    assert_same(x[..., 4:-4, 4:-4], box[4:-4, 4:-4], atol=2e-4)


def test_resize_keeps_constants_and_range():
    x = torch.full((2, 3, 20, 30), 0.3)
    torch.testing.assert_close(image.resize(x, (11, 17)), torch.full((2, 3, 11, 17), 0.3))
    checker = ((torch.arange(64)[:, None] // 8 + torch.arange(64) // 8) % 2 * 2.0 - 1).expand(1, 3, 64, 64)
    assert image.resize(checker, 100).abs().max() <= 1  # LANCZOS would overshoot


@pytest.mark.parametrize("size", [0, -3, (4,), (0, 5), (2.5, 3), "64", 9_999_999_999, (15_000, 20_000)])
def test_bad_sizes(size):
    with pytest.raises(InvalidValue, match="size"):
        image.read(png(RGB8, 2, 8), size=size)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PNG16", "TIFF16"])
def test_truncated_files_are_refused_or_lose_nothing(fmt):
    if fmt == "PNG16":
        data = png(RGB16, 2, 16)
    elif fmt == "TIFF16":
        out = io.BytesIO()
        tifffile.imwrite(out, RGB16, photometric="rgb")
        data = out.getvalue()
    else:
        data = encoded(RGB8, fmt)
    whole = image.read(data)
    refused = 0
    for cut in range(0, len(data), max(1, len(data) // 60)):
        try:
            assert torch.equal(image.read(data[:cut]), whole)  # only bytes behind the pixels are missing
        except ImageError:
            refused += 1
    assert refused >= 55


@settings(max_examples=150, deadline=None)
@given(fmt=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]), data=st.data())
def test_random_damage_never_escapes_as_another_error(fmt, data):
    content = bytearray(encoded(smooth(16, 16), fmt))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        x = image.read(bytes(content), max_pixels=10_000)
    except ImageError:
        return
    assert x.shape[:2] == (1, 3) and x.abs().max() <= 1


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>not found</html>", b"GIF89a" + bytes(40), bytes(100), b"%PDF-1.7"]
)
def test_non_images_are_refused_by_name(tmp_path, content):
    file = tmp_path / "photo.png"
    file.write_bytes(content)
    with pytest.raises(ImageError, match=r"photo\.png is not a picture"):
        image.read(file)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match="no file"):
        image.read(tmp_path / "none.png")
    with pytest.raises(ImageError, match="not a file"):
        image.read(tmp_path)


def test_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch, recwarn):
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10_000 * 1251), 9)
    data = b"\x89PNG\r\n\x1a\n"
    for tag, body in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
    assert len(data) < 100_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded a bomb"))
    with pytest.raises(ImageError, match="100 megapixels"):
        image.read(data)
    huge = data.replace(struct.pack(">II", 10_000, 10_000), struct.pack(">II", 60_000, 60_000))
    with pytest.raises(ImageError):
        image.read(huge)
    assert not recwarn.list


def test_pixel_cap_is_a_parameter():
    with pytest.raises(ImageError, match="megapixels"):
        image.read(png(RGB8, 2, 8), max_pixels=24 * 32 - 1)
    assert image.read(png(RGB8, 2, 8), max_pixels=24 * 32).shape == (1, 3, 24, 32)


def test_animations_are_refused():
    frames = [Image.fromarray(RGB8), Image.fromarray(255 - RGB8)]
    for fmt in ("PNG", "WEBP", "TIFF"):
        with pytest.raises(ImageError, match="2 frames"):
            image.read(encoded(frames[0], fmt, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int16])
def test_tiffs_without_a_defined_range_are_refused(dtype):
    out = io.BytesIO()
    tifffile.imwrite(out, RGB8[..., 0].astype(dtype))
    with pytest.raises(ImageError):
        image.read(out.getvalue())


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".bmp", ".PNG"])
def test_lossless_writing_round_trips(tmp_path, suffix):
    file = image.write(image.from_uint8(RGB8), tmp_path / f"sub/a{suffix}")
    assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), RGB8)
    assert sorted(p.name for p in file.parent.iterdir()) == [file.name]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_writing_is_close(tmp_path, suffix):
    file = image.write(image.from_uint8(smooth()), tmp_path / f"a{suffix}")
    assert np.abs(np.asarray(Image.open(file)).astype(int) - smooth()).max() <= 6


def test_writing_rounds_and_clamps():
    levels = torch.tensor([-3.0, -1.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1, 1.0, 9.0])
    assert image.to_uint8(levels.expand(1, 3, 2, 6))[0, 0, :, 0].tolist() == [0, 0, 100, 101, 255, 255]


def test_uint8_round_trip_over_all_levels():
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, -1)
    x = image.from_uint8(levels)
    assert_same(x, levels / 255)
    assert np.array_equal(image.to_uint8(x)[0], levels)
    assert np.array_equal(np.asarray(image.to_pil(x)), levels)


def test_failed_writing_leaves_the_old_file(tmp_path, monkeypatch):
    file = image.write(image.from_uint8(RGB8), tmp_path / "a.png")
    before = file.read_bytes()

    def broken(self, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(StoreError, match="disk full"):
        image.write(image.from_uint8(255 - RGB8), file)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_bad_tensors_are_refused(tmp_path):
    good = torch.zeros(1, 3, 4, 4)
    for x in (good[0], good[:, :1], good.to(torch.uint8), good[:0], np.zeros((1, 3, 4, 4))):
        with pytest.raises(ShapeError, match="images of"):
            image.write(x, tmp_path / "a.png")
    for x in (good * float("nan"), good + float("inf")):
        with pytest.raises(InvalidValue, match="find the step that made NaN"):
            image.write(x, tmp_path / "a.png")
    with pytest.raises(ImageError, match="suffix"):
        image.write(good, tmp_path / "a.gif")
    with pytest.raises(ShapeError, match="batch"):
        image.write(good.repeat(2, 1, 1, 1), tmp_path / "a.png")
    with pytest.raises(ShapeError, match="uint8"):
        image.from_uint8(np.zeros((4, 4, 3)))
    assert not list(tmp_path.iterdir())


# --- sample photographs -----------------------------------------------------------------------------------------------


def test_samples_are_skimages_own_pictures():
    from skimage import data

    for name in ("astronaut", "chelsea", "coffee"):
        assert_same(image.sample(name), getattr(data, name)() / 255)
    assert_same(image.sample("rocket"), srgb_of_adobe(data.rocket() / 255), atol=3 / 255)  # skimage ignores its profile


def test_every_sample_is_in_the_package_and_readable():
    for name, info in image.SAMPLES.items():
        assert image.sample(name, size=32).shape == (1, 3, 32, 32)
        assert info.licence in ("CC0", "public domain") and info.origin


def test_unknown_sample():
    with pytest.raises(UnknownName, match="astronaut"):
        image.sample("astronot")
