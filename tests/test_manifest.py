"""A complete CSV table becomes columns of strings; labels become class names or numbers."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from helpers import assert_tells

from featx.errors import SourceError
from featx.manifest import as_labels, column, read_manifest


def test_a_csv_file_is_read_as_written(tmp_path):
    rows = [
        ["path", "label", "a, b", "Größe"],
        ["a.jpg", 'say "x"', " kept ", "1"],
        ["ü.jpg", "two\nlines", "", "2"],
    ]
    with open(tmp_path / "m.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    header, *values = rows
    assert read_manifest(tmp_path / "m.csv") == dict(zip(header, map(list, zip(*values, strict=True)), strict=True))


@pytest.mark.parametrize("separator, word", [(";", "semicolons"), ("\t", "tabs")])
def test_other_separators_are_named(tmp_path, separator, word):
    (tmp_path / "m.csv").write_text(f"id{separator}label\na{separator}x\n")
    with pytest.raises(SourceError, match=f"m.csv are separated by {word}; save it with commas"):
        read_manifest(tmp_path / "m.csv")


def test_bom_and_empty_lines_are_ignored(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbfpath,label\r\na.jpg,x\r\n\r\nb.jpg,y\r\n\r\n")
    assert read_manifest(tmp_path / "m.csv") == {"path": ["a.jpg", "b.jpg"], "label": ["x", "y"]}


def test_a_table_that_is_not_whole_is_refused(tmp_path, subtests):
    for content, words in [
        (b"", ["header line", "has no row"]),
        (b"path,label\n", ["at least one row"]),
        (b"path,path\na,b\n", ["two columns", "'path'", "rename"]),
        (b"path,label\na.jpg,x\nb.jpg\n", ["row 3", "2 values", "got 1"]),
        (b"path,label\na.jpg,x,y\n", ["row 2", "got 3"]),
        (b"path,label\n\n\na.jpg\n", ["row 4", "got 1"]),  # the row that an editor shows
        (b"path,label\n\xff.jpg,x\n", ["UTF-8"]),
    ]:
        with subtests.test(ascii((content, words))):
            (tmp_path / "m.csv").write_bytes(content)
            with pytest.raises(SourceError) as caught:
                read_manifest(tmp_path / "m.csv")
            assert_tells(caught.value, "m.csv", *words)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(SourceError) as caught:
            read_manifest(path)
        assert_tells(caught.value, "cannot read", str(path))


def test_a_missing_column_lists_similar_names_and_the_option():
    with pytest.raises(SourceError) as caught:
        column({"path": [], "labels": []}, "label", "m.csv", "--label-column")
    assert_tells(caught.value, "m.csv", "'label'", "close: 'labels'", "path, labels", "--label-column")


def test_class_labels_are_names_in_the_order_given():
    for values in (["b", "a", "b"], np.array(["b", "a", "b"]), (" b", "a ", "b"), np.array([*"bab"], object)):
        y = as_labels(values, "class")
        assert y.dtype.kind == "U" and y.tolist() == ["b", "a", "b"]


def test_numbers_may_name_classes():
    assert as_labels([1, 0, 1], "class").tolist() == ["1", "0", "1"]


def test_numeric_labels_are_float64():
    for values in (["1", "2.5", "-3e2"], [1, 2.5, -300], np.array([1, 2.5, -300], np.float32)):
        y = as_labels(values, "numeric")
        assert y.dtype == np.float64 and y.tolist() == [1.0, 2.5, -300.0]


def test_an_image_without_a_label_is_named(subtests):
    for missing, target in [("", "class"), ("  ", "numeric"), (None, "class"), (np.nan, "class"), (np.nan, "numeric")]:
        with subtests.test(ascii((missing, target))):
            with pytest.raises(SourceError) as caught:
                as_labels(np.array(["1", "2", missing], object), target)
            assert_tells(caught.value, "image 2", "label")


@pytest.mark.parametrize("value", ["inf", "nan", "one", "1,5"])
def test_numeric_labels_must_be_finite_numbers(value):
    with pytest.raises(SourceError) as caught:
        as_labels(["0", value], "numeric")
    assert_tells(caught.value, "image 1", "finite number", repr(value))


def test_labels_of_another_shape_and_other_targets_are_refused():
    with pytest.raises(SourceError) as caught:
        as_labels(np.zeros((3, 2)), "class")
    assert_tells(caught.value, "one value per image", "(3, 2)")
    with pytest.raises(SourceError) as caught:
        as_labels([1], "regression")
    assert_tells(caught.value, "'class' or 'numeric'", "'regression'")
