"""What must hold of every loss of pixels of the registry, by being registered."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jobs import CASES, TASKS, Case, Core, case, make_job
from lossd.core import confusion
from lossd.losses import LOSSES, Loss, Task
from lossd.losses.declare import TileLoss
from lossd_client.wire import Array
from oracles.expected import ROWS, TILES, WHOLES, expected
from variants import variants

PIXEL = {name: loss for name, loss in LOSSES.items() if loss.kind == "pixel"}
LOSS_CASES = [
    pytest.param(name, one, id=f"{name}-{one.name}")
    for name, loss in PIXEL.items()
    for one in CASES
    if one.task in loss.tasks
]


def cases_of(chosen: Callable[[Loss], bool]) -> list[Any]:
    return [param for param in LOSS_CASES if chosen(LOSSES[str(param.values[0])])]


def looks_around(loss: Loss) -> bool:
    """Whether a pixel's neighbours matter: such losses see what the mask removes."""
    return loss.family in ("boundary", "window")


HARD_CASES = [param for param in LOSS_CASES if "hard" in str(param.id)]
LOSS_TASKS = [(name, task) for name, loss in PIXEL.items() for task in loss.tasks]
MAP_CASES = cases_of(lambda loss: "maps" in loss.returns)
POINTWISE_CASES = cases_of(lambda loss: not looks_around(loss))
PER_CLASS = [
    name
    for name, loss in PIXEL.items()
    if "per_class" in loss.returns and "multiclass" in loss.tasks
]
TILE_TASKS = [(name, task) for name, task in LOSS_TASKS if isinstance(LOSSES[name], TileLoss)]


def answer(
    core: Core, name: str, params: dict[str, Any], inputs: dict[str, Array], **fields: Any
) -> tuple[Array, Array]:
    job = make_job({"name": name, "params": params}, inputs, gradient="total", **fields)
    tensors = core.tensors(job)
    return tensors[f"loss/{name}"], tensors["gradient/logits"]


def assert_close(got: Array, want: Array, rtol: float, atol: float = 1e-12) -> None:
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def assert_gradient(got: Array, want: Array, tolerance: float) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max() + 1e-15)


def test_every_loss_has_an_oracle_and_every_oracle_a_loss() -> None:
    assert {*TILES, *WHOLES, *ROWS} == set(LOSSES)
    assert len(TILES) + len(WHOLES) + len(ROWS) == len(LOSSES)


@pytest.mark.parametrize(("name", "one"), LOSS_CASES)
def test_values_and_gradients_are_those_of_the_textbook_formula(
    core: Core, name: str, one: Case
) -> None:
    for params in variants(name, one.inputs["logits"].shape[1], one.task):
        value, gradient = answer(core, name, params, one.inputs, **one.fields)
        want, want_gradient = expected(name, params, task=one.task, inputs=one.inputs)
        assert_close(value, want, 1e-12)
        assert_gradient(gradient, want_gradient, 1e-11)


@pytest.mark.parametrize(("name", "one"), LOSS_CASES)
def test_float32_keeps_the_promised_digits(core: Core, name: str, one: Case) -> None:
    inputs = {**one.inputs, "logits": one.inputs["logits"].astype(np.float32)}
    value, gradient = answer(core, name, {}, inputs, **one.fields)
    want, want_gradient = expected(name, {}, task=one.task, inputs=inputs)
    assert_close(value, want, 2e-6, 1e-9)
    assert_gradient(gradient, want_gradient, 1e-5)


@pytest.mark.parametrize(("name", "one"), LOSS_CASES)
def test_the_gradient_is_the_derivative_of_the_value(core: Core, name: str, one: Case) -> None:
    step = 1e-5
    rng = np.random.default_rng(1)
    _, gradient = answer(core, name, {}, one.inputs, **one.fields)
    for flat in rng.choice(gradient[0].size, 6, replace=False):
        where = (0, *np.unravel_index(flat, gradient.shape[1:]))
        sides = []
        for steps in (2, 1, -1, -2):
            moved = one.inputs["logits"].copy()
            moved[where] += steps * step
            inputs = {**one.inputs, "logits": moved}
            sides.append(answer(core, name, {}, inputs, **one.fields)[0][0])
        difference = (-sides[0] + 8 * sides[1] - 8 * sides[2] + sides[3]) / (12 * step)
        assert difference == pytest.approx(gradient[where], rel=1e-6, abs=1e-10)


@pytest.mark.parametrize(("name", "one"), POINTWISE_CASES)
def test_mask_equals_crop(core: Core, name: str, one: Case) -> None:
    rng = np.random.default_rng(2)
    batch, channels = one.inputs["logits"].shape[:2]
    keep = rng.random(35) < 0.6
    logits = one.inputs["logits"].copy().reshape(batch, channels, -1)
    logits[:, :, ~keep] = np.nan
    masked = {
        "logits": logits.reshape(one.inputs["logits"].shape),
        "target": one.inputs["target"],
        "mask": np.broadcast_to(keep.reshape(7, 5), (batch, 7, 5)).copy(),
    }
    target = one.inputs["target"]
    flat = target.reshape(*target.shape[:-2], -1)[..., keep]
    cropped = {"logits": logits[:, :, keep], "target": flat}
    value, gradient = answer(core, name, {}, masked, **one.fields)
    want, want_gradient = answer(core, name, {}, cropped, **one.fields)
    assert_close(value, want, 1e-12)
    gradient = gradient.reshape(batch, channels, -1)
    assert_gradient(gradient[:, :, keep], want_gradient, 1e-12)
    assert (gradient[:, :, ~keep] == 0).all()


@pytest.mark.parametrize(("name", "one"), POINTWISE_CASES)
def test_permuting_pixels_permutes_the_gradient(core: Core, name: str, one: Case) -> None:
    order = np.random.default_rng(3).permutation(35)

    def permuted(array: Array) -> Array:
        return array.reshape(*array.shape[:-2], -1)[..., order].reshape(array.shape)

    value, gradient = answer(core, name, {}, one.inputs, **one.fields)
    inputs = {key: permuted(array) for key, array in one.inputs.items()}
    moved, moved_gradient = answer(core, name, {}, inputs, **one.fields)
    assert_close(moved, value, 1e-12)
    assert_gradient(moved_gradient, permuted(gradient), 1e-12)


@pytest.mark.parametrize(
    ("name", "one"),
    [
        param
        for param in cases_of(lambda loss: loss.name != "soft_cldice")  # it drops class 0
        if "multi" in str(param.id)
    ],
)
def test_permuting_classes_permutes_the_gradient(core: Core, name: str, one: Case) -> None:
    order = np.array([2, 0, 3, 1])
    value, gradient = answer(core, name, {}, one.inputs, **one.fields)
    target = one.inputs["target"]
    if target.ndim == one.inputs["logits"].ndim:
        target = target[:, order]
    else:
        target = np.argsort(order)[target].astype(target.dtype)
    inputs = {"logits": one.inputs["logits"][:, order], "target": target}
    moved, moved_gradient = answer(core, name, {}, inputs, **one.fields)
    assert_close(moved, value, 1e-12)
    assert_gradient(moved_gradient, gradient[:, order], 1e-12)


@pytest.mark.parametrize(("name", "one"), LOSS_CASES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_extreme_logits_give_finite_values_and_gradients(
    core: Core, name: str, one: Case, dtype: Any
) -> None:
    rng = np.random.default_rng(4)
    logits = rng.choice([-1e4, 0.0, 1e4], one.inputs["logits"].shape).astype(dtype)
    value, gradient = answer(core, name, {}, {**one.inputs, "logits": logits}, **one.fields)
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    want, _ = expected(
        name, {}, task=one.task, inputs={**one.inputs, "logits": logits.astype(np.float64)}
    )
    assert_close(value, want, 2e-6, 1e-9)


@pytest.mark.parametrize(("name", "task"), TILE_TASKS)
def test_good_masks_keep_their_digits(core: Core, name: str, task: Task) -> None:
    one = case(task, spatial=(64, 65), seed=5)
    target = one.inputs["target"]
    on = target if task != "multiclass" else np.eye(4)[target].transpose(0, 3, 1, 2)
    for gap in (4.0, 8.0, 16.0, 24.0, 32.0):
        noise = np.random.default_rng(6).normal(0, 0.5, on.shape)
        logits = (gap * (on - 0.5) + noise).astype(np.float32)
        inputs = {"logits": logits, "target": target}
        smooth = LOSSES[name].family == "region"
        params = {"smooth_nr": 0.0, "smooth_dr": 0.0} if smooth else {}
        value, gradient = answer(core, name, params, inputs, task=task)
        want, want_gradient = expected(name, params, task=task, inputs=inputs)
        # The textbook formula in float64 is itself off by its rounding of 1, a few 1e-16.
        assert_close(value, want, 2e-6, 1e-15)
        assert_gradient(gradient, want_gradient, 1e-5)


@pytest.mark.parametrize(("name", "one"), HARD_CASES)
@pytest.mark.parametrize("content", ["empty", "full", "absent"])
def test_masks_without_some_classes_match_the_formula(
    core: Core, name: str, one: Case, content: str
) -> None:
    target = one.inputs["target"].copy()
    if content == "absent":
        target[target > 2] = 0
        target[:, 0] = 0
    else:
        target[...] = 0 if content == "empty" else (1 if one.task != "multiclass" else 3)
    inputs = {**one.inputs, "target": target}
    for params in variants(name, inputs["logits"].shape[1], one.task)[:3]:
        value, gradient = answer(core, name, params, inputs, **one.fields)
        want, want_gradient = expected(name, params, task=one.task, inputs=inputs)
        assert_close(value, want, 1e-11)
        assert_gradient(gradient, want_gradient, 1e-10)


@pytest.mark.parametrize(("name", "task"), LOSS_TASKS)
def test_a_sample_without_valid_pixels_is_zero_and_warned_of(
    core: Core, name: str, task: Task
) -> None:
    one = case(task)
    mask = np.ones((2, 7, 5), np.uint8)
    mask[0] = 0
    logits = one.inputs["logits"].copy()
    logits[0] = np.inf
    inputs = {"logits": logits, "target": one.inputs["target"], "mask": mask}
    job = make_job({"name": name}, inputs, gradient="total", task=task)
    (outcome,) = core.run([job])
    assert not isinstance(outcome, Exception)
    assert outcome.tensors[f"loss/{name}"][0] == 0
    assert outcome.tensors[f"loss/{name}"][1] != 0
    assert (outcome.tensors["gradient/logits"][0] == 0).all()
    assert "sample 0" in outcome.warnings[0]


@pytest.mark.parametrize("spatial", [(3,), (4097,), (70, 71), (5, 6, 7), (17, 18, 19)])
@pytest.mark.parametrize("task", TASKS)
def test_one_to_three_spatial_axes_in_any_size(
    core: Core, task: Task, spatial: tuple[int, ...]
) -> None:
    one = case(task, spatial=spatial)
    for name in ("dice", "cross_entropy"):
        value, gradient = answer(core, name, {}, one.inputs, task=task)
        want, want_gradient = expected(name, {}, task=task, inputs=one.inputs)
        assert_close(value, want, 1e-12)
        assert_gradient(gradient, want_gradient, 1e-11)
        assert gradient.shape == one.inputs["logits"].shape


@pytest.mark.parametrize("name", [name for name, loss in PIXEL.items() if not looks_around(loss)])
def test_ignore_index_equals_a_mask(core: Core, name: str) -> None:
    for task in PIXEL[name].tasks:
        if task == "multilabel":
            continue
        one = case(task)
        labels = one.inputs["target"].reshape(2, 7, 5).copy()
        labels[:, :3, :2] = 255
        value, gradient = answer(
            core,
            name,
            {},
            {"logits": one.inputs["logits"], "target": labels},
            task=task,
            ignore_index=255,
        )
        mask = (labels != 255).astype(np.uint8)
        inputs = {"logits": one.inputs["logits"], "target": labels % 255, "mask": mask}
        want, want_gradient = answer(core, name, {}, inputs, task=task)
        np.testing.assert_array_equal(value, want)
        np.testing.assert_array_equal(gradient, want_gradient)


@pytest.mark.parametrize(("name", "one"), MAP_CASES)
def test_the_mean_of_a_map_is_the_value(core: Core, name: str, one: Case) -> None:
    rng = np.random.default_rng(7)
    mask = (rng.random((2, 7, 5)) < 0.7).astype(np.uint8)
    inputs = {**one.inputs, "mask": mask, "weight_map": rng.uniform(0, 2, (2, 7, 5))}
    for params in variants(name, one.inputs["logits"].shape[1], one.task):
        if params.get("normalize") == "weights":
            continue
        job = make_job({"name": name, "params": params}, inputs, maps=True, **one.fields)
        tensors = core.tensors(job)
        found = tensors[f"map/{name}"]
        assert found.shape == (2, 7, 5)
        assert (found[mask == 0] == 0).all()
        mean = found.sum((1, 2)) / mask.sum((1, 2))
        assert_close(mean, tensors[f"loss/{name}"], 1e-12)


def test_a_map_holds_each_pixels_own_loss(core: Core) -> None:
    one = case("multiclass")
    tensors = core.tensors(make_job("focal", one.inputs, maps=True))
    for row, column in ((0, 0), (3, 2), (6, 4)):
        alone = {
            "logits": one.inputs["logits"][:, :, row : row + 1, column : column + 1],
            "target": one.inputs["target"][:, row : row + 1, column : column + 1],
        }
        value, _ = answer(core, "focal", {}, alone)
        assert_close(tensors["map/focal"][:, row, column], value, 1e-12)


@pytest.mark.parametrize(
    "name",
    [n for n, loss in PIXEL.items() if "per_class" in loss.returns and "multiclass" in loss.tasks],
)
def test_per_class_values_average_to_the_value(core: Core, name: str) -> None:
    one = case("multiclass")
    target = one.inputs["target"].copy()
    target[0][target[0] == 2] = 1
    inputs = {**one.inputs, "target": target}
    params: dict[str, Any] = {"classes": "present"}
    if "include_background" in LOSSES[name].parameters.model_fields:
        params["include_background"] = True
    job = make_job({"name": name, "params": params}, inputs, per_class=True)
    tensors = core.tensors(job)
    per_class = tensors[f"per_class/{name}"]
    assert np.isnan(per_class[0, 2])
    assert np.isfinite(per_class[1]).all()
    assert_close(np.nanmean(per_class, 1), tensors[f"loss/{name}"], 1e-12)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_statistics_add_up(core: Core, one: Case) -> None:
    mask = (np.random.default_rng(8).random((2, 7, 5)) < 0.7).astype(np.uint8)
    job = make_job("dice", {**one.inputs, "mask": mask}, statistics=True, **one.fields)
    found = {k.removeprefix("statistics/"): v for k, v in core.tensors(job).items()}
    for kind in ("soft", "hard"):
        parts = [found[f"{kind}_{part}"] for part in ("tp", "fp", "fn", "tn")]
        assert_close(np.sum(parts, 0), found["pixels"], 1e-12)
    assert (found["pixels"] == mask.sum((1, 2))[:, None]).all()
    logits, target = one.inputs["logits"], one.inputs["target"]
    if one.task == "multiclass":
        predicted = np.eye(4)[logits.argmax(1)].transpose(0, 3, 1, 2)
        labels = target.argmax(1) if one.soft else target
        given = np.eye(4)[labels].transpose(0, 3, 1, 2)
    else:
        predicted, given = (logits > 0), (target.reshape(logits.shape) > 0.5)
    hits = ((predicted * given) * mask[:, None]).sum((2, 3))
    np.testing.assert_array_equal(found["hard_tp"], hits)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_counts_do_not_depend_on_strips(
    core: Core, one: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("dice", one.inputs, statistics=True, **one.fields)
    at_once = core.tensors(job)
    monkeypatch.setattr(confusion, "_STRIP_PIXELS", 4)
    in_strips = core.tensors(job)
    for count in ("tp", "fp", "fn", "tn"):
        name = f"statistics/hard_{count}"
        np.testing.assert_array_equal(in_strips[name], at_once[name])
