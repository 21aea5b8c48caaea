"""The routes by which clients of the Open Inference Protocol register shared memory."""

from __future__ import annotations

import base64
import binascii
from functools import partial
from typing import Annotated, Any, Final, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from lossd.cuda_memory import HANDLE_BYTES, Device, find_device_object
from lossd.protocols.admission import read_document
from lossd.receiving import ReceivedBody
from lossd.settings import Settings
from lossd.shared_bodies import SharedMemoryAccess
from lossd.shared_memory import Kind, Region, RegionTable, find_object
from lossd_client.errors import MalformedBodyError, NotFoundError

_PATHS: Final[dict[Kind, str]] = {"system": "/systemsharedmemory", "cuda": "/cudasharedmemory"}
_LONGEST_BYTES: Final = 64 << 10

_Bytes = Annotated[int, Field(ge=0, lt=1 << 48)]


class _Registration(BaseModel):
    """The body of a registration of the system's shared memory."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    key: Annotated[str, Field(min_length=1)]
    offset: _Bytes = 0
    byte_size: _Bytes


class _Handle(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    b64: Annotated[str, Field(min_length=1, max_length=4 * HANDLE_BYTES)]


class _DeviceRegistration(BaseModel):
    """The body of a registration of a GPU's memory."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    raw_handle: _Handle
    device_id: Annotated[int, Field(ge=0, lt=1 << 16)]
    byte_size: _Bytes


_Asked = TypeVar("_Asked", bound=BaseModel)


def add_shared_memory(
    router: APIRouter, settings: Settings, shared_memory: SharedMemoryAccess
) -> None:
    """Status, registration and unregistration of regions."""
    for kind in _PATHS:
        _add_status(router, shared_memory.regions, kind)
        _add_unregistration(router, shared_memory.regions, kind)
    _add_registration(router, settings, shared_memory)
    _add_device_registration(router, settings, shared_memory)


def _add_status(router: APIRouter, regions: RegionTable, kind: Kind) -> None:
    @router.get(f"{_PATHS[kind]}/status")
    async def status(request: Request) -> list[dict[str, Any]]:
        """The caller's regions."""
        return [_described(region) for region in regions.of(request.state.caller, kind)]

    @router.get(f"{_PATHS[kind]}/region/{{name}}/status")
    async def status_of_one(request: Request, name: str) -> list[dict[str, Any]]:
        """One of the caller's regions.

        Raises:
            NotFoundError: there is none of that name.
        """
        own = [region for region in regions.of(request.state.caller, kind) if region.name == name]
        if not own:
            raise NotFoundError(f"Unable to find {kind} shared memory region: '{name[:80]}'")
        return [_described(own[0])]


def _add_unregistration(router: APIRouter, regions: RegionTable, kind: Kind) -> None:
    @router.post(f"{_PATHS[kind]}/region/{{name}}/unregister")
    async def unregister(request: Request, name: str) -> Response:
        """Forgets a region of the caller's."""
        regions.unregister(request.state.caller, kind, name)
        return Response()

    @router.post(f"{_PATHS[kind]}/unregister")
    async def unregister_all(request: Request) -> Response:
        """Forgets every region of the caller's of this kind."""
        regions.unregister(request.state.caller, kind)
        return Response()


def _add_registration(
    router: APIRouter, settings: Settings, shared_memory: SharedMemoryAccess
) -> None:
    @router.post(f"{_PATHS['system']}/region/{{name}}/register")
    async def register(request: Request, name: str) -> Response:
        """Gives a part of the caller's shared memory a name.

        Raises:
            LossdError: it is not the caller's, not there, smaller, or the name is in use.
        """
        shared_memory.check(request)
        asked = await _read(request, settings, _Registration)
        caller, part = request.state.caller, (asked.offset, asked.byte_size)
        find = partial(find_object, caller, asked.key)
        shared_memory.regions.register(caller, name, "system", find, part)
        return Response()


def _add_device_registration(
    router: APIRouter, settings: Settings, shared_memory: SharedMemoryAccess
) -> None:
    @router.post(f"{_PATHS['cuda']}/region/{{name}}/register")
    async def register(request: Request, name: str) -> Response:
        """Gives memory of a GPU that the caller exports a name.

        Raises:
            LossdError: it cannot be opened, is smaller, is another device's, or the name is in use.
        """
        device = shared_memory.device
        if device is None:
            raise MalformedBodyError(
                f"failed to register CUDA shared memory region: '{name[:80]}', GPUs not supported"
            )
        shared_memory.check(request)
        asked = await _read(request, settings, _DeviceRegistration)
        handle = _handle(asked, device)
        # A plain call: it is short, and regions are registered by one thread.
        find = partial(find_device_object, device, handle)
        part = (0, asked.byte_size)
        shared_memory.regions.register(request.state.caller, name, "cuda", find, part)
        return Response()


def _handle(asked: _DeviceRegistration, device: Device) -> bytes:
    """The handle of a registration.

    Raises:
        MalformedBodyError: it is none, or of a device that does not compute here.
    """
    if asked.device_id != device.index:
        msg = f"device_id is {asked.device_id}; this service computes on device {device.index}"
        raise MalformedBodyError(msg)
    try:
        handle = base64.b64decode(asked.raw_handle.b64, validate=True)
    except binascii.Error as error:
        raise MalformedBodyError(f"raw_handle.b64 is not base64: {error}") from error
    if len(handle) != HANDLE_BYTES:
        raise MalformedBodyError(f"raw_handle has {len(handle)} bytes, a handle {HANDLE_BYTES}")
    return handle


async def _read(request: Request, settings: Settings, model: type[_Asked]) -> _Asked:
    """What is to be registered.

    Raises:
        MalformedBodyError: it is not JSON, or too long.
        InvalidInputError: a field is missing or out of range.
    """
    async with ReceivedBody(request, settings) as body:
        text = bytes(body[: _LONGEST_BYTES + 1])
    try:
        document = orjson.loads(text) if len(text) <= _LONGEST_BYTES else None
    except orjson.JSONDecodeError as error:
        msg = f"failed to parse the request JSON buffer: {error}"
        raise MalformedBodyError(msg) from error
    if not isinstance(document, dict):
        raise MalformedBodyError("failed to parse the request JSON buffer: it is no short object")
    return read_document(model, document)


def _described(region: Region) -> dict[str, Any]:
    place = region.shared.place(region.offset)
    return {"name": region.name, **place, "byte_size": region.nbytes}
