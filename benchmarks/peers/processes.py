"""Servers as processes: started on loopback, asked by another process, stopped for good."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic_settings import CliApp

from benchmarks.peers.environments import ROOT, UnavailableError
from benchmarks.peers.servers import settings
from benchmarks.peers.systems import System
from benchmarks.start_up import free_port
from lossd.settings import Settings

CONNECTIONS = 8

_LOAD = Path(__file__).with_name("load.py")
_READY_WITHIN_S: Mapping[settings.Core, float] = {
    "separate": 120.0,
    "shared": 120.0,
    "lossd": 900.0,  # its kernels, should nobody have compiled them yet
}
_POLL_S = 0.3
_STOP_WITHIN_S = 15.0
_SETTLE_S = 0.5
_SHOWN_LINES = 4
_AS_ROOT = () if os.geteuid() == 0 else ("--user", "--map-root-user")
# `--kill-child`: whatever the server began ends with it.
_UNSHARE = ("unshare", *_AS_ROOT, "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_WITH_LOOPBACK = ("sh", "-c", 'ip link set lo up && exec "$@"', "sh")
_JOIN = ("--net",) if os.geteuid() == 0 else ("--user", "--preserve-credentials", "--net")


@dataclass(frozen=True)
class Turn:
    """What one run of the load generator saw."""

    spans_s: Sequence[tuple[float, float]]
    """Of each answer 200: when it was asked for and when it had arrived, by one clock."""
    errors: Counter[str]
    """By status or kind."""
    first_error: str
    processor_s: float
    """Processor time of the generator."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    system: System
    core: settings.Core
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def load(self, folder: Path, *, seconds: float) -> Turn:
        """Asks what the folder holds, over and over."""
        return self._generate(
            str(folder), "--connections", str(CONNECTIONS), "--seconds", str(seconds)
        )

    def ask_each(self, folder: Path) -> Turn:
        """Asks what the folder holds, all at once, once; the answers are put beside it."""
        return self._generate(str(folder), "--each")

    def wait(self, folder: Path) -> None:
        """Returns when it answers the folder's requests.

        Raises:
            UnavailableError: it ended, or did not answer in time.
        """
        patience_s = _READY_WITHIN_S[self.core]
        until = time.monotonic() + patience_s
        seen = "nothing was asked"
        while time.monotonic() < until:
            turn = self.ask_each(folder)
            if not turn.errors:
                return
            seen = turn.first_error
            if self.process.poll() is not None:
                raise UnavailableError(f"it ended with {self.process.returncode}: {self._last()}")
            time.sleep(_POLL_S)
        raise UnavailableError(f"no right answer in {patience_s:g} s: {seen}; {self._last()}")

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Lets it run meanwhile; else it is stopped, since some are busy with nothing to do."""
        _signal_family(self.process.pid, signal.SIGCONT)
        time.sleep(_SETTLE_S)
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Stops it, and all that it began, until it is `awake`."""
        _signal_family(self.process.pid, signal.SIGSTOP)

    def _generate(self, *arguments: str) -> Turn:
        command = [sys.executable, "-I", str(_LOAD), settings.LOOPBACK, str(self.port), *arguments]
        if self.system.beyond_loopback:
            command = ["nsenter", "--target", str(self.process.pid), *_JOIN, "--", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
        if done.returncode:
            raise UnavailableError(f"the load generator failed: {done.stderr.strip()[-300:]}")
        return Turn(
            **json.loads(done.stdout) | {"errors": Counter(json.loads(done.stdout)["errors"])}
        )

    def _last(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-_SHOWN_LINES:])


@dataclass(frozen=True)
class Start:
    """How to start a server."""

    system: System
    python: Path
    """Its environment's."""
    core: settings.Core
    threads: int
    """Of torch and of lossd."""
    kernels: str
    """Of lossd."""

    def variables(self, port: int, home: Path) -> dict[str, str]:
        """Environment of its processes; `home` is where they may write."""
        return {
            **os.environ,
            # Caches and tokens go with the run; lossd's compiled kernels stay where they are.
            "LOSSD_CACHE_DIR": str(CliApp.run(Settings, cli_args=[]).cache_dir),
            "XDG_CACHE_HOME": str(home),
            "HOME": str(home),
            "TMPDIR": str(home),
            "RAY_TMPDIR": str(home),
            "PYTHONPATH": str(ROOT),
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": str(self.threads),
            "LOSSD_THREADS": str(self.threads),
            "LOSSD_DEVICE": "cpu",
            "LOSSD_KERNELS": self.kernels,
            settings.PORT_VARIABLE: str(port),
            settings.CORE_VARIABLE: self.core,
            settings.THREADS_VARIABLE: str(self.threads),
            **self.system.variables,
        }


@contextmanager
def started(start: Start, home: Path) -> Iterator[Server]:
    """A server that was told to start; `Server.wait` waits for it.

    Args:
        start: what to start.
        home: an empty folder for its log and whatever it writes.

    Raises:
        UnavailableError: it needs a network of its own and cannot have one.
    """
    port = free_port()
    command = [str(start.python), *(text.format(port=port) for text in start.system.arguments)]
    if start.system.beyond_loopback:
        command = [*_own_network(), *command]
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            cwd=ROOT,
            env=start.variables(port, home),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Server(start.system, start.core, port, process, log)
    finally:
        _stop(process)


def _own_network() -> Sequence[str]:
    if shutil.which("unshare") and shutil.which("nsenter") and shutil.which("ip"):
        done = subprocess.run(  # noqa: S603 - our own command
            [*_UNSHARE, *_WITH_LOOPBACK, "true"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return [*_UNSHARE, *_WITH_LOOPBACK]
        reason = done.stderr.strip()
    else:
        reason = "unshare, nsenter or ip is missing"
    msg = f"it listens on every address, and a network of its own cannot be had: {reason}"
    raise UnavailableError(msg)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all of its session's group, politely first."""
    _signal_family(process.pid, signal.SIGCONT)
    _signal_group(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_WITHIN_S)
    # Some servers leave children that go on serving.
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def family(ancestor: int) -> list[int]:
    """A process and all that it began, and they in turn, as the kernel lists them."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            # After the name, which may hold anything: the state, then the parent.
            parent = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            children[parent].append(int(stat.parent.name))
    found = [ancestor]
    for one in found:
        found += children[one]
    return found


def _signal_family(ancestor: int, number: signal.Signals) -> None:
    for one in family(ancestor):
        with suppress(ProcessLookupError):
            os.kill(one, number)


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:  # nobody is left
        return
