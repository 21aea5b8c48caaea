"""What all losses that look at whole samples have in common, whatever they compute."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossd.core.checkpoint import go_on
from lossd.core.distance import DistanceMaps
from lossd.losses import LOSSES
from lossd.losses.declare import SampleLoss, SampleValues
from lossd.losses.mask_sample import MaskSample
from lossd.losses.slopes import Slopes, Weighed
from lossd.losses.sums import pixel_sum
from mask_samples import one_hot, random_sample

SAMPLE_LOSSES = [loss for loss in LOSSES.values() if isinstance(loss, SampleLoss)]
IDS = [loss.name for loss in SAMPLE_LOSSES]
MULTICLASS = [loss for loss in SAMPLE_LOSSES if "multiclass" in loss.tasks]


class EnoughError(Exception):
    """Raised by a checkpoint."""


def evaluated(
    loss: SampleLoss, sample: MaskSample, dtype: torch.dtype = torch.float64
) -> tuple[SampleValues, Tensor]:
    slopes = Slopes(sample, dtype)
    with torch.no_grad():
        return loss.value(sample, loss.parameters(), Weighed(slopes, 1.0)), slopes.gradient()


def sample_of(data: dict[str, Any], **more: Any) -> MaskSample:
    return MaskSample(**data, activated=False, distances=DistanceMaps(), **more)


def large(task: str, height: int = 300) -> dict[str, Any]:
    """Several strips high, with removed pixels."""
    return random_sample(task, 70, (height, 257))


@pytest.mark.parametrize("loss", MULTICLASS, ids=lambda loss: loss.name)
def test_labels_are_their_one_hot_target(loss: SampleLoss) -> None:
    data = random_sample("multiclass", 60, (19, 23))
    labels = torch.where(data["valid"], data["target"].argmax(0), -1).to(torch.int8)
    hot = data["target"] * data["valid"]
    for dtype in (torch.float16, torch.float64):
        data["scores"] = data["scores"].to(dtype)
        by_label, gradient = evaluated(loss, sample_of({**data, "target": labels}))
        by_channel, other = evaluated(loss, sample_of({**data, "target": hot}))
        assert float(by_label.value) == pytest.approx(float(by_channel.value), rel=1e-14)
        np.testing.assert_allclose(gradient, other, rtol=0, atol=1e-15)


@pytest.mark.parametrize("loss", SAMPLE_LOSSES, ids=IDS)
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_no_bit_depends_on_the_number_of_threads(loss: SampleLoss, task: str) -> None:
    if task not in loss.tasks:
        pytest.skip(f"{loss.name} takes no {task}")
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(evaluated(loss, sample_of(large(task))))
    finally:
        torch.set_num_threads(before)
    for values, gradient in found[1:]:
        assert torch.equal(values.value, found[0][0].value)
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("loss", SAMPLE_LOSSES, ids=IDS)
def test_a_checkpoint_inside_of_a_sample_ends_it(loss: SampleLoss) -> None:
    task = "multiclass" if "multiclass" in loss.tasks else "multilabel"
    data = random_sample(task, 61, (40, 30))
    passed = 0

    def count() -> None:
        nonlocal passed
        passed += 1

    evaluated(loss, sample_of(data, checkpoint=count))
    assert passed > data["scores"].shape[0]
    for last in range(passed):
        left = last

        def stop() -> None:
            nonlocal left
            if left == 0:
                raise EnoughError
            left -= 1

        with pytest.raises(EnoughError):
            evaluated(loss, sample_of(data, checkpoint=stop))


@pytest.mark.parametrize("loss", SAMPLE_LOSSES, ids=IDS)
def test_what_is_computed_at_a_checkpoint_changes_nothing(loss: SampleLoss) -> None:
    """A job that overtakes is computed and differentiated in the middle of another."""
    task = "multiclass" if "multiclass" in loss.tasks else "multilabel"
    data, other = random_sample(task, 62, (40, 30)), random_sample(task, 63, (8, 9))
    alone = evaluated(loss, sample_of(data)), evaluated(loss, sample_of(other))
    inner: list[tuple[SampleValues, Tensor]] = []

    def overtake() -> None:
        inner.append(evaluated(loss, sample_of(other, checkpoint=go_on)))

    outer = evaluated(loss, sample_of(data, checkpoint=overtake))
    assert inner
    for found, want in ((outer, alone[0]), *((one, alone[1]) for one in inner)):
        assert torch.equal(found[0].value, want[0].value)
        assert torch.equal(found[1], want[1])


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("name", ["structural_similarity", "soft_cldice", "hausdorff_erosion"])
def test_strips_leave_no_seams(name: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = LOSSES[name]
    assert isinstance(loss, SampleLoss)
    for shape in ((61, 7), (61,), (40, 3, 4)):
        data = random_sample(task, 64, shape)
        monkeypatch.setattr("lossd.losses.window._STRIP_PIXELS", 1 << 16)
        whole = evaluated(loss, sample_of(data))
        monkeypatch.setattr("lossd.losses.window._STRIP_PIXELS", 1)
        cut = evaluated(loss, sample_of(data))
        assert torch.equal(cut[0].value, whole[0].value)
        np.testing.assert_allclose(cut[1], whole[1], rtol=1e-13, atol=1e-18)


@pytest.mark.parametrize("gap", [0.5, 16.0, 40.0, 800.0])
def test_slopes_of_sure_predictions_keep_their_digits(gap: float) -> None:
    """Against the formula in numbers of 200 digits' room: differences of logarithms."""
    scores = torch.tensor([[gap], [0.0], [-1.0]], dtype=torch.float64)
    sample = sample_of(
        {
            "task": "multiclass",
            "scores": scores,
            "target": torch.tensor([0]),
            "valid": torch.ones(1, dtype=torch.bool),
            "weight_map": None,
            "spacing": (1.0,),
        }
    )
    others = torch.tensor([0.0, -1.0], dtype=torch.float64)
    miss = torch.sigmoid(others.logsumexp(0) - gap)
    slopes = Slopes(sample, torch.float64)
    slopes.add(0, -miss[None], 1.0)  # cross entropy of class 0
    gradient = slopes.gradient()[:, 0]
    assert float(gradient[0]) == pytest.approx(-float(miss), rel=1e-13, abs=0)
    want = miss * others.softmax(0)
    np.testing.assert_allclose(gradient[1:], want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("pixels", [1, 4096, 4097, 8192, 100_000])
def test_sums_over_pixels_are_sums(pixels: int) -> None:
    values = torch.rand(pixels, generator=torch.Generator().manual_seed(pixels)).double()
    assert float(pixel_sum(values)) == pytest.approx(float(values.numpy().sum()), rel=1e-13)
    assert float(pixel_sum(torch.ones(pixels).double())) == pixels


def test_equal_targets_of_a_class_that_is_absent_are_not_computed() -> None:
    """Only classes that count are looked at."""
    data = random_sample("multiclass", 65, (6, 7))
    data["target"] = one_hot(torch.zeros(6, 7, dtype=torch.long), 3)
    passed: list[int] = []
    loss = LOSSES["lovasz_softmax"]
    assert isinstance(loss, SampleLoss)
    with torch.no_grad():
        values = loss.value(sample_of(data, checkpoint=lambda: passed.append(1)), loss.parameters())
    assert len(passed) == 1
    assert values.per_class is not None
    assert values.per_class.isnan().tolist() == [False, True, True]
