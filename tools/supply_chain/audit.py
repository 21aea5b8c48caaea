"""Asks for known vulnerabilities of everything that is locked: `make audit`.

Exit status 0: none known, or `skipped` where no source of advisories answers; 1: some are known, or
pip-audit failed; 2: the source does not know some of the packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from supply_chain.locked import REQUIREMENTS

# The CPU build of torch is the same release as the one in torch-cuda.txt.
LOCKED = ("service.txt", "torch-cuda.txt", "build.txt", "loadtest.txt", "supply-chain.txt")
_SOURCES = ("pypi", "osv")
# How pip-audit ends, in the last line of what it prints, when nobody answers.
_UNREACHABLE = (
    "requests.exceptions.ConnectionError",
    "requests.exceptions.ConnectTimeout",
    "requests.exceptions.ProxyError",
    "requests.exceptions.ReadTimeout",
    "ERROR:pip_audit._cli:Could not connect",
)


def findings(packages: list[dict[str, Any]]) -> list[str]:
    """A line for every vulnerability in what pip-audit reports."""
    return [
        f"{one['name']} {one['version']}: {found['id']}, mended in "
        f"{', '.join(found['fix_versions']) or 'no version'}"
        for one in packages
        for found in one.get("vulns", [])
    ]


def unknown(packages: list[dict[str, Any]]) -> list[str]:
    """The packages that the source did not know."""
    return [one["name"] for one in packages if "skip_reason" in one]


def unreachable(errors: str) -> bool:
    """Whether pip-audit ended because no source answered."""
    lines = errors.strip().splitlines()
    return bool(lines) and lines[-1].startswith(_UNREACHABLE)


def main() -> int:
    """The audit by the first source that answers and knows any of our packages."""
    for source in _SOURCES:
        reports = [_report(source, name) for name in LOCKED]
        packages = [one for report in reports if report for one in report["dependencies"]]
        if all(reports) and len(unknown(packages)) < len(packages):
            return _told(packages, source)
    print("audit skipped: no source of advisories can be reached, or none knows our packages")
    return 0


def _told(packages: list[dict[str, Any]], source: str) -> int:
    found, missing = findings(packages), unknown(packages)
    lines = [*found, *(f"{name}: not known to {source}" for name in missing)]
    print("\n".join([*lines, f"{len(packages) - len(missing)} packages audited by {source}"]))
    return 1 if found else 2 if missing else 0


def _report(source: str, name: str) -> dict[str, Any] | None:
    """What a source says of a locked file; None if it does not answer."""
    command = [str(Path(sys.executable).with_name("pip-audit")), "--disable-pip"]
    locked = ["--require-hashes", "--requirement", str(REQUIREMENTS / name)]
    options = ["--vulnerability-service", source, "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(  # noqa: S603 - our own command
        [*command, *locked, *options],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.stdout:
        report: dict[str, Any] = json.loads(done.stdout)
        return report
    if unreachable(done.stderr):
        return None
    raise RuntimeError(f"pip-audit failed:\n{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
