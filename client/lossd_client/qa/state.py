"""What a run knows already, so that one that was interrupted goes on where it was.

Every record is a file of its own, named by what it was made of, that appears whole or not at all: a
process that is killed leaves whole records, and inputs that change change the name. A record that
cannot be read, as a machine that lost its power may leave it, is none.

    observed/KEY    scores and histogram of an image, deflated
    evidence/KEY    what the second pass needs in place of the prediction; gone when the run is over
    judged/KEY      everything the service says of an image in its context, JSON
"""

import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lossd_client.errors import MalformedBodyError
from lossd_client.qa_wire import (
    HISTOGRAM,
    ClassScores,
    ErrorKind,
    ImageScores,
    ObservedScores,
    Point,
    SubScores,
)
from lossd_client.wire import Array, decode_safetensors, encode_safetensors

_Shelf = Literal["observed", "evidence", "judged"]
_SHELVES: tuple[_Shelf, ...] = ("observed", "evidence", "judged")
_FAST = 1
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_PREFIX = 2
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Observed:
    """What the first pass says of an image.

    Attributes:
        scores: those that need no other image.
        histogram: `[C, 256]` integers.
    """

    scores: ObservedScores
    histogram: Array


class Judged(BaseModel):
    """What the second pass says of an image, but for its regions, which are the most of it.

    The fields are those of `ImageScores`.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    pixels: int
    scores: ObservedScores
    sub_scores: SubScores | None
    disputed_pixels: int | None
    kind: ErrorKind | None
    reason: str | None
    points: list[Point] | None
    regions_found: int | None
    per_class: list[ClassScores] | None


_Record = TypeVar("_Record", Judged, ImageScores)


class State:
    """Records of a run in a folder. Safe to share between threads, and between processes.

    Args:
        folder: where they are; made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def forget(self) -> None:
        """Removes every record."""
        for shelf in _SHELVES:
            shutil.rmtree(self._folder / shelf, ignore_errors=True)

    def observed(self, key: str) -> Observed | None:
        """What is known of an image from the first pass."""
        content = self._read("observed", key)
        try:
            tensors, metadata = decode_safetensors(zlib.decompress(content or b""))
            scores = ObservedScores.model_validate_json(metadata["scores"])
            return Observed(scores, tensors[HISTOGRAM])
        except (zlib.error, MalformedBodyError, ValidationError, KeyError):
            return None  # no record, or half of one: the image is observed again

    def keep_observed(self, key: str, observed: Observed, evidence: Mapping[str, Array]) -> None:
        """Keeps what the first pass said.

        Args:
            key: the image's.
            observed: what it said.
            evidence: tensors for the second pass; none where the prediction is sent again.
        """
        if evidence:
            self._write("evidence", key, encode_safetensors(evidence, {}))
        scores = {"scores": observed.scores.model_dump_json()}
        body = b"".join(encode_safetensors({HISTOGRAM: observed.histogram}, scores))
        # Last, because it says that the evidence is there. Most levels have no pixel.
        self._write("observed", key, [zlib.compress(body, _FAST)])

    def evidence(self, key: str) -> dict[str, Array] | None:
        """Tensors for the second pass; None where there are none."""
        content = self._read("evidence", key)
        if content is None:
            return None
        try:
            return decode_safetensors(content)[0]
        except MalformedBodyError:
            return None  # as for observed: the prediction is sent again

    def judged(self, key: str, kind: type[_Record]) -> _Record | None:
        """What is known of an image from the second pass, with its regions or without."""
        content = self._read("judged", key)
        try:
            return None if content is None else kind.model_validate_json(content)
        except ValidationError:
            return None  # as for observed

    def keep_judged(self, key: str, document: Mapping[str, Any]) -> None:
        """Keeps what the second pass said, the fields of `ImageScores`."""
        self._write("judged", key, [_ENCODER.encode(document).encode()])

    def drop_evidence(self) -> None:
        """Removes the largest records, which a finished run needs no more."""
        shutil.rmtree(self._folder / "evidence", ignore_errors=True)

    def keep_only(self, observed: Iterable[str], judged: Iterable[str]) -> None:
        """Removes records of images that are no longer part of the data set."""
        for shelf, keys in (("observed", set(observed)), ("judged", set(judged))):
            for path in list((self._folder / shelf).glob("*/*")):
                if path.name not in keys:
                    path.unlink(missing_ok=True)

    def _path(self, shelf: _Shelf, key: str) -> Path:
        return self._folder / shelf / key[:_PREFIX] / key

    def _read(self, shelf: _Shelf, key: str) -> bytearray | None:
        try:
            with self._path(shelf, key).open("rb", buffering=0) as file:
                content = bytearray(os.fstat(file.fileno()).st_size)
                return content if file.readinto(content) == len(content) else None
        except FileNotFoundError:
            return None

    def _write(self, shelf: _Shelf, key: str, parts: Sequence[bytes | memoryview]) -> None:
        path = self._path(shelf, key)
        partial = path.with_name(f"{key}-{os.getpid()}-{threading.get_native_id()}{_PARTIAL}")
        try:
            file = partial.open("wb", buffering=0)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = partial.open("wb", buffering=0)
        with file:
            for part in parts:
                file.write(part)
        partial.replace(path)
