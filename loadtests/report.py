"""A load test as a JSON document and as tables for people."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.recording import Recording, Track, percentile
from loadtests.thresholds import TAIL, Verdict


@dataclass(frozen=True)
class Report:
    """Everything one load test found."""

    started: str
    """When, ISO 8601."""
    service: Mapping[str, str]
    """Its address, and what `lossd_build_info` says of it."""
    generator: Mapping[str, Any]
    """What made the load, see `describe_generator`."""
    mix: Mapping[str, Any]
    model: Mapping[str, Any]
    phases: Mapping[str, Recording]
    """`unloaded`, `closed` where a closed loop measured the capacity, `load`."""
    references_ms: Mapping[str, float]
    """By scenario: what the bound of its p99 is a multiple of."""
    verdicts: Sequence[Verdict]

    @property
    def passed(self) -> bool:
        """Whether every threshold was met."""
        return all(verdict.met for verdict in self.verdicts)

    def document(self) -> dict[str, Any]:
        """All of it, ready for JSON; what was not measured is null."""
        return {
            "started": self.started,
            "passed": self.passed,
            "service": dict(self.service),
            "generator": dict(self.generator),
            "mix": dict(self.mix),
            "model": dict(self.model),
            "phases": {name: _phase(recording) for name, recording in self.phases.items()},
            "references_ms": {name: _number(ms) for name, ms in self.references_ms.items()},
            "thresholds": [_threshold(verdict) for verdict in self.verdicts],
        }


def write(report: Report, path: Path) -> None:
    """The report as JSON."""
    text = json.dumps(report.document(), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def show(report: Report, console: Console) -> None:
    """A row for each scenario of the load, then the phases, failures and missed thresholds."""
    console.print(_scenario_table(report))
    console.print(_phase_table(report))
    for phase, recording in report.phases.items():
        for name, track in recording.tracks.items():
            for kind, failures in track.failures.items():
                text = f"{phase} {name}: {failures.count} times {kind}: {failures.example}"
                console.print(text, markup=False, highlight=False)
    for verdict in report.verdicts:
        if not verdict.met:
            console.print(
                f"MISSED {verdict.threshold} of {verdict.subject}: {verdict.comparison} "
                f"{verdict.limit:g}, measured {verdict.measured:.4g}",
                highlight=False,
            )
    console.print("passed" if report.passed else "FAILED")


def _scenario_table(report: Report) -> Table:
    table = Table(title=_title(report), title_justify="left")
    table.add_column("scenario")
    columns = ("sent", "wrong", "per s", "unloaded p50", "p50", "p90", "p99", "max", "reference")
    for column in (*columns, TAIL):
        table.add_column(column, justify="right")
    ratios = {one.subject: one for one in report.verdicts if one.threshold == TAIL}
    load, nothing = report.phases["load"], Track()
    for name, reference_ms in report.references_ms.items():
        track = load.tracks.get(name, nothing)
        unloaded_ms = percentile(report.phases["unloaded"].latencies_ms(name), 50)
        figures = _scenario(track, load.elapsed_s)
        verdict = ratios.get(name)
        table.add_row(
            name,
            str(figures["requests"]),
            str(figures["failed"]),
            _text(figures["rate_per_s"]),
            _text(unloaded_ms),
            *(_text(figures[f"{column}_ms"]) for column in ("p50", "p90", "p99", "max")),
            _text(reference_ms),
            "-" if verdict is None else f"{verdict.measured:.2f}{'' if verdict.met else ' MISSED'}",
        )
    return table


def _title(report: Report) -> str:
    model = report.model
    rate = f"{model['rate_per_s']:.3g}/s" if model["rate_per_s"] else f"{model['users']} users"
    return f"mix {report.mix['name']}, {model['name']}, {rate}; milliseconds"


def _phase_table(report: Report) -> Table:
    table = Table()
    table.add_column("phase")
    for column in ("sent", "wrong", "seconds", "per s", "late p99 ms", "generator's processors"):
        table.add_column(column, justify="right")
    for name, recording in report.phases.items():
        figures = _phase(recording)
        table.add_row(
            name,
            str(figures["requests"]),
            str(figures["failed"]),
            *(
                _text(figures[column])
                for column in ("elapsed_s", "rate_per_s", "late_p99_ms", "processors_used")
            ),
        )
    return table


def _phase(recording: Recording) -> dict[str, Any]:
    elapsed_s = recording.elapsed_s
    return {
        "requests": recording.requests,
        "failed": recording.failed,
        "elapsed_s": round(elapsed_s, 3),
        "rate_per_s": round(recording.rate_per_s, 3),
        "late_p99_ms": _number(percentile(recording.late_ms, 99)),
        "processors_used": _number(recording.cpu_s / elapsed_s if elapsed_s else math.nan),
        "scenarios": {
            name: _scenario(track, elapsed_s) for name, track in recording.tracks.items()
        },
    }


def _scenario(track: Track, elapsed_s: float) -> dict[str, Any]:
    latencies_ms = track.latencies_ms
    return {
        "requests": len(latencies_ms),
        "failed": track.failed,
        "rate_per_s": _number(len(latencies_ms) / elapsed_s if elapsed_s else math.nan),
        "p50_ms": _number(percentile(latencies_ms, 50)),
        "p90_ms": _number(percentile(latencies_ms, 90)),
        "p99_ms": _number(percentile(latencies_ms, 99)),
        "max_ms": _number(percentile(latencies_ms, 100)),
        "failures": {kind: asdict(failures) for kind, failures in track.failures.items()},
    }


def _threshold(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict), "measured": _number(verdict.measured), "met": verdict.met}


def describe_generator() -> dict[str, Any]:
    """Versions, machine and how busy it is: best asked before there is load."""
    return {
        "locust": version("locust"),
        "lossd_client": version("lossd-client"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "processor": _processor(),
        "logical_processors": os.cpu_count(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _number(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def _text(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits do
