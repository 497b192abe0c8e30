"""Ctrl-C: during imports, and what it leaves of a run that writes a store."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from featx.errors import FeatxError
from featx.progress import preparing, shown


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """End the process on Ctrl-C during imports, while no file is open.

    An exception would not do: libraries swallow it, raise something else, or abort when it reaches their C++ code.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # the handler is somebody else's
        return
    before = signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(*_: object) -> None:
    # not through sys.stderr, which may be in the middle of a write
    shown_again = b"\r\x1b[2K\x1b[?25h" if os.isatty(2) else b""  # the bar's line is cleared, the cursor visible
    os.write(2, shown_again + b"featx: interrupted\n")
    os._exit(130)


@contextlib.contextmanager
def loading(phase: str) -> Iterator[Callable[[str], None]]:
    """`working`, for imports: Ctrl-C ends the process at once."""
    with working(phase) as on_phase, interruptible():
        yield on_phase


@contextlib.contextmanager
def working(phase: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what takes seconds; yields a function that shows the next phase."""
    with shown(True) as show:
        on_phase = preparing(show)
        on_phase(phase)
        yield on_phase


def left_by_interrupt(output: Path, several: bool = False) -> str:
    """The end of a message: what an interrupted run has left of the store, or several, that it writes."""
    from featx.store import discard, is_unfinished

    if several or is_unfinished(output):
        return "; what is done is kept, the same command goes on"
    with contextlib.suppress(FeatxError):  # an empty file, if the run had just begun
        discard(output)
    return "; nothing half-written is left"
