"""Quality of annotations: what a data set holds, and the way back to the annotation tools.

Needs `lossd-client[qa]`. Everything loads one image at a time.

Example:
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
from lossd_client.qa.export import (
    Region,
    ReviewedImage,
    coco_document,
    cvat_issues,
    cvat_xml,
    label_studio_tasks,
    region_of,
)
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

__all__ = [
    "Annotation",
    "AnnotationSource",
    "ClassList",
    "DataError",
    "Entry",
    "KindChoice",
    "LabelRules",
    "LoadedPair",
    "Matched",
    "Pair",
    "Photo",
    "PredictionSource",
    "Problem",
    "Region",
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
]
