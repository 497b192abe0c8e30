"""The journal of an unfinished run, a text file beside it: one line per step, each with its checksum.

The first line identifies the run. An incomplete line, and all lines after it, count as not written.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from featx.errors import Parameter, StoreError
from featx.recipe import Recipe
from featx.store.files import beside, disk_errors, fsync_folder, is_at, open_alone
from featx.store.layout import GROUP_ROWS

_FORMAT = "featx-journal 2"
_UNCHANGED = "the existing files stay as they are"


@dataclass(frozen=True)
class Unfinished:
    """An unfinished run.

    Attributes
    ----------
    recipe : Recipe
    ids : list of str
        Ids of its images, in order.
    entries : list of dict
        Entries of the journal, in order.
    nbytes : int
        Length of the journal's valid lines.
    listing : str or None
        What the run has found at the URLs of its source.
    """

    recipe: Recipe
    ids: list[str]
    entries: list[dict[str, Any]]
    nbytes: int
    listing: str | None = None

    @property
    def n_done(self) -> int:
        """Number of images that have rows or are failures."""
        groups = {group for entry in self.entries if "groups" in entry for group in range(*entry["groups"])}
        return sum(min(GROUP_ROWS, len(self.ids) - group * GROUP_ROWS) for group in groups)


def partial_path(output: Path) -> Path:
    return beside(output, ".partial")


def journal_path(output: Path) -> Path:
    return beside(output, ".journal")


def is_unfinished(output: str | os.PathLike) -> bool:
    """Whether the two files of an unfinished run for an output exist; they are not read."""
    try:
        return partial_path(Path(output)).stat().st_size > 0 and journal_path(Path(output)).exists()
    except OSError:
        return False


def unfinished(output: str | os.PathLike) -> Unfinished | None:
    """The unfinished run for an output, or None if there is none that can be continued.

    Raises
    ------
    StoreError
        Another version of featx began it.
    """
    output = Path(output)
    with disk_errors(output, lambda: _UNCHANGED):
        if not is_unfinished(output):
            return None
        content = journal_path(output).read_bytes()
    entries, nbytes = [], 0
    for line in content.splitlines(keepends=True):
        text, _, digest = line.rpartition(b" ")
        if digest != xxhash.xxh3_64_hexdigest(text).encode() + b"\n":
            break
        entries.append(json.loads(text))
        nbytes += len(line)
    if not entries:
        return None
    try:
        if entries[0]["format"] != _FORMAT:
            raise KeyError
        recipe = Recipe.from_json(json.dumps(entries[0]["recipe"]))
    except (KeyError, StoreError) as error:
        raise StoreError(
            f"another version of featx began a run for {output}; finish it with that version, or discard it with ",
            Parameter("discard", True),
        ) from error
    return Unfinished(recipe, entries[0]["ids"], entries[1:], nbytes, entries[0].get("listing"))


def refuse_running(output: str | os.PathLike) -> None:
    """Raise StoreError if a run is writing this output now."""
    partial = partial_path(Path(output))
    with disk_errors(Path(output), lambda: _UNCHANGED):
        if partial.exists():
            os.close(open_alone(partial))


def discard(output: str | os.PathLike) -> None:
    """Remove the files of an unfinished run; the output itself stays.

    Raises
    ------
    StoreError
        The run is in progress.
    """
    partial, journal = partial_path(Path(output)), journal_path(Path(output))
    with disk_errors(Path(output), lambda: _UNCHANGED):
        if not partial.exists() and not journal.exists():
            return
        handle = open_alone(partial)
        try:
            journal.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
        finally:
            os.close(handle)


def discard_quietly(output: Path) -> None:
    """Remove the files of the calling run; errors are ignored."""
    for path in (journal_path(output), partial_path(output)):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


class Journal:
    """The journal of a run in progress.

    Parameters
    ----------
    begun : the unfinished run to continue, or None for a new one
    listing : see Unfinished
    """

    def __init__(
        self, output: Path, recipe: Recipe, ids: Sequence[str], begun: Unfinished | None, listing: str | None = None
    ) -> None:
        self._path = journal_path(output)
        flags = os.O_WRONLY | os.O_APPEND | (0 if begun else os.O_CREAT | os.O_EXCL)
        self._file = os.open(self._path, flags, 0o666)
        self._nbytes = begun.nbytes if begun is not None else 0  # of complete lines
        try:
            if begun is not None:
                os.ftruncate(self._file, begun.nbytes)
            else:
                first = {"format": _FORMAT, "recipe": json.loads(recipe.to_json()), "ids": list(ids)}
                self.append(first if listing is None else first | {"listing": listing})
                fsync_folder(self._path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, *entries: dict[str, Any]) -> None:
        """Write entries, one line each. The work that they record is on the disk already; the entries themselves may
        reach it later, unless `sync` is called.
        """
        lines = [json.dumps(entry, ensure_ascii=False).encode() for entry in entries]
        content = b"".join(b"%b %b\n" % (line, xxhash.xxh3_64_hexdigest(line).encode()) for line in lines)
        remaining = memoryview(content)
        os.ftruncate(self._file, self._nbytes)  # an incomplete line would hide the lines after it
        while remaining:
            remaining = remaining[os.write(self._file, remaining) :]
        self._nbytes += len(content)

    def sync(self) -> None:
        os.fsync(self._file)

    def remove(self) -> None:
        """Remove the file of a finished run, unless a new run has created another file with that name."""
        if is_at(self._path, self._file):
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._file)
