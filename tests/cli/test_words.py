"""Usage errors on the command line: one line each, before torch is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import run
from helpers import class_folders, fresh_python, left_in

import featx
from featx.backbones import sources
from featx.errors import nearest
from featx.extraction import plans

PIXELS = ["-b", "bundled:pixels", "-q"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """photos, their store, one of other images with one more layer, and one with another batch size."""
    root = tmp_path_factory.mktemp("words")
    class_folders(root / "photos", n=6)
    class_folders(root / "more", ("cat", "dog"), n=3, seed=5000)
    assert run("extract", root / "photos", "-o", root / "photos.h5", *PIXELS).exit_code == 0
    assert run("extract", root / "more", "-o", root / "more.h5", *PIXELS, "--batch-size", 3).exit_code == 0
    (root / "list.txt").write_text("photos/ant/ant_0.png\n")
    return root


@pytest.mark.parametrize(
    "words, expected",
    [
        ("extract photos", "featx extract needs -o/--output: The HDF5 file to make. featx extract --help"),
        ("extract -o x.h5", "featx extract needs SOURCE: A folder of class folders"),
        ("layers", "featx layers needs BACKBONE: resnet50"),
        ("extract photos -o x.h5 --layers stages", "featx extract has no option --layers; close: '--layer'"),
        ("extract photos -o", "option '-o' requires an argument. featx extract --help says"),
        ("info photo.h5", "photo.h5; close: 'photos.h5'"),
        ("info other.h5", "other.h5; featx extract makes one"),
        ("extract photos -o x.h5 --batch-size many", "--batch-size is auto or a whole number, 1 to 65,536; got many"),
        ("extract photos -o x.h5 --precision fp16", "--precision: 'fp16' is not one of 'auto', 'float32', 'bfloat16'"),
        ("extract photos test -o x.h5", "unexpected extra argument(s) (test)"),
        ("extrakt photos", "Did you mean 'extract'"),
        ("search photos.h5 --folds two", "--folds is a whole number. featx search --help"),
        ("search photos.h5 --test-size none", "--test-size is a number. featx search --help"),
        (
            "search photos.h5 -e svm",
            "there is no estimator 'svm'; close: 'rbf_svm', 'linear_svm', 'svr'; choose nearest_centroid",
        ),
        ("extract list.txt -o x.h5", "list.txt is a single file; give a folder, an archive, or a .csv file of paths"),
        ("extract photos/ant/ant_0.png -o x.h5", "is a single file; give a folder"),
        ("extract photos -o x.h5 -b photos.h5", "a backbone is a network's name"),
        ("layers photos.h5", "featx info photos.h5 says what a store holds"),
        ("search photos", "photos as a store: it is a folder; featx extract makes a store of its images"),
        ("search photos.h5 --groups patient", "photos.h5 has no column 'patient', and no others"),
        ("search photos.h5 more.h5", "more.h5 lacks 'ant/ant_0.png'"),
        ("predict photos photos.h5", "photos is a folder, and the model comes first"),
        ("predict photo.skops photos", "there is no model file photo.skops; featx search -o makes one"),
        ("extract phots -o x.h5", "there is no phots; close: 'photos'"),
        ("merge photos.h5 photos.h5 -o x.h5", "12 images in several of the stores: 'ant/ant_0.png'"),
        ("extract photos -o photos.h5", "Go on with --backbone bundled:pixels, or choose another output"),
    ],
)
def test_words_that_do_not_fit_cost_one_line(folder, monkeypatch, words, expected):
    monkeypatch.chdir(folder)
    before = left_in(folder)
    done = run(*words.split())
    assert done.exit_code == 2 and done.stdout == "", done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("featx: ") and expected in line, line
    assert left_in(folder) == before


def test_a_wrong_path_or_option_is_found_before_torch_is_imported(folder):
    lines = [
        "predict nothere.skops photos",
        "search nothere.h5",
        "search photos.h5 --labels nothere.csv",
        "search photos.h5 --split-column nothere",
        "search photos.h5 --protocol knn --nested",
        "extract nothere -o x.h5",
        "extract photos -o nothere/x.h5",
        "extract photos -o x.h5 --like nothere.h5",
        "extract photos -o x.h5 --engine fast",
        "layers photos.h5",
    ]
    code = f"""
import json, os, sys
from featx.cli import main
import featx.images, featx.store  # of this checkout
os.chdir({str(folder)!r})
ends = {{}}
for line in {lines!r}:
    sys.argv = ["featx", *line.split()]
    try:
        main()
    except SystemExit as end:
        ends[line] = [end.code, sorted({{"torch", "sklearn", "torchvision"}} & set(sys.modules))]
print(json.dumps(ends))
"""
    assert fresh_python(code) == dict.fromkeys(lines, [2, []])


def test_layers_of_which_a_store_has_all_and_more_are_done_at_once(folder):
    done = run("extract", folder / "photos", "-o", folder / "photos.h5", *PIXELS)
    assert done.exit_code == 0 and "nothing left to do" in done.stdout


def test_a_dry_run_downloads_and_computes_nothing_and_says_what_is_open(tmp_path, monkeypatch):
    photos = class_folders(tmp_path / "photos", n=60)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("it downloads"))
    monkeypatch.setattr("featx.forward.streaming.try_out", lambda *_, **__: pytest.fail("it computes"))
    words = ["extract", photos, "-o", tmp_path / "a.h5", "-b", "squeezenet1_1", "-l", "features.3", "--dry-run"]
    done = run(*words)
    assert done.exit_code == 0, done.output
    for text in (
        "120 images",
        "precision and engine chosen on the first batch",
        "128",
        "the time is estimated once it runs",
    ):
        assert text in done.stdout
    assert left_in(tmp_path) == left_in(tmp_path / "photos" / "..") and not (tmp_path / "a.h5").exists()
    with pytest.raises(featx.FeatxError, match="dry_run"):
        featx.plan(photos, tmp_path / "a.h5", "bundled:pixels", dry_run=True).run(False)


def test_a_download_prints_nothing_and_is_tried_once(monkeypatch):
    tries = []

    def offline(self, **options):
        print("Downloading")
        tries.append(self)
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr("torchvision.models.SqueezeNet1_1_Weights.get_state_dict", offline)
    done = run("extract", Path(__file__).parent, "-o", "x.h5", "-b", "squeezenet1_1")
    assert done.exit_code == 2 and not tries  # no images there
    with pytest.raises(featx.FeatxError, match=r"\(Name or service not known\); put it there"):
        sources.SOURCES["torchvision"]("squeezenet1_1", "DEFAULT", None, True)
    assert len(tries) == 1


def test_a_pattern_without_models_is_refused_with_the_nearest_names():
    done = run("models", "convnxt")
    assert done.exit_code == 2 and done.stdout == "" and "'convnext_tiny'" in done.stderr
    done = run("models", "xyzzy")
    assert done.exit_code == 2 and "no pretrained backbone has 'xyzzy' in its name; without a pattern" in done.stderr


def test_labels_that_are_a_column_or_a_file_are_told_apart(folder, tmp_path):
    file, store = tmp_path / "labels.csv", folder / "photos.h5"
    file.write_text("id,label\n")
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,age\na.png,1\n")
    for command in (
        ("extract", manifest, "-o", "x.h5"),
        ("compare", manifest),
        ("extract", folder / "photos", "-o", "x.h5"),
    ):
        done = run(*command, "-b", "bundled:pixels", "--labels", file)
        assert done.exit_code == 2 and f"{file} is a file: its labels are read" in done.stderr, done.stderr
        assert "by featx search --labels" in done.stderr
    for command in (("search", store), ("adapt", store, store), ("finetune", store, "-b", "x")):
        done = run(*command, "--labels", "site")
        assert done.exit_code == 2
        assert "--labels is a CSV file of labels by image id; site is no file; columns" in done.stderr
        assert "with --label-column site" in done.stderr
    for command in (("search", store), ("search", store, "--target", "numeric"), ("compare", store)):
        done = run(*command, "--labels" if command[0] == "compare" else "--label-column", file)
        assert done.exit_code == 2 and f"has no column '{file}'" in done.stderr
        assert done.stderr.endswith("its labels are read after the extraction, by featx search --labels\n")
    assert "--target-labels is a CSV" in run("adapt", store, store, "--target-labels", "site").stderr


def test_what_two_stores_go_together_for(folder):
    text = run("info", folder / "photos.h5", folder / "more.h5").stdout
    assert "one can be searched and the other be its test store" in text and "they cannot be merged: it takes" in text


def test_a_folder_named_like_a_network_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundled:pixels").mkdir()
    assert run("layers", "bundled:pixels").exit_code == 0
    assert "got ./bundled:pixels" in run("layers", "./bundled:pixels").stderr


@pytest.mark.parametrize("words", [("extract", ".", "-b"), ("predict",), ("info",), ("extract",)])
def test_a_name_that_no_file_can_have_costs_one_line(words):
    done = run(*words, "r" * 5000, *(["-o", "x.h5"] if words[0] == "extract" else ["."]))
    assert done.exit_code == 2 and done.stderr.startswith("featx: ") and done.stderr.count("\n") == 1


def test_a_dry_run_does_not_take_weights_of_another_name_for_the_same(folder, monkeypatch):
    output, named = folder / "named.h5", featx.Backbone("squeezenet1_1", "DEFAULT")
    featx.extract(folder / "photos", output, featx.Backbone("squeezenet1_1", None), "features", progress=False)
    monkeypatch.setattr(plans, "refuse_other_names", lambda *_, **__: None)
    with pytest.raises(featx.FeatxError, match="made with weights None; whether 'DEFAULT' are the same"):
        featx.plan(folder / "photos", output, named, "features", dry_run=True)


def test_only_what_resembles_is_suggested():
    assert nearest("nothere.h5", ["more.h5", "test.h5"]) == nearest("mean", ["max"]) == ""
    assert nearest("layer9", ["classifier"]) == nearest("nothere", ["notes.txt"]) == ""
    assert nearest("photo.h5", ["photos.h5"]) == "; close: 'photos.h5'"
    assert nearest("lite0", ["efficientnet_lite0"]) == "; close: 'efficientnet_lite0'"


HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job ignores it


@pytest.mark.parametrize("when", ["while the command line is imported", "after the last line"])
def test_an_interrupt_at_either_end_is_no_traceback(folder, when):
    code = f"{HEARD}; import os; from featx.__main__ import main\n"
    if when == "after the last line":
        code += "import atexit; atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        expected = 0
    else:
        code += "import builtins; real = builtins.__import__\n"
        code += "def importing(name, *rest):\n    if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        code += "    return real(name, *rest)\nbuiltins.__import__ = importing\n"
        expected = 130
    words = ["info", str(folder / "photos.h5")]
    done = subprocess.run([sys.executable, "-c", code + "main()", *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (expected, "")


def test_an_interrupt_that_c_code_has_seen_ends_with_130(tmp_path):
    code = """
import ctypes
import featx.cli
from featx.__main__ import main

def run():
    ctypes.pythonapi.PyRun_SimpleString(b"raise KeyboardInterrupt")  # Python remembers it until it ends
    raise SystemExit(130)

featx.cli.main = run
main()
"""
    (tmp_path / "interrupted.py").write_text(code)
    words = [sys.executable, "-m", "interrupted"]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=60).returncode == 130


def test_an_import_that_is_interrupted_ends_with_130(tmp_path):
    class_folders(tmp_path / "photos", n=2)
    code = f"{HEARD}; from featx.__main__ import main; main()"
    running = subprocess.Popen(
        [sys.executable, "-c", code, "extract", "photos", "-o", "a.h5", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(featx.__file__).parents[1])},
    )
    assert running.stdout is not None and "looking" in running.stdout.readline()
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130 and stderr.count("\n") == 1 and "interrupted" in stderr
