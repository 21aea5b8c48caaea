"""What a request can ask for besides a plain value."""

import numpy as np
import pytest

from jobs import Core, case, make_job
from lossd.core.job import Outcome
from lossd_client.wire import NUMPY_DTYPES, Array
from oracles.expected import expected

ROWS = [
    {"name": "dice", "weight": 2.0},
    {"name": "focal", "weight": -0.5},
    {"name": "focal", "label": "flat", "params": {"gamma": 0.5}, "weight": 3.0},
    "cross_entropy",
]


def test_total_is_the_weighted_sum_of_values_and_of_gradients(core: Core) -> None:
    one = case("multiclass", spatial=(70, 80))
    each = core.tensors(make_job(ROWS, one.inputs, gradient="each"))
    total = core.tensors(make_job(ROWS, one.inputs, gradient="total"))
    weights = {"dice": 2.0, "focal": -0.5, "flat": 3.0, "cross_entropy": 1.0}
    value = sum(weight * each[f"loss/{row}"] for row, weight in weights.items())
    gradient = sum(weight * each[f"gradient/logits/{row}"] for row, weight in weights.items())
    np.testing.assert_allclose(total["total"], value, rtol=1e-14)
    np.testing.assert_allclose(total["gradient/logits"], gradient, rtol=0, atol=1e-16)
    assert "gradient/logits" not in each


def test_each_gradient_is_that_of_its_loss(core: Core) -> None:
    one = case("multilabel", spatial=(65, 65))
    each = core.tensors(make_job(ROWS, one.inputs, task="multilabel", gradient="each"))
    for row, params in (("dice", {}), ("focal", {}), ("flat", {"gamma": 0.5})):
        loss = "focal" if row == "flat" else row
        _, want = expected(loss, params, task="multilabel", inputs=one.inputs)
        got = each[f"gradient/logits/{row}"]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_aggregate_batch_is_the_loss_of_all_pixels_together(core: Core, task: str) -> None:
    one = case(task, batch=3)
    job = make_job(
        ["dice", "cross_entropy"], one.inputs, task=task, aggregate="batch", gradient="each"
    )
    tensors = core.tensors(job)

    def joined(array: Array) -> Array:
        if array.ndim == one.inputs["logits"].ndim:
            return np.moveaxis(array, 0, 1).reshape(1, array.shape[1], -1)
        return array.reshape(1, -1)

    together = {name: joined(array) for name, array in one.inputs.items()}
    want, want_gradient = expected("dice", {}, task=task, inputs=together)
    np.testing.assert_allclose(tensors["loss/dice"], np.repeat(want, 3), rtol=1e-13)
    assert len(set(tensors["loss/dice"])) == 1
    got = joined(tensors["gradient/logits/dice"])
    np.testing.assert_allclose(got, want_gradient, atol=1e-14)
    alone, _ = expected("cross_entropy", {}, task=task, inputs=one.inputs)
    np.testing.assert_allclose(tensors["loss/cross_entropy"], alone, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("spatial", [(40, 40), (300, 300)])
def test_half_gradients_are_scaled_and_nothing_large_is_lost(
    core: Core, dtype: str, spatial: tuple[int, int]
) -> None:
    one = case("multiclass", spatial=spatial, dtype=np.float32)
    exact = core.tensors(make_job("dice_ce", one.inputs, gradient="total"))["gradient/logits"]
    half = core.tensors(make_job("dice_ce", one.inputs, gradient="total", gradient_dtype=dtype))
    stored, scale = half["gradient/logits"], half["gradient_scale/logits"]
    assert stored.dtype.name == dtype
    assert (np.frexp(scale)[0] == 0.5).all(), "a scale is a power of two"
    restored = stored.astype(np.float64) * scale[:, None, None, None]
    step = 2**-11 if dtype == "float16" else 2**-8
    np.testing.assert_allclose(restored, exact, rtol=step, atol=1e-7 * np.abs(exact).max())
    # Unscaled, most entries of an image of 90 000 pixels would be 0 in float16.
    assert ((stored == 0) == (exact == 0)).mean() > 0.999


def test_half_gradients_of_zero_stay_zero(core: Core) -> None:
    one = case("multiclass", dtype=np.float32)
    mask = np.zeros((2, 7, 5), np.uint8)
    job = make_job("ce", {**one.inputs, "mask": mask}, gradient="total", gradient_dtype="float16")
    tensors = core.tensors(job)
    assert (tensors["gradient/logits"] == 0).all()
    assert (tensors["gradient_scale/logits"] == 1).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("logits_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gap_nats", [30.0, 75.0, 80.0, 90.0, 110.0])
def test_half_gradients_of_masks_that_are_right_are_tiny_and_finite(
    core: Core, dtype: str, logits_dtype: type, gap_nats: float
) -> None:
    mask = np.indices((1, 64, 64)).sum(0).astype(np.uint8) % 2
    logits = np.stack([mask == 0, mask == 1], 1).astype(logits_dtype) * gap_nats
    inputs = {"logits": logits, "target": mask}
    exact = core.tensors(make_job("ce", inputs, gradient="total"))["gradient/logits"]
    half = core.tensors(make_job("ce", inputs, gradient="total", gradient_dtype=dtype))
    stored, scale = half["gradient/logits"], half["gradient_scale/logits"]
    assert (np.frexp(scale)[0] == 0.5).all()
    assert np.isfinite(1 / scale).all()
    restored = stored.astype(np.float64) * scale[:, None, None, None]
    np.testing.assert_allclose(restored, exact, rtol=2**-8, atol=2.0**-149)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_half_logits_are_computed_as_the_numbers_they_are(core: Core, dtype: str) -> None:
    kind = NUMPY_DTYPES[dtype]
    one = case("multiclass", dtype=np.float32)
    logits = one.inputs["logits"].astype(kind)
    tensors = core.tensors(make_job("dice_ce", {**one.inputs, "logits": logits}, gradient="total"))
    wide = {**one.inputs, "logits": logits.astype(np.float64)}
    want, want_gradient = expected("dice_ce", {}, task="multiclass", inputs=wide)
    np.testing.assert_allclose(tensors["total"], want, rtol=2e-6)
    np.testing.assert_allclose(
        tensors["gradient/logits"], want_gradient, atol=1e-5 * np.abs(want_gradient).max()
    )


def test_several_sizes_answer_in_order(core: Core) -> None:
    ones = [
        case("multiclass", spatial=spatial, batch=b) for spatial, b in (((9, 4), 2), ((80, 70), 1))
    ]
    job = make_job(
        "dice", [one.inputs for one in ones], gradient="total", maps=True, statistics=True
    )
    tensors = core.tensors(job)
    assert tensors["loss/dice"].shape == (3,)
    assert tensors["0/gradient/logits"].shape == (2, 4, 9, 4)
    assert tensors["1/gradient/logits"].shape == (1, 4, 80, 70)
    assert tensors["statistics/soft_tp"].shape == (3, 4)
    for index, one in enumerate(ones):
        alone = core.tensors(make_job("dice", one.inputs, gradient="total"))
        np.testing.assert_array_equal(tensors[f"{index}/gradient/logits"], alone["gradient/logits"])


def test_a_huge_mask_is_summed_right(core: Core) -> None:
    """Sixteen million pixels: a running float32 sum would stop counting."""
    side = 4096
    logits = np.full((1, 1, side, side), -2.0, np.float16)
    target = np.zeros((1, side, side), np.uint8)
    target[:, : side // 2] = 1
    tensors = core.tensors(
        make_job(["bce", "dice"], {"logits": logits, "target": target}, statistics=True)
    )
    p = 1 / (1 + np.exp(2.0))
    half = side * side / 2
    # float32's rounding of q = 0.88, seen through TP = Y - FN, is 4e-7 of TP.
    assert tensors["statistics/soft_tp"][0, 0] == pytest.approx(half * p, rel=1e-6)
    assert tensors["loss/bce"][0] == pytest.approx(-(np.log(p) + np.log(1 - p)) / 2, rel=2e-6)


def test_no_kernel_is_compiled_for_a_size_or_a_number_of_classes(core: Core) -> None:
    """After the kernels are ready a recompile is an error, so that any answer proves it."""
    for channels in (2, 3, 6, 21, 64):
        for spatial in ((2,), (33, 77), (3, 5, 70)):
            one = case("multiclass", channels=channels, spatial=spatial, dtype=np.float32)
            (outcome,) = core.run([make_job(ROWS, one.inputs, gradient="total", maps=True)])
            assert isinstance(outcome, Outcome)
