"""What a source contains if it is an archive or several: zip files, tar shards, Parquet files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featx.errors import SourceError
from featx.images.decoding import AnyImage
from featx.images.members import LocalFile, is_image
from featx.images.shards import expand_braces, samples_of, shard_names
from featx.images.tables import rows_of
from featx.images.zips import zip_members

_SEVERAL = {".tar", ".parquet"}  # endings of files that are given one or several at a time


@dataclass
class Contents:
    """The images of a source.

    kind : what the source is, and where its labels are, for messages
    origin : folder or archive that the names are relative to
    images, names : n images and their names
    labels : n labels, None where there is none; None as a whole if folders are the labels
    passed_over : number of other files
    columns : {name: n values}, one of which may be labels; None if the source has no columns
    """

    kind: str
    origin: Path
    images: Sequence[AnyImage]
    names: list[str]
    labels: Sequence[str | None] | None
    passed_over: int
    columns: dict[str, list[str | None]] | None = None


def contents_of(source: Path | Sequence[object]) -> Contents | None:
    """The contents of an archive, or of a folder, pattern or list of shards; None if the source is none of these.

    Raises
    ------
    SourceError
        An archive is missing, damaged or hostile.
    """
    if not isinstance(source, Path):
        paths = [os.fspath(path) for path in source if isinstance(path, str | os.PathLike)]
        kinds = {Path(path).suffix.lower() for path in paths}
        is_one = len(paths) == len(source) and len(kinds) == 1 and kinds <= _SEVERAL
        return _from_several(paths) if is_one else None
    if zipped := _zip_of(source):
        file, folder = zipped
        members, passed_over = zip_members(LocalFile(file), folder)
        names = [name for name, _ in members]
        kind = "a zip file: its class folders are the labels"
        return Contents(kind, source, [member for _, member in members], names, None, passed_over)
    if shards := _shards_of(source):
        return _from_several(shards, source if source.is_dir() else None)
    return None


def container_stamp(source: Path) -> object:
    """A value that differs once an archive, or a folder of shards, has changed."""
    zipped = _zip_of(source)
    files: Sequence[str | Path] = [zipped[0]] if zipped else _shards_of(source)
    return tuple((file, LocalFile(file).listed) for file in files)


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
    if source.is_dir():
        names = sorted(name for name in os.listdir(source) if not name.startswith("."))
        if any(is_image(name) or (source / name).is_dir() for name in names):
            return []
        kinds = {ending: [name for name in names if name.lower().endswith(ending)] for ending in sorted(_SEVERAL)}
        if all(kinds.values()):
            raise SourceError(f"{source} holds .parquet and .tar files; give those that are meant")
        return [str(source / name) for ending in kinds for name in kinds[ending]]
    return expand_braces(str(source)) if source.suffix.lower() in _SEVERAL else []


def _from_several(paths: Sequence[str], origin: Path | None = None) -> Contents:
    if origin is None:
        folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
        origin = Path(os.path.commonpath(folders))
    if Path(paths[0]).suffix.lower() == ".parquet":
        rows = rows_of([LocalFile(path) for path in paths], shard_names(paths))
        kind = "a Parquet file: its columns are the labels"
        if len(paths) == 1:
            origin = Path(paths[0])
        return Contents(kind, origin, rows.images, rows.names, None, 0, rows.columns)
    samples = samples_of([LocalFile(path) for path in paths], shard_names(paths))
    if not samples.images:
        raise SourceError(f"the shards in {origin} hold no images, which are named KEY.jpg, KEY.png, ...")
    kind = "a set of shards: their .cls or .json files are the labels"
    return Contents(kind, origin, samples.images, samples.names, samples.labels, samples.passed_over)
