"""Reads a CSV table into columns, and turns labels into class names or numbers.

Both extraction and learning need this, and neither may import the other; so it stands beside `errors`.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featx.errors import Parameter, SourceError, file_of_labels, nearest

_SHORT, _LITTLE = 256, 2**20  # characters or bytes: of one text; of an array


def is_padded(n: int, longest: int) -> bool:
    """Whether n texts are padded to the length of the longest: if that is short, or the whole array is small."""
    return longest <= _SHORT or n * longest <= _LITTLE


def text_array(texts: Sequence[str]) -> np.ndarray:
    """(n,) str; dtype object unless `is_padded`, so that each text takes memory for its own length only."""
    longest = max(map(len, texts), default=0)
    return np.array(texts, dtype=str if is_padded(len(texts), longest) else object)


def is_missing(value: object) -> bool:
    """Whether the value is None, NaN, NaT or pandas.NA."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA has no truth value
        return True


def read_manifest(path: str | os.PathLike, content: bytes | None = None) -> dict[str, list[str]]:
    """Read a CSV file with a header line into its columns, every value a string.

    Parameters
    ----------
    content : bytes, optional
        Of the file, if it is not read here.

    Raises
    ------
    SourceError
        The file is missing, is not UTF-8, has other separators than commas, no rows, two columns with one name, or a
        row of the wrong length.
    """
    try:
        opened = Path(path).open("rb") if content is None else io.BytesIO(content)
        with io.TextIOWrapper(opened, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header, *rows = [(reader.line_num, row) for row in reader if row] or [(0, [])]
    except OSError as error:
        raise SourceError(f"cannot read the CSV file {path}: {error.strerror}") from error
    except csv.Error as error:
        if "field limit" in str(error):
            limit = f"{csv.field_size_limit():,} characters"
            raise SourceError(f"{path}: a cell has at most {limit}, and one has more; shorten it") from error
        raise SourceError(f"{path} is not a CSV file in UTF-8; save it as one") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not a CSV file in UTF-8; save it as one") from error
    names = header[1]
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and separator in names[0]:
            raise SourceError(f"the columns of {path} are separated by {word}; save it with commas")
    if not rows:
        raise SourceError(f"{path} needs a header line and at least one row; it has no row")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise SourceError(f"{path} has two columns named {repeated[0]!r}; rename one")
    for number, row in rows:
        if len(row) != len(names):
            raise SourceError(f"{path}, row {number}: {len(names)} values are needed, got {len(row)}")
    return {name: [row[place] for _, row in rows] for place, name in enumerate(names)}


def column(table: dict[str, list[str]], name: str, path: str | os.PathLike, option: str) -> list[str]:
    """One column of a table; `option` is the parameter with which the user chooses another."""
    if name not in table:
        raise SourceError(
            f"{path} has no column {name!r}{nearest(name, table)}; choose one of {', '.join(table)} with ",
            Parameter(option, ...),
            *(file_of_labels(name) if option == "labels" else ()),
        )
    return table[name]


def as_labels(values: Sequence[object] | np.ndarray, target: str, ids: Sequence[str] | None = None) -> np.ndarray:
    """Labels as class names, (n,) str, or for `target="numeric"` as (n,) float64.

    Parameters
    ----------
    ids : names of the images for messages, by default their numbers

    Raises
    ------
    SourceError
        A label is empty, or not a finite number although the target is numeric.
    """

    def image(number: int) -> str:
        return f"image {number if ids is None else ids[number]}"

    if target not in ("class", "numeric"):
        raise SourceError(f"target is 'class' or 'numeric', got {target!r}")
    are_texts = isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)
    array = text_array(values) if are_texts else np.asarray(values)  # type: ignore[arg-type]
    if array.ndim != 1:
        raise SourceError(f"labels are one value per image, shape (n,); got shape {array.shape}")
    if target == "class":
        names = [str(value).strip() for value in array.tolist()]
        for number, (name, value) in enumerate(zip(names, values, strict=True)):
            if not name or is_missing(value):
                raise SourceError(f"{image(number)} has no label; give every image one, or none at all")
        return text_array(names)
    numbers = np.empty(len(array))
    for number, value in enumerate(array.tolist()):
        try:
            numbers[number] = float(value)
        except (TypeError, ValueError):
            numbers[number] = math.nan
        if not math.isfinite(numbers[number]):
            raise SourceError(
                Parameter("target", "numeric"), f" needs a finite number as label; {image(number)} has {value!r}"
            )
    return numbers
