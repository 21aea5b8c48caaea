"""What is noted of every request: its id, its line in the log, its place in metrics and traces."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from lossd import metrics
from lossd.callers import ANONYMOUS
from lossd.http_protocol import PROBES, new_request_id
from lossd.problems import answer_problem
from lossd.tracing import NOT_TRACED, RequestTrace, Tracing
from lossd_client.errors import InternalError
from lossd_client.wire import REQUEST_ID_HEADER

log = structlog.get_logger(__name__)

_MAX_REQUEST_ID_LENGTH = 128
_CLIENT_GONE = 499
_UNANSWERED = "unanswered"  # cut off while the service stopped
_QUIET: Final = (*PROBES, "/metrics")


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
            response = await answer_problem(Request(scope), error)
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
        self._probe = scope["path"] in _QUIET
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
        key: str = state["caller"].name
        metrics.series(metrics.REQUESTS, route, str(self.status), code, key).inc()
        metrics.series(metrics.REQUEST_SECONDS, route).observe(seconds)
        metrics.series(metrics.SENT_BYTES, key).inc(self._sent_bytes)
        metrics.REQUESTS_IN_PROGRESS.dec()
        note = log.debug if self._probe else log.info
        note(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=self.status,
            code=code,
            key=key,
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
    return new_request_id()
