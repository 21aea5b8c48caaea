"""`python -m faults chaos` or `soak`: tables, and a report in `build`; status 1 if not all is well.

Chaos: good callers beside every fault for a minute, then SIGTERM, SIGKILL and a lost device, each
followed by a new start. Every good answer is compared with what the same service says in peace.
Soak: 100,000 requests to one process, which must not grow.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from faults import chaos, soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all was as it should be, 1 not, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kernels", choices=("auto", "compiled", "eager"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    of_chaos = commands.add_parser("chaos", help="good callers beside every fault, and outages")
    of_chaos.add_argument("--seconds", type=float, default=60.0, help="before the outages")
    of_soak = commands.add_parser("soak", help="many requests to one process")
    of_soak.add_argument("--requests", type=int, default=100_000)
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    return _chaos(options, console) if options.command == "chaos" else _soak(options, console)


def _chaos(options: argparse.Namespace, console: Console) -> int:
    report = chaos.run(seconds=options.seconds, kernels=options.kernels, seed=options.seed)
    _show_faults(report.faults, report.neighbours, console)
    for outage in report.outages:
        console.print(f"{outage.name}: exit status {outage.exit_status}, {outage.seconds} s away")
    console.print(f"good answers checked: {report.good}; asked again: {report.retries}")
    console.print(f"before: {report.before}\nafter: {report.after}\ndropped: {report.dropped}")
    _close(chaos.FOLDER, asdict(report), console)
    return int(bool(report.violations))


def _soak(options: argparse.Namespace, console: Console) -> int:
    report = soak.run(requests=options.requests, kernels=options.kernels, seed=options.seed)
    _show_faults(report.faults, {}, console)
    shown = Table("figure", "first third", "last third", "per 1000 requests", "limit", "flat")
    for name, one in report.growth.items():
        shown.add_row(
            name,
            f"{one.first_third:g}",
            f"{one.last_third:g}",
            f"{one.slope:g}",
            f"{one.limit:g}",
            "yes" if one.flat else "NO",
        )
    console.print(shown)
    console.print(f"{report.requests} requests in {report.seconds} s; good: {report.good}")
    console.print(f"p50 in ms by tenths: {report.p50_ms}\np99: {report.p99_ms}")
    _close(soak.FOLDER, asdict(report), console)
    return int(not report.passed)


def _show_faults(
    faults: Mapping[str, Mapping[str, int]], neighbours: Mapping[str, int], console: Console
) -> None:
    shown = Table("fault", "answered", "times", "good answers meanwhile")
    for name, answers in faults.items():
        for count, (answered, times) in enumerate(answers.items()):
            meanwhile = str(neighbours.get(name, 0)) if neighbours and not count else ""
            shown.add_row("" if count else name, answered, str(times), meanwhile)
    console.print(shown)


def _close(folder: Path, document: Mapping[str, object], console: Console) -> None:
    """Says what must not be, and writes the report down."""
    path = folder / "report.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console.print(f"violations: {document['violations'] or 'none'}; report: {path}")
    for example in document["examples"] if isinstance(document["examples"], list) else []:
        console.print(f"  {example}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
