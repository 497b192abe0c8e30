"""Sources of images that are refused, and images of a source that cannot be read."""

from __future__ import annotations

import pytest
from helpers import assert_tells

from featx.errors import ImageError, SourceError
from featx.images import collect, decode


def refused(source, *words, **options) -> None:
    with pytest.raises(SourceError) as caught:
        collect(source, **options)
    assert_tells(caught.value, *words)


def failure(image) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(image)
    return caught.value
