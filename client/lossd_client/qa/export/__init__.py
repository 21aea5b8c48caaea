"""The way back: disputed regions in the files that annotation tools read."""

from lossd_client.qa.export.coco import coco_document
from lossd_client.qa.export.cvat import cvat_issues, cvat_xml
from lossd_client.qa.export.label_studio import label_studio_tasks
from lossd_client.qa.export.regions import Region, ReviewedImage, region_of

__all__ = [
    "Region",
    "ReviewedImage",
    "coco_document",
    "cvat_issues",
    "cvat_xml",
    "label_studio_tasks",
    "region_of",
]
