"""What is found in an image's bytes, in C++ as with numpy to the bit; outlines by hand."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lossd.core.in_place import build
from lossd.qa import outlines as straight
from lossd.qa.compiled_findings import SOURCE, CompiledFind
from lossd.qa.findings import CHOSEN, Evidence, Question, find, heat_rows
from lossd.qa.kinds import region_kinds
from lossd.qa.levels import class_tails
from lossd.qa.outlines import outlines
from lossd.qa.points import heat_table
from lossd.qa.runs import components
from lossd_client.coco_rle import expand_coco
from lossd_client.qa_wire import ObservedScores
from lossd_client.wire import Array

SCORES = ObservedScores(worst_loss=0, boundary_loss=None, mean_loss=0, l4_loss=0)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledFind:
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    return CompiledFind(build(tmp_path_factory.mktemp("findings"), SOURCE))


def image(seed: int) -> tuple[Question, Evidence]:
    """Patches of classes, some of them ignored, and predictions that differ a little or a lot."""
    rng = np.random.default_rng(seed)
    classes, side = int(rng.integers(2, 6)), int(rng.integers(1, 9))
    height, width = (int(size) for size in rng.integers(1, 41, 2))
    patches = rng.integers(-1, classes, (height // side + 1, width // side + 1))
    labels = np.kron(patches, np.ones((side, side), np.intp))[:height, :width]
    labels = labels.astype([np.int8, np.int16, np.int32][seed % 3])
    moved = np.roll(np.maximum(labels, 0), (seed % 4, seed % 3), (0, 1))
    is_other = rng.random(labels.shape) < [0.0, 0.02, 0.3, 1.0][seed % 4]
    predicted = np.where(is_other, rng.integers(0, classes, labels.shape), moved)
    levels, margin = rng.integers(0, 256, (2, height, width)).astype(np.uint8)
    counts = np.zeros((classes, 256), np.int64)
    np.add.at(counts, (labels[labels >= 0], levels[labels >= 0]), 1)
    question = Question(
        heat=heat_rows(heat_table(class_tails(counts)), classes),
        classes=classes,
        margin_steps=int(rng.integers(0, 200)),
        max_points=int(rng.integers(0, 7)),
        max_regions=int(rng.integers(0, 20)),
    )
    known = counts if seed % 2 else None
    small = predicted.astype([np.uint8, np.int16][seed % 2])
    return question, Evidence(labels, levels, small, margin, known, SCORES)


@pytest.mark.parametrize("seeds", [range(first, first + 40) for first in range(0, 240, 40)])
def test_both_find_the_same_to_the_bit(compiled: CompiledFind, seeds: range) -> None:
    for seed in seeds:
        question, evidence = image(seed)
        expected, found = find(question, evidence), compiled(question, evidence)
        for field in dataclasses.fields(found):
            np.testing.assert_array_equal(
                getattr(found, field.name),
                getattr(expected, field.name),
                err_msg=f"{field.name} of image {seed}",
            )


@pytest.mark.parametrize("side", [3, 17, 40])
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_both_see_the_same_outlines(compiled: CompiledFind, side: int, dtype: type) -> None:
    seen = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shape = (rng.integers(-1, 4, (5, 6)), np.ones((side, side + seed), np.intp))
        labels: Array = np.kron(*shape).astype(dtype)
        labels = np.where(rng.random(labels.shape) < 0.002 * (seed % 3), 1, labels).astype(dtype)
        found = compiled.lines(labels)
        np.testing.assert_array_equal(found, straight.lines(labels))
        assert (found[:, 2] >= straight.LEAST_PLACES).all()
        seen += len(found)
    assert seen > 100 or side == 3
    assert compiled.lines(np.full((9, 9), -1, np.int8)).shape == (0, 4)


@pytest.mark.parametrize("seed", range(8))
def test_lines_that_join_and_part_are_followed_alike(compiled: CompiledFind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(3, 120, 140)), (0, 3, 2 + seed % 4))
    labels = smooth.argmax(0).astype(np.int8) - (seed % 2)
    ragged = rng.random(labels.shape) < 0.01 * (seed % 3)  # spurs, and gaps of a pixel
    labels[ragged] = rng.integers(-1, 3, int(ragged.sum()))
    found = compiled.lines(labels)
    np.testing.assert_array_equal(found, straight.lines(labels))
    assert len(found) > 3


@pytest.mark.parametrize(
    ("side", "size"), [(31, 2), (63, 3), (64, 4), (255, 5), (256, 6), (512, 7)]
)
def test_both_see_the_same_sizes(compiled: CompiledFind, side: int, size: int) -> None:
    labels = np.full((side + 20, side + 20), -1, np.int8)
    labels[10:-10, 10:-10] = 1
    found = compiled.lines(labels)
    np.testing.assert_array_equal(found, straight.lines(labels))
    assert found[:, :2].tolist() == [[1, size]]


def test_large_classes_are_found_alike(compiled: CompiledFind) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 300, (20, 30)).astype(np.int16)
    predicted = np.where(rng.random(labels.shape) < 0.5, labels, 299).astype(np.int16)
    margin = np.full(labels.shape, 255, np.uint8)
    question = Question(heat_rows(heat_table(None), 300), 300, 127, 5, 50)
    evidence = Evidence(labels, margin, predicted, margin, None, SCORES)
    expected, found = find(question, evidence), compiled(question, evidence)
    np.testing.assert_array_equal(found.chosen, expected.chosen)
    np.testing.assert_array_equal(found.histogram, expected.histogram)


def test_a_library_of_another_source_is_refused(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    source = tmp_path / "other.cpp"
    source.write_text(
        '#include <cstdint>\nextern "C" int64_t lossd_findings_layout() { return 7; }\n'
    )
    with pytest.raises(RuntimeError, match="another"):
        CompiledFind(build(tmp_path, source))


def test_what_lies_around_a_region_by_hand() -> None:
    labels = np.zeros((6, 8), np.int8)
    labels[:, 4:] = 1
    labels[0, 0] = -1
    predicted = labels.copy()
    predicted[2:4, 2:4] = 1  # four pixels of class 0, beside class 1
    predicted[0, 0] = 0
    margin = np.full(labels.shape, 255, np.uint8)
    question = Question(heat_rows(heat_table(None), 2), 2, 127, 5, 50)
    found = find(
        question, Evidence(labels, margin, predicted.astype(np.uint8), margin, None, SCORES)
    )
    (row,) = found.chosen
    said = {name: int(row[name]) for name in CHOSEN.names or ()}
    assert (said["left"], said["top"], said["width"], said["height"]) == (2, 2, 2, 2)
    assert (said["row_sum"], said["column_sum"]) == (2 * 2 + 2 * 3, 2 * 2 + 2 * 3)
    assert (said["edges"], said["edges_at_predicted"], said["edges_at_others"]) == (8, 2, 2)
    assert (said["own_area"], said["touched_area"]) == (23, 24)
    assert said["along_area"] == 23
    assert [expand_coco(mask).tolist() for mask in found.masks] == [[14, 2, 4, 2, 26]]
    assert found.right.tolist() == [19, 24]
    assert found.predicted.tolist() == [19, 28]


def wavy(size: int = 60) -> Array:
    """An object whose border swings by 2 px every 10."""
    row = np.arange(size)
    half = 18 + np.rint(2 * np.sin(row * 2 * np.pi / 10))
    found: Array = (np.abs(row - size / 2)[None] <= half[:, None]) & (np.abs(row - 30) <= 24)[
        :, None
    ]
    return found


@pytest.mark.parametrize("slope", [0.0, 0.25, 0.5, 1.0, -0.7])
def test_drawn_lines_are_chords(slope: float) -> None:
    y, x = np.mgrid[:60, :60]
    labels = (x - 30 > slope * (y - 30)).astype(np.int8)
    found = outlines(labels, components(labels + np.int8(1)))
    assert found.places.min() >= 40
    np.testing.assert_array_equal(found.chords, found.places)


def test_what_swings_is_no_chord() -> None:
    labels = wavy().astype(np.int8)
    found = outlines(labels, components(labels + np.int8(1)))
    assert found.places[1] >= 60
    assert found.chords[1] < 0.5 * found.places[1]


def test_the_border_of_the_image_is_no_outline() -> None:
    labels = np.zeros((40, 40), np.int8)
    found = outlines(labels, components(labels + np.int8(1)))
    assert found.places.tolist() == [0]


def disc(radius: float) -> Array:
    side = int(2 * radius) + 20
    y, x = np.indices((side, side)) - side / 2
    inside: Array = (np.hypot(y, x) < radius).astype(np.int8)
    return inside


def test_objects_are_compared_with_those_of_their_size() -> None:
    """Over thirteen pixels a large circle is straight, which is no sign of too few corners."""
    small, large = np.linspace(18.5, 25, 40), np.linspace(40, 50, 4)
    found = [straight.lines(disc(radius))[1:] for radius in (*small, *large)]
    assert {own[0, 1] for own in found[:40]} == {3}
    assert {own[0, 1] for own in found[40:]} == {4}
    sums = np.sum([straight.line_sums(own, 2) for own in found], 0)

    def deviations(sums: Array) -> list[float]:
        of_set = straight.Straightness(sums)
        judged = [of_set.of(own) for own in found[40:]]
        return [one.deviations for one in judged if one is not None]

    assert max(deviations(sums)) < 2
    as_if_all_were_of_one_size = np.zeros_like(sums)
    as_if_all_were_of_one_size[:, 4] = sums.sum(1)
    assert min(deviations(as_if_all_were_of_one_size)) > 2


@pytest.mark.parametrize(
    ("wave_is_given", "kind"), [(False, "coarse"), (True, None)], ids=["chord", "wave"]
)
def test_a_chord_where_the_model_sees_a_wave_is_coarse(
    wave_is_given: bool,  # noqa: FBT001 - a parameter of the test
    kind: str | None,
) -> None:
    wave = wavy()
    chord = np.zeros_like(wave)
    chord[6:55, 12:49] = True
    given, predicted = (wave, chord) if wave_is_given else (chord, wave)
    margin = np.full(given.shape, 255, np.uint8)
    question = Question(heat_rows(heat_table(None), 2), 2, 127, 5, 50)
    evidence = Evidence(
        given.astype(np.int8), margin, predicted.astype(np.uint8), margin, None, SCORES
    )
    found = find(question, evidence)
    kinds = set(region_kinds([(found.chosen, found.area)]))
    assert ("coarse" in kinds) == (kind == "coarse")
