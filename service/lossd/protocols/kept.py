"""Bodies of `PUT /v1/tensors`: tensors by name, in every encoding that a request may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lossd.protocols.arrays import Loc, native, refuse
from lossd.protocols.documents import parse
from lossd.protocols.files import Budget, Buffer
from lossd.protocols.json_body import Find, Sources, read_input, read_tensor
from lossd.protocols.multipart_body import read_form_tensors
from lossd.protocols.safetensors_body import read_safetensors_file
from lossd_client.errors import InvalidInputError, MalformedBodyError
from lossd_client.wire import JSON, MULTIPART, SAFETENSORS_CODES, Array, numbered

_ALONE = "tensor"
"""Name of a tensor that comes without one."""

_WIDENED = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}
"""Dtypes of files that the wire does not have."""


def read_tensors(
    body: Buffer, kind: str, content_type: str, budget: Budget, find: Find
) -> dict[str, Array]:
    """Tensors of a body by name, of dtypes that the wire has.

    Raises:
        MalformedBodyError: the body is not what its content type says.
        InvalidInputError: it holds no tensor, or one that is none of numbers.
        TooLargeError: it takes more than the budget.
        UnknownRefError: a ref names no tensor of the caller's.
    """
    sources = Sources(budget, find)
    if kind == MULTIPART:
        objects = read_form_tensors(body, content_type, sources.budget)
        count = len(objects)
        tensors = {
            numbered(index, name, count): array
            for index, entry in enumerate(objects)
            for name, array in entry.items()
        }
    elif kind == JSON:
        tensors = _read_json(body, sources)
    else:
        tensors, _ = read_safetensors_file(body, budget)
    if not tensors:
        msg = "tensors: there is none to keep"
        raise InvalidInputError(msg)
    return {name: _keepable(array, ("tensors", name)) for name, array in tensors.items()}


def _read_json(body: Buffer, sources: Sources) -> dict[str, Array]:
    document: Any = parse(body, "the body", sources.budget)
    if not isinstance(document, dict) or "tensors" not in document:
        return {_ALONE: read_tensor(document, (_ALONE,), sources)}
    tensors = document["tensors"]
    if not isinstance(tensors, Mapping):
        msg = "tensors is an object of tensors by name"
        raise MalformedBodyError(msg)
    return {name: read_input(value, ("tensors", name), sources) for name, value in tensors.items()}


def _keepable(array: Array, loc: Loc) -> Array:
    """The array in a dtype that it can be given back in."""
    array = native(array, loc)
    name = array.dtype.name
    if name in SAFETENSORS_CODES:
        return array
    if name not in _WIDENED or (array.size and int(array.max()) > np.iinfo(np.int64).max):
        refuse(loc, f"dtype {name} cannot be kept; use one of {', '.join(SAFETENSORS_CODES)}")
    return array.astype(_WIDENED[name])
