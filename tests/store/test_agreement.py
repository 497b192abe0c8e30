"""Stores that differ in rounding only: what is rounded differently and how far rows may differ, in one line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import recipe

from featx.backbones import COMPILED, EAGER, engine
from featx.store import agreement, rounding_note

MADE = recipe({"layer3:avg": [256]}, engine=COMPILED)
FAST = replace(MADE, precision="bfloat16", precision_error=0.004138)


def note(one, other) -> str:
    return rounding_note(one, other, ("test.h5", "train.h5"))


def test_there_is_no_note_if_nothing_is_rounded_differently():
    same = replace(MADE, weights="DEFAULT", versions={"torch": "9"}, origin="/a", collection="1" * 32)
    assert note(MADE, MADE) == note(MADE, same) == ""


def test_what_differs_is_named_with_a_tolerance(subtests):
    for changes, words, tolerance in [
        ({"engine": EAGER}, ("engine eager", "engine compiled"), "0.01 %"),
        ({"batch_size": 7}, ("batch_size 7", "batch_size 4"), "0.01 %"),
        ({"threads": 16}, ("threads 16", "threads 2"), "0.01 %"),
        ({"device": "cuda"}, ("device cuda", "device cpu"), "0.01 %"),
        ({"pass_rows": 2}, ("pass_rows 2", "whole batches in one pass"), "0.01 %"),
        ({"dtype": "float16"}, ("dtype float16", "dtype float32"), "0.05 %"),
        ({"dtype": "float16", "batch_size": 7}, ("dtype float16", "batch_size 4"), "0.06 %"),
    ]:
        with subtests.test(ascii((changes, words))):
            said = note(replace(MADE, **changes), MADE)
            left, right = said.split("; ")
            assert left.startswith("test.h5 was made with ") and words[0] in left
            assert right.startswith("train.h5 with ") and words[1] in right
            assert said.endswith(f": rows agree within {tolerance} (relative L2)") and "\n" not in said


def test_the_recorded_error_of_a_faster_type_is_the_tolerance():
    assert "rows agree within 0.42 %" in note(MADE, FAST)  # rounded up
    assert "rows agree within 0.42 %" in note(FAST, replace(MADE, batch_size=9, threads=3))
    assert "rows agree within 0.83 %" in note(FAST, replace(FAST, batch_size=9))  # each is so far off float32
    assert "rows agree within 0.47 %" in note(replace(FAST, dtype="float16"), MADE)
    assert "rows agree within 0.01 %" in note(MADE, replace(FAST, precision_error=1.2e-5))


@pytest.mark.parametrize("other", [MADE, FAST, replace(MADE, precision="float16"), replace(FAST, threads=7)])
def test_an_unmeasured_error_gives_no_tolerance(other):
    unknown = replace(MADE, precision="bfloat16", batch_size=8)
    assert note(unknown, other).endswith(
        ": how far rows may differ is not known: bfloat16 was chosen by name, and only precision auto measures it"
    )
    assert note(unknown, replace(unknown, dtype="float16")).endswith("rows agree within 0.05 % (relative L2)")


def test_the_tolerance_of_float32_is_what_engine_auto_accepts():
    assert agreement.FLOAT32_ERROR == engine.EXACT_TOLERANCE


def test_rows_stored_as_float16_are_within_the_tolerance():
    rows = np.random.default_rng(0).lognormal(0, 2, (1000, 64)).astype("float32")
    off = np.linalg.norm(rows - rows.astype("float16"), axis=1) / np.linalg.norm(rows, axis=1)
    assert off.max() <= 2**-11
