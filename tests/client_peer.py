"""A server that does what a test says, byte by byte, for the tests of the client's transport."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fake_lossd import answer_document, safetensors_response
from lossd_client import AsyncClient, Client, Result

Behaviour = Callable[[socket.socket], None]
Evaluate = Callable[..., Result]

LOGITS = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
ANSWER = safetensors_response(
    {"total": np.array([1.5, 5.5]), "loss/dice": np.array([1.5, 5.5])},
    answer_document({"dice": 3.5}),
).content


def evaluate_blocking(url: str, settings: dict[str, Any], **arguments: Any) -> Result:
    with Client(url, **settings) as client:
        return client.evaluate("dice", **arguments)


def evaluate_async(url: str, settings: dict[str, Any], **arguments: Any) -> Result:
    async def run() -> Result:
        async with AsyncClient(url, **settings) as client:
            return await client.evaluate("dice", **arguments)

    return asyncio.run(run())


both = pytest.mark.parametrize("evaluate", [evaluate_blocking, evaluate_async])


def is_right(result: Result) -> bool:
    return bool(result["dice"].tolist() == [1.5, 5.5])


@dataclass(frozen=True)
class Arrived:
    """A request as it came from the socket."""

    line: str
    headers: dict[str, str]
    body: bytearray

    @property
    def body_bytes(self) -> int:
        return int(self.headers.get("content-length", "0"))


def read_request(connection: socket.socket) -> Arrived | None:
    """The next request; None where there is none."""
    request = read_head(connection)
    if request is None:
        return None
    request.body.extend(bytes(request.body_bytes))
    view = memoryview(request.body)
    while view:
        count = connection.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return request


def read_head(connection: socket.socket) -> Arrived | None:
    """The next request without its body."""
    arrived = bytearray()
    while not arrived.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            return None
        arrived += byte
    line, *fields = arrived.decode().strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in fields)}
    return Arrived(line, headers, bytearray())


def head(length: int, *fields: str, status: str = "200 OK") -> bytes:
    """Head of an answer with a body of that length."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/vnd.safetensors"]
    lines += [f"Content-Length: {length}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer_all(connection: socket.socket) -> None:
    """Answers every request of a connection rightly."""
    while read_request(connection):
        connection.sendall(head(len(ANSWER)) + ANSWER)


@contextmanager
def listening(server: socket.socket, behave: Behaviour) -> Iterator[None]:
    """Behaves so with every connection that the socket accepts, each in a thread of its own."""
    threads: list[threading.Thread] = []

    def converse(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client may hang up first
            behave(connection)

    def accept() -> None:
        with suppress(OSError):  # closed: it is over
            while True:
                connection, _ = server.accept()
                threads.append(threading.Thread(target=converse, args=(connection,), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield
    finally:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        for thread in [acceptor, *threads]:
            thread.join(5)


@contextmanager
def peer(behave: Behaviour, *, host: str = "127.0.0.1") -> Iterator[str]:
    """Such a server behind a TCP port; gives its URL."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.create_server((host, 0), family=family)
    port = server.getsockname()[1]
    with listening(server, behave):
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
