"""16 MiB from numpy to the other side and back to numpy: what the client's transport costs.

The other side is a process of its own that does nothing but receive into one buffer and send it
back, over HTTP or with eight bytes of length in front, so that clients are compared and no
service. `python -m benchmarks.client_transfer` is that process. At the end the receive and send
path of the service takes its place: what the whole way costs.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib
import multiprocessing
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.timing import Timings, Work, in_turns
from benchmarks.transfer import serve_own
from lossd_client._address import checked_address
from lossd_client._protocol import Request
from lossd_client._transport import Cancellation, SocketTransport
from lossd_client.wire import Array

SIZES = (16 << 20, 1 << 20, 4 << 10)
WANTED_RATIO = 1.5
RAW = "raw socket"
OWN, OWN_ASYNC = "lossd_client", "lossd_client, async"
WHOLE_WAY, WHOLE_WAY_ASYNC = f"{OWN}, to the service's path", f"{OWN_ASYNC}, to the service's path"
_BUDGET_S, _QUICK_BUDGET_S = 20.0, 0.5
_LENGTH = struct.Struct("<Q")
_PIECE_BYTES = 1 << 18
_PATH = "/"


def serve() -> None:
    """Echo on two ports, whose numbers are printed: raw, then HTTP."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    print(*(server.getsockname()[1] for server in servers), flush=True)
    for server, converse in zip(servers, (_converse_raw, _converse_http), strict=True):
        threading.Thread(target=_accept, args=(server, converse), daemon=True).start()
    sys.stdin.read()  # until the parent closes it


def _accept(server: socket.socket, converse: Callable[[socket.socket], None]) -> None:
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=converse, args=(connection,), daemon=True).start()


def _converse_raw(connection: socket.socket) -> None:
    with connection:
        while (head := connection.recv(_LENGTH.size, socket.MSG_WAITALL)) != b"":
            body = memoryview(bytearray(_LENGTH.unpack(head)[0]))
            _fill(connection, body)
            connection.sendmsg([head, body[: 1 << 16]])
            connection.sendall(body[1 << 16 :])


def _converse_http(connection: socket.socket) -> None:
    with connection:
        arrived = bytearray()
        while True:
            while b"\r\n\r\n" not in arrived:
                chunk = connection.recv(1 << 16)
                if not chunk:
                    return
                arrived += chunk
            head, _, rest = bytes(arrived).partition(b"\r\n\r\n")
            arrived.clear()
            _echo(connection, head, rest)


def _echo(connection: socket.socket, head: bytes, rest: bytes) -> None:
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    body = memoryview(bytearray(int(fields[b"content-length"])))
    body[: len(rest)] = rest
    _fill(connection, body[len(rest) :])
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection.sendmsg([answer, body[: 1 << 16]])
    connection.sendall(body[1 << 16 :])


def _fill(connection: socket.socket, body: memoryview) -> None:
    while body:
        count = connection.recv_into(body)
        if not count:
            return
        body = body[count:]


@contextmanager
def _server() -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "benchmarks.client_transfer"]
    with subprocess.Popen(  # noqa: S603 - our own
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdout is None or process.stdin is None:
            raise RuntimeError("the server has no pipes")
        raw, http_port = map(int, process.stdout.readline().split())
        yield raw, http_port
        process.stdin.close()


@contextmanager
def _service() -> Iterator[int]:
    """The service's own receive and send path; gives its port."""
    # With its protocol named, asyncio sends small pieces at once on what it accepts.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = multiprocessing.get_context("spawn").Process(
            target=serve_own, args=(listener,), daemon=True
        )
        process.start()
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.join()


def run(*, quick: bool) -> Report:
    """Every way of sending, in turns, for several sizes."""
    sizes = SIZES[-1:] if quick else SIZES
    budget_s = _QUICK_BUDGET_S if quick else _BUDGET_S
    with _server() as (raw_port, http_port), _service() as service_port:
        ports = _Ports(raw_port, http_port, service_port)
        timings = {size: _measure(size, ports, budget_s) for size in sizes}
    return Report(
        name="client_transfer",
        sections=[Section(f"{size} bytes up and down", _rows(timings[size])) for size in sizes],
        targets=_targets(timings[SIZES[0]]) if SIZES[0] in timings else [],
        notes=[
            "raw socket: sendall of the array, recv_into of a new one",
            "async ways run on one event loop, lossd_client's in a thread, as AsyncClient does",
            "to the service's path: the other side is the protocol and both paths of the service",
            "arrays are new in every round, and no client joins or copies what it could view",
            *(f"{name} {_version(name)}" for name in ("httpx", "urllib3", "aiohttp")),
        ],
        environment=environment(torch.device("cpu"), "none"),
    )


@dataclass(frozen=True)
class _Ports:
    raw: int
    http: int
    service: int


def _measure(size: int, ports: _Ports, budget_s: float) -> Timings:
    array = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    url, service_url = (f"http://127.0.0.1:{port}" for port in (ports.http, ports.service))
    with ExitStack() as stack:
        ways: dict[str, Callable[[Array], object]] = {
            RAW: _raw_socket(stack, ports.raw),
            OWN: _own(stack, url),
            WHOLE_WAY: _own(stack, service_url),
            "http.client": _http_client(stack, ports.http),
            **_if_installed("urllib3", _urllib3, stack, url),
            **_if_installed("httpx", _httpx, stack, url),
        }
        runner = stack.enter_context(asyncio.Runner())
        ways |= {
            OWN_ASYNC: _own_in_thread(stack, runner, url),
            WHOLE_WAY_ASYNC: _own_in_thread(stack, runner, service_url),
            "asyncio sock_sendall": _asyncio_sockets(stack, runner, ports.http),
            **_if_installed("aiohttp", _aiohttp, stack, runner, url),
            **_if_installed("httpx", _httpx_async, stack, runner, url, name="httpx async"),
        }
        for way in ways.values():
            if bytes(memoryview(way(array))) != array.tobytes():  # type: ignore[arg-type]
                raise AssertionError(way)
        work: Mapping[str, Work] = {name: _with(way, array) for name, way in ways.items()}
        return in_turns(work, budget_s=budget_s, max_rounds=400)


def _with(way: Callable[[Array], object], array: Array) -> Work:
    return lambda: way(array)


def _if_installed(
    module: str, make: Callable[..., Any], *arguments: object, name: str = ""
) -> dict[str, Callable[[Array], object]]:
    try:
        return {name or module: make(importlib.import_module(module), *arguments)}
    except ModuleNotFoundError:
        return {}


def _raw_socket(stack: ExitStack, port: int) -> Callable[[Array], object]:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(array: Array) -> object:
        view = array.data
        connection.sendmsg([_LENGTH.pack(len(view)), view[: 1 << 16]])
        connection.sendall(view[1 << 16 :])
        head = connection.recv(_LENGTH.size, socket.MSG_WAITALL)
        body = np.empty(_LENGTH.unpack(head)[0], np.uint8)
        _fill(connection, body.data)
        return body

    return exchange


def _request(array: Array) -> Request:
    return Request("POST", _PATH, {"Content-Length": str(array.nbytes)}, (array.data,))


def _transport(url: str) -> SocketTransport:
    return SocketTransport(checked_address(url, timeout_s=60.0, retries=0))


def _own(stack: ExitStack, url: str) -> Callable[[Array], object]:
    transport = _transport(url)
    stack.callback(transport.close)
    return lambda array: (
        transport.exchange(_request(array), timeout_s=60.0, cancellation=Cancellation()).body
    )


def _http_client(stack: ExitStack, port: int) -> Callable[[Array], object]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    stack.callback(connection.close)

    def exchange(array: Array) -> object:
        headers = {"Content-Length": str(array.nbytes)}
        connection.request("POST", _PATH, body=[array.data], headers=headers)
        response = connection.getresponse()
        body = np.empty(response.length or 0, np.uint8)
        response.readinto(body.data)
        response.read()
        return body

    return exchange


def _urllib3(module: Any, stack: ExitStack, url: str) -> Callable[[Array], object]:
    pool = stack.enter_context(module.PoolManager())

    def exchange(array: Array) -> object:
        headers = {"Content-Length": str(array.nbytes)}
        response = pool.request(
            "POST", url + _PATH, body=[array.data], headers=headers, preload_content=False
        )
        body = np.empty(int(response.headers["Content-Length"]), np.uint8)
        _fill_from(response.stream(_PIECE_BYTES), body)
        response.release_conn()
        return body

    return exchange


def _httpx(module: Any, stack: ExitStack, url: str) -> Callable[[Array], object]:
    client = stack.enter_context(module.Client(timeout=60.0))

    def exchange(array: Array) -> object:
        headers = {"Content-Length": str(array.nbytes)}
        with client.stream("POST", url + _PATH, content=_pieces(array), headers=headers) as answer:
            body = np.empty(int(answer.headers["Content-Length"]), np.uint8)
            _fill_from(answer.iter_bytes(), body)
        return body

    return exchange


def _own_in_thread(stack: ExitStack, runner: asyncio.Runner, url: str) -> Callable[[Array], object]:
    transport = _transport(url)
    stack.callback(transport.close)

    async def exchange(array: Array) -> object:
        reply = await asyncio.to_thread(
            transport.exchange, _request(array), timeout_s=60.0, cancellation=Cancellation()
        )
        return reply.body

    return lambda array: runner.run(exchange(array))


def _asyncio_sockets(
    stack: ExitStack, runner: asyncio.Runner, port: int
) -> Callable[[Array], object]:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setblocking(False)

    async def exchange(array: Array) -> object:
        loop = asyncio.get_running_loop()
        head = f"POST {_PATH} HTTP/1.1\r\nContent-Length: {array.nbytes}\r\n\r\n"
        await loop.sock_sendall(connection, head.encode())
        await loop.sock_sendall(connection, array.data)
        first = b""
        while b"\r\n\r\n" not in first:
            first += await loop.sock_recv(connection, 1 << 16)
        answer, _, rest = first.partition(b"\r\n\r\n")
        body = np.empty(int(answer.rpartition(b" ")[2]), np.uint8)
        view = body.data
        view[: len(rest)] = rest
        view = view[len(rest) :]
        while view:
            view = view[await loop.sock_recv_into(connection, view) :]
        return body

    return lambda array: runner.run(exchange(array))


def _aiohttp(
    module: Any, stack: ExitStack, runner: asyncio.Runner, url: str
) -> Callable[[Array], object]:
    async def opened() -> Any:
        return module.ClientSession()

    session = runner.run(opened())
    stack.callback(lambda: runner.run(session.close()))

    async def exchange(array: Array) -> object:
        async with session.post(url + _PATH, data=array.data) as answer:
            body = np.empty(int(answer.headers["Content-Length"]), np.uint8)
            begin = 0
            async for chunk in answer.content.iter_any():
                body[begin : begin + len(chunk)] = np.frombuffer(chunk, np.uint8)
                begin += len(chunk)
        return body

    return lambda array: runner.run(exchange(array))


def _httpx_async(
    module: Any, stack: ExitStack, runner: asyncio.Runner, url: str
) -> Callable[[Array], object]:
    client = module.AsyncClient(timeout=60.0)
    stack.callback(lambda: runner.run(client.aclose()))

    async def pieces(array: Array) -> AsyncIterator[bytes]:
        for piece in _pieces(array):
            yield piece

    async def exchange(array: Array) -> object:
        headers = {"Content-Length": str(array.nbytes)}
        async with client.stream(
            "POST", url + _PATH, content=pieces(array), headers=headers
        ) as answer:
            body = np.empty(int(answer.headers["Content-Length"]), np.uint8)
            begin = 0
            async for chunk in answer.aiter_bytes():
                body[begin : begin + len(chunk)] = np.frombuffer(chunk, np.uint8)
                begin += len(chunk)
        return body

    return lambda array: runner.run(exchange(array))


def _pieces(array: Array) -> Iterator[bytes]:
    view = array.data
    for begin in range(0, len(view), _PIECE_BYTES):
        yield bytes(view[begin : begin + _PIECE_BYTES])


def _fill_from(chunks: Iterator[bytes], body: Array) -> None:
    begin = 0
    for chunk in chunks:
        body[begin : begin + len(chunk)] = np.frombuffer(chunk, np.uint8)
        begin += len(chunk)


def _rows(timings: Timings) -> list[Row]:
    return [
        {
            "way": name,
            "median_ms": timings.median_s(name) * 1e3,
            "minimum_ms": timings.minimum_s(name) * 1e3,
            "ratio_to_raw": timings.ratio(name, RAW),
            "rounds": timings.rounds,
        }
        for name in timings.seconds
    ]


def _targets(timings: Timings) -> list[Target]:
    ratios = {name: timings.ratio(name, RAW) for name in (OWN, WHOLE_WAY, WHOLE_WAY_ASYNC)}
    return [
        Target(
            what=f"round trip of 16 MiB with {name}, against a raw socket",
            wanted=f"at most {WANTED_RATIO} times",
            measured=f"{ratio:.2f} times",
            met=ratio <= WANTED_RATIO,
        )
        for name, ratio in ratios.items()
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed and was left out"


if __name__ == "__main__":
    serve()
