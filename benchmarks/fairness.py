"""What one key's flood does to another key's requests, and how keys share the engine.

A service of its own with a file of two keys. The quiet key asks one thing after the other on one
connection; the loud one floods. Rounds alternate between quiet alone and quiet beside the flood.
The flood's clients are processes of the lowest priority: callers have machines of their own, and
what they would take of the service's processors here is not the service's matter.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic_settings import CliApp

from benchmarks import jobs
from benchmarks.flood import LEAST_PRIORITY, Flood, Sender
from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.start_up import free_port, serving, wait_for
from lossd.callers import Allowance
from lossd.core.compiled import choose_mode
from lossd.kernels import choose_device
from lossd.keys import add_key
from lossd.settings import Settings
from lossd_client.wire import SAFETENSORS, encode_safetensors

Kernels = Literal["auto", "compiled", "eager"]

_PROCESSES, _CONNECTIONS = 2, 8
_SHARE_CONNECTIONS = 48  # as many as it takes that both always wait
_ROUNDS, _REQUESTS = 8, 120
_QUICK_ROUNDS, _QUICK_REQUESTS = 2, 20
_SHARE_S, _QUICK_SHARE_S = 15.0, 2.0
_SETTLE_S = 1.0
_RATIO = 2.0
_WEIGHTS = (1.0, 3.0)
_QUIET: jobs.Shape = (1, 4, 256, 256)
_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Service:
    """A running service and the keys of its callers."""

    port: int
    keys: dict[str, str]

    def sender(self, key: str, shape: jobs.Shape, losses: Sequence[str]) -> Sender:
        """A request with the total gradient."""
        request = {"losses": list(losses), "gradient": "total", "gradient_dtype": "float16"}
        parts = encode_safetensors(
            jobs.random_inputs(shape, seed=1, dtype="float16"), {"request": json.dumps(request)}
        )
        return Sender(self.port, self.keys[key], b"".join(parts), SAFETENSORS, SAFETENSORS)


def run(*, kernels: Kernels, quick: bool) -> Report:
    """Times of the quiet key, alone and beside floods; shares of keys that both flood."""
    settings = CliApp.run(Settings, cli_args=[])
    device = choose_device(settings.device)
    with _serving(kernels) as service:
        ten = jobs.available_of_ten()
        quiet = service.sender("quiet", _QUIET, ten)
        loads = {
            "the same request": service.sender("loud", _QUIET, ten),
            "eight samples each": service.sender("loud", (8, *_QUIET[1:]), ten),
        }
        rows = [_beside(quiet, name, loud, quick=quick) for name, loud in loads.items()]
        shares = _shares(service, ten, quick=quick)
    return Report(
        name="fairness",
        sections=[
            Section("one request after the other, alone and beside a flood", rows),
            Section("two floods, by the weights of their keys", [shares]),
        ],
        targets=[
            Target(
                f"p99 beside a flood of {row['flood']}, of that alone",
                f"<= {_RATIO:g}",
                f"{row['p99_ratio']:.2f}",
                met=float(row["p99_ratio"] or 0.0) <= _RATIO,
            )
            for row in rows
        ],
        notes=[
            f"each request: {len(ten)} losses and the total gradient of {_QUIET} float16 logits",
            f"a flood: {_PROCESSES * _CONNECTIONS} connections, each asks again when answered",
            f"its processes have priority {LEAST_PRIORITY}: callers have machines of their own",
            "rounds alternate between alone and flooded; percentiles are of all rounds together",
            f"the first {_SETTLE_S:g} s of every flood are not counted",
        ],
        environment=environment(device, choose_mode(device) if kernels == "auto" else kernels),
    )


@contextmanager
def _serving(kernels: Kernels) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="lossd-fairness-") as folder:
        file = Path(folder) / "keys.json"
        weights = {"quiet": 1.0, "loud": 1.0, "light": _WEIGHTS[0], "heavy": _WEIGHTS[1]}
        keys = {
            name: add_key(file, name, Allowance(weight=weight)) for name, weight in weights.items()
        }
        port = free_port()
        flags = ("--keys-file", str(file), "--kernels", kernels)
        with serving(port, flags=flags) as process:
            wait_for("/health/ready", port, process)
            yield Service(port, keys)


def _beside(quiet: Sender, name: str, loud: Sender, *, quick: bool) -> Row:
    rounds, requests = (_QUICK_ROUNDS, _QUICK_REQUESTS) if quick else (_ROUNDS, _REQUESTS)
    alone: list[float] = []
    flooded: list[float] = []
    answered, spent_s = 0, 0.0
    with ExitStack() as stack:
        floods = [
            stack.enter_context(Flood(_CONTEXT, loud, _CONNECTIONS)) for _ in range(_PROCESSES)
        ]
        _times(quiet, requests)
        for _ in range(rounds):
            alone += _times(quiet, requests)
            with _flooding(floods):
                before, started = _answered(floods), time.perf_counter()
                flooded += _times(quiet, requests)
                spent_s += time.perf_counter() - started
                answered += _answered(floods) - before
    own, beside = np.array(alone) * 1e3, np.array(flooded) * 1e3
    return {
        "flood": name,
        "requests": len(flooded),
        "alone_p50_ms": float(np.percentile(own, 50)),
        "alone_p99_ms": float(np.percentile(own, 99)),
        "flooded_p50_ms": float(np.percentile(beside, 50)),
        "flooded_p99_ms": float(np.percentile(beside, 99)),
        "p50_ratio": float(np.percentile(beside, 50) / np.percentile(own, 50)),
        "p99_ratio": float(np.percentile(beside, 99) / np.percentile(own, 99)),
        "flood_per_s": answered / spent_s,
        "refused_or_cut": sum(flood.refused for flood in floods),
    }


@contextmanager
def _flooding(floods: Sequence[Flood]) -> Iterator[None]:
    for flood in floods:
        flood.run()
    time.sleep(_SETTLE_S)
    yield
    for flood in floods:
        flood.rest()
    time.sleep(_SETTLE_S)


def _times(sender: Sender, requests: int) -> list[float]:
    """Seconds of requests, one after the other."""
    connection = sender.connect()
    seconds = []
    for _ in range(requests):
        started = time.perf_counter()
        status = sender.send(connection)
        seconds.append(time.perf_counter() - started)
        if status != 200:  # noqa: PLR2004 - nothing was measured
            msg = f"a request was answered {status}"
            raise RuntimeError(msg)
    connection.close()
    return seconds


def _shares(service: Service, losses: Sequence[str], *, quick: bool) -> Row:
    seconds = _QUICK_SHARE_S if quick else _SHARE_S
    with ExitStack() as stack:
        floods = [
            stack.enter_context(
                Flood(_CONTEXT, service.sender(name, _QUIET, losses), _SHARE_CONNECTIONS)
            )
            for name in ("light", "heavy")
        ]
        with _flooding(floods):
            before = [flood.answered for flood in floods]
            time.sleep(seconds)
            light, heavy = (
                flood.answered - first for flood, first in zip(floods, before, strict=True)
            )
    return {
        "light_weight": _WEIGHTS[0],
        "heavy_weight": _WEIGHTS[1],
        "light_per_s": light / seconds,
        "heavy_per_s": heavy / seconds,
        "heavy_of_light": heavy / light,
    }


def _answered(floods: Sequence[Flood]) -> int:
    return sum(flood.answered for flood in floods)
