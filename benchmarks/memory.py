"""What one request takes of a service's memory at most, and what thousands leave behind.

Cases come by growing size, so that what one leaves behind is no room for the next. Idle is the
service after its first small requests, before any large one.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from benchmarks import jobs, unseen
from benchmarks.engine import Kernels
from benchmarks.footprint import Footprint
from benchmarks.http_calls import Caller, request_body
from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.start_up import free_port, serving, wait_for
from lossd.core.compiled import choose_mode

_MIB: Final = 1 << 20
_CHUNK_MIB: Final = 64.0
_MOST_DRIFT_MIB: Final = 16.0
_SENDINGS: Final = 3
_SHAPES: Final[tuple[jobs.Shape, ...]] = (
    (1, 4, 256, 256),
    (8, 4, 256, 256),
    (1, 4, 1024, 1024),
    (8, 19, 512, 512),
    (1, 19, 1024, 2048),
)
_QUICK_SHAPES: Final = _SHAPES[:1]
_BODY_LIMIT_MIB: Final = 512
_SETTLING, _QUICK_SETTLING = 200, 10
_DRIFT_REQUESTS, _QUICK_DRIFT_REQUESTS = 4000, 60
_LOOKS: Final = 60
_FEWEST_EACH: Final = ("dice", "cross_entropy")
_MOST_EACH_LOGITS: Final = 1 << 23


@dataclass(frozen=True)
class _Case:
    """A kind of request."""

    shape: jobs.Shape
    dtype: str
    what: str
    document: Mapping[str, Any]

    def body(self) -> bytes:
        return request_body(jobs.random_inputs(self.shape, seed=1, dtype=self.dtype), self.document)


def run(kernels: Kernels, *, quick: bool) -> Report:
    """Peaks by size and kind of request, then the drift over many."""
    port = free_port()
    flags = ("--kernels", kernels, "--max-body-mib", str(_BODY_LIMIT_MIB))
    with serving(port, flags=flags) as process:
        wait_for("/health/ready", port, process)
        service = Footprint(process.pid)
        # The drift first: what large requests leave behind would hide it.
        drift = _drift(port, service, quick=quick)
        idle = service.resident_bytes()
        rows = [_row(port, service, case, idle) for case in _cases(quick=quick)]
    return Report(
        name="memory",
        sections=[
            Section("peak of one request at a time, MiB", rows),
            Section("resident memory over many small requests, MiB", [drift]),
        ],
        targets=_targets(rows, drift),
        notes=[
            f"idle: resident after the small requests, {idle / _MIB:.0f} MiB",
            f"allowed: idle + bytes in + bytes out + one chunk of {_CHUNK_MIB:.0f} MiB",
            f"each request {_SENDINGS} times; peaks are the kernel's (VmHWM)",
            "first_peak: of the first sending, not below what other sizes have left",
            "peak: of the others; it is set back between",
            "over: peak less allowed, or first_peak less allowed and what was there before",
            "over_per_in: that as a multiple of the bytes in",
            "drift: median of the last third less that of the first; requests of all sizes",
        ],
        environment=environment(
            torch.device("cpu"),
            choose_mode(torch.device("cpu")) if kernels == "auto" else kernels,
        ),
    )


def _cases(*, quick: bool) -> list[_Case]:
    names = jobs.available_of_ten()
    found = []
    for shape in _QUICK_SHAPES if quick else _SHAPES:
        large = torch.Size(shape).numel() > _MOST_EACH_LOGITS
        each = list(_FEWEST_EACH) if large else names
        for dtype in ("float16", "float32"):
            total = {"gradient": "total", "gradient_dtype": dtype}
            kinds: dict[str, dict[str, Any]] = {
                "dice, values": {"losses": ["dice"]},
                "dice, total": {"losses": ["dice"], **total},
                "ten, values": {"losses": names},
                "ten, total": {"losses": names, **total},
                f"{len(each)}, each": {"losses": each, **total, "gradient": "each"},
                "2, maps": {"losses": ["cross_entropy", "focal"], "maps": True},
                "dice, statistics": {"losses": ["dice"], "statistics": True},
            }
            found += [_Case(shape, dtype, what, document) for what, document in kinds.items()]
    return sorted(found, key=lambda case: torch.Size(case.shape).numel())


def _row(port: int, service: Footprint, case: _Case, idle: int) -> Row:
    body = case.body()
    before = service.resident_bytes()
    with Caller(port) as caller:
        service.forget_peak()
        out = len(caller.evaluate(body).content)
        first_peak = service.peak_bytes()
        service.forget_peak()
        for _ in range(_SENDINGS - 1):
            caller.evaluate(body)
    peak = service.peak_bytes()
    allowed = idle + len(body) + out + _CHUNK_MIB * _MIB
    over = max(first_peak - max(allowed, before), peak - allowed)
    return {
        "shape": "x".join(map(str, case.shape)),
        "dtype": case.dtype,
        "request": case.what,
        "in_mib": len(body) / _MIB,
        "out_mib": out / _MIB,
        "before_mib": before / _MIB,
        "first_peak_mib": first_peak / _MIB,
        "peak_mib": peak / _MIB,
        "allowed_mib": allowed / _MIB,
        "over_mib": over / _MIB,
        "over_per_in": max(0.0, over / len(body)),
        "after_mib": service.resident_bytes() / _MIB,
    }


def _drift(port: int, service: Footprint, *, quick: bool) -> Row:
    count = _QUICK_DRIFT_REQUESTS if quick else _DRIFT_REQUESTS
    settling = _QUICK_SETTLING if quick else _SETTLING
    bodies = [case.body() for case in unseen.cases("size", max(count // 10, settling), seed=1)]
    every = max(1, count // _LOOKS)
    resident = []
    with Caller(port) as caller:
        for body in bodies[:settling]:
            caller.evaluate(body)
        for index in range(count):
            caller.evaluate(bodies[index % len(bodies)])
            if index % every == 0:
                resident.append(service.resident_bytes() / _MIB)
    third = max(1, len(resident) // 3)
    first, last = statistics.median(resident[:third]), statistics.median(resident[-third:])
    return {
        "requests": count,
        "first_third_mib": first,
        "last_third_mib": last,
        "drift_mib": last - first,
        "most_mib": max(resident),
    }


def _targets(rows: Sequence[Row], drift: Row) -> list[Target]:
    worst = max(rows, key=lambda row: float(row["over_mib"] or 0))
    over, moved = float(worst["over_mib"] or 0), float(drift["drift_mib"] or 0)
    return [
        Target(
            "peak of one request, of idle + bytes in + bytes out + one 64 MiB chunk, worst",
            "<= 0 MiB over",
            f"{over:.0f} MiB ({worst['shape']} {worst['dtype']}, {worst['request']})",
            over <= 0,
        ),
        Target(
            f"drift over {drift['requests']} requests",
            f"<= {_MOST_DRIFT_MIB:.0f} MiB",
            f"{moved:.1f} MiB",
            moved <= _MOST_DRIFT_MIB,
        ),
    ]
