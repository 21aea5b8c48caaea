"""The queue of several keys: turns, overtaking, room, with a clock of the test's own."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from lossd.batching import ACTIVE_S
from lossd.callers import ANONYMOUS, Caller
from lossd.waiting import Ticket
from lossd_client.errors import (
    QueueFullError,
)
from queues import FAIR, LIMITS, Shared, caller

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


def test_a_batch_beside_a_key_that_waits_for_little_is_shortest(shared: Shared) -> None:
    shared.train(0.002)
    shared.put(A, 0.002, times=100)
    assert len(shared.take()) == 100  # nobody else is there
    shared.put(B, 0.002)
    assert len(shared.take()) == 1
    shared.put(A, 0.002, times=100)
    batch = shared.batcher.next_batch(wait_s=0)
    assert batch is not None
    # Half of 20 ms: 2 ms and 4 times 2 ms.
    assert (len(batch.tickets), batch.reason) == (4, "fair")


@pytest.mark.parametrize(("waiting", "longest"), [(3, 4), (7, 5), (100, 9)])
def test_a_batch_is_as_long_as_what_waits_of_every_key(
    shared: Shared, waiting: int, longest: int
) -> None:
    shared.train(0.0019)
    shared.put(A, 0.0019, times=100)
    shared.put(B, 0.0019, times=waiting, group="b")
    batch = shared.batcher.next_batch(wait_s=0)
    assert batch is not None
    # 2 ms, and as many times 1.9 ms as fit into 10 ms, into what waits, or into 20 ms.
    assert (len(batch.tickets), batch.reason) == (longest, "fair")


def test_who_asks_now_and_then_makes_no_batch_shorter(shared: Shared) -> None:
    shared.train(0.0019)
    shared.put(B, 0.0019)
    shared.run()
    shared.put(A, 0.0019, times=100)
    assert len(shared.take()) == 4  # b may ask again at once
    shared.now += 0.2
    assert len(shared.take()) == 9


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
