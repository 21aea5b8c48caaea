"""The HTTP face: routes, start and stop, one error handler. No tensors, no rules."""

from __future__ import annotations

import contextlib
import json
import math
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from lossd import __version__, metrics
from lossd.access import Access
from lossd.api_description import ANY_ERROR, DESCRIPTION, EVALUATE, FORGET, GIVE, KEEP
from lossd.callers import ANONYMOUS
from lossd.catalogue import catalogue, describe
from lossd.device_tensors import DeviceTensors
from lossd.engine import Engine
from lossd.event_loop import watched_event_loop
from lossd.gauges import read_gauges
from lossd.keys import KeyFile
from lossd.metering import Metering
from lossd.quotas import Quotas
from lossd.receiving import CODINGS, Arrivals
from lossd.requests import KeptTensors, answer_evaluation
from lossd.sending import PartsResponse
from lossd.settings import Settings
from lossd.tensor_calls import describe_kept, forget_tensor, give_tensor, keep_tensors, swept
from lossd.tensors import TensorStore
from lossd.tracing import NOT_TRACED, RequestTrace, Tracing
from lossd_client.errors import (
    BodyTimeoutError,
    InternalError,
    LossdError,
    MethodNotAllowedError,
    NotFoundError,
    NotReadyError,
    QueueFullError,
    QuotaExceededError,
    TooLargeError,
    UnauthorizedError,
    UnsupportedCodingError,
)
from lossd_client.wire import (
    JSON,
    MULTIPART,
    OCTET_STREAM,
    PROBLEM,
    REQUEST_ID_HEADER,
    SAFETENSORS,
)

log = structlog.get_logger(__name__)

_MAX_REQUEST_ID_LENGTH = 128
_ROUTING_ERRORS: dict[int, type[LossdError]] = {404: NotFoundError, 405: MethodNotAllowedError}
_CLIENT_GONE = 499
_UNANSWERED = "unanswered"  # cut off while the service stopped
_PROBES = ("/health/", "/metrics")


def create_app(settings: Settings, engine: Engine) -> FastAPI:
    """The application around an engine; starting it starts the engine, stopping it drains it.

    Raises:
        KeysError: the settings name a keys file that cannot be read.
    """
    kept = _kept_tensors(settings, engine)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        async with watched_event_loop(), swept(kept.store):
            yield
            engine.drain()
            ended = await anyio.to_thread.run_sync(engine.join)
        log.info("drained", complete=ended)

    app = FastAPI(
        title="lossd",
        version=__version__,
        description=DESCRIPTION,
        responses=ANY_ERROR,
        lifespan=lifespan,
    )
    quotas = Quotas(settings.default_allowance())
    app.add_middleware(
        Metering, quotas=quotas, max_body_bytes=settings.max_body_mib << 20, answer=_problem
    )
    # A single body of the largest size must always find room.
    app.state.arrivals = Arrivals(max(settings.max_arriving_mib, settings.max_body_mib) << 20)
    _add_access(app, settings)
    app.add_middleware(Accounting, tracing=engine.tracing)  # around the others: it answers, too
    app.add_exception_handler(LossdError, _problem)
    app.add_exception_handler(HTTPException, _problem)  # anything else: see Accounting
    _add_evaluation(app, settings, engine, kept)
    _add_tensors(app, settings, kept.store)
    _add_catalogue(app)
    _add_operation(app, settings, engine, quotas, kept.store)
    return app


def _kept_tensors(settings: Settings, engine: Engine) -> KeptTensors:
    limit_bytes = settings.max_device_tensor_mib << 20 if engine.device.type == "cuda" else 0
    on_device = DeviceTensors(limit_bytes, lambda logits: logits.to(engine.device))
    return KeptTensors(TensorStore(settings, on_drop=on_device.forget), on_device)


def _add_access(app: FastAPI, settings: Settings) -> None:
    if settings.keys_file is not None:
        app.add_middleware(
            Access,
            keys=KeyFile(settings.keys_file),
            without_key="anonymous" if settings.allow_anonymous else "refused",
        )


def _add_evaluation(app: FastAPI, settings: Settings, engine: Engine, kept: KeptTensors) -> None:
    @app.post("/v1/evaluate", openapi_extra=EVALUATE, response_class=Response)
    async def evaluate(request: Request) -> Response:
        """Losses, gradients, maps and statistics of the samples in the body."""
        written = await answer_evaluation(request, engine, settings, kept)
        request.state.samples = written.samples
        return PartsResponse(
            written.parts, written.media_type, {"Server-Timing": written.stages.header()}
        )


def _add_tensors(app: FastAPI, settings: Settings, store: TensorStore) -> None:
    @app.put("/v1/tensors", openapi_extra=KEEP, response_class=Response)
    async def keep(request: Request) -> Response:
        """Keeps the tensors of the body for later requests, which name them by their refs."""
        kept = await keep_tensors(request, store, settings)
        document = describe_kept(kept)
        headers = {"Location": f"/v1/tensors/{document['ref']}"} if "ref" in document else {}
        status = 200 if all(one.was_there for one in kept.values()) else 201
        return JSONResponse(document, status, headers)

    @app.get("/v1/tensors/{ref}", openapi_extra=GIVE, response_class=Response)
    async def give(request: Request, ref: str) -> Response:
        """A tensor that the caller has kept, as JSON or as a safetensors file."""
        parts, media_type = await give_tensor(request, store, ref)
        return PartsResponse(parts, media_type, {})

    @app.delete("/v1/tensors/{ref}", openapi_extra=FORGET, status_code=204, response_class=Response)
    async def forget(request: Request, ref: str) -> Response:
        """Keeps a tensor no longer."""
        forget_tensor(request, store, ref)
        return Response(status_code=204)


def _add_catalogue(app: FastAPI) -> None:
    @app.get("/v1/losses")
    def list_losses() -> list[dict[str, Any]]:
        """The catalogue of losses."""
        return catalogue()

    @app.get("/v1/losses/{name}")
    def get_loss(name: str) -> dict[str, Any]:
        """One loss of the catalogue, by its name or an alias."""
        return describe(name)


def _add_operation(
    app: FastAPI, settings: Settings, engine: Engine, quotas: Quotas, store: TensorStore
) -> None:
    # Coroutines: they must answer while every worker thread reads a body.
    @app.get("/")
    async def index() -> dict[str, str]:
        """Where things are."""
        return {
            "name": "lossd",
            "version": __version__,
            "device": engine.device_name,
            "state": engine.describe(),
            "catalogue": "/v1/losses",
            "evaluate": "/v1/evaluate",
            "tensors": "/v1/tensors",
            "limits": "/v1/limits",
            "docs": "/docs",
            "metrics": "/metrics",
        }

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """200 while the process is worth keeping."""
        if engine.state == "failed":
            msg = "the engine has failed; restart the process"
            raise NotReadyError(msg, retry_after_s=5.0)
        return {"status": "live"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        """200 if a job would be computed now."""
        if not engine.is_ready():
            raise NotReadyError(engine.describe(), retry_after_s=2.0)
        return {
            "status": "ready",
            "device": engine.device_name,
            "numerics_version": engine.numerics_version,
        }

    @app.get("/v1/limits")
    async def limits(request: Request) -> dict[str, Any]:
        """What a request may hold and how long it may take, and what the caller may use."""
        return {
            "body_bytes": settings.max_body_mib << 20,
            "json_bytes": settings.max_json_mib << 20,
            "tensor_bytes": store.budget_bytes(request.state.caller),
            "tensor_ttl_s": settings.tensor_ttl_s,
            "samples": settings.max_request_samples,
            "classes": settings.max_classes,
            "spatial_axes": [1, 3],
            "timeout_ms": settings.timeout_ms,
            "queue_samples": settings.max_queue_samples,
            "queue_bytes": settings.max_queue_mib << 20,
            "content_types": [JSON, SAFETENSORS, OCTET_STREAM, MULTIPART],
            "content_codings": list(CODINGS),
            "quotas": quotas.usage(request.state.caller).document(),
        }

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Prometheus text format."""
        read_gauges(engine)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _problem(request: Request, error: Exception) -> Response:
    """Any error as `application/problem+json`; the one place where errors become answers."""
    problem = _as_lossd_error(error)
    problem.request_id = request.state.request_id
    request.state.code = problem.code
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if problem.retry_after_s is not None:
        # Rounded up: whoever comes back then is let in.
        headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after_s)))
    if isinstance(problem, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(problem, MethodNotAllowedError):
        headers["Allow"] = _allowed(request)
    if isinstance(problem, UnsupportedCodingError):
        headers["Accept-Encoding"] = ", ".join(CODINGS)
    if _leaves_body(request, problem):
        headers["Connection"] = "close"
    # Escaped to ASCII: an error may repeat text of the caller's that UTF-8 cannot hold.
    return Response(
        json.dumps(problem.problem()), problem.status, headers=headers, media_type=PROBLEM
    )


def _allowed(request: Request) -> str:
    """Methods of the address, of all its routes; the exception names those of the first."""
    routes = [one for one in request.app.routes if one.matches(request.scope)[0] != Match.NONE]
    return ", ".join(sorted(method for one in routes for method in one.methods))


def _leaves_body(request: Request, problem: LossdError) -> bool:
    """Whether a part of the request's body, or all of it, is not read."""
    if isinstance(problem, (UnauthorizedError, QuotaExceededError, QueueFullError)):
        sent = request.headers
        announced = sent.get("content-length", "0") != "0" or "transfer-encoding" in sent
        return announced and not request.state.body_ended
    return isinstance(problem, (TooLargeError, BodyTimeoutError))


def _as_lossd_error(error: Exception) -> LossdError:
    if isinstance(error, LossdError):
        return error
    if isinstance(error, HTTPException) and error.status_code in _ROUTING_ERRORS:
        return _ROUTING_ERRORS[error.status_code]()
    log.error("unexpected_error", exc_info=error)
    return InternalError()


class Accounting:
    """Gives every request its id, its line in the log, its place in the metrics and its trace.

    What no handler caught becomes an answer here, not further out: it needs its id, too.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or whatever else ASGI has."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        account = _Account(scope, receive, send, self._tracing)
        try:
            await self._app(scope, account.receive, account.send)
        except ClientDisconnect:
            account.status, account.state["code"] = _CLIENT_GONE, "client_gone"
        except Exception as error:
            if account.status:
                account.state["code"] = InternalError.code
                raise  # half an answer is out; the server closes the connection
            response = await _problem(Request(scope), error)
            await response(scope, receive, account.send)
        finally:
            account.close()


class _Account:
    """What is noted of one request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, tracing: Tracing) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started_s = time.perf_counter()
        self._sent_bytes = 0
        # Probes come every few seconds for ever; they are for those who ask for them.
        self._probe = scope["path"].startswith(_PROBES)
        self._trace: RequestTrace = NOT_TRACED
        if not self._probe:
            self._trace = tracing.start_request(scope)
        self.status = 0
        """Of the answer, as soon as its head is sent."""
        request_id = _request_id(scope)
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.state.update(
            request_id=request_id, caller=ANONYMOUS, trace=self._trace, body_ended=False
        )
        # Every line of this task says whose it is, also the server's that may come after the last
        # of ours, and so this is not undone.
        clear_contextvars()
        bind_contextvars(request_id=request_id)
        if self._trace.trace_id:
            bind_contextvars(trace_id=self._trace.trace_id)
        metrics.REQUESTS_IN_PROGRESS.inc()

    async def receive(self) -> Message:
        """Hands on what comes, and notes the end of the body."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.state["body_ended"] = True
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the answer on, the head with the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            header = (REQUEST_ID_HEADER.lower().encode(), self.state["request_id"].encode())
            message["headers"] = [*message.get("headers", []), header]
        else:
            self._sent_bytes += len(message.get("body", b""))
        await self._send(message)

    def close(self) -> None:
        """Writes it down."""
        seconds = time.perf_counter() - self._started_s
        scope, state = self._scope, self.state
        template: str | None = getattr(scope.get("route"), "path", None)
        route = template or "unknown"
        code: str = state.get("code", "ok" if self.status else _UNANSWERED)
        samples: int = state.get("samples", 0)
        metrics.REQUESTS.labels(route, str(self.status), code, state["caller"].name).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(seconds)
        metrics.SENT_BYTES.labels(state["caller"].name).inc(self._sent_bytes)
        metrics.REQUESTS_IN_PROGRESS.dec()
        note = log.debug if self._probe else log.info
        note(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=self.status,
            code=code,
            key=state["caller"].name,
            ms=round(seconds * 1e3, 2),
            samples=samples,
            bytes_out=self._sent_bytes,
        )
        self._trace.end(
            route=template,
            status=self.status,
            attributes={"code": code, "samples": samples, "request_id": state["request_id"]},
        )


def _request_id(scope: Scope) -> str:
    """The caller's id if it is short and printable, a new one otherwise."""
    wanted = REQUEST_ID_HEADER.lower().encode()
    for name, value in scope["headers"]:
        if name == wanted:
            text = str(value.decode("latin-1"))
            if 0 < len(text) <= _MAX_REQUEST_ID_LENGTH and text.isascii() and text.isprintable():
                return text
    return uuid.uuid4().hex
