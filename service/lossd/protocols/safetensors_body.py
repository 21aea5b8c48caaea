"""`application/vnd.safetensors`: a file of tensors whose metadata holds the request."""

from __future__ import annotations

from typing import Any

from lossd.protocols.documents import parse_object
from lossd.protocols.files import Budget
from lossd.protocols.json_body import Inputs, read_inputs
from lossd_client.errors import MalformedBodyError
from lossd_client.wire import decode_safetensors, split_numbered


def read_safetensors_body(body: bytes | bytearray, budget: Budget) -> tuple[dict[str, Any], Inputs]:
    """Request document without its inputs, and the inputs' tensors as views of the body.

    Raises:
        MalformedBodyError: not a safetensors file, or no request in its metadata.
        TooLargeError: the tensors in the document's own `inputs` unfold to more than the budget.
    """
    tensors, metadata = decode_safetensors(body)
    if "request" not in metadata:
        msg = '__metadata__ needs "request": the JSON text of the request without its tensors'
        raise MalformedBodyError(msg)
    document = parse_object(metadata["request"], "__metadata__.request")
    inputs = split_numbered(tensors)
    if "inputs" in document:
        written = read_inputs(document.pop("inputs"), budget)
        if len(written) != len(inputs):
            msg = f"the metadata has {len(written)} input objects, the tensors {len(inputs)}"
            raise MalformedBodyError(msg)
        inputs = [{**entry, **other} for entry, other in zip(inputs, written, strict=True)]
    return document, inputs
