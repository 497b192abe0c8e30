"""Keys or images in, the right rows out, as a well-behaved first step of scikit-learn's pipelines."""

from __future__ import annotations

import pickle
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from helpers import empty_cache, noise
from PIL import Image
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, learning_curve
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn

import featx
from featx import FeatureStore, Preprocessing
from featx.backbones import Backbone
from featx.errors import FeatxError, KeysError, LayerError, RecipeError, SourceError, UnreadableImages
from featx.learn import ImageFeatures, StoredFeatures
from featx.learn.features import features
from featx.store import FeatureStore as Store

LAYERS = ["features.3:max", "features.6:none", "penultimate"]
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (190, 50, 40)}


def network(**options) -> Backbone:
    return Backbone("squeezenet1_1", weights=None, preprocessing=Preprocessing((32, 32), 32, **options))


def make_images(folder: Path, n: int, seed: int = 0) -> list[str]:
    """n small PNG images of each of three classes."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = rng.integers(-40, 41, (36, 40 + i % 3, 3)) + colour
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return sorted(map(str, folder.rglob("*.png")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    make_images(root / "photos", 8)
    return root


@pytest.fixture(scope="module")
def store(folder) -> Store:
    return featx.extract(folder / "photos", folder / "photos.h5", network(), LAYERS, device="cpu", progress=False)


@pytest.fixture
def paths(store, folder) -> list[str]:
    return [str(folder / "photos" / name) for name in store.ids]


@pytest.fixture(autouse=True)
def nothing_cached():
    empty_cache()


def fitted(store, layer: str | list[str] = "penultimate") -> StoredFeatures:
    return StoredFeatures(store, layer, device="cpu").fit(store.X)


# --- keys ---


@pytest.mark.parametrize("layer", LAYERS)
def test_keys_become_their_rows_in_their_order(store, layer):
    found = fitted(store, layer).transform(store.X)
    expected = np.array(store[layer]).reshape(len(store), -1)
    np.testing.assert_array_equal(found, expected)
    order = np.random.default_rng(0).permutation(len(store))
    np.testing.assert_array_equal(fitted(store, layer).transform(store.X[order]), expected[order])


def test_rows_may_repeat_and_be_few(store):
    rows = np.array([5, 5, 2, 23, 2])
    found = fitted(store).transform(store.X[rows])
    np.testing.assert_array_equal(found, store["penultimate"][rows])
    np.testing.assert_array_equal(fitted(store).transform(store.X[7:8]), store["penultimate"][7:8])


def test_keys_come_in_every_shape_that_scikit_learn_hands_over(store):
    rows = [3, 20, 1]
    keys = store.X[rows]
    shapes = {
        "flat": keys.ravel(),
        "floats": keys.astype(float),
        "flat floats": keys.ravel().astype(float),
        "objects": keys.astype(object),
        "list": keys.tolist(),
        "flat list": keys.ravel().tolist(),
        "frame": pd.DataFrame(keys, columns=["key"]),
        "frame of floats": pd.DataFrame(keys.astype(float)),
        "series": pd.Series(keys.ravel()),
        "Fortran order": np.asfortranarray(keys),
    }
    for name, shaped in shapes.items():
        np.testing.assert_array_equal(fitted(store).transform(shaped), store["penultimate"][rows], err_msg=name)


def test_keys_that_the_store_does_not_hold_are_refused(store):
    X = store.X.copy()
    X[4] += 1
    for foreign, text in ((X, "1 of 24 keys are not in photos.h5"), (np.arange(5)[:, None], "5 of 5 keys")):
        with pytest.raises(KeysError, match=text) as error:
            fitted(store).transform(foreign)
        assert "X must come from store.X" in str(error.value) and "\n" not in str(error.value)


def test_numbers_that_are_no_keys_are_refused(store):
    for numbers, text in (((np.nan, np.inf), "X holds numbers that are not whole"), ((-1.0, 2.0**60), "1 of 1 keys")):
        for number in numbers:
            with pytest.raises(KeysError, match=text):
                fitted(store).transform(np.array([[number]]))


def test_scaled_keys_are_refused_with_advice(store):
    pipe = make_pipeline(StandardScaler(), StoredFeatures(store, "penultimate"), SVC())
    with pytest.raises(KeysError, match="keys must come unscaled; put StoredFeatures first"):
        pipe.fit(store.X, store.y)


def test_two_columns_of_keys_are_refused(store):
    with pytest.raises(KeysError, match=r"one column of keys, shape \(n, 1\).* got shape \(24, 2\)"):
        fitted(store).transform(np.hstack([store.X, store.X]))


def test_the_rows_cannot_be_written_through_the_matrix(store):
    before = np.array(store["penultimate"])
    with pytest.raises(ValueError, match="read-only"):  # it is the map itself
        fitted(store).transform(store.X)[0, 0] += 1
    fitted(store).transform(store.X[::-1])[0, 0] += 1  # a copy
    np.testing.assert_array_equal(Store(store.path)["penultimate"], before)


def test_keys_say_nothing_of_the_class(store):
    scores = cross_val_score(KNeighborsClassifier(3), store.X, store.y, cv=4)
    assert scores.mean() < 0.7
    assert cross_val_score(make_pipeline(StoredFeatures(store, "penultimate"), SVC()), store.X, store.y).mean() > 0.9


# --- layers ---


def test_without_a_layer_several_are_named_and_a_single_one_is_taken(store, folder):
    with pytest.raises(LayerError, match="there are 3 layers; choose one with layer=...: features.3:max, "):
        StoredFeatures(store).fit(store.X)
    single = StoredFeatures(store.recipe.only("features.3")).fit()
    assert single.layer_ == "features.3:max" and single.n_features_out_ == 128


def test_a_layer_that_is_not_stored_names_the_nearest(store):
    with pytest.raises(LayerError, match="layer 'featurs.3:max' is not stored; close: 'features.3:max'"):
        StoredFeatures(store, "featurs.3:max").fit(store.X)


def test_the_width_of_a_layer_without_pool_is_all_of_it(store):
    step = fitted(store, "features.6")
    assert step.n_features_out_ == np.prod(store["features.6"].shape[1:]) == step.transform(store.X).shape[1]


@pytest.mark.parametrize("wrong", ["photos.h5", None, 3])
def test_what_is_no_store_is_refused_by_its_type(wrong):
    with pytest.raises(FeatxError, match=f"store is a featx.FeatureStore; got {type(wrong).__name__}"):
        StoredFeatures(wrong).fit()


# --- several layers ---

SIDE_BY_SIDE = ["penultimate", "features.6", "features.3"]  # not the order in which the network computes them


def side_by_side(store, rows=slice(None), layers=SIDE_BY_SIDE) -> np.ndarray:
    return np.hstack([np.array(store[layer]).reshape(len(store), -1) for layer in layers])[rows]


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_layers_stand_side_by_side_in_the_order_asked_for(store, kind):
    step = fitted(store, kind(SIDE_BY_SIDE))
    assert step.layers_ == ("features.12.cat:avg", "features.6:none", "features.3:max") == step.recipe_.layers
    assert step.layer_ == "+".join(step.layers_)
    for rows in (slice(None), slice(5, 9), [5, 5, 2, 23, 2], np.random.default_rng(0).permutation(len(store))):
        found = step.transform(store.X[rows])
        np.testing.assert_array_equal(found, side_by_side(store, rows))
        assert found.dtype == np.float32 and found.flags.c_contiguous and found.flags.writeable
    assert step.n_features_out_ == found.shape[1]
    turned = fitted(store, SIDE_BY_SIDE[::-1]).transform(store.X)
    np.testing.assert_array_equal(turned, side_by_side(store, layers=SIDE_BY_SIDE[::-1]))


def test_the_columns_of_several_layers_have_names_of_their_own(store):
    step = fitted(store, ["features.3", "penultimate"])
    expected = [f"{name}_{i}" for name in step.layers_ for i in range(store[name].shape[1])]
    assert list(step.get_feature_names_out()) == expected
    table = step.set_output(transform="pandas").transform(store.X[:4])
    np.testing.assert_array_equal(table["features.12.cat:avg_3"], store["penultimate"][:4, 3])


def test_several_layers_of_new_images_take_one_pass(store, paths, monkeypatch):
    passes = []
    forward = features._forward()
    stream = forward.stream

    def counted(images, recipe, backbone, **options):
        passes.append(recipe.layers)
        return stream(images, recipe, backbone, **options)

    monkeypatch.setattr(forward, "stream", counted)
    step = fitted(store, SIDE_BY_SIDE)
    expected = side_by_side(store)
    np.testing.assert_allclose(step.transform(paths), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert passes == [step.layers_]
    # the same images, the same layers, another order: nothing of the first is taken for the second
    turned = fitted(store, SIDE_BY_SIDE[::-1]).transform(paths)
    np.testing.assert_allclose(turned[:, :128], store["features.3"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layer", ["penultimate", ["penultimate"]])
def test_one_layer_in_the_order_of_the_file_is_no_copy(store, layer):
    for rows in (slice(None), slice(3, 11)):
        found = fitted(store, layer).transform(store.X[rows])
        assert np.shares_memory(found, store["penultimate"])
        np.testing.assert_array_equal(found, store["penultimate"][rows])


@pytest.mark.parametrize(
    "layers, text",
    [
        (["features.3", "penultimate", "features.3:max"], "'features.3:max' is asked for twice, as 'features.3', 'fea"),
        (["penultimate", "features.12.cat:avg"], "asked for twice, as 'penultimate', 'features.12.cat:avg'; name each"),
        (["penultimate", "featurs.3:max"], "layer 'featurs.3:max' is not stored; close: 'features.3:max'"),
        ([], r"layer is a name or a list of names; got \[\]. There are: features.3:max, "),
        ([None], r"a list of names; got \[None\]"),
        ([["features.3"]], "a list of names; got"),
        ({"features.3"}, "a list of names; got"),
        (3, "a list of names; got 3"),
    ],
)
def test_layers_that_make_no_matrix_are_refused_by_name(store, layers, text):
    with pytest.raises(LayerError, match=text) as error:
        StoredFeatures(store, layers).fit()
    assert "\n" not in str(error.value)


def test_every_one_of_several_layers_must_be_the_fitted_one(store, other_store, folder):
    layers = ["penultimate", "features.3"]
    with pytest.raises(RecipeError, match="preprocessing"):
        fitted(store, layers).set_params(store=other_store).transform(store.X)
    fewer = featx.extract(folder / "photos", folder / "fewer.h5", network(), LAYERS[2], device="cpu", progress=False)
    with pytest.raises(LayerError, match="layer 'features.3:max' is not stored"):
        fitted(store, layers).set_params(store=fewer).transform(store.X)
    # the same layers in another order in the file are the same
    turned = featx.extract(
        folder / "photos", folder / "turned.h5", network(), LAYERS[::-1], device="cpu", progress=False
    )
    assert turned.layers[::-1] == store.layers
    found = fitted(store, layers).set_params(store=turned).transform(store.X)
    np.testing.assert_array_equal(found, side_by_side(store, layers=layers))


def test_a_grid_over_single_layers_and_several(store):
    pipe = make_pipeline(StoredFeatures(store), StandardScaler(), LogisticRegression(C=0.01))
    layers = ["features.3", ["features.3", "penultimate"], ["penultimate", "features.3"]]
    search = GridSearchCV(pipe, {"storedfeatures__layer": layers}, cv=3, refit="score", scoring={"score": "accuracy"})
    search.fit(store.X, store.y)
    assert [row["storedfeatures__layer"] for row in search.cv_results_["params"]] == layers
    assert search.cv_results_["param_storedfeatures__layer"].tolist() == layers
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    for layer, score in zip(layers, search.cv_results_["mean_test_score"], strict=True):
        matrix = side_by_side(store, layers=[layer] if isinstance(layer, str) else layer)
        assert score == pytest.approx(cross_val_score(plain, matrix, store.y, cv=3).mean(), abs=1e-12)
    assert search.best_estimator_[0].layers_ == store.recipe.only(search.best_params_["storedfeatures__layer"]).layers


def test_a_grid_over_backbones(store, other_store):
    pipe = make_pipeline(StoredFeatures(store, "penultimate"), StandardScaler(), LogisticRegression(C=0.01))
    stores = [store, other_store]
    search = GridSearchCV(pipe, {"storedfeatures__store": stores}, cv=3).fit(store.X, store.y)
    assert list(search.cv_results_["param_storedfeatures__store"]) == stores
    for other, score in zip(stores, search.cv_results_["mean_test_score"], strict=True):
        assert score == cross_val_score(pipe[1:], np.array(other["penultimate"]), store.y, cv=3).mean()
    assert search.best_estimator_[0].store is search.best_params_["storedfeatures__store"]


# --- scikit-learn's contract ---


def test_parameters_clone_and_the_store_is_not_copied(store):
    step = StoredFeatures(store, "penultimate", device="cpu").fit()
    copied = clone(step)
    assert copied.store is store and copied.get_params() == step.get_params()
    assert set(step.get_params()) == {"store", "layer", "device", "view"}
    assert not hasattr(copied, "recipe_")
    copied.set_params(layer="features.3").fit()
    assert (step.layer_, copied.layer_) == ("features.12.cat:avg", "features.3:max")
    images = ImageFeatures("resnet18", "layer1", weights=None)
    assert clone(images).get_params() == images.get_params()


def test_before_fit_nothing_is_transformed(store):
    for step in (StoredFeatures(store, "penultimate"), ImageFeatures(network())):
        with pytest.raises(NotFittedError):
            step.transform(store.X)
        with pytest.raises(NotFittedError):
            step.get_feature_names_out()


def test_constructing_checks_and_loads_nothing():
    StoredFeatures("not a store", 17)
    ImageFeatures("not a backbone", weights="not there")


def test_columns_have_names_and_come_as_pandas_on_demand(store):
    step = fitted(store, "features.3").set_output(transform="pandas")
    table = step.transform(store.X[:4])
    assert isinstance(table, pd.DataFrame) and table.shape == (4, 128)
    assert list(table.columns) == list(step.get_feature_names_out()) == [f"features.3:max_{i}" for i in range(128)]
    np.testing.assert_array_equal(table.to_numpy(), store["features.3"][:4])
    pipe = make_pipeline(StoredFeatures(store, "features.3"), StandardScaler()).fit(store.X)
    assert list(pipe.get_feature_names_out()) == list(table.columns)


def test_a_pickled_pipeline_is_tiny_and_reads_the_same_rows(store):
    pipe = make_pipeline(StoredFeatures(store, "features.6"), StandardScaler(with_mean=False, with_std=False)).fit(
        store.X
    )
    content = pickle.dumps(pipe)
    assert len(content) < 20_000 < store["features.6"].nbytes
    np.testing.assert_array_equal(pickle.loads(content).transform(store.X), pipe.transform(store.X))


def test_a_grid_search_over_layers_and_estimators(store):
    pipe = make_pipeline(StoredFeatures(store), StandardScaler(), LogisticRegression())
    grid = {"storedfeatures__layer": list(store.layers), "logisticregression__C": [1e-3, 1e-1]}
    search = GridSearchCV(pipe, grid, cv=3).fit(store.X, store.y)
    assert search.cv_results_["mean_test_score"].shape == (6,) and search.best_score_ > 0.9
    # the same as on the matrix itself
    layer = search.best_params_["storedfeatures__layer"]
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=search.best_params_["logisticregression__C"]))
    matrix = np.array(store[layer]).reshape(len(store), -1)
    assert search.best_score_ == pytest.approx(cross_val_score(plain, matrix, store.y, cv=3).mean(), abs=1e-12)
    np.testing.assert_array_equal(search.predict(store.X), plain.fit(matrix, store.y).predict(matrix))


@pytest.mark.filterwarnings("ignore:.* multi-threaded, use of fork")  # of Python 3.12
@pytest.mark.parametrize("backend", ["multiprocessing", pytest.param("loky", marks=pytest.mark.slow)])
def test_two_processes_give_what_one_gives(store, backend):
    """Those of "multiprocessing" are forks; scikit-learn's usual ones import everything again."""
    pipe = make_pipeline(StoredFeatures(store, "penultimate"), StandardScaler(), SVC())
    with joblib.parallel_config(backend=backend):
        one, two = (cross_val_score(pipe, store.X, store.y, cv=3, n_jobs=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)
    assert one.mean() > 0.8


def test_a_learning_curve(store):
    pipe = make_pipeline(StoredFeatures(store, "penultimate"), StandardScaler(), SVC())
    sizes, _, scores = learning_curve(pipe, store.X, store.y, train_sizes=[6, 16], cv=3, shuffle=True, random_state=0)
    assert sizes.tolist() == [6, 16] and scores[1].mean() > 0.8


def test_a_union_of_two_layers_has_both(store):
    union = FeatureUnion([("low", StoredFeatures(store, "features.3")), ("high", StoredFeatures(store, "penultimate"))])
    found = union.fit_transform(store.X, store.y)
    np.testing.assert_array_equal(found, np.hstack([store["features.3"], store["penultimate"]]))
    assert union.get_feature_names_out()[0] == "low__features.3:max_0"


def test_a_calibrated_pipeline_serves_keys_and_images_alike(store, paths):
    pipe = Pipeline(
        [("features", StoredFeatures(store, "penultimate", "cpu")), ("s", StandardScaler()), ("svc", SVC())]
    )
    calibrated = CalibratedClassifierCV(pipe, cv=3).fit(store.X, store.y)
    by_key = calibrated.predict_proba(store.X)
    np.testing.assert_allclose(by_key.sum(1), 1)
    np.testing.assert_allclose(calibrated.predict_proba(paths), by_key, atol=1e-4)


# --- images ---


@pytest.mark.parametrize("layer", LAYERS)
def test_stored_rows_are_the_rows_computed_for_the_same_images(store, paths, layer):
    stored = fitted(store, layer).transform(store.X)
    computed = fitted(store, layer).transform(paths)
    assert computed.dtype == np.float32
    np.testing.assert_allclose(computed, stored, rtol=1e-5, atol=1e-5 * np.abs(stored).max())


def test_images_come_in_every_form(store, paths):
    rows = [20, 0, 9]
    names, expected = [paths[i] for i in rows], store["penultimate"][rows]
    pictures = [Image.open(name) for name in names]
    forms = {
        "names": names,
        "paths": [Path(name) for name in names],
        "lists of a name": [[name] for name in names],
        "array": np.array(names),
        "column": np.array(names)[:, None],
        "column of objects": np.array(names, object)[:, None],
        "frame": pd.DataFrame({"path": names}),
        "series": pd.Series(names),
        "pictures": pictures,
        "lists of a picture": [[picture] for picture in pictures],
        "arrays": [np.asarray(picture) for picture in pictures],
    }
    for form, images in forms.items():
        empty_cache()
        found = fitted(store).transform(images)
        np.testing.assert_allclose(found, expected, 1e-5, 1e-5 * np.abs(expected).max(), err_msg=form)


def test_one_array_of_images_is_its_images(store):
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 36, 3), np.uint8)
    step = fitted(store)
    np.testing.assert_array_equal(step.transform(images), step.transform(list(images)))
    grey = step.transform(images[..., 0])
    np.testing.assert_allclose(grey, step.transform([np.repeat(i[..., :1], 3, 2) for i in images]), rtol=1e-5)


def test_object_columns_of_arrays_are_images(store):
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 36, 3), np.uint8)
    column = np.empty((3, 1), object)
    for i, image in enumerate(images):
        column[i, 0] = image
    np.testing.assert_array_equal(fitted(store).transform(column), fitted(store).transform(list(images)))


def test_image_features_are_stored_features_without_a_store(store, paths):
    images = ImageFeatures(network(), "features.3", pool="max", device="cpu").fit(paths)
    found = images.transform(paths)
    np.testing.assert_allclose(found, store["features.3"], rtol=1e-5, atol=1e-5 * np.abs(found).max())
    assert images.layer_ == "features.3:max" and images.n_features_out_ == 128
    assert list(images.get_feature_names_out()[:2]) == ["features.3:max_0", "features.3:max_1"]
    assert isinstance(images.set_output(transform="pandas").transform(paths[:2]), pd.DataFrame)


def test_image_features_in_stock_tools(store, paths):
    pipe = make_pipeline(ImageFeatures(network(), device="cpu"), StandardScaler(), SVC())
    scores = cross_val_score(pipe, np.array(paths)[:, None], store.y, cv=3)
    stored = make_pipeline(StoredFeatures(store, "penultimate"), StandardScaler(), SVC())
    np.testing.assert_array_equal(scores, cross_val_score(stored, store.X, store.y, cv=3))
    again = pickle.loads(pickle.dumps(pipe.fit(paths, store.y)))
    np.testing.assert_array_equal(again.predict(paths), pipe.predict(paths))


@pytest.mark.parametrize("step", [lambda store: fitted(store), lambda store: ImageFeatures(network()).fit(["x.png"])])
def test_a_bare_path_is_told_to_be_put_in_a_list(store, step):
    for bare in ("cat.jpg", Path("cat.jpg")):
        with pytest.raises(SourceError, match=r"X is a list of images; put the path in one: \['cat.jpg'\]"):
            step(store).transform(bare)


@pytest.mark.parametrize(
    "X, text",
    [
        (np.zeros((40, 36, 3), np.uint8), r"got one array of shape \(40, 36, 3\): put it in a list"),
        (np.zeros((40, 36), np.uint8), "put it in a list"),
        ([], "X is empty"),
        (np.empty((0, 1), np.int64), "X is empty"),
        ([None], "X holds NoneType"),
        ([b"cat.jpg"], "X holds bytes"),
        (iter(["cat.jpg"]), "or a list of images; got list_iterator"),
        (None, "got NoneType"),
        (["cat.jpg", 3], "X holds int"),
    ],
)
def test_what_is_neither_keys_nor_images_is_refused(store, X, text):
    with pytest.raises((SourceError, KeysError), match=text) as error:
        fitted(store).transform(X)
    assert "\n" not in str(error.value)


def test_numbers_are_no_images(store):
    with pytest.raises(SourceError, match="X holds numbers; images are needed"):
        ImageFeatures(network()).fit(store.X)


def test_unreadable_images_are_named_and_no_row_is_made_up(store, paths, folder):
    text = folder / "text.png"
    text.write_text("no picture")
    given = [paths[0], str(text), paths[1], str(folder / "gone.png")]
    for step in (fitted(store), ImageFeatures(network(), device="cpu").fit(paths)):
        with pytest.raises(UnreadableImages) as error:
            step.transform(given)
        message = str(error.value)
        assert "2 of 4 images cannot be read" in message and str(text) in message and "\n" not in message
        assert {at: reason.code for at, reason in error.value.failures.items()} == {1: "not-an-image", 3: "missing"}


# --- what must not be mixed up ---


def test_a_changed_file_is_computed_anew(store, folder):
    file = folder / "changing.png"
    rows = []
    for value in (10, 240):
        Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(file)
        rows.append(fitted(store).transform([str(file)]))
    assert not np.allclose(rows[0], rows[1])


def test_the_matrix_returned_is_the_callers_own(store, paths):
    step = fitted(store)
    first = step.transform(paths[:2])
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(step.transform(paths[:2]), kept)


def test_two_layers_of_the_same_images_are_not_mixed_up(store, paths):
    low, high = fitted(store, "features.3").transform(paths), fitted(store).transform(paths)
    assert low.shape == (24, 128) and high.shape == (24, 512)


def paletted(colour: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("P", (32, 32), 1)
    picture.putpalette([0, 0, 0, *colour])
    return picture


def rotated(orientation: int) -> Image.Image:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    picture.getexif()[0x0112] = orientation
    return picture


@pytest.mark.parametrize(
    "one, other",
    [(lambda: paletted((255, 0, 0)), lambda: paletted((0, 0, 255))), (lambda: rotated(1), lambda: rotated(6))],
)
def test_pictures_that_differ_only_in_palette_or_rotation_are_two(store, one, other):
    step = fitted(store, "features.6")
    expected = []
    for picture in (one(), other()):
        empty_cache()
        expected.append(step.transform([picture]))
    assert not np.allclose(expected[0], expected[1])
    empty_cache()
    for picture, rows in zip((one(), other()), expected, strict=True):
        np.testing.assert_array_equal(step.transform([picture]), rows)


@pytest.fixture(scope="module")
def other_store(folder) -> Store:
    """The same images through another preprocessing: the same keys, other numbers."""
    made = network(mean=(0.1, 0.2, 0.3))
    return featx.extract(folder / "photos", folder / "other.h5", made, LAYERS, device="cpu", progress=False)


def test_stores_of_the_same_images_agree_on_keys(store, other_store):
    np.testing.assert_array_equal(store.X, other_store.X)
    assert not np.allclose(store["penultimate"], other_store["penultimate"])


def test_a_fitted_step_reads_no_store_that_was_made_otherwise(store, other_store):
    step = fitted(store).set_params(store=other_store)
    with pytest.raises(RecipeError, match="preprocessing"):
        step.transform(store.X)


def test_a_replaced_store_is_noticed_by_what_was_pickled(store, folder):
    file = folder / "replaced.h5"
    photos = folder / "photos"
    kept = pickle.dumps(fitted(featx.extract(photos, file, network(), LAYERS, device="cpu", progress=False)))
    file.unlink()
    featx.extract(photos, file, network(std=(0.5, 0.5, 0.5)), LAYERS, device="cpu", progress=False)
    with pytest.raises(FeatxError, match="was replaced by another store"):
        pickle.loads(kept)


def test_a_store_opens_where_it_was_named(store):
    assert isinstance(store, FeatureStore) and store.path.is_absolute()


def test_modules_with_the_same_weights_have_features_of_their_own():
    images = [noise(seed, 8, 8) for seed in range(3)]

    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor
            self.flat = nn.Flatten()

        def forward(self, x):
            return self.flat(x) * self.factor

    made = [Backbone(Scaled(factor), preprocessing=Preprocessing((8, 8), 8)) for factor in (1, -1)]
    ones, minus = (ImageFeatures(backbone, "penultimate", pool="none", device="cpu").fit(images) for backbone in made)
    first = ones.transform(images)
    np.testing.assert_array_equal(minus.transform(images), -first)
    np.testing.assert_array_equal(ones.transform(images), first)
