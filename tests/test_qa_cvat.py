"""CVAT for images, written by hand from the format's page."""

from pathlib import Path

import pytest

from lossd_client.qa.annotations import AnnotationSource, read_cvat
from lossd_client.qa.classes import ClassList
from lossd_client.qa.problems import DataError

META = """
<meta><task>
  <id>12</id><name>streets</name>
  <labels>
    <label><name>road</name></label><label><name>car</name></label>
  </labels>
  <segments>
    <segment><id>5</id><start>0</start><stop>4</stop><url>http://host/api/jobs/31</url></segment>
    <segment><id>6</id><start>5</start><stop>9</stop><url>http://host/?id=6</url></segment>
  </segments>
  <assignee><username>ann</username><email>ann@example.org</email></assignee>
</task></meta>
"""


def write(folder: Path, shapes: str, *, meta: str = META, frame: str = "0") -> Path:
    path = folder / "annotations.xml"
    head = "<?xml version='1.0' encoding='utf-8'?><annotations><version>1.1</version>"
    image = f'<image id="{frame}" name="street/a.png" width="5" height="4">{shapes}</image>'
    path.write_text(f"{head}{meta}{image}</annotations>", encoding="utf-8")
    return path


def shape(tag: str, label: str, z_order: int = 0, **attributes: object) -> str:
    told = " ".join(f'{key}="{value}"' for key, value in attributes.items())
    return f'<{tag} label="{label}" source="manual" occluded="0" z_order="{z_order}" {told}/>'


def box(label: str, *corners: float, z_order: int = 0, **more: object) -> str:
    sides = dict(zip(("xtl", "ytl", "xbr", "ybr"), corners, strict=True))
    return shape("box", label, z_order, **sides, **more)


def labels(source: AnnotationSource) -> list[str]:
    """Rows of digits, a label a pixel."""
    (annotation,) = source
    return ["".join(map(str, row)) for row in annotation.mask.tolist()]


def test_a_mask_goes_along_the_rows_of_its_box(tmp_path: Path) -> None:
    # In the box of columns 1 to 3 and rows 1 to 2:  . # #   one outside, three inside across the
    #                                                # . .   line's end, two outside.
    mask = shape("mask", "car", rle="1, 3, 2", left=1, top=1, width=3, height=2)
    assert labels(read_cvat(write(tmp_path, mask))) == ["00000", "00220", "02000", "00000"]


def test_job_annotator_and_frame_are_those_of_the_head(tmp_path: Path) -> None:
    (entry,) = read_cvat(write(tmp_path, "", frame="3")).entries
    assert (entry.name, entry.size) == ("street/a", (4, 5))
    assert (entry.annotator, entry.job, entry.task, entry.frame) == ("ann", "31", 12, 3)
    (entry,) = read_cvat(write(tmp_path, "", frame="7")).entries
    assert entry.job == "6"  # the address has no job, so it is the segment's id
    (entry,) = read_cvat(write(tmp_path, "", frame="70")).entries
    assert entry.job is None


def test_a_project_names_the_task_of_an_image(tmp_path: Path) -> None:
    who = "<assignee><username>{}</username></assignee>"
    task = "<task><id>{}</id><segments>{}</segments>" + who + "</task>"
    segment = "<segment><id>{}</id><start>{}</start><stop>{}</stop></segment>"
    first = task.format(1, segment.format(8, 0, 3), "ann")
    second = task.format(2, segment.format(9, 0, 1) + segment.format(10, 2, 3), "bob")
    names = "<labels><label><name>car</name></label></labels>"
    meta = f"<meta><project>{names}<tasks>{first}{second}</tasks></project></meta>"
    path = write(tmp_path, "", meta=meta, frame="3")
    text = path.read_text(encoding="utf-8")
    found = []
    for number in (1, 2):
        tagged = text.replace('<image id="3"', f'<image id="3" task_id="{number}"')
        path.write_text(tagged, encoding="utf-8")
        (entry,) = read_cvat(path).entries
        found.append((entry.annotator, entry.task, entry.job))
    # A project numbers its frames through, so of two jobs none can be told.
    assert found == [("ann", 1, "8"), ("bob", 2, None)]


def test_a_higher_layer_covers_and_in_a_layer_the_later_object(tmp_path: Path) -> None:
    top, below = box("car", 0, 0, 2, 2, z_order=1), box("road", 0, 0, 5, 4)
    later = box("car", 4, 3, 5, 4)
    assert labels(read_cvat(write(tmp_path, top + below + later))) == [
        "22111",
        "22111",
        "11111",
        "11112",
    ]


def test_polygons_and_turned_boxes_and_ellipses_are_drawn(tmp_path: Path) -> None:
    triangle = shape("polygon", "car", points="0,0;4,0;0,4")
    assert labels(read_cvat(write(tmp_path, triangle))) == ["22200", "22000", "20000", "00000"]
    # A box of 4 x 2 about (2, 2), turned by a quarter: 2 x 4.
    turned = box("car", 0, 1, 4, 3, rotation=90)
    assert labels(read_cvat(write(tmp_path, turned))) == ["02200"] * 4
    # The middle of the corner pixel (0.5, 1.5): (2 / 2.5)^2 + (0.5 / 1)^2 = 0.89, inside.
    ellipse = shape("ellipse", "car", cx=2.5, cy=2, rx=2.5, ry=1)
    assert labels(read_cvat(write(tmp_path, ellipse))) == ["00000", "22222", "22222", "00000"]


def test_objects_without_area_are_told(tmp_path: Path) -> None:
    shapes = shape("points", "car", points="1,1") * 2 + '<tag label="night"/>'
    source = read_cvat(write(tmp_path, shapes))
    assert [problem.detail for problem in source.problems] == [
        "2 <points> have no area",
        "1 <tag> have no area",
    ]
    assert {problem.kind for problem in source.problems} == {"skipped"}


def test_without_a_head_the_classes_are_those_used(tmp_path: Path) -> None:
    source = read_cvat(write(tmp_path, box("car", 0, 0, 5, 4), meta=""))
    assert source.classes is not None
    assert source.classes.names == ("background", "car")


def test_a_label_that_is_not_named_is_told_first(tmp_path: Path) -> None:
    path = write(tmp_path, box("car", 0, 0, 1, 1))
    with pytest.raises(DataError, match=r"'car' is not one of classes\.txt: road"):
        read_cvat(path, classes=ClassList(("road",), "classes.txt"))


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        (shape("mask", "car", rle="1,3,2", left=3, top=1, width=3, height=2), "columns 3 to 5"),
        (shape("mask", "car", rle="1,3,2", left=-1, top=1, width=3, height=2), "columns -1 to 1"),
        (shape("mask", "car", rle="1,3,3", left=1, top=1, width=3, height=2), "add up to 7"),
        (shape("mask", "car", rle="1,x", left=1, top=1, width=3, height=2), "invalid literal"),
        (shape("mask", "car", left=1, top=1, width=3, height=2), "'rle' is nothing"),
        (shape("mask", "car", rle="1", left=1, top=1, width="x", height=2), "'width' is 'x'"),
        (shape("polygon", "car", points="0,0;1,1"), "polygon of 4 numbers"),
        (shape("polygon", "car", points="0,0;1,1;nan,1"), "coordinate nan"),
        (box("car", 0, 0, 1, 1, rotation="nan"), "'rotation' is 'nan'"),
        (shape("box", "car", z_order=0, xtl=0), "'ytl' is nothing"),
    ],
)
def test_a_malformed_object_is_told_with_its_place(tmp_path: Path, shapes: str, told: str) -> None:
    (entry,) = read_cvat(write(tmp_path, shapes)).entries
    with pytest.raises(DataError, match=f"image 0, object 0: .*{told}"):
        entry.load()


def test_images_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    more = (
        '<image id="1" name="../b.png" width="5" height="4"/><image id="2" width="5" height="4"/>'
    )
    text = path.read_text(encoding="utf-8").replace("</annotations>", more + "</annotations>")
    path.write_text(text, encoding="utf-8")
    source = read_cvat(path)
    assert [entry.name for entry in source.entries] == ["street/a"]
    assert ["no name of a file below" in str(found) for found in source.problems] == [True, False]
    assert "'name' is nothing" in str(source.problems[1])


BOMB = "".join(f'<!ENTITY e{at} "{f"&e{at - 1};" * 10}">' for at in range(1, 10))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f'<!DOCTYPE a [<!ENTITY e0 "ha">{BOMB}]><annotations>&e9;</annotations>', "declaration"),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>',
            "declaration",
        ),
        ('<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><annotations/>', "declaration"),
        ("<annotations><image>", "no element found"),
        ("<annotations></image>", "mismatched tag"),
        ("<annotations/>", "has no <image>"),
        ("<annotations><track/></annotations>", "CVAT for video"),
        ("", "no element found"),
        ("<?xml version='1.0' encoding='no-such'?><annotations/>", "unknown encoding"),
    ],
)
def test_a_file_that_is_no_such_xml_is_refused(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "annotations.xml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        read_cvat(path)
