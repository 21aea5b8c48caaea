"""What the probable kinds say where the error is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.qa.data import KINDS, CamVid
from benchmarks.report import Cell, Row
from lossd_client.qa import Region
from lossd_client.qa import Report as QaReport

NAMES = dict(
    zip(
        KINDS,
        ("missing", "extra", "swapped", "shifted", "dilated", "eroded", "coarse"),
        strict=True,
    )
)
"""What the kinds of the data are called in reports."""
NOTHING = "no region"

Told = tuple[str, str, str]
"""Kind of an error, of the region at it, and of its image."""


def told_kinds(data: CamVid, number: int, report: QaReport) -> Iterator[Told]:
    """What is said of each spoilt image of a set.

    The region at an error is that of the largest score of which at least half was spoilt, or which
    covers half of what was.
    """
    for name, kind in data.kinds(number).items():
        regions = report.regions(name)
        changed = data.changed(name, number)
        at = next((one.kind for one in regions if _covers(one, changed)), None)
        yield NAMES[kind], at or NOTHING, report[name].kind or NOTHING


def _covers(region: Region, changed: npt.NDArray[np.bool_]) -> bool:
    inside = region.mask()
    both = int((inside & changed).sum())
    return 2 * both >= min(int(inside.sum()), int(changed.sum()))


def confusion(told: Sequence[Told]) -> list[Row]:
    """A row for each kind of error, and for all: what the regions at it are taken for."""
    rows: list[Row] = []
    for kind in (*NAMES.values(), "all"):
        own = [each for each in told if kind in (each[0], "all")]
        counts = Counter(at for _, at, _ in own)
        cells: dict[str, Cell] = {"error": kind, "images": len(own)}
        cells |= {other: counts[other] for other in (*NAMES.values(), NOTHING)}
        cells["region right"] = float(np.mean([at == error for error, at, _ in own]))
        cells["image right"] = float(np.mean([image == error for error, _, image in own]))
        rows.append(cells)
    return rows
