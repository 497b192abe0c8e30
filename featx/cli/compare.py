"""`featx compare` and `featx models`: which pretrained backbone to take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from featx.cli.interrupts import interruptible, loading
from featx.cli.layers import refuse_file_as_backbone
from featx.cli.printing import print_all, print_data, print_line
from featx.cli.search_files import FIGURES, check_file
from featx.errors import FeatxError
from featx.progress import preparing, shown

_DATA, _SCORING, _OUTPUT = "Images", "Scoring", "Output"


def compare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="A folder of class folders or a .csv manifest; or stores of the same images, one for each backbone."
        ),
    ],
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone",
            "-b",
            help="resnet50, timm:convnext_tiny ...; NAME=WEIGHTS for other weights or a file. Repeat it for each.",
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            "-l",
            help="A node, 'stages', 'penultimate' or 'node:pool'; may be repeated.",
            show_default="stages",
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option(help="Number of images to compare on; 0 for all.", rich_help_panel=_DATA)
    ] = 1000,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The manifest's column of labels.", show_default="label, if there is one", rich_help_panel=_DATA
        ),
    ] = None,
    target: Annotated[
        Literal["class", "numeric"],
        typer.Option(help="Whether labels are class names or numbers.", rich_help_panel=_DATA),
    ] = "class",
    groups: Annotated[
        str | None,
        typer.Option(help="A column; images of one group are never split.", rich_help_panel=_DATA),
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.", rich_help_panel=_SCORING)] = 5,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="log_me, h_score or n_leep as further columns; may be repeated.", rich_help_panel=_SCORING),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample and the folds.", rich_help_panel=_SCORING)] = 0,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Device on which the networks run.")] = "auto",
    folder: Annotated[
        Path, typer.Option(help="Folder in which the stores of the sample are kept.", rich_help_panel=_OUTPUT)
    ] = Path("compared"),
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Draw score against time, all layers, and their similarity: .png, .pdf or .svg.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_OUTPUT)] = False,
) -> None:
    """Compare pretrained backbones on a sample of your images, by a cross-validated linear probe.

    The sample is extracted once with each backbone; its stores are kept, and found again the next time.
    """
    are_stores = all(path.suffix == ".h5" for path in sources)
    for name in backbone or []:
        refuse_file_as_backbone(name)
    if not are_stores and len(sources) > 1:
        raise FeatxError("give one folder or manifest; or stores, all of them .h5 files")
    check_file(figure, FIGURES, "a figure is a .png, .pdf or .svg file")
    with shown(True) as show, interruptible():
        preparing(show)("loading torch and scikit-learn")
        from featx.backbones import Backbone
        from featx.report import comparison_figure, comparison_json, comparison_table
        from featx.store import FeatureStore, written_aside
        from featx.transfer import compare as compare_backbones
        from featx.transfer import similarity

    result = compare_backbones(
        [FeatureStore(path) for path in sources] if are_stores else sources[0],
        [Backbone(*_name_and_weights(name)) for name in backbone] if backbone else None,
        layer or "stages",
        sample=sample or None,
        labels=labels,
        target=target,
        groups=groups,
        folder=folder,
        metrics=metric or (),
        folds=folds,
        random_state=seed,
        device=device,
    )
    if as_json:
        print_data(comparison_json(result))
    else:
        print_all(comparison_table(result))
        best = result.best
        print_line(f"{best.store.path}: features of the sample by the best one, for featx search")
    if figure is not None:
        drawn = comparison_figure(result, similarity([each.store for each in result.backbones]))
        with written_aside(figure) as file:
            drawn.savefig(file, format=figure.suffix[1:].lower(), dpi=110)
        if not as_json:
            print_line(f"{figure}: the picture")


def _name_and_weights(text: str) -> tuple[str, str | None]:
    name, _, weights = text.partition("=")
    return name, None if weights == "random" else weights or "DEFAULT"


def models(
    pattern: Annotated[
        str, typer.Argument(help="Part of a name: resnet, timm:vit_small ...; nothing for the well-known ones.")
    ] = "",
) -> None:
    """List pretrained backbones: their size, published accuracy, and whether they are on this disk."""
    with loading("loading torch"):
        from featx.report import models_table

        table = models_table(pattern)
    print_all(table)
