"""Bad and hostile files, one by one: each is refused with its code, quickly and in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from helpers import noise
from pictures import GREY, A, chunk, coded, grey_tiff, outcome, patched, plain_png, png, tiled_tiff
from PIL import Image

from featx.errors import ImageError
from featx.images import content_digest, decode, limits


def large_webp() -> bytes:
    content = coded(A, "WEBP", lossless=True)
    at = content.index(b"VP8L") + 9
    return patched(content, at, "<I", 16_383 | 16_383 << 14)


def jpeg_of(height: int, width: int) -> bytes:
    content = coded(A, "JPEG")
    return patched(content, content.index(b"\xff\xc0") + 5, ">HH", height, width)


def jpeg_of_many_scans() -> bytes:
    content = coded(Image.new("L", (2048, 2048)), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * 3000 + content[-2:]  # half a minute of passing over pixels


TEXT_BOMB = zlib.compress(bytes(100_000_000), 9)
BAD = {
    # pixel bombs: the header promises what nobody decodes
    "png 60000 x 60000": ("too-large", lambda: png(60_000, 60_000, 8, 2, b"")),
    "jpeg 60000 x 60000": ("too-large", lambda: jpeg_of(60_000, 60_000)),
    "jpeg of many scans": ("too-large", jpeg_of_many_scans),
    "gif 60000 x 60000": ("too-large", lambda: patched(coded(GREY, "GIF"), 6, "<HH", 60_000, 60_000)),
    "bmp 60000 x 60000": ("too-large", lambda: patched(coded(A, "BMP"), 18, "<ii", 60_000, 60_000)),
    "bmp of a negative side": ("too-large", lambda: patched(coded(A, "BMP"), 18, "<ii", 32, -(2**31))),
    "webp 16384 x 16384": ("too-large", large_webp),
    "tiff 60000 x 60000": ("too-large", lambda: grey_tiff(60_000, 60_000, b"", rows=1)),
    "tiff 2 ** 31 - 1 squared": ("too-large", lambda: grey_tiff(2**31 - 1, 2**31 - 1, b"", rows=1)),
    "ppm 60000 x 60000": ("too-large", lambda: b"P6\n60000 60000\n255\n"),
    "png 10000 x 1": ("too-large", lambda: coded(A[:1].repeat(313, 1)[:, :10_000], "PNG")),
    "jpeg 1 x 10000": ("too-large", lambda: coded(A[:, :1].repeat(417, 0)[:10_000], "JPEG")),
    # bombs in what is not pixels
    "png zTXt bomb": ("damaged", lambda: plain_png(chunk(b"zTXt", b"k\0\0" + TEXT_BOMB))),
    "png iTXt bomb after the pixels": ("damaged", lambda: plain_png(b"", chunk(b"iTXt", b"k\0\1\0\0\0" + TEXT_BOMB))),
    "png iCCP bomb": ("damaged", lambda: plain_png(chunk(b"iCCP", b"k\0\0" + TEXT_BOMB))),
    "png of 100 texts": (
        "damaged",
        lambda: plain_png(100 * chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(900_000)))),
    ),
    "tiff of a tile of 2 ** 40 pixels": ("damaged", lambda: tiled_tiff(2**20, zlib.compress(bytes(1_000_000)), 8)),
    # no pixels
    "png 0 x 24": ("not-an-image", lambda: png(0, 24, 8, 2, b"")),
    "jpeg 0 x 32": ("not-an-image", lambda: jpeg_of(0, 32)),
    "bmp 0 x 24": ("not-an-image", lambda: patched(coded(A, "BMP"), 18, "<ii", 0, 24)),
    "tiff 0 x 24": ("not-an-image", lambda: grey_tiff(0, 24, bytes(10))),
    "ppm 0 x 24": ("not-an-image", lambda: b"P6\n0 24\n255\n"),
    "tiff of no tags": ("not-an-image", lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    "tiff of no pixels": ("damaged", lambda: grey_tiff(32, 24, b"")),
    # pixels of no stated range
    "tiff float": ("pixel-type", lambda: coded(GREY.astype(np.float32), "TIFF")),
    "tiff of nan and inf": ("pixel-type", lambda: coded(np.full((24, 32), np.nan, np.float32) * np.inf, "TIFF")),
    "tiff 32-bit integers": ("pixel-type", lambda: coded(GREY.astype(np.int32), "TIFF")),
    # other files in disguise
    "pdf": ("not-an-image", lambda: b"%PDF-1.7\n1 0 obj\n"),
    "eps": ("not-an-image", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
    "psd": ("not-an-image", lambda: b"8BPS\0\1" + bytes(60)),
    "ico": ("not-an-image", lambda: coded(Image.new("RGB", (32, 32)), "ICO")),
    "tga": ("not-an-image", lambda: coded(A, "TGA")),
    "svg": ("not-an-image", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "html": ("not-an-image", lambda: b"<!doctype html><html>404</html>"),
    "zip": ("not-an-image", lambda: b"PK\3\4" + bytes(60)),
    "float pfm": ("not-an-image", lambda: b"PF\n1 1\n-1.0\n" + bytes(12)),
    "nothing": ("not-an-image", lambda: b""),
    "zeros": ("not-an-image", lambda: bytes(1000)),
}


def test_a_bad_file_is_refused_with_its_code(tmp_path, subtests):
    for name in BAD:
        with subtests.test(name):
            code, content = BAD[name]
            content = content()
            start = time.process_time()  # others use this machine too
            assert outcome(tmp_path, content) == code
            assert time.process_time() - start < 2


def test_a_file_that_is_only_a_header_is_refused(tmp_path):
    """With the code "not-an-image" or, where Pillow has found a header, "damaged"."""
    tried = (1, 4, 8, 16, 24, 40)
    lengths = {"BMP": [24, 40], "GIF": [], "JPEG": [8, 16, 24, 40], "PNG": [16, 24], "PPM": [4, 8, 16, 24, 40]}
    for format, damaged in (lengths | {"TIFF": [8, 16, 24, 40], "WEBP": [16, 24, 40]}).items():
        # a TIFF's tags may be anywhere: here, before the pixels
        content = grey_tiff(32, 24, GREY.tobytes()) if format == "TIFF" else coded(A, format)
        codes = {length: outcome(tmp_path, content[:length]) for length in tried}
        assert codes == {n: "damaged" if n in damaged else "not-an-image" for n in tried}, format


@pytest.mark.parametrize("format", ["BMP", "JPEG", "PNG", "PPM", "WEBP"])
def test_a_file_truncated_anywhere_is_refused(tmp_path, format):
    content = coded(noise(0, 12, 16), format)
    # a PNG's checksums and last chunk are not missed by Pillow; nor is a byte that pads the last row or chunk
    lengths = range(0, len(content) - (24 if format == "PNG" else 1), 3)
    codes = [outcome(tmp_path, content[:length]) for length in lengths]
    assert codes[0] == "not-an-image" and codes[-1] == "damaged" and {*codes} == {"not-an-image", "damaged"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("asked", [decode, content_digest])
def test_pipes_and_devices_do_not_block(tmp_path, monkeypatch, asked):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "file.jpg").write_bytes(coded(A, "JPEG"))
    status = os.stat(tmp_path / "file.jpg")
    for name in ("pipe.jpg", "device.jpg"):
        with pytest.raises(ImageError) as caught:
            asked(tmp_path / name)
        assert caught.value.code == "unreadable"
        with monkeypatch.context() as patched, pytest.raises(ImageError) as caught:  # it takes the file's place later
            patched.setattr(os, "stat", lambda *_, **__: status)
            asked(tmp_path / name)
        assert caught.value.code == "unreadable"


@pytest.mark.parametrize("asked", [decode, content_digest])
def test_a_file_beyond_the_limit_is_not_read(tmp_path, asked):
    path = tmp_path / "a.jpg"
    path.write_bytes(coded(A, "JPEG"))
    os.truncate(path, 20_000_000_000)  # has no blocks on the disk
    start = time.process_time()
    with pytest.raises(ImageError) as caught:
        asked(path)
    assert caught.value.code == "too-large" and str(caught.value) == "a file of 20 GB; at most 1.1 GB are read"
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize("call", ["load", "tobytes", "transpose", "convert"])
def test_too_little_memory_is_a_failure_of_that_image(monkeypatch, call):
    picture = Image.fromarray(GREY)
    picture.getexif()[0x0112] = 3

    def refusing(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, call, refusing)
    for read in (decode, content_digest):
        with pytest.raises(ImageError) as caught:
            read(picture)
        assert caught.value.code == "too-large" and str(caught.value) == limits.NO_MEMORY


def test_an_impossible_file_name_is_an_image_error(tmp_path):
    for name, code in (("a\0b.jpg", "missing"), ("a" * 300 + ".jpg", "unreadable"), ("", "unreadable")):
        with pytest.raises(ImageError) as caught:
            decode(str(tmp_path / name))
        assert caught.value.code == code, name


def test_the_limit_of_scans_lets_real_photos_pass(monkeypatch, tmp_path):
    content = coded(A, "JPEG", progressive=True)
    scans = content.count(b"\xff\xda\0")
    assert 5 < scans < 15 and limits.MAX_SCANNED_PIXELS > 3 * scans * limits.MAX_PIXELS
    monkeypatch.setattr(limits, "MAX_SCANNED_PIXELS", scans * 24 * 32 - 1)
    assert outcome(tmp_path, content) == "too-large"
    assert isinstance(outcome(tmp_path, coded(A, "JPEG")), np.ndarray)


def test_hostile_files_need_little_memory(tmp_path):
    """In a process that is limited to 700 MB, of which NumPy and Pillow reserve about 300."""
    resource = pytest.importorskip("resource")
    for number, (name, (_, content)) in enumerate(BAD.items()):
        (tmp_path / f"{number:03d}.{name.replace(' ', '-')}").write_bytes(content())
    (tmp_path / "999.zeros").touch()
    os.truncate(tmp_path / "999.zeros", 1_000_000_000)  # may be read, where there is memory
    code = """
import sys
from featx.images import decode
from featx.errors import ImageError
for path in sys.argv[1:]:
    try:
        decode(path)
    except ImageError as error:
        print(error.code)
"""
    limit = 700 << 20
    done = subprocess.run(
        [sys.executable, "-c", code, *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.stderr == "" and done.stdout.split() == [*(code for code, _ in BAD.values()), "too-large"]
