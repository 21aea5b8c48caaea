"""Losses of boxes: hand-checked numbers, bounds, boxes without area, gradients."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lossd.losses.boxes import ciou, diou, eiou, giou, iou_box
from oracles.rows import ORACLE

Loss = Callable[..., Tensor]

LOSSES: list[Loss] = [iou_box, giou, diou, ciou, eiou]
VARIANTS: list[tuple[Loss, dict[str, Any]]] = [
    (iou_box, {}),
    (iou_box, {"form": "log"}),
    (iou_box, {"form": "squared"}),
    (giou, {}),
    (diou, {}),
    (ciou, {}),
    (ciou, {"alpha_gate": True}),
    (eiou, {}),
]
FORMATS = ["xyxy", "xywh", "cxcywh"]

OVERLAPPING = [0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]
HALF = [0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 2.0, 2.0]
DISJOINT = [0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0]
NESTED = [0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 3.0, 3.0]
WIDE = [0.0, 0.0, 4.0, 1.0], [0.0, 0.0, 3.0, 1.0]

NUMBERS: list[tuple[Loss, dict[str, Any], tuple[list[float], list[float]], float]] = [
    (iou_box, {}, OVERLAPPING, 0.857143),
    (iou_box, {"form": "log"}, OVERLAPPING, 1.945910),
    (iou_box, {"form": "squared"}, OVERLAPPING, 48 / 49),
    (giou, {}, OVERLAPPING, 1.079365),
    (diou, {}, OVERLAPPING, 0.968254),
    (ciou, {}, OVERLAPPING, 0.968254),
    (iou_box, {}, HALF, 0.5),
    (giou, {}, HALF, 0.5),
    (diou, {}, HALF, 0.55),
    (ciou, {}, HALF, 0.553248),
    (ciou, {"alpha_gate": True}, HALF, 0.55),
    (eiou, {}, HALF, 0.8),
    (giou, {}, DISJOINT, 4 / 3),
    (diou, {}, DISJOINT, 1.4),
    (iou_box, {}, NESTED, 0.75),
    (giou, {}, NESTED, 0.75),
    (diou, {}, NESTED, 0.75),
    (ciou, {}, NESTED, 0.75),
    (eiou, {}, NESTED, 1.25),
    (diou, {}, WIDE, 0.264706),
    (ciou, {}, WIDE, 0.264728),
    (ciou, {"alpha_gate": True}, WIDE, 0.264728),
]


def rows(*boxes: list[float]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64)


def random_boxes(count: int, seed: int, layout: str = "xyxy") -> Tensor:
    """Boxes with sides of 0.5 to 1.5 in a square of about 3."""
    boxes = torch.rand(count, 4, dtype=torch.float64, generator=torch.manual_seed(seed)) + 0.5
    if layout == "xyxy":
        boxes[:, 2:] += boxes[:, :2]
    return boxes


def gradient(loss: Loss, prediction: Tensor, target: Tensor, **params: Any) -> Tensor:
    leaf = prediction.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf, target, **params).sum(), leaf)
    return found


@pytest.mark.parametrize(("loss", "params", "pair", "value"), NUMBERS)
def test_hand_checked_values(
    loss: Loss, params: dict[str, Any], pair: tuple[list[float], list[float]], value: float
) -> None:
    prediction, target = rows(pair[0]), rows(pair[1])
    assert loss(prediction, target, **params).item() == pytest.approx(value, abs=6e-7)
    swapped = loss(target, prediction, **params).item()
    assert swapped == pytest.approx(value, abs=6e-7), "symmetric"


def test_the_weight_of_the_proportions_is_the_papers() -> None:
    added = ciou(rows(HALF[0]), rows(HALF[1])) - diou(rows(HALF[0]), rows(HALF[1]))
    assert added.item() == pytest.approx(0.041956 * 0.077417, abs=1e-7)


def test_the_gradient_of_iou_is_the_one_on_paper() -> None:
    # I = (x2 - 1)(y2 - 1) = 1 and U = (x2 - x1)(y2 - y1) + 4 - I = 7; the loss falls by
    # (I' U - I U') / U² with I' = 0 and U' = -2 for a low corner, I' = 1 and U' = 1 for a high one.
    found = gradient(iou_box, rows(OVERLAPPING[0]), rows(OVERLAPPING[1]))
    assert found[0].tolist() == pytest.approx([-2 / 49, -2 / 49, -6 / 49, -6 / 49])


@pytest.mark.parametrize("form", ["linear", "log", "squared"])
def test_a_perfect_box_costs_nothing_and_not_one(form: str) -> None:
    box = rows(OVERLAPPING[0])
    assert iou_box(box, box, form=form).item() == 0


def test_without_overlap_the_linear_form_is_one_and_only_the_logarithm_is_large() -> None:
    one, other = rows(DISJOINT[0]), rows(DISJOINT[1])
    assert iou_box(one, other).item() == 1
    assert iou_box(one, other, form="squared").item() == 1
    assert iou_box(one, other, form="log").item() == pytest.approx(6 * math.log(10))


def test_widths_have_no_pixel_added() -> None:
    # With the old "+ 1" it would be 1 - 4/6.
    assert iou_box(rows([0, 0, 1, 1]), rows([0, 0, 2, 1])).item() == 0.5


def test_iou_of_disjoint_boxes_has_no_gradient_and_the_others_point_home() -> None:
    prediction, target = rows(DISJOINT[0]), rows(DISJOINT[1])
    assert not gradient(iou_box, prediction, target).any()
    assert not gradient(iou_box, prediction, target, form="log").any()
    for loss in (giou, diou, ciou, eiou):
        # The target is to the right: moving right must help.
        found = gradient(loss, prediction, target)[0]
        assert found[0] + found[2] < 0, loss.__name__


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
@pytest.mark.parametrize("layout", FORMATS)
def test_values_and_gradients_are_the_oracles(
    loss: Loss, params: dict[str, Any], layout: str
) -> None:
    prediction, target = random_boxes(64, 1, layout), random_boxes(64, 2, layout)
    params = {**params, "format": layout}
    value = loss(prediction, target, **params)
    leaf = prediction.clone().requires_grad_()
    oracle = ORACLE[loss.__name__]
    expected = torch.stack(
        [oracle({"prediction": leaf[i], "target": target[i]}, params) for i in range(64)]
    )
    torch.testing.assert_close(value, expected.detach(), rtol=1e-13, atol=1e-14)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    found = gradient(loss, prediction, target, **params)
    torch.testing.assert_close(found, slope, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("loss", "params"), [one for one in VARIANTS if one[0] is not ciou])
@pytest.mark.parametrize("layout", FORMATS)
def test_gradients_are_finite_differences(loss: Loss, params: dict[str, Any], layout: str) -> None:
    prediction = random_boxes(8, 3, layout).requires_grad_()
    target = random_boxes(8, 4, layout)
    assert torch.autograd.gradcheck(
        lambda leaf: loss(leaf, target, **params, format=layout), (prediction,)
    )


def test_the_weight_of_the_proportions_is_not_differentiated() -> None:
    prediction, target = rows([0.0, 0.0, 3.0, 1.0]), rows([0.5, 0.2, 2.0, 2.5])
    turn = math.atan(1.5 / 2.3) - math.atan(3.0)
    shape = 4 / math.pi**2 * turn**2
    alpha = shape / (iou_box(prediction, target).item() + shape)
    # d/dw of atan(w/h) is h / (w² + h²), d/dh of it -w / (w² + h²), at w = 3 and h = 1.
    slope = 8 / math.pi**2 * turn * alpha / 10.0
    across, down = -slope * 1.0, slope * 3.0
    found = gradient(ciou, prediction, target) - gradient(diou, prediction, target)
    assert found[0].tolist() == pytest.approx([-across, -down, across, down], rel=1e-9)
    step = torch.tensor([[0.0, 0.0, 1e-6, 0.0]], dtype=torch.float64)
    difference = (
        ciou(prediction + step, target)
        - ciou(prediction - step, target)
        - diou(prediction + step, target)
        + diou(prediction - step, target)
    ).item() / 2e-6
    assert abs(difference - across) > 0.1 * abs(across), "a differentiated alpha would show here"


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
def test_all_formats_describe_the_same_box(loss: Loss, params: dict[str, Any]) -> None:
    corners = [random_boxes(16, 5), random_boxes(16, 6)]
    sizes = [box[:, 2:] - box[:, :2] for box in corners]
    expected = loss(*corners, **params)
    low = [torch.cat([box[:, :2], size], 1) for box, size in zip(corners, sizes, strict=True)]
    middle = [
        torch.cat([box[:, :2] + size / 2, size], 1)
        for box, size in zip(corners, sizes, strict=True)
    ]
    torch.testing.assert_close(loss(*low, **params, format="xywh"), expected)
    torch.testing.assert_close(loss(*middle, **params, format="cxcywh"), expected)
    # A corner moves the middle by half as much and the size the other way.
    found = gradient(loss, middle[0], middle[1], **params, format="cxcywh")
    by_corner = torch.cat([found[:, :2] / 2 - found[:, 2:], found[:, :2] / 2 + found[:, 2:]], 1)
    torch.testing.assert_close(by_corner, gradient(loss, *corners, **params), atol=1e-9, rtol=1e-9)


def test_values_keep_their_bounds() -> None:
    prediction, target = 4.0 * random_boxes(4000, 7), 4.0 * random_boxes(4000, 8)
    prediction[:, 2:] = prediction[:, :2] + torch.rand(4000, 2, dtype=torch.float64).square() * 6
    plain = iou_box(prediction, target)
    assert (plain >= 0).all()
    assert (plain <= 1).all()
    for loss, limit in ((giou, 2.0), (diou, 2.0), (ciou, 2.5), (eiou, 4.0)):
        values = loss(prediction, target)
        assert (values >= plain - 1e-15).all(), loss.__name__
        assert (values < limit).all(), loss.__name__


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
def test_scale_and_place_do_not_matter(loss: Loss, params: dict[str, Any]) -> None:
    prediction, target = random_boxes(32, 9), random_boxes(32, 10)
    value = loss(prediction, target, **params)
    torch.testing.assert_close(loss(4.0 * prediction, 4.0 * target, **params), value)
    torch.testing.assert_close(loss(prediction - 3.0, target - 3.0, **params), value)
    torch.testing.assert_close(loss(1e-9 * prediction, 1e-9 * target, **params), value)


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
def test_identical_boxes_cost_exactly_nothing_and_pull_nowhere(
    loss: Loss, params: dict[str, Any]
) -> None:
    boxes = random_boxes(32, 11)
    assert not loss(boxes, boxes, **params).any()
    torch.testing.assert_close(gradient(loss, boxes, boxes, **params), torch.zeros_like(boxes))


WITHOUT_AREA = [
    [1.0, 1.0, 1.0, 1.0],
    [1.0, 1.0, 1.0, 3.0],
    [1.0, 1.0, 3.0, 1.0],
    [0.0, 0.0, 0.0, 0.0],
]


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
@pytest.mark.parametrize("box", WITHOUT_AREA)
def test_identical_boxes_without_area_cost_nothing(
    loss: Loss, params: dict[str, Any], box: list[float]
) -> None:
    assert loss(rows(box), rows(box), **params).item() == 0
    assert gradient(loss, rows(box), rows(box), **params).isfinite().all()


def test_different_boxes_without_area_count_as_disjoint() -> None:
    point, other, line = rows([0, 0, 0, 0]), rows([3, 4, 3, 4]), rows([0, 0, 2, 0])
    assert iou_box(point, other).item() == 1
    assert iou_box(point, line).item() == 1
    assert iou_box(point, other, form="log").item() == pytest.approx(6 * math.log(10))
    assert giou(point, other).item() == 2
    assert giou(point, line).item() == 1, "their hull has no area"
    assert diou(point, other).item() == 2
    assert eiou(point, line).item() == pytest.approx(1 + 1 / 4 + 1)


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
def test_a_degenerate_box_has_a_finite_value_and_gradient(
    loss: Loss, params: dict[str, Any]
) -> None:
    places = torch.tensor([-1e4, 0.0, 1e-30, 1.0, 1e4], dtype=torch.float64)
    chosen = torch.randint(len(places), (3000, 8), generator=torch.manual_seed(12))
    boxes = places[chosen]
    for layout in FORMATS:
        value = loss(boxes[:, :4], boxes[:, 4:], **params, format=layout)
        assert value.isfinite().all()
        assert (value >= 0).all()
        found = gradient(loss, boxes[:, :4], boxes[:, 4:], **params, format=layout)
        assert found.isfinite().all()


def test_a_box_of_zero_height_is_pulled_open() -> None:
    flat, target = rows([0.0, 1.0, 2.0, 1.0]), rows([0.0, 0.0, 2.0, 2.0])
    for loss in LOSSES:
        found = gradient(loss, flat, target)[0]
        assert found.isfinite().all(), loss.__name__
        assert found[3] < 0 < found[1], loss.__name__


def test_crossed_corners_are_a_point_at_their_middle() -> None:
    target = rows([0.0, 0.0, 2.0, 2.0])
    crossed, point = rows([5.0, 6.0, 3.0, 4.0]), rows([4.0, 5.0, 4.0, 5.0])
    for loss, params in VARIANTS:
        assert torch.equal(loss(crossed, target, **params), loss(point, target, **params))
    assert torch.equal(
        giou(rows([4.0, 5.0, -2.0, -1.0]), target, format="cxcywh"),
        giou(rows([4.0, 5.0, 0.0, 0.0]), target, format="cxcywh"),
    )
    found = gradient(diou, crossed, target)[0]
    assert found[0] > 0
    assert found[0] == found[2], "both corners move alike"


@pytest.mark.parametrize("power", [20, 30, 40])
def test_nearly_perfect_boxes_keep_their_digits(power: int) -> None:
    excess = 2.0**-power
    box, taller = rows([0.0, 0.0, 1.0, 1.0]), rows([0.0, 0.0, 1.0, 1.0 + excess])
    assert iou_box(box, taller).item() == pytest.approx(excess / (1 + excess), rel=1e-14)
    logarithm = iou_box(box, taller, form="log").item()
    assert logarithm == pytest.approx(math.log1p(excess), rel=1e-14)


def test_nearly_disjoint_boxes_keep_the_digits_of_the_logarithm() -> None:
    box, touching = rows([0.0, 0.0, 1.0, 1.0]), rows([1.0 - 2.0**-18, 0.0, 2.0, 1.0])
    overlap = 2.0**-18
    expected = -math.log(overlap / (2.0))
    assert iou_box(box, touching, form="log").item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
def test_a_row_has_the_same_bits_in_any_company(loss: Loss, params: dict[str, Any]) -> None:
    prediction, target = random_boxes(67, 13), random_boxes(67, 14)
    value = loss(prediction, target, **params)
    slope = gradient(loss, prediction, target, **params)
    for first, last in ((0, 1), (5, 6), (66, 67), (3, 6), (9, 41)):
        part = prediction[first:last].clone(), target[first:last].clone()
        assert torch.equal(loss(*part, **params), value[first:last])
        assert torch.equal(gradient(loss, *part, **params), slope[first:last])


@pytest.mark.parametrize(("loss", "params"), [(ciou, {}), (iou_box, {"form": "log"})])
def test_no_row_is_rounded_by_its_place_in_a_processors_vectors(
    loss: Loss, params: dict[str, Any]
) -> None:
    # A few rows are computed one by one, many in vectors; some functions round the two differently.
    prediction, target = random_boxes(1200, 15, "xywh"), random_boxes(1200, 16, "xywh")
    prediction[:, 2] *= 8.0
    pieces = zip(prediction.split(3), target.split(3), strict=True)
    params = {**params, "format": "xywh"}
    apart = torch.cat([loss(one.clone(), other.clone(), **params) for one, other in pieces])
    assert torch.equal(apart, loss(prediction, target, **params))
