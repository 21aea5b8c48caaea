"""Losses of embeddings: hand-checked numbers, coinciding points, instances, refusals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs import make_job
from lossd.losses import embeddings as module
from lossd.losses.embeddings import (
    center,
    contrastive,
    hinge_embedding,
    spatial_embedding,
    triplet,
)
from lossd_client.errors import InvalidInputError
from oracles.rows import ORACLE

Loss = Callable[..., Tensor]
Inputs = dict[str, Tensor]

COLUMN, ROW = 2 / 2047, 1 / 1023


def table(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.manual_seed(seed))


def whole(seed: int, high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.manual_seed(seed))


def floats(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def evaluate(loss: Loss, inputs: Inputs, **params: Any) -> tuple[Tensor, Inputs]:
    """Values, and the gradient of their sum with respect to every input of real numbers."""
    real = {
        name: tensor.clone().requires_grad_()
        for name, tensor in inputs.items()
        if tensor.is_floating_point()
    }
    value = loss(**{**inputs, **real}, **params)
    slopes = torch.autograd.grad(value.sum(), list(real.values()))
    return value.detach(), dict(zip(real, slopes, strict=True))


def pair(count: int = 9) -> Inputs:
    return {
        "first": table(1, count, 5),
        "second": table(2, count, 5),
        "similar": whole(3, 2, count),
    }


def three(count: int = 9) -> Inputs:
    names = ("anchor", "positive", "negative")
    return {name: table(4 + i, count, 5) for i, name in enumerate(names)}


def classes(count: int = 9) -> Inputs:
    return {
        "embeddings": table(7, count, 5),
        "target": whole(8, 3, count),
        "centers": table(9, 3, 5),
    }


def instances(count: int = 9) -> Inputs:
    return {"embeddings": 0.5 * table(10, count, 4, 5, 6), "target": whole(11, 4, count, 5, 6)}


VARIANTS: list[tuple[Loss, Callable[..., Inputs], dict[str, Any]]] = [
    (contrastive, pair, {}),
    (contrastive, pair, {"margin": 4.0}),
    (triplet, three, {}),
    (triplet, three, {"squared": False}),
    (triplet, three, {"normalize": False}),
    (triplet, three, {"squared": False, "normalize": False, "margin": 1.0}),
    (center, classes, {}),
    (hinge_embedding, instances, {}),
    (hinge_embedding, instances, {"squared": True}),
    (hinge_embedding, instances, {"delta": 0.0}),
    (spatial_embedding, instances, {}),
]


@pytest.mark.parametrize(("loss", "make", "params"), VARIANTS)
def test_values_and_gradients_are_the_oracles(
    loss: Loss, make: Callable[..., Inputs], params: dict[str, Any]
) -> None:
    inputs = make()
    value, slopes = evaluate(loss, inputs, **params)

    def by_oracle(**given: Tensor) -> Tensor:
        rows = [
            {name: one if name == "centers" else one[i] for name, one in given.items()}
            for i in range(len(value))
        ]
        return torch.stack([ORACLE[loss.__name__](row, params) for row in rows])

    expected, expected_slopes = evaluate(by_oracle, inputs)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(slopes, expected_slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "make", "params"), [one for one in VARIANTS if one[0] is not spatial_embedding]
)
def test_gradients_are_finite_differences(
    loss: Loss, make: Callable[..., Inputs], params: dict[str, Any]
) -> None:
    inputs = make(2)
    names = [name for name, tensor in inputs.items() if tensor.is_floating_point()]
    leaves = tuple(inputs[name].clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(
        lambda *given: loss(**{**inputs, **dict(zip(names, given, strict=True))}, **params), leaves
    )


@pytest.mark.parametrize(("loss", "make", "params"), VARIANTS)
def test_a_sample_has_the_same_bits_in_any_company(
    loss: Loss, make: Callable[..., Inputs], params: dict[str, Any]
) -> None:
    inputs = make(19)
    value, slopes = evaluate(loss, inputs, **params)
    for first, last in ((0, 1), (5, 6), (18, 19), (3, 6)):
        part = {
            name: one if name == "centers" else one[first:last].clone()
            for name, one in inputs.items()
        }
        own, own_slopes = evaluate(loss, part, **params)
        assert torch.equal(own, value[first:last])
        for name in set(own_slopes) - {"centers"}:
            assert torch.equal(own_slopes[name], slopes[name][first:last])


# -- pairs ---------------------------------------------------------------------------------------


def test_half_a_unit_apart_costs_an_eighth_either_way() -> None:
    inputs = {"first": floats([[0.0], [0.0]]), "second": floats([[0.5], [0.5]])}
    value, slopes = evaluate(contrastive, {**inputs, "similar": torch.tensor([1, 0])})
    assert value.tolist() == [0.125, 0.125]
    assert slopes["first"].flatten().tolist() == [-0.5, 0.5]
    assert slopes["second"].flatten().tolist() == [0.5, -0.5]


def test_one_means_similar() -> None:
    inputs = {"first": floats([[0.0], [0.0]]), "second": floats([[3.0], [3.0]])}
    value, _ = evaluate(contrastive, {**inputs, "similar": torch.tensor([1, 0])})
    assert value.tolist() == [4.5, 0.0]


@pytest.mark.parametrize("distance", [1.0, 1.5, 1e4])
def test_a_dissimilar_pair_beyond_the_margin_costs_nothing(distance: float) -> None:
    inputs = {"first": floats([[0.0]]), "second": floats([[distance]])}
    value, slopes = evaluate(contrastive, {**inputs, "similar": torch.tensor([0])})
    assert value.item() == 0
    assert not slopes["first"].any()


def test_a_coinciding_pair_has_a_finite_gradient() -> None:
    same = {"first": table(1, 2, 3), "second": table(1, 2, 3), "similar": torch.tensor([1, 0])}
    value, slopes = evaluate(contrastive, same, margin=2.0)
    assert value.tolist() == [0.0, 2.0]
    assert not slopes["first"].any()
    assert not slopes["second"].any()


# -- triplets ------------------------------------------------------------------------------------


def test_a_tenth_is_missing_of_a_margin_of_two_tenths() -> None:
    inputs = {
        "anchor": floats([[0.0, 0.0]]),
        "positive": floats([[math.sqrt(0.5), 0.0]]),
        "negative": floats([[0.0, math.sqrt(0.6)]]),
    }
    value, slopes = evaluate(triplet, inputs, normalize=False)
    assert value.item() == pytest.approx(0.1)
    expected = 2 * (inputs["negative"] - inputs["positive"])
    torch.testing.assert_close(slopes["anchor"], expected)
    torch.testing.assert_close(slopes["positive"], 2 * inputs["positive"])
    torch.testing.assert_close(slopes["negative"], -2 * inputs["negative"])


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_three_equal_vectors_cost_the_margin(*, squared: bool, normalize: bool) -> None:
    same = dict.fromkeys(("anchor", "positive", "negative"), table(1, 2, 3))
    value, slopes = evaluate(triplet, same, margin=0.7, squared=squared, normalize=normalize)
    assert value.tolist() == pytest.approx([0.7, 0.7])
    assert all(slope.isfinite().all() for slope in slopes.values())


def test_distances_are_squared_and_of_unit_vectors() -> None:
    inputs = {
        "anchor": floats([[5.0, 0.0]]),
        "positive": floats([[0.0, 2.0]]),
        "negative": floats([[0.1, 0.0]]),
    }
    assert triplet(**inputs).item() == pytest.approx(2.2)
    assert triplet(**inputs, squared=False).item() == pytest.approx(math.sqrt(2) + 0.2)
    assert triplet(**inputs, normalize=False).item() == pytest.approx(29 - 4.9**2 + 0.2)


def test_unsquared_triplets_are_torchs_without_its_epsilon() -> None:
    inputs = three()
    found = triplet(**inputs, margin=1.0, squared=False, normalize=False)
    expected = torch.nn.functional.triplet_margin_loss(
        inputs["anchor"],
        inputs["positive"],
        inputs["negative"],
        margin=1.0,
        eps=0.0,
        reduction="none",
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("squared", [True, False])
def test_vectors_of_zeros_are_finite(*, squared: bool) -> None:
    inputs = {name: torch.zeros(2, 3, dtype=torch.float64) for name in three()}
    inputs["negative"][0, 0] = 4.0
    inputs["positive"][1, 0] = 4.0
    value, slopes = evaluate(triplet, inputs, squared=squared)
    assert value.tolist() == pytest.approx([0.0, 1.2]), "at distance 1 from a unit vector"
    assert all(slope.isfinite().all() for slope in slopes.values())
    assert not slopes["anchor"].any()


def test_normalized_vectors_are_not_pulled_along_themselves() -> None:
    inputs = three()
    _, slopes = evaluate(triplet, inputs, margin=4.0)
    for name, slope in slopes.items():
        assert slope.any()
        along = (slope * inputs[name]).sum(1)
        torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-14)


# -- centers -------------------------------------------------------------------------------------


def test_two_embeddings_cost_nine_together_and_pull_both_ways() -> None:
    inputs = {
        "embeddings": floats([[1.0, 2.0], [3.0, 4.0]]),
        "target": torch.tensor([0, 1]),
        "centers": floats([[0.0, 0.0], [1.0, 1.0]]),
    }
    value, slopes = evaluate(center, inputs)
    assert value.tolist() == [2.5, 6.5]
    assert value.sum() == 9
    assert value.mean() == 4.5
    assert slopes["embeddings"].tolist() == [[1.0, 2.0], [2.0, 3.0]]
    assert slopes["centers"].tolist() == [[-1.0, -2.0], [-2.0, -3.0]]


def test_centers_are_pulled_by_all_their_samples_and_by_no_others() -> None:
    inputs = {
        "embeddings": floats([[1.0], [2.0], [4.0]]),
        "target": torch.tensor([2, 2, 0]),
        "centers": floats([[1.0], [5.0], [0.0]]),
    }
    _, slopes = evaluate(center, inputs)
    assert slopes["centers"].flatten().tolist() == [-3.0, 0.0, -3.0]


# -- hinge of instances --------------------------------------------------------------------------


def test_a_pixel_five_from_its_center_costs_three_beyond_a_delta_of_two() -> None:
    points = floats([[[0.0, 3.0, -3.0], [0.0, 4.0, -4.0]]])
    inputs = {"embeddings": points, "target": torch.tensor([[4, 4, 4]])}
    assert hinge_embedding(**inputs, delta=2.0).item() == pytest.approx(3 + 3)
    assert hinge_embedding(**inputs, delta=2.0, squared=True).item() == pytest.approx(9 + 9)


def test_the_hinge_is_a_sum_over_instances_and_pixels() -> None:
    inputs = {"embeddings": table(1, 1, 3, 4, 5), "target": whole(2, 3, 1, 4, 5)}
    value = hinge_embedding(**inputs)
    apart = inputs["target"] + 2 * (inputs["target"] > 0)
    doubled = {
        "embeddings": torch.cat([inputs["embeddings"]] * 2, -1),
        "target": torch.cat([inputs["target"], apart], -1),
    }
    torch.testing.assert_close(hinge_embedding(**doubled), 2 * value)


def test_the_hinge_sees_embeddings_and_not_where_pixels_lie() -> None:
    embedding, ids = table(3, 1, 3, 4, 5), whole(4, 3, 1, 4, 5)
    order = torch.randperm(20, generator=torch.manual_seed(5))
    moved = embedding.flatten(2)[..., order].reshape(1, 3, 4, 5)
    moved_ids = ids.flatten(1)[..., order].reshape(1, 4, 5)
    torch.testing.assert_close(hinge_embedding(moved, moved_ids), hinge_embedding(embedding, ids))


def test_the_center_is_differentiated() -> None:
    # Moving a whole instance changes nothing, so its gradients cancel, which they do not with a
    # constant center.
    inputs = {"embeddings": table(6, 1, 2, 4, 5), "target": torch.ones(1, 4, 5, dtype=torch.int64)}
    _, slopes = evaluate(hinge_embedding, inputs)
    assert slopes["embeddings"].abs().sum() > 1
    total = slopes["embeddings"].sum((-1, -2))
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)


def test_names_of_instances_do_not_matter_and_background_costs_nothing() -> None:
    embedding, ids = table(7, 1, 2, 4, 5), whole(8, 3, 1, 4, 5)
    renamed = torch.where(ids == 1, 2**40, torch.where(ids == 2, 1, 0))
    torch.testing.assert_close(hinge_embedding(embedding, renamed), hinge_embedding(embedding, ids))
    value, slopes = evaluate(hinge_embedding, {"embeddings": embedding, "target": ids})
    assert value > 0
    assert not slopes["embeddings"][:, :, ids[0] == 0].any()


@pytest.mark.parametrize("loss", [hinge_embedding, spatial_embedding])
def test_instances_of_one_pixel_each_are_finite(loss: Loss) -> None:
    ids = torch.arange(12).reshape(1, 3, 4)
    value, slopes = evaluate(loss, {"embeddings": table(9, 1, 4, 3, 4), "target": ids})
    assert value.isfinite().all()
    assert slopes["embeddings"].isfinite().all()


def test_pixels_on_their_center_have_gradient_zero() -> None:
    inputs = {
        "embeddings": torch.ones(1, 2, 3, dtype=torch.float64),
        "target": torch.tensor([[1, 1, 2]]),
    }
    for squared in (False, True):
        value, slopes = evaluate(hinge_embedding, inputs, delta=0.0, squared=squared)
        assert value.item() == 0
        assert not slopes["embeddings"].any()


def test_a_sample_without_instances_costs_nothing_and_pulls_nowhere() -> None:
    inputs = {
        "embeddings": table(10, 2, 3, 4),
        "target": torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]),
    }
    value, slopes = evaluate(hinge_embedding, inputs, delta=0.1)
    assert value[0] == 0
    assert value[1] > 0
    assert not slopes["embeddings"][0].any()


# -- spatial embedding ---------------------------------------------------------------------------


def test_one_pixel_that_is_an_instance_pays_for_its_seed_alone() -> None:
    inputs = {
        "embeddings": torch.zeros(1, 4, 1, 1, dtype=torch.float64),
        "target": torch.ones(1, 1, 1, dtype=torch.int64),
    }
    assert spatial_embedding(**inputs).item() == pytest.approx(10 * 0.25)


def test_two_pixels_of_one_instance_cost_what_paper_says() -> None:
    channels = torch.zeros(1, 4, 1, 2, dtype=torch.float64)
    channels[0, 2] = floats([[0.1, 0.5]])
    target = torch.ones(1, 1, 2, dtype=torch.int64)
    gaussian = math.exp(-((COLUMN / 2) ** 2) * math.exp(3.0))
    expected = 2 * (1 - gaussian) + 10 * 0.04 + 10 * (0.5 - gaussian) ** 2
    assert spatial_embedding(channels, target).item() == pytest.approx(expected, rel=1e-12)


def test_columns_advance_by_2_over_2047_and_rows_by_1_over_1023() -> None:
    # Two pixels of two instances: each is the other's background, 2 φ and the own pixel is free.
    for shape, step in (((1, 2), COLUMN), ((2, 1), ROW)):
        channels = torch.zeros(1, 4, *shape, dtype=torch.float64)
        channels[0, 2] = 1.0
        channels[0, 3] = 40.0
        target = torch.tensor([1, 2]).reshape(1, *shape)
        gaussian = math.exp(-(step**2) * math.exp(10.0))
        # The own pixel is right, so the other one alone makes Jaccard fall from 1 to 1/2.
        found = spatial_embedding(channels, target).item()
        assert found == pytest.approx(2 * gaussian * 0.5, rel=1e-9)


def test_background_alone_pays_for_its_seeds() -> None:
    inputs = {
        "embeddings": table(12, 1, 4, 3, 5),
        "target": torch.zeros(1, 3, 5, dtype=torch.int64),
    }
    value, slopes = evaluate(spatial_embedding, inputs)
    expected = inputs["embeddings"][:, 3].sigmoid().square().mean()
    torch.testing.assert_close(value[0], expected)
    assert not slopes["embeddings"][:, :3].any()


def test_seeds_learn_the_gaussian_and_not_the_reverse() -> None:
    inputs = instances(1)
    other = inputs["embeddings"].clone()
    other[:, 3] += 1.0
    _, slopes = evaluate(spatial_embedding, inputs)
    _, moved = evaluate(spatial_embedding, {**inputs, "embeddings": other})
    torch.testing.assert_close(moved["embeddings"][:, :3], slopes["embeddings"][:, :3])
    assert not torch.equal(moved["embeddings"][:, 3], slopes["embeddings"][:, 3])


def test_extreme_channels_are_finite() -> None:
    places = floats([-1e4, -20.0, -1.0, 0.0, 1e-30, 1.0, 17.0, 20.0, 1e4])
    channels = places[whole(13, len(places), 40, 4, 5, 6)]
    value, slopes = evaluate(
        spatial_embedding, {"embeddings": channels, "target": whole(14, 4, 40, 5, 6)}
    )
    assert value.isfinite().all()
    assert slopes["embeddings"].to(torch.float32).isfinite().all()


def test_a_bandwidth_beyond_bounds_is_a_point() -> None:
    # Points that differ at all are worlds apart then: only the own center is hit.
    channels = torch.zeros(1, 4, 1, 3, dtype=torch.float64)
    channels[0, 3] = 40.0
    target = torch.tensor([[[1, 2, 3]]])
    values = []
    for bandwidth in (17.0, 1e4):
        channels[0, 2] = bandwidth
        values.append(spatial_embedding(channels, target).item())
    assert values == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (1, 5, 3, 4), (1, 4, 3), (1, 4, 2, 3, 4)])
def test_a_spatial_embedding_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    target = np.zeros((shape[0], *shape[2:]), np.int64)
    with pytest.raises(InvalidInputError, match=r"takes embeddings \[B, 4, H, W\]"):
        make_job("spatial_embedding", {"embeddings": np.zeros(shape), "target": target})


def test_more_instances_than_can_be_sorted_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    channels, ids = table(19, 1, 4, 3, 4), torch.arange(12).reshape(1, 3, 4)
    monkeypatch.setattr(module, "MAX_SPATIAL_EMBEDDING_TERMS", 12 * 11)
    assert spatial_embedding(channels, ids).isfinite()
    monkeypatch.setattr(module, "MAX_SPATIAL_EMBEDDING_TERMS", 12 * 11 - 1)
    with pytest.raises(InvalidInputError, match="got 12 times 11"):
        spatial_embedding(channels, ids)
