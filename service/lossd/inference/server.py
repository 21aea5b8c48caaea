"""The gRPC server: a method for each of the protocol's calls, each a request to the application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any, Final

import grpc
import orjson
import structlog
from google.protobuf import json_format
from starlette.types import ASGIApp

from lossd.error_bodies import INFERENCE
from lossd.inference.arriving import Gate, Headers
from lossd.inference.asking import Answered, Asked, ask
from lossd.inference.messages import POOL, SERVICE, message
from lossd.inference.translation import infer_body, infer_response
from lossd.protocols.oip_wire import HEADER_LENGTH
from lossd.settings import Settings
from lossd_client.errors import LossdError

log = structlog.get_logger(__name__)

_FORWARDED: Final = ("authorization", "x-api-key", "x-request-id", "traceparent", "tracestate")
"""Metadata of a call that mean the same as headers."""

_HEAD_BYTES: Final = 1 << 20
"""Of a message beside its tensors."""

_CODES: Final = {
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
    HTTPStatus.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's status for each of HTTP's that is not the caller's own mistake."""


@contextlib.asynccontextmanager
async def grpc_serving(
    app: ASGIApp, settings: Settings, check_key: Callable[[Headers], object]
) -> AsyncIterator[int]:
    """A server on the settings' address while the context is open; gives its port.

    Args:
        app: what answers.
        settings: the address and the limits.
        check_key: raises UnauthorizedError for headers that do not let a caller in.

    Raises:
        OSError: the address is taken.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", (settings.max_body_mib << 20) + _HEAD_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=settings.max_connections,
    )
    gate = Gate(check_key, settings.body_timeout_s)
    server.add_generic_rpc_handlers((_handlers(_Calls(app), gate),))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise OSError(f"gRPC cannot listen on {host}:{settings.grpc_port}: {error}") from error
    await server.start()
    log.info("grpc", host=settings.host, port=port)
    try:
        yield port
    finally:
        await server.stop(settings.drain_s)


def _handlers(calls: _Calls, gate: Gate) -> Any:
    """Every method of the protocol that there is, with how its messages are read and written."""
    service = POOL.FindServiceByName(SERVICE)
    found = {}
    for method in service.methods:
        kind = message(method.input_type.name)
        answer = message(method.output_type.name)
        call = getattr(calls, method.name)
        wrap: Any = grpc.stream_unary_rpc_method_handler
        behind: Any = gate.unary(method.name, call)
        if method.name == "ModelStreamInfer":
            wrap, behind = grpc.stream_stream_rpc_method_handler, gate.stream(method.name, call)
        found[method.name] = wrap(
            behind,
            request_deserializer=kind.FromString,
            response_serializer=answer.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(SERVICE, found)


class _Calls:
    """The protocol's methods, under the names that it gives them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def ServerLive(self, _: Any, context: Any) -> Any:  # noqa: N802 - the protocol's
        """Whether the process is worth keeping."""
        answer = await self._ask(context, "GET", "/health/live")
        return message("ServerLiveResponse")(live=answer.status == HTTPStatus.OK)

    async def ServerReady(self, _: Any, context: Any) -> Any:  # noqa: N802
        """Whether a job would be computed now."""
        answer = await self._ask(context, "GET", "/health/ready")
        return message("ServerReadyResponse")(ready=answer.status == HTTPStatus.OK)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Whether a model could be asked now."""
        path = await _model(request.name, request.version, context)
        answer = await self._ask(context, "GET", f"{path}/ready")
        if answer.status not in (HTTPStatus.OK, HTTPStatus.BAD_REQUEST):
            await _refuse(answer, context)
        return message("ModelReadyResponse")(ready=answer.status == HTTPStatus.OK)

    async def ServerMetadata(self, _: Any, context: Any) -> Any:  # noqa: N802
        """Name, version and extensions."""
        return _read("ServerMetadataResponse", await self._good(context, "GET", ""))

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Inputs and outputs of a model."""
        path = await _model(request.name, request.version, context)
        return _read("ModelMetadataResponse", await self._good(context, "GET", path))

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The same with what a batch may hold."""
        path = await _model(request.name, request.version, context)
        document = await self._good(context, "GET", f"{path}/config")
        return _read("ModelConfigResponse", {"config": document})

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """What a model, or every one, has done."""
        path = "/models"
        if request.name:
            path = await _model(request.name, request.version, context)
        document = await self._good(context, "GET", f"{path}/stats")
        return _read("ModelStatisticsResponse", document)

    async def RepositoryIndex(self, _: Any, context: Any) -> Any:  # noqa: N802
        """Every model."""
        document = await self._good(context, "POST", "/repository/index")
        return _read("RepositoryIndexResponse", {"models": document})

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Nothing, since the model is there, unless it is to be another one."""
        path = await _model(request.model_name, "", context)
        parts = (b"other",) if request.parameters else ()
        await self._good(context, "POST", f"/repository{path}/load", *parts)
        return message("RepositoryModelLoadResponse")()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Nothing that could be."""
        path = await _model(request.model_name, "", context)
        await self._good(context, "POST", f"/repository{path}/unload")
        return message("RepositoryModelUnloadResponse")()

    async def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The caller's regions."""
        path = await _region(request.name, context)
        found = await self._good(context, "GET", f"{path}/status")
        regions = {region["name"]: region for region in found}
        return _read("SystemSharedMemoryStatusResponse", {"regions": regions})

    async def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Gives a part of the caller's shared memory a name."""
        path = await _region(request.name, context)
        document = {
            "key": request.key,
            "offset": request.offset,
            "byte_size": request.byte_size,
        }
        await self._good(context, "POST", f"{path}/register", orjson.dumps(document))
        return message("SystemSharedMemoryRegisterResponse")()

    async def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Forgets a region of the caller's, or all."""
        path = await _region(request.name, context)
        await self._good(context, "POST", f"{path}/unregister")
        return message("SystemSharedMemoryUnregisterResponse")()

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """An evaluation."""
        answer = await self._infer(request, context)
        if answer.status != HTTPStatus.OK:
            await _refuse(answer, context)
        return infer_response(answer)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> Any:  # noqa: N802
        """Evaluations one after the other; one that is refused does not end the stream."""
        response = message("ModelStreamInferResponse")
        async for request in requests:
            answer = await self._infer(request, context)
            if answer.status == HTTPStatus.OK:
                yield response(infer_response=infer_response(answer))
            else:
                yield response(error_message=_text(answer))

    async def _infer(self, request: Any, context: Any) -> Answered:
        path = await _model(request.model_name, request.model_version, context)
        try:
            parts, head_bytes = infer_body(request)
        except LossdError as error:
            return Answered(error.status, {}, memoryview(orjson.dumps({"error": error.detail})))
        length = {HEADER_LENGTH.lower(): str(head_bytes)}
        return await self._ask(context, "POST", f"{path}/infer", *parts, **length)

    async def _good(self, context: Any, method: str, path: str, *parts: bytes) -> Any:
        """Document of an answer that must be good; ends the call if it is not."""
        answer = await self._ask(context, method, path, *parts)
        if answer.status != HTTPStatus.OK:
            await _refuse(answer, context)
        return orjson.loads(answer.body) if answer.body else {}

    async def _ask(
        self, context: Any, method: str, path: str, *parts: bytes, **headers: str
    ) -> Answered:
        forwarded = {
            name: value
            for name, value in context.invocation_metadata() or ()
            if name in _FORWARDED and isinstance(value, str)
        }
        asked = Asked(context.peer(), {**forwarded, **headers})
        return await ask(self._app, asked, method, f"{INFERENCE}{path}", parts)


async def _model(name: str, version: str, context: Any) -> str:
    """Path of a model."""
    if not name or "/" in name or "/" in version:
        text = f"Request for unknown model: '{name[:80]}' is not found"
        await context.abort(grpc.StatusCode.NOT_FOUND, text)
    return f"/models/{name}" + (f"/versions/{version}" if version else "")


async def _region(name: str, context: Any) -> str:
    """Path of a region of shared memory, or of all."""
    if "/" in name:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a region's name has no '/'")
    return "/systemsharedmemory" + (f"/region/{name}" if name else "")


async def _refuse(answer: Answered, context: Any) -> None:
    code = _CODES.get(HTTPStatus(answer.status), grpc.StatusCode.INVALID_ARGUMENT)
    await context.abort(code, _text(answer))


def _text(answer: Answered) -> str:
    text: str = orjson.loads(answer.body)["error"]
    return text


def _read(name: str, document: Any) -> Any:
    return json_format.ParseDict(
        document, message(name)(), ignore_unknown_fields=True, descriptor_pool=POOL
    )
