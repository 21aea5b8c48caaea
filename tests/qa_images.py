"""Predictions and masks for the tests of annotation QA, and its definitions written out again."""

import math

import numpy as np
from scipy import ndimage

from lossd_client.wire import Array


def softmax(logits: Array) -> Array:
    """Probabilities `[C, H, W]` in float64."""
    wide = logits.astype(np.float64)
    exponential = np.exp(wide - wide.max(0))
    found: Array = exponential / exponential.sum(0)
    return found


def picture(seed: int, classes: int = 4, size: tuple[int, int] = (31, 44)) -> tuple[Array, Array]:
    """Smooth logits `[C, H, W]` float32, and a mask `[H, W]` uint8 that differs in places."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(classes, *size)), (0, 4, 4)) * 40
    target = fields.argmax(0).astype(np.uint8)
    for _ in range(4):
        y, x = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
        target[y : y + 5, x : x + 6] = rng.integers(0, classes)
    return fields.astype(np.float32), target


def outlined(seed: int, *, corners: int | None) -> tuple[Array, Array]:
    """Logits of a wavy object `[2, 120, 140]`, and a mask of it, or one of so many corners."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((120, 140)) - np.array([60, 70])[:, None, None]
    angle, radius = np.arctan2(y, x), np.hypot(y, x)
    turn = rng.uniform(0, 2 * np.pi, 3)
    edge = 44 + sum(
        size * np.sin(waves * angle + start)
        for size, waves, start in zip((3.0, 2.0, 1.5), (5, 11, 17), turn, strict=True)
    )
    logits = np.stack([radius - edge, edge - radius]).astype(np.float32)
    if corners is not None:
        sector = 2 * np.pi / corners
        from_middle = (angle + turn[0]) % sector - sector / 2
        edge = 40 * np.cos(sector / 2) / np.cos(from_middle) * 1.2
    return logits, (radius < edge).astype(np.uint8)


def cross_entropy(probabilities: Array, target: Array) -> Array:
    """`min(-ln p(given), 16)`, `[H, W]` float64."""
    own = np.take_along_axis(probabilities, target[None].astype(np.intp), 0)[0]
    loss: Array = np.minimum(-np.log(own), 16.0)
    return loss


def class_tail_score(histogram: Array, labels: Array, levels: Array, valid: Array) -> float:
    """Mean of the largest 0.3 % of the class-tails of an image, pixel by pixel."""
    tails = []
    for label, level in zip(labels[valid].tolist(), levels[valid].tolist(), strict=True):
        row = histogram[label]
        tails.append(-math.log((1 + int(row[level:].sum())) / (1 + int(row.sum()))))
    tails.sort(reverse=True)
    wanted = max(1, math.ceil(len(tails) * 0.003))
    return sum(tails[:wanted]) / wanted
