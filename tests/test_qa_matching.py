"""Images, annotations and predictions brought together by name, and what does not fit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lossd_client.qa import (
    AnnotationSource,
    DataError,
    Entry,
    LabelRules,
    Matched,
    Photo,
    Problem,
    check_classes,
    check_labels,
    match,
    read_annotations,
    read_photos,
    read_predictions,
)

RULES = LabelRules(3, ignore_index=255)


class Folder:
    """A data set on disk: photos, masks, predictions, of two rows and three columns."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, kind: str, name: str) -> Path:
        path = self.root / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def photo(self, name: str, height: int = 2, width: int = 3, orientation: int = 1) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (width, height)).save(self._path("images", name), exif=exif)

    def mask(self, name: str, value: int = 0, shape: tuple[int, int] = (2, 3)) -> None:
        Image.fromarray(np.full(shape, value, np.uint8)).save(self._path("masks", name))

    def prediction(self, name: str, *shape: int) -> None:
        values = np.zeros(shape or (3, 2, 3), np.float16) - 1
        np.save(self._path("predictions", name), values)

    def triple(self, name: str) -> None:
        self.photo(f"{name}.jpg")
        self.mask(f"{name}.png")
        self.prediction(f"{name}.npy")

    def photos(self) -> tuple[Photo, ...]:
        return read_photos(self.root / "images")[0]

    def annotations(self) -> AnnotationSource:
        return read_annotations(self.root / "masks")

    def matched(self) -> Matched:
        return match(self.photos(), self.annotations(), read_predictions(self.root / "predictions"))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def told(problems: tuple[Problem, ...] | list[Problem]) -> list[tuple[str, str, str]]:
    return [(found.kind, Path(found.file).name, found.detail) for found in problems]


def test_names_without_their_extensions_bring_files_together(folder: Folder) -> None:
    for name in ("b", "a", "deep/c.0001"):
        folder.triple(name)
    matched = folder.matched()
    assert [pair.name for pair in matched.pairs] == ["a", "b", "c.0001"]
    assert matched.problems == ()


def test_folders_need_not_be_the_same_where_names_are_single(folder: Folder) -> None:
    folder.photo("street/day/a.png")
    folder.mask("a.png")
    folder.prediction("other/a.npy")
    (pair,) = folder.matched().pairs
    assert (pair.name, pair.annotation.name, pair.prediction.name) == ("a", "a", "other/a")


def test_a_name_in_two_folders_is_the_whole_path(folder: Folder) -> None:
    folder.triple("one/a")
    folder.triple("two/a")
    matched = folder.matched()
    assert [pair.name for pair in matched.pairs] == ["one/a", "two/a"]
    assert [pair.annotation.name for pair in matched.pairs] == ["one/a", "two/a"]


def test_a_name_that_may_be_of_two_images_is_told(folder: Folder) -> None:
    folder.triple("one/a")
    folder.triple("two/a")
    (folder.root / "masks/one/a.png").rename(folder.root / "masks/a.png")
    (folder.root / "masks/two/a.png").unlink()
    matched = folder.matched()
    assert matched.pairs == ()
    kind, file, detail = told(matched.problems)[0]
    assert (kind, file) == ("duplicate", "a.png")
    assert detail == "annotation 'a' may belong to any of one/a, two/a"


def test_several_files_of_one_name_are_told_and_none_wins(folder: Folder) -> None:
    folder.triple("a")
    folder.triple("b")
    folder.mask("b.bmp")
    folder.prediction("x/a.npy")
    folder.prediction("y/a.npy")
    (folder.root / "predictions/a.npy").unlink()
    matched = folder.matched()
    assert matched.pairs == ()
    details = [detail for kind, _, detail in told(matched.problems) if kind == "duplicate"]
    assert len(details) == 2
    assert "several files: " in details[0]
    assert "several predictions: " in details[1]


def test_two_photos_of_one_name_are_told(folder: Folder) -> None:
    folder.photo("a.png")
    folder.photo("a.jpg")
    photos, problems = read_photos(folder.root / "images")
    assert photos == ()
    assert problems[0].kind == "duplicate"
    assert "a.jpg" in problems[0].detail
    assert "a.png" in problems[0].detail


def test_names_without_partner_are_listed_both_ways(folder: Folder) -> None:
    folder.triple("a")
    folder.photo("no_mask.jpg")
    folder.prediction("no_mask.npy")
    folder.photo("no_prediction.jpg")
    folder.mask("no_prediction.png")
    folder.mask("lone_mask.png")
    folder.prediction("lone_prediction.npy")
    matched = folder.matched()
    assert [pair.name for pair in matched.pairs] == ["a"]
    assert told(matched.problems) == [
        ("unmatched", "lone_mask.png", "annotation 'lone_mask' has no image of its own"),
        ("unmatched", "no_mask.jpg", "has no annotation"),
        (
            "unmatched",
            "lone_prediction.npy",
            "prediction 'lone_prediction' has no image of its own",
        ),
        ("unmatched", "no_prediction.jpg", "has no prediction"),
    ]


def test_sizes_that_differ_are_told_and_mixed_sizes_are_not(folder: Folder) -> None:
    folder.triple("a")
    folder.photo("large.jpg", 5, 7)
    folder.mask("large.png", shape=(5, 7))
    folder.prediction("large.npy", 3, 5, 7)
    for name in ("mask", "scores", "last"):
        folder.triple(name)
    folder.mask("mask.png", shape=(3, 2))
    folder.prediction("scores.npy", 3, 2, 4)
    folder.prediction("last.npy", 2, 3, 3)
    matched = folder.matched()
    assert [pair.name for pair in matched.pairs] == ["a", "large"]
    assert told(matched.problems) == [
        ("size", "last.npy", "has the shape [2, 3, 3], its classes last; wanted is [C, H, W]"),
        ("size", "mask.png", "is 3 x 2 (height x width), mask.jpg is 2 x 3"),
        ("size", "scores.npy", "is 2 x 4 (height x width), scores.jpg is 2 x 3"),
    ]


def test_a_photo_has_the_size_that_it_is_shown_with(folder: Folder) -> None:
    for name in ("a.jpg", "b.png", "c.tif"):
        folder.triple(name[0])
        (folder.root / f"images/{name[0]}.jpg").unlink()
        folder.photo(name, height=3, width=2, orientation=6)  # turned by a quarter when shown
    assert len(folder.matched().pairs) == 3


def test_files_that_cannot_be_read_are_listed_and_the_rest_goes_on(folder: Folder) -> None:
    for name in ("a", "b", "c", "d"):
        folder.triple(name)
    for name in ("masks/b.png", "predictions/c.npy", "images/d.jpg"):
        (folder.root / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    photos, unreadable = read_photos(folder.root / "images")
    assert told(unreadable)[0][:2] == ("unreadable", "d.jpg")
    predictions = read_predictions(folder.root / "predictions")
    matched = match(photos, folder.annotations(), predictions)
    assert [pair.name for pair in matched.pairs] == ["a"]
    assert [found[:2] for found in told(matched.problems)[:2]] == [
        ("unreadable", "b.png"),
        ("unreadable", "c.npy"),
    ]


def test_a_wrong_number_of_classes_is_told(folder: Folder) -> None:
    folder.prediction("a.npy", 3, 2, 3)
    folder.prediction("b.npy", 4, 2, 3)
    folder.prediction("c.npy", 2, 3)
    predictions = read_predictions(folder.root / "predictions")
    assert told(check_classes(predictions, 3, "classes.txt")) == [
        (
            "classes",
            "b.npy",
            "has the shape [4, 2, 3], scores of 4 classes; classes.txt names 3",
        ),
        ("classes", "c.npy", "has the shape [2, 3], scores of 2 classes; classes.txt names 3"),
    ]


def test_labels_that_are_not_allowed_are_told_before_anything_is_scored(folder: Folder) -> None:
    for name, value in (("a", 2), ("b", 3), ("c", 255)):
        folder.triple(name)
        folder.mask(f"{name}.png", value)
    pairs = folder.matched().pairs
    assert told(check_labels(pairs, RULES)) == [
        ("labels", "b.png", "6 pixels hold 3; allowed are 0 to 2 and the ignored 255")
    ]
    assert told(check_labels(pairs, LabelRules(4))) == [
        ("labels", "c.png", "6 pixels hold 255; allowed are 0 to 3")
    ]


def test_a_mask_that_breaks_off_is_told_by_the_same_check(folder: Folder) -> None:
    folder.triple("a")
    path = folder.root / "masks/a.png"
    path.write_bytes(path.read_bytes()[:44])
    (problem,) = check_labels(folder.matched().pairs, RULES)
    assert (problem.kind, problem.file) == ("unreadable", str(path))


def test_a_pair_loads_its_arrays(folder: Folder) -> None:
    folder.triple("a")
    folder.mask("a.png", 255)
    (pair,) = folder.matched().pairs
    loaded = pair.load(RULES, "logits")
    assert (loaded.name, loaded.prediction.shape) == ("a", (3, 2, 3))
    assert (loaded.mask == -1).all()
    with pytest.raises(DataError, match=r"has probabilities -1\.0 to -1\.0"):
        pair.load(RULES, "probabilities")


def test_a_mask_that_turns_out_to_have_another_size_is_told(folder: Folder) -> None:
    folder.triple("a")
    entry = Entry("a", "a.dat", lambda: np.zeros((5, 5), np.uint8))  # says no size
    predictions = read_predictions(folder.root / "predictions")
    drawn = AnnotationSource("arrays", "memory", (entry,))
    (pair,) = match(folder.photos(), drawn, predictions).pairs
    expected = "is 5 x 5 (height x width), a.jpg is 2 x 3"
    assert told(check_labels([pair], RULES)) == [("size", "a.dat", expected)]
    with pytest.raises(DataError, match=r"a\.dat: is 5 x 5"):
        pair.load(RULES, "logits")


def test_a_folder_without_images_is_told(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"holds no images\. Looked for: \.bmp, \.gif"):
            read_photos(place)
