"""Requests of which something has never been seen before: the size, the classes, the losses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from benchmarks import jobs
from benchmarks.http_calls import request_body
from lossd.core.job import AnyJob
from lossd.losses import LOSSES
from lossd.losses.declare import TileLoss
from lossd_client.wire import Array

New = Literal["size", "classes", "losses", "all"]
NEW: Final[tuple[New, ...]] = ("size", "classes", "losses", "all")

_USUAL_SIZE: Final = (64, 64)
_USUAL_CLASSES: Final = 4
_USUAL_LOSSES: Final = ("dice", "cross_entropy", "focal")
_SIDES: Final = (32, 112)
_FEWEST_CLASSES: Final = 2
_MOST_LOSSES: Final = 6
_FIELDS: Final = {"gradient": "total", "gradient_dtype": "float16"}

_Size = tuple[int, int]
_LossSet = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One request."""

    inputs: dict[str, Array]
    losses: _LossSet

    def body(self) -> bytes:
        """As it is sent."""
        return request_body(self.inputs, {"losses": self.losses, **_FIELDS})

    def job(self) -> AnyJob:
        """As it is computed."""
        return jobs.job([self.inputs], self.losses, **_FIELDS)


def cases(new: New, count: int, seed: int) -> Iterator[Case]:
    """Requests no two of which agree in what is new about them; the rest is always the same.

    Sizes are drawn from the pairs of two sides, numbers of classes are those from 2 on in any
    order, loss sets are drawn from the losses of sums, lean and rich, with parameters of their own.

    Args:
        new: what is new about each.
        count: how many.
        seed: of everything drawn.
    """
    random = np.random.default_rng(seed)
    sizes = _sizes(random) if new in ("size", "all") else itertools.repeat(_USUAL_SIZE)
    classes: Iterator[int] = itertools.repeat(_USUAL_CLASSES)
    if new in ("classes", "all"):
        classes = iter((random.permutation(count) + _FEWEST_CLASSES).tolist())
    losses: Iterator[_LossSet] = itertools.repeat([{"name": name} for name in _USUAL_LOSSES])
    if new in ("losses", "all"):
        losses = _loss_sets(random)
    for index in range(count):
        height, width = next(sizes)
        shape = (1, next(classes), height, width)
        inputs = jobs.random_inputs(shape, seed=seed + index, dtype="float16")
        yield Case(inputs, next(losses))


def _sizes(random: np.random.Generator) -> Iterator[_Size]:
    sides = range(*_SIDES)
    pairs = list(itertools.product(sides, sides))
    for index in random.permutation(len(pairs)):
        yield pairs[index]


def _loss_sets(random: np.random.Generator) -> Iterator[_LossSet]:
    names = sorted(
        name
        for name, loss in LOSSES.items()
        if isinstance(loss, TileLoss) and "multiclass" in loss.tasks
    )
    seen: set[frozenset[str]] = set()
    while True:
        chosen = random.choice(names, random.integers(1, _MOST_LOSSES + 1), replace=False).tolist()
        if frozenset(chosen) not in seen:
            seen.add(frozenset(chosen))
            yield [_loss(random, name) for name in chosen]


def _loss(random: np.random.Generator, name: str) -> dict[str, Any]:
    loss: dict[str, Any] = {"name": name, "weight": round(float(random.uniform(0.1, 2.0)), 6)}
    if name == "focal":
        loss["params"] = {"gamma": round(float(random.uniform(0.5, 4.0)), 6)}
    return loss
