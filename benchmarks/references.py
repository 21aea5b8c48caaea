"""One `evaluate` of a new mask against kept logits, over HTTP, with a service of its own.

What an annotation tool does all day: the logits went up once, each edited mask is a small request.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import orjson

from benchmarks import jobs
from benchmarks.http_calls import Caller, request_body
from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.start_up import free_port, serving, wait_for
from benchmarks.timing import Timings, in_turns
from lossd.core.compiled import Mode, choose_mode
from lossd.kernels import choose_device
from lossd_client.wire import JSON, SAFETENSORS, Array

_CLASSES = 4
_SIDE, _QUICK_SIDE = 1024, 128
_LOSSES = ["dice", "cross_entropy"]
_DTYPES = ("float32", "float16")
_GRADIENTS: Mapping[str, dict[str, str]] = {
    "none": {},
    "float32": {"gradient": "total"},
    "float16": {"gradient": "total", "gradient_dtype": "float16"},
}
_BUDGET_S, _QUICK_BUDGET_S = 30.0, 1.0
_MAX_ROUNDS = 40
_WANTED_MS = 50.0
_STAGES = ("receive", "read", "queue", "compute", "write")
_WAYS = {"kept, rle": "a new RLE mask, logits kept", "sent": "the same as one safetensors body"}


class _Noted:
    """What was noted of the requests of a service."""

    def __init__(self, port: int) -> None:
        self._caller = Caller(port)
        self.stages_ms: dict[str, list[Mapping[str, float]]] = {}
        self.body_bytes: dict[str, int] = {}

    def keep(self, array: Array) -> str:
        """Keeps a tensor; its ref."""
        return self._caller.keep(array)

    def evaluate(self, name: str, body: bytes, kind: str) -> None:
        """One evaluation, its stages noted under a name."""
        answer = self._caller.evaluate(body, kind)
        self.body_bytes[name] = len(body)
        self.stages_ms.setdefault(name, []).append(answer.stages_ms)


def run(kernels: str, *, quick: bool) -> Report:
    """Milliseconds of a request, by dtype of the logits and by gradient."""
    device = choose_device("auto")
    mode: Mode = choose_mode(device)
    if kernels == "eager":
        mode = "eager"
    port = free_port()
    with serving(port, flags=("--kernels", kernels)) as process:
        wait_for("/health/ready", port, process)
        calls = _Noted(port)
        side = _QUICK_SIDE if quick else _SIDE
        work = _work(calls, side)
        timings = in_turns(
            work, budget_s=_QUICK_BUDGET_S if quick else _BUDGET_S, max_rounds=_MAX_ROUNDS
        )
    rows = [_row(name, calls, timings) for name in work]
    slowest_ms = max(
        timings.median_s(name) * 1e3 for name in work if name.startswith("kept") and "none" in name
    )
    return Report(
        name="references",
        sections=[
            Section(
                f"a mask of {side} x {side}, 4 classes: dice + cross_entropy, answered whole", rows
            )
        ],
        targets=[
            Target(
                "a new RLE mask against kept logits, without gradient",
                f"< {_WANTED_MS:.0f} ms",
                f"{slowest_ms:.1f} ms",
                slowest_ms < _WANTED_MS,
            )
        ],
        notes=[f"{name}: {meaning}" for name, meaning in _WAYS.items()]
        + [f"{timings.rounds} rounds; stages as the service's Server-Timing says, medians"],
        environment=environment(device, mode),
    )


def _work(calls: _Noted, side: int) -> dict[str, partial[None]]:
    shape = (1, _CLASSES, side, side)
    labels = _labels(side)
    rles = orjson.dumps(_rles(labels))
    work: dict[str, partial[None]] = {}
    for dtype in _DTYPES:
        logits = jobs.random_inputs(shape, seed=1, dtype=dtype)["logits"]
        ref = calls.keep(logits)
        for gradient, fields in _GRADIENTS.items():
            document: dict[str, Any] = {"losses": _LOSSES, "task": "multiclass", **fields}
            inputs = {"logits": {"ref": ref}, "target": orjson.Fragment(rles)}
            ways = {
                "kept, rle": (orjson.dumps({**document, "inputs": inputs}), JSON),
                "sent": (
                    request_body({"logits": logits, "target": labels}, document),
                    SAFETENSORS,
                ),
            }
            for way, (body, kind) in ways.items():
                name = f"{way}/{dtype}/{gradient}"
                work[name] = partial(calls.evaluate, name, body, kind)
    return work


def _row(name: str, calls: _Noted, timings: Timings) -> Row:
    way, dtype, gradient = name.split("/")
    found = calls.stages_ms[name]
    return {
        "way": way,
        "logits": dtype,
        "gradient": gradient,
        "body_kib": round(calls.body_bytes[name] / 1024, 1),
        "median_ms": timings.median_s(name) * 1e3,
        "min_ms": timings.minimum_s(name) * 1e3,
        **{f"{stage}_ms": statistics.median(one[stage] for one in found) for stage in _STAGES},
    }


def _labels(side: int) -> Array:
    """A mask of organs: ellipses with ragged edges, `[1, H, W]`."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side] / side
    labels = np.zeros((1, side, side), np.uint8)
    for number in range(24):
        y, x, height, width = rng.uniform((0, 0, 0.03, 0.03), (1, 1, 0.2, 0.2))
        waves = 0.05 * np.sin(40 * columns + number) * np.sin(30 * rows)
        inside = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 + waves < 1
        labels[0, inside] = number % _CLASSES
    return labels


def _rles(labels: Array) -> dict[str, Any]:
    """The mask as RLEs of its classes, as a request has it."""
    masks = [_runs(labels[0] == value) for value in range(1, _CLASSES)]
    return {"rle": [masks], "labels": [list(range(1, _CLASSES))]}


def _runs(mask: Array) -> dict[str, Any]:
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8)])
    changes = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}
