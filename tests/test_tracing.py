"""Spans of requests and batches, and that nothing of it is loaded where nobody asked."""

import gzip
import http.server
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from lossd import __version__
from lossd.core.evaluation import evaluate
from lossd.core.job import AnyJob
from lossd.engine import Engine
from lossd.settings import Settings
from lossd.spans import SpanTracing
from lossd_client.errors import InternalError
from service_fixture import ROOT, Caller, Served, environment, lossd, process, serving, wait_until

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
STAGES = ["receive", "read", "queue", "compute", "write"]
REQUEST = {
    "losses": ["dice"],
    "task": "binary",
    "inputs": {"logits": [[[[2.0, -1.0], [0.5, -3.0]]]], "target": [[[1, 0], [1, 0]]]},
}


class Traced:
    """A traced service in this process, and what it wrote."""

    def __init__(self, served: Served, exporter: InMemorySpanExporter) -> None:
        self.served = served
        self.client = served.client
        self._exporter = exporter

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        wait_until(lambda: self.spans(name))
        (span,) = self.spans(name)
        return span

    def children(self, parent: ReadableSpan) -> list[ReadableSpan]:
        return [
            span
            for span in self._exporter.get_finished_spans()
            if span.parent is not None and span.parent.span_id == parent.context.span_id
        ]


@contextmanager
def tracing(**environ: str) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        spans = SpanTracing(SimpleSpanProcessor(exporter))
        engine = Engine(Settings(kernels="eager", threads=2), spans)
        with serving(engine=engine) as served:
            yield Traced(served, exporter)


@pytest.fixture
def traced() -> Iterator[Traced]:
    with tracing() as running:
        yield running


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# -- requests -------------------------------------------------------------------------------------


def test_a_request_continues_its_callers_trace(traced: Traced) -> None:
    answer = traced.client.evaluate(REQUEST, headers={**TRACEPARENT, "X-Request-ID": "mine"})
    assert answer.status_code == 200
    span = traced.span("POST /v1/evaluate")
    assert span.kind is SpanKind.SERVER
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/v1/evaluate",
        "http.response.status_code": 200,
        "url.path": "/v1/evaluate",
        "url.scheme": "http",
        "lossd.code": "ok",
        "lossd.samples": 1,
        "lossd.request_id": "mine",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_a_request_without_a_trace_begins_one(traced: Traced) -> None:
    traced.client.get("/v1/limits")
    traced.client.get("/v1/losses", headers={"traceparent": "nonsense"})
    spans = [traced.span("GET /v1/limits"), traced.span("GET /v1/losses")]
    assert all(span.parent is None for span in spans)
    assert len({span.context.trace_id for span in spans}) == 2


def test_the_stages_follow_each_other_inside_their_request(traced: Traced) -> None:
    traced.client.evaluate(REQUEST).raise_for_status()
    request = traced.span("POST /v1/evaluate")
    stages = traced.children(request)
    assert [stage.name for stage in stages] == STAGES
    times = [time for stage in stages for time in (stage.start_time, stage.end_time)]
    bounds = [time or 0 for time in (request.start_time, *times, request.end_time)]
    rounding_ns = 1000  # of seconds as floats
    assert all(b >= a - rounding_ns for a, b in itertools.pairwise(bounds))
    assert 0 < bounds[0] < bounds[-1]


def test_a_refused_request_has_the_stages_it_came_through(traced: Traced) -> None:
    traced.client.evaluate({**REQUEST, "losses": ["dicee"]})
    request = traced.span("POST /v1/evaluate")
    assert [stage.name for stage in traced.children(request)] == ["receive", "read"]
    assert attributes(request)["lossd.code"] == "unknown_loss"
    assert request.status.status_code is StatusCode.UNSET  # the service did what it should
    assert not traced.spans("batch")


def test_a_name_has_no_part_that_the_caller_chose(traced: Traced) -> None:
    traced.client.get("/of/my/choice")
    span = traced.span("GET")
    assert "http.route" not in attributes(span)
    traced.client.get("/v1/losses/dice")
    assert attributes(traced.span("GET /v1/losses/{name}"))["url.path"] == "/v1/losses/dice"


def test_probes_are_not_traced(traced: Traced) -> None:
    for path in ("/health/ready", "/health/live", "/metrics"):
        traced.client.get(path, headers=TRACEPARENT).raise_for_status()
    traced.client.get("/v1/limits")
    traced.span("GET /v1/limits")
    assert not [span for path in ("/health", "/metrics") for span in traced.spans(f"GET {path}")]
    assert not traced.spans("GET")


# -- batches --------------------------------------------------------------------------------------


class Gate:
    """Holds the engine in its first batch; of later ones it may fail some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        monkeypatch.setattr("lossd.engine.evaluate", self)

    def __call__(self, jobs: Sequence[AnyJob], *rest: Any) -> Any:
        first = not self.entered.is_set()
        self.entered.set()
        assert self.opened.wait(20)
        if self.error is not None and not first:
            raise self.error
        return evaluate(jobs, *rest)


def send_three(
    traced: Traced, gate: Gate, headers: Sequence[dict[str, str]] = ({}, {}, {})
) -> list[int]:
    """One request that keeps the engine busy, and two that then share a batch."""
    statuses: list[int] = []

    def send(more: dict[str, str]) -> None:
        with Caller(base_url=traced.client.base_url, timeout=30) as client:
            statuses.append(client.evaluate(REQUEST, headers=more).status_code)

    threads = [threading.Thread(target=send, args=(more,)) for more in headers]
    threads[0].start()
    assert gate.entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: traced.served.engine.queue_depth().requests == 2)
    gate.opened.set()
    for thread in threads:
        thread.join()
    return statuses


def test_a_batch_is_linked_to_all_of_its_requests(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert send_three(traced, Gate(monkeypatch)) == [200, 200, 200]
    wait_until(lambda: len(traced.spans("batch")) == 2)
    wait_until(lambda: len(traced.spans("POST /v1/evaluate")) == 3)
    alone, together = traced.spans("batch")
    requests = {span.context.span_id: span for span in traced.spans("POST /v1/evaluate")}
    assert len(alone.links) == 1
    linked = {link.context.span_id for link in [*alone.links, *together.links]}
    assert linked == set(requests)
    assert attributes(together) == {
        "lossd.reason": "idle",
        "lossd.samples": 2,
        "lossd.requests": 2,
        "lossd.bytes": 40,
        "lossd.tiles": 2,
    }
    assert together.parent is None
    assert together.kind is SpanKind.INTERNAL
    assert together.context.trace_id not in {span.context.trace_id for span in requests.values()}
    for link in together.links:
        assert link.context.trace_id == requests[link.context.span_id].context.trace_id


def test_a_batch_that_fails_has_its_errors(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    gate.error = RuntimeError("kernel broke")
    assert sorted(send_three(traced, gate)) == [200, 500, 500]
    wait_until(lambda: len(traced.spans("batch")) == 2)
    good, bad = traced.spans("batch")
    assert good.status.status_code is StatusCode.UNSET
    assert (bad.status.status_code, bad.status.description) == (StatusCode.ERROR, "RuntimeError")
    assert [event.name for event in bad.events] == ["exception"] * 3  # both, then each alone
    assert "kernel broke" in str((bad.events[0].attributes or {})["exception.message"])
    wait_until(lambda: len(traced.spans("POST /v1/evaluate")) == 3)
    failed = [
        span
        for span in traced.spans("POST /v1/evaluate")
        if span.status.status_code is StatusCode.ERROR
    ]
    assert [attributes(span)["error.type"] for span in failed] == [InternalError.code] * 2


def test_a_batch_that_ends_the_engine_is_written(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DeviceLostError(BaseException):
        pass

    gate = Gate(monkeypatch)
    gate.error = DeviceLostError()
    assert sorted(send_three(traced, gate)) == [200, 500, 500]
    wait_until(lambda: len(traced.spans("batch")) == 2)
    assert traced.spans("batch")[1].status.status_code is StatusCode.ERROR


def test_a_batch_is_kept_if_one_of_its_requests_is(monkeypatch: pytest.MonkeyPatch) -> None:
    unsampled = {"traceparent": TRACEPARENT["traceparent"].removesuffix("01") + "00"}
    with tracing(OTEL_TRACES_SAMPLER="parentbased_always_off") as traced:
        headers = [unsampled, unsampled, TRACEPARENT]
        assert send_three(traced, Gate(monkeypatch), headers) == [200, 200, 200]
        batch = traced.span("batch")
        request = traced.span("POST /v1/evaluate")
    assert f"{request.context.trace_id:032x}" == TRACE_ID
    assert len(batch.links) == 2  # of the unsampled one at least the id


# -- the process ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "lossd"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,a=b"}, "ours"),
    ],
)
def test_the_environment_may_name_the_service(environ: dict[str, str], expected: str) -> None:
    with tracing(**environ) as traced:
        traced.client.get("/v1/limits")
        resource = traced.span("GET /v1/limits").resource.attributes
    assert resource["service.name"] == expected
    assert resource["service.version"] == __version__
    assert resource.get("a") == ("b" if "a=b" in str(environ) else None)


def test_a_disabled_sdk_serves_untraced() -> None:
    with tracing(OTEL_SDK_DISABLED="true") as traced:
        traced.client.evaluate(REQUEST).raise_for_status()
        assert not traced.spans("POST /v1/evaluate")


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans as a collector does."""

    received: ClassVar[list[ExportTraceServiceRequest]] = []

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_a_served_process_exports_by_otlp_and_flushes_when_it_stops(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",  # only the end can send what is here
        }
        with process(tmp_path, "--tracing", "otlp", **variables) as running:
            url = f"{running.url}/v1/evaluate"
            headers = {**TRACEPARENT, "X-Request-ID": "mine"}
            httpx.post(url, json=REQUEST, headers=headers).raise_for_status()
            wait_until(lambda: any('"mine"' in line for line in running.lines))
            assert not Collector.received
            assert running.stop() == 0
        server.shutdown()
    (line,) = [event for event in running.events if event.get("request_id") == "mine"]
    assert line["trace_id"] == TRACE_ID
    spans = [
        span
        for message in Collector.received
        for of_resource in message.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]
    assert sorted(span.name for span in spans) == sorted([*STAGES, "POST /v1/evaluate", "batch"])
    (request,) = [span for span in spans if span.name == "POST /v1/evaluate"]
    assert request.trace_id.hex() == TRACE_ID
    (batch,) = [span for span in spans if span.name == "batch"]
    assert [link.span_id for link in batch.links] == [request.span_id]


def test_without_the_extra_tracing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lossd.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    refused = lossd("serve", "--tracing", "otlp", "--port", "0")
    assert refused.status == 2
    assert "pip install 'lossd[telemetry]'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_untraced_service_loads_nothing_of_it(tmp_path: Path) -> None:
    code = """
import sys
from service_fixture import serving
with serving() as served:
    served.client.evaluate(%r).raise_for_status()
import lossd.__main__
print([name for name in sys.modules if name.startswith(
    ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "lossd.spans"))])
"""
    code = code.replace("%r", repr(REQUEST))
    environ = environment(tmp_path)
    environ["PYTHONPATH"] += f":{ROOT / 'tests'}"
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
