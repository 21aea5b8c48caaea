"""Questions, the random samples they are asked about, and the bodies that carry them."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossd_client.wire import (
    JSON,
    MULTIPART,
    SAFETENSORS,
    Array,
    encode_safetensors,
    encode_tensor,
    numbered,
)

_BOUNDARY = "------------------------lossdloadtest"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_GRAY = 0


@dataclass(frozen=True)
class Question:
    """What is asked, about samples of which sizes."""

    channels: int
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each sample; every sample is an input object of its own."""
    losses: tuple[str, ...]
    gradient: str = "none"

    @property
    def document(self) -> dict[str, Any]:
        """The request without its tensors."""
        document: dict[str, Any] = {"losses": list(self.losses)}
        if self.gradient != "none":
            document |= {"gradient": self.gradient, "gradient_dtype": "float16"}
        return document


@dataclass(frozen=True)
class Sample:
    """One prediction and its mask."""

    logits: Array
    """`[1, C, H, W]`, float16."""
    target: Array
    """`[1, H, W]`, labels, uint8."""


def samples(question: Question, variant: int) -> list[Sample]:
    """Samples of the sizes of a question; variants are better masks the higher their number.

    Their values differ far more than a tolerance, so that an answer to one variant is no right
    answer to another.
    """
    generator = np.random.default_rng((variant, question.channels, len(question.sizes)))
    return [_sample(generator, question.channels, size, variant) for size in question.sizes]


def _sample(
    generator: np.random.Generator, channels: int, size: tuple[int, int], variant: int
) -> Sample:
    target = generator.integers(0, channels, (1, *size), dtype=np.uint8)
    logits = generator.standard_normal((1, channels, *size), dtype=np.float32)
    right = target[:, None] == np.arange(channels)[:, None, None]
    logits[right] += 0.5 * (1 + variant)
    return Sample(logits.astype(np.float16), target)


@dataclass(frozen=True)
class Encoding:
    """How a question and its samples become a body."""

    content_type: str
    write: Callable[[Question, Sequence[Sample]], bytes]


def write_json(question: Question, asked: Sequence[Sample]) -> bytes:
    """A JSON document with base64 tensors."""
    inputs = [
        {"logits": encode_tensor(one.logits), "target": encode_tensor(one.target)} for one in asked
    ]
    document = {**question.document, "inputs": inputs[0] if len(inputs) == 1 else inputs}
    return json.dumps(document).encode()


def write_safetensors(question: Question, asked: Sequence[Sample]) -> bytes:
    """A safetensors file."""
    tensors = {
        numbered(index, name, len(asked)): array
        for index, one in enumerate(asked)
        for name, array in (("logits", one.logits), ("target", one.target))
    }
    return b"".join(encode_safetensors(tensors, {"request": json.dumps(question.document)}))


def write_form(question: Question, asked: Sequence[Sample]) -> bytes:
    """What `curl -F losses=… -F logits=@prediction.npy -F target=@mask.png` sends."""
    parts = [("losses", ",".join(question.losses).encode())]
    for one in asked:
        parts.append(("logits", npy(one.logits[0])))
        parts.append(("target", png(one.target[0])))
    return form(parts)


def form(parts: Sequence[tuple[str, bytes]]) -> bytes:
    """A form of these parts; those that begin as a known kind of file are sent as files."""
    return b"".join(_part(name, data) for name, data in parts) + f"--{_BOUNDARY}--\r\n".encode()


def _part(name: str, data: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
    for magic, ending, content_type in _FILES:
        if data.startswith(magic):
            head += f'; filename="{name}{ending}"\r\nContent-Type: {content_type}'
    return f"{head}\r\n\r\n".encode() + data + b"\r\n"


_FILES = (
    (b"\x93NUMPY", ".npy", "application/octet-stream"),
    (_PNG_MAGIC, ".png", "image/png"),
    (b"PK\x03\x04", ".npz", "application/octet-stream"),
)


def npy(array: Array) -> bytes:
    """A NumPy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(mask: Array) -> bytes:
    """A gray PNG of the labels `[H, W]`, as drawing programs write it."""
    height, width = mask.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row is preceded by its filter: none
    rows[:, 1:] = mask
    return png_of(height, width, rows.tobytes())


def png_of(height: int, width: int, rows: bytes) -> bytes:
    """A gray PNG that claims a size and holds the rows it is given."""
    head = struct.pack(">IIBBBBB", width, height, 8, _GRAY, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return _PNG_MAGIC + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


AS_JSON = Encoding(JSON, write_json)
AS_SAFETENSORS = Encoding(SAFETENSORS, write_safetensors)
AS_FORM = Encoding(f"{MULTIPART}; boundary={_BOUNDARY}", write_form)
