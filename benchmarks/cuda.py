"""The core on a GPU against what the device can copy; says that it was not run where there is none.

The ten-loss core reads the logits twice and writes the gradient once. How much of the device's
own copy bandwidth that is says what is left to gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from benchmarks import jobs
from benchmarks.copying import Copier
from benchmarks.engine import Core, Kernels, open_core
from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.stages import stage_seconds
from benchmarks.timing import Timings, in_turns
from lossd.core.job import TORCH_DTYPES, AnyJob, Job
from lossd_client.wire import GradientDtype

NOT_RUN: Final = "no CUDA device: not run"
_SHAPES: Final[tuple[jobs.Shape, ...]] = (
    (8, 4, 256, 256),
    (8, 19, 512, 512),
    (16, 19, 512, 512),
    (1, 19, 1024, 2048),
    (2, 64, 256, 256),
)
_SMALL_SHAPES: Final[tuple[jobs.Shape, ...]] = ((1, 4, 64, 64), (1, 4, 256, 256))
_SECONDS_PER_CASE, _QUICK_SECONDS_PER_CASE = 4.0, 0.2
_STAGE_RUNS: Final = 5
_LEAST_SHARE: Final = 0.7
_LEAST_LOGITS: Final = 1 << 24
"""Below, launches rather than bytes decide the time."""


def run(kernels: Kernels, *, quick: bool) -> Report:
    """Bandwidth, overlap with the host and small requests, or that there is no device."""
    if not torch.cuda.is_available():
        return Report(
            name="cuda",
            sections=[Section("the core on a GPU", [{"result": NOT_RUN}])],
            environment=environment(torch.device("cpu"), "none"),
        )
    core = open_core(kernels)
    budget_s = _QUICK_SECONDS_PER_CASE if quick else _SECONDS_PER_CASE
    shapes = _SHAPES[:1] if quick else _SHAPES
    rows = [_row(core, shape, dtype, budget_s) for dtype in jobs.DTYPES for shape in shapes]
    small = [_small_row(core, shape, budget_s) for shape in _SMALL_SHAPES]
    return Report(
        name="cuda",
        sections=[
            Section("ten losses and their total gradient", rows),
            Section("one small request, float16, host to host", small),
        ],
        targets=_targets(rows),
        notes=[
            "bytes of the core: logits read twice, gradient written once; of a copy: read, written",
            "kernels: packing and both passes, the device waited for after each; logits lie there",
            "resident: evaluate() with the logits on the device; host: with all of it on the host",
            "overlap: what host saves of in and resident one after the other, of the shorter",
        ],
        environment=environment(core.device, core.mode),
    )


def _row(core: Core, shape: jobs.Shape, dtype: GradientDtype, budget_s: float) -> Row:
    inputs = jobs.random_inputs(shape, seed=1, dtype=dtype)
    host = jobs.job([inputs], jobs.available_of_ten(), gradient="total", gradient_dtype=dtype)
    resident = _on_device(host, core.device)
    logits = torch.from_numpy(inputs["logits"]).pin_memory()
    moved = torch.empty(shape, dtype=TORCH_DTYPES[dtype], device=core.device)
    timings = in_turns(
        {
            "copy": Copier(shape, TORCH_DTYPES[dtype], core.device),
            "resident": partial(core.evaluate, resident),
            "host": partial(core.evaluate, host),
            "in": partial(moved.copy_, logits),
            "out": partial(logits.copy_, moved),
        },
        budget_s=budget_s,
        wait=core.wait,
    )
    kernels_s = min(_kernels_s(stage_seconds(core, resident)) for _ in range(_STAGE_RUNS))
    return {
        "shape": "x".join(map(str, shape)),
        "dtype": dtype,
        **_bandwidths(timings, kernels_s, moved),
        "resident_ms": timings.median_s("resident") * 1e3,
        "host_ms": timings.median_s("host") * 1e3,
        "in_ms": timings.median_s("in") * 1e3,
        "out_ms": timings.median_s("out") * 1e3,
        "overlap": _overlap(timings),
        "rounds": timings.rounds,
    }


def _bandwidths(timings: Timings, kernels_s: float, logits: Tensor) -> dict[str, float]:
    nbytes = logits.nbytes
    copy = 2 * nbytes / timings.median_s("copy")
    kernels = 3 * nbytes / kernels_s
    resident = 3 * nbytes / timings.median_s("resident")
    return {
        "copy_gb_per_s": copy / 1e9,
        "kernels_gb_per_s": kernels / 1e9,
        "resident_gb_per_s": resident / 1e9,
        "kernels_share_of_copy": kernels / copy,
        "resident_share_of_copy": resident / copy,
    }


def _kernels_s(stages: Mapping[str, float]) -> float:
    return stages["pack"] + stages["pass_1"] + stages["pass_2"]


def _overlap(timings: Timings) -> float:
    """1 if moving hides behind computing or the other way round, 0 if one follows the other.

    `resident` has the gradient's way out in it already.
    """
    moving, resident = timings.median_s("in"), timings.median_s("resident")
    saved = moving + resident - timings.median_s("host")
    return saved / min(moving, resident)


def _on_device(job: AnyJob, device: torch.device) -> AnyJob:
    """The job with its logits on the device, as a service has those of kept tensors."""
    if not isinstance(job, Job):
        msg = "a job without pixels has no logits to place"
        raise TypeError(msg)
    parts = tuple(replace(part, device_logits=part.logits.to(device)) for part in job.parts)
    return replace(job, parts=parts)


def _small_row(core: Core, shape: jobs.Shape, budget_s: float) -> Row:
    inputs = jobs.random_inputs(shape, seed=1, dtype="float16")
    ten, dice = (
        jobs.job([inputs], losses, gradient="total", gradient_dtype="float16")
        for losses in (jobs.available_of_ten(), ["dice"])
    )
    timings = in_turns(
        {"ten": partial(core.evaluate, ten), "dice": partial(core.evaluate, dice)},
        budget_s=budget_s,
        wait=core.wait,
    )
    return {
        "shape": "x".join(map(str, shape)),
        "ten_ms": timings.median_s("ten") * 1e3,
        "ten_min_ms": timings.minimum_s("ten") * 1e3,
        "dice_ms": timings.median_s("dice") * 1e3,
        "dice_min_ms": timings.minimum_s("dice") * 1e3,
    }


def _targets(rows: list[Row]) -> list[Target]:
    large = [row for row in rows if _logits(row) >= _LEAST_LOGITS] or rows
    least = min(float(row["kernels_share_of_copy"] or 0) for row in large)
    return [
        Target(
            "bandwidth of packing and both passes, of the device's copy, worst of large shapes",
            f">= {_LEAST_SHARE}",
            f"{least:.2f}",
            least >= _LEAST_SHARE,
        )
    ]


def _logits(row: Row) -> int:
    return math.prod(map(int, str(row["shape"]).split("x")))
