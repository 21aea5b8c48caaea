"""Jobs to measure with, built as the service builds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lossd.core.job import AnyJob
from lossd.losses import LOSSES
from lossd.protocols.admission import RequestLimits, build_job, read_request
from lossd_client.wire import Array

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

_LIMITS = RequestLimits(samples=4096, classes=1024)


def available_of_ten() -> list[str]:
    """Those of the ten that the catalogue has."""
    return [name for name in TEN if name in LOSSES]


def random_inputs(shape: Shape, *, seed: int, dtype: str = "float32") -> dict[str, Array]:
    """Logits `[B, C, *S]` and uint8 labels `[B, *S]`; three of four pixels lean to their label."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, shape[1], (shape[0], *shape[2:]), dtype=np.uint8)
    logits = generator.standard_normal(shape, dtype=np.float32)
    leaning = generator.random(labels.shape) < 0.75  # noqa: PLR2004 - as the docstring says
    np.put_along_axis(
        logits,
        labels[:, None].astype(np.int64),
        np.take_along_axis(logits, labels[:, None].astype(np.int64), 1) + 3.0 * leaning[:, None],
        1,
    )
    return {"logits": logits.astype(dtype), "target": labels}


def job(inputs: Sequence[Mapping[str, Array]], losses: Sequence[Any], **fields: Any) -> AnyJob:
    """Job of a request for these losses; `fields` are the request's other fields."""
    request = read_request({"losses": list(losses), **fields})
    return build_job(request, [dict(entry) for entry in inputs], _LIMITS)
