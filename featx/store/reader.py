"""A store's path in; keys, labels, recipe and memory-mapped layers out. Nothing here writes to the file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from featx.errors import KeysError, StoreError, listed, nearest
from featx.manifest import as_labels, column, read_manifest
from featx.store import layout
from featx.store.recipe import Recipe


class Failure(NamedTuple):
    """An image that has no row: its id, a code of a fixed list (see ImageError) and the reason in words."""

    id: str
    code: str
    reason: str


@dataclass(frozen=True)
class _Contents:
    """What opening reads.

    stamp : what tells this file from one that replaces it
    offsets : {layer: (byte offset, shape, dtype)}
    """

    stamp: tuple[int, ...]
    identity: str
    keys: np.ndarray
    ids: np.ndarray
    digests: np.ndarray
    y: np.ndarray | None
    classes: np.ndarray | None
    columns: dict[str, np.ndarray]
    failures: tuple[Failure, ...]
    recipe: Recipe
    offsets: dict[str, tuple[int, tuple[int, ...], np.dtype]]


class FeatureStore:
    """A finished store, opened to be read.

    Parameters
    ----------
    path : path of the HDF5 file

    Attributes
    ----------
    X : (n, 1) int64, one key an image: what pipelines that start with StoredFeatures are trained on
    y : (n,) class names, (n,) float64, or None for a store without labels
    ids : (n,) str
    classes : (k,) str, sorted, or None
    layers : names, "node:pool"
    columns : {name: (n,) str}, the manifest's other columns
    failures : the images that could not be read, as (id, code, reason)
    recipe : Recipe, what made the numbers

    Raises
    ------
    StoreError
        There is no such file, or it is not a whole featx store.

    Examples
    --------
    >>> FeatureStore("photos.h5")["penultimate"].shape    # doctest: +SKIP
    (250, 1280)
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path).absolute()
        contents = _read(self.path)
        self._contents = contents
        self.identity = contents.identity
        self.y, self.ids, self.classes = contents.y, contents.ids, contents.classes
        self.columns, self.failures, self.recipe = contents.columns, contents.failures, contents.recipe

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}): {len(self):,} images, {len(self.layers)} layers"

    def __len__(self) -> int:
        return len(self._contents.keys)

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureStore:
        return self  # it is read-only; scikit-learn's clone must not copy layers into memory

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self.identity)

    @property
    def X(self) -> np.ndarray:
        """(n, 1) int64 image keys."""
        return self._contents.keys[:, None].copy()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the stored layers, "node:pool"."""
        return self.recipe.layers

    @property
    def digests(self) -> np.ndarray:
        """(n, 16) uint8, the content digest of each image."""
        return self._contents.digests

    def __getitem__(self, layer: str) -> np.ndarray:
        """A layer as a read-only memory map, (n, d) or, for pool "none", (n, ...).

        Raises
        ------
        LayerError
            The store has no such layer.
        """
        name = self.recipe.layer(layer)
        if name not in self._maps:
            offset, shape, dtype = self._contents.offsets[name]
            try:
                with self.path.open("rb") as file:
                    if _stamp(file.fileno()) != self._contents.stamp:
                        raise StoreError(f"{self.path} was replaced by another file since it was opened; open it again")
                    self._maps[name] = np.memmap(file, dtype, "r", offset, shape)
            except OSError as error:
                raise StoreError(f"cannot read {self.path}: {error.strerror}; was it moved or deleted?") from error
        return self._maps[name]

    @cached_property
    def _maps(self) -> dict[str, np.memmap]:
        return {}

    def take(self, rows: Sequence[int] | np.ndarray, layer: str) -> np.ndarray:
        """Some rows of a layer, as NumPy's indexing means them, copied into memory."""
        return np.array(self[layer][np.asarray(rows)])

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self._contents.keys)

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Positions of image keys.

        Parameters
        ----------
        keys : (m,) or (m, 1) int64

        Raises
        ------
        KeysError
            A key is not of this store.
        """
        keys = np.asarray(keys).reshape(-1)
        order = self._order
        places = np.searchsorted(self._contents.keys, keys, sorter=order)
        found = order[np.minimum(places, len(order) - 1)]
        if (foreign := self._contents.keys[found] != keys).any():
            raise KeysError(
                f"{foreign.sum():,} of {len(keys):,} keys are not in {self.path.name} (the first is "
                f"{keys[foreign][0]}); X must come from store.X of this store, or hold images"
            )
        return found

    def align(
        self,
        labels: str | os.PathLike | Mapping[str, object],
        label_column: str = "label",
        *,
        id_column: str | None = None,
        target: str = "class",
    ) -> np.ndarray:
        """Labels from elsewhere, in the order of this store. The file is not touched.

        Parameters
        ----------
        labels : CSV file, or {id: label}
            Rows of images that the store does not hold are passed over.
        label_column : str
            The CSV file's column of labels.
        id_column : str, optional
            Its column of ids, by default "id" or "path", whichever is there.
        target : "class" or "numeric"

        Returns
        -------
        (n,) class names or float64

        Raises
        ------
        SourceError
            The file or a column is missing, or a label is empty.
        StoreError
            An image of the store has no label, or an id has two.
        """
        if isinstance(labels, Mapping):
            table, name = dict(labels), "the mapping"
        else:
            csv = read_manifest(labels)
            name = str(labels)
            id_column = id_column or ("path" if "path" in csv and "id" not in csv else "id")
            ids = column(csv, id_column, labels, "id_column")
            values = column(csv, label_column, labels, "label_column")
            table = dict(zip(ids, values, strict=True))
            if len(table) < len(ids):
                twice = [key for key, count in Counter(ids).items() if count > 1]
                raise StoreError(f"every id needs one row in {name}; there several times: {listed(twice)}")
        missing = [key for key in self.ids.tolist() if key not in table]
        if missing:
            close = nearest(missing[0], list(table)[:1000])
            raise StoreError(
                f"{len(missing):,} of {len(self):,} images have no label in {name}: {listed(missing)}{close}"
            )
        return as_labels([table[key] for key in self.ids.tolist()], target)


def _reopen(path: str, identity: str) -> FeatureStore:
    """What a pickled store becomes in another process: the same file, or an error."""
    store = FeatureStore(path)
    if store.identity != identity:
        raise StoreError(f"{path} was replaced by another store since it was opened; open it again")
    return store


def _read(path: Path) -> _Contents:
    if not path.exists():
        siblings = [file.name for file in path.parent.glob("*.h5")] if path.parent.is_dir() else []
        raise StoreError(f"there is no store {path}{nearest(path.name, siblings)}")
    try:
        with h5py.File(path, "r") as file:
            found = file.attrs.get("format")
            if not isinstance(found, bytes) or found != layout.FORMAT.encode():
                raise StoreError(f"{path} is an HDF5 file, but not a featx store; featx extract makes one")
            if int(file.attrs["version"]) != layout.VERSION:
                raise StoreError(
                    f"{path} has format version {file.attrs['version']}; this featx reads {layout.VERSION}: update it"
                )
            return _contents(file, path)
    except StoreError:
        raise
    except OSError as error:
        reason = "no permission" if path.is_file() and not os.access(path, os.R_OK) else "it is not an HDF5 file"
        raise StoreError(f"cannot open {path} as a store: {reason}") from error
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise StoreError(
            f"{path} is not a whole featx store: a part is missing or damaged; extract it again"
        ) from error


def _stamp(file: int | Path) -> tuple[int, ...]:
    status = os.stat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _contents(file: h5py.File, path: Path) -> _Contents:
    recipe = Recipe.from_json(layout.read_strings(file["recipe"])[0])
    keys = file["images/key"][()]
    n = len(keys)
    y, classes = None, None
    if "labels" in file and "value" in file["labels"]:
        y = file["labels/value"][()]
    elif "labels" in file:
        classes = np.array(layout.read_strings(file["labels/classes"]))
        codes = file["labels/code"][()]
        if codes.min() < 0:
            raise ValueError("label codes are indices")
        y = classes[codes]
    offsets = {}
    size = path.stat().st_size
    for name in recipe.layers:
        dataset = file["layers"][layout.member(name)]
        offset, shape = dataset.id.get_offset(), dataset.shape
        expected = (n, *recipe.taps[name]["shape"])
        if offset is None or shape != expected or offset + dataset.dtype.itemsize * np.prod(shape) > size:
            raise StoreError(f"{path} is not whole: layer {name!r} should be {expected}, contiguous; extract it again")
        offsets[name] = (offset, shape, dataset.dtype)
    ids, digests = layout.read_strings(file["images/id"]), file["images/digest"][()]
    columns = {
        layout.member_name(name): np.array(layout.read_strings(values)) for name, values in file["columns"].items()
    }
    lengths = [len(part) for part in (ids, digests, *columns.values(), *([] if y is None else [y]))]
    if set(lengths) != {n} or keys.ndim != 1 or digests.shape != (n, 16) or len(np.unique(keys)) < n:
        raise ValueError("one id, digest, label and column value belong to each key")
    group = file["failures"]
    failures = zip(*(layout.read_strings(group[part]) for part in ("id", "code", "reason")), strict=True)
    return _Contents(
        stamp=_stamp(path),
        identity=bytes(file.attrs["identity"]).decode(),
        keys=keys,
        ids=np.array(ids),
        digests=digests,
        y=y,
        classes=classes,
        columns=columns,
        failures=tuple(Failure(*failure) for failure in failures),
        recipe=recipe,
        offsets=offsets,
    )
