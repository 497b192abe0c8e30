"""Tables and figures say what the selection found."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import featx
from featx.learn import Prediction, Selection, select_model
from featx.report import predictions_csv, predictions_json, predictions_table, ranking_table, selection_figure
from featx.report.heldout import mistake_pictures


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    """Three classes of pictures, two of them alike, so that there are mistakes."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("photos")
    for name, level in {"a": 60, "b": 62, "c": 180}.items():
        for i in range(20):
            path = root / name / f"{i:02}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.normal(level, 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)).save(path)
    store = featx.extract(root, root / "store.h5", "bundled:pixels", progress=False)
    return select_model(store, estimators=["logistic_regression", "rbf_svm"], folds=3, n_jobs=1)


def _text(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_has_the_best_C_of_each_layer_and_estimator_best_first(selection: Selection) -> None:
    table = ranking_table(selection)
    assert table.row_count == 2
    for name in ("logistic_regression", "rbf_svm"):
        best = max(c.mean for c in selection.candidates if c.estimator == name)
        assert f"{best:.3f}" in _text(table)
    first = _text(table).split("│ ")[1:4]
    assert first[0].strip() == "1" and first[2].strip() == selection.best.estimator


def test_the_figure_shows_every_accuracy_the_confusion_and_the_mistakes(selection: Selection) -> None:
    figure = selection_figure(selection, "the title")
    shown = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    for candidate in selection.candidates:
        assert f"{candidate.mean:.2f}".lstrip("0") in shown
    assert selection.confusion is not None
    assert {str(count) for count in selection.confusion.ravel()} <= set(shown)
    wrong = int(selection.confusion.sum() - np.trace(selection.confusion))
    assert wrong > 0 and sum("\nnot " in text for text in shown) == min(wrong, 8)
    figure.savefig(io.BytesIO())


def test_shown_mistakes_are_the_images_that_were_wrong(selection: Selection) -> None:
    store = selection.stores[0]
    assert selection.X_test is not None and store.recipe.origin is not None
    wrong = {store.ids[row] for row in store.rows(selection.X_test[selection.mistakes()])}
    pictures = {name: np.asarray(Image.open(Path(store.recipe.origin, name))) for name in wrong}
    for picture, said in mistake_pictures(selection):
        names = [name for name, pixels in pictures.items() if np.array_equal(pixels, np.asarray(picture))]
        true, predicted = said.split("\nnot ")
        assert names and names[0].split("/")[0] == true != predicted


def test_a_selection_without_held_out_images_or_with_moved_ones_is_drawn(selection: Selection) -> None:
    bare = dataclasses.replace(selection, X_test=None, y_test=None, predicted=None, confidence=None)
    selection_figure(bare).savefig(io.BytesIO())
    moved = dataclasses.replace(selection, stores=[_Moved(selection.stores[0])])  # type: ignore[list-item]
    assert mistake_pictures(moved) == []
    selection_figure(moved).savefig(io.BytesIO())


class _Moved:
    """A store whose images are somewhere else by now."""

    def __init__(self, store: featx.FeatureStore) -> None:
        self.recipe = dataclasses.replace(store.recipe, origin="/nowhere")
        self.layers, self.ids, self.rows = store.layers, store.ids, store.rows


def test_predictions_read_the_same_in_every_form() -> None:
    rows = [
        Prediction("a,b.png", "cat", 0.75, "probability", ""),
        Prediction("c.png", None, None, "", "there is no such file"),
        Prediction("d.png", 2.5, None, "value", ""),
    ]
    assert predictions_csv(rows).splitlines() == [
        "image,label,confidence,kind,error",
        '"a,b.png",cat,0.75,probability,',
        "c.png,,,,there is no such file",
        "d.png,2.5,,value,",
    ]
    assert '"label": "cat"' in predictions_json(rows) and '"confidence": null' in predictions_json(rows)
    assert "cannot be read: there is no such file" in _text(predictions_table(rows))
