"""What ten losses and their gradient cost: against Dice alone, plain torch, libraries, a copy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import families, jobs
from benchmarks.copying import Copier
from benchmarks.eager_losses import separately, together
from benchmarks.engine import Core
from benchmarks.libraries import ABSENT, Libraries, libraries
from benchmarks.report import Cell, Report, Row, Section, Target, environment
from benchmarks.stages import stage_seconds
from benchmarks.timing import Timings, Work, in_turns
from lossd.core.job import TORCH_DTYPES, AnyJob
from lossd_client.wire import Array, GradientDtype

_SECONDS_PER_CASE, _QUICK_SECONDS_PER_CASE = 5.0, 0.2
_LARGE_LOGITS = 1_000_000
"""From here on the kernels, not the Python around them, should decide the time."""
_PACKING_RUNS = 3

_MOST_TEN_OVER_DICE, _LEAST_EAGER_OVER_TEN, _MOST_NS_PER_LOGIT = 1.5, 5.0, 5.0
_MOST_DISAGREEMENT = 1e-3  # plain float32 torch keeps no more digits

_LIBRARIES = ("monai", "smp")
_HIDDEN = (
    "large",
    "dice_min_ns_per_logit",
    "ten_min_ns_per_logit",
    "copy_ns_per_logit",
    "rounds",
)


@dataclass(frozen=True)
class _Bench:
    """What every row is measured with."""

    core: Core
    names: Sequence[str]
    """Those of the ten losses that the catalogue has."""
    libraries: Libraries | None
    budget_s: float


def run(core: Core, python: Path, *, quick: bool) -> Report:
    """Times of all shapes in float32 and float16, and of each family of losses alone.

    Args:
        core: what is measured.
        python: interpreter of an environment with MONAI and segmentation_models.pytorch.
        quick: two shapes, few rounds.
    """
    shapes = jobs.QUICK_SHAPES if quick else jobs.SHAPES
    names = jobs.available_of_ten()
    budget_s = _QUICK_SECONDS_PER_CASE if quick else _SECONDS_PER_CASE
    with libraries(python, torch.get_num_threads()) as others:
        bench = _Bench(core, names, others, budget_s)
        pairs = [_rows(bench, shape, dtype) for dtype in jobs.DTYPES for shape in shapes]
    rows, others_rows = [own for own, _ in pairs], [beside for _, beside in pairs]
    versions = {} if others is None else dict(others.versions)
    missing = [name for name in jobs.TEN if name not in names]
    return Report(
        name="core",
        sections=[
            Section("values and total gradient", rows, hidden=_HIDDEN),
            Section("times that others take, as multiples of the core's", others_rows, ("large",)),
            families.section(core, quick=quick),
        ],
        targets=_targets(rows, others_rows),
        notes=[
            f"'ten' are {len(names)} losses: {', '.join(names)}",
            *([f"not in the catalogue yet: {', '.join(missing)}"] if missing else []),
            "dtype is that of the logits and of the gradient; packing and unpacking are included",
            "pack: copying into tiles, by itself; 0 where the passes run on the request's tensors",
            "times are medians on a machine that may be shared: noisy, compare ratios",
            "ratios are medians over rounds in which everything compared was run in turn",
            "eager: plain torch, float32, autograd; separate: every loss makes its own softmax",
            "eager shared: softmax, one-hot target and sums made once for all losses",
            "copy: as many logits to as many of the gradient's dtype, from beyond the cache",
            *_library_notes(others),
            *families.NOTES,
        ],
        environment={
            **environment(core.device, core.mode),
            **{f"libraries: {name}": version for name, version in versions.items()},
        },
    )


def _library_notes(others: Libraries | None) -> list[str]:
    if others is None:
        return [ABSENT]
    return [
        "X over same: losses of library X against the core's with its preset, values compared",
        *(f"{library} has: {', '.join(losses)}" for library, losses in others.losses.items()),
    ]


def _rows(bench: _Bench, shape: jobs.Shape, dtype: GradientDtype) -> tuple[Row, Row]:
    """What the core takes, and what others take beside it."""
    core, names = bench.core, bench.names
    inputs = jobs.random_inputs(shape, seed=1, dtype=dtype)
    ten, dice = (
        jobs.job([inputs], losses, gradient="total", gradient_dtype=dtype)
        for losses in (names, ["dice"])
    )
    logits = torch.from_numpy(inputs["logits"]).to(core.device)
    label = torch.from_numpy(inputs["target"]).to(core.device)
    jobs.settle(core, shape, names, gradient="total")
    _check_agreement(core, ten, logits, label, names)
    timings = in_turns(
        {
            "copy": Copier(shape, TORCH_DTYPES[dtype], core.device),
            "dice": partial(core.evaluate, dice),
            "ten": partial(core.evaluate, ten),
            "shared": partial(together, logits, label, names),
            "separate": partial(separately, logits, label, names),
            **_library_work(bench, inputs, dtype),
        },
        budget_s=bench.budget_s,
        wait=core.wait,
    )
    pack_s = min(stage_seconds(core, ten)["pack"] for _ in range(_PACKING_RUNS))
    return _own(timings, shape, dtype, pack_s), _others(timings, shape, dtype)


def _library_work(
    bench: _Bench, inputs: Mapping[str, Array], dtype: GradientDtype
) -> dict[str, Work]:
    """Each library's losses, its Dice loss, and the core with the same losses."""
    if bench.libraries is None:
        return {}
    bench.libraries.open(inputs)
    work: dict[str, Work] = {}
    for library in _LIBRARIES:
        names = [name for name in bench.names if name in bench.libraries.losses[library]]
        same = jobs.job([inputs], names, preset=library, gradient="total", gradient_dtype=dtype)
        jobs.settle(bench.core, inputs["logits"].shape, names, preset=library, gradient="total")
        _check_library(bench.core, same, bench.libraries.values(library, names), library)
        work[library] = partial(bench.libraries.round, library, names)
        work[f"{library} dice"] = partial(bench.libraries.round, library, ["dice"])
        work[f"as {library}"] = partial(bench.core.evaluate, same)
    return work


def _own(timings: Timings, shape: jobs.Shape, dtype: str, pack_s: float) -> Row:
    count = math.prod(shape)
    return {
        **_case(shape, dtype),
        "dice_ns_per_logit": timings.median_s("dice") / count * 1e9,
        "ten_ns_per_logit": timings.median_s("ten") / count * 1e9,
        "pack_ns_per_logit": pack_s / count * 1e9,
        "ten_median_ms": timings.median_s("ten") * 1e3,
        "dice_min_ns_per_logit": timings.minimum_s("dice") / count * 1e9,
        "ten_min_ns_per_logit": timings.minimum_s("ten") / count * 1e9,
        "ten_over_dice": timings.ratio("ten", to="dice"),
        "copy_ns_per_logit": timings.median_s("copy") / count * 1e9,
        "ten_over_copy": timings.ratio("ten", to="copy"),
        "rounds": timings.rounds,
    }


def _others(timings: Timings, shape: jobs.Shape, dtype: str) -> Row:
    row: dict[str, Cell] = {
        **_case(shape, dtype),
        "eager_shared_over_ten": timings.ratio("shared", to="ten"),
        "eager_separate_over_ten": timings.ratio("separate", to="ten"),
    }
    for library in _LIBRARIES:
        there = library in timings.seconds
        nanoseconds = timings.median_s(library) / math.prod(shape) * 1e9 if there else None
        row |= {
            f"{library}_ns_per_logit": nanoseconds,
            f"{library}_over_same": timings.ratio(library, f"as {library}") if there else None,
            f"{library}_dice_over_dice": (
                timings.ratio(f"{library} dice", "dice") if there else None
            ),
        }
    return row


def _case(shape: jobs.Shape, dtype: str) -> dict[str, Cell]:
    return {
        "shape": "x".join(map(str, shape)),
        "dtype": dtype,
        "large": math.prod(shape) >= _LARGE_LOGITS,
    }


def _check_agreement(
    core: Core, ten: AnyJob, logits: torch.Tensor, label: torch.Tensor, names: Sequence[str]
) -> None:
    """Raises if the two sides of the comparison do not compute the same thing."""
    (outcome,) = core.evaluate(ten)
    values, _ = together(logits, label, names)
    for name, eager in zip(names, values.cpu().numpy(), strict=True):
        _check_close(name, outcome.tensors[f"loss/{name}"], eager, "plain torch")


def _check_library(core: Core, same: AnyJob, theirs: Mapping[str, float], library: str) -> None:
    """Raises if the library's mean values are not those of the core with its preset."""
    (outcome,) = core.evaluate(same)
    for name, value in theirs.items():
        _check_close(name, np.array(outcome.mean[name]), np.array(value), library)


def _check_close(name: str, ours: Array, theirs: Array, whose: str) -> None:
    worst = float(np.abs(ours - theirs).max())
    if worst > _MOST_DISAGREEMENT:
        msg = f"{name}: the core and {whose} differ by {worst}"
        raise RuntimeError(msg)


def _targets(rows: Sequence[Row], others_rows: Sequence[Row]) -> list[Target]:
    """Judged on large shapes: the worst of each figure."""
    where = "large shapes" if any(row["large"] for row in rows) else "all shapes"
    rows, others_rows = _judged(rows), _judged(others_rows)
    half = [row for row in rows if row["dtype"] == "float16"]
    over_dice = max(float(row["ten_over_dice"] or 0) for row in rows)
    cost = max(float(row["ten_ns_per_logit"] or 0) for row in half)
    return [
        Target(
            f"ten losses over Dice alone, worst of {where}",
            f"<= {_MOST_TEN_OVER_DICE}",
            f"{over_dice:.2f}",
            over_dice <= _MOST_TEN_OVER_DICE,
        ),
        Target(
            f"ten losses, float16 in and out, ns per logit, worst of {where}",
            f"<= {_MOST_NS_PER_LOGIT} on 2 CPU cores",
            f"{cost:.2f}",
            cost <= _MOST_NS_PER_LOGIT,
        ),
        *(
            _faster(what, column, others_rows, where)
            for what, column in (
                ("eager torch (each loss by itself)", "eager_separate_over_ten"),
                ("eager torch (shared softmax)", "eager_shared_over_ten"),
                *((f"{one} (the same losses)", f"{one}_over_same") for one in _LIBRARIES),
            )
            if others_rows[0][column] is not None
        ),
    ]


def _judged(rows: Sequence[Row]) -> Sequence[Row]:
    return [row for row in rows if row["large"]] or rows


def _faster(what: str, column: str, rows: Sequence[Row], where: str) -> Target:
    least = min(float(row[column] or 0) for row in rows)
    return Target(
        f"{what} over the core, worst of {where}",
        f">= {_LEAST_EAGER_OVER_TEN}",
        f"{least:.1f}",
        least >= _LEAST_EAGER_OVER_TEN,
    )
