"""Errors that a user can mend, and what their messages are made of.

Every message gives the requirement, what was got and the next step, in one line. A message keeps the parameters that it
names as values: Python writes `test_size=0`, the command line an option.
"""

from __future__ import annotations

import copyreg
import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class Parameter:
    """A parameter that a message names, perhaps with its value.

    Parameters
    ----------
    name : str
        As the library has it: "test_size".
    *value : object
        One value, perhaps a Call, or none; `...` stands for a value to be filled in.

    Examples
    --------
    >>> str(Parameter("layer")), str(Parameter("folds", 1)), str(Parameter("like", ...))
    ('layer', 'folds=1', 'like=...')
    """

    def __init__(self, name: str, *value: object) -> None:
        self.name, self.value = name, value

    def __str__(self) -> str:
        return "=".join([self.name, *("..." if value is ... else repr(value) for value in self.value)])

    def __repr__(self) -> str:
        return f"Parameter{(self.name, *self.value)!r}"


class Call:
    """A call that a message proposes.

    Parameters
    ----------
    name : str
        The function, as a user writes it: "featx.load".
    *arguments : str or Parameter
        Without any, the function itself is meant.

    Examples
    --------
    >>> str(Call("featx.save")), str(Call("featx.load", "path", Parameter("weights", "resnet.pth")))
    ('featx.save', "featx.load(path, weights='resnet.pth')")
    """

    def __init__(self, name: str, *arguments: str | Parameter) -> None:
        self.name, self.arguments = name, arguments

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.arguments))})" if self.arguments else self.name

    __repr__ = __str__


Part = str | Parameter | Call


class Message(Exception):
    """Base of errors and warnings whose message Python and the command line word differently; see `FeatxError`.

    Parameters
    ----------
    *parts : str, Parameter or Call

    Attributes
    ----------
    parts : tuple of str, Parameter and Call
    args : (str,)
        The message as Python writes it.
    """

    def __init__(self, *parts: Part) -> None:
        self.parts = parts
        super().__init__(self.render())

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles restore the attributes, since constructors take other arguments than `args`."""
        return copyreg.__newobj__, (type(self),), {**vars(self), "args": self.args}  # type: ignore[attr-defined]

    def render(self, write: Callable[[Parameter | Call], str] = str) -> str:
        """The message, its parameters and calls as `write` writes them; by default as Python does."""
        return "".join(part if isinstance(part, str) else write(part) for part in self.parts)


class FeatxError(Message, ValueError):
    """Base of all errors that a user of featx can cause.

    Parameters
    ----------
    *parts : str, Parameter or Call
        The parts of the message, in order; usually it is a single text.

    Examples
    --------
    >>> str(FeatxError("cross-validation needs two folds or more; got ", Parameter("folds", 1)))
    'cross-validation needs two folds or more; got folds=1'
    """


class SourceError(FeatxError):
    """The images cannot be used: their folder, list or manifest, or their labels."""


class ImageError(FeatxError):
    """One image that cannot be used.

    Parameters
    ----------
    code : str
        One word of a fixed list: "missing", "unreadable", "not-an-image", "damaged", "too-large", "pixel-type",
        "changed".
    reason : str
        The reason in words; never another library's text, which may change from run to run.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class UnreadableImages(FeatxError):
    """A transformer cannot read some of its images; `failures` maps their positions to ImageErrors."""

    def __init__(self, message: str, failures: dict[int, ImageError]) -> None:
        super().__init__(message)
        self.failures = failures


class BackboneError(FeatxError):
    """The network is unknown, or its weights are unavailable."""


class UnavailableBackbone(BackboneError):
    """The network of a recipe cannot be loaded by featx; the user has to pass it.

    Parameters
    ----------
    reason : str
        Why featx cannot load it.
    *how : str, Parameter or Call
        How to pass the network of a saved model.
    """

    def __init__(self, reason: str, *how: Part) -> None:
        super().__init__(reason, "; ", *how)
        self.reason, self.how = reason, how


class LayerError(FeatxError):
    """A layer or a pool that the network or the store does not have."""


class StoreError(FeatxError):
    """A store that cannot be written or opened."""


class RecipeError(StoreError):
    """Two recipes that had to be equal and are not."""


class DamageError(StoreError):
    """Bytes of a store do not match their checksums; `damages` lists them as (layer, first row, last row + 1)."""

    def __init__(self, message: str, damages: list) -> None:
        super().__init__(message)
        self.damages = damages


class TooLargeError(FeatxError, MemoryError):
    """A matrix that something needs as a whole does not fit into memory."""


class UnreadableImagesWarning(UserWarning):
    """Some images could not be read; the store lists them in `failures`."""


class NonFiniteWarning(UserWarning):
    """Some rows contain NaN or inf; the store lists them in `nonfinite`."""


class ContradictionWarning(UserWarning):
    """Images of the same content have different labels; the store lists them in `contradictions`."""


class ProgramWarning(UserWarning):
    """A file that is about to be opened is a program, which can run its author's code."""


class RowsDifferWarning(Message, UserWarning):
    """Rows of two stores are used together and were rounded differently; the message says how far they may differ."""


class KeysError(FeatxError):
    """Image keys that a store does not hold."""


class ModelError(FeatxError):
    """A model that cannot be saved or opened."""


_NOT_THE_USERS = (__package__, "sklearn", "joblib")  # packages of frames between a warning and the user's code


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's code that called featx, directly or through scikit-learn."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_USERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def as_path(name: str, value: object, error: type[FeatxError]) -> Path:
    """The value of a parameter as a path; raises `error` if it is neither a str nor a path."""
    if not isinstance(value, str | os.PathLike):
        raise error(Parameter(name), f" must be a path; got {type(value).__name__}")
    return Path(value)


def nearest(name: str, choices: Iterable[str]) -> str:
    """`"; close: 'layer4', 'layer3'"`, or "" when no choice resembles `name`."""
    likeness = {choice: _likeness(name, choice) for choice in choices}
    close = sorted(((like, choice) for choice, like in likeness.items() if like >= 0.6), reverse=True)[:3]
    return "; close: " + ", ".join(repr(choice) for _, choice in close) if close else ""


def _likeness(name: str, choice: str) -> float:
    """Similarity from 0 to 1; a suffix that both have (".h5", ":avg") does not count."""
    choice = choice if ":" in name else choice.partition(":")[0]
    ending = re.search(r"[.:]\w*$", name)
    if ending is not None and 0 < ending.start() and choice.endswith(ending[0]) and choice != ending[0]:
        name, choice = name[: ending.start()], choice.removesuffix(ending[0])
    if len(name) >= 3 and name in choice:
        return 1.0 - 0.4 * (1 - len(name) / len(choice))
    matcher = difflib.SequenceMatcher(None, name.lower(), choice.lower())
    return matcher.ratio() if matcher.real_quick_ratio() >= 0.6 and matcher.quick_ratio() >= 0.6 else 0.0


def no_column(where: str, name: str, columns: Iterable[str]) -> str:
    """The message for a column that a store does not have."""
    if not (has := list(columns)):
        return f"{where} has no column {name!r}, and no others; those of a .csv manifest are kept when it is extracted"
    return f"{where} has no column {name!r}{nearest(name, has)}; it has {', '.join(has)}"


def file_of_labels(labels: object) -> list[Part]:
    """The end of a message about `labels` that name a CSV file where a column is needed; [] if they do not."""
    if not isinstance(labels, str) or not labels.lower().endswith(".csv"):
        return []
    return [
        f"; {labels} is a file: its labels are read after the extraction, by ",
        Call("FeatureStore.align", repr(labels)),
    ]


def count(n: int, noun: str) -> str:
    """ "1 image", "2,000 images" """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(items: Iterable[object], most: int = 3) -> str:
    """The first few of many items, for a message: `"'a', 'b', 'c' and 4 more"`."""
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
