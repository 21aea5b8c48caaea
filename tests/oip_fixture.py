"""Bodies of the Open Inference Protocol, written from the protocol's definition."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from lossd_client.wire import NUMPY_DTYPES, Array
from service_fixture import Answer, Json

HEAD = "Inference-Header-Content-Length"

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(2, 3, 5, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, (2, 5, 4)).astype(np.uint8)

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
DTYPES = {
    datatype: NUMPY_DTYPES.get(name) or np.dtype(name) for name, datatype in DATATYPES.items()
}


def binary(name: str, array: Array) -> tuple[Json, bytes]:
    """An input whose bytes follow the head."""
    entry = described(name, array)
    entry["parameters"] = {"binary_data_size": array.nbytes}
    return entry, array.tobytes()


def listed(name: str, array: Array) -> tuple[Json, bytes]:
    """An input that is a list of the head."""
    data = array.astype(np.float64) if array.dtype == NUMPY_DTYPES["bfloat16"] else array
    return {**described(name, array), "data": data.reshape(-1).tolist()}, b""


def described(name: str, array: Array) -> Json:
    return {"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name]}


@dataclass(frozen=True)
class Inferred:
    """An answer's head and tensors."""

    head: Json
    tensors: dict[str, Array]


def infer(
    client: httpx.Client,
    model: str,
    *inputs: tuple[Json, bytes],
    headers: Mapping[str, str] | None = None,
    **head: Any,
) -> Answer:
    """An infer call; the length of its head is told where anything follows it."""
    text = json.dumps({"inputs": [entry for entry, _ in inputs], **head}).encode()
    rest = b"".join(blob for _, blob in inputs)
    length = {HEAD: str(len(text))} if rest else {}
    path = f"/v2/models/{model}/infer"
    return client.post(path, content=text + rest, headers={**length, **(headers or {})})


def read(answer: Answer) -> Inferred:
    """What a good answer holds."""
    assert answer.status_code == 200, answer.text[:500]
    length = answer.headers.get(HEAD)
    body = answer.content
    head = json.loads(body if length is None else body[: int(length)])
    rest = b"" if length is None else body[int(length) :]
    tensors: dict[str, Array] = {}
    for output in head["outputs"]:
        dtype = DTYPES[output["datatype"]]
        nbytes = output.get("parameters", {}).get("binary_data_size")
        if nbytes is not None:
            tensors[output["name"]] = np.frombuffer(rest[:nbytes], dtype).reshape(output["shape"])
            rest = rest[nbytes:]
        elif "data" in output:
            table = np.array(output["data"], np.float64)
            tensors[output["name"]] = table.astype(dtype).reshape(output["shape"])
    assert not rest
    return Inferred(head, tensors)


def error(answer: Answer) -> str:
    """The text of an error, which is all that its body may hold."""
    assert answer.status_code >= 400, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert list(document) == ["error"]
    text: str = document["error"]
    return text
