"""`application/json`: one document with the request and its tensors; the forms of a tensor."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lossd.losses.kinds import ACTIVATION_INPUTS
from lossd.protocols.arrays import SHOWN_CHARACTERS, Loc
from lossd.protocols.documents import parse_object
from lossd.protocols.files import Budget, Buffer, read_class_rles, read_npy, read_png, read_rle
from lossd_client.errors import (
    FieldError,
    InvalidInputError,
    MalformedBodyError,
    UnknownRefError,
)
from lossd_client.wire import Array, decode_tensor

Inputs = list[dict[str, Array]]

Find = Callable[[str], Array | None]
"""The caller's tensor that is kept under a ref, read-only; None where there is none."""


def find_nothing(_ref: str) -> None:
    """No tensor: where none are kept."""


class Sources(NamedTuple):
    """Where the tensors of one request come from."""

    budget: Budget
    find: Find = find_nothing


def read_json(body: Buffer, sources: Sources) -> tuple[dict[str, Any], Inputs]:
    """Request document without its inputs, and the inputs' tensors.

    Raises:
        MalformedBodyError: not JSON, not an object, or a tensor that is none.
        TooLargeError: lists or tensors take more than the budget.
        UnknownRefError: a ref names no tensor of the caller's.
    """
    document = parse_object(body, "the body", sources.budget)
    if "inputs" not in document:
        msg = "inputs: a request needs its tensors"
        raise InvalidInputError(msg)
    return document, read_inputs(document.pop("inputs"), sources)


def read_inputs(value: Any, sources: Sources) -> Inputs:
    """Input objects of a document's `inputs`: one object, or a list of them for several sizes."""
    objects = value if isinstance(value, list) else [value]
    if not objects or not all(isinstance(entry, Mapping) for entry in objects):
        msg = "inputs is an object of tensors by name, or a list of such objects"
        raise MalformedBodyError(msg)
    locs: list[Loc] = [("inputs", index) for index in range(len(objects))]
    if len(objects) == 1:
        locs = [("inputs",)]
    return [
        {name: read_input(tensor, (*loc, name), sources) for name, tensor in entry.items()}
        for loc, entry in zip(locs, objects, strict=True)
    ]


def read_input(value: Any, loc: Loc, sources: Sources) -> Array:
    """Tensor of the input that the last step of `loc` names."""
    array = read_tensor(value, loc, sources)
    # JSON has one kind of number: where all scores are whole, their list says so, but means floats.
    if loc[-1] in ACTIVATION_INPUTS and isinstance(value, list) and array.dtype == np.int64:
        return array.astype(np.float32)
    return array


def read_tensor(value: Any, loc: Loc, sources: Sources) -> Array:
    """Tensor in any of its JSON forms.

    Nested lists of numbers are float32 (int64 where all are integers); `{"dtype", "shape",
    "base64"}`; `{"ref"}`, one that is kept; `{"png"}` `[1, H, W]`; `{"npy"}` as it is; lists of
    either stacked on the sample axis; `{"rle"}`, one binary mask `[1, H, W]`, a list of them
    `[B, H, W]`, or with `labels` and `background` index masks `[B, H, W]`.
    """
    name = ".".join(str(step)[:40] for step in loc)
    if isinstance(value, list):
        return _nested(value, name)
    if not isinstance(value, dict):
        msg = f"{name} is neither a list nor an object: {str(value)[:40]!r}"
        raise MalformedBodyError(msg)
    if "base64" in value:
        return decode_tensor(value)
    if "ref" in value:
        return _kept(value["ref"], loc, name, sources)
    for key, read in _FORMS.items():
        if key in value:
            return read(value, name, sources.budget)
    msg = f"{name}: an object with one of base64, ref, {', '.join(_FORMS)} is expected, got "
    msg += f"{[key[:40] for key in sorted(value)[:6]]}"
    raise MalformedBodyError(msg)


def _nested(value: list[Any], name: str) -> Array:
    # Objects first: numpy would make room for the longest text in every element of a mixed list.
    objects = np.array(value, dtype=object)
    kinds = set(map(type, objects.reshape(-1).tolist()))
    if list in kinds:
        msg = f"{name}: the nested lists are ragged"
        raise MalformedBodyError(msg)
    if not kinds <= {bool, int, float}:
        msg = f"{name}: the nested lists hold something that is not a number"
        raise MalformedBodyError(msg)
    if kinds == {bool}:
        return objects.astype(np.bool_)
    try:
        with np.errstate(over="ignore"):  # infinite then, and refused where it counts
            return objects.astype(np.int64 if kinds and float not in kinds else np.float32)
    except OverflowError as error:
        msg = f"{name}: the nested lists hold an integer of more than 64 bits"
        raise MalformedBodyError(msg) from error


def _kept(ref: Any, loc: Loc, name: str, sources: Sources) -> Array:
    if not isinstance(ref, str):
        msg = f"{name}: a ref is the text that PUT /v1/tensors answered"
        raise MalformedBodyError(msg)
    array = sources.find(ref)
    if array is None:
        raise unknown_ref(ref, loc)
    # As if it had come with the request: each use may make as much again of it.
    sources.budget.take(array.nbytes, name)
    return array


def unknown_ref(ref: str, loc: Loc) -> UnknownRefError:
    """The error of a ref that names no tensor of the caller's, whoever else's it may name."""
    msg = f"no tensor is kept as {ref[:SHOWN_CHARACTERS]!r}; upload it again: PUT /v1/tensors"
    return UnknownRefError(msg, errors=[FieldError(loc, msg)])


def _png(value: dict[str, Any], name: str, budget: Budget) -> Array:
    many = value["png"] if isinstance(value["png"], list) else [value["png"]]
    return stacked([read_png(_bytes(text, name), name, budget) for text in many], name)


def _npy(value: dict[str, Any], name: str, budget: Budget) -> Array:
    given = value["npy"]
    if isinstance(given, list):
        arrays = [read_npy(_bytes(text, name), name, budget) for text in given]
        # numpy would widen all samples to the widest, which nothing has paid for.
        if len({array.dtype for array in arrays}) > 1:
            msg = f"{name}: the samples of one tensor have one dtype"
            raise InvalidInputError(msg)
        return stacked(arrays, name)
    return read_npy(_bytes(given, name), name, budget)


def _rle(value: dict[str, Any], name: str, budget: Budget) -> Array:
    given = value["rle"]
    if not isinstance(given, list):
        return read_rle(given, name, budget)[None]
    if "labels" not in value:
        return stacked([read_rle(mask, name, budget) for mask in given], name)
    labels, background = value["labels"], value.get("background", 0)
    lists = isinstance(labels, list) and all(isinstance(one, list) for one in [*given, *labels])
    if not lists or len(labels) != len(given):
        msg = f"{name}: rle and labels hold one list per sample each"
        raise MalformedBodyError(msg)
    return stacked(
        [
            read_class_rles(masks, classes, background, name, budget)
            for masks, classes in zip(given, labels, strict=True)
        ],
        name,
    )


_FORMS: dict[str, Callable[[dict[str, Any], str, Budget], Array]] = {
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
