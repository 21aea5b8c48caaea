"""Quality of annotations: which are doubtful, and the way back to the annotation tools.

Needs `lossd-client[qa]`. Everything loads a few images at a time.

`score` ranks a data set through a service and writes what a review needs; `lossd-client qa` does
the same from the command line. The readers can be used on their own.

Example:
    >>> from lossd_client import Client
    >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     report = score(
    ...         images="images", annotations="export.xml", predictions="logits.npz",
    ...         client=client, ignore_index=255, out="report",
    ...     )
    ...     for image in report.ranking[:3]:
    ...         print(image.name, image.suspicion, image.reason)
    >>> from pathlib import Path
    >>> photos, unreadable = read_photos(Path("images"))  # doctest: +SKIP
    >>> classes = read_classes(Path("classes.txt"))  # doctest: +SKIP
    >>> annotations = read_annotations(Path("export"), classes=classes)  # doctest: +SKIP
    >>> matched = match(photos, annotations, read_predictions(Path("logits.npz")))  # doctest: +SKIP
    >>> for problem in matched.problems:  # doctest: +SKIP
    ...     print(problem)
"""

from lossd_client.qa.annotations import Annotation, AnnotationSource, Entry, read_annotations
from lossd_client.qa.classes import ClassList, LabelRules, compact, parse_map, read_classes
from lossd_client.qa.dataset import RefusedError
from lossd_client.qa.export import (
    Region,
    ReviewedImage,
    coco_document,
    cvat_issues,
    cvat_xml,
    label_studio_tasks,
    region_of,
)
from lossd_client.qa.live import Rescored
from lossd_client.qa.matching import (
    LoadedPair,
    Matched,
    Pair,
    Photo,
    check_classes,
    check_labels,
    match,
    read_photos,
)
from lossd_client.qa.predictions import KindChoice, PredictionSource, choose_kind, read_predictions
from lossd_client.qa.problems import DataError, Problem
from lossd_client.qa.ranking import ClassRow, GroupRow, RankedImage
from lossd_client.qa.report import Report
from lossd_client.qa.scoring import score

__all__ = [
    "Annotation",
    "AnnotationSource",
    "ClassList",
    "ClassRow",
    "DataError",
    "Entry",
    "GroupRow",
    "KindChoice",
    "LabelRules",
    "LoadedPair",
    "Matched",
    "Pair",
    "Photo",
    "PredictionSource",
    "Problem",
    "RankedImage",
    "RefusedError",
    "Region",
    "Report",
    "Rescored",
    "ReviewedImage",
    "check_classes",
    "check_labels",
    "choose_kind",
    "coco_document",
    "compact",
    "cvat_issues",
    "cvat_xml",
    "label_studio_tasks",
    "match",
    "parse_map",
    "read_annotations",
    "read_classes",
    "read_photos",
    "read_predictions",
    "region_of",
    "score",
]
