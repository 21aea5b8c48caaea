"""Charges requests to their callers: at the head, as the body comes, at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lossd.error_bodies import INFERENCE
from lossd.http_protocol import announced_bytes
from lossd.landing import ARRIVAL, Arrival
from lossd.problems import answer_problem
from lossd.quotas import WINDOW_S, Quota, Quotas, Standing, Usage, Work
from lossd_client.errors import LossdError
from lossd_client.qa_wire import CONTEXTS_PATH, SCORE_PATH, SUSPICION_PATH
from lossd_client.wire import EVALUATE_PATH

WORK: Final = {
    ("POST", EVALUATE_PATH),
    ("PUT", "/v1/tensors"),
    ("POST", SCORE_PATH),
    ("POST", SUSPICION_PATH),
}
"""What is charged: method and path. The rest costs little and tells callers how they stand."""

_UNDONE: Final = (429, 503)

# Of the draft's registry; requests are what is counted where no unit is named.
_UNITS: Final[dict[Quota, str]] = {
    "samples": ';qu="samples"',
    "bytes": ';qu="content-bytes"',
    "concurrency": ';qu="concurrent-requests"',
}


class Metering:
    """Lets requests in as far as their callers' quotas go, and tells what is left.

    Args:
        app: what is behind.
        quotas: what callers have used.
        max_body_bytes: a longer body is refused behind, unread.
    """

    def __init__(self, app: ASGIApp, quotas: Quotas, max_body_bytes: int) -> None:
        self._app = app
        self._quotas = quotas
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or whatever else ASGI has."""
        if scope["type"] != "http" or not _is_work(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        usage = self._quotas.usage(scope["state"]["caller"])
        try:
            work = usage.let_in(self._body_bytes(scope))
        except LossdError as error:
            refusal = await answer_problem(Request(scope), error)
            await refusal(scope, receive, _telling(send, usage))
            return
        scope["state"]["work"] = work
        try:
            await self._app(scope, _charging(receive, work), _telling(send, usage, work))
        finally:
            # Of a large body the application sees nothing before it is whole.
            arrival: Arrival | None = scope.get("extensions", {}).get(ARRIVAL)
            work.end(arrived_bytes=0 if arrival is None else arrival.arrived_bytes)

    def _body_bytes(self, scope: Scope) -> int | None:
        """Length of the body as far as it will be read; None if nobody knows."""
        nbytes = announced_bytes(scope["headers"])
        return 0 if nbytes is not None and nbytes > self._max_body_bytes else nbytes


def _is_work(method: str, path: str) -> bool:
    """Whether a request is charged; names of contexts and models are part of a path."""
    if method == "PUT":
        return (method, path) in WORK or path.startswith(f"{CONTEXTS_PATH}/")
    inference = path.startswith(f"{INFERENCE}/models/") and path.endswith("/infer")
    return (method, path) in WORK or (method == "POST" and inference)


def _charging(receive: Receive, work: Work) -> Receive:
    async def charged() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            work.receive_bytes(len(message.get("body", b"")))
        return message

    return charged


def _telling(send: Send, usage: Usage, work: Work | None = None) -> Send:
    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            if work is not None and message["status"] in _UNDONE:
                work.give_back()
            standings = usage.standings()
            if standings:
                sent = list(message.get("headers", []))
                retry_after_s = dict(sent).get(b"retry-after")
                longest_s = None if retry_after_s is None else int(retry_after_s)
                message["headers"] = [*sent, *rate_limit_headers(standings, longest_s)]
        await send(message)

    return told


def rate_limit_headers(
    standings: Sequence[Standing], longest_s: int | None = None
) -> list[tuple[bytes, bytes]]:
    """The fields of draft-ietf-httpapi-ratelimit-headers-11; none where there is no quota.

    Args:
        standings: how the caller stands.
        longest_s: what `Retry-After` says: no window may end later.

    Example:
        >>> rate_limit_headers([Standing("requests", 100, 50, 30.0)])
        [(b'ratelimit-policy', b'"requests";q=100;w=60'), (b'ratelimit', b'"requests";r=50;t=30')]
    """
    if not standings:
        return []
    policies, limits = [], []
    for standing in standings:
        window, until = "", ""
        if standing.full_in_s is not None:
            full_in_s = math.ceil(standing.full_in_s)
            until = f";t={full_in_s if longest_s is None else min(full_in_s, longest_s)}"
            window = f";w={WINDOW_S}"
        unit = _UNITS.get(standing.quota, "")
        policies.append(f'"{standing.quota}";q={standing.limit}{unit}{window}')
        limits.append(f'"{standing.quota}";r={standing.left}{until}')
    return [
        (b"ratelimit-policy", ", ".join(policies).encode()),
        (b"ratelimit", ", ".join(limits).encode()),
    ]
