"""What an answer warns of: inputs that can be computed but are probably not what was meant."""

from typing import Any

import numpy as np
import pytest

from jobs import Core, case, make_job
from lossd.core.job import Outcome
from lossd_client.errors import InvalidInputError, LabelOutOfRangeError
from lossd_client.wire import Array


def warnings(core: Core, losses: Any, inputs: dict[str, Array], **fields: Any) -> tuple[str, ...]:
    (outcome,) = core.run([make_job(losses, inputs, **fields)])
    assert isinstance(outcome, Outcome)
    return outcome.warnings


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_ordinary_inputs_are_not_warned_of(core: Core, task: str) -> None:
    one = case(task)
    names = ["dice", "focal", "cross_entropy", "dice_ce", "lovasz_softmax"]
    names = [name for name in names if task != "multilabel" or name != "lovasz_softmax"]
    assert warnings(core, names, one.inputs, task=task) == ()


def test_logits_that_look_like_probabilities_are_warned_of(core: Core) -> None:
    rng = np.random.default_rng(0)
    soft = rng.dirichlet(np.ones(3), (2, 400)).transpose(0, 2, 1)
    target = rng.integers(0, 3, (2, 400))
    (warning,) = warnings(core, "dice", {"logits": soft, "target": target})
    assert "look like probabilities" in warning
    soft[1, 0, 399] += 0.1  # the last pixel of all does not sum to 1
    assert warnings(core, "dice", {"logits": soft, "target": target}) == ()
    binary = {"logits": rng.random((1, 1, 400)), "target": rng.integers(0, 2, (1, 400))}
    (warning,) = warnings(core, "dice", binary)
    assert "send probabilities as the input 'probabilities'" in warning


def test_removed_pixels_do_not_make_logits_look_like_logits(core: Core) -> None:
    logits = np.full((1, 2, 300), 0.5)
    logits[0, :, 0] = 40.0
    target, mask = np.zeros((1, 300), np.uint8), np.ones((1, 300))
    mask[0, 0] = 0
    inputs = {"logits": logits, "target": target}
    assert warnings(core, "dice", inputs) == ()
    assert warnings(core, "dice", {**inputs, "mask": mask})


def test_probabilities_that_do_not_sum_to_one_are_warned_of(core: Core) -> None:
    inputs = {"probabilities": np.full((1, 4, 6), 0.4), "target": np.zeros((1, 6), np.uint8)}
    (warning,) = warnings(core, {"name": "dice", "params": {"classes": "all"}}, inputs)
    assert "do not sum to 1" in warning


def test_a_class_axis_at_the_end_is_told() -> None:
    logits, labels = np.zeros((2, 8, 9, 4)), np.zeros((2, 8, 9), np.uint8)
    with pytest.raises(InvalidInputError, match="is a class axis last"):
        make_job("dice", {"logits": logits, "target": labels})
    one_hot = np.eye(4)[np.random.default_rng(0).integers(0, 4, (2, 8, 9))]
    with pytest.raises(InvalidInputError, match="is the class axis last"):
        make_job("dice", {"logits": logits, "target": one_hot})


def test_a_class_axis_at_the_end_is_warned_of_where_it_can_be_computed(core: Core) -> None:
    rng = np.random.default_rng(0)
    one_hot = np.eye(4)[rng.integers(0, 4, (2, 8, 9))]
    inputs = {"logits": rng.normal(size=(2, 8, 9, 4)), "target": one_hot}
    (warning,) = warnings(core, "dice", inputs, task="multilabel")
    assert "class axis" in warning


def test_an_undeclared_255_is_told_or_warned_of(core: Core) -> None:
    target = np.zeros((1, 9), np.uint8)
    target[0, 4] = 255
    with pytest.raises(LabelOutOfRangeError, match="say ignore_index 255"):
        make_job("dice", {"logits": np.zeros((1, 3, 9)), "target": target})
    with pytest.raises(LabelOutOfRangeError, match="0 and 255 is sent as 0 and 1"):
        make_job("dice", {"logits": np.zeros((1, 1, 9)), "target": target})
    logits = np.random.default_rng(0).normal(size=(1, 300, 9))
    many: dict[str, Array] = {"logits": logits, "target": target}
    (warning,) = warnings(core, "dice", many)
    assert "label 255 occurs" in warning
    assert warnings(core, "dice", many, ignore_index=255) == ()


@pytest.mark.parametrize("name", ["dice", "dice_ce", "generalized_dice", "lovasz_softmax"])
def test_a_fallback_to_all_classes_is_warned_of(core: Core, name: str) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 3, 9))
    target = np.zeros((2, 9), np.uint8)
    target[1, 3] = 2
    losses = {"name": name, "params": {"include_background": False}}
    (warning,) = warnings(core, losses, {"logits": logits, "target": target})
    assert warning == f"{name}: no class is present in sample 0, so all classes counted"


def test_an_empty_denominator_is_warned_of(core: Core) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 1, 9))
    target = np.zeros((2, 9), np.uint8)
    target[0, :4] = 1
    rows = ["sensitivity_specificity", "dice"]
    (warning,) = warnings(core, rows, {"logits": logits, "target": target})
    assert warning.startswith("sensitivity_specificity: a denominator is empty in sample 1")
    weights = {"name": "ce", "params": {"normalize": "weights", "class_weights": [0.0, 1.0]}}
    both = {"logits": np.concatenate([logits, -logits], 1), "target": target}
    (warning,) = warnings(core, weights, both)
    assert "sample 1" in warning


def test_warnings_reach_the_answer_of_the_service(app_client: Any) -> None:
    document = {
        "losses": ["dice"],
        "inputs": {"logits": [[[0.25, 0.5], [0.75, 0.5]]], "target": [[0, 1]]},
    }
    answer = app_client.evaluate(document)
    assert answer.status_code == 200
    assert any("look like probabilities" in one for one in answer.json()["warnings"])
