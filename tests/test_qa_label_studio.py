"""Label Studio's JSON, written by hand from the pages of its format."""

import json
from pathlib import Path
from typing import Any

import pytest

from lossd_client.qa.annotations import AnnotationSource, read_label_studio
from lossd_client.qa.classes import ClassList
from lossd_client.qa.problems import DataError

# A brush of an image of one row and two pixels, the second of them inside: 8 values of 8 bits
# (7 = 00111), lengths of 3, 4, 8 and 16 bits (0010 0011 0111 1111), a run of four zeros
# (1, choice 00, 011, value 0) and one of four 255 (1, 00, 011, 255).
BITS = f"{8:032b}00111001000110111111110001100000000100011111111111"
BRUSH = [int(BITS[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(BITS), 8)]


def region(kind: str, label: str, value: dict[str, Any], **fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "id": "r1",
        "type": kind,
        "from_name": "label",
        "to_name": "image",
        "original_width": 10,
        "original_height": 4,
        "image_rotation": 0,
        "value": {**value, kind: [label]},
    }
    return {**base, **fields}


def brush(label: str = "car", **fields: Any) -> dict[str, Any]:
    value = {"format": "rle", "rle": BRUSH}
    size = {"original_width": 2, "original_height": 1}
    return {**region("brushlabels", label, value), **size, **fields}


def rectangle(label: str, *numbers: float, **more: Any) -> dict[str, Any]:
    value = dict(zip(("x", "y", "width", "height"), numbers, strict=True))
    return region("rectanglelabels", label, {**value, **more})


def task(*regions: dict[str, Any], **fields: Any) -> dict[str, Any]:
    annotation = {"id": 1, "completed_by": 10, "was_cancelled": False, "result": list(regions)}
    url = "/data/upload/7/0a1b2c3d-a.png"
    return {"id": 5, "data": {"image": url}, "annotations": [annotation], **fields}


def write(folder: Path, *tasks: Any) -> Path:
    path = folder / "tasks.json"
    path.write_text(json.dumps(list(tasks)), encoding="utf-8")
    return path


def labels(source: AnnotationSource) -> list[str]:
    (annotation,) = source
    return ["".join(map(str, row)) for row in annotation.mask.tolist()]


def test_a_brush_is_inside_where_its_alpha_is(tmp_path: Path) -> None:
    source = read_label_studio(write(tmp_path, task(brush())))
    assert labels(source) == ["01"]
    (entry,) = source.entries
    assert (entry.name, entry.annotator, entry.task) == ("data/upload/7/a", "10", 5)
    assert entry.url == "/data/upload/7/0a1b2c3d-a.png"
    assert entry.size == (1, 2)


def test_polygons_and_rectangles_are_in_percent(tmp_path: Path) -> None:
    # Of 10 columns and 4 rows: 20 % to 60 % are columns 2 to 5, 25 % to 75 % rows 1 and 2.
    corners = [[20, 25], [60, 25], [60, 75], [20, 75]]
    polygon = region("polygonlabels", "car", {"points": corners, "closed": True})
    expected = ["0000000000", "0011110000", "0011110000", "0000000000"]
    assert labels(read_label_studio(write(tmp_path, task(polygon)))) == expected
    box = rectangle("car", 20, 25, 40, 50, rotation=0)
    assert labels(read_label_studio(write(tmp_path, task(box)))) == expected


def test_a_rectangle_turns_about_its_upper_left_corner(tmp_path: Path) -> None:
    # Two columns by one row at (4, 1), a quarter clockwise: what went right goes down, what went
    # down goes left: column 3, rows 1 and 2.
    turned = rectangle("car", 40, 25, 20, 25, rotation=90)
    expected = ["0000000000", "0001000000", "0001000000", "0000000000"]
    assert labels(read_label_studio(write(tmp_path, task(turned)))) == expected


def test_an_ellipse_is_drawn_about_its_middle(tmp_path: Path) -> None:
    # About (5, 2) with radii 3 and 1.4: the middle (2.5, 1.5) is at (2.5 / 3)^2 + (0.5 / 1.4)^2 =
    # 0.82, inside, (1.5, 1.5) and (5, 0.5) are beyond 1.
    value = {"x": 50, "y": 50, "radiusX": 30, "radiusY": 35, "rotation": 0}
    oval = region("ellipselabels", "car", value)
    expected = ["0000000000", "0011111100", "0011111100", "0000000000"]
    assert labels(read_label_studio(write(tmp_path, task(oval)))) == expected


def test_a_later_region_covers_an_earlier(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        task(rectangle("road", 0, 0, 100, 100), rectangle("car", 0, 0, 10, 100, rotation=0)),
    )
    assert labels(read_label_studio(path)) == ["1222222222"] * 4  # car before road by name


def test_labels_of_a_tag_of_their_own_count_once(tmp_path: Path) -> None:
    plain = {**rectangle("car", 0, 0, 100, 100), "type": "rectangle"}
    plain["value"] = {
        key: value for key, value in plain["value"].items() if key != "rectanglelabels"
    }
    labelled = {**plain, "type": "labels", "value": {**plain["value"], "labels": ["car"]}}
    path = write(tmp_path, task(plain, labelled))
    assert labels(read_label_studio(path)) == ["1" * 10] * 4


def test_choices_and_points_have_no_area(tmp_path: Path) -> None:
    choice = {"type": "choices", "value": {"choices": ["night"]}}
    point = region("keypointlabels", "car", {"x": 1, "y": 1, "width": 0.5})
    path = write(tmp_path, task(choice, point, brush()))
    assert labels(read_label_studio(path)) == ["01"]


def test_of_several_annotations_the_truth_is_taken_or_the_last(tmp_path: Path) -> None:
    def one(number: int, label: str, changed: str, **fields: Any) -> dict[str, Any]:
        by = {"email": f"{label}@example.org"}
        base = {"id": number, "completed_by": by, "updated_at": changed}
        return {**base, "result": [brush(label)], **fields}

    older, newer = one(1, "ann", "2024-01-01T00:00:00Z"), one(2, "bob", "2024-02-01T00:00:00Z")
    given_up = one(3, "eve", "2024-03-01T00:00:00Z", was_cancelled=True)
    source = read_label_studio(write(tmp_path, task(annotations=[newer, older, given_up])))
    assert source.entries[0].annotator == "bob@example.org"
    assert "annotations [1, 3] are not taken, 2 is" in str(source.problems[0])
    truth = {**older, "ground_truth": True}
    source = read_label_studio(write(tmp_path, task(annotations=[newer, truth])))
    assert source.entries[0].annotator == "ann@example.org"


def test_predictions_are_read_instead_where_asked_for(tmp_path: Path) -> None:
    found = {"model_version": "m1", "score": 0.5, "result": [brush("road")]}
    path = write(tmp_path, task(brush("car"), predictions=[found]))
    source = read_label_studio(path, part="predictions")
    assert source.entries[0].annotator == "m1"
    assert labels(source) == ["02"]  # background, car, road


def test_json_min_has_the_regions_below_the_tags_name(tmp_path: Path) -> None:
    flat = {"format": "rle", "rle": BRUSH, "brushlabels": ["car"]}
    sized = {**flat, "original_width": 2, "original_height": 1}
    entry = {"image": "s3://bucket/street/a.png", "id": 3, "tag": [sized], "annotator": 4}
    source = read_label_studio(write(tmp_path, entry))
    assert labels(source) == ["01"]
    assert (source.entries[0].name, source.entries[0].annotator) == ("street/a", "4")


def test_the_only_text_of_a_task_is_its_images_address(tmp_path: Path) -> None:
    path = write(tmp_path, {**task(brush()), "data": {"photo": "street/a.png", "number": 3}})
    assert read_label_studio(path).entries[0].name == "street/a"
    twins = {**task(brush()), "data": {"photo": "a.png", "other": "b.png"}}
    source = read_label_studio(write(tmp_path, twins), image_key="other")
    assert source.entries[0].name == "b"


def test_a_task_without_regions_is_background_of_its_images_size(tmp_path: Path) -> None:
    path = write(tmp_path, task())
    known = ClassList(("background", "car"), "classes.txt")
    source = read_label_studio(path, classes=known, sizes={"street/a": (1, 3)})
    assert labels(source) == ["000"]
    (entry,) = read_label_studio(path, classes=known).entries
    with pytest.raises(DataError, match="no image of its name says the size"):
        entry.load()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (brush(value={"rle": BRUSH[:9], "brushlabels": ["car"]}), "break off"),
        (brush(value={"rle": [1, 900], "brushlabels": ["car"]}), "no list of bytes"),
        (brush(value={"rle": "text", "brushlabels": ["car"]}), "no list of bytes"),
        (brush(value={"rle": BRUSH, "brushlabels": []}), "has no label"),
        (brush(original_width=3), "8 values, the image 4 x 3 pixels"),
        (brush(image_rotation=90), "turned by 90 degrees"),
        (region("polygonlabels", "car", {"points": [[0, 0], [1]]}), "no pair"),
        (region("polygonlabels", "car", {"points": [[0, 0], [1, "x"], [2, 2]]}), "'y' is 'x'"),
        (region("polygonlabels", "car", {"points": [[0, 0], [9, 9]]}), "4 numbers"),
        (rectangle("car", 0, 0, 1e300, 1), "coordinate"),
        (rectangle("car", 0, 0, 1, 1, rotation="nan"), "'rotation' is 'nan'"),
    ],
)
def test_a_malformed_region_is_told_with_its_place(
    tmp_path: Path, wrong: dict[str, Any], told: str
) -> None:
    known = ClassList(("car",), "classes.txt")
    (entry,) = read_label_studio(write(tmp_path, task(wrong)), classes=known).entries
    with pytest.raises(DataError, match=rf"\[0\], region 0: .*{told}"):
        entry.load()


def test_tasks_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        task(brush()),
        task(annotations=[]),
        task(annotations=7),
        task(annotations=[{"result": 5}]),
        {**task(brush()), "data": {"left": "a.png", "right": "b.png"}},
        {**task(brush()), "data": {"image": "../../a.png"}},
        task(brush(), brush(original_width=9)),
        3,
    )
    source = read_label_studio(path)
    assert len(source) == 1
    told = [str(problem) for problem in source.problems]
    for place, piece in enumerate(
        [
            "has no annotations that were not cancelled",
            "'annotations' is 7",
            "'result' is 5",
            "does not say which of ['left', 'right'] is the image",
            "no name of a file below the folder",
            "has regions of images of [(1, 2), (1, 9)]",
            "holds 3 where an object belongs",
        ]
    ):
        assert piece in told[place]


def test_a_region_of_several_labels_is_told(tmp_path: Path) -> None:
    several = brush(value={"rle": BRUSH, "brushlabels": ["car", "road"]})
    (problem,) = read_label_studio(write(tmp_path, task(several))).problems
    assert problem.detail == "only the first label of regions ['r1'] is painted"


@pytest.mark.parametrize("content", ['{"a": 1}', "[1, ", "[", '[{"data": {"image": 3}}]'])
def test_a_file_that_is_no_such_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError):
        read_label_studio(path)
