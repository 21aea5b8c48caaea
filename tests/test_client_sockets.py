"""Both clients over real sockets: large bodies, refusals, slow and broken peers."""

import asyncio
import select
import socket
import struct
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPException, HTTPResponse

import numpy as np
import pytest

from client_peer import (
    ANSWER,
    LOGITS,
    Behaviour,
    Evaluate,
    answer_all,
    both,
    head,
    is_right,
    peer,
    read_head,
    read_request,
)
from fake_lossd import FakeLossd, answer_document, problem, safetensors_response, serving
from lossd_client import AsyncClient, Client, Result, _transport, errors
from lossd_client._transport import Wire
from lossd_client.wire import Array

LARGE = np.zeros((1, 1, 2048, 2048), np.float32)  # more than a socket's buffers hold
REFUSAL = b'{"code": "too_large", "detail": "at most 1 MiB"}'


@both
def test_a_body_of_many_pieces_arrives_whole_and_comes_back(evaluate: Evaluate) -> None:
    fake = FakeLossd()
    logits = np.random.default_rng(0).normal(size=(4, 5, 512, 300)).astype(np.float32)
    with serving(fake) as url:
        result = evaluate(url, {}, logits=logits, gradient="total", gradient_dtype="float16")
    asked, seen = fake.seen  # first whether the service takes bodies from shared memory
    assert asked.path == "/v1/limits"
    assert np.array_equal(seen.tensors["logits"], logits)
    assert seen.headers["content-length"] == str(len(seen.body))
    assert "transfer-encoding" not in seen.headers
    assert (result.gradient["logits"] == 1.0).all()
    assert result["dice"] == pytest.approx(logits.astype(float).mean((1, 2, 3)))


@both
def test_a_busy_service_is_asked_again(evaluate: Evaluate) -> None:
    fake = FakeLossd()
    fake.script.append(problem(429, "queue_full", headers={"Retry-After": "0"}))
    with serving(fake) as url:
        assert evaluate(url, {}, logits=LOGITS)["dice"].tolist() == [1.5, 5.5]
    assert len(fake.seen) == 2


@both
def test_a_refused_connection_is_unreachable(evaluate: Evaluate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(errors.UnreachableError, match=f"127.0.0.1:{port}"):
        evaluate(f"http://127.0.0.1:{port}", {"retries": 1}, logits=LOGITS)


# -- time ----------------------------------------------------------------------------------------


@both
def test_a_silent_peer_costs_the_timeout_and_no_more(evaluate: Evaluate) -> None:
    def stay_silent(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            pass

    with peer(stay_silent) as url:
        begin_s = time.monotonic()
        with pytest.raises(errors.UnreachableError, match="Timeout"):
            evaluate(url, {"timeout_s": 0.3}, logits=LOGITS)
        assert time.monotonic() - begin_s > 0.25


@both
def test_a_trickling_peer_costs_the_timeout_and_no_more(evaluate: Evaluate) -> None:
    hung_up = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(head(1000))
        try:
            for _ in range(500):
                connection.send(b"x", socket.MSG_NOSIGNAL)
                time.sleep(0.02)
        except ConnectionError:
            hung_up.set()
            raise

    with peer(trickle) as url, pytest.raises(errors.UnreachableError, match="Timeout"):
        evaluate(url, {"timeout_s": 0.3}, logits=LOGITS)
    assert hung_up.is_set()


def test_nothing_that_was_read_from_is_left_to_the_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would flush a closed connection, of which Python tells standard error from 3.13 on."""
    made = []

    class Recorded(HTTPResponse):
        def __init__(self, sock: socket.socket, *, method: str) -> None:
            super().__init__(sock, method=method)
            made.append(self)

    monkeypatch.setattr(_transport, "HTTPResponse", Recorded)
    interim, cut = b"HTTP/1.1 102 Processing\r\n\r\n", head(1000) + b"few"
    for sent, status in ((interim + head(0), 200), (cut, None), (b"no HTTP\r\n\r\n", None)):
        here, there = socket.socketpair()
        with closing(Wire(here)) as wire, there:
            wire.begin(time.monotonic() + 10)
            there.sendall(sent)
            there.shutdown(socket.SHUT_WR)
            if status is None:
                with pytest.raises(HTTPException):
                    wire.receive("POST")
            else:
                assert wire.receive("POST")[0].status == status
    assert len(made) == 4
    assert all(response.closed for response in made)


def test_a_peer_that_never_pauses_costs_the_timeout_and_no_more() -> None:
    here, there = socket.socketpair()
    wire = Wire(here)
    with closing(wire), there:
        there.sendall(b"HTTP/1.1 200 OK")
        wire.begin(time.monotonic() - 1)
        with pytest.raises(TimeoutError):
            wire.readinto(bytearray(1))
        with pytest.raises(TimeoutError):
            wire.send([b"x"])


@both
def test_a_peer_that_does_not_read_costs_the_timeout_and_no_more(evaluate: Evaluate) -> None:
    over = threading.Event()

    def ignore(_: socket.socket) -> None:
        over.wait(10)

    with peer(ignore) as url:
        with pytest.raises(errors.UnreachableError, match="Timeout"):
            evaluate(url, {"timeout_s": 0.3}, logits=LARGE)
        over.set()


def test_a_cancelled_call_leaves_the_service_at_once() -> None:
    asked, left = threading.Event(), threading.Event()

    def wait_for_the_end(connection: socket.socket) -> None:
        read_request(connection)
        asked.set()
        connection.settimeout(10)
        with suppress(ConnectionError):
            assert connection.recv(1) == b""
        left.set()

    async def run(url: str) -> None:
        async with AsyncClient(url) as client:
            call = asyncio.create_task(client.evaluate("dice", logits=LOGITS))
            assert await asyncio.to_thread(asked.wait, 10)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(left.wait, 10)

    with peer(wait_for_the_end) as url:
        asyncio.run(run(url))


# -- answers that come early ---------------------------------------------------------------------


def refusing(connection: socket.socket) -> None:
    connection.recv(1 << 12)
    connection.sendall(head(len(REFUSAL), "Connection: close", status="413 Too Large") + REFUSAL)


def refuse_and_read_on(connection: socket.socket) -> None:
    refusing(connection)
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(1 << 20):
        pass


def refuse_and_stay(connection: socket.socket) -> None:
    refusing(connection)
    until_it_leaves = select.poll()
    until_it_leaves.register(connection, select.POLLRDHUP)
    until_it_leaves.poll(10_000)


def refuse_and_reset(connection: socket.socket) -> None:
    refusing(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@both
@pytest.mark.parametrize("behave", [refuse_and_read_on, refuse_and_stay, refuse_and_reset])
def test_an_early_refusal_of_a_large_body_is_heard(evaluate: Evaluate, behave: Behaviour) -> None:
    with peer(behave) as url, pytest.raises(errors.TooLargeError, match="at most 1 MiB"):
        evaluate(url, {"retries": 0, "timeout_s": 8.0}, logits=LARGE)


@both
@pytest.mark.parametrize("when", ["while it is sent", "after it"])
def test_interim_answers_are_no_answers(evaluate: Evaluate, when: str) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"

    def hint(connection: socket.socket) -> None:
        if when == "while it is sent":
            connection.recv(1)
            connection.sendall(interim)
            time.sleep(0.1)  # so that the client meets it while it waits to go on
            connection.recv(3)
        # the first bytes of the head are gone, but its end and the length of the body are there
        read_request(connection)
        if when == "after it":
            connection.sendall(interim)
        connection.sendall(head(len(ANSWER)) + ANSWER)

    with peer(hint) as url:
        assert is_right(evaluate(url, {"retries": 0}, logits=LARGE))


# -- answers that are odd ------------------------------------------------------------------------


@both
def test_a_connection_that_breaks_is_tried_again(evaluate: Evaluate) -> None:
    connections: list[int] = []

    def hang_up(connection: socket.socket) -> None:
        connections.append(1)
        read_request(connection)
        connection.sendall(head(1000) + b"half")

    with peer(hang_up) as url, pytest.raises(errors.UnreachableError, match="IncompleteRead"):
        evaluate(url, {"retries": 2}, logits=LOGITS)
    assert len(connections) == 3


@both
@pytest.mark.parametrize("trailer", [b"", b"X-Checksum: 1\r\n"])
def test_chunked_answers_are_read(evaluate: Evaluate, trailer: bytes) -> None:
    def chunk(connection: socket.socket) -> None:
        read_request(connection)
        fields = b"Content-Type: application/vnd.safetensors\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + fields)
        for piece in (ANSWER[:7], ANSWER[7:]):
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n" + trailer + b"\r\n")

    with peer(chunk) as url:
        assert is_right(evaluate(url, {"retries": 0}, logits=LOGITS))


@both
def test_an_answer_up_to_the_end_of_the_connection_is_read(evaluate: Evaluate) -> None:
    def close(connection: socket.socket) -> None:
        read_request(connection)
        fields = b"HTTP/1.0 200 OK\r\nContent-Type: application/vnd.safetensors\r\n\r\n"
        connection.sendall(fields + ANSWER)

    with peer(close) as url:
        assert is_right(evaluate(url, {"retries": 0}, logits=LOGITS))


@both
def test_what_is_no_http_is_unreachable(evaluate: Evaluate) -> None:
    def babble(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

    with peer(babble) as url, pytest.raises(errors.UnreachableError, match="BadStatusLine"):
        evaluate(url, {"retries": 0}, logits=LOGITS)


def counted(answer: bytes, *, then: str) -> tuple[list[int], Behaviour]:
    """Peers that answer one request a connection, and how many connections there were."""
    connections: list[int] = []

    def behave(connection: socket.socket) -> None:
        connections.append(1)
        read_request(connection)
        connection.sendall(answer)
        if then == "drop the next":
            read_request(connection)
        elif then == "wait":
            connection.recv(1)

    return connections, behave


@pytest.mark.parametrize("then", ["close", "drop the next"])
def test_a_connection_that_the_service_left_is_replaced_unnoticed(then: str) -> None:
    connections, behave = counted(head(len(ANSWER)) + ANSWER, then=then)
    with peer(behave) as url, Client(url, retries=0) as client:
        for _ in range(3):
            assert is_right(client.evaluate("dice", logits=LOGITS))
            time.sleep(0.02)  # for the end of the connection to arrive
    assert len(connections) == 3


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\n", b"x" * 100_000])
def test_what_follows_an_answer_is_never_taken_for_the_next(extra: bytes) -> None:
    connections, behave = counted(head(len(ANSWER)) + ANSWER + extra, then="wait")
    with peer(behave) as url, Client(url, retries=0) as client:
        for _ in range(3):
            assert is_right(client.evaluate("dice", logits=LOGITS))
    assert len(connections) == 3


def test_an_answer_that_says_close_is_the_connections_last() -> None:
    connections: list[int] = []

    def behave(connection: socket.socket) -> None:
        connections.append(1)
        while read_request(connection):
            connection.sendall(head(len(ANSWER), "Connection: close") + ANSWER)

    with peer(behave) as url, Client(url, retries=0) as client:
        assert all(is_right(client.evaluate("dice", logits=LOGITS)) for _ in range(2))
    assert len(connections) == 2


def test_a_good_connection_is_used_again() -> None:
    connections: list[int] = []

    def behave(connection: socket.socket) -> None:
        connections.append(1)
        answer_all(connection)

    with peer(behave) as url, Client(url) as client:
        assert all(is_right(client.evaluate("dice", logits=LOGITS)) for _ in range(5))
    assert len(connections) == 1


# -- threads and memory --------------------------------------------------------------------------


def test_one_client_serves_many_threads() -> None:
    fake = FakeLossd()
    with serving(fake) as url, Client(url) as client:
        requests = ({"logits": LOGITS + index} for index in range(40))
        results = client.evaluate_many(requests, losses="dice", concurrency=8, progress="none")
        assert [each["dice"][0] for each in results] == [1.5 + index for index in range(40)]


def test_every_thread_gets_its_own_answer() -> None:
    connections: list[int] = []

    def echo_sum(connection: socket.socket) -> None:
        connections.append(1)
        while request := read_request(connection):
            logits = np.frombuffer(request.body[-32:], np.float32)
            total = np.array([logits.sum(), 0.0])
            document = answer_document({"dice": None})
            answer = safetensors_response({"total": total, "loss/dice": total}, document).content
            connection.sendall(head(len(answer)) + answer)

    def ask(number: int) -> bool:
        result = client.evaluate("dice", logits=np.full((2, 1, 2, 2), number, np.float32))
        return bool(result["dice"][0] == 8 * number)

    with peer(echo_sum) as url, Client(url) as client, ThreadPoolExecutor(32) as threads:
        assert all(threads.map(ask, range(640)))
    assert len(connections) <= 32


def test_many_tasks_share_one_asynchronous_client() -> None:
    async def run(url: str) -> list[Result]:
        async with AsyncClient(url) as client:
            calls = (client.evaluate("dice", logits=LOGITS) for _ in range(100))
            return await asyncio.gather(*calls)

    with peer(answer_all) as url:
        assert all(is_right(result) for result in asyncio.run(run(url)))


def swallow(connection: socket.socket, answer: bytes) -> None:
    """Answers one request without keeping more than a part of it."""
    landing = bytearray(1 << 16)
    request = read_head(connection)
    assert request is not None
    left = request.body_bytes
    while left > 0:
        left -= connection.recv_into(landing)
    connection.sendall(head(len(answer)))
    connection.sendall(answer)


def traced(evaluate: Evaluate, url: str, logits: Array) -> tuple[Result, int]:
    """A result, and how many bytes it took beyond those there were."""
    tracemalloc.start()
    try:
        result = evaluate(url, {}, logits=logits, gradient="total")
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@both
def test_a_body_leaves_without_being_copied(evaluate: Evaluate) -> None:
    with peer(lambda connection: swallow(connection, ANSWER)) as url:
        result, peak_bytes = traced(evaluate, url, LARGE)
    assert is_right(result)
    assert peak_bytes < 1 << 20 < LARGE.nbytes


@both
def test_an_answer_lands_once_and_is_viewed(evaluate: Evaluate) -> None:
    tensors: dict[str, Array] = {"total": np.zeros(1), "gradient/logits": np.ones_like(LARGE)}
    answer = safetensors_response(tensors, answer_document({"dice": 0.0})).content
    with peer(lambda connection: swallow(connection, answer)) as url:
        result, peak_bytes = traced(evaluate, url, LOGITS)
    assert (result.gradient["logits"] == 1.0).all()
    assert result.gradient["logits"].flags.writeable
    assert LARGE.nbytes < peak_bytes < LARGE.nbytes + (1 << 20)


def test_a_closed_client_refuses_to_work() -> None:
    with peer(answer_all) as url:
        client = Client(url)
        client.evaluate("dice", logits=LOGITS)
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.evaluate("dice", logits=LOGITS)
