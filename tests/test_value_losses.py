"""Losses of plain numbers: hand-checked values, limits of their parameters, gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from lossd.losses.registry import find_loss
from lossd.losses.values import huber, l1, l2, smooth_l1
from oracles.rows import ORACLE

Loss = Callable[..., Tensor]

VARIANTS: list[tuple[Loss, dict[str, Any]]] = [
    (l1, {}),
    (l2, {}),
    (smooth_l1, {}),
    (smooth_l1, {"beta": 0.3}),
    (huber, {}),
    (huber, {"delta": 0.4}),
]

NUMBERS: list[tuple[Loss, dict[str, Any], float, float, float]] = [
    (l1, {}, -2.0, 2.0, -1.0),
    (l2, {}, -2.0, 4.0, -4.0),
    (smooth_l1, {}, 2.0, 1.5, 1.0),
    (smooth_l1, {"beta": 0.5}, 2.0, 1.75, 1.0),
    (huber, {"delta": 0.5}, 2.0, 0.875, 0.5),
    (huber, {"delta": 2.0}, 2.0, 2.0, 2.0),
    (smooth_l1, {}, 0.5, 0.125, 0.5),
    (huber, {}, 0.5, 0.125, 0.5),
    (huber, {}, -0.5, 0.125, -0.5),
]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def table(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.manual_seed(seed))


def gradient(loss: Loss, prediction: Tensor, target: Tensor, **params: Any) -> Tensor:
    leaf = prediction.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf, target, **params).sum(), leaf)
    return found


@pytest.mark.parametrize(("loss", "params", "error", "value", "slope"), NUMBERS)
def test_hand_checked_values_and_slopes(
    loss: Loss, params: dict[str, Any], error: float, value: float, slope: float
) -> None:
    assert loss(numbers(error), numbers(0.0), **params).item() == pytest.approx(value)
    assert gradient(loss, numbers(error), numbers(0.0), **params).item() == pytest.approx(slope)


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 4, 3)])
def test_values_and_gradients_are_the_oracles(
    loss: Loss, params: dict[str, Any], shape: tuple[int, ...]
) -> None:
    prediction, target = table(1, *shape), table(2, *shape)
    leaf = prediction.clone().requires_grad_()
    oracle = ORACLE[loss.__name__]
    expected = torch.stack(
        [oracle({"prediction": one, "target": two}, params) for one, two in zip(leaf, target)]  # noqa: B905 (strict=True would iterate once more, which tensors warn of)
    )
    torch.testing.assert_close(loss(prediction, target, **params), expected.detach())
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(gradient(loss, prediction, target, **params), slope)


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
def test_gradients_are_finite_differences(loss: Loss, params: dict[str, Any]) -> None:
    target = table(3, 4, 6)
    leaf = table(4, 4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda prediction: loss(prediction, target, **params), (leaf,))


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
def test_the_value_is_a_mean_over_elements(loss: Loss, params: dict[str, Any]) -> None:
    prediction, target = table(5, 3, 4), table(6, 3, 4)
    twice = loss(torch.cat([prediction] * 2, 1), torch.cat([target] * 2, 1), **params)
    torch.testing.assert_close(twice, loss(prediction, target, **params))


def test_squared_error_has_no_factor_of_one_half() -> None:
    assert l2(numbers(3.0), numbers(0.0)).item() == 9


def test_huber_and_smooth_l1_agree_at_one_and_only_there() -> None:
    prediction, target = table(7, 6, 5), table(8, 6, 5)
    for delta in (0.1, 1.0, 3.0):
        scaled = delta * smooth_l1(prediction, target, beta=delta)
        torch.testing.assert_close(huber(prediction, target, delta=delta), scaled)
    plain = huber(prediction, target, delta=0.1)
    assert (plain < 0.5 * smooth_l1(prediction, target, beta=0.1)).all()


def test_as_delta_goes_to_zero_huber_vanishes_and_only_smooth_l1_becomes_l1() -> None:
    prediction, target = table(9, 6, 5), table(10, 6, 5)
    assert (huber(prediction, target, delta=1e-9) < 1e-8).all()
    absolute = l1(prediction, target)
    torch.testing.assert_close(
        smooth_l1(prediction, target, beta=1e-9), absolute, rtol=0, atol=1e-8
    )


def test_as_delta_grows_huber_becomes_half_the_squared_error() -> None:
    prediction, target = table(11, 6, 5), table(12, 6, 5)
    half = 0.5 * l2(prediction, target)
    torch.testing.assert_close(huber(prediction, target, delta=1e6), half)


def test_beta_zero_is_l1_with_its_gradient() -> None:
    prediction, target = numbers(0.0, 1e-300, -2.0), numbers(0.0, 0.0, 0.0)
    assert torch.equal(smooth_l1(prediction, target, beta=0.0), l1(prediction, target))
    found = gradient(smooth_l1, prediction, target, beta=0.0)
    assert found.tolist() == [0.0, 1.0, -1.0]


@pytest.mark.parametrize("knee", [1e-300, 1e-8, 1.0, 1e8, 1e300])
@pytest.mark.parametrize(("loss", "name"), [(smooth_l1, "beta"), (huber, "delta")])
def test_any_knee_is_finite_with_slopes_within_bounds(loss: Loss, name: str, knee: float) -> None:
    error = numbers(0.0, 1e-300, -1e-8, 1.0, -1e4, 1e30)
    steepest = 1.0 if loss is smooth_l1 else knee
    assert loss(error, torch.zeros_like(error), **{name: knee}).isfinite().all()
    found = gradient(loss, error, torch.zeros_like(error), **{name: knee})
    assert found.isfinite().all()
    assert (found.abs() <= steepest).all()


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
def test_nothing_wrong_costs_nothing_and_pulls_nowhere(loss: Loss, params: dict[str, Any]) -> None:
    same = table(13, 3, 4)
    assert not loss(same, same, **params).any()
    assert not gradient(loss, same, same, **params).any()


def test_delta_has_to_be_positive_and_beta_may_be_zero() -> None:
    options = find_loss("smooth_l1").parameters.model_validate({"beta": 0.0})
    assert options.model_dump() == {"beta": 0.0}
    with pytest.raises(ValidationError, match="greater than 0"):
        find_loss("huber").parameters.model_validate({"delta": 0.0})
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        find_loss("smooth_l1").parameters.model_validate({"beta": -1.0})


@pytest.mark.parametrize(("loss", "params"), VARIANTS)
def test_a_row_has_the_same_bits_in_any_company(loss: Loss, params: dict[str, Any]) -> None:
    prediction, target = table(14, 67, 9), table(15, 67, 9)
    value = loss(prediction, target, **params)
    slope = gradient(loss, prediction, target, **params)
    for first, last in ((0, 1), (5, 6), (66, 67), (3, 6), (9, 41)):
        part = prediction[first:last].clone(), target[first:last].clone()
        assert torch.equal(loss(*part, **params), value[first:last])
        assert torch.equal(gradient(loss, *part, **params), slope[first:last])
