"""FeatureStore reads a finished store: keys, labels, recipe and memory-mapped layers. It never writes to the file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from featx.display import printable
from featx.errors import (
    ContradictionWarning,
    FeatxError,
    KeysError,
    NonFiniteWarning,
    Parameter,
    StoreError,
    as_path,
    listed,
    nearest,
    warn,
)
from featx.image_statistics import CAMERA_BYTES, IMAGE_STATISTICS
from featx.progress import Progress
from featx.recipe import Recipe
from featx.store import layout
from featx.store.blocks import Blocks
from featx.store.contents import Contents, Failure, NonFinite
from featx.store.importing import import_arrays
from featx.store.labels import align
from featx.store.mapped import Mapped, reopened
from featx.store.neighbours import METRICS, Neighbors, nearest_rows
from featx.store.remote import fetched
from featx.urls import shown, url_of

_READ_AHEAD_BYTES = 2**17  # the system's read-ahead
_QUERIED_BYTES = 16 * 2**20  # of rows that are compared with a query at once; as float64 up to four times as large


class FeatureStore:
    """A finished store, opened for reading.

    Opening checks all metadata; `verify`, and reading with `check=True`, check rows too. All reads are from the file
    that was opened, even if its path is given to another file.

    Parameters
    ----------
    path : path or URL
        A store at a URL ("s3://bucket/photos.h5", which `featx.put` uploads) is downloaded once, to $FEATX_CACHE or
        else the user's cache folder, and again after it has changed. What has arrived is compared with all checksums.
    progress : bool or callable
        How far a download is: shown on stderr, or passed to this function as a `featx.Progress`.

    Attributes
    ----------
    path : Path, the file that is read; of a store at a URL, the copy
    url : str without user name, password and query, or None for a local store
        A pickle of the store opens it again by this URL where there is no such file.
    X : (n, 1) int64, one key per image: the input of pipelines that start with StoredFeatures
    y : (n,) class names, (n,) float64, or None for a store without labels
    ids : (n,) str
    classes : (k,) str, sorted, or None
    layers : names, "node:pool"
    columns : {name: (n,) str}, the manifest's other columns
        If some texts are long, the dtype is object, as for `ids`, `y` and `classes`: each takes memory for its own
        length only.
    statistics : {name: (n,)}, kept of each image: perceptual hashes, size, quality, brightness, date, camera and others
        See FORMAT.md. It is empty for a store without them: features from elsewhere, or a store of an earlier version,
        to which `featx.extract` on the same images adds them.
    failures : the images that could not be read, as (id, code, reason)
    nonfinite : the rows that contain NaN or inf, as (id, layer, "inf" or "nan")
    digests : (n, 16) uint8, the content digest of each image
    recipe : Recipe, everything that determined the numbers
    identity : 32 hexadecimal digits, the digest of everything but the rows, and so of the rows' checksums
    backbone : the `backbone` that was passed to `featx.extract`, on the store that this call returned; else None
        It computes the features of new images. If it was a module or a program of yours, set it again on a store that
        was opened by its path or unpickled.

    Raises
    ------
    StoreError
        There is no such file, or it is not a whole featx store; or it cannot be downloaded.

    Examples
    --------
    >>> FeatureStore("photos.h5")["penultimate"].shape    # doctest: +SKIP
    (250, 1280)
    """

    backbone: Any = None  # this room knows nothing of networks: it keeps the object for those who compute features

    url: str | None = None

    def __init__(self, path: str | os.PathLike, *, progress: bool | Callable[[Progress], None] = True) -> None:
        local = as_path("path", path, StoreError)
        if (url := url_of(path)) is not None:
            local, self.url = fetched(url, progress), shown(url)
        self._read(Mapped(local.absolute()))

    @classmethod
    def from_arrays(
        cls,
        path: str | os.PathLike,
        layers: Mapping[str, Any],
        *,
        ids: Sequence[object] | np.ndarray | None = None,
        y: Sequence[object] | np.ndarray | None = None,
        columns: Mapping[str, Sequence[object] | np.ndarray] | None = None,
        target: str = "class",
        name: str | None = None,
        dtype: str = "float32",
        replace: bool = False,
    ) -> FeatureStore:
        """Make a store of features that were computed elsewhere: of texts or sounds, or by another tool.

        Searches, protocols, reports, merging and exports work as on an extracted store. New inputs cannot be predicted,
        since featx knows no network for them; keys of a store and rows of features can.

        Parameters
        ----------
        path : path
            The HDF5 file to make. If anything fails, it is not made, and an existing one stays.
        layers : {name: (n, d) array}
            Floats, integers or booleans; row i of every array belongs to `ids[i]`. Arrays on disk, such as a
            `numpy.memmap` or an h5py dataset, are read twice, in parts, and may be larger than memory.
        ids : (n,) different names, optional
            By default "0", "1" ...
        y : (n,) labels, optional
        columns : {name: (n,) values}, optional
            Kept as texts, such as groups and splits; None and NaN become "".
        target : "class" or "numeric"
            Whether labels are class names or numbers.
        name : str, optional
            What made the rows, "all-MiniLM-L6-v2" for example. Stores with the same name and layers can be used
            together, as test stores or merged: give it only to rows that were computed in the same way. Without it, no
            other rows can be used with these.
        dtype : "float32" or "float16"
            Of the stored rows. Other numbers are rounded to it, with a relative error of at most 2^-24 or 2^-11 each;
            numbers that are too large become inf.
        replace : bool
            Replace an existing file.

        Returns
        -------
        FeatureStore
            A layer is called "NAME:none", as one that was not pooled; `store["NAME"]` finds it. An image's content
            digest is that of its row, so that equal rows count as copies.

        Raises
        ------
        StoreError
            An array is not (n, d), is empty or holds no numbers; arrays, ids, labels or columns differ in length; an id
            is repeated; or the file exists or cannot be written.
        SourceError
            A label is empty, or not a finite number although the target is numeric.

        Warns
        -----
        NonFiniteWarning
            Rows contain NaN or inf; `nonfinite` lists them.
        ContradictionWarning
            Equal rows have different labels.

        Examples
        --------
        >>> FeatureStore.from_arrays("texts.h5", {"minilm": X}, y=topics, name="all-MiniLM-L6-v2")    # doctest: +SKIP
        """
        import_arrays(
            path,
            layers,
            ids=ids,
            y=y,
            columns=columns,
            target=target,
            name=name,
            dtype=dtype,
            replace=replace,
        )
        store = cls(path)
        warn_of_rows(store)
        return store

    def _read(self, mapped: Mapped) -> None:
        self.path = mapped.path
        self._contents = Contents(mapped)
        self._blocks = Blocks(self._contents)
        self.recipe: Recipe = self._contents.recipe
        self.identity: str = mapped.seal.identity

    def __repr__(self) -> str:
        return f"FeatureStore({(self.url or str(self.path))!r}): {len(self):,} images, {len(self.layers)} layers"

    def __len__(self) -> int:
        return len(self._contents.keys)

    def __copy__(self) -> FeatureStore:
        return self  # it is read-only

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureStore:
        return self  # scikit-learn's clone must not copy layers into memory

    def __reduce__(self) -> tuple[Any, ...]:
        where = (str(self.path), self.identity)
        return _reopen, where if self.url is None else (*where, self.url)

    @property
    def X(self) -> np.ndarray:
        """(n, 1) int64 image keys."""
        return np.array(self._contents.keys[:, None])

    @property
    def y(self) -> np.ndarray | None:
        return self._contents.y

    @property
    def ids(self) -> np.ndarray:
        return self._contents.ids

    @property
    def classes(self) -> np.ndarray | None:
        return self._contents.classes

    @property
    def columns(self) -> dict[str, np.ndarray]:
        return self._contents.columns

    @property
    def statistics(self) -> dict[str, np.ndarray]:
        return self._contents.statistics

    @property
    def failures(self) -> tuple[Failure, ...]:
        return self._contents.failures

    @property
    def nonfinite(self) -> tuple[NonFinite, ...]:
        return self._contents.nonfinite

    @property
    def digests(self) -> np.ndarray:
        return self._contents.digests

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the stored layers, "node:pool"."""
        return self.recipe.layers

    @property
    def is_archive(self) -> bool:
        """Whether the layers are compressed, so that reading one takes memory and time."""
        return any(array.chunks is not None for array in self._contents.layers.values())

    def row_bytes(self, layer: str) -> int:
        """Size in memory of one row of a layer."""
        return self._contents.layers[self.recipe.layer(layer)].row_bytes

    def __getitem__(self, layer: str) -> np.ndarray:
        """A layer as a read-only memory map, (n, d) or, for pool "none", (n, ...); an archive's is an array in memory.

        With v views of each image it is (n, v, d) or (n, v, ...).

        Raises
        ------
        LayerError
            The store has no such layer.
        """
        name = self.recipe.layer(layer)
        self._contents.mapped.refuse_overwritten()
        if name not in self._loaded:
            array = self._contents.layers[name]
            if array.chunks is None:
                self._loaded[name] = self._contents.mapped.layer(array)
            else:
                ((_, self._loaded[name]),) = self.blocks(name, budget_bytes=array.nbytes)
        return self._loaded[name]

    @cached_property
    def _loaded(self) -> dict[str, np.ndarray]:
        return {}

    def take(self, rows: Sequence[int] | np.ndarray, layer: str, *, check: bool = False) -> np.ndarray:
        """Copy some rows of a layer into memory; `rows` is as in NumPy's indexing.

        Parameters
        ----------
        rows : integers (negative ones count from the end) in any order, repeats allowed, or (n,) bool
        layer : str
        check : bool
            Verify the rows' checksums. Up to 64 rows share one, so more rows are read.

        Returns
        -------
        (m, d) or (m, ...)

        Raises
        ------
        LayerError
            The store has no such layer.
        DamageError
            Rows do not match their checksums; raised if `check` is true or the store is an archive.
        IndexError
            There is no such row, or the mask has the wrong shape.
        """
        name = self.recipe.layer(layer)
        self._contents.mapped.refuse_overwritten()
        rows = np.asarray(rows)
        rows = rows.astype(np.int64) if not rows.size and rows.dtype == float else rows
        if rows.dtype == bool and rows.shape != (len(self),):
            raise IndexError(f"a mask of rows is ({len(self)},) bool, got {rows.shape}")
        array = self._contents.layers[name]
        span = 1 + int(rows.max()) - int(rows.min()) if rows.size and rows.dtype.kind in "iu" else len(self)
        scattered = rows.size * _READ_AHEAD_BYTES < span * array.row_bytes
        if not check and array.chunks is None:
            with self._contents.mapped.read_at_random() if scattered else nullcontext():
                return np.array(self[name][rows], copy=None if rows.ndim else True, subok=False)
        positions = np.flatnonzero(rows) if rows.dtype == bool else self._positions(rows)
        taken = np.empty((*positions.shape, *array.shape[1:]), array.dtype)
        flat, unit = positions.reshape(-1), layout.block_rows(array.row_bytes)
        order = np.argsort(flat // unit, kind="stable")
        ends = np.flatnonzero(np.diff(flat[order] // unit, append=-1)) + 1
        flat_rows = taken.reshape(len(flat), *array.shape[1:])
        for start, stop in zip([0, *ends[:-1]], ends, strict=True) if len(flat) else ():
            in_block = order[start:stop]
            block = int(flat[in_block[0]]) // unit
            flat_rows[in_block] = self._blocks.rows(name, block, check)[flat[in_block] - block * unit]
        return taken

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        """Row numbers as positions: negative ones count from the end."""
        if rows.dtype.kind not in "iu":
            raise IndexError(f"rows are integers or (n,) bool, got {rows.dtype}")
        n = len(self)
        if rows.size and not (-n <= rows.min() and rows.max() < n):
            raise IndexError(f"a row is out of bounds; there are {n:,}")
        rows = rows.astype(np.int64)
        return np.where(rows < 0, rows + n, rows)

    def blocks(
        self, layer: str, *, budget_bytes: int = 64 * 2**20, check: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over a layer in parts, in order.

        Parameters
        ----------
        layer : str
        budget_bytes : int
            Maximum size of a part, unless a single row is larger.
        check : bool
            Verify checksums.

        Yields
        ------
        start : position of the part's first row
        rows : (m, d) or (m, ...), read-only

        Raises
        ------
        LayerError, DamageError
            As in `take`.
        """
        name = self.recipe.layer(layer)
        array = self._contents.layers[name]
        rows, unit = max(1, budget_bytes // array.row_bytes), layout.block_rows(array.row_bytes)
        rows = len(self) if rows >= len(self) else rows // unit * unit or rows
        block_of = lru_cache(maxsize=1)(
            partial(self._blocks.rows, name, check=check)
        )  # a part may be smaller than a block
        for start in range(0, len(self), rows):
            self._contents.mapped.refuse_overwritten()
            stop = min(start + rows, len(self))
            if array.chunks is None:
                if check:
                    for block in range(start // unit, -(-stop // unit)):
                        block_of(block)
                yield start, self[name][start:stop]
            else:
                part = np.empty((stop - start, *array.shape[1:]), array.dtype)
                for block in range(start // unit, -(-stop // unit)):
                    first, last = max(start, block * unit), min(stop, (block + 1) * unit)
                    rows_of_block = block_of(block)
                    part[first - start : last - start] = rows_of_block[first - block * unit : last - block * unit]
                part.flags.writeable = False
                yield start, part

    def verify(self) -> None:
        """Compare all bytes with their checksums.

        Raises
        ------
        DamageError
            Rows are damaged; `damages` lists them by layer.
        StoreError
            The file was shortened or its metadata is damaged.
        """
        self._contents.mapped.check_metadata()
        self._blocks.verify()

    def image_records(self, rows: np.ndarray) -> np.ndarray | None:
        """The statistics of some images, (m,) of IMAGE_STATISTICS, or None for a store without them."""
        if not self.statistics:
            return None
        records = np.zeros(len(rows), IMAGE_STATISTICS)
        for name, values in self.statistics.items():
            taken = values[rows]
            if name == "camera":
                taken = np.array([camera.encode() for camera in taken.tolist()], f"S{CAMERA_BYTES}")
            records[name] = taken.view("<i8") if name == "taken" else taken
        return records

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """(sorted keys, their positions)"""
        order = np.argsort(self._contents.keys)
        return self._contents.keys[order], order

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Row positions of image keys.

        Parameters
        ----------
        keys : (m,) or (m, 1) int64

        Returns
        -------
        (m,) int64

        Raises
        ------
        KeysError
            A key is not in this store.
        """
        keys = np.asarray(keys).reshape(-1)
        in_order, order = self._sorted
        places = np.minimum(np.searchsorted(in_order, keys), len(order) - 1)
        if (foreign := in_order[places] != keys).any():
            raise KeysError(
                f"{foreign.sum():,} of {len(keys):,} keys are not in {self.path.name} (the first is "
                f"{keys[foreign][0]}); X must come from store.X of this store, or contain images"
            )
        return order[places]

    @cached_property
    def duplicates(self) -> tuple[np.ndarray, ...]:
        """Groups of rows whose images have the same content, an int64 array of two or more rows each."""
        halves = np.ascontiguousarray(self.digests).view("<u8")  # (n, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        new = np.ones(len(order), bool)
        new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
        groups = np.split(order, np.flatnonzero(new)[1:])
        return tuple(sorted((np.sort(group) for group in groups if len(group) > 1), key=lambda group: int(group[0])))

    @cached_property
    def contradictions(self) -> tuple[np.ndarray, ...]:
        """The groups of `duplicates` in which labels differ."""
        y = self.y
        return () if y is None else tuple(group for group in self.duplicates if len(set(y[group].tolist())) > 1)

    def similar(
        self,
        query: str | Sequence[object] | np.ndarray,
        k: int = 10,
        *,
        layer: str | None = None,
        metric: str = "cosine",
    ) -> Neighbors:
        """The images whose rows are nearest to those of a query; exact.

        Parameters
        ----------
        query : an id, or m of them; (m,) or (m, 1) int64 keys; or (m, d) floats, rows of the layer
            The row of a new image is `StoredFeatures(store, layer).fit().transform([path])`.
        k : int
            Number of neighbours. An image of this store is no neighbour of itself; neither are rows with NaN or inf.
        layer : str, optional
            By default the penultimate layer, or else the last one. Of several views, their mean is used.
        metric : "cosine" or "euclidean"

        Returns
        -------
        Neighbors
            `distances` and `rows`, (m, k) each; of equal distances the first row comes first.

        Raises
        ------
        LayerError
            The store has no such layer.
        KeysError
            The store has no such image.
        FeatxError
            k is larger than the number of other images, or the query has another shape.
        StoreError
            A row of the query contains NaN or inf.

        Examples
        --------
        >>> store.ids[store.similar("cats/1.jpg", 3).rows[0]]    # doctest: +SKIP
        array(['cats/7.jpg', 'cats/4.jpg', 'lynxes/2.jpg'], dtype='<U12')
        """
        name = self.recipe.deepest if layer is None else self.recipe.layer(layer)
        if metric not in METRICS:
            raise FeatxError(Parameter("metric"), f" is {' or '.join(METRICS)}; got {metric!r}")
        if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
            raise FeatxError(Parameter("k"), f" is an integer, 1 or more; got {k!r}")

        def flat(rows: np.ndarray) -> np.ndarray:
            return rows.reshape(len(rows), self.recipe.n_views, -1).mean(axis=1, dtype=np.float64)

        own, queries = self._query(query, name)
        queries = flat(self.take(own, name)) if queries is None else queries
        if not np.isfinite(queries).all():
            number = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
            which = repr(str(self.ids[own[number]])) if own[number] >= 0 else f"number {number}"
            raise StoreError(f"query {which} has NaN or inf in layer {name!r}; leave it out, or choose another layer")
        parts = ((start, flat(rows)) for start, rows in self.blocks(name, budget_bytes=_QUERIED_BYTES))
        found = nearest_rows(queries, own, parts, min(int(k), len(self)), metric)
        n = int(np.isfinite(found.distances).sum(axis=1).min())
        if n < k:
            raise FeatxError(
                f"{self.path.name} has {n:,} other images without NaN or inf; choose as many or fewer: got ",
                Parameter("k", k),
            )
        return found

    def _query(self, query: object, layer: str) -> tuple[np.ndarray, np.ndarray | None]:
        """((m,) rows that the queries are, None), or ((m,) of -1, (m, d) float64 rows of a layer)."""
        array = np.asarray([query] if isinstance(query, str) else query)
        if array.dtype.kind == "f":
            d = math.prod(self.recipe.view_taps[layer]["shape"])
            if array.ndim != 2 or array.shape[1] != d or not len(array):
                raise FeatxError(
                    Parameter("query"), f" has rows of layer {layer!r}, shape (m, {d:,}); got {array.shape}"
                )
            return np.full(len(array), -1), array.astype(np.float64)
        if array.dtype.kind in "iu" and array.size:
            return self.rows(array), None
        if array.dtype.kind not in "UO" or array.ndim != 1 or not array.size:
            raise FeatxError(
                Parameter("query"),
                f" has ids or keys of images, or rows, (m, d) floats; got {array.dtype} of shape {array.shape}",
            )
        row_of = {name: row for row, name in enumerate(self.ids.tolist())}
        names = list(map(str, array.tolist()))
        if foreign := [name for name in names if name not in row_of]:
            close = nearest(foreign[0], list(row_of)[:1000])
            raise KeysError(f"{self.path.name} has no image {listed(foreign)}{close}")
        return np.array([row_of[name] for name in names]), None

    def align(
        self,
        labels: str | os.PathLike | Mapping[str, object],
        label_column: str = "label",
        *,
        id_column: str | None = None,
        target: str = "class",
        partial: bool = False,
    ) -> np.ndarray:
        """Labels from a CSV file or a mapping, in the order of this store's images. The store is not changed.

        Parameters
        ----------
        labels : CSV file, or {id: label}
            Rows of images that are not in the store are ignored.
        label_column : str
            The CSV file's column of labels.
        id_column : str, optional
            The CSV file's column of ids, by default "id" or else "path".
        target : "class" or "numeric"
        partial : bool
            Whether images may have no label, or an empty one. Then all ids of the table must be in the store.

        Returns
        -------
        (n,) class names or float64; if `partial` and some have no label, a masked array in which these are masked

        Raises
        ------
        SourceError
            The file or a column is missing, or a label is empty.
        StoreError
            An image of the store has no label, or an id has two; if `partial`, no image has a label, or some have none
            while the table has labels of images that are not in the store.
        """
        return align(self.ids.tolist(), labels, label_column, id_column, target, partial)


def warn_of_rows(store: FeatureStore) -> None:
    """Warn of a new store's non-finite rows and contradictory labels, at the line of the user's code that made it."""
    if store.nonfinite:
        overflow = store.recipe.dtype == "float16" and any(entry.what == "inf" for entry in store.nonfinite)
        named = ", ".join(f"{entry.id!r} in {entry.layer!r} ({entry.what})" for entry in store.nonfinite[:3])
        warn(
            f"{len(store.nonfinite):,} rows contain NaN or inf, see store.nonfinite: {named}"
            + ("; float32 may hold what float16 cannot" if overflow else ""),
            NonFiniteWarning,
        )
    if contradictions := store.contradictions:
        first = contradictions[0][:2].tolist()
        pair = " and ".join(f"{str(store.ids[row])!r} ({printable(store.y[row])})" for row in first)  # type: ignore[index]
        warn(
            f"{len(contradictions):,} images occur several times with different labels, see store.contradictions: "
            f"{pair}",
            ContradictionWarning,
        )


def _reopen(path: str, identity: str, url: str | None = None) -> FeatureStore:
    """Open a pickled store again; raises StoreError unless the file, or what is at the URL, is still the same store."""
    store = FeatureStore.__new__(FeatureStore)
    try:
        store._read(reopened(path, identity))
    except StoreError:
        if url is None:
            raise
        store._read(reopened(str(fetched(url)), identity))
    store.url = url
    return store
