"""What an exported file says about itself, as the texts of its metadata.

names : the classes, as Ultralytics writes them: "{0: 'ant', 1: 'bee'}"
classes : the same as a JSON list; null for a regression
preprocessing : JSON, the recipe's: resize, interpolation, crop; mean and std are part of the program;
    null for a model of rows or of imported features
views : JSON list of the views of an image, whose rows are averaged; null if there is no axis of views
layers : JSON, {layer: [first column, column behind the last]} of a row
recipe : JSON of the first layer's recipe, see FORMAT.md; null for a model of rows
weights_sha256 : fingerprint of the network's weights
featx : the version that exported it
pillow : the version installed then; a program of input "image" resizes as it does
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import PIL

import featx
from featx.errors import ModelError
from featx.grammar import check_preprocessing, check_views

_AS_JSON = ("classes", "preprocessing", "views", "layers", "recipe")


@dataclass(frozen=True)
class Description:
    """See the module; `classes` is None for a regression, `preprocessing` and `recipe` for a model of rows."""

    classes: list[str] | None
    preprocessing: dict[str, Any] | None
    views: list[str] | None
    layers: dict[str, list[int]]
    recipe: dict[str, Any] | None
    weights_sha256: str = ""

    def texts(self) -> dict[str, str]:
        names = {} if self.classes is None else {"names": repr(dict(enumerate(self.classes)))}
        values = {name: json.dumps(getattr(self, name)) for name in _AS_JSON}
        versions = {"featx": featx.__version__, "pillow": PIL.__version__}
        return {**names, **values, "weights_sha256": self.weights_sha256, **versions}

    @classmethod
    def of_texts(cls, texts: Mapping[str, str]) -> Description:
        """Raises ModelError if featx did not write them."""
        if "featx" not in texts:
            raise ModelError("it is no model that featx export made")
        try:
            values = {name: json.loads(texts[name]) for name in _AS_JSON}
            if values["preprocessing"] is not None:
                check_preprocessing(values["preprocessing"])
            check_views("views", values["views"], None)
            classes = values["classes"]
            if not (classes is None or isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
                raise ValueError("classes must be texts")
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise ModelError(f"its metadata is damaged: {error}") from error
        return cls(**values, weights_sha256=texts.get("weights_sha256", ""))
