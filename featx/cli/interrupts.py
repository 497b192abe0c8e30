"""Ctrl-C: during imports, and what it leaves of a run that writes a store."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from featx.errors import FeatxError
from featx.progress import preparing, shown


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C during imports, even if a library swallows it or raises something else."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # the handler is somebody else's
        return
    interrupted = False

    def note(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        if not interrupted:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def loading(phase: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what takes seconds, interruptibly; yields a function that shows the next phase."""
    with shown(True) as show, interruptible():
        on_phase = preparing(show)
        on_phase(phase)
        yield on_phase


def left_by_interrupt(output: Path) -> str:
    """The end of a message: what an interrupted run has left of the store that it writes."""
    from featx.store import discard, is_unfinished

    if is_unfinished(output):
        return "; what is done is kept, the same command goes on"
    with contextlib.suppress(FeatxError):  # an empty file, if the run had just begun
        discard(output)
    return "; nothing half-written is left"
