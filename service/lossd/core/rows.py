"""Losses of tables without pixels: boxes, values, embeddings, scores.

Each job is computed alone, in float64 on the CPU: its tensors are small, and the functions treat
every row by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lossd.core.answer import scale_down, to_numpy
from lossd.core.checkpoint import Checkpoint
from lossd.core.job import HALF_TOP_EXPONENT, TORCH_DTYPES, LossCall, Outcome, RowJob
from lossd.losses.declare import RowLoss
from lossd.losses.registry import Loss
from lossd_client.wire import Array, numbered


@dataclass(frozen=True)
class _Leaves:
    """One part's tensors, those with a gradient marked so."""

    tensors: Mapping[str, Tensor]
    differentiable: tuple[str, ...]

    def gradients(self, value: Tensor) -> dict[str, Tensor]:
        """Derivatives of `Σ value` `[B]`, by input."""
        if not value.requires_grad:
            return {name: torch.zeros_like(self.tensors[name]) for name in self.differentiable}
        found = torch.autograd.grad(
            value.sum(),
            [self.tensors[name] for name in self.differentiable],
            retain_graph=True,
            materialize_grads=True,
        )
        return dict(zip(self.differentiable, found, strict=True))


def evaluate_rows(job: RowJob, checkpoint: Checkpoint) -> Outcome:
    """Outcome of a job; the checkpoint is called before every loss and gradient of every part."""
    parts = [_leaves(job, part) for part in job.parts]
    rows = {call.label: [_value(call, part, checkpoint) for part in parts] for call in job.calls}
    values = {label: torch.cat(found) for label, found in rows.items()}
    total = sum(
        (call.weight * values[call.label] for call in job.calls),
        start=torch.zeros(job.samples, dtype=torch.float64),
    )
    tensors: dict[str, Array] = {
        f"loss/{label}": value.detach().numpy() for label, value in values.items()
    }
    tensors["total"] = total.detach().numpy()
    for index, part in enumerate(parts):
        checkpoint()
        for name, gradient in _gradients(
            job, part, [rows[call.label][index] for call in job.calls]
        ):
            tensors.update(_written(job, index, name, gradient))
    mean = {label: float(value.detach().mean()) for label, value in values.items()}
    return Outcome(tensors, mean, job.warnings)


def _leaves(job: RowJob, part: Mapping[str, Tensor]) -> _Leaves:
    wanted = job.differentiable if job.gradient != "none" else ()
    tensors = {
        name: tensor.detach().requires_grad_(name in wanted) for name, tensor in part.items()
    }
    return _Leaves(tensors, wanted)


def _value(call: LossCall[Loss], part: _Leaves, checkpoint: Checkpoint) -> Tensor:
    checkpoint()
    if not isinstance(call.loss, RowLoss):
        msg = f"{call.loss.name} is no loss of rows"
        raise TypeError(msg)
    return call.loss.value(part.tensors, call.options)


def _gradients(job: RowJob, part: _Leaves, values: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Gradients of a part by their name on the wire, without what precedes it."""
    if job.gradient == "each":
        for call, value in zip(job.calls, values, strict=True):
            for name, gradient in part.gradients(value).items():
                yield f"{name}/{call.label}", gradient
    elif job.gradient == "total":
        weighted = [call.weight * value for call, value in zip(job.calls, values, strict=True)]
        yield from part.gradients(torch.stack(weighted).sum(0)).items()


def _written(job: RowJob, index: int, name: str, gradient: Tensor) -> dict[str, Array]:
    """A gradient in the dtype that was asked for and, in half precision, its scales."""
    dtype, count = TORCH_DTYPES[job.gradient_dtype], len(job.parts)
    where = numbered(index, f"gradient/{name}", count)
    if dtype not in HALF_TOP_EXPONENT:
        return {where: to_numpy(gradient.to(dtype).contiguous())}
    # An input that belongs to all samples has one scale, the others one per sample.
    shared = name.partition("/")[0] in job.shared
    rows = gradient[None].clone() if shared else gradient.clone()
    scales = np.array([scale_down(row, dtype) for row in rows], np.float32)
    return {
        where: to_numpy(rows.view(gradient.shape).to(dtype)),
        numbered(index, f"gradient_scale/{name}", count): scales,
    }
