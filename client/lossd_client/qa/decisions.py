"""What people decided about disputed regions, in files that the page of a report saves.

A file is JSON: `format`, `version`, the report's `id` and data set, and a list of decisions, of
which one without a region is about all of its image that no other decision is about. Files are
read and merged here, never written.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lossd_client.qa.export import Region
from lossd_client.qa.problems import DataError
from lossd_client.qa.rle import MAX_PIXELS, decode_coco, expand_coco

Verdict = Literal["confirmed", "rejected", "ambiguous"]
"""The annotation is wrong; it is right and the model errs; the guideline does not say."""

FORMAT = "lossd-qa-decisions"
VERSION = 1

_ID_LENGTH = 8
"""Characters of a region's name; it is told apart from those of its image only."""
_SAME_IOU = 0.5
"""Overlap from which a region is the one that was decided, though a model or a mask changed."""


class DecidedRegion(BaseModel):
    """The region that a decision is about.

    Attributes:
        id: its name within its image, see `region_id`.
        bbox: left column, top row, width and height.
        size: rows and columns of the image.
        counts: COCO's compressed run-length code.
        given: class that the annotation gives.
        predicted: class that the model predicts.
        area_px: pixels.
        kind: probable kind of the error.
        score: how strongly it is disputed.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: Annotated[str, Field(min_length=1, max_length=64)]
    bbox: tuple[int, int, int, int]
    size: tuple[int, int]
    counts: str
    given: str
    predicted: str
    area_px: int
    kind: str
    score: float

    @model_validator(mode="after")
    def _counts_fill_the_image(self) -> "DecidedRegion":
        height, width = self.size
        counts = expand_coco(self.counts)
        if min(height, width) < 1 or height * width > MAX_PIXELS:
            raise ValueError(f"size {self.size} is no size of an image")
        if counts.size == 0 or counts.min() < 0 or int(counts.sum()) != height * width:
            raise ValueError(f"counts do not fill an image of {height} x {width} pixels")
        return self


class _Entry(BaseModel):
    """One entry of a file, but for its verdict."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    image: Annotated[str, Field(min_length=1)]
    region: DecidedRegion | None
    decided_at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
    suspicion: Annotated[float, Field(allow_inf_nan=False)]
    labels: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is about: image, and region or, for all of an image, the state of its mask."""
        if self.region is None:
            return self.image, "", self.labels
        return self.image, self.region.id, ""


class _Written(_Entry):
    verdict: Verdict | Literal["withdrawn"]


class Decision(_Entry):
    """One decision.

    Attributes:
        image: name of the image in the ranking.
        region: what it is about; None for the whole image.
        verdict: what was decided.
        decided_at: when, as `2026-05-01T12:00:00.000Z`; of two decisions the later one counts.
        suspicion: the image's at that time.
        labels: names the state of the mask that was looked at.
    """

    verdict: Verdict


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    format: Literal["lossd-qa-decisions"]
    version: Literal[1]
    decisions: list[_Written]


@dataclass(frozen=True)
class Conflict:
    """Two files decide the same thing differently.

    Attributes:
        file: the file whose decision does not count.
        detail: what both say.
    """

    file: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}: {self.detail}"


class Decisions:
    """Decisions of several files, merged.

    Args:
        merged: one decision for each thing that was decided.
        conflicts: where files contradict each other; an attribute.
    """

    def __init__(self, merged: Iterable[Decision] = (), conflicts: Sequence[Conflict] = ()) -> None:
        self.conflicts = tuple(conflicts)
        self._by_image: dict[str, list[Decision]] = {}
        for decision in sorted(merged, key=lambda decision: decision.key):
            self._by_image.setdefault(decision.image, []).append(decision)

    def __len__(self) -> int:
        return sum(map(len, self._by_image.values()))

    def __iter__(self) -> Iterator[Decision]:
        return (decision for own in self._by_image.values() for decision in own)

    @property
    def by_image(self) -> Mapping[str, Sequence[Decision]]:
        """Decisions of each image that has some."""
        return self._by_image

    def of_regions(self, image: str, regions: Sequence[Region]) -> list[Decision | None]:
        """The decision about each region of an image; None where there is none.

        Args:
            image: its name.
            regions: its regions.

        Returns:
            Of a region of the same pixels and classes; else of one of the same classes that
            overlaps it by half (intersection over union).
        """
        own = [each for each in self._by_image.get(image, []) if each.region is not None]
        if not own:
            return [None] * len(regions)
        exact = {each.region.id: each for each in own if each.region is not None}
        return [exact.get(region_id(region)) or _overlapping(region, own) for region in regions]

    def of_image(self, image: str, labels: str) -> Decision | None:
        """The decision about all of an image, while its mask is as it was.

        Args:
            image: its name.
            labels: state of its mask.
        """
        for each in self._by_image.get(image, []):
            if each.region is None and each.labels == labels:
                return each
        return None


def region_id(region: Region) -> str:
    """Name of a region within its image: a digest of its classes and pixels.

    Example:
        >>> from lossd_client.qa.export import region_of
        >>> words = {"image": "a", "score": 1.0, "kind": "missing", "reason": ""}
        >>> road = region_of(np.ones((1, 2), bool), given="road", predicted="car", **words)
        >>> tree = region_of(np.ones((1, 2), bool), given="tree", predicted="car", **words)
        >>> len(region_id(road)), region_id(road) == region_id(tree)
        (8, False)
    """
    told = json.dumps([region.size, region.given, region.predicted, region.counts])
    return hashlib.sha256(told.encode()).hexdigest()[:_ID_LENGTH]


def decided_region(region: Region) -> DecidedRegion:
    """A region as decisions name it."""
    return DecidedRegion(
        id=region_id(region),
        bbox=region.bbox,
        size=region.size,
        counts=region.counts,
        given=region.given,
        predicted=region.predicted,
        area_px=region.area_px,
        kind=region.kind,
        score=region.score,
    )


def read_decisions(paths: Iterable[Path]) -> Decisions:
    """Decisions of files that the page saved.

    Args:
        paths: the files. Of two decisions about the same thing the later one counts, of two of one
            time that of the file named last; where they differ, it is told.

    Returns:
        What was decided.

    Raises:
        DataError: a file that cannot be read, or is no such file; the message names the field.
    """
    merged: dict[tuple[str, str, str], tuple[_Written, Path]] = {}
    conflicts: list[Conflict] = []
    for path in paths:
        for decision in _read(path):
            before = merged.get(decision.key)
            kept, lost = (decision, path), before
            if before is not None and before[0].decided_at > decision.decided_at:
                kept, lost = before, (decision, path)
            merged[decision.key] = kept
            if lost is not None and _differ(kept[0], lost[0]):
                conflicts.append(_conflict(kept, lost))
    standing = (entry for entry, _ in merged.values() if entry.verdict != "withdrawn")
    made = (Decision.model_validate(entry.model_dump()) for entry in standing)
    return Decisions(made, conflicts)


def _read(path: Path) -> list[_Written]:
    try:
        return _File.model_validate_json(path.read_bytes()).decisions
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        told = f"is no file of decisions, format {FORMAT!r}, version {VERSION}"
        raise DataError(str(path), f"{told}: {where}: {first['msg']}") from error


def _differ(first: _Written, second: _Written) -> bool:
    """Whether two people say different things; to take something back is no contradiction."""
    verdicts = {first.verdict, second.verdict}
    return len(verdicts) > 1 and "withdrawn" not in verdicts


def _conflict(kept: tuple[_Written, Path], lost: tuple[_Written, Path]) -> Conflict:
    decision, path = kept
    about = "as a whole"
    if decision.region is not None:
        left, top, *_ = decision.region.bbox
        about = f"at column {left}, row {top}, {decision.region.given}"
    told = (
        f"{decision.image} {about} is {lost[0].verdict} here and {decision.verdict} in {path}, "
        f"which counts, because it was decided later"
    )
    return Conflict(str(lost[1]), told)


def _overlapping(region: Region, own: Sequence[Decision]) -> Decision | None:
    candidates = [
        decision
        for decision in own
        if decision.region is not None
        and (decision.region.given, decision.region.predicted) == (region.given, region.predicted)
        and decision.region.size == region.size
        and _touch(decision.region.bbox, region.bbox)
    ]
    shares = [_iou(region, decision) for decision in candidates]
    if not shares or max(shares) < _SAME_IOU:
        return None
    return candidates[int(np.argmax(shares))]


def _iou(region: Region, decision: Decision) -> float:
    if decision.region is None:
        return 0.0
    mask, other = region.mask(), decode_coco(decision.region.counts, *decision.region.size)
    return float((mask & other).sum() / (mask | other).sum())


def _touch(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> bool:
    return all(
        first[axis] < second[axis] + second[axis + 2]
        and second[axis] < first[axis] + first[axis + 2]
        for axis in (0, 1)
    )
