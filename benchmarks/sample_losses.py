"""Losses of whole samples: time and peak memory, beside the same in plain torch and scipy.

Every case has a process of its own, so that no case finds memory that another left behind. In it
ours and the reference run in turns; the peak is that of the first run of each.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import torch

from benchmarks import eager_sample_losses as plain
from benchmarks import jobs
from benchmarks.engine import Kernels, open_core
from benchmarks.footprint import Footprint
from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.timing import in_turns
from lossd.core.compiled import choose_mode
from lossd.core.distance import DistanceMaps
from lossd.losses import LOSSES
from lossd.losses.declare import SampleLoss
from lossd_client.wire import Array

T = TypeVar("T")

_MIB: Final = 1 << 20
_CHUNK_MIB: Final = 64.0
_BLOCK: Final = 16
_TOLERANCE: Final = 2e-3  # the references are float32, and square differences
_SHAPES: Final[tuple[jobs.Shape, ...]] = (
    (1, 4, 256, 256),
    (1, 4, 1024, 1024),
    (1, 19, 1024, 2048),
)
_QUICK_SHAPES: Final[tuple[jobs.Shape, ...]] = ((1, 4, 64, 64),)
_QUICK_CASES: Final = 2
_BUDGET_S: Final = 4.0


@dataclass(frozen=True)
class _Case:
    """One loss at one shape."""

    loss: str
    shape: jobs.Shape
    kernels: Kernels
    budget_s: float


def run(kernels: Kernels, *, quick: bool) -> Report:
    """A row for each loss of whole samples and each shape."""
    cases = [
        _Case(name, shape, kernels, 0.0 if quick else _BUDGET_S)
        for shape in (_QUICK_SHAPES if quick else _SHAPES)
        for name, loss in LOSSES.items()
        if isinstance(loss, SampleLoss) and "multiclass" in loss.tasks
    ]
    if quick:
        cases = cases[:_QUICK_CASES]
    processes = multiprocessing.get_context("spawn")
    with processes.Pool(1, maxtasksperchild=1) as pool:
        rows: list[Row] = pool.map(_row, cases, chunksize=1)
    device = torch.device("cpu")
    return Report(
        name="sample_losses",
        sections=[Section("one multiclass sample, float16 in and out, value and gradient", rows)],
        targets=_targets(rows),
        notes=[
            "plain: the same loss in float32 in plain torch, with scipy's distance transforms",
            "peak: of the process over what it held before, input excluded and answer included",
            "again: with the distance maps remembered",
        ],
        environment=environment(device, choose_mode(device) if kernels == "auto" else kernels),
    )


def blocks(shape: jobs.Shape, *, seed: int) -> dict[str, Array]:
    """Float16 logits that lean to uint8 labels, which are blocks of 16 x 16 pixels."""
    generator = np.random.default_rng(seed)
    batch, classes, height, width = shape
    coarse = (batch, -(-height // _BLOCK), -(-width // _BLOCK))
    labels = generator.integers(0, classes, coarse, dtype=np.uint8)
    labels = labels.repeat(_BLOCK, 1).repeat(_BLOCK, 2)[:, :height, :width]
    logits = generator.standard_normal(shape, dtype=np.float32)
    logits += 2.0 * (labels[:, None] == np.arange(classes)[:, None, None])
    return {"logits": logits.astype(np.float16), "target": np.ascontiguousarray(labels)}


def _row(case: _Case) -> Row:
    """Measures a case in the process that calls it."""
    core = open_core(case.kernels)
    inputs = blocks(case.shape, seed=1)
    fields: Mapping[str, Any] = {"gradient": "total", "gradient_dtype": "float16"}
    core.evaluate(jobs.job([blocks(_QUICK_SHAPES[0], seed=2)], [case.loss], **fields))
    job = jobs.job([inputs], [case.loss], **fields)
    ours, peak_mib = _peak_mib(lambda: core.evaluate(job)[0])

    def forgetful() -> object:
        core.workspace.distances = DistanceMaps()
        return core.evaluate(job)

    work: dict[str, Callable[[], object]] = {"ours": forgetful, "again": lambda: core.evaluate(job)}
    reference_mib = None
    if case.loss in plain.EAGER:
        logits, labels = (torch.from_numpy(inputs[name][0]) for name in ("logits", "target"))
        counted = _counted(case)

        def reference() -> float:
            return float(plain.value_and_gradient(case.loss, logits, labels, counted)[0])

        value, reference_mib = _peak_mib(reference)
        _compare(case, float(ours.tensors[f"loss/{case.loss}"][0]), value)
        work["plain"] = reference
    timings = in_turns(work, budget_s=case.budget_s)
    return {
        "loss": case.loss,
        "shape": "x".join(map(str, case.shape)),
        "ours_ms": timings.median_s("ours") * 1e3,
        "again_ms": timings.median_s("again") * 1e3,
        "plain_ms": timings.median_s("plain") * 1e3 if "plain" in work else None,
        "plain_over_ours": timings.ratio("plain", "ours") if "plain" in work else None,
        "peak_mib": peak_mib,
        "plain_peak_mib": reference_mib,
        "answer_mib": sum(array.nbytes for array in ours.tensors.values()) / _MIB,
        "rounds": timings.rounds,
    }


def _counted(case: _Case) -> list[int]:
    """Classes in the mean; the blocks are many enough for each to be present."""
    first = 1 if case.loss == "soft_cldice" else 0
    return list(range(first, case.shape[1]))


def _peak_mib(work: Callable[[], T]) -> tuple[T, float]:
    """What work returns, and the most memory it held over what was there before."""
    here = Footprint(os.getpid())
    here.forget_peak()
    before = here.resident_bytes()
    found = work()
    return found, (here.peak_bytes() - before) / _MIB


def _compare(case: _Case, ours: float, reference: float) -> None:
    """Refuses to time what does not compute the same."""
    if abs(ours - reference) > _TOLERANCE * abs(reference) + _TOLERANCE**2:
        msg = f"{case.loss} at {case.shape} is {ours}, in plain torch {reference}"
        raise ValueError(msg)


def _targets(rows: list[Row]) -> list[Target]:
    """The design's bound of memory, judged where there is no other cost."""
    over = {
        f"{row['loss']} at {row['shape']}": float(row["peak_mib"] or 0.0)
        - float(row["answer_mib"] or 0.0)
        for row in rows
    }
    worst = max(over, key=lambda name: over[name])
    return [
        Target(
            what="peak over input and answer",
            wanted=f"at most {_CHUNK_MIB:.0f} MiB",
            measured=f"{over[worst]:.0f} MiB ({worst})",
            met=over[worst] <= _CHUNK_MIB,
        )
    ]
