"""From the command line to the first `ready`, with compiled kernels on disk and without."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic_settings import CliApp

from benchmarks.report import Report, Row, Section, environment
from lossd.core.compiled import cache_folder, choose_mode
from lossd.kernels import choose_device
from lossd.settings import Settings

_PATIENCE_S = 900.0
_POLL_S = 0.05
_WARM_STARTS = 2


@dataclass(frozen=True)
class Start:
    """How long a start took."""

    live_s: float
    """Until the process answered at all."""
    ready_s: float
    """Until it would compute a job."""


def run(*, cold: bool, quick: bool) -> Report:
    """Warm starts from the operator's cache, and with `cold` one start from an empty one."""
    settings = CliApp.run(Settings, cli_args=[])
    device = choose_device(settings.device)
    if not cache_folder(settings.cache_dir, device).exists():
        _start(settings.cache_dir)  # fills the cache, so that the starts below are warm
    rows = [_row("warm", _start(settings.cache_dir)) for _ in range(1 if quick else _WARM_STARTS)]
    if cold:
        with tempfile.TemporaryDirectory(prefix="lossd-cold-") as folder:
            rows.append(_row("cold", _start(Path(folder))))
    return Report(
        name="start_up",
        sections=[Section("lossd serve until /health/ready is 200", rows)],
        notes=[
            "live includes importing torch; ready includes every kernel and the canary",
            *([] if cold else ["the cold start, some minutes, is measured with --cold"]),
        ],
        environment=environment(device, choose_mode(device)),
    )


@contextmanager
def serving(
    port: int, cache_dir: Path | None = None, flags: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A `lossd serve` of its own on loopback, stopped at the end."""
    command = [sys.executable, "-m", "lossd", "serve", "--port", str(port), *flags]
    command += ["--log-level", "error"]
    if cache_dir is not None:
        command += ["--cache-dir", str(cache_dir)]
    process = subprocess.Popen(command)  # noqa: S603 - our own command
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:  # a compile does not hear SIGTERM
            process.kill()
            process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(path: str, port: int, process: subprocess.Popen[bytes]) -> float:
    """When the path first answered 200, by `time.perf_counter`.

    Raises:
        RuntimeError: the process ended, or did not answer in time.
    """
    until = time.perf_counter() + _PATIENCE_S
    while time.perf_counter() < until and process.poll() is None:
        if _status(path, port) == http.HTTPStatus.OK:
            return time.perf_counter()
        time.sleep(_POLL_S)
    msg = f"{path} did not answer 200 (exit status {process.poll()})"
    raise RuntimeError(msg)


def _start(cache_dir: Path) -> Start:
    port = free_port()
    started = time.perf_counter()
    with serving(port, cache_dir) as process:
        live = wait_for("/health/live", port, process)
        ready = wait_for("/health/ready", port, process)
    return Start(live - started, ready - started)


def _status(path: str, port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def _row(cache: str, start: Start) -> Row:
    return {"cache": cache, "live_s": start.live_s, "ready_s": start.ready_s}
