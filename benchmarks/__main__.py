"""`python -m benchmarks [NAME…]`: runs benchmarks, prints tables, writes `results/NAME.json`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.report import Report

LIBRARIES_PYTHON = Path(__file__).resolve().parents[1] / ".venv-peers" / "bin" / "python"

NAMES = (
    "core",
    "stages",
    "sample_losses",
    "mixed_sizes",
    "batch_sizes",
    "never_seen",
    "memory",
    "where_time_goes",
    "event_loop",
    "cuda",
    "accuracy",
    "start_up",
    "transfer",
    "client_transfer",
    "fairness",
    "references",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for; 1 if a binding target was missed."""
    options = _parser().parse_args(arguments)
    # As `lossd serve` does it; torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from rich.console import Console  # noqa: PLC0415

    from benchmarks import report  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else 200)
    folder = options.out or (None if options.quick else report.RESULTS)
    runners = _runners(options)
    failed = False
    for name in options.names or NAMES:
        found = runners[name]()
        report.show(found, console)
        if folder is not None:
            console.print(f"written {report.write(found, folder)}\n")
        failed |= any(target.binding and not target.met for target in found.targets)
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="few cases and rounds, no files")
    parser.add_argument("--cold", action="store_true", help="start_up: with an empty cache too")
    parser.add_argument("--kernels", choices=("auto", "compiled", "eager"), default="auto")
    parser.add_argument(
        "--libraries",
        type=Path,
        metavar="PYTHON",
        default=LIBRARIES_PYTHON,
        help="core: interpreter of an environment with MONAI and segmentation_models.pytorch, "
        "as `make peers` makes it; without one they are not run",
    )
    parser.add_argument("--out", type=Path, help="folder of the JSON files")
    return parser


def _runners(options: argparse.Namespace) -> dict[str, Callable[[], Report]]:
    from benchmarks import (  # noqa: PLC0415 - they import torch, which must come after main's setup
        accuracy,
        batch_sizes,
        client_transfer,
        core,
        cuda,
        event_loop,
        fairness,
        memory,
        mixed_sizes,
        never_seen,
        references,
        sample_losses,
        stages,
        start_up,
        transfer,
        where_time_goes,
    )
    from benchmarks.engine import open_core  # noqa: PLC0415

    quick: bool = options.quick
    # Compiled when the first benchmark needs it, once for all.
    opened = cache(partial(open_core, options.kernels))
    return {
        "core": lambda: core.run(opened(), options.libraries, quick=quick),
        "stages": lambda: stages.run(opened(), quick=quick),
        "sample_losses": lambda: sample_losses.run(options.kernels, quick=quick),
        "mixed_sizes": lambda: mixed_sizes.run(opened(), quick=quick),
        "batch_sizes": lambda: batch_sizes.run(opened(), quick=quick),
        "never_seen": lambda: never_seen.run(opened(), options.kernels, quick=quick),
        "memory": lambda: memory.run(options.kernels, quick=quick),
        "where_time_goes": lambda: where_time_goes.run(opened(), options.kernels, quick=quick),
        "event_loop": lambda: event_loop.run(opened(), quick=quick),
        "cuda": lambda: cuda.run(options.kernels, quick=quick),
        "accuracy": lambda: accuracy.run(opened(), quick=quick),
        "transfer": lambda: transfer.run(quick=quick),
        "client_transfer": lambda: client_transfer.run(quick=quick),
        "fairness": lambda: fairness.run(kernels=options.kernels, quick=quick),
        "references": lambda: references.run(options.kernels, quick=quick),
        "start_up": lambda: start_up.run(cold=options.cold, quick=quick),
    }


if __name__ == "__main__":
    sys.exit(main())
