"""What a benchmark found: shown as tables, written as JSON with everything needed to repeat it."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

Cell = str | float | int | bool | None
Row = Mapping[str, Cell]

RESULTS = Path(__file__).parent / "results"
_LARGE = 100.0  # from here on a decimal says nothing


@dataclass(frozen=True)
class Section:
    """One table: rows with the same columns; a column's name ends in its unit."""

    title: str
    rows: Sequence[Row]
    hidden: tuple[str, ...] = ()
    """Columns that are written but not shown."""


@dataclass(frozen=True)
class Target:
    """A number that the project wants to reach, and what was measured."""

    what: str
    wanted: str
    measured: str
    met: bool
    binding: bool = False
    """Missing it fails the run; never so for a time, which depends on the machine."""


@dataclass(frozen=True)
class Report:
    """Everything one benchmark found."""

    name: str
    sections: Sequence[Section]
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()
    environment: Mapping[str, Cell] = field(default_factory=dict)


def environment(device: torch.device, kernels: str) -> dict[str, Cell]:
    """Versions, machine and settings that the figures depend on."""
    on_gpu = device.type == "cuda"
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "lossd": _own_version(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "kernels": kernels,
        "processor": _processor(),
        "logical_processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
    }


def show(report: Report, console: Console) -> None:
    """The report as tables for people."""
    for section in report.sections:
        columns = [name for name in section.rows[0] if name not in section.hidden]
        table = Table(title=f"{report.name}: {section.title}", title_justify="left")
        for name in columns:
            numeric = isinstance(section.rows[0][name], int | float)
            table.add_column(name, justify="right" if numeric else "left")
        for row in section.rows:
            table.add_row(*(_text(row[name]) for name in columns))
        console.print(table)
    for target in report.targets:
        mark = "met   " if target.met else "MISSED"
        console.print(f"{mark} {target.what}: wanted {target.wanted}, measured {target.measured}")
    for note in report.notes:
        console.print(f"note   {note}")
    console.print()


def write(report: Report, folder: Path) -> Path:
    """The report as `NAME.json` in the folder; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report.name}.json"
    path.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return path


def _text(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= _LARGE else f"{value:.3g}"


def _own_version() -> str:
    from lossd import __version__  # noqa: PLC0415 - the only thing needed from the service here

    return __version__


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
