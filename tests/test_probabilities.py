"""Probabilities in place of logits: the same values, and the derivative by each of them alone."""

from typing import Any

import numpy as np
import pytest
import torch

from jobs import TASKS, Core, case, make_job
from lossd.losses import LOSSES, Task
from lossd_client.errors import InvalidInputError
from lossd_client.wire import Array

PIXEL_TASKS = [
    (name, task) for name, loss in LOSSES.items() if loss.kind == "pixel" for task in loss.tasks
]


def activated(logits: Array, task: str) -> Array:
    tensor = torch.from_numpy(logits)
    return (tensor.softmax(1) if task == "multiclass" else tensor.sigmoid()).numpy()


def answer(core: Core, name: str, inputs: dict[str, Array], task: str, **params: Any) -> Any:
    job = make_job({"name": name, "params": params}, inputs, task=task, gradient="total")
    return core.tensors(job)


@pytest.mark.parametrize(("name", "task"), PIXEL_TASKS)
def test_probabilities_give_the_values_of_their_logits(core: Core, name: str, task: Task) -> None:
    one = case(task)
    logits, target = one.inputs["logits"].clip(-6, 6), one.inputs["target"]
    mask = (np.random.default_rng(1).random((2, 7, 5)) < 0.8).astype(np.uint8)
    want = answer(core, name, {"logits": logits, "target": target, "mask": mask}, task)
    given = {"probabilities": activated(logits, task), "target": target, "mask": mask}
    got = answer(core, name, given, task)
    np.testing.assert_allclose(got["total"], want["total"], rtol=1e-10)
    gradient = got["gradient/probabilities"]
    assert (gradient[np.broadcast_to(mask[:, None] == 0, gradient.shape)] == 0).all()
    assert "gradient/logits" not in got


@pytest.mark.parametrize(("name", "task"), PIXEL_TASKS)
def test_the_gradient_is_that_of_every_probability_by_itself(
    core: Core, name: str, task: Task
) -> None:
    one = case(task, seed=2)
    target = one.inputs["target"]
    probabilities = activated(one.inputs["logits"] / 2, task)
    gradient = answer(core, name, {"probabilities": probabilities, "target": target}, task)[
        "gradient/probabilities"
    ]
    step = 1e-6
    rng = np.random.default_rng(3)
    for flat in rng.choice(probabilities[0].size, 6, replace=False):
        where = (0, *np.unravel_index(flat, probabilities.shape[1:]))
        sides = []
        for sign in (1, -1):
            moved = probabilities.copy()
            moved[where] += sign * step
            given = {"probabilities": moved, "target": target}
            sides.append(answer(core, name, given, task)["total"][0])
        difference = (sides[0] - sides[1]) / (2 * step)
        assert gradient[where] == pytest.approx(difference, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("task", TASKS)
def test_a_soft_target_is_read_with_probabilities(core: Core, task: Task) -> None:
    one = case(task, soft=True)
    logits = one.inputs["logits"].clip(-6, 6)
    rows: list[Any] = ["kl_divergence", "js_divergence", "poly1_cross_entropy", "combo"]
    rows.append({"name": "dice", "params": {"soft_label": True}})
    fields: dict[str, Any] = {"task": task, "maps": True, "statistics": True, "per_class": True}
    inputs = {"logits": logits, "target": one.inputs["target"]}
    want = core.tensors(make_job(rows, inputs, **fields))
    inputs = {"probabilities": activated(logits, task), "target": one.inputs["target"]}
    got = core.tensors(make_job(rows, inputs, **fields))
    assert got.keys() == want.keys()
    for key, array in want.items():
        np.testing.assert_allclose(got[key], array, rtol=1e-9, atol=1e-12)


def test_probabilities_are_kept_off_0_and_1_with_gradient_0_there(core: Core) -> None:
    probabilities = np.array([[[1.0, 0.0, 0.5, 1e-9]]])
    target = np.array([[0, 1, 1, 1]])
    tensors = answer(core, "bce", {"probabilities": probabilities, "target": target}, "binary")
    floor = 1e-7
    assert tensors["total"][0] == pytest.approx((-3 * np.log(floor) + np.log(2)) / 4, rel=1e-9)
    np.testing.assert_allclose(tensors["gradient/probabilities"][0, 0], [0, 0, -0.5, 0])


def test_each_and_half_precision_gradients_are_those_of_probabilities(core: Core) -> None:
    one = case("multiclass")
    inputs = {
        "probabilities": activated(one.inputs["logits"], "multiclass").astype(np.float32),
        "target": one.inputs["target"],
    }
    rows = ["dice", "lovasz_softmax", {"name": "focal", "params": {"gamma": 0.5}}, "focal"]
    rows[3] = {"name": "focal", "label": "square"}
    each = core.tensors(make_job(rows, inputs, gradient="each"))
    total = core.tensors(make_job(rows, inputs, gradient="total", gradient_dtype="float16"))
    labels = ("dice", "lovasz_softmax", "focal", "square")
    want = sum(each[f"gradient/probabilities/{label}"].astype(np.float64) for label in labels)
    scale = total["gradient_scale/probabilities"][:, None, None, None]
    got = total["gradient/probabilities"].astype(np.float64) * scale
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("wrong", [1.5, -0.2, np.nan, np.inf])
def test_what_is_no_probability_is_refused_with_its_place(wrong: float) -> None:
    probabilities = np.full((1, 2, 3), 0.5)
    probabilities[0, 1, 2] = wrong
    target = np.zeros((1, 3), np.uint8)
    with pytest.raises(InvalidInputError, match=r"\[0, 1, 2\] is no probability"):
        make_job("dice", {"probabilities": probabilities, "target": target})
    masked = {"probabilities": probabilities, "target": target, "mask": np.array([[1, 1, 0]])}
    assert make_job("dice", masked).samples == 1


def test_logits_and_probabilities_together_are_refused() -> None:
    scores = np.full((1, 2, 3), 0.5)
    inputs = {"logits": scores, "probabilities": scores, "target": np.zeros((1, 3), np.uint8)}
    with pytest.raises(InvalidInputError, match="give one of them"):
        make_job("dice", inputs)
