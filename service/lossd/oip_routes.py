"""The routes of the Open Inference Protocol, which unmodified clients of Triton speak.

They stand in no OpenAPI document: the protocol is published elsewhere, and its errors are no
problem documents. Bodies are read as they come, since its clients name no content type.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from lossd import __version__
from lossd.direct_route import DirectRoute
from lossd.engine import Engine
from lossd.error_bodies import INFERENCE
from lossd.model_statistics import ModelStatistics
from lossd.oip_calls import Inferences, answer_infer
from lossd.oip_shared_memory import add_shared_memory
from lossd.protocols.oip_models import VERSION, find_model, model_names
from lossd.sending import PartsResponse
from lossd.settings import Settings
from lossd.shared_bodies import SharedMemoryAccess
from lossd_client.errors import MalformedBodyError, NotFoundError, NotSupportedError

_EXTENSIONS: Final = (
    "binary_tensor_data",
    "parameters",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
_NOT_READY: Final = 400  # what the protocol has for it


def inference_router(
    settings: Settings, engine: Engine, shared_memory: SharedMemoryAccess
) -> APIRouter:
    """All calls below `/v2`."""
    router = APIRouter(prefix=INFERENCE, include_in_schema=False)
    statistics = ModelStatistics()
    _add_server(router, engine, shared_memory)
    _add_models(router, settings, engine, statistics)
    _add_repository(router, engine)
    _add_infer(router, Inferences(engine, settings, statistics, shared_memory))
    add_shared_memory(router, settings, shared_memory)
    return router


def _add_server(router: APIRouter, engine: Engine, shared_memory: SharedMemoryAccess) -> None:
    # Coroutines, all of them: they must answer while every worker thread reads a body.
    @router.get("")
    async def server(request: Request) -> dict[str, Any]:
        """What the server is, and which extensions of the protocol it has for the caller."""
        extensions = list(_EXTENSIONS)
        if shared_memory.allows(request):
            extensions.append("system_shared_memory")
            if shared_memory.device is not None:
                extensions.append("cuda_shared_memory")
        return {"name": "lossd", "version": __version__, "extensions": extensions}

    @router.get("/health/live")
    async def live() -> Response:
        """200 while the process is worth keeping."""
        return Response(status_code=_NOT_READY if engine.state == "failed" else 200)

    @router.get("/health/ready")
    async def ready() -> Response:
        """200 if a job would be computed now."""
        return Response(status_code=200 if engine.is_ready() else _NOT_READY)


def _add_models(
    router: APIRouter, settings: Settings, engine: Engine, statistics: ModelStatistics
) -> None:
    # Before those of a model of that name.
    @router.get("/models/stats")
    async def all_statistics() -> dict[str, Any]:
        """What every model has done."""
        return {"model_stats": [statistics.document(name, VERSION) for name in model_names()]}

    @router.get("/models/{name}")
    @router.get("/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        """Inputs and outputs of a model."""
        return find_model(name, version).metadata()

    @router.get("/models/{name}/ready")
    @router.get("/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        """200 if the model could be asked now.

        Raises:
            MalformedBodyError: it could not, which the protocol answers with 400.
        """
        try:
            find_model(name, version)
        except NotFoundError as error:
            raise MalformedBodyError("Model version not ready") from error
        if not engine.is_ready():
            raise MalformedBodyError("Model version not ready")
        return Response()

    @router.get("/models/{name}/config")
    @router.get("/models/{name}/versions/{version}/config")
    async def config(name: str, version: str | None = None) -> dict[str, Any]:
        """The same with what a batch may hold."""
        return find_model(name, version).config(settings.max_request_samples)

    @router.get("/models/{name}/stats")
    @router.get("/models/{name}/versions/{version}/stats")
    async def model_statistics(name: str, version: str | None = None) -> dict[str, Any]:
        """What a model has done."""
        model = find_model(name, version)
        return {"model_stats": [statistics.document(model.name, VERSION)]}


def _add_repository(router: APIRouter, engine: Engine) -> None:
    @router.post("/repository/index")
    async def index() -> JSONResponse:
        """Every model; all of them are always there."""
        state = {"state": "READY" if engine.is_ready() else "UNAVAILABLE"}
        reason = {"reason": "" if engine.is_ready() else engine.describe()}
        return JSONResponse(
            [{"name": name, "version": VERSION, **state, **reason} for name in model_names()]
        )

    @router.post("/repository/models/{name}/load")
    async def load(request: Request, name: str) -> Response:
        """Nothing, since the model is there.

        Raises:
            NotFoundError: it is not.
            NotSupportedError: it is to be another one.
        """
        find_model(name)
        if request.headers.get("content-length", "0") not in ("0", "2"):
            raise NotSupportedError("models are part of the service and take no configuration")
        return Response()

    @router.post("/repository/models/{name}/unload")
    async def unload(name: str) -> Response:
        """Nothing that could be.

        Raises:
            NotSupportedError: always.
        """
        find_model(name)
        raise NotSupportedError(f"failed to unload '{name}', models are part of the service")


def _add_infer(router: APIRouter, inferences: Inferences) -> None:
    async def infer(request: Request) -> Response:
        """Losses, gradients, maps and statistics of the samples in the body."""
        where = request.path_params
        answer = await answer_infer(request, inferences, where["name"], where.get("version"))
        request.state.samples = answer.samples
        return PartsResponse(answer.parts, answer.media_type, answer.headers)

    for path in ("/models/{name}/infer", "/models/{name}/versions/{version}/infer"):
        router.add_api_route(
            path, infer, methods=["POST"], response_class=Response, route_class_override=DirectRoute
        )
