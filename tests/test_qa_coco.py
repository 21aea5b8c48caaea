"""COCO JSON, written by hand from the format's page."""

import json
from pathlib import Path
from typing import Any

import pytest

from lossd_client.qa.annotations import read_coco
from lossd_client.qa.annotations.coco import Overlap
from lossd_client.qa.classes import ClassList
from lossd_client.qa.painting import UNLABELLED
from lossd_client.qa.problems import DataError

CATEGORIES = [{"id": 7, "name": "car"}, {"id": 3, "name": "road"}]


def box(left: int, top: int, right: int, bottom: int) -> list[int]:
    """Corners of a polygon that covers whole pixels."""
    return [left, top, right, top, right, bottom, left, bottom]


def an_object(number: int = 3, **fields: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": number, "iscrowd": 0, **fields}


def write(folder: Path, *objects: dict[str, Any], **fields: Any) -> Path:
    image = {"id": 1, "file_name": "street/a.jpg", "height": 2, "width": 3}
    document = {"images": [image], "categories": CATEGORIES, "annotations": list(objects), **fields}
    path = folder / "instances.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def labels(path: Path, **options: Any) -> list[list[int]]:
    (annotation,) = read_coco(path, **options)
    rows: list[list[int]] = annotation.mask.tolist()
    return rows


def test_classes_are_the_categories_by_rising_id_behind_the_background(tmp_path: Path) -> None:
    source = read_coco(write(tmp_path, an_object(segmentation=[box(0, 0, 1, 1)])))
    assert source.classes is not None
    assert source.classes.names == ("background", "road", "car")
    assert source.entries[0].name == "street/a"
    assert source.entries[0].size == (2, 3)
    assert labels(tmp_path / "instances.json") == [[1, 0, 0], [0, 0, 0]]


def test_named_classes_decide_the_labels(tmp_path: Path) -> None:
    path = write(tmp_path, an_object(segmentation=[box(0, 0, 1, 1)]))
    void = UNLABELLED
    classes = ClassList(("car", "road"), "classes.txt")
    assert labels(path, classes=classes) == [[1, void, void], [void, void, void]]


def test_both_run_length_codes_go_down_the_columns_and_keep_holes(tmp_path: Path) -> None:
    # Columns "# #", "# .", "# #" of two rows: none outside, three inside, one outside, two inside.
    listed = {"size": [2, 3], "counts": [0, 3, 1, 2]}
    # As a string: 0, 3, 1, and 2 less the count two before, which is -1: 31 + 48 = 'O'.
    string = {"size": [2, 3], "counts": "031O"}
    for segmentation in (listed, string):
        path = write(tmp_path, an_object(segmentation=segmentation))
        assert labels(path) == [[1, 1, 1], [1, 0, 1]]


def test_polygons_of_an_object_are_joined(tmp_path: Path) -> None:
    path = write(tmp_path, an_object(segmentation=[box(0, 0, 1, 2), box(2, 0, 3, 1)]))
    assert labels(path) == [[1, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [("area", [[1, 2, 1], [1, 1, 1]]), ("file", [[1, 1, 1], [1, 1, 1]])],
)
def test_a_small_object_lies_on_a_large_one(
    tmp_path: Path, overlap: Overlap, expected: list[list[int]]
) -> None:
    small = an_object(7, segmentation=[box(1, 0, 2, 1)])
    large = an_object(3, segmentation=[box(0, 0, 3, 2)])
    assert labels(write(tmp_path, small, large), overlap=overlap) == expected


def test_a_crowd_lies_below_every_object(tmp_path: Path) -> None:
    crowd = an_object(7, iscrowd=1, segmentation={"size": [2, 3], "counts": [4, 2]})
    single = an_object(3, segmentation=[box(0, 0, 3, 2)])
    assert labels(write(tmp_path, single, crowd)) == [[1, 1, 1], [1, 1, 1]]


def test_a_class_that_is_not_named_is_told_before_anything_is_painted(tmp_path: Path) -> None:
    path = write(tmp_path, an_object(7, segmentation=[box(0, 0, 1, 1)]))
    with pytest.raises(DataError, match=r"class 'car' is not one of classes.txt: road") as caught:
        read_coco(path, classes=ClassList(("road",), "classes.txt"))
    assert caught.value.kind == "classes"


def test_a_category_that_nothing_uses_may_be_missing_from_the_classes(tmp_path: Path) -> None:
    path = write(tmp_path, an_object(3, segmentation=[box(0, 0, 3, 2)]))
    assert labels(path, classes=ClassList(("road",), "classes.txt")) == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"segmentation": [[0, 0, 1, 1]]}, "polygon of 4 numbers"),
        ({"segmentation": [[0, 0, 1, "x", 2, 2]]}, "no list of numbers"),
        ({"segmentation": [7]}, "no list of numbers"),
        ({"segmentation": [[0, 0, 1, 1, 1e300, 0]]}, "coordinate 1e"),
        ({"segmentation": {"size": [3, 2], "counts": "6"}}, r"RLE of size \[3, 2\], .* \[2, 3\]"),
        ({"segmentation": {"size": [2, 3], "counts": [1, 9]}}, "add up to 10 pixels"),
        ({"segmentation": {"size": [2, 3]}}, "without 'counts'"),
        ({"segmentation": []}, "neither polygons nor an RLE"),
        ({}, "neither polygons nor an RLE"),
        ({"segmentation": [], "category_id": 99}, "category 99 is not one of"),
        ({"segmentation": [], "category_id": [1]}, r"'category_id' is \[1\]"),
    ],
)
def test_a_malformed_object_is_told_with_its_place(
    tmp_path: Path, wrong: dict[str, Any], told: str
) -> None:
    fine = an_object(segmentation=[box(0, 0, 1, 1)])
    (entry,) = read_coco(write(tmp_path, fine, {**an_object(), **wrong})).entries
    with pytest.raises(DataError, match=rf"annotations\[1\].*{told}"):
        entry.load()


def test_images_that_cannot_be_used_are_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    images: list[Any] = [
        {"id": 1, "file_name": "a.png", "height": 2, "width": 3},
        {"id": 1, "file_name": "b.png", "height": 2, "width": 3},
        {"id": 2, "file_name": "../../etc/passwd", "height": 2, "width": 3},
        {"id": 3, "file_name": "c.png", "height": 0, "width": 3},
        {"id": 4, "height": 2, "width": 3},
        "no object",
    ]
    stray = an_object(image_id=50, segmentation=[])
    source = read_coco(write(tmp_path, stray, {"id": 2}, images=images))
    assert [entry.name for entry in source.entries] == ["a"]
    told = "\n".join(map(str, source.problems))
    for piece in (
        "images[1]: has the id 1 of ",
        "images[2]: '../../etc/passwd' is no name of a file below the folder",
        "images[3]: an image of 0 x 3",
        "images[4]: 'file_name' is nothing",
        "images[5]: holds 'no object' where an object belongs",
        "annotations[1]: 'image_id' is nothing",
        "1 annotations are of image 50, which is not there",
    ):
        assert piece in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"images": [', "cannot be read as JSON"),
        (
            '{"categories": [{"id": 1, "name": "a"}], "images": 3}',
            "'images' is 3 where a list belongs",
        ),
        ("[" * 100_000, "nested too deeply|cannot be read as JSON"),
        ('{"a": NaN}', "NaN is no JSON number"),
        (
            '{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "one category id twice",
        ),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}', "'a' twice"),
        ('{"images": []}', "names no class"),
        ("3", "holds 3 where an object belongs"),
        ("\udcff", "cannot be read as JSON"),
    ],
)
def test_a_file_that_is_no_coco_json_is_refused(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=told):
        read_coco(path)
