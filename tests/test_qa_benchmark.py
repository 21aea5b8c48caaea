"""Figures of rankings and points, by hand."""

import numpy as np
import pytest

from benchmarks.qa.figures import hits, ranking, shares


def test_figures_of_a_ranking_by_hand() -> None:
    wrong = np.array([True, False, True, False, False])
    found = ranking(wrong, np.array([5.0, 4.0, 3.0, 2.0, 1.0]))
    assert found.auroc == pytest.approx(5 / 6)  # one of the six pairs is in the wrong order
    assert found.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert found.precision_at_k == 0.5


def test_equal_suspicions_are_half_right() -> None:
    wrong = np.array([True, False, True, False])
    assert ranking(wrong, np.zeros(4)).auroc == 0.5


def test_a_point_hits_what_is_at_most_two_pixels_away() -> None:
    changed = np.zeros((20, 20), bool)
    changed[10, 5] = True
    assert hits([(5, 10), (7, 12), (3, 8), (8, 10), (5, 13), (5, 10)], changed) == [
        *(True, True, True, False, False)  # the sixth does not count
    ]
    assert hits([(0, 0)], changed) == [False]
    assert shares([[False, True], [True], [False, False, False, True]]) == {
        "hit_by_1": pytest.approx(1 / 3),
        "hit_by_3": pytest.approx(2 / 3),
        "hit_by_5": 1.0,
    }
