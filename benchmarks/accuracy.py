"""Float32 answers of every loss against the same job computed in float64.

The inputs are converted to float64 exactly, so what is compared is the arithmetic alone. That the
float64 formulas are right is shown by the tests, not here. Losses that are no functions of sums are
computed in float64 whatever is sent: what is left of their error is the rounding of the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import jobs
from benchmarks.engine import Core
from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.row_inputs import ROW_LOSSES, differentiable, inputs_of
from lossd.core.job import Outcome
from lossd.losses import LOSSES, Task
from lossd.losses.declare import TileLoss
from lossd_client.wire import NUMPY_DTYPES, Array

_SHAPES = (2, 3, 60, 80), (3, 5, 96, 100), (1, 5, 512, 512)
_QUICK_SHAPES = ((1, 3, 12, 16),)
_GAPS = (4, 8, 12, 16, 20, 24, 28, 32)
_QUICK_GAPS = (4, 32)
_EXTREME, _DENORMAL_GAP = 1e4, 92.0  # e^-92 is 1e-40, below the smallest normal float32
_LARGEST_SIDE = 16384
_VALUE_RELATIVE, _VALUE_ABSOLUTE, _GRADIENT_RELATIVE = 2e-6, 1e-9, 1e-5
_MOST_LOGITS_OF_SAMPLE_LOSSES = 200_000
_ON_SHARE = 0.3
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Case:
    """Inputs of one kind for one task."""

    name: str
    task: Task
    target: str
    logits: Array
    truth: Array


@dataclass(frozen=True)
class Errors:
    """How far a float32 answer is from the float64 one; 1 is what is allowed."""

    value: float
    gradient: float


def run(core: Core, *, quick: bool) -> Report:
    """Worst errors of each loss over all cases, and of each case over all losses."""
    by_loss: dict[str, dict[str, Errors]] = {}
    for case in _cases(quick=quick):
        for loss, errors in _errors(core, case).items():
            where = f"{case.name}, {case.task} ({case.target}; C = {case.logits.shape[1]})"
            by_loss.setdefault(loss, {})[where] = errors
    for loss in ROW_LOSSES:
        for dtype in ("float32", "float16", "bfloat16"):
            where = f"random {dtype}, {ROW_LOSSES[loss].kind}"
            by_loss.setdefault(loss, {})[where] = _row_errors(core, loss, dtype)
    rows = [_worst(loss, found) for loss, found in sorted(by_loss.items())]
    largest = [] if quick else list(_largest_mask(core))
    value = max(float(row["value_error"] or 0) for row in [*rows, *largest])
    gradient = max(float(row["gradient_error"] or 0) for row in rows)
    return Report(
        name="accuracy",
        sections=[
            Section("worst errors of each loss, as multiples of what is allowed", rows),
            Section("worst errors of each kind of input, over losses and tasks", _by_kind(by_loss)),
            *([Section(f"a binary mask of {_LARGEST_SIDE}²", largest)] if largest else []),
        ],
        targets=[
            Target(
                "worst |error| / (2e-6 |value| + 1e-9)",
                "<= 1",
                f"{value:.3g}",
                value <= 1.0,
                binding=True,
            ),
            Target(
                "worst |gradient error| / (1e-5 largest |gradient| of the sample)",
                "<= 1",
                f"{gradient:.3g}",
                gradient <= 1.0,
                binding=True,
            ),
        ],
        notes=[
            "gradient errors below the smallest normal float32 are allowed (good masks, focal)",
        ],
        environment=environment(core.device, core.mode),
    )


def _cases(*, quick: bool) -> Iterator[Case]:
    gaps = _QUICK_GAPS if quick else _GAPS
    for shape in _QUICK_SHAPES if quick else _SHAPES:
        for task, target in _TARGETS:
            yield from _cases_of(shape, task, target, gaps)


_TARGETS: tuple[tuple[Task, str], ...] = (
    ("multiclass", "labels"),
    ("multiclass", "distribution"),
    ("binary", "labels"),
    ("multilabel", "masks"),
    ("multilabel", "soft masks"),
)


def _cases_of(shape: jobs.Shape, task: Task, target: str, gaps: Sequence[int]) -> Iterator[Case]:
    if task == "binary":
        shape = (shape[0], 1, *shape[2:])
    generator = np.random.default_rng(7)
    truth, sign = _truth(generator, shape, task, target)
    noise = generator.standard_normal(shape, dtype=np.float32)

    def case(name: str, logits: Array) -> Case:
        return Case(name, task, target, logits, truth)

    yield case("random", 3.0 * noise)
    for dtype in ("float16", "bfloat16"):
        yield case(f"random {dtype}", (3.0 * noise).astype(NUMPY_DTYPES[dtype]))
    for gap in gaps:
        yield case(f"good mask, gap {gap}", np.float32(gap) * sign)
    yield case("good mask, gap 16, noise", np.float32(16.0) * sign + noise)
    yield case("good mask, denormal probabilities", np.float32(_DENORMAL_GAP) * sign)
    yield case("random sign, denormal probabilities", np.float32(_DENORMAL_GAP) * np.sign(noise))
    yield case("right by 1e4", np.float32(_EXTREME) * sign)
    yield case("random sign of 1e4", np.float32(_EXTREME) * np.sign(noise))


def _truth(
    generator: np.random.Generator, shape: jobs.Shape, task: Task, target: str
) -> tuple[Array, Array]:
    """Target, and logits that are right about it by a gap of 1."""
    spatial = (shape[0], *shape[2:])
    if task == "multiclass":
        labels = generator.integers(0, shape[1], spatial)
        classes = np.arange(shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))
        own = (labels[:, None] == classes).astype(np.float32)
        if target == "labels":
            return labels.astype(np.uint8), own
        return (0.9 * own + 0.1 / shape[1]).astype(np.float32), own
    on = generator.random(shape) < _ON_SHARE
    sign = np.where(on, 1.0, -1.0).astype(np.float32)
    if target == "soft masks":
        return np.where(on, 0.9, 0.05).astype(np.float32), sign
    return on.astype(np.uint8), sign


def _errors(core: Core, case: Case) -> dict[str, Errors]:
    small = case.logits.size <= _MOST_LOGITS_OF_SAMPLE_LOSSES
    found: dict[str, Errors] = {}
    for names in _together(case.task):
        if small or isinstance(LOSSES[names[0]], TileLoss):
            found |= _errors_of(core, case, names)
    return found


def _together(task: Task) -> list[list[str]]:
    """Losses that one request may ask for without changing how the others are computed."""
    groups: dict[str, list[str]] = {}
    for name, loss in LOSSES.items():
        if task in loss.tasks:
            kind = loss.vocabulary if isinstance(loss, TileLoss) else "whole"
            groups.setdefault(kind, []).append(name)
    return list(groups.values())


def _errors_of(core: Core, case: Case, names: list[str]) -> dict[str, Errors]:
    single, double = (
        core.evaluate(
            jobs.job(
                [{"logits": logits, "target": case.truth}], names, task=case.task, gradient="each"
            )
        )[0]
        for logits in (case.logits, case.logits.astype(np.float64))
    )
    return {
        name: Errors(
            _value_error(single, double, name), _gradient_error(single, double, f"logits/{name}")
        )
        for name in names
    }


def _row_errors(core: Core, name: str, dtype: str) -> Errors:
    """Errors of a loss without pixels, over all of its gradients."""
    wanted = differentiable(name)
    given = {
        key: array.astype(NUMPY_DTYPES[dtype]) if key in wanted else array
        for key, array in inputs_of(name, seed=7).items()
    }
    exact = {
        key: array.astype(np.float64) if key in wanted else array for key, array in given.items()
    }
    single, double = (
        core.evaluate(jobs.job([inputs], [name], gradient="total"))[0] for inputs in (given, exact)
    )
    gradients = [_gradient_error(single, double, key) for key in wanted]
    return Errors(_value_error(single, double, name), max(gradients))


def _largest_mask(core: Core) -> Iterator[Row]:
    """Values of a mask of 2^28 pixels that repeats one row, against those of the row."""
    generator = np.random.default_rng(11)
    row = generator.standard_normal(_LARGEST_SIDE).astype(np.float16) * np.float16(2.0)
    labels = (generator.random(_LARGEST_SIDE) < _ON_SHARE).astype(np.uint8)
    names = ["bce", "dice", "jaccard", "focal", "matthews"]

    def values(logits: Array, target: Array) -> Outcome:
        inputs = {"logits": logits[None, None], "target": target[None]}
        return core.evaluate(jobs.job([inputs], names, task="binary"))[0]

    small = values(row.astype(np.float64), labels)
    large = values(np.tile(row, (_LARGEST_SIDE, 1)), np.tile(labels, (_LARGEST_SIDE, 1)))
    for name in names:
        truth, found = (float(one.tensors[f"loss/{name}"][0]) for one in (small, large))
        error = abs(found - truth) / (_VALUE_RELATIVE * abs(truth) + _VALUE_ABSOLUTE)
        # Smoothing of 1e-5 pixels in a row is nothing in the mask: a few 1e-9 of the value.
        yield {"loss": name, "value": found, "of_one_row": truth, "value_error": error}


def _value_error(single: Outcome, double: Outcome, name: str) -> float:
    truth = double.tensors[f"loss/{name}"]
    error = np.abs(single.tensors[f"loss/{name}"] - truth)
    return _finite_max(error / (_VALUE_RELATIVE * np.abs(truth) + _VALUE_ABSOLUTE))


def _gradient_error(single: Outcome, double: Outcome, key: str) -> float:
    truth = double.tensors[f"gradient/{key}"]
    truth = truth.reshape(len(truth), -1)
    found = single.tensors[f"gradient/{key}"].reshape(truth.shape).astype(np.float64)
    largest = np.abs(truth).max(1)
    allowed = np.maximum(_GRADIENT_RELATIVE * largest, _SMALLEST_NORMAL)
    return _finite_max(np.abs(found - truth).max(1) / allowed)


def _finite_max(errors: Array) -> float:
    """Largest entry; infinite where one is NaN, which a comparison would let through."""
    return float(np.nan_to_num(errors, nan=np.inf).max())


def _worst(loss: str, found: Mapping[str, Errors]) -> Row:
    value = max(found, key=lambda where: found[where].value)
    gradient = max(found, key=lambda where: found[where].gradient)
    return {
        "loss": loss,
        "value_error": found[value].value,
        "value_worst_at": value,
        "gradient_error": found[gradient].gradient,
        "gradient_worst_at": gradient,
    }


def _by_kind(by_loss: Mapping[str, Mapping[str, Errors]]) -> list[Row]:
    kinds: dict[str, list[Errors]] = {}
    for found in by_loss.values():
        for where, errors in found.items():
            kinds.setdefault(where.rpartition(", ")[0], []).append(errors)
    return [
        {
            "input": kind,
            "value_error": max(error.value for error in errors),
            "gradient_error": max(error.gradient for error in errors),
        }
        for kind, errors in kinds.items()
    ]
