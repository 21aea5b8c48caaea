"""One process's share of a fuzz: its bodies, what became of them, its memory."""

from __future__ import annotations

import logging
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from fuzz.bodies import body
from fuzz.walk import outcome

FOLDER = Path("build/fuzz")
_WATCHDOG_S = 30
_STEP = 1000  # bodies between two looks at the memory


class TooSlow(BaseException):
    """A body took longer than any may; no Exception, since decoders blame the bytes for those."""


@dataclass
class Report:
    """What one process found."""

    bodies: int = 0
    seconds: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    """Outcomes by kind of body, `application/json job`."""
    failures: list[str] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    """Resident memory at the tenths of the run."""
    peak_rss_mib: float = 0.0


def run(seed: int, first: int, bodies: int, step: int) -> Report:
    """Every `step`-th body from the first one."""
    warnings.simplefilter("ignore")  # decoders warn of what they are about to refuse
    logging.disable()
    signal.signal(signal.SIGALRM, _too_slow)
    report = Report()
    begin_s = time.monotonic()
    numbers = range(first, bodies, step)
    for count, number in enumerate(numbers):
        _one(seed, number, report)
        if count % max(_STEP, len(numbers) // 10) == 0:
            report.rss_mib.append(_rss_mib())
    report.bodies = len(numbers)
    report.seconds = time.monotonic() - begin_s
    report.rss_mib.append(_rss_mib())
    report.peak_rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return report


def _one(seed: int, number: int, report: Report) -> None:
    one = body(seed, number)
    signal.alarm(_WATCHDOG_S)
    try:
        report.codes[f"{one.kind} {outcome(one)}"] += 1
    except (Exception, TooSlow):  # noqa: BLE001 - whatever it is, it is what the fuzz looks for
        name = f"{seed}-{number}"
        (FOLDER / f"{name}.body").write_bytes(one.data)
        (FOLDER / f"{name}.txt").write_text(f"{one.content_type}\n{traceback.format_exc()}")
        report.failures.append(name)
    finally:
        signal.alarm(0)


def _too_slow(_signal: int, _frame: object) -> NoReturn:
    raise TooSlow


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / (1 << 20), 1)
