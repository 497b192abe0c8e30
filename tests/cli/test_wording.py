"""The library's messages as the command line writes them: its options in place of parameters, its commands of calls."""

from __future__ import annotations

from featx.cli.wording import worded
from featx.errors import Call, FeatxError, Parameter

OPTIONS = [
    "test_size",
    "folds",
    "groups",
    "target",
    "replace",
    "weights",
    "layer",
    "labels",
    "backbone",
    "seed",
    "jobs",
]


CASES = [
    (["add images, or ", Parameter("test_size", 0)], "add images, or --test-size 0"),
    (
        [Parameter("folds", 1), ", ", Parameter("random_state"), " and ", Parameter("n_jobs", 0)],
        "--folds 1, --seed and --jobs 0",
    ),
    (["extract its images with ", Parameter("like", "a.h5")], "extract its images with --like a.h5"),
    ([Parameter("target", "numeric"), " needs a number"], "--target numeric needs a number"),
    (["replace it with ", Parameter("replace", True), ": as above"], "replace it with --replace: as above"),
    (
        ["give ", Parameter("weights", "a/b.pth"), ", or ", Parameter("weights", None)],
        "give --weights a/b.pth, or --weights random",
    ),
    (["cannot open /tmp/test_size=2/test_size.h5, test_size.csv or 'test_size'"], None),
    (["it has store.id, store.city; folds=1 and groups are words"], None),
    (["choose one with ", Parameter("layer", ...), ": a, b"], "choose one with --layer: a, b"),
    (["no ", Parameter("layers"), " or ", Parameter("validation_size", 0.5)], "no --layer or validation_size=0.5"),
    (["go on with ", Parameter("backbone", "timm:a b")], "go on with --backbone timm:a b"),
    (
        ["give them: ", Parameter("y", Call("store.align", "'labels.csv'"))],
        "give them: --labels labels.csv",
    ),
    (
        ["hold none out: ", Parameter("holdout", Call("HoldOut", Parameter("size", 0)))],
        "hold none out: --test-size 0",
    ),
    (["gone: ", Call("featx.load", "path", Parameter("weights", ...))], "gone: featx predict --weights FILE"),
    (["it is: ", Call("featx.load", "path", Parameter("weights", "x"))], "it is: featx predict --weights x"),
    (["allow it with featx.load(path, backbone=featx.Backbone('resnet50', None))"], None),
    ([Call("featx.Backbone", "module"), " is Python's alone"], "featx.Backbone(module) is Python's alone"),
    (["the grid (", Call("featx.learn.select_model"), ")"], "the grid (no --protocol)"),
    (["give floats (", Call("y.astype", "float"), ")"], "give floats (--labels with --target numeric)"),
    (
        [
            Call(
                "featx.extract",
                "images",
                Parameter("output", "a.h5"),
                Parameter("backbone", "r"),
                Parameter("layers", ["b:avg", "c"]),
            )
        ],
        "featx extract IMAGES --output a.h5 --backbone r --layer b:avg --layer c",
    ),
    ([Call("featx.save"), " or ", Call("featx.extract")], "featx search -o or featx extract"),
]  # parts of a message, its wording (None: as in Python)


def test_parameters_become_options_and_texts_stay():
    for parts, expected in CASES:
        error = FeatxError(*parts)
        assert worded(error, OPTIONS) == (expected or str(error))


def test_a_parameter_that_the_command_does_not_have_stays_pythons():
    assert worded(FeatxError(Parameter("folds", 1)), ["labels"]) == "folds=1"
