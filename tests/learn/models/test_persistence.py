"""A saved model is one file without code in it, carries the recipe, and predicts what the pipeline predicted."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from zipfile import ZIP_DEFLATED

import numpy as np
import pytest
import skops.io
import torch
from helpers import empty_cache
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils import Bunch
from torch import nn

import featx
from featx import FeatureStore, learn
from featx.backbones import Backbone, Preprocessing
from featx.errors import BackboneError, KeysError, LayerError, ModelError
from featx.learn import ImageFeatures, StoredFeatures, load, predict_images, save
from featx.learn.models import persistence
from featx.store import Recipe
from featx.store.files import written_aside

SMALL = Preprocessing((32, 32), 32)
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (190, 50, 40)}


def network() -> Backbone:
    return Backbone("squeezenet1_1", weights=None, preprocessing=SMALL)


def make_images(root: Path, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            noise = rng.integers(-40, 41, (36, 40, 3)) + colour
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_images(root / "photos", 6, seed=0)
    make_images(root / "new", 2, seed=1)
    return root


@pytest.fixture(scope="module")
def store(root) -> FeatureStore:
    layers = ["features.3:max", "penultimate"]
    return featx.extract(root / "photos", root / "secret-place.h5", network(), layers, device="cpu", progress=False)


@pytest.fixture
def new(root) -> list[str]:
    return sorted(map(str, (root / "new").rglob("*.png")))


@pytest.fixture(autouse=True)
def nothing_cached():
    """Each test is a process that has just started: no network, no matrix is kept from before."""
    empty_cache()


def pipeline(store, estimator=None, layer: str | list[str] = "penultimate"):
    steps = StoredFeatures(store, layer, device="cpu"), StandardScaler(), estimator or LogisticRegression()
    return make_pipeline(*steps).fit(store.X, store.y)


def inside(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def message(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


MODELS = {
    "logistic regression": lambda store: pipeline(store),
    "calibrated inside": lambda store: pipeline(store, CalibratedClassifierCV(LinearSVC(C=0.01), cv=3)),
    "calibrated outside": lambda store: CalibratedClassifierCV(
        make_pipeline(StoredFeatures(store, "penultimate", device="cpu"), StandardScaler(), SVC()), cv=3
    ).fit(store.X, store.y),
    "union of layers": lambda store: make_pipeline(
        FeatureUnion([(name[-3:], StoredFeatures(store, name, device="cpu")) for name in store.layers]), SVC()
    ).fit(store.X, store.y),
    "several layers": lambda store: pipeline(store, layer=["penultimate", "features.3"]),
    "our grid search": lambda store: learn.GridSearchCV(
        make_pipeline(StoredFeatures(store, device="cpu"), StandardScaler(), learn.LogisticRegression()),
        {"storedfeatures__layer": store.layers, "logisticregression__C": [0.1, 1.0]},
        cv=3,
    ).fit(store.X, store.y),
    "our perceptron": lambda store: pipeline(
        store, learn.MLPClassifier((4,), tol=0.5, n_iter_no_change=1, random_state=0)
    ),
    "our halving search": lambda store: learn.HalvingGridSearchCV(
        make_pipeline(StoredFeatures(store, "penultimate", device="cpu"), learn.SVC()),
        {"svc__C": [0.1, 1.0]},
        cv=2,
        random_state=0,
    ).fit(store.X, store.y),
    "a grid of several": lambda store: GridSearchCV(
        make_pipeline(StoredFeatures(store, device="cpu"), StandardScaler(), SVC()),
        {"storedfeatures__layer": ["penultimate", ["penultimate", "features.3"], ("features.3", "penultimate")]},
        cv=3,
    ).fit(store.X, store.y),
    "votes": lambda store: VotingClassifier([("a", pipeline(store)), ("b", pipeline(store, SVC(), "features.3"))]).fit(
        store.X, store.y
    ),
    "stack": lambda store: StackingClassifier([("a", pipeline(store, SVC()))], LogisticRegression(), cv=3).fit(
        store.X, store.y
    ),
    "a function of numpy": lambda store: make_pipeline(
        StoredFeatures(store, "penultimate", device="cpu"), FunctionTransformer(np.cbrt), SVC()
    ).fit(store.X, store.y),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_loaded_model_predicts_what_the_saved_one_did(store, new, tmp_path, kind):
    model = MODELS[kind](store)
    expected = model.predict(new)
    assert save(model, tmp_path / "model.skops") == tmp_path / "model.skops"
    empty_cache()
    loaded = load(tmp_path / "model.skops")
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(loaded.predict(new), expected)
    if hasattr(model, "predict_proba"):
        np.testing.assert_allclose(loaded.predict_proba(new), model.predict_proba(new), rtol=1e-6)


def test_estimators_that_keep_the_memory_map_carry_its_rows(store, new, tmp_path):
    nearest = KNeighborsClassifier(1, algorithm="brute")
    model = make_pipeline(StoredFeatures(store, "penultimate", device="cpu"), nearest).fit(store.X, store.y)
    expected = np.array(nearest._fit_X)
    np.testing.assert_array_equal(expected, store["penultimate"])
    nearest._fit_X = store["penultimate"]  # the map itself
    save(model, tmp_path / "model.skops")
    loaded = load(tmp_path / "model.skops")
    assert not isinstance(loaded[-1]._fit_X, np.memmap)
    np.testing.assert_array_equal(loaded[-1]._fit_X, expected)
    np.testing.assert_array_equal(loaded.predict(new), model.predict(new))


def test_saving_leaves_the_pipeline_as_it_was(store, tmp_path):
    model = pipeline(store)
    before = model.decision_function(store.X)
    save(model, tmp_path / "model.skops")
    assert model[0].store is store
    np.testing.assert_array_equal(model.decision_function(store.X), before)


def test_the_file_is_no_pickle_and_holds_neither_rows_nor_the_store(store, tmp_path):
    save(pipeline(store), tmp_path / "model.skops")
    files = inside(tmp_path / "model.skops")
    rows = np.array(store["penultimate"])
    for name, content in files.items():
        assert name.endswith((".json", ".npy")), name
        assert b"secret-place" not in content
        if name.endswith(".npy"):
            array = np.load(io.BytesIO(content), allow_pickle=False)
            assert array.size < rows.size
    assert (tmp_path / "model.skops").stat().st_size < rows.nbytes + 60_000
    content = (tmp_path / "model.skops").read_bytes()
    assert rows[0].tobytes() not in content and rows.tobytes()[:4096] not in content


def test_the_recipe_is_inside_and_complete(store, tmp_path):
    save(pipeline(store), tmp_path / "model.skops")
    loaded = load(tmp_path / "model.skops")
    (recipe,) = persistence.recipes(loaded)
    assert recipe == store.recipe.only("penultimate")
    assert isinstance(loaded[0].store, Recipe) and store.recipe.origin is not None
    assert loaded[0].store == replace(store.recipe, origin=None)  # where the images lay is nobody's business
    assert loaded[0].get_params()["layer"] == "penultimate"


def test_several_layers_keep_their_order(store, new, tmp_path):
    """The columns of a loaded model are in the order that was asked for, which is not that of the network."""
    model = pipeline(store, layer=["penultimate", "features.3"])
    save(model, tmp_path / "model.skops")
    empty_cache()
    loaded = load(tmp_path / "model.skops")
    assert loaded[0].layers_ == ("features.12.cat:avg", "features.3:max") != store.layers
    (recipe,) = persistence.recipes(loaded)
    assert recipe.layers == loaded[0].layers_ and recipe == model[0].recipe_
    assert list(loaded[0].get_feature_names_out()) == list(model[0].get_feature_names_out())
    np.testing.assert_array_equal(loaded[0].transform(new), model[0].transform(new))
    again = loaded.set_params(storedfeatures__store=store)
    np.testing.assert_array_equal(again.decision_function(store.X), model.decision_function(store.X))


def test_a_loaded_model_takes_no_keys_and_says_what_it_takes(store, tmp_path):
    save(pipeline(store), tmp_path / "model.skops")
    loaded = load(tmp_path / "model.skops")
    with pytest.raises(KeysError, match="this model has no store to read their rows from; pass images, or") as error:
        loaded.predict(store.X)
    assert "set_params(" in message(error)


def test_a_loaded_model_reads_a_store_that_it_is_given(store, tmp_path):
    model = pipeline(store)
    save(model, tmp_path / "model.skops")
    loaded = load(tmp_path / "model.skops").set_params(storedfeatures__store=FeatureStore(store.path))
    np.testing.assert_array_equal(loaded.decision_function(store.X), model.decision_function(store.X))


def test_a_loaded_model_can_be_saved_again(store, new, tmp_path):
    model = pipeline(store)
    save(model, tmp_path / "one.skops")
    save(load(tmp_path / "one.skops"), tmp_path / "two.skops")
    np.testing.assert_array_equal(load(tmp_path / "two.skops").predict(new), model.predict(new))


def test_image_features_and_plain_estimators_are_saved_too(store, new, root, tmp_path):
    paths = [root / "photos" / name for name in store.ids]
    model = make_pipeline(ImageFeatures(network(), device="cpu"), StandardScaler(), SVC()).fit(paths, store.y)
    save(model, tmp_path / "images.skops")
    empty_cache()
    np.testing.assert_array_equal(load(tmp_path / "images.skops").predict(new), model.predict(new))
    plain = Ridge().fit(store["penultimate"], np.arange(len(store)))
    with pytest.warns(UserWarning, match="^Ridge has no StoredFeatures or ImageFeatures: .* predicts rows") as warned:
        save(plain, tmp_path / "plain.skops")
    assert warned[0].filename == __file__
    with pytest.raises(ModelError, match="Ridge predicts rows of features, not images: .*; fit and save a pipeline"):
        list(predict_images(load(tmp_path / "plain.skops"), new))
    np.testing.assert_array_equal(load(tmp_path / "plain.skops").coef_, plain.coef_)


# --- a network that must be handed back ---


def own_net(seed: int = 0) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone(net, preprocessing=SMALL)


@pytest.fixture
def own_model(root, tmp_path):
    own = featx.extract(root / "photos", tmp_path / "own.h5", own_net(), device="cpu", progress=False)
    model = pipeline(own)
    save(model, tmp_path / "own.skops")
    return model, tmp_path / "own.skops"


def test_a_module_of_ones_own_is_handed_back(own_model, new):
    model, path = own_model
    expected = model.decision_function(new)
    loaded = load(path)
    with pytest.raises(BackboneError, match=r"came from a module of yours, Sequential; pass it: featx\.load"):
        loaded.predict(new)
    np.testing.assert_allclose(load(path, backbone=own_net()).decision_function(new), expected, rtol=1e-6)


def test_a_bare_module_is_prepared_as_recorded(own_model, new):
    model, path = own_model
    loaded = load(path, backbone=own_net().module)
    np.testing.assert_allclose(loaded.decision_function(new), model.decision_function(new), rtol=1e-6)


def test_the_name_of_the_recorded_network_stands_for_it(store, new, tmp_path):
    model = pipeline(store)
    save(model, tmp_path / "named.skops")
    for name in ("squeezenet1_1", "torchvision:squeezenet1_1"):
        loaded = load(tmp_path / "named.skops", backbone=name)
        np.testing.assert_array_equal(loaded.decision_function(new), model.decision_function(new))
        assert loaded[0]._backbone.weights is None  # the recorded ones


WRONG_NETWORKS = [
    ("resnet18", r"the recorded network is torchvision:squeezenet1_1; got torchvision:resnet18"),
    ("resnet1", r"there is no backbone 'resnet1'; close: "),
    (3, r"a backbone is a name, a module, an exported program or a featx\.Backbone; got int"),
    (nn.Linear(3, 2), r"the recorded network is torchvision:squeezenet1_1 with weights sha256 .*; got module:Linear"),
]


@pytest.mark.parametrize("wrong, text", WRONG_NETWORKS)
def test_what_is_not_the_recorded_network_is_refused_in_a_line(store, tmp_path, wrong, text):
    save(pipeline(store), tmp_path / "named.skops")
    with pytest.raises(BackboneError, match=text) as error:
        load(tmp_path / "named.skops", backbone=wrong)
    message(error)


def test_of_several_networks_the_one_that_is_passed_is_taken(store, own_model, new, tmp_path):
    own = featx.FeatureStore(tmp_path / "own.h5")
    model = make_pipeline(
        FeatureUnion([("a", StoredFeatures(store, "penultimate")), ("b", StoredFeatures(own))]), LogisticRegression()
    ).fit(store.X, store.y)
    save(model, tmp_path / "both.skops")
    model[0].transformer_list[1][1].store.backbone = own_net()
    np.testing.assert_allclose(
        load(tmp_path / "both.skops", backbone=own_net().module).decision_function(new),
        model.decision_function(new),
        rtol=1e-5,
    )


@pytest.mark.parametrize("wrong", [3, None, b"x", ["a.skops"]])
def test_a_path_of_another_type_is_refused_in_a_line(store, wrong):
    words = f"^path must be a path; got {type(wrong).__name__}$"
    with pytest.raises(ModelError, match=words):
        load(wrong)
    with pytest.raises(ModelError, match=words):
        save(pipeline(store), wrong)


@pytest.mark.parametrize("wrong", [lambda: own_net(seed=1), network])
def test_another_network_is_not_taken_for_it(own_model, wrong):
    empty_cache()
    with pytest.raises(BackboneError, match="the recorded network is module:Sequential with weights sha256") as error:
        load(own_model[1], backbone=wrong())
    message(error)


def test_weights_that_moved_are_handed_back(root, new, tmp_path):
    file, moved = tmp_path / "weights.pth", tmp_path / "moved.pth"
    torch.save({key: value * 1.1 for key, value in network().module.state_dict().items()}, file)
    made = Backbone("squeezenet1_1", file, preprocessing=SMALL)
    model = pipeline(featx.extract(root / "photos", tmp_path / "s.h5", made, device="cpu", progress=False))
    expected = model.decision_function(new)
    save(model, tmp_path / "model.skops")
    file.rename(moved)
    empty_cache()
    with pytest.raises(BackboneError, match=r"weights\.pth' is gone; say where it is"):
        load(tmp_path / "model.skops").predict(new)
    given = Backbone("squeezenet1_1", moved, preprocessing=SMALL)
    for handed in ({"backbone": given}, {"weights": moved}):
        found = load(tmp_path / "model.skops", **handed).decision_function(new)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        empty_cache()
    with pytest.raises(ModelError, match="give backbone= or weights=, not both"):
        load(tmp_path / "model.skops", backbone=given, weights=moved)


# --- what is refused ---


class Own(TransformerMixin, BaseEstimator):
    """A user's own step."""

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        return X


def own_function(X):
    return X


@pytest.mark.parametrize(
    "step, name",
    [(Own(), "Own"), (FunctionTransformer(own_function), "own_function"), (FunctionTransformer(os.fspath), "fspath")],
)
def test_code_of_ones_own_is_refused_when_saved_by_name(store, tmp_path, step, name):
    model = make_pipeline(StoredFeatures(store, "penultimate"), step).fit(store.X)
    with pytest.raises(ModelError, match=name) as error:
        save(model, tmp_path / "model.skops")
    message(error)
    assert not list(tmp_path.iterdir())


def test_what_is_not_fitted_is_refused(store, tmp_path):
    features, folds = StoredFeatures(store, "penultimate"), {"cv": 3, "refit": False}
    grid = GridSearchCV(make_pipeline(features, SVC()), {"svc__C": [1]}, **folds).fit(store.X, store.y)
    ours = learn.GridSearchCV(make_pipeline(features, SVC()), {"svc__C": [1]}, **folds).fit(store.X, store.y)
    for model, text in (
        (make_pipeline(features, SVC()), "Pipeline is not fitted: call its fit first"),
        (make_pipeline(features, FunctionTransformer(np.cbrt)), "Pipeline is not fitted"),
        (make_pipeline(features, "passthrough"), "Pipeline is not fitted"),
        (clone(grid), "GridSearchCV is not fitted"),
        (grid, "GridSearchCV with refit=False holds no fitted model: fit it with refit=True"),
        (ours, "GridSearchCV with refit=False holds no fitted model"),
        ({"model": 1}, "a model is a fitted scikit-learn estimator; got dict"),
        (None, "a model is a fitted scikit-learn estimator; got NoneType"),
        (SVC, "a model is a fitted scikit-learn estimator; got ABCMeta"),
    ):
        with pytest.raises(ModelError, match=text) as error:
            save(model, tmp_path / "model.skops")
        message(error)
    assert not list(tmp_path.iterdir())


def test_a_name_with_another_suffix_is_refused(store, tmp_path):
    for name in ("model.pkl", "model", "model.skops.gz"):
        with pytest.raises(ModelError, match="a model is a .skops file; got ") as error:
            save(pipeline(store), tmp_path / name)
        assert name in message(error)
    assert not list(tmp_path.iterdir())


def test_a_lambda_is_refused_when_saved(store, tmp_path):
    model = make_pipeline(StoredFeatures(store, "penultimate"), FunctionTransformer(lambda X: X)).fit(store.X)
    with pytest.raises(ModelError, match="Pipeline cannot be saved: AttributeError: Can't pickle local") as error:
        save(model, tmp_path / "model.skops")
    message(error)
    assert not list(tmp_path.iterdir())


def test_a_file_with_another_type_is_refused_and_nothing_of_it_runs(store, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(Own, "__setstate__", lambda self, state: ran.append(state), raising=False)
    content = {"format": "featx-model", "version": 1, "estimator": make_pipeline(Own())}
    skops.io.dump(content, tmp_path / "crafted.skops")
    with pytest.raises(
        ModelError, match="holds types that a featx model must not: .*Own.*; it was not opened"
    ) as error:
        load(tmp_path / "crafted.skops")
    message(error)
    assert not ran


def test_a_forged_recipe_is_refused_in_a_line(store, tmp_path):
    """Types are all allowed, the values are not what they should be."""
    save(pipeline(store), tmp_path / "model.skops")
    files = inside(tmp_path / "model.skops")
    files["schema.json"] = files["schema.json"].replace(b"featx-model", b"other-model")
    with zipfile.ZipFile(tmp_path / "forged.skops", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match="is a skops file, but not a featx model") as error:
        load(tmp_path / "forged.skops")
    message(error)


def forged(model, path: Path, **changes) -> Path:
    """A model file whose recipes say something else."""
    for step in model:
        if hasattr(step, "recipe_"):
            step.recipe_ = replace(step.recipe_, **changes)
            if hasattr(step, "store"):
                step.store = step.recipe_
    path.write_bytes(skops_file({"format": "featx-model", "version": 1, "estimator": model}))
    return path


@pytest.mark.parametrize(
    "field, changes",
    [
        ("backbone", {"backbone": "evil.pt2"}),
        ("backbone", {"backbone": "./evil.pt2", "weights": "DEFAULT"}),
        ("backbone", {"backbone": "timm:hf-hub:evil/x"}),
        ("weights", {"backbone": "export:evil", "weights": "evil.pt2"}),
        ("weights", {"weights": "evil.pth"}),
        ("threads", {"threads": 10**6}),
        ("batch_size", {"batch_size": 2**31 - 1}),
        ("resize", {"preprocessing": {"crop": [32, 32], "resize": 10**9}}),
        ("crop", {"preprocessing": {"crop": [10**6, 10**6], "resize": 32}}),
    ],
)
def test_a_model_whose_recipe_featx_does_not_write_is_refused_when_it_is_opened(
    store, tmp_path, monkeypatch, field, changes
):
    monkeypatch.chdir(tmp_path)
    for name in ("evil.pt2", "evil.pth"):
        Path(name).write_bytes(b"")
    path = forged(pipeline(store), tmp_path / "forged.skops", **changes)
    with pytest.raises(ModelError, match=f"forged.skops is refused: .* {field} must be ") as error:
        load(path)
    message(error)


def test_a_shape_that_the_network_does_not_give_is_refused_in_a_line(store, new, tmp_path):
    model = pipeline(store, layer="features.3:max")
    taps = {"features.3:max": {**model[0].recipe_.taps["features.3:max"], "shape": [2**27]}}
    path = forged(model, tmp_path / "forged.skops", taps=taps, aliases={})
    with pytest.raises(BackboneError, match=r"gives rows of shape \(\d+,\); the recipe says \(134217728,\)") as error:
        load(path).predict(new)
    message(error)


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_ has")
def test_a_loaded_model_names_no_file_that_fitting_it_again_would_open(root, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(network().module.state_dict(), file)
    photos, labels = sorted(map(str, (root / "photos").rglob("*.png"))), ["a", "b"] * 9
    model = make_pipeline(ImageFeatures("squeezenet1_1", weights=file), StandardScaler(), learn.NearestCentroid())
    model.fit(photos, labels)
    model.memory = str(tmp_path / "cache")  # a folder whose files scikit-learn unpickles
    save(model, tmp_path / "model.skops")
    loaded = load(tmp_path / "model.skops")
    assert loaded.memory is None
    assert loaded.fit(photos, labels).predict(photos).tolist() == model.predict(photos).tolist()
    torch.save({"other": torch.zeros(1)}, file)
    with pytest.raises(BackboneError, match="is not the weights file that was recorded"):
        load(tmp_path / "model.skops").fit(photos, labels)


def test_what_an_object_says_of_itself_hides_nothing_from_the_checks(store, tmp_path):
    """skops sets any attribute: one named __getstate__ would let a pickler see an empty object."""
    inner = load(save(pipeline(store), tmp_path / "inner.skops"))
    inner.memory = str(tmp_path / "cache")
    outer = make_pipeline(inner)
    outer.hides = Bunch
    content = skops_file({"format": "featx-model", "version": 1, "estimator": outer})
    for name in (b"__getstate__", b"predict"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(tmp_path / "a.skops", "w") as written:
            for entry in archive.namelist():
                written.writestr(entry, archive.read(entry).replace(b'"hides"', b'"' + name + b'"'))
        with pytest.raises(ModelError, match=f"replaces a method of its class: '{name.decode()}'") as error:
            load(tmp_path / "a.skops")
        message(error)


def test_a_small_file_does_not_inflate_to_gigabytes(store, tmp_path, monkeypatch):
    monkeypatch.setattr(persistence, "_MOST_INFLATED", 2**24)
    model = load(save(pipeline(store), tmp_path / "model.skops"))
    model.padding = np.zeros(2**22)
    content = skops.io.dumps({"format": "featx-model", "version": 1, "estimator": model}, compression=ZIP_DEFLATED)
    (tmp_path / "bomb.skops").write_bytes(content)
    with pytest.raises(ModelError, match="bomb.skops is refused: its .* would decompress to 33.7 MB") as error:
        load(tmp_path / "bomb.skops")
    message(error)


def skops_file(content) -> bytes:
    return skops.io.dumps(content)


def random_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return file.getvalue()


@pytest.mark.parametrize(
    "content, text",
    [
        (lambda: b"a text\nof two lines", "is not a featx model"),
        (lambda: b"", "is not a featx model"),
        (lambda: b"\x80\x05K\x01.", "is not a featx model"),  # a pickle
        (random_zip, "is not a featx model"),
        (lambda: skops_file(LogisticRegression()), "is a skops file, but not a featx model"),
        (lambda: skops_file([1, 2]), "is a skops file, but not a featx model"),
        (lambda: skops_file({"format": "other"}), "is a skops file, but not a featx model"),
        (lambda: skops_file({"format": "featx-model", "version": 99, "estimator": 1}), "format version 99.*update"),
        (lambda: skops_file({"format": "featx-model", "version": 1}), "model"),
        (lambda: skops_file({"format": "featx-model", "version": 1, "estimator": 1})[:-300], "is not a featx model"),
    ],
)
def test_what_is_not_a_featx_model_is_refused_in_a_line(tmp_path, content, text):
    path = tmp_path / "model.skops"
    path.write_bytes(content())
    with pytest.raises(ModelError, match=text) as error:
        load(path)
    assert str(path) in message(error)


def test_a_model_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "gone.skops", tmp_path):
        with pytest.raises(ModelError, match="there is no model file"):
            load(path)


# --- writing ---


def test_a_failed_write_leaves_the_old_file_and_nothing_else(store, tmp_path, monkeypatch):
    path = tmp_path / "model.skops"
    path.write_bytes(b"the old one")

    def full(*_):
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(ModelError, match=r"cannot write .*model\.skops: No space left on device") as error:
                save(pipeline(store), path)
        message(error)
        assert path.read_bytes() == b"the old one" and list(tmp_path.iterdir()) == [path]
    save(pipeline(store), path)
    assert list(tmp_path.iterdir()) == [path] and load(path)


@pytest.mark.filterwarnings("ignore:.* multi-threaded, use of fork")  # of Python 3.12
def test_what_a_killed_save_left_is_gone_after_the_next(store, tmp_path):
    path, model = tmp_path / "model.skops", pipeline(store)
    for _ in range(2):
        process = os.fork()
        if process == 0:
            os.fsync = lambda _: os._exit(7)  # as a kill there
            try:
                save(model, path)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 7
        assert [left.name for left in tmp_path.iterdir()] == ["model.skops.writing"]
    save(model, path)
    assert list(tmp_path.iterdir()) == [path] and load(path)


def test_of_two_that_save_at_once_the_second_is_refused(store, tmp_path):
    path = tmp_path / "model.skops"
    save(pipeline(store), path)
    before = path.read_bytes()
    with written_aside(path) as other:
        with pytest.raises(ModelError, match=r"another run is writing .*model\.skops") as error:
            save(pipeline(store), path)
        message(error)
        assert path.read_bytes() == before
        other.write(b"theirs")
    assert path.read_bytes() == b"theirs" and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(store, tmp_path):
    (tmp_path / "folder.skops").mkdir()
    for path in (tmp_path / "nowhere" / "model.skops", tmp_path / "folder.skops"):
        with pytest.raises(ModelError, match="cannot write") as error:
            save(pipeline(store), path)
        assert str(path) in message(error)


def test_a_layer_is_fixed_when_the_pipeline_is_fitted(store, tmp_path):
    """The alias and the full name load to the same layer."""
    for name in ("penultimate", "features.12.cat:avg"):
        save(pipeline(store, layer=name), tmp_path / "model.skops")
        assert load(tmp_path / "model.skops")[0].layer_ == "features.12.cat:avg"
    loaded = load(tmp_path / "model.skops")
    with pytest.raises(LayerError, match="layer 'features.9' is not stored"):
        loaded[0].set_params(layer="features.9").fit()
