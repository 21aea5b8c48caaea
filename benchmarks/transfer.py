"""16 MiB to the service and 16 MiB back, by the way they take, against a raw socket."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.timing import in_turns
from lossd.callers import ANONYMOUS
from lossd.http_protocol import http_config
from lossd.receiving import Arrivals, ReceivedBody
from lossd.sending import PartsResponse
from lossd.settings import Settings
from lossd_client.wire import Array

Serve = Callable[[socket.socket], None]

_MIB = 1 << 20
_SIZES_MIB, _QUICK_SIZES_MIB = (1, 16, 64), (1,)
_SECONDS, _QUICK_SECONDS = 30.0, 0.3
_MOST_OF_RAW = 1.5
_TARGET_MIB = 16
_SETTINGS = Settings()
_SAME_CLIENT = (
    "each server is a process of its own that sends back what it got; the client, always the same, "
    "is a plain socket that sends one view and receives into a new array"
)


def run(*, quick: bool) -> Report:
    """Round trips from an array to an array."""
    servers: dict[str, Serve] = {"raw": _serve_raw, "stock": _serve_stock, "own": serve_own}
    with contextlib.ExitStack() as stack:
        open_to = {name: stack.enter_context(_connected(serve)) for name, serve in servers.items()}
        budget_s = _QUICK_SECONDS if quick else _SECONDS
        sizes = _QUICK_SIZES_MIB if quick else _SIZES_MIB
        rows = [_row(open_to, mib * _MIB, budget_s) for mib in sizes]
    judged = next((row for row in rows if row["mib"] == _TARGET_MIB), rows[-1])
    measured = float(judged["own_to_raw"] or 0)
    return Report(
        name="transfer",
        sections=[Section("echo of one float32 array over loopback, milliseconds", rows)],
        targets=[
            Target(
                f"round trip of {judged['mib']} MiB through the service's receive and send path, "
                "times a raw socket's",
                f"<= {_MOST_OF_RAW}",
                f"{measured:.2f}",
                measured <= _MOST_OF_RAW,
            )
        ],
        notes=[
            _SAME_CLIENT,
            "raw: recv_into one buffer, then sendall",
            "stock: uvicorn on httptools, `await request.body()`, StreamingResponse",
            "own: protocol, receive path and send path of the service, without routes and accounts",
        ],
        environment={
            **environment(torch.device("cpu"), "none"),
            "uvicorn": version("uvicorn"),
            "httptools": version("httptools"),
        },
    )


def _row(open_to: dict[str, socket.socket], nbytes: int, budget_s: float) -> Row:
    array = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8).view(np.float32)
    timings = in_turns(
        {
            name: partial(_echo_raw if name == "raw" else _echo_http, connection, array)
            for name, connection in open_to.items()
        },
        budget_s=budget_s,
        max_rounds=200,
    )
    return {
        "mib": nbytes // _MIB,
        **{f"{name}_ms": timings.median_s(name) * 1e3 for name in open_to},
        **{f"{name}_least_ms": timings.minimum_s(name) * 1e3 for name in open_to},
        "stock_to_raw": timings.ratio("stock", to="raw"),
        "own_to_raw": timings.ratio("own", to="raw"),
        "rounds": timings.rounds,
    }


# -- the client's side ----------------------------------------------------------------------------


@contextlib.contextmanager
def _connected(serve: Serve) -> Iterator[socket.socket]:
    """A connection to a server in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Handed on to what it accepts; asyncio knows only sockets that say what they speak.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = context.Process(target=serve, args=(listener,), daemon=True)
        server.start()
        try:
            with socket.create_connection(listener.getsockname()) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield connection
        finally:
            server.kill()
            server.join()


def _echo_raw(connection: socket.socket, array: Array) -> Array:
    connection.sendall(array.nbytes.to_bytes(8, "little"))
    connection.sendall(array.data.cast("B"))
    return _received(connection, array)


def _echo_http(connection: socket.socket, array: Array) -> Array:
    head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {array.nbytes}\r\n\r\n"
    connection.sendall(head.encode())
    connection.sendall(array.data.cast("B"))
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen = connection.recv(4096, socket.MSG_PEEK)
    answer = connection.recv(seen.index(b"\r\n\r\n") + 4)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode())
    return _received(connection, array)


def _received(connection: socket.socket, sent: Array) -> Array:
    array = np.empty_like(sent)
    _fill(connection, array.data.cast("B"))
    return array


def _fill(connection: socket.socket, view: memoryview) -> None:
    filled = 0
    while filled < view.nbytes:
        got = connection.recv_into(view[filled:])
        if not got:
            raise ConnectionResetError
        filled += got


# -- the servers ----------------------------------------------------------------------------------


def _serve_raw(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(max(_SIZES_MIB) * _MIB))
    length = memoryview(bytearray(8))
    with contextlib.suppress(ConnectionResetError):  # the end
        while True:
            _fill(connection, length)
            view = buffer[: int.from_bytes(length, "little")]
            _fill(connection, view)
            connection.sendall(view)


def _serve_stock(listener: socket.socket) -> None:
    async def echo(request: Request) -> Response:
        body = await request.body()
        return StreamingResponse(iter([body]), headers={"Content-Length": str(len(body))})

    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    config = uvicorn.Config(app, loop="asyncio", http="httptools", log_config=None)
    uvicorn.Server(config).run([listener])


def serve_own(listener: socket.socket) -> None:
    """Sends bodies back on the receive and send path of the service, until it is killed."""

    async def echo(request: Request) -> Response:
        request.state.caller = ANONYMOUS
        async with ReceivedBody(request, _SETTINGS) as body:
            return PartsResponse([memoryview(body)], "application/octet-stream", {})

    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    app.state.arrivals = Arrivals(_SETTINGS.max_arriving_mib << 20)
    uvicorn.Server(http_config(app, _SETTINGS)).run([listener])
