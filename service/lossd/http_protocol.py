"""HTTP/1.1 as this service speaks it: uvicorn's protocol, made for large bodies and for strangers.

uvicorn parses heads, keeps connections alive, answers pipelined requests in order and frames
answers. Here is what it lacks: a large body lands once, in memory of its own, and reaches the
application as one view; what never becomes a request is answered with a problem document; heads,
connections and readers that are too slow or too many are cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import httptools
import structlog
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from lossd import metrics
from lossd.body_memory import BodyMemory
from lossd.error_bodies import error_body
from lossd.landing import ARRIVAL, Arrival, Landing
from lossd.settings import Settings
from lossd_client.errors import (
    HeadTimeoutError,
    HeadTooLargeError,
    LossdError,
    MalformedBodyError,
    MalformedRequestError,
    TooManyConnectionsError,
)
from lossd_client.wire import REQUEST_ID_HEADER

if TYPE_CHECKING:
    from uvicorn.server import ServerState

log = structlog.get_logger(__name__)

HANG_UP: Final = "lossd.hang_up"
"""The ASGI extension that tells when the other side is gone: a `HangUp`."""

PROBES: Final = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
"""What is answered without a key and beyond the limit of connections: load balancers have none."""

_PROBE_URLS: Final = tuple(path.encode() for path in PROBES)
_PROBE_CONNECTIONS: Final = 32
"""Connections beyond the limit that are still listened to, in case they are probes."""
_MAX_HEAD_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 256 * 1024
_LANDING_BYTES: Final = 64 * 1024
"""Bodies from here on land in memory of their own; smaller ones come in one or two reads."""
_DRAINED_BYTES: Final = 64 * 1024
"""Of a body that nobody reads, what is worth receiving to keep the connection."""
_LINGER_S: Final = 2.0
_SLICE_BYTES: Final = 512 << 10
_SMALL_ANSWER_BYTES: Final = 64 * 1024
"""What is copied behind its head, since sending once more costs more."""
_SLOW_READER: Final = "slow_reader"
_TELL_EVERY_S: Final = 0.05
_IDS: Final = random.Random()  # noqa: S311 - of ids, no secrets
"""Of its own: nobody who seeds Python's common one makes ids come again."""


def http_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody here asks who a proxy speaks for
        loop="asyncio",  # with bodies of megabytes it receives faster than uvloop
        http=_protocol_class(settings),
        ws="none",
        # Not every client asks again on a new connection if it finds the old one closed.
        timeout_keep_alive=math.ceil(settings.idle_timeout_s),
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        server_header=False,
    )


class HttpServer(uvicorn.Server):
    """uvicorn's server, which tells every connection that it is shutting down."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends when what was accepted is answered.

        uvicorn tells those connections that it knows when it begins. One that was being made just
        then would be kept alive, and served, until the time to drain is up, and then be cut.
        """
        told = set(self.server_state.connections)
        telling = asyncio.create_task(self._tell_others(told))
        try:
            await super().shutdown(sockets)
        finally:
            telling.cancel()

    async def _tell_others(self, told: set[Any]) -> None:
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            late = self.server_state.connections - told
            told |= late
            for connection in late:
                connection.shutdown()


def _protocol_class(settings: Settings) -> type[HttpProtocol]:
    class Configured(HttpProtocol):
        limits = settings
        memory = BodyMemory(settings.max_body_mib << 20)
        # One for all connections of a loop: what is read is parsed before anything else is read.
        scratch = memoryview(bytearray(_READ_BYTES))

    return Configured


class HttpProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """One connection. Subclasses say what is allowed.

    Of uvicorn's own protocol this uses the callbacks of the parser (`on_*`), `_start_asgi_task`,
    `_unset_keepalive_if_required`, the attributes `parser`, `cycle`, `flow`, `transport`,
    `headers`, `url`, `connections`, `server_state`, `timeout_keep_alive_task`, and of its cycle
    those that `_Exchange` reads, of which it replaces `transport`.
    """

    limits: ClassVar[Settings]
    memory: ClassVar[BodyMemory]
    scratch: ClassVar[memoryview]

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._surplus = False  # beyond the limit of connections: open for probes only
        self._reading: Literal["nothing", "head", "body"] = "nothing"
        self._due = 0  # answers to requests whose head was read
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._landing: Landing | None = None
        self._exchange: _Exchange | None = None  # that the application is busy with
        self._lingering: RequestResponseCycle | None = None
        self._spoilt: RequestResponseCycle | None = None
        self._rejection: LossdError | None = None
        self._deaf = False  # what still comes is thrown away

    # -- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts to listen, unless there are too many already."""
        super().connection_made(transport)
        # A buffer that is not empty is one that the reader does not empty in time.
        transport.set_write_buffer_limits(high=0)
        surplus = len(self.connections) - self.limits.max_connections
        self._surplus = surplus > 0
        if surplus > _PROBE_CONNECTIONS:
            self._note_cut(TooManyConnectionsError.code)
            transport.abort()
            return
        if self._surplus:
            self._make_room()
        self._watch_head()

    def _make_room(self) -> None:
        """Closes the connection that has been idle for longest, if one is."""
        others = [one for one in self.connections if isinstance(one, HttpProtocol)]
        longest = min(others, key=lambda one: one.idle_until_s)
        if longest.idle_until_s < math.inf:
            longest.transport.close()

    @property
    def idle_until_s(self) -> float:
        """When it ends if nothing more is asked, by the loop's clock; infinite while it is used."""
        timer: asyncio.TimerHandle | None = self.timeout_keep_alive_task
        return math.inf if timer is None else timer.when()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells everybody who waits for something from the other side."""
        for timer in (self._head_timer, self._send_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        if self._landing is not None:
            self._landing.end()
        if self._exchange is not None:
            self._exchange.hang_up.tell()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: into the body that lands, or to the parser."""
        del sizehint
        return self.scratch if self._landing is None else self._landing.rest()

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes came."""
        if self._landing is not None:
            self._landing.advance(nbytes)
            if self._landing.is_full():
                self._finish_landing()
        elif not self._deaf:
            self.data_received(self.scratch[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        """Parses what came."""
        self._unset_keepalive_if_required()
        head = self.headers if self._reading == "head" else None
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError:
            self._on_malformed()
            return
        if self._reading == "head" and self.headers is head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse(HeadTooLargeError())
                return
        self._watch_head()

    def _parse(self, data: memoryview) -> None:
        while data and not self._deaf:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # There is no other protocol here; what follows is HTTP as before (RFC 9110, 7.8).
                data = data[upgrade.args[0] :]
            else:
                return

    # -- heads

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._reading, self._head_bytes = "head", 0

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or one that follows a body, which nobody here wants."""
        self._count_head(len(name) + len(value) + len(": \r\n"))
        if self._reading == "head":
            super().on_header(name, value)

    def _count_head(self, nbytes: int) -> None:
        self._head_bytes += nbytes
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._reject(HeadTooLargeError())

    def on_headers_complete(self) -> None:
        """A request has begun."""
        self._surplus &= len(self.connections) > self.limits.max_connections
        if self._surplus and self.url not in _PROBE_URLS:
            self._reject(TooManyConnectionsError(retry_after_s=1.0))
        if self.parser.should_upgrade() and announced_bytes(self.headers) != 0:
            # The parser would take the body for what the other protocol says.
            self._reject(MalformedRequestError("a request with a body asks for an upgrade"))
        self._end_head_timer()
        super().on_headers_complete()
        self._reading = "body"
        self._due += 1

    def on_message_complete(self) -> None:
        """A request has ended."""
        super().on_message_complete()
        self._reading = "nothing"

    def _reject(self, error: LossdError) -> None:
        """Stops the parser, which knows no other way than an exception."""
        self._rejection = error
        raise error

    def _watch_head(self) -> None:
        """Sets a time limit to the head that comes next, unless earlier requests hold it up."""
        if self._head_timer is None and not self._due and not self._deaf:
            self._unset_keepalive_if_required()
            self._head_timer = self.loop.call_later(self.limits.head_timeout_s, self._on_slow_head)

    def _end_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        if self._reading == "head":
            waited_s = self.limits.head_timeout_s
            self._refuse(HeadTimeoutError(f"the head did not end within {waited_s:g} s"))
        else:
            self.transport.close()  # nothing was asked, or the rest of a refused body does not come

    # -- requests

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._exchange = _Exchange(self, cycle, app)
        super()._start_asgi_task(cycle, self._exchange)  # type: ignore[arg-type]

    async def land(
        self, cycle: RequestResponseCycle, nbytes: int, first: bytes, arrival: Arrival
    ) -> memoryview | None:
        """Receives the rest of a body into memory of its own.

        Args:
            cycle: whose body it is.
            nbytes: its length.
            first: what came of it so far.
            arrival: where to count.

        Returns:
            None if the sender went away.
        """
        memory = self.memory.take(nbytes)
        sock = self.transport.get_extra_info("socket")
        landing = self._landing = Landing(memory, first, arrival, sock)
        self.flow.resume_reading()
        try:
            await landing.ended
        except asyncio.CancelledError:
            if not landing.is_full():
                # The parser has not seen what landed, so nothing after it can be read.
                landing.leave()
                self._landing, self._deaf, cycle.keep_alive = None, True, False
            raise
        return landing.body if landing.is_full() else None

    def _finish_landing(self) -> None:
        """Goes on behind the body, at once: what comes next is another request."""
        self._landing = None
        self._reading = "nothing"
        self.cycle.more_body = False
        # The old parser still expects what has landed.
        self.parser = httptools.HttpRequestParser(self)
        self._deaf = not self.cycle.keep_alive

    # -- answers

    def on_response_complete(self) -> None:
        """Goes on with the next request, or ends."""
        self._due -= 1
        self._end_send_timer()
        if self.flow.write_paused:
            self._start_send_timer()
        if self._lingering is not None or (self._rejection is not None and not self._due):
            self.server_state.total_requests += 1
            self._end()
            return
        super().on_response_complete()
        if self._reading == "body" and self.timeout_keep_alive_task is not None:
            # Nobody reads the rest, which has to come before anything else can.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.limits.head_timeout_s, self.timeout_keep_alive_handler
            )

    def linger_after(self, cycle: RequestResponseCycle) -> None:
        """Ends the connection after this answer, but not before the other side could read it.

        Whoever closes while bytes come makes the kernel answer them with a reset, which may take
        the answer out of the hands of those who have not read it yet.
        """
        self._lingering, self._deaf = cycle, True

    def last_part(self, cycle: RequestResponseCycle) -> None:
        """The end of the answer comes."""
        if self._lingering is cycle:
            cycle.keep_alive = True  # else it would close at once

    def is_spoilt(self, cycle: RequestResponseCycle) -> bool:
        """Whether what came cannot be the body that the head announced."""
        return self._spoilt is cycle

    def _on_malformed(self) -> None:
        if self._reading != "body":
            self._refuse(self._rejection or MalformedRequestError())
        elif self._due:
            # The application answers: it waits for this body, or will.
            self._deaf, self._spoilt = True, self.cycle
            self.cycle.message_event.set()
        else:
            self.transport.close()  # the body was refused before

    def _refuse(self, error: LossdError) -> None:
        """Answers in the place of the application, after the answers that are due before."""
        self._rejection, self._deaf = error, True
        self._end_head_timer()
        if not self._due:
            self._end()

    def _end(self) -> None:
        """Says why, if nobody has, and closes when the other side has had time to read it."""
        if self.transport.is_closing():
            return
        if self._lingering is None and self._rejection is not None:
            error = self._rejection
            error.request_id = new_request_id()
            self._note_cut(error.code, request_id=error.request_id)
            self.transport.write(_refusal(error, self._path(), self.server_state.default_headers))
        try:
            if self.transport.can_write_eof():
                self.transport.write_eof()
        except OSError:  # the other side has gone meanwhile
            self.transport.abort()
            return
        self.flow.resume_reading()
        self._linger_timer = self.loop.call_later(_LINGER_S, self.transport.close)

    def _path(self) -> str:
        """What is known of the address that is asked for; empty before a request has one."""
        return getattr(self, "url", b"").partition(b"?")[0].decode("latin-1")

    def _note_cut(self, code: str, **more: str | None) -> None:
        metrics.CUT_CONNECTIONS.labels(code).inc()
        log.info("connection_cut", code=code, client=self.client and self.client[0], **more)

    # -- slow readers

    def pause_writing(self) -> None:
        """The reader is behind: until the whole answer is out it has so long."""
        super().pause_writing()
        if self._send_timer is None:
            self._start_send_timer()

    def resume_writing(self) -> None:
        """The reader has caught up."""
        super().resume_writing()
        if not self._due:
            self._end_send_timer()

    def _start_send_timer(self) -> None:
        self._send_timer = self.loop.call_later(self.limits.send_timeout_s, self._on_slow_reader)

    def _end_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _on_slow_reader(self) -> None:
        self._note_cut(_SLOW_READER)
        self.transport.abort()


def new_request_id() -> str:
    """An id that no other request has: 32 hexadecimal digits."""
    # Not uuid4, which asks the system for every one.
    return f"{_IDS.getrandbits(128):032x}"


def _refusal(error: LossdError, path: str, headers: list[tuple[bytes, bytes]]) -> bytes:
    """An answer of the protocol's own."""
    body, media_type = error_body(error, path)
    fields = [
        *headers,
        (b"content-type", media_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (REQUEST_ID_HEADER.lower().encode(), str(error.request_id).encode()),
        (b"connection", b"close"),
    ]
    if error.retry_after is not None:
        fields.append((b"retry-after", error.retry_after.encode()))
    status = HTTPStatus(error.status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in fields]
    return b"\r\n".join([*lines, b"", body])


class HangUp:
    """Tells whoever waits for an answer that the other side is gone."""

    def __init__(self) -> None:
        self._listeners: set[Callable[[], None]] = set()
        self._has_happened = False

    def told_to(self, listener: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """Calls a function when it happens, or at once if it has, while the context is open."""
        return _Listening(self, listener)

    def add(self, listener: Callable[[], None]) -> None:
        """The same, until it is discarded."""
        self._listeners.add(listener)
        if self._has_happened:
            listener()

    def discard(self, listener: Callable[[], None]) -> None:
        """Calls it no more."""
        self._listeners.discard(listener)

    def tell(self) -> None:
        """It has happened."""
        self._has_happened = True
        for listener in tuple(self._listeners):
            listener()


class _Listening(contextlib.AbstractContextManager[None]):
    """While it is open a function is called on a hang-up."""

    def __init__(self, hang_up: HangUp, listener: Callable[[], None]) -> None:
        self._hang_up = hang_up
        self._listener = listener

    def __enter__(self) -> None:
        self._hang_up.add(self._listener)

    def __exit__(self, *_: object) -> None:
        self._hang_up.discard(self._listener)


class _Exchange:
    """A request and its answer: what the application gets in the place of uvicorn's cycle."""

    def __init__(self, protocol: HttpProtocol, cycle: RequestResponseCycle, app: Any) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._app = app
        self._arrival = Arrival()
        self.hang_up = HangUp()
        self._received = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, with a way in and a way out of our own."""
        del receive, send
        cycle = self._cycle
        self._arrival.is_whole = not cycle.more_body and not cycle.waiting_for_100_continue
        extensions = scope.setdefault("extensions", {})
        extensions[ARRIVAL], extensions[HANG_UP] = self._arrival, self.hang_up
        await self._app(scope, self.receive, self.send)

    async def receive(self) -> Message:
        """The next part of the body; the whole of it if it is large and its length is known.

        Raises:
            MalformedBodyError: what came is not the chunks that the head announced.
        """
        message: Message = dict(await self._cycle.receive())
        if self._protocol.is_spoilt(self._cycle):
            raise MalformedBodyError("the body is not in valid chunks")
        if message["type"] != "http.request":
            return message
        self._arrival.arrived_bytes += len(message["body"])
        is_first, self._received = not self._received, True
        nbytes = self._landing_bytes() if is_first and message["more_body"] else 0
        if not nbytes:
            return message
        body = await self._protocol.land(self._cycle, nbytes, message["body"], self._arrival)
        if body is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}

    def _landing_bytes(self) -> int:
        """Length of a body that has a place of its own; 0 for any other."""
        nbytes = announced_bytes(self._cycle.scope["headers"])
        limit_bytes = self._protocol.limits.max_body_mib << 20
        return nbytes if nbytes is not None and _LANDING_BYTES < nbytes <= limit_bytes else 0

    async def send(self, message: Message) -> None:
        """A part of the answer, in slices."""
        cycle = self._cycle
        if message["type"] == "http.response.start":
            if self._leaves_body():
                self._protocol.linger_after(cycle)
                message = {**message, "headers": _closing(message.get("headers", ()))}
            if cycle.scope["method"] != "HEAD":
                cycle.transport = _HeadHeld(cycle.transport)  # type: ignore[assignment]
            await cycle.send(message)  # type: ignore[arg-type]
            return
        body = memoryview(message.get("body", b"")).cast("B")
        more = message.get("more_body", False)
        # A transport copies what the socket does not take at once, and an answer must not be in
        # memory twice.
        while body.nbytes > _SLICE_BYTES and not cycle.disconnected:
            await cycle.send(_part(body[:_SLICE_BYTES], more_body=True))
            body = body[_SLICE_BYTES:]
        if not more:
            self._protocol.last_part(cycle)
        await cycle.send(_part(body, more_body=more))

    def _leaves_body(self) -> bool:
        """Whether more of the body is missing than is worth waiting for."""
        cycle = self._cycle
        if not cycle.more_body:
            return False
        # Whoever was not told to go on may send the body or leave it out: what follows is unclear.
        if (
            self._protocol.is_spoilt(cycle)
            or cycle.waiting_for_100_continue
            or not cycle.keep_alive
        ):
            return True
        nbytes = announced_bytes(cycle.scope["headers"])
        return nbytes is None or nbytes - self._arrival.arrived_bytes > _DRAINED_BYTES


class _HeadHeld:
    """A transport that lets the head of an answer leave with the first part of its body.

    Every call of the system lets other threads have Python's lock, and getting it back takes as
    long as they like.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: Literal["head", "first", "later"] = "head"
        """What is written next."""
        self._head = b""

    def write(self, data: bytes | memoryview) -> None:
        """The head, then the parts of the body."""
        if self._parts == "head":
            self._parts, self._head = "first", bytes(data)
            return
        if self._parts == "first":
            self._parts = "later"
            if len(data) <= _SMALL_ANSWER_BYTES:
                data = b"".join((self._head, data))
            else:
                self._transport.write(self._head)
        self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing more will be sent."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Sends what was written and ends the connection."""
        self._transport.close()


def announced_bytes(headers: Any) -> int | None:
    """The body's length as the head says it, None if only its end will tell."""
    nbytes = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            nbytes = int(value)
    return nbytes


def _closing(headers: Any) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name.lower() != b"connection"]
    return [*kept, (b"connection", b"close")]


def _part(body: memoryview, *, more_body: bool) -> Any:
    return {"type": "http.response.body", "body": body, "more_body": more_body}
