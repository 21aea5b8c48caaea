"""What the oracles say of a request's inputs: values and the gradient of their sum."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossd_client.wire import Array
from oracles import distance, rows, scores, sort, tiles, window
from oracles.whole import RowOracle, Whole, WholeOracle

TILES = tiles.ORACLE
WHOLES: dict[str, WholeOracle] = {**sort.ORACLE, **distance.ORACLE, **window.ORACLE}
ROWS: dict[str, RowOracle] = {**rows.ORACLE, **scores.ORACLE}


@dataclass(frozen=True)
class Question:
    """A loss with its parameters, and how the inputs are to be read."""

    loss: str
    params: dict[str, Any]
    task: str = ""
    ignore_index: int | None = None
    spacing: tuple[float, ...] | None = None


def expected(
    loss: str, params: dict[str, Any], *, inputs: Mapping[str, Array], **reading: Any
) -> tuple[Array, Array]:
    """Values `[B]` of a pixel loss and the gradient of their sum, both float64."""
    question = Question(loss, params, **reading)
    logits = torch.tensor(np.asarray(inputs["logits"], dtype=np.float64), requires_grad=True)
    values = [
        _pixel_value(question, logits[b], {name: array[b] for name, array in inputs.items()})
        for b in range(len(logits))
    ]
    total = torch.stack(values)
    if not total.requires_grad:
        return total.numpy(), np.zeros(logits.shape)
    (gradient,) = torch.autograd.grad(total.sum(), logits, materialize_grads=True)
    return total.detach().numpy(), gradient.numpy()


def expected_rows(
    loss: str,
    params: dict[str, Any],
    inputs: Mapping[str, Array],
    *,
    shared: tuple[str, ...],
    differentiable: tuple[str, ...],
) -> tuple[Array, dict[str, Array]]:
    """Values `[B]` of a row loss and, by input, the gradient of their sum, all float64."""
    tensors = {
        name: torch.tensor(
            np.asarray(array, dtype=np.float64), requires_grad=name in differentiable
        )
        for name, array in inputs.items()
    }
    count = next(len(tensor) for name, tensor in tensors.items() if name not in shared)
    values = [
        ROWS[loss](
            {name: one if name in shared else one[b] for name, one in tensors.items()}, params
        )
        for b in range(count)
    ]
    total = torch.stack(values)
    wanted = [tensors[name] for name in differentiable]
    gradients = torch.autograd.grad(total.sum(), wanted, materialize_grads=True)
    found = {
        name: gradient.numpy() for name, gradient in zip(differentiable, gradients, strict=True)
    }
    return total.detach().numpy(), found


def _pixel_value(question: Question, logits: Tensor, arrays: Mapping[str, Array]) -> Tensor:
    whole = _whole(question, logits, arrays)
    if not bool(whole.valid.any()):
        return logits.new_zeros(()) * 0.0
    if question.loss in WHOLES:
        return WHOLES[question.loss](whole, question.params)
    keep = whole.valid.flatten()
    sample = tiles.Sample(
        question.task,
        whole.logits.flatten(1)[:, keep],
        whole.target.flatten(1)[:, keep],
        whole.weight.flatten()[keep],
    )
    return TILES[question.loss](sample, question.params)


def _whole(question: Question, logits: Tensor, arrays: Mapping[str, Array]) -> Whole:
    channels, spatial = logits.shape[0], tuple(logits.shape[1:])
    given = np.asarray(arrays["target"])
    valid = np.ones(spatial, dtype=bool)
    if "mask" in arrays:
        valid &= arrays["mask"] != 0
    if question.ignore_index is not None:
        valid &= given.reshape(spatial) != question.ignore_index
        given = np.where(given == question.ignore_index, -1, given.astype(np.int64))
    if given.ndim == logits.ndim - 1 and channels > 1:
        target = (given[None] == np.arange(channels).reshape(-1, *[1] * given.ndim)).astype(float)
    else:
        target = np.maximum(given.reshape(channels, *spatial).astype(float), 0.0)
    weight = np.asarray(arrays.get("weight_map", np.ones(spatial)), dtype=np.float64)
    return Whole(
        task=question.task,
        logits=logits,
        target=torch.from_numpy(target),
        valid=torch.from_numpy(valid),
        weight=torch.from_numpy(weight),
        spacing=question.spacing or (1.0,) * len(spatial),
    )
