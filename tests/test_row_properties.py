"""What must hold of every loss without pixels of the registry, by being registered."""

from typing import Any

import numpy as np
import pytest

from benchmarks.row_inputs import ROW_LOSSES, differentiable, inputs_of, shared
from jobs import Core, make_job
from lossd_client.errors import InvalidInputError, LabelOutOfRangeError
from lossd_client.wire import NUMPY_DTYPES, Array
from oracles.expected import expected_rows
from variants import variants

NAMES = list(ROW_LOSSES)


def answer(
    core: Core, name: str, params: dict[str, Any], inputs: dict[str, Array], **fields: Any
) -> dict[str, Array]:
    fields = {"gradient": "total", **fields}
    return core.tensors(make_job({"name": name, "params": params}, inputs, **fields))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_textbook_formula(
    core: Core, name: str, seed: int
) -> None:
    inputs = inputs_of(name, seed)
    for params in variants(name):
        tensors = answer(core, name, params, inputs)
        want, gradients = expected_rows(
            name, params, inputs, shared=shared(name), differentiable=differentiable(name)
        )
        np.testing.assert_allclose(tensors[f"loss/{name}"], want, rtol=1e-11, atol=1e-13)
        for key, gradient in gradients.items():
            got = tensors[f"gradient/{key}"]
            tolerance = 1e-10 * np.abs(gradient).max() + 1e-14
            np.testing.assert_allclose(got, gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_derivative_of_the_value(core: Core, name: str) -> None:
    step = 1e-5
    rng = np.random.default_rng(1)
    inputs = inputs_of(name, 1)
    tensors = answer(core, name, {}, inputs)
    for key in differentiable(name):
        if name in ("ciou", "spatial_embedding", "ghm_regression"):
            continue  # the contract detaches part of the value
        for flat in rng.choice(inputs[key].size, 4, replace=False):
            where = np.unravel_index(flat, inputs[key].shape)
            sides = []
            for steps in (2, 1, -1, -2):
                moved = {**inputs, key: inputs[key].copy()}
                moved[key][where] += steps * step
                sides.append(answer(core, name, {}, moved, gradient="none")["total"].sum())
            difference = (-sides[0] + 8 * sides[1] - 8 * sides[2] + sides[3]) / (12 * step)
            assert difference == pytest.approx(
                tensors[f"gradient/{key}"][where], rel=1e-6, abs=1e-8
            )


@pytest.mark.parametrize("name", NAMES)
def test_company_and_order_change_no_bit(core: Core, name: str) -> None:
    inputs = inputs_of(name, 2, np.float32)
    together = answer(core, name, {}, inputs)
    own = [key for key in differentiable(name) if key not in shared(name)]
    for rows in ([0], [3], [5, 1], [4, 2, 0, 3, 1]):
        part = {key: array if key in shared(name) else array[rows] for key, array in inputs.items()}
        tensors = answer(core, name, {}, part)
        np.testing.assert_array_equal(tensors["total"], together["total"][rows])
        for key in own:
            np.testing.assert_array_equal(
                tensors[f"gradient/{key}"], together[f"gradient/{key}"][rows]
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_large_company_changes_no_bit(core: Core, name: str) -> None:
    """More numbers than a vector unit takes at once, with some left over."""
    several = [inputs_of(name, seed, np.float64) for seed in range(7)]
    inputs = {
        key: several[0][key]
        if key in shared(name)
        else np.concatenate([one[key] for one in several])
        for key in several[0]
    }
    own = [key for key in differentiable(name) if key not in shared(name)]
    for params in variants(name):
        together = answer(core, name, params, inputs)
        for row in range(len(together["total"])):
            one = slice(row, row + 1)
            part = {
                key: array if key in shared(name) else array[one] for key, array in inputs.items()
            }
            alone = answer(core, name, params, part)
            assert alone["total"] == together["total"][one]
            for key in own:
                found, expected = alone[f"gradient/{key}"], together[f"gradient/{key}"][one]
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_other_dtypes_keep_the_promised_digits(core: Core, name: str, dtype: str) -> None:
    inputs = {
        key: array.astype(NUMPY_DTYPES[dtype]) if key in differentiable(name) else array
        for key, array in inputs_of(name, 3).items()
    }
    tensors = answer(core, name, {}, inputs)
    want, gradients = expected_rows(
        name, {}, inputs, shared=shared(name), differentiable=differentiable(name)
    )
    np.testing.assert_allclose(tensors["total"], want, rtol=2e-6, atol=1e-9)
    for key, gradient in gradients.items():
        got = tensors[f"gradient/{key}"]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, gradient, rtol=0, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_gradients_are_scaled_by_powers_of_two(core: Core, name: str) -> None:
    inputs = inputs_of(name, 4)
    full = answer(core, name, {}, inputs)
    half = answer(core, name, {}, inputs, gradient_dtype="float16")
    for key in differentiable(name):
        scale = half[f"gradient_scale/{key}"]
        assert (np.exp2(np.round(np.log2(scale))) == scale).all()
        stored = half[f"gradient/{key}"].astype(np.float64)
        assert scale.shape == ((1,) if key in shared(name) else (6,))
        restored = stored * scale.reshape(-1, *[1] * (stored.ndim - 1))
        if key in shared(name):
            restored = stored * scale[0]
        want = full[f"gradient/{key}"]
        np.testing.assert_allclose(restored, want, rtol=0, atol=1e-3 * np.abs(want).max() + 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_large_inputs_give_finite_values_and_gradients(core: Core, name: str) -> None:
    rng = np.random.default_rng(5)
    inputs = inputs_of(name, 5)
    for key in differentiable(name):
        inputs[key] = rng.choice([-1e4, 0.0, 1e4], inputs[key].shape)
    for array in answer(core, name, {}, inputs).values():
        assert np.isfinite(array).all()


@pytest.mark.parametrize("name", NAMES)
def test_all_zero_inputs_give_finite_values_and_gradients(core: Core, name: str) -> None:
    inputs = {key: np.zeros_like(array) for key, array in inputs_of(name).items()}
    for array in answer(core, name, {}, inputs).values():
        assert np.isfinite(array).all()


@pytest.mark.parametrize("name", NAMES)
def test_each_gradient_adds_up_to_the_total(core: Core, name: str) -> None:
    inputs = inputs_of(name, 6)
    rows = [{"name": name, "weight": 2.0}, {"name": name, "label": "again", "weight": -0.5}]
    each = core.tensors(make_job(rows, inputs, gradient="each"))
    total = core.tensors(make_job(rows, inputs, gradient="total"))
    for key in differentiable(name):
        parts = 2.0 * each[f"gradient/{key}/{name}"] - 0.5 * each[f"gradient/{key}/again"]
        want = total[f"gradient/{key}"]
        np.testing.assert_allclose(parts, want, rtol=0, atol=1e-13 * np.abs(want).max() + 1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_several_input_objects_are_answered_in_their_order(core: Core, name: str) -> None:
    objects = [inputs_of(name, seed) for seed in (7, 8)]
    tensors = core.tensors(make_job(name, objects, gradient="total"))
    for index, one in enumerate(objects):
        alone = core.tensors(make_job(name, one, gradient="total"))
        np.testing.assert_array_equal(tensors["total"][6 * index : 6 * index + 6], alone["total"])
        for key in differentiable(name):
            np.testing.assert_array_equal(
                tensors[f"{index}/gradient/{key}"], alone[f"gradient/{key}"]
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_input_an_unknown_one_and_a_wrong_shape_are_named(name: str) -> None:
    inputs = inputs_of(name)
    for key, array in inputs.items():
        with pytest.raises(InvalidInputError, match=f"{key} is missing"):
            make_job(name, {other: one for other, one in inputs.items() if other != key})
        with pytest.raises(InvalidInputError, match=key):
            make_job(name, {**inputs, key: np.zeros((2, *array.shape, 1, 1, 1), array.dtype)})
    with pytest.raises(InvalidInputError, match="unknown input 'colour'"):
        make_job(name, {**inputs, "colour": np.zeros(2)})


@pytest.mark.parametrize("name", NAMES)
def test_values_out_of_range_are_named_with_their_place(name: str) -> None:
    for one in ROW_LOSSES[name].inputs:
        inputs = inputs_of(name)
        wrong = inputs[one.name] = inputs[one.name].copy()
        first = (0,) * wrong.ndim
        wrong[first] = np.nan if wrong.dtype.kind == "f" else -1
        with pytest.raises((InvalidInputError, LabelOutOfRangeError), match=one.name) as caught:
            make_job(name, inputs)
        assert caught.value.errors
        if one.values in ("unit", "bin"):
            wrong[first] = 1e6
            with pytest.raises(InvalidInputError, match="lies outside"):
                make_job(name, inputs)


def test_losses_of_one_kind_share_a_request_and_others_do_not(core: Core) -> None:
    boxes = inputs_of("giou")
    tensors = core.tensors(make_job(["giou", {"name": "l1", "weight": 5.0}], boxes))
    alone = core.tensors(make_job("giou", boxes))
    np.testing.assert_array_equal(tensors["loss/giou"], alone["total"])
    with pytest.raises(InvalidInputError, match="dice is a loss of pixels, giou of kind box"):
        make_job(["giou", "dice"], boxes)


@pytest.mark.parametrize(
    "field",
    [{"ignore_index": 255}, {"statistics": True}, {"spacing": [1.0]}, {"aggregate": "batch"}],
)
def test_fields_about_pixels_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(field))):
        make_job("l1", inputs_of("l1"), **field)
