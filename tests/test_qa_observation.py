"""The first look at predictions: losses, levels, margins, histograms and scores by definition."""

import math
import shutil

import numpy as np
import pytest
import torch
from scipy import ndimage

from lossd.core.evaluation import evaluate
from lossd.core.in_place import InPlace, Picture, Seen, build
from lossd.core.job import ObservationJob, ObservationPart, Outcome
from lossd.core.passes import Workspace
from lossd.qa import observation
from lossd.qa.observation import (
    OBSERVED,
    boundary,
    evaluate_observation,
    histogram,
    observe,
    scores,
)
from lossd_client.errors import InvalidInputError, LossdError, NonFiniteLogitsError
from lossd_client.qa_wire import HISTOGRAM, LOSS_LEVELS, MARGIN, PREDICTED, PredictionKind
from lossd_client.wire import Array
from qa_images import cross_entropy, picture, softmax


def look(
    prediction: Array, labels: Array, kind: PredictionKind = "logits", classes: int = 4
) -> Seen:
    flat = torch.from_numpy(prediction.reshape(-1, labels.size))
    rows = labels.reshape(-1, labels.shape[-1])
    given = torch.from_numpy(rows.reshape(-1))
    return observe(flat, given, (rows.shape[0], rows.shape[1]), kind, classes)


def outcome(*parts: ObservationPart, kind: PredictionKind = "logits", classes: int = 4) -> Outcome:
    found = computed(*parts, kind=kind, classes=classes)
    assert isinstance(found, Outcome)
    return found


def computed(
    *parts: ObservationPart, kind: PredictionKind = "logits", classes: int = 4
) -> Outcome | LossdError:
    job = ObservationJob(parts, kind, classes)
    (found,) = evaluate([job], {}, Workspace(torch.device("cpu"), 8192))
    return found


def part(prediction: Array, labels: Array) -> ObservationPart:
    batch, *size = labels.shape
    return ObservationPart(
        torch.from_numpy(prediction.reshape(batch, -1, labels[0].size)),
        torch.from_numpy(labels.reshape(batch, -1)),
        (size[0], size[1]),
        ("inputs", "prediction"),
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
def test_logits_are_read_as_the_definitions_say(seed: int, dtype: type) -> None:
    logits, target = picture(seed)
    logits = logits.astype(dtype)
    labels = target.astype(np.int8)
    labels[3:6, 7:9] = -1
    seen = look(logits, labels)
    p = softmax(logits)
    loss = np.where(labels >= 0, cross_entropy(p, np.maximum(labels, 0)), 0).reshape(-1)
    np.testing.assert_allclose(seen.loss, loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        seen.levels, np.minimum(255, np.rint(seen.loss * np.float32(16))).astype(np.uint8)
    )
    np.testing.assert_array_equal(seen.predicted.reshape(labels.shape), logits.argmax(0))
    own = np.take_along_axis(p, np.maximum(labels, 0)[None].astype(np.intp), 0)[0]
    margin = np.where(labels >= 0, 255 * (p.max(0) - own), 0)
    assert np.abs(seen.margin.reshape(labels.shape) - margin).max() <= 0.5 + 1e-3


def test_the_block_size_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = picture(1)
    whole = look(logits, target.astype(np.int8))
    monkeypatch.setattr(observation, "_BLOCK_PIXELS", 37)
    pieces = look(logits, target.astype(np.int8))
    for name in ("loss", "levels", "predicted", "margin"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))


def test_one_channel_is_two_classes() -> None:
    logits, _ = picture(2, classes=2)
    labels = np.random.default_rng(0).integers(0, 2, logits[0].shape).astype(np.int8)
    two = np.stack([np.zeros_like(logits[1]), logits[1]])
    one, both = look(logits[1:], labels, classes=2), look(two, labels, classes=2)
    np.testing.assert_allclose(one.loss, both.loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one.predicted, both.predicted)
    assert np.abs(one.margin.astype(int) - both.margin).max() <= 1


def test_probabilities_are_taken_as_they_are() -> None:
    p = np.array([[0.25, 0.0, 0.1], [0.75, 1.0, 0.9]], np.float32)
    seen = look(p, np.array([0, 0, 1], np.int8), "probabilities", 2)
    np.testing.assert_allclose(seen.loss, [-math.log(0.25), 16, -math.log(0.9)], rtol=1e-6)
    assert seen.levels.tolist() == [22, 255, 2]
    # A margin of exactly a half is not more than a half.
    assert seen.margin.tolist() == [127, 255, 0]
    assert seen.predicted.tolist() == [1, 1, 1]
    on = look(p[1:], np.array([0, 0, 1], np.int8), "probabilities", 2)
    np.testing.assert_allclose(on.loss, seen.loss, rtol=1e-6)
    assert on.margin.tolist() == seen.margin.tolist()


def test_labels_say_no_probability() -> None:
    seen = look(np.array([1, 2, 9], np.uint8), np.array([1, 0, -1], np.int8), "labels")
    assert seen.loss.tolist() == [0, 8, 0]
    assert seen.levels.tolist() == [0, 128, 0]
    assert seen.margin.tolist() == [0, 255, 0]
    assert seen.predicted.tolist() == [1, 2, 0]


def test_classes_beyond_a_byte_need_two() -> None:
    logits = np.zeros((300, 2), np.float32)
    logits[299, 0] = 9
    seen = look(logits, np.array([299, 3], np.int16), classes=300)
    assert seen.predicted.dtype == np.int16
    assert seen.predicted.tolist() == [299, 0]


def test_the_histogram_counts_what_counts() -> None:
    counts = histogram(np.array([0, 1, 1, -1], np.int8), np.array([5, 255, 255, 5], np.uint8), 3)
    assert counts.shape == (3, 256)
    assert (counts[0, 5], counts[1, 255], counts.sum()) == (1, 2, 3)


@pytest.mark.parametrize("seed", range(3))
def test_the_boundary_is_within_three_pixels_of_a_change(seed: int) -> None:
    _, target = picture(seed)
    beside = np.zeros(target.shape, bool)
    beside[1:] |= target[1:] != target[:-1]
    beside[:-1] |= target[1:] != target[:-1]
    beside[:, 1:] |= target[:, 1:] != target[:, :-1]
    beside[:, :-1] |= target[:, 1:] != target[:, :-1]
    far = ndimage.distance_transform_cdt(~beside, "chessboard")
    np.testing.assert_array_equal(boundary(target), far <= 2)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_means_that_their_names_say(seed: int) -> None:
    logits, target = picture(seed)
    labels = target.astype(np.int8)
    labels[:4, :9] = -1
    seen = look(logits, labels)
    found = scores(seen)
    valid = labels >= 0
    loss = seen.loss.reshape(labels.shape).astype(np.float64)
    wanted = math.ceil(np.count_nonzero(valid) * 0.003)
    expected = [
        np.sort(loss[valid])[-wanted:].mean(),
        loss[valid & boundary(labels)].mean(),
        loss[valid].mean(),
        (loss[valid] ** 4).mean() ** 0.25,
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_mask_of_one_class_has_no_boundary_and_an_ignored_one_no_score() -> None:
    logits, target = picture(0)
    labels = np.zeros_like(target).astype(np.int8)
    seen = look(logits, labels)
    found = scores(seen)
    assert math.isnan(found[1])
    assert found[0] > 0
    nothing = np.full_like(labels, -1)
    seen = look(np.full_like(logits, np.nan), nothing)
    found = scores(seen)
    np.testing.assert_array_equal(found, [0, np.nan, 0, 0])


def test_company_changes_no_bit() -> None:
    pictures = [picture(seed) for seed in range(3)]
    logits = np.stack([one for one, _ in pictures])
    labels = np.stack([one for _, one in pictures]).astype(np.int8)
    other, target = picture(9, size=(12, 17))
    together = outcome(part(logits, labels), part(other[None], target[None].astype(np.int8)))
    names = (LOSS_LEVELS, PREDICTED, MARGIN, HISTOGRAM, OBSERVED)
    assert set(together.tensors) == {f"{index}/{name}" for index in range(4) for name in names}
    for index in range(3):
        alone = outcome(part(logits[index : index + 1], labels[index : index + 1]))
        for name in names:
            np.testing.assert_array_equal(
                alone.tensors[name], together.tensors[f"{index}/{name}"], strict=True
            )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_count_are_finite(value: float) -> None:
    logits, target = picture(0)
    logits[2, 5, 7] = value
    labels = target.astype(np.int8)
    error = computed(part(logits[None], labels[None]))
    assert isinstance(error, NonFiniteLogitsError)
    assert error.errors[0].loc == ("inputs", "prediction", 0, 2, 5, 7)
    labels[5, 7] = -1
    assert isinstance(computed(part(logits[None], labels[None])), Outcome)


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.1])
def test_probabilities_that_count_lie_in_the_unit_interval(value: float) -> None:
    logits, target = picture(0)
    p = softmax(logits).astype(np.float32)
    p[1, 4, 3] = value
    error = computed(part(p[None], target[None].astype(np.int8)), kind="probabilities")
    assert isinstance(error, InvalidInputError)
    assert error.errors[0].loc == ("inputs", "prediction", 0, 1, 4, 3)


def test_a_bad_image_does_not_harm_its_neighbours() -> None:
    logits, target = picture(0)
    good = ObservationJob((part(logits[None], target[None].astype(np.int8)),), "logits", 4)
    bad_logits = np.full_like(logits, np.nan)
    bad = ObservationJob((part(bad_logits[None], target[None].astype(np.int8)),), "logits", 4)
    first, second = evaluate([bad, good], {}, Workspace(torch.device("cpu"), 8192))
    assert isinstance(first, NonFiniteLogitsError)
    assert isinstance(second, Outcome)


@pytest.fixture(scope="module")
def in_place(tmp_path_factory: pytest.TempPathFactory) -> InPlace:
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    return InPlace(build(tmp_path_factory.mktemp("in_place")), "softmax_labels")


@pytest.mark.parametrize("classes", [2, 5, 300])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_pass_in_place_sees_what_torch_sees(
    in_place: InPlace, dtype: type, classes: int
) -> None:
    rng, size = np.random.default_rng(classes), (71, 70)
    logits = torch.from_numpy((rng.normal(size=(classes, 4970)) * 5).astype(dtype))
    labels = torch.from_numpy(rng.integers(-1, classes, 4970).astype(np.int16))
    logits[:, labels < 0] = torch.nan
    (found,) = in_place.observe([Picture(logits, labels, size)])
    assert found is not None
    loss, levels, predicted, margin, counts, sums = found
    expected = observe(logits, labels, size, "logits", classes)
    np.testing.assert_allclose(sums, expected.sums, rtol=1e-5)
    np.testing.assert_allclose(loss, expected.loss, rtol=1e-5, atol=1e-5)
    assert np.abs(levels.astype(int) - expected.levels).max() <= 1
    assert np.count_nonzero(levels != expected.levels) <= 3
    assert np.abs(margin.astype(int) - expected.margin).max() <= 1
    valid = labels.numpy() >= 0
    np.testing.assert_array_equal(predicted[valid], expected.predicted[valid])
    assert predicted.dtype == expected.predicted.dtype
    assert predicted.max() < classes
    np.testing.assert_array_equal(counts, histogram(labels.numpy(), levels, classes))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_pass_in_place_finds_what_is_no_number(in_place: InPlace, value: float) -> None:
    logits = torch.zeros(3, 5000)
    logits[1, 4711] = value
    labels = torch.zeros(5000, dtype=torch.int8)
    good = Picture(torch.zeros(3, 6), torch.zeros(6, dtype=torch.int8), (2, 3))
    bad = Picture(logits, labels, (50, 100))
    assert in_place.observe([bad]) == [None]
    assert [seen is None for seen in in_place.observe([good, bad, good])] == [False, True, False]
    labels[4711] = -1
    assert in_place.observe([bad]) != [None]


def test_the_pass_in_place_sees_alike_in_any_company(in_place: InPlace) -> None:
    pictures = []
    for seed, size in enumerate([(30, 41), (7, 7), (64, 200), (130, 90)]):
        logits, target = picture(seed, size=size)
        flat = torch.from_numpy(logits.reshape(4, -1))
        pictures.append(Picture(flat, torch.from_numpy(target.reshape(-1).astype(np.int16)), size))
    for number, together in enumerate(in_place.observe(pictures)):
        (alone,) = in_place.observe([pictures[number]])
        assert together is not None
        assert alone is not None
        for name, array in together._asdict().items():
            np.testing.assert_array_equal(array, getattr(alone, name), err_msg=name, strict=True)


def test_a_job_takes_the_pass_in_place_where_there_is_one(in_place: InPlace) -> None:
    logits, target = picture(0)
    job = ObservationJob((part(logits[None], target[None].astype(np.int8)),), "logits", 4)
    found = evaluate_observation(job, torch.device("cpu"), in_place)
    assert isinstance(found, Outcome)
    expected = outcome(part(logits[None], target[None].astype(np.int8)))
    for name, array in expected.tensors.items():
        np.testing.assert_allclose(
            found.tensors[name].astype(float), array.astype(float), atol=1.01, rtol=1e-4
        )
    logits[0, 0, 0] = np.nan
    bad = ObservationJob((part(logits[None], target[None].astype(np.int8)),), "logits", 4)
    error = evaluate_observation(bad, torch.device("cpu"), in_place)
    assert isinstance(error, NonFiniteLogitsError)
