"""One evaluation from the first byte of its body to the last part of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect, Request

from lossd import metrics
from lossd.core.job import AnyJob, Job, RowJob
from lossd.device_tensors import DeviceTensors
from lossd.engine import Completed, Engine
from lossd.handover import Handover, handover_to
from lossd.http_protocol import HANG_UP, HangUp
from lossd.offload import decode, offload
from lossd.protocols.admission import RequestLimits, build_job, read_request
from lossd.protocols.answers import (
    Arrays,
    Encoding,
    encoding_asked,
    media_type,
    write_json,
    write_safetensors,
)
from lossd.protocols.files import Budget
from lossd.protocols.json_body import Inputs, Sources, read_json
from lossd.protocols.multipart_body import read_multipart
from lossd.protocols.safetensors_body import read_safetensors_body
from lossd.receiving import Body, ReceivedBody, body_kind
from lossd.settings import Settings
from lossd.tensors import Finder, TensorStore
from lossd.tracing import Origin, RequestTrace
from lossd_client.errors import (
    DeadlineExceededError,
    FieldError,
    InvalidInputError,
)
from lossd_client.wire import (
    JSON,
    MULTIPART,
    SAFETENSORS,
    EvaluateRequest,
)


@dataclass
class Stages:
    """When the parts of a request began and ended, on the clock of `time.monotonic`, in order."""

    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    total: float = 0.0
    """Seconds of all stages."""
    _running: tuple[str, float] | None = None

    def begin(self, name: str) -> None:
        """Ends the stage that runs and begins another."""
        self.end()
        self._running = name, time.monotonic()

    def end(self) -> None:
        """Ends the stage that runs, if there is one."""
        if self._running is not None:
            self._add(*self._running, time.monotonic())
            self._running = None

    def add_engine(self, completed: Completed) -> None:
        """The two stages that the engine measured."""
        self._add("queue", completed.accepted_s, completed.started_s)
        self._add("compute", completed.started_s, completed.ended_s)

    def _add(self, name: str, start_s: float, end_s: float) -> None:
        self.spans[name] = start_s, end_s
        self.total += end_s - start_s

    def seconds(self, name: str) -> float:
        """Seconds of one stage; 0 if there was none."""
        start, end = self.spans.get(name, (0.0, 0.0))
        return end - start

    def header(self) -> str:
        """Value of a `Server-Timing` header, in milliseconds."""
        entries = [
            f"{name};dur={(end - start) * 1e3:.3f}" for name, (start, end) in self.spans.items()
        ]
        return ", ".join([*entries, f"total;dur={self.total * 1e3:.3f}"])

    def note(self, trace: RequestTrace) -> None:
        """Counts them and adds them to the request's trace."""
        for name, (start_s, end_s) in self.spans.items():
            metrics.STAGE[name].observe(end_s - start_s)
            trace.add_stage(name, start_s, end_s)


class Written(NamedTuple):
    """An answer ready to send."""

    parts: list[bytes | memoryview]
    media_type: str
    stages: Stages
    samples: int


@dataclass(frozen=True)
class KeptTensors:
    """What requests may name by reference, and where it lies."""

    store: TensorStore
    on_device: DeviceTensors


async def answer_evaluation(
    request: Request, engine: Engine, settings: Settings, kept: KeptTensors
) -> Written:
    """Reads, computes and writes one evaluation.

    Raises:
        LossdError: whatever the contract has a code for.
    """
    stages = Stages()
    try:
        return await _answer(request, engine, settings, kept, stages)
    finally:
        stages.end()  # that in which it failed
        stages.note(request.state.trace)


async def _answer(
    request: Request, engine: Engine, settings: Settings, kept: KeptTensors, stages: Stages
) -> Written:
    state = request.state
    caller, work = state.caller, state.work
    kind, content_type = body_kind(request)
    encoding, arrays = answer_form(request, kind)
    engine.check_room(caller, nbytes=work.announced_bytes)
    stages.begin("receive")
    async with ReceivedBody(request, settings) as body:
        stages.begin("read")
        find = Finder(kept.store, caller)

        def read(budget: Budget) -> tuple[EvaluateRequest, Job | RowJob]:
            sources = Sources(budget, find)
            evaluation, job = _read(body, kind, content_type, settings, sources)
            return evaluation, kept.on_device.placed(job, find.used)

        evaluation, job = await decode(caller, body, kind, settings, read)
    stages.end()
    work.charge_samples(job.samples)
    completed = await compute(request, engine, job, left_s(evaluation.timeout_ms, settings, stages))
    stages.add_engine(completed)
    document = _document(job, completed, stages, engine, state.request_id)
    tensors = completed.outcome.tensors

    def write() -> list[bytes | memoryview]:
        if encoding == "safetensors":
            return write_safetensors(document, tensors)
        return write_json(document, tensors, arrays=arrays, parts=len(job.parts))

    stages.begin("write")
    # A safetensors file is its tensors as they lie and a short head.
    nbytes = 0 if encoding == "safetensors" else sum(one.nbytes for one in tensors.values())
    parts = await offload(caller, nbytes, write)
    stages.end()
    metrics.series(metrics.SAMPLES, caller.name).inc(job.samples)
    return Written(parts, media_type(encoding), stages, job.samples)


def _read(
    body: Body, kind: str, content_type: str, settings: Settings, sources: Sources
) -> tuple[EvaluateRequest, Job | RowJob]:
    """Request and job of a body."""
    document, inputs = read_body(body, kind, content_type, sources)
    evaluation = read_request(document)
    limits = RequestLimits(samples=settings.max_request_samples, classes=settings.max_classes)
    return evaluation, build_job(evaluation, inputs, limits)


def read_body(
    body: Body, kind: str, content_type: str, sources: Sources
) -> tuple[dict[str, Any], Inputs]:
    """Document and input objects of a body, however it is encoded.

    Raises:
        LossdError: it is not what its content type says, or too large, or names an unknown ref.
    """
    if kind == MULTIPART:
        return read_multipart(body, content_type, sources)
    if kind == JSON:
        return read_json(body, sources)
    return read_safetensors_body(body, sources)


def left_s(timeout_ms: float | None, settings: Settings, stages: Stages) -> float:
    """Seconds until the deadline, which counts from the head of the request.

    Raises:
        DeadlineExceededError: it has passed already.
    """
    timeout_ms = min(timeout_ms or settings.timeout_ms, settings.timeout_ms)
    left = timeout_ms / 1e3 - stages.total
    if left <= 0:
        msg = f"reading the request took the {timeout_ms:g} ms it had"
        raise DeadlineExceededError(msg)
    return left


async def compute(request: Request, engine: Engine, job: AnyJob, left_s: float) -> Completed:
    """Has the engine compute a job while the request's client waits for it.

    Raises:
        DeadlineExceededError: there was no answer in so many seconds.
        LossdError: what the engine says.
        ClientDisconnect: the client went away.
    """
    state = request.state
    origin = Origin(state.request_id, state.trace)
    ticket = engine.submit(job, timeout_s=left_s, origin=origin, caller=state.caller, wake="later")
    loop = asyncio.get_running_loop()
    handover = handover_to(loop)
    # Behind the requests that came in the same moment: they will share a batch.
    handover.call_once(engine.wake)
    waiting = _Waiting(loop, handover, left_s)
    timer = loop.call_later(left_s, waiting.expire)
    ticket.answer.add_done_callback(waiting.hand_over)
    try:
        with _hang_up_told(request, waiting.end):
            return await waiting.answer
    finally:
        timer.cancel()
        ticket.abandon()  # a job nobody waits for leaves the queue, or is computed no further


class _Waiting:
    """What an event loop knows of an answer that the engine owes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, handover: Handover, left_s: float) -> None:
        self.answer: asyncio.Future[Completed] = loop.create_future()
        self._handover = handover
        self._left_s = left_s

    def expire(self) -> None:
        """The time is up."""
        left_ms = self._left_s * 1e3
        self._fail(DeadlineExceededError(f"no answer in the {left_ms:.0f} ms that were left"))

    def end(self) -> None:
        """The client is gone."""
        self._fail(ClientDisconnect())

    def hand_over(self, done: Future[Completed]) -> None:
        """The engine has answered, in its own thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._handover.call(partial(self._settle, done))

    def _settle(self, done: Future[Completed]) -> None:
        if self.answer.done() or done.cancelled():
            return
        error = done.exception()  # raising it would add to a traceback that others share
        if error is None:
            self.answer.set_result(done.result())
        else:
            self.answer.set_exception(error)

    def _fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


def _hang_up_told(
    request: Request, listener: Callable[[], None]
) -> contextlib.AbstractContextManager[None]:
    """Calls a function when the client has gone; its whole body has been received before."""
    hang_up: HangUp | None = request.scope.get("extensions", {}).get(HANG_UP)
    return _asking(request, listener) if hang_up is None else hang_up.told_to(listener)


@contextlib.contextmanager
def _asking(request: Request, listener: Callable[[], None]) -> Iterator[None]:
    """The same where the server tells it only to those who ask."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        listener()

    waiting = asyncio.ensure_future(wait())
    try:
        yield
    finally:
        waiting.cancel()


def _document(
    job: Job | RowJob, completed: Completed, stages: Stages, engine: Engine, request_id: str
) -> dict[str, Any]:
    return {
        "mean": completed.outcome.mean,
        "warnings": list(completed.outcome.warnings),
        **({} if job.preset is None else {"preset": job.preset}),
        "timing_ms": {
            "queue": round(completed.queue_s * 1e3, 3),
            "compute": round(completed.compute_s * 1e3, 3),
            "total": round(stages.total * 1e3, 3),
        },
        "batch": {
            "samples": completed.batch_samples,
            "requests": completed.batch_requests,
        },
        "device": engine.device_name,
        "numerics_version": engine.numerics_version,
        "request_id": request_id,
    }


def answer_form(request: Request, kind: str) -> tuple[Encoding, Arrays]:
    """How the answer is written: as the `Accept` header asks, else as the body came."""
    otherwise: Encoding = "safetensors" if kind == SAFETENSORS else "json"
    encoding = encoding_asked(request.headers.get("accept", ""), otherwise)
    # Nearly all have no query; Starlette takes as long to parse that as any other.
    query = request.query_params if request.scope["query_string"] else {}
    arrays = query.get("arrays", "base64")
    if arrays not in ("base64", "list"):
        msg = f"arrays is base64 or list, got {arrays[:40]!r}"
        raise InvalidInputError(msg, errors=[FieldError(("query", "arrays"), msg)])
    return encoding, "list" if arrays == "list" else "base64"
