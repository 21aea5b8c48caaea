"""`application/json`: one document with the request and its tensors."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from lossd.protocols.files import read_class_rles, read_npy, read_png, read_rle
from lossd_client.errors import InvalidInputError, MalformedBodyError
from lossd_client.wire import Array, decode_tensor

Inputs = list[dict[str, Array]]


def read_json(body: bytes | bytearray, limit_bytes: int) -> tuple[dict[str, Any], Inputs]:
    """Request document without its inputs, and the inputs' tensors.

    Raises:
        MalformedBodyError: not JSON, not an object, or a tensor that is none.
        TooLargeError: a tensor unfolds to more than `limit_bytes`.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        msg = f"the body is not JSON: {error}"
        raise MalformedBodyError(msg) from error
    if not isinstance(document, dict):
        msg = "the body is not a JSON object"
        raise MalformedBodyError(msg)
    if "inputs" not in document:
        msg = "inputs: a request needs its tensors"
        raise InvalidInputError(msg)
    return document, read_inputs(document.pop("inputs"), limit_bytes)


def read_inputs(value: Any, limit_bytes: int) -> Inputs:
    """Input objects of a document's `inputs`: one object, or a list of them for several sizes."""
    objects = value if isinstance(value, list) else [value]
    if not objects or not all(isinstance(entry, Mapping) for entry in objects):
        msg = "inputs is an object of tensors by name, or a list of such objects"
        raise MalformedBodyError(msg)
    return [
        {name: read_tensor(tensor, f"inputs.{name}", limit_bytes) for name, tensor in entry.items()}
        for entry in objects
    ]


def read_tensor(value: Any, name: str, limit_bytes: int) -> Array:
    """Tensor in any of its JSON forms.

    Nested lists of numbers are float32 (int64 where all are integers); `{"dtype", "shape",
    "base64"}`; `{"png"}` `[1, H, W]`; `{"npy"}` as it is; lists of either stacked on the sample
    axis; `{"rle"}`, one binary mask `[1, H, W]`, a list of them `[B, H, W]`, or with `labels` and
    `background` index masks `[B, H, W]`.
    """
    if isinstance(value, list):
        return _nested(value, name)
    if not isinstance(value, dict):
        msg = f"{name} is neither a list nor an object: {str(value)[:40]!r}"
        raise MalformedBodyError(msg)
    if "base64" in value:
        return decode_tensor(value)
    for key, read in _FORMS.items():
        if key in value:
            return read(value, name, limit_bytes)
    msg = f"{name}: an object with one of base64, {', '.join(_FORMS)} is expected, got "
    msg += f"{sorted(value)[:6]}"
    raise MalformedBodyError(msg)


def _nested(value: list[Any], name: str) -> Array:
    try:
        array = np.array(value)
    except (ValueError, TypeError, OverflowError) as error:
        msg = f"{name}: the nested lists are ragged or hold something that is not a number"
        raise MalformedBodyError(msg) from error
    if array.dtype == object or array.dtype.kind not in "biuf":
        msg = f"{name}: the nested lists hold something that is not a number"
        raise MalformedBodyError(msg)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _png(value: dict[str, Any], name: str, limit_bytes: int) -> Array:
    many = value["png"] if isinstance(value["png"], list) else [value["png"]]
    return stacked([read_png(_bytes(text, name), name, limit_bytes) for text in many], name)


def _npy(value: dict[str, Any], name: str, limit_bytes: int) -> Array:
    given = value["npy"]
    if isinstance(given, list):
        return stacked([read_npy(_bytes(text, name), name, limit_bytes) for text in given], name)
    return read_npy(_bytes(given, name), name, limit_bytes)


def _rle(value: dict[str, Any], name: str, limit_bytes: int) -> Array:
    given = value["rle"]
    if not isinstance(given, list):
        return read_rle(given, name, limit_bytes)[None]
    if "labels" not in value:
        return stacked([read_rle(mask, name, limit_bytes) for mask in given], name)
    labels, background = value["labels"], value.get("background", 0)
    lists = isinstance(labels, list) and all(isinstance(one, list) for one in [*given, *labels])
    if not lists or len(labels) != len(given) or type(background) is not int:
        msg = f"{name}: rle and labels hold one list per sample each, background an integer"
        raise MalformedBodyError(msg)
    return stacked(
        [
            read_class_rles(masks, classes, background, name, limit_bytes)
            for masks, classes in zip(given, labels, strict=True)
        ],
        name,
    )


_FORMS: dict[str, Callable[[dict[str, Any], str, int], Array]] = {
    "png": _png,
    "npy": _npy,
    "rle": _rle,
}


def stacked(samples: list[Array], name: str) -> Array:
    """Samples of equal shape on a new first axis.

    Raises:
        InvalidInputError: they differ in shape, or there are none.
    """
    shapes = {sample.shape for sample in samples}
    if len(shapes) != 1:
        msg = f"{name}: the samples of one tensor have one shape, got {sorted(map(list, shapes))}; "
        msg += "for several sizes, make inputs a list"
        raise InvalidInputError(msg)
    return np.stack(samples)


def _bytes(text: Any, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        msg = f"{name} is not base64: {error}"
        raise MalformedBodyError(msg) from error
