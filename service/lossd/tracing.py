"""What the service tells a tracer, and the tracer that listens to nothing.

`spans` has the other one. Times are seconds of `time.monotonic`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class RequestTrace(Protocol):
    """The trace of one request, from its head to the end of its answer."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty where nothing is traced."""

    def add_stage(self, name: str, start_s: float, end_s: float) -> None:
        """Notes a part of the request."""

    def end(self, *, route: str | None, status: int, attributes: Mapping[str, str | int]) -> None:
        """Ends it.

        Args:
            route: template of the address, where there is one.
            status: of the answer; 0 where there was none.
            attributes: what else to note, by names of lossd's own.
        """


class BatchTrace(Protocol):
    """The trace of one batch."""

    def add_failure(self, error: Exception) -> None:
        """Notes that the batch, or a part of it, failed."""


class Tracing(Protocol):
    """Starts traces."""

    def start_request(self, scope: Mapping[str, Any]) -> RequestTrace:
        """The trace of a request that begins now, by its ASGI scope.

        It continues the caller's trace, if there is one.
        """

    def batch(
        self, requests: Sequence[RequestTrace], attributes: Mapping[str, str | int]
    ) -> contextlib.AbstractContextManager[BatchTrace]:
        """The trace of a batch, linked to those of its requests, while the context is open."""

    def close(self) -> None:
        """Sends what was noted and stops."""


class NotTraced:
    """A request, a batch or a service that nobody traces."""

    trace_id = ""

    def add_stage(self, name: str, start_s: float, end_s: float) -> None:
        """Nothing."""

    def end(self, *, route: str | None, status: int, attributes: Mapping[str, str | int]) -> None:
        """Nothing."""

    def add_failure(self, error: Exception) -> None:
        """Nothing."""

    def start_request(self, scope: Mapping[str, Any]) -> RequestTrace:
        """Itself."""
        del scope
        return self

    def batch(
        self, requests: Sequence[RequestTrace], attributes: Mapping[str, str | int]
    ) -> contextlib.AbstractContextManager[BatchTrace]:
        """Itself."""
        del requests, attributes
        return contextlib.nullcontext(self)

    def close(self) -> None:
        """Nothing."""


NOT_TRACED = NotTraced()


class Origin(NamedTuple):
    """The request that a job came from: what the log lines and traces of its batch refer to."""

    request_id: str
    trace: RequestTrace = NOT_TRACED


NO_ORIGIN = Origin("")
"""Of jobs that no request asked for."""
