"""The page of an audit, and its summary in a search's report: names are text, nothing is loaded, and it is small."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from audited import photo_store, scene
from PIL import Image
from test_page import HOSTILE, data_of, read
from typer.testing import CliRunner

import featx
from featx.audit import Audit, audit, audit_selection
from featx.cli import app
from featx.errors import FeatxError
from featx.learn import HoldOut, few_shot, select_model
from featx.report import audit_csv, audit_html, html
from featx.report.audits import audit_checks, audit_table
from featx.report.page.verdict import checks

N = 90
FAST = {"folds": 3, "n_jobs": 1, "estimators": "nearest_centroid"}
COPIES = (84, 86, 88)  # of the images six before
LABELS = ["<b>a</b>", 'b & "c"', "=1+1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> featx.FeatureStore:
    """Photos of three classes with some wrong labels, three copies, and a site that tells one class."""
    wrong = range(4, N, 10)
    labels = [LABELS[(i + (i in wrong)) % 3] for i in range(N)]
    columns = {"<i>site</i>": [HOSTILE if i % 3 == 0 else f"s{i // 3 % 2}" for i in range(N)]}

    def picture(i):
        pixels = np.asarray(scene(i - 6 if i in COPIES else i, 48), int) // 2
        pixels[:24, :24, i % 3] += 120
        return _picture(pixels)

    def save(i):
        return {"quality": 50 if i in COPIES else 80}

    return photo_store(tmp_path_factory.mktemp("page"), labels, N, save, columns, picture)


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def result(store) -> Audit:
    return audit(store, test=np.arange(N) % 3 == 1)


@pytest.fixture(scope="module")
def page(result, tmp_path_factory) -> str:
    return audit_html(result, tmp_path_factory.mktemp("out") / "a.html", title=HOSTILE).read_text()


def test_the_page_loads_nothing_and_is_small(page):
    reader = read(page)
    assert len(page) < 5_000_000 and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert not {tag for tag, _ in reader.tags} & {"img", "link", "iframe", "object", "embed", "base"}
    for _, attributes in reader.tags:
        assert not {"src", "srcset", "action"} & attributes.keys() and attributes.get("href", "#").startswith("#")


def test_names_are_text(page, result):
    reader = read(page)
    tags, text = [tag for tag, _ in reader.tags], "".join(reader.text)
    assert tags.count("script") == 2 and "i" not in tags and HOSTILE in text
    assert "<i>site</i>" in text and {each.kind for each in result.findings()} >= {"label", "shortcut"}
    for level, sentence in audit_checks(result):
        assert sentence in text and level in ("good", "note", "warning")


def test_rows_open_their_images(page, result, store):
    data = data_of(page)
    shown = [a["data-images"].split() for tag, a in read(page).tags if tag == "button" and "data-images" in a]
    ids = [data["ids"][int(position)] for positions in shown for position in positions]
    assert set(ids) <= set(map(str, store.ids)) and len(data["ids"]) == len(data["words"]) == len(data["thumbnails"])
    first = next(each for each in result.findings() if each.kind == "label")
    assert f"label {first.label}; {first.reason}" in data["words"]


def test_markdown_has_the_same_words(result, tmp_path):
    text = audit_html(result, tmp_path / "a.md").read_text()
    assert text.startswith("# photos.h5: audit\n") and "## What the data say" in text and "<b>a</b>" not in text
    assert f"- **warning**: {next(s for level, s in audit_checks(result) if level == 'warning')[:30]}" in text
    with pytest.raises(FeatxError, match="a page of an audit is a .html or .md file; got a.pdf"):
        audit_html(result, "a.pdf")


def test_copies_across_the_split_tell_the_training_image_from_the_test_image(store, tmp_path):
    across = audit(store, test=np.isin(np.arange(N), COPIES))
    assert [each.kind for each in across.findings()].count("leak") == len(COPIES)
    assert "| training image | test image | label | why |" in audit_html(across, tmp_path / "a.md").read_text()
    first = next(each for each in across.findings() if each.kind == "leak")
    assert f"{first.id}, test image {first.other}" in list(map(str, audit_table(across).columns[1].cells))


def test_csv_has_all_findings(result):
    rows = list(csv.DictReader(audit_csv(result).splitlines()))
    assert [(row["kind"], row["id"]) for row in rows] == [(each.kind, each.id) for each in result.findings()]


def test_clean_data_have_a_page_that_says_so(tmp_path):
    labels = ["a", "b"] * 30

    def picture(i):
        pixels = np.asarray(scene(i, 48), int) // 2
        pixels[:24] += 90 * (i % 2)
        return _picture(pixels)

    clean = audit(photo_store(tmp_path, labels, picture=picture, save=lambda i: {"suffix": ".png"}))
    text = "".join(read(audit_html(clean, tmp_path / "a.html").read_text()).text)
    assert {each.kind for each in clean.findings()} <= {"shortcut"}
    assert "No sign of wrong labels" in text and "No image is a copy of another one." in text
    assert "Labels that may be wrong" not in text and "Copies" not in text


def test_a_report_shows_an_audit(store, tmp_path):
    selection = select_model(store, holdout=HoldOut(0.4), **FAST)
    whole = audit_selection(selection)
    held_out = store.rows(selection.test.X)
    assert whole.split.n_test == len(held_out) and (whole.y == store.y).all()
    page = html(selection, tmp_path / "r.html", audit=whole).read_text()
    reader = read(page)
    names = [a["id"] for tag, a in reader.tags if tag == "section"]
    assert names[:2] == ["verdict", "data"] and [tag for tag, _ in reader.tags].count("script") == 2
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    text = "".join(reader.text)
    assert "What the data say" in text and all(sentence in text for _, sentence in audit_checks(whole))
    assert "featx audit lists them with their pictures." in text
    assert "data" not in [
        a["id"] for tag, a in read(html(selection, tmp_path / "s.html").read_text()).tags if tag == "section"
    ]
    protocol = few_shot(store, shots=(2,), repeats=2)
    assert "What the data say" in html(protocol, tmp_path / "p.md", audit=whole).read_text()


def test_an_audit_of_another_store_is_refused(store, tmp_path):
    other = audit(photo_store(tmp_path, ["a", "b"] * 10, 20, name="other.h5"))
    with pytest.raises(FeatxError, match="audit is of other.h5, which was not searched"):
        html(select_model(store, **FAST), tmp_path / "r.html", audit=other)


def test_labels_of_some_images_and_a_test_store(store, tmp_path):
    part = np.ma.masked_array(store.y, np.arange(N) % 4 == 0)
    whole = audit_selection(select_model(store, part, **FAST))
    assert ((whole.y == "") == (np.arange(N) % 4 == 0)).all()
    test = photo_store(tmp_path, list(LABELS) * 6, 18, picture=lambda i: scene(500 + i, 48))
    selection = select_model(store, holdout=HoldOut(store=test), **FAST)
    assert audit_selection(selection).test is test


def test_the_verdict_counts_copies_across_the_split(store, tmp_path):
    selection = select_model(store, holdout=HoldOut(rows=np.arange(N) % 4 >= 2), **FAST)
    found = [(level, text) for level, text in checks(selection) if "held-out image" in text and "cop" in text]
    (level, text) = found[0]
    pairs = audit(store).duplicates.pairs
    is_test = np.arange(N) % 4 >= 2
    n = len({a if is_test[a] else b for a, b in pairs.tolist() if is_test[a] != is_test[b]})
    assert level == "warning" and n and text.startswith(f"{n} held-out image") and "groups 'near-duplicates'" in text
    together = select_model(store, groups="near-duplicates", **FAST)
    assert ("good", "No held-out image is a copy of a training image, saved again, resized, mirrored or cropped.") in [
        *checks(together)
    ]


def test_commands(store, tmp_path, monkeypatch):
    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    monkeypatch.chdir(tmp_path)
    options = ["-e", "nearest_centroid", "--folds", 3, "--jobs", 1]
    done = run("search", store.path, *options, "-o", "m.skops", "--report", "r.md", "--audit")
    assert done.exit_code == 0 and "## What the data say" in Path("r.md").read_text(), done.output
    done = run("report", "m.skops", "-s", store.path, "-o", "later.md", "--audit")
    assert done.exit_code == 0, done.output
    of_data = [
        re.sub("in [0-9]+ s", "", path.read_text().split("## What the data say")[1].split("## ")[0])
        for path in (Path("r.md"), Path("later.md"))
    ]
    assert of_data[0] == of_data[1]
    done = run("search", store.path, *options, "--audit")
    assert done.exit_code == 2 and "--audit is shown in the report; give --report, too" in done.stderr
    done = run("search", store.path, "--protocol", "knn", "--audit", "--report", "k.md")
    assert done.exit_code == 2 and "with --protocol knn use featx audit" in done.stderr
