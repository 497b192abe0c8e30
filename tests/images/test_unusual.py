"""Unusual files give the pixels of the rule too.

`test_decoding.py` tests the rule on ordinary files; this file on unusual ones, which the tests make.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers import noise
from pictures import GREY, A, chunk, coded, grey, grey_tiff, outcome, patched, plain_png, png, tiff, tiled_tiff
from PIL import Image

from featx.images import decode

IGNORED = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of metadata, as outside of these tests


def test_a_wrong_extension_does_not_matter(tmp_path):
    for suffix in ("jpg", "png", "bmp", "tif", "gif", "webp", "txt", ""):
        assert np.array_equal(outcome(tmp_path, plain_png(), f"a.{suffix}"), A), suffix


def cmyk() -> tuple[bytes, np.ndarray]:
    picture = Image.fromarray(A).convert("CMYK")
    return coded(picture, "TIFF"), np.asarray(picture.convert("RGB"))


def tiles() -> tuple[bytes, np.ndarray]:
    tile = np.zeros((32, 32), np.uint8)
    tile[:24] = GREY
    return tiled_tiff(32, tile.tobytes()), grey(GREY)


def turned(format: str) -> tuple[bytes, np.ndarray]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return coded(A, format, exif=exif, **({"lossless": True} if format == "WEBP" else {})), np.rot90(A, -1)


STEPS = (np.arange(12, dtype=np.uint16) * 5957).reshape(3, 4)
HIGH = grey((STEPS >> 8).astype(np.uint8))
SIXTEEN = noise(2).astype(np.uint16) << 8 | noise(3)
RED = np.full((6, 8, 3), [255, 0, 0], np.uint8)
FRAMES = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
TIFF16 = {256: 32, 257: 24, 258: 16, 259: 1, 262: 1, 273: 0, 277: 1, 278: 24, 279: 1536}
GOOD = {
    "png interlaced": lambda: (  # the first pass of Adam7 is all of a picture of 1 x 1
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1))
        + chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
        + chunk(b"IEND", b""),
        np.array([[[1, 2, 3]]]),
    ),
    "png 1 bit": lambda: (png(8, 1, 1, 0, b"\0\xf0"), grey(np.array([[255] * 4 + [0] * 4]))),
    "png 2 bits": lambda: (png(4, 1, 2, 0, b"\0\x1b"), grey(np.array([[0, 85, 170, 255]]))),
    "png 16-bit rgb": lambda: (
        png(32, 24, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in SIXTEEN)),
        noise(2),
    ),
    "png 16-bit grey": lambda: (coded(STEPS, "PNG"), HIGH),
    "png grey with alpha": lambda: (coded(Image.fromarray(A[..., :2].copy(), "LA"), "PNG"), grey(GREY)),
    "png rgba": lambda: (coded(np.dstack([A, GREY]), "PNG"), A),
    "png turned": lambda: turned("PNG"),
    "png animated": lambda: (coded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), RED),
    "png animated, its default image apart": lambda: (
        coded(FRAMES[0], "PNG", save_all=True, default_image=True, append_images=FRAMES[1:]),
        RED,
    ),
    "png whose idat expands beyond its pixels": lambda: (
        png(32, 24, 8, 2, b"".join(b"\0" + row.tobytes() for row in A) + bytes(100_000_000)),
        A,
    ),
    "png of 2 MB of plain text": lambda: (plain_png(chunk(b"tEXt", b"k\0" + b"a" * 2_000_000)), A),
    "png with a broken profile": lambda: (plain_png(chunk(b"iCCP", b"k\0\0junk")), A),
    "png with a profile and a gamma": lambda: (plain_png(chunk(b"gAMA", struct.pack(">I", 100_000))), A),
    "webp lossless": lambda: (coded(A, "WEBP", lossless=True), A),
    "webp with alpha": lambda: (coded(np.dstack([A, GREY]), "WEBP", lossless=True, exact=True), A),
    "webp animated": lambda: (
        coded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
        RED,
    ),
    "webp turned": lambda: turned("WEBP"),
    "bmp 1 bit": lambda: (coded(Image.fromarray(GREY > 99), "BMP"), grey((GREY > 99) * np.uint8(255))),
    "bmp 8 bits": lambda: (coded(GREY, "BMP"), grey(GREY)),
    "bmp 24 bits": lambda: (coded(A, "BMP"), A),
    "bmp 32 bits": lambda: (coded(np.dstack([A, GREY]), "BMP"), A),
    "tiff lzw": lambda: (coded(A, "TIFF", compression="tiff_lzw"), A),
    "tiff deflate": lambda: (coded(A, "TIFF", compression="tiff_adobe_deflate"), A),
    "tiff 16-bit grey": lambda: (coded(STEPS, "TIFF"), HIGH),
    "tiff 16-bit grey, big-endian": lambda: (
        tiff(TIFF16, SIXTEEN[..., 0].astype(">u2").tobytes(), ">"),
        grey(noise(2)[..., 0]),
    ),
    "tiff 16-bit rgb": lambda: (
        tiff(TIFF16 | {262: 2, 277: 3, 279: 4608}, SIXTEEN.astype("<u2").tobytes()),
        noise(2),
    ),
    "tiff of several pages": lambda: (coded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), RED),
    "tiff turned": lambda: turned("TIFF"),
    "tiff cmyk": cmyk,
    "tiff tiled": tiles,
    "tiff whose strip expands beyond its pixels": lambda: (
        grey_tiff(32, 24, zlib.compress(GREY.tobytes() + bytes(100_000_000)), 8),
        grey(GREY),
    ),
    "tiff of a strip of 2 ** 31 - 1 rows": lambda: (
        grey_tiff(32, 24, zlib.compress(GREY.tobytes()), 8, rows=2**31 - 1),
        grey(GREY),
    ),
    "gif animated": lambda: (coded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), RED),
    "gif transparent": lambda: (coded(FRAMES[0].convert("P"), "GIF", transparency=0), RED),
    "ppm": lambda: (b"P6 # a comment\n32 24\n255\n" + A.tobytes(), A),
    "ppm 16 bits": lambda: (
        b"P6\n32 24\n65535\n" + SIXTEEN.astype(">u2").tobytes(),
        np.round(SIXTEEN / 65_535 * 255).astype(np.uint8),
    ),
    "ppm in plain text": lambda: (b"P3\n1 2\n255\n1 2 3 4 5 6\n", np.array([[[1, 2, 3]], [[4, 5, 6]]])),
    "pgm": lambda: (b"P5\n32 24\n255\n" + GREY.tobytes(), grey(GREY)),
}


def test_an_unusual_file_gives_the_pixels_of_the_rule(tmp_path, subtests):
    for name in GOOD:
        with subtests.test(name):
            content, expected = GOOD[name]()
            assert np.array_equal(outcome(tmp_path, content), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
def test_jpeg_of_any_colours_is_converted_as_pillow_does(tmp_path, mode):
    for options in ({}, {"progressive": True}, {"optimize": True, "icc_profile": b"none"}):
        content = coded(Image.fromarray(A).convert(mode), "JPEG", **options)
        with Image.open(io.BytesIO(content)) as picture:
            assert np.array_equal(outcome(tmp_path, content), np.asarray(picture.convert("RGB"))), options


def test_adobes_inverted_ycck_is_converted_as_pillow_does(tmp_path):
    content = coded(Image.fromarray(A).convert("CMYK"), "JPEG")
    at = content.index(b"Adobe")
    ycck = content[: at + 11] + b"\2" + content[at + 12 :]  # its transform: the same numbers mean other colours
    with Image.open(io.BytesIO(ycck)) as picture:
        assert picture.mode == "CMYK" and np.array_equal(outcome(tmp_path, ycck), np.asarray(picture.convert("RGB")))
    assert not np.array_equal(outcome(tmp_path, ycck), outcome(tmp_path, content))


def test_jpeg_inside_tiff_and_lossy_webp_give_pillows_pixels(tmp_path):
    for content in (coded(A, "TIFF", compression="jpeg"), coded(A, "WEBP"), coded(np.dstack([A, GREY]), "WEBP")):
        with Image.open(io.BytesIO(content)) as picture:
            assert np.array_equal(outcome(tmp_path, content), np.asarray(picture.convert("RGB")))


def test_bytes_behind_the_end_of_a_jpeg_are_ignored(tmp_path):
    content = coded(A, "JPEG")
    for more in (b"\0" * 1000, b"garbage", content, b"\xff\xd8\xff"):
        assert np.array_equal(outcome(tmp_path, content + more), outcome(tmp_path, content))


BROKEN_EXIF = {
    "no tiff": b"Exif\0\0nonsense",
    "empty": b"Exif\0\0",
    "cut short": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(30),
    "a tag that points outside": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\xff\0\0\0\xff\xff\0\0",
    "orientation 77": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x4d\0\0\0\0\0\0\0",
    "orientation is text": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\2\0\0\x006\0\0\0\0\0\0\0",
}


@IGNORED
@pytest.mark.parametrize("kind", BROKEN_EXIF)
def test_broken_exif_is_ignored(tmp_path, kind):
    for format, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        expected = outcome(tmp_path, coded(A, format, **options))
        content = coded(A, format, exif=BROKEN_EXIF[kind], **options)
        assert np.array_equal(outcome(tmp_path, content), expected), format
        with Image.open(io.BytesIO(content)) as picture:
            assert np.array_equal(np.asarray(decode(picture)[0]), expected), format


def test_orientation_in_xmp_counts_where_exif_has_none(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    expected = outcome(tmp_path, coded(A, "JPEG"))[::-1, ::-1]
    assert np.array_equal(outcome(tmp_path, coded(A, "JPEG", xmp=xmp)), expected)


def test_a_turned_picture_is_not_turned_again(tmp_path):
    content, expected = turned("JPEG")
    outcome(tmp_path, content)
    once = decode(tmp_path / "a.jpg")[0]
    assert once.size == (24, 32) and np.array_equal(np.asarray(decode(once)[0]), np.asarray(once))


def test_no_warning_reaches_a_user_whose_pictures_have_bad_metadata(tmp_path):
    for number, exif in enumerate(BROKEN_EXIF.values()):
        (tmp_path / f"{number}.jpg").write_bytes(coded(A, "JPEG", exif=exif))
    code = "import sys; from featx.images import decode; [decode(path) for path in sys.argv[1:]]"
    paths = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_gif_whose_frame_is_larger_than_its_screen_is_as_large_as_its_screen(tmp_path):
    content = coded(GREY, "GIF")
    assert outcome(tmp_path, patched(content, content.index(b",") + 5, "<HH", 60_000, 60_000)).shape == A.shape
