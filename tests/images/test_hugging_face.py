"""A `datasets.Dataset` gives the images of the folder that it was made of, as does what `save_to_disk` wrote."""

from __future__ import annotations

import pickle
import sys

import datasets
import pytest
import webdataset
from collected import failure, refused
from helpers import class_folders

from featx.images import collect, content_digest, image_at

NAMES = ["ant", "bee"]
LABEL = datasets.ClassLabel(names=NAMES)


@pytest.fixture(autouse=True, scope="module")
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def photos(tmp_path):
    return class_folders(tmp_path / "photos", n=5)


def dataset_of(root, *, in_memory=True, decode=True, with_paths=True, **columns):
    files = sorted(root.rglob("*.png"))
    images = [
        {"bytes": file.read_bytes(), "path": file.relative_to(root).as_posix() if with_paths else None}
        if in_memory
        else str(file)
        for file in files
    ]
    features = {"image": datasets.Image(decode=decode), "label": LABEL}
    features |= {name: datasets.Value("string") for name in columns}
    labels = [NAMES.index(file.parent.name) for file in files]
    return datasets.Dataset.from_dict({"image": images, "label": labels, **columns}, datasets.Features(features))


def digests(images):
    return [content_digest(image) for image in images]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("decode", [True, False])
def test_ids_labels_columns_and_content_are_those_of_the_folder(photos, in_memory, decode):
    folder = collect(photos)
    found = collect(dataset_of(photos, in_memory=in_memory, decode=decode, site=list("abcdefghij")))
    assert found.ids == folder.ids and found.y.tolist() == folder.y.tolist()
    assert found.columns["site"].tolist() == list("abcdefghij")
    assert digests(found.images) == digests(folder.images)
    assert digests(pickle.loads(pickle.dumps(list(found.images)))) == digests(folder.images)
    assert found.origin == (None if in_memory else photos)


def test_rows_that_were_selected_are_in_their_order(photos):
    folder, chosen = collect(photos), [7, 2, 5]
    found = collect(dataset_of(photos, with_paths=False).select(chosen), "label")
    assert found.ids == ["0", "1", "2"] and found.y.tolist() == folder.y[chosen].tolist()
    assert digests(found.images) == [content_digest(folder.images[i]) for i in chosen]


def test_a_saved_dataset_is_a_source_and_its_images_are_found_again(photos, tmp_path):
    dataset_of(photos).save_to_disk(tmp_path / "saved")
    found, folder = collect(tmp_path / "saved"), collect(photos)
    assert found.ids == [path.name for path in folder.images]  # save_to_disk drops the folders
    assert found.origin == tmp_path / "saved" and digests(found.images) == digests(folder.images)
    assert content_digest(image_at(found.origin, found.ids[3])) == content_digest(folder.images[3])
    datasets.DatasetDict(train=dataset_of(photos)).save_to_disk(tmp_path / "several")
    refused(tmp_path / "several", "DatasetDict", "give one of them: 'train'")
    assert collect(tmp_path / "several" / "train").ids == found.ids
    for path in (tmp_path / "saved").iterdir():
        if path.suffix == ".arrow":
            path.write_bytes(b"damaged")
    refused(tmp_path / "saved", "is not what save_to_disk writes")


def test_what_is_no_dataset_of_images_is_refused(photos, tmp_path, monkeypatch):
    refused(dataset_of(photos).to_iterable_dataset(), "IterableDataset")
    refused(datasets.DatasetDict(a=dataset_of(photos), b=dataset_of(photos)), "give one of them: 'a', 'b'")
    refused(datasets.Dataset.from_dict({"text": ["a"]}), "no column of image bytes", "'text'")
    refused(datasets.Dataset.from_dict({"image": ["http://x/a.jpg"]}), "'image'", "URLs")
    features = datasets.Features(image=datasets.Image(decode=False))
    urls = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": "http://x/a.jpg"}]}, features)
    refused(urls, "holds URLs, such as http://x/a.jpg", "download")
    refused(dataset_of(photos), "no column 'site'", labels="site")
    dataset_of(photos).save_to_disk(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path / "saved", "pip install 'featx[datasets]'")


def test_an_image_that_is_not_there_is_a_failure(photos):
    features = datasets.Features(image=datasets.Image(decode=False))
    rows = [{"bytes": b"", "path": None}, None, {"bytes": None, "path": "/none.png"}]
    images = collect(datasets.Dataset.from_dict({"image": rows}, features)).images
    assert [failure(image).code for image in images] == ["not-an-image", "missing", "missing"]


def test_shards_that_webdataset_writes_are_read(photos, tmp_path):
    folder = collect(photos)
    with webdataset.ShardWriter(str(tmp_path / "%03d.tar"), maxcount=4, verbose=0) as shards:
        for path, label in zip(folder.images, folder.y.tolist(), strict=True):
            shards.write({"__key__": path.stem, "png": path.read_bytes(), "cls": label.encode()})
    found = collect(str(tmp_path / "{000..002}.tar"))
    assert digests(found.images) == digests(folder.images) and found.y.tolist() == folder.y.tolist()
    assert found.ids[4] == f"001.tar/{folder.images[4].stem}"
