"""Losses that measure distances, called directly on samples made by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from lossd.core.distance import DistanceMaps
from lossd.losses import LOSSES
from lossd.losses.declare import SampleLoss
from lossd.losses.distance import boundary, hausdorff_dt
from lossd.losses.mask_sample import MaskSample
from lossd_client.errors import InvalidParameterError
from mask_samples import answer, class_of, cross_entropy, one_hot, random_sample, value_of
from oracles.distance import ORACLE
from oracles.whole import Whole

LN2 = 0.6931471805599453
NAMES = ["boundary", "hausdorff_dt", "distance_map_cross_entropy", "shape_aware"]
TASKS = ["binary", "multiclass", "multilabel"]


def row(*values: float) -> Tensor:
    """One channel of a line of pixels."""
    return torch.tensor([values], dtype=torch.float64)


# -- numbers worked out by hand ------------------------------------------------------------------


def test_boundary_of_a_half_everywhere() -> None:
    found = answer("boundary", row(0, 0, 0, 0, 0), row(0, 1, 1, 0, 0))
    assert found.value == pytest.approx(0.4, abs=1e-15)
    want = np.array([[1.0, 0.0, 0.0, 1.0, 2.0]]) * 0.25 / 5
    np.testing.assert_allclose(found.gradient, want, atol=1e-16)


def test_boundary_of_the_target_itself_is_negative() -> None:
    target = row(0, 1, 1, 1, 0)
    found = answer("boundary", 1e4 * (2 * target - 1), target)
    assert found.value == pytest.approx(-0.2, abs=1e-15)


def test_signed_distances_by_hand() -> None:
    ones = torch.ones(1, 5, dtype=torch.float64)
    for target, want in (
        (row(0, 1, 1, 0, 0), [1.0, 0.0, 0.0, 1.0, 2.0]),
        (row(0, 1, 1, 1, 0), [1.0, 0.0, -1.0, 0.0, 1.0]),
    ):
        terms = boundary(class_of(ones, target, activated=True))
        np.testing.assert_array_equal(terms, want)


def test_under_spacing_the_one_of_boundary_stays_one() -> None:
    ones = torch.ones(1, 5, dtype=torch.float64)
    one = class_of(ones, row(0, 1, 1, 0, 0), activated=True, spacing=(2.0,))
    np.testing.assert_array_equal(boundary(one), [2.0, -1.0, -1.0, 2.0, 4.0])


def test_hausdorff_dt_of_five_pixels() -> None:
    probability, target = row(0.1, 0.9, 0.4, 0.2, 0.1), row(0, 1, 1, 0, 0)
    found = answer("hausdorff_dt", probability.logit(), target)
    assert found.value == pytest.approx(0.218, abs=1e-15)
    # The distances to the target's edge are 1, 1, 1, 1, 2, to the prediction's 1, 1, 1, 2, 3.
    field = row(1 + 1, 1 + 1, 1 + 1, 1 + 4, 4 + 9)
    slope = 2 * (probability - target) * probability * (1 - probability) * field / 5
    np.testing.assert_allclose(found.gradient, slope, rtol=1e-14)


def test_hausdorff_dt_one_sided_looks_at_the_targets_edge_alone() -> None:
    probability, target = row(0.1, 0.9, 0.4, 0.2, 0.1), row(0, 1, 1, 0, 0)
    found = value_of("hausdorff_dt", probability.logit(), target, one_sided=True)
    want = float((row(1, 1, 1, 1, 4) * (probability - target) ** 2).mean())
    assert float(found.value) == pytest.approx(want, rel=1e-14)


def test_distance_map_cross_entropy_of_seven_pixels() -> None:
    target = row(0, 0, 1, 1, 1, 0, 0)
    found = answer("distance_map_cross_entropy", torch.zeros_like(target), target)
    assert found.value == pytest.approx(LN2 * 11 / 7, abs=1e-15)
    assert found.value == pytest.approx(1.089231, abs=5e-7)
    factor = 1 + row(0, 1, 1, 0, 1, 1, 0)
    np.testing.assert_allclose(found.gradient, factor * (0.5 - target) / 7, atol=1e-16)


# -- boundary ------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [0.0, 1.0])
def test_boundary_of_an_empty_or_a_full_target_is_zero(on: float) -> None:
    found = answer("boundary", row(3, -2, 0.5), torch.full((1, 3), on, dtype=torch.float64))
    assert found.value == 0.0
    assert not found.gradient.any()


def test_boundary_counts_all_classes_unless_asked_otherwise() -> None:
    labels = torch.tensor([0, 1, 1, 0, 0])
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = value_of("boundary", scores, one_hot(labels, 3), task="multiclass")
    assert found.per_class is not None
    assert found.per_class[2] == 0.0  # absent, and in the mean
    assert float(found.value) == pytest.approx(float(found.per_class.sum()) / 3, rel=1e-14)
    without = value_of(
        "boundary", scores, one_hot(labels, 3), task="multiclass", include_background=False
    )
    assert float(without.value) == pytest.approx(float(found.per_class[1]) / 2, rel=1e-14)


# -- hausdorff_dt --------------------------------------------------------------------------------


def test_hausdorff_dt_of_the_target_itself_is_zero() -> None:
    target = row(0, 1, 1, 0, 0)
    assert answer("hausdorff_dt", 1e4 * (2 * target - 1), target).value == 0.0


def test_moving_both_masks_leaves_hausdorff_dt_as_it_is() -> None:
    probability, target = torch.full((2, 1, 15, 15), 0.0, dtype=torch.float64)
    probability[0, 5:8, 5:9] = 0.8
    target[0, 6:9, 5:8] = 1.0
    here = hausdorff_dt(class_of(probability, target, activated=True)).sum()
    probability, target = probability.roll((1, -2), (1, 2)), target.roll((1, -2), (1, 2))
    there = hausdorff_dt(class_of(probability, target, activated=True)).sum()
    assert float(there) == pytest.approx(float(here), rel=1e-14)


def test_hausdorff_dt_without_distances_is_twice_the_squared_error() -> None:
    data = random_sample("binary", 3)
    scores, target = data["scores"], data["target"]
    found = value_of("hausdorff_dt", scores, target, alpha=0.0)
    error = float(((scores.sigmoid() - target) ** 2).mean())
    assert float(found.value) == pytest.approx(2 * error, rel=1e-14)


def test_an_empty_target_without_prediction_costs_nothing_whatever_the_power() -> None:
    for alpha in (0.0, 2.0):
        found = answer("hausdorff_dt", row(-1, -2, -0.1), row(0, 0, 0), alpha=alpha)
        assert found.value == 0.0
        assert not found.gradient.any()


def test_an_empty_target_keeps_the_predicted_field() -> None:
    probability, target = row(0.2, 0.9, 0.1, 0.3), row(0, 0, 0, 0)
    found = value_of("hausdorff_dt", probability.logit(), target)
    want = float((row(1, 1, 1, 4) * probability**2).mean())
    assert float(found.value) == pytest.approx(want, rel=1e-14)
    assert value_of("hausdorff_dt", probability.logit(), target, one_sided=True).value == 0.0


def test_a_probability_of_a_half_is_not_predicted() -> None:
    found = hausdorff_dt(class_of(row(0, 3, -3), row(0, 1, 0)))
    np.testing.assert_allclose(found[0], 0.25 * (1 + 1), rtol=1e-15)


def test_every_class_above_a_half_is_predicted_not_the_largest() -> None:
    """No class reaches a half here, so no predicted mask has an edge."""
    scores = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.3]]).double()
    target = one_hot([0, 1, 2], 3)
    both = value_of("hausdorff_dt", scores, target, task="multiclass").value
    one = value_of("hausdorff_dt", scores, target, task="multiclass", one_sided=True).value
    assert float(both) == float(one) > 0.0


def test_log_is_that_of_each_classs_mean() -> None:
    data = random_sample("multilabel", 5)
    plain = value_of("hausdorff_dt", **data)
    found = value_of("hausdorff_dt", **data, log=True)
    assert plain.per_class is not None
    want = torch.log1p(plain.per_class)
    assert found.per_class is not None
    np.testing.assert_allclose(found.per_class, want, rtol=1e-14)
    assert float(found.value) == pytest.approx(float(want.mean()), rel=1e-14)


def test_the_map_of_a_logarithm_adds_up_to_it() -> None:
    data = random_sample("multilabel", 6)
    found = value_of("hausdorff_dt", **data, log=True)
    assert found.pixel_map is not None
    mean = float(found.pixel_map[data["valid"]].mean())
    assert mean == pytest.approx(float(found.value), rel=1e-13)
    assert not found.pixel_map[~data["valid"]].any()


def test_the_logarithm_of_nothing_is_nothing() -> None:
    found = answer("hausdorff_dt", row(-1, -2, -3), row(0, 0, 0), log=True)
    assert found.value == 0.0
    assert not found.gradient.any()


# -- distance_map_cross_entropy ------------------------------------------------------------------


def test_the_weighted_terms_are_what_is_returned() -> None:
    """The reference implementation computes them and returns the unweighted mean."""
    data = random_sample("binary", 7)
    found = value_of("distance_map_cross_entropy", data["scores"], data["target"])
    plain = cross_entropy(data["scores"], data["target"])
    assert plain * 1.05 < float(found.value) < 2 * plain


def test_the_penalty_map_is_the_targets_alone() -> None:
    """Not a distance between target and prediction."""
    target = row(0, 0, 1, 1, 1, 0, 0)
    factors = []
    for seed in (1, 2):
        random = torch.Generator().manual_seed(seed)
        scores = torch.randn(1, 7, generator=random, dtype=torch.float64)
        found = value_of("distance_map_cross_entropy", scores, target).pixel_map
        assert found is not None
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        factors.append(found / bce(scores, target, reduction="none")[0])
    np.testing.assert_allclose(factors[0], [1, 2, 2, 1, 2, 2, 1], rtol=1e-12)
    np.testing.assert_allclose(factors[1], factors[0], rtol=1e-12)


@pytest.mark.parametrize("target", [row(0, 0, 0, 0), row(1, 1, 1, 1)])
def test_an_empty_or_full_target_has_plain_cross_entropy(target: Tensor) -> None:
    scores = row(0.3, -1, 2, 0.1)
    found = answer("distance_map_cross_entropy", scores, target)
    assert found.value == pytest.approx(cross_entropy(scores, target), rel=1e-15)
    np.testing.assert_allclose(found.gradient, (scores.sigmoid() - target) / 4, rtol=1e-14)


def test_a_structure_one_pixel_thick_has_no_weight_of_its_own() -> None:
    """Its depth is the same everywhere, so the inverted depth is 0/0."""
    found = answer("distance_map_cross_entropy", row(0, 0, 0, 0), row(0, 0, 1, 0))
    assert found.value == pytest.approx(LN2 * (4 + 1 + 1) / 4, rel=1e-15)
    assert bool(found.gradient.isfinite().all())


def test_rounding_of_equal_distances_is_no_depth() -> None:
    """A row and a column, one pixel thick, whose depths differ in the last bit."""
    target = torch.zeros(1, 4, 5, dtype=torch.float64)
    target[0, 0, 2:] = target[0, :, 0] = 1.0
    found = value_of(
        "distance_map_cross_entropy", torch.zeros_like(target), target, spacing=(0.3, 0.1 * 3)
    ).pixel_map
    assert found is not None
    np.testing.assert_allclose(found[target[0] > 0], LN2, rtol=1e-15)


def test_two_classes_have_the_distance_map_of_one_channel() -> None:
    random = torch.Generator().manual_seed(11)
    labels = (torch.rand(6, 7, generator=random) > 0.5).long()
    scores = torch.randn(1, 6, 7, generator=random, dtype=torch.float64)
    binary = answer("distance_map_cross_entropy", scores, labels[None].double())
    pair = answer(
        "distance_map_cross_entropy",
        torch.cat([torch.zeros_like(scores), scores]),
        one_hot(labels, 2),
        task="multiclass",
    )
    assert pair.value == pytest.approx(binary.value, rel=1e-14)
    np.testing.assert_allclose(pair.gradient[1:], binary.gradient, rtol=1e-11, atol=1e-16)


def test_each_pixels_map_is_that_of_its_own_class_against_the_rest() -> None:
    labels = [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    scores = torch.zeros(3, 10, dtype=torch.float64)
    found = value_of(
        "distance_map_cross_entropy", scores, one_hot(labels, 3), task="multiclass"
    ).pixel_map
    assert found is not None
    # Depths 2, 1 | 1, 2, 1 | 1, 2, 3, 4, 5.
    inverted = [0, 1, 1, 0, 1, 1, 0.75, 0.5, 0.25, 0]
    np.testing.assert_allclose(found / np.log(3.0) - 1, inverted, atol=1e-14)


def test_a_soft_pixel_belongs_to_its_largest_class() -> None:
    hard = one_hot([0, 0, 0, 1, 1, 2, 2, 2], 3)
    soft = 0.55 * hard + 0.15
    scores = torch.zeros(3, 8, dtype=torch.float64)
    sharp, blurred = (
        value_of("distance_map_cross_entropy", scores, target, task="multiclass").pixel_map
        for target in (hard, soft)
    )
    assert sharp is not None
    assert blurred is not None
    np.testing.assert_allclose(blurred, sharp, rtol=1e-13)


def test_normalize_weights_divides_by_class_weights_and_weight_map_alone() -> None:
    data = random_sample("multilabel", 12)
    found = value_of(
        "distance_map_cross_entropy", **data, normalize="weights", class_weights=[1.0, 2.0, 0.5]
    )
    plain = value_of("distance_map_cross_entropy", **data, class_weights=[1.0, 2.0, 0.5])
    applied = 3.5 / 3 * float(data["weight_map"][data["valid"]].sum())
    ratio = float(found.value) / float(plain.value)
    assert ratio == pytest.approx(int(data["valid"].sum()) / applied, rel=1e-13)


# -- shape_aware ---------------------------------------------------------------------------------


def rectangle(rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(1, 12, 12, dtype=torch.float64)
    mask[0, rows, columns] = 1.0
    return mask


def excess_of(predicted: Tensor, target: Tensor, **more: Any) -> Tensor:
    """What cross entropy is multiplied by, less 1."""
    scores = 2 * predicted - 1
    found = value_of("shape_aware", scores, target, **more).pixel_map
    assert found is not None
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    return found / bce(scores, target, reduction="none")[0] - 1


def test_the_same_contour_leaves_plain_cross_entropy() -> None:
    target = rectangle(slice(3, 8), slice(4, 9))
    scores = 3 * target - 1
    found = answer("shape_aware", scores, target, weight=5.0)
    assert found.value == pytest.approx(cross_entropy(scores, target), rel=1e-14)


@pytest.mark.parametrize("off", [1, 2, 5])
def test_a_straight_edge_off_by_some_pixels_has_that_distance(off: int) -> None:
    target = rectangle(slice(None), slice(0, 4))
    predicted = rectangle(slice(None), slice(0, 4 + off))
    excess = excess_of(predicted, target)
    np.testing.assert_allclose(excess, off * (predicted != target)[0], atol=1e-12)
    physical = excess_of(predicted, target, spacing=(1.0, 0.5), weight=3.0)
    np.testing.assert_allclose(physical, 1.5 * off * (predicted != target)[0], atol=1e-12)


def test_both_terms_of_shape_aware_have_the_same_sign() -> None:
    """A survey subtracts both, which is right for y ln p and wrong for a loss."""
    target, predicted = (rectangle(slice(2, 6), slice(2, 6)), rectangle(slice(4, 9), slice(2, 6)))
    scores = 2 * predicted - 1
    plain = cross_entropy(scores, target)
    assert plain > 0
    assert answer("shape_aware", scores, target).value > plain
    assert answer("shape_aware", scores, target, weight=0.0).value == pytest.approx(plain)


def test_the_distance_is_from_the_predicted_contour_to_the_true_one() -> None:
    """The missed object makes the other direction larger."""
    target = rectangle(slice(1, 4), slice(1, 4)) + rectangle(slice(8, 11), slice(8, 11))
    predicted = rectangle(slice(1, 4), slice(1, 4))
    assert not excess_of(predicted, target).abs().gt(1e-12).any()
    assert float(excess_of(target, predicted).max()) > 4.0


def test_the_contour_is_the_mask_without_its_erosion() -> None:
    """As scipy erodes by direct neighbours, where the border does not erode."""
    random = torch.Generator().manual_seed(4)
    masks = [(torch.rand(1, 12, 12, generator=random) < 0.7).double() for _ in range(2)]
    contours = [
        mask[0].numpy().astype(bool)
        & ~ndimage.binary_erosion(mask[0].numpy().astype(bool), border_value=1)
        for mask in masks
    ]
    apart = ndimage.distance_transform_edt(~contours[1])[contours[0]].mean()
    excess = excess_of(masks[0], masks[1])
    np.testing.assert_allclose(excess, apart * (masks[0] != masks[1])[0], atol=1e-12)


@pytest.mark.parametrize(("predicted", "target"), [(0, 1), (1, 0), (0, 0.5), (1, 0.5), (0.5, 0)])
def test_an_empty_contour_leaves_plain_cross_entropy(predicted: float, target: float) -> None:
    """A half stands for a rectangle, 0 and 1 for an empty and a full mask."""
    masks = {0.0: torch.zeros(1, 12, 12).double(), 1.0: torch.ones(1, 12, 12).double()}
    masks[0.5] = rectangle(slice(3, 7), slice(3, 7))
    excess = excess_of(masks[predicted], masks[target])
    assert not excess.abs().gt(1e-12).any()


def test_a_wrong_pixel_has_the_distance_of_its_true_class() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    guess = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    scores = one_hot(guess, 3)
    found = value_of("shape_aware", scores, one_hot(labels, 3), task="multiclass").pixel_map
    assert found is not None
    plain = -scores.log_softmax(0).gather(0, labels[None])[0]
    # Predicted contours 1 | 2, 5 | 6; true contours 3 | 4, 6 | 7.
    of_0, of_1 = 2.0, (2.0 + 1.0) / 2
    want = [0, 0, of_0, of_0, 0, 0, of_1, 0, 0, 0]
    np.testing.assert_allclose(found / plain - 1, want, atol=1e-13)


def test_the_distance_of_contours_is_not_differentiated() -> None:
    scores = row(2.0, 1.0, 0.4, -1.0, -2.0)
    target = row(1, 0, 0, 0, 0)
    found = answer("shape_aware", scores, target)
    factor = row(1, 3, 3, 1, 1)
    np.testing.assert_allclose(found.gradient, factor * (scores.sigmoid() - target) / 5, rtol=1e-13)


# -- all of them ---------------------------------------------------------------------------------

PARAMS: dict[str, list[dict[str, Any]]] = {
    "boundary": [{}, {"classes": "present"}],
    "hausdorff_dt": [{}, {"alpha": 1.5}, {"one_sided": True}, {"log": True, "alpha": 1.0}],
    "distance_map_cross_entropy": [{}, {"normalize": "weights"}],
    "shape_aware": [{}, {"weight": 2.5}],
}
WIDE_PARAMS: dict[str, list[dict[str, Any]]] = {
    "boundary": [
        {"include_background": False},
        {"classes": [0, 2], "class_weights": [1.0, 5.0, 2.0]},
    ],
    "hausdorff_dt": [{"classes": "present_of_all", "class_weights": [1.0, 5.0, 2.0]}],
    "distance_map_cross_entropy": [{"class_weights": [1.0, 5.0, 2.0], "normalize": "weights"}],
    "shape_aware": [{"class_weights": [1.0, 5.0, 2.0]}],
}
CASES = [
    pytest.param(name, task, params, id=f"{name}-{task}-{number}")
    for name in NAMES
    for task in TASKS
    for number, params in enumerate(PARAMS[name] + (WIDE_PARAMS[name] if task != "binary" else []))
]


@pytest.mark.parametrize(("name", "task", "params"), CASES)
def test_values_and_gradients_are_those_of_brute_force(
    name: str, task: str, params: dict[str, Any]
) -> None:
    for seed, shape in enumerate([(9,), (6, 7), (3, 4, 5), (1, 6)]):
        data = random_sample(task, seed, shape, soft=seed == 1)
        found = answer(name, **data, **params)
        leaf = data["scores"].clone().requires_grad_()
        whole = Whole(
            task, leaf, data["target"], data["valid"], data["weight_map"], data["spacing"]
        )
        want = ORACLE[name](whole, params)
        (gradient,) = torch.autograd.grad(want, leaf, materialize_grads=True)
        assert found.value == pytest.approx(float(want.detach()), rel=1e-13, abs=1e-15)
        scale = float(gradient.abs().max())
        np.testing.assert_allclose(found.gradient, gradient, rtol=0, atol=1e-13 * scale + 1e-16)
        assert not found.gradient[:, ~data["valid"]].any()


@pytest.mark.parametrize(("name", "task", "params"), CASES)
def test_gradients_are_derivatives(name: str, task: str, params: dict[str, Any]) -> None:
    data = random_sample(task, 20, (4, 5))
    scores = data.pop("scores").requires_grad_()
    every = torch.ones_like(data.pop("valid"))
    assert torch.autograd.gradcheck(
        lambda live: value_of(name, live, valid=every, **data, **params).value, scores
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", TASKS)
def test_the_mean_of_the_map_is_the_value(name: str, task: str) -> None:
    data = random_sample(task, 30)
    found = value_of(name, **data)
    assert found.pixel_map is not None
    mean = float(found.pixel_map[data["valid"]].mean())
    assert mean == pytest.approx(float(found.value), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", TASKS)
def test_degenerate_masks_and_certain_logits_are_finite(name: str, task: str) -> None:
    channels = 1 if task == "binary" else 3
    for shape in ((1,), (2,), (1, 1), (3, 1), (2, 3, 1)):
        every = torch.zeros(channels, *shape, dtype=torch.float64)
        everything = every.clone()
        everything[-1] = 1.0
        checkered = torch.arange(every[0].numel()).view(shape) % channels == 0
        mixed = torch.where(checkered, everything, everything.flip(0))
        for target in (everything, mixed, every):
            for scores in (every, 1e4 * (2 * target - 1), 1e4 * (1 - 2 * target), every - 1e4):
                found = answer(name, scores, target, task=task)
                assert np.isfinite(found.value)
                assert bool(found.gradient.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", TASKS)
def test_the_label_of_a_removed_pixel_does_not_matter(name: str, task: str) -> None:
    """A pixel that `mask` removes is one that `ignore_index` removes: it has no class."""
    data = random_sample(task, 40)
    found = answer(name, **data)
    blank = torch.where(data["valid"], data["target"], 0.0)
    other = answer(name, **{**data, "target": blank})
    assert other.value == found.value
    assert torch.equal(other.gradient, found.gradient)


def test_a_map_reaches_across_removed_pixels() -> None:
    target = row(1, 0, 0, 0, 0, 0)
    valid = torch.tensor([True, True, False, False, True, True])
    found = value_of("boundary", torch.zeros_like(target), target, valid=valid).pixel_map
    assert found is not None
    np.testing.assert_array_equal(found, [0.0, 0.5, 0.0, 0.0, 2.0, 2.5])


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_one_mask_share_its_distance_maps(name: str) -> None:
    data = random_sample("binary", 50)
    maps = DistanceMaps()
    loss = LOSSES[name]
    assert isinstance(loss, SampleLoss)
    fields = {key: data[key] for key in ("valid", "spacing", "weight_map")}
    for _ in range(2):
        sample = MaskSample(
            task="binary",
            scores=data["scores"],
            activated=False,
            target=data["target"],
            distances=maps,
            **fields,
        )
        loss.value(sample, loss.parameters())
    assert maps.hits == maps.misses > 0


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("hausdorff_dt", {"alpha": -1.0}),
        ("hausdorff_dt", {"alpha": 9.0}),
        ("hausdorff_dt", {"log": 1}),
        ("shape_aware", {"weight": -0.5}),
        ("shape_aware", {"weight": float("inf")}),
        ("distance_map_cross_entropy", {"normalize": "classes"}),
        ("boundary", {"alpha": 1.0}),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError):
        LOSSES[name].read_options(params, task="binary", channels=1, loc=())
