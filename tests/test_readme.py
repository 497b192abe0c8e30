"""The README's Python runs as it stands (with random weights: pretrained ones would be downloaded)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featx

README = Path(__file__).parent.parent / "README.md"


def test_the_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    snippet, grid, tune, align = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    lines = [line for line in snippet.splitlines() if line.strip()]
    assert len(lines) == 9
    rng = np.random.default_rng(0)
    for name, level in {"cat": 40, "dog": 200}.items():
        for i in range(6):
            path = tmp_path / "photos" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.normal(level, 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)).save(path)
    (tmp_path / "new").mkdir()
    (tmp_path / "photos/cat/0.jpg").rename(tmp_path / "new/cat.jpg")
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "new/other.jpg")
    monkeypatch.chdir(tmp_path)
    random = snippet.replace('"resnet50", [', '"resnet18", weights=None, progress=False, layers=[')
    assert random != snippet
    names: dict[str, object] = {}
    exec(random, names)
    assert capsys.readouterr().out.strip().endswith("['cat']")
    exec(grid, names)
    plan = capsys.readouterr().out
    assert plan.count("40 fits of LogisticRegression in one solve") == plan.count("15 fits of SVC in one solve") == 3
    network = featx.Backbone("resnet18", weights=None, preprocessing=featx.Preprocessing((32, 32), 32))
    featx.extract("photos", "maps.h5", network, "layer3:none", progress=False)
    exec(tune.replace("epochs=10", "epochs=1"), names)
    assert names["tuned"].n_iter_ == 1  # type: ignore[attr-defined]
    images = ["new/cat.jpg", "new/other.jpg"]
    featx.extract(images, "theirs.h5", like="photos.h5", labels=["cat", "dog"], progress=False)
    exec(align.replace("theirs/new.jpg", "new/cat.jpg"), names)
    assert type(names["pipe"][1]).__name__ == "Align"  # type: ignore[index]


def test_the_readme_names_files_that_are_there() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link
