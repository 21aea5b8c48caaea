"""Numbers that were worked out by hand: two toys of four pixels, and single pixels."""

from typing import Any

import numpy as np
import pytest

from jobs import Core, make_job
from lossd.losses import LOSSES

T1_PROBABILITIES = np.array([0.8, 0.4, 0.3, 0.1])
T1 = {
    "logits": np.log(T1_PROBABILITIES / (1 - T1_PROBABILITIES)).reshape(1, 1, 4),
    "target": np.array([[1, 1, 0, 0]], np.uint8),
}
T1_TWO_CLASSES = {
    "logits": np.log(np.stack([1 - T1_PROBABILITIES, T1_PROBABILITIES]))[None],
    "target": np.array([[1, 1, 0, 0]], np.uint8),
}
T2_ROWS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.4, 0.5, 0.1]])
T2 = {"logits": np.log(T2_ROWS).T[None].copy(), "target": np.array([[0, 1, 2, 0]], np.uint8)}
UNSMOOTHED = {"smooth_nr": 0.0, "smooth_dr": 0.0}
SMOOTH_1 = {"smooth_nr": 1.0, "smooth_dr": 1.0}

TVERSKY_TURNED = {**UNSMOOTHED, "fp_weight": 0.7, "fn_weight": 0.3}

BINARY: list[tuple[str, dict[str, Any], float, list[float]]] = [
    ("binary_cross_entropy", {}, 0.400367, [-0.05, -0.15, 0.075, 0.025]),
    ("binary_cross_entropy", {"pos_weight": 2.0}, 0.685226, [-0.1, -0.3, 0.075, 0.025]),
    ("weighted_cross_entropy", {"beta": 2.0}, 0.685226, [-0.1, -0.3, 0.075, 0.025]),
    ("balanced_cross_entropy", {}, 0.200184, [-0.025, -0.075, 0.0375, 0.0125]),
    ("weighted_cross_entropy", {}, 0.200184, [-0.025, -0.075, 0.0375, 0.0125]),
    ("focal", {"alpha": 0.25}, 0.027391, [-0.001393, -0.029993, 0.013489, 0.000543]),
    ("focal", {}, 0.092986, [-0.005570, -0.119973, 0.017985, 0.000724]),
    ("dice", UNSMOOTHED, 0.333333, [-0.059259, -0.088889, 0.038889, 0.016667]),
    ("dice", SMOOTH_1, 0.260870, [-0.043856, -0.065784, 0.033743, 0.014461]),
    ("dice_squared", UNSMOOTHED, 0.172414, [-0.037289, -0.110725, 0.035957, 0.005137]),
    ("jaccard", UNSMOOTHED, 0.5, [-0.066667, -0.1, 0.04375, 0.01875]),
    ("tversky", UNSMOOTHED, 0.361702, [-0.068809, -0.103214, 0.021390, 0.009167]),
    ("tversky", TVERSKY_TURNED, 0.302326, [-0.047593, -0.071390, 0.059627, 0.025554]),
    ("focal_tversky", UNSMOOTHED, 0.466405, [-0.066546, -0.099819, 0.020686, 0.008865]),
    ("log_dice", UNSMOOTHED, 0.405465, [-0.088889, -0.133333, 0.058333, 0.025]),
    ("log_cosh_dice", UNSMOOTHED, 0.054556, [-0.019053, -0.028579, 0.012503, 0.005359]),
    ("sensitivity_specificity", UNSMOOTHED, 0.0575, [-0.0016, -0.0072, 0.05985, 0.00855]),
    (
        "sensitivity_specificity",
        {**UNSMOOTHED, "sensitivity_weight": 0.5},
        0.125,
        [-0.016, -0.072, 0.0315, 0.0045],
    ),
    ("combo", {}, 0.230527, [-0.034428, -0.070392, 0.035621, 0.013481]),
    ("lovasz_softmax", {}, 0.416667, [-0.053333, -0.12, 0.035, 0.0]),
    ("lovasz_hinge", {}, 0.728183, [0.0, -0.5, 0.166667, 0.0]),
]

BINARY_VALUES: list[tuple[str, dict[str, Any], float]] = [
    ("matthews", {}, 0.591752),
    ("poly1_cross_entropy", {}, 0.700367),
    ("topk_cross_entropy", {"fraction": 0.5}, 0.636483),
    ("exponential_logarithmic", {}, 0.745556),
    ("exponential_logarithmic", {"ce_weight": 0.0, "dice_weight": 1.0}, 0.679612),
    ("exponential_logarithmic", {"ce_weight": 1.0, "dice_weight": 0.0}, 1.009335),
]

TWO_CLASSES: list[tuple[str, dict[str, Any], float]] = [
    ("generalized_dice", UNSMOOTHED, 0.3),
    ("exponential_logarithmic", {}, 0.745556),
    ("dice_focal", {"reduction_over_classes": "sum"}, 0.699047),
    ("dice_focal", {"reduction_over_classes": "sum", "focal_weight": 0.0}, 0.606061),
    ("lovasz_softmax", {}, 0.379167),
]

MULTICLASS: list[tuple[str, dict[str, Any], float]] = [
    ("cross_entropy", {}, 0.547314),
    ("focal", {}, 0.136044),
    ("dice", UNSMOOTHED, 0.408652),
    ("dice", {**UNSMOOTHED, "average": "micro"}, 0.4),
    ("jaccard", UNSMOOTHED, 0.579041),
    ("tversky", UNSMOOTHED, 0.406176),
    ("generalized_dice", UNSMOOTHED, 0.422018),
    ("lovasz_softmax", {}, 0.438889),
]


@pytest.mark.parametrize(("loss", "params", "value", "gradient"), BINARY)
def test_four_binary_pixels(
    core: Core, loss: str, params: dict[str, Any], value: float, gradient: list[float]
) -> None:
    job = make_job({"name": loss, "params": params}, T1, gradient="total")
    tensors = core.tensors(job)
    assert tensors["total"][0] == pytest.approx(value, abs=6e-7)
    np.testing.assert_allclose(tensors["gradient/logits"][0, 0], gradient, atol=6e-7)


@pytest.mark.parametrize(("loss", "params", "value"), BINARY_VALUES)
def test_values_of_four_binary_pixels(
    core: Core, loss: str, params: dict[str, Any], value: float
) -> None:
    tensors = core.tensors(make_job({"name": loss, "params": params}, T1))
    assert tensors["total"][0] == pytest.approx(value, abs=6e-7)


@pytest.mark.parametrize(("loss", "params", "value"), TWO_CLASSES)
def test_four_pixels_of_two_classes(
    core: Core, loss: str, params: dict[str, Any], value: float
) -> None:
    tensors = core.tensors(make_job({"name": loss, "params": params}, T1_TWO_CLASSES))
    assert tensors["total"][0] == pytest.approx(value, abs=6e-7)


@pytest.mark.parametrize(("loss", "params", "value"), MULTICLASS)
def test_four_pixels_of_three_classes(
    core: Core, loss: str, params: dict[str, Any], value: float
) -> None:
    tensors = core.tensors(make_job({"name": loss, "params": params}, T2))
    assert tensors["total"][0] == pytest.approx(value, abs=6e-7)


@pytest.mark.parametrize(
    ("loss", "per_class"),
    [
        ("dice", [0.352941, 0.428571, 0.444444]),
        ("jaccard", [0.521739, 0.6, 0.615385]),
        ("lovasz_softmax", [0.45, 0.366667, 0.5]),
    ],
)
def test_classes_of_the_three_class_toy(core: Core, loss: str, per_class: list[float]) -> None:
    params = UNSMOOTHED if "smooth_nr" in LOSSES[loss].parameters.model_fields else {}
    job = make_job({"name": loss, "params": params}, T2, per_class=True)
    np.testing.assert_allclose(core.tensors(job)[f"per_class/{loss}"][0], per_class, atol=6e-7)


def test_one_pixel_of_cross_entropy(core: Core) -> None:
    inputs = {"logits": np.array([[[1.0], [2.0], [3.0]]]), "target": np.array([[2]])}
    tensors = core.tensors(make_job("ce", inputs, gradient="total"))
    assert tensors["total"][0] == pytest.approx(0.407606, abs=6e-7)
    gradient = tensors["gradient/logits"][0, :, 0]
    np.testing.assert_allclose(gradient, [0.090031, 0.244728, -0.334759], atol=6e-7)
    smoothed = make_job({"name": "ce", "params": {"label_smoothing": 0.1}}, inputs)
    assert core.tensors(smoothed)["total"][0] == pytest.approx(0.507606, abs=6e-7)


def test_class_weights_divide_by_pixels_or_by_weights(core: Core) -> None:
    row = np.array([1.0, 2.0, 3.0])
    inputs = {"logits": np.stack([row, row], 1)[None], "target": np.array([[2, 0]])}
    for normalize, value in (("weights", 0.907606), ("pixels", 1.815212)):
        params = {"class_weights": [1.0, 2.0, 3.0], "normalize": normalize}
        tensors = core.tensors(make_job({"name": "ce", "params": params}, inputs))
        assert tensors["total"][0] == pytest.approx(value, abs=6e-7)


def test_identities_between_losses(core: Core) -> None:
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        "logits": rng.normal(0, 2, (3, 4, 11, 9)),
        "target": rng.integers(0, 4, (3, 11, 9), dtype=np.uint8),
    }
    half = {"fp_weight": 0.5, "fn_weight": 0.5}
    rows: list[Any] = [
        {"name": "dice", "params": UNSMOOTHED},
        {"name": "jaccard", "params": UNSMOOTHED},
        {"name": "tversky", "params": {**UNSMOOTHED, **half}, "label": "half"},
        {
            "name": "tversky",
            "params": {**UNSMOOTHED, "fp_weight": 1.0, "fn_weight": 1.0},
            "label": "one",
        },
        {"name": "focal", "params": {"gamma": 0.0}},
        "cross_entropy",
        {"name": "dice", "params": {**UNSMOOTHED, "average": "micro"}, "label": "micro"},
        "dice_ce",
        {"name": "dice", "label": "smooth"},
    ]
    found = {
        name.removeprefix("loss/"): value
        for name, value in core.tensors(make_job(rows, inputs, per_class=True)).items()
    }
    np.testing.assert_allclose(found["half"], found["dice"], rtol=1e-13)
    np.testing.assert_allclose(found["one"], found["jaccard"], rtol=1e-13)
    np.testing.assert_allclose(found["focal"], found["cross_entropy"], rtol=1e-13)
    np.testing.assert_allclose(
        found["dice_ce"], found["smooth"] + found["cross_entropy"], rtol=1e-13
    )
    dice, jaccard = found["per_class/dice"], found["per_class/jaccard"]
    np.testing.assert_allclose(jaccard, 2 * dice / (1 + dice), rtol=1e-12)
    shifted = np.exp(inputs["logits"] - inputs["logits"].max(1, keepdims=True))
    probability = shifted / shifted.sum(1, keepdims=True)
    own = np.take_along_axis(probability, inputs["target"][:, None].astype(int), 1)
    np.testing.assert_allclose(found["micro"], 1 - own.mean((1, 2, 3)), rtol=1e-12)


def values(core: Core, rows: list[Any], inputs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Values of rows by label."""
    tensors = core.tensors(make_job(rows, inputs, **fields))
    return {name.removeprefix("loss/"): value for name, value in tensors.items() if "loss/" in name}


def test_three_classes_of_one_weight_in_micro_and_macro(core: Core) -> None:
    """The toy in which weights that cancel would give the micro or the macro Dice."""
    inputs = {**T1_TWO_CLASSES, "target": np.array([[1, 0, 0, 0]], np.uint8)}
    rows = [
        {"name": "generalized_dice", "params": UNSMOOTHED},
        {"name": "dice", "params": {**UNSMOOTHED, "average": "micro"}, "label": "micro"},
        {"name": "dice", "params": UNSMOOTHED, "label": "macro"},
        {
            "name": "generalized_dice",
            "params": {**UNSMOOTHED, "weighting": "uniform"},
            "label": "uniform",
        },
    ]
    found = values(core, rows, inputs)
    assert found["generalized_dice"][0] == pytest.approx(0.347222, abs=6e-7)
    assert found["micro"][0] == pytest.approx(0.25, abs=6e-7)
    assert found["macro"][0] == pytest.approx(0.2849, abs=5e-5)
    assert found["uniform"][0] == pytest.approx(found["micro"][0], rel=1e-12)


def test_rare_labels_weigh_more_as_in_the_hand_checked_rows(core: Core) -> None:
    inputs = {**T1_TWO_CLASSES, "target": np.array([[1, 0, 0, 0]], np.uint8)}
    for normalize, value in (("pixels", 0.102643), ("weights", 0.273715)):
        row = {"name": "weighted_cross_entropy", "params": {"normalize": normalize}}
        assert values(core, [row], inputs)["weighted_cross_entropy"][0] == pytest.approx(
            value, abs=6e-7
        )


def test_identities_of_pixel_losses(core: Core) -> None:
    rng = np.random.default_rng(1)
    inputs: dict[str, Any] = {
        "logits": rng.normal(0, 2, (2, 1, 9, 8)),
        "target": rng.integers(0, 2, (2, 9, 8), dtype=np.uint8),
    }
    rows = [
        "bce",
        {"name": "focal", "params": {"gamma": 0.0, "alpha": 0.5}, "label": "half"},
        {"name": "poly1_cross_entropy", "params": {"epsilon": 0.0}, "label": "poly"},
        {"name": "topk_cross_entropy", "params": {"fraction": 1.0}, "label": "all"},
        {"name": "combo", "params": {"alpha": 1.0}, "label": "combo"},
        {"name": "combo", "params": {"alpha": 0.0}, "label": "overlap"},
        {"name": "dice", "params": SMOOTH_1, "label": "dice"},
        {"name": "bce_dice", "params": SMOOTH_1},
        {"name": "focal_tversky", "params": {"exponent": 1.0}, "label": "flat"},
        "tversky",
        "kl_divergence",
        {"name": "exponential_logarithmic", "params": {"gamma_dice": 1.0, "ce_weight": 0.0}},
    ]
    found = values(core, rows, inputs)

    def same(name: str, want: Any) -> None:
        np.testing.assert_allclose(found[name], want, rtol=1e-12)

    same("half", found["bce"] / 2)
    same("poly", found["bce"])
    same("all", found["bce"])
    same("kl_divergence", found["bce"])
    same("combo", found["bce"] / 2)
    same("overlap", found["dice"])
    same("bce_dice", found["bce"] + found["dice"])
    same("flat", found["tversky"])


def test_divergences_vanish_at_the_target_and_soft_dice_does_not(core: Core) -> None:
    target = np.random.default_rng(2).dirichlet(np.ones(3), (1, 40)).transpose(0, 2, 1)
    inputs = {"logits": np.log(target), "target": target}
    soft = {**UNSMOOTHED, "soft_label": True}
    rows = [
        "kl_divergence",
        "js_divergence",
        {"name": "dice", "params": UNSMOOTHED},
        {"name": "dice", "params": soft, "label": "soft_dice"},
        {"name": "jaccard", "params": soft},
        {"name": "dice_squared", "params": UNSMOOTHED},
    ]
    found = values(core, rows, inputs)
    for name in ("kl_divergence", "js_divergence", "soft_dice", "jaccard", "dice_squared"):
        assert found[name][0] == pytest.approx(0.0, abs=1e-14)
    assert found["dice"][0] > 0.1
    half = {"logits": np.zeros((1, 1, 4)), "target": np.full((1, 1, 4), 0.5)}
    found = values(core, rows[2:], half)
    assert found["dice"][0] == pytest.approx(0.5)
    assert found["soft_dice"][0] == pytest.approx(0.0, abs=1e-15)


def test_the_jensen_shannon_divergence_ends_at_ln_2(core: Core) -> None:
    inputs = {"logits": np.array([[[60.0], [-60.0]]]), "target": np.array([[1]])}
    found = values(core, ["js_divergence"], inputs)
    assert found["js_divergence"][0] == pytest.approx(np.log(2), abs=1e-12)


def test_hard_right_and_hard_wrong_masks_are_the_ends_of_the_range(core: Core) -> None:
    target = np.random.default_rng(3).integers(0, 2, (1, 60), dtype=np.uint8)
    logits = np.where(target, 80.0, -80.0)[:, None]
    rows = [
        "matthews",
        *({"name": name, "params": UNSMOOTHED} for name in ("dice", "sensitivity_specificity")),
    ]
    right = values(core, rows, {"logits": logits, "target": target})
    wrong = values(core, rows, {"logits": -logits, "target": target})
    for name, worst in (("matthews", 2.0), ("dice", 1.0), ("sensitivity_specificity", 1.0)):
        assert right[name][0] == pytest.approx(0.0, abs=1e-12)
        assert wrong[name][0] == pytest.approx(worst, abs=1e-5)
    flat = values(core, ["matthews"], {"logits": np.zeros((1, 1, 60)), "target": target})
    assert flat["matthews"][0] == pytest.approx(1.0)


def test_a_mask_of_16384_by_16384_pixels_is_summed_right(core: Core) -> None:
    side = 16384
    target = np.zeros((1, side, side), np.uint8)
    target[:, :, ::7] = 1
    inputs = {"logits": np.full((1, 1, side, side), -3.0, np.float16), "target": target}
    on = len(range(0, side, 7)) * side
    p, pixels = 1 / (1 + np.exp(3.0)), side * side
    found = values(core, ["dice", "bce"], inputs)
    dice = 1 - (2 * p * on + 1e-5) / (p * pixels + on + 1e-5)
    entropy = -(on * np.log(p) + (pixels - on) * np.log1p(-p)) / pixels
    assert found["dice"][0] == pytest.approx(dice, rel=2e-7)
    assert found["bce"][0] == pytest.approx(entropy, rel=2e-7)
