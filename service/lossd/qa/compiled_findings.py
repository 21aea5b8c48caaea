"""`findings.find` in C++, for processors: `findings.cpp`. It lets go of Python's lock."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from lossd.qa.findings import CHOSEN, Evidence, Findings, Question
from lossd.qa.levels import given_probabilities
from lossd.qa.outlines import LEAST_PLACES, Lines
from lossd.qa.regions import Ints
from lossd_client.qa_wire import LEVELS

SOURCE: Final = Path(__file__).with_name("findings.cpp")

IMAGE: Final = np.dtype(
    [
        *((name, np.uint64) for name in ("labels", "levels", "predicted", "margin")),
        *((name, np.int64) for name in ("height", "width", "label_bytes", "predicted_bytes")),
        ("histogram", np.uint64),
    ]
)
QUESTION: Final = np.dtype(
    [
        *((name, np.uint64) for name in ("heat", "given_probability")),
        *((name, np.int64) for name in ("classes", "margin_steps", "max_points", "max_regions")),
        ("least_places", np.int64),
    ]
)
_LAYOUT: Final = (IMAGE.itemsize, QUESTION.itemsize, len(CHOSEN.names or ()))
_POINT, _LINE = 4, 4  # numbers
_GIVEN_PROBABILITY: Final = given_probabilities()


class CompiledFind:
    """`findings.find`, compiled; for any thread.

    Args:
        library: what `in_place.build` made of `SOURCE`.
    """

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        layout = loaded.lossd_findings_layout
        layout.restype = ctypes.c_int64
        if layout() != _LAYOUT[0] * 10000 + _LAYOUT[1] * 100 + _LAYOUT[2]:
            msg = f"{library} was made of another {SOURCE.name}"
            raise RuntimeError(msg)
        self._find: Callable[..., int | None] = loaded.lossd_find
        loaded.lossd_find.restype = ctypes.c_void_p
        self._take: Callable[..., None] = loaded.lossd_take
        self._lines: Callable[..., int | None] = loaded.lossd_lines
        loaded.lossd_lines.restype = ctypes.c_void_p
        self._take_lines: Callable[..., None] = loaded.lossd_take_lines

    def __call__(self, question: Question, image: Evidence) -> Findings:
        """What the image has, as `findings.find` says it."""
        labels, levels, predicted, margin = (
            np.ascontiguousarray(array)
            for array in (image.labels, image.levels, image.predicted, image.margin)
        )
        heat_table = np.ascontiguousarray(question.heat)
        asked = np.zeros(1, QUESTION)
        asked["heat"], asked["given_probability"] = _at(heat_table), _at(_GIVEN_PROBABILITY)
        asked["classes"], asked["margin_steps"] = question.classes, question.margin_steps
        asked["max_points"], asked["max_regions"] = question.max_points, question.max_regions
        asked["least_places"] = LEAST_PLACES
        said = np.zeros(1, IMAGE)
        for name, array in zip(
            IMAGE.names or (), (labels, levels, predicted, margin), strict=False
        ):
            said[name] = _at(array)
        said["height"], said["width"] = labels.shape
        counts = image.histogram
        if counts is None:
            counts = np.zeros((question.classes, LEVELS), np.int64)
            said["histogram"] = _at(counts)
        said["label_bytes"], said["predicted_bytes"] = labels.itemsize, predicted.itemsize
        heat = np.empty(labels.shape, np.uint16)
        right, mine = np.zeros((2, question.classes), np.int64)
        sizes = np.zeros(5, np.int64)
        handle = self._find(*map(_pointer, (asked, said, heat, right, mine, sizes)))
        if handle is None:
            raise MemoryError
        regions, chosen, characters, points, lines = sizes.tolist()
        text, ends = np.empty(characters, np.uint8), np.empty(chosen, np.int64)
        found = Findings(
            heat=heat,
            histogram=counts,
            right=right,
            predicted=mine,
            code=np.empty(regions, np.int64),
            area=np.empty(regions, np.int64),
            score=np.empty(regions),
            probability=np.empty(regions),
            chosen=np.empty(chosen, CHOSEN),
            masks=[],
            points=np.empty((points, _POINT), np.int64),
            lines=np.empty((lines, _LINE), np.int64),
        )
        taken = (found.code, found.area, found.score, found.probability, found.chosen)
        rest = (text, ends, found.points, found.lines)
        self._take(ctypes.c_void_p(handle), *map(_pointer, (*taken, *rest)))
        masks = text.tobytes().decode("ascii")
        found.masks.extend(masks[start:end] for start, end in pairwise([0, *ends.tolist()]))
        return found

    def lines(self, labels: Ints) -> Lines:
        """The outlines of labels `[H, W]`, as `outlines.lines` says them."""
        labels = np.ascontiguousarray(labels)
        said, count = np.zeros(1, IMAGE), np.zeros(1, np.int64)
        said["labels"], said["label_bytes"] = _at(labels), labels.itemsize
        said["height"], said["width"] = labels.shape
        handle = self._lines(_pointer(said), ctypes.c_int64(LEAST_PLACES), _pointer(count))
        if handle is None:
            raise MemoryError
        found = np.empty((int(count[0]), _LINE), np.int64)
        self._take_lines(ctypes.c_void_p(handle), _pointer(found))
        return found


def _at(array: np.ndarray[Any, Any]) -> int:
    return array.ctypes.data


def _pointer(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
