"""Who waits for company before a batch, and for how much of it."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lossd.batching import Batcher
from lossd.busyness import Busyness
from queues import FAIR, LIMITS, Queue, Shared, caller


class Busy(Busyness):
    """A process that always works, and counts how often that matters."""

    asked = 0

    def is_high(self) -> bool:
        self.asked += 1
        return True


class Idle(Busyness):
    """A process that never works."""

    def is_high(self) -> bool:
        return False


class Gathering:
    """A batcher with an engine in a thread that asks it for one batch, after two of three jobs."""

    def __init__(self, gather_s: float) -> None:
        limits = replace(LIMITS, gather_s=gather_s)
        self.process = Busy()
        self.batcher: Batcher[str, str] = Batcher(limits, busyness=self.process)
        for _ in range(2):
            self.put("abc")
            batch = self.batcher.next_batch(wait_s=0)
            assert batch is not None
            self.batcher.complete(batch.tickets, 0.001)
        self.taken: list[str] = []
        self.engine = threading.Thread(target=self._take)

    def put(self, jobs: str) -> None:
        for job in jobs:
            self.batcher.submit(job, group="a", samples=1, nbytes=1, timeout_s=3600)

    def _take(self) -> None:
        batch = self.batcher.next_batch(wait_s=60)
        assert batch is not None
        self.taken += [ticket.job for ticket in batch.tickets]

    def is_waiting(self) -> bool:
        self.engine.join(0.05)  # time in which an engine that was woken would take what waits
        return self.engine.is_alive()


def test_those_whose_answers_left_together_are_waited_for() -> None:
    gathering = Gathering(gather_s=60)
    gathering.put("d")
    gathering.engine.start()
    assert gathering.is_waiting()
    gathering.put("e")
    assert gathering.is_waiting()
    assert gathering.process.asked == 1  # it is not woken before all are there
    gathering.put("f")
    gathering.engine.join(30)
    assert gathering.taken == list("def")


def test_company_that_does_not_come_is_not_waited_for_any_longer() -> None:
    gathering = Gathering(gather_s=0.02)
    gathering.put("d")
    gathering.engine.start()
    gathering.engine.join(30)
    assert gathering.taken == ["d"]


def test_a_queue_that_closes_waits_for_no_company() -> None:
    gathering = Gathering(gather_s=60)
    gathering.put("d")
    gathering.engine.start()
    assert gathering.is_waiting()
    gathering.batcher.close()
    gathering.engine.join(30)
    assert gathering.taken == ["d"]


@pytest.fixture
def nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*_: object) -> None:
        pytest.fail("it waits")

    monkeypatch.setattr(threading.Condition, "wait", wait)


@pytest.mark.usefixtures("nothing_waits")
@pytest.mark.parametrize(
    ("before", "later_s", "timeout_s", "busyness"),
    [
        (("abc", "a"), 0.5, 60, Busy()),
        (("a", "abc"), 0.5, 60, Busy()),
        (("abc", "abc"), 1.5, 60, Busy()),
        (("abc", "abc"), 0.5, 3, Busy()),
        (("abc", "abc"), 0.5, 60, Idle()),
    ],
    ids=["was alone", "had company once", "comes late", "has no time", "is on an idle machine"],
)
def test_nobody_is_waited_for_by_who(
    before: Sequence[str], later_s: float, timeout_s: float, busyness: Busyness
) -> None:
    queue, limits = Queue(), replace(LIMITS, gather_s=1.0)
    queue.batcher = Batcher(limits, clock=lambda: queue.now, busyness=busyness)
    for jobs in before:
        for job in jobs:
            queue.put(job)
        batch = queue.batcher.next_batch(wait_s=0)
        assert batch is not None
        queue.batcher.complete(batch.tickets, 0.001)
    queue.now = later_s
    queue.put("next", timeout_s=timeout_s)
    assert queue.take() == (["next"], "idle")


@pytest.mark.usefixtures("nothing_waits")
def test_nobody_waits_for_the_company_of_another_key() -> None:
    shared = Shared(replace(FAIR, gather_s=1.0))
    shared.batcher = Batcher(shared.limits, clock=lambda: shared.now, busyness=Busy())

    def put(name: str) -> None:
        shared.batcher.submit(
            0.001, group="a", samples=1, nbytes=1, timeout_s=60, caller=caller(name)
        )

    for _ in range(2):
        for _ in range(3):
            put("one")
        batch = shared.batcher.next_batch(wait_s=0)
        assert batch is not None
        shared.batcher.complete(batch.tickets, 0.001)
    put("other")
    batch = shared.batcher.next_batch(wait_s=0)
    assert batch is not None
    assert [ticket.caller.name for ticket in batch.tickets] == ["other"]
