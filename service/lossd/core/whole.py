"""Losses that look at whole samples: sort, distance, window and histogram losses.

They are computed one sample at a time in float64 and differentiated by autograd, so that nothing
of a sample depends on the company it is computed in. A loss's graph is dropped before the next
loss begins.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lossd.core.answer import Answer
from lossd.core.checkpoint import Checkpoint
from lossd.core.job import Job, LossCall, Part
from lossd.core.passes import Workspace
from lossd.losses.declare import SampleLoss, SampleValues
from lossd.losses.mask_sample import MaskSample


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
            torch.stack([one.value for one in values]),
            torch.stack(per_class) if len(per_class) == len(values) else None,
        )
        answer.note(call.label, "fell_back", torch.tensor([one.fell_back for one in values]))
        answer.note(call.label, "empty", torch.tensor([one.empty for one in values]))


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

    def sample(self, workspace: Workspace) -> MaskSample:
        """The sample as whole tensors on the device."""
        part, number, device = self._part, self._number, workspace.device
        spatial = part.shape[2:]
        valid = _valid(part.target[number])
        scores = self.logits.double()
        if self.job.activated:
            scores = scores.sigmoid()
        # What does not count may hold anything, and windows look at it.
        scores = torch.where(valid, scores, scores.nan_to_num(0.0, 0.0, 0.0))
        target = part.target if part.whole_target is None else part.whole_target
        return MaskSample(
            task=self.job.task,
            scores=scores.unflatten(-1, spatial).to(device).requires_grad_(),
            activated=self.job.activated,
            target=_channels(target[number], self.shape[0]).unflatten(-1, spatial).to(device),
            valid=valid.unflatten(-1, spatial).to(device),
            weight_map=None
            if part.weight_map is None
            else part.weight_map[number].double().unflatten(-1, spatial).to(device),
            spacing=self.job.spacing or (1.0,) * len(spatial),
            distances=workspace.distances,
        )


def _valid(target: Tensor) -> Tensor:
    """Which pixels `[P]` count, from a target `[P]` or `[C, P]`."""
    return (target if target.ndim == 1 else target[0]) >= 0


def _channels(target: Tensor, channels: int) -> Tensor:
    """Target of every channel `[C, P]`, 0 where a pixel has no class."""
    if target.ndim == 1:
        classes = torch.arange(channels, dtype=target.dtype)
        return (target == classes[:, None]).double()
    return target.double().clamp_min(0.0)


def _evaluate(
    row: _Row, answer: Answer, workspace: Workspace, checkpoint: Checkpoint
) -> list[SampleValues]:
    job = row.job
    if not row.counts:
        found = [_nothing(call, row) for call in job.sample_calls]
        _write_gradients(row, answer, [torch.zeros(row.shape, dtype=torch.float64)] * len(found))
        return found
    whole = row.sample(workspace)
    known: dict[tuple[str, str], tuple[SampleValues, Tensor]] = {}
    for call in job.sample_calls:
        if call.key not in known:
            checkpoint()
            known[call.key] = _evaluate_call(call, whole, differentiate=job.gradient != "none")
    _write_gradients(row, answer, [known[call.key][1] for call in job.sample_calls])
    if job.maps:
        for call in job.sample_calls:
            pixel_map = known[call.key][0].pixel_map
            if pixel_map is not None:
                answer.map_writer(call.label).put(row.place, pixel_map.flatten().cpu())
    return [known[call.key][0] for call in job.sample_calls]


def _evaluate_call(
    call: LossCall[SampleLoss], whole: MaskSample, *, differentiate: bool
) -> tuple[SampleValues, Tensor]:
    """What a loss says of a sample, and its gradient `[C, P]` on the CPU."""
    # A sample of its own: what one loss has worked out is dropped with it.
    weights = getattr(call.options, "class_weights", None)
    sample = replace(whole, class_weights=None if weights is None else tuple(weights))
    with torch.set_grad_enabled(differentiate):
        values = call.loss.value(sample, call.options)
    gradient = torch.zeros(0, dtype=torch.float64)
    if differentiate:
        gradient = torch.zeros_like(whole.scores)
        if values.value.requires_grad:
            (gradient,) = torch.autograd.grad(values.value, whole.scores, materialize_grads=True)
        gradient = gradient.flatten(1).cpu()
    return replace(values, value=values.value.detach()), gradient


def _write_gradients(row: _Row, answer: Answer, gradients: list[Tensor]) -> None:
    job = row.job
    if job.gradient == "each":
        for call, gradient in zip(job.sample_calls, gradients, strict=True):
            answer.gradient_writer(call.label).add(row.place, _of_logits(job, row, gradient))
    elif job.gradient == "total":
        total = torch.zeros(row.shape, dtype=torch.float64)
        for call, gradient in zip(job.sample_calls, gradients, strict=True):
            total.add_(gradient, alpha=call.weight)
        answer.gradient_writer("").add(row.place, _of_logits(job, row, total))


def _of_logits(job: Job, row: _Row, gradient: Tensor) -> Tensor:
    """The gradient with respect to logits: the writer turns it back for probabilities."""
    if not job.activated:
        return gradient
    probability = row.logits.double().sigmoid()
    return gradient * probability * (1.0 - probability)


def _nothing(call: LossCall[SampleLoss], row: _Row) -> SampleValues:
    per_class = None
    if "per_class" in call.loss.returns:
        per_class = torch.full((row.shape[0],), math.nan, dtype=torch.float64)
    return SampleValues(value=torch.zeros((), dtype=torch.float64), per_class=per_class)
