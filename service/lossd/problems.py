"""Any error as an answer: its status, its headers, its body."""

from __future__ import annotations

from http import HTTPStatus

import structlog
from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from lossd.error_bodies import error_body, is_inference
from lossd.receiving import CODINGS
from lossd_client.errors import (
    BodyTimeoutError,
    InternalError,
    LossdError,
    MethodNotAllowedError,
    NotFoundError,
    QueueFullError,
    QuotaExceededError,
    TooLargeError,
    UnauthorizedError,
    UnsupportedCodingError,
)

log = structlog.get_logger(__name__)

_REFUSALS = (
    UnauthorizedError,
    BodyTimeoutError,
    TooLargeError,
    QueueFullError,
    QuotaExceededError,
)
"""Errors that may come before the body has been read."""
_ROUTING_ERRORS: dict[int, type[LossdError]] = {404: NotFoundError, 405: MethodNotAllowedError}


async def answer_problem(request: Request, error: Exception) -> Response:
    """The answer to a request that failed, whatever with."""
    problem = _as_lossd_error(error, request.url.path)
    problem.request_id = request.state.request_id
    request.state.code = problem.code
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if problem.retry_after is not None:
        headers["Retry-After"] = problem.retry_after
    if isinstance(problem, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(problem, MethodNotAllowedError):
        headers["Allow"] = _allowed(request)
    if isinstance(problem, UnsupportedCodingError):
        headers["Accept-Encoding"] = ", ".join(CODINGS)
    if _leaves_body(request, problem):
        headers["Connection"] = "close"
    body, media_type = error_body(problem, request.url.path)
    return Response(body, problem.status, headers=headers, media_type=media_type)


def _allowed(request: Request) -> str:
    """Methods of the address, of all its routes; the exception names those of the first."""
    routes = [one for one in request.app.routes if one.matches(request.scope)[0] != Match.NONE]
    return ", ".join(sorted(method for one in routes for method in one.methods))


def _leaves_body(request: Request, problem: LossdError) -> bool:
    """Whether a part of the request's body, or all of it, will not be read."""
    sent = request.headers
    announced = sent.get("content-length", "0") != "0" or "transfer-encoding" in sent
    return isinstance(problem, _REFUSALS) and announced and not request.state.body_ended


def _as_lossd_error(error: Exception, path: str) -> LossdError:
    if isinstance(error, LossdError):
        return error
    if isinstance(error, HTTPException) and error.status_code in _ROUTING_ERRORS:
        return _ROUTING_ERRORS[error.status_code](_said(error, path))
    log.error("unexpected_error", exc_info=error)
    return InternalError()


def _said(error: HTTPException, path: str) -> str | None:
    """What Triton says of an address that it does not know, under the protocol's; else our own."""
    return HTTPStatus(error.status_code).phrase if is_inference(path) else None
