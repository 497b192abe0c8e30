"""Images of a Hugging Face `datasets.Dataset`, or of a folder that its `save_to_disk` wrote.

Rows are read as Arrow stores them, so the library decodes nothing: an image is the bytes of its file, or a file that
the dataset names by its path.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featx.errors import ImageError, SourceError
from featx.images import limits
from featx.images.decoding import AnyImage
from featx.images.members import ContainingFile, Member, Stamp
from featx.images.tables import Rows, as_names, class_names, columns_of_text, image_column, texts
from featx.urls import is_url

_ROWS_AT_ONCE = 256
_SAVED, _SEVERAL_SAVED = ("dataset_info.json", "state.json"), "dataset_dict.json"


class _Dataset(ContainingFile):
    """A dataset; its rows do not change."""

    def __init__(self, path: str, rows: Any) -> None:
        super().__init__(path, (0, 0))
        self.rows = rows

    def stamp(self) -> Stamp | None:
        return self.listed

    def read_at(self, start: int, nbytes: int) -> bytes:
        raise AssertionError("a dataset is read by rows")


class DatasetImage(Member):
    """An image in a row of a dataset."""

    file: _Dataset

    def __init__(self, file: _Dataset, row: int) -> None:
        super().__init__(file, str(row))
        self._row = row

    def _content(self) -> bytes:
        try:
            value = _column(self.file.rows[self._row], "bytes")[0]
            if value.is_valid:
                limits.refuse_file(value.as_buffer().size)
                return value.as_py()
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # Arrow raises several types on damaged data
            raise ImageError("damaged", "its row in the dataset is damaged") from error
        raise ImageError("missing", "its row holds no image bytes")


def is_dataset(source: object) -> bool:
    """Whether a value is of the library; it is not imported for that."""
    return type(source).__module__.partition(".")[0] == "datasets"


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return all((folder / name).is_file() for name in _SAVED) or (folder / _SEVERAL_SAVED).is_file()


def is_saved_listing(paths: Sequence[str]) -> bool:
    """As `is_saved`, of the paths of the files in a folder at a URL."""
    return {*_SAVED} <= {*paths} or _SEVERAL_SAVED in paths


def saved_rows(folder: Path) -> tuple[Rows, Path]:
    """As `dataset_rows`, of a folder that `save_to_disk` wrote."""
    try:
        import datasets
    except ImportError as error:
        raise SourceError(f"{folder} is read by datasets; pip install 'featx[datasets]'") from error
    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise SourceError(f"{folder} is not what save_to_disk writes, or is damaged") from error
    rows, origin = dataset_rows(dataset, str(folder))
    return rows, origin or folder


def dataset_rows(dataset: Any, path: str = "") -> tuple[Rows, Path | None]:
    """The images of a dataset, and the folder that their names are relative to, if they are files.

    Parameters
    ----------
    dataset : datasets.Dataset
        An image's name is its path in the image column, if all have different ones, or else its row's number. Of files,
        it is the path from the folder that they have in common.
    path : str
        What precedes an image's number in messages.

    Raises
    ------
    SourceError
        It is not a Dataset, has no column of images, or its images are URLs.
    """
    where = path or "the dataset"
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "select_columns") or hasattr(dataset, "keys"):
        splits = f"; give one of them: {', '.join(map(repr, dataset))}" if hasattr(dataset, "keys") else ""
        raise SourceError(f"images are a datasets.Dataset; {where} is a {type(dataset).__name__}{splits}")
    if not hasattr(dataset, "__len__"):
        raise SourceError(
            f"{where} is an IterableDataset, which is read only once; load it without streaming, or give its files"
        )
    schema = dataset.features.arrow_schema
    try:
        name, is_struct = image_column(schema)
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from error
    arrow = dataset.with_format("arrow")
    rows = arrow.select_columns([name])
    kept, classes = columns_of_text(schema, name), class_names(schema)
    columns = {}
    for column in kept:
        values = arrow.select_columns([column])[:].column(0).to_pylist()
        columns[column] = texts(values, classes.get(column))
    file = _Dataset(where, rows)
    paths, have_bytes = _paths(rows, is_struct)
    if urls := [each for each, has in zip(paths, have_bytes, strict=True) if not has and is_url(each)]:
        raise SourceError(f"{where}: its column {name!r} holds URLs, such as {urls[0]}; download the images")
    if not any(have_bytes) and all(paths):
        files = [os.path.abspath(str(each)) for each in paths]
        folder = Path(os.path.commonpath([os.path.dirname(each) for each in files]))
        names = [Path(each).relative_to(folder).as_posix() for each in files]
        if len(set(names)) == len(names):
            return Rows([Path(each) for each in files], names, columns), folder
    images: Sequence[AnyImage] = [
        DatasetImage(file, row) if has or not each else Path(each)
        for row, (each, has) in enumerate(zip(paths, have_bytes, strict=True))
    ]
    return Rows(images, as_names(paths) or [str(row) for row in range(len(images))], columns), None


def _paths(rows: Any, is_struct: bool) -> tuple[list[str | None], list[bool]]:
    """The paths in the image column, and whether there are bytes beside them."""
    paths: list[str | None] = []
    have_bytes: list[bool] = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        have_bytes += _column(part, "bytes").is_valid().to_pylist()
        has_path = is_struct and part.schema.field(0).type.get_field_index("path") >= 0
        paths += _column(part, "path").to_pylist() if has_path else [None] * len(part)
    return paths, have_bytes


def _column(part: Any, field: str) -> Any:
    """The image column of some rows, or a field of it if it holds structs."""
    import pyarrow.compute

    column = part.column(0)
    return pyarrow.compute.struct_field(column, field) if pyarrow.types.is_struct(column.type) else column
