"""The demo's parts that need no service: drawings, spoils, segmenter, ranking, committed files."""

import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))  # the demo is a folder of programs, not a package

import annotations  # noqa: E402 (found through the line above)
import demo  # noqa: E402
import segmenter  # noqa: E402
import write_curl_files  # noqa: E402

IMAGES = annotations.read().images
SPOILED = sorted(name for name, annotation in IMAGES.items() if annotation.spoil)


@pytest.mark.parametrize("name", IMAGES)
def test_shapes_lie_inside_their_image_and_leave_both_classes(name: str) -> None:
    height, width = demo.load_image(name).shape[:2]
    for shape in IMAGES[name].shapes:
        (left, top), (right, bottom) = shape.bounds()
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
    mask = IMAGES[name].drawn(height, width)
    assert {0, 1} <= set(np.unique(mask)) <= {0, 1, annotations.IGNORED}


def test_every_image_is_annotated_licensed_and_small() -> None:
    files = sorted((EXAMPLES / "images").glob("*.png"))
    assert sorted(IMAGES) == [path.stem for path in files]
    licences = (EXAMPLES / "images" / "LICENSES.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(.+?)` \|.*\| (.+?) \|$", licences, flags=re.MULTILINE))
    assert sorted(stated) == [path.name for path in files]
    assert all(re.search("CC0|public domain|no known copyright", text) for text in stated.values())
    assert sum(path.stat().st_size for path in files) < 1_500_000
    assert max(max(demo.load_image(path.stem).shape[:2]) for path in files) <= 400


def test_three_masks_are_spoiled_and_only_those_differ_from_their_drawing() -> None:
    assert len(SPOILED) == 3
    for name, annotation in IMAGES.items():
        shape = demo.load_image(name).shape[:2]
        same = np.array_equal(annotation.drawn(*shape), annotation.given(*shape))
        assert same == (name not in SPOILED)


def annotation_with(spoil: dict[str, object]) -> annotations.Annotation:
    square = {"label": 1, "polygon": [[2, 2], [6, 2], [6, 6], [2, 6]]}
    dot = {"label": 1, "circle": [10.5, 4.5, 1.2]}
    return annotations.Annotation.model_validate(
        {"object": "test", "shapes": [square, dot], "spoil": spoil}
    )


def test_remove_leaves_out_the_named_shape() -> None:
    annotation = annotation_with({"operation": "remove", "shape": 1, "reads": ""})
    assert annotation.drawn(8, 14).sum() == 16 + 5
    assert annotation.given(8, 14).sum() == 16


def test_shift_moves_the_mask_and_loses_what_leaves_the_picture() -> None:
    annotation = annotation_with({"operation": "shift", "dx_px": 3, "dy_px": 1, "reads": ""})
    drawn, given = annotation.drawn(8, 14), annotation.given(8, 14)
    assert np.array_equal(given[1:, 3:], drawn[:-1, :-3])
    assert given[:1].sum() == 0
    assert given[:, :3].sum() == 0


def test_add_paints_one_more_shape() -> None:
    extra = {"label": 1, "ellipse": [10, 1, 2, 0.6]}
    annotation = annotation_with({"operation": "add", "shape": extra, "reads": ""})
    assert np.all(annotation.given(8, 14) >= annotation.drawn(8, 14))
    assert annotation.given(8, 14).sum() > annotation.drawn(8, 14).sum()


def test_later_shapes_overwrite_and_label_0_cuts_a_hole() -> None:
    ring = (
        annotations.Circle(label=1, circle=(5, 5, 4)),
        annotations.Circle(label=0, circle=(5, 5, 2)),
    )
    mask = annotations.paint(ring, 10, 10)
    assert mask[5, 5] == 0
    assert mask[5, 8] == 1


def test_an_unknown_key_in_the_file_is_an_error() -> None:
    with pytest.raises(ValueError, match="redius"):
        annotations.Circle.model_validate({"label": 1, "circle": [1, 1, 1], "redius": 2})


def test_segmenter_is_deterministic_bounded_and_sees_only_the_image() -> None:
    image = demo.load_image("coins-3")
    logits = segmenter.segment(image)
    assert logits.dtype == np.float32
    assert logits.shape == (1, *image.shape[:2])
    assert np.abs(logits).max() <= np.log(31) + 1e-5
    assert np.array_equal(logits, segmenter.segment(image.copy()))
    assert list(inspect.signature(segmenter.segment).parameters) == ["image"]
    source = inspect.getsource(segmenter)
    assert not re.search(r"import annotations|from annotations|open\(|random\.", source)


def test_segmenter_takes_grey_images_as_their_colour_equivalent() -> None:
    image = demo.load_image("coins-3")
    assert np.array_equal(segmenter.segment(image), segmenter.segment(image[..., 0]))


@pytest.mark.parametrize("name", IMAGES)
def test_segmenter_mostly_agrees_with_the_drawing(name: str) -> None:
    image = demo.load_image(name)
    mask = IMAGES[name].drawn(*image.shape[:2])
    valid = mask != annotations.IGNORED
    agreement = ((segmenter.segment(image)[0] > 0) == (mask == 1))[valid].mean()
    assert agreement > 0.95


def test_the_data_set_is_what_a_team_would_have(tmp_path: Path) -> None:
    demo.write_data_set(annotations.read(), tmp_path)
    assert (tmp_path / "classes.txt").read_text().split() == ["background", "object"]
    for name, annotation in IMAGES.items():
        with Image.open(tmp_path / "masks" / f"{name}.png") as mask:
            given = annotation.given(mask.height, mask.width)
            assert np.array_equal(np.asarray(mask), given)
        assert np.load(tmp_path / "predictions" / f"{name}.npy").shape == given.shape


def test_the_verdict_is_about_places_of_the_spoiled(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    names = ["one", "two", "three", "four", "five"]
    assert demo.verdict(names, {"one": "shifted", "four": "shifted"}, console) == 0
    assert "at places 1, 4" in capsys.readouterr().out
    assert demo.verdict(names, {"one": "shifted", "five": "shifted"}, console) == 1
    assert "among the first 4" in capsys.readouterr().out


def test_the_demo_ranks_through_a_service(
    service_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", "--url", service_url, "--out", str(tmp_path)])
    assert demo.main() == 0
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"ranking.csv", "regions.json", "report.html", "overlays"} <= written


def test_curl_files_are_what_their_program_writes() -> None:
    image = demo.load_image(write_curl_files.NAME)
    prediction = np.load(EXAMPLES / "curl" / "prediction.npy")
    assert prediction.dtype == np.float16
    np.testing.assert_allclose(prediction, segmenter.segment(image), atol=0.01)
    with Image.open(EXAMPLES / "curl" / "mask.png") as mask:
        drawn = IMAGES[write_curl_files.NAME].drawn(*image.shape[:2])
        assert np.array_equal(np.asarray(mask), drawn)
