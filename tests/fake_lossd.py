"""A service that computes nothing worth knowing, for the tests of the client.

The value of loss number `k` (from 0) is `(k + 1) * mean(logits)`, its gradient `k + 1` everywhere.
Tensors in the document count where they are refs; it looks at no others.
"""

import asyncio
import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lossd_client._protocol import Reply
from lossd_client._protocol import Request as Sent
from lossd_client._transport import Cancellation
from lossd_client.wire import (
    NUMPY_DTYPES,
    SAFETENSORS,
    Array,
    decode_safetensors,
    dtype_name,
    encode_safetensors,
    numbered,
    split_numbered,
)

URL = "http://lossd.test"


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def tensors(self) -> dict[str, Array]:
        return decode_safetensors(self.body)[0]

    @property
    def document(self) -> dict[str, Any]:
        text = decode_safetensors(self.body)[1]["request"]
        document: dict[str, Any] = json.loads(text)
        return document


Scripted = httpx.Response | Exception


@dataclass
class FakeLossd:
    """Remembers what it is asked; answers what it is told to first, then by itself."""

    script: deque[Scripted] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    kept: dict[str, Array] = field(default_factory=dict)
    process: str = "first"

    def answer(self, seen: Seen) -> httpx.Response:
        self.seen.append(seen)
        if self.script:
            scripted = self.script.popleft()
            if isinstance(scripted, Exception):
                raise scripted
            # A response can be read once; a parametrised test scripts the same one again.
            return httpx.Response(
                scripted.status_code, headers=scripted.headers, content=scripted.content
            )
        if seen.path == "/v1/evaluate":
            return self._evaluate(seen)
        if seen.path.startswith("/v1/tensors"):
            return self._keep(seen)
        return FIXED.get(seen.path) or problem(404, "not_found")

    def _evaluate(self, seen: Seen) -> httpx.Response:
        written = seen.document.get("inputs")
        if written is None:
            return safetensors_response(*evaluate(seen, split_numbered(seen.tensors)))
        written = written if isinstance(written, list) else [written]
        refs = [each["ref"] for one in written for each in one.values() if "ref" in each]
        missing = [ref for ref in refs if ref not in self.kept]
        if missing:
            return unknown_ref(*missing)
        objects = [
            {
                **given,
                **{name: self.kept[each["ref"]] for name, each in one.items() if "ref" in each},
            }
            for given, one in zip(
                split_numbered(seen.tensors, count=len(written)), written, strict=True
            )
        ]
        return safetensors_response(*evaluate(seen, objects))

    def _keep(self, seen: Seen) -> httpx.Response:
        if seen.method == "PUT":
            (array,) = seen.tensors.values()
            ref = hashlib.sha256(self.process.encode() + seen.body).hexdigest()
            self.kept[ref] = array
            return kept_response(ref, array)
        ref = seen.path.removeprefix("/v1/tensors/")
        if ref not in self.kept:
            return unknown_ref(ref)
        if seen.method == "GET":
            parts = encode_safetensors({"tensor": self.kept[ref]}, {})
            return httpx.Response(
                200, content=b"".join(parts), headers={"Content-Type": SAFETENSORS}
            )
        del self.kept[ref]
        return httpx.Response(204)

    def transport(self) -> "FakeTransport":
        return FakeTransport(self.answer)


@dataclass
class FakeTransport:
    """Stands where sockets would; remembers whether it was closed."""

    respond: Callable[[Seen], httpx.Response]
    closed: bool = False

    def exchange(self, request: Sent, *, timeout_s: float, cancellation: Cancellation) -> Reply:
        assert timeout_s > 0
        assert isinstance(cancellation, Cancellation)
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen = Seen(request.method, request.path, headers, b"".join(request.parts))
        answer = self.respond(seen)
        return Reply(answer.status_code, answer.headers, bytearray(answer.content))

    def close(self) -> None:
        self.closed = True


FIXED = {
    "/v1/losses": httpx.Response(200, json=[{"name": "dice"}, {"name": "focal"}]),
    "/v1/limits": httpx.Response(200, json={"max_body_bytes": 1 << 30}),
    "/health/ready": httpx.Response(200, json={"ready": True}),
}


def kept_response(ref: str, array: Array) -> httpx.Response:
    entry = {
        "ref": ref,
        "dtype": dtype_name(array),
        "shape": list(array.shape),
        "nbytes": array.nbytes,
        "expires_in_s": 600.0,
    }
    return httpx.Response(201, json={"tensors": {"tensor": entry}, "ref": ref})


def unknown_ref(*refs: str) -> httpx.Response:
    entries = [{"loc": ["inputs"], "message": f"ref {ref} is not kept"} for ref in refs]
    return problem(404, "unknown_ref", errors=entries)


def problem(
    status: int, code: str, *, headers: Mapping[str, str] | None = None, **more: object
) -> httpx.Response:
    document = {"status": status, "code": code, "title": code, "detail": f"it is {code}", **more}
    content = json.dumps(document).encode()
    return httpx.Response(
        status,
        content=content,
        headers={"Content-Type": "application/problem+json", **(headers or {})},
    )


def safetensors_response(
    tensors: Mapping[str, Array], document: Mapping[str, object]
) -> httpx.Response:
    parts = encode_safetensors(tensors, {"response": json.dumps(document)})
    return httpx.Response(200, content=b"".join(parts), headers={"Content-Type": SAFETENSORS})


def answer_document(mean: Mapping[str, float | None], request_id: str = "r-1") -> dict[str, object]:
    return {
        "mean": dict(mean),
        "warnings": ["this is a fake"],
        "timing_ms": {"queue": 0.1, "compute": 0.2, "total": 0.4},
        "batch": {"samples": 2, "requests": 1},
        "device": "cpu",
        "numerics_version": "1",
        "request_id": request_id,
    }


def evaluate(
    seen: Seen, objects: list[dict[str, Array]]
) -> tuple[dict[str, Array], dict[str, object]]:
    document = seen.document
    labels = [loss.get("label") or loss["name"] for loss in document["losses"]]
    means = np.concatenate([_sample_means(each["logits"]) for each in objects])
    tensors = {f"loss/{label}": (k + 1) * means for k, label in enumerate(labels)}
    tensors["total"] = sum(tensors.values(), np.zeros_like(means))
    if document.get("per_class"):
        tensors["per_class/" + labels[0]] = np.ones((len(means), 2), np.float32)
    if document.get("statistics"):
        tensors["statistics/pixels"] = np.ones((len(means), 2), np.float32)
    for index, each in enumerate(objects):
        own = _own_tensors(document, labels, each["logits"])
        tensors |= {numbered(index, name, len(objects)): own[name] for name in own}
    request_id = seen.headers.get("x-request-id", "r-1")
    mean = {label: float(tensors[f"loss/{label}"].mean()) for label in labels}
    return tensors, answer_document(mean, request_id)


def _sample_means(logits: Array) -> Array:
    means: Array = logits.astype(np.float64).reshape(len(logits), -1).mean(axis=1)
    return means


def _own_tensors(document: Mapping[str, Any], labels: list[str], logits: Array) -> dict[str, Array]:
    dtype = document.get("gradient_dtype", "float32")
    paths = {"none": [], "total": [""], "each": ["/" + label for label in labels]}
    own: dict[str, Array] = {}
    for k, path in enumerate(paths[document.get("gradient", "none")]):
        half = dtype in ("float16", "bfloat16")
        scale = np.full(len(logits), 2.0**-10 if half else 1.0, np.float32)
        stored = np.full(logits.shape, (k + 1) / scale[0], np.float32)
        own["gradient/logits" + path] = stored.astype(NUMPY_DTYPES[dtype])
        if half:
            own["gradient_scale/logits" + path] = scale
    if document.get("maps"):
        own["map/" + labels[0]] = logits[:, 0].astype(np.float32)
    return own


@contextmanager
def serving(fake: FakeLossd) -> Iterator[str]:
    """The fake behind a real socket; gives its URL."""

    async def endpoint(request: Request) -> Response:
        body = await request.body()
        answer = fake.answer(Seen(request.method, request.url.path, request.headers, body))
        return Response(answer.content, answer.status_code, dict(answer.headers))

    routes = [Route("/{path:path}", endpoint, methods=["GET", "POST", "PUT", "DELETE"])]
    config = uvicorn.Config(
        Starlette(routes=routes), host="127.0.0.1", port=0, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
