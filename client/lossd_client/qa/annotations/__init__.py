"""Annotations of every tool, one module per source."""

from lossd_client.qa.annotations.coco import read_coco
from lossd_client.qa.annotations.cvat import read_cvat
from lossd_client.qa.annotations.detection import detect, read_annotations
from lossd_client.qa.annotations.index_masks import read_index_masks
from lossd_client.qa.annotations.label_studio import read_label_studio
from lossd_client.qa.annotations.source import Annotation, AnnotationSource, Entry
from lossd_client.qa.annotations.voc import read_voc
from lossd_client.qa.annotations.yolo import read_yolo

__all__ = [
    "Annotation",
    "AnnotationSource",
    "Entry",
    "detect",
    "read_annotations",
    "read_coco",
    "read_cvat",
    "read_index_masks",
    "read_label_studio",
    "read_voc",
    "read_yolo",
]
