"""What one small request costs the event loop's thread when its computation costs nothing.

The service's own protocol is fed with bytes in place of a socket, and an engine without a thread
answers with what the core computed once. Processor time of the thread, so that neighbours count
little; beside it a loop of plain Python in turn, since processors change their clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import statistics
import time
from collections.abc import Iterator
from typing import Any, Final

import structlog
from uvicorn.server import ServerState

from benchmarks import jobs
from benchmarks.engine import Core
from benchmarks.http_calls import request_body
from benchmarks.report import Report, Row, Section, environment
from lossd.app import create_app
from lossd.core.job import Outcome
from lossd.engine import Completed, Engine
from lossd.http_protocol import HttpProtocol, http_config
from lossd.logs import configure_logs
from lossd.settings import Settings
from lossd_client.wire import SAFETENSORS

_SHAPE: Final = (1, 4, 64, 64)
_LOSSES: Final = ("cross_entropy", "dice")
_ROUNDS, _QUICK_ROUNDS = 40, 3
_REQUESTS, _QUICK_REQUESTS = 100, 5
"""Of a round."""
_US: Final = 1e6


def run(core: Core, *, quick: bool) -> Report:
    """Microseconds of a request, with the journal written and without.

    Args:
        core: computes the one answer.
        quick: few requests.
    """
    rounds, requests = (_QUICK_ROUNDS, _QUICK_REQUESTS) if quick else (_ROUNDS, _REQUESTS)
    rows = [_row(core, level, rounds, requests) for level in ("info", "warning")]
    return Report(
        name="event_loop",
        sections=[Section("processor time of the event loop for one request", rows)],
        notes=[
            f"float16 logits {_SHAPE} and gradient, uint8 labels; {', '.join(_LOSSES)}",
            "both sides of the queue are in it, copying into and out of the system is not",
            "python: a sum of a thousand numbers; the ratio is of medians",
        ],
        environment=environment(core.device, core.mode),
    )


class _AnsweringEngine(Engine):
    """An engine that answers every job of its one kind in the thread that asks."""

    def __init__(self, settings: Settings, core: Core) -> None:
        super().__init__(settings)
        self.state = "ready"
        self._core = core
        self._outcome: Outcome | None = None

    def wake(self) -> None:
        """Answers what waits."""
        batch = self._batcher.next_batch(wait_s=0.0)
        now_s = time.monotonic()
        for ticket in () if batch is None else batch.tickets:
            if self._outcome is None:
                (self._outcome,) = self._core.evaluate(ticket.job)
            ticket.answer.set_result(Completed(self._outcome, now_s, now_s, now_s, 1, 1))


class _Sink(asyncio.Transport):
    """A transport that counts what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.written_bytes = 0
        self.head = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Takes it."""
        self.head = self.head or bytes(data[:64])
        self.written_bytes += len(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits here."""

    def is_closing(self) -> bool:
        """Never."""
        return False

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""


def _row(core: Core, level: str, rounds: int, requests: int) -> Row:
    with _journal_to_nowhere():
        settings = Settings.model_validate({"kernels": "eager", "log_level": level})
        configure_logs(settings)
        request_us, python_us = asyncio.run(_measured(core, settings, rounds, requests))
    return {
        "log_level": level,
        "request_us": request_us,
        "python_us": python_us,
        "ratio": request_us / python_us,
        "requests": rounds * requests,
    }


@contextlib.contextmanager
def _journal_to_nowhere() -> Iterator[None]:
    """Lines are made and written, but to memory; afterwards logging is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        root.handlers = handlers
        root.setLevel(level)
        structlog.reset_defaults()


async def _measured(
    core: Core, settings: Settings, rounds: int, requests: int
) -> tuple[float, float]:
    """Medians over rounds of one request and of the loop beside it, in microseconds."""
    app = create_app(settings, _AnsweringEngine(settings, core))
    config = http_config(app, settings)
    config.load()
    protocol_class: Any = config.http_protocol_class
    protocol: HttpProtocol = protocol_class(config, ServerState(), {}, asyncio.get_running_loop())
    sink = _Sink()
    protocol.connection_made(sink)
    request = _request()
    await _answered(protocol, sink, request)
    if not sink.head.startswith(b"HTTP/1.1 200 "):
        msg = f"the request was answered with {sink.head!r}"
        raise RuntimeError(msg)
    request_us, python_us = [], []
    for _ in range(rounds):
        started_s = time.thread_time()
        for _ in range(requests):
            await _answered(protocol, sink, request)
        between_s = time.thread_time()
        for _ in range(requests):
            sum(range(1000))
        request_us.append((between_s - started_s) / requests * _US)
        python_us.append((time.thread_time() - between_s) / requests * _US)
    return statistics.median(request_us), statistics.median(python_us)


def _request() -> bytes:
    inputs = jobs.random_inputs(_SHAPE, seed=1, dtype="float16")
    document = {"losses": list(_LOSSES), "gradient": "total", "gradient_dtype": "float16"}
    body = request_body(inputs, document)
    head = f"POST /v1/evaluate HTTP/1.1\r\nHost: lossd\r\nContent-Type: {SAFETENSORS}\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _answered(protocol: HttpProtocol, sink: _Sink, request: bytes) -> None:
    """Sends a request and returns when its answer is out."""
    sink.written_bytes = 0
    protocol.get_buffer(-1)[: len(request)] = request
    protocol.buffer_updated(len(request))
    (exchange,) = protocol.tasks
    await exchange
