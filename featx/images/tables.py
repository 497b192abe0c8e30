"""Images in a column of Parquet files: bytes, or structs of bytes and a path as Hugging Face `datasets` writes them.

The other columns are read when the files are listed. Images are read by row group, and the groups that the threads are
at are kept, so that each is read once in a run.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from featx.errors import FeatxError, ImageError, SourceError, listed, readable
from featx.images import limits
from featx.images.decoding import AnyImage
from featx.images.members import ContainingFile, Member, refuse_name, unpickled

_KEPT_BYTES = 2**29  # of row groups; two are always kept
_MAX_GROUP_BYTES = 2**32
_IMAGES_AT_ONCE, _TEXTS_AT_ONCE = 16, 4096  # rows decoded before their size is known
_NAMES = ("image", "img", "picture", "photo")  # which of several image columns is meant


@dataclass
class Rows:
    """Images of a table, with names and the columns of text, numbers and truth values.

    columns : {name: n str or None}
    """

    images: Sequence[AnyImage]
    names: list[str]
    columns: dict[str, list[str | None]]


class _Table:
    """A Parquet file; its row groups are read by one thread at a time."""

    def __init__(self, file: ContainingFile) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return unpickled, (_Table, self.file)

    @cached_property
    def parquet(self) -> Any:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(self.file.opened())

    @cached_property
    def image_column(self) -> tuple[str, bool]:
        """The name of the column of images, and whether it holds structs."""
        return image_column(self.parquet.schema_arrow)

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each row group, and the number of rows."""
        groups = range(self.parquet.num_row_groups)
        return [0, *accumulate(self.parquet.metadata.row_group(group).num_rows for group in groups)]

    def read(self, columns: list[str], rows_at_once: int, groups: list[int]) -> Any:
        """Some columns as a table; raises ImageError if they take more memory than a row group may."""
        import pyarrow

        batches, nbytes = [], 0  # a small file may repeat a large value in every row
        for batch in self.parquet.iter_batches(rows_at_once, groups, columns):
            batches.append(batch)
            nbytes += batch.nbytes
            if nbytes > _MAX_GROUP_BYTES:
                raise ImageError("too-large", f"its rows take more than the {readable(_MAX_GROUP_BYTES)} that are read")
        return pyarrow.Table.from_batches(batches)

    def group(self, number: int) -> Any:
        """The images of a row group, (rows,) binary."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            name, is_struct = self.image_column
            leaf = f"{name}.bytes" if is_struct else name
            column = self.read([leaf], _IMAGES_AT_ONCE, [number]).column(0)
            if is_struct:
                import pyarrow.compute

                column = pyarrow.compute.struct_field(column, "bytes")
            self._kept[number] = column
            while len(self._kept) > 2 and sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
            return column


class TableImage(Member):
    """An image in a row of a Parquet file."""

    def __init__(self, table: _Table, group: int, row: int, number: int) -> None:
        super().__init__(table.file, str(number))
        self._table, self._group, self._row = table, group, row

    def _content(self) -> bytes:
        try:
            value = self._table.group(self._group)[self._row]
            if value.is_valid:
                limits.refuse_file(value.as_buffer().size)
                return value.as_py()
        except (FeatxError, MemoryError):
            raise
        except Exception as error:  # Arrow raises several types on damaged data
            raise ImageError("damaged", "its row group in the Parquet file is damaged") from error
        raise ImageError("missing", "its row holds no image bytes")


def rows_of(files: Sequence[ContainingFile], names: Sequence[str]) -> Rows:
    """The images of Parquet files, in the order of the files and of their rows.

    Parameters
    ----------
    names : of the files. An image's name is its path in the image column, if all have different ones; otherwise
        "file/row".

    Raises
    ------
    SourceError
        pyarrow is not installed; a file is not Parquet, or has other columns than the first; there is no column of
        image bytes; a row group is larger than memory should hold.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise SourceError("Parquet files are read by pyarrow; pip install 'featx[parquet]'") from error
    images: list[Member] = []
    numbered: list[str] = []
    paths: list[str | None] = []
    columns: dict[str, list[str | None]] = {}
    for file, file_name in zip(files, names, strict=True):
        table = _Table(file)
        try:
            own_paths, own_columns = _listed(table)
        except (ImageError, SourceError) as error:
            if file.path in str(error):
                raise
            raise SourceError(f"cannot read {file.path}: {error}") from error
        except Exception as error:
            raise SourceError(f"{file.path} is not a Parquet file, or is damaged") from error
        if images and own_columns.keys() != columns.keys():
            differing = sorted(own_columns.keys() ^ columns.keys())
            raise SourceError(f"{file.path} and {files[0].path} have different columns: {listed(differing)}")
        for group, (first, last) in enumerate(zip(table.starts, table.starts[1:], strict=False)):
            images += [TableImage(table, group, row - first, row) for row in range(first, last)]
        numbered += [f"{file_name}/{row}" for row in range(table.starts[-1])]
        paths += own_paths
        for name, values in own_columns.items():
            columns.setdefault(name, []).extend(values)
    return Rows(images, as_names(paths) or numbered, columns)


def as_names(paths: Sequence[str | None]) -> list[str] | None:
    """The paths, if all are there, different, and plain relative paths."""
    given = [path for path in paths if path]
    if len(set(given)) < len(paths):
        return None
    try:
        for path in given:
            refuse_name("", path)
    except SourceError:
        return None
    return given


def _listed(table: _Table) -> tuple[list[str | None], dict[str, list[str | None]]]:
    """The paths of the images, None where there is none, and the other columns."""

    metadata, schema = table.parquet.metadata, table.parquet.schema_arrow
    if metadata.num_rows > table.file.size:
        raise SourceError(f"it claims {metadata.num_rows:,} images in {readable(table.file.size)}")
    name, is_struct = table.image_column
    for group in range(metadata.num_row_groups):
        nbytes = metadata.row_group(group).total_byte_size
        if nbytes > _MAX_GROUP_BYTES:
            raise SourceError(
                f"a row group takes {readable(nbytes)}, and at most {readable(_MAX_GROUP_BYTES)} are read; write it "
                "anew with smaller row groups"
            )
    kept = columns_of_text(schema, name)
    has_path = is_struct and schema.field(name).type.get_field_index("path") >= 0
    if not metadata.num_rows and not table.starts[-1]:
        return [], {column: [] for column in kept}
    groups = list(range(metadata.num_row_groups))
    columns_read = [*kept, *([f"{name}.path"] if has_path else [])]
    read: Any = table.read(columns_read, _TEXTS_AT_ONCE, groups) if columns_read else None
    counts = {metadata.num_rows, table.starts[-1], metadata.num_rows if read is None else read.num_rows}
    if len(counts) > 1 or table.starts != sorted(table.starts):
        raise SourceError(f"its row groups and columns differ in their number of rows: {listed(sorted(counts))}")
    classes = class_names(schema)
    columns = {column: texts(read.column(column).to_pylist(), classes.get(column)) for column in kept}
    structs = read.column(name).to_pylist() if has_path else []
    paths = [None if value is None else value["path"] for value in structs]
    return paths or [None] * metadata.num_rows, columns


def columns_of_text(schema: Any, image_column: str) -> list[str]:
    """The names of the columns of text, numbers and truth values."""
    from pyarrow import types

    is_kept = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return [
        field.name for field in schema if field.name != image_column and any(is_kind(field.type) for is_kind in is_kept)
    ]


def texts(values: list[Any], names: list[str] | None) -> list[str | None]:
    """The values of a column, or the names of its classes."""
    if names is None:
        return [None if value is None else str(value) for value in values]
    wrong = [value for value in values if value is not None and not -1 <= value < len(names)]
    if wrong:
        raise SourceError(f"label {wrong[0]} has no name; the schema names {len(names):,} classes")
    return [None if value is None or value < 0 else names[value] for value in values]  # -1: no label


def class_names(schema: Any) -> dict[str, list[str]]:
    """The names of the classes of each ClassLabel column, from the metadata that `datasets` writes."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature["names"], list)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def image_column(schema: Any) -> tuple[str, bool]:
    """The name of the column of images, and whether it holds structs."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_struct(kind: Any) -> bool:
        return types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)

    columns = {field.name: is_struct(field.type) for field in schema if is_bytes(field.type) or is_struct(field.type)}
    chosen = list(columns) if len(columns) == 1 else [name for name in _NAMES if name in columns][:1]
    if chosen:
        return chosen[0], columns[chosen[0]]
    if columns:
        raise SourceError(f"it has several columns of bytes, {listed(columns)}; name the one of the images 'image'")
    text = [field.name for field in schema if field.name.lower().partition("_")[0] in (*_NAMES, "url")]
    if text:
        raise SourceError(
            f"its column {text[0]!r} holds no image bytes, but perhaps URLs or paths; download the images, or give a "
            "CSV file of their paths"
        )
    raise SourceError(f"it has no column of image bytes; it has {listed(schema.names, 6)}")
