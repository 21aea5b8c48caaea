"""`python -m benchmarks.peers`: lossd and other serving systems with one job, in one run."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import report as reports
from benchmarks.peers.comparison import Options, compare
from benchmarks.peers.environments import DEFAULT_FOLDER
from benchmarks.peers.servers import settings
from benchmarks.peers.systems import NAMES, PEERS
from benchmarks.peers.tables import report
from lossd.settings import processors

_ROUNDS = 3
_TERMINATED = 128 + signal.SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; a missed target fails nothing, since it depends on the machine."""
    given = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    options = Options(
        environments=given.environments.resolve(),
        peers=[peer for peer in PEERS if not given.only or peer.name in given.only],
        cores=settings.CORES if given.core == "all" else (given.core,),
        threads=given.threads,
        rounds=1 if given.quick else given.rounds,
        kernels=given.kernels,
        quick=given.quick,
    )
    # Whoever ends this by a signal ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    seen = compare(options, lambda text: console.print(text, markup=False, highlight=False))
    found = report(seen, options)
    reports.show(found, console)
    folder = given.out or (None if given.quick else reports.RESULTS)
    if folder is not None:
        console.print(f"written {reports.write(found, folder)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    add = parser.add_argument
    add(
        "--environments",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="FOLDER",
        help="of the peers' virtual environments, NAME/bin/python; what is missing is installed",
    )
    add("--only", action="append", choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
    add("--core", choices=(*settings.CORES, "all"), default="all", help="what peers compute with")
    add("--threads", type=int, default=processors(), help="of torch, in every system")
    add("--rounds", type=int, default=_ROUNDS)
    add("--quick", action="store_true", help="one short round, writes nothing")
    add("--kernels", choices=("auto", "compiled", "eager"), default="auto", help="lossd's")
    add("--out", type=Path, help="folder of the JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
