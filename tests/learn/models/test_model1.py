"""Models saved before the classes moved: `data/model1.skops` names them by modules that are gone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any
from zipfile import ZipFile

import make_model1
import numpy as np
import pytest

import featx
from featx import learn
from featx.errors import ModelError


def test_a_model_saved_before_the_moves_loads_and_predicts_as_it_did(tmp_path):
    assert hashlib.sha256(make_model1.FILE.read_bytes()).hexdigest().startswith("946bf7ffd308f469")
    kept, fresh = featx.load(make_model1.FILE), make_model1.pipeline(tmp_path)
    assert kept[0].recipe_ == fresh[0].recipe_
    for (name, old), (_, new) in zip(kept[-1].estimators, fresh[-1].estimators, strict=True):
        assert type(old) is type(new) is getattr(learn, name)
        before, now = old.predict(make_model1.rows()), new.predict(make_model1.rows())
        if np.issubdtype(now.dtype, np.floating):
            np.testing.assert_allclose(before, now, rtol=1e-4)
        else:
            assert before.tolist() == now.tolist()


def test_a_saved_model_names_public_modules_only(tmp_path):
    path = featx.save(make_model1.pipeline(tmp_path), tmp_path / "new.skops")
    names = set(modules_in(json.loads(ZipFile(path).read("schema.json"))))
    assert {name for name in names if name.startswith("featx")} == {"featx.learn", "featx.store"}


def test_public_classes_carry_the_module_they_are_imported_from():
    assert {getattr(learn, name).__module__ for name in learn.__all__} == {"featx.learn"}
    assert featx.FeatureStore.__module__ == featx.store.Recipe.__module__ == "featx.store"


def test_parts_of_results_are_public():
    results = (learn.Selection, learn.ProtocolResult, learn.Curve, learn.Nested)
    types = {
        name for result in results for field in fields(result) for name in re.findall(r"[A-Z]\w+", str(field.type))
    }
    assert types - {"FeatureStore", "Interval", "None", "Pipeline"} <= set(learn.__all__)


def test_a_former_module_is_no_way_to_what_is_not_an_estimator(tmp_path):
    path = tmp_path / "forged.skops"
    with ZipFile(make_model1.FILE) as old, ZipFile(path, "w") as forged:
        for name in old.namelist():
            content = old.read(name)
            if name == "schema.json":
                assert b'"__class__": "SVR"' in content
                content = content.replace(b'"__class__": "SVR"', b'"__class__": "load"')
            forged.writestr(name, content)
    with pytest.raises(ModelError, match=r"holds types that a featx model must not: 'featx.learn.load'"):
        featx.load(path)


def modules_in(node: Any) -> Iterator[str]:
    """Every __module__ in a schema."""
    if isinstance(node, dict):
        if isinstance(node.get("__module__"), str):
            yield node["__module__"]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from modules_in(each)
