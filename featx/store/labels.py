"""Brings labels from a CSV file or a mapping into the order of a store's ids."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from featx.errors import SourceError, StoreError, as_path, listed, nearest
from featx.manifest import as_labels, column, read_manifest


def align(
    ids: Sequence[str],
    labels: str | os.PathLike | Mapping[str, object],
    label_column: str,
    id_column: str | None,
    target: str,
    partial: bool,
) -> np.ndarray:
    """See FeatureStore.align."""
    known = set(ids)
    if isinstance(labels, Mapping):
        table, name = dict(labels), "the mapping"
    else:
        csv = read_manifest(as_path("labels", labels, SourceError))
        name = str(labels)
        if id_column is None and not {"id", "path"} & csv.keys():
            raise SourceError(
                f"{name} has no column 'id'; it has {', '.join(csv)}: rename the column of the images' ids (id_column= "
                "in Python)"
            )
        id_column = id_column or ("path" if "path" in csv and "id" not in csv else "id")
        names = column(csv, id_column, labels, "id_column")
        # featx writes an apostrophe in front of an id that a spreadsheet would take for a formula
        names = [name[1:] if name not in known and name[:1] == "'" and name[1:] in known else name for name in names]
        values = column(csv, label_column, labels, "label_column")
        table = dict(zip(names, values, strict=True))
        if len(table) < len(names):
            repeated = [key for key, count in Counter(names).items() if count > 1]
            raise StoreError(f"every id needs one row in {name}; these have several: {listed(repeated)}")
    if partial:
        table = {key: value for key, value in table.items() if not _is_empty(value)}
    missing = [key for key in ids if key not in table]
    if partial and missing:
        return _partial(ids, table, name, target)
    if missing:
        # if some images have labels, the ids in the table are spelled correctly
        close = nearest(missing[0], list(table)[:1000]) if len(missing) == len(ids) else ""
        raise StoreError(
            f"{len(missing):,} of {len(ids):,} images have no label in {name}, and every image needs one: "
            f"{listed(missing)}{close}"
        )
    return as_labels([table[key] for key in ids], target, ids)


def _partial(ids: Sequence[str], table: dict[str, object], name: str, target: str) -> np.ndarray:
    """(n,) masked array of labels, masked where there is none."""
    if not table:
        raise StoreError(f"no image has a label in {name}; fill some in")
    if foreign := sorted(table.keys() - set(ids)):
        raise StoreError(
            f"{len(foreign):,} of {len(table):,} labels in {name} are of images that the store lacks: "
            f"{listed(foreign)}{nearest(foreign[0], ids[:1000])}; correct the ids, or remove the rows"
        )
    has_label = np.array([key in table for key in ids])
    labels = as_labels([table[key] for key in ids if key in table], target, [key for key in ids if key in table])
    values = np.zeros(len(ids), labels.dtype)
    values[has_label] = labels
    return np.ma.masked_array(values, ~has_label)


def _is_empty(value: object) -> bool:
    """Whether the value is None, NaN or a blank text."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())
