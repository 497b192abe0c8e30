"""What a source contains if it is an archive or several, a dataset or a URL: zip files, tar shards, tables, objects."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from featx.errors import ImageError, SourceError
from featx.images.decoding import AnyImage
from featx.images.hugging_face import dataset_rows, is_dataset, is_saved, is_saved_listing, saved_rows
from featx.images.listings import Listing
from featx.images.members import ContainingFile, LocalFile, Slice, is_image
from featx.images.remote import RemotePath
from featx.images.shards import expand_braces, samples_of, shard_names
from featx.images.tables import Rows, rows_of
from featx.images.zips import zip_members
from featx.manifest import read_manifest
from featx.urls import REQUESTS, is_url, shown

_SEVERAL = {".tar", ".parquet"}  # endings of files that are given one or several at a time


@dataclass
class Contents:
    """The images of a source.

    kind : what the source is, and where its labels are, for messages
    origin : folder or archive (a URL if it is a str) that the names are relative to, or None
    images, names : n images and their names
    labels : n labels, None where there is none; None as a whole if folders are the labels
    passed_over : number of other files
    columns : {name: n values}, one of which may be labels; None if the source has no columns
    """

    kind: str
    origin: Path | str | None
    images: Sequence[AnyImage]
    names: list[str]
    labels: Sequence[str | None] | None
    passed_over: int
    columns: dict[str, list[str | None]] | None = None
    is_zip: bool = False


def contents_of(
    source: object, on_phase: Callable[[str], None] = lambda phase: None, listing: Listing | None = None
) -> Contents | None:
    """The contents of an archive, of a folder, pattern or list of shards, or of a URL; None if it is none of these.

    Parameters
    ----------
    on_phase : callable
        Called with a few words while remote folders are listed.
    listing : Listing, optional
        What an unfinished run has found at the URLs; otherwise it is filled.

    Raises
    ------
    SourceError
        An archive is missing, damaged or hostile, or a URL cannot be read.
    """
    listing = Listing("") if listing is None else listing
    if isinstance(source, str) and is_url(source):
        return _from_url(source, on_phase, listing)
    if is_dataset(source):
        return _from_rows(*dataset_rows(source))
    if not isinstance(source, str | os.PathLike | list | tuple):
        return None
    if not isinstance(source, str | os.PathLike):
        paths = [os.fspath(path) for path in source if isinstance(path, str | os.PathLike)]
        kinds = {_ending(path) for path in paths}
        is_one = len(paths) == len(source) and len(kinds) == 1 and kinds <= _SEVERAL
        return _from_several(_files(paths, listing), None, on_phase) if is_one else None
    source = Path(source)
    if zipped := _zip_of(source):
        return _from_zip(LocalFile(zipped[0]), zipped[1], source)
    if is_saved(source):
        return _from_rows(*saved_rows(source))
    if shards := _shards_of(source):
        return _from_several([LocalFile(path) for path in shards], source if source.is_dir() else None, on_phase)
    return None


def container_stamp(source: Path) -> object:
    """A value that differs once an archive, or a folder of shards, has changed."""
    zipped = _zip_of(source)
    files: Sequence[str | Path] = [zipped[0]] if zipped else sorted(source.glob("*.arrow")) or _shards_of(source)
    return tuple((file, LocalFile(file).listed) for file in files)


def _from_url(url: str, on_phase: Callable[[str], None], listing: Listing) -> Contents:
    name = shown(url).rstrip("/")
    if _ending(name) in _SEVERAL:
        return _from_several(_files(expand_braces(url), listing), None, on_phase)
    if zipped := re.match(r"(.*?\.zip)(?:/(.*?))?/?(\?.*)?$", url, re.IGNORECASE):
        archive, folder, query = zipped.groups()
        return _from_zip(_file(archive + (query or ""), listing), f"{folder}/" if folder else "", name)
    at = RemotePath(url, listing)
    if (file := at.file()) is not None:
        return Contents("a single image", name, [Slice(file, "", 0, file.size)], [name.rpartition("/")[2]], [None], 0)
    objects = at.folder(on_phase)
    if is_saved_listing(objects.paths):
        raise SourceError(f"{name} is a folder that save_to_disk wrote; download it first, or write Parquet files")
    are_images = [i for i, path in enumerate(objects.paths) if is_image(path)]
    shards = [i for i, path in enumerate(objects.paths) if "/" not in path and _ending(path) in _SEVERAL]
    if not are_images and shards:
        return _from_several([objects.file(i) for i in shards], name, on_phase)
    images = objects.some(are_images)
    kind = "a folder: its class folders are the labels"
    return Contents(kind, name, images, images.paths, None, len(objects) - len(images))


def remote_manifest(
    url: str, path_column: str, on_phase: Callable[[str], None], listing: Listing
) -> tuple[dict[str, list[str]], Callable[[str], AnyImage | None]]:
    """The table of a CSV file that a URL names, and a function from a path in it to the image or None."""
    file = _file(url, listing)
    try:
        table = read_manifest(file.path, file.read_at(0, file.size))
    except ImageError as error:
        raise SourceError(f"cannot read {file.path}: {error}") from error
    folder, _, query = url.partition("?")
    at = RemotePath("?".join([folder.rpartition("/")[0], *([query] if query else [])]), listing)
    paths = [path.removeprefix("./") for path in table.get(path_column, ())]
    inside = (path for path in paths if {"", ".", ".."}.isdisjoint(path.split("/")))
    objects = at.files(inside) if at.is_web else at.folder(on_phase)
    number_of = {path: number for number, path in enumerate(objects.paths)}

    def image(path: str) -> AnyImage | None:
        number = number_of.get(path.removeprefix("./"))
        return None if number is None else objects[number]

    return table, image


def _file(path: str, listing: Listing) -> ContainingFile:
    if not is_url(path):
        return LocalFile(path)
    file = RemotePath(path, listing).file()
    if file is None:
        raise SourceError(f"{shown(path)} is not a file")
    return file


def _files(paths: Sequence[str], listing: Listing) -> list[ContainingFile]:
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="featx-list") as pool:
        return list(pool.map(lambda path: _file(path, listing), paths))


def _ending(path: str) -> str:
    return Path(shown(path) if is_url(path) else path).suffix.lower()


def _zip_of(source: Path) -> tuple[Path, str] | None:
    """A zip file and the folder inside it that a path names: "photos.zip", "photos.zip/train"."""
    if ".zip" not in str(source).lower():
        return None
    for file in (source, *source.parents):
        if file.suffix.lower() == ".zip" and file.is_file():
            folder = source.relative_to(file).as_posix()
            return file, "" if folder == "." else f"{folder}/"
    return None


def _shards_of(source: Path) -> list[str]:
    """The tar or Parquet files that a path names: one, a pattern, or a folder that has no images beside them."""
    shards = []
    try:
        with os.scandir(source) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_image(entry.name) or entry.is_dir():
                    return []
                if _ending(entry.name) in _SEVERAL:
                    shards.append(entry.path)
    except (NotADirectoryError, FileNotFoundError):
        return expand_braces(str(source)) if _ending(str(source)) in _SEVERAL else []
    except (OSError, ValueError):  # listing its images tells why
        return []
    return sorted(shards)


def _from_zip(file: ContainingFile, folder: str, origin: Path | str) -> Contents:
    members, passed_over = zip_members(file, folder)
    names = [name for name, _ in members]
    kind = "a zip file: its class folders are the labels"
    return Contents(kind, origin, [member for _, member in members], names, None, passed_over, is_zip=True)


def _from_rows(rows: Rows, origin: Path | None) -> Contents:
    kind = "a dataset: its columns are the labels"
    return Contents(kind, origin, rows.images, rows.names, None, 0, columns=rows.columns)


def _from_several(
    files: Sequence[ContainingFile], origin: Path | str | None, on_phase: Callable[[str], None]
) -> Contents:
    paths = [file.path for file in files]
    kinds = {_ending(path) for path in paths}
    if len(kinds) > 1:
        raise SourceError(f"{origin} holds .parquet and .tar files; give those that are meant")
    if origin is None:
        origin = _common_folder(paths)
    if kinds == {".parquet"}:
        rows = rows_of(files, shard_names(paths))
        where = files[0].path if is_url(paths[0]) else Path(paths[0])
        kind = "a Parquet file: its columns are the labels"
        return Contents(
            kind, where if len(paths) == 1 else origin, rows.images, rows.names, None, 0, columns=rows.columns
        )
    samples = samples_of(files, shard_names(paths), on_phase)
    if not samples.images:
        raise SourceError(f"the shards in {origin} hold no images, which are named KEY.jpg, KEY.png, ...")
    kind = "a set of shards: their .cls or .json files are the labels"
    return Contents(kind, origin, samples.images, samples.names, samples.labels, samples.passed_over)


def _common_folder(paths: Sequence[str]) -> Path | str:
    if not is_url(paths[0]):
        return Path(os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]))
    parts = [path.split("/")[:-1] for path in paths]
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return "/".join(column[0] for column in shared)
