"""Queues whose time stands still until told otherwise, and what they may hold."""

from dataclasses import dataclass, field

from lossd.batching import ACTIVE_S, Batcher, Limits
from lossd.callers import Allowance, Caller
from lossd.prediction import BATCH_S
from lossd.waiting import Ticket

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
