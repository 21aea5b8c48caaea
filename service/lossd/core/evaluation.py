"""A batch of jobs computed together: sums, heads, gradients, maps.

    samples -> passes.sums -> heads (the losses, on [B, C] sums) -> autograd of the heads
            -> passes.gradients / passes.maps
            -> whole: losses that are no functions of sums, one sample at a time
            -> tensors named as on the wire

Jobs without pixels are computed by `rows`, those of annotation QA by `qa.observation`, each alone.

The heads run in float64 on the CPU whatever the device: they are tiny, and their bits are then the
same everywhere. Rows that ask for the same loss with the same parameters share one head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lossd.core import vocabulary as v
from lossd.core.answer import Answer
from lossd.core.checkpoint import Checkpoint, go_on
from lossd.core.cohort import Cohort, Member
from lossd.core.compiled import KernelTable
from lossd.core.finite import non_finite_error
from lossd.core.job import AnyJob, Job, ObservationJob, Outcome, Part, RowJob
from lossd.core.passes import Passes, Workspace
from lossd.core.rows import evaluate_rows
from lossd.core.tiles import Sample
from lossd.core.whole import compute_sample_losses
from lossd.qa.observation import evaluate_observation
from lossd_client.errors import LossdError

_NO_FOCUS = 2.0  # exponent of samples whose losses read no focal sum


def evaluate(
    jobs: Sequence[AnyJob],
    table: KernelTable,
    workspace: Workspace,
    checkpoint: Checkpoint = go_on,
) -> list[Outcome | LossdError]:
    """Outcome of each job, in order.

    A job whose logits are not finite where they count gets its error here, alone. Anything else
    that fails, fails the batch.

    Args:
        jobs: at least one, all of one `Job.group`.
        table: the kernels of this process.
        workspace: memory of the calling thread.
        checkpoint: what it raises ends the computation.
    """
    pixel_jobs = [job for job in jobs if isinstance(job, Job)]
    if not pixel_jobs:
        return [_evaluate_alone(job, table, workspace, checkpoint) for job in jobs]
    return _evaluate_pixels(pixel_jobs, table, workspace, checkpoint)


def _evaluate_alone(
    job: AnyJob, table: KernelTable, workspace: Workspace, checkpoint: Checkpoint
) -> Outcome | LossdError:
    if isinstance(job, ObservationJob):
        softmax = table.get(("softmax_labels", torch.float32))
        in_place = None if softmax is None else softmax.in_place
        return evaluate_observation(job, workspace.device, in_place, checkpoint)
    if not isinstance(job, RowJob):
        msg = f"{type(job).__name__} in a batch of jobs without pixels"
        raise TypeError(msg)
    try:
        return evaluate_rows(job, checkpoint)
    except LossdError as error:  # a loss found the inputs too large for it
        return error


def _evaluate_pixels(
    jobs: Sequence[Job], table: KernelTable, workspace: Workspace, checkpoint: Checkpoint
) -> list[Outcome | LossdError]:
    samples: list[Sample] = []
    members: list[Member] = []
    for job in jobs:
        members.append(Member(job, first=len(samples)))
        samples.extend(_samples(job))
    passes = Passes(samples, jobs[0].family, jobs[0].dtype, table, workspace, checkpoint=checkpoint)
    gammas = _gammas(members)
    sums = [passes.sums(gamma) for gamma in gammas]
    offsets = passes.group_offsets
    finite = np.isfinite(sums[0][1].numpy()[:, v.NEGATIVE_LOG_LIKELIHOOD]).all(-1)
    answers: dict[int, Answer | LossdError] = {}
    good: list[Member] = []
    for member in members:
        if bool(finite[offsets[member.first] : offsets[member.last]].all()):
            answers[member.first] = Answer(member.job, member.first)
            good.append(member)
        else:
            answers[member.first] = non_finite_error(member.job)
    for cohort in _cohorts(good):
        answered = [
            (member, answer)
            for member in cohort
            if isinstance(answer := answers[member.first], Answer)
        ]
        Cohort(answered, passes, workspace.heads, gammas, sums).compute()
    for member in good:
        answer = answers[member.first]
        if isinstance(answer, Answer):
            compute_sample_losses(answer, workspace, checkpoint)
    return [
        answer.outcome() if isinstance(answer, Answer) else answer
        for answer in (answers[member.first] for member in members)
    ]


def _gammas(members: Sequence[Member]) -> list[Tensor]:
    """Focusing exponent of every sample, `[B]`, for each pass the batch needs."""
    rounds = max(1, *(len(member.job.exponents) for member in members))
    return [
        torch.tensor(
            [
                member.job.exponents[number] if number < len(member.job.exponents) else _NO_FOCUS
                for member in members
                for _ in range(member.job.samples)
            ],
            dtype=torch.float64,
        )
        for number in range(rounds)
    ]


def _cohorts(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Members by task, number of channels and kind of input: their sums have one shape."""
    cohorts: dict[tuple[str, int, bool], list[Member]] = {}
    for member in members:
        job = member.job
        cohorts.setdefault((job.task, job.channels, job.activated), []).append(member)
    yield from cohorts.values()


def _samples(job: Job) -> Iterator[Sample]:
    for part in job.parts:
        for number in range(part.logits.shape[0]):
            yield _sample(job, part, number)


def _sample(job: Job, part: Part, number: int) -> Sample:
    weight = None if part.weight_map is None else part.weight_map[number][None, None]
    logits = part.logits if part.device_logits is None else part.device_logits
    logits, target = logits[number], part.target[number]
    if job.by_channel:
        return Sample(logits.unsqueeze(1), target.unsqueeze(1), weight)
    if target.ndim > 1:
        return Sample(logits.unsqueeze(0), target.unsqueeze(0), weight)
    return Sample(logits.unsqueeze(0), target[None, None], weight)
