"""Lists the licences of what the images contain, and holds them against a policy: `make licences`.

pip-licenses reads the metadata of what is installed in .venv, in the versions that are locked.
requirements/licences.toml adds what metadata lacks and says what is allowed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name
from packaging.version import Version

from supply_chain.locked import OURS, REQUIREMENTS, ROOT, Pin, read

PAGE = ROOT / "docs" / "licences.md"
POLICY = REQUIREMENTS / "licences.toml"
_PYTHON = ROOT / ".venv" / "bin" / "python"
_ROW = re.compile(
    r"\| `(?P<name>[\w-]+)` \| (?P<version>\S+) \| (?P<licence>[^|]+) \| (?P<home>\S+) \|"
)

_TEXT = """\
# Licences

What the images contain beside lossd, which is under Apache-2.0. Written by `make licences`; which
licences are accepted, and what a person had to read, stands in `requirements/licences.toml`.

## In every image

`torch` is listed in its version without the build; the CPU build says the same of itself.

{every}
## In the CUDA image only

They come with torch's default build. `LicenseRef-NVIDIA-Proprietary` stands for NVIDIA's own terms,
which are no open licence; the text is in the wheels. Passing on an image that contains these
packages is distribution: NVIDIA allows it for the files that its terms name and under conditions
that they set. Read them before you publish a CUDA image. The image without them is built with
`TORCH=cpu`.

{cuda}
## Not in these lists

What the base image brings (Python, pip, Debian) and the C++ compiler that the Dockerfile adds: each
package's terms are in the image, in `/usr/share/doc/*/copyright`. GCC is under the GPL; lossd calls
it as a program. Wheels contain libraries of others, whose terms lie beside the code in
`*.dist-info`; of those, the lists name the ones of GCC in numpy, scipy and torch, and no other.
"""


@dataclass(frozen=True)
class Listed:
    """A row of the list."""

    name: str
    version: str
    licence: str
    """SPDX expression."""
    home: str


def policy() -> dict[str, Any]:
    """What requirements/licences.toml says."""
    return tomllib.loads(POLICY.read_text(encoding="utf-8"))


def refused(expression: str, allowed: Iterable[str]) -> list[str]:
    """The licences of an SPDX expression that are not allowed; of alternatives every one counts."""
    names = re.split(r"\s+(?:AND|OR)\s+", expression.replace("(", "").replace(")", ""))
    return [name for name in names if name not in set(allowed)]


def listed(page: str) -> list[Listed]:
    """The rows of a page."""
    return [Listed(**found.groupdict()) for found in _ROW.finditer(page)]


def main() -> None:
    """Writes the page, unless a licence is missing or not allowed."""
    installed = _installed()
    every = [*read(REQUIREMENTS / "service.txt"), *read(REQUIREMENTS / "torch-cpu.txt")]
    names = {pin.name for pin in every}
    cuda = [pin for pin in read(REQUIREMENTS / "torch-cuda.txt") if pin.name not in names]
    problems = _left_over({pin.name for pin in [*every, *cuda]})
    rows = {pin.name: _described(pin, installed, problems) for pin in [*every, *cuda]}
    for row in rows.values():
        problems += [
            f"{row.name} {row.version}: {name} is not allowed"
            for name in refused(row.licence, policy()["allowed"])
        ]
    if problems:
        sys.exit("\n".join(problems))
    tables = [_table(rows[pin.name] for pin in pins) for pins in (every, cuda)]
    PAGE.write_text(_TEXT.format(every=tables[0], cuda=tables[1]), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} packages")


def _left_over(names: set[str]) -> list[str]:
    return [
        f"{POLICY.name} tells of {name}, which is in no image"
        for name in policy()["packages"]
        if name not in names
    ]


def _described(pin: Pin, installed: dict[str, dict[str, str]], problems: list[str]) -> Listed:
    """What is known of a package; what is not goes to `problems`."""
    version = Version(pin.version).public
    known = policy()["packages"].get(pin.name, {})
    found = installed.get(pin.name, {})
    if known and known["version"] != version:
        problems.append(f"{pin.name} {version}: {POLICY.name} is of {known['version']}, read it")
    if not known and Version(found.get("Version", "0")).public != version:
        problems.append(f"{pin.name} {version} is not installed in .venv: make setup")
    licence = known.get("licence") or _spdx(found)
    return Listed(pin.name, version, licence, _home(pin.name, {**found, **known}))


def _spdx(found: dict[str, str]) -> str:
    """What pip-licenses found, as SPDX; the text itself, which no policy allows, if it is none."""
    for source in ("License-Expression", "License-Metadata", "License-Classifier"):
        said = found.get(source, "UNKNOWN")
        try:
            return str(canonicalize_license_expression(policy()["spelled"].get(said, said)))
        except InvalidLicenseExpression:
            continue
    return "no licence as SPDX"


def _home(name: str, told: dict[str, str]) -> str:
    """The project's page: on GitHub the repository, not a folder or a changelog of it."""
    address: str = policy()["home"].get(name) or told.get("home") or told.get("URL", "UNKNOWN")
    parts = urlsplit(address)
    if parts.hostname != "github.com":
        return address
    return f"https://github.com/{'/'.join(parts.path.strip('/').split('/')[:2])}"


def _installed() -> dict[str, dict[str, str]]:
    command = [str(Path(sys.executable).with_name("pip-licenses")), "--python", str(_PYTHON)]
    arguments = ["--from", "all", "--with-urls", "--with-system", "--format", "json"]
    told = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE).stdout  # noqa: S603 - our own
    rows = {canonicalize_name(row["Name"]): row for row in json.loads(told)}
    return {name: row for name, row in rows.items() if name not in OURS}


def _table(rows: Iterable[Listed]) -> str:
    lines = [
        f"| `{row.name}` | {row.version} | {row.licence} | {row.home} |"
        for row in sorted(rows, key=lambda row: row.name)
    ]
    return "\n".join(["| package | version | licence | home |", "|---|---|---|---|", *lines]) + "\n"


if __name__ == "__main__":
    main()
