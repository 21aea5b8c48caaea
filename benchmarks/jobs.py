"""Jobs to measure with, built as the service builds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.engine import Core
from lossd.core.heads import RECORDED_AFTER
from lossd.core.job import AnyJob
from lossd.losses import LOSSES
from lossd.protocols.admission import RequestLimits, build_job, read_request
from lossd_client.wire import Array, GradientDtype

Shape = tuple[int, ...]

TEN = (
    "cross_entropy",
    "focal",
    "dice",
    "dice_squared",
    "jaccard",
    "tversky",
    "focal_tversky",
    "generalized_dice",
    "log_cosh_dice",
    "matthews",
)
"""The ten losses that DESIGN names for the core's cost."""

SHAPES: tuple[Shape, ...] = (
    (1, 2, 64, 64),
    (1, 4, 256, 256),
    (8, 4, 256, 256),
    (4, 19, 256, 256),
    (1, 19, 512, 512),
    (8, 19, 512, 512),
    (2, 64, 128, 128),
    (1, 3, 32, 128, 128),
)
"""Of logits, from a crop to a batch of photographs, with many classes and as a volume."""
QUICK_SHAPES: tuple[Shape, ...] = ((1, 2, 64, 64), (2, 4, 64, 64))
DTYPES: tuple[GradientDtype, ...] = ("float32", "float16")
"""Of logits and gradient."""

_LIMITS = RequestLimits(samples=4096, classes=1024)
_BYTE_CLASSES = 256
_SETTLING_SIDE = 32


def available_of_ten() -> list[str]:
    """Those of the ten that the catalogue has."""
    return [name for name in TEN if name in LOSSES]


def random_inputs(shape: Shape, *, seed: int, dtype: str = "float32") -> dict[str, Array]:
    """Logits `[B, C, *S]` and labels `[B, *S]`; three of four pixels lean to their label.

    One channel is binary: labels 0 and 1. Labels are uint8, or int16 of more than 256 classes.
    """
    generator = np.random.default_rng(seed)
    binary = shape[1] == 1
    classes = 2 if binary else shape[1]
    dtype_of_labels = np.uint8 if classes <= _BYTE_CLASSES else np.int16
    labels = generator.integers(0, classes, (shape[0], *shape[2:]), dtype=dtype_of_labels)
    logits = generator.standard_normal(shape, dtype=np.float32)
    leaning = 3.0 * (generator.random(labels.shape) < 0.75)[:, None]  # noqa: PLR2004 - as said
    if binary:
        logits += leaning * (2.0 * labels[:, None] - 1.0)
    else:
        own = labels[:, None].astype(np.int64)
        np.put_along_axis(logits, own, np.take_along_axis(logits, own, 1) + leaning, 1)
    return {"logits": logits.astype(dtype), "target": labels}


def job(inputs: Sequence[Mapping[str, Array]], losses: Sequence[Any], **fields: Any) -> AnyJob:
    """Job of a request for these losses; `fields` are the request's other fields."""
    request = read_request({"losses": list(losses), **fields})
    return build_job(request, [dict(entry) for entry in inputs], _LIMITS)


def settle(core: Core, shape: Sequence[int], losses: Sequence[Any], **fields: Any) -> None:
    """Asks for losses of a small sample of that many channels until they are recorded.

    In a service they soon are; what comes before is no part of what a shape costs.
    """
    small = random_inputs((1, shape[1], _SETTLING_SIDE, _SETTLING_SIDE), seed=1)
    for _ in range(RECORDED_AFTER + len(losses)):
        core.evaluate(job([small], losses, **fields))
