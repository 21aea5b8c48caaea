"""Which accepted jobs run together next. No HTTP, no torch, no thread of its own.

Jobs of equal group can be computed together, whatever their image sizes. The engine asks for a
batch whenever it is free and gets one at once if anything waits: a delay would only add to the
latency of an idle machine, and under load company gathers by itself while the engine is busy.
Of several groups the one with the most waiting samples goes first, unless the oldest job of all
has waited longer than `max_delay_s`: then its group goes. Within a group jobs leave in the order
they came.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar, get_args

from lossd import metrics
from lossd.tracing import NO_ORIGIN, Origin
from lossd_client.errors import DeadlineExceededError, DrainingError, QueueFullError

J = TypeVar("J")
A = TypeVar("A")

_RETRY_AFTER_S = 1.0

Reason = Literal["idle", "full", "delay", "largest", "drain"]
"""Why a batch left: nothing else waited, a limit was reached, its oldest job had waited long
enough, it was the largest group, or the service is shutting down."""

DropReason = Literal["deadline", "cancelled"]
"""Why a ticket left uncomputed: its time was up, or nobody waited for it any more."""

_DROPPED = {reason: metrics.DROPPED_REQUESTS.labels(reason) for reason in get_args(DropReason)}


@dataclass(frozen=True)
class Limits:
    """Bounds of one batch and of the queue; the only place where they are."""

    batch_samples: int
    batch_bytes: int
    queue_samples: int
    queue_bytes: int
    max_delay_s: float


@dataclass(frozen=True, eq=False)
class Ticket(Generic[J, A]):
    """A job that was accepted and waits for its answer."""

    job: J
    group: Hashable
    samples: int
    nbytes: int
    deadline_s: float
    """On the clock of the batcher."""
    accepted_s: float
    origin: Origin = NO_ORIGIN
    answer: Future[A] = field(default_factory=Future)


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

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._changed = threading.Condition()
        self._groups: dict[Hashable, deque[Ticket[J, A]]] = {}
        self._samples = 0
        self._bytes = 0
        self._closed = False

    def submit(
        self,
        job: J,
        *,
        group: Hashable,
        samples: int,
        nbytes: int,
        timeout_s: float,
        origin: Origin = NO_ORIGIN,
    ) -> Ticket[J, A]:
        """Accepts a job; its ticket's `answer` is resolved exactly once.

        Raises:
            QueueFullError: the queue holds as much as it may.
            DrainingError: the batcher is closed.
        """
        with self._changed:
            if self._closed:
                raise DrainingError(retry_after_s=_RETRY_AFTER_S)
            self._admit(samples, nbytes)
            now = self._clock()
            ticket = Ticket[J, A](job, group, samples, nbytes, now + timeout_s, now, origin)
            self._groups.setdefault(group, deque()).append(ticket)
            self._samples += samples
            self._bytes += nbytes
            self._changed.notify()
            return ticket

    def next_batch(self, *, wait_s: float) -> Batch[J, A] | None:
        """The next batch, as soon as there is one; None after `wait_s` or when closed and empty."""
        until = self._clock() + wait_s
        with self._changed:
            while True:
                self._drop_dead()
                if self._groups:
                    return self._take()
                left = until - self._clock()
                if self._closed or left <= 0:
                    return None
                self._changed.wait(left)

    def close(self) -> None:
        """Accepts nothing more; what was accepted is still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail_waiting(self, error: Exception) -> int:
        """Answers everything that waits with an error, and says how many: nothing will run it."""
        with self._changed:
            waiting = [ticket for queue in self._groups.values() for ticket in queue]
            self._groups.clear()
            self._samples = self._bytes = 0
        failed = 0
        for ticket in waiting:
            if ticket.answer.set_running_or_notify_cancel():
                ticket.answer.set_exception(error)
                failed += 1
            else:
                _DROPPED["cancelled"].inc()
        return failed

    @property
    def drained(self) -> bool:
        """Closed, and nothing waits."""
        with self._changed:
            return self._closed and not self._groups

    def depth(self) -> Depth:
        """What waits now."""
        with self._changed:
            now = self._clock()
            heads = [queue[0].accepted_s for queue in self._groups.values()]
            return Depth(
                requests=sum(len(queue) for queue in self._groups.values()),
                samples=self._samples,
                nbytes=self._bytes,
                oldest_s=now - min(heads) if heads else 0.0,
            )

    def _admit(self, samples: int, nbytes: int) -> None:
        limits = self._limits
        # A job larger than the whole queue is admitted when it has the queue to itself.
        crowded = self._samples > 0
        if crowded and (
            self._samples + samples > limits.queue_samples
            or self._bytes + nbytes > limits.queue_bytes
        ):
            msg = (
                f"{self._samples} samples and {self._bytes} bytes wait; the queue takes "
                f"{limits.queue_samples} samples and {limits.queue_bytes} bytes"
            )
            raise QueueFullError(msg, retry_after_s=_RETRY_AFTER_S)

    def _drop_dead(self) -> None:
        """Lets go of tickets nobody waits for, and answers those whose deadline has passed."""
        now = self._clock()
        for group in list(self._groups):
            kept: deque[Ticket[J, A]] = deque()
            for ticket in self._groups[group]:
                # The caller of a late one may have given up first, for the same reason.
                if ticket.deadline_s <= now:
                    self._drop(ticket, "deadline")
                elif ticket.answer.cancelled():
                    self._drop(ticket, "cancelled")
                else:
                    kept.append(ticket)
            if kept:
                self._groups[group] = kept
            else:
                del self._groups[group]

    def _drop(self, ticket: Ticket[J, A], reason: DropReason) -> None:
        self._forget(ticket)
        _DROPPED[reason].inc()
        if ticket.answer.set_running_or_notify_cancel():
            msg = "the deadline passed while the request waited"
            ticket.answer.set_exception(DeadlineExceededError(msg))

    def _forget(self, ticket: Ticket[J, A]) -> None:
        self._samples -= ticket.samples
        self._bytes -= ticket.nbytes

    def _choose(self) -> tuple[Hashable, Reason]:
        if len(self._groups) == 1:
            return next(iter(self._groups)), "drain" if self._closed else "idle"
        oldest = min(self._groups, key=lambda group: self._groups[group][0].accepted_s)
        if self._clock() - self._groups[oldest][0].accepted_s >= self._limits.max_delay_s:
            return oldest, "delay"
        largest = max(
            self._groups,
            key=lambda group: sum(ticket.samples for ticket in self._groups[group]),
        )
        return largest, "largest"

    def _take(self) -> Batch[J, A]:
        group, reason = self._choose()
        queue = self._groups[group]
        tickets: list[Ticket[J, A]] = []
        samples = nbytes = 0
        while queue:
            ticket = queue[0]
            full = (
                samples + ticket.samples > self._limits.batch_samples
                or nbytes + ticket.nbytes > self._limits.batch_bytes
            )
            if tickets and full:
                reason = "full"
                break
            queue.popleft()
            self._forget(ticket)
            if ticket.answer.set_running_or_notify_cancel():
                tickets.append(ticket)
                samples, nbytes = samples + ticket.samples, nbytes + ticket.nbytes
            else:
                _DROPPED["cancelled"].inc()
        if not queue:
            del self._groups[group]
        return Batch(
            tuple(tickets),
            reason,
            waiting_requests=sum(len(queue) for queue in self._groups.values()),
            oldest_s=self._clock() - tickets[0].accepted_s if tickets else 0.0,
        )
