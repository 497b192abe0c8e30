"""`featx extract`: images through a network into a store."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from featx.cli.interrupts import interruptible
from featx.cli.layers import refuse_file_as_backbone
from featx.cli.printing import print_all, print_data, print_line
from featx.errors import ContradictionWarning, FeatxError, NonFiniteWarning, Parameter, UnreadableImagesWarning, count
from featx.grammar import POOLS
from featx.progress import Progress, preparing, shown

if TYPE_CHECKING:
    from featx.extraction import Plan
    from featx.images import Collection
    from featx.store import FeatureStore

_NETWORK, _LABELS, _COMPUTING, _OUTPUT, _PRINTED = (
    "Network",
    "Manifest and labels",
    "Computing",
    "Output file",
    "Printed",
)


def extract(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of class folders or of images, a .zip of one, .tar or .parquet files, a .csv manifest, or "
            "the URL of one."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HDF5 file to make.", rich_help_panel=_OUTPUT)],
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            "-b",
            help="resnet50, timm:convnext_tiny, bundled:efficientnet_lite0, ...",
            show_default="resnet50",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            "-l",
            help="A node, 'stages', 'penultimate' (the default) or 'node:pool'; may be repeated.",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    pool: Annotated[
        str,
        typer.Option(
            help=f"Pool of layers that name none: {', '.join(POOLS)}; 'flatten~512' projects to 512 numbers.",
            rich_help_panel=_NETWORK,
        ),
    ] = "avg",
    view: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep several views of each image: center, flip, crop:N with N from 1 to 8; repeated.",
            show_default="center alone",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(help="A weights name, a .safetensors or .pth file, or 'random'.", rich_help_panel=_NETWORK),
    ] = "DEFAULT",
    like: Annotated[
        Path | None,
        typer.Option(
            help="An existing store: use the settings that it was made with, so that the two can be used together; "
            "-l chooses among its layers.",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The manifest's column of labels.", show_default="label, if there is one", rich_help_panel=_LABELS
        ),
    ] = None,
    path_column: Annotated[str, typer.Option(help="The manifest's column of paths.", rich_help_panel=_LABELS)] = "path",
    target: Annotated[
        Literal["class", "numeric"],
        typer.Option(help="Whether labels are class names or numbers.", rich_help_panel=_LABELS),
    ] = "class",
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Device on which the network runs.", rich_help_panel=_COMPUTING),
    ] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Number type of the forward pass.", rich_help_panel=_COMPUTING),
    ] = "auto",
    engine: Annotated[
        Literal["auto", "eager", "compiled"],
        typer.Option(help="Whether the network is compiled.", rich_help_panel=_COMPUTING),
    ] = "auto",
    batch_size: Annotated[
        str, typer.Option(help="Images per forward pass.", metavar="NUMBER", rich_help_panel=_COMPUTING)
    ] = "auto",
    workers: Annotated[
        str, typer.Option(help="Number of threads that decode images.", metavar="NUMBER", rich_help_panel=_COMPUTING)
    ] = "auto",
    ray: Annotated[
        str | None,
        typer.Option(
            help="Compute on a Ray cluster: its address, 'auto' (RAY_ADDRESS, one on this machine, or a new one) or "
            "'local' (a new one).",
            metavar="auto|local|HOST:PORT",
            show_default="this machine alone",
            rich_help_panel=_COMPUTING,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16"] | None,
        typer.Option(help="Number type of the stored rows.", show_default="float32", rich_help_panel=_OUTPUT),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            help="Write several stores, OUTPUT-00000-of-N ..., for featx merge; with --ray each on a node of its own.",
            metavar="N",
            show_default="one store",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Replace a store even if some of its images are gone, have changed or have new labels.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    discard: Annotated[
        bool,
        typer.Option(
            "--discard",
            help="Drop what an interrupted run has done, instead of resuming it.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what would be done and the size of the result; download and compute nothing.",
            rich_help_panel=_PRINTED,
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print no plan and no progress bar.", rich_help_panel=_PRINTED)
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print plan, progress and result as lines of JSON.", rich_help_panel=_PRINTED),
    ] = False,
) -> int:
    """Run images through a pretrained network once and keep activations in one HDF5 file.

    An interrupted run is resumed when the same command is started again. An existing store is returned, or grows by new
    images and layers. Exit codes: 0 done; 1 done, some images unreadable; 2 refused; 130 interrupted.
    """
    rows, threads = _auto_or_number("batch_size", batch_size), _auto_or_number("workers", workers)
    if shards is not None and (dry_run or as_json):
        raise FeatxError(Parameter("shards"), " goes with neither --dry-run nor --json; leave these out")
    with shown(_print_phase if as_json else not quiet) as show:
        executor = None
        if ray is not None:
            preparing(show)("loading torch")
            with interruptible():
                from featx.scale import RayExecutor
            executor = RayExecutor(ray)
        preparing(show)("looking for the images")
        from featx.images import collect
        from featx.store import FeatureStore, refuse_unwritable_store, unfinished

        refuse_file_as_backbone(backbone)
        refuse_unwritable_store(output)
        begun = None if discard else unfinished(output)
        images = collect(
            source,
            labels,
            target=target,
            path_column=path_column,
            on_phase=preparing(show),
            listing=None if begun is None else begun.listing,
        )
        if output.exists():
            FeatureStore(output)
        example = None if like is None else FeatureStore(like)
        preparing(show)("loading torch")
        with interruptible():
            from featx.extraction import plan
            from featx.report import ExtractionLines, notes_text, plan_table

        settings: dict[str, Any] = {
            "like": example,
            "pool": pool,
            "views": view or None,
            "weights": None if weights == "random" else weights,
            "device": device,
            "precision": precision,
            "engine": engine,
            "dtype": "auto" if dtype is None else dtype,
            "batch_size": rows,
            "workers": threads,
            "replace": replace,
            "discard": discard,
            "executor": executor,
        }
        if shards is None:
            planned = plan(images, output, backbone, layer or None, **settings, progress=show, dry_run=dry_run)
    if shards is not None:
        return _extract_shards(images, output, backbone, layer or None, shards, quiet, settings)
    lines = ExtractionLines(planned, print_data)
    seconds = planned.seconds() if planned.is_timed else None
    if as_json:
        lines.plan(seconds)
    elif dry_run or not quiet and not planned.is_done:
        print_all(plan_table(planned, seconds))
    if dry_run:
        return 0
    with _warnings_printed_below():
        store = planned.run(lines.progress if as_json else not quiet)
    if as_json:
        lines.result(store)
    else:
        print_line(f"{output}: {_summary(planned, store)}")
        if notes := notes_text(store):
            print_all(notes)
    return 1 if store.failures else 0


def _extract_shards(
    images: Collection,
    output: Path,
    backbone: str | None,
    layers: list[str] | None,
    shards: int,
    quiet: bool,
    settings: dict[str, Any],
) -> int:
    """Make several stores and print a line for each."""
    from featx.report import notes_text
    from featx.scale import extract_shards

    with _warnings_printed_below():
        stores = extract_shards(images, output, backbone, layers, shards=shards, progress=not quiet, **settings)
    for store in stores:
        print_line(f"{store.path}: {count(len(store), 'image')}")
        if notes := notes_text(store):
            print_all(notes)
    return 1 if any(store.failures for store in stores) else 0


@contextlib.contextmanager
def _warnings_printed_below() -> Iterator[None]:
    """Ignore warnings that `notes_text` repeats."""
    with warnings.catch_warnings():
        for category in (UnreadableImagesWarning, NonFiniteWarning, ContradictionWarning):
            warnings.simplefilter("ignore", category)
        yield


def _summary(planned: Plan, store: FeatureStore) -> str:
    if store.classes is not None:
        labelled = f"{len(store.classes)} classes"
    else:
        labelled = "no labels" if store.y is None else "numbers as labels"
    if store.y is None and store.columns:
        labelled += f" (--labels chooses one of the columns {', '.join(store.columns)})"
    done = "nothing left to do; " if planned.is_done else ""
    return f"{done}{count(len(store), 'image')}, {labelled}; layers {', '.join(store.layers)}"


def _auto_or_number(name: str, text: str) -> int | str:
    if text != "auto" and not (text.isdecimal() and len(text) < 6 and 0 < int(text) <= 2**16):
        option = f"--{name}".replace("_", "-")
        raise FeatxError(f"{option} is auto or a whole number, 1 to {2**16:,}; got {text[:20]}")
    return text if text == "auto" else int(text)


def _print_phase(progress: Progress) -> None:
    """A line of JSON, before there is a plan."""
    typer.echo(json.dumps({"event": "phase", "phase": progress.phase}))
