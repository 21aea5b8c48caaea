"""What ten losses and their gradient cost: against Dice alone, plain torch and a memory copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from benchmarks import jobs
from benchmarks.eager_losses import separately, together
from benchmarks.engine import Core
from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.timing import Timings, in_turns
from lossd.core.job import TORCH_DTYPES, AnyJob
from lossd_client.wire import GradientDtype

SHAPES: tuple[jobs.Shape, ...] = (
    (1, 2, 64, 64),
    (1, 4, 256, 256),
    (8, 4, 256, 256),
    (4, 19, 256, 256),
    (1, 19, 512, 512),
    (2, 64, 128, 128),
    (1, 3, 32, 128, 128),
)
_QUICK_SHAPES = SHAPES[:2]
_DTYPES: tuple[GradientDtype, ...] = ("float32", "float16")
_SECONDS_PER_CASE, _QUICK_SECONDS_PER_CASE = 5.0, 0.2
_LARGE_LOGITS = 1_000_000
"""From here on the kernels, not the Python around them, should decide the time."""

_MOST_TEN_OVER_DICE, _LEAST_EAGER_OVER_TEN, _MOST_NS_PER_LOGIT = 1.5, 5.0, 5.0
_MOST_DISAGREEMENT = 1e-3  # plain float32 torch keeps no more digits


def run(core: Core, *, quick: bool) -> Report:
    """Times of all shapes in float32 and float16."""
    shapes = _QUICK_SHAPES if quick else SHAPES
    budget_s = _QUICK_SECONDS_PER_CASE if quick else _SECONDS_PER_CASE
    names = jobs.available_of_ten()
    rows = [_row(core, shape, dtype, names, budget_s) for dtype in _DTYPES for shape in shapes]
    missing = [name for name in jobs.TEN if name not in names]
    return Report(
        name="core",
        sections=[Section("values and total gradient", rows, hidden=_HIDDEN)],
        targets=_targets(rows),
        notes=[
            f"'ten' are {len(names)} losses: {', '.join(names)}",
            *([f"not in the catalogue yet: {', '.join(missing)}"] if missing else []),
            "dtype is that of the logits and of the gradient; packing and unpacking are included",
            "times are medians on a machine that may be shared: noisy, compare ratios",
            "ratios are medians over rounds in which everything compared was run in turn",
            "eager: plain torch, float32, autograd; separate: every loss makes its own softmax",
            "eager shared: softmax, one-hot target and sums made once for all losses",
            "copy: logits to a tensor of the gradient's dtype",
        ],
        environment=environment(core.device, core.mode),
    )


_HIDDEN = ("dice_min_ns_per_logit", "ten_min_ns_per_logit", "ten_median_ms", "rounds")


def _row(
    core: Core, shape: jobs.Shape, dtype: GradientDtype, names: Sequence[str], budget_s: float
) -> Row:
    inputs = jobs.random_inputs(shape, seed=1, dtype=dtype)
    ten, dice = (
        jobs.job([inputs], losses, gradient="total", gradient_dtype=dtype)
        for losses in (names, ["dice"])
    )
    logits = torch.from_numpy(inputs["logits"]).to(core.device)
    label = torch.from_numpy(inputs["target"]).to(core.device)
    _check_agreement(core, ten, logits, label, names)
    copied = torch.empty(shape, dtype=TORCH_DTYPES[dtype], device=core.device)
    timings = in_turns(
        {
            "copy": partial(copied.copy_, logits),
            "dice": partial(core.evaluate, dice),
            "ten": partial(core.evaluate, ten),
            "shared": partial(together, logits, label, names),
            "separate": partial(separately, logits, label, names),
        },
        budget_s=budget_s,
        wait=core.wait,
    )
    return _figures(timings, shape, dtype)


def _figures(timings: Timings, shape: jobs.Shape, dtype: str) -> Row:
    count = math.prod(shape)
    return {
        "shape": "x".join(map(str, shape)),
        "dtype": dtype,
        "dice_ns_per_logit": timings.median_s("dice") / count * 1e9,
        "ten_ns_per_logit": timings.median_s("ten") / count * 1e9,
        "ten_median_ms": timings.median_s("ten") * 1e3,
        "dice_min_ns_per_logit": timings.minimum_s("dice") / count * 1e9,
        "ten_min_ns_per_logit": timings.minimum_s("ten") / count * 1e9,
        "ten_over_dice": timings.ratio("ten", to="dice"),
        "eager_shared_over_ten": timings.ratio("shared", to="ten"),
        "eager_separate_over_ten": timings.ratio("separate", to="ten"),
        "ten_over_copy": timings.ratio("ten", to="copy"),
        "rounds": timings.rounds,
    }


def _check_agreement(
    core: Core, ten: AnyJob, logits: torch.Tensor, label: torch.Tensor, names: Sequence[str]
) -> None:
    """Raises if the two sides of the comparison do not compute the same thing."""
    (outcome,) = core.evaluate(ten)
    values, _ = together(logits, label, names)
    for name, eager in zip(names, values.cpu().numpy(), strict=True):
        worst = float(np.abs(outcome.tensors[f"loss/{name}"] - eager).max())
        if worst > _MOST_DISAGREEMENT:
            msg = f"{name}: the core and plain torch differ by {worst}"
            raise RuntimeError(msg)


def _targets(rows: Sequence[Row]) -> list[Target]:
    """Judged on large shapes: the worst of each figure."""
    large = [row for row in rows if math.prod(map(int, _shape(row))) >= _LARGE_LOGITS]
    judged = large or rows
    half = [row for row in judged if row["dtype"] == "float16"]
    where = "large shapes" if large else "all shapes"
    over_dice = max(float(row["ten_over_dice"] or 0) for row in judged)
    shared = min(float(row["eager_shared_over_ten"] or 0) for row in judged)
    separate = min(float(row["eager_separate_over_ten"] or 0) for row in judged)
    cost = max(float(row["ten_ns_per_logit"] or 0) for row in half)
    return [
        Target(
            f"ten losses over Dice alone, worst of {where}",
            f"<= {_MOST_TEN_OVER_DICE}",
            f"{over_dice:.2f}",
            over_dice <= _MOST_TEN_OVER_DICE,
        ),
        Target(
            f"eager torch (each loss by itself) over the core, worst of {where}",
            f">= {_LEAST_EAGER_OVER_TEN}",
            f"{separate:.1f}",
            separate >= _LEAST_EAGER_OVER_TEN,
        ),
        Target(
            f"eager torch (shared softmax) over the core, worst of {where}",
            f">= {_LEAST_EAGER_OVER_TEN}",
            f"{shared:.1f}",
            shared >= _LEAST_EAGER_OVER_TEN,
        ),
        Target(
            f"ten losses, float16 in and out, ns per logit, worst of {where}",
            f"<= {_MOST_NS_PER_LOGIT} on 2 CPU cores",
            f"{cost:.2f}",
            cost <= _MOST_NS_PER_LOGIT,
        ),
    ]


def _shape(row: Row) -> list[str]:
    return str(row["shape"]).split("x")
