"""A search's request: its rules, in Python's words, and that its table of protocols agrees with the functions."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from featx import learn
from featx.catalogue import ESTIMATORS
from featx.errors import FeatxError
from featx.request import PROTOCOLS, ProtocolName, SearchRequest

READ_FROM_STORES = {"protocol", "output", "labels", "label_column", "target", "split_column", "test_value"}


def test_a_protocol_lacks_what_its_function_does_not_take(subtests):
    for name in PROTOCOLS:
        with subtests.test(name):
            parameters = {*inspect.signature(getattr(learn, PROTOCOLS[name].function)).parameters}
            alike = {"holdout": {"test_size", "test_store"}, "steps": {"l2", "power", "pca"}}
            parameters = parameters.union(*(names for name, names in alike.items() if name in parameters))
            if "validation_rows" in parameters:
                parameters.add("validation_value")
            lacks = {field.name for field in fields(SearchRequest)} - READ_FROM_STORES - parameters
            assert lacks == set(PROTOCOLS[name].lacks) - {"output"}


def test_names_are_those_of_the_library():
    assert get_args(ProtocolName) == tuple(PROTOCOLS)
    assert {spec.class_name for spec in ESTIMATORS.values()} <= set(learn.__all__)


def test_what_does_not_fit_is_refused_in_pythons_words(subtests):
    for settings, message in [
        ({"protocol": "knn", "nested": True}, "protocol='knn' has no nested; leave it out"),
        ({"protocol": "few-shot", "l2": True, "folds": 3}, "protocol='few-shot' has no l2, folds; leave them out"),
        ({"validation_value": "val", "split_column": "split"}, "protocol='grid' has no validation_value; leave it out"),
        ({"folds": 1}, "folds is 2 or more; got 1"),
        ({"n_jobs": 0}, "n_jobs is 1 or more, or -1 for one per core; got 0"),
        (
            {"test_size": 0.2, "split_column": "split"},
            "only one parameter may say which images are held out; got test_size and split_column",
        ),
        ({"test_value": "test"}, "test_value is a value of split_column; give that too"),
        ({"target": "numeric"}, "target describes the labels of labels or label_column; give one of them"),
    ]:
        with subtests.test(ascii((settings, message))):
            with pytest.raises(FeatxError) as caught:
                SearchRequest(**settings).validate()
            assert str(caught.value) == message


def test_a_store_of_test_images_goes_with_a_column_of_validation_images():
    both = {"split_column": "split", "test_store": Path("test.h5")}
    SearchRequest(protocol="knn", validation_value="val", **both).validate()
    with pytest.raises(FeatxError, match="which images are held out; got split_column and test_store"):
        SearchRequest(protocol="knn", validation_value="val", test_value="test", **both).validate()


@pytest.mark.parametrize("parts", [{}, {"size": 0.2, "rows": np.ones(3, bool)}])
def test_python_callers_hold_out_in_one_way_too(parts):
    with pytest.raises(FeatxError, match="HoldOut takes one of size, rows and store; got (none|size and rows)"):
        learn.HoldOut(**parts)
