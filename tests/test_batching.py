"""The queue, with a clock of the test's own."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client import REGISTRY

from lossd.batching import ACTIVE_S, Batcher, Limits
from lossd.busyness import Busyness
from lossd.callers import ANONYMOUS, Allowance, Caller
from lossd.prediction import BATCH_S
from lossd.tracing import Origin
from lossd.waiting import DropReason, Ticket
from lossd_client.errors import (
    DeadlineExceededError,
    DrainingError,
    InternalError,
    QueueFullError,
)

LIMITS = Limits(
    batch_samples=8,
    batch_bytes=100,
    queue_samples=20,
    queue_bytes=300,
    max_delay_s=0.5,
    fair_batch_s=0.02,
    gather_s=0.0,
    newcomer_weight=0.0,
)


@dataclass
class Queue:
    """A batcher whose time stands still until told otherwise."""

    now: float = 0.0
    batcher: Batcher[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(LIMITS, clock=lambda: self.now)

    def put(
        self,
        job: str,
        *,
        group: str = "a",
        samples: int = 1,
        nbytes: int = 1,
        timeout_s: float = 60,
    ) -> Ticket[str, str]:
        return self.batcher.submit(
            job, group=group, samples=samples, nbytes=nbytes, timeout_s=timeout_s
        )

    def take(self) -> tuple[list[str], str]:
        batch = self.batcher.next_batch(wait_s=0)
        return ([], "") if batch is None else ([t.job for t in batch.tickets], batch.reason)


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


# -- company --------------------------------------------------------------------------------------


class Busy(Busyness):
    """A process that always works."""

    def is_high(self) -> bool:
        return True


class Gathering:
    """A batcher with an engine in a thread that asks it for one batch, after two of three jobs."""

    def __init__(self, gather_s: float) -> None:
        limits = replace(LIMITS, gather_s=gather_s)
        self.batcher: Batcher[str, str] = Batcher(limits, busyness=Busy())
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


class Idle(Busyness):
    """A process that never works."""

    def is_high(self) -> bool:
        return False


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
    queue: Queue, before: Sequence[str], later_s: float, timeout_s: float, busyness: Busyness
) -> None:
    limits = replace(LIMITS, gather_s=1.0)
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


# -- several keys ---------------------------------------------------------------------------------

FAIR = Limits(
    batch_samples=256,
    batch_bytes=1 << 30,
    queue_samples=1000,
    queue_bytes=1 << 30,
    max_delay_s=0.5,
    fair_batch_s=0.02,
    gather_s=0.0,
    newcomer_weight=1.0,
)


def caller(name: str, weight: float = 1.0) -> Caller:
    return Caller(name=name, allowance=Allowance(weight=weight))


@dataclass
class Shared:
    """A queue of several keys and an engine that takes known times for their jobs."""

    limits: Limits = FAIR
    now: float = 0.0
    batcher: Batcher[float, str] = field(init=False)
    served_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.limits, clock=lambda: self.now)

    def put(
        self,
        who: Caller,
        cost_s: float = 0.005,
        *,
        times: int = 1,
        group: str = "a",
        samples: int = 1,
        nbytes: int = 1000,
        workload: str = "",
    ) -> list[Ticket[float, str]]:
        return [
            self.batcher.submit(
                cost_s,
                group=group,
                workload=workload or str(cost_s),
                samples=samples,
                nbytes=nbytes,
                timeout_s=1e6,
                caller=who,
            )
            for _ in range(times)
        ]

    def take(self) -> list[Ticket[float, str]]:
        batch = self.batcher.next_batch(wait_s=0)
        return [] if batch is None else list(batch.tickets)

    def compute(self, tickets: list[Ticket[float, str]]) -> float:
        seconds = BATCH_S + sum(ticket.job for ticket in tickets)
        self.now += seconds
        self.batcher.complete(tickets, seconds)
        for ticket in tickets:
            part_s = seconds * ticket.job / sum(one.job for one in tickets)
            self.served_s[ticket.caller.name] = self.served_s.get(ticket.caller.name, 0.0) + part_s
            ticket.answer.set_result("done")
        if not self.batcher.depth().requests:
            assert self.batcher.next_batch(wait_s=0) is None  # the engine asks at once
        return seconds

    def run(self) -> list[str]:
        """Computes the next batch; the keys of its tickets."""
        tickets = self.take()
        if tickets:
            self.compute(tickets)
        return [ticket.caller.name for ticket in tickets]

    def train(self, *costs_s: float) -> None:
        """Lets the queue find out what jobs cost, and forgets who asked."""
        for cost_s in costs_s * 3:
            self.put(caller("trainer"), cost_s)
            self.run()
        self.now += ACTIVE_S + 1
        self.served_s.clear()


A, B, C = caller("a"), caller("b"), caller("c")


@pytest.fixture
def shared() -> Shared:
    return Shared()


def test_a_flood_holds_nobody_up_for_more_than_a_batch(shared: Shared) -> None:
    shared.train(0.005)
    shared.put(A, times=100)
    for _ in range(10):
        shared.run()
        shared.put(B)
        assert shared.run()[0] == "b"


def test_who_came_back_from_idling_has_no_more_turns_than_others(shared: Shared) -> None:
    shared.train(0.005)
    shared.put(B)
    shared.run()
    shared.put(A, times=200)
    for _ in range(20):
        shared.run()  # b idles meanwhile
    before = dict(shared.served_s)
    shared.put(B, times=200)
    for _ in range(20):
        shared.run()
    had = {name: shared.served_s[name] - before[name] for name in "ab"}
    assert had["b"] == pytest.approx(had["a"], abs=0.03)


def test_what_was_had_while_nobody_else_was_there_is_not_owed(shared: Shared) -> None:
    shared.train(0.005)
    shared.put(A, times=200)
    while shared.run():
        pass
    shared.put(A, times=100)
    shared.put(B, times=100)
    before = dict(shared.served_s)
    for _ in range(10):
        shared.run()
    assert shared.served_s["a"] - before["a"] == pytest.approx(shared.served_s["b"], abs=0.03)


def test_the_sender_of_a_dear_loss_pays_for_it(shared: Shared) -> None:
    shared.put(A, 0.5, times=100)
    shared.put(B, 0.005, times=300)
    while shared.served_s.get("b", 0.0) < 1.5:
        shared.run()
    assert shared.served_s["a"] == pytest.approx(1.5, abs=0.6)


def test_a_batch_beside_other_keys_is_short(shared: Shared) -> None:
    shared.train(0.005)
    shared.put(A, times=100)
    assert len(shared.take()) == 100  # nobody else is there
    shared.put(B)
    assert len(shared.take()) == 1
    shared.put(A, times=100)
    batch = shared.batcher.next_batch(wait_s=0)
    assert batch is not None
    assert (len(batch.tickets), batch.reason) == (3, "fair")  # 2 ms and 3 times 5 ms


def test_a_batch_is_long_again_when_the_others_have_gone(shared: Shared) -> None:
    shared.train(0.005)
    shared.put(B)
    shared.run()
    shared.now += ACTIVE_S + 1
    shared.put(A, times=100)
    batch = shared.batcher.next_batch(wait_s=0)
    assert batch is not None
    assert (len(batch.tickets), batch.reason) == (100, "idle")


def test_a_single_job_may_take_longer_than_a_batch_should(shared: Shared) -> None:
    shared.train(0.5)
    shared.put(A, 0.5, times=2)
    shared.put(B, 0.5)
    assert [len(shared.take()), len(shared.take()), len(shared.take())] == [1, 1, 1]


def test_company_adds_at_most_half_of_what_the_first_key_waits_for(shared: Shared) -> None:
    shared.train(0.001)
    shared.put(A, 0.001, times=100)
    shared.put(B, 0.001)
    shared.batcher.charge(shared.put(A, 0.001), 1.0)
    keys = shared.run()
    assert keys == ["b", "a"]  # 2 ms and 1 ms, and half of that


def test_only_what_costs_the_same_is_shared_between_keys(shared: Shared) -> None:
    shared.train(0.001, 0.0011)
    shared.put(A, 0.001)
    shared.put(B, 0.0011)
    shared.put(C, 0.001)
    assert [shared.run(), shared.run()] == [["a", "c"], ["b"]]


def test_small_requests_of_many_keys_share_batches(shared: Shared) -> None:
    shared.train(0.0001)
    for number in range(40):
        shared.put(caller(f"k{number}"), 0.0001)
    batches = 0
    while shared.run():
        batches += 1
    assert batches <= 6


def test_company_does_not_overtake_keys_of_other_groups(shared: Shared) -> None:
    shared.train(0.001)
    a, c, b = (shared.put(key, 0.001, group=group) for key, group in ((A, "x"), (C, "y"), (B, "x")))
    shared.batcher.charge(b, 0.1)
    shared.batcher.charge(c, 0.05)
    assert a
    assert [shared.run(), shared.run(), shared.run()] == [["a"], ["c"], ["b"]]


@settings(max_examples=50)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 3.0, 10.0]), min_size=2, max_size=4),
    costs_s=st.lists(st.sampled_from([0.001, 0.005, 0.05, 0.3]), min_size=4, max_size=4),
    groups=st.lists(st.sampled_from("xy"), min_size=4, max_size=4),
)
def test_keys_that_always_want_more_are_served_by_weight(
    weights: list[float], costs_s: list[float], groups: list[str]
) -> None:
    shared = Shared(replace(FAIR, queue_samples=1_000_000))
    callers = [caller(f"k{number}", weight) for number, weight in enumerate(weights)]
    had = {one.name: 0.0 for one in callers}
    largest = 0.0
    missing = {one.name: 40 for one in callers}
    for _ in range(60):
        for one, cost_s, group in zip(callers, costs_s, groups, strict=False):
            shared.put(one, cost_s, group=group, times=missing[one.name])
        tickets = shared.take()
        missing = {one.name: sum(t.caller is one for t in tickets) for one in callers}
        assert tickets
        before = dict(shared.served_s)
        shared.compute(tickets)
        for one in callers:
            turn = (shared.served_s.get(one.name, 0.0) - before.get(one.name, 0.0)) / (
                one.allowance.weight
            )
            had[one.name] += turn
            largest = max(largest, turn)
    # The bound of start-time fair queueing: what two keys may get in a turn of theirs.
    assert max(had.values()) - min(had.values()) <= 2 * largest + 1e-9


# -- overtaking -----------------------------------------------------------------------------------


def overtaking(shared: Shared, tickets: list[Ticket[float, str]], spent_s: float) -> list[str]:
    batch = shared.batcher.overtaking(tickets, spent_s)
    return [] if batch is None else [ticket.caller.name for ticket in batch.tickets]


def test_a_key_that_is_behind_overtakes_what_is_computed(shared: Shared) -> None:
    shared.train(0.5, 0.005)
    shared.put(A, 0.5, times=3)
    running = shared.take()
    shared.put(B)
    assert overtaking(shared, running, 0.01) == ["b"]
    assert overtaking(shared, running, 0.02) == []


def test_what_is_longer_than_what_is_left_does_not_overtake(shared: Shared) -> None:
    shared.train(0.5, 0.1)
    shared.put(A, 0.5)
    running = shared.take()
    shared.put(B, 0.1)
    assert overtaking(shared, running, 0.45) == []
    assert overtaking(shared, running, 0.55) == []  # it should be at its end
    assert overtaking(shared, running, 1.0) == ["b"]  # it is nowhere near


def test_what_nobody_has_seen_yet_overtakes_only_long_batches(shared: Shared) -> None:
    shared.train(0.5, 0.021)
    shared.put(A, 0.021)
    running = shared.take()
    shared.put(B, 0.001)
    assert overtaking(shared, running, 0.002) == []
    shared.compute(running)
    shared.run()
    shared.put(A, 0.5)
    running = shared.take()
    shared.put(B, 0.002)
    assert overtaking(shared, running, 0.01) == ["b"]


def test_nobody_overtakes_themselves(shared: Shared) -> None:
    shared.train(0.5, 0.005)
    shared.put(B)
    shared.run()
    shared.put(A, 0.5)
    running = shared.take()
    shared.put(A)
    assert overtaking(shared, running, 0.01) == []


def test_a_key_that_had_more_waits_for_its_turn(shared: Shared) -> None:
    shared.train(0.5, 0.005)
    shared.put(A, 0.5)
    running = shared.take()
    shared.batcher.charge(shared.put(B), 0.1)
    assert overtaking(shared, running, 0.01) == []
    assert overtaking(shared, running, 0.11) == ["b"]


def test_what_overtakes_is_counted_as_computed(shared: Shared) -> None:
    shared.train(0.5, 0.005)
    shared.put(A, 0.5)
    running = shared.take()
    (small,) = shared.put(B)
    assert overtaking(shared, running, 0.01) == ["b"]
    assert not small.answer.cancel()
    assert shared.batcher.depth().requests == 0


# -- room and waits -------------------------------------------------------------------------------


def test_a_flood_leaves_room_for_who_comes_next(shared: Shared) -> None:
    with pytest.raises(QueueFullError, match="500 samples and 500000 bytes of this key wait"):
        shared.put(A, times=1000)
    assert shared.batcher.depth().samples == 500
    with pytest.raises(QueueFullError):
        shared.put(B, times=1000)
    assert shared.batcher.depth().samples == 500 + 333
    with pytest.raises(QueueFullError, match="may"):
        shared.put(C, times=1000)
    assert shared.batcher.depth().samples == 1000  # at a fourth it would not fit in any more
    shared.put(caller("d"))


def test_room_is_shared_by_weight(shared: Shared) -> None:
    shared.put(B)
    with pytest.raises(QueueFullError):
        shared.put(caller("heavy", 8.0), times=1000)
    assert shared.batcher.depth().samples == 1 + 800


def test_without_keys_the_whole_queue_is_for_everybody() -> None:
    shared = Shared(replace(FAIR, newcomer_weight=0.0))
    shared.put(ANONYMOUS, times=1000)
    with pytest.raises(QueueFullError):
        shared.put(ANONYMOUS)


def test_a_request_larger_than_a_share_is_taken_when_nothing_of_its_key_waits(
    shared: Shared,
) -> None:
    shared.put(A, samples=300)
    shared.put(B, samples=5000)
    with pytest.raises(QueueFullError):
        shared.put(B)
    with pytest.raises(QueueFullError, match="in all"):
        shared.put(C)  # until the large one has left there is no room at all


def test_room_grows_again_when_a_key_has_gone(shared: Shared) -> None:
    shared.put(B)
    shared.run()
    with pytest.raises(QueueFullError):
        shared.put(A, samples=1, times=334)
    shared.now += ACTIVE_S + 1
    shared.put(A, times=100)


@pytest.mark.parametrize("nbytes", [1000, 1 << 29])
def test_room_is_looked_at_before_a_body_is_read(shared: Shared, nbytes: int) -> None:
    shared.batcher.check_room(A, nbytes=1 << 30)
    shared.put(A, nbytes=1 << 29)
    with pytest.raises(QueueFullError) as early:
        shared.batcher.check_room(A, nbytes=nbytes)
    with pytest.raises(QueueFullError) as late:
        shared.put(A, nbytes=nbytes)
    assert early.value.retry_after_s == late.value.retry_after_s
    shared.batcher.check_room(B, nbytes=nbytes)
    assert shared.batcher.depth().requests == 1


@pytest.mark.parametrize("others", [1, 3])
def test_the_time_to_return_is_when_there_will_be_room(shared: Shared, others: int) -> None:
    shared.train(0.005)
    every = [caller(f"k{number}") for number in range(others + 1)]
    for one in every:
        shared.put(one, times=100)
    with pytest.raises(QueueFullError) as refused:
        shared.put(every[0], samples=400)
    predicted_s = refused.value.retry_after_s or 0.0
    started_s = shared.now
    while True:
        assert shared.run()
        try:
            shared.batcher.submit(
                0.005, group="a", samples=400, nbytes=1, timeout_s=1, caller=every[0]
            )
        except QueueFullError:
            continue
        break
    taken_s = shared.now - started_s
    assert predicted_s == pytest.approx(taken_s, rel=0.35)


def wait_s(shared: Shared, key: Caller) -> float:
    """What a request is told that would need the whole queue."""
    with pytest.raises(QueueFullError) as refused:
        shared.batcher.check_room(key, nbytes=FAIR.queue_bytes)
    assert refused.value.retry_after_s is not None
    return refused.value.retry_after_s


def test_a_wait_is_the_backlog_of_the_key_at_its_share(shared: Shared) -> None:
    shared.train(0.005)
    shared.batcher.check_room(A, nbytes=FAIR.queue_bytes)  # it would be the next
    shared.put(A, times=100)
    assert wait_s(shared, A) == pytest.approx(0.5)
    shared.batcher.check_room(B, nbytes=FAIR.queue_bytes)
    shared.put(B, times=100)
    assert wait_s(shared, A) == pytest.approx(1.0)
    shared.take()
    assert wait_s(shared, A) == pytest.approx(199 * 0.005 + 0.007)  # and of the batch before it


def test_a_wait_follows_what_jobs_turn_out_to_cost(shared: Shared) -> None:
    shared.put(A, 0.5, times=200)  # priced before anything was known of them
    shared.put(B)
    for _ in range(6):
        shared.run()
    left = shared.batcher.depth().requests
    assert left
    assert wait_s(shared, A) == pytest.approx(0.5 * left, rel=0.2)


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


class SharedMachine(RuleBasedStateMachine):
    """Whatever several keys do, nothing that can be computed waits for nothing, and each job leaves
    once, in the order of its key and group."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = replace(LIMITS, newcomer_weight=1.0)
        self.shared = Shared(self.limits)
        self.waiting: list[Ticket[float, str]] = []
        self.running: list[Ticket[float, str]] = []
        self.accepted = self.taken = self.dropped = 0

    @rule(
        who=st.sampled_from([A, B, caller("heavy", 5.0)]),
        group=st.sampled_from("xy"),
        cost_s=st.sampled_from([0.001, 0.3]),
        samples=st.integers(1, 30),
    )
    def submit(self, who: Caller, group: str, cost_s: float, samples: int) -> None:
        mine = any(t.caller == who for t in self.waiting)
        held = sum(t.samples for t in self.waiting)
        alive = sum(t.samples for t in self.waiting if not t.answer.cancelled())
        try:
            self.waiting += self.shared.put(who, cost_s, group=group, samples=samples, nbytes=1)
        except QueueFullError:
            assert mine or held > self.limits.queue_samples
        else:
            self.accepted += 1
            assert alive <= self.limits.queue_samples

    @rule(pick=st.randoms())
    def cancel(self, pick: Any) -> None:
        if self.waiting:
            pick.choice(self.waiting).abandon()

    @rule()
    def take(self) -> None:
        if not self.running:
            self.running = self.check(self.shared.take())
            assert self.running or not self.waiting  # work conserving

    @rule(spent_s=st.sampled_from([0.0, 0.01, 1.0]))
    def overtake(self, spent_s: float) -> None:
        if self.running:
            batch = self.shared.batcher.overtaking(self.running, spent_s)
            if batch is not None:
                assert not {t.caller.name for t in batch.tickets} & {
                    t.caller.name for t in self.running
                }
                self.shared.compute(self.check(list(batch.tickets)))

    @rule()
    def complete(self) -> None:
        if self.running:
            self.shared.compute(self.running)
            self.running = []

    @rule(seconds=st.sampled_from([0.1, ACTIVE_S + 1]))
    def wait(self, seconds: float) -> None:
        self.shared.now += seconds

    def check(self, tickets: list[Ticket[float, str]]) -> list[Ticket[float, str]]:
        dropped = [t for t in self.waiting if t.answer.cancelled()]
        self.waiting = [t for t in self.waiting if t not in dropped]
        assert len({t.group for t in tickets}) <= 1
        for name in {t.caller.name for t in tickets}:
            own = [t for t in tickets if t.caller.name == name]
            queue = [t for t in self.waiting if t.caller.name == name and t.group == own[0].group]
            assert own == queue[: len(own)]
        if len(tickets) > 1:
            assert sum(t.samples for t in tickets) <= self.limits.batch_samples
        if len({t.caller.name for t in tickets}) > 1:
            assert len({t.workload for t in tickets}) == 1
        self.waiting = [t for t in self.waiting if t not in tickets]
        self.taken, self.dropped = self.taken + len(tickets), self.dropped + len(dropped)
        return tickets

    def teardown(self) -> None:
        self.complete()
        while self.waiting:
            self.take()
            self.complete()
        assert self.taken + self.dropped == self.accepted
        assert self.shared.batcher.depth().requests == 0


SharedMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestSharedMachine = SharedMachine.TestCase
