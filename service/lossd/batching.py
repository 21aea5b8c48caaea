"""Which accepted jobs run together next. No HTTP, no torch, no thread of its own.

Jobs of equal group can be computed together, whatever their image sizes. The engine asks for a
batch whenever it is free and gets one at once if anything waits: a delay would only add to the
latency of an idle machine, and under load company gathers by itself while the engine is busy.
A busy machine is the exception: those whose answers left together are likely to ask again
together, and a batch of small jobs costs more than any of them. So while the process keeps half a
processor busy, what comes within `gather_s` of the end of a batch waits so long at most for as many
to be there as each of the last two batches had, unless the deadline of one of them is near or
several keys are active: nobody has to wait for another's company.
Of several groups the one with the most waiting samples goes first, unless the oldest job of all
has waited longer than `max_delay_s`: then its group goes. Within a group jobs leave in the order
they came.

So it is among the jobs of one key. Between keys the queue is fair (start-time fair queueing;
Goyal, Vin and Cheng 1996): every key has a virtual time, which its jobs advance by the seconds they
took, divided by the key's weight, and the key that is furthest behind goes first. Who comes back
from idling starts at the virtual time of those who are served, so that idling earns nothing and
costs nothing. While several keys are active, a batch ends before it is predicted to take longer
than `fair_batch_s`, or half of that beside a key that asks one thing after the other, which waits
for a batch again and again. Jobs of other keys add at most half of what those of its first key take
and are of the same workload, so that the time can be divided, and a key that is behind may overtake
a batch that is being computed.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, Literal, NamedTuple

from lossd.busyness import Busyness
from lossd.callers import ANONYMOUS, Caller
from lossd.prediction import BATCH_S, Predictor
from lossd.tracing import NO_ORIGIN, Origin
from lossd.waiting import DROPPED, A, J, KeyQueue, Load, Ticket
from lossd_client.errors import DrainingError, QueueFullError

ACTIVE_S: Final = 5.0
"""How long a key counts as active after a job of it came or was computed."""

_DRAINING_RETRY_AFTER_S = 1.0
# How many times longer than the jobs of its first key a batch may take: the others share its cost,
# the first one has to wait for them.
_COMPANY = 1.5
# The part of the longest batch that one may take beside a key that asks one thing after the other,
# and how soon such a key asks again.
_SHORT = 0.5
_SOON_S = 0.1
# A deadline is near if it is so many times as far as company is waited for.
_HURRY = 4.0

Reason = Literal["idle", "full", "delay", "largest", "fair", "drain"]
"""Why a batch left: nothing else waited, a limit was reached, its oldest job had waited long
enough, it was the largest group, it was the turn of one of several keys or was kept short for
others, or the service is shutting down."""

Wake = Literal["now", "later"]
"""When a job that was accepted is shown to an engine that waits: at once, or by `Batcher.wake`."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one batch and of the queue; the only place where they are."""

    batch_samples: int
    batch_bytes: int
    queue_samples: int
    queue_bytes: int
    max_delay_s: float
    fair_batch_s: float
    """Longest batch by prediction while several keys are active, half of it beside one that asks
    one thing after the other; a single job may take longer."""
    gather_s: float
    """Longest that a job waits for as many as the last batches had, on a busy machine."""
    newcomer_weight: float
    """The part of the queue that active keys leave to the next one that comes, as a weight."""


@dataclass(frozen=True)
class Batch(Generic[J, A]):
    """Tickets that run together, and why now."""

    tickets: tuple[Ticket[J, A], ...]
    reason: Reason
    waiting_requests: int
    """What it left behind in the queue."""
    oldest_s: float
    """How long its oldest ticket had waited."""

    @property
    def samples(self) -> int:
        """Samples of all tickets."""
        return sum(ticket.samples for ticket in self.tickets)

    @property
    def nbytes(self) -> int:
        """Bytes of all tickets."""
        return sum(ticket.nbytes for ticket in self.tickets)


@dataclass(frozen=True)
class Depth:
    """What waits."""

    requests: int
    samples: int
    nbytes: int
    oldest_s: float


class Batcher(Generic[J, A]):
    """The queue between the request threads and the engine."""

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        busyness: Busyness | None = None,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._busyness = Busyness() if busyness is None else busyness
        self._changed = threading.Condition()
        self._keys: dict[str, KeyQueue[J, A]] = {}
        """Those that wait, were active lately or have had more than others."""
        self._load = Load()
        self._virtual_s = 0.0
        """Virtual time of the key that was served last."""
        self._predictor = Predictor()
        self._busy_until_s = -math.inf
        """When the batch that is computed will be done, by prediction."""
        self._ended_s = -math.inf
        """When the last batch was done."""
        self._last_requests = (1, 1)
        """How many the last two batches had."""
        self._awaited_requests = 1
        """How many have to wait before an engine that waits is woken."""
        self._closed = False

    def submit(
        self,
        job: J,
        *,
        group: Hashable,
        samples: int,
        nbytes: int,
        timeout_s: float,
        workload: Hashable = None,
        caller: Caller = ANONYMOUS,
        origin: Origin = NO_ORIGIN,
        wake: Wake = "now",
    ) -> Ticket[J, A]:
        """Accepts a job; its ticket's `answer` is resolved exactly once.

        Args:
            job: what is to be computed.
            group: jobs of equal group can be computed together.
            samples: that it has.
            nbytes: that it holds.
            timeout_s: until its deadline.
            workload: jobs of equal workload take about as long for a byte.
            caller: whose it is.
            origin: what log lines and traces of its batch say of it.
            wake: "later" if `wake` will be called in a moment, behind others that come now.

        Raises:
            QueueFullError: the queue holds as much as it may, all in all or of this caller.
            DrainingError: the batcher is closed.
        """
        with self._changed:
            if self._closed:
                raise DrainingError(retry_after_s=_DRAINING_RETRY_AFTER_S)
            now = self._clock()
            self._forget_idle(now)
            self._admit(caller, samples, nbytes)
            key = self._key(caller)
            if not key.load.requests:
                key.virtual_s = max(key.virtual_s, self._virtual_s)
            key.seen_s = now
            ticket: Ticket[J, A] = Ticket(
                job=job,
                caller=caller,
                group=group,
                workload=workload,
                samples=samples,
                nbytes=nbytes,
                predicted_s=self._predictor.seconds(workload, nbytes),
                deadline_s=now + timeout_s,
                accepted_s=now,
                origin=origin,
            )
            key.put(ticket)
            self._load.add(ticket)
            if wake == "now":
                self._notify()
            return ticket

    def wake(self) -> None:
        """Shows an engine that waits what came."""
        with self._changed:
            self._notify()

    def _notify(self) -> None:
        if self._load.requests >= self._awaited_requests:
            self._changed.notify()

    def check_room(self, caller: Caller, *, nbytes: int) -> None:
        """Refuses early what `submit` would refuse; of what is not read yet only bytes are known.

        Raises:
            QueueFullError: there is no room for a request of that many bytes.
        """
        with self._changed:
            self._admit(caller, 1, nbytes)

    def next_batch(self, *, wait_s: float) -> Batch[J, A] | None:
        """The next batch, as soon as there is one; None after `wait_s` or when closed and empty."""
        until = self._clock() + wait_s
        with self._changed:
            self._busy_until_s = -math.inf
            while True:
                self._drop_dead()
                now = self._clock()
                self._forget_idle(now)
                if self._load.requests:
                    left_s = self._gathering_s(now)
                    if left_s <= 0:
                        batch = self._take(self._waiting())
                        self._last_requests = self._last_requests[1], len(batch.tickets)
                        return batch
                    self._awaited_requests = min(self._last_requests)
                else:
                    self._settle_debts()
                    left_s = until - now
                    if self._closed or left_s <= 0:
                        return None
                    self._awaited_requests = 1
                self._changed.wait(left_s)

    def _gathering_s(self, now: float) -> float:
        """How much longer what waits is to wait for company."""
        if self._closed or self._load.requests >= min(self._last_requests):
            return 0.0
        if len(self._keys) > 1 or not self._busyness.is_high():
            return 0.0  # nobody waits for the company of others
        gather_s, waiting = self._limits.gather_s, self._waiting()
        oldest_s = min(key.oldest_group()[1] for key in waiting)
        deadline_s = min(ticket.deadline_s for key in waiting for ticket in key.tickets())
        if oldest_s - self._ended_s > gather_s or deadline_s - now < _HURRY * gather_s:
            return 0.0
        return oldest_s + gather_s - now

    def _settle_debts(self) -> None:
        """Nobody waits for anybody: who had more than others owes nothing."""
        self._virtual_s = max([self._virtual_s, *(key.virtual_s for key in self._keys.values())])

    def overtaking(self, tickets: Sequence[Ticket[J, A]], spent_s: float) -> Batch[J, A] | None:
        """A batch of a key that is behind those of which tickets have been computed for so long.

        Only if it is shorter than what is left of theirs; what takes longer than predicted is taken
        to be as far from its end as from when that should have been.
        """
        with self._changed:
            if len(self._keys) == 1:
                return None
            shares = self._shares(tickets, spent_s)
            ahead_s = min(self._advanced_s(name, part_s) for name, part_s in shares.items())
            behind = [
                key
                for name, key in self._keys.items()
                if key.load.requests and name not in shares and key.virtual_s < ahead_s
            ]
            if not behind:
                return None
            self._drop_dead()
            behind = [key for key in behind if key.load.requests]
            left_s = abs(self._predicted_s(tickets) - spent_s)
            if not behind or self._first_s(behind) > left_s:
                return None
            return replace(self._take(behind), reason="fair")

    def charge(self, tickets: Sequence[Ticket[J, A]], seconds: float) -> None:
        """Charges the keys of tickets with what was spent on them, in vain or not."""
        with self._changed:
            self._charge(tickets, seconds)

    def complete(self, tickets: Sequence[Ticket[J, A]], seconds: float) -> None:
        """Charges the keys of tickets that were computed, and learns from what it took."""
        with self._changed:
            self._ended_s = self._clock()
            for name, part_s in self._charge(tickets, seconds).items():
                own = sum(one.predicted_s for one in tickets if one.caller.name == name)
                self._keys[name].learn(own, part_s)
            self._predictor.learn([(one.workload, one.nbytes) for one in tickets], seconds)

    def close(self) -> None:
        """Accepts nothing more; what was accepted is still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail_waiting(self, error: Exception) -> int:
        """Answers everything that waits with an error, and says how many: nothing will run it."""
        with self._changed:
            waiting = [ticket for key in self._keys.values() for ticket in key.clear()]
            self._load = Load()
        failed = 0
        for ticket in waiting:
            if ticket.answer.set_running_or_notify_cancel():
                ticket.answer.set_exception(error)
                failed += 1
            else:
                DROPPED["cancelled"].inc()
        return failed

    @property
    def drained(self) -> bool:
        """Closed, and nothing waits."""
        with self._changed:
            return self._closed and not self._load.requests

    def depth(self) -> Depth:
        """What waits now."""
        with self._changed:
            oldest = [key.oldest_group()[1] for key in self._waiting()]
            return Depth(
                requests=self._load.requests,
                samples=self._load.samples,
                nbytes=self._load.nbytes,
                oldest_s=self._clock() - min(oldest) if oldest else 0.0,
            )

    # -- keys ------------------------------------------------------------------------------------

    def _key(self, caller: Caller) -> KeyQueue[J, A]:
        key = self._keys.get(caller.name)
        if key is None:
            key = self._keys[caller.name] = KeyQueue(caller, self._virtual_s)
        key.caller = caller  # its allowance may have changed
        return key

    def _waiting(self) -> list[KeyQueue[J, A]]:
        return [key for key in self._keys.values() if key.load.requests]

    def _forget_idle(self, now: float) -> None:
        for name, key in list(self._keys.items()):
            idle = not key.load.requests and now - key.seen_s >= ACTIVE_S
            if idle and key.virtual_s <= self._virtual_s:
                del self._keys[name]

    def _charge(self, tickets: Sequence[Ticket[J, A]], seconds: float) -> dict[str, float]:
        """Charges the keys; seconds of each."""
        now = self._clock()
        for ticket in tickets:
            if ticket.caller.name not in self._keys:
                self._key(ticket.caller)
        shares = self._shares(tickets, seconds)
        for name, part_s in shares.items():
            self._keys[name].virtual_s = self._advanced_s(name, part_s)
            self._keys[name].seen_s = now
        return shares

    def _shares(self, tickets: Sequence[Ticket[J, A]], seconds: float) -> dict[str, float]:
        """Seconds that tickets took together, by key, as their predictions divide them."""
        predicted: dict[str, float] = {}
        for one in tickets:
            own_s = self._predictor.seconds(one.workload, one.nbytes)
            predicted[one.caller.name] = predicted.get(one.caller.name, 0.0) + own_s
        total_s = sum(predicted.values())
        return {name: seconds * own_s / total_s for name, own_s in predicted.items()}

    def _advanced_s(self, name: str, seconds: float) -> float:
        """Virtual time of a key after so many seconds more; of one that is forgotten, endless."""
        key = self._keys.get(name)
        return math.inf if key is None else key.virtual_s + seconds / key.weight

    # -- room ------------------------------------------------------------------------------------

    def _admit(self, caller: Caller, samples: int, nbytes: int) -> None:
        """Refuses a request that there is no room for.

        A request larger than the whole queue is admitted when nothing of its key waits.
        """
        limits = self._limits
        key = self._keys.get(caller.name) or KeyQueue(caller, 0.0)
        every = _Room(limits.queue_samples, limits.queue_bytes, self._load)
        if not key.load.requests and every.missing(0, 0) == 0:
            return
        weight = caller.allowance.weight
        others = sum(one.weight for one in self._keys.values() if one is not key)
        share = weight / (weight + others + limits.newcomer_weight)
        own = _Room(limits.queue_samples * share, limits.queue_bytes * share, key.load)
        own_part, every_part = own.missing(samples, nbytes), every.missing(samples, nbytes)
        if own_part or every_part:
            msg = own.describe("of this key") if own_part else every.describe("in all")
            wait_s = self._wait_s(key, own=own_part, every=every_part)
            raise QueueFullError(msg, retry_after_s=wait_s)

    def _wait_s(self, key: KeyQueue[J, A], *, own: float, every: float) -> float:
        """Seconds until parts of what waits, of this key and of every key, will have left."""
        waiting = self._waiting()
        running_s = max(0.0, self._busy_until_s - self._clock())
        every_s = sum(one.backlog_s for one in waiting)
        weights = key.weight + sum(one.weight for one in waiting if one is not key)
        # A key has more than its share as soon as others have nothing left.
        own_s = min(own * key.backlog_s * weights / key.weight, every_s)
        return running_s + max(own_s, every * every_s)

    # -- batches ---------------------------------------------------------------------------------

    def _drop_dead(self) -> None:
        """Lets go of tickets nobody waits for, and answers those whose deadline has passed."""
        now = self._clock()
        for key in self._keys.values():
            for ticket in key.drop_dead(now):
                self._load.remove(ticket)

    def _choose(self, key: KeyQueue[J, A]) -> tuple[Hashable, Reason]:
        """The group of a key that goes first, by the rule that holds within a key."""
        oldest, accepted_s = key.oldest_group()
        if len(key.groups) == 1:
            return oldest, "drain" if self._closed else "idle"
        if self._clock() - accepted_s >= self._limits.max_delay_s:
            return oldest, "delay"
        return key.largest_group(), "largest"

    def _take(self, waiting: Sequence[KeyQueue[J, A]]) -> Batch[J, A]:
        now = self._clock()
        first = min(waiting, key=lambda one: one.virtual_s)
        group, reason = self._choose(first)
        self._virtual_s = max(self._virtual_s, first.virtual_s)
        tickets, end = self._fill(group, waiting)
        if end is not None:
            reason = end
        elif self._load.requests and len(self._keys) > 1:
            reason = "fair"
        return Batch(
            tuple(tickets),
            reason,
            waiting_requests=self._load.requests,
            oldest_s=now - min((one.accepted_s for one in tickets), default=now),
        )

    def _fill(
        self, group: Hashable, waiting: Sequence[KeyQueue[J, A]]
    ) -> tuple[list[Ticket[J, A]], Reason | None]:
        """Takes tickets of a group in fair order until one does not fit; why that one does not."""
        bounds = _Bounds(self._limits, self._longest_s())
        tickets: list[Ticket[J, A]] = []
        end: Reason | None = None
        turns = [
            (key.virtual_s, number) for number, key in enumerate(waiting) if group in key.groups
        ]
        heapq.heapify(turns)
        elsewhere_s = min(
            (key.virtual_s for key in waiting if group not in key.groups), default=math.inf
        )
        while turns and end is None:
            virtual_s, number = turns[0]
            key = waiting[number]
            ticket = key.groups[group][0]
            if not bounds.can_be_divided_with(ticket):
                heapq.heappop(turns)
                elsewhere_s = min(elsewhere_s, virtual_s)
                continue
            seconds = self._priced_s(ticket, bounds.limit_s)
            end = bounds.reached(ticket, seconds, in_turn=virtual_s <= elsewhere_s)
            if end is None:
                if self._hand_out(key, group):
                    tickets.append(ticket)
                    bounds.add(ticket, seconds)
                    virtual_s += seconds / key.weight
                heapq.heappop(turns)
                if group in key.groups:
                    heapq.heappush(turns, (virtual_s, number))
        self._busy_until_s = max(self._busy_until_s, self._clock()) + bounds.seconds
        return tickets, end

    def _longest_s(self) -> float:
        """Longest batch by prediction: as much as waits of every key that asks, within bounds.

        Where all have much waiting, what a batch costs by itself counts for more than its end. Who
        asks now and then meets a long batch once, rather than having everybody compute short ones.
        """
        if len(self._keys) == 1:
            return math.inf
        most_s, soon_s = self._limits.fair_batch_s, self._clock() - _SOON_S
        asking = (key for key in self._keys.values() if key.load.requests or key.seen_s > soon_s)
        least_s = min(key.backlog_s for key in asking)
        return min(max(least_s, _SHORT * most_s), most_s)

    def _predicted_s(self, tickets: Sequence[Ticket[J, A]]) -> float:
        """What tickets take as a batch."""
        return BATCH_S + sum(self._predictor.seconds(one.workload, one.nbytes) for one in tickets)

    def _first_s(self, waiting: Sequence[KeyQueue[J, A]]) -> float:
        """What the first ticket of the next batch takes, if it is a batch of its own."""
        key = min(waiting, key=lambda one: one.virtual_s)
        ticket = key.groups[self._choose(key)[0]][0]
        return BATCH_S + self._priced_s(ticket, self._limits.fair_batch_s)

    def _priced_s(self, ticket: Ticket[J, A], limit_s: float) -> float:
        """What a ticket will take; of what nobody has seen yet, as much as a batch may."""
        if limit_s < math.inf and not self._predictor.knows(ticket.workload):
            return limit_s
        return self._predictor.seconds(ticket.workload, ticket.nbytes)

    def _hand_out(self, key: KeyQueue[J, A], group: Hashable) -> bool:
        """Takes the oldest ticket of a group; whether somebody still waits for it."""
        ticket = key.take(group)
        self._load.remove(ticket)
        if ticket.answer.set_running_or_notify_cancel():
            return True
        DROPPED["cancelled"].inc()
        return False


@dataclass
class _Bounds:
    """How full a batch is."""

    limits: Limits
    limit_s: float
    first: Ticket[Any, Any] | None = None
    samples: int = 0
    nbytes: int = 0
    seconds: float = BATCH_S
    own_s: float = BATCH_S
    """Of the first ticket's key."""
    keys: set[str] = field(default_factory=set)
    workloads: set[Hashable] = field(default_factory=set)

    def add(self, ticket: Ticket[J, A], seconds: float) -> None:
        self.first = self.first or ticket
        self.keys.add(ticket.caller.name)
        self.workloads.add(ticket.workload)
        self.samples += ticket.samples
        self.nbytes += ticket.nbytes
        self.seconds += seconds
        if ticket.caller.name == self.first.caller.name:
            self.own_s += seconds

    def can_be_divided_with(self, ticket: Ticket[J, A]) -> bool:
        """Whether it will be known what each key's part of the batch has cost.

        It is if all are of one key or all cost the same for a byte; whoever sends what is dear must
        not let others pay for it.
        """
        return len(self.keys | {ticket.caller.name}) == 1 or self.workloads <= {ticket.workload}

    def reached(self, ticket: Ticket[J, A], seconds: float, *, in_turn: bool) -> Reason | None:
        """Why a ticket does not fit any more; the first one does.

        Args:
            ticket: that comes next in the group.
            seconds: that it is predicted to take.
            in_turn: whether no key that waits for another group is further behind.
        """
        if self.first is None:
            return None
        if (
            self.samples + ticket.samples > self.limits.batch_samples
            or self.nbytes + ticket.nbytes > self.limits.batch_bytes
        ):
            return "full"
        limit_s = self.limit_s
        if ticket.caller.name != self.first.caller.name:
            limit_s = min(limit_s, _COMPANY * self.own_s) if in_turn else 0.0
        return "fair" if self.seconds + seconds > limit_s else None


class _Room(NamedTuple):
    """How much may wait, and how much does."""

    samples: float
    nbytes: float
    load: Load

    def missing(self, samples: int, nbytes: int) -> float:
        """Part of what waits that has to leave before so much more may wait, 0 to 1."""
        return max(
            _part(self.load.samples + samples - self.samples, self.load.samples),
            _part(self.load.nbytes + nbytes - self.nbytes, self.load.nbytes),
        )

    def describe(self, whose: str) -> str:
        """How much waits, and how much may."""
        return (
            f"{self.load.samples} samples and {self.load.nbytes} bytes {whose} wait; "
            f"{self.samples:.0f} samples and {self.nbytes:.0f} bytes may"
        )


def _part(surplus: float, of: int) -> float:
    if surplus <= 0:
        return 0.0
    return min(1.0, surplus / of) if of else 1.0
