"""The settings of a search and their rules, checked before scikit-learn is imported, which takes seconds.

`featx search` turns its options into a SearchRequest, whose fields are named like the library's parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featx.catalogue import ESTIMATORS
from featx.errors import (
    FeatxError,
    Parameter,
    Part,
    SourceError,
    StoreError,
    file_of_labels,
    listed,
    nearest,
    no_column,
)

if TYPE_CHECKING:
    import numpy as np

    from featx.store import FeatureStore

ProtocolName = Literal["grid", "linear-probe", "knn", "few-shot", "learning-curve"]


# parameters of the request that choose among candidates and estimators
_GRID = ("estimators", "l2", "power", "pca", "scoring", "one_se", "nested", "folds", "n_jobs")


# settings that `SearchRequest.arguments` looks up in the stores, or that choose what is run and written
_LOOKED_UP = {
    "protocol",
    "output",
    "labels",
    "label_column",
    "target",
    "split_column",
    "test_value",
    "validation_value",
    "test_store",
}


@dataclass(frozen=True)
class ProtocolSpec:
    """One of the ways to search.

    Parameters
    ----------
    function : str
        The function of featx.learn that runs it.
    lacks : sequence of str
        Parameters of a SearchRequest that this function does not have.
    """

    function: str
    lacks: Sequence[str]


PROTOCOLS: dict[ProtocolName, ProtocolSpec] = {
    "grid": ProtocolSpec("select_model", ("validation_value",)),
    "linear-probe": ProtocolSpec("linear_probe", (*_GRID, "repeats")),
    "knn": ProtocolSpec("knn_probe", (*_GRID, "output", "repeats")),
    "few-shot": ProtocolSpec("few_shot", (*_GRID, "output", "validation_value")),
    "learning-curve": ProtocolSpec("learning_curves", (*_GRID, "output", "validation_value")),
}


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """A protocol with its settings; None and False leave a setting to the protocol's default.

    Parameters
    ----------
    protocol : str
        A key of PROTOCOLS.
    output : path, optional
        Where the best model is saved.
    labels : path, optional
        A CSV file of labels by image id.
    label_column : str, optional
        The column of labels in that file, or else in the first store.
    target : "class" or "numeric", optional
        Whether these labels are class names or numbers.
    split_column : str, optional
        The column of the first store that says which images are held out.
    test_value, validation_value : str, optional
        The values of that column for test images, by default "test", and for the images on which parameters are chosen.
    test_store : path, optional
        A store of images to test on.
    layers, estimators, l2, power, pca, scoring, one_se, nested
        As in `featx.learn.select_model`.
    groups, allow_duplicates, test_size, folds, repeats, random_state, n_jobs
        As in `featx.learn.select_model`.
    """

    protocol: ProtocolName = "grid"
    output: Path | None = None
    layers: Sequence[str | Sequence[str]] | None = None
    estimators: Sequence[str] | None = None
    l2: bool = False
    power: bool = False
    pca: int | None = None
    scoring: str | None = None
    one_se: bool = False
    nested: bool = False
    labels: Path | None = None
    label_column: str | None = None
    target: Literal["class", "numeric"] | None = None
    groups: str | None = None
    allow_duplicates: bool = False
    test_size: float | None = None
    split_column: str | None = None
    test_value: str | None = None
    validation_value: str | None = None
    test_store: Path | None = None
    folds: int | None = None
    repeats: int | None = None
    random_state: int = 0
    n_jobs: int | None = None

    def validate(self) -> None:
        """Raise FeatxError where settings are out of range, are not the protocol's, or exclude one another."""
        for name, least in (("folds", 2), ("repeats", 1), ("pca", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise FeatxError(Parameter(name), f" is {least} or more; got {value}")
        if self.test_size is not None and not 0 <= self.test_size < 1:
            raise FeatxError(
                Parameter("test_size"), f" is the share of images held out, from 0 to below 1; got {self.test_size}"
            )
        for name in self.estimators or ():
            if name not in ESTIMATORS:
                raise FeatxError(
                    f"there is no estimator {name!r}{nearest(name, ESTIMATORS)}; choose {', '.join(ESTIMATORS)}"
                )
        if self.n_jobs == 0:
            raise FeatxError(Parameter("n_jobs"), " is 1 or more, or -1 for one per core; got 0")
        if unused := [name for name in PROTOCOLS[self.protocol].lacks if self._is_set(name)]:
            them = "it" if len(unused) == 1 else "them"
            raise FeatxError(
                Parameter("protocol", self.protocol), " has no ", *_joined(unused, ", "), f"; leave {them} out"
            )
        names = ("test_size", "test_store") if self._only_validates else ("test_size", "split_column", "test_store")
        _refuse_several_hold_outs([name for name in names if getattr(self, name) is not None])
        for name in ("test_value", "validation_value"):
            if getattr(self, name) is not None and self.split_column is None:
                raise FeatxError(Parameter(name), " is a value of ", Parameter("split_column"), "; give that too")
        if self.labels is None and self.label_column is None and self.target is not None:
            raise FeatxError(
                Parameter("target"),
                " describes the labels of ",
                *_joined(["labels", "label_column"], " or "),
                "; give one of them",
            )
        if self.test_store is not None and self.labels is None and self.target == "numeric":
            raise FeatxError(
                Parameter("label_column"),
                " gives the searched store numeric labels, but not the test store; extract both stores with labels",
            )

    def arguments(self, store: FeatureStore) -> dict[str, Any]:
        """The settings with labels and held-out images looked up; see `run`.

        Parameters
        ----------
        store : FeatureStore
            The first of the searched stores; labels and held-out images are read from its ids and columns.

        Raises
        ------
        FeatxError
            A column or a value of it, the file of labels or the test store is missing or does not fit.
        """
        from featx.store import FeatureStore

        arguments = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _LOOKED_UP}
        if self.split_column is not None and not self._only_validates:
            arguments["test_rows"] = rows_with(store, self.split_column, self.test_value or "test")
        if self.split_column is not None and self.validation_value is not None:
            arguments["validation_rows"] = rows_with(store, self.split_column, self.validation_value)
        arguments["y"] = self._labels(store)
        arguments["test_store"] = None if self.test_store is None else FeatureStore(self.test_store)
        return {name: value for name, value in arguments.items() if value is not None and value is not False}

    def run(self, stores: Sequence[FeatureStore], arguments: dict[str, Any], on_progress: Any) -> Any:
        """Run the protocol; imports scikit-learn.

        Parameters
        ----------
        stores : the searched stores
        arguments : as `arguments` returned them
        on_progress : as in the protocol's function

        Returns
        -------
        Selection or ProtocolResult
        """
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import Normalizer, PowerTransformer

        from featx import learn

        options = _with_holdout(arguments)
        steps: list[Any] = [Normalizer()] if options.pop("l2", False) else []
        steps += [PowerTransformer()] if options.pop("power", False) else []
        n_components = options.pop("pca", None)
        steps += [PCA(n_components, random_state=0)] if n_components else []
        if steps:
            options["steps"] = steps
        return getattr(learn, PROTOCOLS[self.protocol].function)(stores, **options, on_progress=on_progress)

    def experiment(self, store: FeatureStore) -> dict[str, Any]:
        """Labels, groups, held-out images and the seed, as `select_model` and `finetune` take them.

        Raises
        ------
        FeatxError
            As in `arguments`.
        """
        return _with_holdout(self.arguments(store))

    @property
    def _only_validates(self) -> bool:
        """Whether `split_column` gives only the validation images, and `test_store` the test images."""
        return self.test_store is not None and self.validation_value is not None and self.test_value is None

    def _is_set(self, name: str) -> bool:
        return getattr(self, name) is not None and getattr(self, name) is not False

    def _labels(self, store: FeatureStore) -> np.ndarray | str | None:
        """Labels of the file or of a column of the store; None for the store's own."""
        target = self.target or "class"
        if self.labels is not None:
            return labels_in_file(store, self.labels, self.label_column, target=target, partial=True)
        if self.label_column is None or target == "class":
            return self.label_column
        cells = _column(store, self.label_column)
        return store.align(dict(zip(store.ids.tolist(), cells.tolist(), strict=True)), target=target)

    def unlabelled_text(self, y: np.ndarray | str | None) -> str:
        """How many images the labels leave out; "" if there are none.

        y : the labels in the result of `arguments` or `experiment`
        """
        import numpy as np

        if not isinstance(y, np.ma.MaskedArray):
            return ""
        return f"{y.count():,} of {len(y):,} images have a label in {self.labels}; the others are left out"


def labels_in_file(
    store: FeatureStore,
    file: Path,
    column: str | None,
    *,
    target: Literal["class", "numeric"] = "class",
    option: str = "labels",
    partial: bool = False,
) -> np.ndarray:
    """(n,) labels of a CSV file.

    option : the parameter that names it, in messages
    partial : whether images may lack a label; see `FeatureStore.align`
    """
    if not file.exists() and not file.suffix:  # it is meant as a column
        what = f"a column of {store.path.name}" if str(file) in store.columns else "no file"
        raise SourceError(
            Parameter(option),
            f" is a CSV file of labels by image id; {file} is {what}; columns of the store are chosen with ",
            Parameter("label_column", str(file)),
        )
    return store.align(file, column or "label", target=target, partial=partial)


def _with_holdout(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` with one HoldOut in place of the parameters that it is made from."""
    from featx.learn import HoldOut

    options = dict(arguments)
    held_out = {name: options.pop(f"test_{name}") for name in ("size", "rows", "store") if f"test_{name}" in options}
    return options | {"holdout": HoldOut(**held_out)} if held_out else options


def _refuse_several_hold_outs(names: Sequence[str]) -> None:
    """Raise FeatxError if more than one parameter says which images are held out."""
    if len(names) > 1:
        raise FeatxError("only one parameter may say which images are held out; got ", *_joined(names, " and "))


def _joined(names: Sequence[str], separator: str) -> list[Part]:
    parts: list[Part] = []
    for name in names:
        parts += [separator, Parameter(name)]
    return parts[1:]


def rows_with(store: FeatureStore, name: str, value: str) -> np.ndarray:
    """(n,) bool, the images that have a value in a column."""
    cells = _column(store, name)
    rows = cells == value
    if not rows.any():
        raise StoreError(f"no image has {name} = {value!r}; there are {listed(sorted(set(cells.tolist())))}")
    return rows


def _column(store: FeatureStore, name: str) -> np.ndarray:
    if name not in store.columns:
        raise StoreError(no_column(store.path.name, name, store.columns), *file_of_labels(name))
    return store.columns[name]
