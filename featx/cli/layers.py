"""`featx layers`: what can be extracted from a backbone."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from featx.cli.interrupts import loading
from featx.cli.printing import print_all
from featx.errors import FeatxError


def layers(
    backbone: Annotated[str, typer.Argument(help="resnet50, timm:convnext_tiny, bundled:efficientnet_lite0, ...")],
    boundaries: Annotated[
        bool, typer.Option("--boundaries", help="List only layers behind which featx finetune can train.")
    ] = False,
) -> None:
    """List every layer of a backbone that can be extracted, with its size. Needs no weights."""
    refuse_file_as_backbone(backbone)
    with loading("loading torch") as on_phase:
        from featx.backbones import Backbone
        from featx.report import boundaries_table, layers_table

        on_phase(f"building {backbone}")
        table = (boundaries_table if boundaries else layers_table)(Backbone(backbone, weights=None))
    print_all(table)


def refuse_file_as_backbone(name: str | None) -> None:
    """Raise FeatxError if a store, a model or a folder of images was given in place of a network's name."""
    if name is not None and (name.endswith((".h5", ".skops")) or "/" in name and os.path.isdir(name)):
        hint = f"; featx info {name} says what a store holds" if name.endswith(".h5") else ""
        raise FeatxError(
            f"a backbone is a network's name, resnet50 or timm:convnext_tiny for example; got {name}{hint}"
        )
