"""One small store for all who only read."""

from __future__ import annotations

import pytest
from helpers import class_folders

import featx


@pytest.fixture(scope="session")
def pixel_store(tmp_path_factory: pytest.TempPathFactory) -> featx.FeatureStore:
    """12 images of three classes through "bundled:pixels"; not to be changed."""
    folder = tmp_path_factory.mktemp("pixels")
    photos = class_folders(folder / "photos", ("ant", "bee", "cat"), n=4)
    return featx.extract(photos, folder / "photos.h5", "bundled:pixels", progress=False)
