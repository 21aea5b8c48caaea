"""Class-tails, suspicion, points, regions and kinds: by hand, and against slow ways to the same."""

import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from lossd.qa.findings import Evidence
from lossd.qa.judging import Backdrop, Document, Judge
from lossd.qa.levels import class_tails, level_losses, worst_count, worst_mean
from lossd.qa.observation import observe, scores
from lossd.qa.outlines import line_sums, lines
from lossd.qa.points import heat_levels, heat_table, peaks
from lossd.qa.runs import components
from lossd.qa.suspicion import Centres, centres, suspicions
from lossd_client.coco_rle import decode_coco
from lossd_client.qa_wire import ImageScores, ObservedScores, ScoreRequest
from lossd_client.wire import Array
from qa_images import class_tail_score, picture

SMALL = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 3)
)


def evidence(logits: Array, target: Array, ignored: int | None = None) -> Evidence:
    labels = target.astype(np.int8)
    if ignored is not None:
        labels[target == ignored] = -1
    classes = len(logits)
    flat = torch.from_numpy(logits.reshape(classes, -1)), torch.from_numpy(labels.reshape(-1))
    seen = observe(*flat, labels.shape, "logits", classes)
    worst, beside, mean, fourth = scores(seen).tolist()
    return Evidence(
        labels,
        seen.levels.reshape(labels.shape),
        seen.predicted.reshape(labels.shape),
        seen.margin.reshape(labels.shape),
        seen.counts,
        ObservedScores(
            worst_loss=worst,
            boundary_loss=None if math.isnan(beside) else beside,
            mean_loss=mean,
            l4_loss=fourth,
        ),
    )


def counts_of(image: Evidence) -> Array:
    assert image.histogram is not None
    return image.histogram


def judged(
    images: Sequence[Evidence], backdrop: Backdrop | None = None, **asked: object
) -> list[Document]:
    classes = len(counts_of(images[0]))
    judge = Judge(ScoreRequest.model_validate(asked), classes, backdrop)
    return [json.loads(orjson.dumps(one.document)) for one in judge.judge(images)]


def sure(predicted: Array, given: Array) -> Evidence:
    """Evidence of a model that is sure of everything."""
    classes = int(max(predicted.max(), given.max(), 1)) + 1
    logits = np.where(np.arange(classes)[:, None, None] == predicted, 9.0, 0.0)
    return evidence(logits.astype(np.float32), given)


# -- class-tails ----------------------------------------------------------------------------------


def test_class_tails_by_hand() -> None:
    counts = np.zeros((2, 256), np.int64)
    counts[0, [0, 10, 255]] = 7, 2, 1
    tails = class_tails(counts)
    assert tails[0, 0] == 0
    assert tails[0, 1] == tails[0, 10] == -math.log(4 / 11)
    assert tails[0, 11] == tails[0, 255] == -math.log(2 / 11)
    assert not tails[1].any()


@pytest.mark.parametrize("seed", range(3))
def test_class_tail_is_the_mean_over_the_worst_pixels(seed: int) -> None:
    images = [evidence(*picture(number)) for number in range(seed, seed + 4)]
    total = sum(map(counts_of, images), np.zeros((4, 256), np.int64))
    for image in images:
        expected = class_tail_score(total, image.labels, image.levels, image.labels >= 0)
        assert worst_mean(class_tails(total), counts_of(image)) == pytest.approx(expected)


def test_worst_pixels_are_at_least_one() -> None:
    assert [worst_count(pixels) for pixels in (1, 333, 334, 1000, 43200)] == [1, 1, 2, 3, 130]
    assert worst_mean(level_losses()[None], np.zeros((1, 256), np.int64)) == 0


# -- suspicion ------------------------------------------------------------------------------------


def test_suspicion_by_hand() -> None:
    rows = np.array([[1.0, 5.0, 0.0], [2.0, 5.0, np.nan], [3.0, 5.0, 4.0], [9.0, 8.0, 2.0]])
    among = centres(rows)
    assert among.medians == (2.5, 5.0, 2.0)
    assert among.spreads == pytest.approx((1.4826 * 1.0, 0.0, 1.4826 * 2.0))
    found = suspicions(rows, among)
    third = 2 / (1.4826 * 2)
    expected = [-1.5 / 1.4826 - third, -0.5 / 1.4826, 0.5 / 1.4826 + third, 6.5 / 1.4826]
    np.testing.assert_allclose(found, expected)


def test_z_scores_are_clipped() -> None:
    among = Centres((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (9, 9, 9), 9)
    assert suspicions(np.array([[99.0, -99.0, 1.0]]), among).tolist() == [8 - 4 + 1]


@given(st.permutations(range(9)))
def test_the_order_of_images_changes_no_bit(order: list[int]) -> None:
    rows = np.random.default_rng(1).gamma(2.0, size=(9, 3))
    assert centres(rows) == centres(rows[order])
    np.testing.assert_array_equal(
        suspicions(rows, centres(rows))[order], suspicions(rows[order], centres(rows[order]))
    )


# -- points ---------------------------------------------------------------------------------------


def test_heat_is_the_root_of_loss_and_class_tail() -> None:
    counts = np.zeros((2, 256), np.int64)
    counts[1, [0, 32]] = 99, 1
    heat = heat_table(class_tails(counts))
    assert heat[1, 32] == round(64 * math.sqrt(2.0 * -math.log(2 / 101)))
    assert heat_levels(heat[1, 32:33]).tolist() == [round(heat[1, 32] / 4)]
    np.testing.assert_array_equal(heat_levels(heat_table(None)[0]), np.arange(256))


NOWHERE = np.zeros((40, 50), np.uint8)


def test_points_are_boxes_apart_from_each_other() -> None:
    heat = np.zeros((40, 50), np.uint16)
    heat[20, 30] = 640
    heat[20, 36] = 320  # 6 px beside the first: its box of 5 by 5 lies within 10 px, mostly
    heat[5, 5] = 64
    found = peaks(heat, components(NOWHERE), 5).tolist()
    assert found[0] == [28, 18, 640, -1]
    for one, other in itertools.combinations(found, 2):
        assert (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2 > 100
    assert any(one[:2] == [3, 3] for one in found[1:])
    assert len(peaks(heat, components(NOWHERE), 1)) == 1
    assert peaks(heat * 0, components(NOWHERE), 5).shape == (0, 4)


def test_a_region_has_one_point() -> None:
    heat = np.zeros((40, 50), np.uint16)
    heat[10, 5:45] = 640  # as long as four points
    heat[30, 8] = 64
    codes = NOWHERE.copy()
    codes[10, 5:45] = 3
    first, second = peaks(heat, components(codes), 5).tolist()
    assert first == [
        7,
        8,
        5 * 640,
        -1,
    ]  # the first of equal boxes; the region is closed all the same
    assert second[:3] == [6, 28, 64]
    without = peaks(heat, components(NOWHERE), 5)
    assert (without[:4, 1] < 20).all()


def test_the_image_is_mirrored_at_its_border() -> None:
    heat = np.zeros((9, 9), np.uint16)
    heat[0, 0] = 64
    assert peaks(heat, components(heat.astype(np.uint8) * 0), 1).tolist() == [[0, 0, 4 * 64, -1]]


# -- regions --------------------------------------------------------------------------------------


@given(SMALL)
def test_components_are_those_of_scipy(codes: Array) -> None:
    found = components(codes)
    areas, at = [], np.full(codes.shape, -1)
    corners = np.ones((3, 3))
    for code in range(1, 4):
        labelled, count = ndimage.label(codes == code, corners)
        for number in range(1, count + 1):
            areas.append((code, int((labelled == number).sum())))
            at[labelled == number] = len(areas) - 1
    assert sorted(zip(found.code.tolist(), found.area.tolist(), strict=True)) == sorted(areas)
    mine = found.of(np.arange(codes.size)).reshape(codes.shape)
    np.testing.assert_array_equal(mine >= 0, codes > 0)
    pairs = set(zip(mine[codes > 0].tolist(), at[codes > 0].tolist(), strict=True))
    assert len(pairs) == len(areas) == len(found.code)
    firsts = [int(np.flatnonzero(mine == number)[0]) for number in range(len(found.code))]
    assert firsts == sorted(firsts)
    assert found.top.tolist() == [first // codes.shape[1] for first in firsts]


@given(SMALL, SMALL, st.integers(0, 6))
def test_regions_are_the_disputed_pixels_that_touch(
    predicted: Array, target: Array, most: int
) -> None:
    size = min(predicted.shape[0], target.shape[0]), min(predicted.shape[1], target.shape[1])
    predicted, target = (one[: size[0], : size[1]] for one in (predicted, target))
    image = sure(predicted, target)
    (found,) = judged([image], max_regions=most)
    answer = ImageScores.model_validate(found)
    assert answer.regions is not None
    wrong = predicted != target
    assert answer.disputed_pixels == np.count_nonzero(wrong)
    assert len(answer.regions) == min(most, answer.regions_found or 0)
    assert [one.score for one in answer.regions] == sorted(
        (one.score for one in answer.regions), reverse=True
    )
    for region in answer.regions:
        mask = decode_coco(region.rle.counts, *region.rle.size)
        x, y, width, height = region.bbox
        assert mask.sum() == region.area == mask[y : y + height, x : x + width].sum()
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        assert (columns[0], columns[-1]) == (x, x + width - 1)
        assert (rows[0], rows[-1]) == (y, y + height - 1)
        assert set(target[mask].tolist()) == {region.given}
        assert set(predicted[mask].tolist()) == {region.predicted}
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
        grown = ndimage.binary_dilation(mask, np.ones((3, 3))) & ~mask
        same = (target == region.given) & (predicted == region.predicted)
        assert not (grown & same).any()


def test_the_margin_says_what_is_disputed() -> None:
    p = np.array([[0.2, 0.3, 0.1], [0.8, 0.7, 0.9]])[:, None]
    image = evidence(np.log(p).astype(np.float32), np.zeros((1, 3), np.uint8))
    for margin, pixels in ((0.5, 2), (0.3, 3), (0.7, 1), (0.9, 0), (0, 3), (1, 0)):
        assert judged([image], disputed_margin=margin)[0]["disputed_pixels"] == pixels
    (region,) = judged([image], disputed_margin=0.3)[0]["regions"]
    assert region["probability"] == pytest.approx(0.8, abs=0.01)
    heat = heat_table(None)[0, image.levels[0]].astype(float) / 64
    assert region["score"] == pytest.approx(heat.sum() / math.sqrt(3))


def test_ignored_pixels_are_in_no_region() -> None:
    predicted = np.ones((6, 8), np.uint8)
    target = np.zeros((6, 8), np.uint8)
    target[:, 4] = 7
    logits = np.where(np.arange(2)[:, None, None] == predicted, 9.0, 0.0).astype(np.float32)
    (found,) = judged([evidence(logits, target, ignored=7)])
    assert found["disputed_pixels"] == 42
    assert sorted(region["area"] for region in found["regions"]) == [18, 24]
    assert found["pixels"] == 42
    assert found["per_class"][1]["predicted_pixels"] == 42


def test_classes_by_hand() -> None:
    target = np.zeros((6, 6), np.uint8)
    target[:, 3:] = 1
    predicted = target.copy()
    predicted[0:2, 3:] = 2
    predicted[5, 0] = 1
    (found,) = judged([sure(predicted, target)], class_names=["a", "b", "c"])
    first, second, third = found["per_class"]
    assert (first["pixels"], first["predicted_pixels"], first["dice"]) == (18, 17, 34 / 35)
    assert second["dice"] == 2 * 12 / (18 + 13)
    assert (second["disputed_pixels"], second["disputed_share"]) == (6, 6 / 18)
    assert second["swap"] == {"predicted": 2, "predicted_name": "c", "pixels": 6}
    assert (third["pixels"], third["dice"], third["swap"]) == (0, 0, None)


@pytest.mark.parametrize("detail", ["full", "scores"])
def test_company_and_sharding_change_nothing(detail: str) -> None:
    images = [evidence(*picture(seed, size=(20 + seed % 2, 33))) for seed in range(6)]
    total = sum(map(counts_of, images), np.zeros((4, 256), np.int64))
    counted = [line_sums(lines(image.labels), 4) for image in images]
    backdrop = Backdrop.of(
        total, np.sum(counted, 0), Centres((2.0, 2.0, 1.0, 1.0), (1.0,) * 4, (6,) * 4, 6)
    )
    together = judged(images, backdrop, detail=detail)
    alone = [judged([image], backdrop, detail=detail)[0] for image in images]
    assert together == alone
    assert judged(images[::-1], backdrop, detail=detail) == alone[::-1]


# -- kinds ----------------------------------------------------------------------------------------


def drawn(*boxes: tuple[int, int, int, int, int], ground: int = 0) -> Array:
    """Boxes (top, left, height, width, class) on a ground."""
    canvas = np.full((60, 80), ground, np.uint8)
    for top, left, height, width, label in boxes:
        canvas[top : top + height, left : left + width] = label
    return canvas


OBJECT = (20, 20, 16, 24, 1)
KINDS = {
    "missing": (drawn(OBJECT), drawn()),
    "extra": (drawn(), drawn(OBJECT)),
    "swapped": (drawn(OBJECT), drawn((20, 20, 16, 24, 2))),
    "shifted": (drawn(OBJECT), drawn((20, 25, 16, 24, 1))),
    "dilated": (drawn(OBJECT), drawn((17, 17, 22, 30, 1))),
    "eroded": (drawn(OBJECT), drawn((23, 23, 10, 18, 1))),
}


@pytest.mark.parametrize("ground", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_drawn_errors(kind: str, ground: int) -> None:
    predicted, given_mask = (np.where(one == 0, ground, one) for one in KINDS[kind])
    (found,) = judged([sure(predicted, given_mask)])
    assert {region["kind"] for region in found["regions"]} == {kind}
    assert found["kind"] == kind


def test_a_polygon_with_too_few_corners_is_coarse() -> None:
    y, x = np.mgrid[:80, :80] - 40.0
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    # A square about a circle: bits stand out at its corners, and its sides cut bits off.
    square = np.maximum(np.abs(y), np.abs(x)) <= 26
    assert angle.shape == radius.shape
    (found,) = judged([sure((radius <= 30).astype(np.uint8), square.astype(np.uint8))])
    assert found["kind"] == "coarse"


def test_reasons_say_what_stands_where() -> None:
    predicted, target = KINDS["swapped"]
    (found,) = judged([sure(predicted, target)], class_names=["road", "car", "bus"])
    assert found["reason"] == (
        "labelled bus, predicted car, p = 1.00 over 384 px: an object annotated as another class"
    )
    (found,) = judged([sure(predicted, target)])
    assert found["reason"].startswith("labelled class 2, predicted class 1, ")


def test_without_disputes_there_is_no_kind() -> None:
    (found,) = judged([sure(drawn(OBJECT), drawn(OBJECT))])
    assert (found["kind"], found["reason"], found["regions"]) == (None, None, [])
    assert found["regions_found"] == 0
