"""Logits that lie on the GPU that computes: their job is made without bringing them to the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lossd.core.finite import non_finite_error
from lossd.core.job import Job, Part, RowJob
from lossd.losses import find_loss
from lossd.losses.declare import TileLoss
from lossd.protocols.arrays import FLOATS
from lossd.protocols.python_values import TensorLike
from lossd_client.errors import NonFiniteLogitsError
from lossd_client.wire import NUMPY_DTYPES, Array, EvaluateRequest

_PEEK_PIXELS = 256

Objects = Sequence[Mapping[str, TensorLike]]


def is_beside(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor need not cross the host to be computed on a device."""
    return tensor.is_cuda and device.type == "cuda"


def job_on_device(
    request: EvaluateRequest,
    objects: Objects,
    device: torch.device,
    build: Callable[[Objects], Job | RowJob],
) -> Job | RowJob:
    """The job of a request; its logits stay on the device where they lie there and may stay.

    Statistics, losses of whole samples, and the warning of logits that look like probabilities
    read them on the host: then they are copied there as well.

    Args:
        request: what is asked.
        objects: its inputs.
        device: that computes.
        build: makes a job of input objects.

    Raises:
        LossdError: whatever `build` raises.
    """
    there = [entry.get("logits") for entry in objects]
    beside = [one for one in there if isinstance(one, Tensor) and is_beside(one, device)]
    if len(beside) < len(there) or not all(_dtype_name(one) in FLOATS for one in beside):
        return build(objects)
    tile_only = all(isinstance(find_loss(one.name), TileLoss) for one in request.losses)
    if not tile_only or request.statistics:
        return _placed(build(objects), beside, device)
    stand_ins = [
        {**entry, "logits": _stand_in(one)} for entry, one in zip(objects, beside, strict=True)
    ]
    job = _placed(build(stand_ins), beside, device)
    if isinstance(job, Job) and any(map(_may_be_probabilities, job.parts)):
        return _placed(build(objects), beside, device)
    return job


def explained(job: Job, error: NonFiniteLogitsError) -> NonFiniteLogitsError:
    """The error of a job, which names a logit only where the host has the logits."""
    if all(part.device_logits is None for part in job.parts):
        return error
    parts = [
        part if part.device_logits is None else replace(part, logits=part.device_logits.cpu())
        for part in job.parts
    ]
    return non_finite_error(replace(job, parts=tuple(parts)))


def _placed(job: Job | RowJob, logits: Sequence[Tensor], device: torch.device) -> Job | RowJob:
    if not isinstance(job, Job):
        return job
    parts = [
        replace(part, device_logits=one.detach().to(device).reshape(part.logits.shape))
        for part, one in zip(job.parts, logits, strict=True)
    ]
    return replace(job, parts=tuple(parts))


def _stand_in(logits: Tensor) -> Array:
    """An array of the same shape and dtype; its zeros take no memory until somebody reads them."""
    return np.zeros(tuple(logits.shape), NUMPY_DTYPES[_dtype_name(logits)])


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _may_be_probabilities(part: Part) -> bool:
    """Whether the first pixels do not rule out that the host would warn of the logits."""
    if part.device_logits is None:
        return False
    logits = part.device_logits[:, :, :_PEEK_PIXELS]
    inside = ((logits >= 0) & (logits <= 1)).all(1).cpu()
    target = part.target[..., :_PEEK_PIXELS]
    counts = (target if target.ndim == inside.ndim else target[:, 0]) >= 0
    return bool((inside | ~counts).all())
