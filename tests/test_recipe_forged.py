"""Recipes forged field by field, in stores and models, are refused in one line or have no effect.

A child process forges, opens and predicts. By an audit hook it opens no files except its arguments and the installed
libraries, starts no process, looks up no host and unpickles nothing.
"""

from __future__ import annotations

import json
import textwrap

import pytest
from helpers import fresh_python

CHILD = """
import io, json, os, resource, sys, sysconfig, tempfile, warnings
from pathlib import Path
import numpy as np
import torch
from sklearn.pipeline import make_pipeline
import skops.io
import featx
from featx.errors import FeatxError
from featx.learn import NearestCentroid, StoredFeatures, load, predict_images, save
from forged_recipes import evil_files, forge, with_recipe
sys.path.remove(TESTS)

torch.set_num_threads(1)
warnings.simplefilter("error")
os.chdir(FOLDER)
pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
new, made = [*pixels[:3]], []
for views in (None, ["center", "flip"]):
    name = "views" if views else "good"
    store = featx.extract(pixels, name + ".h5", BACKBONE, LAYERS, weights=WEIGHTS, labels=["ant", "bee"] * 6,
                          progress=False, device="cpu", batch_size=4, views=views)
    good = make_pipeline(StoredFeatures(store), NearestCentroid()).fit(store.X, store.y)
    save(good, name + ".skops")
    expected = load(name + ".skops").predict(new).tolist()
    texts = store.recipe.to_json(), good[0].recipe_.to_json()
    made.append((Path(name + ".h5").read_bytes(), texts, good, expected))
evil_files(Path(FOLDER))

libraries = tuple({os.path.realpath(path) for path in [*sys.path, *sysconfig.get_paths().values(), *featx.__path__]
                   if path})
given = {os.path.join(os.path.realpath(FOLDER), name) for name in ("forged.h5", "forged.skops")}
seen, watching = [], False

def canary(event, args):
    if not watching:
        return
    if event == "open":
        path = args[0]
        if isinstance(path, int):
            return
        path = os.path.realpath(os.fsdecode(path))
        # /proc and /sys tell libraries about this machine; caches of fonts and bytecode lie beside the libraries
        if path not in given and not path.startswith((*libraries, "/proc/", "/sys/", "/dev/null")):
            seen.append(f"open {path}")
    elif event.startswith(("subprocess.", "socket.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "pickle.")):
        seen.append(event)

sys.addaudithook(canary)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, -1))  # gigabytes are a MemoryError

def answer(path):
    model = load(path) if path.endswith(".skops") else None
    if model is None:
        opened = featx.FeatureStore(path)
        model = make_pipeline(StoredFeatures(opened, opened.layers[0]), good[-1])
        model[0].fit()
    return [row.label for row in predict_images(model, new)]

wrong, counts, recorded = [], {"refused": 0, "same": 0, "other": 0}, set(RECORDED)
for number in range(FIRST, FIRST + TRIES):
    content, texts, good, expected = made[number // 2 % 2]
    where, forged = forge(json.loads(texts[number % 2]), number)
    seen.clear()
    for path in ("forged.h5", "forged.skops")[number % 2 :][:1]:
        if path.endswith(".h5"):
            Path(path).write_bytes(with_recipe(content, json.dumps(forged, ensure_ascii=False)))
        else:
            try:
                recipe = featx.store.Recipe(**forged)
                good[0].store, good[0].recipe_ = recipe, recipe
                Path(path).write_bytes(skops.io.dumps({"format": "featx-model", "version": 1, "estimator": good}))
            except Exception:  # not even skops can say it
                counts["refused"] += 1
                continue
        watching = True
        try:
            found = answer(path)
        except FeatxError as error:
            counts["refused"] += 1
            if "\\n" in str(error) or not str(error).isprintable() or len(str(error)) > 1000:
                wrong.append([number, where, "said " + ascii(str(error))[:300]])
        except BaseException as error:
            wrong.append([number, where, f"{type(error).__name__}: {error}"[:300]])
        else:
            counts["same" if found == expected else "other"] += 1
            if len(found) != 3 or not set(found) <= {"ant", "bee"} or (found != expected and where[0] in recorded):
                wrong.append([number, where, f"answered {found}"])
        finally:
            watching = False
        if seen:
            wrong.append([number, where, "did " + ", ".join(seen)[:300]])
print(json.dumps([wrong[:20], len(wrong), counts, os.path.exists("it ran")]))
"""
# fields that do not decide the rows of a prediction: whatever they say, the answer is the same
RECORDED = ["weights_sha256", "aliases", "precision_error", "device", "threads", "versions", "origin", "collection"]
NETWORKS = {
    "pixels": ("bundled:pixels", ["output:flatten"], "DEFAULT"),
    "squeezenet": ("torchvision:squeezenet1_1", ["features.7:flatten~64"], None),
}


def forging(tmp_path, network: str, first: int, tries: int) -> dict:
    backbone, layers, weights = NETWORKS[network]
    tests = str(__import__("pathlib").Path(__file__).parent)
    names = dict(BACKBONE=backbone, LAYERS=layers, WEIGHTS=weights, FOLDER=str(tmp_path), RECORDED=RECORDED,
                 TESTS=tests, FIRST=first, TRIES=tries)  # fmt: skip
    said = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    wrong, n, counts, ran = fresh_python(f"import sys\n{said}sys.path.insert(0, TESTS)\n" + textwrap.dedent(CHILD), 900)
    assert not wrong and n == 0, json.dumps(wrong, indent=1)
    assert not ran, "a file that a recipe named was run"
    assert sum(counts.values()) == tries
    return counts


def test_a_forged_recipe_is_refused_in_one_line_or_answers(tmp_path):
    counts = forging(tmp_path, "pixels", 0, 160)
    assert counts["refused"] > 80 and counts["same"] > 8


@pytest.mark.slow
@pytest.mark.parametrize("network, first, tries", [("pixels", 1000, 5000), ("squeezenet", 10_000, 600)])
def test_thousands_of_forged_recipes_are_refused_in_one_line_or_answer(tmp_path, network, first, tries):
    forging(tmp_path, network, first, tries)


LARGE = """
import json, os, resource, sys
from dataclasses import replace
import numpy as np
import torch
from sklearn.pipeline import make_pipeline
import skops.io
import featx
from featx.backbones import weights as limits
from featx.errors import BackboneError
from featx.learn import NearestCentroid, StoredFeatures, load, predict_images

torch.set_num_threads(1)
limits.MOST_RANDOM_BYTES //= 4  # what is built before the refusal takes seconds
os.chdir(FOLDER)
torch.save(featx.Backbone("squeezenet1_1", None).module.state_dict(), "small.pth")
pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
small = featx.Backbone("squeezenet1_1", "small.pth", preprocessing=featx.Preprocessing((64, 64), 64))
store = featx.extract(pixels, "good.h5", small, labels=["ant", "bee"] * 2, progress=False, device="cpu")
model = make_pipeline(StoredFeatures(store), NearestCentroid()).fit(store.X, store.y)
none = {"weights": None, "weights_file_sha256": None}
FORGED = {
    "random": ({"backbone": "torchvision:vit_l_16", **none}, None),  # 1.2 GB
    "recorded file": ({"backbone": "torchvision:vit_l_16"}, None),
    "file of the user": ({"backbone": "torchvision:vit_l_16"}, "small.pth"),
}
said = {}
for name, (fields, weights) in FORGED.items():
    recipe = replace(store.recipe, **fields)
    model[0].store = model[0].recipe_ = recipe
    with open("forged.skops", "wb") as file:
        file.write(skops.io.dumps({"format": "featx-model", "version": 1, "estimator": model}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        list(predict_images(load("forged.skops", weights=weights), [pixels[0]]))
    except BackboneError as error:
        said[name] = [str(error), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024]
print(json.dumps(said))
"""


def test_a_recipe_that_names_a_large_network_is_refused_before_it_is_built(tmp_path):
    said = fresh_python(f"FOLDER = {str(tmp_path)!r}\n{LARGE}", 120)
    assert said.keys() == {"random", "recorded file", "file of the user"}
    for name, (message, grown) in said.items():
        assert "\n" not in message
        if name == "random":
            assert "more than is built for a recipe; allow it with featx.load" in message and grown < 3.5e8
        else:  # 1.2 GB otherwise
            assert "small.pth does not fit: it has" in message and "far larger" in message and grown < 3.5e8
