"""Reads and checks everything in a store but the rows.

Small datasets are decoded at once; those that grow with the number of images are decoded on first access.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from featx.errors import StoreError
from featx.image_statistics import CAMERA_BYTES, IMAGE_STATISTICS
from featx.manifest import is_padded, text_array
from featx.recipe import Recipe
from featx.store import hdf5, layout
from featx.store.compression import could_hold, filters_of
from featx.store.hdf5 import Array
from featx.store.mapped import Mapped, damaged

_LAYOUT = {
    "images": ("key", "id", "digest"),
    "failures": ("id", "code", "reason"),
    "nonfinite": ("row", "layer", "what"),
}


class Failure(NamedTuple):
    """An image without a row: its id, a code from a fixed list (see ImageError) and the reason as text."""

    id: str
    code: str
    reason: str


class NonFinite(NamedTuple):
    """A row that contains NaN or inf: the image's id, the layer, and "inf" or "nan"."""

    id: str
    layer: str
    what: str


class Unpadded(NamedTuple):
    """n texts: their concatenated UTF-8, (bytes,) uint8, and the offsets, (n + 1,) uint64."""

    content: Array
    offsets: Array


class Contents:
    """Everything in a store but the rows.

    Parameters
    ----------
    mapped : Mapped

    Attributes
    ----------
    recipe : Recipe
    layers : {name: Array}
    checksums : {name: Array}
    keys : (n,) int64

    Raises
    ------
    StoreError
        The file is not a whole store.
    """

    def __init__(self, mapped: Mapped) -> None:
        self.mapped = mapped
        try:
            self._check()
        except StoreError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise damaged(mapped.path, f"a part is missing or invalid ({error})") from error
        mapped.forget_metadata()

    def _check(self) -> None:
        mapped, tree = self.mapped, self.mapped.tree
        optional = [name for name in ("statistics", "labels") if name in tree]
        if [*tree] != ["layers", "recipe", "images", *optional, "columns", "failures", "nonfinite", "checksums"]:
            raise hdf5.Malformed("its groups are not those of a store")
        recipe = _array(tree["recipe"])
        inside = mapped.seal.metadata <= recipe.offset <= mapped.seal.structure - recipe.nbytes
        if recipe.shape != (1,) or recipe.dtype[0] != "S" or recipe.nbytes > layout.MOST_RECIPE_BYTES or not inside:
            raise hdf5.Malformed("the recipe is not one text inside the metadata")
        (text,) = self._text(recipe)
        try:
            self.recipe = Recipe.from_json(text)
        except StoreError as error:
            raise hdf5.Malformed(str(error)) from error
        if self.recipe.to_json() != text:
            raise hdf5.Malformed("the recipe is not in the form that featx writes")
        groups = {name: node for name, node in tree.items() if not isinstance(node, Array)}
        if layout.version_for(tree, self.recipe.views, self.recipe.is_imported) != mapped.seal.version:
            raise hdf5.Malformed("its parts are those of another format version")
        folded = {name: _folded(group) for name, group in groups.items()}
        for name, parts in _LAYOUT.items():
            if tuple(folded[name]) != parts:
                raise hdf5.Malformed(f"the datasets of group {name!r} are not those of a store")
        members = [layout.member(name) for name in self.recipe.layers]
        if [*groups["layers"]] != members or [*groups["checksums"]] != members:
            raise hdf5.Malformed("the layers are not the recipe's")
        self.layers = dict(zip(self.recipe.layers, groups["layers"].values(), strict=True))
        self.checksums = dict(zip(self.recipe.layers, groups["checksums"].values(), strict=True))
        self._images, self._labels = folded["images"], folded.get("labels", {})
        self._statistics = folded.get("statistics", {})
        if "statistics" in tree and (self.recipe.is_imported or tuple(self._statistics) != IMAGE_STATISTICS.names):
            raise hdf5.Malformed("the statistics of images are not those of a store")
        self._columns, self._failures, self._nonfinite = folded["columns"], folded["failures"], folded["nonfinite"]
        self._check_shapes()
        others = [array for name, group in groups.items() if name != "layers" for array in group.values()]
        layout.check_places(self.layers, [recipe, *others], mapped.seal)
        if not mapped.is_zero(layout.gaps([recipe, *others], layout.METADATA_ALIGNMENT, mapped.seal.structure)):
            raise hdf5.Malformed("the bytes between its datasets are not zero")
        self._check_values()

    def _check_shapes(self) -> None:
        n = _count(self._images["key"])
        dtype = np.dtype(self.recipe.dtype).newbyteorder("<").str
        for name, array in self.layers.items():
            expected = (n, *self.recipe.taps[name]["shape"])
            if array.dtype != dtype or array.shape != expected or not n:
                raise hdf5.Malformed(f"layer {name!r} should be {dtype} of shape {expected}")
            rows = layout.block_rows(array.row_bytes)
            if array.chunks is not None and (
                array.chunks.rows != rows or array.chunks.filters not in filters_of(array.dtype).values()
            ):
                raise hdf5.Malformed(f"layer {name!r} is compressed in an unknown way")
            if array.chunks is not None and not all(
                could_hold(nbytes, rows * array.row_bytes, array.chunks.filters) for _, nbytes in array.chunks.extents
            ):
                raise hdf5.Malformed(f"a chunk of layer {name!r} is too short for its rows")
            _expect(self.checksums[name], "<u8", (-(-n // rows),))
        _expect(self._images["key"], "<i8", (n,))
        _expect(self._images["digest"], "<u1", (n, 16))
        _expect(self._images["id"], "S", (n,))
        for name, node in self._statistics.items():
            _expect(node, "S" if name == "camera" else IMAGE_STATISTICS[name].str, (n,))
        for name, text in self._columns.items():
            _expect(text, "S", (n,))
            if layout.member(layout.member_name(name)) != name:
                raise hdf5.Malformed("a column's name is not written as in a store")
        failed, marked = _count(self._failures["id"]), _count(self._nonfinite["row"])
        for text in self._failures.values():
            _expect(text, "S", (failed,))
        for name, dtype in {"row": "<i8", "layer": "<i8", "what": "S"}.items():
            _expect(self._nonfinite[name], dtype, (marked,))
        if tuple(self._labels) == ("value",):
            _expect(self._labels["value"], "<f8", (n,))
        elif tuple(self._labels) == ("classes", "code"):
            _expect(self._labels["code"], "<i8", (n,))
            _expect(self._labels["classes"], "S", (_count(self._labels["classes"]),))
        elif "labels" in self.mapped.tree:
            raise hdf5.Malformed("the labels are neither numbers nor codes of classes")

    def _check_values(self) -> None:
        """Check the values of datasets whose places and shapes have been checked."""
        array = self._values
        self.keys = np.array(array(self._images["key"]))
        in_order = np.sort(self.keys)
        if in_order[0] < 0 or in_order[-1] >= 2**53 or (in_order[1:] == in_order[:-1]).any():
            raise hdf5.Malformed("the image keys are not distinct numbers from 0 to 2**53")
        groups = (self._images, self._statistics, self._labels, self._columns, self._failures, self._nonfinite)
        for node in (node for group in groups for node in group.values()):
            if isinstance(node, Unpadded):
                _check_offsets(array(node.offsets), node.content.nbytes)
            if _is_text(node) and not _is_ascii(array(node.content if isinstance(node, Unpadded) else node)):
                self._text(node)
        if self._statistics and self._longest(self._statistics["camera"]) > CAMERA_BYTES:
            raise hdf5.Malformed(f"the name of a camera has more than {CAMERA_BYTES} bytes")
        _check_indices(array(self._nonfinite["row"]), len(self.keys))
        _check_indices(array(self._nonfinite["layer"]), len(self.layers))
        if "code" in self._labels:
            classes = self._pieces(self._labels["classes"])
            _check_indices(array(self._labels["code"]), len(classes))
            if classes != sorted(set(classes)):
                raise hdf5.Malformed("the classes are not sorted and distinct")
        ids = self._images["id"]
        pieces = self._pieces(ids) if isinstance(ids, Unpadded) else None
        if not (_all_differ(array(ids)) if pieces is None else len(set(pieces)) == len(pieces)):
            raise hdf5.Malformed("two images have the same id")

    def datasets(self) -> layout.Metadata:
        """The datasets that `metadata.datasets` returned."""
        array = self.mapped.array
        return {
            name: array(node) if isinstance(node, Array) else {key: array(node[key]) for key in node}
            for name, node in self.mapped.tree.items()
            if name != "layers"
        }

    def _values(self, node: Array | Unpadded) -> np.ndarray:
        return self.mapped.array(_array(node))

    def _pieces(self, node: Array | Unpadded) -> list[bytes]:
        """The UTF-8 of each text."""
        if not isinstance(node, Unpadded):
            return self._values(node).tolist()
        content, offsets = self._values(node.content), self._values(node.offsets).tolist()
        return [content[start:stop].tobytes() for start, stop in pairwise(offsets)]

    def _longest(self, node: Array | Unpadded) -> int:
        """Bytes of the longest text, or more for padded ones."""
        if isinstance(node, Unpadded):
            return int(np.diff(self._values(node.offsets)).max(initial=0))
        return int(node.dtype[1:])

    def _text(self, node: Array | Unpadded) -> list[str]:
        try:
            return [piece.decode() for piece in self._pieces(node)]
        except UnicodeDecodeError as error:
            raise damaged(self.mapped.path, "a text is not UTF-8") from error

    @cached_property
    def ids(self) -> np.ndarray:
        return text_array(self._text(self._images["id"]))

    @property
    def digests(self) -> np.ndarray:
        return self._values(self._images["digest"])

    @cached_property
    def classes(self) -> np.ndarray | None:
        return text_array(self._text(self._labels["classes"])) if "classes" in self._labels else None

    @cached_property
    def y(self) -> np.ndarray | None:
        if "value" in self._labels:
            return np.array(self._values(self._labels["value"]))
        if self.classes is None:
            return None
        codes, longest = self._values(self._labels["code"]), max(map(len, self.classes.tolist()), default=0)
        return (self.classes if is_padded(len(codes), longest) else self.classes.astype(object))[codes]

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        return {layout.member_name(name): text_array(self._text(text)) for name, text in self._columns.items()}

    @cached_property
    def statistics(self) -> dict[str, np.ndarray]:
        values = {name: self._values(node) for name, node in self._statistics.items() if name != "camera"}
        if values:
            values["taken"] = values["taken"].view("<M8[s]")
            values["camera"] = text_array(self._text(self._statistics["camera"]))
        return values

    @cached_property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(map(Failure, *map(self._text, self._failures.values())))

    @cached_property
    def nonfinite(self) -> tuple[NonFinite, ...]:
        rows, layers = (self._values(self._nonfinite[name]).tolist() for name in ("row", "layer"))
        named = zip(rows, layers, self._text(self._nonfinite["what"]), strict=True)
        names = self.recipe.layers
        ids = self.ids if rows else ()
        return tuple(NonFinite(str(ids[row]), names[layer], what) for row, layer, what in named)


def _array(node: object) -> Array:
    if not isinstance(node, Array):
        raise hdf5.Malformed("a dataset is a group")
    return node


def _folded(group: Mapping[str, Array]) -> dict[str, Array | Unpadded]:
    """A group's datasets; the two datasets of texts, bytes and offsets, become one."""
    datasets: dict[str, Array | Unpadded] = {}
    for name, array in group.items():
        base = name.removesuffix(layout.OFFSETS)
        if base == name:
            datasets[name] = array
        elif next(reversed(datasets), None) != base:
            raise hdf5.Malformed("offsets without texts before them")
        else:
            datasets[base] = Unpadded(_array(datasets[base]), array)
    return datasets


def _is_text(node: Array | Unpadded) -> bool:
    return isinstance(node, Unpadded) or node.dtype.startswith("S")


def _count(node: Array | Unpadded) -> int:
    """Number of values or texts of a dataset; 0 for a scalar."""
    shape = node.offsets.shape if isinstance(node, Unpadded) else node.shape
    return max(0, shape[0] - isinstance(node, Unpadded)) if shape else 0


def _expect(node: Array | Unpadded, dtype: str, shape: tuple[int, ...]) -> None:
    """Raise Malformed unless a dataset has a type and shape; "S" is the type of texts, padded or not."""
    if isinstance(node, Unpadded) and dtype == "S":
        _expect(node.content, "<u1", node.content.shape[:1] or (0,))
        _expect(node.offsets, "<u8", (shape[0] + 1,))
        return
    array = _array(node)
    kind = array.dtype[: len(dtype)] if dtype == "S" else array.dtype
    if kind != dtype or array.shape != shape:
        raise hdf5.Malformed(f"a dataset should be {dtype} of shape {shape}")


def _check_offsets(offsets: np.ndarray, nbytes: int) -> None:
    if offsets[0] != 0 or offsets[-1] != nbytes or (offsets[1:] < offsets[:-1]).any():
        raise hdf5.Malformed("the offsets of texts are not in order")


def _is_ascii(texts: np.ndarray) -> bool:
    return not texts.size or int(texts.reshape(-1).view(np.uint8).max()) < 128


def _all_differ(texts: np.ndarray) -> bool:
    """Whether all texts are different; hashes are compared first, since sorting a million texts takes seconds."""
    width = -(-texts.dtype.itemsize // 8)
    words = texts.astype(f"S{8 * width}").view("<u8").reshape(len(texts), width)
    factors = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    hashes = np.sort(words @ factors)
    return not (hashes[1:] == hashes[:-1]).any() or len(set(texts.tolist())) == len(texts)


def _check_indices(values: np.ndarray, n: int) -> None:
    if len(values) and (values.min() < 0 or values.max() >= n):
        raise hdf5.Malformed("an index is out of range")
