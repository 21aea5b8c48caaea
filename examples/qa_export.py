"""Writes the demo's photos as annotation QA takes a data set: an export of CVAT, and predictions.

    python examples/qa_export.py FOLDER              three masks are spoiled
    python examples/qa_export.py FOLDER --corrected  and nothing else: the masks as they were drawn

`FOLDER/images` has the photos, `FOLDER/annotations.xml` what CVAT would export of two jobs,
`FOLDER/predictions` the segmenter's log-odds, `FOLDER/classes.txt` the classes. With `--corrected`
only the annotations are written again, as after a second export.
"""

import argparse
import shutil
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np
from PIL import Image

from annotations import HERE, IGNORED, Annotation, Mask, read
from lossd_client.qa.rle import encode_cvat
from segmenter import segment

CLASSES = ("background", "object")
FIRST_JOB = 31
"""CVAT's id of the first job."""
JOB_FRAMES = 6
"""Frames of a job."""


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Write the demo's photos as a QA data set.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corrected", action="store_true", help="only the masks, as drawn")
    known = parser.parse_args()
    images = read().images
    known.folder.mkdir(parents=True, exist_ok=True)
    if known.corrected:
        write_annotations(known.folder, {name: drawn(each, name) for name, each in images.items()})
        return
    write_annotations(known.folder, {name: given(each, name) for name, each in images.items()})
    write_predictions(known.folder, list(images))


def write_annotations(folder: Path, masks: dict[str, Mask]) -> None:
    """`annotations.xml`, CVAT for images, with one mask each."""
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    _describe_task(SubElement(root, "meta"), len(masks))
    for frame, (name, mask) in enumerate(masks.items()):
        height, width = mask.shape
        size = {"width": str(width), "height": str(height)}
        image = SubElement(root, "image", {"id": str(frame), "name": f"{name}.png", **size})
        inside = mask == 1
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if rows.size == 0:
            continue
        top, left = int(rows[0]), int(columns[0])
        patch = inside[top : rows[-1] + 1, left : columns[-1] + 1]
        box = {"left": left, "top": top, "width": patch.shape[1], "height": patch.shape[0]}
        attributes = {"label": "object", "source": "manual", "occluded": "0", "z_order": "0"}
        attributes |= {side: str(value) for side, value in box.items()}
        SubElement(image, "mask", {**attributes, "rle": encode_cvat(patch)})
    indent(root)
    ElementTree(root).write(folder / "annotations.xml", encoding="utf-8", xml_declaration=True)


def write_predictions(folder: Path, names: list[str]) -> None:
    """Photos, classes, and the segmenter's log-odds of `object`."""
    for part in ("images", "predictions"):
        (folder / part).mkdir(exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    for name in names:
        shutil.copy(HERE / "images" / f"{name}.png", folder / "images")
        logits = segment(_photo(name))
        np.save(folder / "predictions" / f"{name}.npy", logits[0].astype(np.float16))


def given(annotation: Annotation, name: str) -> Mask:
    """The mask as it was handed in; CVAT knows no pixels that do not count."""
    return _counting(annotation.given(*_photo(name).shape[:2]))


def drawn(annotation: Annotation, name: str) -> Mask:
    """The mask as it should be."""
    return _counting(annotation.drawn(*_photo(name).shape[:2]))


def _counting(mask: Mask) -> Mask:
    return np.where(mask == IGNORED, 0, mask).astype(np.uint8)


def _photo(name: str) -> Mask:
    with Image.open(HERE / "images" / f"{name}.png") as photo:
        return np.asarray(photo.convert("RGB"))


def _describe_task(meta: Element, frames: int) -> None:
    task = SubElement(meta, "task")
    SubElement(task, "id").text = "12"
    label = SubElement(SubElement(task, "labels"), "label")
    SubElement(label, "name").text = "object"
    segments = SubElement(task, "segments")
    for place, start in enumerate(range(0, frames, JOB_FRAMES)):
        segment_element = SubElement(segments, "segment")
        stop = min(frames, start + JOB_FRAMES) - 1
        for name, value in (("id", FIRST_JOB + place), ("start", start), ("stop", stop)):
            SubElement(segment_element, name).text = str(value)
    assignee = SubElement(task, "assignee")
    SubElement(assignee, "username").text = "ann"


if __name__ == "__main__":
    main()
