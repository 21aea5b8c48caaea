"""HTTP/1.1 over sockets of its own: bodies leave as the views they are and land in one buffer.

`http.client` connects and reads heads; what it cannot do is done here: one time limit for a whole
exchange, an answer that is heard while the body is still on its way, sending many views at once,
and telling a usable idle connection from one that the service has left.
"""

import io
import selectors
import ssl
import struct
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from os import PathLike
from socket import SHUT_RDWR, SO_LINGER, SOL_SOCKET, socket
from typing import Protocol, cast

from lossd_client._address import Address, Route
from lossd_client._memory import fresh
from lossd_client._outgoing import Outgoing
from lossd_client._protocol import Reply, Request

_IDLE_CONNECTIONS = 32
_NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
_OVER = "the time of the call is over"
_INFORMATIONAL = range(100, 200)
_BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_CUT = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class Transport(Protocol):
    """The way to a service; both clients use it, from several threads at a time."""

    def exchange(
        self, request: Request, *, timeout_s: float, cancellation: "Cancellation"
    ) -> Reply:
        """The answer to one request, of any status.

        Raises:
            TimeoutError: it was not there in time.
            OSError: the connection failed.
            HTTPException: what came was no HTTP.
        """

    def close(self) -> None:
        """Close the connections."""


class Cancellation:
    """How another thread ends an exchange that is under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._cancelled = False

    def runs_on(self, wire: "Wire | None") -> None:
        """Note the connection that is in use.

        Raises:
            ConnectionAbortedError: the exchange was cancelled before.
        """
        with self._lock:
            self._wire = wire
            if self._cancelled and wire is not None:
                raise ConnectionAbortedError("the call was cancelled")

    def cancel(self) -> None:
        """End the exchange; whoever waits in it gets a connection error."""
        with self._lock:
            self._cancelled = True
            if self._wire is not None:
                self._wire.shut()


class SocketTransport:
    """Connections to one address, kept open between exchanges.

    Args:
        address: where the service is.
        ssl_context: how certificates are checked; the system's authorities if None.
        unix_socket: path of a Unix socket to connect to instead of the address's host.
    """

    def __init__(
        self,
        address: Address,
        *,
        ssl_context: ssl.SSLContext | None = None,
        unix_socket: str | PathLike[str] | None = None,
    ) -> None:
        self._address = address
        self._route = address.route() if unix_socket is None else Route()
        self._unix_socket = unix_socket
        self._ssl_context = ssl_context
        if ssl_context is None and address.scheme == "https":
            self._ssl_context = ssl.create_default_context()
        self._headers = {"Host": address.authority, **self._route.headers}
        self._idle: deque[Wire] = deque()
        self._closed = False
        weakref.finalize(self, _close_all, self._idle)  # for clients that nobody closes

    def exchange(self, request: Request, *, timeout_s: float, cancellation: Cancellation) -> Reply:
        """The answer to one request, as in `Transport`."""
        end_s = time.monotonic() + timeout_s
        wire = self._usable_idle()
        if wire is not None:
            try:
                return self._exchange_on(wire, request, end_s, cancellation)
            except ConnectionError:
                # The service may close an idle connection in the moment it is used again, which
                # is no failure of this request. Nothing here does harm when done twice.
                if wire.heard:
                    raise
        return self._exchange_on(self._connect(end_s), request, end_s, cancellation)

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are done."""
        self._closed = True
        _close_all(self._idle)

    def _exchange_on(
        self, wire: "Wire", request: Request, end_s: float, cancellation: Cancellation
    ) -> Reply:
        wire.begin(end_s)
        all_sent = False
        try:
            cancellation.runs_on(wire)
            all_sent = wire.send([self._head(request), *request.parts])
            reply, stays_open = wire.receive(request.method)
        except BaseException:
            wire.abort()
            raise
        finally:
            cancellation.runs_on(None)
        if not all_sent:
            wire.abort()
        elif stays_open:
            self._keep(wire)
        else:
            wire.close()
        return reply

    def _head(self, request: Request) -> bytes:
        target = self._route.target_prefix + self._address.prefix + request.path
        fields = {**self._headers, **request.headers}
        lines = [f"{request.method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return "\r\n".join([*lines, "\r\n"]).encode("ascii")

    def _usable_idle(self) -> "Wire | None":
        if self._closed:
            raise RuntimeError("this client is closed")
        while self._idle:
            try:
                wire = self._idle.pop()
            except IndexError:  # another thread took it
                break
            if wire.is_quiet():
                return wire
            wire.close()
        return None

    def _keep(self, wire: "Wire") -> None:
        if self._closed or len(self._idle) >= _IDLE_CONNECTIONS:
            wire.close()
        else:
            self._idle.append(wire)

    def _connect(self, end_s: float) -> "Wire":
        timeout_s = max(end_s - time.monotonic(), 1e-3)
        if self._unix_socket is not None:
            return Wire(self._over_unix_socket(timeout_s))
        host, port = self._route.proxy or (self._address.host, self._address.port)
        connection = HTTPConnection(host, port, timeout=timeout_s)
        if self._address.scheme == "https":
            connection = HTTPSConnection(host, port, timeout=timeout_s, context=self._ssl_context)
            if self._route.proxy is not None:
                connection.set_tunnel(
                    self._address.host, self._address.port, dict(self._route.tunnel_headers)
                )
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return Wire(connection.sock)

    def _over_unix_socket(self, timeout_s: float) -> socket:
        from socket import AF_UNIX  # noqa: PLC0415 - not every system has them

        sock = socket(AF_UNIX)
        try:
            sock.settimeout(timeout_s)
            sock.connect(str(self._unix_socket))
            if self._address.scheme == "https" and self._ssl_context is not None:
                return self._ssl_context.wrap_socket(sock, server_hostname=self._address.host)
        except BaseException:
            sock.close()
            raise
        return sock


class Wire(io.RawIOBase):
    """One connection; a stream of what arrives on it that never waits beyond the time set."""

    def __init__(self, sock: socket) -> None:
        super().__init__()
        sock.setblocking(False)
        self._sock = sock
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        self._watched = selectors.EVENT_READ
        self._end_s: float | None = None
        self._reader = _Reader(self)
        self.heard = False
        """Whether anything came since `begin`."""
        self._at_end = False

    def begin(self, end_s: float) -> None:
        """Start an exchange that may take until `end_s`."""
        self._end_s = end_s
        self.heard = False

    def is_quiet(self) -> bool:
        """Whether the peer has neither left nor said anything; does not wait."""
        try:
            return not self._peeked() and not self._at_end
        except OSError:
            return False

    def shut(self) -> None:
        """Make every wait on this connection end, from any thread."""
        with suppress(OSError):  # it may be gone already
            # Not the method of a TLS socket, which pulls TLS away from under the thread that reads.
            socket.shutdown(self._sock, SHUT_RDWR)

    def abort(self) -> None:
        """Close the connection at once, whatever is still to be sent or read."""
        with suppress(OSError):  # it may be gone already
            self._sock.setsockopt(SOL_SOCKET, SO_LINGER, _NO_LINGER)
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self._selector.close()
            self._sock.close()
        super().close()

    def send(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Send all parts, or stop where the peer answers or leaves before their end.

        Returns:
            Whether all were sent.
        """
        waiting = Outgoing(self._sock, parts)
        try:
            return self._send_all(waiting)
        finally:
            waiting.close()

    def receive(self, method: str) -> tuple[Reply, bool]:
        """The answer, and whether the connection can be used again."""
        while True:
            # One that is left to the collector would flush a connection that is closed by then.
            with HTTPResponse(cast(socket, _Readable(self._reader)), method=method) as response:
                response.begin()
                if response.status in _INFORMATIONAL:
                    continue
                headers = {name.lower(): value for name, value in response.getheaders()}
                stays_open = not response.will_close
                return Reply(response.status, headers, _body(response)), stays_open

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: object) -> int | None:
        """Bytes that arrived, at least one before the end; None where nothing may be waited for."""
        while True:
            self._left_s()
            try:
                count = self._sock.recv_into(cast(memoryview, buffer))
            except _WOULD_BLOCK as error:
                if self._end_s is None:
                    return None
                writes = isinstance(error, ssl.SSLWantWriteError)
                self._wait(selectors.EVENT_WRITE if writes else selectors.EVENT_READ)
                continue
            self.heard = self.heard or count > 0
            self._at_end = not count
            return count

    def _peeked(self) -> bytes:
        end_s, self._end_s = self._end_s, None
        try:
            return self._reader.peek(1)
        finally:
            self._end_s = end_s

    def _send_all(self, waiting: Outgoing) -> bool:
        hears = True
        while waiting:
            self._left_s()
            try:
                waiting.send_some()
            except _CUT:
                return False
            except _WOULD_BLOCK:
                self._wait(_BOTH if hears else selectors.EVENT_WRITE)
                answer = self._peeked() if hears else b""
                if answer.startswith(b"HTTP/1.1 1"):
                    hears = False  # an interim answer; the final one is read after the body
                elif answer or self._at_end:
                    return False
        return True

    def _wait(self, events: int) -> None:
        if events != self._watched:
            self._selector.modify(self._sock, events)
            self._watched = events
        if not self._selector.select(self._left_s()):
            raise TimeoutError(_OVER) from None

    def _left_s(self) -> float:
        """Seconds that the exchange may still take; a peer that never pauses is noticed here."""
        left_s = 0.0 if self._end_s is None else self._end_s - time.monotonic()
        if self._end_s is not None and left_s <= 0:
            raise TimeoutError(_OVER) from None
        return left_s


class _Reader(io.BufferedReader):
    """What arrives, read ahead; kept from one answer to the next.

    An answer closes what it was read from, but the connection and what was read ahead outlive it.
    """

    def close(self) -> None:
        """Nothing; the connection is closed where it is owned."""


class _Readable:
    """The part of a socket that `HTTPResponse` uses."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader

    def makefile(self, _: str) -> _Reader:
        return self._reader


def _close_all(idle: "deque[Wire]") -> None:
    while idle:
        idle.pop().close()


def _body(response: HTTPResponse) -> memoryview | bytearray:
    if response.length is None:  # chunked, or up to the end of the connection
        return bytearray(response.read())
    body = fresh(response.length)
    view = body
    while view:
        count = response.readinto(view)
        if not count:
            raise IncompleteRead(b"", len(view))
        view = view[count:]
    return body
