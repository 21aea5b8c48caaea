"""Where the time of one `evaluate` goes, stage by stage.

The stages are measured from outside: the functions below are wrapped for the time of the
measurement, and a stage's time is what is spent in it but not in a stage it calls. The wrappers
cost about a microsecond a call.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

from benchmarks import jobs
from benchmarks.engine import Core
from benchmarks.report import Report, Row, Section, environment
from benchmarks.timing import in_turns
from lossd.core import answer, cohort, compiled, in_place, passes, tiles
from lossd.core.job import AnyJob
from lossd_client.wire import GradientDtype

# stage, owner and name of each function that belongs to it
_PLACES: tuple[tuple[str, object, str], ...] = (
    ("pack", passes.Passes, "_pack"),
    ("pack", tiles, "pack"),
    ("per_tile", passes.Passes, "_per_tile"),
    ("per_tile", passes.Passes, "_per_group"),
    ("pass_1", in_place.InPlace, "sums"),
    ("pass_2", in_place.InPlace, "gradients"),
    ("add_tiles", passes.Passes, "_add_tiles"),
    ("heads", cohort.Cohort, "_heads"),
    ("heads", cohort.Cohort, "_evaluate"),
    ("unpack", passes.Passes, "_deliver"),
    ("unpack", answer.GradientWriter, "__init__"),
    ("unpack", answer.GradientWriter, "_finish"),
    ("outcome", answer.Answer, "outcome"),
)
_STAGES = (
    "pack",
    "pass_1",
    "per_tile",
    "add_tiles",
    "heads",
    "pass_2",
    "unpack",
    "outcome",
)
_RUNS, _QUICK_RUNS = 15, 3

_SMALL: jobs.Shape = (1, 4, 64, 64)
_FEW = ("cross_entropy", "dice")
_REQUESTS, _QUICK_REQUESTS = (1, 2, 4, 8, 16), (1, 4)
_SECONDS, _QUICK_SECONDS = 3.0, 0.1


class Stopwatch:
    """Time spent in each stage itself."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(_STAGES, 0.0)
        self._inner = [0.0]

    def measured(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to the stage."""

        @functools.wraps(function)
        def timed(*args: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return function(*args, **named)
            finally:
                taken = time.perf_counter() - started
                self.seconds[stage] += taken - self._inner.pop()
                self._inner[-1] += taken

        return timed

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Measures while the context lasts."""
        with ExitStack() as stack:
            for stage, owner, name in _PLACES:
                original = getattr(owner, name)
                stack.enter_context(mock.patch.object(owner, name, self.measured(stage, original)))
            yield

    def kernels(self, table: compiled.KernelTable, wait: Callable[[], None]) -> Any:
        """The same kernels, measured until the device has finished."""

        def until_done(kernel: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                result = kernel(*args)
                wait()
                return result

            return run

        return {
            key: replace(
                kernels,
                statistics=self.measured("pass_1", until_done(kernels.statistics)),
                gradient=self.measured("pass_2", until_done(kernels.gradient)),
            )
            for key, kernels in table.items()
        }


def run(core: Core, *, quick: bool) -> Report:
    """Stages of all shapes with all losses available, in ns per logit and as shares."""
    shapes = jobs.QUICK_SHAPES if quick else jobs.SHAPES
    runs = _QUICK_RUNS if quick else _RUNS
    rows = [_row(core, shape, dtype, runs) for dtype in jobs.DTYPES for shape in shapes]
    few = [_heads_row(core, count, quick=quick) for count in _counts(core, quick=quick)]
    return Report(
        name="stages",
        sections=[
            Section("microseconds of each stage of one evaluate()", rows),
            *(
                [Section("small requests, heads by torch and by their programs", few)]
                if few
                else ()
            ),
        ],
        notes=[
            f"losses: {', '.join(jobs.available_of_ten())}; total gradient",
            "medians over runs of each stage by itself, so a row need not add up to its total",
            "per_tile: coefficients and exponents copied out per tile",
            "heads: losses on [B, C] sums and their derivatives; other: Python between the stages",
        ],
        environment=environment(core.device, core.mode),
    )


def _row(core: Core, shape: jobs.Shape, dtype: GradientDtype, runs: int) -> Row:
    inputs = jobs.random_inputs(shape, seed=1, dtype=dtype)
    job = jobs.job([inputs], jobs.available_of_ten(), gradient="total", gradient_dtype=dtype)
    jobs.settle(core, shape, jobs.available_of_ten(), gradient="total")
    stage_seconds(core, job)
    measured = [stage_seconds(core, job) for _ in range(runs)]
    row: dict[str, str | float] = {"shape": "x".join(map(str, shape)), "dtype": dtype}
    for stage in (*_STAGES, "other", "total"):
        row[stage + "_us"] = statistics.median(one[stage] for one in measured) * 1e6
    row["total_ns_per_logit"] = float(row["total_us"]) * 1e3 / math.prod(shape)
    return row


def _counts(core: Core, *, quick: bool) -> tuple[int, ...]:
    """Requests in the batches that are compared; none where nothing runs programs."""
    if not any(kernels.programs for kernels in core.table.values()):
        return ()
    return _QUICK_REQUESTS if quick else _REQUESTS


def _heads_row(core: Core, requests: int, *, quick: bool) -> Row:
    batch = [
        jobs.job(
            [jobs.random_inputs(_SMALL, seed=number, dtype="float16")],
            _FEW,
            gradient="total",
            gradient_dtype="float16",
        )
        for number in range(requests)
    ]
    by_torch = {key: replace(kernels, programs=None) for key, kernels in core.table.items()}
    jobs.settle(core, _SMALL, _FEW, gradient="total")
    timings = in_turns(
        {
            "torch": partial(core.evaluate_with, by_torch, batch),
            "programs": partial(core.evaluate_with, core.table, batch),
        },
        budget_s=_QUICK_SECONDS if quick else _SECONDS,
        max_rounds=2000,
        wait=core.wait,
    )
    return {
        "requests": requests,
        "shape": "x".join(map(str, _SMALL)),
        "losses": ", ".join(_FEW),
        "by_torch_us": timings.median_s("torch") * 1e6,
        "by_programs_us": timings.median_s("programs") * 1e6,
        "torch_over_programs": timings.ratio("torch", "programs"),
    }


def stage_seconds(core: Core, job: AnyJob) -> dict[str, float]:
    """Seconds of one evaluation by stage, with `other` and `total`."""
    stopwatch = Stopwatch()
    table = stopwatch.kernels(core.table, core.wait)
    with stopwatch.attached():
        started = time.perf_counter()
        core.evaluate_with(table, [job])
        total = time.perf_counter() - started
    return {
        **stopwatch.seconds,
        "other": total - sum(stopwatch.seconds.values()),
        "total": total,
    }
