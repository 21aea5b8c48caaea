"""The calls of the Open Inference Protocol: `POST /v2/models/{name}/infer`, and its answer."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from lossd import metrics
from lossd.callers import Caller
from lossd.engine import Completed, Engine
from lossd.model_statistics import Inferred, ModelStatistics
from lossd.offload import decode, offload
from lossd.protocols.admission import RequestLimits
from lossd.protocols.files import Budget
from lossd.protocols.oip import Inference, answer_parameters, build_inference, chosen
from lossd.protocols.oip_models import Model, find_model
from lossd.protocols.oip_wire import (
    HEADER_LENGTH,
    InferRequest,
    NoRegions,
    Place,
    Regions,
    read_infer,
    write_infer,
)
from lossd.receiving import Arrivals, Body, ReceivedBody
from lossd.requests import Stages, compute, left_s
from lossd.settings import Settings
from lossd.shared_bodies import SharedMemoryAccess
from lossd_client.errors import MalformedBodyError
from lossd_client.wire import JSON, OCTET_STREAM, Array, view_bytes

Parts = list[bytes | memoryview]

_WINDOW_BITS: Final = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
"""Of zlib, by how an answer is compressed where that is all that is asked for."""
_FAST: Final = 1


@dataclass(frozen=True)
class Inferences:
    """What infer calls need."""

    engine: Engine
    settings: Settings
    statistics: ModelStatistics
    shared_memory: SharedMemoryAccess


@dataclass(frozen=True)
class InferAnswer:
    """An answer ready to send."""

    parts: Parts
    media_type: str
    headers: dict[str, str]
    samples: int


async def answer_infer(
    request: Request, inferences: Inferences, name: str, version: str | None
) -> InferAnswer:
    """Reads, computes and writes one infer call.

    Raises:
        LossdError: whatever the contract has a code for.
    """
    model = find_model(name, version)
    stages, started_s = Stages(), time.monotonic()
    try:
        return await _Call(request, inferences, model, stages, started_s).answer()
    except BaseException:
        inferences.statistics.failed(model.name, time.monotonic() - started_s)
        raise
    finally:
        stages.end()  # that in which it failed
        stages.note(request.state.trace)


@dataclass(frozen=True)
class _Call:
    """One infer call."""

    request: Request
    inferences: Inferences
    model: Model
    stages: Stages
    started_s: float

    async def answer(self) -> InferAnswer:
        """Its answer."""
        request, stages, caller = self.request, self.stages, self.request.state.caller
        engine, settings = self.inferences.engine, self.inferences.settings
        engine.check_room(caller, nbytes=request.state.work.announced_bytes)
        stages.begin("receive")
        arrivals: Arrivals = request.app.state.arrivals
        async with ReceivedBody(request, settings) as body:
            stages.begin("read")
            with arrivals.room(caller.name) as take:
                regions = self._regions(take)
                asked, inference = await decode(
                    caller,
                    body,
                    OCTET_STREAM,
                    settings,
                    lambda budget: self._read(body, budget, regions),
                )
        stages.end()
        self._check_places(asked)
        self._charge_shared(asked)
        job = inference.job
        request.state.work.charge_samples(job.samples)
        left = left_s(inference.asked.timeout_ms, settings, stages)
        completed = await compute(request, engine, job, left)
        stages.add_engine(completed)
        written = await self._write(asked, inference, completed)
        metrics.SAMPLES.labels(caller.name).inc(job.samples)
        self._count(completed, job.samples)
        return written

    def _read(self, body: Body, budget: Budget, regions: Regions) -> tuple[InferRequest, Inference]:
        settings = self.inferences.settings
        limits = RequestLimits(samples=settings.max_request_samples, classes=settings.max_classes)
        said = self.request.headers.get(HEADER_LENGTH)
        asked = read_infer(body, said, self.model.name, budget, regions)
        return asked, build_inference(asked, self.model, limits, budget)

    def _regions(self, take: Callable[[int], None]) -> Regions:
        access = self.inferences.shared_memory
        if not access.allows(self.request):
            return NoRegions()
        return _CallerRegions(self.request.state.caller, access, take)

    def _charge_shared(self, asked: InferRequest) -> None:
        nbytes = sum(one.place.nbytes for one in asked.inputs if one.place is not None)
        if nbytes:
            metrics.RECEIVED_BYTES.labels(self.request.state.caller.name).inc(nbytes)
            self.request.state.work.receive_shared_bytes(nbytes)

    def _check_places(self, asked: InferRequest) -> None:
        """Refuses outputs that are to go where the caller has no shared memory."""
        access = self.inferences.shared_memory
        for place in (one.place for one in asked.outputs if one.place is not None):
            access.check(self.request)
            access.regions.find(self.request.state.caller, place.region, place.offset, place.nbytes)

    def _place(self, asked: InferRequest, tensors: Mapping[str, Array]) -> None:
        """Writes outputs to the shared memory that they are asked for in."""
        caller, access = self.request.state.caller, self.inferences.shared_memory
        for one in asked.outputs:
            if one.place is None:
                continue
            array, place = tensors[one.name], one.place
            region = access.regions.find(caller, place.region, place.offset, place.nbytes)
            if array.nbytes > place.nbytes:
                raise MalformedBodyError(
                    f"shared memory size specified with the request for output '{one.name}' "
                    f"({place.nbytes} bytes) should be at least {array.nbytes} bytes to hold the "
                    "results"
                )
            region.shared.write(caller, region.offset, [view_bytes(array)])

    async def _write(
        self, asked: InferRequest, inference: Inference, completed: Completed
    ) -> InferAnswer:
        outcome, stages = completed.outcome, self.stages
        coding = _coding_asked(self.request)
        tensors = chosen(inference, outcome.tensors)

        def write() -> tuple[Parts, int | None]:
            self._place(asked, tensors)
            said = answer_parameters(outcome.warnings, inference.job)
            parts, head_bytes = write_infer(asked, self.model.name, tensors, said)
            return parts if coding is None else _compressed(parts, coding), head_bytes

        stages.begin("write")
        parts, head_bytes = await offload(self.request.state.caller, _nbytes(tensors), write)
        stages.end()
        headers = {"Server-Timing": stages.header()}
        if head_bytes is not None:
            headers[HEADER_LENGTH] = str(head_bytes)
        if coding is not None:
            headers["Content-Encoding"] = coding
        media_type = JSON if head_bytes is None else OCTET_STREAM
        return InferAnswer(parts, media_type, headers, inference.job.samples)

    def _count(self, completed: Completed, samples: int) -> None:
        seconds = self.stages.seconds
        inferred = Inferred(
            samples=samples,
            batch=completed.started_s,
            batch_samples=completed.batch_samples,
            total_s=time.monotonic() - self.started_s,
            queue_s=seconds("queue"),
            read_s=seconds("read"),
            compute_s=seconds("compute"),
            write_s=seconds("write"),
        )
        self.inferences.statistics.succeeded(self.model.name, inferred)


@dataclass(frozen=True)
class _CallerRegions:
    """What a caller registered, as inputs name it."""

    caller: Caller
    access: SharedMemoryAccess
    take: Callable[[int], None]
    """Reserves room among what is arriving."""

    def read(self, place: Place, budget: Budget) -> memoryview:
        """A private copy of the bytes there."""
        regions = self.access.regions
        region = regions.find(self.caller, place.region, place.offset, place.nbytes)
        budget.take(place.nbytes, f"region '{place.region[:80]}'")
        self.take(place.nbytes)
        return region.shared.read(self.caller, region.offset, place.nbytes, self.access.memory)


def _nbytes(tensors: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in tensors.values())


def _coding_asked(request: Request) -> str | None:
    """How the answer is compressed: not at all, unless one coding alone is asked for.

    Clients that accept any coding say so with every request; gradients are as good as random, and
    compressing them costs much and saves nothing.
    """
    asked = request.headers.get("accept-encoding", "").strip().lower()
    return asked if asked in _WINDOW_BITS else None


def _compressed(parts: Parts, coding: str) -> Parts:
    compressor = zlib.compressobj(_FAST, wbits=_WINDOW_BITS[coding])
    pieces: Parts = [compressor.compress(part) for part in parts]
    return [*pieces, compressor.flush()]
