"""`python -m fuzz --bodies N --seed S --jobs J`: many bodies, a report, a file per failure."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from fuzz.bodies import body
from fuzz.share import FOLDER, run
from fuzz.walk import outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the fuzz; 1 if any body was not answered with a job or a 4xx."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--bodies", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--replay", type=int, help="the one body of this number, with traceback")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    if options.replay is not None:
        console.print(outcome(body(options.seed, options.replay)))
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    lots = [(options.seed, job, options.bodies, options.jobs) for job in range(options.jobs)]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        reports = pool.starmap(run, lots)
    document = {
        "seed": options.seed,
        "bodies": sum(one.bodies for one in reports),
        "bodies_per_s": sum(one.bodies / max(one.seconds, 1e-9) for one in reports),
        "codes": dict(sorted(sum((one.codes for one in reports), Counter()).items())),
        "failures": [name for one in reports for name in one.failures],
        "processes": [vars(one) for one in reports],
    }
    (FOLDER / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    console.print_json(json.dumps({k: v for k, v in document.items() if k != "processes"}))
    for one in reports:
        console.print(f"resident MiB {one.rss_mib}, peak {one.peak_rss_mib:.0f}")
    return int(bool(document["failures"]))


if __name__ == "__main__":
    sys.exit(main())
