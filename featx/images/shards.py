"""Images in WebDataset shards: plain tar files, in which the files of one sample follow each other and share a key.

The key is the path up to the first dot of the file name; what follows the dot says what a file is: "jpg" the image,
"cls" or "json" its label. Files lie in a tar as they are, so that one pass over its headers gives all positions.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from featx.errors import ImageError, SourceError, readable
from featx.images.members import EXTENSIONS, ContainingFile, Link, Member, Slice, is_hidden, refuse_name
from featx.urls import REQUESTS, shown

_MAX_LABEL_BYTES = 2**20
_MAX_SHARDS = 100_000
_BLOCK = 512  # bytes


@dataclass
class Samples:
    """Images of shards, with names, and labels where they have one.

    labels : list of str or None
    passed_over : number of files that are neither an image nor a label
    """

    images: list[Member] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    passed_over: int = 0


def expand_braces(pattern: str) -> list[str]:
    """ "{08..10}.tar" -> ["08.tar", "09.tar", "10.tar"]; "{a,b}.tar" -> ["a.tar", "b.tar"]

    Raises
    ------
    SourceError
        The pattern names more than 100,000 files.
    """
    matched = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if matched is None:
        return [pattern]
    first, last, names = matched.groups()
    if names is not None:
        choices = names.split(",")
    else:
        if not 0 <= int(last) - int(first) < _MAX_SHARDS:
            raise SourceError(f"{shown(pattern)} must count upwards, to at most {_MAX_SHARDS:,} shards")
        choices = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    before, after = pattern[: matched.start()], pattern[matched.end() :]
    expanded = [before + choice + end for choice in choices for end in expand_braces(after)]
    if len(expanded) > _MAX_SHARDS:
        raise SourceError(f"{shown(pattern)} names over {_MAX_SHARDS:,} shards")
    return expanded


def samples_of(
    files: Sequence[ContainingFile], names: Sequence[str], on_phase: Callable[[str], None] = lambda phase: None
) -> Samples:
    """The samples of shards that have an image, in the order of the shards and of their files.

    Parameters
    ----------
    names : of the shards; a sample's name is "shard/key"
    on_phase : called with the number of shards that are listed; remote ones are listed many at once

    Raises
    ------
    SourceError
        A shard is no plain tar file or is cut short; a key has two images, or a label that cannot be read; or a name
        is no path inside the shard.
    """
    samples = Samples()
    with ThreadPoolExecutor(REQUESTS if any(file.is_remote for file in files) else 1) as pool:
        try:
            for number, part in enumerate(pool.map(_listed, files, names)):
                samples.images += part.images
                samples.names += part.names
                samples.labels += part.labels
                samples.passed_over += part.passed_over
                on_phase(f"listing shards: {number + 1:,} of {len(files):,}")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return samples


def _listed(file: ContainingFile, shard: str) -> Samples:
    samples = Samples()
    try:
        _add(samples, file, shard)
    except ImageError as error:
        raise SourceError(f"cannot read {file.path}: {error}") from error
    except (SourceError, MemoryError):
        raise
    except Exception as error:  # tarfile raises other types too on crafted headers
        raise SourceError(
            f"{file.path} is not a plain tar file, or is damaged or cut short; make the shard anew, uncompressed"
        ) from error
    return samples


def _add(samples: Samples, file: ContainingFile, shard: str) -> None:
    images: dict[str, Member] = {}
    classes: dict[str, str] = {}
    with tarfile.open(fileobj=file.opened(), mode="r:", encoding="utf-8") as tar:
        end = 0
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps all of them
            end = tar.offset
            if end > file.size:
                raise tarfile.ReadError("cut short")
            name = info.name.removeprefix("./")
            if info.isdir():
                continue
            refuse_name(file.path, name)
            if is_hidden(name):
                continue
            folder, _, rest = name.rpartition("/")
            stem, _, kind = rest.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if f".{kind}".lower() in EXTENSIONS:  # "seg.png" is no image, but a mask beside one
                if key in images:
                    raise SourceError(f"{file.path} has two images under the key {key!r}; give each its own key")
                images[key] = (
                    Slice(file, key, info.offset_data, info.size)
                    if info.isreg() and not info.issparse()
                    else Link(file, key)
                )
            elif kind in ("cls", "json") and info.isreg():
                label = _label(file, name, kind, info.offset_data, info.size)
                if label is not None and (kind == "cls" or key not in classes):
                    classes[key] = label
            else:
                samples.passed_over += 1
    if file.read_at(end, _BLOCK) != bytes(_BLOCK):
        raise tarfile.ReadError("no end-of-archive block")
    samples.images += images.values()
    samples.names += [f"{shard}/{key}" for key in images]
    samples.labels += [classes.get(key) for key in images]


def _label(file: ContainingFile, name: str, kind: str, start: int, nbytes: int) -> str | None:
    where = f"{file.path}: the label {name!r}"
    if nbytes > _MAX_LABEL_BYTES:
        raise SourceError(f"{where} takes {readable(nbytes)}; at most {readable(_MAX_LABEL_BYTES)} are read")
    content = file.read_at(start, nbytes)
    try:
        if kind == "cls":
            return content.decode().strip()
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not {'text' if kind == 'cls' else 'JSON'} in UTF-8") from error
    if not isinstance(values, dict):
        raise SourceError(f"{where} must be an object with 'label' or 'class'; got {type(values).__name__}")
    label = values.get("label", values.get("class"))
    if label is not None and not isinstance(label, str | int | float):
        raise SourceError(f"{where} must be a text or a number; got {type(label).__name__}")
    return None if label is None else str(label)


def shard_names(paths: Sequence[str]) -> list[str]:
    """Names of shards: their file names, or their paths from the folder that they have in common."""
    names = [Path(path).name for path in paths]
    if len(set(names)) == len(names):
        return names
    parts = [Path(path).parts for path in paths]
    shared = next((i for i, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1), 0)
    return ["/".join(each[shared:]) for each in parts]
