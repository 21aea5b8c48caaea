"""The way of a body from its bytes to a job or a refusal, as `lossd.requests` walks it."""

from __future__ import annotations

from dataclasses import dataclass

from lossd.protocols.admission import RequestLimits, build_job, read_request
from lossd.protocols.files import Budget
from lossd.protocols.json_body import read_json
from lossd.protocols.multipart_body import read_multipart
from lossd.protocols.safetensors_body import read_safetensors_body
from lossd_client.errors import LossdError
from lossd_client.wire import JSON, MULTIPART, decode_safetensors, parse_json, split_numbered

UNFOLDED_BYTES = 1 << 20
LIMITS = RequestLimits(samples=64, classes=64)
ANSWER = "answer"
"""Kind of a body that the client reads."""
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
    budget = Budget(UNFOLDED_BYTES)
    data = bytearray(body.data)
    if body.kind == MULTIPART:
        document, inputs = read_multipart(data, body.content_type, budget)
    elif body.kind == JSON:
        document, inputs = read_json(data, budget)
    else:
        document, inputs = read_safetensors_body(data, budget)
    build_job(read_request(document), inputs, LIMITS)
    return "job"
