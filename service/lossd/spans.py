"""Traces by OpenTelemetry; the only module that knows it, imported only where tracing is on.

A request is a server span with a child for each of its stages. A batch is a span of its own, linked
to the requests that it answers: it has many and is the child of none.

The process-wide tracer provider stays unset: whatever else of the process can write spans would
otherwise write a second one for each request.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanKind, StatusCode

from lossd import __version__
from lossd.tracing import BatchTrace, RequestTrace

_METHODS: Final = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
_SERVER_ERROR = 500


class SpanRequest:
    """The server span of a request.

    Its times are those of one clock, of which the distance to the wall clock is read once.
    """

    def __init__(self, scope: Mapping[str, Any], tracer: trace.Tracer) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        now_ns = time.monotonic_ns()
        self._wall_ns = time.time_ns() - now_ns
        self._method = "HTTP" if method == "_OTHER" else method
        self._tracer = tracer
        self._span = span = tracer.start_span(
            self._method,
            propagate.extract(headers),
            SpanKind.SERVER,
            {
                "http.request.method": method,
                "url.path": scope["path"],
                "url.scheme": scope.get("scheme", "http"),
            },
            start_time=self._wall_ns + now_ns,
        )
        self.context = span.get_span_context()
        valid = self.context.is_valid
        self.trace_id = trace.format_trace_id(self.context.trace_id) if valid else ""

    def add_stage(self, name: str, start_s: float, end_s: float) -> None:
        """Writes a child span."""
        parent = trace.set_span_in_context(self._span)
        start_ns, end_ns = (self._wall_ns + round(at_s * 1e9) for at_s in (start_s, end_s))
        self._tracer.start_span(name, parent, start_time=start_ns).end(end_ns)

    def end(self, *, route: str | None, status: int, attributes: Mapping[str, str | int]) -> None:
        """Names the span by method and route and ends it."""
        span = self._span
        if route is not None:
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.route", route)
        if status:
            span.set_attribute("http.response.status_code", status)
        span.set_attributes(_own(attributes))
        if not status or status >= _SERVER_ERROR:
            span.set_attribute("error.type", attributes["code"])
            span.set_status(StatusCode.ERROR)
        span.end(self._wall_ns + time.monotonic_ns())


class SpanBatch:
    """The span of a batch."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def add_failure(self, error: BaseException) -> None:
        """Records the error."""
        self._span.record_exception(error)
        self._span.set_status(StatusCode.ERROR, type(error).__name__)


class SpanTracing:
    """Writes spans to a processor, as the standard `OTEL_*` variables say."""

    def __init__(self, processor: SpanProcessor) -> None:
        own = {"service.name": "lossd", "service.version": __version__}
        # Merged once more, since what is given here would win over the environment.
        resource = Resource.create(own).merge(OTELResourceDetector().detect())
        requests = TracerProvider(resource=resource, shutdown_on_exit=False)
        # A batch has no parent to be sampled with: it is recorded if one of its requests is.
        batches = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        for provider in (requests, batches):
            provider.add_span_processor(processor)
        self._processor = processor
        self._requests = requests.get_tracer("lossd", __version__)
        self._batches = batches.get_tracer("lossd", __version__)

    def start_request(self, scope: Mapping[str, Any]) -> SpanRequest:
        """A server span that continues the caller's trace, if it sent one."""
        return SpanRequest(scope, self._requests)

    @contextlib.contextmanager
    def batch(
        self, requests: Sequence[RequestTrace], attributes: Mapping[str, str | int]
    ) -> Iterator[BatchTrace]:
        """A span of its own, linked to those of the requests."""
        contexts = [one.context for one in requests if isinstance(one, SpanRequest)]
        if not any(context.trace_flags.sampled for context in contexts):
            yield SpanBatch(trace.INVALID_SPAN)
            return
        links = [Link(context) for context in contexts]
        span = self._batches.start_span(
            "batch", Context(), attributes=_own(attributes), links=links
        )
        batch = SpanBatch(span)
        try:
            yield batch
        except BaseException as error:  # the engine's thread ends of it
            batch.add_failure(error)
            raise
        finally:
            span.end()

    def close(self) -> None:
        """Sends what waits to be sent."""
        self._processor.shutdown()


def export_spans() -> SpanTracing:
    """Sends spans by OTLP over HTTP to where the environment says."""
    return SpanTracing(BatchSpanProcessor(OTLPSpanExporter()))


def _own(attributes: Mapping[str, str | int]) -> dict[str, str | int]:
    """Attributes under names that nobody else uses."""
    return {f"lossd.{name}": value for name, value in attributes.items()}
