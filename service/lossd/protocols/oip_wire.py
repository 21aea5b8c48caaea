"""Open Inference Protocol v2 over HTTP: an infer body to tensors and back; knows no losses.

A body is a JSON head, then the binary inputs one after another in the order of `inputs`, row-major
and little-endian. `Inference-Header-Content-Length` says how long the head is; without it the whole
body is the head. Errors have the texts that Triton gives them, since people look for those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol

import numpy as np
import orjson

from lossd.protocols.arrays import SHOWN_CHARACTERS
from lossd.protocols.documents import parse_object
from lossd.protocols.files import Budget, Buffer
from lossd_client.errors import MalformedBodyError, NotSupportedError
from lossd_client.wire import NUMPY_DTYPES, Array, dtype_name, view_bytes

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
"""The field of a head that says how much of a body is JSON."""

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": NUMPY_DTYPES["bfloat16"],
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""numpy's dtype for each datatype of the protocol but BYTES, which no tensor here is."""

DATATYPES: Final = {
    name: datatype
    for name, wanted in NUMPY_DTYPES.items()
    for datatype, dtype in DTYPES.items()
    if dtype == wanted
}
"""The protocol's datatype for each dtype of the wire."""

_MAX_AXES: Final = 8
_MAX_ELEMENTS: Final = 1 << 48
_MAX_DIGITS: Final = 18
_MAX_ID_CHARACTERS: Final = 128


@dataclass(frozen=True)
class Place:
    """Bytes of a region of shared memory that its owner registered under a name."""

    region: str
    offset: int
    nbytes: int


class Regions(Protocol):
    """Shared memory that a caller registered."""

    def read(self, place: Place, budget: Budget) -> memoryview:
        """A private copy of the bytes there.

        Raises:
            LossdError: there is no such region of the caller's, or it is smaller.
        """


class NoRegions:
    """Where none can be registered."""

    def read(self, place: Place, budget: Budget) -> memoryview:
        """Nothing.

        Raises:
            NotSupportedError: always.
        """
        del place, budget
        raise NotSupportedError("shared memory is not allowed here")


@dataclass(frozen=True)
class InferInput:
    """One input as it came: its bytes are not yet compared with its shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: memoryview | None
    """Its bytes; None where `values` has it."""
    values: Array | None = None
    place: Place | None = None
    """Where its bytes were copied from; None if they came in the body."""


@dataclass(frozen=True)
class InferOutput:
    """One output that is asked for, and how it is to come."""

    name: str
    binary: bool | None = None
    """None: as the request's `binary_data_output` says."""
    place: Place | None = None


@dataclass(frozen=True)
class InferRequest:
    """One infer call, however it came."""

    id: str | None
    inputs: tuple[InferInput, ...]
    outputs: tuple[InferOutput, ...]
    """Empty: all that there are."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    binary_output: bool = False

    @property
    def prefix(self) -> str:
        """What Triton writes before errors about a whole request."""
        return f"[request id: {self.id or '<id_unknown>'}] "

    def place_of(self, name: str) -> Place | None:
        """Where an output is to be written; None if it travels in the answer."""
        return next((one.place for one in self.outputs if one.name == name), None)


def read_infer(
    body: Buffer, head_bytes: str | None, model: str, budget: Budget, regions: Regions
) -> InferRequest:
    """The request of a body; binary inputs are views of it.

    Args:
        body: the whole body, unfolded.
        head_bytes: what `Inference-Header-Content-Length` says; None if it is absent.
        model: its name, for errors.
        budget: of the JSON and of what lists and shared memory become.
        regions: shared memory that inputs may name.

    Raises:
        MalformedBodyError: it is no infer request.
        TooLargeError: the JSON, its lists or the shared memory take more than the budget.
    """
    view = memoryview(body)
    length = _head_length(head_bytes, view.nbytes)
    document = _head(view[:length], budget)
    reader = _Reader(view[length:], model, budget, regions)
    inputs = tuple(reader.read(entry) for entry in _objects(document, "inputs"))
    if length:  # else the body is the bytes of an only input, and no model here has one
        reader.check_end()
    parameters = _parameters(document, "the request")
    binary = parameters.pop("binary_data_output", False)
    if not isinstance(binary, bool):
        _refuse("binary_data_output is true or false")
    outputs = tuple(_output(entry) for entry in _objects(document, "outputs"))
    names = [output.name for output in outputs]
    if len(set(names)) < len(names):
        _refuse("an output is asked for twice")
    return InferRequest(_id(document), inputs, outputs, parameters, binary)


def write_infer(
    request: InferRequest,
    model: str,
    tensors: Mapping[str, Array],
    parameters: Mapping[str, Any],
) -> tuple[list[bytes | memoryview], int | None]:
    """Parts of an answer, and how long its head is; None where no output is binary.

    Outputs that shared memory holds are told by name, datatype and shape alone.
    """
    forms = {one.name: one for one in request.outputs}
    entries: list[dict[str, Any]] = []
    blobs: list[memoryview] = []
    for name, array in tensors.items():
        entry: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[dtype_name(array)],
            "shape": list(array.shape),
        }
        form = forms.get(name, InferOutput(name))
        if form.place is None:
            if request.binary_output if form.binary is None else form.binary:
                blobs.append(view_bytes(array))
                entry["parameters"] = {"binary_data_size": blobs[-1].nbytes}
            else:
                # JSON has no word for NaN: orjson writes null.
                entry["data"] = array.astype(np.float64).reshape(-1).tolist()
        entries.append(entry)
    document = {
        **({} if request.id is None else {"id": request.id}),
        "model_name": model,
        "model_version": "1",
        **({"parameters": dict(parameters)} if parameters else {}),
        "outputs": entries,
    }
    head = orjson.dumps(document)
    return [head, *blobs], len(head) if blobs else None


def tensor_of(given: InferInput, model: str, prefix: str) -> Array:
    """The input as an array, a view of its bytes where it has some.

    Raises:
        MalformedBodyError: its bytes are more or fewer than its shape takes.
    """
    if given.values is not None:
        return given.values
    raw = memoryview(b"") if given.raw is None else given.raw
    dtype = DTYPES[given.datatype]
    expected = math.prod(given.shape) * dtype.itemsize
    if raw.nbytes != expected:
        _refuse(
            f"{prefix}input byte size mismatch for input {_shown(given.name)} for model "
            f"'{model}'. Expected {expected}, got {raw.nbytes}"
        )
    return np.frombuffer(raw, dtype).reshape(given.shape)


class _Reader:
    """Takes the inputs' bytes off a body in their order."""

    def __init__(self, rest: memoryview, model: str, budget: Budget, regions: Regions) -> None:
        self._rest = rest
        self._model = model
        self._budget = budget
        self._regions = regions

    def read(self, entry: Mapping[str, Any]) -> InferInput:
        name, datatype = _text(entry, "name", "an input"), _text(entry, "datatype", "an input")
        if datatype not in DTYPES:
            known = ", ".join(DTYPES)
            _refuse(f"input {_shown(name)} has datatype {_shown(datatype)}; there are {known}")
        shape = _shape(entry.get("shape"), name)
        parameters = _parameters(entry, f"input {_shown(name)}")
        self._check_one_source(entry, parameters)
        if "data" in entry:
            values = _values(entry["data"], name, datatype, shape, self._budget)
            return InferInput(name, datatype, shape, None, values)
        if "shared_memory_region" in parameters:
            place = _place(parameters, name)
            raw = self._regions.read(place, self._budget)
            return InferInput(name, datatype, shape, raw, place=place)
        return InferInput(name, datatype, shape, self._take(parameters, name))

    def check_end(self) -> None:
        """Raises if bytes are left that no input has."""
        if self._rest:
            _refuse(f"unexpected additional input data for model '{self._model}'")

    def _check_one_source(self, entry: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
        given = ["'data'"] if "data" in entry else []
        given += [
            f"'{key}'" for key in ("binary_data_size", "shared_memory_region") if key in parameters
        ]
        if len(given) != 1:
            _refuse(
                "Input must set only one of the following fields: 'data', 'binary_data_size' in "
                "'parameters', 'shared_memory_region' in 'parameters'. But set "
                + (" ".join(given) or "none of them")
            )

    def _take(self, parameters: Mapping[str, Any], name: str) -> memoryview:
        nbytes = _size(parameters, "binary_data_size", name)
        missing = nbytes - self._rest.nbytes
        if missing > 0:
            _refuse(
                f"unexpected size for input {_shown(name)}, expecting {missing} additional bytes "
                f"for model '{self._model}'"
            )
        raw, self._rest = self._rest[:nbytes], self._rest[nbytes:]
        return raw


def _head_length(said: str | None, nbytes: int) -> int:
    if said is None:
        return nbytes
    if not (said.isascii() and said.isdecimal()):
        _refuse(f"{HEADER_LENGTH} is no number of bytes, got {_shown(said)}")
    length = int(said) if len(said) <= _MAX_DIGITS else 10**_MAX_DIGITS
    if length > nbytes:
        _refuse(f"inference header size should be in range (0, {nbytes}), got: {said[:32]}")
    return length


def _head(text: memoryview, budget: Budget) -> dict[str, Any]:
    if not text:  # Triton takes such a body for the bytes of an only input
        return {}
    try:
        return parse_object(text, "the request", budget)
    except MalformedBodyError as error:
        msg = f"failed to parse the request JSON buffer: {error.detail}"
        raise MalformedBodyError(msg) from error


def _id(document: Mapping[str, Any]) -> str | None:
    given = document.get("id")
    if given in (None, ""):
        return None
    if not isinstance(given, str) or len(given) > _MAX_ID_CHARACTERS:
        _refuse(f"id is a text of at most {_MAX_ID_CHARACTERS} characters")
    return given


def _objects(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = document.get(key, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        _refuse(f"Unable to parse '{key}': it is a list of objects")
    return found


def _parameters(entry: Mapping[str, Any], what: str) -> dict[str, Any]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict):
        _refuse(f"the parameters of {what} are an object")
    for name, value in found.items():
        if not isinstance(value, (str, bool, int, float)):
            _refuse(f"parameter {_shown(name)} of {what} is a text, a number, true or false")
    return found


def _text(entry: Mapping[str, Any], key: str, what: str) -> str:
    found = entry.get(key)
    if not isinstance(found, str) or not found:
        _refuse(f"{what} needs '{key}', a text")
    return found


def _shape(given: Any, name: str) -> tuple[int, ...]:
    sizes: list[Any] = given if isinstance(given, list) and len(given) <= _MAX_AXES else [None]
    good = all(type(size) is int and 0 <= size < _MAX_ELEMENTS for size in sizes)
    if not good or math.prod(max(size, 1) for size in sizes) >= _MAX_ELEMENTS:
        _refuse(f"input {_shown(name)} needs 'shape', a list of at most {_MAX_AXES} sizes")
    return tuple(sizes)


def _size(parameters: Mapping[str, Any], key: str, name: str) -> int:
    nbytes = parameters.get(key)
    if type(nbytes) is not int or not 0 <= nbytes < _MAX_ELEMENTS:
        _refuse(f"{key} of {_shown(name)} is a number of bytes")
    return nbytes


def _place(parameters: Mapping[str, Any], name: str) -> Place:
    region = _text(parameters, "shared_memory_region", _shown(name))
    nbytes = _size(parameters, "shared_memory_byte_size", name)
    offset = _size({"shared_memory_offset": 0, **parameters}, "shared_memory_offset", name)
    return Place(region, offset, nbytes)


def _output(entry: Mapping[str, Any]) -> InferOutput:
    name = _text(entry, "name", "an output")
    parameters = _parameters(entry, f"output {_shown(name)}")
    if "classification" in parameters:
        _refuse(f"classification is not offered; output {_shown(name)} is a table of numbers")
    binary = parameters.get("binary_data")
    if binary is not None and not isinstance(binary, bool):
        _refuse(f"binary_data of output {_shown(name)} is true or false")
    place = _place(parameters, name) if "shared_memory_region" in parameters else None
    if place is not None and binary:
        _refuse(f"output {_shown(name)} is either binary data or in shared memory")
    return InferOutput(name, binary, place)


def _values(given: Any, name: str, datatype: str, shape: Sequence[int], budget: Budget) -> Array:
    """A list of the JSON, flat or nested, as an array of its datatype and shape."""
    dtype = DTYPES[datatype]
    budget.take(math.prod(shape) * dtype.itemsize, name)
    flat = np.array(given, dtype=object)
    elements = flat.reshape(-1).tolist()
    if flat.shape not in ((math.prod(shape),), tuple(shape)):
        _refuse(
            "Unable to parse 'data': Shape does not match true shape of 'data' field of input "
            f"{_shown(name)}: {list(flat.shape)} for {list(shape)}"
        )
    if not set(map(type, elements)) <= _numbers(datatype):
        _refuse(f"Unable to parse 'data': input {_shown(name)} holds something not {datatype}")
    try:
        with np.errstate(over="ignore"):  # infinite then, and refused where it counts
            return np.array(elements, _exact(datatype)).astype(dtype).reshape(shape)
    except OverflowError:
        return _refuse(f"Unable to parse 'data': input {_shown(name)} holds more than {datatype}")


def _numbers(datatype: str) -> set[type]:
    """Types of the JSON values that stand for a number of a datatype."""
    if datatype == "BOOL":
        return {bool}
    return {int, float} if "F" in datatype else {int}


def _exact(datatype: str) -> np.dtype[Any]:
    """What numbers of a list are read as; integers beyond it are refused by numpy."""
    return np.dtype(np.float64) if "F" in datatype else DTYPES[datatype]


def _shown(text: str) -> str:
    return f"'{text[:SHOWN_CHARACTERS]}'"


def _refuse(message: str) -> NoReturn:
    raise MalformedBodyError(message)
