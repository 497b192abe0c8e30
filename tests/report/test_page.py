"""The report as a page: it loads nothing, shows names as text, says what the selection says, and is small."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import store_of
from PIL import Image
from sklearn.metrics import confusion_matrix

import featx
from featx.errors import FeatxError, KeysError, LayerError, ModelError
from featx.learn import HoldOut, Selection, few_shot, load_selection, select_model
from featx.learn.models.records import record_of, selection_of
from featx.report import html
from featx.report.page import growth, heldout, maps, verdict
from featx.report.page.images import images_of, thumbnails
from featx.report.page.search import grid_section

HOSTILE = "<script>alert(\"1\")</script> & 'x'"
FAST = {"folds": 3, "n_jobs": 1, "estimators": "logistic_regression"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> featx.FeatureStore:
    """Two classes of pictures, alike, so that there are mistakes; their names hold markup, and so does a column."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("page")
    lines = ["path,label,camera,age"]
    for i in range(80):
        level = (60, 63)[i % 2]
        name = f"{HOSTILE.replace('/', '')} {i:02}.png"
        Image.fromarray(rng.normal(level, 30, (16, 20, 3)).clip(0, 255).astype(np.uint8)).save(root / name)
        quoted = '"' + name.replace('"', '""') + '"'
        label = ('"<b>a</b>"', '"b & ""c"""')[i % 2]
        lines.append(f"{quoted},{label},{('<i>one</i>', 'two')[i // 2 % 2]},{i * 0.5}")
    (root / "images.csv").write_text("\n".join(lines))
    return featx.extract(root / "images.csv", root / "page.h5", "bundled:pixels", progress=False)


@pytest.fixture(scope="module")
def selection(store) -> Selection:
    return select_model(store, holdout=HoldOut(0.5), **FAST)


@pytest.fixture(scope="module")
def page(selection, tmp_path_factory) -> str:
    return html(selection, tmp_path_factory.mktemp("out") / "page.html", command="featx search 'a b.h5'").read_text()


class Reader(HTMLParser):
    """The page's elements and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page)[1])  # type: ignore[index]


def test_the_page_loads_nothing(page):
    reader = read(page)
    assert {tag for tag, _ in reader.tags} & {"img", "link", "iframe", "object", "embed", "base", "form"} <= {"form"}
    for _, attributes in reader.tags:
        assert not {"src", "srcset", "action", "poster"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")
    assert re.findall(r"url\((?!data:image/jpeg;base64,)", page) == [] and "@import" not in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_names_of_images_classes_and_columns_are_text(page, store):
    reader = read(page)
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("script") == 2 and "i" not in tags
    text = "".join(reader.text)
    for shown in ("<b>a</b>", 'b & "c"', "<i>one</i>", HOSTILE.replace("/", "")[:20]):
        assert shown in text
    data = data_of(page)
    assert set(data["classes"]) == {"<b>a</b>", 'b & "c"'} and set(data["ids"]) == set(map(str, store.ids))


def test_the_cells_of_the_confusion_matrix_hold_its_images(page, selection):
    cells = [a for tag, a in read(page).tags if tag == "button" and "predicted" in (a.get("data-title") or "")]
    counts = confusion_matrix(selection.test.y, selection.test.predicted, labels=selection.training.classes)
    listed = [list(map(int, a["data-images"].split())) for a in cells]
    assert [len(images) for images in listed] == counts[counts > 0].ravel().tolist()
    assert sorted(sum(listed, [])) == list(range(len(selection.test.y)))
    data = data_of(page)
    for images, (row, column) in zip(listed, np.argwhere(counts > 0), strict=True):
        names = selection.training.classes[row], selection.training.classes[column]
        assert all((data["y"][i], data["predicted"][i]) == names for i in images)


def test_the_held_out_images_are_first_and_labels_are_theirs(page, selection, store):
    data, test = data_of(page), selection.test
    assert data["n_test"] == len(test.y) and data["y"][: data["n_test"]] == test.y.tolist()
    by_id = dict(zip(map(str, store.ids), store.y, strict=True))
    assert [by_id[name] for name in data["ids"]] == data["y"]
    assert data["slices"]["camera"] == [store.columns["camera"][list(store.ids).index(name)] for name in data["ids"]]
    assert np.allclose(data["probabilities"], test.probabilities, atol=1e-4)


def test_thumbnails_are_those_of_the_images(selection):
    images = images_of(selection, 10)
    assert len(images) == len(selection.test.y) + 10
    made = thumbnails(images, list(range(len(images))), 3_000_000)
    sheets = [Image.open(io.BytesIO(sheet)) for sheet in made.sheets]
    for i in range(len(images)):
        place = made.place_of[i]
        x, y = made.side * (place % made.columns), made.side * (place // made.columns)
        shown = np.asarray(sheets[0].crop((x, y, x + made.side, y + made.side)), float)[made.side // 2].mean()
        assert abs(shown - np.asarray(images.picture(i), float)[8].mean()) < 25
    assert all(
        base64.b64decode(url.partition(",")[2]) == sheet for url, sheet in zip(made.urls(), made.sheets, strict=True)
    )


def test_thumbnails_are_compressed_until_they_fit(selection):
    images = images_of(selection, 10)
    free, tight = (thumbnails(images, list(range(len(images))), most) for most in (3_000_000, 100_000))
    assert sum(map(len, tight.sheets)) <= 100_000 < sum(map(len, free.sheets))
    assert tight.place_of == free.place_of


def test_whole_paths_are_shown_without_the_folder_that_they_share(store, tmp_path):
    files = [Path(store.recipe.origin, name) for name in store.ids]
    paths = featx.extract(files, tmp_path / "paths.h5", "bundled:pixels", labels=store.y, progress=False)
    found = select_model(paths, holdout=HoldOut(0.5), **FAST)
    data = data_of(html(found, tmp_path / "paths.html").read_text())
    assert set(data["ids"]) == set(store.ids) and min(data["thumbnails"]) == 0


def test_images_that_are_gone_have_no_thumbnail(selection, tmp_path):
    moved = featx.FeatureStore(selection.training.stores[0].path)
    moved.recipe = replace(moved.recipe, origin=str(tmp_path))
    lost = replace(selection, training=replace(selection.training, stores=[moved]))
    text = html(lost, tmp_path / "lost.html").read_text()
    assert set(data_of(text)["thumbnails"]) == {-1} and "url(data:" not in text


def test_slices_have_the_accuracy_of_their_images(selection, store):
    images = images_of(selection, 0)
    slices = heldout.slices_of(selection, images)
    assert {each.column for each in slices} == {"camera", "age"} and sum(s.column == "age" for s in slices) == 4
    right = selection.test.y == selection.test.predicted
    for each in slices:
        assert (
            each.score == right[each.positions].mean() and each.interval.low <= each.score <= each.interval.high + 1e-9
        )
    cameras = store.columns["camera"][images.rows]
    assert all((cameras[s.positions] == s.value).all() for s in slices if s.column == "camera")


def test_the_map_places_every_image(selection):
    images = images_of(selection, 1000)
    placed = maps.coordinates(selection, images)
    assert {"PCA", "t-SNE"} <= placed.keys() and all(at.shape == (80, 2) for at in placed.values())
    matrix = selection.best_estimator[:-1].transform(selection.training.stores[0].X[images.rows])
    centred = matrix - matrix.mean(axis=0)
    first = np.linalg.svd(centred, full_matrices=False)[2][0] @ centred.T
    assert abs(np.corrcoef(first, placed["PCA"][:, 0])[0, 1]) > 0.999


def test_equal_features_have_no_map(tmp_path):
    y = np.array(["a", "b"] * 10)
    same = store_of(tmp_path / "same.h5", {"a:avg": np.ones((20, 4), np.float32)}, y=y)
    assert data_of(html(select_model(same, **FAST), tmp_path / "same.html").read_text())["maps"] == {}


def test_the_growth_ends_at_the_held_out_score(selection):
    text = growth.growth_section(selection).blocks[0].text
    assert f"with {len(selection.training.y)} {selection.held_out:.3f}" in text


@pytest.mark.parametrize(
    "gained, said", [(60, "more images would probably help"), (4, "it is not known"), (0, "would change little")]
)
def test_more_images_are_said_to_help_only_beyond_chance(selection, monkeypatch, gained, said):
    y = np.resize(selection.training.classes, 400)
    test = replace(selection.test, y=y, predicted=y, X=np.zeros((400, 1), np.int64))

    def outputs(_, rows):
        n_wrong = 100 if len(rows) == len(selection.training.y) else 100 + gained
        return np.where(np.arange(400) < n_wrong, np.roll(y, 1), y)

    monkeypatch.setattr(growth, "_outputs", outputs)
    assert said in growth.growth_section(replace(selection, test=test)).blocks[0].text


def test_a_ranked_score_s_growth_says_that_it_has_no_interval(store):
    result = select_model(store, holdout=HoldOut(0.5), scoring="roc_auc", **FAST)
    text = growth.growth_section(result).blocks[0].text
    assert "a difference of ROC AUC has no interval here" in text and "chance" not in text


def says(selection: Selection) -> str:
    return " ".join(text for _, text in verdict.checks(selection))


def test_checks_say_what_is_so_and_nothing_else(selection):
    chosen, training, test = selection.chosen, selection.training, selection.test
    values = sorted({c.value for c in selection.candidates})
    worse = [replace(c, mean=0.1, scores=(0.1, 0.1, 0.1)) for c in selection.candidates if c != chosen]
    for value, said in ((values[0], "smallest"), (values[-1], "largest"), (values[3], None)):
        best = replace(chosen, value=value, mean=0.9, scores=(0.9, 0.9, 0.9))
        others = [c for c in worse if c.value != value]
        text = says(replace(selection, candidates=[best, *others], chosen=best))
        assert (f"is the {said} value" in text) if said else "value that was tried" not in text
        assert "No other candidate is within" in text
    assert "constant answer" in says(selection) and "interrupted" not in says(selection)
    assert "The search was interrupted" in says(replace(selection, is_partial=True, test=None))
    assert "No images were held out" in says(replace(selection, test=None))
    assert "4 images have the same content" in says(replace(selection, training=replace(training, n_duplicates=4)))
    assert "7 groups of images" in says(replace(selection, training=replace(training, n_groups=7)))
    assert "80% of the training images" in says(replace(selection, training=replace(training, chance=0.8)))
    few = replace(training, y=np.r_[training.y[:3], np.repeat(training.classes[0], 40)])
    assert "fewer than 20 training images" in says(replace(selection, training=few))
    perfect = replace(test, predicted=test.y)
    assert "its interval excludes it" in says(replace(selection, test=perfect))
    guessing = replace(test, predicted=np.where(np.arange(len(test.y)) % 4 < 2, *training.classes))
    assert "its interval includes it" in says(replace(selection, test=guessing))


def test_a_grid_below_chance_has_colours_too(selection):
    below = replace(selection, training=replace(selection.training, chance=1.0))
    shades = re.findall(r"--v:(\d+)%", grid_section(below).blocks[0].html)
    assert {"0", "100"} <= set(shades)


def test_numbers_have_a_scatter_plot_and_errors_by_column(store, tmp_path):
    y = store.columns["age"].astype(float)
    result = select_model(store, y, holdout=HoldOut(0.5), folds=3, n_jobs=1, estimators="ridge")
    text = html(result, tmp_path / "numbers.html").read_text()
    anchors = [a["id"] for tag, a in read(text).tags if tag == "section"]
    assert {"scatter", "mistakes", "slices", "growth", "map"} <= set(anchors) and "confusion" not in anchors
    circles = [a["data-images"] for tag, a in read(text).tags if tag == "circle" and "data-images" in a]
    assert circles == [str(i) for i in range(len(result.test.y))]


def test_a_protocol_and_an_interrupted_search_have_a_report(store, selection, tmp_path):
    curves = few_shot(store, shots=[1, 2], repeats=2)
    text = html(curves, tmp_path / "shots.html").read_text()
    assert "images a class" in text and '<polyline class="c0"' in text
    partial = replace(selection, best_estimator=None, test=None, is_partial=True)
    anchors = [a["id"] for tag, a in read(html(partial, tmp_path / "p.html").read_text()).tags if tag == "section"]
    assert anchors == ["verdict", "grid", "tried", "recipe"]


def test_markdown_has_the_same_words_without_markup(selection, tmp_path):
    text = html(selection, tmp_path / "card.md", title="*cats*").read_text()
    assert text.startswith("# \\*cats\\*\n") and "\\<b\\>a\\</b\\>" in text and "<b>" not in text
    for section in (verdict.verdict_section(selection),):
        assert section.title in text
    widths = {
        line.count(" | ") for line in text.splitlines() if line.startswith("| class") or line.startswith("| \\<b")
    }
    assert len(widths) <= 2


def test_wrong_names_are_refused_and_errors_name_the_file(selection, tmp_path):
    for name in ("a.pdf", "a"):
        with pytest.raises(FeatxError, match="a report is a .html or .md file"):
            html(selection, tmp_path / name)
    with pytest.raises(FeatxError, match="nowhere"):
        html(selection, tmp_path / "nowhere" / "a.html")
    assert list(tmp_path.iterdir()) == []
    assert isinstance(html(selection, str(tmp_path / "a.md")), Path)


def test_a_saved_selection_has_the_same_report_later(selection, store, tmp_path):
    path = featx.save(selection, tmp_path / "model.skops")
    again = load_selection(path, store)
    assert again.candidates == selection.candidates and again.chosen == selection.chosen
    assert again.settings == selection.settings and again.held_out == selection.held_out
    for part, names in (("training", ("X", "y", "classes", "chance", "n")), ("test", ("X", "y", "predicted"))):
        for name in names:
            np.testing.assert_array_equal(*(getattr(getattr(each, part), name) for each in (again, selection)))
    assert html(again, tmp_path / "a.html").read_text() == html(selection, tmp_path / "b.html").read_text()


def test_a_selection_of_other_stores_or_of_none_is_refused(selection, store, tmp_path):
    path = featx.save(selection, tmp_path / "model.skops")
    plain = featx.save(selection.best_estimator, tmp_path / "plain.skops")
    with pytest.raises(ModelError, match=r"how its model was chosen; save it with featx\.save\(selection, path\)"):
        load_selection(plain, store)
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    other = featx.extract([tmp_path / "other.png"], tmp_path / "o.h5", "bundled:pixels", labels=["a"], progress=False)
    with pytest.raises(
        KeysError, match=r"chosen on 40 images of page\.h5; o\.h5 holds none of them; give the store that was searched"
    ):
        load_selection(path, other)
    origin = Path(store.recipe.origin)
    (origin / "part.csv").write_text("\n".join((origin / "images.csv").read_text().splitlines()[:31]))
    part = featx.extract(origin / "part.csv", tmp_path / "part.h5", "bundled:pixels", progress=False)
    n = int(np.isin(selection.training.X, part.X).sum())
    with pytest.raises(KeysError, match=rf"of page\.h5; part\.h5 holds only {n} of them"):
        load_selection(path, part)
    rows = {name: np.ones((80, 3), np.float32) for name in ("a:avg", "b:avg")}
    with pytest.raises(
        FeatxError, match=r"chosen on page\.h5 and reads features of bundled:pixels; n\.h5 has those of"
    ):
        load_selection(path, store_of(tmp_path / "n.h5", rows, y=store.y))
    with pytest.raises(ModelError, match="interrupted"):
        featx.save(replace(selection, best_estimator=None), tmp_path / "none.skops")


def test_a_selection_of_another_layer_or_test_store_names_both(tmp_path):
    y = np.array(["a", "b"] * 20)
    rows = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    searched, tested = (
        store_of(tmp_path / name, {"a:avg": rows}, y=y, ids=[f"{name}{i}" for i in range(40)], first=first)
        for name, first in (("s.h5", 0), ("t.h5", 40))
    )
    path = featx.save(select_model(searched, holdout=HoldOut(store=tested), **FAST), tmp_path / "model.skops")
    message = r"the 40 held-out images are those of t\.h5; s\.h5 holds none of them; .* with test_store=\.\.\."
    for wrong in (None, searched):
        with pytest.raises(KeysError, match=message):
            load_selection(path, searched, wrong)
    assert load_selection(path, searched, tested).held_out is not None
    other = store_of(tmp_path / "o.h5", {"b:avg": rows}, y=y, ids=searched.ids.tolist())
    with pytest.raises(LayerError, match=r"chosen on s\.h5 and reads a:avg; o\.h5 has b:avg; give the store"):
        load_selection(path, other, tested)


@pytest.mark.parametrize(
    "damage",
    [
        lambda said: said.pop("candidates"),
        lambda said: said.update(chosen=10**6),
        lambda said: said["settings"].update(scoring="evil"),
        lambda said: said["candidates"][0].update(extra=1),
        lambda said: said["training"].update(keys="x"),
        lambda said: said["test"].update(groups=["a"]),
        lambda said: said["test"].update(groups=[1]),
        lambda said: said["training"]["keys"].pop(),
        lambda said: said["training"]["y"].pop(),
        lambda said: said["test"]["y"].pop(),
        lambda said: said["test"].update(keys=[], y=[]),
        lambda said: said["test"].update({name: said["training"][name] for name in ("keys", "y")}),
        lambda said: said["test"]["y"].__setitem__(0, "no such class"),
        lambda said: said["training"]["y"].__setitem__(0, ["nested"]),
        lambda said: said["training"].update(classes=None),
        lambda said: said["settings"].update(scoring="r2"),
        lambda said: said["candidates"][0].update(value=float("nan")),
        lambda said: said["candidates"][0].update(mean=float("inf")),
        lambda said: said["candidates"][0].update(d=10**300),
    ],
)
def test_a_damaged_record_is_refused_in_a_line(selection, store, damage):
    said = json.loads(record_of(selection))
    damage(said)
    with pytest.raises(ModelError, match="record of its search is damaged") as error:
        selection_of(json.dumps(said), selection.best_estimator, store, None)
    assert "\n" not in str(error.value)


def test_a_deeply_nested_record_is_refused(selection, store):
    with pytest.raises(ModelError, match="record of its search is damaged"):
        selection_of("[" * 100_000, selection.best_estimator, store, None)
