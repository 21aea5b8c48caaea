"""Losses of scores, of a linear classifier and of values in a histogram, called with tables."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossd.losses import LOSSES
from lossd.losses.declare import RowLoss
from lossd.losses.histogram import ghm_regression, harmony
from lossd.losses.scores import (
    distribution_focal,
    quality_focal,
    row_cross_entropy,
    softmax_l2,
    svm_hinge,
)
from lossd_client.errors import InvalidParameterError
from oracles.scores import ORACLE

LN2 = math.log(2)
NAMES = sorted(ORACLE)


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def reals(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Derivative of the sum over rows."""
    leaf = at.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return gradient


def find(name: str) -> RowLoss:
    loss = LOSSES[name]
    assert isinstance(loss, RowLoss)
    return loss


def random_inputs(name: str, rows: int, size: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of a loss by what its declaration says of them; `size` elements or classes."""
    random = torch.Generator().manual_seed(seed)
    sizes = {"B": rows, "C": size, "D": size + 1, "…": size}
    found = {}
    for one in find(name).inputs:
        shape = [sizes[axis] for axis in one.axes.split()]
        if one.values == "label":
            found[one.name] = torch.randint(0, size, shape, generator=random)
            continue
        values = 2.0 * torch.randn(shape, generator=random, dtype=torch.float64)
        if one.values in ("unit", "bin"):
            values = values.sigmoid() * (1 if one.values == "unit" else size - 1)
        found[one.name] = values
    return found


def evaluate(
    name: str, inputs: dict[str, Tensor], **params: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Values `[B]` and the derivatives of their sum."""
    loss = find(name)
    options = loss.read_options(params, task="binary", channels=0, loc=())
    differentiable = [one.name for one in loss.inputs if one.differentiable]
    leaves = {key: value.detach().clone() for key, value in inputs.items()}
    wanted = [leaves[key].requires_grad_() for key in differentiable]
    value = loss.value(leaves, options)
    gradients = torch.autograd.grad(value.sum(), wanted)
    return value.detach(), dict(zip(differentiable, gradients, strict=True))


# -- numbers worked out by hand ------------------------------------------------------------------


def test_scores_of_the_course_notes() -> None:
    scores, own = table([3.2, 5.1, -1.7]), torch.tensor([0])
    assert float(svm_hinge(scores, own)) == pytest.approx(2.9, rel=1e-14)
    assert float(row_cross_entropy(scores, own)) == pytest.approx(2.040355, abs=6e-7)
    np.testing.assert_array_equal(slope(lambda z: svm_hinge(z, own), scores), [[-1, 1, 0]])


def test_a_linear_classifier_of_two_features() -> None:
    features, weights, own = table([1.0, 2.0]), torch.eye(2).double(), torch.tensor([0])
    found = softmax_l2(features, weights, own)
    assert float(found) == pytest.approx(1.413262, abs=6e-7)
    miss = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(
        slope(lambda w: softmax_l2(features, w, own), weights),
        [[-miss + 0.1, miss], [-2 * miss, 2 * miss + 0.1]],
        rtol=1e-14,
    )
    np.testing.assert_allclose(
        slope(lambda x: softmax_l2(x, weights, own), features), [[-miss, miss]], rtol=1e-14
    )


def test_quality_focal_of_a_half_and_four_fifths() -> None:
    zero, quality = table([0.0]), table([0.8])
    assert float(quality_focal(zero, quality)) == pytest.approx(0.062383, abs=6e-7)
    # d/dz of (y - p)^2 H: the factor counts too.
    expected = 0.3**2 * (0.5 - 0.8) - 2 * 0.3 * 0.25 * LN2
    found = slope(lambda z: quality_focal(z, quality), zero)
    assert float(found) == pytest.approx(expected, rel=1e-14)


def test_distribution_focal_of_four_equal_bins() -> None:
    zeros = torch.zeros(1, 4, dtype=torch.float64)
    assert float(distribution_focal(zeros, reals(2.3))) == pytest.approx(math.log(4), rel=1e-15)
    np.testing.assert_allclose(
        slope(lambda z: distribution_focal(z, reals(2.3)), zeros),
        [[0.25, 0.25, 0.25 - 0.7, 0.25 - 0.3]],
        rtol=1e-14,
    )


def test_the_least_distribution_focal_is_the_entropy_of_the_shares() -> None:
    best = table([-1e4, -1e4, math.log(0.7), math.log(0.3)])
    assert float(distribution_focal(best, reals(2.3))) == pytest.approx(0.610864, abs=6e-7)
    gradient = slope(lambda z: distribution_focal(z, reals(2.3)), best)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-15)


@pytest.mark.parametrize(("residual", "value"), [(0.0, 0.0), (0.02, 0.008284), (1.0, 0.9802)])
def test_one_element_of_ghm_regression_is_its_smoothed_error(residual: float, value: float) -> None:
    zero = table([0.0])
    assert float(ghm_regression(zero + residual, zero)) == pytest.approx(value, abs=6e-7)
    gradient = slope(lambda x: ghm_regression(x, zero), zero + residual)
    assert float(gradient) == pytest.approx(residual / math.hypot(residual, 0.02), rel=1e-14)


def test_ghm_weights_of_four_lengths() -> None:
    weights = harmony(table([0.03, 0.05, 0.35, 0.85]), 10)
    np.testing.assert_allclose(weights, [[2 / 3, 2 / 3, 4 / 3, 4 / 3]], rtol=1e-15)


# -- identities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.7, 1.0, 1.5, 2.0, 3.0])
def test_quality_focal_of_labels_is_focal_loss(beta: float) -> None:
    logits, labels = table([0.3, -1.2, 2.0]), table([1.0, 0.0, 1.0])
    own = torch.where(labels == 1, logits, -logits).sigmoid()
    expected = float((-((1 - own) ** beta) * own.log()).sum())
    assert float(quality_focal(logits, labels, beta=beta)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0])
def test_quality_focal_is_zero_where_the_score_is_the_quality(beta: float) -> None:
    zero, half = table([0.0]), table([0.5])
    assert float(quality_focal(zero, half, beta=beta)) == pytest.approx(0.0, abs=1e-15)
    assert float(slope(lambda z: quality_focal(z, half, beta=beta), zero)) == pytest.approx(
        0.0, abs=1e-7
    )


def test_a_root_of_the_distance_is_clamped_with_gradient_zero() -> None:
    """The contract's floor of 1e-7; the slope of a root has no end at 0."""
    zero, half = table([0.0]), table([0.5])
    found = quality_focal(zero, half, beta=0.5)
    assert float(found) == pytest.approx(math.sqrt(1e-7) * LN2, rel=1e-12)
    assert float(slope(lambda z: quality_focal(z, half, beta=0.5), zero)) == 0.0


def test_beta_zero_is_binary_cross_entropy_summed_over_classes() -> None:
    inputs = random_inputs("quality_focal", 3, 5)
    found, gradients = evaluate("quality_focal", inputs, beta=0.0)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(
        inputs["logits"], inputs["target"], reduction="none"
    )
    np.testing.assert_allclose(found, plain.sum(1), rtol=1e-13)
    expected = inputs["logits"].sigmoid() - inputs["target"]
    np.testing.assert_allclose(gradients["logits"], expected, atol=1e-15)


@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_a_target_on_a_bin_is_cross_entropy_with_that_label(label: int) -> None:
    """The last bin has no right neighbour: other code reads beyond the end for y = C - 1."""
    logits = table([0.3, -1.0, 2.0, 0.7])
    found = distribution_focal(logits, reals(float(label)))
    plain = torch.nn.functional.cross_entropy(logits, torch.tensor([label]))
    assert float(found) == pytest.approx(float(plain), rel=1e-14)
    gradient = slope(lambda z: distribution_focal(z, reals(float(label))), logits)
    expected = logits.softmax(1) - torch.nn.functional.one_hot(torch.tensor([label]), 4)
    np.testing.assert_allclose(gradient, expected, atol=1e-15)


def test_targets_next_to_a_bin_approach_its_cross_entropy() -> None:
    logits = table([0.3, -1.0, 2.0, 0.7])
    for at, nearby in ((3.0, 3.0 - 1e-9), (1.0, 1.0 + 1e-9), (1.0, 1.0 - 1e-9), (0.0, 1e-9)):
        found = distribution_focal(logits, reals(nearby))
        assert float(found) == pytest.approx(float(distribution_focal(logits, reals(at))), abs=1e-8)


def test_one_bin_or_one_class_alone_costs_nothing() -> None:
    one, first = table([3.0]), torch.tensor([0])
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda logits: distribution_focal(logits, reals(0.0)),
        lambda logits: row_cross_entropy(logits, first),
        lambda logits: svm_hinge(logits, first),
    ]
    for function in functions:
        assert float(function(one)) == 0.0
        assert float(slope(function, one)) == 0.0


def test_softmax_gradients_add_up_to_zero() -> None:
    _, gradients = evaluate("distribution_focal", random_inputs("distribution_focal", 4, 6))
    np.testing.assert_allclose(gradients["logits"].sum(1), 0.0, atol=1e-15)


def test_scores_may_be_shifted() -> None:
    logits, own = table([0.3, -1.0, 2.0, 0.7]), torch.tensor([1])
    assert float(svm_hinge(logits + 100, own)) == pytest.approx(float(svm_hinge(logits, own)))
    shifted = float(row_cross_entropy(logits + 100, own))
    assert shifted == pytest.approx(float(row_cross_entropy(logits, own)), rel=1e-13)


def test_the_svm_hinge_is_the_sum_over_wrong_classes() -> None:
    """`MultiMarginLoss` divides it by C; the right class itself would add the margin."""
    inputs = random_inputs("svm_hinge", 6, 5)
    for margin in (0.0, 0.5, 1.0):
        found, _ = evaluate("svm_hinge", inputs, margin=margin)
        torch_own = torch.nn.functional.multi_margin_loss(
            inputs["logits"], inputs["target"], margin=margin, reduction="none"
        )
        np.testing.assert_allclose(found, 5 * torch_own, rtol=1e-13)
    equal = torch.zeros(1, 5, dtype=torch.float64)
    assert float(svm_hinge(equal, torch.tensor([2]), margin=0.25)) == 1.0


def test_on_the_edge_of_a_margin_the_slope_is_zero() -> None:
    logits, own = table([1.0, 0.0]), torch.tensor([0])
    assert not slope(lambda z: svm_hinge(z, own), logits).any()


def test_every_sample_carries_the_whole_penalty() -> None:
    inputs = random_inputs("softmax_l2", 4, 3)
    with_penalty, gradients = evaluate("softmax_l2", inputs, l2=0.3)
    without, plain = evaluate("softmax_l2", inputs, l2=0.0)
    weights = inputs["weights"]
    penalty = 0.15 * float(weights.square().sum())
    np.testing.assert_allclose(with_penalty - without, penalty, rtol=1e-12)
    np.testing.assert_allclose(
        gradients["weights"] - plain["weights"], 4 * 0.3 * weights, rtol=1e-12
    )
    assert torch.equal(gradients["features"], plain["features"])


def test_without_penalty_a_linear_classifier_is_cross_entropy_of_its_scores() -> None:
    inputs = random_inputs("softmax_l2", 4, 3)
    found, gradients = evaluate("softmax_l2", inputs, l2=0.0)
    scores = inputs["features"] @ inputs["weights"]
    plain = torch.nn.functional.cross_entropy(scores, inputs["target"], reduction="none")
    np.testing.assert_allclose(found, plain, rtol=1e-13)
    error = scores.softmax(1) - torch.nn.functional.one_hot(inputs["target"], 3)
    np.testing.assert_allclose(gradients["weights"], inputs["features"].T @ error, atol=1e-14)
    np.testing.assert_allclose(gradients["features"], error @ inputs["weights"].T, atol=1e-14)


def test_one_bin_of_ghm_regression_is_the_mean_smoothed_error() -> None:
    inputs = random_inputs("ghm_regression", 3, 8)
    found, _ = evaluate("ghm_regression", inputs, bins=1, mu=0.5)
    residual = inputs["prediction"] - inputs["target"]
    expected = ((residual**2 + 0.25).sqrt() - 0.5).mean(1)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_every_bin_of_ghm_regression_that_is_not_empty_weighs_the_same() -> None:
    residual = table([0.001, 0.002, 0.003, 0.01, 5.0, -5.0])  # bins 0, 0, 1, 4, 9, 9
    errors = (residual**2 + 0.02**2).sqrt() - 0.02
    expected = errors[0] * reals(1 / 2, 1 / 2, 1, 1, 1 / 2, 1 / 2) / 4
    found = ghm_regression(residual, torch.zeros_like(residual))
    assert float(found) == pytest.approx(float(expected.sum()), rel=1e-12)


def test_a_length_on_an_edge_lies_in_the_upper_bin() -> None:
    """Residual 3 with mu 4 has length .6, an edge of ten bins; its neighbours lie on each side."""
    residual = table([3.0, 2.9, 3.1])
    errors = (residual**2 + 16).sqrt() - 4
    found = ghm_regression(residual, torch.zeros_like(residual), mu=4.0)
    expected = (errors[0, 0] + errors[0, 2]) / 4 + errors[0, 1] / 2
    assert float(found) == pytest.approx(float(expected), rel=1e-13)


# -- errors of others ----------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 1.5, 3.0])
def test_quality_focal_is_neither_negative_nor_undefined_above_the_target(beta: float) -> None:
    """The first public code left out the absolute value of the distance."""
    logits = table([2.0, -2.0])
    for quality in (0.2, 0.9):
        found = quality_focal(logits, torch.full_like(logits, quality), beta=beta)
        assert float(found) > 0


def test_an_underflowing_softmax_has_a_finite_logarithm() -> None:
    """Seed error 21: the logarithm of a softmax is infinite beyond a margin of 745."""
    features, weights = table([1.0]), table([0.0, 2000.0])
    found = softmax_l2(features, weights, torch.tensor([0]), l2=0.0)
    assert float(found) == 2000.0
    gradient = slope(lambda w: softmax_l2(features, w, torch.tensor([0]), l2=0.0), weights)
    np.testing.assert_array_equal(gradient, [[-1.0, 1.0]])
    bins = distribution_focal(table([0.0, 2000.0]), reals(0.5))
    assert float(bins) == 1000.0


def test_histograms_do_not_couple_samples() -> None:
    """A histogram over a batch, or one that remembers, changes a sample's value."""
    prediction = table([0.001, 0.5, 3.0], [0.001, 0.001, 0.001])
    target = torch.zeros_like(prediction)
    together = ghm_regression(prediction, target)
    alone = [ghm_regression(prediction[row : row + 1], target[:1]) for row in range(2)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(harmony(prediction.clamp_max(1), 10)[1], torch.ones(3).double())


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("quality_focal", {"beta": -1.0}),
        ("quality_focal", {"beta": float("nan")}),
        ("svm_hinge", {"margin": -0.1}),
        ("softmax_l2", {"l2": -0.1}),
        ("ghm_regression", {"mu": 0.0}),
        ("ghm_regression", {"bins": 0}),
        ("ghm_regression", {"bins": 1001}),
        ("distribution_focal", {"beta": 1.0}),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, params: dict[str, float]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(params))):
        find(name).read_options(params, task="binary", channels=0, loc=())


# -- digits, extremes and rows -------------------------------------------------------------------


def test_small_misses_keep_their_digits() -> None:
    """1 - p is 0 in double precision at a lead of 40."""
    lead, own = table([40.0, 0.0]), torch.tensor([0])
    miss = math.exp(-40)
    assert float(row_cross_entropy(lead, own)) == pytest.approx(miss, rel=1e-14)
    np.testing.assert_allclose(
        slope(lambda z: row_cross_entropy(z, own), lead), [[-miss, miss]], rtol=1e-14
    )
    quality = quality_focal(table([40.0]), table([1.0]))
    assert float(quality) == pytest.approx(miss**3, rel=1e-12)


def test_residuals_far_below_mu_keep_their_digits() -> None:
    found = ghm_regression(table([1e-9]), table([0.0]))
    assert float(found) == pytest.approx(1e-18 / 0.04, rel=1e-12)


def test_residuals_whose_square_overflows_or_vanishes_are_finite() -> None:
    prediction = table([1e200], [1e-200], [0.0])
    target = torch.zeros_like(prediction)
    np.testing.assert_allclose(ghm_regression(prediction, target), [1e200, 0, 0], rtol=1e-15)
    gradient = slope(lambda x: ghm_regression(x, target), prediction)
    np.testing.assert_allclose(gradient, [[1.0], [5e-199], [0.0]], rtol=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [0.0, 1e4, -1e4])
def test_extreme_inputs_are_finite(name: str, scale: float) -> None:
    inputs = random_inputs(name, 3, 4)
    for one in find(name).inputs:
        if one.differentiable:
            inputs[one.name] = scale * inputs[one.name].sign()
    for params in ({}, {"beta": 0.5}) if name == "quality_focal" else ({},):
        value, gradients = evaluate(name, inputs, **params)
        assert bool(value.isfinite().all())
        assert bool((value >= 0).all())
        for gradient in gradients.values():
            assert bool(gradient.isfinite().all())


PARAMETERS: list[tuple[str, dict[str, Any]]] = [
    ("distribution_focal", {}),
    ("ghm_regression", {}),
    ("ghm_regression", {"bins": 3, "mu": 1.5}),
    ("quality_focal", {}),
    ("quality_focal", {"beta": 0.5}),
    ("quality_focal", {"beta": 1.7}),
    ("softmax_l2", {}),
    ("softmax_l2", {"l2": 2.0}),
    ("svm_hinge", {}),
    ("svm_hinge", {"margin": 0.3}),
]


@pytest.mark.parametrize(("name", "params"), PARAMETERS)
@pytest.mark.parametrize("size", [2, 5, 9, 33])
def test_a_row_has_the_same_bits_alone_and_in_company(
    name: str, params: dict[str, Any], size: int
) -> None:
    inputs = random_inputs(name, 7, size)
    values, gradients = evaluate(name, inputs, **params)
    rows = {one.name for one in find(name).inputs if one.axes.startswith("B")}
    for row in range(7):
        single = {
            key: value[row : row + 1] if key in rows else value for key, value in inputs.items()
        }
        value, gradient = evaluate(name, single, **params)
        assert torch.equal(value[0], values[row])
        for key in rows & set(gradients):
            assert torch.equal(gradient[key][0], gradients[key][row])


@pytest.mark.parametrize(("name", "params"), PARAMETERS)
def test_gradients_are_derivatives(name: str, params: dict[str, Any]) -> None:
    loss = find(name)
    options = loss.read_options(params, task="binary", channels=0, loc=())
    inputs = random_inputs(name, 2, 4, seed=1)
    keys = [one.name for one in loss.inputs if one.differentiable]

    def values(*leaves: Tensor) -> Tensor:
        return loss.value({**inputs, **dict(zip(keys, leaves, strict=True))}, options)

    leaves = tuple(inputs[key].requires_grad_() for key in keys)
    assert torch.autograd.gradcheck(values, leaves)


@pytest.mark.parametrize(("name", "params"), PARAMETERS)
@pytest.mark.parametrize("size", [2, 6])
def test_the_textbook_agrees(name: str, params: dict[str, Any], size: int) -> None:
    inputs = random_inputs(name, 3, size, seed=2)
    values, gradients = evaluate(name, inputs, **params)
    leaves = {key: value.clone().requires_grad_(key in gradients) for key, value in inputs.items()}
    rows = {one.name for one in find(name).inputs if one.axes.startswith("B")}
    expected = torch.stack(
        [
            ORACLE[name](
                {key: value[row] if key in rows else value for key, value in leaves.items()}, params
            )
            for row in range(3)
        ]
    )
    np.testing.assert_allclose(values, expected.detach(), rtol=1e-12)
    derivatives = torch.autograd.grad(expected.sum(), [leaves[key] for key in gradients])
    for found, derivative in zip(gradients.values(), derivatives, strict=True):
        np.testing.assert_allclose(found, derivative, atol=1e-13)


def test_values_may_have_any_number_of_axes() -> None:
    prediction = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator())
    flat = ghm_regression(prediction.flatten(1), torch.zeros(2, 12).double())
    assert torch.equal(ghm_regression(prediction, torch.zeros(2, 3, 4).double()), flat)
    column = ghm_regression(prediction[:, 0, 0], torch.zeros(2).double())
    np.testing.assert_allclose(
        column, (prediction[:, 0, 0] ** 2 + 0.02**2).sqrt() - 0.02, rtol=1e-12
    )
