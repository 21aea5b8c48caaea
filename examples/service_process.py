"""The service as a child of the demo: started, waited for, and always stopped again."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console

from lossd_client import Client

START_LIMIT_S: Final = 600.0
STOP_LIMIT_S: Final = 30.0
POLL_S: Final = 0.5
NOTE_EVERY_S: Final = 15.0
LOG_TAIL_LINES: Final = 20


class ServiceStartError(Exception):
    """The service did not come up; the message ends with the last lines of its log."""


@contextmanager
def running_service(log_path: Path, console: Console) -> Iterator[str]:
    """A service of its own on a free port of this machine, ready for work.

    Args:
        log_path: where everything that the service prints goes.
        console: where progress is shown.

    Yields:
        The service's URL. On leaving, for whatever reason, the service is stopped.

    Raises:
        ServiceStartError: there is no `lossd` command, or it ended or stayed unready.
    """
    command = Path(sys.executable).with_name("lossd")
    if not command.exists():
        raise ServiceStartError(f"There is no {command}; `make setup` installs it.")
    port = free_port()
    arguments = [str(command), "serve", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 (our own command beside this interpreter)
            arguments, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_until_ready(url, process, log_path, console)
            yield url
        finally:
            stop(process)
    console.print("The service has been stopped.")


def free_port() -> int:
    """A port that nothing on this machine listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(
    url: str, process: subprocess.Popen[bytes], log_path: Path, console: Console
) -> None:
    """Return once the service takes work, and say meanwhile how long it has been.

    Raises:
        ServiceStartError: the service ended, or was not ready within `START_LIMIT_S`.
    """
    started_s = time.monotonic()
    noted_s = 0.0
    text = "Starting the service; the first start compiles for two or three minutes"
    console.print(f"{text}.")
    with Client(url, timeout_s=5.0) as client, console.status(text) as status:
        while not client.ready():
            elapsed_s = time.monotonic() - started_s
            if process.poll() is not None:
                raise ServiceStartError(
                    f"The service ended with {process.returncode}.\n{tail(log_path)}"
                )
            if elapsed_s > START_LIMIT_S:
                raise ServiceStartError(f"Not ready after {elapsed_s:.0f} s.\n{tail(log_path)}")
            status.update(f"{text} … {elapsed_s:.0f} s")
            if not console.is_terminal and elapsed_s - noted_s >= NOTE_EVERY_S:
                console.print(f"… {elapsed_s:.0f} s")
                noted_s = elapsed_s
            time.sleep(POLL_S)
    console.print(f"Ready at {url} after {time.monotonic() - started_s:.1f} s.")


def tail(log_path: Path) -> str:
    """The last lines of the service's log, with where the rest is."""
    lines = log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join([f"The last lines of {log_path}:", *(f"  {line}" for line in lines)])


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the service to finish, and insist if it does not."""
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
