"""Class names, label maps, and labels that are not allowed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossd_client.qa.classes import (
    IGNORED,
    ClassList,
    LabelRules,
    classes_of,
    compact,
    parse_map,
    read_classes,
)
from lossd_client.qa.names import path_name, url_name
from lossd_client.qa.painting import UNLABELLED
from lossd_client.qa.problems import DataError
from lossd_client.wire import SAFETENSORS_CODES


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "\ufeffroad\n car \n\n\n"),
        ("obj.names", "road\r\ncar"),
        ("data.yaml", "nc: 2\nnames: [road, car]\n"),
        ("data.yml", "names:\n  1: car\n  0: road\n"),
        ("a.json", '{"categories": [{"id": 9, "name": "car"}, {"id": 2, "name": "road"}]}'),
        (
            "cvat.xml",
            """<annotations><meta><task><labels><label><name>road</name></label>
            <label><name>car</name></label></labels></task></meta></annotations>""",
        ),
        (
            "config.xml",
            """<View><BrushLabels name="l" toName="i"><Label value="road"/><Label value="car"/>
            </BrushLabels><Image name="i" value="$image"/></View>""",
        ),
    ],
)
def test_names_come_from_every_kind_of_file(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert read_classes(path).names == ("road", "car")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("classes.txt", "road\n\ncar\n", "an empty name, at label 1"),
        ("classes.txt", "road\ncar\nroad\n", "'road' twice, at label 2"),
        ("classes.txt", "", "names no class"),
        ("classes.txt", "\udcff", "cannot be read as text"),
        ("data.yaml", "names: {0: a, 2: b}", "numbered from 0 without a gap"),
        ("data.yaml", "names: {a: b", "cannot be read as YAML"),
        ("data.yaml", "!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("data.yaml", "3", "holds 3 where an object belongs"),
        ("a.xml", "<View/>", "names no class"),
    ],
)
def test_a_file_without_proper_names_is_told(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=told) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read as text"):
        read_classes(tmp_path / "classes.txt")


def test_the_background_is_known_in_any_letters() -> None:
    assert ClassList(("car", "__Background__"), "f").background == 1
    assert classes_of(["a", "Background"], "f", None).names == ("a", "Background")
    assert classes_of(["a"], "f", None).names == ("background", "a")
    given_list = ClassList(("x",), "g")
    assert classes_of(["a"], "f", given_list) is given_list


def test_a_map_is_read() -> None:
    assert parse_map(" 0:1, 255 : ignore") == {0: 1, 255: IGNORED}


@pytest.mark.parametrize(
    ("argument", "piece"),
    [
        ("0:1,x:2", "'x:2'"),
        ("0:1,,2:3", "''"),
        ("5", "'5'"),
        ("0:-1", "'0:-1'"),
        ("0:ignored", "'0:ignored'"),
        ("0:1,0:2", "'0:2' .* second time"),
        ("\u0663:1", "'\u0663:1'"),
    ],
)
def test_an_error_in_a_map_names_the_piece(argument: str, piece: str) -> None:
    with pytest.raises(ValueError, match=piece):
        parse_map(argument)


def test_labels_are_mapped_at_once_and_what_is_ignored_gets_one_label() -> None:
    rules = LabelRules(3, {0: 1, 1: 0, 200: IGNORED}, ignore_index=255)
    mask = np.array([[0, 1, 2, 200, 255, UNLABELLED]])
    assert rules.apply(mask, "a.png").tolist() == [[1, 0, 2, IGNORED, IGNORED, IGNORED]]


def test_an_undeclared_255_is_told_with_its_count_and_what_is_allowed() -> None:
    mask = np.array([[0, 255, 255], [10, 11, -1]], np.int64)
    with pytest.raises(DataError) as caught:
        LabelRules(11, ignore_index=254).apply(mask, "masks/a.png")
    assert str(caught.value) == (
        "masks/a.png: 1 pixels hold -1, 1 pixels hold 11, 2 pixels hold 255; "
        "allowed are 0 to 10 and the ignored 254"
    )
    assert caught.value.kind == "labels"


def test_many_wrong_values_are_not_all_listed() -> None:
    with pytest.raises(DataError, match="pixels hold 9 and 12 more values; allowed after the map"):
        LabelRules(2, {1: 0}).apply(np.arange(22, dtype=np.uint8).reshape(2, 11), "a.png")


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20), st.integers(1, 300))
def test_every_label_is_a_class_or_ignored_or_told(values: list[int], class_count: int) -> None:
    mask = np.array([values])
    wrong = [value for value in values if not 0 <= value < class_count and value != UNLABELLED]
    if wrong:
        with pytest.raises(DataError, match=rf"hold {wrong[0]}\b|more values"):
            LabelRules(class_count).apply(mask, "a.npy")
        return
    labels = LabelRules(class_count).apply(mask, "a.npy")
    assert labels.tolist() == [[IGNORED if v == UNLABELLED else v for v in values]]


@pytest.mark.parametrize(
    ("class_count", "dtype"), [(255, "uint8"), (256, "int16"), (32_767, "int16"), (70_000, "int32")]
)
def test_the_smallest_type_has_room_for_every_class_and_the_ignored(
    class_count: int, dtype: str
) -> None:
    small, ignored = compact(np.array([[class_count - 1, IGNORED]], np.int32), class_count)
    assert small.dtype == dtype
    assert small.dtype.name in SAFETENSORS_CODES  # or it could not be sent
    assert small.tolist() == [[class_count - 1, ignored]]
    assert ignored >= class_count


@pytest.mark.parametrize("name", ["", "..", "a/../b.png", "/", "a\0.png", "..\\a.png"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="no name of a file below the folder"):
        path_name(name, "a.json")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a%20b.png?token=x", "a b"),
        ("0a1b2c3d-a.png", "a"),
        ("street/0a1b2c3d-a.png", "street/0a1b2c3d-a"),
        ("C:\\photos\\a.jpg", "photos/a"),
        ("/data/local-files/?d=street%2Fa.0001.jpg", "street/a.0001"),
    ],
)
def test_an_address_has_the_name_of_its_file(url: str, name: str) -> None:
    assert url_name(url, "tasks.json") == name


def test_an_address_that_leads_elsewhere_is_refused() -> None:
    for url in ("/data/local-files/?d=../../etc/passwd", "http://host/%2e%2e/a.png", "http://[x"):
        with pytest.raises(DataError, match=r"^tasks\.json: "):
            url_name(url, "tasks.json")
