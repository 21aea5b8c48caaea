"""What a sample costs in batches of 1 to 64: as one request, and as requests of one sample each."""

from __future__ import annotations

import math
from functools import partial
from typing import Final

from benchmarks import jobs
from benchmarks.engine import Core
from benchmarks.report import Report, Row, Section, environment
from benchmarks.timing import in_turns
from lossd_client.wire import GradientDtype

_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
_QUICK_BATCHES: Final = (1, 4)
_SAMPLE: Final = (4, 256, 256)
_SECONDS_PER_CASE, _QUICK_SECONDS_PER_CASE = 3.0, 0.1


def run(core: Core, *, quick: bool) -> Report:
    """Ten losses and their total gradient."""
    batches = _QUICK_BATCHES if quick else _BATCHES
    rows = [_row(core, batch, dtype, quick=quick) for dtype in jobs.DTYPES for batch in batches]
    return Report(
        name="batch_sizes",
        sections=[Section(f"samples of {'x'.join(map(str, _SAMPLE))}, ten losses", rows)],
        notes=[
            f"losses: {', '.join(jobs.available_of_ten())}; total gradient in the logits' dtype",
            "job: one request of all samples; jobs: one request a sample, computed in one batch",
            "throughput of one: samples a second, of that of one sample alone in the same rounds",
        ],
        environment=environment(core.device, core.mode),
    )


def _row(core: Core, batch: int, dtype: GradientDtype, *, quick: bool) -> Row:
    names = jobs.available_of_ten()
    inputs = [
        jobs.random_inputs((1, *_SAMPLE), seed=number, dtype=dtype) for number in range(batch)
    ]
    together = jobs.random_inputs((batch, *_SAMPLE), seed=1, dtype=dtype)
    one, *_ = several = [
        jobs.job([entry], names, gradient="total", gradient_dtype=dtype) for entry in inputs
    ]
    whole = jobs.job([together], names, gradient="total", gradient_dtype=dtype)
    jobs.settle(core, together["logits"].shape, names, gradient="total")
    timings = in_turns(
        {
            "one": partial(core.evaluate, one),
            "job": partial(core.evaluate, whole),
            "jobs": partial(core.evaluate, *several),
        },
        budget_s=_QUICK_SECONDS_PER_CASE if quick else _SECONDS_PER_CASE,
        wait=core.wait,
    )
    logits = batch * math.prod(_SAMPLE)
    return {
        "batch": batch,
        "dtype": dtype,
        "job_ms": timings.median_s("job") * 1e3,
        "jobs_ms": timings.median_s("jobs") * 1e3,
        "job_ns_per_logit": timings.median_s("job") / logits * 1e9,
        "jobs_ns_per_logit": timings.median_s("jobs") / logits * 1e9,
        "job_throughput_of_one": batch / timings.ratio("job", to="one"),
        "jobs_throughput_of_one": batch / timings.ratio("jobs", to="one"),
        "rounds": timings.rounds,
    }
