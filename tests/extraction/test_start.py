"""How a run begins: what is imported, what is told, and that nothing which was computed to decide is computed again."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch
from helpers import class_folders, fresh_python
from runs import extract, pictures, same_file

import featx
from featx.backbones import COMPILED, TappedNetwork, engine, trace
from featx.cli import interrupts
from featx.errors import SourceError
from featx.forward import release

N, SIZE = 42, 8
OPTIONS = {"layers": ["first:none", "second"], "batch_size": SIZE, "ids": list(map(str, range(N)))}


@pytest.fixture
def passes(monkeypatch) -> Counter[tuple[str, int, bytes]]:
    """How often a network of a precision computed so many pictures, the first of which is this."""
    found: Counter[tuple[str, int, bytes]] = Counter()
    computed = TappedNetwork.__call__

    def counted(self, pixels):
        found[self.precision, len(pixels), pixels[0].numpy().tobytes()] += 1
        return computed(self, pixels)

    monkeypatch.setattr(TappedNetwork, "__call__", counted)
    return found


@pytest.fixture(params=["float32", "bfloat16"])
def winner(request, monkeypatch) -> str:
    """The precision that is faster here."""
    timed = engine._timed

    def pretended(network, pixels):
        seconds = len(pixels) * (1.0 if network.precision == request.param else 2.0)
        return timed(network, pixels)[0], seconds, seconds

    monkeypatch.setattr(engine, "_timed", pretended)
    monkeypatch.setattr(engine, "_has_bfloat16", lambda: True)
    return request.param


def test_no_batch_is_computed_twice_and_the_bytes_are_those_without_a_trial(small_network, passes, winner, tmp_path):
    options = OPTIONS | {"engine": "eager"}
    store = extract(pictures(range(N)), tmp_path / "a.h5", small_network, **options)
    assert store.recipe.precision == winner
    own = {key: times for key, times in passes.items() if key[:2] == (winner, SIZE)}
    assert len(own) == math.ceil(N / SIZE) and set(own.values()) == {1}
    others = {key: times for key, times in passes.items() if key not in own}
    assert sum(times * n for (_, n, _), times in others.items()) <= SIZE + engine._GLANCE_ROWS
    if winner == "float32":  # the recipe of a trial records an error otherwise
        without = extract(pictures(range(N)), tmp_path / "b.h5", small_network, **options, precision=winner)
        assert same_file(store, without)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_run_broken_off_around_its_trial_goes_on_to_the_same_bytes(
    small_network, winner, break_off, tmp_path, many_steps, after
):
    def run(name: str) -> featx.FeatureStore:
        return extract(pictures(range(N)), tmp_path / name, small_network, **OPTIONS, engine="eager")

    whole = run("whole.h5")
    break_off(lambda: run("a.h5"), after)
    assert same_file(run("a.h5"), whole)
    grown = extract(
        pictures(range(N + 20)), tmp_path / "a.h5", small_network, **(OPTIONS | {"ids": list(map(str, range(N + 20)))})
    )
    assert grown.recipe.precision == winner
    for name in whole.layers:
        assert (grown[name][:N] == whole[name]).all()


def test_an_image_that_changes_between_plan_and_run_has_the_rows_of_what_it_is_then(small_network, tmp_path):
    images = pictures(range(N))
    plan = featx.plan(images, tmp_path / "a.h5", small_network, **OPTIONS, device="cpu", engine="eager")
    assert plan.is_timed and plan.seconds() > 0
    images[3][...] = 255 - images[3]
    store = plan.run(False)
    assert same_file(store, extract(images, tmp_path / "b.h5", small_network, **OPTIONS, engine="eager"))


def test_each_phase_is_told_before_images_are_counted(small_network, tmp_path, winner):
    told: list[featx.Progress] = []
    options = {"device": "cpu", "engine": "eager", "progress": told.append}
    featx.extract(pictures(range(N)), tmp_path / "a.h5", small_network, **OPTIONS, **options)
    phases = list(dict.fromkeys(now.phase for now in told))
    assert phases == [
        f"building {small_network.name}",
        "computing the first batch in float32",
        "trying bfloat16",
        "extracting",
    ]
    assert all(now.total == N for now in told)
    for now in told:
        assert (now.done == 0 and now.images_per_second == 0 and now.seconds_left is None) or now.done > 0
    assert [now.done for now in told if now.phase == "extracting"] == [*range(0, N, SIZE), N]
    told.clear()
    featx.extract(pictures(range(N)), tmp_path / "a.h5", small_network, **OPTIONS, **options)
    assert [now.phase for now in told] == [f"building {small_network.name}", "comparing the images with a.h5"]


def test_a_run_that_compiles_says_so(small_network, monkeypatch, tmp_path):
    told: list[featx.Progress] = []
    monkeypatch.setattr(TappedNetwork, "_compile", lambda self, pixels: self._normalised(pixels))
    options = {"device": "cpu", "engine": "compiled", "precision": "float32", "progress": told.append}
    featx.extract(pictures(range(N)), tmp_path / "a.h5", small_network, **OPTIONS, **options)
    assert [now.phase for now in told[:3]] == [f"building {small_network.name}", "compiling", "extracting"]


FIRST_LINE = """
import json, sys, typer
from featx import cli
sys.argv = ["featx", "extract", {photos!r}, "-o", {output!r}, "-b", {backbone!r}, "-l", "penultimate", *{words!r}]
heavy = {{"torch", "torchvision", "timm", "numpy", "PIL", "torch._dynamo", "torch._inductor", "sympy"}}
seen = []
echo = typer.echo
typer.echo = lambda line, **_: seen.append([json.loads(line), sorted(heavy & set(sys.modules))])
try:
    cli.main()
except SystemExit as end:
    loaded = sorted(heavy & set(sys.modules))

import torch, torchvision, timm.layers  # what was put off is there when it is needed
supported = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
import torch._dynamo.utils
assert supported == torch._dynamo.utils.is_compile_supported("cpu") and torch._dynamo.utils.__file__
assert timm.layers.disable_compiler(lambda x: x + 1)(1) == torch.compiler.disable(lambda x: x + 1)(1) == 2
assert torch.compiler.disable.__module__ == "torch.compiler"
print(json.dumps([seen, loaded]))
"""


@pytest.mark.parametrize(
    "backbone", [pytest.param("squeezenet1_1", marks=pytest.mark.slow), "bundled:efficientnet_lite0"]
)
def test_the_first_line_comes_before_torch_and_a_run_that_compiles_nothing_imports_no_compiler(backbone, tmp_path):
    pytest.importorskip("timm")
    photos = class_folders(tmp_path / "photos", n=1)
    words = ["--json", "--weights", "random"]
    code = FIRST_LINE.format(photos=str(photos), output=str(tmp_path / "a.h5"), backbone=backbone, words=words)
    seen, loaded = fresh_python(code)
    assert [line["phase"] for line, _ in seen[:2]] == ["looking for the images", "loading torch"]
    assert seen[0][1] == [] and "torch" not in seen[1][1]
    assert (
        seen[-1][0]["event"] == "done"
        and {"torch", "torchvision"} <= set(loaded)
        and ("timm" in loaded) == backbone.startswith("bundled")
    )
    assert not {"torch._dynamo", "torch._inductor", "sympy"} & set(loaded)


INTERRUPTED = """
import os, signal
from featx.cli.interrupts import interruptible
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
with interruptible():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        print("swallowed")
    raise ImportError("half imported")
"""


def test_an_interrupt_during_an_import_ends_the_command_whatever_the_library_does():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "featx: interrupted\n")


def test_after_the_import_the_handler_is_the_one_of_before():
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores SIGINT
    try:
        with interrupts.interruptible():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_what_an_import_raises_without_an_interrupt_is_raised():
    with pytest.raises(SourceError), interrupts.interruptible():
        raise SourceError("nothing there")


def test_a_trial_on_several_threads_is_bit_for_bit_what_the_run_computes(small_network, three_threads, tmp_path):
    store = extract(pictures(range(N)), tmp_path / "a.h5", small_network, **OPTIONS, engine="eager")
    assert store.recipe.threads == torch.get_num_threads() == 3
    without = extract(
        pictures(range(N)), tmp_path / "b.h5", small_network, **OPTIONS, engine="eager", precision="float32"
    )
    assert same_file(store, without)


def test_json_has_no_number_that_json_does_not_know(tmp_path, small_network):
    from featx.report import ExtractionLines

    lines: list[str] = []
    plan = featx.plan(pictures(range(N)), tmp_path / "a.h5", small_network, **OPTIONS, device="cpu", engine="eager")
    told = ExtractionLines(plan, lines.append)
    plan.run(told.progress)
    events = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]
    assert events[0]["seconds_left"] is None and events[0]["phase"] == "extracting"
    assert [event["done"] for event in events[:2]] == [0, SIZE]  # the first rows are told of at once


def test_the_network_is_traced_once_and_looked_at_in_one_thread(small_network, three_threads, monkeypatch, tmp_path):
    traced = trace._traced
    threads: list[int] = []

    def noted(backbone):
        threads.append(torch.get_num_threads())
        return traced(backbone)

    monkeypatch.setattr(trace, "_traced", noted)
    store = extract(pictures(range(N)), tmp_path / "a.h5", small_network, **OPTIONS, engine="eager")
    assert threads == [1] and store.recipe.threads == torch.get_num_threads() == 3


WAYS = [
    ("bfloat16", "eager"),
    pytest.param(("float32", "compiled"), marks=pytest.mark.slow),
    pytest.param(("bfloat16", "compiled"), marks=pytest.mark.slow),
]


@pytest.fixture(params=WAYS, ids="-".join)
def way(request, monkeypatch) -> dict[str, str]:
    """The precision and the engine that are fastest here, on a run long enough for them."""
    precision, compiled = request.param[0], request.param[1] == "compiled"
    timed = engine._timed

    def pretended(network, pixels):
        slow = (network.precision != precision) + ((network.engine == COMPILED) != compiled)
        seconds = len(pixels) * (1.0 + slow)
        return timed(network, pixels)[0], seconds, seconds

    monkeypatch.setattr(engine, "_timed", pretended)
    monkeypatch.setattr(engine, "_has_bfloat16", lambda: True)
    if not compiled:
        monkeypatch.setattr(engine, "COMPILING_SECONDS", 1e9)
    return {"precision": precision, "engine": request.param[1]}


def same_rows(one: featx.FeatureStore, other: featx.FeatureStore) -> bool:
    return one.layers == other.layers and all(one[name].tobytes() == other[name].tobytes() for name in one.layers)


def test_rows_of_a_trial_are_those_of_a_run_without_in_every_way(small_network, way, break_off, tmp_path, many_steps):
    def run(name: str, n: int = N, **options) -> featx.FeatureStore:
        release()  # every run makes its network anew
        options = OPTIONS | {"ids": list(map(str, range(n)))} | options
        return extract(pictures(range(n)), tmp_path / name, small_network, **options)

    chosen = run("a.h5")
    assert chosen.recipe.precision == way["precision"] and chosen.recipe.engine.startswith(way["engine"])
    assert same_rows(chosen, run("without.h5", **way))
    break_off(lambda: run("b.h5"), after=1)
    assert same_file(run("b.h5"), chosen)
    layers = [*OPTIONS["layers"], "last"]
    anew = run("anew.h5", N + 20, layers=layers, **way)
    run("a.h5", layers=layers)
    grown = run("a.h5", N + 20, layers=layers)
    assert same_rows(grown, anew)
