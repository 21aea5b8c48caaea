"""How the job travels to each system and back: HTTP requests as bytes, answers as arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.frame import Answer, Array, Sample, decode_answer, encode_request
from lossd_client.wire import (
    OCTET_STREAM,
    SAFETENSORS,
    decode_safetensors,
    encode_safetensors,
)

_BOUNDARY = "a-boundary-that-no-tensor-holds"
_MODEL_HEADER_BYTES = re.compile(rb"\r\ninference-header-content-length: *(\d+)", re.IGNORECASE)
_DICE = {"name": "dice", "params": {"smooth_nr": 1.0, "smooth_dr": 1.0, "classes": "all"}}
_LOSSD_REQUEST = {
    "losses": ["cross_entropy", _DICE],
    "task": "multiclass",
    "gradient": "total",
    "gradient_dtype": "float16",
}


@dataclass(frozen=True)
class Wire:
    """One way of sending the job."""

    path: str
    encode: Callable[[Sample], tuple[Mapping[str, str], bytes]]
    """Headers and body of a request."""
    decode: Callable[[bytes, bytes], Answer]
    """Answer from a head and a body."""

    def request(self, sample: Sample) -> bytes:
        """A whole HTTP/1.1 request that keeps its connection."""
        headers, body = self.encode(sample)
        lines = {
            "Host": "localhost",
            # Some servers compress gradients, at great cost, for clients that do not refuse it.
            "Accept-Encoding": "identity",
            "Content-Length": str(len(body)),
            **headers,
        }
        head = f"POST {self.path} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{head}\r\n".encode() + body


def _encode_frame(sample: Sample) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": OCTET_STREAM}, encode_request(sample)


def _encode_multipart(sample: Sample) -> tuple[dict[str, str], bytes]:
    head = (
        f"--{_BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="frame"; filename="frame"\r\n'
        f"Content-Type: {OCTET_STREAM}\r\n\r\n"
    )
    body = head.encode() + encode_request(sample) + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body


def _decode_frame(_: bytes, body: bytes) -> Answer:
    return decode_answer(body)


def _encode_open_inference(sample: Sample) -> tuple[dict[str, str], bytes]:
    binary = [("logits", "FP16", sample.logits), ("target", "UINT8", sample.target)]
    document = {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype,
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, datatype, array in binary
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in Answer._fields],
    }
    header = json.dumps(document).encode()
    headers = {
        "Content-Type": OCTET_STREAM,
        "Inference-Header-Content-Length": str(len(header)),
    }
    return headers, b"".join([header, *(array.tobytes() for _, _, array in binary)])


def _decode_open_inference(head: bytes, body: bytes) -> Answer:
    found = _MODEL_HEADER_BYTES.search(head)
    if found is None:
        msg = "the answer is not in the binary form that was asked for"
        raise ValueError(msg)
    offset = int(found[1])
    arrays: dict[str, Array] = {}
    for output in json.loads(body[:offset])["outputs"]:
        size: int = output["parameters"]["binary_data_size"]
        dtype = "<f2" if output["name"] == "gradient" else "<f4"
        flat = np.frombuffer(body[offset : offset + size], dtype)
        # A model's tensors have an axis beside the batch's; the two losses have one value each.
        shape = output["shape"] if output["name"] == "gradient" else output["shape"][:1]
        arrays[output["name"]] = flat.reshape(shape)
        offset += size
    return Answer(**arrays)


def _encode_safetensors(sample: Sample) -> tuple[dict[str, str], bytes]:
    metadata = {"request": json.dumps(_LOSSD_REQUEST)}
    body = b"".join(encode_safetensors(sample._asdict(), metadata))
    return {"Content-Type": SAFETENSORS, "Accept": SAFETENSORS}, body


def _decode_safetensors(_: bytes, body: bytes) -> Answer:
    tensors = decode_safetensors(body)[0]
    stored = tensors["gradient/logits"]
    if stored.dtype != np.float16:
        msg = f"the gradient is {stored.dtype}, not float16"
        raise ValueError(msg)
    # Per sample, a power of two that keeps small derivatives off float16's denormals.
    scale = tensors["gradient_scale/logits"].reshape(-1, 1, 1, 1)
    return Answer(tensors["loss/cross_entropy"], tensors["loss/dice"], stored * scale)


FRAME = Wire("/predict", _encode_frame, _decode_frame)
MOSEC = Wire("/inference", _encode_frame, _decode_frame)
MULTIPART = Wire("/predict", _encode_multipart, _decode_frame)
OPEN_INFERENCE = Wire("/v2/models/losses/infer", _encode_open_inference, _decode_open_inference)
LOSSD = Wire("/v1/evaluate", _encode_safetensors, _decode_safetensors)
