"""Whatever bytes of an archive are changed, it is refused, or some of its images fail, or all are as they were."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import class_folders
from test_shards import shards_of
from test_tables import written
from test_zips import zip_of

from featx.errors import ImageError, SourceError
from featx.images import collect, content_digest


@pytest.mark.parametrize("kind", ["zip", "tar", "parquet"])
def test_changed_bytes_end_in_a_refusal_or_a_failure(tmp_path, kind):
    root = class_folders(tmp_path / "photos", n=2)
    path = tmp_path / f"x.{kind}"
    if kind == "tar":
        shards_of(root, tmp_path / "shards")
        path = tmp_path / "shards" / "000.tar"
    elif kind == "zip":
        zip_of(root, path)
    else:
        written(path, root)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    headers = np.r_[0:1000, len(whole) - 1500 : len(whole)] if kind != "tar" else np.arange(len(whole))
    outcomes = set()
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.choice(headers, rng.integers(1, 4)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            for image in collect(path).images:
                content_digest(image)
            outcomes.add("read")
        except (SourceError, ImageError) as error:
            outcomes.add(type(error))
    assert SourceError in outcomes
