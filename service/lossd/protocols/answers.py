"""From an outcome to a body: JSON, or safetensors in parts that are never joined.

orjson writes null for a float that JSON has no number for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import orjson

from lossd_client.wire import (
    JSON,
    OCTET_STREAM,
    SAFETENSORS,
    Array,
    encode_safetensors,
    encode_tensor,
    numbered,
)

Encoding = Literal["json", "safetensors"]
Arrays = Literal["base64", "list"]


def write_safetensors(
    document: Mapping[str, Any], tensors: Mapping[str, Array]
) -> list[bytes | memoryview]:
    """Parts of the answer as a safetensors file."""
    return encode_safetensors(tensors, {"response": orjson.dumps(document).decode()})


def write_json(
    document: Mapping[str, Any], tensors: Mapping[str, Array], *, arrays: Arrays, parts: int
) -> list[bytes | memoryview]:
    """The answer as one JSON document; small tables are lists, tensors base64 unless asked.

    Args:
        document: what the answer says besides tensors.
        tensors: by wire name.
        arrays: how gradients and maps are written.
        parts: number of input objects; with several, gradients and maps are lists in their order.
    """
    answer: dict[str, Any] = {
        "losses": {},
        "total": _listed(tensors["total"]),
        **document,
    }

    def per_part(name: str) -> Any:
        written = [_tensor(tensors[numbered(index, name, parts)], arrays) for index in range(parts)]
        return written[0] if parts == 1 else written

    for name in _unnumbered(tensors, parts):
        kind, _, rest = name.partition("/")
        if kind == "loss":
            answer["losses"][rest] = _listed(tensors[name])
        elif kind in ("per_class", "statistics"):
            answer.setdefault(kind, {})[rest] = _listed(tensors[name])
        elif kind == "map":
            answer.setdefault("maps", {})[rest] = per_part(name)
        elif kind in ("gradient", "gradient_scale"):
            table = answer.setdefault("gradients" if kind == "gradient" else kind, {})
            source, _, label = rest.partition("/")
            if label:
                table.setdefault(source, {})[label] = per_part(name)
            else:
                table[source] = per_part(name)
    return [orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)]


def encoding_asked(accept: str, otherwise: Encoding) -> Encoding:
    """How an answer is written: as the `Accept` header asks, otherwise as said."""
    if SAFETENSORS in accept or OCTET_STREAM in accept:
        return "safetensors"
    return "json" if JSON in accept else otherwise


def media_type(encoding: Encoding) -> str:
    """Content type of an answer."""
    return "application/json" if encoding == "json" else SAFETENSORS


def _unnumbered(tensors: Mapping[str, Array], parts: int) -> list[str]:
    """Names without the number of their input object, each once."""
    if parts == 1:
        return list(tensors)
    names = (name.partition("/")[2] if name[0].isdecimal() else name for name in tensors)
    return list(dict.fromkeys(names))


def _tensor(array: Array, arrays: Arrays) -> Any:
    return encode_tensor(array) if arrays == "base64" and array.ndim > 1 else _listed(array)


def _listed(array: Array) -> Any:
    return array.astype("float64").tolist()
