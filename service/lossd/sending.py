"""The body of an answer: large parts leave as they are, and nothing is compressed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from fastapi import Response
from starlette.types import Receive, Scope, Send

_SMALL_BYTES: Final = 64 * 1024
"""Neighbours that are smaller together are joined: sending costs more than copying them."""


class PartsResponse(Response):
    """An answer of several buffers, whose sum is its length.

    Gradients are as good as random: compressing them costs tens of milliseconds per MiB and saves
    less than a tenth, so whatever `Accept-Encoding` allows, they leave as they are.
    """

    def __init__(
        self, parts: Sequence[bytes | memoryview], media_type: str, headers: Mapping[str, str]
    ) -> None:
        self._parts = [memoryview(part).cast("B") for part in parts]
        nbytes = sum(part.nbytes for part in self._parts)
        super().__init__(media_type=media_type, headers={**headers, "Content-Length": str(nbytes)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        del scope, receive
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)
        pieces = list(_joined(self._parts))
        for number, piece in enumerate(pieces, start=1):
            more = number < len(pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})


def _joined(parts: Iterable[memoryview]) -> Iterator[bytes | memoryview]:
    """The parts in their order, small neighbours as one; at least one piece."""
    waiting: list[memoryview] = []
    waiting_bytes = 0
    for part in parts:
        if waiting and waiting_bytes + part.nbytes > _SMALL_BYTES:
            yield _as_one(waiting)
            waiting, waiting_bytes = [], 0
        waiting.append(part)
        waiting_bytes += part.nbytes
    yield _as_one(waiting)


def _as_one(parts: Sequence[memoryview]) -> bytes | memoryview:
    return parts[0] if len(parts) == 1 else b"".join(parts)
