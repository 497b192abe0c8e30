"""Public classes are named by the module of import, and their annotations can still be evaluated."""

from __future__ import annotations

from typing import get_type_hints

import pytest

import featx
import featx.learn
import featx.store

PUBLIC = [(room, name) for room in (featx, featx.learn, featx.store) for name in room.__all__]


@pytest.mark.parametrize("room, name", PUBLIC, ids=[f"{room.__name__}.{name}" for room, name in PUBLIC])
def test_annotations_can_be_evaluated(room, name):
    public = getattr(room, name)
    if callable(public):
        get_type_hints(public)
    if isinstance(public, type):
        own = [getattr(public, method) for method in vars(public) if method == "__init__" or method[0] != "_"]
        for method in filter(callable, own):
            get_type_hints(method)


def test_they_are_evaluated_where_they_were_written():
    assert get_type_hints(featx.store.Recipe)["backbone"] is str
    assert list(featx.learn.Prediction.__annotations__) == list(featx.learn.Prediction._fields)
    assert get_type_hints(featx.learn.StoredFeatures)["recipe_"] is featx.store.Recipe
