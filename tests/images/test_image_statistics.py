"""The hash and the statistics of a picture: what changes them, what does not, and hostile metadata."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers import noise
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from featx.image_statistics import IMAGE_STATISTICS
from featx.images import content_digest, decode, decode_and_describe
from featx.images.statistics import image_statistics, perceptual_hashes


def scene(seed: int, side: int = 96) -> Image.Image:
    """A picture with structure at all scales, as photos have."""
    rng = np.random.default_rng(seed)
    waves = [rng.normal(size=(n, n, 3)) * 60 / n**0.5 for n in (3, 6, 12, 24)]
    planes = [np.asarray(Image.fromarray(np.uint8(np.clip(128 + w, 0, 255))).resize((side, side))) for w in waves]
    return Image.fromarray(np.uint8(np.clip(sum(p.astype(float) - 128 for p in planes) + 128, 0, 255)))


def saved(picture: Image.Image, path, **options):
    picture.save(path, **options)
    return path


def record(image) -> np.ndarray:
    return np.frombuffer(decode_and_describe(image)[2], IMAGE_STATISTICS)[0]


def distance(a, b) -> int:
    return int(np.bitwise_count(np.uint64(a) ^ np.uint64(b)))


CHANGES = {
    "JPEG": lambda p: Image.open(io.BytesIO(jpeg(p, 40))).convert("RGB"),
    "smaller": lambda p: p.resize((58, 58), Image.Resampling.BICUBIC),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.2),
    "blurred": lambda p: p.filter(ImageFilter.GaussianBlur(1)),
}


def jpeg(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_nearer_than_any_other_picture(change):
    pictures = [scene(seed) for seed in range(30)]
    hashes = [perceptual_hashes(picture.convert("L"))[0] for picture in pictures]
    between = min(distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i])
    changed = [perceptual_hashes(CHANGES[change](picture).convert("L"))[0] for picture in pictures]
    assert max(map(distance, hashes, changed)) < between


def test_the_mirror_hash_is_the_hash_of_the_mirror_image():
    for seed in range(20):
        grey = scene(seed, 64).convert("L")  # whole factors: mirroring and reducing commute
        mirrored = ImageOps.mirror(grey)
        # frequencies whose coefficient is 0 keep their sign bit
        assert distance(perceptual_hashes(grey)[1], perceptual_hashes(mirrored)[0]) <= 1
        assert distance(perceptual_hashes(grey)[0], perceptual_hashes(mirrored)[1]) <= 1


def test_statistics_of_pixels_are_those_of_numpy():
    picture = scene(3, 80)
    values = record(np.asarray(picture))
    grey = np.asarray(picture.convert("L"), float) / 255
    inner = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    np.testing.assert_allclose(values["brightness"], grey.mean(), rtol=1e-6)
    np.testing.assert_allclose(values["contrast"], grey.std(), rtol=1e-6)
    np.testing.assert_allclose(values["sharpness"], inner.std(), rtol=1e-6)
    np.testing.assert_allclose(values["dark"], (grey * 255 <= 13).mean(), rtol=1e-6)
    np.testing.assert_allclose(values["bright"], (grey * 255 >= 242).mean(), rtol=1e-6)
    assert (values["height"], values["width"], values["file_bytes"]) == (80, 80, 0)
    assert np.isnan(values["jpeg_quality"]) and values["taken"] == np.iinfo(np.int64).min and values["camera"] == b""


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 2), (700, 9)])
def test_a_blank_picture_of_any_size(level, size):
    values = record(np.full(size, level, np.uint8))
    assert values["contrast"] == values["sharpness"] == 0 and values["brightness"] == level / 255
    assert (values["dark"], values["bright"]) == (level == 0, level == 255)


def test_a_blurred_picture_is_less_sharp_and_a_large_one_is_reduced():
    sharp, blurred = (record(np.asarray(p)) for p in (scene(1), scene(1).filter(ImageFilter.GaussianBlur(2))))
    assert blurred["sharpness"] < 0.7 * sharp["sharpness"]
    large = record(noise(0, 700, 2100))
    assert (large["height"], large["width"]) == (700, 2100) and abs(large["brightness"] - 0.5) < 0.01


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_the_quality_of_a_jpeg(tmp_path, quality):
    path = saved(scene(0), tmp_path / "a.jpg", quality=quality)
    values = record(path)
    assert abs(values["jpeg_quality"] - quality) < 1
    assert values["file_bytes"] == path.stat().st_size


def test_date_and_camera_of_exif(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0132] = "ACME", "ACME One\nX", "2024:02:29 23:59:58"
    values = record(saved(scene(0), tmp_path / "a.jpg", exif=exif))
    assert values["taken"].view("<M8[s]") == np.datetime64("2024-02-29T23:59:58") and values["camera"] == b"ACME One X"
    exif.get_ifd(0x8769)[0x9003] = "2001:01:01 00:00:00"
    assert record(saved(scene(0), tmp_path / "b.jpg", exif=exif))["taken"].view("<M8[s]") == np.datetime64("2001-01-01")


@pytest.mark.parametrize("date", ["", "2024:13:01 00:00:00", "0000:00:00 00:00:00", "yesterday", "\0" * 19, "9" * 500])
def test_a_date_that_is_none(tmp_path, date):
    exif = Image.Exif()
    exif[0x0132], exif[0x010F], exif[0x0110] = date, "A" * 40, "\x1b[31m" + "x" * 90
    values = record(saved(scene(0), tmp_path / "a.jpg", exif=exif))
    assert values["taken"] == np.iinfo(np.int64).min
    assert values["camera"] == b"A" * 40 + b" [31m" + b"x" * 19


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of metadata that it ignores
def test_metadata_that_is_damaged_is_ignored(tmp_path):
    content = jpeg(scene(0), 90)
    rng = np.random.default_rng(0)
    for _ in range(50):
        body = b"Exif\0\0" + b"II*\0\x08\0\0\0" + rng.bytes(60)
        marked = content[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + content[2:]
        (tmp_path / "a.jpg").write_bytes(marked)
        decoded, described = decode(tmp_path / "a.jpg"), decode_and_describe(tmp_path / "a.jpg")
        assert decoded[0].tobytes() == described[0].tobytes() and decoded[1] == described[1]
        assert len(described[2]) == IMAGE_STATISTICS.itemsize


def test_the_record_depends_on_the_image_alone(tmp_path):
    path = saved(scene(5), tmp_path / "a.png")
    picture, digest, first = decode_and_describe(path)
    assert digest == content_digest(path) and first == decode_and_describe(path)[2]
    assert record(path)["hash"] == record(np.asarray(picture))["hash"] == record(picture)["hash"]
    assert image_statistics(picture) == decode_and_describe(np.asarray(picture))[2]
