"""The HTTP face: routes, start and stop. No tensors, no rules."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio.to_thread
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from lossd import __version__
from lossd.access import Access, WithoutKey, find_caller
from lossd.accounting import Accounting
from lossd.api_description import ANY_ERROR, DESCRIPTION, EVALUATE, FORGET, GIVE, INDEX, KEEP
from lossd.api_qa import QA_FORGET, QA_GIVE, QA_KEEP, QA_SCORE, QA_SUSPICION
from lossd.catalogue import catalogue, describe
from lossd.cuda_memory import find_device
from lossd.device_tensors import DeviceTensors
from lossd.engine import Engine
from lossd.error_bodies import INFERENCE
from lossd.event_loop import watched_event_loop
from lossd.gauges import read_gauges
from lossd.keys import KeyFile
from lossd.metering import Metering
from lossd.oip_routes import inference_router
from lossd.pages.serving import DOCS_PATH, FILES_PATH, answer_file, answer_page, wants_page
from lossd.problems import answer_problem
from lossd.qa.contexts import ContextStore
from lossd.qa_calls import (
    answer_scores,
    answer_suspicions,
    describe_context,
    find_context,
    forget_context,
    keep_context,
)
from lossd.quotas import Quotas
from lossd.receiving import CODINGS, Arrivals
from lossd.requests import KeptTensors, answer_evaluation
from lossd.sending import PartsResponse
from lossd.settings import Settings
from lossd.shared_bodies import SharedMemoryAccess, parts_response
from lossd.shortcut import Shortcut
from lossd.sweeping import swept
from lossd.tensor_calls import describe_kept, forget_tensor, give_tensor, keep_tensors
from lossd.tensors import TensorStore
from lossd_client.errors import (
    LossdError,
    NotReadyError,
)
from lossd_client.qa_wire import CONTEXTS_PATH, SCORE_PATH, SUSPICION_PATH
from lossd_client.wire import (
    EVALUATE_PATH,
    JSON,
    MULTIPART,
    OCTET_STREAM,
    SAFETENSORS,
)

log = structlog.get_logger(__name__)


def create_app(settings: Settings, engine: Engine) -> FastAPI:
    """The application around an engine; starting it starts the engine, stopping it drains it.

    Raises:
        KeysError: the settings name a keys file that cannot be read.
    """
    kept = _kept_tensors(settings, engine)
    contexts = ContextStore(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        async with watched_event_loop(), swept(kept.store, contexts), _grpc(app, settings):
            yield
            engine.drain()
            ended = await anyio.to_thread.run_sync(engine.join)
        log.info("drained", complete=ended)

    app = FastAPI(
        title="lossd",
        version=__version__,
        description=DESCRIPTION,
        responses=ANY_ERROR,
        lifespan=lifespan,
        # FastAPI's own pages of calls load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        # `spans` writes the only ones, and FastAPI would look for a tracer with every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    quotas = Quotas(settings.default_allowance())
    shortcuts: dict[tuple[str, str], APIRoute] = {}
    app.add_middleware(Shortcut, routes=shortcuts)
    app.add_middleware(Metering, quotas=quotas, max_body_bytes=settings.max_body_mib << 20)
    # A single body of the largest size must always find room.
    app.state.arrivals = Arrivals(max(settings.max_arriving_mib, settings.max_body_mib) << 20)
    device = find_device(engine.device) if settings.shared_memory == "on" else None
    app.state.shared_memory = SharedMemoryAccess(settings, device)
    _add_access(app, settings)
    app.add_middleware(Accounting, tracing=engine.tracing)  # around the others: it answers, too
    app.add_exception_handler(LossdError, answer_problem)
    app.add_exception_handler(HTTPException, answer_problem)  # anything else: see Accounting
    shortcuts["POST", EVALUATE_PATH] = _add_evaluation(app, settings, engine, kept)
    _add_tensors(app, settings, kept.store)
    _add_qa_scores(app, settings, engine, kept.store, contexts)
    _add_qa_contexts(app, settings, kept.store, contexts)
    _add_catalogue(app)
    _add_page(app, engine)
    _add_operation(app, settings, engine, quotas, kept.store)
    # Not included: a router within the router would hide its addresses from errors and metrics.
    app.router.routes.extend(inference_router(settings, engine, app.state.shared_memory).routes)
    return app


@contextlib.asynccontextmanager
async def _grpc(app: FastAPI, settings: Settings) -> AsyncIterator[None]:
    """The other door to the same application, if there is to be one."""
    if settings.grpc_port is None:
        yield
        return
    from lossd.inference.server import grpc_serving  # noqa: PLC0415 - an extra

    async with grpc_serving(app, settings, app.state.check_key) as port:
        app.state.grpc_port = port
        yield


def _kept_tensors(settings: Settings, engine: Engine) -> KeptTensors:
    limit_bytes = settings.max_device_tensor_mib << 20 if engine.device.type == "cuda" else 0
    on_device = DeviceTensors(limit_bytes, lambda logits: logits.to(engine.device))
    return KeptTensors(TensorStore(settings, on_drop=on_device.forget), on_device)


def _add_access(app: FastAPI, settings: Settings) -> None:
    app.state.check_key = lambda _: None
    if settings.keys_file is not None:
        keys = KeyFile(settings.keys_file)
        without_key: WithoutKey = "anonymous" if settings.allow_anonymous else "refused"
        app.add_middleware(Access, keys=keys, without_key=without_key)
        # gRPC asks before a message arrives, and again as every request does.
        app.state.check_key = partial(find_caller, keys, without_key)


def _add_evaluation(
    app: FastAPI, settings: Settings, engine: Engine, kept: KeptTensors
) -> APIRoute:
    async def evaluate(request: Request) -> Response:
        """Losses, gradients, maps and statistics of the samples in the body."""
        written = await answer_evaluation(request, engine, settings, kept)
        request.state.samples = written.samples
        told = {"Server-Timing": written.stages.header()}
        return await parts_response(request, written.parts, written.media_type, told)

    route = APIRoute(
        EVALUATE_PATH,
        evaluate,
        methods=["POST"],
        openapi_extra=EVALUATE,
        response_class=Response,
    )
    app.router.routes.append(route)
    return route


def _add_tensors(app: FastAPI, settings: Settings, store: TensorStore) -> None:
    @app.put("/v1/tensors", openapi_extra=KEEP, response_class=Response)
    async def keep(request: Request) -> Response:
        """Keeps the tensors of the body for later requests, which name them by their refs."""
        kept = await keep_tensors(request, store, settings)
        document = describe_kept(kept)
        headers = {"Location": f"/v1/tensors/{document['ref']}"} if "ref" in document else {}
        status = 200 if all(one.was_there for one in kept.values()) else 201
        return JSONResponse(document, status, headers)

    @app.get("/v1/tensors/{ref}", openapi_extra=GIVE, response_class=Response)
    async def give(request: Request, ref: str) -> Response:
        """A tensor that the caller has kept, as JSON or as a safetensors file."""
        parts, media_type = await give_tensor(request, store, ref)
        return PartsResponse(parts, media_type, {})

    @app.delete("/v1/tensors/{ref}", openapi_extra=FORGET, status_code=204, response_class=Response)
    async def forget(request: Request, ref: str) -> Response:
        """Keeps a tensor no longer."""
        forget_tensor(request, store, ref)
        return Response(status_code=204)


def _add_qa_scores(
    app: FastAPI, settings: Settings, engine: Engine, store: TensorStore, contexts: ContextStore
) -> None:
    @app.post(SCORE_PATH, openapi_extra=QA_SCORE, response_class=Response)
    async def score(request: Request) -> Response:
        """Annotation QA: how suspicious the masks of the body are, where, and why."""
        written = await answer_scores(request, engine, settings, store, contexts)
        request.state.samples = written.samples
        told = {"Server-Timing": written.stages.header()}
        return await parts_response(request, written.parts, written.media_type, told)

    @app.post(SUSPICION_PATH, openapi_extra=QA_SUSPICION, response_class=Response)
    async def suspicion(request: Request) -> Response:
        """Annotation QA: suspicions of images whose sub-scores are known."""
        return JSONResponse(await answer_suspicions(request, store, contexts, settings))


def _add_qa_contexts(
    app: FastAPI, settings: Settings, store: TensorStore, contexts: ContextStore
) -> None:
    @app.put(f"{CONTEXTS_PATH}/{{name}}", openapi_extra=QA_KEEP, response_class=Response)
    async def keep_qa_context(request: Request, name: str) -> Response:
        """Keeps what the images of a data set have in common, under a name of the caller's."""
        said, was_there = await keep_context(request, store, contexts, settings, name)
        return JSONResponse(said.model_dump(), 200 if was_there else 201)

    @app.get(f"{CONTEXTS_PATH}/{{name}}", openapi_extra=QA_GIVE, response_class=Response)
    async def give_qa_context(request: Request, name: str) -> Response:
        """What is known of a context that the caller has kept."""
        context = find_context(request, contexts, name, ("path", "name"))
        return JSONResponse(describe_context(context, contexts).model_dump())

    @app.delete(
        f"{CONTEXTS_PATH}/{{name}}",
        openapi_extra=QA_FORGET,
        status_code=204,
        response_class=Response,
    )
    async def forget_qa_context(request: Request, name: str) -> Response:
        """Keeps a context no longer."""
        forget_context(request, contexts, name)
        return Response(status_code=204)


def _add_catalogue(app: FastAPI) -> None:
    @app.get("/v1/losses")
    def list_losses() -> list[dict[str, Any]]:
        """The catalogue of losses."""
        return catalogue()

    @app.get("/v1/losses/{name}")
    def get_loss(name: str) -> dict[str, Any]:
        """One loss of the catalogue, by its name or an alias."""
        return describe(name)


def _add_page(app: FastAPI, engine: Engine) -> None:
    @app.head("/", include_in_schema=False)
    @app.get("/", openapi_extra=INDEX, response_class=Response)
    async def index(request: Request) -> Response:
        """A page for people if `Accept` prefers HTML; otherwise where things are, as JSON."""
        if wants_page(request.scope["headers"]):
            return answer_page(request)
        said = {
            "name": "lossd",
            "version": __version__,
            "device": engine.device_name,
            "state": engine.describe(),
            "catalogue": "/v1/losses",
            "evaluate": EVALUATE_PATH,
            "tensors": "/v1/tensors",
            "inference": INFERENCE,
            "qa": SCORE_PATH,
            "limits": "/v1/limits",
            "docs": DOCS_PATH,
            "metrics": "/metrics",
        }
        return JSONResponse(said, headers={"Vary": "Accept"})

    async def page(request: Request) -> Response:
        """A file of the page at `/`."""
        return answer_file(request, request.path_params["name"])

    async def docs(request: Request) -> Response:
        """Every call, for people."""
        return answer_file(request, "docs.html")

    app.add_route(DOCS_PATH, docs, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_route(f"{FILES_PATH}{{name}}", page, methods=["GET", "HEAD"], include_in_schema=False)


def _add_operation(
    app: FastAPI, settings: Settings, engine: Engine, quotas: Quotas, store: TensorStore
) -> None:
    # Coroutines: they must answer while every worker thread reads a body.
    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """200 while the process is worth keeping."""
        if engine.state == "failed":
            msg = "the engine has failed; restart the process"
            raise NotReadyError(msg, retry_after_s=5.0)
        return {"status": "live"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        """200 if a job would be computed now."""
        if not engine.is_ready():
            raise NotReadyError(engine.describe(), retry_after_s=2.0)
        return {
            "status": "ready",
            "device": engine.device_name,
            "numerics_version": engine.numerics_version,
        }

    @app.get("/v1/limits")
    async def limits(request: Request) -> dict[str, Any]:
        """What a request may hold and how long it may take, and what the caller may use."""
        return {
            "body_bytes": settings.max_body_mib << 20,
            "json_bytes": settings.max_json_mib << 20,
            "tensor_bytes": store.budget_bytes(request.state.caller),
            "tensor_ttl_s": settings.tensor_ttl_s,
            "context_bytes": settings.key_context_mib << 20,
            "context_ttl_s": settings.context_ttl_s,
            "samples": settings.max_request_samples,
            "classes": settings.max_classes,
            "spatial_axes": [1, 3],
            "timeout_ms": settings.timeout_ms,
            "queue_samples": settings.max_queue_samples,
            "queue_bytes": settings.max_queue_mib << 20,
            "content_types": [JSON, SAFETENSORS, OCTET_STREAM, MULTIPART],
            "content_codings": list(CODINGS),
            "shared_memory": request.app.state.shared_memory.describe(request),
            "quotas": quotas.usage(request.state.caller).document(),
        }

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Prometheus text format."""
        read_gauges(engine)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
