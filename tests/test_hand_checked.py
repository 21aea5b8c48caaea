"""Numbers that were worked out by hand: two toys of four pixels, and single pixels."""

from typing import Any

import numpy as np
import pytest

from jobs import Core, make_job

T1_PROBABILITIES = np.array([0.8, 0.4, 0.3, 0.1])
T1 = {
    "logits": np.log(T1_PROBABILITIES / (1 - T1_PROBABILITIES)).reshape(1, 1, 4),
    "target": np.array([[1, 1, 0, 0]], np.uint8),
}
T2_ROWS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.4, 0.5, 0.1]])
T2 = {"logits": np.log(T2_ROWS).T[None].copy(), "target": np.array([[0, 1, 2, 0]], np.uint8)}
UNSMOOTHED = {"smooth_nr": 0.0, "smooth_dr": 0.0}
SMOOTH_1 = {"smooth_nr": 1.0, "smooth_dr": 1.0}

BINARY: list[tuple[str, dict[str, Any], float, list[float]]] = [
    ("binary_cross_entropy", {}, 0.400367, [-0.05, -0.15, 0.075, 0.025]),
    ("binary_cross_entropy", {"pos_weight": 2.0}, 0.685226, [-0.1, -0.3, 0.075, 0.025]),
    ("focal", {"alpha": 0.25}, 0.027391, [-0.001393, -0.029993, 0.013489, 0.000543]),
    ("focal", {}, 0.092986, [-0.005570, -0.119973, 0.017985, 0.000724]),
    ("dice", UNSMOOTHED, 0.333333, [-0.059259, -0.088889, 0.038889, 0.016667]),
    ("dice", SMOOTH_1, 0.260870, [-0.043856, -0.065784, 0.033743, 0.014461]),
    ("jaccard", UNSMOOTHED, 0.5, [-0.066667, -0.1, 0.04375, 0.01875]),
    ("tversky", UNSMOOTHED, 0.361702, [-0.068809, -0.103214, 0.021390, 0.009167]),
    (
        "tversky",
        {**UNSMOOTHED, "fp_weight": 0.7, "fn_weight": 0.3},
        0.302326,
        [-0.047593, -0.071390, 0.059627, 0.025554],
    ),
]

MULTICLASS: list[tuple[str, dict[str, Any], float]] = [
    ("cross_entropy", {}, 0.547314),
    ("focal", {}, 0.136044),
    ("dice", UNSMOOTHED, 0.408652),
    ("dice", {**UNSMOOTHED, "average": "micro"}, 0.4),
    ("jaccard", UNSMOOTHED, 0.579041),
    ("tversky", UNSMOOTHED, 0.406176),
]


@pytest.mark.parametrize(("loss", "params", "value", "gradient"), BINARY)
def test_four_binary_pixels(
    core: Core, loss: str, params: dict[str, Any], value: float, gradient: list[float]
) -> None:
    job = make_job({"name": loss, "params": params}, T1, gradient="total")
    tensors = core.tensors(job)
    assert tensors["total"][0] == pytest.approx(value, abs=6e-7)
    np.testing.assert_allclose(tensors["gradient/logits"][0, 0], gradient, atol=6e-7)


@pytest.mark.parametrize(("loss", "params", "value"), MULTICLASS)
def test_four_pixels_of_three_classes(
    core: Core, loss: str, params: dict[str, Any], value: float
) -> None:
    tensors = core.tensors(make_job({"name": loss, "params": params}, T2))
    assert tensors["total"][0] == pytest.approx(value, abs=6e-7)


@pytest.mark.parametrize(
    ("loss", "per_class"),
    [("dice", [0.352941, 0.428571, 0.444444]), ("jaccard", [0.521739, 0.6, 0.615385])],
)
def test_classes_of_the_three_class_toy(core: Core, loss: str, per_class: list[float]) -> None:
    job = make_job({"name": loss, "params": UNSMOOTHED}, T2, per_class=True)
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


def test_seed_bugs_are_not_repeated(core: Core) -> None:
    """Smoothing inside the factor 2 gives .043478; a detached focal factor gives -.054."""
    tensors = core.tensors(make_job({"name": "dice", "params": SMOOTH_1}, T1))
    assert tensors["total"][0] != pytest.approx(0.043478, abs=1e-3)
    gradient = core.tensors(make_job("focal", T1, gradient="total"))["gradient/logits"]
    assert gradient[0, 0, 1] != pytest.approx(-0.054, abs=1e-2)
