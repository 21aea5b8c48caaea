"""The body of a request, from its head to its last byte: what kind it is, how long, how slow."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from lossd import metrics
from lossd.settings import Settings
from lossd_client.errors import BodyTimeoutError, TooLargeError, UnsupportedMediaTypeError
from lossd_client.wire import JSON, MULTIPART, OCTET_STREAM, SAFETENSORS

_MAX_DIGITS = 18  # of a Content-Length that is worth comparing


def body_kind(request: Request) -> tuple[str, str]:
    """Kind of the body, and the header as it is.

    Raises:
        UnsupportedMediaTypeError: the service does not read such bodies.
    """
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        msg = f"Content-Encoding {coding[:40]!r}; send the body as it is"
        raise UnsupportedMediaTypeError(msg)
    header = request.headers.get("content-type", "")
    kind = header.partition(";")[0].strip().lower()
    if kind in (SAFETENSORS, OCTET_STREAM):
        return SAFETENSORS, header
    if kind in (JSON, MULTIPART):
        return kind, header
    msg = f"Content-Type {header[:80]!r}; use {JSON}, {SAFETENSORS} or {MULTIPART}"
    raise UnsupportedMediaTypeError(msg)


async def receive_body(request: Request, settings: Settings) -> bytearray:
    """The whole body, refused as soon as it is known to be too long or too slow.

    Raises:
        TooLargeError: it is longer than `max_body_mib`.
        BodyTimeoutError: it took longer than `body_timeout_s`.
        ClientDisconnect: the client went away before its end.
    """
    limit_bytes = settings.max_body_mib << 20
    too_large = f"the body is larger than {limit_bytes} bytes"
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > _MAX_DIGITS or int(announced) > limit_bytes):
        raise TooLargeError(too_large)
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit_bytes:
                    raise TooLargeError(too_large)
    except TimeoutError as error:
        msg = f"{len(body)} bytes of the body arrived in {settings.body_timeout_s:g} s"
        raise BodyTimeoutError(msg) from error
    finally:
        metrics.RECEIVED_BYTES.labels(request.state.caller.name).inc(len(body))
    return body
