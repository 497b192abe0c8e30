"""A faster candidate is used if it is faster and accurate; compiled and eager are the same function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featx.backbones import (
    COMPILED,
    EAGER,
    Backbone,
    Preprocessing,
    TappedNetwork,
    choose,
    network,
    resolve_taps,
)
from featx.backbones import engine as engine_module
from featx.errors import BackboneError

SMALL = Preprocessing(crop=(32, 32), resize=32)
CPU = torch.device("cpu")


SLOTS = [0, 1, 2, 3]


def pixels(n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def small() -> tuple[Backbone, list]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made = Backbone(net, preprocessing=SMALL)
    return made, resolve_taps(made, ["2", "4"], "max")[0]


class Pretended:
    """A network with given times, and given errors in some of the first batch's rows of its last tap."""

    def __init__(self, made, way: Way, ways: dict[Way, float], errors: dict[Way, float], rows, passes: list) -> None:
        self.precision, self.engine = way
        self._more = made, ways, errors, rows, passes
        self._exact = TappedNetwork(*made, CPU, "float32")

    def in_type(self, precision: str) -> Pretended:
        return Pretended(self._more[0], (precision, self.engine), *self._more[1:])

    def compiled(self) -> Pretended:
        return Pretended(self._more[0], (self.precision, COMPILED), *self._more[1:])

    def __call__(self, given: torch.Tensor) -> dict[str, torch.Tensor]:
        _, ways, errors, rows, passes = self._more
        way = self.precision, self.engine
        if way not in ways:
            raise BackboneError("no compiler")
        passes.append((way, given))
        values = {name: value.clone() for name, value in self._exact(given).items()}
        off = [i for i, picture in enumerate(given) if any(torch.equal(picture, pixels()[row]) for row in rows)]
        list(values.values())[-1][off] *= 1 + errors.get(way, 0.0)
        return values


Way = tuple[str, str]


def choice(monkeypatch, made, seconds: dict[Way, float], errors: dict[Way, float] | None = None, **options):
    """The choice if the named candidates take these seconds per batch and the others do not compile, and the passes
    that it took.
    """
    passes: list[tuple[Way, torch.Tensor]] = []
    precision = options.get("precision", "auto")
    exact = "float32" if precision == "auto" else precision
    network = Pretended(made, (exact, EAGER), seconds, errors or {}, options.get("rows", (0,)), passes)

    def timed(way, given):
        took = seconds.get((way.precision, way.engine), 0.0) * len(given) / 4
        return way(given), took, took

    monkeypatch.setattr(engine_module, "_timed", timed)
    monkeypatch.setattr(engine_module, "_has_bfloat16", lambda: options.get("has_bfloat16", True))
    asked = {"precision": precision, "engine": options.get("engine", "auto")}
    slots = options.get("slots", SLOTS)
    found = choose(network, lambda i: (pixels(seed=i), slots), options.get("n_batches", 20), **asked)
    return found, passes


SLOW, FAST = ("float32", EAGER), ("bfloat16", EAGER)
COMPILED_SLOW, COMPILED_FAST = ("float32", COMPILED), ("bfloat16", COMPILED)


def chosen(found) -> Way:
    return found.precision, found.engine


def test_a_faster_and_close_type_is_used_and_its_error_recorded(monkeypatch, small):
    found, _ = choice(monkeypatch, small, {SLOW: 1.0, FAST: 0.5}, {FAST: 0.01})
    assert chosen(found) == FAST and found.error == pytest.approx(0.01, rel=1e-3) and found.batch_seconds == 0.5


@pytest.mark.parametrize("seconds", [1.5, 1.0, 0.95])
def test_a_type_that_is_not_clearly_faster_is_not_used(monkeypatch, small, seconds):
    found, _ = choice(monkeypatch, small, {SLOW: 1.0, FAST: seconds})
    assert chosen(found) == SLOW and found.error is None


@pytest.mark.parametrize(
    "error, row, expected", [(0.019, 0, FAST), (0.021, 0, SLOW), (0.021, 3, SLOW), (float("nan"), 3, SLOW)]
)
def test_every_row_of_every_tap_must_be_within_two_percent(monkeypatch, small, error, expected, row):
    """The first row is in the glance, the fourth only in the whole batch."""
    monkeypatch.setattr(engine_module, "_GLANCE_ROWS", 2)
    found, _ = choice(monkeypatch, small, {SLOW: 1.0, FAST: 0.1}, {FAST: error}, rows=[row])
    assert chosen(found) == expected


@pytest.mark.parametrize("empty", [0, 3])
def test_empty_slots_do_not_count(monkeypatch, small, empty):
    slots = [slot for slot in SLOTS if slot != empty]
    found, _ = choice(monkeypatch, small, {SLOW: 1.0, FAST: 0.1}, {FAST: 0.5}, slots=slots, rows=[empty])
    assert chosen(found) == FAST


@pytest.mark.parametrize("n_batches, expected", [(80, SLOW), (90, COMPILED_SLOW)])  # 0.23 s saved in each
def test_long_runs_are_compiled(monkeypatch, small, n_batches, expected):
    seconds = {SLOW: 1.0, COMPILED_SLOW: 0.5}
    found, _ = choice(monkeypatch, small, seconds, precision="float32", n_batches=n_batches)
    assert chosen(found) == expected and found.batch_seconds == seconds[expected]


def test_long_runs_use_the_fast_type_compiled(monkeypatch, small):
    seconds = {SLOW: 1.0, FAST: 0.5, COMPILED_FAST: 0.3, COMPILED_SLOW: 0.6}
    found, passes = choice(monkeypatch, small, seconds, {FAST: 0.004, COMPILED_FAST: 0.005}, n_batches=200)
    assert chosen(found) == COMPILED_FAST and found.error == pytest.approx(0.005, rel=1e-3)
    assert COMPILED_SLOW not in dict(passes)  # which would take as long to compile


@pytest.mark.parametrize("engine, expected", [("auto", FAST), (COMPILED, COMPILED_SLOW)])
def test_a_type_that_is_inaccurate_when_compiled_is_not_compiled(monkeypatch, small, engine, expected):
    seconds = {SLOW: 1.0, FAST: 0.5, COMPILED_FAST: 0.3, COMPILED_SLOW: 0.6}
    found, _ = choice(monkeypatch, small, seconds, {COMPILED_FAST: 0.03}, n_batches=200, engine=engine)
    assert chosen(found) == expected and (found.error is None) == (expected == COMPILED_SLOW)


WAYS = {SLOW: 1.0, FAST: 0.5, COMPILED_FAST: 0.3, COMPILED_SLOW: 0.6}


@pytest.mark.parametrize(
    "n_batches, error, engine",
    [(1, 0.0, "auto"), (20, 0.0, "auto"), (200, 0.0, "auto"), (200, 0.03, "auto"), (5, 0.03, EAGER), (20, 0.0, EAGER),
     (1, 0.03, COMPILED), (20, 0.0, COMPILED), (200, 0.03, COMPILED)],
)  # fmt: skip
def test_no_candidate_computes_a_batch_twice_and_the_rows_are_those_of_the_chosen_one(
    monkeypatch, small, n_batches, error, engine
):
    monkeypatch.setattr(engine_module, "_GLANCE_ROWS", 2)
    found, passes = choice(monkeypatch, small, WAYS, {FAST: error}, n_batches=n_batches, engine=engine)
    whole = [(way, number) for way, given in passes for number in (0, 1) if torch.equal(given, pixels(seed=number))]
    assert len(set(whole)) == len(whole) >= len(passes) - 1  # but for the glance
    assert [number for way, number in whole if way == chosen(found)] == list(range(len(found.rows)))
    for number, rows in enumerate(found.rows):
        for name, values in found.network(pixels(seed=number)).items():
            assert torch.equal(values, rows[name])


@pytest.mark.parametrize("n_batches, expected", [(3, SLOW), (4, FAST), (15, FAST)])
def test_a_short_run_uses_a_fast_type_only_where_that_makes_it_shorter(monkeypatch, small, n_batches, expected):
    found, _ = choice(monkeypatch, small, {SLOW: 1.0, FAST: 0.7}, n_batches=n_batches)
    assert chosen(found) == expected
    assert expected == SLOW or n_batches * 0.7 < n_batches - 1


def test_a_short_run_tries_a_fast_type_only_if_the_cpu_supports_it(monkeypatch, small):
    for n_batches, expected in ((15, {SLOW}), (16, {SLOW, FAST})):
        _, passes = choice(monkeypatch, small, {SLOW: 1.0, FAST: 0.5}, n_batches=n_batches, has_bfloat16=False)
        assert {way for way, _ in passes} == expected


def test_a_very_short_run_tries_nothing(monkeypatch, small):
    _, passes = choice(monkeypatch, small, {SLOW: 0.01, FAST: 0.001}, n_batches=100)
    assert [way for way, _ in passes] == [SLOW]


def test_torch_reports_the_cpus_capabilities(monkeypatch):
    for capabilities, expected in (({"avx512_bf16": True}, True), ({"avx512_bf16": False, "avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=capabilities: known, raising=False)
        assert engine_module._has_bfloat16() == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not engine_module._has_bfloat16()


def test_each_phase_is_reported(monkeypatch, small):
    phases: list[str] = []
    monkeypatch.setattr(engine_module, "_WORTH_SECONDS", -1.0)
    choose(
        TappedNetwork(*small, CPU, "float32"),
        lambda i: (pixels(seed=i), SLOTS),
        100,
        precision="auto",
        engine="auto",
        on_phase=phases.append,
    )
    assert phases == ["trying bfloat16"]


def test_an_inaccurate_type_is_not_compiled(monkeypatch, small):
    seconds = {SLOW: 1.0, FAST: 0.2, COMPILED_SLOW: 0.6}
    found, passes = choice(monkeypatch, small, seconds, {FAST: 0.03}, n_batches=100)
    assert chosen(found) == COMPILED_SLOW and COMPILED_FAST not in dict(passes)


def test_an_inaccurate_or_slower_compiled_network_is_not_used(monkeypatch, small):
    for errors, seconds in (({COMPILED_SLOW: 2e-4}, 0.5), ({}, 1.1)):
        given = {SLOW: 1.0, COMPILED_SLOW: seconds}
        assert chosen(choice(monkeypatch, small, given, errors, precision="float32", n_batches=100)[0]) == SLOW


def test_without_a_compiler_the_network_runs_eager(monkeypatch, small):
    assert chosen(choice(monkeypatch, small, {SLOW: 1.0, FAST: 0.5}, n_batches=100)[0]) == FAST
    assert chosen(choice(monkeypatch, small, {SLOW: 1.0, FAST: 1.0}, n_batches=100)[0]) == SLOW
    with pytest.raises(BackboneError, match="no compiler"):
        choice(monkeypatch, small, {SLOW: 1.0, FAST: 0.5}, engine=COMPILED)


def test_a_type_that_is_slow_on_this_machine_is_given_up_early(monkeypatch, small):
    found, passes = choice(
        monkeypatch, small, {SLOW: 1.0, FAST: 3.1, COMPILED_SLOW: 0.6, COMPILED_FAST: 0.1}, n_batches=100
    )
    assert chosen(found) == COMPILED_SLOW and COMPILED_FAST not in dict(passes)


def test_a_network_that_does_not_run_in_a_fast_type_runs_in_float32(monkeypatch):
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.flatten(2).transpose(1, 2) @ self.weight.to(torch.float32)).mean(1)

    made = Backbone(Stubborn(), preprocessing=SMALL)
    taps, _ = resolve_taps(made, "penultimate", "avg")
    network = TappedNetwork(made, taps, CPU, "float32")
    monkeypatch.setattr(engine_module, "_WORTH_SECONDS", -1.0)
    found = choose(network, lambda i: (pixels(seed=i), SLOTS), 20, precision="auto", engine="auto")
    assert chosen(found) == SLOW
    with pytest.raises(RuntimeError):
        TappedNetwork(made, taps, CPU, "bfloat16")(pixels())


@pytest.mark.parametrize("fast", ["float32", "bfloat16"])
def test_the_choice_runs_the_real_networks(monkeypatch, small, fast):
    timed = engine_module._timed

    def pretended(network, given):
        seconds = len(given) * (0.01 if network.precision == fast else 0.02)
        return timed(network, given)[0], seconds, seconds

    monkeypatch.setattr(engine_module, "_timed", pretended)
    monkeypatch.setattr(engine_module, "_has_bfloat16", lambda: True)
    monkeypatch.setattr(engine_module, "_WORTH_SECONDS", -1.0)
    network = TappedNetwork(*small, CPU, "float32")
    found = choose(network, lambda i: (pixels(seed=i), SLOTS), 20, precision="auto", engine="auto")
    assert chosen(found) == (fast, EAGER) and (found.error is None) == (fast == "float32")
    if fast == "bfloat16":
        assert 0 < found.error <= engine_module.TOLERANCE


@pytest.mark.parametrize("kind", ["bfloat16"])
def test_a_network_in_another_type_or_compiled_equals_the_backbones(small, kind):
    network = TappedNetwork(*small, CPU, "float32")
    before = network(pixels())
    for made, way in ((network.in_type(kind), (kind, EAGER)), (network.compiled(), ("float32", COMPILED))):
        assert (made.precision, made.engine) == way
        for name, values in TappedNetwork(*small, CPU, *way)(pixels()).items():
            assert torch.equal(values, made(pixels())[name])
            assert torch.equal(before[name], network(pixels())[name]) and not network._compiled


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_fast_types_give_float32_rows_near_the_exact_ones(small, kind):
    exact = TappedNetwork(*small, CPU, "float32")(pixels())
    for name, values in TappedNetwork(*small, CPU, kind)(pixels()).items():
        assert values.dtype == torch.float32
        distance = (values - exact[name]).norm(dim=1) / exact[name].norm(dim=1)
        assert 0 < distance.max() <= 0.02


def test_pixels_and_normalised_pixels_give_the_same_rows(small):
    tapped = TappedNetwork(*small, CPU, "float32")
    for name, values in tapped(pixels()).items():
        assert torch.equal(values, tapped(SMALL.normalise(pixels()))[name])


@pytest.mark.parametrize(
    "precision, tolerance", [("float32", 1e-5), pytest.param("bfloat16", 0.02, marks=pytest.mark.slow)]
)
def test_compiled_is_the_same_function_and_gives_the_same_bytes_each_time(
    small, precision, tolerance, three_threads, capfd
):
    eager = TappedNetwork(*small, CPU, precision)(pixels())
    compiled = TappedNetwork(*small, CPU, precision, COMPILED)
    first = compiled(pixels())
    again = TappedNetwork(*small, CPU, precision, COMPILED)(pixels())
    for name, values in first.items():
        distance = (values - eager[name]).norm(dim=1) / eager[name].norm(dim=1)
        assert distance.max() <= tolerance
        assert torch.equal(values, compiled(pixels())[name]) and torch.equal(values, again[name])
        assert not torch.equal(values, compiled(pixels(seed=1))[name])
    assert capfd.readouterr() == ("", "")


def test_out_of_memory_in_compiled_code_is_raised_as_such(small, monkeypatch):
    def scarce(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(network._Normalised, "compile", scarce)
    with pytest.raises(torch.OutOfMemoryError):  # who runs it tries half the batch
        TappedNetwork(*small, CPU, "float32", COMPILED)(pixels())


def test_a_network_that_cannot_be_compiled_raises(small, monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(network._Normalised, "compile", no_compiler)
    with pytest.raises(BackboneError, match="cannot be compiled here.*C\\+\\+ compiler.*engine='eager' needs neither"):
        TappedNetwork(*small, CPU, "float32", COMPILED)(pixels())
