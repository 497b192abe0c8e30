"""Builds a `Collection` from a folder, an archive, a list, a CSV manifest or arrays: the ordered images of a run.

Each image has an id and, if there are any, a label and column values. Nothing is decoded here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featx.errors import ImageError, Parameter, SourceError, file_of_labels, listed, nearest
from featx.images.containers import Contents, container_stamp, contents_of, remote_manifest
from featx.images.decoding import AnyImage
from featx.images.listings import Listing
from featx.images.members import EXTENSIONS, is_image
from featx.manifest import as_labels, column, read_manifest, text_array
from featx.urls import is_url, shown, url_of

_SPLIT_NAMES = {"train", "test", "val", "valid", "validation", "training", "testing"}


@dataclass(frozen=True)
class Collection:
    """The n ordered images of a run.

    Attributes
    ----------
    images : n paths, Members, uint8 arrays or PIL images
        An ImageError takes the place of a file whose name is not UTF-8.
    ids : list of n different str
        Names of the images in the store.
    y : (n,) str or float64, or None
        Class names, or numbers.
    columns : {name: (n,) str}
        The other columns of the manifest; see `manifest.text_array`.
    origin : Path, str or None
        The folder or archive, or its URL, that ids are relative to.
    passed_over : int
        Number of files in the folder or archive whose names are not those of images.
    listing : str or None
        What was found at URLs; `collect` takes it again, so that a resumed run has the same images.
    """

    images: Sequence[AnyImage]
    ids: list[str]
    y: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    origin: Path | str | None = None
    passed_over: int = 0
    listing: str | None = None

    def __post_init__(self) -> None:
        if not len(self.images):
            raise SourceError("there are no images to work on; the source is empty")
        if len(self.ids) != len(self.images):
            raise SourceError(f"every image needs one id: {len(self.images):,} images, {len(self.ids):,} ids")
        for name in [*self.ids, str(self.origin)]:
            _check_utf8(name)
        if len(set(self.ids)) < len(self.ids):
            seen: set[str] = set()
            repeated = [name for name in self.ids if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
            raise SourceError(f"every image is needed once; repeated: {listed(repeated)}; drop the repeats")
        if self.y is not None and len(self.y) != len(self.images):
            raise SourceError(f"one label per image is needed: {len(self.images):,} images, {len(self.y):,} labels")


def collect(
    source: object,
    labels: Sequence[object] | np.ndarray | str | None = None,
    *,
    ids: Sequence[str] | None = None,
    target: str = "class",
    path_column: str = "path",
    on_phase: Callable[[str], None] = lambda phase: None,
    listing: str | None = None,
) -> Collection:
    """Collect the images that `source` names.

    Parameters
    ----------
    source : path, or sequence of paths, uint8 arrays (h, w[, 3]) or PIL images, or uint8 array (n, h, w[, 3])
        A folder or a `.zip` file contains class folders, or images without labels. A `.csv` file has a column of paths,
        relative to the file's own folder. WebDataset shards are a `.tar` file, several ("{000..099}.tar" or a list), or
        a folder of them; so are Parquet files with a column of image bytes. Each may be a URL that fsspec knows. A
        `datasets.Dataset` has a column of images.
    labels : sequence of n labels, or for a CSV or Parquet file or a Dataset the name of a column, optional
        By default the class folders of a folder, or the column "label" if there is one.
    ids : sequence of n str, optional
        For a sequence of images; by default the paths, or the numbers of other images.
    target : "class" or "numeric"
        Whether labels are class names or numbers.
    path_column : str
        A CSV file's column of image paths.
    on_phase : callable
        Called with a few words while remote folders are listed.
    listing : str, optional
        `Collection.listing` of an unfinished run. If it is of this source, the URLs are not listed again.

    Raises
    ------
    SourceError
        The source does not exist or has no images, labels do not fit, an id is repeated, or the folder's name or one of
        `ids` is not UTF-8.
    """
    if isinstance(source, Collection):
        return source
    if isinstance(source, str | os.PathLike):
        source = url_of(source) or source
    urls = [str(each) for each in (source if isinstance(source, list | tuple) else [source]) if is_url(each)]
    found = Listing(" ".join(map(shown, urls)), listing if urls else None)
    try:
        images = _collected(source, labels, ids, target, path_column, on_phase, found)
    except SourceError as error:
        if not found.is_kept:
            raise
        raise SourceError(
            *error.parts,
            "; an unfinished run has begun with what was there before: finish it with that, or discard it with ",
            Parameter("discard", True),
        ) from error
    return images if found.text is None else replace(images, listing=found.text)


def _collected(
    source: object,
    labels: Any,
    ids: Any,
    target: str,
    path_column: str,
    on_phase: Callable[[str], None],
    listing: Listing,
) -> Collection:
    if isinstance(source, str) and is_url(source) and shown(source).lower().endswith(".csv"):
        label_column = _column_name(shown(source), labels, ids)
        return _from_manifest(source, path_column, label_column, target, on_phase, listing)
    contents = contents_of(source, on_phase, listing)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if contents is None and path.is_dir():
            contents = _folder_contents(path)
        if contents is not None:
            return _from_contents(contents, labels, ids, target)
        if not path.exists():
            raise SourceError(f"there is no {path}{_neighbours(path)}")
        if path.suffix.lower() == ".csv":
            return _from_manifest(path, path_column, _column_name(path, labels, ids), target)
        raise SourceError(
            f"{path} is a single file; give a folder, an archive, or a .csv file of paths with a first line 'path'"
        )
    if contents is not None:
        return _from_contents(contents, labels, ids, target)
    if isinstance(labels, str):
        raise SourceError(f"labels are one value per image; got the string {labels!r}")
    return _from_sequence(source, labels, ids, target)


def files(paths: Sequence[str | os.PathLike]) -> list[Any]:
    """Image files, and all images inside folders and archives, in the order given.

    Raises
    ------
    SourceError
        A path does not exist, or a folder or archive contains no images.
    """
    images: list[Any] = []
    for source in paths:
        contents, path = contents_of(source), Path(source)
        if contents is None and not path.exists():
            raise SourceError(f"there is no {path}{_neighbours(path)}")
        inside: Sequence[AnyImage] = (
            contents.images if contents is not None else _walk(path)[0] if path.is_dir() else [path]
        )
        if not inside:
            raise SourceError(f"{shown(str(source))} holds no images")
        images += inside
    return images


@lru_cache(maxsize=16)
def _members(origin: str, listed: object) -> dict[str, AnyImage]:
    contents = contents_of(Path(origin))
    return {} if contents is None else dict(zip(contents.names, contents.images, strict=True))


def image_at(origin: str | os.PathLike | None, name: str) -> AnyImage:
    """The image of an id in the folder or archive that ids are relative to; a path if there is none.

    Parameters
    ----------
    origin : path or None
        `Recipe.origin`. Without one, ids may be whole paths.
    name : str
    """
    path = Path(origin or "", name)
    if origin is None or path.is_file() or is_url(origin):  # a store must not make featx open a URL
        return path
    shards = (folder for folder in path.parents if folder.suffix in (".tar", ".parquet") and folder.is_file())
    if Path(origin).is_dir() and (shard := next(shards, None)):
        origin, name = shard, path.relative_to(shard.parent).as_posix()
    try:
        return _members(os.fspath(origin), container_stamp(Path(origin))).get(name, path)
    except SourceError:
        return path


def _from_contents(contents: Contents, labels: object, ids: object, target: str) -> Collection:
    where, images, names = contents.origin or "the dataset", contents.images, contents.names
    if contents.columns is not None and ids is None and (labels is None or isinstance(labels, str)):
        return _from_columns(contents, labels, target)
    if labels is not None or ids is not None:
        raise SourceError(
            f"{where} is {contents.kind}; for others use a CSV file of paths and labels as the source",
            *file_of_labels(labels),
        )
    if not images:
        raise SourceError(
            f"{where} holds no images (of {contents.passed_over:,} files none ends in {', '.join(sorted(EXTENSIONS))})"
        )
    images, names = _named(images, names)
    if contents.labels is not None:
        has_labels = any(label is not None for label in contents.labels)
        y = as_labels(contents.labels, target, names) if has_labels else None
        return Collection(images, names, y, origin=where, passed_over=contents.passed_over)
    loose = [name for name in names if "/" not in name]
    if len(loose) == len(names):
        return Collection(images, names, origin=where, passed_over=contents.passed_over)
    if loose:
        raise SourceError(
            f"{where} holds class folders and loose images beside them ({listed(loose)}); move the loose images"
        )
    y = as_labels([name.split("/")[0] for name in names], target, names)
    if target == "class" and {str(name).lower() for name in np.unique(y)} <= _SPLIT_NAMES:
        raise SourceError(
            f"the folders in {where} are splits, not classes ({listed(np.unique(y).tolist())}); give one of them"
        )
    if contents.is_zip and len(set(y.tolist())) == 1 and all(name.count("/") > 1 for name in names):
        raise SourceError(f"all images in {where} lie in folders of {str(y[0])!r}; give {where}/{y[0]} as the source")
    return Collection(images, names, y, origin=where, passed_over=contents.passed_over)


def _from_columns(contents: Contents, label_column: str | None, target: str) -> Collection:
    where = contents.origin or "the dataset"
    columns: dict[str, Any] = contents.columns or {}
    if not contents.images:
        raise SourceError(f"{where} holds no images; it has no rows")
    images, names = _named(contents.images, contents.names)
    label_column = label_column or ("label" if "label" in columns else None)
    values = None if label_column is None else column(columns, label_column, where, "labels")
    has_labels = values is not None and any(value is not None for value in values)
    y = as_labels(values or [], target, names) if has_labels else None
    others = {
        name: text_array([value or "" for value in texts]) for name, texts in columns.items() if name != label_column
    }
    return Collection(images, names, y, others, origin=contents.origin)


def _folder_contents(root: Path) -> Contents:
    files, passed_over = _walk(root)
    names = [file.relative_to(root).as_posix() for file in files]
    return Contents("a folder: its class folders are the labels", root, files, names, None, passed_over)


def _walk(root: Path) -> tuple[list[Path], int]:
    """All images under a folder, sorted by path, and the number of other files; hidden files are ignored."""
    files, passed_over, visited = [], 0, set()
    for folder, folders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # a link to a folder that was listed before
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                passed_over += not is_image(name)
                if is_image(name):
                    files.append(Path(folder, name))
    return sorted(files), passed_over


def _refuse_folder(error: OSError) -> None:
    raise SourceError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def _column_name(path: object, labels: object, ids: object) -> str | None:
    """The label column of a CSV file that `labels` names."""
    if ids is not None or not (labels is None or isinstance(labels, str)):
        raise SourceError(f"{path} is a CSV file: give the name of its label column as labels")
    return labels


def _from_manifest(
    path: Path | str,
    path_column: str,
    label_column: str | None,
    target: str,
    on_phase: Callable[[str], None] = lambda phase: None,
    listing: Listing | None = None,
) -> Collection:
    if isinstance(path, str):
        table, image_of = remote_manifest(path, path_column, on_phase, listing or Listing(""))
        path = shown(path)
    else:
        table = read_manifest(path)
    names = column(table, path_column, path, "path_column")
    label_column = label_column or ("label" if "label" in table else None)
    y = None if label_column is None else as_labels(column(table, label_column, path, "labels"), target, names)
    others = {key: text_array(values) for key, values in table.items() if key not in (path_column, label_column)}
    if isinstance(path, str):
        missing = ImageError("missing", "there is no such file")
        objects = [image_of(name) or missing for name in names]
        if all(image is missing for image in objects):
            raise SourceError(f"none of the {len(names):,} images in {path} exists; the first would be {names[0]!r}")
        return Collection(objects, names, y, others, origin=path.rpartition("/")[0])
    files = [path.parent / name for name in names]
    if not any(file.exists() for file in files):
        raise SourceError(f"none of the {len(files):,} images in {path} exists; the first would be {files[0]}")
    return Collection(files, names, y, others, origin=path.parent)


def _from_sequence(source: object, labels: object, ids: Sequence[str] | None, target: str) -> Collection:
    if (
        isinstance(source, np.ndarray)
        and source.dtype == np.uint8
        and source.ndim < 4
        and source.shape[2:] in ((), (3,))
    ):
        raise SourceError(f"an array of images is uint8 of shape (n, h, w) or (n, h, w, 3); got one of {source.shape}")
    if not isinstance(source, Sequence | np.ndarray):
        raise SourceError(f"images are a folder, a CSV file, a list or an array; got {type(source).__name__}")
    images = list(source)
    wrong = [image for image in images if not isinstance(image, str | os.PathLike | np.ndarray | Image.Image)]
    if wrong:
        raise SourceError(f"an image is a path, a uint8 array or a PIL image; got {type(wrong[0]).__name__}")
    if ids is None:
        ids = [
            Path(image).as_posix() if isinstance(image, str | os.PathLike) else str(number)
            for number, image in enumerate(images)
        ]
        named, ids = _named(images, ids)
        images = list(named)
    elif isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise SourceError(f"ids is a list of one name per image; got {ids!r}")
    y = None if labels is None else as_labels(labels, target, ids)  # type: ignore[arg-type]
    return Collection(images, list(map(str, ids)), y)


def _named(images: Sequence[AnyImage], names: Sequence[str]) -> tuple[Sequence[AnyImage], list[str]]:
    r"""Images and their ids. A store cannot contain a name that is not UTF-8: such a file counts as unreadable, and its
    id is the name with escapes, "caf\udce9.png".
    """
    if all(map(_is_utf8, names)):
        return images, list(names)
    ids = [name.encode(errors="backslashreplace").decode() for name in names]
    misnamed = ImageError("unreadable", "its name is not UTF-8; rename it")
    return [image if name == id_ else misnamed for image, name, id_ in zip(images, names, ids, strict=True)], ids


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_utf8(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"names must be UTF-8; rename {name!r}") from error


def _neighbours(path: Path) -> str:
    siblings = os.listdir(path.parent) if path.parent.is_dir() else []
    return nearest(path.name, siblings)
