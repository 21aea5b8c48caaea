"""What a load test asks, as data: name, share of the traffic, content type, body.

The bodies are made once, before any user starts, so that a load test measures the service and not
the making of random numbers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lossd_client.wire import Array, encode_safetensors, encode_tensor

_BOUNDARY = "lossd-load-test"


@dataclass(frozen=True)
class Scenario:
    """One kind of request."""

    name: str
    share: int
    """Of the traffic, relative to the other scenarios."""
    content_type: str
    body: bytes
    answers_with: str
    """Text that a right answer holds."""


def scenarios() -> list[Scenario]:
    """Every kind of request, ready to send."""
    return [
        Scenario(name, share, content_type, make(), answers_with)
        for name, share, content_type, make, answers_with in _SCENARIOS
    ]


def _sample(
    channels: int, height: int, width: int, *, samples: int = 1, seed: int = 0
) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((samples, channels, height, width), dtype=np.float32)
    labels = generator.integers(0, channels, (samples, height, width), dtype=np.uint8)
    return {"logits": logits.astype(np.float16), "target": labels}


def _small_json() -> bytes:
    inputs = {name: encode_tensor(array) for name, array in _sample(4, 32, 32).items()}
    return json.dumps({"losses": ["dice", "cross_entropy"], "inputs": inputs}).encode()


def _safetensors() -> bytes:
    request = {
        "losses": ["dice", "cross_entropy", "focal"],
        "gradient": "total",
        "gradient_dtype": "float16",
    }
    return b"".join(encode_safetensors(_sample(4, 256, 256), {"request": json.dumps(request)}))


def _mixed_sizes() -> bytes:
    sizes = [(64, 64), (120, 200), (256, 256), (333, 217)]
    tensors = {
        f"{number}/{name}": array
        for number, size in enumerate(sizes)
        for name, array in _sample(4, *size, seed=number).items()
    }
    return b"".join(encode_safetensors(tensors, {"request": json.dumps({"losses": ["dice"]})}))


def _multipart() -> bytes:
    sample = _sample(3, 128, 128)
    fields = {"losses": b"dice,jaccard"}
    files = {name: _npy(array[0]) for name, array in sample.items()}
    parts = [_part(f'name="{name}"', text) for name, text in fields.items()]
    parts += [_part(f'name="{name}"; filename="{name}.npy"', data) for name, data in files.items()]
    return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()


def _part(disposition: str, data: bytes) -> bytes:
    head = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
    return head.encode() + data + b"\r\n"


def _npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


_SAFETENSORS = "application/vnd.safetensors"
_FORM = f"multipart/form-data; boundary={_BOUNDARY}"

_SCENARIOS: tuple[tuple[str, int, str, Callable[[], bytes], str], ...] = (
    ("small_json", 4, "application/json", _small_json, '"mean"'),
    ("safetensors_256x256x4", 3, _SAFETENSORS, _safetensors, "gradient/logits"),
    ("mixed_sizes", 2, _SAFETENSORS, _mixed_sizes, "loss/dice"),
    ("multipart", 1, _FORM, _multipart, '"jaccard"'),
)
