"""The job as a server's callback computes it, for a batch that the server gathered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.frame import Answer, Array, Sample
from benchmarks.peers.servers import settings

Compute = Callable[[Sequence[Sample]], list[Answer]]
"""Answers of a batch, in order."""

_SMOOTH = 1.0


def open_core() -> Compute:
    """What computes, set up for this process."""
    torch.set_num_threads(settings.threads())
    if settings.core() != "lossd":
        return partial(with_torch, SHARED if settings.core() == "shared" else SEPARATE)
    from benchmarks.peers.servers.lossd_core import with_lossd  # noqa: PLC0415 - may be missing

    return with_lossd


@dataclass(frozen=True)
class Plain:
    """The job in plain torch."""

    losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Cross entropy and Dice of logits `[B, C, H, W]` and labels `[B, H, W]`."""
    to_half: Callable[[Tensor], Array]
    """Rounds the gradient."""


def with_torch(plain: Plain, samples: Sequence[Sample]) -> list[Answer]:
    """Plain torch. No peer groups by image size, so this does: one size is computed together."""
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, sample in enumerate(samples):
        groups[sample.logits.shape[1:]].append(number)
    answers: dict[int, Answer] = {}
    for numbers in groups.values():
        together = _compute(
            plain,
            _joined([samples[number].logits for number in numbers]),
            _joined([samples[number].target for number in numbers]),
        )
        first = 0
        for number in numbers:
            last = first + len(samples[number].logits)
            answers[number] = Answer(*(array[first:last] for array in together))
            first = last
    return [answers[number] for number in range(len(samples))]


def _compute(plain: Plain, logits: Array, target: Array) -> Answer:
    """In float32."""
    leaf = torch.from_numpy(logits.astype(np.float32)).requires_grad_()
    labels = torch.from_numpy(target.astype(np.int64))
    cross_entropy, dice = plain.losses(leaf, labels)
    (gradient,) = torch.autograd.grad(cross_entropy.sum() + dice.sum(), leaf)
    half = plain.to_half(gradient)
    return Answer(cross_entropy.detach().numpy(), dice.detach().numpy(), half)


def _shared(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    log_p = functional.log_softmax(logits, 1)
    cross_entropy = functional.nll_loss(log_p, labels, reduction="none").mean((1, 2))
    return cross_entropy, _dice(log_p.exp(), labels)


def _separate(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    cross_entropy = functional.cross_entropy(logits, labels, reduction="none").mean((1, 2))
    return cross_entropy, _dice(logits.softmax(1), labels)


def _dice(p: Tensor, labels: Tensor) -> Tensor:
    t = functional.one_hot(labels, p.shape[1]).movedim(-1, 1).to(p.dtype)
    both = (p * t).sum((2, 3))
    size = p.sum((2, 3)) + t.sum((2, 3))
    return 1 - ((2 * both + _SMOOTH) / (size + _SMOOTH)).mean(1)


SHARED: Final = Plain(_shared, lambda gradient: gradient.half().numpy())
SEPARATE: Final = Plain(_separate, lambda gradient: gradient.numpy().astype(np.float16))


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
