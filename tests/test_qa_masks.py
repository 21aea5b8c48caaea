"""Masks as pictures and arrays, Pascal VOC, YOLO, and finding out which of them a folder is."""

import contextlib
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lossd_client.qa.annotations import (
    AnnotationSource,
    detect,
    read_annotations,
    read_index_masks,
    read_voc,
    read_yolo,
)
from lossd_client.qa.classes import ClassList
from lossd_client.qa.painting import UNLABELLED
from lossd_client.qa.problems import DataError

LABELS = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)


def png(path: Path, rows: list[bytes], *, bits: int, colour: int, palette: bytes = b"") -> None:
    """A PNG by the rules of its specification: chunks of length, type, data and checksum."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    width = len(rows[0]) * 8 // bits
    head = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row for row in rows))  # 0: no filter
    data = chunk(b"IHDR", head) + (chunk(b"PLTE", palette) if palette else b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data + chunk(b"IDAT", lines) + chunk(b"IEND", b""))


def loaded(source: AnnotationSource) -> dict[str, list[list[int]]]:
    return {annotation.name: annotation.mask.tolist() for annotation in source}


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16"])
def test_a_pictures_values_are_its_labels(tmp_path: Path, mode: str) -> None:
    if mode == "RGB":  # grey, three times over
        picture = Image.fromarray(np.stack([LABELS] * 3, axis=-1))
    elif mode == "I;16":
        picture = Image.fromarray(LABELS.astype(np.uint16) * 200)
    else:
        picture = Image.fromarray(LABELS)
    if mode == "P":
        picture.putpalette(bytes(range(255, -1, -1)) * 3)  # colours that are not the labels
    picture.save(tmp_path / "a.png")
    expected = LABELS.astype(int) * (200 if mode == "I;16" else 1)
    source = read_index_masks(tmp_path)
    assert loaded(source) == {"a": expected.tolist()}
    assert source.entries[0].size == (2, 3)
    assert source.classes is None


def test_few_bits_of_grey_and_palette_are_labels_as_stored(tmp_path: Path) -> None:
    # Two pixels a byte. Grey of four bits is shown as 0, 17, 34, ...; it means 0, 1, 2, ...
    png(tmp_path / "grey4.png", [b"\x01\x2f"], bits=4, colour=0)
    png(tmp_path / "grey2.png", [b"\x1b"], bits=2, colour=0)
    png(tmp_path / "grey1.png", [b"\x81"], bits=1, colour=0)
    png(tmp_path / "palette4.png", [b"\x01\x2f"], bits=4, colour=3, palette=bytes(range(48)))
    assert loaded(read_index_masks(tmp_path)) == {
        "grey1": [[1, 0, 0, 0, 0, 0, 0, 1]],
        "grey2": [[0, 1, 2, 3]],
        "grey4": [[0, 1, 2, 15]],
        "palette4": [[0, 1, 2, 15]],
    }


def test_arrays_and_folders_below_are_masks_too(tmp_path: Path) -> None:
    (tmp_path / "street").mkdir()
    np.save(tmp_path / "street" / "a.b.npy", LABELS.astype(np.int64))
    np.save(tmp_path / "c.npy", LABELS > 0)
    source = read_index_masks(tmp_path)
    assert loaded(source)["street/a.b"] == LABELS.tolist()
    assert loaded(source)["c"] == (LABELS > 0).astype(int).tolist()
    assert [entry.size for entry in source.entries] == [(2, 3)] * 2


def test_colours_count_where_a_map_says_what_they_mean(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:10,20,30::\n", encoding="utf-8"
    )
    colours = np.array([[[10, 20, 30], [0, 0, 0], [224, 224, 192]]], np.uint8)
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(colours).save(masks / "colour.png")
    # A palette in another order than the map: the colours decide, not the indices.
    png(masks / "palette.png", [b"\0\1"], bits=8, colour=3, palette=b"\x0a\x14\x1e\0\0\0")
    source = read_index_masks(masks)
    assert loaded(source) == {"colour": [[1, 0, UNLABELLED]], "palette": [[1, 0]]}
    named = read_index_masks(masks, classes=ClassList(("car", "background"), "classes.txt"))
    assert loaded(named)["palette"] == [[0, 1]]
    Image.fromarray(colours + np.uint8(1)).save(masks / "other.png")
    with pytest.raises(DataError, match=r"1 pixels have the colour \(1, 1, 1\)"):
        loaded(read_index_masks(masks))


@pytest.mark.parametrize("line", ["car", "car:1,2", "car:1,2,300", "car:1,2,x", "a:0,0,0\nb:0,0,0"])
def test_a_line_of_the_map_that_gives_no_colour_is_told(tmp_path: Path, line: str) -> None:
    (tmp_path / "labelmap.txt").write_text(f"# head\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"line {len(line.splitlines()) + 1}, "):
        read_index_masks(tmp_path)


def test_colours_without_a_map_are_told(tmp_path: Path) -> None:
    Image.fromarray(np.full((1, 2, 3), (1, 2, 3), np.uint8)).save(tmp_path / "a.png")
    (entry,) = read_index_masks(tmp_path).entries
    with pytest.raises(DataError, match=r"holds colours, not labels; .*labelmap\.txt"):
        entry.load()


def test_files_that_cannot_be_read_are_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    Image.fromarray(LABELS).save(tmp_path / "fine.png")
    Image.fromarray(LABELS).convert("RGB").save(tmp_path / "photo.jpg")  # is no mask, left alone
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "volume.npy", np.zeros((2, 2, 2), int))
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    whole = tmp_path / "short.npy"
    np.save(whole, LABELS)
    whole.write_bytes(whole.read_bytes()[:-1])
    source = read_index_masks(tmp_path)
    assert [entry.name for entry in source.entries] == ["fine"]
    told = "\n".join(map(str, source.problems))
    assert len(source.problems) == 5
    for piece in (
        "text.png: cannot be read as PNG",
        "empty.npy: cannot be read as an array",
        "volume.npy: has the shape [2, 2, 2]",
        "objects.npy: cannot be read as an array: it holds Python objects",
        "short.npy: cannot be read as an array: its header asks for 6 bytes, 5 follow",
    ):
        assert piece in told


def test_a_picture_with_too_many_pixels_is_told_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    png(tmp_path / "a.png", [b"\0"], bits=8, colour=0)
    data = (tmp_path / "a.png").read_bytes()
    large = data[:16] + struct.pack(">II", 1 << 15, 1 << 14) + data[24:29]
    check = struct.pack(">I", zlib.crc32(large[12:]))
    (tmp_path / "a.png").write_bytes(large + check + data[33:])
    (problem,) = read_index_masks(tmp_path).problems
    assert "32768 x 16384 pixels are too many" in problem.detail


def test_a_picture_that_claims_gigabytes_is_told(tmp_path: Path) -> None:
    Image.fromarray(LABELS).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[33:37] = b"\xc4\0\0\0"  # the length of the pixels' chunk
    (tmp_path / "a.png").write_bytes(data)
    (entry,) = read_index_masks(tmp_path).entries
    tracemalloc.start()
    with contextlib.suppress(DataError):  # the pixels are whole, so Pillow may give them
        assert entry.load().mask.tolist() == LABELS.tolist()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 24
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"cannot be read: .*No such file"):
        entry.load()


def test_a_picture_that_breaks_off_is_told_when_it_is_loaded(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)).save(
        tmp_path / "a.png"
    )
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    np.save(tmp_path / "b.npy", np.zeros((2, 2)))
    first, second = read_index_masks(tmp_path).entries
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        first.load()
    with pytest.raises(DataError, match="holds float64; labels are integers"):
        second.load()


VOC_XML = """<annotation><filename>a.jpg</filename><size><width>5</width><height>3</height></size>
{}</annotation>"""
VOC_BOX = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    "</bndbox></object>"
)


def voc_boxes(folder: Path, *objects: str) -> Path:
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "Annotations" / "a.xml").write_text(VOC_XML.format("".join(objects)))
    return folder


def test_voc_boxes_count_from_one_and_small_ones_lie_on_top(tmp_path: Path) -> None:
    car, person = VOC_BOX.format("car", 2, 1, 4, 2), VOC_BOX.format("person", 3, 2, 3, 2)
    source = read_voc(voc_boxes(tmp_path, person, car))
    assert source.entries[0].size == (3, 5)
    assert loaded(source) == {"a": [[0, 7, 7, 7, 0], [0, 7, 15, 7, 0], [0, 0, 0, 0, 0]]}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (VOC_BOX.format("tree", 1, 1, 2, 2), "'tree' is not one of Pascal VOC's classes"),
        (VOC_BOX.format("car", 1, 1, "inf", 2), "'xmax' is 'inf'"),
        (VOC_BOX.format("car", 1, 1, "", 2), "'xmax' is nothing"),
        ("<object><name>car</name></object>", "no <bndbox>"),
    ],
)
def test_a_malformed_voc_box_is_told(tmp_path: Path, found: str, told: str) -> None:
    (entry,) = read_voc(voc_boxes(tmp_path, found)).entries
    with pytest.raises(DataError, match=rf"a\.xml, object 0: .*{told}"):
        entry.load()


def test_voc_files_without_size_or_with_entities_are_listed(tmp_path: Path) -> None:
    voc_boxes(tmp_path)
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation/>")
    (tmp_path / "Annotations" / "c.xml").write_text(
        '<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>'
    )
    source = read_voc(tmp_path)
    assert [entry.name for entry in source.entries] == ["a"]
    assert "has no <size>" in str(source.problems[0])
    assert "document type declaration" in str(source.problems[1])


def test_voc_masks_are_indices_of_the_challenges_classes(tmp_path: Path) -> None:
    voc_boxes(tmp_path)
    (tmp_path / "SegmentationClass").mkdir()
    picture = Image.fromarray(np.array([[0, 15, 255]], np.uint8))
    picture.putpalette(bytes(768))
    picture.save(tmp_path / "SegmentationClass" / "a.png")
    source = read_voc(tmp_path)
    assert loaded(source) == {"a": [[0, 15, 255]]}
    assert source.classes is not None
    assert source.classes.names[15] == "person"
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ncar:128,0,0::\n")
    assert loaded(read_voc(tmp_path)) == {"a": [[0, 0, 0]]}  # the palette is black


SIZES = {"street/a": (4, 10), "b": (4, 10)}


def yolo(folder: Path, *lines: str, names: str = "names: [road, car]\n") -> Path:
    labels = folder / "labels"
    labels.mkdir()
    (folder / "data.yaml").write_text(names, encoding="utf-8")
    (labels / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    return labels


def rows(source: AnnotationSource, name: str) -> list[str]:
    return ["".join(map(str, row)) for row in loaded(source)[name]]


def test_yolo_polygons_are_in_parts_of_the_images_sides(tmp_path: Path) -> None:
    # Columns 2 to 5 of 10 and rows 1 and 2 of 4, once by corners and once by middle and sides.
    corners, middle = "1 0.2 0.25 0.6 0.25 0.6 0.75 0.2 0.75", "1 0.4 0.5 0.4 0.5"
    expected = ["0000000000", "0022220000", "0022220000", "0000000000"]
    labels = yolo(tmp_path, corners)
    source = read_yolo(labels, sizes=SIZES)
    assert rows(source, "street/a") == expected
    assert rows(source, "b") == ["0" * 10] * 4  # an image without file has no objects
    (labels / "a.txt").write_text(middle + "\n\n")
    assert rows(read_yolo(labels, sizes=SIZES), "street/a") == expected


def test_yolo_numbers_are_places_in_its_own_names(tmp_path: Path) -> None:
    labels = yolo(tmp_path, "0 0.5 0.5 1 1", names="names:\n  0: road\n  1: car\n")
    classes = ClassList(("car", "road"), "classes.txt")
    assert rows(read_yolo(labels, sizes=SIZES, classes=classes), "street/a") == ["1" * 10] * 4


def test_yolo_without_names_counts_the_given_ones_without_background(tmp_path: Path) -> None:
    labels = yolo(tmp_path, "0 0.5 0.5 1 1")
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DataError, match="names no classes"):
        read_yolo(labels, sizes=SIZES)
    classes = ClassList(("background", "road"), "classes.txt")
    assert rows(read_yolo(labels, sizes=SIZES, classes=classes), "street/a") == ["1" * 10] * 4


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2 0.5 0.5 1 1", "class '2'; allowed are 0 to 1"),
        ("-1 0.5 0.5 1 1", "class '-1'"),
        ("0 0.5 0.5 1", "3 numbers; a box has 4"),
        ("0 0.5 0.5 1 1 1", "5 numbers"),
        ("0 a b c d", "could not convert"),
        ("0 0.5 0.5 nan 1", "coordinate nan"),
        ("0 1e9 0 1 0 1 1", "coordinate 10000000000.0"),
    ],
)
def test_a_malformed_yolo_line_is_told_with_its_number(
    tmp_path: Path, line: str, told: str
) -> None:
    source = read_yolo(yolo(tmp_path, "", line), sizes={"a": (4, 10)})
    with pytest.raises(DataError, match=rf"a\.txt:2: .*{told}"):
        source.entries[0].load()


def test_yolo_files_without_image_are_listed(tmp_path: Path) -> None:
    labels = yolo(tmp_path, "0 0.5 0.5 1 1")
    (labels / "stray.txt").write_text("0 0.5 0.5 1 1")
    (problem,) = read_yolo(labels, sizes=SIZES).problems
    assert (problem.kind, Path(problem.file).name) == ("unmatched", "stray.txt")


def make(folder: Path, name: str, content: Any = "") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(LABELS).save(path)
    else:
        path.write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "found", "where"),
    [
        ({"a.json": ' {"info": '}, "coco", "a.json"),
        ({"annotations/a.json": '\n[{"data"'}, "label-studio", "annotations/a.json"),
        ({"annotations.xml": "<annotations>", "images/a.png": ""}, "cvat", "annotations.xml"),
        ({"index.json": "{}", "a.png": ""}, "masks", ""),
        ({"a.json": '{"images": ', "a.png": ""}, "coco", "a.json"),
        ({"SegmentationClass/a.png": "", "x.txt": "0 1 1 1 1"}, "voc", ""),
        ({"Annotations/a.xml": ""}, "voc", ""),
        ({"a.txt": "0 0.5 0.5 1 1", "a.png": ""}, "yolo", ""),
        ({"classes.txt": "0 1 2 3 4", "a.png": ""}, "masks", ""),
        ({".hidden/a.txt": "0 1 1 1 1", "below/a.png": ""}, "masks", ""),
    ],
)
def test_a_source_is_found_by_looking(
    tmp_path: Path, files: dict[str, str], found: str, where: str
) -> None:
    for name, content in files.items():
        make(tmp_path, name, content)
    assert detect(tmp_path) == (found, tmp_path / where)


@pytest.mark.parametrize(
    "files", [{}, {"a.json": '{"info"', "b.json": '{"info"'}, {"notes.txt": "hello"}]
)
def test_what_was_looked_for_is_told(tmp_path: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        make(tmp_path, name, content)
    with pytest.raises(DataError, match=r"(?s)holds no annotations.*COCO.*CVAT.*VOC.*YOLO.*\.npy"):
        detect(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        detect(tmp_path / "nowhere")


def test_a_single_file_is_found_by_its_content(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "hello")
    with pytest.raises(DataError, match="holds no annotations"):
        detect(tmp_path / "a.txt")
    make(tmp_path, "b.txt", "0 1 x 1 1")
    with pytest.raises(DataError, match="holds no annotations"):
        detect(tmp_path)
    sides = '"x": 0, "y": 0, "width": 9, "height": 9'
    json_min = f'[{{"image": "a.png", "tag": [{{{sides}, "rectanglelabels": ["x"]}}]}}]'
    entry = '{"categories": [{"id": 1, "name": "car"}]}'
    for name, content, told in (
        ("coco.json", entry, "COCO JSON"),
        ("voc/labelmap.txt", "a:0,0,0::\n", "Pascal VOC boxes"),
        ("tasks.json", json_min, "Label Studio JSON"),
        ("cvat.xml", '<annotations><image id="0"><box label="a"/></image></annotations>', "CVAT"),
    ):
        make(tmp_path, name, content)
        path = tmp_path / name
        if told.startswith("Pascal"):
            path = voc_boxes(path.parent)
        assert read_annotations(path).format.startswith(told)


def test_what_was_found_is_read(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    assert len(read_annotations(tmp_path)) == 1
    make(tmp_path, "yolo/classes.txt", "car\n")
    make(tmp_path, "yolo/a.txt", "0 0.5 0.5 1 1")
    source = read_annotations(tmp_path / "yolo", sizes={"a": (1, 2)})
    assert loaded(source) == {"a": [[1, 1]]}
