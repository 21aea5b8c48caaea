"""The way of a body from its bytes to a job or a refusal, as `lossd.requests` walks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lossd.callers import ANONYMOUS
from lossd.protocols.admission import RequestLimits, build_job, read_request
from lossd.protocols.files import Budget
from lossd.protocols.json_body import Sources, read_json
from lossd.protocols.kept import read_tensors
from lossd.protocols.multipart_body import read_multipart
from lossd.protocols.oip import build_inference
from lossd.protocols.oip_models import find_model
from lossd.protocols.oip_wire import NoRegions, read_infer
from lossd.protocols.safetensors_body import read_safetensors_body
from lossd.settings import Settings
from lossd.tensors import TensorStore
from lossd_client.errors import LossdError
from lossd_client.wire import (
    JSON,
    MULTIPART,
    Array,
    decode_safetensors,
    parse_json,
    split_numbered,
)

UNFOLDED_BYTES = 1 << 20
JSON_BYTES = 64 << 20
LIMITS = RequestLimits(samples=64, classes=64)
ANSWER = "answer"
"""Kind of a body that the client reads."""
KEEP = "keep"
"""Kind of a body with tensors to keep, in the encoding that its content type says."""
INFERENCE = "inference"
"""Kind of a body of the Open Inference Protocol; its content type says the model and the length of
its head: `inference; model=dice; head=120`."""
KEPT: Mapping[str, Array] = {
    "logits": np.linspace(-3, 3, 80, dtype=np.float32).reshape(2, 2, 4, 5),
    "target": (np.arange(40, dtype=np.uint8) % 2).reshape(2, 4, 5),
}
"""Tensors that are kept already, by ref."""
for _array in KEPT.values():
    _array.flags.writeable = False
_CLIENT_ERRORS = range(400, 500)
_MAX_DETAIL_CHARACTERS = 8192


@dataclass(frozen=True)
class Body:
    """Bytes with what their sender says they are."""

    kind: str
    content_type: str
    data: bytes


def outcome(body: Body) -> str:
    """`job`, or the code of the refusal.

    Raises:
        AssertionError: a refusal that is no 4xx, or repeats too much of the body.
    """
    try:
        return _read(body)
    except LossdError as error:
        if error.status not in _CLIENT_ERRORS:
            msg = f"a body was answered {error.status}: {error.detail[:200]}"
            raise AssertionError(msg) from error
        if len(error.detail) > _MAX_DETAIL_CHARACTERS:
            msg = f"a refusal of {len(error.detail)} characters: {error.detail[:200]}"
            raise AssertionError(msg) from error
        return error.code


def _read(body: Body) -> str:
    if body.kind == ANSWER:
        tensors, metadata = decode_safetensors(body.data)
        split_numbered(tensors)
        parse_json(metadata.get("response", ""), "response")
        return "job"
    sources = Sources(Budget(UNFOLDED_BYTES, JSON_BYTES), KEPT.get)
    data = bytearray(body.data)
    if body.kind == KEEP:
        return _keep(data, body.content_type, sources)
    if body.kind == INFERENCE:
        return _infer(data, body.content_type, sources)
    if body.kind == MULTIPART:
        document, inputs = read_multipart(data, body.content_type, sources)
    elif body.kind == JSON:
        document, inputs = read_json(data, sources)
    else:
        document, inputs = read_safetensors_body(data, sources)
    build_job(read_request(document), inputs, LIMITS)
    return "job"


def _keep(data: bytearray, content_type: str, sources: Sources) -> str:
    kind = content_type.partition(";")[0]
    tensors = read_tensors(data, kind, content_type, sources.budget, sources.find)
    store = TensorStore(Settings(max_tensor_mib=1))
    for name, kept in store.put(ANONYMOUS, tensors).items():
        entry = store.find(ANONYMOUS, kept.ref)
        if entry is None or entry.array.tobytes() != tensors[name].tobytes():
            msg = f"{name} is not kept as it came"
            raise AssertionError(msg)
    return "job"


def _infer(data: bytearray, content_type: str, sources: Sources) -> str:
    said = dict(step.split("=", 1) for step in content_type.split("; ")[1:])
    model = find_model(said["model"])
    asked = read_infer(data, said.get("head"), model.name, sources.budget, NoRegions())
    build_inference(asked, model, LIMITS, sources.budget)
    return "job"
