"""The queue of one key, with a clock of the test's own."""

import threading
from typing import Any, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client import REGISTRY

from lossd.batching import Batcher
from lossd.tracing import Origin
from lossd.waiting import DropReason, Ticket
from lossd_client.errors import (
    DeadlineExceededError,
    DrainingError,
    InternalError,
    QueueFullError,
)
from queues import LIMITS, Queue


@pytest.fixture
def queue() -> Queue:
    return Queue()


def test_an_idle_engine_never_waits(queue: Queue) -> None:
    queue.put("one")
    assert queue.take() == (["one"], "idle")
    assert queue.now == 0.0


def test_nothing_is_taken_where_nothing_waits(queue: Queue) -> None:
    assert queue.batcher.next_batch(wait_s=0) is None


def test_what_waits_together_runs_together_in_order(queue: Queue) -> None:
    for job in "abcd":
        queue.put(job)
    assert queue.take() == (list("abcd"), "idle")


def test_what_comes_in_one_moment_is_shown_to_an_engine_that_waits_at_once() -> None:
    batcher: Batcher[str, str] = Batcher(LIMITS)
    taken: list[list[str]] = []

    def engine() -> None:
        batch = batcher.next_batch(wait_s=30)
        taken.append([] if batch is None else [ticket.job for ticket in batch.tickets])

    thread = threading.Thread(target=engine)
    thread.start()
    for job in ("one", "two", "three"):
        batcher.submit(job, group="a", samples=1, nbytes=1, timeout_s=60, wake="later")
        thread.join(0.05)  # time in which an engine that was woken would take it
    assert thread.is_alive()
    batcher.wake()
    thread.join(30)
    assert taken == [["one", "two", "three"]]


def test_a_batch_stops_at_its_samples(queue: Queue) -> None:
    for job in "abc":
        queue.put(job, samples=4)
    assert queue.take() == (["a", "b"], "full")
    assert queue.take() == (["c"], "idle")


def test_a_batch_stops_at_its_bytes(queue: Queue) -> None:
    for job in "abc":
        queue.put(job, nbytes=50)
    assert queue.take() == (["a", "b"], "full")


def test_a_job_larger_than_a_batch_runs_alone(queue: Queue) -> None:
    queue.put("large", samples=19)
    queue.put("small")
    assert queue.take() == (["large"], "full")
    assert queue.take() == (["small"], "idle")


def test_a_job_larger_than_the_queue_is_taken_if_it_is_alone(queue: Queue) -> None:
    queue.put("large", samples=1000)
    with pytest.raises(QueueFullError):
        queue.put("next")
    assert queue.take()[0] == ["large"]
    queue.put("small")
    with pytest.raises(QueueFullError):
        queue.put("large", samples=1000)


@pytest.mark.parametrize(("samples", "nbytes"), [(20, 1), (1, 300)])
def test_a_full_queue_says_when_to_come_back(queue: Queue, samples: int, nbytes: int) -> None:
    queue.put("first", samples=samples, nbytes=nbytes)
    with pytest.raises(QueueFullError, match="wait"):
        queue.put("second")
    queue.take()
    queue.put("second")


def test_the_largest_group_goes_first(queue: Queue) -> None:
    queue.put("a", group="a")
    queue.put("b1", group="b")
    queue.put("b2", group="b")
    assert queue.take() == (["b1", "b2"], "largest")
    assert queue.take() == (["a"], "idle")


def test_an_overtaken_group_goes_after_the_delay(queue: Queue) -> None:
    queue.put("a", group="a")
    queue.now = 0.4
    queue.put("b", group="b", samples=5)
    queue.now = 0.5
    assert queue.take() == (["a"], "delay")


def test_groups_never_mix(queue: Queue) -> None:
    for number in range(6):
        queue.put(f"{number % 2}", group=f"{number % 2}")
    assert queue.take()[0] == ["0"] * 3
    assert queue.take()[0] == ["1"] * 3


def test_a_passed_deadline_is_answered_and_not_computed(queue: Queue) -> None:
    late = queue.put("late", timeout_s=1)
    queue.put("patient", timeout_s=10)
    queue.now = 1.0
    assert queue.take() == (["patient"], "idle")
    assert isinstance(late.answer.exception(timeout=0), DeadlineExceededError)
    assert queue.batcher.depth().samples == 0


def test_a_cancelled_job_is_dropped(queue: Queue) -> None:
    queue.put("unwanted").answer.cancel()
    queue.put("wanted")
    assert queue.take() == (["wanted"], "idle")
    assert queue.batcher.depth().nbytes == 0


def dropped() -> dict[str, float]:
    name = "lossd_dropped_requests_total"
    values = {one: REGISTRY.get_sample_value(name, {"reason": one}) for one in get_args(DropReason)}
    return {reason: value for reason, value in values.items() if value is not None}


def test_what_leaves_uncomputed_is_counted_by_why(queue: Queue) -> None:
    before = dropped()
    queue.put("late", timeout_s=1)
    queue.put("late, and its caller said so first", timeout_s=1).answer.cancel()
    queue.put("unwanted").answer.cancel()
    queue.put("wanted")
    queue.now = 1.0
    assert queue.take() == (["wanted"], "idle")
    queue.put("unwanted").answer.cancel()
    queue.put("failed")
    assert queue.batcher.fail_waiting(InternalError("gone")) == 1
    after = dropped()
    assert {reason: after[reason] - before[reason] for reason in after} == {
        "deadline": 2,
        "cancelled": 2,
        "abandoned": 0,
    }


def test_a_batch_says_what_it_left_behind_and_how_long_it_waited(queue: Queue) -> None:
    for number in range(3):
        queue.put("a", samples=3, nbytes=10, group="a")
        queue.now = (number + 1) / 10
    queue.put("b", group="b")
    batch = queue.batcher.next_batch(wait_s=0)
    assert batch is not None
    assert (batch.samples, batch.nbytes) == (6, 20)
    assert batch.waiting_requests == 2
    assert batch.oldest_s == pytest.approx(0.3)
    rest = [queue.batcher.next_batch(wait_s=0), queue.batcher.next_batch(wait_s=0)]
    assert [one.waiting_requests for one in rest if one] == [1, 0]


def test_a_ticket_keeps_where_it_came_from(queue: Queue) -> None:
    origin = Origin("mine")
    ticket = queue.batcher.submit("job", group="a", samples=1, nbytes=1, timeout_s=1, origin=origin)
    assert ticket.origin is origin


def test_a_taken_job_cannot_be_cancelled_any_more(queue: Queue) -> None:
    ticket = queue.put("one")
    queue.take()
    assert not ticket.answer.cancel()


def test_closing_hands_out_what_was_accepted_and_takes_no_more(queue: Queue) -> None:
    queue.put("accepted")
    queue.batcher.close()
    with pytest.raises(DrainingError) as refused:
        queue.put("late")
    assert refused.value.retry_after_s
    before = queue.batcher.drained
    assert queue.take() == (["accepted"], "drain")
    assert (before, queue.batcher.drained) == (False, True)
    assert queue.batcher.next_batch(wait_s=60) is None


def test_failing_answers_everything_that_waits(queue: Queue) -> None:
    tickets = [queue.put("a", group="a"), queue.put("b", group="b")]
    cancelled = queue.put("c")
    cancelled.answer.cancel()
    queue.batcher.fail_waiting(InternalError("gone"))
    assert all(isinstance(t.answer.exception(timeout=0), InternalError) for t in tickets)
    assert queue.batcher.depth() == type(queue.batcher.depth())(0, 0, 0, 0.0)


def test_the_depth_counts_what_waits(queue: Queue) -> None:
    queue.put("a", samples=2, nbytes=30)
    queue.now = 0.25
    queue.put("b", group="b", samples=3, nbytes=20)
    depth = queue.batcher.depth()
    assert (depth.requests, depth.samples, depth.nbytes, depth.oldest_s) == (2, 5, 50, 0.25)


def test_a_waiting_engine_is_woken_by_a_job() -> None:
    import threading  # noqa: PLC0415 - only here

    batcher: Batcher[str, str] = Batcher(LIMITS)
    found: list[Any] = []
    taker = threading.Thread(target=lambda: found.append(batcher.next_batch(wait_s=30)))
    taker.start()
    batcher.submit("job", group="a", samples=1, nbytes=1, timeout_s=30)
    taker.join(5)
    assert [ticket.job for ticket in found[0].tickets] == ["job"]


class QueueMachine(RuleBasedStateMachine):
    """Whatever happens, every job leaves exactly once and within the limits."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue()
        self.waiting: list[Ticket[str, str]] = []

    @rule(
        group=st.sampled_from("abc"),
        samples=st.integers(1, 12),
        nbytes=st.integers(1, 150),
        timeout_s=st.sampled_from([0.3, 60.0]),
    )
    def submit(self, group: str, samples: int, nbytes: int, timeout_s: float) -> None:
        held = sum(t.samples for t in self.waiting), sum(t.nbytes for t in self.waiting)
        fits = held[0] + samples <= LIMITS.queue_samples and held[1] + nbytes <= LIMITS.queue_bytes
        try:
            ticket = self.queue.put(
                "job", group=group, samples=samples, nbytes=nbytes, timeout_s=timeout_s
            )
        except QueueFullError:
            assert not fits
            assert self.waiting
        else:
            assert fits or not self.waiting
            self.waiting.append(ticket)

    @rule(seconds=st.sampled_from([0.1, 0.4]))
    def wait(self, seconds: float) -> None:
        self.queue.now += seconds

    @rule(pick=st.randoms())
    def cancel(self, pick: Any) -> None:
        if self.waiting:
            pick.choice(self.waiting).answer.cancel()

    @rule()
    def take(self) -> None:
        batch = self.queue.batcher.next_batch(wait_s=0)
        alive = [
            t for t in self.waiting if not t.answer.cancelled() and t.deadline_s > self.queue.now
        ]
        if batch is None:
            assert not alive
            taken: list[Any] = []
        else:
            taken = list(batch.tickets)
            assert len({t.group for t in taken}) == 1
            queue = [t for t in alive if t.group == taken[0].group]
            assert taken == queue[: len(taken)]  # in order, none left out
            if len(taken) > 1:
                assert batch.samples <= LIMITS.batch_samples
                assert sum(t.nbytes for t in taken) <= LIMITS.batch_bytes
            oldest = min(alive, key=lambda t: t.accepted_s)
            if self.queue.now - oldest.accepted_s >= LIMITS.max_delay_s:
                assert taken[0].accepted_s == oldest.accepted_s
        self.waiting = [t for t in alive if t not in taken]

    @invariant()
    def counts_agree(self) -> None:
        depth = self.queue.batcher.depth()
        assert depth.samples == sum(t.samples for t in self.waiting)
        assert depth.nbytes == sum(t.nbytes for t in self.waiting)


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestQueueMachine = QueueMachine.TestCase
