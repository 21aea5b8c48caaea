"""The body of a request, from its head to its last byte: what kind it is, how long, how slow."""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import anyio.to_thread
import zstandard
from starlette.requests import ClientDisconnect, Request

from lossd import metrics
from lossd.landing import ARRIVAL, Arrival
from lossd.settings import Settings
from lossd.shared_bodies import shared_body
from lossd_client.errors import (
    BodyTimeoutError,
    MalformedBodyError,
    QueueFullError,
    TooLargeError,
    UnsupportedCodingError,
    UnsupportedMediaTypeError,
)
from lossd_client.wire import JSON, MULTIPART, OCTET_STREAM, SAFETENSORS

Body = bytearray | memoryview

_MAX_DIGITS = 18  # of a Content-Length that is worth comparing
_ZSTD_WINDOW_BYTES: Final = 8 << 20
"""What RFC 9659 lets a sender count on, and all that a frame may ask for."""


class Arrivals:
    """Room for bodies that are received and decoded at a time, for all callers together.

    Several bodies of a caller may take as much as they leave: half of everything if nobody else
    sends, so that others find room. A caller's only body may take all that is left.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._usual_s = 1.0

    def room(self, name: str) -> _Room:
        """A function that reserves so many more bytes for that caller until the context ends.

        The function may be called from any thread; it raises `QueueFullError` if there is no room.
        """
        return _Room(self, name)

    def take(self, room: _Room, nbytes: int) -> None:
        """Reserves bytes for one body.

        Raises:
            QueueFullError: there is no room.
        """
        with self._lock:
            self._check(room.name, room.taken_bytes, nbytes)
            self._held[room.name] += nbytes
            room.taken_bytes += nbytes

    def give_back(self, room: _Room) -> None:
        """Frees what was reserved for one body."""
        seconds = time.monotonic() - room.started_s
        with self._lock:
            self._held[room.name] -= room.taken_bytes
            if not self._held[room.name]:
                del self._held[room.name]  # forgets those who hold nothing
            self._usual_s += (seconds - self._usual_s) / 16

    def _check(self, name: str, taken: int, nbytes: int) -> None:
        others = self._held[name] - taken  # the caller's other bodies
        held_bytes = self._held.total()
        left = self._limit_bytes - held_bytes - nbytes
        if left < 0 or (others and self._held[name] + nbytes > left):
            msg = (
                f"{held_bytes} of {self._limit_bytes} bytes of bodies are arriving, "
                f"{self._held[name]} of them yours; {nbytes} more do not fit"
            )
            raise QueueFullError(msg, retry_after_s=self._usual_s)


class _Room:
    """Room for one body."""

    def __init__(self, arrivals: Arrivals, name: str) -> None:
        self._arrivals = arrivals
        self.name = name
        """Of the caller."""
        self.taken_bytes = 0
        self.started_s = time.monotonic()

    def take(self, nbytes: int) -> None:
        """Reserves so many more bytes.

        Raises:
            QueueFullError: there is no room.
        """
        self._arrivals.take(self, nbytes)

    def give_back(self) -> None:
        """Frees what was reserved."""
        self._arrivals.give_back(self)

    def __enter__(self) -> Callable[[int], None]:
        return self.take

    def __exit__(self, *_: object) -> None:
        self.give_back()


def body_kind(request: Request) -> tuple[str, str]:
    """Kind of the body, and the header as it is.

    Raises:
        UnsupportedMediaTypeError: the service does not read such bodies.
    """
    header = request.headers.get("content-type", "")
    kind = header.partition(";")[0].strip().lower()
    if kind in (SAFETENSORS, OCTET_STREAM):
        return SAFETENSORS, header
    if kind in (JSON, MULTIPART):
        return kind, header
    msg = f"Content-Type {header[:80]!r}; use {JSON}, {SAFETENSORS} or {MULTIPART}"
    raise UnsupportedMediaTypeError(msg)


class ReceivedBody:
    """The whole body, unfolded if it came compressed; refused as soon as it is too much.

    Its room is held while the context is open, which is to be until it is decoded.

    Args:
        request: whose body it is.
        settings: how long it may be, and take.

    Raises:
        TooLargeError: it is longer than `max_body_mib`, or unfolds to more.
        QueueFullError: too many bytes of bodies are arriving already.
        BodyTimeoutError: it took longer than `body_timeout_s`.
        MalformedBodyError: it is not what its Content-Encoding says, or not in valid chunks.
        UnsupportedCodingError: it is compressed in a way that the service does not read.
        NotSupportedError: it is in shared memory, which is not allowed.
        ClientDisconnect: the client went away before its end.
    """

    def __init__(self, request: Request, settings: Settings) -> None:
        arrivals: Arrivals = request.app.state.arrivals
        self._room = arrivals.room(request.state.caller.name)
        self._request = request
        self._settings = settings

    async def __aenter__(self) -> Body:
        try:
            return await _whole(self._request, self._settings, self._room.take)
        except BaseException:
            self._room.give_back()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._room.give_back()


async def _whole(request: Request, settings: Settings, take: Callable[[int], None]) -> Body:
    limit_bytes = settings.max_body_mib << 20
    coding = _coding(request)
    body: Body | None = await shared_body(request, limit_bytes, take)
    if body is None:
        body = await _receive(request, settings, limit_bytes, take)
    if coding is None:
        return body
    return await anyio.to_thread.run_sync(_unfold, body, coding, limit_bytes, take)


async def _receive(
    request: Request, settings: Settings, limit_bytes: int, take: Callable[[int], None]
) -> Body:
    announced = _announced(request, limit_bytes)
    take(announced or 0)
    arrival: Arrival = request.scope.get("extensions", {}).get(ARRIVAL) or Arrival()
    take_more = take if announced is None else None
    try:
        if arrival.is_whole:  # and need not be waited for
            return await _gathered(request, arrival, limit_bytes, take_more)
        async with asyncio.timeout(settings.body_timeout_s):
            return await _gathered(request, arrival, limit_bytes, take_more)
    except TimeoutError as error:
        msg = f"{arrival.arrived_bytes} bytes of the body arrived in {settings.body_timeout_s:g} s"
        raise BodyTimeoutError(msg) from error
    finally:
        key = request.state.caller.name
        metrics.series(metrics.RECEIVED_BYTES, key).inc(arrival.arrived_bytes)


async def _gathered(
    request: Request, arrival: Arrival, limit_bytes: int, take: Callable[[int], None] | None
) -> Body:
    """What comes, up to its end; `take` reserves what was not announced."""
    body: Body = bytearray()
    more_comes = True
    while more_comes:  # as Starlette's `stream`, which costs twice as much
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        more_comes = message.get("more_body", False)
        if take is not None:
            take(len(chunk))
        body = _joined(body, chunk)
        arrival.arrived_bytes = max(arrival.arrived_bytes, len(body))
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
    return body


def _announced(request: Request, limit_bytes: int) -> int | None:
    """The length that the head announces, None if it does not."""
    announced = request.headers.get("content-length", "")
    if not announced.isdecimal():
        return None
    if len(announced) > _MAX_DIGITS or int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    return int(announced)


def _too_large(limit_bytes: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than {limit_bytes} bytes")


def _joined(body: Body, chunk: bytes | memoryview) -> Body:
    """What came before and what comes now; a body that comes whole stays where it landed."""
    if not chunk:
        return body
    if isinstance(chunk, memoryview) and not body:
        return chunk
    joined = body if isinstance(body, bytearray) else bytearray(body)
    joined += chunk
    return joined


# -- content codings ------------------------------------------------------------------------------


class _Decoder(Protocol):
    """What zlib and zstandard have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _gzip() -> _Decoder:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def _deflate() -> _Decoder:
    return zlib.decompressobj()  # what HTTP calls deflate is zlib's format (RFC 9110, 8.4.1.2)


def _zstd() -> _Decoder:
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()


# With each, so much is unfolded at a time that it becomes some 32 MiB at most before it is counted:
# deflate makes up to 1032 bytes of one, zstd up to 32 Ki.
_DECODERS: dict[str, tuple[Callable[[], _Decoder], int]] = {
    "gzip": (_gzip, 32 << 10),
    "deflate": (_deflate, 32 << 10),
    "zstd": (_zstd, 1 << 10),
}
CODINGS: Final = tuple(_DECODERS)
"""How a body may be compressed."""


def _coding(request: Request) -> str | None:
    """How the body is compressed, None if it is not.

    Raises:
        UnsupportedCodingError: in another way, or twice.
    """
    coding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if coding in ("", "identity"):
        return None
    coding = coding.removeprefix("x-") if coding == "x-gzip" else coding
    if coding not in CODINGS:
        msg = f"Content-Encoding {coding[:40]!r}; use {', '.join(CODINGS)}, once, or none"
        raise UnsupportedCodingError(msg)
    return coding


def _unfold(body: Body, coding: str, limit_bytes: int, take: Callable[[int], None]) -> bytearray:
    """What a compressed body holds.

    Raises:
        TooLargeError: it unfolds to more than the limit.
        MalformedBodyError: it is broken, ends too early or goes on behind its end.
        QueueFullError: there is no room for what it unfolds to.
    """
    begin, piece_bytes = _DECODERS[coding]
    decoder = begin()
    unfolded = bytearray()
    compressed = memoryview(body)
    try:
        for start in range(0, len(compressed), piece_bytes):
            if decoder.eof:
                break
            piece = decoder.decompress(bytes(compressed[start : start + piece_bytes]))
            if len(unfolded) + len(piece) > limit_bytes:
                raise TooLargeError(f"the body unfolds to more than {limit_bytes} bytes")
            take(len(piece))
            unfolded += piece
            end = start + piece_bytes
    except (zlib.error, zstandard.ZstdError) as error:
        raise MalformedBodyError(f"the body is not {coding}: {error}") from error
    if not decoder.eof:
        raise MalformedBodyError(f"the body's {coding} ends too early")
    if decoder.unused_data or end < len(compressed):
        raise MalformedBodyError(f"the body goes on behind the end of its {coding}")
    return unfolded
