"""Builds the image and runs it as the compose file says, for `tests/test_container.py`."""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
IMAGE = "lossd:cpu-test"
SERVICE = "lossd-cpu"
REPORT = ROOT / "build" / "container.json"
_PROJECT = "lossd-test"
_CACHE_VOLUME = f"{_PROJECT}_kernels"


def absent() -> str:
    """Why the container tests cannot run, or nothing."""
    if not os.environ.get("LOSSD_CONTAINER_TESTS"):
        return "building an image takes minutes: make container runs this"
    if shutil.which("docker") is None or shutil.which("docker-compose") is None:
        return "docker and docker-compose are not installed"
    return "" if run("docker", "info", check=False).returncode == 0 else "no docker engine answers"


def run(
    *command: str, check: bool = True, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """A command to its end; what it wrote is shown if it was to succeed and did not."""
    done = subprocess.run(  # noqa: S603 - our own commands
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0 or not check, f"{command}:\n{done.stdout[-8000:]}"
    return done


def build() -> float:
    """Builds the image that the tests run; how long it took, in seconds."""
    started_s = time.monotonic()
    arguments = ["--build-arg", "TORCH=cpu", "--build-arg", "WARM=cpu", "--tag", IMAGE]
    # The host's network, for machines whose engine gives a build none of its own.
    run("docker", "build", "--network", "host", *arguments, ".", env={"DOCKER_BUILDKIT": "0"})
    return time.monotonic() - started_s


def inspect() -> dict[str, Any]:
    """What the engine knows of the image."""
    (found,) = json.loads(run("docker", "image", "inspect", IMAGE).stdout)
    return dict(found)


def layers() -> list[tuple[str, str]]:
    """Size and command of every layer that the image adds to its base, last first."""
    lines = run(
        "docker", "history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", IMAGE
    ).stdout.splitlines()
    return [(size, command) for size, _, command in (line.partition("\t") for line in lines)]


@dataclass
class Container:
    """The compose service, on a port of its own."""

    port: int
    name: str = ""
    """By which docker knows it once it has started."""

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: str, check: bool = True) -> str:
        """What a compose command wrote."""
        names = {"LOSSD_PORT": str(self.port), "LOSSD_CPU_TAG": IMAGE.partition(":")[2]}
        command = ["docker-compose", "-p", _PROJECT, "--profile", "cpu", *arguments]
        return run(*command, check=check, env=names).stdout

    def start(self) -> float:
        """Starts it and waits until docker calls it healthy; seconds until it said ready."""
        started_s = time.monotonic()
        self.compose("up", "-d", "--no-build", SERVICE)
        # Compose is a program of a second: asked at every poll it would compete with the start.
        self.name = self.compose("ps", "--quiet", SERVICE).strip()
        ready_s = self._wait(self._is_ready) - started_s
        self._wait(lambda: self.health() == "healthy")
        return ready_s

    def stop(self) -> float:
        """SIGTERM, as `docker-compose stop` sends it; seconds until it had ended."""
        started_s = time.monotonic()
        self.compose("stop", SERVICE)
        return time.monotonic() - started_s

    def remove(self) -> None:
        """Takes everything away, the volume with the kernels too."""
        self.compose("down", "--volumes", check=False)

    def health(self) -> str:
        """What the health check found last."""
        return str(self.state()["Health"]["Status"])

    def state(self) -> dict[str, Any]:
        """Whether it runs, and how it ended."""
        (found,) = json.loads(run("docker", "inspect", self.name).stdout)
        return dict(found["State"])

    def inside(self, *command: str, check: bool = True) -> str:
        """What a command wrote that ran in the container."""
        return run("docker", "exec", self.name, *command, check=check).stdout

    def logs(self) -> str:
        """Every line so far."""
        return run("docker", "logs", self.name).stdout

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready").is_success
        except httpx.TransportError:
            return False

    def _wait(self, holds: Any, timeout_s: float = 900.0) -> float:
        until_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < until_s, self.logs()[-4000:]
            assert self.state()["Running"], self.logs()[-4000:]
            time.sleep(0.5)
        return time.monotonic()


def write_report(figures: Mapping[str, Any]) -> None:
    """Keeps what was measured where a person finds it."""
    where = {
        "name": "container",
        "processors": os.cpu_count(),
        "processor": _processor(),
        "docker": run("docker", "version", "--format", "{{.Server.Version}}").stdout.strip(),
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps({**where, **figures}, indent=2) + "\n", encoding="utf-8")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
