"""What is learned from batches about how long work takes."""

from collections.abc import Sequence

import pytest

from lossd import prediction
from lossd.prediction import BATCH_S, Predictor

MIB = 1 << 20


def feed(predictor: Predictor, batch: Sequence[tuple[str, int]], cost_s: float, times: int) -> None:
    for _ in range(times):
        predictor.learn(batch, BATCH_S + cost_s)


@pytest.mark.parametrize("factor", [0.02, 1.0, 300.0])
def test_the_first_batch_of_a_workload_says_what_it_costs(factor: float) -> None:
    predictor = Predictor()
    assumed_s = predictor.seconds("a", MIB)
    feed(predictor, [("a", MIB)] * 3, 3 * factor * assumed_s, times=1)
    if 9 * 3 * factor * assumed_s > BATCH_S:  # else the batch itself is taken to be part of it
        assert predictor.seconds("a", MIB) == pytest.approx(factor * assumed_s)


def test_a_burst_of_a_neighbour_is_soon_forgotten() -> None:
    predictor = Predictor()
    feed(predictor, [("a", MIB)], 0.01, times=20)
    feed(predictor, [("a", MIB)], 0.2, times=1)
    assert predictor.seconds("a", MIB) < 0.02
    feed(predictor, [("a", MIB)], 0.01, times=10)
    assert predictor.seconds("a", MIB) == pytest.approx(0.01, rel=0.1)


def test_workloads_keep_prices_of_their_own() -> None:
    predictor = Predictor()
    for _ in range(20):
        feed(predictor, [("cheap", MIB)], 0.002, times=1)
        feed(predictor, [("dear", MIB)], 0.5, times=1)
    assert predictor.seconds("cheap", MIB) == pytest.approx(0.002, rel=0.01)
    assert predictor.seconds("dear", MIB) == pytest.approx(0.5, rel=0.01)


def test_a_dear_workload_is_found_out_in_mixed_company() -> None:
    predictor = Predictor()
    for number in range(60):
        cheap = 1 + number % 3
        feed(predictor, [("cheap", MIB)] * cheap + [("dear", MIB)], 0.002 * cheap + 0.2, times=1)
    cheap_s, dear_s = predictor.seconds("cheap", MIB), predictor.seconds("dear", MIB)
    assert dear_s > 2 * cheap_s
    assert dear_s + 2 * cheap_s == pytest.approx(0.204, rel=0.1)


def test_an_unknown_workload_costs_what_is_typical() -> None:
    predictor = Predictor()
    feed(predictor, [("a", MIB)], 0.1, times=5)
    assert predictor.seconds("b", MIB) == pytest.approx(0.1, rel=0.01)


def test_a_request_costs_by_the_byte() -> None:
    predictor = Predictor()
    assert predictor.seconds("a", 100 * MIB) > 50 * predictor.seconds("a", MIB)
    assert predictor.seconds("a", 0) > 0


def test_the_table_does_not_grow_with_what_callers_think_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prediction, "_WORKLOADS", 2)
    predictor = Predictor()
    feed(predictor, [("a", MIB)], 0.5, times=1)
    for name in "bcd":
        feed(predictor, [(name, MIB)], 0.001, times=30)
    assert predictor.seconds("a", MIB) < 0.01  # no longer what it was
    assert predictor.seconds("d", MIB) == pytest.approx(0.001, rel=0.01)
