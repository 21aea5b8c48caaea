"""Starts a service on loopback, loads it with locust, stops it; exit status as locust's."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def main() -> int:
    """The load test of `README.md` against a service of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=15)
    options = parser.parse_args()
    sys.path.insert(0, str(_ROOT))
    from benchmarks.start_up import free_port, serving, wait_for  # noqa: PLC0415 - needs the path

    port = free_port()
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless"]
    command += ["--host", f"http://127.0.0.1:{port}", "--only-summary"]
    command += ["--users", str(options.users), "--spawn-rate", str(options.users)]
    command += ["--run-time", f"{options.seconds}s"]
    with serving(port) as process:
        wait_for("/health/ready", port, process)
        return subprocess.run(command, cwd=_ROOT, check=False).returncode  # noqa: S603 - our own


if __name__ == "__main__":
    sys.exit(main())
