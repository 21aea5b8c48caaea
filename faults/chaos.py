"""Everything at once: good callers beside every fault, and then the service itself goes away."""

from __future__ import annotations

import http.client
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from faults.known import TIMEOUT_S
from faults.sabotage import LOST
from faults.service import Footprint
from faults.table import labelled_body, post, said, table
from faults.traffic import (
    BY_CLIENT,
    CALLERS,
    LARGEST_BYTES,
    Traffic,
    fault_makers,
    good_callers,
    traffic,
    working,
)

FOLDER: Final = Path("build/chaos")
_FAULT_MAKERS: Final = 4


@dataclass(frozen=True)
class Outage:
    """A time in which the service was away, on purpose."""

    name: str
    exit_status: int
    seconds: float
    """Until it was ready again and every good caller had been answered."""


@dataclass(frozen=True)
class Report:
    """What was found."""

    seconds: float
    kernels: str
    faults: dict[str, dict[str, int]]
    """By name: how often what was answered."""
    neighbours: dict[str, int]
    """Answers to good callers that were checked while a fault of that name was under way."""
    good: dict[str, int]
    """Answers that were checked, by caller."""
    retries: dict[str, int]
    """What good callers had to ask again, by why."""
    outages: list[Outage]
    before: Footprint
    after: Footprint
    """With nothing under way any more, before the first outage."""
    dropped: dict[str, float]
    """Requests that left the queue uncomputed, by why."""
    violations: dict[str, int]
    examples: list[str]


def run(
    *,
    seconds: float,
    kernels: str,
    seed: int = 0,
    fuzz_bodies: int = 300,
    largest_bytes: int = LARGEST_BYTES,
    outages: Sequence[str] = ("SIGTERM", "SIGKILL", "device lost"),
    folder: Path = FOLDER,
) -> Report:
    """Every fault for so long, and then the outages, one after the other."""
    learnt = {"fuzz_bodies": fuzz_bodies, "largest_bytes": largest_bytes}
    with traffic(folder, kernels=kernels, seed=seed, **learnt) as sent:
        service = sent.service
        before = service.footprint()
        with working(sent, [*good_callers(sent), *fault_makers(sent, table(), _FAULT_MAKERS)]):
            time.sleep(seconds)
        if not service.settle():
            sent.tally.violation("work is left", "requests wait although nobody asks")
        unheard = {*CALLERS, BY_CLIENT} - sent.tally.good.keys()
        if unheard:
            sent.tally.violation("a good caller got no answer", f"{sorted(unheard)}")
        after = service.footprint()
        dropped = {
            why: service.metric(f'lossd_dropped_requests_total{{reason="{why}"}}')
            for why in ("cancelled", "deadline")
        }
        with working(sent, good_callers(sent)):
            survived = [_OUTAGES[name](sent) for name in outages]
    tally = sent.tally
    return Report(
        seconds=seconds,
        kernels=kernels,
        faults={name: dict(tally.answers[name]) for name in sorted(tally.answers)},
        neighbours=dict(tally.neighbours),
        good=dict(tally.good),
        retries=dict(tally.retries),
        outages=survived,
        before=before,
        after=after,
        dropped=dropped,
        violations=dict(tally.violations),
        examples=tally.examples,
    )


@contextmanager
def _away(sent: Traffic, *excused: int) -> Iterator[None]:
    """The service goes away inside, and is started again at the end."""
    sent.excused = frozenset(excused)
    yield
    sent.service.start()
    _demand_return(sent)
    sent.excused = frozenset()


def _demand_return(sent: Traffic) -> None:
    """Every good caller comes back by itself and is answered."""
    before = dict(sent.tally.good)
    until_s = time.monotonic() + 2 * TIMEOUT_S
    # The client's next answers are one without a ref and one with: the new process knew none.
    while lost := [one for one in before if sent.tally.good[one] < before[one] + 3]:
        if time.monotonic() > until_s:
            sent.tally.violation("a good caller does not come back", f"{lost}")
            return
        time.sleep(0.1)


def _outage(sent: Traffic, name: str, began_s: float, *, exit_status: int) -> Outage:
    ended = sent.service.lives[-2].process.returncode
    if ended != exit_status:
        sent.tally.violation("exit status", f"{name}: {ended}, not {exit_status}")
    return Outage(name, ended, round(time.monotonic() - began_s, 1))


def _terminated(sent: Traffic) -> Outage:
    """SIGTERM: whatever it accepted is answered."""
    began_s = time.monotonic()
    with _away(sent):
        sent.service.end(signal.SIGTERM)
    _demand_answers(sent, "SIGTERM")
    return _outage(sent, "SIGTERM", began_s, exit_status=0)


def _killed(sent: Traffic) -> Outage:
    """SIGKILL: what was under way is lost, and asked again."""
    began_s = time.monotonic()
    with _away(sent):
        sent.service.end(signal.SIGKILL)
    return _outage(sent, "SIGKILL", began_s, exit_status=-signal.SIGKILL)


def _device_lost(sent: Traffic) -> Outage:
    """From one job on every batch fails: the process says so, and ends."""
    began_s = time.monotonic()
    with _away(sent, http.client.INTERNAL_SERVER_ERROR):
        answered = said(post(sent.site, labelled_body(LOST)))
        if answered != "500 internal":
            sent.tally.violation("a fault was answered otherwise", f"{LOST}: {answered}")
        sent.service.wait()
    _demand_answers(sent, "device lost")
    return _outage(sent, "device lost", began_s, exit_status=1)


_OUTAGES: Final[dict[str, Callable[[Traffic], Outage]]] = {
    "SIGTERM": _terminated,
    "SIGKILL": _killed,
    "device lost": _device_lost,
}


def _demand_answers(sent: Traffic, name: str) -> None:
    """Nothing that the process before this one had taken on was left without an answer."""
    lost = sent.service.lives[-2].request_ids() & sent.tally.unanswered
    if lost:
        sent.tally.violation("accepted, not answered", f"{name}: {len(lost)}, {sorted(lost)[:3]}")
