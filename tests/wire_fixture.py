"""Speaks HTTP byte by byte to an application behind the service's protocol, or uvicorn's own."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from lossd.http_protocol import http_config
from lossd.settings import Settings
from service_fixture import wait_until


@dataclass(frozen=True)
class Answered:
    """One answer as it came over a socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Echo:
    """An application that tells what it got: path, length and parts of the body."""

    messages: list[Message] = field(default_factory=list)
    """What `receive` gave, in order."""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Those of the last request, read after its body."""
    failures: list[Exception] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        path = scope["path"]
        self.entered.set()
        if path == "/held":
            await anyio.to_thread.run_sync(self.opened.wait, 20)
        if path != "/unread":
            try:
                # Whoever is impatient gives up and answers all the same.
                with anyio.move_on_after(0.3 if path == "/impatient" else 20):
                    body = await self._read(receive)
            except Exception as error:
                self.failures.append(error)
                raise
        self.headers = scope["headers"]
        if self.messages and self.messages[-1]["type"] == "http.disconnect":
            return
        text = json.dumps(
            {"method": scope["method"], "path": path, "nbytes": len(body), "sum": sum(body)}
        )
        large = int(scope["query_string"] or 0)
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", str(len(text) + large).encode())],
            }
        )
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": memoryview(bytes(large))})

    async def _read(self, receive: Receive) -> bytes:
        body = b""
        while True:
            message = await receive()
            self.messages.append(message)
            if message["type"] == "http.disconnect":
                return body
            body += bytes(message["body"])
            if not message.get("more_body"):
                return body


@dataclass
class Listening:
    """A server in a thread of this process."""

    server: uvicorn.Server
    address: tuple[str, int]
    app: Any

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def exchange(self, *pieces: bytes) -> list[Answered]:
        """The answers to what is sent, up to the end of the connection."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return answers(received(connection))


@contextmanager
def listening(app: Any, *, protocol: str = "own", **values: Any) -> Iterator[Listening]:
    settings = Settings(**{"port": 0, "drain_s": 1.0, **values})
    config = http_config(app, settings)
    if protocol == "stock":
        config = uvicorn.Config(app, port=0, http="httptools", log_config=None)
    config.lifespan = "off"
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Listening(server, server.servers[0].sockets[0].getsockname()[:2], app)
    finally:
        server.should_exit = True
        thread.join()


def request(
    path: str = "/", body: bytes = b"", *fields: str, method: str = "POST", version: str = "1.1"
) -> bytes:
    """A request with its length."""
    lines = [f"{method} {path} HTTP/{version}", "Host: a", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(path: str, pieces: Sequence[bytes], *fields: str, trailers: bytes = b"") -> bytes:
    """A request whose body comes in chunks."""
    head = request(path, b"", "Transfer-Encoding: chunked", *fields)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return head + chunks + b"0\r\n" + trailers + b"\r\n"


def received(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def answers(data: bytes, *, heads: Sequence[int] = ()) -> list[Answered]:
    """The answers in a stream; those numbered in `heads` have no body."""
    found: list[Answered] = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        nbytes = 0 if len(found) in heads else int(fields.get("content-length", 0))
        found.append(Answered(int(first.split()[1]), fields, rest[:nbytes]))
        data = rest[nbytes:]
    return found
