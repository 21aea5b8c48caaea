"""The files of a report, each written under another name and put in its place when it is whole."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic_core import to_json

from lossd_client.qa.classes import ClassList
from lossd_client.qa.export import Region, cvat_issues, label_studio_tasks
from lossd_client.qa.export.coco import coco_annotation, coco_head, coco_image
from lossd_client.qa.problems import Problem
from lossd_client.qa.ranking import RankedImage

RANKING_COLUMNS = (
    *("rank", "name", "suspicion", "probable_kind", "disputed_pixels"),
    *("worst_loss", "class_tail", "boundary_loss", "straightness", "mean_loss", "l4_loss"),
    *("pixels", "regions", "reason", "annotator", "job", "file", "verdict"),
)
PROBLEM_COLUMNS = ("kind", "file", "detail")
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)

Reviewed = Iterable[tuple[RankedImage, Sequence[Region]]]
"""Images, the worst first, with their regions, the most disputed first; read one at a time."""


def write_ranking(path: Path, ranking: Iterable[RankedImage], verdicts: Mapping[str, str]) -> None:
    """The ranking as CSV: scores in nats, empty where there is none; verdicts by image."""
    rows = ((*_ranking_row(image), verdicts.get(image.name)) for image in ranking)
    _write_table(path, RANKING_COLUMNS, rows)


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """What was left out, as CSV."""
    rows = ((problem.kind, problem.file, problem.detail) for problem in problems)
    _write_table(path, PROBLEM_COLUMNS, rows)


def write_regions(
    path: Path, ranking: Sequence[RankedImage], reviewed: Reviewed, classes: ClassList
) -> None:
    """Disputed regions as COCO JSON, see `coco_document`, of which one line is held at a time."""
    with whole(path) as file:
        file.write('{\n"info": ')
        head = coco_head(classes)
        file.write(_line(head["info"]))
        file.write(',\n"categories": ')
        file.write(_line(head["categories"]))
        file.write(',\n"images": ')
        _write_list(file, (coco_image(image.reviewed(), image.rank) for image in ranking))
        file.write(',\n"annotations": ')
        _write_lines(file, _coco_annotations(reviewed, classes))
        file.write("\n}\n")


def write_cvat_issues(path: Path, reviewed: Reviewed) -> list[Problem]:
    """Bodies for CVAT's `POST /api/issues` as a JSON list.

    Returns:
        One problem per image whose job or frame is not known.
    """
    problems: list[Problem] = []

    def issues() -> Iterator[dict[str, Any]]:
        for image, regions in reviewed:
            found, missing = cvat_issues(regions, [image.reviewed()])
            problems.extend(missing)
            yield from found

    with whole(path) as file:
        _write_list(file, issues())
    return problems


def write_label_studio(path: Path, reviewed: Reviewed) -> None:
    """Tasks with predictions for Label Studio's import, as a JSON list."""
    with whole(path) as file:
        tasks = (label_studio_tasks(regions, [image.reviewed()]) for image, regions in reviewed)
        _write_list(file, (task for each in tasks for task in each))


@contextmanager
def whole(path: Path) -> Iterator[IO[str]]:
    """A text file that takes the place of `path` only when nothing went wrong."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        yield file
    partial.replace(path)


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _ranking_row(image: RankedImage) -> tuple[object, ...]:
    entry = image.annotation
    return (
        *(image.rank, image.name, image.suspicion, image.kind, image.disputed_pixels),
        *(image.sub_scores.worst_loss, image.sub_scores.class_tail),
        *(image.sub_scores.boundary_loss, image.sub_scores.straightness),
        *(image.scores.mean_loss, image.scores.l4_loss),
        *(image.pixels, image.regions_found, image.reason, entry.annotator, entry.job),
        image.item.pair.photo.path.name,
    )


def _coco_annotations(reviewed: Reviewed, classes: ClassList) -> Iterator[str]:
    """One text for each image that has regions, a line for each of them."""
    number = 1
    for image, regions in reviewed:
        if regions:
            own = [
                coco_annotation(region, place, image.rank, classes)
                for place, region in enumerate(regions, start=number)
            ]
            number += len(own)
            # Quotes are escaped where they are part of a text, so that it is none that is cut.
            yield to_json(own)[1:-1].decode().replace('},{"id":', '},\n{"id":')


def _write_list(file: IO[str], entries: Iterable[object]) -> None:
    _write_lines(file, map(_line, entries))


def _write_lines(file: IO[str], lines: Iterable[str]) -> None:
    before = "[\n"
    for line in lines:
        file.write(before + line)
        before = ",\n"
    file.write("[]" if before == "[\n" else "\n]")


def _line(entry: object) -> str:
    return _ENCODER.encode(entry)
