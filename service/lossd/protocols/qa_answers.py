"""Answers of annotation QA as JSON, as lines of JSON, or as a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from lossd.protocols.answers import Encoding, media_type
from lossd_client.qa_wire import LINES
from lossd_client.wire import Array, encode_safetensors, encode_tensor, numbered

ScoresEncoding = Encoding | Literal["lines"]
"""How an answer is written; `lines` is `qa_wire.LINES`."""


def scores_encoding(accept: str, otherwise: Encoding) -> ScoresEncoding:
    """How an answer is written: in lines if the `Accept` header names them, otherwise as said."""
    return "lines" if LINES in accept else otherwise


def scores_media_type(encoding: ScoresEncoding) -> str:
    """Content type of an answer."""
    return LINES if encoding == "lines" else media_type(encoding)


def write_scores(
    said: Mapping[str, Any],
    images: Sequence[Mapping[str, Any]],
    arrays: Sequence[Mapping[str, Array]],
    encoding: ScoresEncoding,
) -> list[bytes | memoryview]:
    """Parts of an answer to `/v1/qa/score`.

    Args:
        said: the fields of `qa_wire.ScoreAnswer` but the images.
        images: what is said of each, regions as an `orjson.Fragment`.
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
    written: list[dict[str, Any]] = [
        {**image, "arrays": {name: encode_tensor(array) for name, array in own.items()}}
        for image, own in zip(images, arrays, strict=True)
    ]
    if encoding == "lines":
        lines = [orjson.dumps(said)]
        for image in written:
            regions = image.pop("regions", None)
            lines += orjson.dumps(image), orjson.dumps(regions)
        return [b"\n".join(lines)]
    return [orjson.dumps({"images": written, **said})]
