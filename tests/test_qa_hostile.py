"""Whatever a file holds, a reader gives masks or says `DataError`: nothing else comes out of it."""

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lossd_client.qa import pictures
from lossd_client.qa.annotations import (
    AnnotationSource,
    read_coco,
    read_cvat,
    read_index_masks,
    read_label_studio,
    read_voc,
    read_yolo,
)
from lossd_client.qa.predictions import choose_kind, read_predictions
from lossd_client.qa.problems import DataError

hostile = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 3, "width": 4}],
    "categories": [{"id": 1, "name": "car"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2]], "iscrowd": 0},
        {"image_id": 1, "category_id": 1, "segmentation": {"size": [3, 4], "counts": "57"}},
        {"image_id": 1, "category_id": 1, "segmentation": {"size": [3, 4], "counts": [5, 7]}},
    ],
}
BRUSH = [0, 0, 0, 8, 57, 27, 252, 96, 8, 223, 240]
SIZE = {"original_width": 2, "original_height": 1, "image_rotation": 0}
LABEL_STUDIO = [
    {
        "id": 1,
        "data": {"image": "/data/upload/1/0a1b2c3d-a.png"},
        "annotations": [
            {
                "id": 3,
                "completed_by": {"email": "ann@example.org"},
                "updated_at": "2024-01-01",
                "was_cancelled": False,
                "result": [
                    {**SIZE, "value": {"format": "rle", "rle": BRUSH, "brushlabels": ["car"]}},
                    {**SIZE, "value": {"points": [[0, 0], [9, 9], [0, 9]], "labels": ["car"]}},
                    {
                        **SIZE,
                        "value": {
                            "x": 1,
                            "y": 1,
                            "width": 9,
                            "height": 9,
                            "rotation": 3,
                            "rectanglelabels": ["road"],
                        },
                    },
                ],
            }
        ],
    }
]
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><meta><task><id>1</id><labels><label><name>car</name></label></labels>
<segments><segment><id>1</id><start>0</start><stop>3</stop><url>h/api/jobs/2</url></segment>
</segments></task></meta><image id="0" name="a.png" width="4" height="3">
<mask label="car" rle="1, 2, 1" left="0" top="1" width="2" height="2" z_order="0"/>
<polygon label="car" points="0,0;2,0;2,2" z_order="1"/>
<box label="car" xtl="0" ytl="1" xbr="2" ybr="3" rotation="10" z_order="0"/>
<ellipse label="car" cx="1" cy="1" rx="1" ry="1" z_order="0"/></image></annotations>"""
VOC = """<annotation><size><width>4</width><height>3</height></size><object><name>car</name>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>"""

json_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 2**31, 1e308, -1e-300, 0.5]),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-2, 300), max_size=4),
    st.just([[1]]),
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to every value of a document."""
    if isinstance(node, dict):
        below = list(node.items())
    else:
        below = list(enumerate(node)) if isinstance(node, list) else []
    return [path, *(way for key, value in below for way in places(value, (*path, key)))]


def changed(document: Any, way: tuple[Any, ...], value: Any) -> Any:
    if not way:
        return value
    document = copy.deepcopy(document)
    node = document
    for key in way[:-1]:
        node = node[key]
    node[way[-1]] = value
    return document


def reads_or_says_why(read: Callable[[], AnnotationSource]) -> None:
    """The claim of this file: masks of whole numbers, or `DataError`."""
    with contextlib.suppress(DataError):
        for entry in read().entries:
            with contextlib.suppress(DataError):
                mask = entry.load().mask
                assert np.issubdtype(mask.dtype, np.integer)
                assert mask.ndim == 2


@hostile
@given(st.data())
@pytest.mark.parametrize(
    ("document", "reader"),
    [(COCO, read_coco), (LABEL_STUDIO, read_label_studio)],
    ids=["coco", "label-studio"],
)
def test_no_value_in_json_breaks_a_reader(
    tmp_path: Path, document: Any, reader: Callable[[Path], AnnotationSource], data: st.DataObject
) -> None:
    way = data.draw(st.sampled_from(places(document)))
    path = tmp_path / "a.json"
    path.write_text(json.dumps(changed(document, way, data.draw(json_values))), encoding="utf-8")
    reads_or_says_why(lambda: reader(path))


@hostile
@given(st.data())
@pytest.mark.parametrize("document", [CVAT, VOC], ids=["cvat", "voc"])
def test_no_text_in_xml_breaks_a_reader(tmp_path: Path, document: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(document)))
    end = start + data.draw(st.integers(0, 6))
    new = data.draw(st.text(st.sampled_from('0129-.,;xn<>/"& a\0\u0663'), max_size=6))
    text = document[:start] + new + document[end:]
    folder = tmp_path / "Annotations"
    folder.mkdir(exist_ok=True)
    (folder / "a.xml").write_text(text, encoding="utf-8")
    if document is CVAT:
        reads_or_says_why(lambda: read_cvat(folder / "a.xml"))
    else:
        reads_or_says_why(lambda: read_voc(tmp_path))


@hostile
@given(st.text(st.sampled_from("0129-.e \nnaif\0\u0663"), max_size=40))
def test_no_text_breaks_the_yolo_reader(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    reads_or_says_why(lambda: read_yolo(tmp_path, sizes={"a": (3, 4)}))


def files() -> dict[str, bytes]:
    labels = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    found: dict[str, bytes] = {}
    for kind in ("png", "bmp", "tif"):
        stream = io.BytesIO()
        Image.fromarray(labels).save(stream, {"tif": "TIFF"}.get(kind, kind.upper()))
        found[kind] = stream.getvalue()
    stream = io.BytesIO()
    np.save(stream, labels)
    found["npy"] = stream.getvalue()
    stream = io.BytesIO()
    np.savez_compressed(stream, a=labels)
    found["npz"] = stream.getvalue()
    return found


FILES = files()


@hostile
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of Pillow, numpy
@given(st.data())
@pytest.mark.parametrize("kind", list(FILES))
def test_no_byte_breaks_a_reader_of_masks_or_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: st.DataObject
) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1 << 16)  # else Pillow takes a gigabyte and time
    content = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, 20)) * -1 or None]
    (tmp_path / f"a.{kind}").write_bytes(content)
    if kind != "npz":
        reads_or_says_why(lambda: read_index_masks(tmp_path))
    with contextlib.suppress(DataError):
        choose_kind(read_predictions(tmp_path))
    with contextlib.suppress(DataError):
        for entry in read_predictions(tmp_path):
            with contextlib.suppress(DataError):
                assert entry.read().shape == entry.shape
