"""A sample's answer has the same bits alone, in any company, in any order, in any chunk."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from digests import digests
from jobs import Core, make_job
from lossd.core.job import AnyJob, Outcome
from lossd_client.wire import Array

LOSSES = [
    "dice",
    "focal",
    {"name": "focal", "label": "steep", "params": {"gamma": 3.5}},
    "cross_entropy",
    {"name": "tversky", "params": {"classes": "all"}},
    "dice_ce",
    "jaccard",
    "focal_tversky",
    "log_cosh_dice",
    "topk_cross_entropy",
    "hausdorff_dt",
    "structural_similarity",
]
RICH_LOSSES = [
    *LOSSES,
    "poly1_cross_entropy",
    "js_divergence",
    "combo",
    {"name": "exponential_logarithmic", "params": {"gamma_ce": 0.7}},
    {"name": "dice", "label": "soft", "params": {"soft_label": True}},
]
SIZES = [(1, 1), (3, 200), (64, 64), (63, 65), (100, 130), (17, 9), (128, 256)]
FIELDS: dict[str, Any] = {"gradient": "total", "maps": True, "per_class": True, "statistics": True}


def sample(rng: np.random.Generator, task: str, channels: int) -> dict[str, Array]:
    height, width = SIZES[rng.integers(len(SIZES))]
    logits = rng.normal(0, 4, (1, channels, height, width)).astype(np.float32)
    if task == "multiclass":
        target = rng.integers(0, channels, (1, height, width), dtype=np.uint8)
    else:
        target = rng.integers(0, 2, logits.shape, dtype=np.uint8)
    target[rng.random(target.shape) < 0.1] = 0
    mask = (rng.random((1, height, width)) < 0.9).astype(np.uint8)
    return {"logits": logits, "target": target, "mask": mask}


def answers(core: Core, jobs: Sequence[AnyJob]) -> list[list[dict[str, bytes]]]:
    """The bytes of every sample of every job, by tensor."""
    found = []
    for outcome in core.run(jobs):
        assert isinstance(outcome, Outcome)
        found.append(_by_sample(outcome))
    return found


def _by_sample(outcome: Outcome) -> list[dict[str, bytes]]:
    count = len(outcome.tensors["total"])
    numbered = any(name[0].isdecimal() for name in outcome.tensors)
    rows: list[dict[str, bytes]] = [{} for _ in range(count)]
    for name, array in outcome.tensors.items():
        number, _, rest = name.partition("/")
        if numbered and number.isdecimal():
            rows[int(number)][rest] = array.tobytes()
        else:
            for b in range(count):
                rows[b][name] = array[b : b + 1].tobytes()
    return rows


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "binary"])
def test_company_order_and_chunks_change_no_bit(core: Core, task: str, seed: int) -> None:
    losses = RICH_LOSSES if seed % 2 else LOSSES
    rng = np.random.default_rng(seed)
    channels = 1 if task == "binary" else int(rng.choice([2, 4, 5, 8, 19]))
    samples = [sample(rng, task, channels) for _ in range(int(rng.integers(2, 7)))]
    alone = [answers(core, [make_job(losses, one, task=task, **FIELDS)])[0][0] for one in samples]

    order = rng.permutation(len(samples))
    split = int(rng.integers(1, len(samples)))
    jobs = [
        make_job(losses, [samples[i] for i in part], task=task, **FIELDS)
        for part in (order[:split], order[split:])
        if len(part)
    ]
    for other in (core, core.with_chunks_of(1 << 13), core.with_chunks_of(1 << 20)):
        together = [row for rows in answers(other, jobs) for row in rows]
        for place, number in enumerate(order):
            assert together[place] == alone[number]


@pytest.mark.parametrize("losses", [LOSSES, RICH_LOSSES], ids=["lean", "rich"])
def test_a_large_company_changes_no_bit(core: Core, losses: list[Any]) -> None:
    """Its sums are more than a vector unit takes at once, with some left over."""
    rng = np.random.default_rng(11)
    tensors: dict[str, Array] = {
        "logits": rng.normal(0, 4, (37, 3, 5, 7)).astype(np.float32),
        "target": rng.integers(0, 3, (37, 5, 7), dtype=np.uint8),
    }
    (together,) = answers(core, [make_job(losses, tensors, task="multiclass", **FIELDS)])
    for place in range(37):
        one = {name: array[place : place + 1] for name, array in tensors.items()}
        assert together[place] == answers(core, [make_job(losses, one, **FIELDS)])[0][0]


def test_mates_with_other_channels_losses_and_wishes_change_no_bit(core: Core) -> None:
    rng = np.random.default_rng(9)
    own = make_job(LOSSES, sample(rng, "multilabel", 3), task="multilabel", **FIELDS)
    alone = answers(core, [own])
    mates = [
        make_job("focal", sample(rng, "binary", 1), task="binary", gradient="each"),
        make_job(["bce", "dice"], sample(rng, "multilabel", 6), task="multilabel", maps=True),
        make_job(
            [{"name": "focal", "params": {"gamma": 0.3}}, "dice_ce"],
            sample(rng, "multilabel", 3),
            task="multilabel",
            gradient="total",
            gradient_dtype="float16",
            aggregate="batch",
        ),
    ]
    for place in range(len(mates) + 1):
        batch = [*mates[:place], own, *mates[place:]]
        assert answers(core, batch)[place] == alone[0]


def test_a_poisoned_mate_fails_alone_and_changes_no_bit(core: Core) -> None:
    rng = np.random.default_rng(10)
    good = [sample(rng, "multiclass", 4) for _ in range(3)]
    jobs = [make_job(LOSSES, one, task="multiclass", **FIELDS) for one in good]
    alone = [answers(core, [job])[0] for job in jobs]
    bad = sample(rng, "multiclass", 4)
    bad["logits"][0, 2] = np.nan
    batch = [jobs[0], make_job(LOSSES, bad, task="multiclass", **FIELDS), jobs[1], jobs[2]]
    outcomes = core.run(batch)
    assert type(outcomes[1]).__name__ == "NonFiniteLogitsError"
    for place, want in ((0, alone[0]), (2, alone[1]), (3, alone[2])):
        outcome = outcomes[place]
        assert isinstance(outcome, Outcome)
        assert _by_sample(outcome) == want


def _digests_of_one_thread_compiled_in_reverse() -> list[str]:
    here = Path(__file__).parent
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, here / "digests.py"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_threads_and_compile_order_change_no_bit(core: Core) -> None:
    """The kernels of this session were compiled in the order in which the service does it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = digests(core)
    finally:
        torch.set_num_threads(threads)
    assert first[:4] == first[4:], "alone and together differ"
    assert _digests_of_one_thread_compiled_in_reverse() == first
