"""What the plots of `docs/losses.md` are drawn from: each loss along a line through its inputs.

A sweep is a row of samples in which one quantity changes, and the direction in which the inputs
change with it. The service's own core computes values and gradients in float64; here is nothing
of any loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from lossd.core.compiled import KernelTable, eager_kernels
from lossd.core.evaluation import evaluate
from lossd.core.passes import Workspace
from lossd.losses import LOSSES
from lossd.protocols.admission import build_job, read_request
from lossd.protocols.arrays import RequestLimits
from lossd_client.wire import Array

LIMITS = RequestLimits(samples=4096, classes=64)
"""More than any sweep has."""
_RARE, _PEAK = 0.01, 1.5


@dataclass(frozen=True)
class Sweep:
    """Samples along a line."""

    label: str
    inputs: dict[str, Array]
    directions: dict[str, Array]
    """How the inputs change with the quantity that is swept."""
    parameters: dict[str, Any] = field(default_factory=dict)
    task: str | None = None


@dataclass(frozen=True)
class Figure:
    """Sweeps over the same positions."""

    axis: str
    slope: str
    """What the gradient is taken with respect to."""
    positions: Array
    sweeps: list[Sweep]
    limits: tuple[float, float] | None = None
    """Of the axis, where they are not those of the positions."""


def figure(name: str) -> Figure:
    """What a loss is drawn against."""
    loss = LOSSES[name]
    draw = _FIGURES.get(name) or _FAMILIES.get(loss.family) or _KINDS[loss.kind]
    return draw(name)


def at_places(drawn: Figure, places: Array) -> Figure:
    """The figure at some of its positions only."""

    def taken(arrays: Mapping[str, Array]) -> dict[str, Array]:
        count = len(drawn.positions)  # what belongs to all samples has another length
        return {key: one[places] if len(one) == count else one for key, one in arrays.items()}

    sweeps = [
        replace(one, inputs=taken(one.inputs), directions=taken(one.directions))
        for one in drawn.sweeps
    ]
    return replace(drawn, positions=drawn.positions[places], sweeps=sweeps)


def computed(name: str, sweep: Sweep) -> tuple[Array, Array]:
    """Value of a loss at every position of a sweep, and its derivative along the sweep."""
    document = {
        "losses": [{"name": name, "params": sweep.parameters}],
        "gradient": "total",
        **({"task": sweep.task} if sweep.task else {}),
    }
    job = build_job(read_request(document), [sweep.inputs], LIMITS)
    (outcome,) = evaluate([job], _kernels(), Workspace(torch.device("cpu"), 1 << 16))
    if isinstance(outcome, Exception):
        raise outcome
    slope = sum(
        (outcome.tensors[f"gradient/{key}"] * direction).reshape(len(direction), -1).sum(1)
        for key, direction in sweep.directions.items()
    )
    return outcome.tensors["total"], np.asarray(slope)


def without_peaks(numbers: Array) -> tuple[float, float] | None:
    """Limits of what nearly all numbers span, with a margin, where a few would dwarf them.

    Returns:
        None where none would.
    """
    low, high = (float(one) for one in np.quantile(numbers, [_RARE, 1 - _RARE]))
    if np.abs(numbers).max() <= _PEAK * max(abs(low), abs(high)):
        return None
    margin = (high - low) / 4
    return low - margin, high + margin


@cache
def _kernels() -> KernelTable:
    return eager_kernels()


# -- masks, against a probability ----------------------------------------------------------------

_PROBABILITIES = np.linspace(0.01, 0.99, 197)
_SURE = 0.999


def _odds(probability: Array) -> Array:
    return np.log(probability) - np.log1p(-probability)


def _object() -> Array:
    """A mask of 8 by 8 pixels, a quarter of them object."""
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 1
    return mask


def _mask_sweep(label: str, moving: Array, parameters: Mapping[str, Any]) -> Sweep:
    """The moving pixels are given their label with each probability, the others for sure."""
    mask = _object()
    sign = np.where(mask == 1, 1.0, -1.0)
    given = np.where(moving, _PROBABILITIES[:, None, None], _SURE)
    return Sweep(
        label,
        {
            "logits": (sign * _odds(given))[:, None],
            "target": np.broadcast_to(mask, given.shape).copy(),
        },
        {"logits": np.broadcast_to(sign * moving, given.shape)[:, None]},
        dict(parameters),
        "binary",
    )


def _probability_figure(sweeps: list[Sweep]) -> Figure:
    return Figure("probability p of the label", "common logit", _PROBABILITIES, sweeps, (0.0, 1.0))


def _masks(name: str) -> Figure:
    del name
    inside = _object() == 1
    return _probability_figure(
        [
            _mask_sweep("object given p (misses)", inside, {}),
            _mask_sweep("background given p (false alarms)", ~inside, {}),
        ]
    )


def _masks_by(parameter: str, *values: float) -> Callable[[str], Figure]:
    def draw(name: str) -> Figure:
        del name
        inside = _object() == 1
        return _probability_figure(
            [_mask_sweep(f"{parameter} {value:g}", inside, {parameter: value}) for value in values]
        )

    return draw


def _soft_targets(name: str) -> Figure:
    """One pixel whose target is a probability itself."""
    del name
    logits = _odds(_PROBABILITIES).reshape(-1, 1, 1)
    sweeps = [
        Sweep(
            f"target {target:g}",
            {"logits": logits, "target": np.full_like(logits, target)},
            {"logits": np.ones_like(logits)},
            task="binary",
        )
        for target in (0.5, 0.8, 1.0)
    ]
    return Figure("probability p", "logit", _PROBABILITIES, sweeps, (0.0, 1.0))


# -- masks, against a distance -------------------------------------------------------------------

_PIXELS = np.linspace(0.0, 10.0, 101)
_RADIUS, _SIZE = 8.0, 40
_BAR_SLOPE = 3.0  # logits per pixel of distance from the edge


def _distance_sweep(label: str, target: Array, logits: Array, direction: Array) -> Sweep:
    return Sweep(
        label,
        {
            "logits": logits[:, None],
            "target": np.broadcast_to(target.astype(np.uint8), logits.shape).copy(),
        },
        {"logits": direction[:, None]},
        task="binary",
    )


def _discs(slope: float) -> Callable[[str], Figure]:
    """A disc that is moved away from the target, and one that outgrows it.

    Args:
        slope: logits per pixel of distance from the edge.
    """

    def draw(name: str) -> Figure:
        del name
        rows, columns = np.mgrid[:_SIZE, :_SIZE].astype(float)
        middle = (_SIZE - 1) / 2
        start = middle - _PIXELS[-1] / 2
        across = columns - start - _PIXELS[:, None, None]
        distance = np.hypot(rows - middle, across)
        toward = np.divide(across, distance, out=np.zeros_like(distance), where=distance > 0)
        target = np.hypot(rows - middle, columns - start) < _RADIUS
        logits = slope * (_RADIUS - distance)
        moved = _distance_sweep("disc moved by x", target, logits, slope * toward)
        still = np.hypot(rows - middle, columns - middle)
        logits = slope * (_RADIUS + _PIXELS[:, None, None] - still)
        steady = np.full_like(logits, slope)
        grown = _distance_sweep("disc grown by x", still < _RADIUS, logits, steady)
        return Figure("x in pixels", "x", _PIXELS, [moved, grown])

    return draw


def _bars(name: str) -> Figure:
    """A bar that is moved away from the target, and one that grows thicker than it."""
    del name
    rows, columns = np.mgrid[:32, :_SIZE].astype(float)
    along = np.minimum(columns - 4, _SIZE - 5 - columns)
    height, half = 10.0, 1.5
    target = (np.abs(rows - height) < half) & (along >= 0)

    def bar(middle: Array, thickness: Array) -> Array:
        inside = thickness - np.abs(rows - middle)
        return np.asarray(_BAR_SLOPE * np.minimum(inside, along + 0.5))

    def moved(x: Array) -> Array:
        return bar(height + x, np.array(half))

    def thickened(x: Array) -> Array:
        return bar(np.array(height), half + x)

    sweeps = []
    positions = _PIXELS / 2
    for label, make in {"bar moved by x": moved, "thickened by x": thickened}.items():
        at, step = positions[:, None, None], 1e-6
        slope = (make(at + step) - make(at - step)) / (2 * step)
        sweeps.append(_distance_sweep(label, target, make(at), slope))
    return Figure("x in pixels", "x", positions, sweeps)


# -- tables --------------------------------------------------------------------------------------


def _boxes(name: str) -> Figure:
    """A box that is shifted off another one of its width."""
    del name
    shifts = np.linspace(0.005, 1.995, 200)
    return Figure(
        "shift in box widths",
        "shift",
        shifts,
        [_box_sweep("equal height", shifts, 1.0), _box_sweep("half as high", shifts, 0.5)],
        (0.0, 2.0),
    )


def _box_sweep(
    label: str, shifts: Array, height: float, parameters: dict[str, Any] | None = None
) -> Sweep:
    target = np.tile([0.0, 0.0, 1.0, 1.0], (len(shifts), 1))
    margin = (1.0 - height) / 2
    along = np.array([1.0, 0.0, 1.0, 0.0])
    prediction = np.array([0.0, margin, 1.0, 1.0 - margin]) + shifts[:, None] * along
    return Sweep(
        label,
        {"prediction": prediction, "target": target},
        {"prediction": np.tile(along, (len(shifts), 1))},
        parameters or {},
    )


def _box_forms(name: str) -> Figure:
    del name
    shifts = np.linspace(0.005, 0.9, 180)  # beyond, the logarithm dwarfs the other forms
    sweeps = [
        _box_sweep(f"form {form}", shifts, 1.0, {"form": form})
        for form in ("linear", "log", "squared")
    ]
    return Figure("shift in box widths", "shift", shifts, sweeps, (0.0, 1.0))


_ERRORS = np.linspace(-3.0, 3.0, 241)


def _values_by(parameter: str | None = None, *values: float) -> Callable[[str], Figure]:
    def draw(name: str) -> Figure:
        zeros = np.zeros((len(_ERRORS), 1))
        inputs = {"prediction": _ERRORS[:, None], "target": zeros}
        directions = {"prediction": np.ones_like(zeros)}
        sweeps = [Sweep(name, inputs, directions)]
        if parameter is not None:
            sweeps = [
                Sweep(f"{parameter} {value:g}", inputs, directions, {parameter: value})
                for value in values
            ]
        return Figure("error d", "d", _ERRORS, sweeps)

    return draw


def _harmonized_values(name: str) -> Figure:
    """One error among others that are small."""
    others = np.linspace(-0.01, 0.01, 7)
    prediction = np.column_stack([_ERRORS / 10, np.tile(others, (len(_ERRORS), 1))])
    direction = np.zeros_like(prediction)
    direction[:, 0] = 1.0
    inputs = {"prediction": prediction, "target": np.zeros_like(prediction)}
    sweep = Sweep(f"{name} of d and 7 small errors", inputs, {"prediction": direction})
    return Figure("error d", "d", _ERRORS / 10, [sweep])


def _pairs(name: str) -> Figure:
    del name
    distances = np.linspace(0.005, 2.0, 200)  # at 0 there is no direction
    along = np.column_stack([np.ones_like(distances), np.zeros_like(distances)])
    sweeps = [
        Sweep(
            label,
            {
                "first": np.zeros_like(along),
                "second": distances[:, None] * along,
                "similar": np.full(len(distances), similar),
            },
            {"second": along},
        )
        for label, similar in {"similar": 1, "dissimilar": 0}.items()
    ]
    return Figure("distance D", "D", distances, sweeps, (0.0, 2.0))


def _triplets(name: str) -> Figure:
    """Directions in a plane: the anchor at 0 degrees, the negative turning away from it."""
    del name
    degrees = np.linspace(0.0, 120.0, 241)
    angle = np.radians(degrees)
    negative = np.column_stack([np.cos(angle), np.sin(angle)])
    tangent = np.column_stack([-np.sin(angle), np.cos(angle)]) * np.pi / 180
    sweeps = []
    for positive in (20.0, 40.0):
        at = np.radians(positive)
        inputs = {
            "anchor": np.tile([1.0, 0.0], (len(degrees), 1)),
            "positive": np.tile([np.cos(at), np.sin(at)], (len(degrees), 1)),
            "negative": negative,
        }
        sweeps.append(Sweep(f"positive at {positive:g} degrees", inputs, {"negative": tangent}))
    return Figure("angle of the negative in degrees", "angle", degrees, sweeps)


def _centers(name: str) -> Figure:
    distances = np.linspace(0.0, 3.0, 121)
    along = np.column_stack([np.ones_like(distances), np.zeros_like(distances)])
    inputs = {
        "embeddings": distances[:, None] * along,
        "target": np.zeros(len(distances), np.int64),
        "centers": np.zeros((1, 2)),
    }
    return Figure(
        "distance to the center",
        "distance",
        distances,
        [Sweep(name, inputs, {"embeddings": along})],
    )


def _instances(name: str) -> Figure:
    """An instance of two pixels whose embeddings move apart."""
    del name
    distances = np.linspace(0.0, 2.0, 201)
    apart = np.array([-1.0, 1.0]) * np.ones((len(distances), 1, 1))
    inputs = {
        "embeddings": distances[:, None, None] * apart,
        "target": np.ones((len(distances), 2), np.int64),
    }
    sweeps = [
        Sweep(
            f"squared {str(squared).lower()}", inputs, {"embeddings": apart}, {"squared": squared}
        )
        for squared in (False, True)
    ]
    return Figure("distance of both pixels to their mean", "distance", distances, sweeps)


def _spatial_embeddings(name: str) -> Figure:
    """The left half is an instance; the embeddings of the background move away from it."""
    del name
    distances = np.linspace(0.0, 0.95, 191)
    target = np.zeros((len(distances), 12, 12), np.int64)
    target[:, :, :6] = 1
    background = (target == 0).astype(float)
    sweeps = []
    for bandwidth in (0.0, 0.2, 0.4):
        embeddings = np.zeros((len(distances), 4, 12, 12))
        embeddings[:, 0] = background * np.arctanh(distances)[:, None, None]
        embeddings[:, 2] = bandwidth
        embeddings[:, 3] = np.where(target == 1, 3.0, -3.0)
        direction = np.zeros_like(embeddings)
        direction[:, 0] = background / (1.0 - distances**2)[:, None, None]
        inputs = {"embeddings": embeddings, "target": target}
        sweeps.append(Sweep(f"bandwidth s {bandwidth:g}", inputs, {"embeddings": direction}))
    return Figure("distance of the background's embeddings", "distance", distances, sweeps)


def _margins(name: str) -> Figure:
    """Three scores, of which the right one leads by a margin."""
    del name
    margins = np.linspace(-3.0, 3.0, 241)
    along = np.tile([1.0, 0.0, 0.0], (len(margins), 1))
    inputs = {"logits": margins[:, None] * along, "target": np.zeros(len(margins), np.int64)}
    sweeps = [
        Sweep(f"margin {margin:g}", inputs, {"logits": along}, {"margin": margin})
        for margin in (0.5, 1.0, 2.0)
    ]
    return Figure("lead of the right class over two others", "lead", margins, sweeps)


def _qualities(name: str) -> Figure:
    del name
    logits = _odds(_PROBABILITIES)[:, None]
    sweeps = [
        Sweep(
            f"target {target:g}",
            {"logits": logits, "target": np.full_like(logits, target)},
            {"logits": np.ones_like(logits)},
        )
        for target in (0.0, 0.5, 1.0)
    ]
    return Figure("predicted quality", "logit", _PROBABILITIES, sweeps, (0.0, 1.0))


def _bins(name: str) -> Figure:
    """Bins 0 to 8, of which those near a place are likely."""
    del name
    places = np.linspace(0.0, 8.0, 161)
    bins = np.arange(9.0)
    away = bins - places[:, None]
    sweeps = [
        Sweep(
            f"target {target:g}",
            {"logits": -(away**2), "target": np.full(len(places), target)},
            {"logits": 2 * away},
        )
        for target in (4.0, 4.5)
    ]
    return Figure("bin around which the prediction lies", "bin", places, sweeps)


def _linear_scores(name: str) -> Figure:
    """Two classes whose scores are x and -x."""
    del name
    features = np.linspace(-3.0, 3.0, 121)[:, None]
    inputs = {
        "features": features,
        "weights": np.array([[1.0, -1.0]]),
        "target": np.zeros(len(features), np.int64),
    }
    sweeps = [
        Sweep(f"l2 {factor:g}", inputs, {"features": np.ones_like(features)}, {"l2": factor})
        for factor in (0.0, 0.1, 1.0)
    ]
    return Figure("feature x, scores x and -x", "x", features[:, 0], sweeps)


_KINDS: dict[str, Callable[[str], Figure]] = {
    "pixel": _masks,
    "box": _boxes,
    "value": _values_by(),
    "pair": _pairs,
    "triplet": _triplets,
    "center": _centers,
    "instance": _instances,
    "scores": _margins,
    "linear": _linear_scores,
}
_FAMILIES: dict[str, Callable[[str], Figure]] = {"boundary": _discs(1.0)}
_FIGURES: dict[str, Callable[[str], Figure]] = {
    "focal": _masks_by("gamma", 0, 1, 2, 5),
    "poly1_cross_entropy": _masks_by("epsilon", -1, 0, 1, 3),
    "kl_divergence": _soft_targets,
    "js_divergence": _soft_targets,
    "hausdorff_erosion": _discs(3.0),
    "structural_similarity": _discs(1.0),
    "soft_cldice": _bars,
    "iou_box": _box_forms,
    "smooth_l1": _values_by("beta", 0.5, 1, 2),
    "huber": _values_by("delta", 0.5, 1, 2),
    "ghm_regression": _harmonized_values,
    "spatial_embedding": _spatial_embeddings,
    "quality_focal": _qualities,
    "distribution_focal": _bins,
}
