"""A service of the faults' own: started, watched, stopped, killed and started again."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.start_up import free_port, wait_for

_ROOT = Path(__file__).resolve().parents[1]
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LEAVES_WITHIN_S = 60.0


@dataclass(frozen=True)
class Footprint:
    """What a process holds at one moment."""

    resident_mib: float
    threads: int
    descriptors: int


@dataclass
class Life:
    """One process, from its start to its end."""

    process: subprocess.Popen[bytes]
    log: Path
    status: int | None = None
    """With which it ended; None while it runs."""

    def request_ids(self) -> set[str]:
        """Ids of the requests whose head it saw and which have ended, as its log names them."""
        found = set()
        for line in self.log.read_text(encoding="utf-8").splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "request":
                found.add(str(event["request_id"]))
        return found


@dataclass
class Service:
    """`lossd serve` with sabotage, at one address through all its lives."""

    folder: Path
    flags: Sequence[str]
    port: int = field(default_factory=free_port)
    lives: list[Life] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        return self.lives[-1].process.pid

    def start(self) -> None:
        """Starts a process and waits until it is ready.

        Raises:
            RuntimeError: it ended instead, or took too long.
        """
        log = self.folder / f"service-{len(self.lives)}.log"
        command = [sys.executable, "-m", "faults.sabotage", "serve", "--port", str(self.port)]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [*command, *self.flags], stderr=output, cwd=_ROOT
            )
        self.lives.append(Life(process, log))
        wait_for("/health/ready", self.port, process)

    def end(self, sign: signal.Signals) -> int:
        """Sends a signal and waits for the process to end; its exit status."""
        self.lives[-1].process.send_signal(sign)
        return self.wait()

    def wait(self) -> int:
        """Waits for the process to end; its exit status.

        Raises:
            subprocess.TimeoutExpired: it does not.
        """
        life = self.lives[-1]
        life.status = life.process.wait(_LEAVES_WITHIN_S)
        return life.status

    def stop(self) -> None:
        """Kills what runs still, whatever state it is in."""
        for life in self.lives:
            if life.process.poll() is None:
                life.process.kill()
                life.process.wait()

    def footprint(self) -> Footprint:
        """What the process holds now."""
        folder = Path(f"/proc/{self.pid}")
        resident_pages = int((folder / "statm").read_text(encoding="ascii").split()[1])
        return Footprint(
            resident_mib=round(resident_pages * _PAGE_BYTES / (1 << 20), 1),
            threads=len(list((folder / "task").iterdir())),
            descriptors=len(list((folder / "fd").iterdir())),
        )

    def metric(self, name: str) -> float:
        """Value of a sample, by its name with labels as the page has it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
        finally:
            connection.close()
        lines = (line.rpartition(" ") for line in page.splitlines())
        return sum(float(value) for sample, _, value in lines if sample == name)

    def settle(self, within_s: float = 10.0) -> bool:
        """Whether nothing waits or is in progress, as soon as that is so."""
        until_s = time.monotonic() + within_s
        while time.monotonic() < until_s:
            # The one in progress is the question itself.
            if self.metric("lossd_queue_requests") + self.metric("lossd_requests_in_progress") <= 1:
                return True
            time.sleep(0.1)
        return False
