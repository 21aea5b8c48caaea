"""`multipart/form-data`: files and form fields, for curl and browsers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from lossd.losses.kinds import ACTIVATION_INPUTS, INPUT_NAMES, SHARED_INPUTS
from lossd.protocols.arrays import SHOWN_CHARACTERS, refuse
from lossd.protocols.documents import parse, parse_object, read_losses
from lossd.protocols.files import Budget, Buffer, read_class_rles, read_rle, reader_of
from lossd.protocols.json_body import Inputs, Sources, read_input, read_inputs
from lossd.protocols.safetensors_body import joined
from lossd_client.errors import InvalidInputError, MalformedBodyError
from lossd_client.wire import Array

_MAX_PARTS = 8192
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}
_AXES_OF_LOGITS_WITHOUT_CHANNEL = 2


@dataclass
class Part:
    """One part of a form; a file if it has a file name."""

    name: str = ""
    filename: str | None = None
    data: memoryview = field(default_factory=lambda: memoryview(b""))
    """Its bytes, a view of the body."""

    @property
    def text(self) -> str:
        """Its bytes as UTF-8."""
        try:
            return bytes(self.data).decode()
        except UnicodeDecodeError as error:
            msg = f"the field {self.name} is not UTF-8: {error.reason}"
            raise MalformedBodyError(msg) from error


def read_multipart(
    body: Buffer, content_type: str, sources: Sources
) -> tuple[dict[str, Any], Inputs]:
    """Request document and inputs of a form.

    Every file is one sample, unless the field `sample_axis` is true; several files of one name
    are several samples in order, of one size or of many. A field that is named like an input holds
    a tensor in one of JSON's forms, with its sample axis.

    Raises:
        MalformedBodyError: not a form, or a file that cannot be read.
        InvalidInputError: inputs have different numbers of files, or one is given twice.
        TooLargeError: JSON or files take more than the budget.
        UnknownRefError: a ref names no tensor of the caller's.
    """
    parts = split_parts(body, content_type)
    document, sample_axis = _document(parts, sources.budget)
    objects = _read_files(parts, sources.budget, sample_axis=sample_axis)
    written = _written(document, parts, sources)
    if written == [{}]:
        written = [{} for _ in objects]
    if not any(objects):
        objects = [{} for _ in written]
    if not any([*objects, *written]):
        msg = "inputs: a form needs files, for example logits=@prediction.npy and target=@mask.png"
        raise InvalidInputError(msg)
    if len(objects) != len(written):
        msg = f"the files are of {len(objects)} input objects, the fields of {len(written)}; "
        raise InvalidInputError(msg + "a field holds the samples of one object")
    return document, [joined(*both) for both in zip(objects, written, strict=True)]


def read_form_tensors(body: Buffer, content_type: str, budget: Budget) -> Inputs:
    """The tensors of a form that is no request: files as of one, and the field `sample_axis`.

    Raises:
        MalformedBodyError: not a form, or a file that cannot be read.
        InvalidInputError: there is another field, or names have different numbers of files.
        TooLargeError: the files unfold to more than the budget.
    """
    parts = split_parts(body, content_type)
    sample_axis = False
    for part in parts:
        if part.filename is None and part.name == "sample_axis":
            sample_axis = _switch(part)
        elif part.filename is None:
            name = part.name[:SHOWN_CHARACTERS]
            refuse((name,), "a form of tensors holds files and the field sample_axis")
    return _read_files(parts, budget, sample_axis=sample_axis)


def _read_files(parts: Sequence[Part], budget: Budget, *, sample_axis: bool) -> Inputs:
    """Input objects of the files; one without inputs where there are none."""
    files: dict[str, list[Array]] = {}
    for part in parts:
        if part.filename is not None and part.name != "request":
            files.setdefault(part.name, []).append(_array(part, budget))
    return _inputs(files, sample_axis=sample_axis)


def _written(document: dict[str, Any], parts: Sequence[Part], sources: Sources) -> Inputs:
    """Input objects of the request's own `inputs` and of the fields that are tensors."""
    objects = read_inputs(document.pop("inputs", {}), sources)
    fields: dict[str, Array] = {}
    for part in parts:
        if _is_tensor(part):
            if part.name in fields:
                refuse(("inputs", part.name), "is given twice; a field holds all samples")
            value = parse(part.data, f"the field {part.name}", sources.budget)
            fields[part.name] = read_input(value, ("inputs", part.name), sources)
    if fields and len(objects) > 1:
        msg = f"{next(iter(fields))} is a field, but the request has {len(objects)} input objects"
        raise InvalidInputError(msg)
    return [joined(one, fields) for one in objects]


def _is_tensor(part: Part) -> bool:
    """Whether a part is a field with a tensor in it."""
    return part.filename is None and part.name in INPUT_NAMES


def split_parts(body: Buffer, content_type: str) -> list[Part]:
    """The parts of a form, in order, without a copy of their bytes.

    Raises:
        MalformedBodyError: the body is not a form, or has too many parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        msg = "the Content-Type of a form names its boundary"
        raise MalformedBodyError(msg)
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())  # type: ignore[arg-type]
        # It searches and slices, and a view cannot be searched.
        parser.write(bytes(body) if isinstance(body, memoryview) else body)  # type: ignore[arg-type]
        parser.finalize()
    except FormParserError as error:
        msg = f"the body is not a form: {error}"
        raise MalformedBodyError(msg) from error
    if not collector.complete:
        msg = "the body is not a form: its last boundary is missing"
        raise MalformedBodyError(msg)
    return collector.parts


class _Collector:
    """Turns the parser's events into parts."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.complete = False
        self._name = self._value = b""
        self._spans: list[memoryview] = []

    def callbacks(self) -> dict[str, Any]:
        """What the parser calls, by its names of the events."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.parts) == _MAX_PARTS:
            msg = f"a form has at most {_MAX_PARTS} parts"
            raise MalformedBodyError(msg)
        self.parts.append(Part())
        self._spans = []

    def _header_name(self, data: bytes, begin: int, end: int) -> None:
        self._name += bytes(data[begin:end])

    def _header_value(self, data: bytes, begin: int, end: int) -> None:
        self._value += bytes(data[begin:end])

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            part = self.parts[-1]
            part.name = options.get(b"name", b"").decode(errors="replace")
            if b"filename" in options:
                part.filename = options[b"filename"].decode(errors="replace")
        self._name = self._value = b""

    def _data(self, data: bytes, begin: int, end: int) -> None:
        self._spans.append(memoryview(data)[begin:end])

    def _end(self) -> None:
        part = self.parts[-1]
        if not part.name:
            msg = 'every part of a form needs Content-Disposition: form-data; name="…"'
            raise MalformedBodyError(msg)
        # Nearly always one span; bytes that look like a boundary cut it into several.
        one = len(self._spans) == 1
        part.data = self._spans[0] if one else memoryview(b"".join(self._spans))

    def _finish(self) -> None:
        self.complete = True


def _document(parts: Sequence[Part], budget: Budget) -> tuple[dict[str, Any], bool]:
    document: dict[str, Any] = {}
    losses: list[Any] = []
    sample_axis = False
    for part in parts:
        if part.name == "request":
            document.update(parse_object(part.data, "the part request", budget))
        elif part.filename is not None or _is_tensor(part):
            continue
        elif part.name == "sample_axis":
            sample_axis = _switch(part)
        elif part.name == "losses":
            losses.extend(read_losses(part.text, "the field losses", budget))
        else:
            document[part.name] = _field(part, budget)
    if losses:
        document["losses"] = losses
    return document, sample_axis


def _field(part: Part, budget: Budget) -> Any:
    """Value of a field: JSON where it is JSON (255, true, null), the text itself otherwise."""
    budget.take_json(part.data, f"the field {part.name[:SHOWN_CHARACTERS]}")
    try:
        return orjson.loads(part.data)
    except orjson.JSONDecodeError:
        return part.text


def _switch(part: Part) -> bool:
    try:
        return _SWITCHES[part.text.lower()]
    except KeyError as error:
        msg = f"{part.name} is true or false, got {part.text[:40]!r}"
        raise InvalidInputError(msg) from error


def _array(part: Part, budget: Budget) -> Array:
    filename = part.filename or ""
    what = f"{part.name[:40]} ({filename[:80]})"
    if filename.lower().endswith(".json"):
        return _from_json(parse(part.data, what, budget), what, budget)
    reader = reader_of(filename, part.data)
    if reader is None:
        msg = f"{what}: a file is .npy, .npz, .png, .tif, .safetensors or .json (RLE)"
        raise MalformedBodyError(msg)
    return reader(part.data, what, budget)


def _from_json(document: Any, what: str, budget: Budget) -> Array:
    """One sample's mask: a single RLE, or `{"rle": [...], "labels": [...], "background": 0}`."""
    if isinstance(document, dict) and isinstance(document.get("rle"), list):
        labels = document.get("labels")
        if not isinstance(labels, list):
            msg = f"{what}: a list of RLEs needs a list of labels"
            raise MalformedBodyError(msg)
        background = document.get("background", 0)
        return read_class_rles(document["rle"], labels, background, what, budget)
    if isinstance(document, dict) and "rle" in document:
        document = document["rle"]
    return read_rle(document, what, budget)


def _inputs(files: dict[str, list[Array]], *, sample_axis: bool) -> Inputs:
    shared = {name: files.pop(name) for name in SHARED_INPUTS if name in files}
    for name, arrays in shared.items():
        if len(arrays) > 1:
            msg = f"{name} belongs to all samples: one file, got {len(arrays)}"
            raise InvalidInputError(msg)
    objects = _own_inputs(files, sample_axis=sample_axis)
    return [{**one, **{name: arrays[0] for name, arrays in shared.items()}} for one in objects]


def _own_inputs(files: dict[str, list[Array]], *, sample_axis: bool) -> Inputs:
    """Input objects of the files that hold samples."""
    counts = {name: len(arrays) for name, arrays in files.items()}
    if len(set(counts.values())) > 1:
        msg = f"every input needs as many files as there are samples, got {counts}"
        raise InvalidInputError(msg)
    if not files:
        return [{}]
    count = next(iter(counts.values()))
    samples = [{name: arrays[number] for name, arrays in files.items()} for number in range(count)]
    if not sample_axis:
        samples = [
            {name: _with_sample_axis(name, array) for name, array in sample.items()}
            for sample in samples
        ]
    return _merged(samples)


def _with_sample_axis(name: str, array: Array) -> Array:
    if name in ACTIVATION_INPUTS and array.ndim == _AXES_OF_LOGITS_WITHOUT_CHANNEL:
        array = array[None]
    return array[None]


def _merged(samples: Inputs) -> Inputs:
    """One input object if all samples have one shape and dtype, else an object per file."""
    kinds = {
        tuple((name, array.shape, array.dtype.str) for name, array in sorted(sample.items()))
        for sample in samples
    }
    has_axes = all(array.ndim for array in samples[0].values())
    if len(kinds) > 1 or len(samples) == 1 or not has_axes:
        return samples
    return [{name: np.concatenate([s[name] for s in samples]) for name in samples[0]}]
