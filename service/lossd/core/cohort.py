"""The jobs of a batch that share a task and a number of channels, from sums to answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lossd.core import vocabulary as v
from lossd.core.answer import Answer, GradientWriter, Note
from lossd.core.job import Job, LossCall
from lossd.core.passes import Passes
from lossd.losses.declare import TileLoss, Values
from lossd.losses.sums import PixelSums, Sums, region_sums


@dataclass(frozen=True)
class Member:
    """A job of a batch; its samples stand at `first` … `last - 1` among those of the batch."""

    job: Job
    first: int

    @property
    def last(self) -> int:
        """Number behind the job's last sample."""
        return self.first + self.job.samples

    @property
    def samples(self) -> range:
        """Numbers of the job's samples."""
        return range(self.first, self.last)

    def round_of(self, call: LossCall[TileLoss]) -> int:
        """Which pass over the tiles makes the sums of the call's exponent."""
        exponent = call.loss.exponent(call.options)
        return 0 if exponent is None else self.job.exponents.index(exponent)


@dataclass(frozen=True)
class Use:
    """A row of a job that a head answers: the job, and where its samples stand in the head."""

    member: Member
    answer: Answer
    call: LossCall[TileLoss]
    span: slice


@dataclass
class Head:
    """One loss with one set of parameters, over all samples of the cohort that ask for it."""

    call: LossCall[TileLoss]
    round: int
    rows: list[int] = field(default_factory=list)
    """Places of the samples in the cohort."""
    uses: list[Use] = field(default_factory=list)
    spans: dict[int, slice] = field(default_factory=dict)

    def add(self, member: Member, answer: Answer, call: LossCall[TileLoss], places: range) -> None:
        """Lets a row of a job be answered here; equal rows of one job share their samples."""
        if member.first not in self.spans:
            self.spans[member.first] = slice(len(self.rows), len(self.rows) + len(places))
            self.rows.extend(places)
        self.uses.append(Use(member, answer, call, self.spans[member.first]))


@dataclass(frozen=True)
class Coefficients:
    """Derivatives of something with respect to the cohort's sums."""

    region: Tensor
    """`[B, S, C]`."""
    pixel: list[Tensor]
    """`[B, S, G, L]` for each round."""

    def pixel_in_round(self, number: int, *, only_focused: bool) -> Tensor:
        """Coefficients for a pass of that round, with those of round 0 unless `only_focused`."""
        pixel = torch.zeros_like(self.pixel[0]) if only_focused else self.pixel[0].clone()
        rich = pixel.shape[1] > v.PIXEL_SUMS
        for index in (v.FOCAL, v.POWERED_CROSS_ENTROPY) if rich else (v.FOCAL,):
            pixel[:, index] = self.pixel[number][:, index]
        return pixel


class Cohort:
    """Heads of a cohort and their derivatives."""

    def __init__(
        self,
        members: Sequence[Member],
        answers: Sequence[Answer],
        passes: Passes,
        gammas: Sequence[Tensor],
        sums: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        self._members = list(zip(members, answers, strict=True))
        self._passes = passes
        self._gammas = gammas
        self._task = members[0].job.task
        self._channel_rows = members[0].job.activated and self._task == "multiclass"
        samples = [number for member in members for number in range(member.first, member.last)]
        self._samples = samples
        self._place = {number: place for place, number in enumerate(samples)}
        offsets = passes.group_offsets
        groups = [group for n in samples for group in range(offsets[n], offsets[n + 1])]
        self._all_groups = offsets[-1]
        self._groups = None if len(groups) == self._all_groups else torch.tensor(groups)
        """Those of the cohort among the batch's; None if it is the whole batch."""
        self._pixels = torch.tensor(
            [count for m in members for part in m.job.parts for count in part.valid_pixels],
            dtype=torch.float64,
        )
        self._region = self._by_sample(sums[0][0]).flatten(2).requires_grad_()
        self._pixel = [self._by_sample(pixel).requires_grad_() for _, pixel in sums]
        self._views: dict[int, Sums] = {}

    def compute(self) -> None:
        """Fills the answers of all members."""
        evaluated = [(head, self._evaluate(head)) for head in self._heads()]
        for head, values in evaluated:
            _hand_out(head, values)
        self._total_gradients(evaluated)
        for head, values in evaluated:
            self._each_gradient(head, values)
            self._map(head, values)
        for member, answer in self._members:
            if member.job.statistics:
                answer.add_statistics(self._region.detach()[self._span(member)])

    # -- heads -----------------------------------------------------------------------------------

    def _heads(self) -> list[Head]:
        heads: dict[tuple[object, ...], Head] = {}
        for member, answer in self._members:
            # Samples of an aggregated request share their statistics with nobody else's.
            alone = member.first if member.job.aggregate == "batch" else None
            for call in member.job.tile_calls:
                number = member.round_of(call)
                head = heads.setdefault((*call.key, number, alone), Head(call, number))
                head.add(member, answer, call, range(len(self._samples))[self._span(member)])
        return list(heads.values())

    def _evaluate(self, head: Head) -> Values:
        sums = self._sums(head)
        if head.uses[0].member.job.aggregate == "batch":
            sums = sums.aggregated()
        return head.call.loss.values(sums, head.call.options)

    def _sums(self, head: Head) -> Sums:
        """The sums that a head reads; the views of all samples are made once for all heads."""
        if len(head.rows) < len(self._samples):
            return self._view(torch.tensor(head.rows), head.round)
        if head.round not in self._views:
            self._views[head.round] = self._view(None, head.round)
        view = self._views[head.round]
        return replace(view, region=replace(view.region))  # it notes what is empty for one head

    def _view(self, rows: Tensor | None, number: int) -> Sums:
        pixels = _rows(self._pixels, rows)
        return Sums(
            task=self._task,
            region=region_sums(_rows(self._region, rows), pixels),
            pixel=self._pixel_sums(rows, number),
            pixels=pixels,
        )

    def _pixel_sums(self, rows: Tensor | None, number: int) -> PixelSums:
        pixel = self._labels(_rows(self._pixel[0], rows)).unbind(1)
        focused = pixel if number == 0 else self._labels(_rows(self._pixel[number], rows)).unbind(1)
        unmade = torch.zeros_like(pixel[0])

        def sums(index: int, source: Sequence[Tensor] = pixel) -> Tensor:
            return source[index] if index < len(source) else unmade

        complement = sums(v.COMPLEMENT_CROSS_ENTROPY)
        if self._channel_rows:
            complement = _rows(self._pixel[0], rows)[:, v.CROSS_ENTROPY, None, :, 0]
        return PixelSums(
            count=self._label_counts(rows),
            weight=sums(v.WEIGHT),
            cross_entropy=sums(v.CROSS_ENTROPY),
            focal=sums(v.FOCAL, focused),
            negative_log_likelihood=sums(v.NEGATIVE_LOG_LIKELIHOOD),
            miss=sums(v.MISS),
            powered_cross_entropy=sums(v.POWERED_CROSS_ENTROPY, focused),
            kullback_leibler=sums(v.KULLBACK_LEIBLER),
            jensen_shannon=sums(v.JENSEN_SHANNON),
            complement_cross_entropy=complement,
        )

    def _labels(self, pixel: Tensor) -> Tensor:
        """Sums per label `[B, S, G, L]`; of multiclass channel rows, those of the label on."""
        return pixel[..., 1].unsqueeze(2) if self._channel_rows else pixel

    def _label_counts(self, rows: Tensor | None) -> Tensor:
        """Pixels of each label, `[B, G, L]`: of each class, or off and on of each channel."""
        on = _rows(self._region.detach(), rows)[:, v.TARGET]
        if self._task == "multiclass":
            return on[:, None]
        return torch.stack([_rows(self._pixels, rows)[:, None] - on, on], dim=-1)

    # -- derivatives -----------------------------------------------------------------------------

    def _total_gradients(self, evaluated: Sequence[tuple[Head, Values]]) -> None:
        terms: list[Tensor] = []
        writers: dict[int, GradientWriter] = {}
        rounds = 1
        for head, values in evaluated:
            asked = [use for use in head.uses if use.member.job.gradient == "total"]
            if not asked:
                continue
            terms.append(_weighted(values.value, asked))
            rounds = max(rounds, head.round + 1)
            for use in asked:
                if use.member.first not in writers:
                    writer = use.answer.gradient_writer("")
                    writers.update(dict.fromkeys(use.member.samples, writer))
        if not terms:
            return
        coefficients = self._differentiate(terms)
        for number in range(rounds):
            wanted = {n: writer for n, writer in writers.items() if number < writer.rounds}
            self._backward(wanted, coefficients, number, only_focused=number > 0)

    def _each_gradient(self, head: Head, values: Values) -> None:
        for use in head.uses:
            if use.member.job.gradient == "each":
                coefficients = self._differentiate([values.value[use.span].sum()])
                writer = use.answer.gradient_writer(use.call.label)
                writers = dict.fromkeys(use.member.samples, writer)
                self._backward(writers, coefficients, head.round, only_focused=False)

    def _map(self, head: Head, values: Values) -> None:
        for use in head.uses:
            if not use.member.job.maps or values.pixel_terms is None:
                continue
            coefficients = self._differentiate([values.pixel_terms[use.span].sum()])
            pixel = coefficients.pixel_in_round(head.round, only_focused=False)
            self._passes.maps(
                use.member.samples,
                self._gammas[head.round],
                self._by_group(pixel),
                use.answer.map_writer(use.call.label).take,
            )

    def _differentiate(self, terms: Sequence[Tensor]) -> Coefficients:
        region, *pixel = torch.autograd.grad(
            torch.stack(list(terms)).sum(),
            [self._region, *self._pixel],
            retain_graph=True,
            materialize_grads=True,
        )
        return Coefficients(region, pixel)

    def _backward(
        self,
        writers: Mapping[int, GradientWriter],
        coefficients: Coefficients,
        number: int,
        *,
        only_focused: bool,
    ) -> None:
        region = torch.zeros_like(coefficients.region) if only_focused else coefficients.region
        self._passes.gradients(
            writers,
            self._gammas[number],
            self._by_group(region.unflatten(2, (self._pixel[0].shape[2], -1))),
            self._by_group(coefficients.pixel_in_round(number, only_focused=only_focused)),
        )

    # -- shapes ----------------------------------------------------------------------------------

    def _by_sample(self, table: Tensor) -> Tensor:
        """`[B, S, G, D]` of the cohort's samples from a table of all groups `[ΣG, S, D]`."""
        own = table if self._groups is None else table[self._groups]
        rows: Tensor = own.unflatten(0, (len(self._samples), -1))
        return rows.transpose(1, 2).contiguous()

    def _by_group(self, values: Tensor) -> Tensor:
        """Table of all groups `[ΣG, S, D]` from `[B, S, G, D]`; 0 for other cohorts' groups."""
        own = values.transpose(1, 2).flatten(0, 1)
        if self._groups is None:
            return own
        table = values.new_zeros(self._all_groups, values.shape[1], values.shape[3])
        table[self._groups] = own
        return table

    def _span(self, member: Member) -> slice:
        first = self._place[member.first]
        return slice(first, first + member.job.samples)


def _rows(values: Tensor, rows: Tensor | None) -> Tensor:
    """Rows of a table; of None the table itself, which is one step less for autograd."""
    return values if rows is None else values[rows]


def _weighted(value: Tensor, uses: Sequence[Use]) -> Tensor:
    """`[]`: the values `[B]` of a head, each as often as its uses count it."""
    weights = np.zeros(len(value))
    for use in uses:
        weights[use.span] += use.call.weight
    return (torch.from_numpy(weights) * value).sum()


def _hand_out(head: Head, values: Values) -> None:
    """Gives every use of a head its part of the values."""
    value = values.value.detach().numpy()
    per_class = None if values.per_class is None else values.per_class.detach().numpy()
    found: dict[Note, Tensor | None] = {"fell_back": values.fell_back, "empty": values.empty}
    known = {what: samples.numpy() for what, samples in found.items() if samples is not None}
    notes = {what: samples for what, samples in known.items() if samples.any()}
    for use in head.uses:
        own = None if per_class is None else per_class[use.span]
        use.answer.add_value(use.call.label, value[use.span], own)
        for what, samples in notes.items():
            use.answer.note(use.call.label, what, samples[use.span])
