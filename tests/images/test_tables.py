"""Parquet files give the images of a column with their labels; each row group is read once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collected import failure, refused
from helpers import class_folders, save_noise

from featx.errors import ImageError
from featx.images import collect, content_digest, decode, files, image_at, tables

NAMES = ["ant", "bee"]
CLASS_LABEL = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}})}


@pytest.fixture
def photos(tmp_path):
    return class_folders(tmp_path / "photos", n=10)


def written(path, root, *, with_paths=True, row_group_size=4, **columns):
    """As Hugging Face `datasets` writes it."""
    images = sorted(root.rglob("*.png"))
    structs = [
        {"bytes": file.read_bytes(), "path": file.relative_to(root).as_posix() if with_paths else None}
        for file in images
    ]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    labels = pa.array([NAMES.index(file.parent.name) for file in images])
    table = pa.table({"image": pa.array(structs, kind), "label": labels, **columns}).replace_schema_metadata(
        CLASS_LABEL
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def plain(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_a_file_as_datasets_writes_it_gives_the_folders_images(tmp_path, photos):
    path = written(tmp_path / "x.parquet", photos, site=[f"s{i % 3}" for i in range(20)])
    folder, found = collect(photos), collect(str(path))
    assert found.ids == folder.ids and found.y.tolist() == folder.y.tolist()
    assert found.columns["site"].tolist() == [f"s{i % 3}" for i in range(20)] and list(found.columns) == ["site"]
    digests = [content_digest(file) for file in folder.images]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(content_digest, found.images)) == digests
    assert [content_digest(image) for image in pickle.loads(pickle.dumps(found.images))] == digests
    assert str(found.images[13]) == f"{path}/13"


def test_without_paths_rows_are_numbered_in_one_file_and_in_several(tmp_path, photos):
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        written(tmp_path / "data" / f"{name}.parquet", photos, with_paths=False)
    found = collect(tmp_path / "data")
    assert found.ids == [f"{name}.parquet/{row}" for name in ("a", "b") for row in range(20)]
    assert found.origin == tmp_path / "data"
    pattern = collect(f"{tmp_path}/data/{{a,b}}.parquet")
    assert pattern.ids == found.ids == collect([tmp_path / "data" / f"{name}.parquet" for name in ("a", "b")]).ids
    assert decode(image_at(found.origin, "b.parquet/7"))[0] == decode(found.images[27])[0]
    assert len(files([tmp_path / "data"])) == 40


def test_each_row_group_is_read_once(tmp_path, photos, monkeypatch):
    images = collect(written(tmp_path / "x.parquet", photos)).images
    read, groups = pq.ParquetFile.iter_batches, []

    def counted(self, rows, read_groups, columns):
        groups.extend(read_groups)
        return read(self, rows, read_groups, columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(content_digest, images))
    assert sorted(groups) == [0, 1, 2, 3, 4]


def test_a_column_of_bytes_and_numbers_as_labels(tmp_path):
    picture = save_noise(tmp_path / "x.png", seed=0).read_bytes()
    path = plain(tmp_path / "x.parquet", image=[picture, picture], grade=[0.5, 2.0], label=["a", None])
    refused(path, "x.parquet/1", "no label")
    found = collect(path, "grade", target="numeric")
    assert found.y.tolist() == [0.5, 2.0] and found.columns["label"].tolist() == ["a", ""]
    assert collect(plain(path, photo=[picture])).y is None
    refused(path, "no column 'x'", "labels", labels="x")
    refused(path, "Parquet", "columns", labels=["a"])


def test_columns_that_hold_no_images_are_refused_by_name(tmp_path):
    refused(plain(tmp_path / "x.parquet", image_url=["https://example.org/1.png"]), "'image_url'", "URLs")
    refused(plain(tmp_path / "x.parquet", image=["a.png"]), "'image'", "paths", "CSV")
    refused(plain(tmp_path / "x.parquet", a=[b"1"], b=[b"2"]), "several", "'a', 'b'", "'image'")
    refused(plain(tmp_path / "x.parquet", a=[1]), "no column of image bytes", "'a'")
    refused(plain(tmp_path / "x.parquet", image=pa.array([], pa.binary())), "no rows")


def test_a_row_without_bytes_is_a_failure(tmp_path):
    structs = [{"bytes": None, "path": "https://example.org/1.png"}, {"bytes": b"x", "path": "1.png"}]
    found = collect(plain(tmp_path / "x.parquet", image=structs))
    assert found.ids == ["x.parquet/0", "x.parquet/1"]
    assert failure(found.images[0]).code == "missing" and failure(found.images[1]).code == "not-an-image"


def test_label_numbers_have_names_and_no_label_is_refused(tmp_path, photos):
    path = written(tmp_path / "x.parquet", photos)
    table = pq.read_table(path)
    for number, words in ((2, ("label 2 has no name", "2 classes")), (-1, ("ant/ant_0.png", "no label"))):
        labels = pa.array([number, *table["label"].to_pylist()[1:]])
        pq.write_table(table.set_column(1, "label", labels), path)
        refused(path, *words)


def test_damaged_and_missing_files_are_refused(tmp_path, photos):
    path = written(tmp_path / "x.parquet", photos)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-10], whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(content)
        refused(path, "x.parquet", "not a Parquet file")
    refused(tmp_path / "no.parquet", "there is no")
    shutil.copy(written(tmp_path / "y.parquet", photos, more=["x"] * 20), tmp_path / "z.parquet")
    written(path, photos)
    refused([path, tmp_path / "z.parquet"], "different columns", "'more'")


def test_damaged_pages_and_a_changed_file_are_failures(tmp_path, photos):
    path = written(tmp_path / "x.parquet", photos)
    content = bytearray(path.read_bytes())
    start = content.index(b"\x89PNG", len(content) // 2)
    content[start - 60 : start + 10] = b"\xff" * 70
    path.write_bytes(content)
    images = collect(path).images
    with pytest.raises(ImageError) as caught:
        for image in images:
            decode(image)
    assert caught.value.code in ("damaged", "not-an-image")
    decode(images[0])
    decode(images[-1])
    os.utime(path, ns=(1, 1))
    assert failure(images[-1]).code == "changed"


def test_a_value_that_a_dictionary_repeats_in_every_row_fills_no_memory(tmp_path, monkeypatch):
    value = save_noise(tmp_path / "x.png", seed=0).read_bytes()
    path = plain(tmp_path / "x.parquet", image=[value] * 1000, label=["x" * 1000] * 1000)
    assert path.stat().st_size < 20 * len(value)
    images = collect(path).images
    monkeypatch.setattr(tables, "_MAX_GROUP_BYTES", 100 * len(value))
    assert failure(images[0]).code == "too-large"
    monkeypatch.setattr(tables, "_MAX_GROUP_BYTES", 100_000)
    refused(path, "x.parquet", "100 kB")


def test_more_rows_than_bytes_and_large_row_groups_are_refused(tmp_path, photos, monkeypatch):
    path = plain(tmp_path / "x.parquet", image=[b""] * 100_000)
    refused(path, "100,000 images in", "B")
    monkeypatch.setattr(tables, "_MAX_GROUP_BYTES", 1000)
    refused(written(path, photos), "a row group takes", "smaller row groups")
