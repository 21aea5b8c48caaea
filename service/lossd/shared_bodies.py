"""Bodies and tensors that requests bring, and take away, in shared memory of their caller's.

A request of lossd's own protocol has its body there and the answer is written to the same place:

    Lossd-Shared-Memory: lossd.anonymous.5f3a; body=20971520        (the body is empty)
    Lossd-Shared-Memory: 20979712                                   (likewise)

The Open Inference Protocol registers regions first and names them tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from lossd import metrics
from lossd.body_memory import BodyMemory
from lossd.cuda_memory import Device
from lossd.loopback import is_sent_from_here
from lossd.offload import offload
from lossd.quotas import Work
from lossd.sending import PartsResponse
from lossd.settings import Settings
from lossd.shared_memory import (
    RegionTable,
    SharedObject,
    find_object,
    name_prefix,
)
from lossd_client.errors import MalformedBodyError, NotSupportedError, TooLargeError
from lossd_client.wire import SHARED_MEMORY_HEADER

_SAID: Final = re.compile(r"([!-:<-~]{1,255}); body=([0-9]{1,18})")


class SharedMemoryAccess:
    """Who may use shared memory, and what was registered.

    Args:
        settings: whether it is on.
        device: whose memory may be shared too; None where there is no GPU.
    """

    def __init__(self, settings: Settings, device: Device | None = None) -> None:
        self._is_on = settings.shared_memory == "on"
        self.device = device
        self.memory = BodyMemory(settings.max_body_mib << 20)
        """Where private copies go."""
        self.regions = RegionTable()

    def allows(self, request: Request) -> bool:
        """Whether the caller of a request may use it: it is on, and the caller on this machine."""
        return self._is_on and is_sent_from_here(request.scope)

    def check(self, request: Request) -> None:
        """Raises unless the caller of a request may use shared memory.

        Raises:
            NotSupportedError: the settings do not allow it, or the request comes from elsewhere.
        """
        if not self._is_on:
            raise NotSupportedError("shared memory is off; LOSSD_SHARED_MEMORY=on allows it")
        if not self.allows(request):
            raise NotSupportedError("shared memory is for callers on this machine only")

    def describe(self, request: Request) -> dict[str, str] | None:
        """What `GET /v1/limits` says of it: how names begin; None where it is not allowed."""
        if not self.allows(request):
            return None
        return {"name_prefix": name_prefix(request.state.caller)}


async def shared_body(
    request: Request, limit_bytes: int, take: Callable[[int], None]
) -> memoryview | None:
    """A private copy of the body that a request has in shared memory; None if it has none there.

    Raises:
        NotSupportedError: shared memory is not allowed.
        MalformedBodyError: the header is none, or what it names is not there.
        TooLargeError: the body is too long.
        QueueFullError: there is no room for it now.
    """
    said = request.headers.get(SHARED_MEMORY_HEADER)
    if said is None:
        return None
    access: SharedMemoryAccess = request.app.state.shared_memory
    access.check(request)
    found = _SAID.fullmatch(said)
    work: Work | None = getattr(request.state, "work", None)
    if found is None or work is None or request.headers.get("content-length", "0") != "0":
        msg = (
            f"{SHARED_MEMORY_HEADER} is 'name; body=bytes' of a call that is charged, without body"
        )
        raise MalformedBodyError(msg)
    key, nbytes = found[1], int(found[2])
    if nbytes > limit_bytes:
        raise TooLargeError(f"the body is larger than {limit_bytes} bytes")
    take(nbytes)
    work.receive_shared_bytes(nbytes)
    metrics.RECEIVED_BYTES.labels(request.state.caller.name).inc(nbytes)
    caller = request.state.caller

    def read() -> tuple[SharedObject, memoryview]:
        shared = find_object(caller, key)
        return shared, shared.read(caller, 0, nbytes, access.memory)

    request.state.shared_answer, body = await anyio.to_thread.run_sync(read)
    return body


async def parts_response(
    request: Request, parts: Sequence[bytes | memoryview], media_type: str, headers: dict[str, str]
) -> Response:
    """An answer of several buffers, written to where the request's body was if it fits there."""
    shared: SharedObject | None = request.scope["state"].get("shared_answer")
    nbytes = 0 if shared is None else sum(memoryview(part).nbytes for part in parts)
    if shared is None or nbytes > shared.nbytes:
        return PartsResponse(parts, media_type, headers)
    caller = request.state.caller
    await offload(caller, nbytes, lambda: shared.write(caller, 0, parts))
    metrics.SENT_BYTES.labels(caller.name).inc(nbytes)
    told = {**headers, SHARED_MEMORY_HEADER: str(nbytes)}
    return Response(b"", headers=told, media_type=media_type)
