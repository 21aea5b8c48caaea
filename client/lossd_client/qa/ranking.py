"""What a scored data set amounts to: a ranking of its images, its classes, its regions."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lossd_client.qa.annotations import Entry
from lossd_client.qa.classes import ClassList
from lossd_client.qa.dataset import Item
from lossd_client.qa.export import Region, ReviewedImage
from lossd_client.qa.state import Judged
from lossd_client.qa_wire import ClassScores, ErrorKind, ObservedScores, SubScores

_SWAPS = 3
"""Swaps of a class that are told."""


@dataclass(frozen=True, slots=True)
class RankedImage:
    """An image of the ranking.

    Attributes:
        rank: place, from 1; 1 is looked at first.
        name: what it is called: file name without extension, with folders where two are alike.
        suspicion: sum of the sub-scores' z-scores over the data set, in [-12, 31]; higher is
            looked at first.
        kind: what probably went wrong; None where nothing is disputed.
        reason: the same in words.
        disputed_pixels: pixels where the model contradicts the annotation.
        pixels: pixels that count.
        regions_found: number of disputed regions.
        sub_scores: what suspicion is made of.
        scores: scores that need no other image, in nats.
        points: columns and rows of up to five pixels, to be looked at first.
        item: the image's files.
    """

    rank: int
    name: str
    suspicion: float
    kind: ErrorKind | None
    reason: str
    disputed_pixels: int
    pixels: int
    regions_found: int
    sub_scores: SubScores
    scores: ObservedScores
    points: tuple[tuple[int, int], ...]
    item: Item = field(repr=False)

    @property
    def annotation(self) -> Entry:
        """Where the annotation comes from: annotator, job, task and frame, where they are known."""
        return self.item.pair.annotation

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.item.pair.photo.size

    def reviewed(self) -> ReviewedImage:
        """The image as exports know it."""
        entry = self.annotation
        return ReviewedImage(
            name=self.name,
            file_name=self.item.pair.photo.name + self.item.pair.photo.path.suffix,
            size=self.size,
            suspicion=self.suspicion,
            points=self.points,
            job=_number(entry.job),
            frame=entry.frame,
            url=entry.url,
        )


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class over the whole data set.

    Attributes:
        label: its place among the classes.
        name: its name.
        pixels: pixels that count and are given this class.
        predicted_pixels: pixels that count and are predicted as it.
        dice: Dice coefficient of annotation and prediction over all pixels; None where the class
            is neither given nor predicted.
        disputed_pixels: pixels given this class that are disputed.
        swaps: classes that most images' disputed pixels of it are taken for, weighted by their
            pixels, and how many they are; the most frequent first, at most three.
    """

    label: int
    name: str
    pixels: int
    predicted_pixels: int
    dice: float | None
    disputed_pixels: int
    swaps: tuple[tuple[str, int], ...]

    @property
    def swapped_with(self) -> str | None:
        """The first of `swaps`; None where no pixel is disputed."""
        return self.swaps[0][0] if self.swaps else None

    @property
    def swapped_pixels(self) -> int:
        """How many pixels of it are taken for `swapped_with`."""
        return self.swaps[0][1] if self.swaps else 0

    @property
    def disputed_share(self) -> float:
        """Disputed pixels of those given; 0 where there are none."""
        return self.disputed_pixels / self.pixels if self.pixels else 0.0


@dataclass(frozen=True, slots=True)
class GroupRow:
    """The images of one annotator or one job.

    Attributes:
        name: who or which.
        images: how many.
        mean_suspicion: mean over them.
        disputed_pixels: over all of them.
        pixels: pixels that count, over all of them.
    """

    name: str
    images: int
    mean_suspicion: float
    disputed_pixels: int
    pixels: int

    @property
    def disputed_share(self) -> float:
        """Disputed pixels of those that count; 0 where there are none."""
        return self.disputed_pixels / self.pixels if self.pixels else 0.0


class ClassTotals:
    """Sums of the classes over images, in which the order of the images does not show.

    Args:
        classes: names of the classes.
    """

    def __init__(self, classes: ClassList) -> None:
        self._classes = classes
        self._given: Counter[int] = Counter()
        self._predicted: Counter[int] = Counter()
        self._agreed: Counter[int] = Counter()
        self._disputed: Counter[int] = Counter()
        self._swaps: dict[int, Counter[int]] = {}

    def add(self, scores: Iterable[ClassScores]) -> None:
        """Counts the classes of one image."""
        for each in scores:
            both = each.pixels + each.predicted_pixels
            self._given[each.index] += each.pixels
            self._predicted[each.index] += each.predicted_pixels
            self._agreed[each.index] += round(each.dice * both / 2)
            self._disputed[each.index] += each.disputed_pixels
            if each.swap is not None:
                swaps = self._swaps.setdefault(each.index, Counter())
                swaps[each.swap.predicted] += each.swap.pixels

    def rows(self) -> tuple[ClassRow, ...]:
        """One row per class, in the order of the labels."""
        return tuple(self._row(label, name) for label, name in enumerate(self._classes.names))

    def _row(self, label: int, name: str) -> ClassRow:
        given, predicted = self._given[label], self._predicted[label]
        both = given + predicted
        swaps = sorted(self._swaps.get(label, {}).items(), key=lambda swap: (-swap[1], swap[0]))
        return ClassRow(
            label=label,
            name=name,
            pixels=given,
            predicted_pixels=predicted,
            dice=2 * self._agreed[label] / both if both else None,
            disputed_pixels=self._disputed[label],
            swaps=tuple((self._classes.names[other], pixels) for other, pixels in swaps[:_SWAPS]),
        )


def unranked(item: Item, judged: Judged) -> RankedImage:
    """An image before the others are known: its place is 0, its suspicion 0.

    Args:
        item: the image.
        judged: what the service says of it; nothing large of it is kept.

    Raises:
        ValueError: it was judged without a context.
    """
    if judged.sub_scores is None:
        raise ValueError(f"{item.pair.name} was judged without a context")
    return RankedImage(
        rank=0,
        name=item.pair.name,
        suspicion=0.0,
        kind=judged.kind,
        reason=judged.reason or "",
        disputed_pixels=judged.disputed_pixels or 0,
        pixels=judged.pixels,
        regions_found=judged.regions_found or 0,
        sub_scores=judged.sub_scores,
        scores=judged.scores,
        points=tuple((point.x, point.y) for point in judged.points or ()),
        item=item,
    )


def ranked(images: Sequence[RankedImage], suspicions: Sequence[float]) -> tuple[RankedImage, ...]:
    """Images in the order in which they should be looked at.

    Args:
        images: as `unranked` gives them.
        suspicions: of each.

    Returns:
        The worst first; equal ones in the order of their names.
    """
    pairs = zip(images, suspicions, strict=True)
    order = sorted(pairs, key=lambda pair: (-pair[1], pair[0].name))
    return tuple(
        replace(image, rank=rank, suspicion=suspicion)
        for rank, (image, suspicion) in enumerate(order, start=1)
    )


def grouped(
    ranking: Iterable[RankedImage], key: Callable[[RankedImage], str | None]
) -> tuple[GroupRow, ...]:
    """Images by annotator, job or what the key says.

    Args:
        ranking: the images.
        key: name of an image's group; None where it has none.

    Returns:
        The group of the highest mean suspicion first.
    """
    groups: dict[str, list[RankedImage]] = {}
    for image in ranking:
        name = key(image)
        if name is not None:
            groups.setdefault(name, []).append(image)
    rows = [_group_row(name, images) for name, images in groups.items()]
    return tuple(sorted(rows, key=lambda row: (-row.mean_suspicion, row.name)))


def regions_of(
    name: str,
    regions: Sequence[Mapping[str, Any]],
    points: Sequence[Mapping[str, Any]],
    classes: ClassList,
) -> list[Region]:
    """Disputed regions of an image of that name as exports know them, the most disputed first.

    Args:
        name: the image's.
        regions: the fields of `qa_wire.Region` of each.
        points: the fields of `qa_wire.Point` of each.
        classes: names of the classes.
    """
    inside: dict[int | None, tuple[tuple[int, int], ...]] = {}
    for point in points:
        place = point["region"]
        inside[place] = (*inside.get(place, ()), (point["x"], point["y"]))
    return [
        _region(name, region, classes, inside.get(place, ()))
        for place, region in enumerate(regions)
    ]


def _region(
    name: str,
    region: Mapping[str, Any],
    classes: ClassList,
    points: tuple[tuple[int, int], ...],
) -> Region:
    rle = region["rle"]
    return Region(
        image=name,
        size=tuple(rle["size"]),
        bbox=tuple(region["bbox"]),
        counts=rle["counts"],
        area_px=region["area"],
        given=classes.names[region["given"]],
        predicted=classes.names[region["predicted"]],
        score=region["score"],
        kind=region["kind"],
        reason=region["reason"],
        points=points,
    )


def _group_row(name: str, images: Sequence[RankedImage]) -> GroupRow:
    return GroupRow(
        name=name,
        images=len(images),
        mean_suspicion=sum(image.suspicion for image in images) / len(images),
        disputed_pixels=sum(image.disputed_pixels for image in images),
        pixels=sum(image.pixels for image in images),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
