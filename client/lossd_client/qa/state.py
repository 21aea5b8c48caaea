"""What a run knows already, so that one that was interrupted goes on where it was.

Every record is named by what it was made of, and lies in a journal, in which it is whole or not at
all: a process that is killed leaves whole records, and inputs that change change the name. A record
that cannot be read, as a machine that lost its power may leave it, is none.

    observed    scores and counts of an image, deflated
    evidence    what the second pass needs in place of the prediction, the scores too; gone when the
                run is over
    judged      what the service says of an image in its context: a line of JSON, and one of its
                regions, which are the most of it and read by themselves
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from lossd_client.errors import MalformedBodyError
from lossd_client.qa.journal import Journal
from lossd_client.qa_wire import (
    COUNTS,
    ClassScores,
    ErrorKind,
    ObservedScores,
    Point,
    SubScores,
)
from lossd_client.wire import Array, decode_safetensors, encode_safetensors

_Shelf = Literal["observed", "evidence", "judged"]
_SHELVES: tuple[_Shelf, ...] = ("observed", "evidence", "judged")
_FAST = 1
_SCORES = "scores"
_SCORE_NAMES = tuple(ObservedScores.model_fields)
_NEXT = b"\n"
"""Between two lines of JSON, in which no such byte stands."""

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Observed:
    """What the first pass says of an image.

    Attributes:
        scores: those that need no other image.
        counts: the tensors of `qa_wire.COUNTS`, integers.
    """

    scores: ObservedScores
    counts: Mapping[str, Array]


@dataclass(frozen=True)
class Evidence:
    """What the second pass sends of an image in place of its prediction.

    Attributes:
        tensors: by their names on the wire.
        scores: what the first pass says.
    """

    tensors: Mapping[str, Array]
    scores: ObservedScores


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


@dataclass(frozen=True)
class JudgedRegions:
    """What the second pass says of an image's regions.

    Attributes:
        regions: the fields of `qa_wire.Region` of each. A model would take longer to make than the
            file that they are written into.
        points: the fields of `qa_wire.Point` of each place to look at.
    """

    regions: Sequence[Document]
    points: Sequence[Document]


class State:
    """Records of a run in a folder. Safe to share between threads, and between processes.

    Args:
        folder: where they are; made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shelves = {shelf: Journal(folder / shelf) for shelf in _SHELVES}

    def forget(self) -> None:
        """Removes every record."""
        for journal in self._shelves.values():
            journal.forget()

    def close(self) -> None:
        """Closes its files; they are opened again where more is asked."""
        for journal in self._shelves.values():
            journal.close()

    def observed(self, key: str) -> Observed | None:
        """What is known of an image from the first pass."""
        content = self._shelves["observed"].read(key)
        try:
            tensors, metadata = decode_safetensors(zlib.decompress(content or b""))
            scores = ObservedScores.model_validate_json(metadata["scores"])
            return Observed(scores, {name: tensors[name] for name in COUNTS})
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
            # The tensor keeps all headers alike, which are read once.
            kept = {**evidence, _SCORES: _row(observed.scores)}
            self._shelves["evidence"].add(key, encode_safetensors(kept, {}))
        scores = {"scores": observed.scores.model_dump_json()}
        body = b"".join(encode_safetensors(observed.counts, scores))
        # Last, because it says that the evidence is there. Most levels have no pixel.
        self._shelves["observed"].add(key, [zlib.compress(body, _FAST)])

    def evidence(self, key: str) -> Evidence | None:
        """What the second pass sends, tensors that lie in a file; None where there is nothing."""
        content = self._shelves["evidence"].mapped(key)
        if content is None:
            return None
        try:
            tensors = decode_safetensors(content)[0]
            return Evidence(tensors, _scores(tensors.pop(_SCORES)))
        except (MalformedBodyError, ValueError, TypeError, KeyError):
            return None  # as for observed: the prediction is sent again

    def judged(self, key: str) -> Judged | None:
        """What is known of an image from the second pass, without its regions."""
        content = self._shelves["judged"].read(key) or bytearray()
        try:
            return Judged.model_validate_json(content.partition(_NEXT)[0])
        except ValidationError:
            return None  # as for observed

    def judged_regions(self, key: str) -> JudgedRegions | None:
        """The regions that are known of an image from the second pass."""
        head, _, regions = (self._shelves["judged"].read(key) or bytearray()).partition(_NEXT)
        try:
            points = from_json(head, allow_inf_nan=False)["points"]
            return JudgedRegions(from_json(regions, allow_inf_nan=False) or (), points or ())
        except (ValueError, TypeError, KeyError):
            return None  # as for observed

    def keep_judged(self, key: str, head: bytes, regions: bytes) -> None:
        """Keeps what the second pass said.

        Args:
            key: the image's.
            head: a line of JSON, the fields of `ImageScores` but the regions.
            regions: another, the list of regions.
        """
        self._shelves["judged"].add(key, [head, _NEXT, regions])

    def drop_evidence(self) -> None:
        """Removes the largest records, which a finished run needs no more."""
        self._shelves["evidence"].forget()

    def keep_only(self, observed: Iterable[str], judged: Iterable[str]) -> None:
        """Removes records of images that are no longer part of the data set."""
        self._shelves["observed"].keep_only(observed)
        self._shelves["judged"].keep_only(judged)


def _row(scores: ObservedScores) -> Array:
    """`[4]` float64 in the order of the fields; what an image does not have is NaN."""
    values = (getattr(scores, name) for name in _SCORE_NAMES)
    return np.array([math.nan if value is None else value for value in values])


def _scores(row: Array) -> ObservedScores:
    values = (None if math.isnan(value) else value for value in row.tolist())
    return ObservedScores.model_validate(dict(zip(_SCORE_NAMES, values, strict=True)))
