"""Samples made by hand, and the losses that look at whole samples called on them directly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lossd.core.distance import DistanceMaps
from lossd.losses import LOSSES
from lossd.losses.declare import SampleLoss, SampleValues
from lossd.losses.mask_class import MaskClass
from lossd.losses.mask_sample import MaskSample
from lossd.losses.slopes import Slopes, Weighed

_SAMPLE_FIELDS = ("task", "valid", "weight_map", "activated", "spacing")


@dataclass(frozen=True)
class Answer:
    values: SampleValues
    value: float
    gradient: Tensor


def one_hot(labels: Sequence[int] | Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(labels), classes).movedim(-1, 0).double()


def sample_of(
    scores: Tensor,
    target: Tensor,
    *,
    task: Any = "binary",
    valid: Tensor | None = None,
    weight_map: Tensor | None = None,
    activated: bool = False,
    spacing: tuple[float, ...] | None = None,
    class_weights: Sequence[float] | None = None,
) -> MaskSample:
    """A sample of logits, or of probabilities if `activated`."""
    return MaskSample(
        task=task,
        scores=scores.logit() if activated else scores,
        activated=activated,
        target=target,
        valid=torch.ones(scores.shape[1:], dtype=torch.bool) if valid is None else valid,
        weight_map=weight_map,
        spacing=spacing or (1.0,) * (scores.ndim - 1),
        distances=DistanceMaps(),
        class_weights=None if class_weights is None else tuple(class_weights),
    )


def class_of(scores: Tensor, target: Tensor, **more: Any) -> MaskClass:
    """The first channel of a sample."""
    return MaskClass(sample_of(scores, target, **more), 0)


def value_of(name: str, scores: Tensor, target: Tensor, **more: Any) -> SampleValues:
    """The loss with its parameters, which are whatever is no field of the sample.

    Its value follows the scores where they are differentiated.
    """
    loss = LOSSES[name]
    assert isinstance(loss, SampleLoss)
    fields = {key: more.pop(key) for key in _SAMPLE_FIELDS if key in more}
    task = fields.get("task", "binary")
    options = loss.read_options(more, task=task, channels=len(scores), loc=())
    weights = getattr(options, "class_weights", None)
    with torch.no_grad():
        sample = sample_of(scores.detach(), target, **fields, class_weights=weights)
        if not scores.requires_grad:
            return loss.value(sample, options)
        slopes = Slopes(sample, torch.float64)
        values = loss.value(sample, options, Weighed(slopes, 1.0))
        gradient = slopes.gradient()
        if sample.activated:
            gradient /= scores * (1.0 - scores)
    value = _Differentiable.apply(scores, values.value, gradient)  # type: ignore[no-untyped-call]
    return replace(values, value=value)


class _Differentiable(torch.autograd.Function):
    """A value with a known gradient, so that autograd's own checks can be asked about it."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        del scores
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, of_value: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return of_value * gradient, None, None


def answer(name: str, scores: Tensor, target: Tensor, **more: Any) -> Answer:
    leaf = scores.detach().clone().requires_grad_()
    values = value_of(name, leaf, target, **more)
    (gradient,) = torch.autograd.grad(values.value, leaf)
    return Answer(values, float(values.value.detach()), gradient)


def cross_entropy(scores: Tensor, target: Tensor) -> float:
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    return float(bce(scores, target))


def random_sample(
    task: str, seed: int, shape: tuple[int, ...] = (6, 7), *, soft: bool = False
) -> dict[str, Any]:
    """Arguments of `answer`: everything a sample can have."""
    random = torch.Generator().manual_seed(seed)
    channels = 1 if task == "binary" else 3
    scores = 2.0 * torch.randn(channels, *shape, generator=random, dtype=torch.float64)
    target = torch.rand(channels, *shape, generator=random, dtype=torch.float64)
    if task == "multiclass":
        target = target / target.sum(0) if soft else one_hot(target.argmax(0), channels)
    elif not soft:
        target = (target > 0.6).double()
    return {
        "scores": scores,
        "target": target,
        "task": task,
        "valid": torch.rand(*shape, generator=random) > 0.2,
        "weight_map": torch.rand(*shape, generator=random, dtype=torch.float64) + 0.5,
        "spacing": (2.0, 0.5, 1.5)[: len(shape)],
    }
