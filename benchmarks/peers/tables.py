"""A comparison as tables, targets and notes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from benchmarks import report as reports
from benchmarks.peers.cases import Case
from benchmarks.peers.comparison import Comparison, Measurements, Options
from benchmarks.peers.measurements import Measurement
from benchmarks.peers.processes import CONNECTIONS
from benchmarks.peers.servers import settings
from benchmarks.peers.systems import LOSSD, PEERS
from benchmarks.report import Report, Row, Section, Target

_TITLES: dict[settings.Core, str] = {
    "separate": "each peer with the job in plain torch, each loss by itself",
    "shared": "each peer with the job in plain torch, softmax shared",
    "lossd": "each peer with lossd's core in its process: serving against serving",
}


def report(seen: Comparison, options: Options) -> Report:
    """The report of a comparison."""
    sections = [
        Section(_TITLES[core], _rows(measurements))
        for core, measurements in seen.measurements.items()
    ]
    if seen.refusals:
        rows = [
            {"system": one.system, "core": one.core, "reason": one.reason} for one in seen.refusals
        ]
        sections.append(Section("left out", rows))
    return Report(
        name="peers",
        sections=sections,
        targets=[
            target
            for core, measurements in seen.measurements.items()
            if core != "lossd"
            for target in _targets(seen.cases, core, measurements)
        ],
        notes=_notes(seen, options),
        environment={
            **reports.environment(torch.device("cpu"), options.kernels),
            "torch_threads": options.threads,
            "omp_wait_policy": "PASSIVE",
            **seen.versions,
        },
    )


def best_peer(by_system: dict[str, Measurement]) -> tuple[str, Measurement] | None:
    """The peer with the most requests per second, if any answered."""
    peers = [(name, one) for name, one in by_system.items() if name != LOSSD.name and one.answers]
    return max(peers, key=lambda peer: peer[1].requests_per_s, default=None)


def _rows(measurements: Measurements) -> list[Row]:
    return [
        _row(case, system, one, by_system[LOSSD.name])
        for case, by_system in measurements.items()
        for system, one in by_system.items()
    ]


def _row(case: str, system: str, one: Measurement, own: Measurement) -> Row:
    return {
        "case": case,
        "system": system,
        "requests_per_s": one.requests_per_s,
        "p50_ms": one.percentile_ms(50),
        "p99_ms": one.percentile_ms(99),
        "lossd_ratio": own.ratio_to(one),
        "answers": one.answers,
        "errors": one.errors.total(),
        "generator_ms": one.generator_ms,
    }


def _targets(
    cases: Sequence[Case], core: settings.Core, measurements: Measurements
) -> list[Target]:
    targets = []
    for case in cases:
        by_system = dict(measurements[case.name])
        best = best_peer(by_system)
        if best is not None:
            name, peer = best
            targets += [
                _throughput(f"{core}, {case.name}", case, by_system[LOSSD.name], name, peer),
                _tail(f"{core}, {case.name}", by_system),
            ]
    return targets


def _throughput(what: str, case: Case, own: Measurement, name: str, peer: Measurement) -> Target:
    ratio = own.ratio_to(peer) or 0.0
    return Target(
        f"{what}: requests per second, of the best peer's ({name})",
        f">= {case.least_ratio:g}",
        f"{ratio:.2f}",
        ratio >= case.least_ratio,
    )


def _tail(what: str, by_system: dict[str, Measurement]) -> Target:
    tails_ms = {name: one.percentile_ms(99) or math.inf for name, one in by_system.items()}
    own_ms = tails_ms.pop(LOSSD.name)
    name = min(tails_ms, key=lambda peer: tails_ms[peer])
    return Target(
        f"{what}: p99, below every peer's (lowest: {name})",
        f"< {tails_ms[name]:.1f} ms",
        f"{own_ms:.1f} ms",
        own_ms < tails_ms[name],
    )


def _notes(seen: Comparison, options: Options) -> list[str]:
    return [
        "cross entropy and Dice per sample and the float16 gradient of their sum",
        f"{CONNECTIONS} connections, each asks again when it is answered",
        f"batches of at most {settings.MAX_BATCH_SAMPLES}, a delay of {settings.MAX_DELAY_MS} ms",
        f"every system on the processor, {options.threads} threads, OMP_WAIT_POLICY=PASSIVE",
        f"{options.rounds} rounds in turns; percentiles are of all rounds together",
        "requests_per_s, and lossd_ratio, lossd's over this system's: medians over rounds",
        "every system answered every case as a float64 reference before it was loaded",
        *(f"{system.name}: {system.note}" for system in PEERS if system.note),
        *(f"{who}, first error: {what}" for who, what in seen.first_errors.items()),
    ]
