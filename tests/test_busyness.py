"""Whether the process keeps a processor busy: by what it used of the last full period."""

import time
from dataclasses import dataclass

import pytest

from lossd.busyness import PERIOD_S, Busyness


@dataclass
class Process:
    """A process whose clocks stand still until told otherwise."""

    now_s: float = 0.0
    used_s: float = 0.0

    def work(self, seconds: float, processors: float) -> None:
        self.now_s += seconds
        self.used_s += seconds * processors


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def busyness(process: Process) -> Busyness:
    return Busyness(lambda: process.now_s, lambda: process.used_s)


@pytest.mark.parametrize(
    ("processors", "is_high"), [(0.0, False), (0.4, False), (0.6, True), (8, True)]
)
def test_half_a_processor_is_busy(
    process: Process, busyness: Busyness, processors: float, *, is_high: bool
) -> None:
    process.work(PERIOD_S, processors)
    assert busyness.is_high() is is_high


def test_less_than_a_period_changes_nothing(process: Process, busyness: Busyness) -> None:
    process.work(PERIOD_S / 2, 1.0)
    assert not busyness.is_high()
    process.work(PERIOD_S / 2, 1.0)
    assert busyness.is_high()


def test_who_was_busy_before_a_long_pause_is_not(process: Process, busyness: Busyness) -> None:
    process.work(PERIOD_S, 1.0)
    assert busyness.is_high()
    process.work(100 * PERIOD_S, 0.01)
    assert not busyness.is_high()


def test_the_process_itself_is_looked_at() -> None:
    busyness, until_s = Busyness(), time.monotonic() + 60
    while not busyness.is_high():  # which keeps a processor busy
        assert time.monotonic() < until_s
