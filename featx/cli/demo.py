"""`featx demo`, written as a user would: which layer of a network trained on photos sees defects in textile?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from featx.cli.interrupts import working
from featx.cli.printing import print_all
from featx.errors import FeatxError

_TITLE = "Which layer sees defects in textile?"
_INTRODUCTION = """\
2,000 pictures of woven textile, 250 x 250 px: 1,000 nominal, 500 with a local defect (a thread or two), 500 with a
global one (the weave has changed). Made and published by Megahed et al. (2025) in the package conformal-clip-data.
A small network that was trained on everyday photos only (EfficientNet-Lite0, ImageNet) turns each into features, at
every stage; a classifier on top is chosen by cross-validation. The raw pixels compete in the same table."""

_NEXT = """\
The same on your own folder of class folders:

  featx extract photos/ -o photos.h5 -b bundled:efficientnet_lite0 -l stages -l stages:max -l penultimate
  featx search photos.h5 -o model.skops --figure search.png
  featx predict model.skops new_photos/"""


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for the files that the demo writes.")] = Path("featx-demo"),
) -> None:
    """Find defects in 2,000 pictures of textile: extract, search, draw, save. Offline; about two minutes."""
    from featx.extraction import extract
    from featx.learn import save, select_model
    from featx.report import html, ranking_table, search_progress, selection_figure, selection_text

    try:
        import conformal_clip_data
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise FeatxError(f"the demo needs {error.name}: pip install 'featx[demo]'") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FeatxError(f"cannot make the folder {folder}: {error.strerror}; choose another with --folder") from error
    print_all(_INTRODUCTION, "")
    start = time.perf_counter()

    photos = conformal_clip_data.textile_simulated_root()
    store = extract(
        photos,
        folder / "textile.h5",
        backbone="bundled:efficientnet_lite0",
        layers=["stages:avg", "stages:max", "penultimate"],
    )
    pixels = extract(photos, folder / "pixels.h5", backbone="bundled:pixels")
    with search_progress() as on_progress:
        selection = select_model(
            [store, pixels], estimators=["logistic_regression", "rbf_svm"], on_progress=on_progress
        )
    save(selection.best_estimator, folder / "textile.skops")
    selection_figure(selection, _TITLE).savefig(folder / "textile.png", dpi=110)
    with working("writing the report"):
        html(selection, folder / "textile.html", title=_TITLE, command="featx demo")

    print_all(ranking_table(selection), selection_text(selection), "")
    print_all(f"In {time.perf_counter() - start:.0f} s. The files are in {folder.absolute()}:")
    print_all("  textile.h5     features of every stage", "  pixels.h5      the raw pixels, the baseline")
    print_all("  textile.skops  the best model, fitted", "  textile.png    the picture: look at it")
    print_all("  textile.html   the report: open it in a browser", "")
    print_all(_NEXT)
