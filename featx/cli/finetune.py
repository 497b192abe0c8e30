"""`featx finetune`: train the last part of a network from a stored layer, beside its linear probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from featx.cli.interrupts import loading
from featx.cli.printing import print_all, print_data, print_error, print_line, print_note
from featx.cli.search_files import check_file
from featx.request import SearchRequest

_TRAINING, _LABELS, _HELD_OUT, _OUTPUT = "Training", "Labels", "Images held out", "Output"


def finetune(
    store: Annotated[Path, typer.Argument(help="A store that holds the boundary whole, as layer:none.")],
    boundary: Annotated[
        str,
        typer.Option(
            "--boundary",
            "-b",
            help="The stored layer behind which the network is trained; 'input' trains all of it, from the images. "
            "featx layers --boundaries lists them.",
        ),
    ],
    head: Annotated[
        Literal["probe", "zeros", "random"],
        typer.Option(
            help="Initial weights of the last layer: those of the linear probe, zeros or random.",
            rich_help_panel=_TRAINING,
        ),
    ] = "probe",
    epochs: Annotated[
        int, typer.Option(help="Number of passes over the training images.", rich_help_panel=_TRAINING)
    ] = 10,
    lr: Annotated[float, typer.Option(help="Largest learning rate.", rich_help_panel=_TRAINING)] = 1e-4,
    optimizer: Annotated[
        Literal["adamw", "sgd"], typer.Option(help="AdamW, or SGD with momentum 0.9.", rich_help_panel=_TRAINING)
    ] = "adamw",
    batch_size: Annotated[int, typer.Option(help="Images per minibatch.", rich_help_panel=_TRAINING)] = 32,
    weight_decay: Annotated[
        float,
        typer.Option(help="Weight decay; not applied to normalisation layers and biases.", rich_help_panel=_TRAINING),
    ] = 0.05,
    layer_decay: Annotated[
        float,
        typer.Option(
            help="Learning rate of each part of the network, relative to the part behind it.", rich_help_panel=_TRAINING
        ),
    ] = 1.0,
    label_smoothing: Annotated[
        float, typer.Option(help="Label smoothing, from 0 to below 1.", rich_help_panel=_TRAINING)
    ] = 0.0,
    mixup: Annotated[
        float,
        typer.Option(help="Parameter of the Beta distribution of mixup; 0 for no mixup.", rich_help_panel=_TRAINING),
    ] = 0.0,
    augment: Annotated[
        Literal["brightness", "contrast", "posterize", "crop"] | None,
        typer.Option(
            help="Random changes of the rows; crop only with --boundary input.",
            show_default="none",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    early_stopping: Annotated[
        bool,
        typer.Option(
            "--early-stopping",
            help="Hold out a tenth of the training images and keep the epoch that scores best on them.",
            rich_help_panel=_TRAINING,
        ),
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(help="A CSV file of labels by image id.", rich_help_panel=_LABELS, show_default="store's"),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="The column of labels.", rich_help_panel=_LABELS, show_default="label")
    ] = None,
    target: Annotated[
        Literal["class", "numeric"] | None,
        typer.Option(
            help="Whether these labels are class names or numbers.", rich_help_panel=_LABELS, show_default="class"
        ),
    ] = None,
    test_size: Annotated[
        float | None,
        typer.Option(help="Share of images held out.", rich_help_panel=_HELD_OUT, show_default="0.2"),
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="A column that says which images are held out.", rich_help_panel=_HELD_OUT)
    ] = None,
    test_value: Annotated[
        str | None,
        typer.Option(
            help="The value of that column for images held out.", rich_help_panel=_HELD_OUT, show_default="test"
        ),
    ] = None,
    test_store: Annotated[
        Path | None,
        typer.Option(
            help="Score on all images of this store, with its own labels; hold out no others.",
            rich_help_panel=_HELD_OUT,
        ),
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="A column; images of one group are never split.", rich_help_panel=_HELD_OUT)
    ] = None,
    allow_duplicates: Annotated[
        bool,
        typer.Option(
            "--allow-duplicates",
            help="Let images of the same content be split between training and test.",
            rich_help_panel=_HELD_OUT,
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel=_TRAINING)] = 0,
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Device on which the network is trained.", rich_help_panel=_TRAINING),
    ] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Save the model in this .skops file.", rich_help_panel=_OUTPUT),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_OUTPUT)] = False,
) -> int:
    """Fine-tune the last part of a network from a stored layer, and compare it with its linear probe.

    With -o a killed training goes on from its last epoch; Ctrl-C keeps the best one so far.
    """
    from featx.store import FeatureStore

    check_file(output, (".skops",), "a model is a .skops file")
    request = SearchRequest(
        labels=labels,
        label_column=label_column,
        target=target,
        groups=groups,
        allow_duplicates=allow_duplicates,
        test_size=test_size,
        split_column=split_column,
        test_value=test_value,
        test_store=test_store,
        random_state=seed,
    )
    request.validate()
    opened = FeatureStore(store)
    options: dict[str, Any] = request.experiment(opened)
    print_note(request.unlabelled_text(options.get("y")))
    with loading("loading torch and scikit-learn"):
        from featx import learn
        from featx.report import finetuning_json, finetuning_table
        from featx.transfer import finetune as run
    options |= dict(
        head=head,
        epochs=epochs,
        lr=lr,
        optimizer=optimizer,
        batch_size=batch_size,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        mixup=mixup,
        augment=augment,
        early_stopping=early_stopping,
        device=device,
        checkpoint=None if output is None else output.with_suffix(".training.safetensors"),
    )
    if label_smoothing:  # regression has none
        options["label_smoothing"] = label_smoothing
    try:
        result = run(opened, boundary, **options)
    except learn.Interrupted as interrupt:
        result = interrupt.result
    except KeyboardInterrupt:
        print_error("interrupted before the first epoch was done; no model was written")
        return 130
    if output is not None:
        learn.save(result.tuner, output)
    if as_json:
        print_data(finetuning_json(result))
    else:
        print_all(finetuning_table(result))
        if output is not None:
            print_line(f"{output}: the fine-tuned model, for featx predict")
    if result.is_partial:
        print_error(f"interrupted; this is the best of {result.tuner.n_iter_} epochs")
        return 130
    return 0
