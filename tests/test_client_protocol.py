"""Requests and replies without sockets: both clients in front of a fake transport."""

import asyncio
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal

import httpx
import numpy as np
import pytest

from fake_lossd import URL, FakeLossd, answer_document, problem, safetensors_response
from lossd_client import AsyncClient, Client, errors, losses
from lossd_client._protocol import LIMITS, Losses, Reply, client_headers, reply_error
from lossd_client._retry import Attempts, retry_delay_s
from lossd_client.wire import Array, Json

LOGITS = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
TARGET = np.zeros((2, 2, 2), np.uint8)


Arguments = dict[str, Any]


class Caller:
    """Calls one method of a fresh client of either kind."""

    def __init__(self, kind: Literal["sync", "async"], fake: FakeLossd) -> None:
        self.kind = kind
        self.fake = fake

    def call(self, method: str, arguments: Arguments, settings: Arguments) -> Json:
        settings = {"transport": self.fake.transport(), **settings}
        if self.kind == "sync":
            with Client(URL, **settings) as client:
                return vars(Client)[method](client, **arguments)
        return asyncio.run(_call(method, arguments, settings))

    def ask(self, method: str) -> Json:
        return self.call(method, {}, {})

    def evaluate(
        self, losses: Losses, *, client: Arguments | None = None, **arguments: object
    ) -> Json:
        tensors = {} if "inputs" in arguments else {"logits": LOGITS, "target": TARGET}
        return self.call("evaluate", {"losses": losses, **tensors, **arguments}, client or {})


async def _call(method: str, arguments: Arguments, settings: Arguments) -> Json:
    async with AsyncClient(URL, **settings) as client:
        return await vars(AsyncClient)[method](client, **arguments)


@pytest.fixture
def fake() -> FakeLossd:
    return FakeLossd()


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest, fake: FakeLossd) -> Caller:
    return Caller(request.param, fake)


@pytest.fixture(autouse=True)
def slept_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Delays that were waited for by this thread, without waiting."""
    delays: list[float] = []
    here, really_asleep = threading.get_ident(), asyncio.sleep
    really_sleep = time.sleep

    def sleep(delay_s: float) -> None:
        if threading.get_ident() == here:
            delays.append(delay_s)
        else:  # a service that another test has started here
            really_sleep(delay_s)

    async def asleep(delay_s: float) -> None:
        if threading.get_ident() == here:
            delays.append(delay_s)
        else:
            await really_asleep(delay_s)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(asyncio, "sleep", asleep)
    return delays


def test_a_request_says_only_what_differs_from_the_defaults(
    caller: Caller, fake: FakeLossd
) -> None:
    caller.evaluate(["dice", losses.Focal(gamma=1.0)], gradient="total", ignore_index=255)
    (seen,) = fake.seen
    assert (seen.method, seen.path) == ("POST", "/v1/evaluate")
    assert seen.document == {
        "losses": [{"name": "dice"}, {"name": "focal", "params": {"gamma": 1.0}}],
        "gradient": "total",
        "ignore_index": 255,
    }
    assert seen.tensors["logits"].tolist() == LOGITS.tolist()
    assert list(seen.tensors) == ["logits", "target"]


def test_a_request_has_the_headers_of_the_contract(caller: Caller, fake: FakeLossd) -> None:
    caller.evaluate("dice", request_id="mine", client={"api_key": "s3cret"})
    (seen,) = fake.seen
    expected = {
        "content-type": "application/vnd.safetensors",
        "accept": "application/vnd.safetensors",
        "accept-encoding": "identity",
        "content-length": str(len(seen.body)),
        "x-request-id": "mine",
        "authorization": "Bearer s3cret",
    }
    assert {name: seen.headers[name] for name in expected} == expected
    assert "transfer-encoding" not in seen.headers


def test_without_key_and_id_neither_is_sent(caller: Caller, fake: FakeLossd) -> None:
    caller.evaluate("dice")
    assert {"authorization", "x-request-id"}.isdisjoint(fake.seen[0].headers)


def test_a_result_holds_everything_that_was_asked_for(caller: Caller) -> None:
    result = caller.evaluate(
        ["dice", "focal"], gradient="total", maps=True, per_class=True, statistics=True
    )
    assert result["dice"].tolist() == [5.5, 17.5]
    assert result["focal"].tolist() == [11.0, 35.0]
    assert result["dice"].dtype == result.total.dtype == np.float64
    assert result.total.tolist() == [16.5, 52.5]
    assert result.mean == {"dice": 11.5, "focal": 23.0}
    assert result.gradient["logits"].shape == LOGITS.shape
    assert result.maps["dice"].shape == TARGET.shape
    assert result.per_class["dice"].shape == (2, 2)
    assert list(result.statistics) == ["pixels"]
    assert result.warnings == ("this is a fake",)
    assert (result.timing_ms.total, result.batch.requests) == (0.4, 1)
    assert (result.device, result.numerics_version, result.request_id) == ("cpu", "1", "r-1")
    assert repr(result) == "Result(samples=2, mean={'dice': 11.5, 'focal': 23.0})"


def test_arrays_of_a_result_are_writable_and_rows_own_their_memory(caller: Caller) -> None:
    result = caller.evaluate("dice", gradient="total", statistics=True)
    result.gradient["logits"] += 1
    assert result["dice"].base is None
    assert result.statistics["pixels"].base is None


def test_an_unknown_label_lists_the_known(caller: Caller) -> None:
    with pytest.raises(KeyError, match="no loss 'focal' in this result; it has dice"):
        caller.evaluate("dice")["focal"]


def test_each_gradient_is_found_by_label(caller: Caller) -> None:
    result = caller.evaluate(["dice", "focal"], gradient="each")
    assert {label: each.max() for label, each in result.gradient["logits"].items()} == {
        "dice": 1.0,
        "focal": 2.0,
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("gradient", ["total", "each"])
def test_half_precision_gradients_come_back_scaled(
    caller: Caller, dtype: str, gradient: str
) -> None:
    result = caller.evaluate("dice", gradient=gradient, gradient_dtype=dtype)
    found = result.gradient["logits"]
    array = found["dice"] if gradient == "each" else found
    assert array.dtype == np.float32
    assert (array == 1.0).all()


def test_a_double_gradient_stays_double(caller: Caller) -> None:
    result = caller.evaluate("dice", gradient="total", gradient_dtype="float64")
    assert result.gradient["logits"].dtype == np.float64


@pytest.mark.parametrize("count", [1, 3])
def test_listed_inputs_come_back_as_lists(caller: Caller, fake: FakeLossd, count: int) -> None:
    inputs = [{"logits": LOGITS[:, :, :size], "target": None} for size in (1, 2, 2)[:count]]
    result = caller.evaluate("dice", inputs=inputs, gradient="each", maps=True)
    assert len(fake.seen[0].tensors) == count
    assert ("0/logits" in fake.seen[0].tensors) == (count > 1)
    assert len(result["dice"]) == 2 * count
    shapes = [each["dice"].shape for each in result.gradient["logits"]]
    assert shapes == [(2, 3, size, 2) for size in (1, 2, 2)[:count]]
    assert [each.shape[1] for each in result.maps["dice"]] == [1, 2, 2][:count]


def test_listed_inputs_without_gradients_have_none(caller: Caller) -> None:
    result = caller.evaluate("dice", inputs=[{"logits": LOGITS}, {"logits": LOGITS}])
    assert (result.gradient, result.maps) == ({}, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": LOGITS, "inputs": [{"logits": LOGITS}]}, "either inputs or logits"),
        ({}, "nothing to evaluate"),
        ({"inputs": []}, "nothing to evaluate"),
        ({"inputs": [{"logits": LOGITS}, {"logits": None}]}, "nothing to evaluate"),
        ({"inputs": [{"0/logits": LOGITS}]}, "'0/logits' is no name"),
        ({"logits": LOGITS, "gradient": "sum"}, "gradient"),
        ({"logits": LOGITS, "request_id": "a\nb"}, "request_id must be"),
        ({"logits": LOGITS, "losses": []}, "losses"),
        ({"logits": LOGITS, "losses": ["dice", "dice"]}, "labels must differ"),
        ({"logits": LOGITS, "losses": losses.Dice(smooth_nr=float("nan"))}, "JSON"),
    ],
)
def test_what_cannot_be_right_is_not_sent(
    caller: Caller, fake: FakeLossd, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        caller.call("evaluate", {"losses": "dice", **arguments}, {})
    assert fake.seen == []


def test_a_dtype_that_cannot_travel_names_its_input(caller: Caller) -> None:
    with pytest.raises(TypeError, match="input '1/target'"):
        caller.evaluate("dice", inputs=[{"target": TARGET}, {"target": TARGET.astype("u2")}])


@pytest.mark.parametrize("cls", errors.ERRORS.values())
def test_every_code_of_the_service_raises_its_class(
    caller: Caller, fake: FakeLossd, cls: type[errors.LossdError]
) -> None:
    entries = [{"loc": ["losses", 0], "message": "wrong"}]
    answer = problem(cls.status or 500, cls.code, errors=entries, request_id="r-9")
    fake.script.extend([answer] * 4)
    with pytest.raises(cls) as caught:
        caller.evaluate("dice")
    assert type(caught.value) is cls
    assert caught.value.detail == f"it is {cls.code}"
    assert caught.value.request_id == "r-9"
    assert caught.value.errors == (errors.FieldError(("losses", 0), "wrong"),)
    assert len(fake.seen) == (4 if cls.status in (429, 503) else 1)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(502, text="<html>Bad Gateway"),
        httpx.Response(502, json=["not", "an", "object"]),
        httpx.Response(502, json={"errors": "several", "code": 7}),
        httpx.Response(502),
    ],
)
def test_answers_of_something_in_between_keep_their_status(
    caller: Caller, fake: FakeLossd, answer: httpx.Response
) -> None:
    fake.script.append(answer)
    with pytest.raises(errors.ServiceError, match="HTTP 502"):
        caller.evaluate("dice")


def test_a_redirect_is_an_error(caller: Caller, fake: FakeLossd) -> None:
    fake.script.append(httpx.Response(302, headers={"Location": "http://elsewhere.test"}))
    with pytest.raises(errors.RequestError, match="HTTP 302"):
        caller.evaluate("dice", client={"api_key": "s3cret"})
    assert len(fake.seen) == 1


def broken_answers() -> Iterable[tuple[str, httpx.Response]]:
    total: dict[str, Array] = {"total": np.zeros(2)}
    document = answer_document({})
    half: dict[str, Array] = {
        "0/gradient/logits": np.zeros((2, 3), np.float16),
        "0/gradient_scale/logits": np.ones(3, np.float32),
        "1/gradient/logits": np.zeros((2, 3), np.float16),
    }
    numbers: dict[str, Array] = {"0/map/dice": np.zeros(1), "1/map/dice": np.zeros(1)}
    yield "html", httpx.Response(200, html="<p>")
    yield "no tensors", httpx.Response(200, headers={"Content-Type": "application/vnd.safetensors"})
    yield "no document", safetensors_response(total, {})
    yield "no total", safetensors_response({}, document)
    yield (
        "a scale of another length",
        safetensors_response(
            total | half | {"gradient_scale/logits": np.ones(3, np.float32)}, document
        ),
    )
    yield (
        "more objects than asked for",
        safetensors_response(total | numbers | {"2/map/dice": np.zeros(1)}, document),
    )
    yield (
        "a map of one object only",
        safetensors_response(total | numbers | {"0/map/focal": np.zeros(1)}, document),
    )


@pytest.mark.parametrize("answer", [each for _, each in broken_answers()])
def test_an_answer_that_cannot_be_read_is_the_services_fault(
    caller: Caller, fake: FakeLossd, answer: httpx.Response
) -> None:
    fake.script.append(answer)
    with pytest.raises(errors.ServiceError, match=r"incomplete|is this lossd"):
        caller.evaluate("dice", inputs=[{"logits": LOGITS}, {"logits": LOGITS}])


def test_a_scale_for_all_samples_is_applied_to_all(caller: Caller, fake: FakeLossd) -> None:
    tensors: dict[str, Array] = {
        "total": np.zeros(2),
        "gradient/centers": np.ones((5, 3), np.float16),
        "gradient_scale/centers": np.full(1, 0.5, np.float32),
        "gradient/logits": np.ones((2, 3), np.float16),
    }
    fake.script.append(safetensors_response(tensors, answer_document({"dice": None})))
    result = caller.evaluate("dice", gradient="total")
    assert (result.gradient["centers"] == 0.5).all()
    assert result.gradient["logits"].dtype == np.float32
    assert result.mean == {"dice": None}


@pytest.mark.parametrize(
    "failure",
    [
        problem(429, "queue_full"),
        problem(503, "draining"),
        httpx.Response(503, text="nginx"),
        ConnectionRefusedError("refused"),
        ConnectionResetError("reset"),
        socket.gaierror("no such name"),
        ssl.SSLError("odd"),
        http.client.IncompleteRead(b"", 7),
    ],
)
def test_what_is_safe_to_repeat_is_repeated(
    caller: Caller, fake: FakeLossd, slept_s: list[float], failure: httpx.Response | Exception
) -> None:
    fake.script.extend([failure, failure])
    assert caller.evaluate("dice")["dice"].tolist() == [5.5, 17.5]
    assert [seen.body for seen in fake.seen] == [fake.seen[0].body] * 3
    assert 0.05 <= slept_s[0] <= 0.1 <= slept_s[1] <= 0.2


@pytest.mark.parametrize(
    "failure",
    [
        problem(500, "internal"),
        problem(504, "deadline_exceeded"),
        problem(422, "invalid_input"),
        TimeoutError("slow"),
        ssl.SSLCertVerificationError("expired"),
    ],
)
def test_everything_else_is_not(
    caller: Caller, fake: FakeLossd, failure: httpx.Response | Exception
) -> None:
    fake.script.append(failure)
    with pytest.raises(errors.LossdError):
        caller.evaluate("dice")
    assert len(fake.seen) == 1


def test_a_connection_that_keeps_failing_is_unreachable(caller: Caller, fake: FakeLossd) -> None:
    fake.script.extend([ConnectionRefusedError("refused")] * 9)
    with pytest.raises(errors.UnreachableError, match="ConnectionRefusedError refused") as caught:
        caller.evaluate("dice", client={"retries": 2})
    assert len(fake.seen) == 3
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_retry_after_is_honoured(caller: Caller, fake: FakeLossd, slept_s: list[float]) -> None:
    fake.script.append(problem(429, "queue_full", headers={"Retry-After": "7"}))
    caller.evaluate("dice")
    assert 7.0 <= slept_s[0] <= 7.1


def test_a_wait_beyond_the_timeout_is_not_begun(
    caller: Caller, fake: FakeLossd, slept_s: list[float]
) -> None:
    fake.script.append(problem(503, "not_ready", headers={"Retry-After": "61"}))
    with pytest.raises(errors.NotReadyError) as caught:
        caller.evaluate("dice")
    assert caught.value.retry_after_s == 61.0
    assert slept_s == []


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 7.0),
        ("Sun, 06 Nov 1994 08:49:00 GMT", 0.0),
        ("soon", None),
        ("-3", None),
        ("nan", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, expected_s: float | None) -> None:
    now = datetime(1994, 11, 6, 8, 49, 30, tzinfo=UTC)
    error = reply_error(Reply(503, {"retry-after": text}, b""), now=now)
    assert error is not None
    assert error.retry_after_s == expected_s


def test_delays_double_up_to_a_bound_and_spread() -> None:
    delays_s = [retry_delay_s(made, asked_s=None, jitter=0.0) for made in (1, 2, 3, 99, 9999)]
    assert delays_s == [0.1, 0.2, 0.4, 5.0, 5.0]
    assert retry_delay_s(2, asked_s=None, jitter=0.5) == pytest.approx(0.15)
    assert retry_delay_s(9, asked_s=1.0, jitter=0.5) == pytest.approx(1.05)


def test_attempts_end_with_their_time() -> None:
    now_s = [0.0]
    attempts = Attempts(retries=99, timeout_s=1.0, clock=lambda: now_s[0], jitter=lambda: 0.0)
    failure = ConnectionRefusedError("refused")
    assert attempts.delay_s(failure) == 0.1
    now_s[0] = 0.9
    assert attempts.remaining_s() == pytest.approx(0.1)
    assert attempts.delay_s(failure) is None
    now_s[0] = 2.0
    assert attempts.remaining_s() > 0


def test_the_catalogue_and_the_limits_are_read(caller: Caller) -> None:
    assert [entry["name"] for entry in caller.ask("losses")] == ["dice", "focal"]
    assert caller.ask("limits") == {"max_body_bytes": 1 << 30}


@pytest.mark.parametrize("answer", [httpx.Response(200, text="{}"), httpx.Response(200, json={})])
def test_a_catalogue_that_is_none_is_the_services_fault(
    caller: Caller, fake: FakeLossd, answer: httpx.Response
) -> None:
    fake.script.append(answer)
    with pytest.raises(errors.ServiceError):
        caller.ask("losses")


def test_broken_json_is_the_services_fault(caller: Caller, fake: FakeLossd) -> None:
    headers = {"Content-Type": "application/json"}
    fake.script.append(httpx.Response(200, content=b"{", headers=headers))
    with pytest.raises(errors.ServiceError, match="not JSON"):
        caller.ask("limits")


def test_readiness_is_asked_once(caller: Caller, fake: FakeLossd) -> None:
    fake.script.extend([problem(503, "not_ready"), ConnectionRefusedError("refused")])
    assert [caller.ask("ready") for _ in range(3)] == [False, False, True]
    fake.script.append(problem(500, "internal"))
    with pytest.raises(errors.InternalError):
        caller.ask("ready")
    assert len(fake.seen) == 4


@pytest.mark.parametrize("cls", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "url must be"),
        ({"url": "ftp://host"}, "url must be"),
        ({"url": "http://"}, "url must be"),
        ({"url": "http://host:port"}, "url: "),
        ({"url": "http://me:hidden@host"}, "use api_key"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"retries": -1}, "retries"),
        ({"api_key": "hid\nden"}, "api_key must be"),
        ({"api_key": ""}, "api_key must be"),
        ({"unix_socket": "a", "transport": FakeLossd().transport()}, "of your own knows no"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    cls: type[Client | AsyncClient], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        cls(**{"url": URL, **settings})
    assert "hid" not in str(caught.value)


@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_a_client_shows_its_url_and_not_its_key(cls: type[Client | AsyncClient]) -> None:
    assert repr(cls("http://host:1/", api_key="hidden")) == f"{cls.__name__}('http://host:1')"


@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_no_part_of_a_client_and_no_request_shows_the_key(
    cls: type[Client | AsyncClient], fake: FakeLossd
) -> None:
    client = cls(URL, api_key="hidden", transport=fake.transport())
    request = LIMITS.under(client_headers("hidden"))
    assert request.headers["Authorization"] == "Bearer hidden"
    assert "hidden" not in f"{vars(client)} {request} {request.headers}"


def test_an_error_document_round_trips_through_the_classes() -> None:
    error = errors.LabelOutOfRangeError("label 7", request_id="r")
    body = json.dumps(error.problem()).encode()
    read = reply_error(Reply(error.status, {}, body))
    assert type(read) is errors.LabelOutOfRangeError
    assert read.problem() == error.problem()
