"""Writes the locked requirement files: `make lock`.

Versions come from constraints.txt; uv adds what they need in turn and the digests of the wheels. A
wheel is listed if an image can install it, and there has to be one for every Python and processor.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename
from packaging.version import Version

from supply_chain.locked import (
    REQUIREMENTS,
    ROOT,
    Pin,
    build_requirements,
    constrained_versions,
    load_test_requirements,
    read,
    service_requirements,
    text,
)

_UV = Path(sys.executable).with_name("uv")
_PYTHON_MINORS = (11, 12, 13)
_MACHINES = ("x86_64", "aarch64")
_GLIBC_MINOR = 36  # of Debian 12, which the images are built on
_LEGACY_GLIBC_MINORS = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}
_PLATFORM = re.compile(rf"(manylinux\w*?)(?:_2_(\d+))?_({'|'.join(_MACHINES)})")

_SCOPE = "\nLinux on x86_64 and aarch64, Python 3.11 to 3.13, wheels only."
_SERVICE = f"What the service needs in its image, without torch.{_SCOPE}"
_CUDA = f"torch with the CUDA runtime that it brings.{_SCOPE}"
_BUILD = f"What makes wheels of our two distributions; not in the image.{_SCOPE}"
_LOAD_TEST = f"What the load-test image needs.{_SCOPE}"
_CPU = """\
torch built for the CPU, from PyTorch's own index or a folder of wheels.
The digests are those of torch-cpu.sha256; docs/supply-chain.md says where they come from and how
another one is added."""


@dataclass(frozen=True)
class Environment:
    """A Python on a machine that an image can be built for."""

    python_minor: int
    machine: str

    def needs(self, marker: str | None) -> bool:
        """Whether a package with this marker is installed here."""
        version = f"3.{self.python_minor}"
        return marker is None or Marker(marker).evaluate(
            {
                "python_version": version,
                "python_full_version": f"{version}.0",
                "platform_machine": self.machine,
                "sys_platform": "linux",
                "platform_system": "Linux",
                "os_name": "posix",
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
            }
        )

    def installs(self, wheel: str) -> bool:
        """Whether pip takes this file here."""
        found = {_of_this_linux(tag, self.machine) for tag in parse_wheel_filename(wheel)[3]}
        version, interpreter = (3, self.python_minor), f"cp3{self.python_minor}"
        tags = {
            *cpython_tags(version, abis=[interpreter], platforms=["linux"]),
            *compatible_tags(version, interpreter=interpreter, platforms=["linux"]),
        }
        return bool(found & tags)


ENVIRONMENTS = [Environment(minor, machine) for minor in _PYTHON_MINORS for machine in _MACHINES]


def is_torch(name: str) -> bool:
    """Whether a package is torch or part of the CUDA runtime that its default build needs."""
    return name in {"torch", "triton"} or name.startswith(("nvidia-", "cuda-"))


def cpu_torch(cuda: Iterable[Pin]) -> Pin:
    """The CPU build of the torch in `cuda`, with the digests that are known."""
    (version,) = [pin.version for pin in cuda if pin.name == "torch"]
    lines = (REQUIREMENTS / "torch-cpu.sha256").read_text(encoding="utf-8").splitlines()
    digests = {wheel: digest for digest, wheel in map(str.split, lines)}
    versions = {parse_wheel_filename(wheel)[1] for wheel in digests}
    if versions != {Version(f"{version}+cpu")}:
        raise ValueError(f"torch-cpu.sha256 is not of torch {version}")
    return Pin("torch", f"{version}+cpu", None, tuple(digests.values()))


def main() -> None:
    """Writes every locked file."""
    service = _resolved(service_requirements())
    build, load_test = _resolved(build_requirements()), _resolved(load_test_requirements())
    _demand_constraints([*service, *build, *load_test])
    cuda = [pin for pin in service if is_torch(pin.name)]
    _write("service.txt", _SERVICE, [pin for pin in service if pin not in cuda])
    _write("torch-cuda.txt", _CUDA, cuda)
    _write("torch-cpu.txt", _CPU, [cpu_torch(cuda)])
    _write("build.txt", _BUILD, build)
    _write("loadtest.txt", _LOAD_TEST, load_test)
    _write_own_tools()


def _resolved(requirements: Iterable[Requirement]) -> list[Pin]:
    lines = "\n".join(map(str, requirements))
    locked = _uv("-", "--constraints", "constraints.txt", "--format", "pylock.toml", stdin=lines)
    return [pin for package in tomllib.loads(locked)["packages"] if (pin := _pin(package))]


def _demand_constraints(pins: Iterable[Pin]) -> None:
    pinned = constrained_versions()
    missing = {f"{pin.name}=={pin.version}" for pin in pins if pin.name not in pinned}
    if missing:
        sys.exit("\n".join(["constraints.txt lacks:", *sorted(missing)]))


def _pin(package: dict[str, Any]) -> Pin | None:
    """A package of uv's answer; None if no image needs it."""
    name, marker = package["name"], package.get("marker")
    needing = [one for one in ENVIRONMENTS if one.needs(marker)]
    if not needing:
        return None
    wheels = {wheel["url"].rpartition("/")[2]: wheel for wheel in package["wheels"]}
    chosen = {env: [wheel for wheel in wheels if env.installs(wheel)] for env in needing}
    for env, found in chosen.items():
        if not found:
            raise ValueError(f"{name} {package['version']} has no wheel for {env}")
    digests = {wheels[wheel]["hashes"]["sha256"] for found in chosen.values() for wheel in found}
    everywhere = len(needing) == len(ENVIRONMENTS)
    return Pin(name, package["version"], None if everywhere else marker, tuple(digests))


def _of_this_linux(tag: Tag, machine: str) -> Tag:
    """A tag with one name for all Linux systems that the images can be, and others left alone."""
    found = _PLATFORM.fullmatch(tag.platform)
    if not found or found[3] != machine:
        return tag
    minor = int(found[2]) if found[2] else _LEGACY_GLIBC_MINORS[found[1]]
    return Tag(tag.interpreter, tag.abi, "linux") if minor <= _GLIBC_MINOR else tag


def _write_own_tools() -> None:
    """Locks what runs this; uv keeps the versions of the last time where it can."""
    path = REQUIREMENTS / "supply-chain.txt"
    before, written = path.read_text(encoding="utf-8"), path.stat()
    arguments = ["requirements/supply-chain.in", "--output-file", str(path.relative_to(ROOT))]
    comment = ["--no-annotate", "--custom-compile-command", "make lock"]
    _uv(*arguments, "--generate-hashes", *comment)
    if path.read_text(encoding="utf-8") == before:  # make would set the environment up again
        os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    print(f"{path.name}: {len(read(path))} packages")


def _write(name: str, purpose: str, pins: list[Pin]) -> None:
    (REQUIREMENTS / name).write_text(text(purpose, pins), encoding="utf-8")
    print(f"{name}: {len(pins)} packages")


def _uv(*arguments: str, stdin: str = "") -> str:
    platforms = ["--universal", "--python-version", f"3.{min(_PYTHON_MINORS)}"]
    command = [str(_UV), "pip", "compile", *arguments, *platforms, "--only-binary", ":all:"]
    return subprocess.run(  # noqa: S603 - our own command
        [*command, "--quiet", "--no-config"],
        input=stdin,
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


if __name__ == "__main__":
    main()
