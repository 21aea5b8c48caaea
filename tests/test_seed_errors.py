"""Errors of widely copied posts and code, each as a test that the losses here do not repeat it.

The numbers are those of the list of such errors; sort, distance, box and embedding losses have
theirs beside their other tests.
"""

from typing import Any

import numpy as np
import pytest

from jobs import Core, make_job
from lossd.losses import LOSSES
from test_hand_checked import SMOOTH_1, T1, T1_TWO_CLASSES, T2, UNSMOOTHED


def value(core: Core, name: str, inputs: dict[str, Any], **params: Any) -> float:
    tensors = core.tensors(make_job({"name": name, "params": params}, inputs))
    return float(tensors["total"][0])


def gradient(core: Core, name: str, inputs: dict[str, Any], **params: Any) -> Any:
    job = make_job({"name": name, "params": params}, inputs, gradient="total")
    return core.tensors(job)["gradient/logits"][0]


def one_pixel(probability: float, label: int) -> dict[str, Any]:
    return {
        "logits": np.full((1, 1, 1), np.log(probability / (1 - probability))),
        "target": np.full((1, 1), label),
    }


def test_2_an_easy_pixel_of_probability_09_is_turned_down_a_hundredfold(core: Core) -> None:
    easy = value(core, "bce", one_pixel(0.9, 1)) / value(core, "focal", one_pixel(0.9, 1))
    assert easy == pytest.approx(100.0)
    hard = value(core, "bce", one_pixel(0.968, 1)) / value(core, "focal", one_pixel(0.968, 1))
    assert hard == pytest.approx(1000.0, rel=0.03)


def test_3_and_6_alpha_weighs_the_pixels_that_are_on(core: Core) -> None:
    for label, weight in ((1, 0.25), (0, 0.75)):
        pixel = one_pixel(0.3, label)
        plain, weighed = value(core, "focal", pixel), value(core, "focal", pixel, alpha=0.25)
        assert weighed == pytest.approx(weight * plain)


def test_4_focal_has_a_softmax_form(core: Core) -> None:
    assert value(core, "focal", T2) == pytest.approx(0.136044, abs=6e-7)


def test_5_the_derivative_goes_through_the_focusing_factor(core: Core) -> None:
    assert gradient(core, "focal", one_pixel(0.9, 1))[0, 0] == pytest.approx(-0.002896, abs=6e-7)
    detached = [-0.002, -0.054, 0.00675, 0.00025]
    assert not np.allclose(gradient(core, "focal", T1)[0], detached, atol=1e-3)


def test_7_gamma_is_2_and_ignored_pixels_are_not_in_the_mean(core: Core) -> None:
    assert LOSSES["focal"].parameters().model_dump()["gamma"] == 2.0
    logits = np.concatenate([T1["logits"], np.full((1, 1, 4), 9.0)], -1)
    target = np.concatenate([T1["target"], np.full((1, 4), 255, np.uint8)], -1)
    job = make_job("focal", {"logits": logits, "target": target}, ignore_index=255)
    assert core.tensors(job)["total"][0] == pytest.approx(0.092986, abs=6e-7)


def test_9_smoothing_stands_outside_the_factor_of_2(core: Core) -> None:
    assert value(core, "dice", T1, **SMOOTH_1) == pytest.approx(0.260870, abs=6e-7)
    nothing = {"logits": np.full((1, 1, 9), -60.0), "target": np.zeros((1, 9), np.uint8)}
    everything = {"logits": np.full((1, 1, 9), 60.0), "target": np.ones((1, 9), np.uint8)}
    for perfect in (nothing, everything):
        assert value(core, "dice", perfect, **SMOOTH_1) == pytest.approx(0.0, abs=1e-12)


def test_10_class_weights_are_not_ignored(core: Core) -> None:
    heavy = value(core, "dice", T2, **UNSMOOTHED, class_weights=[0.0, 0.0, 1.0])
    assert heavy == pytest.approx(0.444444, abs=6e-7)


def test_11_the_gradient_is_that_of_the_loss_and_not_0_off_the_target(core: Core) -> None:
    found = gradient(core, "dice", T1, **UNSMOOTHED)[0]
    assert (found[:2] < 0).all()
    assert (found[2:] > 0).all()


def test_12_jaccard_has_no_factor_of_2(core: Core) -> None:
    assert value(core, "jaccard", T1, **UNSMOOTHED) == pytest.approx(0.5)


def test_13_and_25_the_larger_weight_is_that_of_false_negatives(core: Core) -> None:
    options = LOSSES["tversky"].parameters().model_dump()
    assert (options["fp_weight"], options["fn_weight"]) == (0.3, 0.7)
    missed = {"logits": np.array([[[5.0, -5.0]]]), "target": np.array([[1, 1]])}
    extra = {"logits": np.array([[[5.0, 5.0]]]), "target": np.array([[1, 0]])}
    assert value(core, "tversky", missed) > value(core, "tversky", extra)


def test_14_specificity_counts_true_negatives(core: Core) -> None:
    """The precision of the same mask, TP/(TP+FP), depends on what happens inside; this does not."""
    only_outside = {**UNSMOOTHED, "sensitivity_weight": 0.0}
    moved = {"logits": T1["logits"].copy(), "target": T1["target"]}
    moved["logits"][0, 0, 0] -= 3.0
    before = value(core, "sensitivity_specificity", T1, **only_outside)
    assert before == pytest.approx((0.3**2 + 0.1**2) / 2)
    assert value(core, "sensitivity_specificity", moved, **only_outside) == pytest.approx(before)


def test_16_and_17_the_weights_of_generalized_dice_do_not_cancel(core: Core) -> None:
    inputs = {**T1_TWO_CLASSES, "target": np.array([[1, 0, 0, 0]], np.uint8)}
    found = value(core, "generalized_dice", inputs, **UNSMOOTHED)
    assert found == pytest.approx(0.347222, abs=6e-7)
    assert found != pytest.approx(0.25, abs=1e-2)


@pytest.mark.parametrize("classes", ["present", "all"])
def test_18_an_absent_class_does_not_dominate_generalized_dice(core: Core, classes: str) -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (1, 4000))
    right = np.where(np.arange(3)[None, :, None] == target[:, None], 8.0, 0.0)
    found = value(core, "generalized_dice", {"logits": right, "target": target}, classes=classes)
    assert found < 0.01


def test_19_the_focal_exponent_of_dice_focal_is_2_whatever_the_number_of_positives(
    core: Core,
) -> None:
    sum_of_both = {"reduction_over_classes": "sum"}
    once = value(core, "dice_focal", T1_TWO_CLASSES, **sum_of_both)
    assert once == pytest.approx(0.606061 + 0.092986, abs=1e-6)
    twice = {name: np.concatenate([array, array], -1) for name, array in T1_TWO_CLASSES.items()}
    assert value(core, "dice_focal", twice, **sum_of_both) == pytest.approx(once)


def test_20_the_gradient_of_cross_entropy_is_probability_minus_target(core: Core) -> None:
    pixel = {"logits": np.array([[[1.0], [2.0], [3.0]]]), "target": np.array([[2]])}
    want = [0.090031, 0.244728, 0.665241 - 1.0]
    np.testing.assert_allclose(gradient(core, "ce", pixel)[:, 0], want, atol=6e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_21_a_softmax_that_underflows_does_not_make_the_loss_infinite(
    core: Core, dtype: Any
) -> None:
    pixel = {"logits": np.array([[[0.0], [1e4]]], dtype), "target": np.array([[0]])}
    assert value(core, "ce", pixel) == pytest.approx(1e4)
    assert np.isfinite(gradient(core, "ce", pixel)).all()


def test_23_a_beta_above_1_weighs_the_pixels_that_are_on(core: Core) -> None:
    for label, factor in ((1, 3.0), (0, 1.0)):
        pixel = one_pixel(0.3, label)
        weighed = value(core, "weighted_cross_entropy", pixel, beta=3.0)
        assert weighed == pytest.approx(factor * value(core, "bce", pixel))


def test_24_the_balance_is_that_of_all_pixels(core: Core) -> None:
    target = np.array([[1, 0, 0, 0]])
    inputs = {"logits": T1["logits"], "target": target}
    p = 1 / (1 + np.exp(-T1["logits"][0, 0]))
    want = -(0.75 * np.log(p[0]) + 0.25 * np.log(1 - p[1:]).sum()) / 4
    assert value(core, "balanced_cross_entropy", inputs) == pytest.approx(want)


def test_26_the_exponent_of_focal_tversky_is_below_1(core: Core) -> None:
    loss = value(core, "tversky", T1, **UNSMOOTHED)
    assert value(core, "focal_tversky", T1, **UNSMOOTHED) == pytest.approx(loss**0.75)


def test_27_sensitivity_specificity_is_a_loss(core: Core) -> None:
    right = {"logits": np.array([[[40.0, -40.0]]]), "target": np.array([[1, 0]])}
    wrong = {"logits": np.array([[[-40.0, 40.0]]]), "target": np.array([[1, 0]])}
    assert value(core, "sensitivity_specificity", right) == pytest.approx(0.0, abs=1e-4)
    assert value(core, "sensitivity_specificity", wrong) == pytest.approx(1.0, abs=1e-4)


def test_29_combo_punishes_errors_on_the_background(core: Core) -> None:
    assert value(core, "combo", T1) == pytest.approx(0.230527, abs=6e-7)
    assert value(core, "combo", T1) - 0.5 != pytest.approx(-0.327228, abs=1e-3)
    assert (gradient(core, "combo", T1)[0, 2:] > 0).all()


def test_31_generalized_dice_is_not_plain_dice(core: Core) -> None:
    inputs = {**T1_TWO_CLASSES, "target": np.array([[1, 0, 0, 0]], np.uint8)}
    plain = value(core, "dice", inputs, **UNSMOOTHED)
    assert value(core, "generalized_dice", inputs, **UNSMOOTHED) != pytest.approx(plain, abs=1e-2)


def test_32_cross_entropy_of_a_softmax_has_no_term_of_the_other_classes(core: Core) -> None:
    pixel = {"logits": np.log(np.array([[[0.7], [0.2], [0.1]]])), "target": np.array([[0]])}
    assert value(core, "ce", pixel) == pytest.approx(-np.log(0.7))


def test_37_losses_of_jaccard_and_dice_are_related_as_losses_not_as_scores(core: Core) -> None:
    dice, jaccard = (value(core, name, T1, **UNSMOOTHED) for name in ("dice", "jaccard"))
    assert jaccard == pytest.approx(2 * dice / (1 + dice))
    assert jaccard != pytest.approx(dice / (2 - dice), abs=1e-2)
