"""The wire format of lossd: names, dtypes, the request document and tensor containers.

A safetensors body is

    8 bytes   length H of the header, unsigned little-endian
    H bytes   JSON {name: {"dtype", "shape", "data_offsets": [begin, end]},
                    "__metadata__": {"request" | "response": JSON text}}, padded with spaces
    rest      the tensors' bytes, row-major little-endian, offsets counted from here

and a tensor inside JSON is `{"dtype", "shape", "base64"}`. Request tensors carry the input's
name (`logits`); answer tensors are `loss/<label>`, `total`, `gradient/<input>[/<label>]`,
`gradient_scale/<input>[/<label>]`, `map/<label>`, `per_class/<label>` and `statistics/<name>`.
Where a request holds several input objects, the names of inputs, gradients, scales and maps are
preceded by the object's number: `0/logits`, `1/gradient/logits`.

This module knows neither HTTP nor torch; service and client both import it, so that there is
one format.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import reprlib
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lossd_client.errors import MalformedBodyError

Array = np.ndarray[Any, np.dtype[Any]]
Json = Any
"""A JSON value from outside, before it is looked at."""

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
OCTET_STREAM = "application/octet-stream"
MULTIPART = "multipart/form-data"
PROBLEM = "application/problem+json"

EVALUATE_PATH = "/v1/evaluate"
REQUEST_ID_HEADER = "X-Request-ID"
SHARED_MEMORY_HEADER = "Lossd-Shared-Memory"
"""Where the body of a request is, `name; body=bytes`, and how many bytes its answer has there."""

SAFETENSORS_CODES: dict[str, str] = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
"""The dtypes of the wire and their safetensors names."""

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    for name in SAFETENSORS_CODES
}
_NAME_OF_DTYPE = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
_DTYPE_OF_CODE = {code: NUMPY_DTYPES[name] for name, code in SAFETENSORS_CODES.items()}

_COMPACT = json.JSONEncoder(separators=(",", ":"))
_HEADER_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 16 << 20
_KEPT_HEADER_BYTES = 4096
_KEPT_NAMES_CHARACTERS = 1024
_ALIGNMENT_BYTES = 64
_MAX_AXES = 8
_SHOWN_CHARACTERS = 80  # how much of what was sent an error repeats
_MAX_ELEMENTS = 1 << 48

Gradient = Literal["none", "total", "each"]
GradientDtype = Literal["float16", "bfloat16", "float32", "float64"]
Task = Literal["binary", "multiclass", "multilabel"]
Aggregate = Literal["sample", "batch"]
Preset = Literal["monai", "smp", "nnunet", "torch"]


PixelSize = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LossChoice(_Document):
    """One loss of a request: which, with what parameters, how much it counts in `total`."""

    name: Annotated[str, Field(max_length=64)]
    params: dict[str, Any] = Field(default_factory=dict)
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    label: Annotated[str, Field(max_length=256)] = ""
    """Name of this row in the answer; the loss's name if empty."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @property
    def row(self) -> str:
        """Label under which the answer reports this loss."""
        return self.label or self.name


class EvaluateRequest(_Document):
    """Everything a request says besides its tensors."""

    losses: Annotated[list[LossChoice], Field(min_length=1, max_length=64)]
    task: Task | None = None
    ignore_index: int | None = None
    gradient: Gradient = "none"
    gradient_dtype: GradientDtype | None = None
    maps: bool = False
    per_class: bool = False
    statistics: bool = False
    aggregate: Aggregate = "sample"
    spacing: Annotated[list[PixelSize], Field(min_length=1, max_length=3)] | None = None
    """Physical size of a pixel along each spatial axis, for distances."""
    preset: Preset | None = None
    """Library whose conventions hold where no parameter is given."""
    timeout_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _labels_differ(self) -> EvaluateRequest:
        rows = [loss.row for loss in self.losses]
        twice = sorted({row for row in rows if rows.count(row) > 1})
        if twice:
            msg = f"labels must differ, but {twice} occur more than once; give each its 'label'"
            raise ValueError(msg)
        if any("/" in row for row in rows):
            msg = "a label must not contain '/'"
            raise ValueError(msg)
        return self


class Timing(_Document):
    """Where the time of a request went, in milliseconds."""

    queue: float
    compute: float
    total: float


class BatchInfo(_Document):
    """With how much company a request was computed."""

    samples: int
    requests: int


class FilledPreset(BaseModel):
    """What a preset filled in where the request gave no parameter."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    filled: dict[str, dict[str, Any]]
    """Parameters by label of the loss."""
    aggregate: str | None = None
    """The aggregate that the preset chose; None where it left it."""


class AnswerDocument(BaseModel):
    """Everything an answer says besides its tensors."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    mean: dict[str, float | None]
    warnings: list[str]
    preset: FilledPreset | None = None
    timing_ms: Timing
    batch: BatchInfo
    device: str
    numerics_version: str
    request_id: str


def dtype_name(array: Array) -> str:
    """Name of an array's dtype on the wire.

    Raises:
        TypeError: the dtype cannot travel.

    Example:
        >>> dtype_name(np.zeros(2, np.float16))
        'float16'
    """
    name = _NAME_OF_DTYPE.get(array.dtype)
    if name is None:
        name = array.dtype.name  # a byte order of its own is of no account
    if name not in SAFETENSORS_CODES:
        msg = f"dtype {name} cannot be sent; use one of {', '.join(SAFETENSORS_CODES)}"
        raise TypeError(msg)
    return name


def view_bytes(array: Array) -> memoryview:
    """The array's bytes, row-major little-endian, without a copy where it lies so already."""
    flat = np.ascontiguousarray(array)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    if flat.size and flat.dtype != NUMPY_DTYPES["bfloat16"]:
        return flat.data.cast("B")
    return flat.reshape(-1).view(np.uint8).data  # what memoryview has no word for


def encode_tensor(array: Array) -> dict[str, Any]:
    """JSON object for a tensor of any shape.

    Example:
        >>> encode_tensor(np.array([1.0, 2.0], np.float16))
        {'dtype': 'float16', 'shape': [2], 'base64': 'ADwAQA=='}
    """
    return {
        "dtype": dtype_name(array),
        "shape": list(array.shape),
        "base64": base64.b64encode(view_bytes(array)).decode("ascii"),
    }


def decode_tensor(document: Mapping[str, Any]) -> Array:
    """Tensor of a JSON object `{"dtype", "shape", "base64"}`.

    Raises:
        MalformedBodyError: a key is missing, the dtype is unknown, or shape and bytes disagree.

    Example:
        >>> decode_tensor({"dtype": "uint8", "shape": [1, 2], "base64": "AQI="})
        array([[1, 2]], dtype=uint8)
    """
    try:
        dtype = NUMPY_DTYPES[document["dtype"]]
        shape = _checked_shape(document["shape"])
        raw = base64.b64decode(document["base64"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        msg = f"a tensor needs dtype, shape and base64: {_reason(error)}"
        raise MalformedBodyError(msg) from error
    return _view(memoryview(raw), dtype, shape)


def encode_safetensors(
    tensors: Mapping[str, Array], metadata: Mapping[str, str]
) -> list[bytes | memoryview]:
    """Parts of a safetensors body; joined they are the file, but nothing needs to join them.

    Args:
        tensors: arrays of wire dtypes by name, any shape.
        metadata: the file's `__metadata__`.

    Returns:
        The header, then one view per tensor in the given order.
    """
    facts = tuple(
        [
            (name, SAFETENSORS_CODES[dtype_name(array)], array.shape)
            for name, array in tensors.items()
        ]
    )
    # Tensors of the same names and shapes leave again and again.
    is_short = sum([len(name) for name in tensors]) <= _KEPT_NAMES_CHARACTERS
    entries = _kept_entries(facts) if is_short else _entries(facts)
    # The encoder has a quick way for texts, and none for objects.
    encode = _COMPACT.encode
    said = ",".join([f"{encode(key)}:{encode(value)}" for key, value in metadata.items()])
    text = f'{{"__metadata__":{{{said}}}{entries}}}'.encode()
    text += b" " * (-(len(text) + _HEADER_LENGTH.size) % _ALIGNMENT_BYTES)
    return [_HEADER_LENGTH.pack(len(text)) + text, *map(view_bytes, tensors.values())]


def decode_safetensors(
    body: bytes | bytearray | memoryview,
) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors (views of the body, no copies) and metadata of a safetensors file.

    Raises:
        MalformedBodyError: lengths, names, dtypes or offsets do not describe this body.
    """
    view = memoryview(body)
    text = _header_text(view)
    data = view[_HEADER_LENGTH.size + len(text) :]
    # Callers send bodies of the same shapes again and again.
    header = _kept_header(text) if len(text) <= _KEPT_HEADER_BYTES else _parsed_header(text)
    tensors: dict[str, Array] = {}
    for entry in header.entries:
        if entry.end > data.nbytes:
            raise MalformedBodyError(_outside(entry.name, entry.begin, entry.end, data.nbytes))
        raw = data[entry.begin : entry.end]
        tensors[entry.name] = _view(raw, entry.dtype, entry.shape, name=entry.name)
    if header.filled_bytes != data.nbytes:
        msg = f"the tensors do not fill the {data.nbytes} bytes after the header exactly once"
        raise MalformedBodyError(msg)
    return tensors, dict(header.metadata)


def numbered(index: int, name: str, count: int) -> str:
    """Wire name of a tensor of the input object `index` out of `count`.

    Example:
        >>> numbered(0, "logits", 1), numbered(1, "gradient/logits", 2)
        ('logits', '1/gradient/logits')
    """
    return name if count == 1 else f"{index}/{name}"


def split_numbered(
    tensors: Mapping[str, Array], *, count: int | None = None
) -> list[dict[str, Array]]:
    """Input objects of a flat table of tensors; one object where the names carry no number.

    Args:
        tensors: tensors by their name in the file.
        count: how many objects there are, of which some may have no tensor here; as many as the
            names say if None.

    Raises:
        MalformedBodyError: some names carry a number and others not, numbers are missing, or
            there are more objects than `count`.

    Example:
        >>> split_numbered({"1/target": np.zeros(2)}, count=2)
        [{}, {'target': array([0., 0.])}]
    """
    objects: dict[int, dict[str, Array]] = {}
    for name, array in tensors.items():
        number, slash, rest = name.partition("/")
        if slash and number.isdecimal() and len(number) <= 6:  # noqa: PLR2004 - a bound on int()
            objects.setdefault(int(number), {})[rest] = array
        else:
            objects.setdefault(-1, {})[name] = array
    if set(objects) <= {-1} and count in (None, 1):
        return [objects.get(-1, {})]
    expected = range(len(objects) if count is None else count)
    if not (objects.keys() <= set(expected) if count else sorted(objects) == list(expected)):
        msg = "tensors of several input objects are named 0/logits, 0/target, 1/logits, …"
        raise MalformedBodyError(msg)
    return [objects.get(index, {}) for index in expected]


def parse_json(text: str | bytes, what: str) -> Json:
    """Value of a JSON text that arrived from outside.

    Raises:
        MalformedBodyError: it is not JSON; the message says which text (`what`) and where.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{what} is not JSON: {error}"
        raise MalformedBodyError(msg) from error


def _checked_shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > _MAX_AXES:
        msg = f"shape {reprlib.repr(value)} is not a list of at most {_MAX_AXES} sizes"
        raise ValueError(msg)
    sizes_ok = all(type(size) is int and 0 <= size < _MAX_ELEMENTS for size in value)
    # numpy refuses such a shape even where a size of 0 leaves nothing to hold
    if not sizes_ok or math.prod(max(size, 1) for size in value) >= _MAX_ELEMENTS:
        msg = f"shape {reprlib.repr(value)} holds something that is not a size"
        raise ValueError(msg)
    return tuple(value)


def _view(raw: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], name: str = "") -> Array:
    want = math.prod(shape) * dtype.itemsize
    if raw.nbytes != want:
        where = f"tensor {name[:_SHOWN_CHARACTERS]!r}: " if name else ""
        msg = f"{where}shape {list(shape)} of {dtype.name} takes {want} bytes, got {raw.nbytes}"
        raise MalformedBodyError(msg)
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


class _Entry(NamedTuple):
    """A tensor of a safetensors header."""

    name: str
    begin: int
    end: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class _Header(NamedTuple):
    """A safetensors header, as far as it can be checked without the bytes behind it."""

    entries: tuple[_Entry, ...]
    metadata: Mapping[str, str]
    filled_bytes: int
    """What the tensors take together; -1 if two of them overlap."""


def _header_text(view: memoryview) -> bytes:
    if view.nbytes < _HEADER_LENGTH.size:
        msg = f"a safetensors body starts with an 8-byte length, got {view.nbytes} bytes"
        raise MalformedBodyError(msg)
    (length,) = _HEADER_LENGTH.unpack_from(view)
    if length > min(_MAX_HEADER_BYTES, view.nbytes - _HEADER_LENGTH.size):
        msg = f"the safetensors header claims {length} bytes, more than there are or are allowed"
        raise MalformedBodyError(msg)
    return bytes(view[_HEADER_LENGTH.size : _HEADER_LENGTH.size + length])


def _entries(facts: tuple[tuple[str, str, tuple[int, ...]], ...]) -> str:
    """What a header says of tensors of these names, dtypes and shapes, behind its metadata."""
    offset = 0
    texts: list[str] = []
    for name, code, shape in facts:
        end = offset + math.prod(shape) * _DTYPE_OF_CODE[code].itemsize
        entry = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        texts.append(f",{_COMPACT.encode(name)}:{_COMPACT.encode(entry)}")
        offset = end
    return "".join(texts)


_kept_entries = lru_cache(maxsize=512)(_entries)


def _parsed_header(text: bytes) -> _Header:
    header = parse_json(text, "the safetensors header")
    if not isinstance(header, dict):
        msg = "the safetensors header is not a JSON object"
        raise MalformedBodyError(msg)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        msg = "__metadata__ of a safetensors file maps names to text"
        raise MalformedBodyError(msg)
    entries = tuple(_entry(name, entry) for name, entry in header.items())
    spans = [(entry.begin, entry.end) for entry in entries]
    filled_bytes = -1 if _overlap(spans) else sum(end - begin for begin, end in spans)
    return _Header(entries, metadata, filled_bytes)


_kept_header = lru_cache(maxsize=512)(_parsed_header)


def _entry(name: str, entry: Json) -> _Entry:
    try:
        begin, end = entry["data_offsets"]
        dtype = _DTYPE_OF_CODE[entry["dtype"]]
        shape = _checked_shape(entry["shape"])
    except (KeyError, TypeError, ValueError) as error:
        shown = name[:_SHOWN_CHARACTERS]
        msg = f"tensor {shown!r} needs dtype, shape and data_offsets: {_reason(error)}"
        raise MalformedBodyError(msg) from error
    if not (type(begin) is int and type(end) is int and 0 <= begin <= end):
        raise MalformedBodyError(_outside(name, begin, end, None))
    return _Entry(name, begin, end, dtype, shape)


def _outside(name: str, begin: object, end: object, nbytes: int | None) -> str:
    offsets = reprlib.repr([begin, end])
    body = "body" if nbytes is None else f"body's {nbytes} bytes"
    return f"tensor {name[:_SHOWN_CHARACTERS]!r}: data_offsets {offsets} lie outside the {body}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {str(error)[:_SHOWN_CHARACTERS]}"


def _overlap(spans: list[tuple[int, int]]) -> bool:
    ordered = sorted(span for span in spans if span[0] < span[1])
    return any(after[0] < before[1] for before, after in pairwise(ordered))
