"""Pages of invented images, written without a service, and what was put into them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lossd_client.qa.annotations import Entry
from lossd_client.qa.classes import ClassList, LabelRules
from lossd_client.qa.dataset import DataSet, Item, Paths
from lossd_client.qa.decisions import Decisions
from lossd_client.qa.export import Region, region_of
from lossd_client.qa.matching import Pair, Photo
from lossd_client.qa.overlays import Overlay
from lossd_client.qa.page import Card, Settings, card_of, head_of, index_of, view_of, write_page
from lossd_client.qa.predictions import KindChoice, PredictionEntry
from lossd_client.qa.ranking import ClassRow, RankedImage, grouped
from lossd_client.qa.reviews import ImageReview, review_of
from lossd_client.qa_wire import ERROR_KINDS, ObservedScores, SubScores
from lossd_client.wire import Array

CLASSES = ("road", "car", "tree & <b>shrub</b>", "sky")
IGNORED = 255
REPORT_ID = "0123456789abcdef"


@dataclass(frozen=True)
class InventedPage:
    """A page and what is in it."""

    path: Path
    ranking: list[RankedImage]
    regions: dict[str, list[Region]]

    @property
    def classes(self) -> ClassList:
        return ClassList(CLASSES, "classes.txt")


def write(
    folder: Path,
    count: int = 12,
    *,
    size: tuple[int, int] = (48, 64),
    views: int | None = None,
    decisions: Decisions | None = None,
) -> InventedPage:
    """Writes `report.html` of so many images into a folder."""
    decisions = decisions or Decisions()
    ranking = [_image(place, count, size) for place in range(count)]
    regions = {image.name: list(_regions(image, size)) for image in ranking}
    seen = count if views is None else views
    data = DataSet(
        pairs=(),
        classes=ClassList(CLASSES, "classes.txt"),
        rules=LabelRules(len(CLASSES), {}, IGNORED),
        choice=KindChoice("logits", "values below 0"),
        problems=(),
        paths=Paths(Path("sets/streets"), Path("job.xml"), Path("logits.npz")),
        annotation_format="CVAT for images",
    )
    reviews = {image.name: review_of(image, regions[image.name], decisions) for image in ranking}
    rows = [
        ClassRow(label, name, 1000, 900, 0.5, 100, (("road", 60), ("sky", 40)))
        for label, name in enumerate(CLASSES)
    ]
    head = head_of(
        data,
        Settings(REPORT_ID, "4", "0.1.0", 0.5, overlays=1, views=seen),
        classes=rows,
        annotators=grouped(ranking, lambda image: image.annotation.annotator),
        jobs=grouped(ranking, lambda image: image.annotation.job),
        decisions=decisions,
        reviews={name: each for name, each in reviews.items() if name in decisions.by_image},
    )
    index = (index_of(image, reviews[image.name], data.classes) for image in ranking)
    path = folder / "report.html"
    write_page(path, head, index, _cards(ranking, reviews, size, seen))
    return InventedPage(path, ranking, regions)


def _image(place: int, count: int, size: tuple[int, int]) -> RankedImage:
    name = f"street-{place:04d}"
    photo = Photo(name, Path(f"{name}.png"), size)
    entry = Entry(
        name,
        "job.xml",
        lambda: np.zeros(size, np.uint8),
        annotator=("ana", "ben")[place % 2],
        job=str(31 + place % 3) if place != 1 else None,
        frame=place,
        url=f"/data/{name}.png" if place % 2 else None,
    )
    prediction = PredictionEntry(
        *(name, name, size, "floats", 2),
        *(lambda: np.zeros(size), lambda: "", lambda: np.zeros(size), lambda: iter(())),
    )
    # More clean images than suspicious ones, as in a real data set.
    suspicion = 9.0 * (1 - place / count) ** 3 - 2 * place / count
    return RankedImage(
        rank=place + 1,
        name=name,
        suspicion=suspicion,
        kind=ERROR_KINDS[place % len(ERROR_KINDS)] if place != 2 else None,
        reason="nothing is disputed" if place == 2 else "an object that is <not> annotated",
        disputed_pixels=100,
        pixels=size[0] * size[1],
        regions_found=0 if place == 2 else 12,
        sub_scores=SubScores(worst_loss=1.0, class_tail=1.0, boundary_loss=None),
        scores=ObservedScores(worst_loss=1.0, boundary_loss=None, mean_loss=1.0, l4_loss=1.0),
        points=((5, 6), (20, 12), (40, 30)),
        item=Item(Pair(name, photo, entry, prediction), f"key-{place}", f"labels-{place}"),
    )


def _regions(image: RankedImage, size: tuple[int, int]) -> Iterator[Region]:
    if image.rank == 3:
        return
    random = np.random.default_rng(image.rank)
    for place in range(3):
        mask = np.zeros(size, bool)
        top, left = 4 + 14 * place, int(random.integers(2, size[1] - 22))
        mask[top : top + 10, left : left + 18] = random.random((10, 18)) < 0.7
        yield region_of(
            mask,
            image=image.name,
            given=CLASSES[place % 4],
            predicted=CLASSES[(place + 1) % 4],
            # Scores whose three digits are told in all ways: 1.23e+03, a half, and plain.
            score=(1234.5, 12.25, float(random.random()))[place],
            kind=ERROR_KINDS[(image.rank + place) % len(ERROR_KINDS)],
            reason='labelled "road", predicted <car>',
            points=((left, top),),
        )


def _cards(
    ranking: Sequence[RankedImage],
    reviews: dict[str, ImageReview],
    size: tuple[int, int],
    views: int,
) -> Iterator[Card]:
    for image in ranking:
        random = np.random.default_rng(image.rank)
        noise = random.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        photo = Image.fromarray(noise).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        regions = reviews[image.name].regions
        overlay = _overlay(photo, _labels(random, size), regions)
        view = view_of(overlay, len(CLASSES)) if image.rank <= views else None
        yield card_of(image.rank, photo, regions, view)


def _labels(random: np.random.Generator, size: tuple[int, int]) -> Array:
    labels = random.integers(0, len(CLASSES), (6, 8), dtype=np.uint8)
    grown: Array = np.kron(labels, np.ones((size[0] // 6, size[1] // 8), np.uint8))
    given: Any = np.pad(grown, ((0, size[0] - grown.shape[0]), (0, size[1] - grown.shape[1])))
    return given  # type: ignore[no-any-return]


def _overlay(photo: Image.Image, labels: Array, regions: Sequence[Region]) -> Overlay:
    given = labels.copy()
    given[:2] = IGNORED
    heat: Any = np.zeros(labels.shape, np.float32)
    for region in regions:
        heat[region.mask()] = 5.25
    return Overlay("", "", photo, given, labels, heat, regions, (), IGNORED)
