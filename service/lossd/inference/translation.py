"""Messages of the protocol by gRPC as its bodies by HTTP, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from lossd.inference.asking import Answered, without_none
from lossd.inference.messages import message
from lossd.protocols.oip_wire import HEADER_LENGTH
from lossd_client.errors import MalformedBodyError

_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""The list that holds a datatype's elements where they are not raw bytes."""


def infer_body(request: Any) -> tuple[list[bytes], int]:
    """Parts of the body that asks the same by HTTP, and how long its head is.

    Raises:
        MalformedBodyError: tensors come in two ways, or their number is wrong.
    """
    raw = iter(request.raw_input_contents)
    blobs: list[bytes] = []
    inputs = [_input(one, raw, blobs, request) for one in request.inputs]
    if next(raw, None) is not None:
        raise MalformedBodyError(
            f"unexpected additional input data for model '{request.model_name}'"
        )
    head = orjson.dumps(
        {
            "id": request.id,
            "inputs": inputs,
            "outputs": [
                {"name": one.name, "parameters": _parameters(one.parameters)}
                for one in request.outputs
            ],
            "parameters": {**_parameters(request.parameters), "binary_data_output": True},
        }
    )
    return [head, *blobs], len(head)


def infer_response(answer: Answered) -> Any:
    """The message that says the same as a good answer by HTTP."""
    length = answer.headers.get(HEADER_LENGTH.lower())
    at = answer.body.nbytes if length is None else int(length)
    head = orjson.loads(answer.body[:at])
    response = message("ModelInferResponse")(
        model_name=head["model_name"],
        model_version=head["model_version"],
        id=head.get("id", ""),
    )
    for name, value in head.get("parameters", {}).items():
        response.parameters[name].string_param = value
    for output in head["outputs"]:
        response.outputs.add(
            name=output["name"], datatype=output["datatype"], shape=output["shape"]
        )
        # One in shared memory has a place in the row, too: clients count.
        nbytes = output.get("parameters", {}).get("binary_data_size", 0)
        response.raw_output_contents.append(bytes(answer.body[at : at + nbytes]))
        at += nbytes
    return response


def _input(one: Any, raw: Iterator[bytes], blobs: list[bytes], request: Any) -> dict[str, Any]:
    parameters = _parameters(one.parameters)
    entry: dict[str, Any] = {
        "name": one.name,
        "datatype": one.datatype,
        "shape": list(one.shape),
        "parameters": parameters,
    }
    if "shared_memory_region" in parameters:
        return entry
    if not request.raw_input_contents:
        kind = _CONTENTS.get(one.datatype)
        if kind is None:
            raise MalformedBodyError(
                f"{one.datatype[:40]} has no list of its own; input '{one.name[:80]}' comes as "
                "raw_input_contents"
            )
        return {**entry, "data": list(getattr(one.contents, kind))}
    if one.HasField("contents"):
        raise MalformedBodyError(
            "contents field must not be specified when using raw_input_contents for "
            f"'{one.name[:80]}' for model '{request.model_name[:80]}'"
        )
    blob = next(raw, None)
    if blob is None:
        raise MalformedBodyError(f"there are no raw_input_contents for '{one.name[:80]}'")
    blobs.append(blob)
    return {**entry, "parameters": {**parameters, "binary_data_size": len(blob)}}


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value.WhichOneof("parameter_choice") for name, value in given.items()}
    return {name: getattr(given[name], kind) for name, kind in without_none(found).items()}
