"""What `/docs` and `/openapi.json` say beyond the routes' own docstrings."""

from __future__ import annotations

from typing import Any

from lossd_client.errors import ERRORS
from lossd_client.wire import JSON, MULTIPART, PROBLEM, SAFETENSORS, EvaluateRequest

DESCRIPTION = (
    "Losses between predictions and masks, with gradients and per-pixel maps. One request "
    "evaluates any number of losses on one set of tensors and answers one value per sample."
)

TENSOR = {
    "description": "A tensor: nested lists, or an object with dtype, shape and base64, or png, "
    "npy, rle, or with the ref of one that is kept.",
    "anyOf": [{"type": "array"}, {"type": "object"}],
}

_ENCODED = {
    "type": "object",
    "properties": {
        "dtype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "base64": {"type": "string", "description": "Row-major, little-endian."},
    },
    "required": ["dtype", "shape", "base64"],
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
    inputs = {"type": "object", "additionalProperties": TENSOR}
    schema["properties"]["inputs"] = {"anyOf": [inputs, {"type": "array", "items": inputs}]}
    schema["required"] = [*schema["required"], "inputs"]
    return schema


BINARY = {"schema": {"type": "string", "format": "binary"}}

_PROBLEM = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "loc": {
                        "type": "array",
                        "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                    },
                    "message": {"type": "string"},
                },
                "required": ["loc", "message"],
            },
        },
        "request_id": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail", "code", "errors", "request_id"],
}
_PROBLEM_CONTENT = {PROBLEM: {"schema": _PROBLEM}}

ANY_ERROR: dict[int | str, dict[str, Any]] = {
    "default": {"description": "Any error, as a problem document.", "content": _PROBLEM_CONTENT}
}
"""OpenAPI of what every call may be answered."""

_VALUES = {"type": "array", "items": {"type": ["number", "null"]}}
_ANSWER = {
    "type": "object",
    "properties": {
        "losses": {
            "type": "object",
            "description": "Value of each sample, by label.",
            "additionalProperties": _VALUES,
        },
        "total": _VALUES,
        "mean": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        "gradients": {"type": "object", "description": "By input."},
        "maps": {"type": "object", "description": "By label."},
        "per_class": {"type": "object", "description": "By label."},
        "statistics": {"type": "object", "description": "By name."},
        "warnings": {"type": "array", "items": {"type": "string"}},
        "timing_ms": {"type": "object", "additionalProperties": {"type": "number"}},
        "batch": {"type": "object", "additionalProperties": {"type": "integer"}},
        "device": {"type": "string"},
        "numerics_version": {"type": "string"},
        "request_id": {"type": "string"},
    },
    "required": [
        *("losses", "total", "mean", "warnings", "timing_ms", "batch"),
        *("device", "numerics_version", "request_id"),
    ],
}


def responses(good: dict[str, Any]) -> dict[str, Any]:
    """Good answers by status, and every error."""
    problems: dict[int, list[str]] = {}
    for code, error in ERRORS.items():
        problems.setdefault(error.status, []).append(f"{code}: {error.title()}")
    return {
        **good,
        **{
            str(status): {"description": " · ".join(texts), "content": _PROBLEM_CONTENT}
            for status, texts in sorted(problems.items())
            if status
        },
    }


EVALUATE: dict[str, Any] = {
    "parameters": [
        {
            "name": "arrays",
            "in": "query",
            "description": "How a JSON answer holds gradients and maps.",
            "schema": {"type": "string", "enum": ["base64", "list"], "default": "base64"},
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": _request_schema(), "example": _EXAMPLE},
            SAFETENSORS: {"schema": {"type": "string", "format": "binary"}},
            MULTIPART: {"schema": {"type": "object"}},
        },
    },
    "responses": responses(
        {
            "200": {
                "description": "The answer, as JSON or as a safetensors file.",
                "content": {JSON: {"schema": _ANSWER}, SAFETENSORS: BINARY},
            }
        }
    ),
}
"""OpenAPI of `POST /v1/evaluate`, whose body no typed parameter describes."""

_REF = {"type": "string", "description": "What names the tensor in later requests."}
_KEPT = {
    "type": "object",
    "properties": {
        "ref": _REF,
        "dtype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "nbytes": {"type": "integer"},
        "expires_in_s": {
            "type": "number",
            "description": "Seconds until it goes, unless it is used before.",
        },
    },
    "required": ["ref", "dtype", "shape", "nbytes", "expires_in_s"],
}
_KEPT_BY_NAME = {
    "type": "object",
    "properties": {
        "tensors": {"type": "object", "additionalProperties": _KEPT},
        "ref": {**_REF, "description": "The ref, if the body held one tensor."},
    },
    "required": ["tensors"],
}
_KEPT_CONTENT = {JSON: {"schema": _KEPT_BY_NAME}}

KEEP: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "anyOf": [
                        {
                            "type": "object",
                            "properties": {
                                "tensors": {"type": "object", "additionalProperties": TENSOR}
                            },
                            "required": ["tensors"],
                        },
                        TENSOR,
                    ]
                },
                "example": {"tensors": {"target": [[[1, 0], [1, 0]]]}},
            },
            SAFETENSORS: BINARY,
            MULTIPART: {"schema": {"type": "object"}},
        },
    },
    "responses": responses(
        {
            "200": {"description": "All were there already.", "content": _KEPT_CONTENT},
            "201": {"description": "They are kept.", "content": _KEPT_CONTENT},
        }
    ),
}
"""OpenAPI of `PUT /v1/tensors`."""

GIVE: dict[str, Any] = {
    "responses": responses(
        {
            "200": {
                "description": "The tensor.",
                "content": {JSON: {"schema": _ENCODED}, SAFETENSORS: BINARY},
            }
        }
    )
}
"""OpenAPI of `GET /v1/tensors/{ref}`."""

FORGET: dict[str, Any] = {"responses": responses({"204": {"description": "It is gone."}})}
"""OpenAPI of `DELETE /v1/tensors/{ref}`."""

INDEX: dict[str, Any] = {
    "responses": {
        "200": {
            "description": "Addresses by what is there, or a page for people.",
            "content": {
                JSON: {"schema": {"type": "object", "additionalProperties": {"type": "string"}}},
                "text/html": {"schema": {"type": "string"}},
            },
        }
    }
}
"""OpenAPI of `GET /`."""
