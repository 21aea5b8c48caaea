"""cleanlab as a child process of its own environment, on the arrays that are told."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.qa.data import CamVid

_WORKER = Path(__file__).with_name("cleanlab_worker.py")


@dataclass(frozen=True)
class Cleanlab:
    """A running child.

    Attributes:
        version: cleanlab's.
    """

    version: str
    _process: subprocess.Popen[str]

    def ask(
        self, labels: Path, probabilities: Path, ignored: int, *, scores: bool
    ) -> dict[str, Any]:
        """What it finds in the arrays of those files.

        Args:
            labels: `[N, H, W]`.
            probabilities: `[N, C, H, W]`.
            ignored: label that does not count.
            scores: whether its image scores and points are wanted beside the time.
        """
        order = {
            "labels": str(labels),
            "probabilities": str(probabilities),
            "ignored": ignored,
            "scores": scores,
        }
        if self._process.stdin is None:
            raise RuntimeError("cleanlab cannot be told anything")
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return _answer(self._process)


@contextmanager
def cleanlab(python: Path) -> Iterator[Cleanlab]:
    """A child that answers.

    Args:
        python: interpreter of an environment with cleanlab.

    Raises:
        RuntimeError: it ended; its own message went to standard error.
    """
    command = [str(python), "-P", str(_WORKER)]
    with subprocess.Popen(  # noqa: S603 - what the caller named
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Cleanlab(_answer(process)["version"], process)
        finally:
            process.terminate()


def write_probabilities(data: CamVid, path: Path) -> None:
    """Softmax of all logits, `[N, C, H, W]` float32, as cleanlab wants them."""
    found = []
    for _, values in data.logits():
        exponents = np.exp(values.astype(np.float32) - values.max(axis=0).astype(np.float32))
        found.append(exponents / exponents.sum(axis=0))
    np.save(path, np.stack(found))


def write_labels(data: CamVid, number: int, path: Path) -> None:
    """Masks of a set, `[N, H, W]`."""
    np.save(path, np.stack([data.mask(name, number) for name in data.names]))


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = "" if process.stdout is None else process.stdout.readline()
    if not line:
        raise RuntimeError("cleanlab ended before it had answered")
    answer: dict[str, Any] = json.loads(line)
    return answer
