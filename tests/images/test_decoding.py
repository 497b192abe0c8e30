"""Every kind of picture becomes the RGB pixels of the rule, or an ImageError with a known code."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_tells, noise
from PIL import Image, ImageOps

from featx.errors import ImageError
from featx.images import content_digest, decode, limits
from featx.images.decoding import FORMATS, stamp
from featx.images.limits import MAX_PIXELS
from featx.images.members import EXTENSIONS

CODES = {"missing", "unreadable", "not-an-image", "damaged", "too-large", "pixel-type", "changed"}
STEPS = (np.arange(12, dtype=np.uint16) * 5957).reshape(3, 4)  # 0 ... 65,527 of 16-bit grey
EIGHT_BIT = (STEPS >> 8).astype(np.uint8)


def saved(path: Path, picture: Image.Image, **options) -> Path:
    picture.save(path, **options)
    return path


def by_pillow(path: Path, mode: str = "") -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode) if mode else picture)


def pixels(image) -> np.ndarray:
    picture, digest = decode(image)
    assert picture.mode == "RGB" and len(digest) == 16
    return np.asarray(picture)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def refused(code: str, image, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(image)
    assert caught.value.code == code and code in CODES
    assert_tells(caught.value, *words)
    assert "0x" not in str(caught.value)  # no memory addresses: a run's failures are the same each time


def test_lossless_files_give_their_pixels(tmp_path):
    for suffix in (".png", ".bmp", ".tif", ".tiff", ".ppm", ".webp"):
        options = {"lossless": True} if suffix == ".webp" else {}
        assert np.array_equal(pixels(saved(tmp_path / f"a{suffix}", Image.fromarray(noise(0)), **options)), noise(0))


def test_jpeg_gives_what_pillow_gives(tmp_path):
    for options in ({}, {"progressive": True}, {"subsampling": 0, "quality": 100}):
        path = saved(tmp_path / "a.jpg", Image.fromarray(noise(0)), **options)
        assert np.array_equal(pixels(path), by_pillow(path, "RGB")), options


def test_the_name_does_not_matter_only_the_content(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(noise(0)))
    other = path.rename(tmp_path / "a.jpg")
    assert np.array_equal(pixels(other), noise(0)) and np.array_equal(pixels(str(other)), noise(0))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_rotated_photo_comes_upright(tmp_path, suffix):
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }
    for orientation, turned in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = saved(tmp_path / f"a{suffix}", Image.fromarray(noise(0)), exif=exif)
        lying = by_pillow(path) if suffix == ".jpg" else noise(0)
        assert np.array_equal(pixels(path), turned(lying)), orientation


def test_invalid_exif_data_are_ignored(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.fromarray(noise(0)), exif=b"Exif\0\0no exif at all")
    assert np.array_equal(pixels(path), by_pillow(path))


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_palette_with_transparency_gives_its_colours(tmp_path, transparency):
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("P")
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    picture.putpalette(colours.tobytes())
    path = saved(tmp_path / "a.png", picture, transparency=transparency)  # a warning would fail this test
    assert np.array_equal(pixels(path), colours.reshape(16, 16, 3))


def test_alpha_is_dropped_not_blended(tmp_path):
    rgba = np.dstack([noise(0), noise(1)[..., 0]])
    assert np.array_equal(pixels(saved(tmp_path / "a.png", Image.fromarray(rgba))), noise(0))
    assert np.array_equal(pixels(Image.fromarray(rgba)), noise(0))
    both = Image.merge("LA", [Image.fromarray(noise(0)[..., 0]), Image.fromarray(noise(1)[..., 0])])
    assert np.array_equal(pixels(saved(tmp_path / "b.png", both)), grey(noise(0)[..., 0]))


def test_cmyk_is_converted_as_pillow_does(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.fromarray(noise(0)).convert("CMYK"), quality=95)
    assert by_pillow(path).shape[2] == 4
    assert np.array_equal(pixels(path), by_pillow(path, "RGB"))


def test_grey_is_three_equal_channels(tmp_path):
    for suffix in (".png", ".jpg", ".bmp"):
        path = saved(tmp_path / f"a{suffix}", Image.fromarray(noise(0)[..., 0]))
        assert np.array_equal(pixels(path), grey(by_pillow(path))), suffix


def test_black_and_white_is_0_and_255(tmp_path):
    bits = noise(0)[..., 0] > 127
    assert np.array_equal(pixels(saved(tmp_path / "a.png", Image.fromarray(bits))), grey(bits * np.uint8(255)))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    for suffix in (".png", ".tif"):
        assert np.array_equal(pixels(saved(tmp_path / f"a{suffix}", Image.fromarray(STEPS))), grey(EIGHT_BIT))


def test_16_bit_grey_of_the_other_byte_order_is_the_same(tmp_path):
    big = Image.frombytes("I;16B", (4, 3), STEPS.astype(">u2").tobytes())
    assert np.array_equal(pixels(saved(tmp_path / "a.tif", big)), grey(EIGHT_BIT))


def test_16_bit_grey_as_a_pgm_file_is_scaled_too(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5\n4 3\n65535\n" + STEPS.astype(">u2").tobytes())
    assert np.array_equal(pixels(tmp_path / "a.pgm"), grey(EIGHT_BIT))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bit_pixels_are_refused(tmp_path, dtype):
    path = saved(tmp_path / "a.tif", Image.fromarray(STEPS.astype(dtype)))
    refused("pixel-type", path, "8 or 16 bits")


def test_the_first_of_several_frames_is_used(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    for suffix in (".gif", ".webp", ".png", ".tif"):
        options = {"lossless": True} if suffix == ".webp" else {}
        path = saved(tmp_path / f"a{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
        with Image.open(path) as opened:
            assert opened.n_frames == 3
        assert np.array_equal(pixels(path), np.asarray(frames[0])), suffix


def test_a_phones_two_pictures_in_one_file_give_the_first(tmp_path):
    first, second = Image.fromarray(noise(0)), Image.fromarray(noise(1))
    path = tmp_path / "a.jpg"
    first.save(path, format="MPO", save_all=True, append_images=[second])
    with Image.open(path) as opened:
        assert opened.format == "MPO" and opened.n_frames == 2
    assert np.array_equal(pixels(path), by_pillow(path))


def test_tiny_and_narrow_pictures_are_decoded(tmp_path):
    for height, width in ((1, 1), (1, 100), (100, 1), (7, 1)):
        path = saved(tmp_path / "a.png", Image.fromarray(noise(0, height, width)))
        assert np.array_equal(pixels(path), noise(0, height, width))


@pytest.mark.parametrize("size", [(101, 1), (1, 30_000)])
def test_an_absurd_aspect_is_refused_before_it_is_scaled(tmp_path, size):
    width, height = size
    path = saved(tmp_path / "a.png", Image.fromarray(noise(0, height, width)))
    refused("too-large", path, f"{width} x {height}", "100 times")


@pytest.mark.parametrize("size", [(int(MAX_PIXELS**0.5) + 1,) * 2, (1_000_000, 1_000_000)])
def test_a_bomb_is_refused_before_decoding(tmp_path, size):
    # a PNG whose header promises more than is decoded; there are no pixels behind it
    content = io.BytesIO()
    Image.new("1", (8, 8)).save(content, "PNG")
    width, height = size
    head = bytearray(content.getvalue())
    head[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    head[29:33] = zlib.crc32(bytes(head[12:29])).to_bytes(4, "big")
    path = tmp_path / "a.png"
    path.write_bytes(bytes(head))
    refused("too-large", path, "pixels")


def test_an_open_picture_over_the_limit_is_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_PIXELS", 24 * 32 - 1)
    refused("too-large", Image.fromarray(noise(0)), "32 x 24", "at most 767")
    refused("too-large", noise(0), "32 x 24", "at most 767")
    with Image.open(saved(tmp_path / "a.png", Image.fromarray(noise(0)))) as picture:
        monkeypatch.setattr(picture, "load", lambda: pytest.fail("it was decoded"))
        refused("too-large", picture, "32 x 24", "at most 767")


@pytest.mark.parametrize(  # Pillow's limit refuses 768 pixels, warns of them, does neither
    "suffix, theirs",
    [(".jpg", 100), (".jpg", 500), (".png", 500), (".webp", None), (".tif", 100), (".bmp", 500), (".gif", 100),
     (".ppm", 100)],
)  # fmt: skip
def test_pillows_limit_has_no_effect_and_is_not_changed(tmp_path, monkeypatch, suffix, theirs):
    options = {".webp": {"lossless": True}, ".tif": {"compression": "tiff_lzw"}}.get(suffix, {})
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(noise(0)), **options)
    expected = by_pillow(path, "RGB")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", theirs)
    assert np.array_equal(pixels(path), expected)  # in these tests a warning raises
    monkeypatch.setattr(limits, "MAX_PIXELS", 24 * 32 - 1)
    refused("too-large", path, "32 x 24 pixels; at most 767 are decoded")
    assert Image.MAX_IMAGE_PIXELS == theirs
    if theirs == 100:
        with pytest.raises(Image.DecompressionBombError):
            by_pillow(path)
    elif theirs == 500:
        with pytest.warns(Image.DecompressionBombWarning):
            by_pillow(path)


def test_the_limit_holds_for_one_thread(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.fromarray(noise(0)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with ThreadPoolExecutor(1) as pool, limits.bounded():
        assert by_pillow(path).shape == (24, 32, 3)
        with pytest.raises(Image.DecompressionBombError):
            pool.submit(by_pillow, path).result()


def test_a_nonexistent_file_is_missing(tmp_path):
    refused("missing", tmp_path / "none.jpg", "no such file")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "none.jpg")
    refused("missing", tmp_path / "link.jpg", "no such file")


def test_a_folder_named_like_a_picture_is_unreadable(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    refused("unreadable", tmp_path / "x.jpg", "cannot be read")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(noise(0)))
    path.chmod(0)
    refused("unreadable", path, "Permission denied")


def test_a_file_that_is_not_a_picture_is_refused_as_such(tmp_path, subtests):
    for content in [b"", b"not a picture\n", b"%PDF-1.7\n", b"\xff\xd8", b"\0" * 1000]:
        with subtests.test(ascii(content)):
            path = tmp_path / "a.jpg"
            path.write_bytes(content)
            refused("not-an-image", path, "not a picture", *FORMATS)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp", ".gif"])
def test_a_truncated_picture_is_refused(tmp_path, suffix):
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(noise(0, 60, 80)))
    content = path.read_bytes()
    for part in (0.3, 0.9):
        path.write_bytes(content[: int(len(content) * part)])
        refused("damaged", path)


def test_any_damage_is_an_image_error_or_a_picture(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a"
    for suffix in (".jpg", ".png", ".gif", ".tif", ".bmp", ".webp"):
        good = np.frombuffer(saved(tmp_path / f"b{suffix}", Image.fromarray(noise(0, 16, 20))).read_bytes(), np.uint8)
        for _ in range(20):
            bad = good.copy()
            bad[rng.integers(0, len(bad), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(bad.tobytes())
            try:
                assert decode(path)[0].mode == "RGB"
            except ImageError as error:
                assert error.code in CODES


def test_a_lazily_opened_damaged_picture_is_damaged(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.fromarray(noise(0)))
    path.write_bytes(path.read_bytes()[:-200])
    with Image.open(path) as picture:
        refused("damaged", picture, "cut short")


def test_arrays_of_other_types_and_shapes_are_refused(subtests):
    for array in [
        noise(0).astype(np.float32),
        noise(0)[..., :2],
        noise(0)[None],
        noise(0)[0, :, 0],
        noise(0)[:0],
        np.zeros((0, 5), np.uint8),
    ]:
        with subtests.test(ascii(array)):
            refused("pixel-type", array, "uint8" if array.size else "must hold pixels", str(array.shape))


def test_arrays_and_pictures_give_their_pixels():
    assert np.array_equal(pixels(noise(0)), noise(0))
    assert np.array_equal(pixels(noise(0)[..., 0]), grey(noise(0)[..., 0]))
    assert np.array_equal(pixels(Image.fromarray(noise(0))), noise(0))
    turned = noise(0).transpose(1, 0, 2)[::2]
    assert np.array_equal(pixels(turned), turned)


def test_decoding_does_not_change_its_argument():
    array, picture = noise(0), Image.fromarray(noise(0))
    decoded = decode(picture)[0]
    decoded.putpixel((0, 0), (1, 2, 3))
    np.asarray(decode(array)[0].copy())
    assert np.array_equal(np.asarray(picture), noise(0)) and np.array_equal(array, noise(0))


def test_the_digest_is_that_of_the_files_bytes(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(noise(0)))
    expected = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    assert decode(path)[1] == content_digest(path) == content_digest(str(path)) == expected


def test_the_digest_of_pixels_depends_on_all_that_is_visible():
    array = noise(0)
    images = [array, array[::-1], array[:, ::-1], array[..., 0], noise(1), array.transpose(1, 0, 2)]
    images += [array.reshape(12, 64, 3), Image.fromarray(array[..., 0])]
    digests = {content_digest(image) for image in images}
    assert len(digests) == len(images)
    assert [content_digest(image) for image in images] == [decode(image)[1] for image in images]
    assert content_digest(array[::2, ::3]) == content_digest(array[::2, ::3].copy())


@pytest.mark.parametrize("kind", ["palette", "rotation"])
def test_the_digest_of_a_picture_covers_what_decides_its_look(kind):
    one, other = (Image.fromarray(noise(0)[..., 0]) for _ in range(2))
    if kind == "palette":
        one, other = one.convert("P"), other.convert("P")
        one.putpalette([255, 0, 0] * 256)
        other.putpalette([0, 0, 255] * 256)
    else:
        other.getexif()[0x0112] = 3
        assert ImageOps.exif_transpose(other).tobytes() != other.tobytes()
    assert not np.array_equal(pixels(one), pixels(other))
    assert content_digest(one) != content_digest(other)


def test_every_extension_belongs_to_a_format_that_is_read():
    Image.init()
    assert {Image.EXTENSION[extension] for extension in EXTENSIONS} <= set(FORMATS)


# A file that is not what it was when the run began


def refused_since(path: Path, expected, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(path, expected)
    assert caught.value.code == code
    if code in ("missing", "changed"):
        assert "while the run was on" in caught.value.reason


def test_an_unchanged_file_is_decoded(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(noise(0)))
    for expected in (stamp(path), stamp(str(path)), None):
        picture, digest = decode(path, expected)
        assert np.array_equal(np.asarray(picture), noise(0)) and digest == content_digest(path)


def test_a_file_of_another_size_or_time_has_changed(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(noise(0)))
    expected, status = stamp(path), os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    refused_since(path, expected, "changed")
    path.write_bytes(path.read_bytes() + b"more")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    refused_since(path, expected, "changed")
    path.write_bytes(b"")
    refused_since(path, expected, "changed")  # not "not-an-image": somebody is writing it
    path.unlink()
    refused_since(path, expected, "missing")
    path.mkdir()
    refused_since(path, expected, "unreadable")


def test_a_file_that_grows_while_it_is_read_has_changed(tmp_path, monkeypatch):
    """The bytes that were read are not those of the file, even without an expected stamp."""
    path = saved(tmp_path / "a.bmp", Image.fromarray(noise(0)))
    expected, fstat = stamp(path), os.fstat

    def growing(handle):
        with open(path, "ab") as file:
            file.write(b"more")
        return fstat(handle)

    monkeypatch.setattr(os, "fstat", growing)
    refused_since(path, expected, "changed")
    refused_since(path, None, "changed")


def test_only_files_have_a_stamp(tmp_path):
    assert stamp(noise(0)) is None and stamp(Image.fromarray(noise(0))) is None
    assert stamp(tmp_path / "none.png") is None and stamp("a\0b") is None
    path = saved(tmp_path / "a.png", Image.fromarray(noise(0)))
    assert stamp(path) == (path.stat().st_size, path.stat().st_mtime_ns)
