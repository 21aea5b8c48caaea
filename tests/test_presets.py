"""Presets give the numbers of other people's libraries, as these computed them.

`data/peer_values.json` was written by `tools/peers/write_values.py` with the libraries themselves.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from jobs import Core, make_job
from lossd.losses import LOSSES, Task, find_loss
from lossd.presets import PRESETS, Convention, preset_aggregate, preset_parameters
from lossd_client.wire import Array
from lossd_client.wire import Preset as PresetName

PEER_VALUES = json.loads((Path(__file__).parent / "data" / "peer_values.json").read_text())
CASES: list[dict[str, Any]] = PEER_VALUES["cases"]
TOLERANCE = 1e-6
"""Relative; some of the libraries compute in float32, whatever they are given."""
GRADIENT_TOLERANCE = 1e-5
"""Of the largest entry; the file holds six digits of that, and as many decimals of the others."""
CONVENTIONS = [
    (preset, loss, convention)
    for preset, entry in PRESETS.items()
    for loss, conventions in entry.losses.items()
    for convention in conventions
]
ABSENT = [(preset, loss) for preset, entry in PRESETS.items() for loss in entry.absent]
CHANNELS: dict[Task, tuple[int, ...]] = {
    "binary": (1,),
    "multiclass": (2, 5),
    "multilabel": (2, 5),
}
SMALL = {
    "logits": np.array([[[0.5, -1.0, 2.0, 0.0]], [[1.0, 1.0, -1.0, 3.0]]]),
    "target": np.array([[1, 0, 1, 0], [0, 0, 0, 1]], dtype=np.uint8),
}


def _convention(preset: str, loss: str, task: str) -> Convention:
    (found,) = [one for one in PRESETS[preset].losses[loss] if not one.tasks or task in one.tasks]
    return found


def _inputs(case: dict[str, Any]) -> dict[str, Array]:
    given = PEER_VALUES["inputs"][case["inputs"]]
    return {name: np.array(values) for name, values in given.items()}


def _answer(core: Core, case: dict[str, Any], losses: Any = None) -> dict[str, Array]:
    choice = {"name": case["loss"], "params": case["parameters"]}
    fields = dict(case["fields"])
    if case["task"]:
        fields["task"] = case["task"]
    job = make_job(
        losses or choice, _inputs(case), preset=case["preset"], gradient="total", **fields
    )
    return core.tensors(job)


def _gradients_of_the_mean(core: Core, case: dict[str, Any]) -> dict[str, Array]:
    samples = len(next(iter(_inputs(case).values())))
    losses = None
    if case["gradient"] == "parts":
        # Dice has one value for the batch, cross entropy one for every sample.
        losses = ["dice", {"name": "cross_entropy", "weight": 1 / samples}]
    share = 1 / samples if case["gradient"] == "mean" else 1.0
    tensors = _answer(core, case, losses)
    return {name: share * tensors[f"gradient/{name}"].ravel() for name in case["gradients"]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['preset']}: {case['call']}")
def test_a_preset_gives_the_number_of_its_library(core: Core, case: dict[str, Any]) -> None:
    shift = _convention(case["preset"], case["loss"], case["task"]).shift
    values = _answer(core, case)[f"loss/{case['loss']}"]
    expected = case["value"] + shift
    assert values.mean() == pytest.approx(expected, rel=TOLERANCE, abs=0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['preset']}: {case['call']}")
def test_a_preset_gives_the_gradient_of_its_library(core: Core, case: dict[str, Any]) -> None:
    for name, gradient in _gradients_of_the_mean(core, case).items():
        expected = np.array(case["gradients"][name])
        tolerance = GRADIENT_TOLERANCE * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=tolerance)


def test_the_cases_were_computed_with_the_versions_that_the_presets_name() -> None:
    named = {name: number for one in PRESETS.values() for name, number in one.versions.items()}
    assert named == PEER_VALUES["versions"]


def test_the_peers_requirements_are_the_versions_that_the_presets_name() -> None:
    requirements = Path(__file__).parents[1] / "tools" / "peers" / "requirements.txt"
    lines = requirements.read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert pinned == PEER_VALUES["versions"]


@pytest.mark.parametrize(("preset", "loss", "convention"), CONVENTIONS)
def test_nothing_is_claimed_of_a_library_that_was_not_compared_with_it(
    preset: str, loss: str, convention: Convention
) -> None:
    compared = {(case["preset"], case["loss"], case["task"]) for case in CASES}
    for task in convention.tasks or ("",):
        assert (preset, loss, task) in compared


@pytest.mark.parametrize(("preset", "loss", "convention"), CONVENTIONS)
def test_what_a_preset_fills_are_parameters_of_the_loss(
    preset: str, loss: str, convention: Convention
) -> None:
    found = LOSSES[loss]
    assert bool(convention.tasks) == bool(found.tasks)
    for task in convention.tasks or ("multiclass",):
        for channels in CHANNELS[task]:
            filled = preset_parameters(preset, loss, task=task, channels=channels)
            assert filled is not None
            options = found.read_options(filled, task=task, channels=channels, loc=())
            assert {name: getattr(options, name) for name in filled} == filled


@pytest.mark.parametrize(("preset", "loss"), ABSENT)
def test_what_a_library_computes_otherwise_is_not_filled(preset: str, loss: str) -> None:
    tasks = find_loss(loss).tasks or ("multiclass",)
    filled = [preset_parameters(preset, loss, task=task, channels=4) for task in tasks]
    assert None in filled


def test_a_task_has_one_convention_at_most() -> None:
    for preset, task in product(PRESETS, CHANNELS):
        for loss, conventions in PRESETS[preset].losses.items():
            found = [one for one in conventions if not one.tasks or task in one.tasks]
            assert len(found) <= 1, (preset, loss, task)


def test_the_presets_are_those_of_the_contract() -> None:
    assert tuple(PRESETS) == get_args(PresetName)


def test_an_explicit_parameter_wins(core: Core) -> None:
    choice = {"name": "dice", "params": {"smooth_nr": 1.0, "smooth_dr": 1.0}}
    job = make_job(choice, SMALL, preset="monai", task="binary")
    assert job.preset is not None
    assert set(job.preset["filled"]["dice"]) == {
        "classes",
        "include_background",
        "average",
        "soft_label",
    }
    plain = core.tensors(make_job(choice, SMALL, task="binary"))
    np.testing.assert_array_equal(core.tensors(job)["loss/dice"], plain["loss/dice"])


def test_a_preset_changes_what_was_not_given(core: Core) -> None:
    with_preset = core.tensors(make_job("tversky", SMALL, preset="monai", task="binary"))
    dice = core.tensors(make_job("dice", SMALL, task="binary"))
    default = core.tensors(make_job("tversky", SMALL, task="binary"))
    # Weights of one half make it Dice, but for the smoothing of half the numerator.
    np.testing.assert_allclose(with_preset["loss/tversky"], dice["loss/dice"], atol=1e-4)
    assert np.abs(with_preset["loss/tversky"] - default["loss/tversky"]).min() > 1e-3


def test_the_smp_preset_sums_regions_over_the_batch_unless_told_otherwise(core: Core) -> None:
    assert preset_aggregate("smp") == "batch"
    pooled = core.tensors(make_job("dice", SMALL, preset="smp", task="binary"))["loss/dice"]
    assert pooled[0] == pooled[1]
    alone = core.tensors(make_job("dice", SMALL, preset="smp", task="binary", aggregate="sample"))[
        "loss/dice"
    ]
    assert alone[0] != alone[1]


def test_a_loss_that_the_library_lacks_is_left_as_it_is_with_a_warning(core: Core) -> None:
    job = make_job("dice", SMALL, preset="torch", task="binary")
    assert any("torch" in warning for warning in job.warnings)
    plain = core.tensors(make_job("dice", SMALL, task="binary"))
    np.testing.assert_array_equal(core.tensors(job)["loss/dice"], plain["loss/dice"])


@pytest.mark.parametrize("channels", [2, 3, 19])
def test_the_mean_over_classes_of_monai_is_a_weight_per_class(channels: int) -> None:
    filled = preset_parameters("monai", "focal", task="multiclass", channels=channels)
    assert filled is not None
    assert filled["class_weights"] == [1 / channels] * channels
