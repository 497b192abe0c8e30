"""How many of the caller's threads a piece of work is given, and how a long one is shared among them. Knows torch only.

Threads that work on one product wait for each other at its end. Where other processes use the cores, the last of them
arrives late: by 4 to 10 ms, the time that the scheduler gives another process, whatever the product takes. So short
work has one thread. Long work is cut into a share for each thread, and within a share every product has one thread:
the threads wait for each other once, not after every operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

# Operations from which several threads are worth the wait: 3 ms of one core here, in float32 (benchmarks/small.py).
# Alone on the machine 0.04e9 would be enough, which then gains less than a millisecond.
_LEAST_FLOP = 2**28

Share = TypeVar("Share")
Result = TypeVar("Result")


@contextmanager
def threads_for(flop: float) -> Iterator[None]:
    """In here torch has one thread, unless a product takes `flop` operations and that is worth more.

    The caller's number comes back afterwards, also after an exception. Torch keeps the number for each Python thread; a
    thread that uses torch for the first time while another one is in here begins with one.
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
    """Whether several threads finish this much work earlier than one, beside other processes too."""
    return flop >= _LEAST_FLOP


class Team:
    """Threads that each work on a share of something; as many as torch has where it is made, or one.

    To be used in `threads_for(0)`, which also gives back what its threads leave behind.
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
        """`work(number, share)` of each share, at most `size` of them, all at the same time."""
        if len(shares) > 1 and self._others is None:
            self._others = ThreadPoolExecutor(self.size - 1, initializer=torch.set_num_threads, initargs=(1,))
        others = [self._others.submit(work, number, share) for number, share in enumerate(shares) if number]  # type: ignore[union-attr]
        try:
            first = work(0, shares[0])
        finally:
            rest = [other.result() for other in others]
        return [first, *rest]
