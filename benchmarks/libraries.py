"""MONAI and segmentation_models.pytorch beside the core: a child process of their environment.

The child gets the same inputs and runs one round when it is told, so that its rounds and the core's
alternate. It measures its rounds itself: the pipe between the two is not in its time.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from benchmarks.timing import Elapsed
from lossd_client.wire import Array

ABSENT: Final = "MONAI and segmentation_models.pytorch: not run, no such interpreter"
_WORKER: Final = Path(__file__).with_name("libraries_worker.py")


@dataclass(frozen=True)
class Libraries:
    """A running child process."""

    versions: Mapping[str, str]
    losses: Mapping[str, Sequence[str]]
    """Names in the catalogue of the losses that each library has, by library."""
    _orders: IO[str]
    _answers: IO[str]
    _folder: Path

    def open(self, inputs: Mapping[str, Array]) -> None:
        """Gives it the logits and the target that it is to compute."""
        paths = {name: self._folder / f"{name}.npy" for name in ("logits", "target")}
        for name, path in paths.items():
            np.save(path, inputs[name])
        self._ask({"open": {name: str(path) for name, path in paths.items()}})

    def values(self, library: str, names: Sequence[str]) -> dict[str, float]:
        """The library's values, each the mean over the batch."""
        values: dict[str, float] = self._ask({"run": [library, list(names)]})["values"]
        return values

    def round(self, library: str, names: Sequence[str]) -> Elapsed:
        """One round of values and gradients, and how long it took."""
        return Elapsed(self._ask({"run": [library, list(names)]})["seconds"])

    def _ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        self._orders.write(json.dumps(command) + "\n")
        self._orders.flush()
        return _answer(self._answers)


@contextmanager
def libraries(python: Path, threads: int) -> Iterator[Libraries | None]:
    """The libraries, run by an interpreter that has them; None where there is no such file.

    Args:
        python: the interpreter.
        threads: for its torch, as many as the core has.

    Raises:
        RuntimeError: it ended; what it wrote to its standard error says why.
    """
    if not python.exists():
        yield None
        return
    # Without its own folder on the path, whose modules have names as common as `core`.
    command = [str(python), "-P", str(_WORKER), str(threads)]
    with (
        tempfile.TemporaryDirectory(prefix="lossd-libraries-") as folder,
        subprocess.Popen(  # noqa: S603 - what the caller named
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        if process.stdin is None or process.stdout is None:
            msg = "a process was started without its pipes"
            raise RuntimeError(msg)
        try:
            hello = _answer(process.stdout)
            yield Libraries(
                hello["versions"], hello["losses"], process.stdin, process.stdout, Path(folder)
            )
        finally:
            process.stdin.close()  # its end
            process.wait()


def _answer(lines: IO[str]) -> dict[str, Any]:
    line = lines.readline()
    if not line:
        msg = f"{_WORKER.name} has ended"
        raise RuntimeError(msg)
    answer: dict[str, Any] = json.loads(line)
    return answer
