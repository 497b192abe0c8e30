"""The report in headless Chromium without network: it asks for nothing, its console stays empty, and it can be used by
mouse, by keyboard, on a narrow screen, in the dark and on paper.

`PYTHONPATH=tests python tests/report/test_browser.py PAGE.html ...` does so with pages at hand, and leaves pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import PROGRAM, Page, browsing
from PIL import Image

import featx
from featx.audit import audit_selection
from featx.learn import HoldOut, select_model
from featx.report import audit_html, html

pytestmark = [pytest.mark.browser, pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")]
NARROW = 400
LABELS = ("</script><script>alert(1)</script>", "a \"b\" & 'c' \u202e<img src=x onerror=alert(2)>")
NAMES = ("<b onclick='alert(3)'>{}</b>.png", "${{alert(4)}} `{}`.png", "%3Cscript%3E {} \\u003c --> \u2028.png")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report, with an audit, of pictures whose names and labels are markup; beside it the page of the audit."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("hostile")
    files = []
    for i in range(60):
        files.append(root / NAMES[i % 3].format(i).replace("/", "\u2215"))
        Image.fromarray(rng.normal((60, 65)[i % 2], 30, (16, 20, 3)).clip(0, 255).astype(np.uint8)).save(files[-1])
    files[-1].write_bytes(files[-3].read_bytes())
    labels = [LABELS[i % 2] for i in range(60)]
    store = featx.extract(files, root / "page.h5", "bundled:pixels", labels=labels, progress=False)
    result = select_model(store, holdout=HoldOut(0.5), folds=3, n_jobs=1, estimators="logistic_regression")
    whole = audit_selection(result)
    audit_html(whole, root / "audit.html", title=LABELS[0])
    return html(result, root / "page.html", title=LABELS[0], command=LABELS[1], audit=whole)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browsing() as opened:
        yield opened


def use(page: Page, file: Path, pictures: Path | None = None) -> None:
    """Use a page in every way."""
    page.open(file)
    if pictures is not None:
        page.screenshot(pictures.with_suffix(".light.png"), whole=True)
    if page.run("document.querySelector('.confusion') !== null"):
        use_confusion(page)
    use_map(page)
    if pictures is not None:
        page.screenshot(pictures.with_suffix(".map.png"))
    assert page.pdf().startswith(b"%PDF") and page.run("document.querySelectorAll('details[open]').length") == 0
    for is_dark in (False, True):
        page.open(file, width=NARROW, is_dark=is_dark)
        assert page.run("document.documentElement.scrollWidth") <= NARROW
        if page.run("document.getElementById('map-canvas') !== null"):
            use_map(page)
            assert page.run("document.documentElement.scrollWidth") <= NARROW
        if pictures is not None:
            page.screenshot(pictures.with_suffix(".dark.png" if is_dark else ".narrow.png"), whole=True)
    ink, paper = (sum(map(int, page.run(f"getComputedStyle(document.body).{name}.match(/\\d+/g)")[:3]))
                  for name in ("color", "backgroundColor"))  # fmt: skip
    assert ink > paper
    assert page.requests == [] and page.errors == []


def use_confusion(page: Page) -> None:
    """A cell of the confusion matrix opens its images, by mouse and by keyboard."""
    cell = ".confusion td button"
    n = page.run(f"document.querySelector('{cell}').dataset.images.split(' ').length")
    for is_mouse in (True, False):
        if is_mouse:
            page.click(cell)
        else:
            page.run("document.querySelector('.confusion').closest('.scroll').focus()")
            page.press("Tab")
            assert page.run(f"document.activeElement === document.querySelector('{cell}')")
            page.press("Enter")
        assert page.run("document.getElementById('viewer').open")
        assert page.run("document.querySelectorAll('#viewer-images figure').length") == min(n, 120)
        title = page.run("document.getElementById('viewer-title').textContent")
        assert title == page.run(f"document.querySelector('{cell}').dataset.title")
        page.press("Escape")
        assert not page.run("document.getElementById('viewer').open")
        assert page.run(f"document.activeElement === document.querySelector('{cell}')")


def use_map(page: Page) -> None:
    """The pointer and the arrow keys show images of the map, and Enter opens one."""
    page.run("document.getElementById('map-canvas').focus()")
    page.press("ArrowRight")
    shown = page.run("document.getElementById('map-said').textContent")
    assert shown and page.run("document.querySelectorAll('#map-tip .thumb').length") == 1
    page.press("Enter")
    assert page.run("document.getElementById('viewer').open && document.querySelectorAll('#viewer figure').length") == 1
    page.press("Escape")
    x, y = page.run(
        "(() => { const c = document.getElementById('map-canvas'), t = document.getElementById('map-tip');"
        "c.scrollIntoView({block: 'center'}); const r = c.getBoundingClientRect(); return [r.x, r.y]; })()"
    )
    page.point_at(x + 2, y + 2)
    assert page.run("document.getElementById('map-tip').hidden")
    at = page.run("[...Array(100).keys()].map((i) => [(i % 10 + 0.5) / 10, (Math.floor(i / 10) + 0.5) / 10])")
    size = page.run(
        "[document.getElementById('map-canvas').clientWidth, document.getElementById('map-canvas').clientHeight]"
    )
    for across, down in at:
        page.point_at(x + across * size[0], y + down * size[1])
        if not page.run("document.getElementById('map-tip').hidden"):
            break
    else:
        pytest.fail("the pointer met no image of the map")
    inside = "(t => t.offsetLeft >= 0 && t.offsetLeft + t.offsetWidth <= t.offsetParent.clientWidth)"
    assert page.run(f"{inside}(document.getElementById('map-tip'))")


def test_names_and_labels_that_are_markup_are_text_and_the_page_can_be_used(page, page_file):
    use(page, page_file)
    text = page.run("document.body.textContent")
    assert LABELS[0] in text and "onerror=alert(2)" in text and "<b onclick='alert(3)'>" in text
    assert page.run("document.querySelectorAll('main b[onclick], main img, main script').length") == 0
    assert page.run("document.querySelectorAll('#map-legend span').length") == 2


def test_a_finding_of_an_audit_opens_its_images(page, page_file):
    page.open(page_file.with_name("audit.html"))
    page.click("button[data-images]")
    assert page.run("document.querySelectorAll('#viewer-images figure').length") == 2
    assert page.requests == [] and page.errors == []


if __name__ == "__main__":
    with browsing() as shown_page:
        for name in sys.argv[1:]:
            use(shown_page, Path(name), Path(name))
            print(f"{name}: no request, nothing on the console")
