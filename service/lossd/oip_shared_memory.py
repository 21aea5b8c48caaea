"""The routes by which clients of the Open Inference Protocol register shared memory."""

from __future__ import annotations

from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from lossd.protocols.admission import read_document
from lossd.receiving import received_body
from lossd.settings import Settings
from lossd.shared_bodies import SharedMemoryAccess
from lossd.shared_memory import Region
from lossd_client.errors import MalformedBodyError, NotFoundError

_SYSTEM: Final = "/systemsharedmemory"
_CUDA: Final = "/cudasharedmemory"
_LONGEST_BYTES: Final = 64 << 10

_Bytes = Annotated[int, Field(ge=0, lt=1 << 48)]


class _Registration(BaseModel):
    """The body of a registration."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    key: Annotated[str, Field(min_length=1)]
    offset: _Bytes = 0
    byte_size: _Bytes


def add_shared_memory(
    router: APIRouter, settings: Settings, shared_memory: SharedMemoryAccess
) -> None:
    """Status, registration and unregistration of regions."""
    _add_system_status(router, shared_memory)
    _add_system_changes(router, settings, shared_memory)
    _add_cuda(router)


def _add_system_status(router: APIRouter, shared_memory: SharedMemoryAccess) -> None:
    regions = shared_memory.regions

    @router.get(f"{_SYSTEM}/status")
    async def status(request: Request) -> list[dict[str, Any]]:
        """The caller's regions."""
        return [_described(region) for region in regions.of(request.state.caller)]

    @router.get(f"{_SYSTEM}/region/{{name}}/status")
    async def status_of_one(request: Request, name: str) -> list[dict[str, Any]]:
        """One of the caller's regions.

        Raises:
            NotFoundError: there is none of that name.
        """
        own = [region for region in regions.of(request.state.caller) if region.name == name]
        if not own:
            raise NotFoundError(f"Unable to find system shared memory region: '{name[:80]}'")
        return [_described(own[0])]


def _add_system_changes(
    router: APIRouter, settings: Settings, shared_memory: SharedMemoryAccess
) -> None:
    regions = shared_memory.regions

    @router.post(f"{_SYSTEM}/region/{{name}}/register")
    async def register(request: Request, name: str) -> Response:
        """Gives a part of the caller's shared memory a name.

        Raises:
            LossdError: it is not the caller's, not there, smaller, or the name is in use.
        """
        shared_memory.check(request)
        async with received_body(request, settings) as body:
            asked = _registration(bytes(body[: _LONGEST_BYTES + 1]))
        regions.register(request.state.caller, name, asked.key, asked.offset, asked.byte_size)
        return Response()

    @router.post(f"{_SYSTEM}/region/{{name}}/unregister")
    async def unregister(request: Request, name: str) -> Response:
        """Forgets a region of the caller's."""
        regions.unregister(request.state.caller, name)
        return Response()

    @router.post(f"{_SYSTEM}/unregister")
    async def unregister_all(request: Request) -> Response:
        """Forgets every region of the caller's."""
        regions.unregister(request.state.caller)
        return Response()


def _add_cuda(router: APIRouter) -> None:
    """Memory of GPUs is not shared; the answers are those of a Triton that was built without."""

    @router.get(f"{_CUDA}/status")
    async def status() -> list[dict[str, Any]]:
        """No regions."""
        return []

    @router.get(f"{_CUDA}/region/{{name}}/status")
    async def status_of_one(name: str) -> None:
        """No region.

        Raises:
            NotFoundError: always.
        """
        raise NotFoundError(f"Unable to find cuda shared memory region: '{name[:80]}'")

    @router.post(f"{_CUDA}/region/{{name}}/register")
    async def register(name: str) -> None:
        """Nothing.

        Raises:
            MalformedBodyError: always.
        """
        raise MalformedBodyError(
            f"failed to register CUDA shared memory region: '{name[:80]}', GPUs not supported"
        )

    @router.post(f"{_CUDA}/unregister")
    @router.post(f"{_CUDA}/region/{{name}}/unregister")
    async def unregister() -> Response:
        """Nothing, since there is none."""
        return Response()


def _registration(text: bytes) -> _Registration:
    """What is to be registered.

    Raises:
        MalformedBodyError: it is not JSON, or too long.
        InvalidInputError: a field is missing or out of range.
    """
    try:
        document = orjson.loads(text) if len(text) <= _LONGEST_BYTES else None
    except orjson.JSONDecodeError as error:
        msg = f"failed to parse the request JSON buffer: {error}"
        raise MalformedBodyError(msg) from error
    if not isinstance(document, dict):
        raise MalformedBodyError("failed to parse the request JSON buffer: it is no short object")
    return read_document(_Registration, document)


def _described(region: Region) -> dict[str, Any]:
    return {
        "name": region.name,
        "key": region.shared.key,
        "offset": region.offset,
        "byte_size": region.nbytes,
    }
