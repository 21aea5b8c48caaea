"""Bodies by seed and number: good requests of every encoding, most of them damaged."""

from __future__ import annotations

import base64
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from fuzz.walk import ANSWER, INFERENCE, KEEP, KEPT, Body
from lossd.losses import LOSSES
from lossd.losses.kinds import ACTIVATION_INPUTS, KINDS, Input
from lossd.protocols.oip_models import EVALUATE
from lossd.protocols.oip_wire import DATATYPES, DTYPES
from lossd_client.wire import JSON, MULTIPART, SAFETENSORS, Array, encode_safetensors, encode_tensor

KINDS_OF_BODY = (JSON, SAFETENSORS, MULTIPART, ANSWER, KEEP, INFERENCE)
Rng = np.random.Generator
Inputs = dict[str, Array]
FormPart = tuple[bytes, bytes | None, bytes]

_BOUNDARY = b"edge"
_DEEP = 1000
_ODD: tuple[Any, ...] = (
    *(None, True, "", "\u00e9", 0, -1, 1.5, 1e308),
    *(2**31, 2**53, 2**63, 2**64 - 1, [], {}, [[]], [0] * 9),
)
_ODD_TEXT = (b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b'"\\ud800"', b"[" * _DEEP + b"]" * _DEEP)
_ODD_BYTES = (b"\x00", b"\xff" * 8, b"\r\n--edge", b"--", b"{", b"]", b'"', b"PK\x01\x02", b"-1")
_DTYPES = (
    "bool",
    "uint8",
    "int8",
    "int64",
    "float16",
    "float64",
    "complex64",
    ">f4",
    "S3",
    "M8[s]",
)


def body(seed: int, number: int) -> Body:
    """The body of a number; the same one every time."""
    rng = np.random.default_rng([seed, number])
    kind = KINDS_OF_BODY[number % len(KINDS_OF_BODY)]
    encoding = str(_one(rng, (JSON, SAFETENSORS, MULTIPART))) if kind == KEEP else kind
    if rng.random() < 0.02:  # noqa: PLR2004 - a few are noise alone
        return Body(kind, _content_type(encoding), rng.bytes(int(rng.integers(200))))
    document, inputs = _request(rng)
    if rng.random() < 0.3:  # noqa: PLR2004 - the rest keeps its meaning
        _bend(rng, document, inputs)
    if kind == INFERENCE:
        return _inference(rng, document, inputs)
    data = _keep(rng, encoding, inputs) if kind == KEEP else _WRITERS[kind](rng, document, inputs)
    if rng.random() < 0.5:  # noqa: PLR2004 - half arrives as it was written
        data = damaged(rng, data)
    return Body(kind, _content_type(encoding), data)


def damaged(rng: Rng, data: bytes) -> bytes:
    """The bytes with a few places overwritten, cut, doubled or replaced by what is odd."""
    for _ in range(int(rng.integers(1, 4))):
        begin = int(rng.integers(len(data) + 1))
        end = min(len(data), begin + int(rng.integers(1, 16)))
        way = int(rng.integers(6))
        middle = (
            rng.bytes(end - begin),
            b"",
            data[begin:end] * 2,
            _one(rng, _ODD_BYTES),
            _one(rng, _ODD_TEXT),
            data[int(rng.integers(len(data) + 1)) :][:64],
        )[way]
        data = data[:begin] + middle + (b"" if rng.random() < 0.05 else data[end:])  # noqa: PLR2004
    return data


def _one(rng: Rng, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _content_type(kind: str) -> str:
    if kind == INFERENCE:
        return f"{INFERENCE}; model={EVALUATE}"
    return f"{kind}; boundary={_BOUNDARY.decode()}" if kind == MULTIPART else kind


def _request(rng: Rng) -> tuple[dict[str, Any], Inputs]:
    loss = LOSSES[_one(rng, list(LOSSES))]
    document: dict[str, Any] = {"losses": [loss.name]}
    if rng.random() < 0.3:  # noqa: PLR2004
        document["gradient"] = _one(rng, ("none", "total", "each"))
    if loss.kind == "pixel":
        return _pixels(rng, document, _one(rng, loss.tasks))
    sizes = {axis: int(rng.integers(2, 5)) for axis in "BCD"}
    described = getattr(loss, "inputs", KINDS[loss.kind])
    return document, {one.name: _table(rng, one, sizes) for one in described}


def _pixels(rng: Rng, document: dict[str, Any], task: str) -> tuple[dict[str, Any], Inputs]:
    channels = 1 if task == "binary" else int(rng.integers(2, 5))
    shape = (int(rng.integers(1, 3)), channels, 4, 5)
    logits = rng.normal(size=shape).astype(_one(rng, ("float32", "float16", "float64")))
    labels = (shape[0], *shape[2:])
    target = rng.integers(0, max(channels, 2), labels, dtype=np.uint8)
    if task == "multilabel":
        target = rng.integers(0, 2, shape, dtype=np.uint8)
    document["task"] = task
    return document, {"logits": logits, "target": target}


def _table(rng: Rng, one: Input, sizes: dict[str, int]) -> Array:
    axes = one.axes.replace("*S", "5 4").replace("…", "3").split()
    shape = tuple(int(axis) if axis.isdecimal() else sizes.get(axis, 4) for axis in axes)
    if one.values == "real":
        return rng.normal(size=shape).astype(np.float32)
    if one.values in ("unit", "bin"):
        return rng.random(shape).astype(np.float32)
    return rng.integers(0, 2, shape, dtype=np.int64)


def _bend(rng: Rng, document: dict[str, Any], inputs: Inputs) -> None:
    """Puts something odd into the document or one of its tensors."""
    fields = ("losses", "task", "ignore_index", "spacing", "gradient", "timeout_ms", "preset", "x")
    way = int(rng.integers(4))
    name = _one(rng, list(inputs))
    if way == 0:
        document[_one(rng, fields)] = _one(rng, _ODD)
    elif way == 1:
        document["losses"] = [
            {"name": document["losses"][0], "params": {"smooth": _one(rng, _ODD)}}
        ]
    elif way == 2:  # noqa: PLR2004 - the third way
        inputs[name] = np.nan_to_num(inputs[name]).astype(_one(rng, _DTYPES))
    else:
        inputs[name] = inputs[name].reshape(*inputs[name].shape, 1)[: int(rng.integers(3))]


def _worn(rng: Rng, data: bytes) -> bytes:
    """A file inside a body, at times damaged before it is wrapped."""
    return damaged(rng, data) if rng.random() < 0.15 else data  # noqa: PLR2004


def _json(rng: Rng, document: dict[str, Any], inputs: Inputs) -> bytes:
    tensors = {name: _json_tensor(rng, name, array) for name, array in inputs.items()}
    if rng.random() < 0.2:  # noqa: PLR2004
        tensors.update(_refs(rng))
    return json.dumps({**document, "inputs": tensors}, default=str).encode()


def _refs(rng: Rng) -> dict[str, Any]:
    """Tensors that are kept, or should be, in place of some that are sent."""
    names = _one(rng, (("logits",), ("target",), ("logits", "target"), ("mask",)))
    return {name: {"ref": _one(rng, (*KEPT, *KEPT, "gone", *_ODD))} for name in names}


def _keep(rng: Rng, encoding: str, inputs: Inputs) -> bytes:
    if encoding == JSON:
        tensors = {name: _json_tensor(rng, name, array) for name, array in inputs.items()}
        if rng.random() < 0.2:  # noqa: PLR2004
            tensors = {**tensors, **_refs(rng)}
        one = next(iter(tensors.values()))
        return json.dumps(_one(rng, ({"tensors": tensors}, one)), default=str).encode()
    if encoding == SAFETENSORS:
        return _joined(rng, inputs, {})
    return _form(rng, inputs, [(b"sample_axis", None, b"true")])


def _json_tensor(rng: Rng, name: str, array: Array) -> Any:
    forms: list[Callable[[], Any]] = [lambda: {"npy": _text(_worn(rng, _npy(array)))}]
    if array.dtype.kind in "biuf":
        forms.append(array.tolist)
        if array.dtype.byteorder != ">":
            forms.append(lambda: encode_tensor(array))
    if name not in ACTIVATION_INPUTS and array.dtype == np.uint8 and array.ndim == 3:  # noqa: PLR2004
        forms += [
            lambda: {"png": [_text(_worn(rng, _png(mask))) for mask in array]},
            lambda: {"rle": [_rle(rng, mask) for mask in array]},
            lambda: {"rle": [[_rle(rng, m)] for m in array], "labels": [[1]] * len(array)},
        ]
    return _one(rng, forms)()


def _rle(rng: Rng, mask: Array) -> dict[str, Any]:
    flat = np.concatenate([[0], (mask.T.reshape(-1) != 0).astype(np.int8), [2]])
    runs = np.diff(np.flatnonzero(np.concatenate([[1], np.diff(flat)])))
    counts: Any = [int(run) for run in runs]
    counts[0] -= int(flat[1] == 0)
    if rng.random() < 0.2:  # noqa: PLR2004
        counts = _one(rng, ("", "o" * 9, "0" * 20, [2**62, 2**62], [-1], [2**64 - 1], *_ODD))
    size = list(mask.shape) if rng.random() < 0.9 else _one(rng, ([2**31, 2**31], *_ODD))  # noqa: PLR2004
    return {"size": size, "counts": counts}


def _safetensors(rng: Rng, document: dict[str, Any], inputs: Inputs) -> bytes:
    if rng.random() < 0.2:  # noqa: PLR2004
        refs = _refs(rng)
        inputs = {name: array for name, array in inputs.items() if name not in refs}
        document = {**document, "inputs": refs}
    return _joined(rng, inputs, {"request": json.dumps(document)})


def _answer(rng: Rng, document: dict[str, Any], inputs: Inputs) -> bytes:
    return _joined(
        rng,
        {f"{int(rng.integers(2))}/gradient/{name}": array for name, array in inputs.items()},
        {"response": json.dumps(document)},
    )


def _joined(rng: Rng, inputs: Inputs, metadata: dict[str, str]) -> bytes:
    known = {
        name: array
        for name, array in inputs.items()
        if array.dtype.kind in "biuf" and array.dtype.byteorder != ">"
    }
    data = b"".join(bytes(part) for part in encode_safetensors(known, metadata))
    if rng.random() < 0.2:  # noqa: PLR2004 - a lie of the header, of equal length
        old, new = _one(
            rng, ((b"[0,", b"[9,"), (b'"F32"', b'"F64"'), (b"[2,", b"[-,"), (b"B", b"\xff"))
        )
        data = data.replace(old, new, 1)
    return data


def _multipart(rng: Rng, document: dict[str, Any], inputs: Inputs) -> bytes:
    parts: list[FormPart] = [
        (b"request", None, json.dumps(document).encode()),
        (b"sample_axis", None, b"true"),
    ]
    if rng.random() < 0.2:  # noqa: PLR2004
        refs = _refs(rng)
        inputs = {name: array for name, array in inputs.items() if name not in refs}
        parts += [(name.encode(), None, json.dumps(ref).encode()) for name, ref in refs.items()]
    return _form(rng, inputs, parts)


def _form(rng: Rng, inputs: Inputs, parts: list[FormPart]) -> bytes:
    for name, array in inputs.items():
        ending, data = _file(rng, array)
        parts.append((name.encode(), f"a.{ending}".encode(), _worn(rng, data)))
        if rng.random() < 0.05:  # noqa: PLR2004
            parts.append(parts[-1])
    lines = []
    for named, filename, data in parts:
        head = b'Content-Disposition: form-data; name="' + named + b'"'
        head += b"" if not filename else b'; filename="' + filename + b'"'
        lines.append(b"--" + _BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n")
    return b"".join(lines) + b"--" + _BOUNDARY + b"--\r\n"


def _file(rng: Rng, array: Array) -> tuple[str, bytes]:
    stream = io.BytesIO()
    ending = str(_one(rng, ("npy", "npz", "tif", "safetensors")))
    plain = array.dtype.kind in "biuf" and array.dtype.byteorder != ">"
    if ending == "safetensors" and plain:
        return ending, b"".join(bytes(part) for part in encode_safetensors({"a": array}, {}))
    if ending == "tif" and plain and array.ndim > 1 and array.size:
        compression = _one(rng, (None, "zlib"))
        tifffile.imwrite(stream, array, photometric="minisblack", compression=compression)
        return ending, stream.getvalue()
    if ending == "npz":
        with zipfile.ZipFile(stream, "w") as archive:  # savez writes the time of day
            archive.writestr(zipfile.ZipInfo("arr_0.npy"), _npy(array), zipfile.ZIP_DEFLATED)
        return ending, stream.getvalue()
    return "npy", _npy(array)


def _npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _png(mask: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return stream.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _inference(rng: Rng, document: dict[str, Any], inputs: Inputs) -> Body:
    """A body of the Open Inference Protocol for `evaluate` or the model of the loss."""
    named = document["losses"]
    model = EVALUATE
    if isinstance(named, list) and named and isinstance(named[0], str) and rng.random() < 0.5:  # noqa: PLR2004
        model = named[0]
    parameters = {
        name: value if isinstance(value, (str, int, float)) else json.dumps(value, default=str)
        for name, value in document.items()
        if model == EVALUATE or name != "losses"
    }
    entries, blobs = [], []
    for name, array in inputs.items():
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(array.shape),
            "datatype": _datatype(rng, array),
        }
        if rng.random() < 0.3:  # noqa: PLR2004
            entry["data"] = array.reshape(-1).tolist()
        else:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            blobs.append(array.tobytes())
        entries.append(entry)
    head: dict[str, Any] = {"inputs": entries, "parameters": parameters}
    if rng.random() < 0.3:  # noqa: PLR2004
        head["outputs"] = [{"name": _one(rng, ("total", "gradient/logits", "map/x", 1))}]
    text = json.dumps(head, default=str).encode()
    data = text + b"".join(blobs)
    if rng.random() < 0.5:  # noqa: PLR2004 - half arrives as it was written
        data = damaged(rng, data)
    length = _one(rng, (len(text),) * 18 + ("x", 10**9))
    return Body(INFERENCE, f"{INFERENCE}; model={model}; head={length}", data)


def _datatype(rng: Rng, array: Array) -> str:
    if rng.random() < 0.05:  # noqa: PLR2004
        return str(_one(rng, (*DTYPES, "BYTES", "FP8", "")))
    return DATATYPES.get(array.dtype.name, "FP32")


def deflated(nbytes: int) -> bytes:
    """So many zeros, as zlib writes them."""
    return zlib.compress(bytes(nbytes), 9)


_WRITERS: dict[str, Callable[[Rng, dict[str, Any], Inputs], bytes]] = {
    JSON: _json,
    SAFETENSORS: _safetensors,
    MULTIPART: _multipart,
    ANSWER: _answer,
}
