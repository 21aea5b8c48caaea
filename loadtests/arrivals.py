"""When requests start: the models of load."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

Model = Literal["closed", "constant", "poisson"]

MODELS: tuple[Model, ...] = ("closed", "constant", "poisson")
OPEN_MODELS: tuple[Model, ...] = ("constant", "poisson")
"""Those in which a request does not wait for the one before it."""


def offsets_s(model: Model, rate_per_s: float, seed: int) -> Iterator[float]:
    """When the requests of an open model are due, in seconds from the start, without end.

    Args:
        model: `constant`: evenly spaced; `poisson`: at random, as independent callers come.
        rate_per_s: how many a second, on average.
        seed: of the random ones.

    Raises:
        ValueError: the model is no open one: its requests are due when another ends.
    """
    if model not in OPEN_MODELS:
        msg = f"{model} has no schedule"
        raise ValueError(msg)
    return _offsets_s(model, rate_per_s, random.Random(seed))  # noqa: S311 - no secret


def _offsets_s(model: Model, rate_per_s: float, generator: random.Random) -> Iterator[float]:
    due_s, count = 0.0, 0
    while True:
        yield due_s
        count += 1
        # a product, not a sum, so that an even schedule does not drift
        due_s = (
            count / rate_per_s if model == "constant" else due_s + generator.expovariate(rate_per_s)
        )
