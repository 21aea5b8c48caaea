"""`python -m benchmarks.qa`: detection, pointing, speed and memory; writes `results/qa.json`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.qa.data import DEFAULT, CamVid


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 2 where its data is not there."""
    options = _parser().parse_args(arguments)
    if not options.data.is_dir():
        sys.stderr.write(f"benchmarks.qa: {options.data} is not there; --data names the set\n")
        return 2
    # As `lossd serve` does it; torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from rich.console import Console  # noqa: PLC0415

    from benchmarks import report  # noqa: PLC0415 - imports torch
    from benchmarks.qa import run  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="lossd-qa-") as folder:
        found = run.run(
            CamVid(options.data),
            Path(folder),
            python=options.cleanlab,
            kernels=options.kernels,
            quick=options.quick,
        )
    console = Console(width=None if sys.stdout.isatty() else 200)
    report.show(found, console)
    target = options.out or (None if options.quick else report.RESULTS)
    if target is not None:
        console.print(f"written {report.write(found, target)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.qa", description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT, help="folder of camvid126")
    parser.add_argument(
        "--cleanlab",
        type=Path,
        metavar="PYTHON",
        help="interpreter of an environment with cleanlab 2.9.0; without one it is not run",
    )
    parser.add_argument("--kernels", choices=("auto", "compiled", "eager"), default="auto")
    parser.add_argument("--quick", action="store_true", help="two sets, one round, no file")
    parser.add_argument("--out", type=Path, help="folder of the JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
