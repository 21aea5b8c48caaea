"""What `/docs` and `/openapi.json` say of annotation QA beyond the routes' own docstrings."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from lossd.api_description import BINARY, TENSOR, responses
from lossd_client.qa_wire import (
    HISTOGRAM,
    LINES,
    PREDICTION,
    SUB_SCORES_TENSOR,
    TARGET,
    ContextDocument,
    ScoreAnswer,
    ScoreRequest,
    SuspicionAnswer,
    SuspicionRequest,
)
from lossd_client.wire import JSON, MULTIPART, SAFETENSORS

_INPUTS = {"type": "object", "additionalProperties": TENSOR}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Schema of a document, complete in itself."""
    schema: dict[str, Any] = _inlined(model.model_json_schema(), {})
    return schema


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with what it refers to in the places of the references."""
    if isinstance(schema, list):
        return [_inlined(entry, definitions) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    known = {**definitions, **schema.get("$defs", {})}
    if "$ref" in schema:
        return _inlined(known[schema["$ref"].rpartition("/")[2]], known)
    inlined = {key: _inlined(entry, known) for key, entry in schema.items() if key != "$defs"}
    if "prefixItems" in inlined:  # tuples here are of one type, and not every tool reads others
        inlined["items"] = inlined.pop("prefixItems")[0]
    return inlined


def _asking(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    schema = _schema(model)
    schema["properties"]["inputs"] = {"anyOf": [_INPUTS, {"type": "array", "items": _INPUTS}]}
    schema["required"] = [*schema.get("required", ()), "inputs"]
    return _body(schema, example)


def _body(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    return {
        "required": True,
        "content": {
            JSON: {"schema": schema, "example": example},
            SAFETENSORS: BINARY,
            MULTIPART: {"schema": {"type": "object"}},
        },
    }


_CONTEXT = {JSON: {"schema": _schema(ContextDocument)}}

QA_SCORE: dict[str, Any] = {
    "requestBody": _asking(
        ScoreRequest,
        {
            "class_names": ["ground", "nucleus"],
            "inputs": {PREDICTION: [[2.5, -1.5], [0.5, -3.5]], TARGET: [[1, 1], [1, 0]]},
        },
    ),
    "responses": responses(
        {
            "200": {
                "description": "The answer, as JSON, as a safetensors file or, if they are asked "
                "for, as lines: what is around `images`, then two for each image, its document "
                "without `regions`, and the list of its regions.",
                "content": {
                    JSON: {"schema": _schema(ScoreAnswer)},
                    SAFETENSORS: BINARY,
                    LINES: {"schema": {"type": "string"}},
                },
            }
        }
    ),
}
"""OpenAPI of `POST /v1/qa/score`."""

QA_SUSPICION: dict[str, Any] = {
    "requestBody": _asking(
        SuspicionRequest,
        {"context": "batch-7", "inputs": {SUB_SCORES_TENSOR: [[1.5, 2.5, 0.5]]}},
    ),
    "responses": responses(
        {
            "200": {
                "description": "The suspicions.",
                "content": {JSON: {"schema": _schema(SuspicionAnswer)}},
            }
        }
    ),
}
"""OpenAPI of `POST /v1/qa/suspicion`."""

QA_KEEP: dict[str, Any] = {
    "requestBody": _body(
        {
            "type": "object",
            "properties": {
                "tensors": {
                    "type": "object",
                    "properties": {HISTOGRAM: TENSOR, SUB_SCORES_TENSOR: TENSOR},
                    "required": [HISTOGRAM],
                }
            },
            "required": ["tensors"],
        },
        {"tensors": {HISTOGRAM: [[1, *[0] * 255], [2, *[0] * 255]]}},
    ),
    "responses": responses(
        {
            "200": {"description": "It took the place of one.", "content": _CONTEXT},
            "201": {"description": "It is kept.", "content": _CONTEXT},
        }
    ),
}
"""OpenAPI of `PUT /v1/qa/contexts/{name}`."""

QA_GIVE: dict[str, Any] = {
    "responses": responses({"200": {"description": "The context.", "content": _CONTEXT}})
}
"""OpenAPI of `GET /v1/qa/contexts/{name}`."""

QA_FORGET: dict[str, Any] = {"responses": responses({"204": {"description": "It is gone."}})}
"""OpenAPI of `DELETE /v1/qa/contexts/{name}`."""
