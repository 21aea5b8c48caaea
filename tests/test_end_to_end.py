"""The real client against the real service, over a real socket."""

import asyncio
from typing import Any

import numpy as np
import pytest

from benchmarks.row_inputs import ROW_LOSSES, inputs_of
from jobs import case
from lossd_client import AsyncClient, Client, errors, losses
from lossd_client.wire import Array
from oracles.expected import expected
from service_fixture import runs

DICE_AND_FRIENDS: list[str | losses.Loss] = [
    losses.Dice(),
    losses.Tversky(fp_weight=0.3, fn_weight=0.7),
    "focal",
]


def test_values_gradients_and_maps_arrive_as_computed(service_url: str) -> None:
    one = case("multiclass", spatial=(61, 83), dtype=np.float32)
    labels = one.inputs["target"].copy()
    labels[:, :5] = 255
    with Client(service_url) as client:
        result = client.evaluate(
            DICE_AND_FRIENDS,
            logits=one.inputs["logits"],
            target=labels,
            ignore_index=255,
            gradient="total",
            maps=True,
            per_class=True,
            statistics=True,
        )
    want = {
        name: expected(
            name,
            {},
            task="multiclass",
            inputs={**one.inputs, "target": labels},
            ignore_index=255,
        )
        for name in ("dice", "tversky", "focal")
    }
    for name, (value, _) in want.items():
        np.testing.assert_allclose(result[name], value, rtol=2e-6)
    gradient = sum(gradient for _, gradient in want.values())
    np.testing.assert_allclose(
        result.gradient["logits"], gradient, rtol=0, atol=1e-5 * np.abs(gradient).max()
    )
    assert (result.gradient["logits"][:, :, :5] == 0).all()
    assert result.maps["focal"].shape == (2, 61, 83)
    assert result.per_class["dice"].shape == (2, 4)
    assert result.statistics["soft_tp"].shape == (2, 4)
    assert result.warnings == ()
    assert result.device.startswith(("cpu", "cuda"))


def test_every_loss_class_works_with_its_defaults(service_url: str) -> None:
    with Client(service_url) as client:
        catalogue = {entry["name"]: entry for entry in client.losses()}
        classes = [getattr(losses, name) for name in losses.__all__ if name != "Loss"]
        assert {cls.name for cls in classes} == set(catalogue)
        for cls in classes:
            inputs, fields = (
                (inputs_of(cls.name), {})
                if cls.name in ROW_LOSSES
                else _pixel_inputs(catalogue[cls.name]["tasks"][0])
            )
            result = client.evaluate([cls()], inputs=[inputs], **fields)
            assert np.isfinite(result[cls.name]).all()


def _pixel_inputs(task: str) -> tuple[dict[str, Array], dict[str, Any]]:
    one = case(task, dtype=np.float32)
    return one.inputs, one.fields


def test_half_precision_both_ways(service_url: str) -> None:
    one = case("multiclass", spatial=(50, 40), dtype=np.float16)
    with Client(service_url) as client:
        half = client.evaluate(
            ["dice_ce"], gradient="total", gradient_dtype="float16", **one.inputs
        )
        full = client.evaluate(["dice_ce"], gradient="total", **one.inputs)
    np.testing.assert_allclose(
        half.gradient["logits"], full.gradient["logits"], rtol=1e-3, atol=1e-9
    )


def test_many_requests_keep_their_order_whatever_their_size(service_url: str) -> None:
    sizes = [(20 + 7 * n, 90 - 6 * n) for n in range(12)]
    ones = [
        case("multiclass", spatial=size, dtype=np.float32, seed=n) for n, size in enumerate(sizes)
    ]
    with Client(service_url) as client:
        many = list(
            client.evaluate_many(
                ({**one.inputs, "gradient": "total"} for one in ones),
                losses=["dice", "focal"],
                concurrency=6,
                progress="none",
            )
        )
        for one, result in zip(ones, many, strict=True):
            alone = client.evaluate(["dice", "focal"], gradient="total", **one.inputs)
            for name in ("dice", "focal"):
                np.testing.assert_array_equal(alone[name], result[name])
            np.testing.assert_array_equal(alone.gradient["logits"], result.gradient["logits"])


def test_several_sizes_in_one_call(service_url: str) -> None:
    ones = [case("binary", spatial=size, dtype=np.float32) for size in ((9, 8), (70, 65))]
    with Client(service_url) as client:
        result = client.evaluate(
            ["dice"], inputs=[one.inputs for one in ones], task="binary", gradient="total"
        )
    assert result["dice"].shape == (4,)
    assert [array.shape for array in result.gradient["logits"]] == [(2, 1, 9, 8), (2, 1, 70, 65)]


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (errors.UnknownLossError, {"losses": ["dise"]}),
        (errors.InvalidParameterError, {"losses": [losses.Focal(gamma=-1.0)]}),
        (errors.LabelOutOfRangeError, {"target": np.full((2, 7, 5), 9, np.uint8)}),
        (errors.NonFiniteLogitsError, {"logits": np.full((2, 4, 7, 5), np.nan, np.float32)}),
        (errors.InvalidInputError, {"target": np.zeros((2, 7, 6), np.uint8)}),
    ],
)
def test_errors_come_back_as_their_class(
    service_url: str, error: type[errors.LossdError], change: dict[str, Any]
) -> None:
    one = case("multiclass", dtype=np.float32)
    arguments: dict[str, Any] = {"losses": ["dice"], **one.inputs, **change}
    with Client(service_url) as client, pytest.raises(error) as caught:
        client.evaluate(arguments.pop("losses"), **arguments)
    assert caught.value.request_id


def test_the_async_client_answers_the_same(service_url: str) -> None:
    one = case("multilabel", dtype=np.float32)

    async def ask() -> Any:
        async with AsyncClient(service_url) as client:
            return await client.evaluate(
                ["dice", "bce"], task="multilabel", gradient="total", **one.inputs
            )

    result = asyncio.run(ask())
    with Client(service_url) as client:
        same = client.evaluate(["dice", "bce"], task="multilabel", gradient="total", **one.inputs)
    np.testing.assert_array_equal(result["dice"], same["dice"])
    np.testing.assert_array_equal(result.gradient["logits"], same.gradient["logits"])


def runs_of(labels: Array) -> dict[str, Any]:
    """Labels `[B, H, W]` of 1 to 3 as run lengths; 0 is the background."""
    masks = [[runs(sample == label) for label in (1, 2, 3)] for sample in labels]
    return {"rle": masks, "labels": [[1, 2, 3]] * len(labels), "background": 0}


def test_a_kept_tensor_gives_the_bits_of_one_that_is_sent(service_url: str) -> None:
    one = case("multiclass", spatial=(61, 83), dtype=np.float32)
    logits, target = one.inputs["logits"], one.inputs["target"]
    options: dict[str, Any] = {"gradient": "total", "maps": True}
    with Client(service_url) as client:
        sent = client.evaluate(DICE_AND_FRIENDS, logits=logits, target=target, **options)
        kept = client.put(logits)
        assert np.array_equal(client.get(kept), logits)
        masks: list[Any] = [target, runs_of(target), client.put(target)]
        for mask in masks:
            found = client.evaluate(DICE_AND_FRIENDS, logits=kept, target=mask, **options)
            assert found.total.tobytes() == sent.total.tobytes()
            assert found.gradient["logits"].tobytes() == sent.gradient["logits"].tobytes()
            assert found.maps["focal"].tobytes() == sent.maps["focal"].tobytes()


def test_a_forgotten_tensor_is_uploaded_again_unnoticed(service_url: str) -> None:
    one = case("multiclass", spatial=(61, 83), dtype=np.float32)
    logits, target = one.inputs["logits"], one.inputs["target"]
    small = logits[:, :, :20, :30]

    async def run() -> None:
        async with AsyncClient(service_url) as client:
            kept = [await client.put(logits), await client.put(small)]
            inputs: list[dict[str, Any]] = [
                {"logits": kept[0], "target": runs_of(target)},
                {"logits": kept[1], "target": target[:, :20, :30]},
            ]
            before = await client.evaluate("dice", inputs=inputs)
            for each in kept:
                await client.delete(each)
                with pytest.raises(errors.UnknownRefError):
                    await client.get(each)
            after = await client.evaluate("dice", inputs=inputs)
            assert before["dice"].tobytes() == after["dice"].tobytes()
            assert np.array_equal(await client.get(kept[1]), small)

    asyncio.run(run())


def test_a_ref_that_nobody_put_is_the_callers_error(service_url: str) -> None:
    target = np.zeros((1, 8, 8), np.uint8)
    with Client(service_url) as client:
        with pytest.raises(errors.UnknownRefError, match="f" * 64) as caught:
            client.evaluate("dice", logits={"ref": "f" * 64}, target=target)
        assert caught.value.errors[0].loc[-1] == "logits"
