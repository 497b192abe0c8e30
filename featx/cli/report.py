"""`featx report`: the report of a saved model, written later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featx.cli.interrupts import loading, working
from featx.cli.printing import print_all
from featx.cli.search_files import REPORTS, audit_of, check_file
from featx.errors import FeatxError


def report(
    model: Annotated[Path, typer.Argument(help="A .skops file that featx search wrote.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The report: a .html page that needs no network, or Markdown (.md).")
    ],
    stores: Annotated[
        list[Path] | None, typer.Option("--store", "-s", help="The store that was searched; repeat for several.")
    ] = None,
    test_store: Annotated[
        Path | None, typer.Option("--test-store", help="The store of the held-out images, if it was another one.")
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Audit the store and show what the data say; see featx audit.")
    ] = False,
) -> int:
    """Write the report of a search later, from its model and the stores that were searched."""
    from featx.store import FeatureStore

    check_file(output, *REPORTS)
    if not stores:
        raise FeatxError("give the store that was searched: --store photos.h5")
    opened = [FeatureStore(path) for path in stores]
    test = None if test_store is None else FeatureStore(test_store)
    with loading("loading scikit-learn"):
        from featx.learn import load_selection
        from featx.report import html
    with working("writing the report"):
        selection = load_selection(model, opened, test)
        html(selection, output, audit=audit_of(selection) if audit else None)
    print_all(f"{output}: the report")
    return 0
