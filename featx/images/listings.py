"""What a run has found at its URLs: the names, sizes and versions of objects, so that a resumed run sees the same."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np

from featx.images.members import Stamp

Objects = tuple[list[str], np.ndarray, np.ndarray]  # n paths, (n,) int64 sizes, (n,) uint64 versions


class Listing:
    """The objects at the URLs of one source.

    Parameters
    ----------
    source : str
        The source, as it is shown.
    kept : str, optional
        `text` of an earlier listing. It is used if it is of the same source.
    """

    def __init__(self, source: str, kept: str | None = None) -> None:
        self._source = source
        self._at: dict[str, Objects] = {}
        self._text: str | None = None
        if kept is None:
            return
        record = json.loads(zlib.decompress(base64.b64decode(kept)))
        if record["source"] == source:
            self._text = kept
            self._at = {
                url: (paths, _array(sizes, "<i8"), _array(versions, "<u8"))
                for url, (paths, sizes, versions) in record["urls"].items()
            }

    @property
    def text(self) -> str | None:
        """The listing, compressed; None if nothing was listed."""
        if self._text is None and self._at:
            urls = {url: (paths, _text(sizes), _text(versions)) for url, (paths, sizes, versions) in self._at.items()}
            record = json.dumps({"source": self._source, "urls": urls})
            self._text = base64.b64encode(zlib.compress(record.encode(), 1)).decode()
        return self._text

    @property
    def is_kept(self) -> bool:
        """Whether it is an earlier listing."""
        return self._text is not None

    def add(self, url: str, paths: list[str], sizes: np.ndarray, versions: np.ndarray) -> None:
        """Add the objects below a URL, or the one that it names, with the path ""."""
        self._at[url], self._text = (paths, sizes, versions), None

    def stamp(self, url: str) -> Stamp | None:
        """Of the object that a URL names."""
        if url not in self._at or self._at[url][0] != [""]:
            return None
        _, (size,), (version,) = self._at[url]
        return int(size), int(version)

    def folder(self, url: str) -> Objects | None:
        """The objects below a URL."""
        return None if self.stamp(url) is not None else self._at.get(url)


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _array(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)
