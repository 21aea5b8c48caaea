"""Contexts of annotation QA: by owner and name, within a budget and a time."""

from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from lossd.callers import Caller
from lossd.qa.contexts import ENTRY_BYTES, Context, ContextStore, make_context
from lossd.settings import Settings
from lossd_client.errors import TooLargeError

ANA, BEN = Caller(name="ana"), Caller(name="ben")
ONE_BYTES = 2 * 2 * 256 * 8 + ENTRY_BYTES
"""What a context of two classes is charged."""


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def context(name: str, pixels: int = 1, classes: int = 2) -> Context:
    return make_context(name, np.full((classes, 256), pixels, np.int64), None, None)


def test_outlines_are_charged_too() -> None:
    outlines = np.zeros((2, 8, 4), np.int64)
    straight = make_context("a", np.ones((2, 256), np.int64), outlines, None)
    assert straight.nbytes == ONE_BYTES + 2 * outlines.nbytes


def store(**values: float) -> tuple[ContextStore, Clock]:
    clock = Clock()
    return ContextStore(Settings.model_validate(values), clock=clock), clock


def test_a_name_belongs_to_its_owner() -> None:
    contexts, _ = store()
    mine, yours = context("a", 1), context("a", 2)
    assert not contexts.put(ANA, mine)
    assert contexts.find(BEN, "a") is None
    assert not contexts.delete(BEN, "a")
    assert not contexts.put(BEN, yours)
    assert contexts.find(ANA, "a") is mine
    assert contexts.delete(ANA, "a")
    assert not contexts.delete(ANA, "a")
    assert contexts.find(BEN, "a") is yours


def test_another_one_takes_its_name() -> None:
    contexts, _ = store()
    contexts.put(ANA, context("a", 1))
    again = context("a", 2)
    assert contexts.put(ANA, again)
    assert contexts.find(ANA, "a") is again


def test_contexts_go_that_nobody_uses() -> None:
    contexts, clock = store(context_ttl_s=10)
    contexts.put(ANA, context("a"))
    contexts.put(ANA, context("b"))
    clock.now_s = 9
    assert contexts.find(ANA, "a") is not None
    clock.now_s = 12
    before = counted("lossd_qa_context_evictions_total", reason="ttl")
    contexts.expire()
    assert counted("lossd_qa_context_evictions_total", reason="ttl") == before + 1
    assert contexts.find(ANA, "b") is None
    assert contexts.find(ANA, "a") is not None


def test_over_the_budget_those_used_longest_ago_go() -> None:
    contexts, _ = store(key_context_mib=1)
    fitting = (1 << 20) // ONE_BYTES
    contexts.put(BEN, context("theirs"))
    for number in range(fitting):
        contexts.put(ANA, context(f"n{number}"))
    assert contexts.find(ANA, "n0") is not None
    contexts.put(ANA, context("one more"))
    assert contexts.find(ANA, "n1") is None
    assert contexts.find(ANA, "n0") is not None
    assert contexts.find(BEN, "theirs") is not None


def test_what_never_fits_is_refused_and_takes_nothing_away() -> None:
    contexts, _ = store(key_context_mib=1)
    contexts.put(ANA, context("a"))
    with pytest.raises(TooLargeError, match="may keep 1048576"):
        contexts.put(ANA, context("a", classes=300))
    assert contexts.find(ANA, "a") is not None


def test_the_gauge_counts_what_is_kept() -> None:
    contexts, _ = store()
    before = counted("lossd_qa_contexts")
    contexts.put(ANA, context("a"))
    contexts.put(ANA, context("a", 2))
    assert counted("lossd_qa_contexts") == before + 1
    contexts.delete(ANA, "a")
    assert counted("lossd_qa_contexts") == before


def test_the_digest_says_what_is_in_it() -> None:
    counts = np.ones((2, 256), np.int64)
    lines = np.ones((2, 8, 4), np.int64)
    rows = np.random.default_rng(0).gamma(2.0, size=(7, 4))

    def digest(*tables: Any) -> str:
        return make_context("a", *tables).digest

    assert digest(counts, lines, None) == make_context("b", counts, lines, None).digest
    assert digest(counts, lines, rows) == digest(counts, lines, rows[::-1])
    others = {
        digest(counts, None, None),
        digest(counts, lines, None),
        digest(counts, lines, rows),
        digest(counts, lines, rows + 1),
        digest(counts + 1, lines, None),
        digest(counts, lines + 1, None),
        digest(np.ones((3, 256), np.int64), None, None),
    }
    assert len(others) == 7
