"""The sheet of similar images: one line for each query, with labels and distances, and a word where a file is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers import class_folders, store_of

import featx
from featx.report import similar_figure, similar_table, stored_image


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_line_for_each_query(pixel_store):
    names = pixel_store.ids[[0, 5]].tolist()
    found = pixel_store.similar(names, 3)
    figure = similar_figure(pixel_store, names, [stored_image(pixel_store, name) for name in names], found)
    assert len(figure.axes[0].images) == 8 and len(texts(figure)) == 8
    for row, distance in zip(found.rows[1], found.distances[1], strict=True):
        assert f"{pixel_store.ids[row]}\n{pixel_store.y[row]}, {distance:.3f}" in texts(figure)
    assert similar_table(pixel_store, names, found).row_count == 6


def test_pictures_that_are_gone_are_named(tmp_path):
    photos = class_folders(tmp_path / "photos", n=2)
    store = featx.extract(photos, tmp_path / "s.h5", "bundled:pixels", progress=False)
    name = str(store.ids[0])
    (photos / str(store.ids[store.similar(name, 1).rows[0, 0]])).unlink()
    assert texts(similar_figure(store, [name], [photos / name], store.similar(name, 2))).count("not found") == 1
    rows = store_of(tmp_path / "rows.h5", {"a:avg": np.eye(3)}, ids=["$a$", "b", "c"])
    figure = similar_figure(rows, ["$a$"], [Path("$a$")], rows.similar("$a$", 2))
    assert texts(figure).count("not found") == 3 and len(figure.axes[0].images) == 0
    figure.savefig(tmp_path / "sheet.png")
