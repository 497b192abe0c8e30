"""What can go wrong that a user can mend.

Every message gives the requirement, what was got and the next step, in one line. The command line prints it
and leaves with exit code 2.
"""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterable


class FeatxError(ValueError):
    """Base of all errors that featx raises about what it was given."""


class SourceError(FeatxError):
    """The images to work on: a folder, a list, a manifest, its labels."""


class ImageError(FeatxError):
    """One image that cannot be used.

    Parameters
    ----------
    code : str
        One word of a fixed list: "missing", "unreadable", "not-an-image", "damaged", "too-large", "pixel-type",
        "changed".
    reason : str
        The same in words; never another library's text, which may change from run to run.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason

    def __str__(self) -> str:
        return self.reason


class UnreadableImages(FeatxError):
    """Images handed to a transformer that cannot be used; `failures` maps their positions to ImageError."""

    def __init__(self, message: str, failures: dict[int, ImageError]) -> None:
        super().__init__(message, failures)
        self.failures = failures

    def __str__(self) -> str:
        return str(self.args[0])


class BackboneError(FeatxError):
    """A network that is not known, or whose weights cannot be had."""


class LayerError(FeatxError):
    """A layer or a pool that the network or the store does not have."""


class StoreError(FeatxError):
    """A store that cannot be written or opened."""


class RecipeError(StoreError):
    """Two recipes that had to be equal and are not."""


class DamageError(StoreError):
    """Bytes of a store that are not those that were written; `damages` lists them as (layer, start, stop) in rows."""

    def __init__(self, message: str, damages: list) -> None:
        super().__init__(message, damages)
        self.damages = damages

    def __str__(self) -> str:
        return str(self.args[0])


class UnreadableImagesWarning(UserWarning):
    """Some images of a run could not be read; the store lists them in `failures`."""


class NonFiniteWarning(UserWarning):
    """Some rows hold inf or NaN; the store lists them in `nonfinite`."""


class ContradictionWarning(UserWarning):
    """Images of the same content have different labels; the store lists them in `contradictions`."""


class ProgramWarning(UserWarning):
    """A file that is about to be opened is a program: it can run code of whoever wrote it."""


class RowsDifferWarning(UserWarning):
    """Rows of two stores are used together that were rounded differently; the message says how far they may differ."""


class KeysError(FeatxError):
    """Image keys that a store does not hold."""


class ModelError(FeatxError):
    """A model that cannot be saved or opened."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line, outside of featx, that called it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def nearest(name: str, choices: Iterable[str]) -> str:
    """`"; close: 'layer4', 'layer3'"`, or nothing when no choice resembles `name`."""
    likeness = {choice: _likeness(name, choice) for choice in choices}
    close = sorted(((like, choice) for choice, like in likeness.items() if like >= 0.6), reverse=True)[:3]
    return "; close: " + ", ".join(repr(choice) for _, choice in close) if close else ""


def _likeness(name: str, choice: str) -> float:
    """From 0 to 1. An ending that both have, ".h5" or ":avg", says nothing; what holds the whole name is like it."""
    choice = choice if ":" in name else choice.partition(":")[0]
    ending = re.search(r"[.:]\w*$", name)
    if ending is not None and 0 < ending.start() and choice.endswith(ending[0]) and choice != ending[0]:
        name, choice = name[: ending.start()], choice.removesuffix(ending[0])
    if len(name) >= 3 and name in choice:
        return 1.0 - 0.4 * (1 - len(name) / len(choice))
    matcher = difflib.SequenceMatcher(None, name.lower(), choice.lower())
    return matcher.ratio() if matcher.real_quick_ratio() >= 0.6 and matcher.quick_ratio() >= 0.6 else 0.0


def no_column(where: str, name: str, columns: Iterable[str]) -> str:
    """What is wrong with the name of a column that a store does not have."""
    if not (has := list(columns)):
        return f"{where} has no column {name!r}, and no others; those of a .csv manifest are kept when it is extracted"
    return f"{where} has no column {name!r}{nearest(name, has)}; it has {', '.join(has)}"


def count(n: int, noun: str) -> str:
    """ "1 image", "2,000 images" """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(items: Iterable[object], most: int = 3) -> str:
    """The first few of many, for a message: `"'a', 'b', 'c' and 4 more"`."""
    all_items = list(items)
    more = f" and {len(all_items) - most:,} more" if len(all_items) > most else ""
    shown = (item.item() if hasattr(item, "item") else item for item in all_items[:most])  # NumPy's as Python's
    return ", ".join(map(repr, shown)) + more


def readable(nbytes: float) -> str:
    """ "8.6 GB" """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.1f} TB"
