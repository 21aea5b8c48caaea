"""HTTP at the level of sockets: bodies, pipelines, refusals, and strangers who are slow or many."""

import asyncio
import contextlib
import inspect
import math
import socket
import struct
import sys
import time
from asyncio import selector_events
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from uvicorn.protocols.http import httptools_impl

from lossd.http_protocol import HangUp, HttpProtocol
from lossd_client.errors import MalformedBodyError
from lossd_client.wire import PROBLEM
from service_fixture import wait_until
from wire_fixture import Answered, Echo, Listening, answers, chunked, listening, received, request

LARGE = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()
MIB = 1 << 20
CLOSE = "Connection: close"


@pytest.fixture(scope="module", params=["own", "stock"])
def either(request: pytest.FixtureRequest) -> Iterator[Listening]:
    """The same application behind the service's protocol and behind uvicorn's."""
    with listening(Echo(), protocol=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def own(request: pytest.FixtureRequest) -> Iterator[Listening]:
    del request
    with listening(Echo()) as running:
        yield running


@pytest.fixture
def echo(own: Listening) -> Echo:
    echo: Echo = own.app
    echo.messages.clear()
    echo.failures.clear()
    echo.entered.clear()
    return echo


def told(answer: Answered) -> tuple[int, int, int]:
    return answer.status, answer.document["nbytes"], answer.document["sum"]


def cut(reason: str) -> float:
    value = REGISTRY.get_sample_value("lossd_cut_connections_total", {"reason": reason})
    return value or 0.0


# -- bodies ---------------------------------------------------------------------------------------


def test_a_large_body_is_one_message_and_one_view(own: Listening, echo: Echo) -> None:
    (answer,) = own.exchange(request("/", LARGE, CLOSE))
    assert told(answer) == (200, len(LARGE), sum(LARGE))
    (message,) = echo.messages
    assert isinstance(message["body"], memoryview)
    assert message["body"] == LARGE
    assert not message["more_body"]


@pytest.mark.parametrize("nbytes", [0, 1, 65_535, 65_536, 65_537, 262_144, 1_000_003])
def test_a_body_arrives_whatever_its_length(either: Listening, nbytes: int) -> None:
    body = LARGE[:nbytes]
    (answer,) = either.exchange(request("/", body, CLOSE))
    assert told(answer) == (200, nbytes, sum(body))


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not wait for more")
def test_a_large_body_is_read_in_large_pieces(own: Listening, echo: Echo) -> None:
    with own.connect() as connection:
        body = request("/", LARGE, CLOSE)
        step = len(body) // 60
        connection.sendall(body[:step])
        wait_until(lambda: bool(echo.entered.is_set()))
        (protocol,) = wait_for_protocols(own, 1)
        reads: list[int] = []
        updated = protocol.buffer_updated

        def noted(nbytes: int) -> None:
            reads.append(nbytes)
            updated(nbytes)

        protocol.buffer_updated = noted
        for start in range(step, len(body), step):
            connection.sendall(body[start : start + step])
            time.sleep(0.002)
        (answer,) = answers(received(connection))
    assert told(answer) == (200, len(LARGE), sum(LARGE))
    assert 0 < len(reads) < 10


def test_a_small_request_behind_a_large_body_is_heard(own: Listening) -> None:
    with own.connect() as connection:
        for body in (LARGE, b"abc", LARGE):
            connection.sendall(request("/", body))
            (answer,) = answers(one_answer(connection))
            assert told(answer) == (200, len(body), sum(body))


def one_answer(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"}"):
        data += connection.recv(65536)
    return data


def test_a_body_in_chunks_arrives(either: Listening) -> None:
    pieces = [LARGE[:1], LARGE[1:70_000], LARGE[70_000:]]
    (answer,) = either.exchange(chunked("/", pieces, CLOSE))
    assert told(answer) == (200, len(LARGE), sum(LARGE))


def test_requests_one_after_another_share_a_connection(either: Listening) -> None:
    bodies = [b"", LARGE, b"x", LARGE[:100_000], b""]
    with either.connect() as connection:
        for number, body in enumerate(bodies):
            last = [CLOSE] if number == len(bodies) - 1 else []
            connection.sendall(request(f"/{number}", body, *last))
            if not last:
                wait_until(lambda: bool(connection.recv(1, socket.MSG_PEEK)))
        found = answers(received(connection))
    assert [told(answer)[1] for answer in found] == [len(body) for body in bodies]


def test_pipelined_requests_are_answered_in_order(either: Listening) -> None:
    bodies = [LARGE, b"", b"small", LARGE[:200_000], LARGE]
    stream = b"".join(request(f"/{number}", body) for number, body in enumerate(bodies))
    stream += chunked("/5", [LARGE[:90_000], b"end"]) + request("/6", b"", CLOSE, method="GET")
    found = either.exchange(stream)
    assert [answer.document["path"] for answer in found] == [f"/{number}" for number in range(7)]
    assert [told(one)[1] for one in found] == [*map(len, bodies), 90_003, 0]


def test_whoever_asks_is_told_to_go_on(either: Listening) -> None:
    with either.connect() as connection:
        head, body = request("/", LARGE, "Expect: 100-continue", CLOSE)[: -len(LARGE)], LARGE
        connection.sendall(head)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        (answer,) = answers(received(connection))
    assert told(answer) == (200, len(LARGE), sum(LARGE))


def test_whoever_is_refused_is_not_told_to_go_on(own: Listening) -> None:
    head = request("/unread", b"small", "Expect: 100-continue")[: -len(b"small")]
    with own.connect() as connection:
        connection.sendall(head)
        (answer,) = answers(received(connection))
    assert (answer.status, answer.headers["connection"]) == (200, "close")


@pytest.mark.parametrize("body", [b"", LARGE])
def test_http_1_0_is_answered_and_closed(either: Listening, body: bytes) -> None:
    (answer,) = either.exchange(request("/", body, version="1.0"))
    assert told(answer) == (200, len(body), sum(body))
    assert answer.headers["connection"] == "close"


def test_head_has_the_length_of_a_body_but_none(either: Listening) -> None:
    with either.connect() as connection:
        connection.sendall(request("/", method="HEAD") + request("/", b"", CLOSE, method="GET"))
        head, get = answers(received(connection), heads=[0])
    assert head.body == b""
    assert int(head.headers["content-length"]) > 0
    assert get.document["method"] == "GET"


@pytest.mark.parametrize(("more", "writes"), [(0, 1), (MIB, 3)])
def test_the_head_of_an_answer_leaves_with_its_body(
    own: Listening, monkeypatch: pytest.MonkeyPatch, more: int, writes: int
) -> None:
    written: list[int] = []
    transport = vars(selector_events)["_SelectorSocketTransport"]
    write = transport.write

    def noting(self: Any, data: bytes) -> None:
        written.append(len(data))
        write(self, data)

    monkeypatch.setattr(transport, "write", noting)
    (answer,) = own.exchange(request(f"/?{more}", b"x", CLOSE))
    assert answer.status == 200
    # Head and first part together, then the second part in slices of half a MiB.
    assert len([nbytes for nbytes in written if nbytes]) == writes


def test_who_is_told_late_is_told_at_once() -> None:
    hang_up, told_of = HangUp(), list[str]()
    with hang_up.told_to(lambda: told_of.append("early")):
        hang_up.tell()
    assert told_of == ["early"]
    with hang_up.told_to(lambda: told_of.append("late")):
        assert told_of == ["early", "late"]
    hang_up.tell()
    assert told_of == ["early", "late"]


def test_an_upgrade_nobody_offers_is_a_request_like_others(own: Listening) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: h2c")
    stream = request("/1", b"", *upgrade, method="GET") + request("/2", LARGE)
    found = own.exchange(stream + request("/3", b"abc", *upgrade))
    assert [answer.document.get("path") for answer in found] == ["/1", "/2", None]
    assert (found[-1].status, found[-1].document["code"]) == (400, "malformed_request")
    assert "upgrade" in found[-1].document["detail"]


@pytest.mark.parametrize("sent", [0, 1, 100_000, len(LARGE) - 1])
def test_who_goes_away_in_the_middle_is_noticed(own: Listening, echo: Echo, sent: int) -> None:
    whole = request("/", LARGE)
    with own.connect() as connection:
        connection.sendall(whole[: len(whole) - len(LARGE) + sent])
        wait_until(echo.entered.is_set)
    wait_until(lambda: bool(echo.messages) and echo.messages[-1]["type"] == "http.disconnect")
    assert echo.failures == []


def test_fields_behind_a_body_do_not_reach_the_application(own: Listening, echo: Echo) -> None:
    trailers = b"X-API-Key: mine\r\n"
    (answer,) = own.exchange(chunked("/", [b"abc"], CLOSE, trailers=trailers))
    assert told(answer) == (200, 3, sum(b"abc"))
    assert b"connection" in dict(echo.headers)
    assert b"x-api-key" not in dict(echo.headers)


def test_endless_fields_behind_a_body_are_an_error_of_their_request(
    own: Listening, echo: Echo
) -> None:
    own.exchange(chunked("/", [b"abc"], trailers=b"X: y\r\n" * 20_000))
    assert [type(failure) for failure in echo.failures] == [MalformedBodyError]


# -- refusals -------------------------------------------------------------------------------------


def test_an_early_answer_reaches_a_client_that_still_sends(own: Listening) -> None:
    body = bytes(16 * MIB)
    with own.connect() as connection:
        connection.sendall(request("/unread", body)[: -len(body)])
        wait_until(lambda: bool(connection.recv(1, socket.MSG_PEEK)))
        connection.sendall(body)  # the service reads on, and so nothing is reset
        (answer,) = answers(received(connection))
    assert (answer.status, answer.headers["connection"]) == (200, "close")


@pytest.mark.parametrize("missing", [10, 1_000_000])
def test_a_body_that_was_given_up_ends_the_connection(own: Listening, missing: int) -> None:
    with own.connect() as connection:
        connection.sendall(request("/impatient", LARGE)[:-missing])
        (answer,) = answers(received(connection))
    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_a_small_body_that_nobody_reads_keeps_the_connection(either: Listening) -> None:
    found = either.exchange(request("/unread", b"x" * 1000) + request("/", b"abc", CLOSE))
    assert [told(answer)[1] for answer in found] == [0, 3]


@pytest.mark.parametrize(
    "noise",
    [b"\x16\x03\x01 hello\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"],
)
def test_what_is_no_http_is_answered_with_a_problem(own: Listening, noise: bytes) -> None:
    before = cut("malformed_request")
    (answer,) = own.exchange(noise)
    assert (answer.status, answer.document["code"]) == (400, "malformed_request")
    assert answer.headers["content-type"] == PROBLEM
    assert answer.headers["x-request-id"] == answer.document["request_id"]
    assert cut("malformed_request") == before + 1


def test_who_resets_as_an_early_answer_ends_is_no_error() -> None:
    outcomes: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await Echo()(scope, receive, send)
        except OSError as error:
            outcomes.append(repr(error))
            raise
        outcomes.append("sent")

    with listening(app) as running, running.connect() as connection:
        (protocol,) = wait_for_protocols(running, 1)
        protocol.transport = ResetBeforeItsEnd(protocol.transport, connection)
        connection.sendall(request("/unread", LARGE)[:1000])
        wait_until(lambda: not running.server.server_state.connections)
    assert outcomes == ["sent"]


class ResetBeforeItsEnd:
    """A transport whose other side resets the connection at the worst time."""

    def __init__(self, transport: asyncio.Transport, other: socket.socket) -> None:
        self._transport, self._other = transport, other

    def write_eof(self) -> None:
        self._other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._other.close()
        self._transport.write_eof()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def test_noise_behind_a_request_does_not_spoil_its_answer(own: Listening) -> None:
    for body in (b"abc", LARGE):
        good, bad = own.exchange(request("/", body) + b"more than the length said\r\n\r\n")
        assert told(good) == (200, len(body), sum(body))
        assert (bad.status, bad.document["code"]) == (400, "malformed_request")


def test_chunks_that_are_none_are_an_error_of_their_request(own: Listening, echo: Echo) -> None:
    head = request("/", b"", "Transfer-Encoding: chunked")
    with own.connect() as connection:
        connection.sendall(head + b"3\r\nabc\r\n")
        wait_until(lambda: bool(echo.messages))
        connection.sendall(b"zz\r\nabc")
        (answer,) = answers(received(connection))
    assert answer.status == 500  # this application answers nothing itself
    (failure,) = echo.failures
    assert isinstance(failure, MalformedBodyError)


@pytest.mark.parametrize("complete", [b"\r\n\r\n", b""], ids=["complete", "endless"])
def test_a_head_that_is_too_large_is_431(own: Listening, complete: bytes) -> None:
    with own.connect() as connection:
        connection.sendall(request("/", method="GET")[:-4] + b"\r\nX: ")
        with contextlib.suppress(OSError):
            for _ in range(6):
                connection.sendall(b"y" * MIB)
            connection.sendall(complete)
        (answer,) = answers(received(connection))
    assert (answer.status, answer.document["code"]) == (431, "head_too_large")


# -- strangers ------------------------------------------------------------------------------------


def test_a_slow_head_is_408() -> None:
    with listening(Echo(), head_timeout_s=0.3) as running, running.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(10):
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                connection.sendall(b"y")
        (answer,) = answers(received(connection))
    assert (answer.status, answer.document["code"]) == (408, "head_timeout")
    assert "0.3 s" in answer.document["detail"]


def test_a_head_that_is_malformed_is_not_late_as_well() -> None:
    before = cut("head_timeout"), cut("malformed_request")
    with listening(Echo(), head_timeout_s=0.2) as running, running.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        wait_for_protocols(running, 1)
        connection.sendall(b"y\r\nno colon\r\n")
        (answer,) = answers(received(connection))
        time.sleep(0.5)
    assert answer.status == 400
    assert (cut("head_timeout"), cut("malformed_request")) == (before[0], before[1] + 1)


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_connection_that_asks_nothing_is_closed(sent: bytes) -> None:
    with listening(Echo(), head_timeout_s=0.2) as running, running.connect() as connection:
        connection.sendall(sent)
        assert received(connection) == b""


def test_a_small_body_that_never_ends_is_not_waited_for() -> None:
    with listening(Echo(), head_timeout_s=0.2) as running, running.connect() as connection:
        connection.sendall(request("/unread", b"x" * 100)[:-1])
        (answer,) = answers(received(connection))
    assert answer.status == 200


def test_a_head_is_not_late_while_an_earlier_request_is_computed() -> None:
    echo = Echo()
    with listening(echo, head_timeout_s=0.2) as running, running.connect() as connection:
        second = request("/2", b"", CLOSE)
        connection.sendall(request("/held") + second[:10])
        time.sleep(0.5)
        echo.opened.set()
        connection.sendall(second[10:])
        found = answers(received(connection))
    assert [answer.status for answer in found] == [200, 200]


def test_connections_beyond_the_limit_are_503_and_probes_are_not() -> None:
    before = cut("too_many_connections")
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(listening(Echo(), max_connections=2))
        held = [stack.enter_context(running.connect()) for _ in range(2)]
        wait_until(lambda: len(running.server.server_state.connections) == 2)
        (refused,) = running.exchange(request("/", LARGE))
        assert (refused.status, refused.document["code"]) == (503, "too_many_connections")
        assert refused.headers["retry-after"] == "1"
        probe = request("/health/ready", b"", CLOSE, method="GET")
        assert [answer.status for answer in running.exchange(probe)] == [200]
        held.pop().close()
        wait_until(lambda: len(running.server.server_state.connections) == 1)
        assert running.exchange(request("/", b"", CLOSE))[0].status == 200
    assert cut("too_many_connections") == before + 1


def test_a_connection_is_kept_for_long_but_makes_room_for_others() -> None:
    """Clients of the Open Inference Protocol send a request once, on whatever they hold."""
    with listening(Echo(), max_connections=1) as running, running.connect() as held:
        assert running.server.config.timeout_keep_alive == 300
        held.sendall(request("/", b"first"))
        assert b" 200 " in held.recv(16)
        wait_until(lambda: all(one.idle_until_s < math.inf for one in connections(running)))
        assert running.exchange(request("/", b"second", CLOSE))[0].status == 200
        while held.recv(4096):  # to its end
            pass


def connections(running: Any) -> list[Any]:
    return list(running.server.server_state.connections)


def test_connections_far_beyond_the_limit_are_not_even_listened_to() -> None:
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(listening(Echo(), max_connections=1))
        for _ in range(33):
            stack.enter_context(running.connect())
        wait_until(lambda: len(running.server.server_state.connections) == 33)
        with running.connect() as connection, contextlib.suppress(ConnectionResetError):
            connection.sendall(request("/health/ready"))
            assert received(connection) == b""


def test_a_slow_reader_is_cut_and_counted() -> None:
    before = cut("slow_reader")
    with listening(Echo(), send_timeout_s=0.3) as running, running.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(request(f"/?{64 * MIB}", method="GET"))
        wait_until(lambda: cut("slow_reader") == before + 1)
        wait_until(lambda: not running.server.server_state.connections)


def test_a_reader_in_time_is_not_cut() -> None:
    before = cut("slow_reader")
    with listening(Echo(), send_timeout_s=0.5) as running, running.connect() as connection:
        for _ in range(2):
            connection.sendall(request(f"/?{8 * MIB}", method="GET"))
            until = time.monotonic() + 10
            got = 0
            while got < 8 * MIB and time.monotonic() < until:
                got += len(connection.recv(1 << 20))
            time.sleep(0.6)
    assert cut("slow_reader") == before


def test_an_answer_that_nobody_reads_is_not_copied_into_a_buffer() -> None:
    with listening(Echo()) as running, running.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(request(f"/?{64 * MIB}", method="GET"))
        (protocol,) = wait_for_protocols(running, 1)
        wait_until(lambda: protocol.transport.get_write_buffer_size() > 0)
        time.sleep(0.2)
        assert protocol.transport.get_write_buffer_size() <= 512 << 10
        connection.close()


def wait_for_protocols(running: Listening, count: int) -> list[Any]:
    connections = running.server.server_state.connections
    wait_until(lambda: len(connections) == count)
    return list(connections)


# -- any split of the bytes -----------------------------------------------------------------------

BODIES = st.sampled_from([b"", b"a", b"b" * 65_537, LARGE[:70_000], LARGE[:300_000]])
REQUESTS = st.one_of(
    st.builds(request, st.sampled_from(["/1", "/unread"]), BODIES),
    st.builds(request, st.just("/2"), method=st.sampled_from(["GET", "POST"])),
    st.builds(chunked, st.just("/3"), st.lists(st.binary(min_size=1, max_size=90), max_size=5)),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_answers_do_not_depend_on_how_the_bytes_are_split(own: Listening, data: Any) -> None:
    # A large body that nobody reads ends a connection; whether it has come by then is chance.
    parts = data.draw(st.lists(REQUESTS, min_size=1, max_size=6))
    stream = b"".join(part for part in parts if not (b"/unread" in part and len(part) > 1000))
    stream += request("/end", b"", CLOSE)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    pieces = [
        stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    ]
    assert without_dates(own.exchange(*pieces)) == without_dates(own.exchange(stream))


def without_dates(found: list[Answered]) -> list[tuple[int, bytes]]:
    return [(answer.status, answer.body) for answer in found]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_requests_neither_hang_nor_fail(own: Listening, data: Any) -> None:
    stream = bytearray(data.draw(REQUESTS)[:2000])
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(stream)))
        end = data.draw(st.integers(begin, min(len(stream), begin + 20)))
        stream[begin:end] = data.draw(st.binary(max_size=20))
    with own.connect() as connection:
        connection.settimeout(8)
        connection.sendall(bytes(stream))
        connection.shutdown(socket.SHUT_WR)
        found = answers(received(connection))
    assert all(answer.status in (200, 400, 431, 500) for answer in found)
    echo: Echo = own.app
    assert all(isinstance(failure, MalformedBodyError) for failure in echo.failures)


# -- what it builds on ----------------------------------------------------------------------------


def test_uvicorn_still_has_what_the_protocol_builds_on() -> None:
    """If this fails, read uvicorn's changes to httptools_impl.py before anything else."""
    stock = httptools_impl.HttpToolsProtocol
    for name in (
        *("connection_made", "connection_lost", "data_received", "pause_writing"),
        *("resume_writing", "on_message_begin", "on_url", "on_header", "on_headers_complete"),
        *("on_message_complete", "on_response_complete", "_start_asgi_task", "shutdown"),
        "_unset_keepalive_if_required",
    ):
        ours, theirs = getattr(HttpProtocol, name), getattr(stock, name)
        assert len(inspect.signature(ours).parameters) == len(
            inspect.signature(theirs).parameters
        ), name
    state = uvicorn.Server(None).server_state  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    made = stock(uvicorn.Config(Echo(), log_config=None), state, {}, loop)
    loop.close()
    assert {
        *("parser", "cycle", "flow", "transport", "headers", "url", "connections"),
        *("server_state", "client", "loop", "timeout_keep_alive_task"),
    } <= {*vars(made), "headers", "url"}
    cycle = set(inspect.signature(httptools_impl.RequestResponseCycle).parameters)
    assert {"scope", "message_event", "keep_alive", "transport"} <= cycle
