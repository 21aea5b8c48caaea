"""Losses that look at whole samples: sort, distance, window and histogram losses.

They are computed one sample at a time, and in it one class at a time, in float64, so that nothing
of a sample depends on the company it is computed in and little of it is held at once. All losses
of a request add their derivatives up in one place, which holds what the gradient is computed in.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lossd.core.answer import Answer
from lossd.core.checkpoint import Checkpoint
from lossd.core.job import Job, LossCall, Part
from lossd.core.passes import Workspace
from lossd.losses.declare import SampleLoss, SampleValues
from lossd.losses.mask_sample import MaskSample
from lossd.losses.slopes import Slopes, Weighed


def compute_sample_losses(answer: Answer, workspace: Workspace, checkpoint: Checkpoint) -> None:
    """Fills in what an answer says of its job's sample losses.

    Args:
        answer: of a job whose logits are finite where they count.
        workspace: device and remembered distance maps.
        checkpoint: called before every loss of every sample.
    """
    job = answer.job
    if not job.sample_calls:
        return
    rows = [
        _Row(job, part, number, answer.first + offset)
        for offset, (part, number) in enumerate(
            (part, number) for part in job.parts for number in range(len(part.logits))
        )
    ]
    if job.maps:
        for call in job.sample_calls:
            if "maps" in call.loss.returns:
                answer.map_writer(call.label)  # also where no sample has a pixel that counts
    found = [_evaluate(row, answer, workspace, checkpoint) for row in rows]
    for index, call in enumerate(job.sample_calls):
        values = [sample[index] for sample in found]
        per_class = [one.per_class for one in values if one.per_class is not None]
        answer.add_value(
            call.label,
            torch.stack([one.value for one in values]).detach().numpy(),
            torch.stack(per_class).numpy() if len(per_class) == len(values) else None,
        )
        answer.note(call.label, "fell_back", np.array([one.fell_back for one in values]))
        answer.note(call.label, "empty", np.array([one.empty for one in values]))


class _Row:
    """One sample of a job."""

    def __init__(self, job: Job, part: Part, number: int, place: int) -> None:
        self.job = job
        self.place = place
        """Number of the sample in its batch."""
        self._part = part
        self._number = number

    @property
    def logits(self) -> Tensor:
        """`[C, P]`."""
        return self._part.logits[self._number]

    @property
    def counts(self) -> bool:
        """Whether any pixel of the sample counts."""
        return self._part.valid_pixels[self._number] > 0

    @property
    def shape(self) -> tuple[int, ...]:
        """`(C, P)`."""
        return tuple(self.logits.shape)

    def sample(self, workspace: Workspace, checkpoint: Checkpoint) -> MaskSample:
        """The sample on the device."""
        part, number, device = self._part, self._number, workspace.device
        spatial = part.shape[2:]
        target = (part.target if part.whole_target is None else part.whole_target)[number]
        return MaskSample(
            task=self.job.task,
            scores=self.logits.unflatten(-1, spatial).to(device),
            activated=self.job.activated,
            target=target.unflatten(-1, spatial).to(device),
            valid=_valid(part.target[number]).unflatten(-1, spatial).to(device),
            weight_map=None
            if part.weight_map is None
            else part.weight_map[number].double().unflatten(-1, spatial).to(device),
            spacing=self.job.spacing or (1.0,) * len(spatial),
            distances=workspace.distances,
            checkpoint=checkpoint,
        )


def _valid(target: Tensor) -> Tensor:
    """Which pixels `[P]` count, from a target `[P]` or `[C, P]`."""
    return (target if target.ndim == 1 else target[0]) >= 0


def _evaluate(
    row: _Row, answer: Answer, workspace: Workspace, checkpoint: Checkpoint
) -> list[SampleValues]:
    job = row.job
    if not row.counts:
        for label in _gradient_labels(job):
            answer.gradient_writer(label).add(row.place, torch.zeros(row.shape, dtype=job.dtype))
        return [_nothing(call, row) for call in job.sample_calls]
    whole = row.sample(workspace, checkpoint)
    known = _values(row, whole, answer)
    if job.maps:
        for call in job.sample_calls:
            pixel_map = known[call.key].pixel_map
            if pixel_map is not None:
                answer.map_writer(call.label).put(row.place, pixel_map.flatten().cpu())
    return [known[call.key] for call in job.sample_calls]


def _values(row: _Row, whole: MaskSample, answer: Answer) -> dict[tuple[str, str], SampleValues]:
    """What each loss says of a sample; its gradients go to the answer."""
    job = row.job
    known: dict[tuple[str, str], SampleValues] = {}
    total = Slopes(whole, job.dtype) if job.gradient == "total" else None
    for key, calls in _calls_by_key(job).items():
        whole.checkpoint()
        if job.gradient == "each":
            slopes = Slopes(whole, job.dtype)
            known[key] = _evaluate_call(calls[0], whole, Weighed(slopes, 1.0))
            gradient = slopes.gradient().flatten(1).cpu()
            for call in calls[1:]:
                answer.gradient_writer(call.label).add(row.place, gradient.clone())
            answer.gradient_writer(calls[0].label).add(row.place, gradient)
        else:
            weight = sum(call.weight for call in calls)
            weighed = None if total is None else Weighed(total, weight)
            known[key] = _evaluate_call(calls[0], whole, weighed)
    if total is not None:
        answer.gradient_writer("").add(row.place, total.gradient().flatten(1).cpu())
    return known


def _gradient_labels(job: Job) -> list[str]:
    """Which gradients are wanted of sample losses."""
    each = [call.label for call in job.sample_calls]
    return {"none": [], "total": [""], "each": each}[job.gradient]


def _calls_by_key(job: Job) -> dict[tuple[str, str], list[LossCall[SampleLoss]]]:
    """Rows that compute the same thing, together."""
    found: dict[tuple[str, str], list[LossCall[SampleLoss]]] = {}
    for call in job.sample_calls:
        found.setdefault(call.key, []).append(call)
    return found


@torch.no_grad()
def _evaluate_call(
    call: LossCall[SampleLoss], whole: MaskSample, slopes: Weighed | None
) -> SampleValues:
    weights = getattr(call.options, "class_weights", None)
    sample = replace(whole, class_weights=None if weights is None else tuple(weights))
    return call.loss.value(sample, call.options, slopes)


def _nothing(call: LossCall[SampleLoss], row: _Row) -> SampleValues:
    per_class = None
    if "per_class" in call.loss.returns:
        per_class = torch.full((row.shape[0],), math.nan, dtype=torch.float64)
    return SampleValues(value=torch.zeros((), dtype=torch.float64), per_class=per_class)
