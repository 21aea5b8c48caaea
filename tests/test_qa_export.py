"""Disputed regions on their way back: what is written is what the tools read."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as pycocotools

from lossd_client.qa import (
    ClassList,
    Region,
    ReviewedImage,
    coco_document,
    cvat_issues,
    cvat_xml,
    label_studio_tasks,
    region_of,
)
from lossd_client.qa.annotations import read_coco, read_cvat, read_label_studio
from lossd_client.qa.rle import Inside

CLASSES = ClassList(("background", "road", "car"), "classes.txt")
IMAGE = ReviewedImage(
    "a",
    "street/a.jpg",
    (4, 5),
    3.5,
    ((2, 1),),
    job=31,
    frame=7,
    url="/data/upload/1/0a1b2c3d-a.jpg",
)
MASK = np.zeros((4, 5), bool)
MASK[1, 2:4] = MASK[2, 1] = True


def a_region(mask: Inside = MASK, predicted: str = "car", score: float = 2.0) -> Region:
    return region_of(
        mask,
        image="a",
        given="road",
        predicted=predicted,
        score=score,
        kind="drop",
        reason="a car is missing",
        points=[(2, 1)],
    )


def test_a_region_has_a_tight_box_and_its_pixels() -> None:
    region = a_region()
    assert (region.bbox, region.area_px, region.size) == ((1, 1, 3, 2), 3, (4, 5))
    assert (region.mask() == MASK).all()
    with pytest.raises(ValueError, match="without pixels"):
        a_region(np.zeros((4, 5), bool))


def test_coco_has_its_own_fields_and_the_reason() -> None:
    document = json.loads(json.dumps(coco_document([a_region()], [IMAGE], CLASSES)))
    assert document["images"] == [
        {
            "id": 1,
            "file_name": "street/a.jpg",
            "height": 4,
            "width": 5,
            "points": [[2, 1]],
            "suspicion": 3.5,
        }
    ]
    assert document["categories"][2] == {"id": 3, "name": "car"}
    (annotation,) = document["annotations"]
    # Down the columns: 6 outside, 1 in, 2, 1, 3, 1, 6; from the fourth on less the one two before:
    # 1 - 1, 3 - 2, 1 - 1, 6 - 3.
    assert annotation == {
        "id": 1,
        "image_id": 1,
        "category_id": 3,
        "bbox": [1, 1, 3, 2],
        "segmentation": {"size": [4, 5], "counts": "6120103"},
        "area": 3,
        "iscrowd": 0,
        "score": 2.0,
        "given_class": "road",
        "predicted_class": "car",
        "kind": "drop",
        "reason": "a car is missing",
        "points": [[2, 1]],
    }
    assert int(pycocotools.area(annotation["segmentation"])) == 3
    assert pycocotools.toBbox(annotation["segmentation"]).tolist() == [1, 1, 3, 2]


def test_cvat_issues_are_bodies_of_its_interface() -> None:
    weak, strong = a_region(score=1.0), a_region(score=9.0)
    issues, problems = cvat_issues([weak, strong], [IMAGE])
    assert [set(issue) for issue in issues] == [{"job", "frame", "position", "message"}] * 2
    assert (issues[0]["job"], issues[0]["frame"]) == (31, 7)
    assert issues[0]["position"] == [1.0, 1.0, 4.0, 3.0]
    assert issues[0]["message"] == (
        "road labelled, car predicted on 3 pixels (drop, score 9): a car is missing"
    )
    assert problems == []


def test_an_image_whose_job_is_not_known_is_told() -> None:
    unknown = ReviewedImage("a", "a.jpg", (4, 5), frame=3)
    issues, (problem,) = cvat_issues([a_region(), a_region()], [unknown])
    assert issues == []
    assert str(problem) == "a.jpg: its job or frame in CVAT is not known; 2 issues are left out"


def test_cvat_xml_has_rows_inside_the_box() -> None:
    root = ET.fromstring(cvat_xml([a_region()], [IMAGE]))  # noqa: S314 - ours
    (image,) = root.iter("image")
    assert image.attrib == {"id": "7", "name": "street/a.jpg", "width": "5", "height": "4"}
    (mask,) = image
    # Rows of the box:  . # #   one outside, three inside, two outside.
    #                   # . .
    assert mask.attrib["rle"] == "1, 3, 2"
    assert [mask.attrib[key] for key in ("left", "top", "width", "height")] == ["1", "1", "3", "2"]
    assert mask.attrib["label"] == "car"


def test_names_are_escaped_and_control_characters_replaced() -> None:
    image = ReviewedImage("a", "<a>&\x00.jpg", (4, 5))
    root = ET.fromstring(cvat_xml([a_region()], [image]))  # noqa: S314 - ours
    assert root[1].attrib["name"] == "<a>&\ufffd.jpg"


def test_label_studio_tasks_carry_predictions() -> None:
    (task,) = label_studio_tasks([a_region()], [IMAGE], from_name="tag", to_name="img")
    assert task["data"] == {"image": "/data/upload/1/0a1b2c3d-a.jpg"}
    (prediction,) = task["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("lossd", 3.5)
    (result,) = prediction["result"]
    assert (result["type"], result["from_name"], result["to_name"]) == ("brushlabels", "tag", "img")
    assert (result["original_width"], result["original_height"]) == (5, 4)
    assert result["value"]["brushlabels"] == ["car"]
    assert result["value"]["format"] == "rle"
    assert result["score"] == 2.0


def test_images_without_regions_are_left_out_of_what_is_reviewed() -> None:
    other = ReviewedImage("b", "b.jpg", (1, 1))
    assert len(label_studio_tasks([a_region()], [other, IMAGE])) == 1
    assert len(coco_document([a_region()], [other, IMAGE], CLASSES)["images"]) == 2


def test_a_region_of_no_image_is_refused() -> None:
    small = ReviewedImage("a", "a.jpg", (4, 4))
    with pytest.raises(ValueError, match=r"image 'a' of size \(4, 5\); the images say \(4, 4\)"):
        cvat_issues([a_region()], [small])
    with pytest.raises(ValueError, match="the images say nothing of it"):
        label_studio_tasks([a_region()], [])
    with pytest.raises(ValueError, match="image 'a', which is not there"):
        coco_document([a_region()], [], CLASSES)
    with pytest.raises(ValueError, match="'tree' is not one of"):
        coco_document([a_region(predicted="tree")], [IMAGE], CLASSES)


def test_the_most_disputed_region_lies_on_top(tmp_path: Path) -> None:
    strong, weak = a_region(score=9.0), a_region(np.ones((4, 5), bool), "road", 1.0)
    (tmp_path / "tasks.json").write_text(json.dumps(label_studio_tasks([strong, weak], [IMAGE])))
    (tmp_path / "cvat.xml").write_bytes(cvat_xml([strong, weak], [IMAGE]))
    for source in (
        read_label_studio(tmp_path / "tasks.json", classes=CLASSES, part="predictions"),
        read_cvat(tmp_path / "cvat.xml", classes=CLASSES),
    ):
        (annotation,) = source
        assert (annotation.mask == np.where(MASK, 2, 1)).all()


masks = hnp.arrays(np.bool_, (4, 5)).filter(lambda mask: bool(mask.any()))


@settings(max_examples=50)
@given(st.lists(masks, min_size=1, max_size=3))
def test_the_readers_read_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, found: list[Inside]
) -> None:
    folder = tmp_path_factory.mktemp("export")
    regions = [a_region(mask, score=float(place)) for place, mask in enumerate(found)]
    expected = np.where(np.any(found, axis=0), 2, 0)
    (folder / "regions.json").write_text(json.dumps(coco_document(regions, [IMAGE], CLASSES)))
    (folder / "tasks.json").write_text(json.dumps(label_studio_tasks(regions, [IMAGE])))
    (folder / "cvat.xml").write_bytes(cvat_xml(regions, [IMAGE]))
    sources = [
        read_coco(folder / "regions.json", classes=CLASSES),
        read_label_studio(folder / "tasks.json", classes=CLASSES, part="predictions"),
        read_cvat(folder / "cvat.xml", classes=CLASSES),
    ]
    for source in sources:
        (annotation,) = source
        assert (annotation.mask == expected).all()
        assert Path(annotation.name).name == "a"
        assert source.problems == ()
