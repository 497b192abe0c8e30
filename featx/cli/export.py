"""`featx export`: a model as one ONNX or torch program; a store as .npy, Parquet or an archive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from featx.cli.interrupts import loading, working
from featx.cli.printing import print_line
from featx.errors import FeatxError, count, readable

if TYPE_CHECKING:
    from featx.deploy import Exported

Compression = Literal["gzip", "zstd", "none"]
PROGRAMS = (".onnx", ".pt2")
_MODEL, _STORE = "Of a model", "Of a store"


def export(
    source: Annotated[Path, typer.Argument(help="A model (.skops), or a store that featx extract made.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Of a model .onnx or .pt2; of a store .npy (one layer), .parquet, or .h5 (a compressed archive).",
        ),
    ] = None,
    web: Annotated[
        Path | None,
        typer.Option(
            help="In place of --output: a new folder for a static web page that classifies images in the browser.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            help="With --web: the folder dist of the npm package onnxruntime-web, whose files are copied.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    input: Annotated[
        Literal["pixels", "image", "rows"] | None,
        typer.Option(
            help="What the program reads: batches of resized and cropped pixels; one image of any size; or features.",
            show_default="pixels",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            help="Compare the program with the model on these images, files or folders; may be repeated.",
            show_default="seeded images",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="The network's weights, as of featx predict.", rich_help_panel=_MODEL),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", "-l", help="Export only this layer; may be repeated.", rich_help_panel=_STORE),
    ] = None,
    compression: Annotated[
        Compression | None,
        typer.Option(
            help="Compression of an archive; 'none' turns it into a store again.",
            show_default="gzip",
            rich_help_panel=_STORE,
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing file.")] = False,
) -> None:
    """Write a model as one program for onnxruntime or torch; or a store's layers as .npy or Parquet, or compressed.

    A program is run and compared with the model before it is kept: it is refused if a label differs.
    """
    is_model = source.suffix.lower() == ".skops"
    if (output is None) == (web is None):
        raise FeatxError(f"give --output or --web{', not both' if web else ''}")
    if runtime is not None and web is None:
        raise FeatxError("--runtime is for --web; give that, too")
    if web is not None:
        if not is_model:
            raise FeatxError(f"a web page is made of a model, a .skops file; got {source}")
        if input is not None or replace:
            raise FeatxError(f"--web has no {'--replace' if input is None else '--input'}; leave it out")
        _export_web(source, web, runtime, check, weights)
        return
    assert output is not None
    if is_model != (output.suffix.lower() in PROGRAMS):
        if is_model:
            raise FeatxError(f"a model is exported as a .onnx or .pt2 file; got {output}")
        raise FeatxError(f"a .onnx or .pt2 file is made of a model, a .skops file; got {source}")
    of_model = {"--input": input, "--check": check, "--weights": weights}
    of_store = {"--layer": layer, "--compression": compression}
    for name, value in (of_store if is_model else of_model).items():
        if value:
            raise FeatxError(f"{name} is for {'stores' if is_model else 'models'}; {source.name} is none")
    if is_model:
        _export_model(source, output, input or "pixels", check, weights, replace)
        return
    from featx.store import export as export_store

    written = export_store(source, output, layer or None, compression=compression, replace=replace)
    print_line(f"{written}: {readable(written.stat().st_size)}")


def _export_model(
    source: Path,
    output: Path,
    input: Literal["pixels", "image", "rows"],
    check: list[Path] | None,
    weights: str | None,
    replace: bool,
) -> None:
    model, images = _loaded(source, check, weights)
    with working("exporting and comparing"):
        from featx.deploy import export as export_model

        exported = export_model(model, output, input=input, check=images, replace=replace)
    _print_exported(source, exported)


def _export_web(
    source: Path, folder: Path, runtime: Path | None, check: list[Path] | None, weights: str | None
) -> None:
    model, images = _loaded(source, check, weights)
    with working("exporting and comparing"):
        from featx.deploy import RUNTIME_FILES, RUNTIME_SOURCE, export_web

        exported = export_web(model, folder, runtime=runtime, check=images)
    _print_exported(source, exported)
    if runtime is None:
        print_line(f"put onnxruntime-web's files into {folder}: {', '.join(RUNTIME_FILES)}. {RUNTIME_SOURCE}")
    print_line(f"{folder}: the page; to look at it: python -m http.server -d {folder}")


def _loaded(source: Path, check: list[Path] | None, weights: str | None) -> tuple[Any, list[Path] | None]:
    """The model, and the images to compare on."""
    from featx.images import files

    images = files(check) if check else None
    with loading("loading scikit-learn and torch"):
        from featx.deploy import export  # noqa: F401  # it imports torch
        from featx.learn import load

        return load(source, weights=weights), images


def _print_exported(source: Path, exported: Exported) -> None:
    output, agreement = exported.path, exported.agreement
    same = "" if agreement.of == "values" else "all labels are equal, "
    print_line(f"{output}: {readable(output.stat().st_size)}, {exported.input} -> {', '.join(exported.outputs)}")
    print_line(
        f"compared with {source} on {count(agreement.n, agreement.on)}"
        f"{' of random numbers' if agreement.is_seeded else ''}: {same}{agreement.of} within {agreement.difference:.1e}"
    )
    if agreement.precision != "float32":
        print_line(
            f"the model's features are computed in {agreement.precision}, the program's in float32; labels were "
            "compared with both"
        )
