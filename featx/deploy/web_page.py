"""A model as a static web page, on which images are dropped and classified in the browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from featx.deploy.writing import Exported, export
from featx.errors import ModelError, as_path, readable

RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_PAGE_FILES = ("index.html", "app.css", "app.js", "model.mjs")
_MOST_BYTES = 2_000_000_000  # Chromium's arrays end at 2 GB
RUNTIME_SOURCE = "To have them: npm pack onnxruntime-web; tar xzf onnxruntime-web-*.tgz; they are in package/dist"


def export_web(
    model: Any,
    folder: str | os.PathLike,
    *,
    runtime: str | os.PathLike | None = None,
    check: Sequence[Any] | None = None,
) -> Exported:
    """Write a folder that any static file server can serve: a page on which images are dropped and classified.

    Everything runs in the browser, in onnxruntime-web; no image leaves it, and nothing is loaded from elsewhere.

    Parameters
    ----------
    model : as in `export`
    folder : a new or empty folder
    runtime : folder, optional
        Where `RUNTIME_FILES` of the npm package onnxruntime-web are, its "dist"; they are copied. By default they must
        be put into the folder afterwards.
    check : images, optional
        As in `export`.

    Returns
    -------
    Exported

    Raises
    ------
    ModelError
        As in `export`; the folder is not empty, a file of the runtime is missing, or the model is too large for a
        browser.
    """
    folder = as_path("folder", folder, ModelError)
    sources = [] if runtime is None else [as_path("runtime", runtime, ModelError) / name for name in RUNTIME_FILES]
    if missing := [source for source in sources if not source.is_file()]:
        raise ModelError(f"onnxruntime-web's {missing[0].name} is not in {missing[0].parent}. {RUNTIME_SOURCE}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} is there already and not empty; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"cannot make the folder {folder}: {error.strerror}") from error
    exported = export(model, folder / "model.onnx", input="image", check=check)
    written = list(folder.iterdir())
    if (nbytes := sum(file.stat().st_size for file in written)) > _MOST_BYTES:
        for file in written:
            file.unlink()
        raise ModelError(
            f"the model has {readable(nbytes)}, and a browser loads {readable(_MOST_BYTES)} at most; run it on a "
            "server as a .onnx file, or fit it on a smaller network"
        )
    description = exported.description
    about = {
        "classes": description.classes,
        "outputs": list(exported.outputs),
        "backbone": (description.recipe or {}).get("backbone"),
        "featx": description.texts()["featx"],
        "weights": [file.name for file in written if file.suffix == ".data"],
    }
    (folder / "model.json").write_text(json.dumps(about), encoding="utf-8")
    assets = files("featx.deploy") / "web"
    for name in _PAGE_FILES:
        (folder / name).write_bytes((assets / name).read_bytes())
    for source in sources:
        shutil.copyfile(source, folder / source.name)
    return exported
