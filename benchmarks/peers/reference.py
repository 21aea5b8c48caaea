"""The job in float64 numpy, by its formulas, and how far an answer may be from it."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.frame import Answer, Array, Sample

SMOOTH = 1.0
_VALUE_TOLERANCE = 1e-4
_RELATIVE, _HALF_STEP = 2e-3, 6e-8
"""Of a float16 gradient: its relative precision twice over, and the step of its denormals."""


class WrongAnswerError(Exception):
    """A server answered something else than the reference."""


def reference(sample: Sample) -> Answer:
    """Values and gradient in float64.

    Formula, per sample, over its P pixels, with p the softmax and t the one-hot target:
    cross_entropy = -(1/P) sum_i log p[t_i];
    dice = 1 - (1/C) sum_c (2 sum p t + 1) / (sum p + sum t + 1).
    """
    logits = sample.logits.astype(np.float64)
    classes = logits.shape[1]
    pixels = logits.shape[2] * logits.shape[3]
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    p = np.exp(log_p)
    t = (sample.target[:, None] == np.arange(classes)[:, None, None]).astype(np.float64)
    both = (p * t).sum((2, 3), keepdims=True)
    size = p.sum((2, 3), keepdims=True) + t.sum((2, 3), keepdims=True)
    by_p = -(2 * t * (size + SMOOTH) - (2 * both + SMOOTH)) / (size + SMOOTH) ** 2 / classes
    return Answer(
        cross_entropy=-(log_p * t).sum((1, 2, 3)) / pixels,
        dice=1 - ((2 * both + SMOOTH) / (size + SMOOTH)).mean((1, 2, 3)),
        gradient=(p - t) / pixels + p * (by_p - (p * by_p).sum(1, keepdims=True)),
    )


def check(answer: Answer, expected: Answer) -> None:
    """Nothing, if the answer is right.

    Raises:
        WrongAnswerError: a shape, value or derivative differs.
    """
    for name, got, right in zip(Answer._fields, answer, expected, strict=True):
        tolerance = _tolerance(name, right)
        if got.shape != right.shape:
            raise WrongAnswerError(f"{name} has shape {got.shape}, not {right.shape}")
        if not (np.abs(got - right) <= tolerance).all():
            worst = float(np.abs(got - right).max())
            raise WrongAnswerError(f"{name} is off by up to {worst:.3g}")


def _tolerance(name: str, right: Array) -> Array | float:
    return _HALF_STEP + _RELATIVE * np.abs(right) if name == "gradient" else _VALUE_TOLERANCE
