"""What `/docs` and `/openapi.json` say beyond the routes' own docstrings."""

from __future__ import annotations

from typing import Any

from lossd_client.errors import ERRORS
from lossd_client.wire import JSON, MULTIPART, PROBLEM, SAFETENSORS, EvaluateRequest

DESCRIPTION = (
    "Losses between predictions and masks, with gradients and per-pixel maps. One request "
    "evaluates any number of losses on one set of tensors and answers one value per sample."
)

_TENSOR = {
    "description": "A tensor: nested lists, or an object with dtype, shape and base64, or png, "
    "npy, rle.",
    "anyOf": [{"type": "array"}, {"type": "object"}],
}

_EXAMPLE = {
    "losses": ["dice", {"name": "focal", "params": {"gamma": 2.0}}],
    "task": "binary",
    "gradient": "total",
    "inputs": {"logits": [[[[2.0, -1.0], [0.5, -3.0]]]], "target": [[[1, 0], [1, 0]]]},
}


def _request_schema() -> dict[str, Any]:
    schema = EvaluateRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    choice = schema.pop("$defs")["LossChoice"]
    losses = schema["properties"]["losses"]
    losses["items"] = {"anyOf": [{"type": "string"}, choice]}
    inputs = {"type": "object", "additionalProperties": _TENSOR}
    schema["properties"]["inputs"] = {"anyOf": [inputs, {"type": "array", "items": inputs}]}
    schema["required"] = [*schema["required"], "inputs"]
    return schema


def _responses() -> dict[str, Any]:
    problems: dict[int, list[str]] = {}
    for code, error in ERRORS.items():
        problems.setdefault(error.status, []).append(f"{code}: {error.title()}")
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "200": {
            "description": "The answer, as JSON or as a safetensors file.",
            "content": {JSON: {"schema": {"type": "object"}}, SAFETENSORS: binary},
        },
        **{
            str(status): {"description": " · ".join(texts), "content": {PROBLEM: {}}}
            for status, texts in sorted(problems.items())
            if status
        },
    }


EVALUATE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": _request_schema(), "example": _EXAMPLE},
            SAFETENSORS: {"schema": {"type": "string", "format": "binary"}},
            MULTIPART: {"schema": {"type": "object"}},
        },
    },
    "responses": _responses(),
}
"""OpenAPI of `POST /v1/evaluate`, whose body no typed parameter describes."""
