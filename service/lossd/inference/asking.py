"""A call of this process's own application, as if it had come over HTTP.

So keys, quotas, limits, log lines, metrics and errors are those of every other request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message


@dataclass(frozen=True)
class Asked:
    """Where a call came from and what it brought along."""

    peer: str
    """As gRPC says it: `ipv4:127.0.0.1:50000`."""
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answered:
    """An answer, all of it."""

    status: int
    headers: Mapping[str, str]
    body: memoryview


async def ask(
    app: ASGIApp, asked: Asked, method: str, path: str, parts: Sequence[bytes] = ()
) -> Answered:
    """The application's answer to a request whose body is made of parts.

    Cancelling this is for the application what a client is that goes away.
    """
    body = b"".join(parts)
    headers = {**asked.headers, "content-length": str(len(body))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "2",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": address_of(asked.peer),
        "server": None,
        "extensions": {},
    }
    waiting: list[Message] = [
        {"type": "http.request", "body": memoryview(body), "more_body": False}
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()  # the client is there as long as this is not cancelled
        return waiting.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *rest = sent
    told = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    pieces = [message.get("body", b"") for message in rest]
    whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    return Answered(start["status"], told, memoryview(whole))


def address_of(peer: str) -> tuple[str, int] | None:
    """Host and port of a peer as gRPC calls it; None for one without.

    Example:
        >>> address_of("ipv4:127.0.0.1:50000"), address_of("ipv6:%5B::1%5D:50000")
        (('127.0.0.1', 50000), ('::1', 50000))
    """
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return host.strip("[]"), int(port)


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that hold something."""
    return {name: value for name, value in values.items() if value}
