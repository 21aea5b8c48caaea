"""The peers' virtual environments: each its own, made from `requirements/NAME.txt`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers.systems import System

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = ROOT / "build" / "peers"
_REQUIREMENTS = Path(__file__).with_name("requirements")
_SHOWN_LINES = 3
_PATIENCE_S = 1800.0
_VERSIONS = """
import importlib.metadata as metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class UnavailableError(Exception):
    """A system cannot be compared here, and why."""


def interpreter(folder: Path, name: str) -> Path:
    """Python of a peer's environment, whether it is there or not."""
    return folder / name / "bin" / "python"


def prepare(folder: Path, system: System) -> Path:
    """Python of an environment that has the peer; makes it if need be.

    Raises:
        UnavailableError: it cannot be installed.
    """
    python = interpreter(folder, system.name)
    if not python.exists():
        _call([base_interpreter(system.name), "-m", "venv", str(folder / system.name)])
    if system.distribution not in versions(python, system.distribution):
        _install(python, "-r", str(_REQUIREMENTS / f"{system.name}.txt"))
    return python


def add_lossd(python: Path, system: System) -> None:
    """Adds this checkout's lossd to a peer's environment; the peer's own versions stay.

    Raises:
        UnavailableError: it cannot be installed.
    """
    if "lossd" not in versions(python, "lossd"):
        checkout = ("-e", str(ROOT / "client"), "-e", str(ROOT / "service"))
        _install(python, "-c", str(ROOT / "constraints.txt"), *checkout)
        # With a numpy newer than its pin PyTriton answers 200 with tensors of no bytes; lossd's
        # core, which asks for the newer one, computes the same with either.
        _install(python, "--no-deps", "-r", str(_REQUIREMENTS / f"{system.name}.txt"))


def versions(python: Path, *distributions: str) -> Mapping[str, str]:
    """Versions of Python and of those distributions that an environment has.

    Raises:
        UnavailableError: its Python does not run.
    """
    found: dict[str, str] = json.loads(_call([str(python), "-c", _VERSIONS, *distributions]))
    return found


def base_interpreter(name: str) -> str:
    """What an environment is made with.

    PyTriton's server loads a shared libpython, which a Python built by hand may lack; the system's
    has one.
    """
    system = Path(f"/usr/bin/python3.{sys.version_info.minor}")
    return str(system) if name == "pytriton" and system.exists() else sys.executable


def _install(python: Path, *arguments: str) -> None:
    _call([str(python), "-m", "pip", "install", "--quiet", *arguments])


def _call(command: list[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=_PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(str(error)) from error
    if done.returncode:
        last = " / ".join(done.stderr.strip().splitlines()[-_SHOWN_LINES:])
        raise UnavailableError(f"{' '.join(command[1:4])} failed: {last}")
    return done.stdout
