"""Each family of pixel losses alone, all its losses at once, against Dice alone."""

from __future__ import annotations

import math
from functools import partial
from typing import Final

from benchmarks import jobs
from benchmarks.engine import Core
from benchmarks.report import Row, Section
from benchmarks.stages import stage_seconds
from benchmarks.timing import in_turns
from lossd.losses import LOSSES, Task
from lossd.losses.declare import SampleLoss, TileLoss
from lossd_client.wire import GradientDtype

BINARY: Final[jobs.Shape] = (8, 1, 512, 512)
WHOLE_SHAPES: Final[tuple[jobs.Shape, ...]] = ((1, 1, 64, 64), (1, 2, 64, 64), (1, 4, 256, 256))
"""Losses of whole samples sort and measure distances: there a size says what the others would."""
_SECONDS_PER_CASE, _QUICK_SECONDS_PER_CASE = 1.0, 0.1
_ROUNDS, _QUICK_ROUNDS = 12, 3

NOTES: Final = (
    "families: all losses of one that take the task, binary for C = 1; total gradient",
    "families: a loss that needs sums of its own takes the whole family to float64 and to tiles",
)


def section(core: Core, *, quick: bool) -> Section:
    """The families that are sums over all shapes, those of whole samples over small ones."""
    tile_shapes = jobs.QUICK_SHAPES if quick else (*jobs.SHAPES, BINARY)
    cases = [
        (family, shape, dtype)
        for family in _families(TileLoss)
        for dtype in jobs.DTYPES
        for shape in tile_shapes
    ]
    whole_shapes = WHOLE_SHAPES[: 1 if quick else None]
    cases += [
        (family, shape, "float32") for family in _families(SampleLoss) for shape in whole_shapes
    ]
    # The histogram losses have no multiclass form.
    rows = [_row(core, *case, quick=quick) for case in cases if losses_of(*case[:2])]
    return Section("each family alone", rows, hidden=("rounds",))


def _families(kind: type) -> list[str]:
    return list(dict.fromkeys(loss.family for loss in LOSSES.values() if isinstance(loss, kind)))


def losses_of(family: str, shape: jobs.Shape) -> list[str]:
    """The family's pixel losses that take logits of that shape with labels."""
    task: Task = "binary" if shape[1] == 1 else "multiclass"
    return [
        name
        for name, loss in LOSSES.items()
        if loss.family == family and loss.kind == "pixel" and task in loss.tasks
    ]


def _row(core: Core, family: str, shape: jobs.Shape, dtype: GradientDtype, *, quick: bool) -> Row:
    names = losses_of(family, shape)
    inputs = jobs.random_inputs(shape, seed=1, dtype=dtype)
    own, dice = (
        jobs.job([inputs], losses, gradient="total", gradient_dtype=dtype)
        for losses in (names, ["dice"])
    )
    jobs.settle(core, shape, list({*names, "dice"}), gradient="total")
    timings = in_turns(
        {"own": partial(core.evaluate, own), "dice": partial(core.evaluate, dice)},
        budget_s=_QUICK_SECONDS_PER_CASE if quick else _SECONDS_PER_CASE,
        max_rounds=_QUICK_ROUNDS if quick else _ROUNDS,
        wait=core.wait,
    )
    stages = stage_seconds(core, own)
    return {
        "family": family,
        "losses": len(names),
        "shape": "x".join(map(str, shape)),
        "dtype": dtype,
        "ms": timings.median_s("own") * 1e3,
        "ns_per_logit": timings.median_s("own") / math.prod(shape) * 1e9,
        "pack_share": stages["pack"] / stages["total"],
        "over_dice": timings.ratio("own", to="dice"),
        "rounds": timings.rounds,
    }
