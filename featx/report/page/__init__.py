"""A report as one HTML page that needs no network, or as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.errors import FeatxError, as_path
from featx.report.page.data import data_section
from featx.report.page.heldout import (
    calibration_section,
    confusion_section,
    mistakes_section,
    scatter_section,
    slices_section,
)
from featx.report.page.images import A_SHEET, Images, images_of, thumbnails
from featx.report.page.protocols import protocol_sections
from featx.report.page.search import candidates_section, grid_section, nested_section
from featx.report.page.sections import Code, Section, Text, markdown_of, section_html, text_html
from featx.report.page.verdict import verdict_section
from featx.store import written_aside

if TYPE_CHECKING:
    from featx.audit import Audit
    from featx.learn.selection import ProtocolResult, Selection

_MOST_BYTES = 4_700_000  # of thumbnails and the script's data; with its text and styles, the page has at most 5 MB
_MOST_PROBABILITIES = 60_000
_MOST_VALUES = 30  # of a column that colours the map
_LISTED = " featx audit lists them with their pictures."
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def html(
    result: Selection | ProtocolResult,
    path: str | os.PathLike,
    *,
    title: str = "",
    command: str = "",
    audit: Audit | None = None,
) -> Path:
    """Write a report of a search or protocol: one HTML page that loads nothing, or Markdown.

    The page has the result in words with what speaks for and against it, the scores of all layers and settings, the
    confusion matrix whose cells open their images, the most confident mistakes, calibration, the score by every column
    of the manifest, whether more images would help, a map of the images, and the recipe.

    Parameters
    ----------
    result : Selection or ProtocolResult
    path : name that ends in ".html", or in ".md" for Markdown
        An existing file is replaced.
    title : str, optional
        By default the names of the stores.
    command : str, optional
        The command that makes the result, shown at the end.
    audit : Audit, optional
        An audit of the store that was searched, whose summary the report shows; `featx.audit.audit_selection` makes it.

    Returns
    -------
    Path

    Raises
    ------
    FeatxError
        The name has another suffix, the audit is of another store, or the file cannot be written.

    Examples
    --------
    >>> featx.report.html(select_model(store), "cats.html")    # doctest: +SKIP
    """
    path = as_path("path", path, FeatxError)
    if path.suffix.lower() not in (".html", ".md"):
        raise FeatxError(f"a report is a .html or .md file; got {path}")
    if audit is not None and audit.store.identity not in {store.identity for store in _stores(result)}:
        raise FeatxError(f"audit is of {audit.store.path.name}, which was not searched")
    from featx.learn.selection import Selection
    from featx.report.page.maps import MOST_POINTS, coordinates, map_section  # imports scikit-learn

    is_page = path.suffix.lower() == ".html"
    title = title or " and ".join(store.path.name for store in _stores(result))
    data: dict[str, Any] = {}
    sheets: list[str] = []
    if isinstance(result, Selection):
        images = images_of(result, MOST_POINTS - (0 if result.test is None else len(result.test.y)))
        sections = _search_sections(result, images, audit)
        if is_page:
            maps = coordinates(result, images)
            if maps:
                sections.append(map_section(result, images))
            data, sheets = illustrated(_data(result, images, maps), images, _by_importance(result, images))
    else:
        sections = protocol_sections(result)
        sections[1:1] = [] if audit is None else [data_section(audit, _LISTED)]
    sections.append(_recipe_section(result, command))
    text = document(title, sections, data, sheets) if is_page else markdown_of(title, sections)
    with written_aside(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    return path


def _search_sections(result: Selection, images: Images, audit: Audit | None) -> list[Section]:
    from featx.report.page.growth import growth_section  # imports scikit-learn

    made = [
        verdict_section(result),
        None if audit is None else data_section(audit, _LISTED),
        grid_section(result),
        candidates_section(result),
        nested_section(result),
        confusion_section(result),
        scatter_section(result),
        mistakes_section(result, images),
        calibration_section(result),
        slices_section(result, images),
        growth_section(result),
    ]
    return [section for section in made if section is not None]


def _stores(result: Selection | ProtocolResult) -> list[Any]:
    from featx.learn.selection import Selection

    return result.training.stores if isinstance(result, Selection) else result.stores


def _by_importance(result: Selection, images: Images) -> list[int]:
    """Positions of the images: mistakes, the other held-out images, training images."""
    worst = result.mistakes().tolist()
    rest = sorted(set(range(images.n_test)) - set(worst))
    shuffled = np.random.default_rng(0).permutation(rest).tolist() if rest else []
    return [*worst, *shuffled, *range(images.n_test, len(images))]


def _recipe_section(result: Selection | ProtocolResult, command: str) -> Section:
    blocks: list[Any] = []
    if command:
        blocks += [Text("The command:"), Code(command)]
    for store in _stores(result):
        recipe = json.dumps(json.loads(store.recipe.to_json()), indent=1, ensure_ascii=True)
        blocks += [Text(f"{store.path.name}: {len(store):,} images, identity {store.identity}"), Code(recipe)]
    return Section("recipe", "How to make it again", blocks, True)


def _data(result: Selection, images: Images, maps: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the page's script reads: a list for each attribute of the images, the held-out ones first."""
    test, classes = result.test, result.training.classes
    said = [] if test is None else [plain(value) for value in test.predicted.tolist()]
    probabilities = None
    if test is not None and test.probabilities is not None and test.probabilities.size <= _MOST_PROBABILITIES:
        probabilities = np.round(test.probabilities, 4).tolist()
    return {
        "ids": images.ids,
        "n_test": images.n_test,
        "y": [plain(value) for value in images.y.tolist()],
        "predicted": said,
        "classes": None if classes is None else [str(name) for name in classes],
        "probabilities": probabilities,
        "maps": {name: np.round(unit(at), 4).tolist() for name, at in maps.items()},
        "slices": _colours(images),
    }


def illustrated(
    data: dict[str, Any], images: Images, order: Sequence[int], text_bytes: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """The data of a page with the places of the images' thumbnails, -1 for none, and the URLs of their sheets.

    order : positions, the most important first; as many get a thumbnail as the page holds
    text_bytes : size of the page's text, if it is large
    """
    left = max(0, _MOST_BYTES - len(json.dumps(data)) - text_bytes)
    pictures = thumbnails(images, order, left * 3 // 4)  # base64 takes a third more
    places = [pictures.place_of.get(i, -1) for i in range(len(images))]
    return data | {"thumbnails": places, "columns": pictures.columns, "a_sheet": A_SHEET}, pictures.urls()


def plain(value: Any) -> str | float:
    return float(f"{value:.5g}") if isinstance(value, float) else str(value)


def unit(at: np.ndarray) -> np.ndarray:
    """(n, 2) scaled into the unit square, with equal scales."""
    low, high = at.min(axis=0), at.max(axis=0)
    return (at - (low + high) / 2) / max(float((high - low).max()), 1e-30) + 0.5


def _colours(images: Images) -> dict[str, list[str]]:
    """{column: its value for each image} of columns of a few values, if both stores have it."""
    columns = {}
    for name, values in images.store.columns.items():
        others = images.training_store.columns.get(name)
        if others is None:
            continue
        cells = [*values[images.rows[: images.n_test]].tolist(), *others[images.rows[images.n_test :]].tolist()]
        cells = list(map(str, cells))
        if 1 < len(set(cells)) <= _MOST_VALUES:
            columns[name] = cells
    return columns


def document(title: str, sections: list[Section], data: dict[str, Any], sheets: list[str]) -> str:
    """The page. data : what its script reads; sheets : URLs of pictures"""
    assets = files("featx.report.page")
    style, script = (assets.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    # JSON inside a script element: no "<" may end it, and line separators are escaped for older browsers
    plain = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    links = "".join(f'<a href="#{section.name}">{text_html(section.title)}</a>' for section in sections)
    sheet_style = "".join(f".sheet{i}{{background-image:url({url})}}" for i, url in enumerate(sheets))
    body = "\n".join(map(section_html, sections))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text_html(title)}: featx report</title>
<style>{style}{sheet_style}</style></head>
<body><a class="skip" href="#{sections[0].name}">skip to the result</a>
<header><h1>{text_html(title)}</h1><nav aria-label="parts of this report">{links}</nav></header>
<main>
{body}
</main>
<dialog id="viewer" aria-labelledby="viewer-title"><form method="dialog"><h2 id="viewer-title"></h2>
<button autofocus aria-label="close">close</button></form><div class="gallery" id="viewer-images"></div></dialog>
<script type="application/json" id="page-data">{plain}</script>
<script>{script}</script>
</body></html>
"""
