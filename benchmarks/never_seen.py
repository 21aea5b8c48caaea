"""What the first request of a new size, number of classes or set of losses waits for.

Every request is sent twice, and the second time it has been seen: both groups are the same
requests. First and second sendings alternate, the second of each some time after its first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from pydantic_settings import CliApp
from torch._dynamo.utils import counters

from benchmarks import unseen
from benchmarks.engine import Core, Kernels
from benchmarks.http_calls import Caller
from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.start_up import free_port, serving, wait_for
from lossd.core.compiled import cache_folder
from lossd.settings import Settings

_REQUESTS: Final = 400
_QUICK_REQUESTS: Final = 6
_WARM_UP: Final = 100
_QUICK_WARM_UP: Final = 5
_LATER: Final = 16
"""How many other requests come between the two sendings of one."""
_IN_PROCESS: Final = 60
_MOST_RATIO: Final = 1.2
_SEED: Final = 7


def run(core: Core, kernels: Kernels, *, quick: bool) -> Report:
    """Latencies over HTTP of both groups, and what was compiled meanwhile.

    Args:
        core: kernels in this process, whose compiler can be asked what it did.
        kernels: those of the service.
        quick: few requests.
    """
    count = _QUICK_REQUESTS if quick else _REQUESTS
    port = free_port()
    with serving(port, flags=("--kernels", kernels)) as process:
        wait_for("/health/ready", port, process)
        kernels_before = _kernel_files(core.device)
        with Caller(port) as caller:
            for case in unseen.cases("size", _QUICK_WARM_UP if quick else _WARM_UP, seed=0):
                caller.evaluate(case.body())
            rows = [_row(caller, new, count) for new in unseen.NEW]
        written = len(_kernel_files(core.device) - kernels_before)
    compiled = _compiled_by(core, _QUICK_REQUESTS if quick else _IN_PROCESS)
    worst = max(float(row["p99_ratio"] or 0) for row in rows)
    return Report(
        name="never_seen",
        sections=[Section("one request after the other, never seen and seen before", rows)],
        targets=[
            Target(
                "p99 of requests with something never seen, of that of the same seen before, worst",
                f"<= {_MOST_RATIO}",
                f"{worst:.2f}",
                worst <= _MOST_RATIO,
            ),
            Target(
                "files of kernels that the service wrote, graphs that this process compiled",
                "0, 0",
                f"{written}, {compiled}",
                met=written == compiled == 0,
                binding=True,
            ),
        ],
        notes=[
            f"{count} requests a row, float16, total gradient, sent twice, {_LATER} others between",
            "p99 of a few hundred requests is the mean of a handful: noisy",
        ],
        environment=environment(core.device, core.mode),
    )


def _row(caller: Caller, new: unseen.New, count: int) -> Row:
    never, seen = _latencies_s(caller, [one.body() for one in unseen.cases(new, count, _SEED)])
    first, again = np.array(never) * 1e3, np.array(seen) * 1e3
    return {
        "new": new,
        "requests": count,
        "never_p50_ms": float(np.percentile(first, 50)),
        "seen_p50_ms": float(np.percentile(again, 50)),
        "p50_ratio": float(np.percentile(first, 50) / np.percentile(again, 50)),
        "median_of_ratios": float(np.median(first / again)),
        "never_p99_ms": float(np.percentile(first, 99)),
        "seen_p99_ms": float(np.percentile(again, 99)),
        "p99_ratio": float(np.percentile(first, 99) / np.percentile(again, 99)),
        "never_max_ms": float(first.max()),
        "seen_max_ms": float(again.max()),
    }


def _latencies_s(caller: Caller, bodies: Sequence[bytes]) -> tuple[list[float], list[float]]:
    """Of the first and the second sending of each, in the order of the bodies."""
    never: list[float] = []
    seen: list[float] = []
    for index, is_first in sending_order(len(bodies)):
        ended_s = caller.evaluate(bodies[index]).ended_s
        (never if is_first else seen).append(ended_s)
    return never, seen


def sending_order(count: int) -> Iterator[tuple[int, bool]]:
    """Which request is sent, and whether for the first time."""
    waiting: deque[int] = deque()
    for index in range(count):
        yield index, True
        waiting.append(index)
        if len(waiting) > _LATER:
            yield waiting.popleft(), False
    for index in waiting:
        yield index, False


def _kernel_files(device: torch.device) -> set[Path]:
    """What lies in the folder of compiled kernels."""
    folder = cache_folder(CliApp.run(Settings, cli_args=[]).cache_dir, device)
    return {path for path in folder.rglob("*") if path.is_file()}


def _compiled_by(core: Core, count: int) -> int:
    """Graphs that the compiler of this process made while it computed such requests."""
    if core.mode != "compiled":
        return 0
    before = counters["stats"]["unique_graphs"]
    for new in unseen.NEW:
        for case in unseen.cases(new, count, _SEED):
            core.evaluate(case.job())
    return counters["stats"]["unique_graphs"] - before
