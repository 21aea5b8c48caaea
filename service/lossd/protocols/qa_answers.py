"""Answers of annotation QA as JSON or as a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from lossd.protocols.answers import Encoding
from lossd_client.wire import Array, encode_safetensors, encode_tensor, numbered


def write_scores(
    said: Mapping[str, Any],
    images: Sequence[Mapping[str, Any]],
    arrays: Sequence[Mapping[str, Array]],
    encoding: Encoding,
) -> list[bytes | memoryview]:
    """Parts of an answer to `/v1/qa/score`.

    Args:
        said: the fields of `qa_wire.ScoreAnswer` but the images.
        images: what is said of each.
        arrays: the tensors of each, by name.
        encoding: of the body.
    """
    if encoding == "safetensors":
        tensors = {
            numbered(index, name, len(images)): array
            for index, own in enumerate(arrays)
            for name, array in own.items()
        }
        text = orjson.dumps({"images": images, **said}).decode()
        return encode_safetensors(tensors, {"response": text})
    written = [
        {**image, "arrays": {name: encode_tensor(array) for name, array in own.items()}}
        for image, own in zip(images, arrays, strict=True)
    ]
    return [orjson.dumps({"images": written, **said})]
