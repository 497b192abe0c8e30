"""Tables, figures, files and the live table say what a search or a protocol found, all of it and nothing else."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import featx
from featx.learn import Prediction, select_model
from featx.learn.scores.intervals import Interval, cv_interval, mean_interval, wilson
from featx.learn.selection.results import (
    Candidate,
    Curve,
    Nested,
    Point,
    ProtocolResult,
    SearchSettings,
    Selection,
    TestSet,
    TrainingSet,
)
from featx.progress import SearchProgress
from featx.report import (
    nested_table,
    predictions_csv,
    predictions_json,
    predictions_table,
    progress,
    protocol_figure,
    protocol_table,
    ranking_table,
    results_csv,
    results_json,
    search_progress,
    selection_figure,
    selection_text,
)
from featx.report.heldout import MISTAKES, mistake_pictures
from featx.report.page.search import candidates_section


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


ESTIMATORS: dict[str, tuple[str, list[float | None]]] = {
    "logistic_regression": ("C", [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]),
    "ridge_classifier": ("alpha", [1.0, 10.0, 100.0, 1000.0, 1e4, 1e5]),
    "knn": ("n_neighbors", [1.0, 5.0, 20.0, 100.0]),
    "rbf_svm": ("C", [0.1, 1.0, 10.0, 100.0, 1000.0]),
    "nearest_centroid": ("", [None]),
}


def made(layers: list[str], backbones: tuple[str, ...] = ("torchvision:resnet50",), folds: int = 5) -> list[Candidate]:
    """Candidates of every estimator on every layer, best first."""
    rng = np.random.default_rng(0)
    found = []
    for backbone, (depth, layer) in itertools.product(backbones, enumerate(layers, start=1)):
        for place, (estimator, (parameter, values)) in enumerate(ESTIMATORS.items()):
            for value in values:
                scores = tuple((0.3 + 0.5 * depth / len(layers) + rng.normal(0, 0.04, folds)).clip(0, 1).tolist())
                mean, std = float(np.mean(scores)), float(np.std(scores))
                interval = cv_interval(scores, 80, 20, 0, 1)
                complexity = (64.0 * depth, place, value or 0.0)
                what = (backbone, layer, 64 * depth, estimator, parameter, value, mean, std, interval, scores)
                found.append(Candidate(*what, fit_seconds=float(rng.random()), complexity=complexity))
    return sorted(found, key=lambda candidate: -candidate.mean)


LAYERS = ["layer1:avg", "layer2:avg", "layer3:avg", "layer3:avg+layer4:avg"]


def parted(selection: Selection, **changes: Any) -> Selection:
    """`replace`, which finds the part of a selection that has each field."""
    names = {"test": TestSet, "training": TrainingSet, "settings": SearchSettings}  # X and y: those of the test
    for name, part in names.items():
        of_part = {field.name: changes.pop(field.name) for field in fields(part) if field.name in changes}
        if of_part:
            changes[name] = replace(getattr(selection, name), **of_part)
    return replace(selection, **changes)


def searched(selection: Selection, candidates: list[Candidate], **changes: Any) -> Selection:
    return parted(selection, candidates=candidates, chosen=candidates[0], folds=5, **changes)


def of_numbers(selection: Selection, scoring: str = "r2") -> Selection:
    """The same with numbers as labels."""
    rng = np.random.default_rng(0)
    y = rng.normal(300, 100, 12)
    candidates = [replace(candidate, mae=1534 * candidate.mean) for candidate in made(LAYERS)]
    if scoring != "r2":
        candidates = sorted(
            (
                replace(c, mean=-c.mae, interval=Interval(-c.mae - 50, -c.mae + 40))  # type: ignore[operator]
                for c in candidates
            ),
            key=lambda c: -c.mean,
        )
    changes = {"classes": None, "y": y, "predicted": y + rng.normal(0, 40, 12), "confidence": None}
    return searched(selection, candidates, scoring=scoring, chance=0.0, **changes)


def nested_of(candidates: list[Candidate], folds: int = 4) -> Nested:
    scores = (0.61, 0.65, 0.7)
    return Nested(scores, cv_interval(scores, 80, 20, 0, 1), tuple(candidates[:3]), folds, "accuracy")


def protocol(selection: Selection, name: str, varied: str, xs: list[float], n_layers: int = 4) -> ProtocolResult:
    rng = np.random.default_rng(0)
    chooses = name in ("linear-probe", "knn")
    curves = []
    for depth in range(1, n_layers + 1):
        points = []
        for x in xs:
            draws = tuple((0.2 + 0.6 * depth / n_layers + rng.normal(0, 0.03, 1 if chooses else 5)).clip(0, 1).tolist())
            interval = wilson(draws[0], 20) if chooses else mean_interval(draws, 0, 1)
            points.append(Point(x, float(np.mean(draws)), interval, draws))
        best = max(points, key=lambda point: point.mean) if chooses else None
        test = (best, best.mean - 0.01, wilson(best.mean - 0.01, 25)) if best else ()
        curves.append(Curve("torchvision:resnet50", f"layer{depth}:avg", 64 * depth, tuple(points), *test))
    return ProtocolResult(
        name,
        varied,
        tuple(curves[::-1]),
        **{"n_train": 100, "n_validation": 20 * chooses, "n_test": 25, "classes": np.array(["a", "b"]), "chance": 0.1},
        repeats=1 if chooses else 5,
        stores=selection.training.stores,
        title={"linear-probe": "linear probe", "knn": "k nearest neighbours"}.get(name, ""),
    )


PROTOCOLS = {
    "linear-probe": ("C", np.logspace(-6, 5, 45).tolist()),
    "knn": ("k", [5.0, 10.0, 20.0, 50.0]),
    "few-shot": ("images a class", [1.0, 2.0, 4.0]),
    "learning-curve": ("training images", [20.0, 50.0, 100.0]),
}


def _text(renderable: object, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


# --- tables ---


def test_the_table_has_the_best_setting_of_each_layer_and_estimator_best_first(selection: Selection) -> None:
    table = ranking_table(selection)
    assert table.row_count == 2
    for name in ("logistic_regression", "rbf_svm"):
        best = max(c.mean for c in selection.candidates if c.estimator == name)
        assert f"{best:.3f}" in _text(table)
    first = _text(table).split("│ ")[1:4]
    assert first[0].strip() == "* 1" and first[2].strip() == selection.best.estimator


def test_every_mean_has_its_interval_beside_it(selection: Selection) -> None:
    candidates = made(LAYERS)
    lines = [
        line for line in _text(ranking_table(searched(selection, candidates), most=50)).splitlines() if "│" in line
    ]
    best = {(c.layer, c.estimator): c for c in reversed(candidates)}
    for candidate in best.values():
        low, high = candidate.interval
        assert any(f"{candidate.mean:.3f} [{low:.3f}, {high:.3f}]" in line for line in lines)
    bare = [replace(c, interval=cv_interval(c.scores[:1], 1, 1, 0, 1)) for c in candidates]
    assert "nan" not in _text(ranking_table(searched(selection, bare)))


def test_what_is_cheaper_and_within_noise_is_named_and_nothing_else(selection: Selection) -> None:
    found = searched(selection, made(LAYERS))
    best = found.best
    cheap = replace(best, layer="small:avg", d=3, value=0.5, mean=best.mean - 1e-4, complexity=(0.0, 0.0, 0.0))
    said = ranking_table(searched(selection, [best, cheap])).caption
    assert isinstance(said, str) and "simpler, and within one standard error of the best: small:avg, " in said
    assert "3 features" in said
    far = replace(cheap, mean=best.mean - 0.5)
    assert ranking_table(searched(selection, [best, far])).caption == "* chosen, being the best"
    chosen = ranking_table(replace(searched(selection, [best, cheap]), chosen=cheap))
    assert "chosen, being the simplest within one standard error" in str(chosen.caption)
    assert [row.style for row in chosen.rows] == [None, "bold"]


def test_of_every_backbone_and_of_what_was_chosen_there_is_a_row(selection: Selection) -> None:
    candidates = made(LAYERS, ("torchvision:resnet50", "bundled:pixels"))
    table = ranking_table(replace(searched(selection, candidates), chosen=candidates[-1]), most=1)
    assert 2 <= table.row_count <= 3 and "bold" in {row.style for row in table.rows}
    assert {"resnet50", "pixels"} == set(table.columns[1].cells)
    twins = ranking_table(searched(selection, made(LAYERS, ("torchvision:resnet50", "timm:resnet50"))), most=1)
    assert {"torchvision:resnet50", "timm:resnet50"} == set(twins.columns[1].cells)
    assert re.search(r"and \d+ more pairs? of layer and estimator", str(table.caption))
    partial = replace(searched(selection, candidates), is_partial=True, test=None)
    assert "interrupted" in str(ranking_table(partial).caption) and "interrupted" in selection_text(partial)


def test_numbers_have_their_own_words(selection: Selection) -> None:
    found = of_numbers(selection)
    text = _text(ranking_table(found))
    assert "R²" in text and "MAE" in text and f"{found.best.mae:,.0f}" in text
    assert "R²" not in selection_text(found) and "mean absolute error" in selection_text(found)
    errors = of_numbers(selection, "neg_mean_absolute_error")
    text = _text(ranking_table(errors))
    low, high = (f"{-end:,.0f}" for end in errors.best.interval[::-1])
    assert f" {-errors.best.mean:,.0f} [{low}, {high}] " in text
    assert "-" not in text.replace("5-fold", "") and "MAE" not in text


def test_the_answer_puts_the_biased_score_before_the_unbiased_one(selection: Selection) -> None:
    found = searched(selection, made(LAYERS))
    nested = nested_of(found.candidates)
    text = selection_text(parted(found, nested=nested, steps=("l2", "pca 8"), n_groups=7, n_duplicates=2))
    order = [
        "l2, pca 8",
        "7 groups",
        "2 images have the same content",
        "biased upwards",
        "nested",
        "held out: ",
    ]
    assert sorted(order, key=text.index) == order
    assert f"{found.held_out:.3f} [{found.held_out_interval.low:.3f}" in text  # type: ignore[union-attr]
    assert "3 of 4 outer splits, interrupted" in text
    table = nested_table(nested)
    assert table.row_count == 3 and "0.700" in _text(table) and "3 of 4" in str(table.caption)
    two = nested_table(nested_of(made(LAYERS[:1], ("torchvision:resnet50", "bundled:pixels")), folds=3))
    assert two.caption is None and set(two.columns[1].cells) <= {"resnet50", "pixels"}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_table_and_its_answer(selection: Selection, name: str) -> None:
    result = protocol(selection, name, *PROTOCOLS[name])
    text, best = _text(protocol_table(result)), result.curves[0]
    assert re.findall(r"layer\d:avg", text) == [curve.layer for curve in result.curves]
    if best.chosen is not None:
        shown = [best.chosen.mean, *best.chosen.interval, best.test, *best.test_interval]  # type: ignore[misc]
    else:
        points = [point for curve in result.curves for point in curve.points]
        shown = [end for point in points for end in (point.mean, *point.interval)]
    assert all(f"{score:.3f}" in text for score in shown)
    said = selection_text(result)
    assert best.layer in said and f"{best.test or best.points[-1].mean:.3f}" in said and "biased upwards" in said
    few = protocol_table(result, most=3)
    assert few.row_count == 3 and "and 1 more layers" in str(few.caption)


def test_what_was_chosen_has_a_row_and_a_star_of_its_own_beside_the_best(selection: Selection) -> None:
    """Of a layer and an estimator the best C has a row; what --one-se chose may be another C of the same."""
    found = searched(selection, made(LAYERS))
    best = found.best
    other = next(c for c in found.candidates if (c.layer, c.estimator) == (best.layer, best.estimator) and c != best)
    rows = _text(ranking_table(replace(found, chosen=other), most=1)).splitlines()
    starred = [line for line in rows if re.match("│ +[*] ", line)]
    assert len(starred) == 1 and f"{other.parameter} = {other.value:g} │" in starred[0]
    assert any(re.match("│ +1 ", line) and f"{best.mean:.3f} [" in line for line in rows)
    assert any("* chosen" in line for line in rows)


def test_features_are_those_that_are_left_of_a_pca(selection: Selection) -> None:
    first, second, *_ = made(LAYERS)
    kept = replace(first, complexity=(32.0, *first.complexity[1:]))
    found = searched(selection, [kept, second])
    assert ranking_table(found).columns[3].cells.__next__() == f"32 of {first.d}"
    assert candidates_section(found).blocks[1].rows[0][4] == f"32 of {first.d}"  # type: ignore[union-attr]
    row = next(csv.DictReader(io.StringIO(results_csv(found))))
    assert (row["features"], row["layer_features"]) == ("32", str(first.d))


def test_a_choice_biases_the_score_if_there_was_one(selection: Selection) -> None:
    one = searched(selection, made(LAYERS)[:1])
    assert "biased upwards" not in selection_text(one) and "best of" not in selection_text(one)
    assert "biased upwards" not in selection_text(replace(one, test=None))
    result = protocol(selection, "knn", "k", [5.0], n_layers=1)
    assert "biased upwards" not in selection_text(result)
    assert "best of 4 in validation" in selection_text(protocol(selection, "knn", "k", [5.0, 9.0], n_layers=2))


def test_draws_are_counted_where_they_were_drawn(selection: Selection) -> None:
    few = protocol(selection, "few-shot", "images a class", [1.0, 4.0])
    assert "best with 4 images a class, over 5 draws: " in selection_text(few)
    curves = protocol(selection, "learning-curve", "training images", [50.0, 100.0])
    points = [(*curve.points[:-1], replace(curve.points[-1], scores=(0.5,))) for curve in curves.curves]
    whole = [replace(curve, points=those) for curve, those in zip(curves.curves, points, strict=True)]
    said = selection_text(replace(curves, curves=tuple(whole)))
    assert "best with 100 training images, all there are: " in said and "draws" not in said
    assert ", 5 draws of fewer than all (" in str(protocol_table(replace(curves, curves=tuple(whole))).title)
    assert ", 5 draws (" in str(protocol_table(few).title)


def of_r2(selection: Selection) -> ProtocolResult:
    """A learning curve of numbers, with scores below zero."""
    found = protocol(selection, "learning-curve", "training images", [12.0, 24.0, 48.0])
    curves = []
    for curve in found.curves:
        points = [replace(p, mean=p.mean - 0.9, interval=Interval(*np.subtract(p.interval, 0.9))) for p in curve.points]
        curves.append(replace(curve, points=tuple(points)))
    return replace(found, curves=tuple(curves), classes=None, chance=0.0, scoring="r2")


def test_a_learning_curve_of_numbers_speaks_of_r2(selection: Selection) -> None:
    result = of_r2(selection)
    assert "R² by training images" in _text(protocol_table(result)) and "accuracy" not in _text(protocol_table(result))
    assert {row["scoring"] for row in json.loads(results_json(result))["results"]} == {"r2"}
    figure = protocol_figure(result)
    assert any("test R²" in text for text in _shown(figure)) and not any("accuracy" in text for text in _shown(figure))
    _assert_legible(figure)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_was_interrupted_says_so_everywhere(selection: Selection, name: str) -> None:
    whole = protocol(selection, name, *PROTOCOLS[name])
    assert "interrupted" not in " ".join([_text(protocol_table(whole)), selection_text(whole), results_csv(whole)])
    part = replace(whole, is_partial=True)
    shown = [_text(protocol_table(part)), selection_text(part), " ".join(_shown(protocol_figure(part)))]
    assert all("interrupted" in text for text in shown)
    _assert_legible(protocol_figure(part))
    for result, partial in ((whole, 0), (part, 1)):
        said = json.loads(results_json(result))
        assert {row["partial"] for row in said["results"]} == {partial} and said["is_partial"] == bool(partial)


def test_an_interrupted_search_says_so_in_its_figure_and_its_rows(selection: Selection) -> None:
    part = replace(searched(selection, made(LAYERS)), is_partial=True, test=None)
    figure = selection_figure(part)
    assert any("interrupted" in text for text in _shown(figure))
    _assert_legible(figure)
    rows = csv.DictReader(io.StringIO(results_csv(part)))
    assert {row["partial"] for row in rows} == {"1"}
    nested = nested_of(part.candidates)
    assert {row["partial"] for row in json.loads(results_json(nested))["results"]} == {1}
    done = json.loads(results_json(nested_of(part.candidates, folds=3)))
    assert {row["partial"] for row in done["results"]} == {0}


LONG = ["features.denseblock4.denselayer32.conv2:avg", "blocks.3.1.conv_pwl:max", "layer3:avg+layer4:avg"]
FIVE = tuple(f"timm:convnext_{size}.fb_in22k_ft_in1k_384" for size in ("tiny", "small", "base", "large", "xlarge"))


def tables(selection: Selection) -> dict[str, Any]:
    """(table, numbers that it shows) of every kind, of long names."""
    candidates = made(LONG, FIVE)
    found = searched(selection, candidates)
    errors = of_numbers(selection, "neg_mean_absolute_error")
    wide = replace(errors, candidates=[replace(c, layer=LONG[0]) for c in errors.candidates])
    curves = {}
    for name, (varied, xs) in {**PROTOCOLS, "few-shot": ("images a class", [1.0, 2.0, 4.0, 8.0, 16.0])}.items():
        result = protocol(selection, name, varied, xs)
        named = [replace(c, backbone=b, layer=LONG[0]) for c, b in zip(result.curves, FIVE, strict=False)]
        curves[name] = protocol_table(replace(result, curves=tuple(named)))
    labels = [Prediction(f"/a/long/way/to/a/picture/of/{i}.png", 1234.5 + i, None, "value", "") for i in range(3)]
    names = [Prediction(f"/a/long/way/to/{i}.png", f"Genus speciosus {i}", 0.25, "probability", "") for i in range(3)]
    return {
        "ranking": ranking_table(found),
        "numbers": ranking_table(of_numbers(selection)),
        "errors": ranking_table(wide),
        "nested": nested_table(nested_of(candidates)),
        "leaders": progress.leaders_table(candidates),
        "numbers predicted": predictions_table(labels),
        "names predicted": predictions_table(names),
        **curves,
    }


@pytest.mark.parametrize("width", [200, 140, 100, 80, 60, 50])
def test_no_number_is_ever_cut(selection: Selection, width: int) -> None:
    for name, table in tables(selection).items():
        text = _text(table, width)
        assert "…" not in text and max(map(len, text.splitlines())) <= width, (name, text)
        left_out = set(" ".join(text.split()).partition("left out for want of room: ")[2].split(", ")) - {""}
        seen = {word.strip("[],") for word in text.split()}
        for column in table.columns:
            if column.no_wrap and column.header not in left_out:
                words = {word.strip("[],") for cell in column.cells for word in cell.split()}
                assert words <= seen, (name, column.header, words - seen, text)
        if width >= 80:
            assert left_out <= {"fit s", "features", "MAE", "inside"}
        assert not left_out or width < 200


def test_a_table_with_room_for_all_has_a_frame_and_one_line_a_row(selection: Selection) -> None:
    found = searched(selection, made(LAYERS[:3]))
    assert sum(line.startswith("│") for line in _text(ranking_table(found, most=5), 140).splitlines()) == 5


# --- CSV and JSON ---


def results(selection: Selection) -> dict[str, Selection | Nested | ProtocolResult]:
    found = searched(selection, made(LAYERS))
    return {
        "selection": selection,
        "nested inside": replace(found, nested=nested_of(found.candidates)),
        "nested": nested_of(found.candidates),
        "numbers": of_numbers(selection),
        "one split": searched(selection, [replace(c, interval=cv_interval([1], 1, 1, 0, 1)) for c in found.candidates]),
        "interrupted": replace(found, test=None, best_estimator=None, is_partial=True),
        **{name: protocol(selection, name, *of) for name, of in PROTOCOLS.items()},
    }


def test_csv_and_json_hold_every_score_exactly_in_the_same_columns(selection: Selection) -> None:
    for name, result in results(selection).items():
        rows = list(csv.DictReader(io.StringIO(results_csv(result))))
        said = json.loads(results_json(result), parse_constant=pytest.fail)
        if isinstance(result, Selection):
            scored: list[Any] = [*result.candidates, *(result.nested.chosen if result.nested else ())]
        elif isinstance(result, Nested):
            scored = list(result.chosen)
        else:
            scored = [point for curve in result.curves for point in curve.points]
        assert len(rows) == len(said["results"]) == len(scored)
        assert list(rows[0])[:4] == ["kind", "rank", "chosen", "partial"] and list(rows[0])[-1].startswith("score_")
        for row, values, of in zip(rows, said["results"], scored, strict=True):
            splits = [float(row[column]) for column in row if column.startswith("score_") and row[column]]
            assert tuple(splits) == of.scores == tuple(values.pop("scores"))
            assert float(row["mean"]) == of.mean == values["mean"]
            if math.isnan(of.interval.low):
                assert row["low"] == "" and values["low"] is None
            else:
                assert (float(row["low"]), float(row["high"])) == tuple(of.interval)
            for column, value in values.items():
                assert row[column] == ("" if value is None else str(value))
        assert {tuple(row) for row in said["results"]} == {tuple(list(rows[0])[: len(said["results"][0])])}, name


def test_what_was_chosen_is_marked_and_has_the_held_out_score(selection: Selection) -> None:
    every = results(selection)
    for name in ("selection", "nested inside", "numbers"):
        found = every[name]
        assert isinstance(found, Selection)
        rows = [row for row in json.loads(results_json(found))["results"] if row["kind"] == "cross-validation"]
        (chosen,) = [row for row in rows if row["chosen"]]
        assert (chosen["layer"], chosen["value"]) == (found.chosen.layer, found.chosen.value)
        assert chosen["held_out"] == found.held_out == json.loads(results_json(found))["held_out"]
        assert all(row["held_out"] is None for row in rows if not row["chosen"])
    nested = [row for row in json.loads(results_json(every["nested inside"]))["results"] if row["kind"] == "nested"]
    assert [row["held_out"] for row in nested] == [0.61, 0.65, 0.7]
    probe = every["linear-probe"]
    assert isinstance(probe, ProtocolResult)
    chosen = [row for row in json.loads(results_json(probe))["results"] if row["chosen"]]
    assert [(row["layer"], row["held_out"]) for row in chosen] == [(curve.layer, curve.test) for curve in probe.curves]


def test_every_field_of_a_candidate_has_a_column(selection: Selection) -> None:
    """A field that is added to Candidate is added here, or left out on purpose."""
    row = json.loads(results_json(selection))["results"][0]
    elsewhere = {"d": "layer_features", "interval": "low", "complexity": "rank"}
    assert {elsewhere.get(field.name, field.name) for field in fields(Candidate)} <= set(row)


# --- figures ---


def _shown(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def _assert_legible(figure: Any) -> None:
    """No text leaves the figure, and none lies on another; those that slant have boxes that say nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    unseen = {id(text) for axes in figure.axes if not axes.get_visible() for text in axes.findobj(Text)}
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not (axis.axes.axison and low <= tick.get_loc() <= high):
                unseen |= {id(tick.label1), id(tick.label2)}
    boxes = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in unseen:
            box = text.get_window_extent(canvas.get_renderer())
            inside = box.x0 > -2 and box.y0 > -2 and box.x1 < figure.bbox.x1 + 2 and box.y1 < figure.bbox.y1 + 2
            assert inside, f"{text.get_text()!r} leaves the figure: {box}"
            if text.get_rotation() in (0, 90):
                boxes.append((text.get_text(), box.x0 + 1, box.y0 + 1, box.x1 - 1, box.y1 - 1))
    assert len(boxes) > 5
    for (one, *a), (other, *b) in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{one!r} lies on {other!r}"


def test_the_figure_shows_every_accuracy_the_confusion_and_the_mistakes(selection: Selection) -> None:
    figure = selection_figure(selection, "the title")
    shown = _shown(figure)
    for candidate in selection.candidates:
        assert f"{candidate.mean:.2f}".lstrip("0") in shown
    assert selection.confusion is not None
    assert {str(count) for count in selection.confusion.ravel()} <= set(shown)
    wrong = int(selection.confusion.sum() - np.trace(selection.confusion))
    assert wrong > 0 and sum("\npredicted: " in text for text in shown) == min(wrong, 8)
    _assert_legible(figure)


def test_many_estimators_long_names_and_layers_side_by_side_stay_legible(selection: Selection) -> None:
    names = np.array([f"Genus speciosus {i} var. minor" for i in range(22)])
    rng = np.random.default_rng(0)
    changes = {"classes": names, "y": rng.choice(names, 12), "predicted": rng.choice(names, 12)}
    found = searched(selection, made(LAYERS, ("timm:convnext_tiny", "bundled:pixels")), **changes, repeats=3)
    figure = selection_figure(found, "the title")
    shown = _shown(figure)
    cells = sorted(f"{c.mean:.2f}".lstrip("0") for c in found.candidates)
    assert sorted(text for text in shown if text[:1] == "." or text == "1.00") == cells
    assert "pixels  layer3:avg+layer4:avg" in shown and "nearest\ncentroid" in shown
    assert len({text for text in shown if re.match("….* var. minor$", text)}) == 22  # cut, and still told apart
    _assert_legible(figure)


@pytest.mark.parametrize("scoring", ["r2", "neg_mean_absolute_error"])
def test_numbers_are_drawn_against_what_was_predicted(selection: Selection, scoring: str) -> None:
    found = of_numbers(selection, scoring)
    figure = selection_figure(found)
    (scatter,) = [artist for axis in figure.axes for artist in axis.collections]
    np.testing.assert_allclose(scatter.get_offsets(), np.column_stack([found.test.y, found.test.predicted]))  # type: ignore
    largest = found.mistakes()[0]
    assert f"true: {found.test.y[largest]:,.0f}\npredicted: {found.test.predicted[largest]:,.0f}" in _shown(figure)  # type: ignore
    _assert_legible(figure)


def test_shown_mistakes_are_the_images_that_were_wrong(selection: Selection) -> None:
    store = selection.training.stores[0]
    assert selection.test.X is not None and store.recipe.origin is not None
    wrong = {store.ids[row] for row in store.rows(selection.test.X[selection.mistakes()])}
    pictures = {name: np.asarray(Image.open(Path(store.recipe.origin, name))) for name in wrong}
    for picture, said in mistake_pictures(selection):
        names = [name for name, pixels in pictures.items() if np.array_equal(pixels, np.asarray(picture))]
        true, predicted = re.findall("(?:true|predicted): (.*)", said)
        assert names and names[0].split("/")[0] == true != predicted


def test_mistakes_of_a_list_of_paths_are_shown_as_long_as_the_files_are_the_same(
    selection: Selection, tmp_path
) -> None:
    store = selection.training.stores[0]
    files = [shutil.copy(Path(str(store.recipe.origin), name), tmp_path / name.replace("/", "-")) for name in store.ids]
    listed = featx.extract(files, tmp_path / "list.h5", "bundled:pixels", labels=store.y, progress=False)
    assert listed.recipe.origin is None
    rows = store.rows(selection.test.X)  # type: ignore[union-attr]
    test = replace(selection.test, X=listed.X[rows])  # type: ignore[type-var]
    found = replace(parted(selection, stores=[listed]), test=test)
    n = len(mistake_pictures(found))
    assert n == len(mistake_pictures(selection)) > 0
    Image.new("RGB", (8, 8)).save(files[rows[found.mistakes()[0]]], "PNG")
    assert len(mistake_pictures(found)) == n - 1 or n == MISTAKES


def test_a_selection_without_held_out_images_or_with_moved_ones_is_drawn(selection: Selection) -> None:
    bare = replace(selection, test=None)
    _assert_legible(selection_figure(bare))
    moved = parted(selection, stores=[_Moved(selection.training.stores[0])])  # type: ignore[list-item]
    assert mistake_pictures(moved) == []
    _assert_legible(selection_figure(moved))


class _Moved:
    """A store whose images are somewhere else by now."""

    def __init__(self, store: featx.FeatureStore) -> None:
        self.recipe = replace(store.recipe, origin="/nowhere")
        self.layers, self.ids, self.rows, self.digests = store.layers, store.ids, store.rows, store.digests


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("n_layers", [1, 12])
def test_a_protocol_is_drawn_as_a_curve_a_layer_with_bands(selection: Selection, name: str, n_layers: int) -> None:
    result = protocol(selection, name, *PROTOCOLS[name], n_layers=n_layers)
    figure = protocol_figure(result)
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    for curve in result.curves:
        assert [[point.x, point.mean] for point in curve.points] in lines
    best = result.curves[0]
    ends = set(figure.axes[0].collections[-1].get_paths()[0].vertices[:, 1])
    assert {end for point in best.points for end in point.interval} <= ends
    shown = _shown(figure)
    assert best.test is None or f"{best.test:.3f}" in shown
    assert ("5 more layers" in shown) == (n_layers == 12 and name in ("few-shot", "learning-curve"))
    _assert_legible(figure)


def test_a_protocol_of_one_point_is_drawn(selection: Selection) -> None:
    _assert_legible(protocol_figure(protocol(selection, "few-shot", "images a class", [1.0]), "the title"))


# --- the live table ---


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to stderr, which is a terminal."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(progress, "console", lambda **_: console)
    return file


def test_the_live_table_shows_how_far_it_is_and_what_leads(screen: io.StringIO) -> None:
    candidates = made(LAYERS)
    with search_progress() as show:
        assert screen.getvalue() == ""  # what is refused at once shows no bar
        show(SearchProgress(0, 90, 0.0, None), [])
        assert "left" not in screen.getvalue()
        show(SearchProgress(30, 90, 60.0, 3725.0), candidates[40:])
        show(SearchProgress(60, 90, 100.0, 63.4), candidates)
        before = len(screen.getvalue())
    text = screen.getvalue()
    assert "60/90" in text and before and "1:03 left" in text
    leaders = list({(c.layer, c.estimator): c for c in reversed(candidates)}.items())[::-1][:5]
    table = _text(progress.leaders_table(candidates))
    for (layer, estimator), best in leaders:
        assert any(f"{layer} " in line and f"{estimator} " in line and f"{best.mean:.3f}" in line
                   for line in table.splitlines())  # fmt: skip
    assert len(table.strip().splitlines()) == 2 + 5


def test_the_live_table_ends_with_an_error_too(screen: io.StringIO) -> None:
    with pytest.raises(KeyboardInterrupt), search_progress() as show:
        show(SearchProgress(1, 3, 1.0, 2.0), [])
        raise KeyboardInterrupt
    assert "1/3" in screen.getvalue() and screen.getvalue().endswith(("\x1b[?25h", "\n"))


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"])
def test_where_stderr_is_no_terminal_nothing_is_shown(capfd, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with search_progress() as show:
        show(SearchProgress(0, 3, 0.0, None), [])
        show(SearchProgress(3, 3, 9.0, 0.0), made(LAYERS))
    assert capfd.readouterr() == ("", "")


# --- predictions ---


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
    number = _text(predictions_table(rows[2:]))
    assert "value" in number and "2.5" in number and "label" not in number
