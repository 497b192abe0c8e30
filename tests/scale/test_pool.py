"""The pool of actors by itself, on a cluster that this process plays: who computes what, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import TAPS, recipe

from featx.errors import FeatxError
from featx.forward import Block
from featx.scale import executor
from featx.scale.executor import BLOCKS_PER_ACTOR, _Pool

exceptions = pytest.importorskip("ray.exceptions")

BATCH, N = 4, 150
STARTS = list(range(0, N, BATCH))


@dataclass(eq=False)
class Call:
    actor: Actor
    method: str


@dataclass(eq=False)
class Actor:
    """An actor whose calls are computed when their results are fetched.

    starts : batches of its shares that are not computed yet
    n_requested : calls of `next_block` whose results have not been fetched
    """

    number: int
    starts: list[int] = field(default_factory=list)
    n_requested: int = 0
    is_over: bool = False

    @property
    def inspect(self) -> Any:
        return SimpleNamespace(remote=lambda sample: Call(self, "inspect"))

    @property
    def next_block(self) -> Any:
        return SimpleNamespace(remote=self._requested)

    def _requested(self, share: Any) -> Call:
        self.starts += [] if share is None else share.starts
        self.n_requested += 1
        assert self.n_requested <= BLOCKS_PER_ACTOR
        return Call(self, "next_block")


class Played:
    """Ray, as far as the pool uses it.

    Parameters
    ----------
    n_running : number of actors that can run at once; further ones wait until one ends
    dies : callable(number of the actor, first image of its next batch or None before it has begun) -> bool
    """

    exceptions = exceptions

    def __init__(self, n_running: int, dies: Callable[[int, int | None], bool]) -> None:
        self.n_running, self.dies = n_running, dies
        self.actors: list[Actor] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "a" * 56, "NodeName": "played", "Alive": True, "Resources": {"CPU": 4.0}}]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._begin))

    def _begin(self, network: bytes, device: str) -> Actor:
        self.actors.append(Actor(len(self.actors)))
        return self.actors[-1]

    def wait(self, calls: list[Call], timeout: float) -> tuple[list[Call], list[Call]]:
        running = [actor for actor in self.actors if not actor.is_over][: self.n_running]
        ready = [call for call in calls if call.actor in running]
        assert ready, "nothing can run"
        return ready[:1], calls

    def get(self, call: Call) -> Any:
        actor = call.actor
        if self.dies(actor.number, actor.starts[0] if call.method == "next_block" else None):
            actor.is_over = True
            raise exceptions.ActorDiedError()
        if call.method == "inspect":
            return {"versions": {}, "processor": {"cpu": None}, "unseen": "", "node": "a" * 56, "refusal": ""}
        actor.n_requested -= 1
        start = actor.starts.pop(0)
        return Block(start, min(start + BATCH, N), np.arange(start, min(start + BATCH, N)), {}, {}, {}, BATCH)

    def kill(self, actor: Actor, no_restart: bool) -> None:
        actor.is_over = True


@pytest.fixture(autouse=True)
def same_nodes(monkeypatch) -> None:
    monkeypatch.setattr(executor, "refuse_other_node", lambda *_: None)


def computed(ray: Played, images: Any = None) -> list[int]:
    """The batches in the order in which they arrive; each comes once."""
    images = [f"{i}.png" for i in range(N)] if images is None else images
    made = recipe(TAPS, batch_size=BATCH, threads=1)
    with _Pool(ray, images, made, "auto", np.ones(N, bool), b"", b"") as pool:
        starts = [block.start for block in pool.blocks()]
    assert sorted(starts) == STARTS and all(actor.is_over for actor in ray.actors)
    return starts


def test_each_actor_has_two_blocks_at_most_and_all_take_part():
    ray = Played(4, lambda number, start: False)
    assert computed(ray) != STARTS and len(ray.actors) == 4
    assert computed(Played(1, lambda number, start: False)) == STARTS  # the others have not begun


def test_what_an_actor_had_is_done_by_others_though_none_can_begin_in_its_place():
    """The second actor ends at its first batch, when the first has nothing left to do."""
    ray = Played(2, lambda number, start: number == 1 and start is not None)
    wait = ray.wait

    def second_last(calls: list[Call], timeout: float) -> tuple[list[Call], list[Call]]:
        ray.n_running = 1 if ray.actors[1].is_over else 2
        return wait(sorted(calls, key=lambda call: (call.method != "inspect", call.actor.number)), timeout)

    ray.wait = second_last
    assert computed(ray)[-1] == 20  # the second actor's first batch: it had been given the range after the first's


def test_a_batch_that_ends_its_actors_is_named_after_all_others_are_done():
    ray = Played(2, lambda number, start: start == 40)
    arrived = []
    with (
        _Pool(
            ray,
            [f"{i}.png" for i in range(N)],
            recipe(TAPS, batch_size=BATCH, threads=1),
            1,
            np.ones(N, bool),
            b"",
            b"",
        ) as pool,
        pytest.raises(
            FeatxError, match="^3 actors .* while they computed '40.png', '41.png', '42.png', '43.png'; leave"
        ),
    ):
        arrived.extend(block.start for block in pool.blocks())
    missing = {*STARTS} - {*arrived}
    assert 40 in missing and len(missing) <= 1 + BLOCKS_PER_ACTOR  # those of the other actor


def test_actors_that_end_before_they_begin_end_the_run_unless_others_compute():
    with pytest.raises(FeatxError, match="actors of the Ray cluster end before they begin: .*; what is done is kept"):
        computed(Played(4, lambda number, start: start is None))
    computed(Played(2, lambda number, start: start is None and 1 <= number <= 20))


def test_images_whose_pixels_are_sent_are_given_out_a_batch_at_a_time():
    granted = []

    class Noticed(Played):
        def _begin(self, network: bytes, device: str) -> Actor:
            actor = super()._begin(network, device)
            requested = actor._requested
            actor._requested = lambda share: (granted.append(len(share.starts)), requested(share))[1]
            return actor

    computed(Noticed(4, lambda number, start: False), [np.zeros((2, 2), np.uint8)] * N)
    assert set(granted) == {1}
