"""Losses that look at a pixel's neighbours, called directly on samples made by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossd.losses import LOSSES
from lossd.losses.window import hausdorff_erosion
from lossd_client.errors import InvalidParameterError
from mask_samples import answer, class_of, cross_entropy, one_hot, random_sample, value_of
from oracles.whole import Whole
from oracles.window import ORACLE

NAMES = ["hausdorff_erosion", "structural_similarity", "soft_cldice"]
TASKS = ["binary", "multiclass", "multilabel"]


def grid(*rows: str) -> Tensor:
    """One channel of a mask drawn with dots and crosses."""
    return torch.tensor([[[float(one == "x") for one in row] for row in rows]]).double()


# -- hausdorff_erosion ---------------------------------------------------------------------------


def test_erosion_of_a_line_by_hand() -> None:
    """Errors 1, 1, 1 become 1/6, 1/2, 1/6 and are stretched to 1/3, 1, 1/3."""
    target = torch.zeros(1, 5).double()
    probability = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]]).double()
    terms = hausdorff_erosion(class_of(probability, target, activated=True), iterations=1)
    np.testing.assert_allclose(terms, [0, 1 / 3, 1, 1 / 3, 0], rtol=1e-14)
    # The next mean is 5/9 in the middle and 4/9 beside it: alone there, it is stretched to 1.
    terms = hausdorff_erosion(class_of(probability, target, activated=True), iterations=2)
    np.testing.assert_allclose(terms, [0, 1 / 3, 1 + 4, 1 / 3, 0], rtol=1e-14)


def test_the_power_weighs_the_number_of_the_erosion() -> None:
    wrong = grid(*["." * 9] * 2, *["..xxxxx.."] * 5, *["." * 9] * 2)
    scores = 100 * wrong - 50
    each = []
    for number in (1, 2, 3):
        below = value_of("hausdorff_erosion", scores, 0 * wrong, iterations=number, alpha=0.0)
        each.append(float(below.value))
    steps = [each[0], each[1] - each[0], each[2] - each[1]]
    cubed = value_of("hausdorff_erosion", scores, 0 * wrong, iterations=3, alpha=3.0)
    assert min(steps) > 0
    want = steps[0] + 8 * steps[1] + 27 * steps[2]
    assert float(cubed.value) == pytest.approx(want, rel=1e-13)


@pytest.mark.parametrize(("axes", "survives"), [(1, True), (2, True), (3, False)])
def test_a_thin_line_fills_enough_of_the_cross_in_two_dimensions(
    axes: int, *, survives: bool
) -> None:
    wrong = torch.zeros(1, *(7,) * axes).double()
    wrong[(0, *(3,) * (axes - 1))] = 1.0
    found = answer("hausdorff_erosion", 100 * wrong - 50, 0 * wrong)
    assert (found.value > 0) == survives


def test_a_single_wrong_pixel_is_not_seen() -> None:
    wrong = grid(".....", ".....", "..x..", ".....")
    assert answer("hausdorff_erosion", 100 * wrong - 50, 0 * wrong).value == 0.0


def test_thicker_errors_cost_more() -> None:
    values = []
    for thickness in (3, 5, 7):
        wrong = torch.zeros(1, 15, 15).double()
        wrong[0, 2 : 2 + thickness, 2:13] = 1.0
        values.append(answer("hausdorff_erosion", 100 * wrong - 50, 0 * wrong).value)
    assert 0 < values[0] < values[1] < values[2]


def test_erosion_of_the_target_itself_is_zero() -> None:
    target = grid("..xx..", ".xxxx.", "..xx..")
    found = answer("hausdorff_erosion", 1e4 * (2 * target - 1), target)
    assert found.value == 0.0
    assert not found.gradient.any()


@pytest.mark.parametrize("shape", [(2,), (2, 2)])
def test_a_constant_eroded_map_stays_as_it_is(shape: tuple[int, ...]) -> None:
    """0/0 would be the range of a map whose pixels all have the same neighbours."""
    target = torch.zeros(1, *shape).double()
    found = answer("hausdorff_erosion", torch.full_like(target, 5.0), target, iterations=1)
    neighbours = {1: 2 / 3, 2: 3 / 5}[len(shape)]
    squared = (1 / (1 + math.exp(-5.0))) ** 2
    assert found.value == pytest.approx(neighbours * squared - 0.5, rel=1e-13)
    assert bool((found.gradient > 0).all())


def test_rounding_is_no_range_to_stretch() -> None:
    """1 - p and p of the opposite logit differ in the last bit, which is no error."""
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]).double()
    scores = 2.562 * (1 - 2 * target)
    found = answer("hausdorff_erosion", scores, target, iterations=1)
    squared = (1 / (1 + math.exp(-2.562))) ** 2
    assert found.value == pytest.approx(3 / 5 * squared - 0.5, rel=1e-12)
    assert float(found.gradient.abs().max()) < 1.0


def test_a_surviving_error_counts_fully_however_faint() -> None:
    """The rescaling is over the image, so a single survivor becomes 1 without a derivative."""
    wrong = grid(".....", "..x..", ".xxx.", "..x..", ".....")
    values = [
        answer("hausdorff_erosion", scale * (2 * wrong - 1), 0 * wrong, iterations=1)
        for scale in (2.0, 3.0)
    ]
    assert values[0].value == values[1].value == 1 / 25
    assert float(values[0].gradient.abs().max()) < 1e-15


def test_erosion_averages_over_all_classes_and_has_a_map() -> None:
    data = random_sample("multiclass", 2, (9, 8))
    data["scores"] = 4 * data["scores"]
    found = value_of("hausdorff_erosion", **data)
    assert found.per_class is not None
    assert found.pixel_map is not None
    assert float(found.value) == pytest.approx(float(found.per_class.mean()), rel=1e-13)
    mean = float(found.pixel_map[data["valid"]].mean())
    assert mean == pytest.approx(float(found.value), rel=1e-13)
    assert float(found.value) > 0


# -- structural_similarity -----------------------------------------------------------------------

BLOCK = grid("....", ".xx.", ".xx.", "....")


def test_similarity_of_an_affine_prediction() -> None:
    """p = 0.8 in the block and 0.2 around it: the same structure with less contrast."""
    probability = 0.6 * BLOCK + 0.2
    scores = probability.logit()
    bce = -math.log(0.8)
    assert answer("structural_similarity", scores, BLOCK).value == pytest.approx(0.114204, abs=5e-7)
    alone = answer("structural_similarity", scores, BLOCK, weight=0.0).value
    assert alone == pytest.approx(0.005265, abs=5e-7)
    assert answer("structural_similarity", scores, BLOCK, weight=1.0).value == pytest.approx(
        bce, rel=1e-14
    )


def test_similarity_of_a_wrong_corner() -> None:
    probability = 0.6 * BLOCK + 0.2
    probability[0, 0, 0] = 0.9
    scores = probability.logit()
    assert answer("structural_similarity", scores, BLOCK).value == pytest.approx(0.744083, abs=5e-7)
    alone = answer("structural_similarity", scores, BLOCK, weight=0.0).value
    assert alone == pytest.approx(1.135057, abs=5e-7)


def test_the_local_part_is_divided_by_the_pixels_that_differ() -> None:
    """Four around the corner; nothing else changes with the size of the image."""
    probability = 0.6 * BLOCK + 0.2
    probability[0, 0, 0] = 0.9
    wide = torch.nn.functional.pad(probability, (0, 4, 0, 4), value=0.2)
    target = torch.nn.functional.pad(BLOCK, (0, 4, 0, 4))
    small = answer("structural_similarity", probability.logit(), BLOCK, weight=0.0)
    large = answer("structural_similarity", wide.logit(), target, weight=0.0)
    assert large.value == pytest.approx(small.value, rel=1e-12)


def test_the_same_structure_costs_its_share_of_cross_entropy() -> None:
    target = random_sample("binary", 1, (8, 8))["target"]
    scores = (target.clamp(1e-7, 1 - 1e-7)).logit()
    found = answer("structural_similarity", scores, target, weight=0.3)
    assert found.value == pytest.approx(0.3 * cross_entropy(scores, target), rel=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("on", [0.0, 1.0])
def test_constant_masks_have_no_structure_to_differ_in(on: float, beta: float) -> None:
    """A share of a largest difference that is rounding would select everything."""
    target = torch.full((1, 7, 5), on).double()
    scores = torch.full_like(target, 0.3)
    found = answer("structural_similarity", scores, target, beta=beta, window=5)
    assert found.value == pytest.approx(0.5 * cross_entropy(scores, target), rel=1e-14)
    np.testing.assert_allclose(found.gradient, 0.5 * (scores.sigmoid() - on) / 35, rtol=1e-13)


def test_nearly_constant_windows_have_a_finite_derivative() -> None:
    """The root of a variance that is rounding has an infinite slope."""
    random = torch.Generator().manual_seed(3)
    target = torch.zeros(1, 6, 6).double()
    target[0, 3:] = 1.0
    for noise in (1e-17, 1e-15, 1e-13, 1e-11, 1e-8):
        probability = 0.4 + noise * torch.rand(1, 6, 6, generator=random, dtype=torch.float64)
        found = answer("structural_similarity", probability, target, activated=True)
        flat = answer("structural_similarity", 0 * probability + 0.4, target, activated=True)
        assert found.value == pytest.approx(flat.value, rel=1e-5)
        assert bool(found.gradient.isfinite().all())
        if noise < 1e-12:
            np.testing.assert_allclose(found.gradient, flat.gradient, rtol=1e-9)


def test_small_deviations_keep_their_digits() -> None:
    """As a mean of squares less the squared mean, the variance would be rounding here."""
    step = 1e-6
    values = (0.5 + step * torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]])).double()
    target = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0, 0.0]]).double()
    leaf = values.clone().requires_grad_()
    found = value_of("structural_similarity", leaf.logit(), target).value
    live = values.logit().requires_grad_()
    every = torch.ones(6, dtype=torch.bool)
    want = ORACLE["structural_similarity"](
        Whole("binary", live, target, every, every.double(), (1.0,)), {}
    )
    assert float(found.detach()) == pytest.approx(float(want.detach()), rel=1e-13)


def test_an_image_smaller_than_the_window_is_mirrored_again_and_again() -> None:
    """Two pixels, mirrored without end, are a line that alternates."""
    scores, target = torch.tensor([[0.7, -1.2]]).double(), torch.tensor([[1.0, 0.0]]).double()
    small = answer("structural_similarity", scores, target, window=9)
    long = answer("structural_similarity", scores.repeat(1, 8), target.repeat(1, 8), window=9)
    assert small.value == pytest.approx(long.value, rel=1e-14)
    apart = cross_entropy(scores, target)
    assert small.value > 0.5 * apart


def test_a_window_of_one_pixel_has_no_structure() -> None:
    data = random_sample("binary", 6)
    scores, target = data["scores"], data["target"]
    found = answer("structural_similarity", scores, target, window=1)
    assert found.value == pytest.approx(0.5 * cross_entropy(scores, target), rel=1e-14)


def test_each_class_is_compared_with_the_rest() -> None:
    data = random_sample("multiclass", 7)
    found = value_of("structural_similarity", **data)
    assert found.per_class is not None
    scores = data["scores"]
    for c in range(3):
        others = torch.cat([scores[:c], scores[c + 1 :]]).logsumexp(0)
        alone = value_of(
            "structural_similarity",
            (scores[c] - others)[None],
            data["target"][c][None],
            valid=data["valid"],
        )
        assert float(found.per_class[c]) == pytest.approx(float(alone.value), rel=1e-12)


# -- soft_cldice ---------------------------------------------------------------------------------

EMPTY_LINE = "......."
LINE = grid(*[EMPTY_LINE] * 3, "xxxxxxx", *[EMPTY_LINE] * 3)


def certain(mask: Tensor) -> Tensor:
    """Logits that predict a mask."""
    return 1e4 * (2 * mask - 1)


def test_a_line_with_a_missing_end() -> None:
    """Its Dice loss is 0.076923."""
    gap = grid(*[EMPTY_LINE] * 3, "xxxxxx.", *[EMPTY_LINE] * 3)
    found = answer("soft_cldice", certain(gap), LINE)
    assert found.value == pytest.approx(1 / 15, rel=1e-14)


def test_thickness_does_not_matter() -> None:
    """A thick line and its centre: the Dice loss would be 0.5."""
    thick = grid(*[EMPTY_LINE] * 2, *["xxxxxxx"] * 3, *[EMPTY_LINE] * 2)
    assert answer("soft_cldice", certain(thick), LINE).value == 0.0
    assert answer("soft_cldice", certain(LINE), thick).value == 0.0


def test_a_gap_costs_and_a_full_stop_costs_everything() -> None:
    gap = grid(*[EMPTY_LINE] * 3, "xxx.xxx", *[EMPTY_LINE] * 3)
    elsewhere = grid(*[EMPTY_LINE] * 6, "xxxxxxx")
    assert answer("soft_cldice", certain(LINE), LINE).value == 0.0
    assert answer("soft_cldice", certain(gap), LINE).value == pytest.approx(1 / 15, rel=1e-14)
    found = answer("soft_cldice", certain(elsewhere), LINE, smooth=0.0)
    assert found.value == 1.0


def test_smoothing_enters_both_fractions_and_not_their_mean() -> None:
    """With it in the harmonic mean too, no line would cost what its fractions say."""
    gap = grid(*[EMPTY_LINE] * 3, "xxxxx..", *[EMPTY_LINE] * 3)
    for smooth in (0.0, 0.5, 3.0):
        sensitivity = (5 + smooth) / (7 + smooth)
        found = answer("soft_cldice", certain(gap), LINE, smooth=smooth)
        want = 1 - 2 * sensitivity / (1 + sensitivity)
        assert found.value == pytest.approx(want, rel=1e-13)


def test_a_loss_of_one_channel_is_not_zero() -> None:
    data = random_sample("binary", 8)
    found = answer("soft_cldice", data["scores"], data["target"])
    assert found.value > 0.1
    assert bool(found.gradient.any())


@pytest.mark.parametrize("certainty", [10.0, 300.0, 700.0, 740.0])
def test_masks_that_hardly_meet_have_a_finite_gradient(certainty: float) -> None:
    elsewhere = grid(*[EMPTY_LINE] * 6, "xxxxxxx")
    found = answer("soft_cldice", certainty * (2 * elsewhere - 1), LINE, smooth=0.0)
    assert found.value == pytest.approx(1.0, abs=1e-4)
    assert bool(found.gradient.isfinite().all())


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_an_empty_skeleton_counts_as_covered(smooth: float) -> None:
    nothing = torch.zeros_like(LINE)
    assert answer("soft_cldice", certain(nothing), nothing, smooth=smooth).value == 0.0
    missed = answer("soft_cldice", certain(nothing), LINE, smooth=smooth).value
    sensitivity = smooth / (7 + smooth)
    assert missed == pytest.approx(1 - 2 * sensitivity / (1 + sensitivity), rel=1e-14)


def test_several_classes_leave_out_the_background_unless_asked() -> None:
    data = random_sample("multiclass", 9)
    found = value_of("soft_cldice", **data)
    whole = value_of("soft_cldice", **data, include_background=True)
    assert found.per_class is not None
    assert whole.per_class is not None
    assert math.isnan(float(found.per_class[0]))
    assert float(found.value) == pytest.approx(float(found.per_class[1:].mean()), rel=1e-14)
    assert float(whole.value) == pytest.approx(float(whole.per_class.mean()), rel=1e-14)
    without = value_of("soft_cldice", **data, include_background=False)
    assert float(without.value) == float(found.value)


def test_absent_of_all_is_divided_by_the_classes_without_background() -> None:
    data = random_sample("multiclass", 10)
    data["target"] = one_hot(torch.where(data["target"][1] > 0, 1, 0), 3)
    found = value_of("soft_cldice", **data, classes="present_of_all")
    assert found.per_class is not None
    assert float(found.value) == pytest.approx(float(found.per_class[1]) / 2, rel=1e-14)


def test_several_masks_have_no_background_to_leave_out() -> None:
    data = random_sample("multilabel", 11)
    found = value_of("soft_cldice", **data)
    assert found.per_class is not None
    assert float(found.value) == pytest.approx(float(found.per_class.mean()), rel=1e-14)


def test_two_classes_are_one_channel() -> None:
    data = random_sample("binary", 12)
    one = answer("soft_cldice", **data)
    scores = torch.cat([torch.zeros_like(data["scores"]), data["scores"]])
    labels = data["target"][0].long()
    two = answer("soft_cldice", scores, one_hot(labels, 2), task="multiclass", valid=data["valid"])
    assert two.value == pytest.approx(one.value, rel=1e-13)
    np.testing.assert_allclose(two.gradient[1:], one.gradient, rtol=1e-9, atol=1e-16)


def test_a_list_of_nothing_but_the_dropped_background_is_refused() -> None:
    loss = LOSSES["soft_cldice"]
    with pytest.raises(InvalidParameterError, match="nothing but class 0"):
        loss.read_options({"classes": [0]}, task="multiclass", channels=3, loc=())
    loss.read_options({"classes": [0]}, task="multilabel", channels=3, loc=())
    loss.read_options({"classes": [0]}, task="binary", channels=1, loc=())
    asked = {"classes": [0], "include_background": True}
    loss.read_options(asked, task="multiclass", channels=3, loc=())


def test_one_channel_has_no_background_to_drop() -> None:
    with pytest.raises(InvalidParameterError, match="no background"):
        LOSSES["soft_cldice"].read_options(
            {"include_background": False}, task="binary", channels=1, loc=()
        )


# -- all of them ---------------------------------------------------------------------------------

PARAMS: dict[str, list[dict[str, Any]]] = {
    "hausdorff_erosion": [{}, {"alpha": 0.5, "iterations": 3}],
    "structural_similarity": [
        {},
        {"beta": 0.3, "weight": 0.2, "window": 5, "sigma": 0.8},
        {"window": 9, "sigma": 4.0},
    ],
    "soft_cldice": [{}, {"iterations": 1, "smooth": 0.0}, {"iterations": 6, "smooth": 2.5}],
}
WIDE_PARAMS: list[dict[str, Any]] = [
    {"include_background": False, "class_weights": [1.0, 5.0, 2.0]},
    {"include_background": True, "classes": "present_of_all", "class_weights": [1.0, 5.0, 2.0]},
    {"classes": [0, 2], "include_background": True},
]
CASES = [
    pytest.param(name, task, params, id=f"{name}-{task}-{number}")
    for name in NAMES
    for task in TASKS
    for number, params in enumerate(PARAMS[name] + (WIDE_PARAMS if task != "binary" else []))
]


@pytest.mark.parametrize(("name", "task", "params"), CASES)
def test_values_and_gradients_are_those_of_the_loops(
    name: str, task: str, params: dict[str, Any]
) -> None:
    for seed, shape in enumerate([(9,), (6, 7), (3, 4, 5), (1, 6)]):
        data = random_sample(task, seed, shape, soft=seed == 1)
        found = answer(name, **data, **params)
        leaf = data["scores"].clone().requires_grad_()
        weight = torch.ones(shape, dtype=torch.float64)
        spacing = (1.0,) * len(shape)
        want = ORACLE[name](
            Whole(task, leaf, data["target"], data["valid"], weight, spacing), params
        )
        (gradient,) = torch.autograd.grad(want, leaf, materialize_grads=True)
        assert found.value == pytest.approx(float(want.detach()), rel=1e-12, abs=1e-14)
        scale = float(gradient.abs().max())
        np.testing.assert_allclose(found.gradient, gradient, rtol=0, atol=1e-11 * scale + 1e-15)
        assert not found.gradient[:, ~data["valid"]].any()


@pytest.mark.parametrize(("name", "task", "params"), CASES)
def test_gradients_are_derivatives(name: str, task: str, params: dict[str, Any]) -> None:
    data = random_sample(task, 21, (5, 6))
    scores = (1.5 * data.pop("scores")).requires_grad_()
    every = torch.ones_like(data.pop("valid"))
    assert torch.autograd.gradcheck(
        lambda live: value_of(name, live, valid=every, **data, **params).value,
        scores,
        eps=1e-7,
        fast_mode=True,  # every entry of the gradient is compared with the oracle's above
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", TASKS)
def test_degenerate_masks_and_certain_logits_are_finite(name: str, task: str) -> None:
    channels = 1 if task == "binary" else 3
    for shape in ((1,), (2,), (1, 1), (3, 1), (2, 3, 1), (4, 4)):
        own = PARAMS[name] if shape in ((1, 1), (2, 3, 1), (4, 4)) else PARAMS[name][:1]
        every = torch.zeros(channels, *shape, dtype=torch.float64)
        everything = every.clone()
        everything[-1] = 1.0
        checkered = torch.arange(every[0].numel()).view(shape) % channels == 0
        mixed = torch.where(checkered, everything, everything.flip(0))
        for target in (everything, mixed, every):
            for scores in (every, 1e4 * (2 * target - 1), 1e4 * (1 - 2 * target), every - 1e4):
                for params in own:
                    found = answer(name, scores, target, task=task, **params)
                    assert np.isfinite(found.value)
                    assert bool(found.gradient.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", TASKS)
def test_faint_predictions_have_finite_gradients(name: str, task: str) -> None:
    """Probabilities of 1e-300 and less, and nothing added to the fractions."""
    data = random_sample(task, 22)
    params: dict[str, Any] = {"smooth": 0.0} if name == "soft_cldice" else {}
    for shift in (-40.0, -300.0, -690.0, -708.0, -745.0):
        found = answer(name, **{**data, "scores": data["scores"] + shift}, **params)
        assert np.isfinite(found.value)
        assert bool(found.gradient.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", TASKS)
def test_windows_see_the_targets_of_removed_pixels(name: str, task: str) -> None:
    changed = []
    for seed in range(40, 46):
        data = random_sample(task, seed)
        blank = torch.where(data["valid"], data["target"], 0.0)
        other = answer(name, **{**data, "target": blank})
        changed.append(other.value != answer(name, **data).value)
    assert any(changed)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_without_gradient_is_the_same(name: str) -> None:
    data = random_sample("multiclass", 41)
    with torch.no_grad():
        found = value_of(name, **data)
    assert float(found.value) == answer(name, **data).value


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("hausdorff_erosion", {"iterations": 0}),
        ("hausdorff_erosion", {"iterations": 65}),
        ("hausdorff_erosion", {"alpha": 9.0}),
        ("structural_similarity", {"window": 4}),
        ("structural_similarity", {"window": 65}),
        ("structural_similarity", {"sigma": 0.0}),
        ("structural_similarity", {"beta": 1.5}),
        ("structural_similarity", {"weight": -0.1}),
        ("soft_cldice", {"iterations": 0}),
        ("soft_cldice", {"smooth": -1.0}),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError):
        LOSSES[name].read_options(params, task="binary", channels=1, loc=())


@pytest.mark.parametrize("sigma", [1e-300, 1e-3, 1e300])
def test_every_width_of_the_gaussian_is_finite(sigma: float) -> None:
    data = random_sample("binary", 42)
    found = answer("structural_similarity", **data, sigma=sigma)
    assert np.isfinite(found.value)
    assert bool(found.gradient.isfinite().all())


def test_cmssl_is_structural_similarity() -> None:
    assert LOSSES["structural_similarity"].aliases == ("cmssl",)
