"""Large bodies through shared memory, where service and client are on one machine.

It is tried where the address is a loopback one, and asked for once: `GET /v1/limits` says whether
the service allows it. Whatever speaks against it, from a container's own `/dev/shm` to one that is
full, ends in the body being sent as if there were none.
"""

import ipaddress
import json
import re
import threading
import time
from dataclasses import replace
from http import HTTPStatus
from typing import Final, Literal

from lossd_client._address import Address
from lossd_client._protocol import LIMITS, Reply, Request
from lossd_client._regions import Region, Regions, are_possible
from lossd_client._transport import Cancellation, Transport
from lossd_client.wire import SHARED_MEMORY_HEADER

SharedMemory = Literal["auto", "off"]
"""Whether large bodies go through shared memory where that is possible, or never."""

WORTHWHILE_BYTES: Final = 4 << 20
"""Bytes from here on. Of 1 MiB and less the round trip is longer than over HTTP, of 4 MiB shorter:
`benchmarks/results/ways_in.json`."""

_PREFIX: Final = re.compile(r"lossd\.[a-z0-9-]{1,40}\.")
_PATHS: Final = ("/v1/evaluate", "/v1/qa/score", "/v1/tensors")
_REFUSED: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_IMPLEMENTED)
"""What a service answers that does not know the header, does not allow it, or does not find it."""


def is_on_this_machine(address: Address) -> bool:
    """Whether an address leads to this machine and through no encryption."""
    if address.scheme != "http":
        return False
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


class SharedMemoryTransport:
    """A transport that puts large bodies into shared memory, if the service takes them from there.

    Args:
        inner: the way to the service for everything else.
    """

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._state: Literal["unknown", "on", "off"] = "unknown" if are_possible() else "off"
        self._regions: Regions | None = None
        self._largest_answer_bytes = 0

    def exchange(self, request: Request, *, timeout_s: float, cancellation: Cancellation) -> Reply:
        """The answer to one request, as in `Transport`."""
        end_s = time.monotonic() + timeout_s
        nbytes = sum(memoryview(part).nbytes for part in request.parts)
        region = None
        if nbytes >= WORTHWHILE_BYTES and request.path in _PATHS:
            region = self._region(request, nbytes, timeout_s, cancellation)
        if region is None:
            return self._inner.exchange(
                request, timeout_s=_left_s(end_s), cancellation=cancellation
            )
        reply = self._exchange_in(region, request, nbytes, end_s, cancellation)
        if reply.status not in _REFUSED:
            return reply
        # It may be the region or the request that is refused; the same request without tells.
        plain = self._inner.exchange(request, timeout_s=_left_s(end_s), cancellation=cancellation)
        if plain.status != reply.status:
            self._state = "off"
        return plain

    def close(self) -> None:
        """Close the connections and remove the regions."""
        with self._lock:
            self._state = "off"
            if self._regions is not None:
                self._regions.close()
        self._inner.close()

    def _region(
        self, request: Request, nbytes: int, timeout_s: float, cancellation: Cancellation
    ) -> Region | None:
        """A region for the body and, as far as is known, for its answer; None if there is none."""
        if self._state == "unknown":
            self._ask(request, timeout_s, cancellation)
        regions = self._regions
        if self._state != "on" or regions is None:
            return None
        try:
            return regions.take(max(nbytes, self._largest_answer_bytes))
        except OSError:
            # There is no room, or no right to it; the next body will not have any either.
            self._state = "off"
            return None

    def _ask(self, request: Request, timeout_s: float, cancellation: Cancellation) -> None:
        """Find out whether the service allows it; nothing is known after an error of any kind."""
        question = LIMITS.under(
            {name: value for name, value in request.headers.items() if name in _PERSONAL}
        )
        reply = self._inner.exchange(question, timeout_s=timeout_s, cancellation=cancellation)
        if reply.status != HTTPStatus.OK:
            return
        prefix = _name_prefix(reply)
        with self._lock:
            if self._state != "unknown":
                return
            if prefix is None:
                self._state = "off"
            else:
                self._regions, self._state = Regions(prefix), "on"

    def _exchange_in(
        self,
        region: Region,
        request: Request,
        nbytes: int,
        end_s: float,
        cancellation: Cancellation,
    ) -> Reply:
        regions = self._regions
        try:
            region.write(request.parts)
            named = {SHARED_MEMORY_HEADER: f"{region.name}; body={nbytes}", "Content-Length": "0"}
            reply = self._inner.exchange(
                replace(request, headers={**request.headers, **named}, parts=()),
                timeout_s=_left_s(end_s),
                cancellation=cancellation,
            )
            reply = self._with_body(reply, region)
        except BaseException:
            # The service may still write to it.
            region.remove()
            raise
        if regions is not None:
            regions.give_back(region)
        return reply

    def _with_body(self, reply: Reply, region: Region) -> Reply:
        told = reply.headers.get(SHARED_MEMORY_HEADER.lower(), "")
        if told.isdecimal() and int(told) <= region.nbytes:
            reply = replace(reply, body=region.read(int(told)))
        self._largest_answer_bytes = max(self._largest_answer_bytes, memoryview(reply.body).nbytes)
        return reply


_PERSONAL: Final = ("Authorization", "User-Agent", "Accept-Encoding")
"""Headers by which a service tells who asks."""


def _name_prefix(reply: Reply) -> str | None:
    """How names begin that the service looks for; None if it does not."""
    try:
        document = json.loads(bytes(reply.body))
        prefix = document["shared_memory"]["name_prefix"]
    except (ValueError, KeyError, TypeError):
        # An older service, or none at all: what it is will be seen where it matters.
        return None
    return prefix if isinstance(prefix, str) and _PREFIX.fullmatch(prefix) else None


def _left_s(end_s: float) -> float:
    return max(end_s - time.monotonic(), 1e-3)
