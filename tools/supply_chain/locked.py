"""The locked requirement files: what they are made from, how they are read and written."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
OURS = {"lossd", "lossd-client"}
_IMAGE_EXTRA = "telemetry"
_PYPROJECTS = [ROOT / part / "pyproject.toml" for part in ("service", "client")]

_PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\]+))? \\")
_HASH = re.compile(r"    --hash=sha256:(?P<digest>[0-9a-f]{64})(?P<more> \\)?")


@dataclass(frozen=True)
class Pin:
    """One version of one package, and the digests of the files that may be installed for it."""

    name: str
    version: str
    marker: str | None
    """Where it is needed; None is everywhere."""
    digests: tuple[str, ...]
    """SHA-256, hexadecimal."""


def service_requirements() -> list[Requirement]:
    """What our two distributions need in the image, with the telemetry extra."""
    found = [
        requirement for pyproject in _PYPROJECTS for requirement in _runtime_requirements(pyproject)
    ]
    return [one for one in found if one.name not in OURS]


def build_requirements() -> list[Requirement]:
    """What makes wheels of our two distributions."""
    texts = {
        text for pyproject in _PYPROJECTS for text in _table(pyproject)["build-system"]["requires"]
    }
    return [Requirement(text) for text in sorted(texts)]


def load_test_requirements() -> list[Requirement]:
    """What the load-test image needs: locust's side, and our client."""
    lines = (ROOT / "loadtests" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    own = [Requirement(line) for line in lines if line and not line.startswith("#")]
    client = _table(_PYPROJECTS[1])["project"]["dependencies"]
    return [*own, *map(Requirement, client)]


def constrained_versions() -> dict[str, str]:
    """Name and version of every line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def read(path: Path) -> list[Pin]:
    """The pins of a locked file; a line that is neither pin, hash nor comment is an error."""
    lines = path.read_text(encoding="utf-8").splitlines()
    remaining = iter([line for line in lines if line and not line.startswith("#")])
    return [_read_pin(line, remaining, path) for line in remaining]


def text(purpose: str, pins: Iterable[Pin]) -> str:
    """A locked file."""
    lines = [f"# {line}" for line in [*purpose.splitlines(), "Written by `make lock`."]]
    for pin in sorted(pins, key=lambda pin: pin.name):
        marker = f" ; {pin.marker}" if pin.marker else ""
        digests = [f"    --hash=sha256:{digest}" for digest in sorted(pin.digests)]
        lines.append(" \\\n".join([f"{pin.name}=={pin.version}{marker}", *digests]))
    return "\n".join(lines) + "\n"


def _read_pin(line: str, following: Iterator[str], path: Path) -> Pin:
    found = _PIN.fullmatch(line)
    if not found:
        raise ValueError(f"{path.name}: not a pin with hashes: {line}")
    digests = tuple(_read_digests(following, path))
    marker = found["marker"].strip() if found["marker"] else None
    return Pin(found["name"], found["version"], marker, digests)


def _read_digests(following: Iterator[str], path: Path) -> Iterator[str]:
    for line in following:
        found = _HASH.fullmatch(line)
        if not found:
            raise ValueError(f"{path.name}: not a hash: {line}")
        yield found["digest"]
        if not found["more"]:
            return
    raise ValueError(f"{path.name}: ends within the hashes of a pin")


def _runtime_requirements(pyproject: Path) -> list[Requirement]:
    project = _table(pyproject)["project"]
    extra = project.get("optional-dependencies", {}).get(_IMAGE_EXTRA, [])
    return [Requirement(text) for text in [*project["dependencies"], *extra]]


def _table(pyproject: Path) -> dict[str, Any]:
    return tomllib.loads(pyproject.read_text(encoding="utf-8"))
