"""What the page knows of the whole data set before any image is looked at."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lossd_client.qa.classes import ClassList
from lossd_client.qa.colours import HEAT_STOPS, HOT_NATS, IGNORED_COLOUR, class_colour
from lossd_client.qa.dataset import DataSet
from lossd_client.qa.decisions import (
    FORMAT,
    VERSION,
    Decision,
    Decisions,
    decided_region,
    region_id,
)
from lossd_client.qa.export import Region
from lossd_client.qa.page.cards import HEAT_STEPS_PER_NAT
from lossd_client.qa.ranking import ClassRow, GroupRow, RankedImage
from lossd_client.qa.reviews import ImageReview
from lossd_client.qa_wire import ERROR_KINDS

SHOWN_REGIONS = 9
"""Open regions of an image that the page shows; a digit chooses each. Decided ones come on top."""

_KINDS: tuple[str, ...] = ERROR_KINDS


@dataclass(frozen=True)
class Settings:
    """How a report was made, beside its data.

    Attributes:
        report_id: changes when anything does that the scores depend on.
        numerics_version: that of the service.
        client_version: that of this package.
        disputed_margin: a pixel is disputed where the predicted class leads by more.
        overlays: how many images have a picture in `overlays/`.
        views: how many images have a view.
    """

    report_id: str
    numerics_version: str
    client_version: str
    disputed_margin: float
    overlays: int
    views: int


def head_of(
    data: DataSet,
    settings: Settings,
    *,
    classes: Sequence[ClassRow],
    annotators: Sequence[GroupRow],
    jobs: Sequence[GroupRow],
    decisions: Decisions,
    reviews: Mapping[str, ImageReview],
) -> dict[str, Any]:
    """The page's first document.

    Args:
        data: what was scored.
        settings: how.
        classes: one row per class.
        annotators: one row per annotator.
        jobs: one row per job.
        decisions: what is decided already.
        reviews: of the images that decisions are about.
    """
    return {
        "id": settings.report_id,
        "data_set": "/".join(data.paths.images.parts[-2:]),
        "facts": _facts(data, settings),
        "classes": data.classes.names,
        "colours": [class_colour(label) for label in range(len(data.classes))],
        "ignored_colour": IGNORED_COLOUR,
        "heat": {"stops": HEAT_STOPS, "hot": HOT_NATS, "steps_per_nat": HEAT_STEPS_PER_NAT},
        "kinds": ERROR_KINDS,
        "class_rows": [_class_row(row) for row in classes],
        "group_rows": [
            {"title": title, "rows": [_group_row(row) for row in rows]}
            for title, rows in (("annotator", annotators), ("job", jobs))
            if rows
        ],
        "overlays": settings.overlays,
        "views": settings.views,
        "decisions_file": {"format": FORMAT, "version": VERSION},
        "decisions": [each.model_dump(mode="json") for each in _known(decisions, reviews)],
        "conflicts": [str(conflict) for conflict in decisions.conflicts],
    }


def index_of(image: RankedImage, review: ImageReview, classes: ClassList) -> dict[str, Any]:
    """What the page knows of an image before it is looked at.

    Args:
        image: of the ranking.
        review: where it stands, of all its regions.
        classes: names of the classes.
    """
    exported = image.reviewed()
    shown = shown_regions(review)
    label = {name: place for place, name in enumerate(classes.names)}
    return {
        "name": image.name,
        "file": exported.file_name,
        "size": image.size,
        "suspicion": image.suspicion,
        "kind": image.kind,
        # Regions tell their own; it is read behind the scripts.
        "reason": "" if shown else image.reason,
        "disputed": image.disputed_pixels,
        "pixels": image.pixels,
        "found": image.regions_found,
        "points": exported.points,
        "annotator": image.annotation.annotator,
        "job": exported.job,
        "job_name": image.annotation.job,
        "frame": exported.frame,
        "url": exported.url,
        "labels": image.item.labels_key,
        # A region's name, classes and kind by number, which filters and counts need.
        "regions": [
            [
                region_id(each),
                label[each.given],
                label[each.predicted],
                _KINDS.index(each.kind),
            ]
            for each in shown
        ],
    }


def shown_regions(review: ImageReview) -> list[Region]:
    """Regions of an image that the page shows: decided ones and the first of the open ones."""
    still_open = 0
    shown: list[Region] = []
    for region, decision in zip(review.regions, review.of_regions, strict=True):
        still_open += decision is None
        if decision is not None or still_open <= SHOWN_REGIONS:
            shown.append(region)
    return shown


def _facts(data: DataSet, settings: Settings) -> list[tuple[str, str]]:
    rules = data.rules
    ignored = "none" if rules.ignore_index is None else str(rules.ignore_index)
    facts = [
        ("images", f"{data.paths.images}"),
        ("annotations", f"{data.paths.annotations} ({data.annotation_format})"),
        ("predictions", f"{data.paths.predictions} ({data.choice.kind}: {data.choice.reason})"),
        ("classes", f"{len(data.classes)}, from {data.classes.file}"),
        ("ignored label", ignored),
        ("disputed margin", f"{settings.disputed_margin:g}"),
        ("numerics version", settings.numerics_version),
        ("lossd-client", settings.client_version),
        ("report", settings.report_id),
    ]
    if rules.mapping:
        told = ", ".join(f"{old} to {new}" for old, new in sorted(rules.mapping.items()))
        facts.insert(5, ("map of labels", told))
    return facts


def _class_row(row: ClassRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "pixels": row.pixels,
        "dice": row.dice,
        "disputed": row.disputed_pixels,
        "swaps": row.swaps,
    }


def _group_row(row: GroupRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "images": row.images,
        "suspicion": row.mean_suspicion,
        "disputed": row.disputed_pixels,
        "pixels": row.pixels,
    }


def _known(decisions: Decisions, reviews: Mapping[str, ImageReview]) -> Iterable[Decision]:
    """All decisions, and once more those about regions that are not quite the same any more."""
    yield from decisions
    for review in reviews.values():
        for region, decision in zip(review.regions, review.of_regions, strict=True):
            if decision is None or decision.region is None:
                continue
            if decision.region.id != region_id(region):
                yield decision.model_copy(update={"region": decided_region(region)})
