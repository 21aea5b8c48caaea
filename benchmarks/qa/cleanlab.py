"""cleanlab as a child process of its own environment, on the arrays that are told."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image

_WORKER = Path(__file__).with_name("cleanlab_worker.py")


@dataclass(frozen=True)
class Arrays:
    """Files of a data set for cleanlab.

    Attributes:
        labels: `[N, H, W]`.
        probabilities: `[N, C, H, W]`.
    """

    labels: Path
    probabilities: Path


@dataclass(frozen=True)
class Cleanlab:
    """A running child.

    Attributes:
        version: cleanlab's.
    """

    version: str
    _process: subprocess.Popen[str]

    def ask(self, arrays: Arrays, ignored: int, *, scores: bool) -> dict[str, Any]:
        """What it finds in the arrays of those files.

        Args:
            arrays: the files.
            ignored: label that does not count.
            scores: whether its image scores and points are wanted beside the time.
        """
        order = {
            "labels": str(arrays.labels),
            "probabilities": str(arrays.probabilities),
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


def write_arrays(folder: Path, names: Sequence[str], to: Path) -> Arrays:
    """A data set as cleanlab wants it: softmax of its logits in float32, and masks.

    Args:
        folder: the data set, as `CamVid.write_set` lays it out.
        names: its images, all of one size.
        to: folder of the files; it is there.
    """
    arrays = Arrays(to / "labels.npy", to / "probabilities.npy")
    logits = [np.load(folder / f"predictions/{name}.npy", mmap_mode="r") for name in names]
    written = npy.open_memmap(
        arrays.probabilities, "w+", np.dtype(np.float32), (len(names), *logits[0].shape)
    )
    for place, values in enumerate(logits):
        exponents = np.exp(values.astype(np.float32) - values.max(axis=0).astype(np.float32))
        written[place] = exponents / exponents.sum(axis=0)
    masks = [np.asarray(Image.open(folder / f"annotations/{name}.png")) for name in names]
    np.save(arrays.labels, np.stack(masks))
    return arrays


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = "" if process.stdout is None else process.stdout.readline()
    if not line:
        raise RuntimeError("cleanlab ended before it had answered")
    answer: dict[str, Any] = json.loads(line)
    return answer
