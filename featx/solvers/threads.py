"""The number of threads of a computation, and how a long computation is shared among them.

Threads that work on one product wait for each other at its end. Where other processes use the cores too, the last
thread is late by a time slice of the scheduler, 4 to 10 ms, however short the product. So short computations use one
thread. Long ones are divided into a share for each thread, and within a share every product uses one thread: the
threads wait for each other once, not after every operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

# Operations from which several threads are faster: 3 ms of one core in float32 (benchmarks/small.py). On an idle
# machine 0.04e9 would be enough, but save less than a millisecond.
_LEAST_FLOP = 2**28

Share = TypeVar("Share")
Result = TypeVar("Result")


@contextmanager
def threads_for(flop: float) -> Iterator[None]:
    """A context in which torch uses one thread, unless `flop` operations are worth more.

    The caller's number of threads is restored afterwards, also after an exception. Torch keeps a number for each Python
    thread; a thread that first uses torch while another one is in this context starts with one.
    """
    before = torch.get_num_threads()
    if worth_sharing(flop) or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def worth_sharing(flop: float) -> bool:
    """Whether several threads finish this many operations sooner than one, also on a busy machine."""
    return flop >= _LEAST_FLOP


class Team:
    """Threads that each work on a share of a computation.

    Use it inside `threads_for(0)`, which restores the settings that its threads change.

    size : number of threads, the caller's included
    """

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self._others: ThreadPoolExecutor | None = None

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        if self._others is not None:
            self._others.shutdown()

    def map(self, work: Callable[[int, Share], Result], shares: Sequence[Share]) -> list[Result]:
        """The results of `work(number, share)` for each of at most `size` shares, run in parallel."""
        if len(shares) > 1 and self._others is None:
            self._others = ThreadPoolExecutor(self.size - 1, initializer=torch.set_num_threads, initargs=(1,))
        others = [self._others.submit(work, number, share) for number, share in enumerate(shares) if number]  # type: ignore[union-attr]
        try:
            first = work(0, shares[0])
        finally:
            rest = [other.result() for other in others]
        return [first, *rest]
