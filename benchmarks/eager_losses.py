"""The ten losses as one writes them in plain torch: what the core is compared with.

Multiclass, float32, batched over B, per-sample values, gradients by autograd, defaults as in the
catalogue; formulas in their textbook form. Two ways of computing several at once:

- `separately`: every loss makes its own softmax and one-hot target, as loss libraries do;
- `together`: softmax, one-hot target and the sums are made once and shared, the best that plain
  torch gives without writing kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_SMOOTH = 1e-5


@dataclass(frozen=True)
class Terms:
    """What the losses are made of, for one batch."""

    log_probability: Tensor
    """`[B, C, P]`."""
    label: Tensor
    """`[B, P]`, int64."""
    probability: Tensor
    target: Tensor
    """`[B, C, P]`, one-hot."""
    true_positive: Tensor
    """`[B, C]`."""
    false_positive: Tensor
    false_negative: Tensor

    @property
    def picked(self) -> Tensor:
        """Log probability of the labelled class, `[B, P]`."""
        return self.log_probability.gather(1, self.label[:, None])[:, 0]

    @property
    def present(self) -> Tensor:
        """Classes in the target, `[B, C]`."""
        return (self.true_positive + self.false_negative).detach() > _SMOOTH


def terms(logits: Tensor, label: Tensor) -> Terms:
    """Everything from logits `[B, C, *S]` and labels `[B, *S]`."""
    label = label.flatten(1).long()
    log_probability = functional.log_softmax(logits.flatten(2).float(), 1)
    probability = log_probability.exp()
    target = functional.one_hot(label, logits.shape[1]).transpose(1, 2).to(probability.dtype)
    true_positive = (probability * target).sum(-1)
    return Terms(
        log_probability=log_probability,
        label=label,
        probability=probability,
        target=target,
        true_positive=true_positive,
        false_positive=probability.sum(-1) - true_positive,
        false_negative=target.sum(-1) - true_positive,
    )


def _over_present(per_class: Tensor, given: Terms) -> Tensor:
    present = given.present.to(per_class.dtype)
    return (per_class * present).sum(-1) / present.sum(-1).clamp_min(1.0)


def _dice_per_class(given: Terms) -> Tensor:
    both = 2.0 * given.true_positive
    return 1.0 - (both + _SMOOTH) / (both + given.false_positive + given.false_negative + _SMOOTH)


def _tversky_per_class(given: Terms) -> Tensor:
    error = 0.3 * given.false_positive + 0.7 * given.false_negative
    return 1.0 - (given.true_positive + _SMOOTH) / (given.true_positive + error + _SMOOTH)


def cross_entropy(given: Terms) -> Tensor:
    """`[B]`."""
    return -given.picked.mean(-1)


def focal(given: Terms) -> Tensor:
    """`[B]`, gamma 2."""
    picked = given.picked
    return -((1.0 - picked.exp()) ** 2 * picked).mean(-1)


def dice(given: Terms) -> Tensor:
    """`[B]`."""
    return _over_present(_dice_per_class(given), given)


def dice_squared(given: Terms) -> Tensor:
    """`[B]`."""
    areas = given.probability.square().sum(-1) + given.target.square().sum(-1)
    score = (2.0 * given.true_positive + _SMOOTH) / (areas + _SMOOTH)
    return _over_present(1.0 - score, given)


def jaccard(given: Terms) -> Tensor:
    """`[B]`."""
    union = given.true_positive + given.false_positive + given.false_negative
    score = (given.true_positive + _SMOOTH) / (union + _SMOOTH)
    return _over_present(1.0 - score, given)


def tversky(given: Terms) -> Tensor:
    """`[B]`, 0.3 for false positives, 0.7 for false negatives."""
    return _over_present(_tversky_per_class(given), given)


def focal_tversky(given: Terms) -> Tensor:
    """`[B]`, exponent 0.75."""
    return _over_present(_tversky_per_class(given).clamp_min(1e-7) ** 0.75, given)


def generalized_dice(given: Terms) -> Tensor:
    """`[B]`, weights one over the squared area, scaled by their maximum."""
    area = given.target.sum(-1)
    weight = torch.where(given.present, 1.0 / area.clamp_min(1.0).square(), 0.0)
    weight = weight / weight.amax(-1, keepdim=True)
    both = (weight * 2.0 * given.true_positive).sum(-1)
    error = (weight * (given.false_positive + given.false_negative)).sum(-1)
    return 1.0 - (both + _SMOOTH) / (both + error + _SMOOTH)


def log_cosh_dice(given: Terms) -> Tensor:
    """`[B]`."""
    return _over_present(_dice_per_class(given).cosh().log(), given)


def matthews(given: Terms) -> Tensor:
    """`[B]`, one minus the correlation coefficient."""
    hit, extra, missed = given.true_positive, given.false_positive, given.false_negative
    rest = given.label.shape[1] - hit - extra - missed
    product = (hit + extra) * (hit + missed) * (rest + extra) * (rest + missed)
    score = (hit * rest - extra * missed) / product.clamp_min(1e-12).sqrt()
    return _over_present(1.0 - score, given)


EAGER: dict[str, Callable[[Terms], Tensor]] = {
    function.__name__: function
    for function in (
        cross_entropy,
        focal,
        dice,
        dice_squared,
        jaccard,
        tversky,
        focal_tversky,
        generalized_dice,
        log_cosh_dice,
        matthews,
    )
}


def separately(logits: Tensor, label: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Values `[losses, B]` and the gradient of their sum, every loss from the logits.

    One backward pass a loss, so that only one loss's graph is kept at a time.
    """
    leaf = logits.detach().requires_grad_()
    values = []
    for name in names:
        value = EAGER[name](terms(leaf, label))
        value.sum().backward()
        values.append(value.detach())
    if leaf.grad is None:
        msg = "no loss was named"
        raise ValueError(msg)
    return torch.stack(values), leaf.grad


def together(logits: Tensor, label: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Values `[losses, B]` and the gradient of their sum, what losses share computed once."""
    leaf = logits.detach().requires_grad_()
    given = terms(leaf, label)
    values = torch.stack([EAGER[name](given) for name in names])
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient
