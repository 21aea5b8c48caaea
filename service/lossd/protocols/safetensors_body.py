"""`application/vnd.safetensors`: a file of tensors whose metadata holds the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossd.protocols.arrays import SHOWN_CHARACTERS
from lossd.protocols.documents import parse_object
from lossd.protocols.files import Budget, Buffer
from lossd.protocols.json_body import Inputs, Sources, read_inputs
from lossd_client.errors import InvalidInputError, MalformedBodyError
from lossd_client.wire import Array, decode_safetensors, split_numbered

_LENGTH_BYTES = 8


def read_safetensors_body(body: Buffer, sources: Sources) -> tuple[dict[str, Any], Inputs]:
    """Request document without its inputs, and the inputs' tensors as views of the body.

    Raises:
        MalformedBodyError: not a safetensors file, or no request in its metadata.
        InvalidInputError: an input is both a tensor of the file and in the metadata.
        TooLargeError: the JSON, or the tensors in the document's own `inputs`, take more than the
            budget.
        UnknownRefError: a ref names no tensor of the caller's.
    """
    tensors, metadata = read_safetensors_file(body, sources.budget)
    if "request" not in metadata:
        msg = '__metadata__ needs "request": the JSON text of the request without its tensors'
        raise MalformedBodyError(msg)
    document = parse_object(metadata["request"], "__metadata__.request", sources.budget)
    if "inputs" not in document:
        return document, split_numbered(tensors)
    written = read_inputs(document.pop("inputs"), sources)
    return document, [
        joined(ours, theirs)
        for ours, theirs in zip(split_numbered(tensors, count=len(written)), written, strict=True)
    ]


def read_safetensors_file(body: Buffer, budget: Budget) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors, views of the body, and metadata of a file.

    Raises:
        MalformedBodyError: not a safetensors file.
        TooLargeError: its header takes more than the budget.
    """
    view = memoryview(body)
    header_bytes = int.from_bytes(view[:_LENGTH_BYTES], "little")
    budget.take_json(view[_LENGTH_BYTES:][:header_bytes], "the safetensors header")
    return decode_safetensors(body)


def joined(one: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs of one object that came in two ways.

    Raises:
        InvalidInputError: an input came in both.
    """
    for name in one:
        if name in other:
            msg = f"{name[:SHOWN_CHARACTERS]} is given twice, in the JSON and as a tensor or file"
            raise InvalidInputError(msg)
    return {**one, **other}
