"""Messages whose parameters are values: what Python writes, what another face makes of them, pickled or not."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import featx
from featx.errors import (
    Call,
    DamageError,
    FeatxError,
    ImageError,
    Parameter,
    RowsDifferWarning,
    StoreError,
    UnavailableBackbone,
    UnreadableImages,
)

ERRORS = [
    (FeatxError("a plain text: {braces} and test_size=0 stay"), "a plain text: {braces} and test_size=0 stay"),
    (StoreError("got ", Parameter("folds", 1)), "got folds=1"),
    (FeatxError(Parameter("test_size"), " is a share"), "test_size is a share"),
    (FeatxError("or ", Parameter("like", ...)), "or like=..."),
    (FeatxError(Parameter("layer", "a:b"), " or ", Parameter("weights", None)), "layer='a:b' or weights=None"),
    (FeatxError(Call("featx.save"), " makes one"), "featx.save makes one"),
    (
        FeatxError("use ", Call("featx.load", "path", Parameter("weights", "a.pth"))),
        "use featx.load(path, weights='a.pth')",
    ),
    (
        FeatxError("give ", Parameter("y", Call("store.align", "'labels.csv'"))),
        "give y=store.align('labels.csv')",
    ),
    (
        UnavailableBackbone("it is gone", "say where it is: ", Call("featx.load")),
        "it is gone; say where it is: featx.load",
    ),
    (ImageError("damaged", "it ends early"), "it ends early"),
    (UnreadableImages("1 image", {0: ImageError("missing", "no file")}), "1 image"),
    (DamageError("rows 0 to 5", [("layer", 0, 5)]), "rows 0 to 5"),
    (RowsDifferWarning("made with ", Parameter("batch_size", 3)), "made with batch_size=3"),
]


def test_a_message_is_pythons_and_survives_a_pickle(subtests):
    for error, text in ERRORS:
        with subtests.test(ascii((error, text))):
            again = pickle.loads(pickle.dumps(error))
            assert type(again) is type(error) and str(error) == str(again) == text
            assert error.render(repr) == again.render(repr) == copy.copy(error).render(repr)
            assert error.args == again.args == (text,)
            assert repr(error) == repr(again) == f"{type(error).__name__}({text!r})"


def test_a_pickle_keeps_what_an_error_holds():
    errors = [error for error, _ in ERRORS if isinstance(error, ImageError | UnavailableBackbone | DamageError)]
    for error in errors:
        error.add_note("on a device")
        again = pickle.loads(pickle.dumps(error))
        assert again.__notes__ == ["on a device"]
        for name in {"code", "reason", "damages"} & set(vars(error)):
            assert getattr(again, name) == getattr(error, name)


def test_another_face_writes_parameters_and_calls_and_nothing_else():
    error = FeatxError("{0} got ", Parameter("folds", 1), "; ", Call("featx.save"), " is no ", Parameter("layer"))
    assert error.render(lambda part: part.name.upper()) == "{0} got FOLDS; FEATX.SAVE is no LAYER"


def test_no_message_of_the_library_names_an_option_of_the_command_line():
    """A text of the code with an option in it, `--replace`, outside of the command line and of what it prints."""
    root = Path(featx.__file__).parent
    rooms = [path for path in root.rglob("*.py") if not re.match(r"cli|demo|report", str(path.relative_to(root)))]
    named = {path.name for path in rooms if re.search(r"(?<![-\w])--[a-z]", path.read_text())}
    assert len(rooms) > 80 and not named
