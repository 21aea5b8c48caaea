"""Losses of whole samples as one writes them in plain torch and scipy: what ours are compared with.

Multiclass, float32, one sample; values, gradients by autograd, parameters as the catalogue's
defaults. The Lovász extension is the algorithm its authors published: sort the errors, differences
of the cumulative Jaccard loss, dot product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from lossd_client.wire import Array

Loss = Callable[[Tensor, Tensor], Tensor]
"""Value of a class from its probabilities `[H, W]` and its mask `[H, W]` in 0 and 1."""

_SKELETON_ITERATIONS = 3
_STRUCTURE_FLOOR = 0.01
_SHARE = 0.1


def lovasz_softmax(probability: Tensor, mask: Tensor) -> Tensor:
    """As in section 3 of the paper."""
    errors, order = (mask - probability).abs().flatten().sort(descending=True)
    hit = mask.flatten()[order]
    union = hit.sum() + (1.0 - hit).cumsum(0)
    jaccard = 1.0 - (hit.sum() - hit.cumsum(0)) / union
    return torch.dot(errors, torch.cat([jaccard[:1], jaccard.diff()]))


def boundary(probability: Tensor, mask: Tensor) -> Tensor:
    """With two distance transforms of the target."""
    inside = mask.numpy() > 0
    inner = ndimage.distance_transform_edt(inside)
    signed = np.where(inside, 1.0 - inner, ndimage.distance_transform_edt(~inside))
    return (torch.from_numpy(signed).float() * probability).mean()


def hausdorff_dt(probability: Tensor, mask: Tensor) -> Tensor:
    """With two transforms each of target and prediction."""
    field = _edge_distance(mask.numpy() > 0) ** 2
    field += _edge_distance(probability.detach().numpy() > 0.5) ** 2  # noqa: PLR2004 - a half
    return (torch.from_numpy(field).float() * (probability - mask).square()).mean()


def structural_similarity(probability: Tensor, mask: Tensor) -> Tensor:
    """With a convolution for each moment."""
    cross_entropy = functional.binary_cross_entropy(probability, mask, reduction="none")
    difference = (_structure(mask) - _structure(probability)).abs()
    differs = difference.detach() > _SHARE * difference.detach().max()
    local = (difference * cross_entropy)[differs].mean()
    return 0.5 * cross_entropy.mean() + 0.5 * local


def soft_cldice(probability: Tensor, mask: Tensor) -> Tensor:
    """With pooling for erosion and dilation."""
    guess, true = _skeleton(probability), _skeleton(mask)
    precision = ((guess * mask).sum() + 1.0) / (guess.sum() + 1.0)
    sensitivity = ((true * probability).sum() + 1.0) / (true.sum() + 1.0)
    return 1.0 - 2.0 * precision * sensitivity / (precision + sensitivity)


EAGER: dict[str, Loss] = {
    function.__name__: function
    for function in (lovasz_softmax, boundary, hausdorff_dt, structural_similarity, soft_cldice)
}


def value_and_gradient(
    name: str, logits: Tensor, labels: Tensor, classes: list[int]
) -> tuple[Tensor, Tensor]:
    """Mean `[]` over the classes, and its gradient `[C, H, W]` in the logits' dtype.

    Args:
        name: of a loss in `EAGER`.
        logits: `[C, H, W]`.
        labels: `[H, W]`.
        classes: that count.
    """
    leaf = logits.float().requires_grad_()
    probability = leaf.softmax(0)
    found = [EAGER[name](probability[one], (labels == one).float()) for one in classes]
    value = torch.stack(found).mean()
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient.to(logits.dtype)


def _edge_distance(mask: Array) -> Array:
    distance: Array = np.zeros(mask.shape)
    if mask.any() and not mask.all():
        distance += ndimage.distance_transform_edt(mask)
        distance += ndimage.distance_transform_edt(~mask)
    return distance


def _structure(values: Tensor) -> Tensor:
    weights = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0]) / 1.5) ** 2)
    window = torch.outer(weights, weights)
    window = (window / window.sum())[None, None]
    padded = functional.pad(values[None, None], (1, 1, 1, 1), mode="reflect")
    mean = functional.conv2d(padded, window)[0, 0]
    variance = functional.conv2d(padded.square(), window)[0, 0] - mean.square()
    deviation = variance.clamp_min(1e-12).sqrt()
    return (values - mean + _STRUCTURE_FLOOR) / (deviation + _STRUCTURE_FLOOR)


def _eroded(mask: Tensor) -> Tensor:
    along = -functional.max_pool2d(-mask, (3, 1), 1, (1, 0))
    return torch.minimum(along, -functional.max_pool2d(-mask, (1, 3), 1, (0, 1)))


def _skeleton(values: Tensor) -> Tensor:
    mask = values[None, None]
    skeleton = functional.relu(mask - functional.max_pool2d(_eroded(mask), 3, 1, 1))
    for _ in range(_SKELETON_ITERATIONS):
        mask = _eroded(mask)
        ridge = functional.relu(mask - functional.max_pool2d(_eroded(mask), 3, 1, 1))
        skeleton = skeleton + functional.relu(ridge - skeleton * ridge)
    return skeleton[0, 0]
