"""Images of many sizes in one batch against images of one size with the same pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from benchmarks import jobs
from benchmarks.engine import Core
from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.timing import in_turns
from lossd.core.job import AnyJob

# 16 sizes with 16 · 256² pixels in all, as unlike as a set of photographs and crops.
_SIZES = (
    (64, 64),
    (96, 128),
    (120, 200),
    (128, 128),
    (160, 240),
    (192, 192),
    (200, 300),
    (210, 280),
    (240, 320),
    (256, 256),
    (256, 320),
    (300, 300),
    (320, 320),
    (333, 355),
    (360, 400),
)
_SIDE, _JOBS = 256, 16
_CLASSES = (4, 19)
_SECONDS_PER_CASE, _QUICK_SECONDS_PER_CASE = 8.0, 0.3
_LEAST_THROUGHPUT = 0.9


def sizes() -> list[tuple[int, int]]:
    """16 sizes; the last one is as wide as it takes to have the pixels of 16 squares of 256."""
    missing = _JOBS * _SIDE**2 - sum(height * width for height, width in _SIZES)
    height = 128
    return [*_SIZES, (height, missing // height)]


def run(core: Core, *, quick: bool) -> Report:
    """Throughput of the mixed batch as a share of the equal one's."""
    budget_s = _QUICK_SECONDS_PER_CASE if quick else _SECONDS_PER_CASE
    both = (["dice"], jobs.available_of_ten())
    rows = [
        _row(core, classes, losses, budget_s)
        for classes in _CLASSES[: 1 if quick else None]
        for losses in (both[1:] if quick else both)
    ]
    worst = min(float(row["mixed_throughput_share"] or 0) for row in rows)
    return Report(
        name="mixed_sizes",
        sections=[Section(f"{_JOBS} one-sample jobs in one batch, float32, gradient", rows)],
        targets=[
            Target(
                "throughput of mixed sizes as a share of equal sizes' (same pixels), worst",
                f">= {_LEAST_THROUGHPUT}",
                f"{worst:.3f}",
                worst >= _LEAST_THROUGHPUT,
            )
        ],
        notes=["run in turns; the share is per pixel, so it corrects for the last few pixels"],
        environment=environment(core.device, core.mode),
    )


def _row(core: Core, classes: int, losses: Sequence[str], budget_s: float) -> Row:
    equal = [_job(classes, _SIDE, _SIDE, number, losses) for number in range(_JOBS)]
    mixed = [_job(classes, *size, number, losses) for number, size in enumerate(sizes())]
    jobs.settle(core, (1, classes), losses, gradient="total")
    timings = in_turns(
        {"equal": partial(core.evaluate, *equal), "mixed": partial(core.evaluate, *mixed)},
        budget_s=budget_s,
        wait=core.wait,
    )
    pixels = sum(math.prod(size) for size in sizes())
    return {
        "classes": classes,
        "losses": len(losses),
        "equal_ms": timings.median_s("equal") * 1e3,
        "mixed_ms": timings.median_s("mixed") * 1e3,
        "mixed_throughput_share": timings.ratio("equal", to="mixed") * pixels / (_JOBS * _SIDE**2),
        "rounds": timings.rounds,
    }


def _job(classes: int, height: int, width: int, seed: int, losses: Sequence[str]) -> AnyJob:
    inputs = jobs.random_inputs((1, classes, height, width), seed=seed)
    return jobs.job([inputs], losses, gradient="total")
