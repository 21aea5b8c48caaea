"""The calls of `/v1/qa`: to score images, to keep what a data set has in common, to rank by it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from starlette.requests import Request

from lossd import metrics
from lossd.engine import Completed, Engine
from lossd.offload import decode, offload
from lossd.protocols.admission import RequestLimits
from lossd.protocols.files import Budget
from lossd.protocols.json_body import Inputs, Sources
from lossd.protocols.kept import read_tensors
from lossd.protocols.qa_answers import (
    ScoresEncoding,
    scores_encoding,
    scores_media_type,
    write_scores,
)
from lossd.protocols.qa_inputs import Scoring, build_scoring, read_score_request
from lossd.protocols.qa_tables import read_context_tensors, read_suspicion_request, sub_scores_of
from lossd.qa.contexts import Context, ContextStore, make_context
from lossd.qa.findings import Evidence
from lossd.qa.judging import Document, Judge, Judgement
from lossd.qa.observation import OBSERVED
from lossd.qa.points import heat_levels
from lossd.qa.suspicion import suspicions
from lossd.receiving import Body, ReceivedBody, body_kind
from lossd.requests import Stages, Written, answer_form, compute, left_s, read_body
from lossd.settings import Settings
from lossd.tensors import Finder, TensorStore
from lossd_client.errors import (
    DeadlineExceededError,
    FieldError,
    InvalidInputError,
    UnknownContextError,
)
from lossd_client.qa_wire import (
    CONTEXT_NAME_PATTERN,
    EVIDENCE,
    HEAT,
    HISTOGRAM,
    LOSS_LEVELS,
    MARGIN,
    OUTLINES,
    PREDICTED,
    SUB_SCORES,
    Centre,
    ContextDocument,
    ContextMark,
    ObservedScores,
    ScoreRequest,
    SuspicionAnswer,
)
from lossd_client.wire import Array, numbered

CONTEXT_NAME = re.compile(CONTEXT_NAME_PATTERN)


async def answer_scores(
    request: Request,
    engine: Engine,
    settings: Settings,
    kept: TensorStore,
    contexts: ContextStore,
) -> Written:
    """Reads, looks at, judges and writes the images of one request.

    Raises:
        LossdError: whatever the contract has a code for.
    """
    stages = Stages()
    try:
        return await _Scores(request, engine, settings, kept, contexts, stages).answer()
    finally:
        stages.end()  # that in which it failed
        stages.note(request.state.trace)


@dataclass(frozen=True)
class _Judged:
    """What is answered of a request's images."""

    images: list[Document]
    """Fields of `ImageScores`."""
    arrays: list[dict[str, Array]]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for own in self.arrays for array in own.values())


@dataclass(frozen=True)
class _Scores:
    """One request to score."""

    request: Request
    engine: Engine
    settings: Settings
    kept: TensorStore
    contexts: ContextStore
    stages: Stages

    async def answer(self) -> Written:
        """Its answer."""
        request, stages, caller = self.request, self.stages, self.request.state.caller
        kind, content_type = body_kind(request)
        encoding = scores_encoding(request.headers.get("accept", ""), answer_form(request, kind)[0])
        self.engine.check_room(caller, nbytes=request.state.work.announced_bytes)
        stages.begin("receive")
        async with ReceivedBody(request, self.settings) as body:
            stages.begin("read")

            def read(budget: Budget) -> tuple[Scoring, Context | None]:
                sources = Sources(budget, Finder(self.kept, caller))
                return self._read(body, kind, content_type, sources)

            scoring, context = await decode(caller, body, kind, self.settings, read)
            stages.end()
            request.state.work.charge_samples(len(scoring.notes))
            if scoring.job is None:  # the evidence may be a view of the body
                judged = await self._judge(scoring, scoring.evidence, context)
        if scoring.job is not None:
            left = left_s(scoring.asked.timeout_ms, self.settings, stages)
            completed = await compute(request, self.engine, scoring.job, left)
            stages.add_engine(completed)
            judged = await self._judge(scoring, _looked_at(scoring, completed), context)
        metrics.SAMPLES.labels(caller.name).inc(len(scoring.notes))
        return await self._write(scoring, judged, context, encoding)

    def _read(
        self, body: Body, kind: str, content_type: str, sources: Sources
    ) -> tuple[Scoring, Context | None]:
        document, inputs = read_body(body, kind, content_type, sources)
        asked = read_score_request(document)
        context = None
        if asked.context is not None:
            context = find_context(self.request, self.contexts, asked.context, ("context",))
        settings = self.settings
        limits = RequestLimits(samples=settings.max_request_samples, classes=settings.max_classes)
        return build_scoring(asked, inputs, limits, context), context

    async def _judge(
        self, scoring: Scoring, evidence: Sequence[Evidence], context: Context | None
    ) -> _Judged:
        until_s = time.monotonic() + left_s(scoring.asked.timeout_ms, self.settings, self.stages)
        backdrop = None if context is None else context.backdrop
        judge = Judge(scoring.asked, scoring.classes, backdrop, self.engine.find)

        def work() -> _Judged:
            judged = _Judged([], [])
            for image, note, found in zip(
                evidence, scoring.notes, judge.judge(evidence), strict=True
            ):
                if time.monotonic() > until_s:
                    msg = "the deadline passed while the images were judged"
                    raise DeadlineExceededError(msg)
                judged.images.append({"name": note.name, **found.document})
                judged.arrays.append(_arrays(scoring.asked, image, found))
            return judged

        self.stages.begin("judge")
        nbytes = sum(image.labels.nbytes + 3 * image.labels.size for image in evidence)
        judged = await offload(self.request.state.caller, nbytes, work)
        self.stages.end()
        return judged

    async def _write(
        self, scoring: Scoring, judged: _Judged, context: Context | None, encoding: ScoresEncoding
    ) -> Written:
        stages = self.stages
        timing_ms = {stage: round(stages.seconds(stage) * 1e3, 3) for stage in _TIMED}
        said = {
            "context": None if context is None else _mark(context).model_dump(),
            "warnings": [*scoring.warnings, *_empty(judged.images)],
            "timing_ms": {**timing_ms, "total": round(stages.total * 1e3, 3)},
            "device": self.engine.device_name,
            "numerics_version": self.engine.numerics_version,
            "request_id": self.request.state.request_id,
        }
        stages.begin("write")
        parts = await offload(
            self.request.state.caller,
            judged.nbytes,
            lambda: write_scores(said, judged.images, judged.arrays, encoding),
        )
        stages.end()
        return Written(parts, scores_media_type(encoding), stages, len(judged.images))


_TIMED = ("queue", "compute", "judge")


def _looked_at(scoring: Scoring, completed: Completed) -> list[Evidence]:
    """The images of a job that was computed."""
    tensors, count = completed.outcome.tensors, len(scoring.labels)

    def of(index: int, name: str) -> Array:
        return tensors[numbered(index, name, count)]

    return [
        Evidence(
            labels=labels,
            levels=of(index, LOSS_LEVELS),
            predicted=of(index, PREDICTED),
            margin=of(index, MARGIN),
            histogram=of(index, HISTOGRAM),
            scores=_observed_scores(of(index, OBSERVED)),
        )
        for index, labels in enumerate(scoring.labels)
    ]


def _observed_scores(values: Array) -> ObservedScores:
    worst, beside, mean, fourth = values.tolist()
    return ObservedScores(
        worst_loss=worst,
        boundary_loss=None if math.isnan(beside) else beside,
        mean_loss=mean,
        l4_loss=fourth,
    )


def _arrays(asked: ScoreRequest, image: Evidence, found: Judgement) -> dict[str, Array]:
    """The tensors of an image that were asked for."""
    arrays: dict[str, Array] = {}
    if "histogram" in asked.arrays:
        arrays[HISTOGRAM] = found.histogram.astype(np.int32, copy=False)
    if found.outlines is not None:
        arrays[OUTLINES] = found.outlines
    if "evidence" in asked.arrays:
        bytes_of = (image.levels, image.predicted, image.margin)
        arrays.update(zip(EVIDENCE, bytes_of, strict=True))
    if found.heat is not None:
        arrays[HEAT] = heat_levels(found.heat)
    return arrays


def _empty(images: Sequence[Document]) -> list[str]:
    return [
        f"image {index}: no pixel counts; its scores are 0"
        for index, image in enumerate(images)
        if not image["pixels"]
    ]


# -- contexts -------------------------------------------------------------------------------------


async def keep_context(
    request: Request, kept: TensorStore, contexts: ContextStore, settings: Settings, name: str
) -> tuple[ContextDocument, bool]:
    """Keeps the context in the body; what is said of it, and whether the name was taken before.

    Raises:
        LossdError: whatever the contract has a code for.
    """
    if not CONTEXT_NAME.fullmatch(name):
        msg = f"a context's name matches {CONTEXT_NAME_PATTERN}, got {name[:40]!r}"
        raise InvalidInputError(msg, errors=[FieldError(("path", "name"), msg)])
    kind, content_type = body_kind(request)
    caller = request.state.caller
    async with ReceivedBody(request, settings) as body:

        def keep(budget: Budget) -> tuple[Context, bool]:
            find = Finder(kept, caller)
            tensors = read_tensors(body, kind, content_type, budget, find)
            context = make_context(name, *read_context_tensors(tensors))
            return context, contexts.put(caller, context)

        context, was_there = await decode(caller, body, kind, settings, keep)
    return describe_context(context, contexts), was_there


def describe_context(context: Context, contexts: ContextStore) -> ContextDocument:
    """What is said of a context that was used just now."""
    among = context.centres
    sub_scores = None
    if among is not None:
        sub_scores = {
            score: Centre(median=median, spread=spread)
            for score, median, spread in zip(SUB_SCORES, among.medians, among.spreads, strict=True)
        }
    return ContextDocument(
        name=context.name,
        state=context.state,
        digest=context.digest,
        classes=context.classes,
        pixels=int(context.histogram.sum()),
        images=None if among is None else among.images,
        sub_scores=sub_scores,
        expires_in_s=contexts.ttl_s,
    )


def find_context(
    request: Request, contexts: ContextStore, name: str, loc: tuple[str, ...]
) -> Context:
    """A context of the caller's.

    Raises:
        UnknownContextError: there is none of that name.
    """
    context = contexts.find(request.state.caller, name)
    if context is None:
        _refuse(name, loc)
    return context


def forget_context(request: Request, contexts: ContextStore, name: str) -> None:
    """Keeps a context of the caller's no longer.

    Raises:
        UnknownContextError: there is none of that name.
    """
    if not contexts.delete(request.state.caller, name):
        _refuse(name, ("path", "name"))


def _refuse(name: str, loc: tuple[str, ...]) -> NoReturn:
    msg = f"no context is kept as {name[:80]!r}; send it again: PUT /v1/qa/contexts/{{name}}"
    raise UnknownContextError(msg, errors=[FieldError(loc, msg)])


def _mark(context: Context) -> ContextMark:
    return ContextMark(name=context.name, state=context.state, digest=context.digest)


async def answer_suspicions(
    request: Request, kept: TensorStore, contexts: ContextStore, settings: Settings
) -> dict[str, Any]:
    """Suspicions of the images whose sub-scores the body has.

    Raises:
        LossdError: whatever the contract has a code for.
    """
    kind, content_type = body_kind(request)
    caller = request.state.caller
    async with ReceivedBody(request, settings) as body:

        def rank(budget: Budget) -> SuspicionAnswer:
            document, inputs = read_body(
                body, kind, content_type, Sources(budget, Finder(kept, caller))
            )
            return _ranked(request, contexts, document, inputs)

        answer = await decode(caller, body, kind, settings, rank)
    return answer.model_dump()


def _ranked(
    request: Request, contexts: ContextStore, document: dict[str, Any], inputs: Inputs
) -> SuspicionAnswer:
    asked = read_suspicion_request(document)
    context = find_context(request, contexts, asked.context, ("context",))
    if context.centres is None:
        msg = f"context {asked.context!r} is not sealed; put it again with sub_scores of all images"
        raise InvalidInputError(msg, errors=[FieldError(("context",), msg)])
    found = suspicions(sub_scores_of(inputs), context.centres)
    return SuspicionAnswer(
        suspicion=found.tolist(), context=_mark(context), request_id=request.state.request_id
    )
