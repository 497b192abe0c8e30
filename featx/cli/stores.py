"""`featx info`, `verify`, `merge` and `put`: commands on stores that need no network."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from featx.cli.printing import print_all, print_error, print_line
from featx.cli.wording import worded
from featx.errors import FeatxError, count, readable
from featx.urls import shown


def info(
    store: Annotated[Path, typer.Argument(help="A store that featx extract made.")],
    other: Annotated[Path | None, typer.Argument(help="Another store to compare it with.")] = None,
) -> None:
    """Show what a store holds and how it was made; or compare two, field by field, and what each difference means."""
    from featx.report import difference_table, notes_text, store_table, together_text
    from featx.store import FeatureStore

    opened = FeatureStore(store)
    if other is not None:
        second = FeatureStore(other)
        print_all(difference_table(opened, second), together_text(opened, second))
        return
    print_all(store_table(opened))
    if notes := notes_text(opened):
        print_all(notes)


def verify(stores: Annotated[list[Path], typer.Argument(help="One or more stores.")]) -> int:
    """Read whole stores and compare all bytes with their checksums."""
    from featx.store import FeatureStore

    bad = 0
    for path in stores:
        try:
            store = FeatureStore(path)
            store.verify()
            print_line(f"{store.url or path}: whole, all checksums match")
        except FeatxError as error:
            print_error(worded(error, ()))
            bad += 1
    return 2 if bad else 0


def merge(
    stores: Annotated[list[Path], typer.Argument(help="Two or more stores of different images, made in the same way.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HDF5 file to write.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing file.")] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Drop what an interrupted run has done, instead of resuming it.")
    ] = False,
) -> None:
    """Join the images of several stores in one."""
    from featx.store import merge as merge_stores

    before = None
    with contextlib.suppress(OSError, ValueError):  # there is no such file, or there cannot be one
        before = output.stat()
    merged = merge_stores(stores, output, replace=replace, discard=discard)
    was_finished = before is not None and os.path.samestat(before, output.stat())
    finished = ", was finished already" if was_finished else ""
    print_line(f"{output}: {count(len(merged), 'image')} of {len(stores)} stores{finished}")


def put(
    store: Annotated[Path, typer.Argument(help="A store that featx extract made.")],
    url: Annotated[str, typer.Argument(help="Where to, such as s3://bucket/photos.h5.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace another file that is there.")] = False,
) -> None:
    """Upload a store to a URL; every command that reads a store takes this URL in its place."""
    from featx.store import FeatureStore
    from featx.store import put as put_store

    opened = FeatureStore(store)
    done = "uploaded" if put_store(opened, url, replace=replace) else "is there already"
    print_line(f"{shown(url)}: {count(len(opened), 'image')}, {readable(opened.path.stat().st_size)}; {done}")
