"""What waits for the engine: a ticket for every accepted job, a queue for every key."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar, get_args

from lossd import metrics
from lossd.callers import Caller
from lossd.tracing import NO_ORIGIN, Origin
from lossd_client.errors import DeadlineExceededError

J = TypeVar("J")
A = TypeVar("A")

# How much the newest batch counts in the pace of a key.
_PACE_GAIN: Final = 0.3

DropReason = Literal["deadline", "cancelled", "abandoned"]
"""Why a ticket was given up: while it waited its time was up, or nobody waited for it any more; or
one of both while it was computed."""

DROPPED = {reason: metrics.DROPPED_REQUESTS.labels(reason) for reason in get_args(DropReason)}
"""The counter of each."""


@dataclass(eq=False)
class Ticket(Generic[J, A]):
    """A job that was accepted and waits for its answer."""

    job: J
    caller: Caller
    group: Hashable
    workload: Hashable
    samples: int
    nbytes: int
    predicted_s: float
    """What it will take, as predicted when it came."""
    deadline_s: float
    """On the clock of the batcher."""
    accepted_s: float
    origin: Origin = NO_ORIGIN
    answer: Future[A] = field(default_factory=Future)
    _abandoned: bool = False

    def abandon(self) -> None:
        """Says that nobody waits for the answer any more."""
        self._abandoned = True
        self.answer.cancel()

    def is_wanted(self, now_s: float) -> bool:
        """Whether somebody still waits for the answer."""
        return now_s < self.deadline_s and not self._abandoned

    def drop(self, reason: DropReason) -> None:
        """Counts a ticket that leaves the queue uncomputed, and answers whoever waits for it."""
        DROPPED[reason].inc()
        if self.answer.set_running_or_notify_cancel():
            msg = "the deadline passed while the request waited"
            self.answer.set_exception(DeadlineExceededError(msg))


@dataclass
class Load:
    """How much waits, of one key or of all."""

    requests: int = 0
    samples: int = 0
    nbytes: int = 0
    predicted_s: float = 0.0

    def add(self, ticket: Ticket[J, A]) -> None:
        """One ticket more."""
        self.requests += 1
        self.samples += ticket.samples
        self.nbytes += ticket.nbytes
        self.predicted_s += ticket.predicted_s

    def remove(self, ticket: Ticket[J, A]) -> None:
        """One ticket less."""
        self.requests -= 1
        self.samples -= ticket.samples
        self.nbytes -= ticket.nbytes
        # Nothing waits for no time at all, whatever was lost in rounding.
        self.predicted_s = self.predicted_s - ticket.predicted_s if self.requests else 0.0


class KeyQueue(Generic[J, A]):
    """What waits of one key, and what the key has had of the engine."""

    def __init__(self, caller: Caller, virtual_s: float) -> None:
        self.caller = caller
        self.virtual_s = virtual_s
        """Seconds of the engine by the weight of the key; the least goes first."""
        self.seen_s = 0.0
        """When a job of it came or was computed last."""
        self.load = Load()
        self.groups: dict[Hashable, deque[Ticket[J, A]]] = {}
        """Its tickets in the order they came; a group without tickets is not there."""
        self._pace = 1.0

    @property
    def weight(self) -> float:
        """Its share of the engine, relative to that of others."""
        return self.caller.allowance.weight

    @property
    def backlog_s(self) -> float:
        """Seconds of the engine that all of it will take."""
        return self.load.predicted_s * self._pace

    def tickets(self) -> Iterator[Ticket[J, A]]:
        """All of them."""
        for queue in self.groups.values():
            yield from queue

    def put(self, ticket: Ticket[J, A]) -> None:
        """Adds a ticket."""
        self.groups.setdefault(ticket.group, deque()).append(ticket)
        self.load.add(ticket)

    def take(self, group: Hashable) -> Ticket[J, A]:
        """The oldest ticket of a group, which leaves."""
        queue = self.groups[group]
        ticket = queue.popleft()
        self.load.remove(ticket)
        if not queue:
            del self.groups[group]
        return ticket

    def oldest_group(self) -> tuple[Hashable, float]:
        """The group of the oldest ticket, and when that came."""
        group = min(self.groups, key=lambda one: self.groups[one][0].accepted_s)
        return group, self.groups[group][0].accepted_s

    def largest_group(self) -> Hashable:
        """The group with the most samples."""
        return max(self.groups, key=lambda one: sum(t.samples for t in self.groups[one]))

    def drop_dead(self, now_s: float) -> Iterator[Ticket[J, A]]:
        """Tickets that nobody waits for or whose deadline has passed, which leave."""
        for group in list(self.groups):
            queue = self.groups.pop(group)
            kept: deque[Ticket[J, A]] = deque()
            for ticket in queue:
                # The caller of a late one may have given up first, for the same reason.
                late = ticket.deadline_s <= now_s
                if late or ticket.answer.cancelled():
                    self.load.remove(ticket)
                    ticket.drop("deadline" if late else "cancelled")
                    yield ticket
                else:
                    kept.append(ticket)
            if kept:
                self.groups[group] = kept

    def clear(self) -> list[Ticket[J, A]]:
        """All tickets, which leave."""
        tickets = list(self.tickets())
        self.groups.clear()
        self.load = Load()
        return tickets

    def learn(self, predicted_s: float, seconds: float) -> None:
        """Takes in what tickets took for which something else was predicted when they came."""
        self._pace += _PACE_GAIN * (seconds / predicted_s - self._pace)
