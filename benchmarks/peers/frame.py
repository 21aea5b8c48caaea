"""The plainest bytes that carry the job, for servers that have no tensor format of their own.

request: B C H W, four little-endian uint32 · logits float16 · target uint8
answer:  B C H W · cross_entropy float32 [B] · dice float32 [B] · gradient float16 [B, C, H, W]
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_SHAPE = struct.Struct("<4I")


class Sample(NamedTuple):
    """What is asked."""

    logits: Array
    """`[B, C, H, W]`, float16."""
    target: Array
    """Labels, `[B, H, W]`, uint8."""


class Answer(NamedTuple):
    """What is answered."""

    cross_entropy: Array
    """`[B]`, float32."""
    dice: Array
    """`[B]`, float32."""
    gradient: Array
    """Of the sum of both over the samples, by each logit: `[B, C, H, W]`, float16."""


def encode_request(sample: Sample) -> bytes:
    """A request's bytes."""
    return _SHAPE.pack(*sample.logits.shape) + sample.logits.tobytes() + sample.target.tobytes()


def decode_request(data: bytes | memoryview) -> Sample:
    """Views into a request's bytes."""
    batch, classes, height, width = _SHAPE.unpack_from(data)
    shape = (batch, classes, height, width)
    logits = np.frombuffer(data, "<f2", math.prod(shape), _SHAPE.size)
    target = np.frombuffer(data, np.uint8, offset=_SHAPE.size + logits.nbytes)
    return Sample(logits.reshape(shape), target.reshape(batch, height, width))


def encode_answer(answer: Answer) -> bytes:
    """An answer's bytes, copied once."""
    views = [np.ascontiguousarray(array).data.cast("B") for array in answer]
    return b"".join([_SHAPE.pack(*answer.gradient.shape), *views])


def decode_answer(data: bytes | memoryview) -> Answer:
    """Views into an answer's bytes."""
    shape = _SHAPE.unpack_from(data)
    values = np.frombuffer(data, "<f4", 2 * shape[0], _SHAPE.size)
    gradient = np.frombuffer(data, "<f2", offset=_SHAPE.size + values.nbytes)
    return Answer(values[: shape[0]], values[shape[0] :], gradient.reshape(shape))
