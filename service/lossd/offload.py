"""Where work on bodies is done: in the event loop if it is quick, else in a thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from lossd.callers import Caller
from lossd.protocols.files import Budget, Buffer
from lossd.settings import Settings, processors
from lossd_client.errors import TooLargeError
from lossd_client.wire import MULTIPART, SAFETENSORS

T = TypeVar("T")

# Below this a hand-over to a worker thread costs more than the work.
_INLINE_BYTES = 64 * 1024
# The same of a body whose tensors are viewed where they lie: little of it is gone through.
_INLINE_TENSOR_BYTES = 1 << 20
# What a small body may unfold to before it counts as work that would hold up others.
_INLINE_UNFOLDED_BYTES = 1 << 20


# Threads that one caller may have at work. More than processors would do no more, and the others'
# would have to wait for each of them.
_THREADS_OF_A_CALLER = max(2, processors())

_THREADS: RunVar[WeakValueDictionary[str, CapacityLimiter]] = RunVar("threads of callers")


async def offload(caller: Caller, nbytes: int, work: Callable[[], T]) -> T:
    """Work on so many bytes: here if it is quick, in a thread if it would hold up others."""
    if nbytes < _INLINE_BYTES:
        return work()
    async with _threads_of(caller):
        return await anyio.to_thread.run_sync(work)


async def decode(
    caller: Caller, body: Buffer, kind: str, settings: Settings, work: Callable[[Budget], T]
) -> T:
    """What `work` makes of a body of a kind within the budget of one request.

    It is begun here if the body is small, and done again in a thread if that turns out to unfold.
    """
    limit_bytes, json_bytes = settings.max_body_mib << 20, settings.max_json_mib << 20
    if _is_quick(body, kind):
        # What turns out to unfold to more is work for a thread, and so is refusing it.
        with contextlib.suppress(TooLargeError):
            return work(Budget(min(limit_bytes, _INLINE_UNFOLDED_BYTES), json_bytes))
    async with _threads_of(caller):
        return await anyio.to_thread.run_sync(work, Budget(limit_bytes, json_bytes))


def _is_quick(body: Buffer, kind: str) -> bool:
    """Whether a body is read before a thread would have begun."""
    if kind == SAFETENSORS and len(body) < _INLINE_TENSOR_BYTES:
        document_bytes = int.from_bytes(body[:8], "little")
        return document_bytes < _INLINE_BYTES
    return len(body) < _INLINE_BYTES and kind != MULTIPART


def _threads_of(caller: Caller) -> CapacityLimiter:
    """What lets so many threads of a caller work at a time; there while somebody holds it."""
    try:
        threads = _THREADS.get()
    except LookupError:  # the first of this event loop
        threads = WeakValueDictionary()
        _THREADS.set(threads)
    return threads.setdefault(caller.name, CapacityLimiter(_THREADS_OF_A_CALLER))
