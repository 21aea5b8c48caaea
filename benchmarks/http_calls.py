"""Requests to one service over one connection, by a plain client that looks at the clock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any, Final, Self

import orjson

from lossd_client.wire import JSON, SAFETENSORS, Array, encode_safetensors

_GOOD: Final = (200, 201)


@dataclass(frozen=True)
class Answer:
    """One answer, and when its parts were there, in seconds from the start of the request."""

    content: bytes
    stages_ms: Mapping[str, float]
    """What the service says of its stages."""
    sent_s: float
    """The last byte of the request was handed to the system."""
    headed_s: float
    """The head of the answer had been read."""
    ended_s: float
    """All of it had."""


class Caller:
    """A connection that is used again and again.

    Args:
        port: of a service on this machine.
    """

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def evaluate(self, body: bytes, kind: str = SAFETENSORS) -> Answer:
        """One evaluation, answered as safetensors.

        Raises:
            RuntimeError: the answer is an error.
        """
        return self.call(
            "POST", "/v1/evaluate", body, {"Content-Type": kind, "Accept": SAFETENSORS}
        )

    def keep(self, array: Array) -> str:
        """Keeps logits; their ref.

        Raises:
            RuntimeError: the answer is an error.
        """
        body = b"".join(encode_safetensors({"logits": array}, {}))
        headers = {"Content-Type": SAFETENSORS, "Accept": JSON}
        answer = self.call("PUT", "/v1/tensors", body, headers)
        return str(orjson.loads(answer.content)["ref"])

    def call(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Any call.

        Raises:
            RuntimeError: the answer is an error.
        """
        started = time.perf_counter()
        self._connection.request(method, path, body, dict(headers or {}))
        sent = time.perf_counter()
        response = self._connection.getresponse()
        headed = time.perf_counter()
        content = response.read()
        ended = time.perf_counter()
        if response.status not in _GOOD:
            msg = f"{method} {path} was answered {response.status}: {content[:500]!r}"
            raise RuntimeError(msg)
        return Answer(
            content=content,
            stages_ms=_stages_ms(response.headers.get("Server-Timing", "")),
            sent_s=sent - started,
            headed_s=headed - started,
            ended_s=ended - started,
        )


def request_body(inputs: Mapping[str, Array], document: Mapping[str, Any]) -> bytes:
    """Body of an evaluation as one safetensors file."""
    return b"".join(encode_safetensors(inputs, {"request": orjson.dumps(document).decode()}))


def _stages_ms(header: str) -> dict[str, float]:
    entries = (one.partition(";dur=") for one in header.split(", ") if one)
    return {stage: float(duration) for stage, _, duration in entries}
