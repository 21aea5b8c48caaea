"""Both clients over real sockets: large bodies, refusals, slow and broken peers."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest

from fake_lossd import FakeLossd, problem, serving
from lossd_client import AsyncClient, Client, Result, errors

LOGITS = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)

Evaluate = Callable[..., Result]


def evaluate_blocking(url: str, settings: dict[str, Any], **arguments: Any) -> Result:
    with Client(url, **settings) as client:
        return client.evaluate("dice", **arguments)


def evaluate_async(url: str, settings: dict[str, Any], **arguments: Any) -> Result:
    async def run() -> Result:
        async with AsyncClient(url, **settings) as client:
            return await client.evaluate("dice", **arguments)

    return asyncio.run(run())


both = pytest.mark.parametrize("evaluate", [evaluate_blocking, evaluate_async])


@contextmanager
def peer(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does anything but HTTP, once per connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def accept() -> None:
            while not over.is_set():
                connection, _ = server.accept()
                with connection, suppress(ConnectionError):  # the client may hang up first
                    if not over.is_set():
                        behave(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        host, port = server.getsockname()
        try:
            yield f"http://{host}:{port}"
        finally:
            over.set()
            socket.create_connection((host, port)).close()
            thread.join(5)


@both
def test_a_body_of_many_pieces_arrives_whole_and_comes_back(evaluate: Evaluate) -> None:
    fake = FakeLossd()
    logits = np.random.default_rng(0).normal(size=(4, 5, 512, 300)).astype(np.float32)
    with serving(fake) as url:
        result = evaluate(url, {}, logits=logits, gradient="total", gradient_dtype="float16")
    (seen,) = fake.seen
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


@both
def test_a_silent_peer_costs_the_timeout_and_no_more(evaluate: Evaluate) -> None:
    def stay_silent(_: socket.socket) -> None:
        time.sleep(0.6)

    with peer(stay_silent) as url:
        begin_s = time.monotonic()
        with pytest.raises(errors.UnreachableError, match="Timeout"):
            evaluate(url, {"timeout_s": 0.3}, logits=LOGITS)
        assert 0.25 < time.monotonic() - begin_s < 0.9


@both
def test_a_trickling_peer_costs_the_timeout_and_no_more(evaluate: Evaluate) -> None:
    def trickle(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(12):
            connection.send(b"x", socket.MSG_NOSIGNAL)
            time.sleep(0.05)

    with peer(trickle) as url:
        begin_s = time.monotonic()
        with pytest.raises(errors.UnreachableError, match="Timeout"):
            evaluate(url, {"timeout_s": 0.3}, logits=LOGITS)
        assert 0.25 < time.monotonic() - begin_s < 0.6


@both
def test_a_connection_that_breaks_is_tried_again(evaluate: Evaluate) -> None:
    connections: list[int] = []

    def hang_up(connection: socket.socket) -> None:
        connections.append(1)
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")

    with peer(hang_up) as url, pytest.raises(errors.UnreachableError):
        evaluate(url, {"retries": 2}, logits=LOGITS)
    assert len(connections) == 3


@both
def test_an_early_refusal_of_a_large_body_is_heard(evaluate: Evaluate) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(1 << 12)
        document = b'{"code": "too_large", "detail": "at most 1 MiB"}'
        head = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(document) + document)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    logits = np.zeros((1, 1, 2048, 2048), np.float32)
    with peer(refuse) as url, pytest.raises(errors.TooLargeError, match="at most 1 MiB"):
        evaluate(url, {}, logits=logits)


def test_one_client_serves_many_threads() -> None:
    fake = FakeLossd()
    with serving(fake) as url, Client(url) as client:
        requests = ({"logits": LOGITS + index} for index in range(40))
        results = client.evaluate_many(requests, losses="dice", concurrency=8, progress="none")
        assert [each["dice"][0] for each in results] == [1.5 + index for index in range(40)]
