"""The body of an answer: parts that leave as they are, never joined and never compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastapi import Response
from starlette.types import Receive, Scope, Send


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
        for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
