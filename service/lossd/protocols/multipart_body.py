"""`multipart/form-data`: files and form fields, for curl and browsers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from lossd.protocols.files import read_class_rles, read_rle, reader_of
from lossd.protocols.json_body import Inputs
from lossd_client.errors import InvalidInputError, MalformedBodyError
from lossd_client.wire import Array, parse_json

_MAX_FILES, _MAX_FIELDS = 4096, 64
_LISTS = ("losses",)
_TEXTS = ("task", "gradient", "gradient_dtype", "aggregate")
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}
_AXES_OF_LOGITS_WITHOUT_CHANNEL = 2


class _Parser(MultiPartParser):
    spool_max_size = 1 << 40  # the body is in memory already and bounded; nothing goes to disk


async def read_multipart(
    body: bytes | bytearray, content_type: str, limit_bytes: int
) -> tuple[dict[str, Any], Inputs]:
    """Request document and inputs of a form.

    Every file is one sample, unless the field `sample_axis` is true; several files of one name
    are several samples in order, of one size or of many.

    Raises:
        MalformedBodyError: not a form, or a file that cannot be read.
        InvalidInputError: inputs have different numbers of files.
        TooLargeError: a file unfolds to more than `limit_bytes`.
    """

    async def stream() -> AsyncIterator[bytes]:
        yield bytes(body)

    parser = _Parser(
        Headers({"content-type": content_type}),
        stream(),
        max_files=_MAX_FILES,
        max_fields=_MAX_FIELDS,
        max_part_size=limit_bytes,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        msg = f"the body is not a form: {error}"
        raise MalformedBodyError(msg) from error
    document, sample_axis = _document(form)
    files: dict[str, list[Array]] = {}
    for name, entry in form.multi_items():
        if isinstance(entry, UploadFile) and name != "request":
            files.setdefault(name, []).append(await _array(name, entry, limit_bytes))
    return document, _inputs(files, sample_axis=sample_axis)


def _document(form: FormData) -> tuple[dict[str, Any], bool]:
    document: dict[str, Any] = {}
    sample_axis = False
    for name, entry in form.multi_items():
        if isinstance(entry, UploadFile):
            if name == "request":
                document.update(_request(entry.file.read()))
        elif name == "request":
            document.update(_request(entry))
        elif name == "sample_axis":
            sample_axis = _switch(name, entry)
        else:
            document[name] = _field(name, entry)
    return document, sample_axis


def _request(text: str | bytes) -> dict[str, Any]:
    document = parse_json(text, "the part request")
    if not isinstance(document, dict):
        msg = "the part request is not a JSON object"
        raise MalformedBodyError(msg)
    return document


def _field(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    if name in _LISTS and not text.lstrip().startswith("["):
        return [entry.strip() for entry in text.split(",") if entry.strip()]
    if text.lower() in ("true", "false"):
        return _switch(name, text)
    return parse_json(text, f"the field {name}")


def _switch(name: str, text: str) -> bool:
    try:
        return _SWITCHES[text.lower()]
    except KeyError as error:
        msg = f"{name} is true or false, got {text!r}"
        raise InvalidInputError(msg) from error


async def _array(name: str, file: UploadFile, limit_bytes: int) -> Array:
    data = await file.read()
    filename = file.filename or ""
    what = f"{name} ({filename})"
    if filename.lower().endswith(".json"):
        return _from_json(parse_json(data, what), what, limit_bytes)
    reader = reader_of(filename, data)
    if reader is None:
        msg = f"{what}: a file is .npy, .npz, .png, .tif, .safetensors or .json (RLE)"
        raise MalformedBodyError(msg)
    return reader(data, what, limit_bytes)


def _from_json(document: Any, what: str, limit_bytes: int) -> Array:
    """One sample's mask: a single RLE, or `{"rle": [...], "labels": [...], "background": 0}`."""
    if isinstance(document, dict) and isinstance(document.get("rle"), list):
        labels, background = document.get("labels"), document.get("background", 0)
        if not isinstance(labels, list) or type(background) is not int:
            msg = f"{what}: a list of RLEs needs a list of labels and an integer background"
            raise MalformedBodyError(msg)
        return read_class_rles(document["rle"], labels, background, what, limit_bytes)
    if isinstance(document, dict) and "rle" in document:
        document = document["rle"]
    return read_rle(document, what, limit_bytes)


def _inputs(files: dict[str, list[Array]], *, sample_axis: bool) -> Inputs:
    counts = {name: len(arrays) for name, arrays in files.items()}
    if len(set(counts.values())) > 1:
        msg = f"every input needs as many files as there are samples, got {counts}"
        raise InvalidInputError(msg)
    if not files:
        msg = "inputs: a form needs files, for example logits=@prediction.npy and target=@mask.png"
        raise InvalidInputError(msg)
    count = next(iter(counts.values()))
    samples = [{name: arrays[number] for name, arrays in files.items()} for number in range(count)]
    if not sample_axis:
        samples = [
            {name: _with_sample_axis(name, array) for name, array in sample.items()}
            for sample in samples
        ]
    return _merged(samples)


def _with_sample_axis(name: str, array: Array) -> Array:
    if name == "logits" and array.ndim == _AXES_OF_LOGITS_WITHOUT_CHANNEL:
        array = array[None]
    return array[None]


def _merged(samples: Inputs) -> Inputs:
    """One input object if all samples have one shape and dtype, else an object per file."""
    kinds = {
        tuple((name, array.shape, array.dtype.str) for name, array in sorted(sample.items()))
        for sample in samples
    }
    if len(kinds) > 1 or len(samples) == 1:
        return samples
    return [{name: np.concatenate([s[name] for s in samples]) for name in samples[0]}]
