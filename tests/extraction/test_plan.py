"""A plan says what a run would do, how large it is, and writes nothing; the run does it, and says how far it is."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from helpers import class_folders, left_in
from PIL import Image
from runs import extract, pictures, same_file
from torch import nn
from typer.testing import CliRunner

import featx
from featx.backbones import COMPILED
from featx.cli import app
from featx.errors import FeatxError, LayerError, RecipeError, StoreError
from featx.extraction import plans
from featx.forward import trial
from featx.learn import StoredFeatures
from featx.report.extractions import spoken

N = 40
OPTIONS = {"batch_size": 4, "device": "cpu", "layers": ["first:none", "second:flatten~100"], "precision": "float32"}


@pytest.fixture
def planned(small_network, tmp_path):
    def plan(n: int = N, **options):
        ids = list(map(str, range(n)))
        return featx.plan(pictures(ids), tmp_path / "a.h5", small_network, ids=ids, **(OPTIONS | options))

    return plan


def test_a_plan_writes_nothing_and_knows_every_size(planned, tmp_path):
    plan = planned()
    assert left_in(tmp_path) == [] and not plan.is_done and plan.n_kept == 0
    assert plan.sizes == {"first:none": N * 8 * 15 * 15 * 4, "second:flatten~100": N * 100 * 4}
    assert plan.nbytes == sum(plan.sizes.values())
    assert planned(dtype="float16").nbytes == plan.nbytes // 2
    assert 0 < plan.seconds() < 60 and left_in(tmp_path) == []


def test_what_can_be_known_is_refused_before_anything_is_begun(planned):
    for options, error, words in (
        ({"workers": 0}, FeatxError, "workers is 'auto'"),
        ({"pool": None}, LayerError, "pool None is not one of"),
        ({"pool": ["avg", "max"]}, LayerError, "is not one of"),
    ):
        with pytest.raises(error, match=words):
            planned(**({"layers": "first"} | options))


def test_a_layer_that_is_narrow_enough_is_found_by_the_name_it_was_asked_for(planned):
    store = planned(layers=["first"], pool="avg~100").run(False)
    assert store.layers == ("first:avg",) and store["first:avg~100"].shape == (N, 8)


def test_its_run_is_what_extract_does(planned, small_network, tmp_path):
    store = planned().run(progress=False)
    ids = list(map(str, range(N)))
    assert same_file(extract(pictures(ids), tmp_path / "b.h5", small_network, ids=ids, **OPTIONS), store)
    for name, nbytes in planned().sizes.items():
        assert np.asarray(store[name]).nbytes == nbytes


def test_a_plan_knows_what_is_done(planned, break_off, tmp_path):
    broken = planned(200)
    break_off(lambda: broken.run(False), after=40)  # 160 images: two groups of 64 and some
    assert planned(200).n_kept == 128 and not planned(200).is_done
    assert planned(200, discard=True).n_kept == 0
    assert (tmp_path / "a.h5.partial").exists()  # to plan is not to discard
    planned(200).run(False)
    done = planned(200)
    assert done.is_done and done.n_kept == 200 and done.seconds() == 0
    assert planned(210).n_kept == 200 and not planned(210).is_done
    with pytest.raises(RecipeError, match="gone since"):
        planned(190)


def test_progress_is_told_to_who_asks(planned):
    told: list[featx.Progress] = []
    planned().run(told.append)
    assert [now.done for now in told] == list(range(0, N + 1, 4))
    assert all(now.total == N and now.failed == 0 for now in told)
    assert all(now.images_per_second > 0 for now in told[1:])
    assert told[-1].seconds_left == 0 and all(a.seconds <= b.seconds for a, b in zip(told, told[1:], strict=False))


def test_a_run_that_is_told_of_can_be_stopped_by_who_is_told_and_goes_on(planned, tmp_path):
    def stop(now):
        if now.done > 150:
            raise KeyboardInterrupt

    unbroken = planned(200).run(False)
    whole = unbroken.path.read_bytes()
    os.remove(unbroken.path)
    with pytest.raises(KeyboardInterrupt):
        planned(200).run(stop)
    assert planned(200).n_kept == 128
    assert planned(200).run(False).path.read_bytes() == whole


def test_a_compiled_run_is_recorded_and_goes_on_compiled(planned, break_off, monkeypatch, tmp_path):
    whole = planned(200, engine="compiled").run(False)
    assert whole.recipe.engine == COMPILED
    before = whole.path.read_bytes()
    os.remove(whole.path)
    break_off(lambda: planned(200, engine="compiled").run(False), after=40)
    monkeypatch.setattr(trial, "choose", lambda *_, **__: pytest.fail("decided again"))
    assert planned(200).run(False).path.read_bytes() == before  # engine "auto" is as it was
    with pytest.raises(RecipeError, match="engine: 'compiled, .* there, 'eager' here"):
        planned(210, engine="eager")


@pytest.mark.parametrize(
    "precision, tolerance", [("float32", 1e-5), pytest.param("bfloat16", 2e-2, marks=pytest.mark.slow)]
)
def test_engines_agree(planned, tmp_path, precision, tolerance):
    rows = []
    for engine in ("eager", "compiled"):
        store = planned(engine=engine, precision=precision).run(False)
        rows.append({name: store.take(np.arange(N), name) for name in store.layers})
        os.remove(store.path)
    for name, eager in rows[0].items():
        distance = np.linalg.norm((eager - rows[1][name]).reshape(N, -1), axis=1)
        assert (distance <= tolerance * np.linalg.norm(eager.reshape(N, -1), axis=1)).all()


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_number_of_decoding_workers_changes_no_byte(planned, small_network, tmp_path, workers):
    store = planned(workers=workers).run(False)
    ids = list(map(str, range(N)))
    assert same_file(extract(pictures(ids), tmp_path / "b.h5", small_network, ids=ids, workers=2, **OPTIONS), store)


def test_an_error_of_the_writer_ends_the_run(planned, monkeypatch):
    written = []

    def refuse(self, *args):
        written.append(args)
        raise OSError("the disk is gone")

    monkeypatch.setattr(plans.StoreWriter, "write", refuse)
    with pytest.raises(OSError, match="the disk is gone"):
        planned().run(False)
    assert len(written) == 1


def test_a_plan_runs_on_what_it_was_made_for_only(planned, small_network, tmp_path):
    first, second = planned(), planned(layers="second")
    store = first.run(False)
    before = store.path.read_bytes()
    for plan in (first, second):
        with pytest.raises(StoreError, match="has changed since this was planned; plan again"):
            plan.run(False)
    assert store.path.read_bytes() == before and left_in(tmp_path) == ["a.h5"]


def test_a_plan_discards_once(planned):
    def stop(now):
        if now.done > 150:
            raise KeyboardInterrupt

    plan = planned(200, discard=True)
    with pytest.raises(KeyboardInterrupt):
        plan.run(stop)
    told: list[featx.Progress] = []
    plan.run(told.append)
    assert told[0].done == 128


def test_a_plan_warns_where_it_is_run(tmp_path):
    plan = featx.plan(pictures(["0", "bad"]), tmp_path / "a.h5", "bundled:pixels", device="cpu")
    with pytest.warns(featx.UnreadableImagesWarning) as caught:
        plan.run(False)
    assert caught[0].filename == __file__


class Activated(nn.Module):
    """Two of these have the same name and weights and may compute different things."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.activation = nn.Conv2d(3, 4, 3), activation
        with torch.no_grad():
            self.conv.weight.copy_(torch.linspace(-1, 1, 108).view(4, 3, 3, 3))
            self.conv.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.conv(x))


def test_an_edited_module_gives_its_own_rows(tmp_path):
    crop = featx.Preprocessing(crop=(32, 32), resize=32)
    networks = [featx.Backbone(Activated(kind), preprocessing=crop) for kind in (nn.ReLU(), nn.Tanh())]
    options = {"layers": "activation:max", "device": "cpu", "precision": "float32"}
    plans = [featx.plan(pictures(range(4)), tmp_path / f"{i}.h5", made, **options) for i, made in enumerate(networks)]
    for plan, made in zip(plans, networks, strict=True):  # both planned before the first is run
        found = plan.run(False)["activation"]
        pixels = np.stack([made.preprocessing(Image.fromarray(picture)) for picture in pictures(range(4))])
        with torch.inference_mode():
            true = made.module(made.preprocessing.normalise(torch.from_numpy(pixels))).amax((2, 3))
        np.testing.assert_allclose(found, true, rtol=1e-5, atol=1e-6)


def test_the_same_weights_with_another_preprocessing_give_other_rows(tmp_path):
    stores = []
    for name, mean in (("a", 0.5), ("b", 0.0)):
        crop = featx.Preprocessing(crop=(32, 32), resize=32, mean=(mean,) * 3, std=(1.0,) * 3)
        pixels = featx.Backbone("bundled:pixels", preprocessing=crop)
        stores.append(featx.plan(pictures(range(4)), tmp_path / f"{name}.h5", pixels, device="cpu"))
    stores = [plan.run(False) for plan in stores]
    np.testing.assert_allclose(stores[1]["flatten"] - stores[0]["flatten"], 0.5, atol=1e-6)
    for store in stores:  # and through the recipe
        found = StoredFeatures(store, device="cpu").fit().transform(pictures(range(4)))
        np.testing.assert_allclose(found, store["flatten"], atol=1e-6)


def test_times_are_spoken_as_people_do():
    said = {0.2: "1 s", 59.4: "59 s", 59.6: "1 min 0 s", 130: "2 min 10 s", 3600: "1 h 0 min", 9000: "2 h 30 min"}
    assert {seconds: spoken(seconds) for seconds in said} == said


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "in").mkdir()
    return class_folders(tmp_path / "in" / "photos", ("ant", "bee"), n=5)


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(photos, tmp_path):
    done = run("extract", photos, "-o", tmp_path / "a.h5", "-b", "bundled:pixels", "--dry-run")
    assert done.exit_code == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    for word in (
        "10 images",
        "bundled:pixels",
        "float32, eager",
        "3,072",
        "12.3 kB",
        "123 kB",
        "free",
        "the time is estimated once it runs",
    ):
        assert word in done.output, word


def test_a_plan_stands_before_a_run_unless_it_is_quiet(photos, tmp_path):
    for quiet in ([], ["-q"]):
        done = run("extract", photos, "-o", tmp_path / f"a{len(quiet)}.h5", "-b", "bundled:pixels", *quiet)
        assert done.exit_code == 0 and ("bytes an image" in done.stdout) == (not quiet)
        assert "10 images, 2 classes" in done.stdout
    again = run("extract", photos, "-o", tmp_path / "a0.h5", "-b", "bundled:pixels", "--dry-run")
    assert "is there already" in again.output
    again = run("extract", photos, "-o", tmp_path / "a0.h5", "-b", "bundled:pixels", "--dry-run", "--json")
    *phases, event = [json.loads(line) for line in again.stdout.splitlines()]
    assert {phase["event"] for phase in phases} == {"phase"}
    assert event["is_done"] and event["done"] == event["images"] == 10 and event["seconds"] == 0


def test_scripts_read_lines_of_json(photos, tmp_path):
    (photos / "ant" / "broken.png").write_bytes(b"no picture")
    done = run("extract", photos, "-o", tmp_path / "a.h5", "-b", "bundled:pixels", "--batch-size", 4, "--json")
    assert done.exit_code == 1  # an image could not be read
    events = [json.loads(line) for line in done.stdout.splitlines()]
    phases = [event["phase"] for event in events if event["event"] == "phase"]
    assert phases[:3] == ["looking for the images", "loading torch", "building bundled:pixels"]
    events = events[len(phases) :]
    assert [events[0]["event"], events[-2]["event"], events[-1]["event"]] == ["plan", "progress", "done"]
    layer = {"shape": [3072], "bytes": 11 * 3072 * 4}
    assert events[0]["images"] == 11 and events[0]["layers"] == {"flatten:none": layer}
    assert (events[-2]["done"], events[-2]["total"], events[-2]["failed"]) == (11, 11, 1)
    assert events[-1]["images"] == 10 and events[-1]["failures"][0]["id"] == "ant/broken.png"
    refused = run("extract", photos, "-o", tmp_path / "b.h5", "-b", "bundled:pixel", "--json")
    assert refused.exit_code == 2 and '"plan"' not in refused.stdout and "'pixels'" in refused.stderr
