"""How long it takes to score an edited mask again, by the clock of whoever edits it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.report import Row
from lossd_client import Client
from lossd_client.qa import score

_SIZE = (1024, 1024)
_CLASSES = 4
_IMAGES = 3
_CALLS, _QUICK_CALLS = 60, 5
_EDIT_PIXELS = 40
_PATCHES = 40
_NOISE = 0.05
"""Share of pixels of a noisy mask that have another class."""

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Case:
    name: str
    masks: list[Mask]
    """One for each image of the data set."""


def rescoring(folder: Path, port: int, *, quick: bool) -> list[Row]:
    """Times of `Report.rescore` with 1 megapixel, four classes and logits that the service keeps.

    Args:
        folder: for the data sets.
        port: of the service.
        quick: a few calls only.
    """
    rows: list[Row] = []
    random = np.random.default_rng(0)
    truth = [_patches(random) for _ in range(_IMAGES)]
    for case in (
        _Case("patches, one of them drawn anew", [mask.copy() for mask in truth]),
        _Case(
            f"as before, {_NOISE:.0%} of the pixels at random",
            [_noisy(random, mask) for mask in truth],
        ),
    ):
        own = folder / f"rescore-{len(rows)}"
        _write(own, truth, case.masks, random)
        rows.append(_measured(own, port, case, random, _QUICK_CALLS if quick else _CALLS))
    return rows


def _measured(folder: Path, port: int, case: _Case, random: np.random.Generator, calls: int) -> Row:
    with (
        Client(f"http://127.0.0.1:{port}", timeout_s=600.0) as client,
        score(
            images=folder / "images",
            annotations=folder / "annotations",
            predictions=folder / "predictions",
            classes=folder / "classes.txt",
            client=client,
            overlays=0,
            progress="none",
        ) as report,
    ):
        report.rescore("image-0", case.masks[0])  # sends the logits
        passed_ms = []
        for _ in range(calls):
            mask = _edited(random, case.masks[0])
            began = time.perf_counter()
            report.rescore("image-0", mask)
            passed_ms.append(1e3 * (time.perf_counter() - began))
        regions = report["image-0"].regions_found
    return {
        "mask": case.name,
        "calls": calls,
        "regions": regions,
        "p50_ms": float(np.median(passed_ms)),
        "p90_ms": float(np.quantile(passed_ms, 0.9)),
        "best_ms": min(passed_ms),
    }


def _patches(random: np.random.Generator) -> Mask:
    """Ellipses of all classes on one of them."""
    rows, columns = np.mgrid[: _SIZE[0], : _SIZE[1]]
    mask = np.zeros(_SIZE, np.uint8)
    for _ in range(_PATCHES):
        y, x = random.integers(0, _SIZE[0]), random.integers(0, _SIZE[1])
        height, width = random.integers(20, 160, 2)
        inside = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 <= 1
        mask[inside] = random.integers(0, _CLASSES)
    return mask


def _noisy(random: np.random.Generator, mask: Mask) -> Mask:
    other = random.integers(0, _CLASSES, mask.shape, dtype=np.uint8)
    return np.where(random.random(mask.shape) < _NOISE, other, mask)


def _edited(random: np.random.Generator, mask: Mask) -> Mask:
    """A square of the mask in another class, as a stroke of a brush leaves it."""
    edited = mask.copy()
    y, x = (int(random.integers(0, size - _EDIT_PIXELS)) for size in mask.shape)
    edited[y : y + _EDIT_PIXELS, x : x + _EDIT_PIXELS] = random.integers(0, _CLASSES)
    return edited


def _write(folder: Path, truth: list[Mask], masks: list[Mask], random: np.random.Generator) -> None:
    for part in ("images", "annotations", "predictions"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.txt").write_text("".join(f"class-{n}\n" for n in range(_CLASSES)))
    for number, (true, mask) in enumerate(zip(truth, masks, strict=True)):
        logits = random.normal(0, 1, (_CLASSES, *_SIZE)).astype(np.float32)
        # A model that is a little off everywhere along the outlines.
        seen = np.roll(true, (3, -2), (0, 1))
        logits += 6 * (np.arange(_CLASSES)[:, None, None] == seen)
        np.save(folder / f"predictions/image-{number}.npy", logits.astype(np.float16))
        Image.fromarray(mask).save(folder / f"annotations/image-{number}.png")
        Image.new("L", _SIZE[::-1]).save(folder / f"images/image-{number}.png")
