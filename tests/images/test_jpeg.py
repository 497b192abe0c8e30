"""The faster JPEG decoder gives exactly Pillow's pixels, and Pillow's errors for damaged files."""

from __future__ import annotations

import base64
import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import noise
from PIL import Image

from featx.errors import ImageError
from featx.images import decode, jpeg

simplejpeg = pytest.importorskip("simplejpeg")
# 11 x 9 pixels, arithmetic coding (cjpeg -arithmetic): neither library writes it
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGBYU"
    "GBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/yQARCAAJAAsD"
    "ASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD9Kwmr0h5zJSHcEceUGYZHI3787gzo/bmk+uqXfCaUJbFKJs2cboOK6kWZaQfQkKL1"
    "VsOopArg/9k="
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """Counts how often the faster decoder gave the pixels, and how often it left the file to Pillow."""
    counts: Counter[bool] = Counter()
    fill = jpeg._fill

    def counted(picture: Image.Image, content: bytes) -> bool:
        counts[found := fill(picture, content)] += 1
        return found

    assert jpeg.has_fast_jpeg()
    monkeypatch.setattr(jpeg, "_fill", counted)
    return counts


def smooth(height: int, width: int) -> np.ndarray:
    """A smooth picture like a photo; noise would hide errors in the upsampling of colours."""
    rows, columns = np.ogrid[:height, :width, :1][:2]
    return (127 + 120 * np.sin(rows / [3, 5, 7] + columns / [11, 4, 6])).astype(np.uint8)


def coded(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", **options)
    return file.getvalue()


def outcome(path: Path, content: bytes) -> bytes | str:
    """The size and pixels, or the code of the error."""
    path.write_bytes(content)
    try:
        picture = decode(path)[0]
    except ImageError as error:
        return error.code
    assert picture.mode == "RGB"
    return repr(picture.size).encode() + picture.tobytes()


def same(path: Path, content: bytes) -> bytes | str:
    """The outcome, after checking that Pillow alone has the same."""
    found = outcome(path, content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jpeg, "has_fast_jpeg", lambda: False)
        assert outcome(path, content) == found
    return found


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_every_subsampling_and_size_gives_pillows_pixels(tmp_path, quick, subsampling):
    for size in ((1, 1), (1, 17), (17, 1), (15, 33), (16, 16)):
        for array in (smooth(*size), noise(0, *size)):
            assert same(tmp_path / "a", simplejpeg.encode_jpeg(array, 90, colorsubsampling=subsampling)) != "damaged"
    assert quick[True] == 10 and not quick[False]


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"progressive": True, "subsampling": "4:1:1", "quality": 30},
        {"optimize": True},
        {"restart_marker_blocks": 1},
        {"restart_marker_rows": 1, "progressive": True},
        {"keep_rgb": True, "subsampling": 0},
        {"icc_profile": b"no profile" * 10_000, "comment": b"\xff\xd9\xff\xda" * 5},
        {"dpi": (300, 300), "xmp": b"<x:xmpmeta/>"},
    ],
)
def test_every_coding_gives_pillows_pixels(tmp_path, quick, options):
    for array in (smooth(37, 45), noise(0)):
        same(tmp_path / "a", coded(array, **options))
        same(tmp_path / "a", coded(array[..., 0], **options))
    assert quick[True] == 4 and not quick[False]


def test_every_quality_gives_pillows_pixels(tmp_path, quick):
    for quality in range(1, 101):
        same(tmp_path / "a", coded(smooth(19, 21), quality=quality))
    assert quick[True] == 100


def test_arithmetic_coding_gives_pillows_pixels(tmp_path):
    assert same(tmp_path / "a", ARITHMETIC).startswith(b"(11, 9)")


def test_the_orientation_stays_pillows(tmp_path, quick):
    for mode, orientation in [*(("RGB", number) for number in range(10)), ("L", 1), ("L", 6)]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        Image.fromarray(smooth(13, 22)).convert(mode).save(file, "JPEG", exif=exif)
        size = b"(13, 22)" if 5 <= orientation <= 8 else b"(22, 13)"
        assert same(tmp_path / "a", file.getvalue())[:8] == size, (mode, orientation)
    assert quick == {True: 12}


def test_a_phones_two_pictures_in_one_file_are_plain_enough(tmp_path, quick):
    file = io.BytesIO()
    Image.fromarray(smooth(20, 30)).save(file, "MPO", save_all=True, append_images=[Image.fromarray(noise(0))])
    same(tmp_path / "a", file.getvalue())
    assert quick[True] == 1


def test_other_colours_and_formats_are_left_to_pillow(tmp_path, quick):
    cmyk, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(noise(0)).convert("CMYK").save(cmyk, "JPEG")
    Image.fromarray(noise(0)).save(png, "PNG")
    for content in (cmyk.getvalue(), png.getvalue()):
        assert same(tmp_path / "a", content) != "damaged"
    assert not quick


def test_files_that_libjpeg_repairs_are_left_to_pillow(tmp_path, quick):
    good = coded(noise(0, 60, 80))
    middle = len(good) - 900
    assert isinstance(same(tmp_path / "a", good[:middle] + bytes(100) + good[middle + 100 :]), bytes)
    assert same(tmp_path / "a", good[:-2]) == same(tmp_path / "a", good[: len(good) // 2]) == "damaged"
    assert quick == {False: 3}
    assert same(tmp_path / "a", good + b"more") == same(tmp_path / "a", good)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of EXIF data
@pytest.mark.parametrize("rounds", [120, pytest.param(3_000, marks=pytest.mark.slow)])
def test_damaged_files_give_the_same_result_as_pillow_alone(tmp_path, quick, capfd, rounds):
    rng = np.random.default_rng(rounds)
    exif = Image.Exif()
    exif[0x0112] = 6
    previous, found = coded(noise(1)), Counter()
    for _ in range(rounds):
        array = [noise, lambda _, *size: smooth(*size)][rng.integers(2)](0, *rng.integers(1, 40, 2))
        options = {"quality": int(rng.integers(1, 101)), "progressive": bool(rng.integers(2)), "subsampling": 2}
        options |= [{}, {"restart_marker_blocks": 2}, {"exif": exif}, {"keep_rgb": True, "subsampling": 0}][
            rng.integers(4)
        ]
        good = coded(array[..., 0] if rng.random() < 0.2 else array, **options)
        for damaged in damages(rng, good, previous):
            if large(damaged):
                continue  # a few bytes that promise millions of pixels are a matter of time, not of pixels
            result = same(tmp_path / "a", damaged)
            found[result if isinstance(result, str) else "pixels"] += 1
        previous = good
    assert min(found["pixels"], found["damaged"], found["not-an-image"], quick[True], quick[False]) > rounds / 4
    assert capfd.readouterr() == ("", "")  # libjpeg prints nothing


def large(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.width * picture.height > 250_000
    except Exception:
        return False


def damages(rng: np.random.Generator, good: bytes, other: bytes) -> list[bytes]:
    """Damage of each kind: flipped bits, truncated, end lost, spliced, bytes inserted or lost, a byte of the scan."""
    flipped, one = bytearray(good), bytearray(good)
    for at in rng.integers(0, len(good), rng.integers(1, 4)):
        flipped[at] ^= 1 << rng.integers(8)
    one[rng.integers(len(good) // 2, len(good))] = rng.integers(256)
    i, j, length = rng.integers(2, len(good)), rng.integers(2, len(other)), int(rng.integers(1, 30))
    return [
        bytes(flipped),
        good[:i],
        good[: -int(rng.integers(1, 12))],
        good[:i] + other[j:],
        good[:i] + rng.bytes(length) + good[i:],
        good[:i] + good[i + length :],
        bytes(one),
    ]


def test_threads_do_not_disturb_each_other(tmp_path, quick):
    paths = [tmp_path / f"{i}.jpg" for i in range(40)]
    for i, path in enumerate(paths):
        path.write_bytes(coded(smooth(100 + i, 90), progressive=bool(i % 2)))
    expected = [np.asarray(Image.open(path)) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(decode, paths * 3))
    assert all(np.array_equal(np.asarray(picture), expected[i % 40]) for i, (picture, _) in enumerate(found))
    assert quick == {True: 120}


def test_the_picture_may_be_drawn_upon_and_outlives_the_file(tmp_path, quick):
    (tmp_path / "a").write_bytes(coded(smooth(30, 20)))
    picture = decode(tmp_path / "a")[0]
    (tmp_path / "a").unlink()
    expected = np.array(picture)
    picture.putpixel((0, 0), (1, 2, 3))
    expected[0, 0] = 1, 2, 3
    assert np.array_equal(np.asarray(picture), expected) and np.array_equal(np.asarray(picture.copy()), expected)


@pytest.mark.parametrize("why", ["not installed", "other rounding", "a Pillow without the function", "no memory"])
def test_without_a_decoder_thathas_fast_jpeg_pillow_decodes(tmp_path, monkeypatch, why):
    content = coded(smooth(30, 20))
    expected = outcome(tmp_path / "a", content)
    decode_jpeg = simplejpeg.decode_jpeg
    monkeypatch.setattr(jpeg, "simplejpeg", None if why == "not installed" else simplejpeg)
    if why == "other rounding":
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *given: np.maximum(decode_jpeg(*given), 1))
    if why == "a Pillow without the function":
        monkeypatch.delattr(Image.core, "map_buffer")
    if why == "no memory":
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_: np.empty(1 << 62, np.uint8))
    jpeg.has_fast_jpeg.cache_clear()
    try:
        assert not jpeg.has_fast_jpeg() and outcome(tmp_path / "a", content) == expected
    finally:
        jpeg.has_fast_jpeg.cache_clear()
