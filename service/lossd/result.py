"""What an evaluation in the process gave: the attributes of the client's `Result`, no copies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossd.core.job import Job, RowJob
from lossd_client.wire import Array, BatchInfo, FilledPreset, Timing, dtype_name, numbered

_HALF_PRECISION = ("float16", "bfloat16")


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Losses of one call, and what else it asked for.

    `result["dice"]` is short for `result.losses["dice"]`. `B` counts the samples of the call; of
    several input objects, those of the first come first. All arrays are numpy's, in main memory and
    the caller's own; `torch.from_numpy` makes a tensor of one without a copy.

    Attributes:
        losses: value of every sample by label, `[B]` float64.
        total: Σ weight · loss of every sample, `[B]` float64.
        mean: mean over the samples by label; None where it is not a number.
        gradient: gradient by input name, of that input's shape: `gradient["logits"]`; with
            `gradient="each"` a mapping by label: `gradient["logits"]["dice"]`. Where the call gave
            `inputs`, a list with one such entry per input object. Half precision is scaled back and
            given as float32. Row `b` is the derivative of sample `b`'s own value.
        maps: value of every pixel by label, `[B, *S]`; where the call gave `inputs`, a list with
            one array per input object.
        per_class: value of every class by label, `[B, C]`; NaN where a class does not count.
        statistics: `soft_tp`, `hard_fn`, `pixels`, … of every class, `[B, C]`.
        warnings: what is odd about the call, one sentence each.
        preset: what the call's preset filled in; None where there was none.
        timing_ms: milliseconds that the call waited for another one's end (`queue`), computed, and
            took in all.
        batch: how many samples it had; one request.
        device: device that computed it.
        numerics_version: changes whenever the bits of any answer may change.
        request_id: what the caller gave; empty otherwise.
    """

    losses: Mapping[str, Array]
    total: Array
    mean: Mapping[str, float | None]
    gradient: Mapping[str, Any]
    maps: Mapping[str, Any]
    per_class: Mapping[str, Array]
    statistics: Mapping[str, Array]
    warnings: tuple[str, ...]
    preset: FilledPreset | None
    timing_ms: Timing
    batch: BatchInfo
    device: str
    numerics_version: str
    request_id: str

    def __getitem__(self, label: str) -> Array:
        """Values of one loss, `[B]` float64.

        Raises:
            KeyError: the call did not ask for that label; the message lists those it did.
        """
        if label not in self.losses:
            raise KeyError(f"no loss {label!r} in this result; it has {', '.join(self.losses)}")
        return self.losses[label]

    def __repr__(self) -> str:
        return f"Result(samples={len(self.total)}, mean={dict(self.mean)})"


def finite_means(means: Mapping[str, float]) -> dict[str, float | None]:
    """Means as JSON has them: None where one is not a number.

    Example:
        >>> finite_means({"dice": 0.5, "boundary": math.nan})
        {'dice': 0.5, 'boundary': None}
    """
    return {label: mean if math.isfinite(mean) else None for label, mean in means.items()}


def gradients_of(
    job: Job | RowJob, tensors: Mapping[str, Array], *, listed: bool
) -> dict[str, Any]:
    """`Result.gradient` from the tensors of an outcome.

    Args:
        job: that was computed.
        tensors: by their name on the wire.
        listed: whether each entry is a list over the job's parts.
    """
    if job.gradient == "none":
        return {}
    names = (job.differentiable,) if isinstance(job, Job) else job.differentiable
    count = len(job.parts)

    def read(path: str) -> Iterator[Array]:
        for index in range(count):
            stored = tensors[numbered(index, f"gradient/{path}", count)]
            yield _unscaled(stored, tensors.get(numbered(index, f"gradient_scale/{path}", count)))

    if job.gradient == "total":
        return {name: _one_or_all(list(read(name)), listed=listed) for name in names}
    labels = [call.label for call in job.calls]
    return {
        name: _one_or_all(
            [
                dict(zip(labels, rows, strict=True))
                for rows in zip(*(read(f"{name}/{label}") for label in labels), strict=True)
            ],
            listed=listed,
        )
        for name in names
    }


def maps_of(job: Job | RowJob, tensors: Mapping[str, Array], *, listed: bool) -> dict[str, Any]:
    """`Result.maps`, likewise; only losses that have a map are in it."""
    count = len(job.parts)
    found: dict[str, Any] = {}
    for call in job.calls:
        names = [numbered(index, f"map/{call.label}", count) for index in range(count)]
        if names[0] in tensors:
            found[call.label] = _one_or_all([tensors[name] for name in names], listed=listed)
    return found


def table_of(tensors: Mapping[str, Array], kind: str) -> dict[str, Array]:
    """Tensors of a kind by what follows it in their names.

    Example:
        >>> table_of({"total": np.zeros(1), "per_class/dice": np.ones((1, 2))}, "per_class")
        {'dice': array([[1., 1.]])}
    """
    start = f"{kind}/"
    return {name[len(start) :]: tensors[name] for name in tensors if name.startswith(start)}


def _one_or_all(parts: Sequence[Any], *, listed: bool) -> Any:
    return list(parts) if listed else parts[0]


def _unscaled(stored: Array, scale: Array | None) -> Array:
    """A gradient without the powers of two that kept half precision in its range."""
    if dtype_name(stored) not in _HALF_PRECISION:
        return stored
    gradient = stored.astype(np.float32)
    if scale is not None:
        gradient *= scale.reshape(-1, *(1,) * (stored.ndim - 1))
    return gradient
