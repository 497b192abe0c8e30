"""The command line: arguments in, printed results out; what is done is done elsewhere. Long, being mostly options.

Exit codes: 0 done; 1 done, but some images could not be read; 2 something asked for is not there or does not fit;
130 interrupted. Messages are the library's; `_spoken` turns its parameters into options. torch and scikit-learn take
seconds to import: what can be refused without them is refused before.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from featx import __version__
from featx.display import console, printable
from featx.errors import (
    ContradictionWarning,
    FeatxError,
    ModelError,
    NonFiniteWarning,
    RowsDifferWarning,
    StoreError,
    UnreadableImagesWarning,
    count,
    listed,
    nearest,
    no_column,
    readable,
)
from featx.progress import Progress, preparing, shown

if TYPE_CHECKING:
    from featx.learn import ProtocolResult, Selection
    from featx.store import FeatureStore


class _Commands(TyperGroup):
    """featx's commands; words that fit none of them cost one line."""

    def main(self, *args: Any, **options: Any) -> Any:
        standalone_mode = options.get("standalone_mode", True)
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except TyperException as error:
            if not standalone_mode:
                raise
            words = args[0] if args else options.get("args") or sys.argv[1:]
            command = " ".join(["featx", *(word for word in words[:1] if word in self.commands)])
            if line := _misused(error, command):  # there is none where the help was printed instead
                _complain(line)
            code = error.exit_code
        if standalone_mode:
            raise SystemExit(code or 0)
        return code


def _misused(error: Any, command: str) -> str:
    """What is wrong with the words of a command, and what says which there are.

    Parameters
    ----------
    error : typer's, of whatever type
    command : where the error doesn't say
    """
    text = " ".join(error.format_message().split())
    if not text:
        return ""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    command = context.command_path if context is not None else command
    if context is not None and type(error).__name__ == "NoSuchOption":
        options = [name for one in context.command.get_params(context) for name in one.opts]
        text = f"{command} has no option {error.option_name}{nearest(error.option_name, options)}"
    elif parameter is not None:
        name = "/".join(reversed(parameter.opts)) if parameter.param_type_name == "option" else parameter.name.upper()
        reason = " ".join(error.message.removeprefix("Value error, ").split())
        known = {"valid integer": f"{name} is a whole number", "valid number": f"{name} is a number"}
        known |= {"valid boolean": f"{name} takes no value"}
        needed = next((needed for words, needed in known.items() if words in reason), f"{name}: {reason.rstrip('.')}")
        text = needed if reason else f"{command} needs {name}: {parameter.help}"
    else:
        text = (text[0].lower() + text[1:]).rstrip(".")
    return f"{text}{'' if text[-1] in '.?' else '.'} {command} --help says what it takes"


app = typer.Typer(
    name="featx",
    cls=_Commands,
    help="Features once, answers in seconds: CNN activations in one HDF5 file, scikit-learn on top.",
    epilog="Exit codes: 0 done; 1 done, some images unreadable; 2 something asked for is missing or does not fit; "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Target(StrEnum):
    class_ = "class"
    numeric = "numeric"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Engine(StrEnum):
    auto = "auto"
    eager = "eager"
    compiled = "compiled"


class Dtype(StrEnum):
    float32 = "float32"
    float16 = "float16"


class Compression(StrEnum):
    gzip = "gzip"
    zstd = "zstd"
    none = "none"


class Estimator(StrEnum):
    nearest_centroid = "nearest_centroid"
    ridge_classifier = "ridge_classifier"
    logistic_regression = "logistic_regression"
    linear_svm = "linear_svm"
    knn = "knn"
    rbf_svm = "rbf_svm"
    ridge = "ridge"
    svr = "svr"


class Protocol(StrEnum):
    grid = "grid"
    linear_probe = "linear-probe"
    knn = "knn"
    few_shot = "few-shot"
    learning_curve = "learning-curve"


def _command(function: Callable[..., int | None]) -> Callable[..., None]:
    """A command that ends with an exit code and, where a user can mend it, one line instead of a traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with _notes():
                code = function(*args, **kwargs)
        except FeatxError as error:
            _complain(_spoken(str(error), kwargs))
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            _complain(f"no file can have so long a name: {str(error.filename)[:60]}...")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            left = _what_is_left(kwargs["output"]) if "discard" in kwargs else ""
            _complain(f"interrupted{left}")
            raise typer.Exit(130) from None
        raise typer.Exit(code or 0)

    return run


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Print a RowsDifferWarning as a line on stderr, when it comes."""

    def note(message: Warning | str, category: type[Warning], *where: Any, **rest: Any) -> None:
        if issubclass(category, RowsDifferWarning):
            typer.echo(f"note: {printable(message)}", err=True)
        else:
            show(message, category, *where, **rest)

    with warnings.catch_warnings():
        warnings.simplefilter("default", RowsDifferWarning)
        show, warnings.showwarning = warnings.showwarning, note
        yield


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """KeyboardInterrupt on Ctrl-C while libraries are imported; these may swallow it, or raise something else."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # somebody else's
        return
    interrupted = False

    def note(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        if not interrupted:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _loading(phase: str) -> Iterator[Callable[[str], None]]:
    """Say on a terminal what takes seconds, and be interruptible; gives what to call with the next phase."""
    with shown(True) as show, _interruptible():
        on_phase = preparing(show)
        on_phase(phase)
        yield on_phase


def _what_is_left(output: Path) -> str:
    """Of an interrupted run that writes a store."""
    from featx.store import discard, is_unfinished

    if is_unfinished(output):
        return "; what is done is kept, the same command goes on"
    with contextlib.suppress(FeatxError):  # an empty file, if the run had just begun
        discard(output)
    return "; nothing half-written is left"


_OPTIONS = {"random_state": "seed", "n_jobs": "jobs", "estimators": "estimator", "layers": "layer", "like": "like"}
# what a message says for Python, beside what it says for the command line
_PYTHON = r"(?:y=)?(?:featx|store)(?:\.\w+)+"
_CALL = rf"{_PYTHON}\((?:[^()]|\([^()]*\))*\)"


def _option(parameter: str) -> str:
    """ "--test-size" for "test_size" """
    return "--" + _OPTIONS.get(parameter, parameter).replace("_", "-")


def _spoken(message: str, options: Iterable[str]) -> str:
    """The library's words as the command line has them: --test-size 0 for `test_size=0`, --seed for `random_state`.

    Where both are named, as in "--replace it (replace=True)", the option stays.
    """
    names = [*options, *_OPTIONS]
    begin, end = r"(?<![-\w./'\"])", r"(?![-\w./'\"=])"  # not inside a path or a quoted name
    message = re.sub(rf" \((?:{'|'.join(names)})=True\)", "", message)
    message = re.sub(rf"(?:{_CALL}|{_PYTHON}), or (?=--|no --|featx )", "", message)
    message = re.sub(rf"(?<=\w)(?:,| or) {_CALL}(?=[,;.]|$| or)", "", message)
    given = re.compile(rf"{begin}({'|'.join(names)})=(?:'([^']*)'|([^\s,;:)']+)|(?=[\s,;:.)]|$))")
    word = re.compile(rf"{begin}({'|'.join(name for name in names if '_' in name)}){end}")  # others are any sentence's
    parts = re.split(f"({_CALL})", message)
    for place in range(0, len(parts), 2):  # what is said for Python alone stays as it is
        text = re.sub(rf"{begin}weights=None{end}", "--weights random", parts[place])
        text = given.sub(lambda found: f"{_option(found[1])} {found[2] or found[3] or ''}".rstrip(), text)
        parts[place] = word.sub(lambda found: _option(found[1]), text)
    return "".join(parts)


def _phase_line(now: Progress) -> None:
    """Before there is a plan to tell of."""
    typer.echo(json.dumps({"event": "phase", "phase": now.phase}))


def _print(*things: object) -> None:
    """Tables and texts."""
    # what is piped or logged is not cut at a screen's 80 columns
    width = None if sys.stdout.isatty() else 140
    screen = console(width=width)
    for thing in things:
        screen.print(thing, soft_wrap=isinstance(thing, str))


def _tell(line: str) -> None:
    _print(printable(line))


def _complain(line: str) -> None:
    typer.echo(f"featx: {printable(line)}", err=True)


def _hand_over(text: str) -> None:
    """JSON or CSV, byte for byte where another program reads it."""
    if sys.stdout.isatty():
        typer.echo(printable(text, keep="\n"))
    else:
        typer.echo(text.encode(errors="surrogateescape"))  # as the names of files are in bytes


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


@app.command()
@_command
def extract(
    source: Annotated[Path, typer.Argument(help="A folder of class folders, a folder of images, or a .csv manifest.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HDF5 file to make.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            "-b",
            help="resnet50, timm:convnext_tiny, bundled:efficientnet_lite0, ...",
            show_default="resnet50",
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="A store: make this one as that was made, so that they can be used together. With -l, choose of its "
            "layers."
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer", "-l", help="A node, 'stages' or 'penultimate' (the default), or 'node:pool'; may be repeated."
        ),
    ] = None,
    pool: Annotated[
        str,
        typer.Option(
            help="avg, max, gem, spp, cls, tokens, flatten or none, for layers that name none; "
            "'flatten~512' projects to 512 numbers."
        ),
    ] = "avg",
    weights: Annotated[str, typer.Option(help="A weights name, a .safetensors or .pth file, or 'random'.")] = "DEFAULT",
    labels: Annotated[str | None, typer.Option(help="The manifest's column of labels; 'label' if it has one.")] = None,
    path_column: Annotated[str, typer.Option(help="The manifest's column of paths.")] = "path",
    target: Annotated[Target, typer.Option(help="Whether labels are class names or numbers.")] = Target.class_,
    device: Annotated[Device, typer.Option(help="Where the network runs.")] = Device.auto,
    precision: Annotated[Precision, typer.Option(help="Of the forward pass.")] = Precision.auto,
    engine: Annotated[Engine, typer.Option(help="Whether the network is compiled.")] = Engine.auto,
    batch_size: Annotated[str, typer.Option(help="Images a forward pass.", metavar="NUMBER")] = "auto",
    workers: Annotated[str, typer.Option(help="Threads that decode.", metavar="NUMBER")] = "auto",
    dtype: Annotated[Dtype | None, typer.Option(help="Of the stored rows.", show_default="float32")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a store of which images are gone or changed, or have new labels.")
    ] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Drop what an interrupted run has done, instead of going on.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done and how large it is; download and compute nothing."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No plan and no progress bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Plan, progress and result as lines of JSON.")] = False,
) -> int:
    """Run images through a pretrained network once and keep activations in one HDF5 file.

    An interrupted run goes on when it is started again. A store that is there is returned, or grows by the images and
    layers that are new. Exit codes: 0 done; 1 done, some images unreadable; 2 refused; 130 interrupted, and the same
    command goes on.
    """
    rows, threads = _auto_or_number("batch_size", batch_size), _auto_or_number("workers", workers)
    with shown(_phase_line if as_json else not quiet) as show:
        preparing(show)("looking for the images")
        from featx.images import collect
        from featx.store import FeatureStore, refuse_unwritable

        _refuse_file_as_backbone(backbone)
        images = collect(source, labels, target=target.value, path_column=path_column)
        refuse_unwritable(output)
        if output.exists():
            FeatureStore(output)
        example = None if like is None else FeatureStore(like)
        preparing(show)("loading torch")
        with _interruptible():
            from featx.extraction import plan
            from featx.report import ExtractionLines, notes_text, plan_table

        todo = plan(
            images,
            output,
            backbone,
            layer or None,
            like=example,
            pool=pool,
            weights=None if weights == "random" else weights,
            device=device.value,
            precision=precision.value,
            engine=engine.value,
            dtype="auto" if dtype is None else dtype.value,
            batch_size=rows,
            workers=threads,
            replace=replace,
            discard=discard,
            progress=show,
            dry_run=dry_run,
        )
        lines = ExtractionLines(todo, _hand_over)
        seconds = todo.seconds() if todo.is_timed else None
    if as_json:
        lines.plan(seconds)
    elif dry_run or not quiet and not todo.is_done:
        _print(plan_table(todo, seconds))
    if dry_run:
        return 0
    with warnings.catch_warnings():
        for told_below in (UnreadableImagesWarning, NonFiniteWarning, ContradictionWarning):
            warnings.simplefilter("ignore", told_below)
        store = todo.run(lines.progress if as_json else not quiet)
    if as_json:
        lines.result(store)
        return 1 if store.failures else 0
    if store.classes is not None:
        labelled = f"{len(store.classes)} classes"
    else:
        labelled = "no labels" if store.y is None else "numbers as labels"
    if store.y is None and store.columns:
        labelled += f" (--labels chooses one of the columns {', '.join(store.columns)})"
    done = "nothing left to do; " if todo.is_done else ""
    _tell(f"{output}: {done}{count(len(store), 'image')}, {labelled}; layers {', '.join(store.layers)}")
    if notes := notes_text(store):
        _print(notes)
    return 1 if store.failures else 0


@app.command()
@_command
def info(
    store: Annotated[Path, typer.Argument(help="A store that featx extract made.")],
    other: Annotated[Path | None, typer.Argument(help="Another one: what made them is compared.")] = None,
) -> None:
    """What a store holds, and what made it; of two, the difference field by field, and what it changes."""
    from featx.report import difference_table, notes_text, store_table, together_text
    from featx.store import FeatureStore

    opened = FeatureStore(store)
    if other is not None:
        second = FeatureStore(other)
        _print(difference_table(opened, second), together_text(opened, second))
        return
    _print(store_table(opened))
    if notes := notes_text(opened):
        _print(notes)


@app.command()
@_command
def verify(stores: Annotated[list[Path], typer.Argument(help="One store or several.")]) -> int:
    """Read every byte of a store and compare it with what was written."""
    from featx.store import FeatureStore

    bad = 0
    for path in stores:
        try:
            FeatureStore(path).verify()
            _tell(f"{path}: whole, every byte is as it was written")
        except FeatxError as error:
            _complain(str(error))
            bad += 1
    return 2 if bad else 0


@app.command()
@_command
def merge(
    stores: Annotated[list[Path], typer.Argument(help="Two stores or more, made alike, of different images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HDF5 file to make.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace a file that is there.")] = False,
    discard: Annotated[bool, typer.Option("--discard", help="Drop what an interrupted run has done.")] = False,
) -> None:
    """One store with the images of several."""
    from featx.store import merge as run

    before = None
    with contextlib.suppress(OSError, ValueError):  # there is no such file, or none can be
        before = output.stat()
    merged = run(stores, output, replace=replace, discard=discard)
    was_there = before is not None and os.path.samestat(before, output.stat())
    finished = ", was finished already" if was_there else ""
    _tell(f"{output}: {count(len(merged), 'image')} of {len(stores)} stores{finished}")


@app.command()
@_command
def export(
    store: Annotated[Path, typer.Argument(help="A store that featx extract made.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=".npy (one layer), .parquet, or .h5 (a compressed archive).")
    ],
    layer: Annotated[
        list[str] | None, typer.Option("--layer", "-l", help="Only these layers; may be repeated.")
    ] = None,
    compression: Annotated[
        Compression | None, typer.Option(help="Of an archive, gzip by default; 'none' gives the store back.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a file that is there.")] = False,
) -> None:
    """A store's layers as .npy or Parquet, or the whole of it as a compressed archive."""
    from featx.store import export as run

    method = None if compression is None else compression.value
    written = run(store, output, layer or None, compression=method, replace=replace)
    _tell(f"{written}: {readable(written.stat().st_size)}")


@app.command()
@_command
def layers(
    backbone: Annotated[str, typer.Argument(help="resnet50, timm:convnext_tiny, bundled:efficientnet_lite0, ...")],
) -> None:
    """Every layer of a backbone that can be extracted, with its size. Needs no weights."""
    _refuse_file_as_backbone(backbone)
    with _loading("loading torch") as on_phase:
        from featx.backbones import Backbone
        from featx.report import layers_table

        on_phase(f"building {backbone}")
        table = layers_table(Backbone(backbone, weights=None))
    _print(table)


@app.command()
@_command
def search(
    stores: Annotated[list[Path], typer.Argument(help="One store, or several of the same images.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the winner, fitted, as a model file (.skops).")
    ] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="The grid of layers and estimators, or one of the field's protocols.")
    ] = Protocol.grid,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", "-l", help="Only these layers; 'a+b' is two side by side; may be repeated."),
    ] = None,
    estimator: Annotated[
        list[Estimator] | None,
        typer.Option(
            "--estimator",
            "-e",
            help="Only these; may be repeated.",
            show_default="logistic_regression, linear_svm, rbf_svm; of numbers ridge, svr",
        ),
    ] = None,
    l2: Annotated[bool, typer.Option("--l2", help="Bring features to length 1.")] = False,
    power: Annotated[
        bool, typer.Option("--power", help="Make features normal (Yeo-Johnson), which is slow: 10 ms each.")
    ] = False,
    pca: Annotated[int | None, typer.Option(help="Keep so many principal components.", show_default="all")] = None,
    scoring: Annotated[
        str | None,
        typer.Option(
            help="accuracy, balanced_accuracy, f1_macro, matthews_corrcoef, roc_auc; of numbers r2, "
            "neg_mean_absolute_error.",
            show_default="accuracy; of numbers r2",
        ),
    ] = None,
    one_se: Annotated[
        bool, typer.Option("--one-se", help="Take the cheapest within one standard error of the best.")
    ] = False,
    nested: Annotated[
        bool, typer.Option("--nested", help="Nested cross-validation too: what searching itself is worth.")
    ] = False,
    labels: Annotated[Path | None, typer.Option(help="A CSV file of labels by image id (columns: id, label).")] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Its column of labels; without --labels, one of the store.", show_default="label")
    ] = None,
    target: Annotated[
        Target | None, typer.Option(help="Whether these labels are class names or numbers.", show_default="class")
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="A column of the manifest: images with the same value are never split between training and test."
        ),
    ] = None,
    allow_duplicates: Annotated[
        bool,
        typer.Option("--allow-duplicates", help="Let images of the same content be split between training and test."),
    ] = False,
    test_size: Annotated[
        float | None, typer.Option(help="Share of images held out; 0 for none.", show_default="0.2")
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="Hold out by a column of the manifest instead of at random.")
    ] = None,
    test_value: Annotated[
        str | None, typer.Option(help="Its value for the images to hold out.", show_default="test")
    ] = None,
    validation_value: Annotated[
        str | None, typer.Option(help="Its value for those to choose C or k on, of linear-probe and knn.")
    ] = None,
    test_store: Annotated[
        Path | None, typer.Option(help="Hold out nothing; score on this store, by its own labels.")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Of the cross-validation.", show_default="5")] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Of it, with other folds; or draws.", show_default="1; few-shot 10, 5")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split, the folds and the draws.")] = 0,
    jobs: Annotated[int | None, typer.Option(help="Processes.", show_default="-1: one a core")] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Write every score into this .csv or .json; in CSV, a text like =1 gets an apostrophe in front."
        ),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the result into this .png, .pdf or .svg.")] = None,
    top: Annotated[int, typer.Option(help="Rows of the table.")] = 12,
) -> int:
    """Choose layer, estimator and its parameter by cross-validation, and score the choice on images held out.

    Images of the same content are never split between training and test, nor are --groups. Labels that are numbers are
    predicted as numbers. Interrupted, it shows and writes what was done.
    """
    from featx.store import FeatureStore

    inputs = {given.resolve() for given in (*stores, labels, test_store) if given is not None}
    for path in (output, figure, results):
        _refuse_unwritable(path)
        if path is not None and path.resolve() in inputs:
            raise FeatxError(f"{path} is read by this search and would be written over; choose another name")
        if path is not None and path.exists():
            raise FeatxError(f"{path} is there already; choose another name, or remove the file")
    outputs = [path.resolve() for path in (output, figure, results) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise FeatxError("--output, --figure and --results are files of their own; give them different names")
    if figure is not None and figure.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise FeatxError(f"a figure is a .png, .pdf or .svg file; got {figure}")
    if output is not None and output.suffix != ".skops":
        raise FeatxError(f"a model is a .skops file; got {output}")
    if results is not None and results.suffix not in (".csv", ".json"):
        raise FeatxError(f"results are a .csv or .json file; got {results}")
    for name, number, least in (("folds", folds, 2), ("repeats", repeats, 1), ("pca", pca, 1), ("top", top, 1)):
        if number is not None and number < least:
            raise FeatxError(f"--{name} is {least} or more; got {number}")
    if jobs == 0:
        raise FeatxError("--jobs is 1 or more, or -1 for one a core; got 0")
    of_grid = _given(
        estimators=[name.value for name in estimator] if estimator else None,
        l2=l2,
        power=power,
        pca=pca,
        scoring=scoring,
        one_se=one_se,
        nested=nested,
        folds=folds,
        n_jobs=jobs,
    )
    chooses = protocol in (Protocol.linear_probe, Protocol.knn)  # on validation images
    unused = [*(of_grid if protocol is not Protocol.grid else ())]
    unused += ["output"] if output is not None and protocol not in (Protocol.grid, Protocol.linear_probe) else []
    unused += ["repeats"] if repeats is not None and chooses else []
    unused += ["validation_value"] if validation_value is not None and not chooses else []
    if unused:
        them = "it" if len(unused) == 1 else "them"
        raise FeatxError(f"--protocol {protocol} has no {', '.join(map(_option, unused))}; leave {them} out")
    only_validates = test_store is not None and validation_value is not None and test_value is None
    tests_by_column = None if only_validates else split_column
    held_out_by = [*_given(test_size=test_size, split_column=tests_by_column, test_store=test_store)]
    if len(held_out_by) > 1:
        raise FeatxError(f"images are held out in one way; got {' and '.join(map(_option, held_out_by))}")
    for name in _given(test_value=test_value, validation_value=validation_value):
        if split_column is None:
            raise FeatxError(f"{_option(name)} is a value of --split-column; give that too")
    if test_store is not None and labels is None and label_column is not None and target is Target.numeric:
        raise FeatxError(
            "--label-column reads numbers of the searched store only; give both stores labels by extracting"
        )
    opened = [FeatureStore(path) for path in stores]
    test_rows = validation_rows = None
    if tests_by_column is not None:
        test_rows = _split_rows(opened[0], tests_by_column, "test" if test_value is None else test_value)
    if split_column is not None and validation_value is not None:
        validation_rows = _split_rows(opened[0], split_column, validation_value)
    asked = of_grid | _given(
        y=_labels(opened[0], labels, label_column, target),
        layers=[[part.strip() for part in name.split("+")] for name in layer] if layer else None,
        groups=groups,
        allow_duplicates=allow_duplicates,
        test_size=test_size,
        test_rows=test_rows,
        test_store=None if test_store is None else FeatureStore(test_store),
        validation_rows=validation_rows,
        repeats=repeats,
        random_state=seed,
    )
    with _loading("loading scikit-learn"):
        from featx.learn import Interrupted, Selection, save
        from featx.report import (
            model_text,
            nested_table,
            protocol_table,
            ranking_table,
            search_progress,
            selection_text,
        )
    is_whole = True
    try:
        with search_progress(scoring or "accuracy") as on_progress:
            result = _searcher(protocol)(opened, **asked, on_progress=on_progress)
    except Interrupted as stopped:
        result, is_whole = stopped.result, False
    except KeyboardInterrupt:
        _complain("interrupted before the first layer was done; nothing was written")
        return 130
    is_saved = output is not None and result.best_estimator is not None and not result.is_partial
    kept = []  # written before anything is printed: who reads may go away
    if output is not None and is_saved:
        save(result.best_estimator, output)
        kept.append(f"{output}: {model_text(result)}; featx predict {output} IMAGES... uses it")
    kept += _keep(result, results, figure)
    if isinstance(result, Selection):
        _print(
            ranking_table(result, top),
            *([nested_table(result.nested)] if result.nested and result.nested.scores else []),
        )
    else:
        _print(protocol_table(result, top))
    _print(selection_text(result), *map(printable, kept))
    if not is_whole:
        left = "" if output is None or is_saved else f", and {output} was not written"
        _complain(f"interrupted; this is what was done until then{left}")
    return 0 if is_whole else 130


@app.command()
@_command
def predict(
    model: Annotated[Path, typer.Argument(help="A model that featx search or featx.save made.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="The network's weights where they are not on this disk as they were: a state dict, a .pt2 program "
            "that you trust, or a name to download, DEFAULT for example."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV; a text that begins with = + - or @ gets an apostrophe in front.")
    ] = False,
) -> int:
    """Label images with a model: label and probability (or score) for each."""
    from rich.progress import track

    from featx.images import files

    if as_json and as_csv:
        raise FeatxError("choose one of --json and --csv")
    if model.is_dir():
        raise ModelError(f"{model} is a folder, and the model comes first: featx predict MODEL IMAGES")
    if not model.exists():
        beside = [path.name for path in model.parent.glob("*.skops")]
        raise ModelError(f"there is no model file {model}{nearest(model.name, beside)}; featx search -o makes one")
    paths = files(images)
    with _loading("loading scikit-learn and torch"):
        from featx.learn import load, predict_images
        from featx.report import predictions_csv, predictions_json, predictions_table

        found = predict_images(load(model, weights=weights), paths)
    bar = console(stderr=True)
    predictions = list(track(found, "predicting", len(paths), console=bar, transient=True, disable=not bar.is_terminal))
    if as_json or as_csv:
        _hand_over(predictions_json(predictions) if as_json else predictions_csv(predictions))
    else:
        _print(predictions_table(predictions))
    unreadable = sum(bool(row.error) for row in predictions)
    if unreadable:
        _complain(f"{unreadable:,} of {count(len(predictions), 'image')} cannot be read")
    return 1 if unreadable else 0


@app.command()
@_command
def demo(
    folder: Annotated[Path, typer.Option(help="Where its files go.")] = Path("featx-demo"),
) -> None:
    """Find defects in 2,000 pictures of textile: extract, search, draw, save. Offline; about two minutes."""
    from featx.demo import run

    run(folder, _print)


def _auto_or_number(name: str, text: str) -> int | str:
    if text != "auto" and not (text.isdecimal() and len(text) < 6 and 0 < int(text) <= 2**16):
        raise FeatxError(f"{_option(name)} is auto or a whole number, 1 to {2**16:,}; got {text[:20]}")
    return text if text == "auto" else int(text)


def _refuse_file_as_backbone(name: str | None) -> None:
    """A store, a model, or a folder of images in the place of a network's name."""
    if name is not None and (name.endswith((".h5", ".skops")) or "/" in name and os.path.isdir(name)):
        hint = f"; featx info {name} says what a store holds" if name.endswith(".h5") else ""
        raise FeatxError(
            f"a backbone is a network's name, resnet50 or timm:convnext_tiny for example; got {name}{hint}"
        )


def _given(**values: Any) -> dict[str, Any]:
    """Those that are; the others have the library's defaults."""
    return {name: value for name, value in values.items() if value is not None and value is not False}


def _labels(store: FeatureStore, file: Path | None, name: str | None, target: Target | None) -> Any:
    """Labels of a file, or of a column of the store; None for the store's own."""
    kind = (target or Target.class_).value
    if file is not None:
        return store.align(file, name or "label", target=kind)
    if name is None and target is not None:
        raise FeatxError("--target says what the labels of --labels or --label-column are; give one of them")
    if name is None or target is not Target.numeric:
        return name
    return store.align(dict(zip(store.ids.tolist(), _cells(store, name).tolist(), strict=True)), target=kind)


def _split_rows(store: FeatureStore, name: str, value: str) -> Any:
    cells = _cells(store, name)
    rows = cells == value
    if not rows.any():
        raise StoreError(f"no image has {name} = {value!r}; there are {listed(sorted(set(cells.tolist())))}")
    return rows


def _cells(store: FeatureStore, name: str) -> Any:
    if name not in store.columns:
        raise StoreError(no_column(store.path.name, name, store.columns))
    return store.columns[name]


def _searcher(protocol: Protocol) -> Callable[..., Selection | ProtocolResult]:
    from featx import learn

    found: dict[Protocol, Callable[..., Selection | ProtocolResult]] = {
        Protocol.grid: learn.select_model,
        Protocol.linear_probe: learn.linear_probe,
        Protocol.knn: learn.knn_probe,
        Protocol.few_shot: learn.few_shot,
        Protocol.learning_curve: learn.learning_curves,
    }
    return found[protocol]


def _keep(result: Selection | ProtocolResult, results: Path | None, figure: Path | None) -> list[str]:
    """Write what was asked for; lines that say so."""
    from featx.learn import Selection
    from featx.report import protocol_figure, results_csv, results_json, selection_figure
    from featx.store import written_aside

    lines = []
    if results is not None:
        text = results_csv(result) if results.suffix == ".csv" else results_json(result)
        with written_aside(results) as file:
            file.write(f"{text}\n".encode())
        lines.append(f"{results}: every score")
    if figure is not None:
        drawn = selection_figure(result) if isinstance(result, Selection) else protocol_figure(result)
        with written_aside(figure) as file:
            drawn.savefig(file, format=figure.suffix[1:].lower(), dpi=110)
        lines.append(f"{figure}: the picture")
    return lines


def _refuse_unwritable(path: Path | None) -> None:
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise FeatxError(f"cannot write {path}: {'it is a folder' if path.is_dir() else 'there is no such folder'}")


def main() -> None:
    """The `featx` command."""
    as_text = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: printable(as_text(*args, **kwargs), keep="\n")
    app()
