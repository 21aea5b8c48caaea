"""The jobs of a batch that share a task and a number of channels, from sums to answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossd.core import vocabulary as v
from lossd.core.answer import Answer, GradientWriter, Note
from lossd.core.heads import Evaluated, Heads, Kind, Slopes, Tables, map_coefficients
from lossd.core.job import Job, LossCall
from lossd.core.passes import Passes
from lossd.losses.declare import TileLoss

Array = np.ndarray[Any, Any]


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
    is_aggregated: bool
    """Whether it is one job's alone, whose samples' region sums are added up."""
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

    def seeds(self) -> Array:
        """What is wanted of the derivative of each row, `[R]`: its weight in the total, or 1."""
        seeds = np.zeros(len(self.rows))
        for use in self.uses:
            gradient = use.member.job.gradient
            if gradient == "total":
                seeds[use.span] += use.call.weight
            elif gradient == "each":
                seeds[use.span] = 1.0
        return seeds


class Coefficients:
    """Derivatives of something by the sums of a cohort, as the passes take them.

    Args:
        tables: the sums of the cohort.
    """

    def __init__(self, tables: Tables) -> None:
        self._region: Array = np.zeros(tuple(tables.region.shape))
        self._pixel: list[Array] = [np.zeros(tuple(one.shape)) for one in tables.pixel]

    def add(self, slopes: Slopes, number: int, own: slice | Array, places: Array) -> None:
        """Adds some rows of a head, of an exponent of that round, to their places in the cohort."""
        for total, found in (
            (self._region, slopes.region),
            (self._pixel[0], slopes.pixel),
            (self._pixel[number], slopes.focused),
        ):
            if found is not None:
                total[places] += found[own]

    def region(self) -> Tensor:
        """`[B, S, C]`."""
        return torch.from_numpy(self._region)

    def pixel(self, number: int, *, only_focused: bool = False) -> Tensor:
        """`[B, S, G, L]` for a pass of that round, with those of round 0 unless `only_focused`."""
        pixel = np.zeros_like(self._pixel[0]) if only_focused else self._pixel[0].copy()
        rich = pixel.shape[1] > v.PIXEL_SUMS
        for index in (v.FOCAL, v.POWERED_CROSS_ENTROPY) if rich else (v.FOCAL,):
            pixel[:, index] = self._pixel[number][:, index]
        return torch.from_numpy(pixel)


class Cohort:
    """Heads of a cohort and their derivatives."""

    def __init__(
        self,
        answered: Sequence[tuple[Member, Answer]],
        passes: Passes,
        heads: Heads,
        gammas: Sequence[Tensor],
        sums: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        self._members = answered
        members = [member for member, _ in answered]
        self._passes = passes
        self._losses = heads
        self._gammas = gammas
        job = members[0].job
        samples = [number for member in members for number in range(member.first, member.last)]
        self._samples = samples
        self._place = {number: place for place, number in enumerate(samples)}
        offsets = passes.group_offsets
        groups = [group for n in samples for group in range(offsets[n], offsets[n + 1])]
        self._all_groups = offsets[-1]
        self._groups = None if len(groups) == self._all_groups else torch.tensor(groups)
        """Those of the cohort among the batch's; None if it is the whole batch."""
        pixels = [count for m in members for part in m.job.parts for count in part.valid_pixels]
        self._tables = Tables(
            kind=Kind(job.task, job.activated and job.task == "multiclass"),
            region=self._by_sample(sums[0][0]).flatten(2),
            pixel=[self._by_sample(pixel) for _, pixel in sums],
            pixels=torch.tensor(pixels, dtype=torch.float64),
        )

    def compute(self) -> None:
        """Fills the answers of all members."""
        evaluated = [(head, self._evaluate(head)) for head in self._heads()]
        for head, found in evaluated:
            _hand_out(head, found)
        self._total_gradients(evaluated)
        for head, found in evaluated:
            self._each_gradient(head, found)
            self._map(head)
        for member, answer in self._members:
            if member.job.statistics:
                answer.add_statistics(self._tables.region[self._span(member)])

    # -- heads -----------------------------------------------------------------------------------

    def _heads(self) -> list[Head]:
        """In an order that no other job changes, since derivatives are added up in it."""
        heads: dict[tuple[str, str, int, int], Head] = {}
        for member, answer in self._members:
            # Samples of an aggregated request share their statistics with nobody else's.
            alone = member.first if member.job.aggregate == "batch" else -1
            for call in member.job.tile_calls:
                number = member.round_of(call)
                key = (*call.key, number, alone)
                head = heads.setdefault(key, Head(call, number, is_aggregated=alone >= 0))
                head.add(member, answer, call, range(len(self._samples))[self._span(member)])
        return [heads[key] for key in sorted(heads)]

    def _evaluate(self, head: Head) -> Evaluated:
        return self._losses.evaluate(
            head.call,
            self._tables,
            np.array(head.rows),
            head.seeds(),
            number=head.round,
            is_aggregated=head.is_aggregated,
            library=self._passes.programs,
        )

    # -- derivatives -----------------------------------------------------------------------------

    def _total_gradients(self, evaluated: Sequence[tuple[Head, Evaluated]]) -> None:
        coefficients = Coefficients(self._tables)
        writers: dict[int, GradientWriter] = {}
        rounds = 1
        for head, found in evaluated:
            asked = {use.span.start: use for use in head.uses if use.member.job.gradient == "total"}
            if not asked:
                continue
            own = np.concatenate(
                [np.arange(use.span.start, use.span.stop) for use in asked.values()]
            )
            coefficients.add(found, head.round, own, np.array(head.rows)[own])
            rounds = max(rounds, head.round + 1)
            for use in asked.values():
                if use.member.first not in writers:
                    writer = use.answer.gradient_writer("")
                    writers.update(dict.fromkeys(use.member.samples, writer))
        for number in range(rounds if writers else 0):
            wanted = {n: writer for n, writer in writers.items() if number < writer.rounds}
            self._backward(wanted, coefficients, number, only_focused=number > 0)

    def _each_gradient(self, head: Head, found: Evaluated) -> None:
        for use in head.uses:
            if use.member.job.gradient == "each":
                coefficients = Coefficients(self._tables)
                coefficients.add(found, head.round, use.span, np.array(head.rows)[use.span])
                writer = use.answer.gradient_writer(use.call.label)
                writers = dict.fromkeys(use.member.samples, writer)
                self._backward(writers, coefficients, head.round, only_focused=False)

    def _map(self, head: Head) -> None:
        for use in head.uses:
            if not use.member.job.maps:
                continue
            rows = np.array(head.rows)[use.span]
            found = map_coefficients(head.call, self._tables, rows, number=head.round)
            if found is None:
                continue
            coefficients = Coefficients(self._tables)
            coefficients.add(found, head.round, slice(None), rows)
            self._passes.maps(
                use.member.samples,
                self._gammas[head.round],
                self._by_group(coefficients.pixel(head.round)),
                use.answer.map_writer(use.call.label).take,
            )

    def _backward(
        self,
        writers: Mapping[int, GradientWriter],
        coefficients: Coefficients,
        number: int,
        *,
        only_focused: bool,
    ) -> None:
        region = coefficients.region()
        if only_focused:
            region = torch.zeros_like(region)
        pixel = coefficients.pixel(number, only_focused=only_focused)
        self._passes.gradients(
            writers,
            self._gammas[number],
            self._by_group(region.unflatten(2, (pixel.shape[2], -1))),
            self._by_group(pixel),
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


def _hand_out(head: Head, found: Evaluated) -> None:
    """Gives every use of a head its part of the values."""
    known: dict[Note, Array | None] = {"fell_back": found.fell_back, "empty": found.empty}
    notes = {what: rows for what, rows in known.items() if rows is not None and rows.any()}
    for use in head.uses:
        own = None if found.per_class is None else found.per_class[use.span]
        use.answer.add_value(use.call.label, found.value[use.span], own)
        for what, rows in notes.items():
            use.answer.note(use.call.label, what, rows[use.span])
