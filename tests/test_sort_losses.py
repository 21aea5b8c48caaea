"""Losses that sort or count the pixels of a sample, called directly on samples made by hand."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossd.losses.sort import jaccard_steps, lovasz_extension, lovasz_hinge_of, ranks
from lossd_client.errors import InvalidParameterError
from mask_samples import answer, one_hot, random_sample, value_of
from oracles.sort import ORACLE
from oracles.whole import Whole

LN2 = 0.6931471805599453
T1 = torch.tensor([0.8, 0.4, 0.3, 0.1], dtype=torch.float64).logit()[None]
T1_MASK = torch.tensor([[1, 1, 0, 0]], dtype=torch.float64)
T2 = torch.tensor(
    [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.4, 0.5, 0.1]], dtype=torch.float64
).T.log()


# -- numbers worked out by hand ------------------------------------------------------------------

HAND_CHECKED: list[tuple[str, dict[str, Any], float, list[float] | None]] = [
    ("lovasz_softmax", {}, 0.416667, [-0.053333, -0.12, 0.035, 0.0]),
    ("lovasz_hinge", {}, 0.728183, [0.0, -0.5, 0.166667, 0.0]),
    ("topk_cross_entropy", {"fraction": 0.5}, 0.636483, [0.0, -0.3, 0.15, 0.0]),
    ("topk_cross_entropy", {"fraction": 1.0}, 0.400367, [-0.05, -0.15, 0.075, 0.025]),
]


@pytest.mark.parametrize(("name", "params", "value", "gradient"), HAND_CHECKED)
def test_four_binary_pixels(
    name: str, params: dict[str, Any], value: float, gradient: list[float]
) -> None:
    found = answer(name, T1, T1_MASK, **params)
    assert found.value == pytest.approx(value, abs=6e-7)
    np.testing.assert_allclose(found.gradient[0], gradient, atol=6e-7)


def test_lovasz_softmax_of_two_classes_is_the_mean_of_foreground_and_background() -> None:
    logits = torch.cat([torch.zeros_like(T1), T1])
    found = answer("lovasz_softmax", logits, one_hot([1, 1, 0, 0], 2), task="multiclass")
    assert found.values.per_class is not None
    np.testing.assert_allclose(found.values.per_class, [0.341667, 0.416667], atol=6e-7)
    assert found.value == pytest.approx(0.379167, abs=6e-7)


def test_lovasz_softmax_of_the_three_class_toy() -> None:
    found = answer("lovasz_softmax", T2, one_hot([0, 1, 2, 0], 3), task="multiclass")
    assert found.values.per_class is not None
    np.testing.assert_allclose(found.values.per_class, [0.45, 0.366667, 0.5], atol=6e-7)
    assert found.value == pytest.approx(0.438889, abs=6e-7)


def test_ghm_classification_of_four_pixels() -> None:
    probability = torch.tensor([[0.97, 0.95, 0.65, 0.15]], dtype=torch.float64)
    found = answer("ghm_classification", probability.logit(), torch.ones(1, 4).double())
    assert found.value == pytest.approx(0.789593, abs=6e-7)
    weights = torch.tensor([[2 / 3, 2 / 3, 4 / 3, 4 / 3]], dtype=torch.float64)
    np.testing.assert_allclose(found.gradient, -weights * (1 - probability) / 4, rtol=1e-12)


# -- identities ----------------------------------------------------------------------------------


def test_hard_predictions_cost_one_minus_intersection_over_union() -> None:
    predicted = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    found = answer("lovasz_softmax", 1e4 * (2 * predicted - 1), T1_MASK)
    assert found.value == pytest.approx(2 / 3, abs=1e-15)


def test_every_hard_prediction_of_five_pixels_costs_its_jaccard_loss() -> None:
    mask = torch.tensor([True, True, False, True, False])
    for bits in itertools.product([0.0, 1.0], repeat=5):
        predicted = torch.tensor(bits, dtype=torch.float64)
        union = int(((predicted > 0) | mask).sum())
        overlap = int(((predicted > 0) & mask).sum())
        errors = (mask.double() - predicted).abs()
        assert float(lovasz_extension(errors, mask)) == pytest.approx(1 - overlap / union)


@pytest.mark.parametrize("on", [0.0, 1.0])
def test_a_single_pixel_costs_its_error(on: float) -> None:
    logits = torch.tensor([[0.7]], dtype=torch.float64)
    found = answer("lovasz_softmax", logits, torch.tensor([[on]], dtype=torch.float64))
    assert found.value == pytest.approx(float((on - logits.sigmoid()).abs()), rel=1e-14)
    assert found.gradient.item() == pytest.approx(
        (1 - 2 * on) * float(logits.sigmoid() * (1 - logits.sigmoid())), rel=1e-13
    )


def test_a_mask_without_foreground_costs_its_largest_probability() -> None:
    found = answer("lovasz_softmax", T1, torch.zeros_like(T1))
    assert found.value == pytest.approx(0.8, abs=1e-15)
    np.testing.assert_allclose(found.gradient, [[0.16, 0.0, 0.0, 0.0]], atol=1e-15)


def test_the_steps_add_up_to_one_and_are_never_negative() -> None:
    random = torch.Generator().manual_seed(1)
    for pixels in (1, 2, 7, 50):
        errors = torch.rand(pixels, generator=random, dtype=torch.float64)
        for share in (0.0, 0.3, 1.0):
            steps = jaccard_steps(errors, torch.rand(pixels, generator=random) < share)
            assert float(steps.sum()) == pytest.approx(1.0, abs=1e-14)
            assert bool((steps >= 0).all())


def test_steps_of_a_large_mask_keep_all_their_digits() -> None:
    """Differences of neighbouring Jaccard values lose 10 of 16 digits here."""
    pixels = 200_000
    errors = torch.linspace(1.0, 0.1, pixels, dtype=torch.float64)
    foreground = torch.arange(pixels) % 3 == 0
    steps = jaccard_steps(errors, foreground)
    total = int(foreground.sum())
    for place in (0, 1, 99_999, 100_000, pixels - 2, pixels - 1):
        hits = int(foreground[: place + 1].sum())
        before = hits - int(foreground[place])
        after = 1 - Fraction(total - hits, total + place + 1 - hits)
        exact = after - (1 - Fraction(total - before, total + place - before))
        assert float(steps[place]) == pytest.approx(float(exact), rel=1e-15)


def test_the_value_does_not_depend_on_the_order_of_pixels() -> None:
    sample = random_sample("multiclass", 3, (12,))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    moved = {
        **sample,
        "scores": sample["scores"][:, order],
        "target": sample["target"][:, order],
        "valid": sample["valid"][order],
        "weight_map": sample["weight_map"][order],
    }
    for name in ("lovasz_softmax", "topk_cross_entropy"):
        first, second = answer(name, **sample), answer(name, **moved)
        assert first.value == pytest.approx(second.value, rel=1e-14)
        np.testing.assert_allclose(first.gradient[:, order], second.gradient, atol=1e-15)


def test_the_hinge_is_zero_where_every_margin_is_one() -> None:
    logits = torch.tensor([[1.0, 1.5, -1.0, -30.0]], dtype=torch.float64)
    found = answer("lovasz_hinge", logits, T1_MASK)
    assert found.value == 0.0
    assert not found.gradient.any()


def test_the_multilabel_hinge_is_the_mean_over_channels() -> None:
    logits = torch.stack([T1[0], T1[0].flip(0), 2 * T1[0]])
    target = T1_MASK.expand(3, 4)
    found = answer("lovasz_hinge", logits, target, task="multilabel")
    single = [
        answer("lovasz_hinge", logits[channel : channel + 1], T1_MASK) for channel in range(3)
    ]
    assert found.value == pytest.approx(sum(one.value for one in single) / 3, rel=1e-15)
    gradients = torch.cat([one.gradient for one in single]) / 3
    np.testing.assert_allclose(found.gradient, gradients, rtol=1e-15)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_all_pixels_kept_is_cross_entropy(task: str) -> None:
    sample = random_sample(task, 5)
    found = answer("topk_cross_entropy", **sample, fraction=1.0)
    scores, target, valid = sample["scores"], sample["target"], sample["valid"]
    if task == "multiclass":
        terms = -(target * scores.log_softmax(0)).sum(0, keepdim=True)
    else:
        terms = torch.nn.functional.binary_cross_entropy_with_logits(
            scores, target, reduction="none"
        )
    expected = float((terms * sample["weight_map"])[:, valid].mean())
    assert found.value == pytest.approx(expected, rel=1e-13)


def test_one_bin_of_ghm_is_binary_cross_entropy() -> None:
    for params, scores in (({"bins": 1}, T1), ({}, torch.full_like(T1, 0.3))):
        target = T1_MASK if params else torch.ones_like(T1)
        found = answer("ghm_classification", scores, target, **params)
        plain = torch.nn.functional.binary_cross_entropy_with_logits(scores, target)
        assert found.value == pytest.approx(float(plain), rel=1e-14)


def test_every_bin_of_ghm_that_is_not_empty_weighs_the_same() -> None:
    """The derivative of a term is its weight times p - y: the weights can be read off it."""
    random = torch.Generator().manual_seed(2)
    scores = torch.randn(1, 200, generator=random, dtype=torch.float64)
    target = (torch.rand(1, 200, generator=random) > 0.5).double()
    found = answer("ghm_classification", scores, target, bins=7)
    difference = scores.sigmoid() - target
    weights = (found.gradient / difference * 200)[0]
    bins = (difference.abs()[0] * 7).long()
    totals = torch.zeros(7, dtype=torch.float64).index_add_(0, bins, weights)
    filled = totals[totals > 0]
    np.testing.assert_allclose(filled, 200 / len(filled), rtol=1e-12)
    assert float(weights.mean()) == pytest.approx(1.0, rel=1e-12)


def test_softmax_gradients_add_up_to_zero_over_classes() -> None:
    for name in ("lovasz_softmax", "topk_cross_entropy"):
        gradient = answer(name, **random_sample("multiclass", 6)).gradient
        np.testing.assert_allclose(gradient.sum(0), 0.0, atol=1e-15)
        assert bool(gradient.any())


def test_classes_may_be_renamed() -> None:
    sample = random_sample("multiclass", 7)
    order = [2, 0, 1]
    renamed = {**sample, "scores": sample["scores"][order], "target": sample["target"][order]}
    first, second = answer("lovasz_softmax", **sample), answer("lovasz_softmax", **renamed)
    assert first.value == pytest.approx(second.value, rel=1e-14)
    np.testing.assert_allclose(first.gradient[order], second.gradient, atol=1e-15)


# -- errors of others ----------------------------------------------------------------------------


def test_lovasz_compares_with_the_class_and_not_with_its_id() -> None:
    """kornia before 0.9 took |id - p| for the error, which exceeds 1 for class 2."""
    found = answer("lovasz_softmax", T2, one_hot([2, 2, 2, 2], 3), task="multiclass")
    assert found.values.per_class is not None
    errors = 1 - T2[2].exp()  # a class that fills the sample costs the mean of its errors
    assert float(found.values.per_class[2]) == pytest.approx(float(errors.mean()), rel=1e-14)
    assert found.value <= 1.0


def test_lovasz_softmax_activates_logits_and_takes_probabilities_as_they_are() -> None:
    """Seed error 22: the extension needs probabilities for the softmax form."""
    by_logits = answer("lovasz_softmax", T1, T1_MASK)
    by_probabilities = answer("lovasz_softmax", T1.sigmoid(), T1_MASK, activated=True)
    assert by_probabilities.value == pytest.approx(by_logits.value, rel=1e-14)
    slope = T1.sigmoid() * (1 - T1.sigmoid())
    np.testing.assert_allclose(by_probabilities.gradient * slope, by_logits.gradient, atol=1e-15)


def test_the_hinge_takes_logits_and_undoes_the_activation_of_probabilities() -> None:
    """Seed error 22: the extension needs logits for the hinge; of probabilities it costs more."""
    found = answer("lovasz_hinge", T1.sigmoid(), T1_MASK, activated=True)
    assert found.value == pytest.approx(0.728183, abs=6e-7)
    of_probabilities = float(lovasz_hinge_of(T1.sigmoid()[0], T1_MASK[0] > 0))
    assert of_probabilities != pytest.approx(found.value, abs=0.01)


def test_samples_are_sorted_alone_and_nothing_is_remembered() -> None:
    """GHM's momentum and batch-wise sorts make a value depend on what came before."""
    for name in ("ghm_classification", "lovasz_hinge", "lovasz_softmax"):
        first = answer(name, T1, T1_MASK)
        answer(name, -3 * T1, T1_MASK)
        again = answer(name, T1, T1_MASK)
        assert again.value == first.value
        assert torch.equal(again.gradient, first.gradient)


def test_ghm_divides_by_filled_bins_and_not_by_all() -> None:
    """Divided by 10 bins, as in the paper, the toy is .236878."""
    probability = torch.tensor([[0.97, 0.95, 0.65, 0.15]], dtype=torch.float64)
    found = answer("ghm_classification", probability.logit(), torch.ones(1, 4).double())
    assert found.value * 3 / 10 == pytest.approx(0.236878, abs=6e-7)


def test_a_length_of_one_lies_in_the_last_bin() -> None:
    logits = torch.tensor([[1e4, 3.0]], dtype=torch.float64)  # errors of 1 and of 0.95
    found = answer("ghm_classification", logits, torch.zeros(1, 2).double())
    assert found.value == pytest.approx((1e4 + float(logits[0, 1].exp().log1p())) / 2, rel=1e-14)


def test_a_logit_of_zero_lies_in_the_upper_bin() -> None:
    """0.5 is the edge of two bins, and the exponential of a logarithm may fall short of it."""
    logits = torch.tensor([[0.0, 0.3, -0.3]], dtype=torch.float64)  # bins 5, 5 and 4
    found = answer("ghm_classification", logits, torch.zeros(1, 3).double())
    terms = torch.nn.functional.softplus(logits[0])
    assert found.value == pytest.approx(float((terms[0] + terms[1]) / 4 + terms[2] / 2), rel=1e-13)


def test_the_ghm_histogram_of_a_multilabel_sample_holds_all_channels() -> None:
    """A histogram for each channel would make both of these plain cross entropies."""
    logits = torch.tensor([[-3.0, -3.0], [3.0, -3.0]], dtype=torch.float64)
    found = answer("ghm_classification", logits, torch.zeros(2, 2).double(), task="multilabel")
    easy, hard = torch.tensor([-3.0, 3.0], dtype=torch.float64).exp().log1p().tolist()
    assert found.value == pytest.approx((easy + hard) / 2, rel=1e-13)


def test_the_number_of_hard_pixels_is_rounded_up_but_not_by_rounding_noise() -> None:
    terms = torch.linspace(0.1, 3.0, 30, dtype=torch.float64)
    logits = terms.expm1().log()[None]  # softplus of it is the term
    zeros = torch.zeros_like(logits)
    for fraction, keep in ((0.1, 3), (0.101, 4), (1e-9, 1), (0.7, 21), (0.1 + 0.2, 9), (1.0, 30)):
        found = answer("topk_cross_entropy", logits, zeros, fraction=fraction)
        assert found.value == pytest.approx(float(terms[-keep:].mean()), rel=1e-12), fraction
        assert int((found.gradient != 0).sum()) == keep


def test_the_share_of_hard_pixels_is_that_of_valid_pixels() -> None:
    logits = torch.arange(10, dtype=torch.float64)[None]
    valid = torch.arange(10) < 4
    found = answer("topk_cross_entropy", logits, torch.zeros(1, 10), valid=valid, fraction=0.5)
    assert found.value == pytest.approx(float(logits[0, 2:4].exp().log1p().mean()), rel=1e-14)
    assert found.gradient[0].nonzero()[:, 0].tolist() == [2, 3]


def test_multilabel_candidates_are_pixels_of_all_channels() -> None:
    logits = torch.tensor([[5.0, 4.0], [1.0, -1.0]], dtype=torch.float64)
    found = answer("topk_cross_entropy", logits, torch.zeros(2, 2), task="multilabel", fraction=0.5)
    assert found.value == pytest.approx(float(logits[0].exp().log1p().mean()), rel=1e-14)
    assert not found.gradient[1].any()


def test_weights_decide_which_pixels_are_hard() -> None:
    weight_map = torch.tensor([10.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    found = answer("topk_cross_entropy", T1, T1_MASK, weight_map=weight_map, fraction=0.25)
    assert found.value == pytest.approx(-10 * np.log(0.8), rel=1e-14)
    classes = one_hot([0, 1, 2, 0], 3)
    chosen = answer(
        "topk_cross_entropy",
        T2,
        classes,
        task="multiclass",
        class_weights=[1.0, 9.0, 0.0],
        fraction=0.25,
    )
    assert chosen.value == pytest.approx(-9 * np.log(0.8), rel=1e-14)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_a_fraction_outside_of_zero_to_one_is_refused(fraction: float) -> None:
    with pytest.raises(InvalidParameterError, match="fraction"):
        value_of("topk_cross_entropy", T1, T1_MASK, fraction=fraction)


@pytest.mark.parametrize("bins", [0, 1001, 2.5])
def test_bins_are_a_whole_number_of_bounded_size(bins: float) -> None:
    with pytest.raises(InvalidParameterError, match="bins"):
        value_of("ghm_classification", T1, T1_MASK, bins=bins)


@pytest.mark.parametrize("name", ["lovasz_hinge", "ghm_classification"])
def test_losses_of_sigmoid_channels_refuse_multiclass(name: str) -> None:
    with pytest.raises(InvalidParameterError, match="multiclass"):
        value_of(name, T2, one_hot([0, 1, 2, 0], 3), task="multiclass")


# -- ties and digits -----------------------------------------------------------------------------


def test_at_equal_errors_the_earlier_pixel_ranks_higher() -> None:
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    later = answer("lovasz_softmax", zeros, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    np.testing.assert_allclose(later.gradient, [[0.125, -0.125]], rtol=1e-14)
    earlier = answer("lovasz_softmax", zeros, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    np.testing.assert_allclose(earlier.gradient, [[-0.25, 0.0]], rtol=1e-14)
    assert later.value == pytest.approx(earlier.value, rel=1e-14)
    hinge = answer("lovasz_hinge", zeros, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    np.testing.assert_allclose(hinge.gradient, [[-1.0, 0.0]], rtol=1e-14)


def test_of_equally_hard_pixels_the_earlier_are_kept() -> None:
    logits = torch.zeros(1, 50, dtype=torch.float64)
    logits[0, 30] = 1.0
    found = answer("topk_cross_entropy", logits, torch.zeros_like(logits))
    assert found.gradient[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 30]


def test_rounding_does_not_decide_between_equal_errors() -> None:
    """Pixels 0 and 1 of the toy have an error of .2 in class 1, one of them as 1 - .8."""
    found = answer("lovasz_softmax", T2, one_hot([0, 1, 2, 0], 3), task="multiclass")
    np.testing.assert_allclose(found.gradient[:, 0], [-0.038889, 0.027778, 0.011111], atol=6e-7)
    np.testing.assert_allclose(found.gradient[:, 1], [0.006667, -0.013333, 0.006667], atol=6e-7)


def test_ranks_tell_small_numbers_apart() -> None:
    values = torch.tensor([0.0, -0.0, 5e-324, 1e-300, 1.1e-300, 1e-8, 1.0, 1e300]).double()
    values[2:5] = torch.tensor([1e-310, 1e-300, 1.1e-300], dtype=torch.float64)
    steps = ranks(values).diff()
    assert int(steps[0]) == 0
    assert bool((steps[1:] > 0).all())


def test_a_nearly_perfect_mask_keeps_its_digits() -> None:
    """1 - p is 0 in double precision at these logits."""
    logits = torch.tensor([[40.0, 50.0, -60.0]], dtype=torch.float64)
    target = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    found = answer("lovasz_softmax", logits, target)
    expected = (np.exp(-40) + np.exp(-50)) / 2  # the third comes last, after all foreground
    assert found.value == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(found.gradient[0, :2], [-np.exp(-40) / 2, -np.exp(-50) / 2], 1e-12)
    pair = torch.stack([torch.zeros(3).double(), logits[0]])
    both = answer("lovasz_softmax", pair, one_hot([1, 1, 0], 2), task="multiclass", classes=[1])
    assert both.value == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(both.gradient[1], found.gradient[0], rtol=1e-12)


# -- degenerate samples --------------------------------------------------------------------------

NAMES = ["ghm_classification", "lovasz_hinge", "lovasz_softmax", "topk_cross_entropy"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("logit", [-1e4, -745.0, 0.0, 745.0, 1e4])
def test_empty_full_and_soft_masks_with_extreme_logits_are_finite(
    name: str, on: float, logit: float
) -> None:
    logits = torch.full((1, 3, 2), logit, dtype=torch.float64)
    found = answer(name, logits, torch.full_like(logits, on))
    assert np.isfinite(found.value)
    assert found.value >= 0
    assert bool(found.gradient.isfinite().all())


@pytest.mark.parametrize("name", ["lovasz_softmax", "topk_cross_entropy"])
@pytest.mark.parametrize("scale", [1e4, -1e4, 0.0])
def test_extreme_logits_of_several_classes_are_finite(name: str, scale: float) -> None:
    target = one_hot([0, 1, 2, 0], 3)
    found = answer(name, scale * target, target, task="multiclass")
    assert np.isfinite(found.value)
    assert bool(found.gradient.isfinite().all())
    if scale > 0:
        assert found.value == 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 4), (2, 3, 2)])
def test_removing_pixels_is_cropping_them(name: str, shape: tuple[int, ...]) -> None:
    """The removed pixels are the hardest: a histogram, a rank or a share would show them."""
    random = torch.Generator().manual_seed(8)
    scores = torch.randn(2, *shape, 2, generator=random, dtype=torch.float64)
    target = (torch.rand(2, *shape, 2, generator=random) > 0.5).double()
    scores[..., 1] = 50 * (1 - 2 * target[..., 1])
    valid = torch.zeros(*shape, 2, dtype=torch.bool)
    valid[..., 0] = True
    masked = answer(name, scores, target, task="multilabel", valid=valid)
    cropped = answer(name, scores[..., 0], target[..., 0], task="multilabel")
    assert masked.value == pytest.approx(cropped.value, rel=1e-14)
    np.testing.assert_allclose(masked.gradient[..., 0], cropped.gradient, rtol=1e-13)
    assert not masked.gradient[..., 1].any()


@pytest.mark.parametrize("name", ["ghm_classification", "topk_cross_entropy"])
def test_the_mean_of_a_map_over_valid_pixels_is_the_value(name: str) -> None:
    sample = random_sample("multilabel", 9)
    found = answer(name, **sample).values
    assert found.pixel_map is not None
    assert not found.pixel_map[~sample["valid"]].any()
    assert float(found.pixel_map.sum() / sample["valid"].sum()) == pytest.approx(
        float(found.value.detach()), rel=1e-14
    )


def test_soft_targets_are_errors_as_given_around_the_set_above_one_half() -> None:
    logits = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([[0.8, 0.1]], dtype=torch.float64)
    found = answer("lovasz_softmax", logits, target)
    errors = (target - logits.sigmoid())[0].abs()  # .3 on, .631 off
    assert found.value == pytest.approx(float(errors[1] / 2 + errors[0] / 2), rel=1e-14)
    perfect = answer("lovasz_softmax", target.logit(), target)
    assert perfect.value == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_derivatives(name: str) -> None:
    for seed in (10, 11):
        sample = random_sample("multilabel", seed, (3, 3))
        scores = sample.pop("scores").requires_grad_()

        def value(leaf: Tensor, sample: dict[str, Any] = sample) -> Tensor:
            return value_of(name, leaf, **sample).value

        assert torch.autograd.gradcheck(value, (scores,))


def test_softmax_gradients_are_derivatives() -> None:
    for name in ("lovasz_softmax", "topk_cross_entropy"):
        sample = random_sample("multiclass", 12, (3, 3))
        scores = sample.pop("scores").requires_grad_()

        def value(leaf: Tensor, name: str = name, sample: dict[str, Any] = sample) -> Tensor:
            return value_of(name, leaf, **sample).value

        assert torch.autograd.gradcheck(value, (scores,))


# -- the same by the textbook --------------------------------------------------------------------

PARAMETERS: list[tuple[str, str, dict[str, Any]]] = [
    ("ghm_classification", "binary", {}),
    ("ghm_classification", "multilabel", {"bins": 4}),
    ("lovasz_hinge", "binary", {}),
    ("lovasz_hinge", "multilabel", {}),
    ("lovasz_softmax", "binary", {}),
    ("lovasz_softmax", "multilabel", {"class_weights": [1.0, 0.0, 3.0]}),
    ("lovasz_softmax", "multiclass", {}),
    ("lovasz_softmax", "multiclass", {"classes": "all", "include_background": False}),
    ("lovasz_softmax", "multiclass", {"classes": [0, 2], "class_weights": [1.0, 2.0, 3.0]}),
    ("lovasz_softmax", "multiclass", {"classes": "present_of_all"}),
    ("topk_cross_entropy", "binary", {}),
    ("topk_cross_entropy", "multilabel", {"fraction": 0.3}),
    ("topk_cross_entropy", "multiclass", {"fraction": 0.6, "class_weights": [1.0, 2.0, 0.5]}),
]


@pytest.mark.parametrize(("name", "task", "params"), PARAMETERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_textbook_agrees(name: str, task: str, params: dict[str, Any], seed: int) -> None:
    sample = random_sample(task, seed, (4, 5) if seed else (2, 3, 4))
    if seed and task == "multiclass":  # a class that is absent
        sample["target"][0] += sample["target"][1]
        sample["target"][1] = 0.0
    found = answer(name, **sample, **params)
    leaf = sample["scores"].clone().requires_grad_()
    whole = Whole(
        task,
        leaf,
        sample["target"],
        sample["valid"],
        sample["weight_map"],
        (1.0,) * (leaf.ndim - 1),
    )
    value = ORACLE[name](whole, params)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert found.value == pytest.approx(float(value.detach()), rel=1e-12)
    np.testing.assert_allclose(found.gradient, gradient, atol=1e-14)
