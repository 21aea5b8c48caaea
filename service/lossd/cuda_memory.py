"""Memory of a GPU that another process on this machine exports by a CUDA handle: copied, no more.

A handle is opened for one copy and closed behind it, and the caller's memory is never freed here.
What its owner frees is gone, and the size of the allocation is looked at again at every use. As
with memory of the system, what is read is a copy in memory of our own.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import torch

from lossd.body_memory import BodyMemory
from lossd.callers import Caller
from lossd_client.errors import MalformedBodyError

HANDLE_BYTES: Final = 64
"""Of a handle (`cudaIpcMemHandle_t`)."""


class CudaError(Exception):
    """CUDA refused a call; the message is what it says."""


class Device(Protocol):
    """What is asked of CUDA."""

    @property
    def index(self) -> int:
        """Which of the machine's devices it is."""

    def opened(self, handle: bytes) -> AbstractContextManager[tuple[int, int]]:
        """Address and bytes of the allocation of a handle, while the context is open.

        Raises:
            CudaError: it is no handle of memory that another process has.
        """

    def read(self, address: int, into: memoryview) -> None:
        """Copies from the device into memory of the host.

        Raises:
            CudaError: the copy failed.
        """

    def write(self, address: int, data: memoryview) -> None:
        """Copies to the device from memory of the host.

        Raises:
            CudaError: the copy failed.
        """


class CudaDevice:
    """A device by NVIDIA's own bindings, which torch's builds for CUDA bring.

    Args:
        index: which of the machine's devices.
    """

    def __init__(self, index: int) -> None:
        from cuda.bindings import driver, runtime  # noqa: PLC0415 - there where CUDA is

        self._driver, self._runtime = driver, runtime
        self._index = index

    @property
    def index(self) -> int:
        """Which of the machine's devices it is."""
        return self._index

    @contextlib.contextmanager
    def opened(self, handle: bytes) -> Iterator[tuple[int, int]]:
        """Address and bytes of the allocation of a handle, while the context is open."""
        runtime = self._runtime
        self._done(runtime.cudaSetDevice(self._index))
        exported = runtime.cudaIpcMemHandle_t()
        ctypes.memmove(exported.getPtr(), handle, HANDLE_BYTES)
        flags = runtime.cudaIpcMemLazyEnablePeerAccess
        (address,) = self._done(runtime.cudaIpcOpenMemHandle(exported, flags))
        try:
            _, nbytes = self._done(self._driver.cuMemGetAddressRange(address))
            yield int(address), int(nbytes)
        finally:
            self._done(runtime.cudaIpcCloseMemHandle(address))

    def read(self, address: int, into: memoryview) -> None:
        """Copies from the device into memory of the host."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._done(self._runtime.cudaMemcpy(_address(into), address, into.nbytes, kind))

    def write(self, address: int, data: memoryview) -> None:
        """Copies to the device from memory of the host."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._done(self._runtime.cudaMemcpy(address, _address(data), data.nbytes, kind))

    def _done(self, answer: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a call gave beside its status, which is 0 if it succeeded."""
        status = answer[0]
        if status != 0:
            self._runtime.cudaGetLastError()  # or the next one to look would take it for theirs
            raise CudaError(status.name)
        return answer[1:]


def find_device(device: torch.device) -> CudaDevice | None:
    """The device that computes, if its memory can be shared."""
    if device.type != "cuda":
        return None
    return CudaDevice(torch.empty(0, device=device).get_device())


@dataclass(frozen=True)
class DeviceObject:
    """Memory of a GPU as it was when it was first looked at."""

    handle: bytes = field(repr=False)
    """Whoever knows it can read the memory."""
    nbytes: int
    device: Device

    def place(self, offset: int) -> dict[str, str | int]:
        """Which device it is of; a handle's memory is registered from its beginning."""
        del offset
        return {"device_id": self.device.index}

    def read(self, caller: Caller, offset: int, nbytes: int, memory: BodyMemory) -> memoryview:
        """A private copy of bytes of it.

        Raises:
            MalformedBodyError: it is not there any more, or is smaller.
        """
        del caller
        if not nbytes:
            return memoryview(b"")
        body = memory.take(nbytes)
        with self._opened(offset + nbytes) as address:
            self.device.read(address + offset, body)
        return body

    def write(self, caller: Caller, offset: int, parts: Sequence[bytes | memoryview]) -> None:
        """Writes bytes into it, one part after the other.

        Raises:
            MalformedBodyError: it is not there any more, or is smaller.
        """
        del caller
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        with self._opened(offset + sum(view.nbytes for view in views)) as address:
            for view in views:
                self.device.write(address + offset, view)
                offset += view.nbytes

    @contextlib.contextmanager
    def _opened(self, end: int) -> Iterator[int]:
        with _opened(self.device, self.handle) as (address, nbytes):
            if end > nbytes:
                raise MalformedBodyError("CUDA shared memory is smaller than it was")
            yield address


def find_device_object(device: Device, handle: bytes) -> DeviceObject:
    """The memory of a handle.

    Raises:
        MalformedBodyError: there is none.
    """
    with _opened(device, handle) as (_, nbytes):
        return DeviceObject(handle, nbytes, device)


@contextlib.contextmanager
def _opened(device: Device, handle: bytes) -> Iterator[tuple[int, int]]:
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(device.opened(handle))
        except CudaError as error:
            msg = f"failed to open CUDA IPC handle: {error}"
            raise MalformedBodyError(msg) from error
        yield found


def _address(view: memoryview) -> int:
    """Where the bytes of a view lie; it may be read-only."""
    return int(np.frombuffer(view, np.uint8).ctypes.data)
