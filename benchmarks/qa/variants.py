"""The same images as other data sets are: of two classes, of several sizes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.qa.data import CamVid, Mask
from benchmarks.qa.figures import Ranking, mean_of, ranking
from benchmarks.report import Row
from lossd.qa.suspicion import centres, suspicions
from lossd_client.qa import Report as QaReport

Logits = npt.NDArray[np.float32]

_LEAST_CHANGED_PX = 60
"""As few as the sets themselves have; of what is merged, an error may leave less, or nothing."""


@dataclass(frozen=True)
class Variant:
    """How the images are changed.

    Attributes:
        title: what it is called.
        merged: names of the classes that become class 1, all others being class 0; None keeps all.
        scales: by what images are enlarged, one after the other.
    """

    title: str
    merged: frozenset[str] | None = None
    scales: tuple[float, ...] = (1.0,)

    def classes(self, data: CamVid) -> list[str]:
        """Names of its classes."""
        return data.classes if self.merged is None else ["other", "merged"]

    def scale(self, index: int) -> float:
        """By what the image of an index is enlarged."""
        return self.scales[index % len(self.scales)]

    def labels(self, data: CamVid, mask: Mask) -> Mask:
        """A mask in its classes, at its first size."""
        if self.merged is None:
            return mask
        table = np.full(256, data.ignore_index, np.uint8)
        table[: data.ignore_index] = [name in self.merged for name in data.classes]
        return table[mask]

    def logits(self, data: CamVid, values: npt.NDArray[np.float16]) -> Logits:
        """Logits of its classes, at their first size."""
        own = values.astype(np.float32)
        if self.merged is None:
            return own
        inside = np.array([name in self.merged for name in data.classes])
        return np.stack([np.logaddexp.reduce(own[which], 0) for which in (~inside, inside)])


_TRAFFIC = frozenset({"car", "pedestrian", "bicyclist"})
_SIZES = (1.0, 1.5, 2.0, 3.0)

VARIANTS = (
    Variant("11 classes, 1 to 3 times as large", None, _SIZES),
    Variant("vehicles and people against the rest", _TRAFFIC),
    Variant("trees against the rest", frozenset({"tree"})),
    Variant("road and pavement against the rest", frozenset({"road", "pavement"})),
    Variant("vehicles and people, 1 to 3 times as large", _TRAFFIC, _SIZES),
)


def write_predictions(data: CamVid, variant: Variant, folder: Path) -> None:
    """Logits of a variant, one file an image."""
    folder.mkdir(parents=True)
    for index, (name, values) in enumerate(data.logits()):
        own = variant.logits(data, values)
        size = _size(own.shape[1:], variant.scale(index))
        large = np.stack([_enlarged(each, size) for each in own])
        np.save(folder / f"{name}.npy", large.astype(np.float16))


def write_set(
    data: CamVid, variant: Variant, number: int, folder: Path, predictions: Path
) -> Mapping[str, bool]:
    """A set of a variant as a user has it.

    Returns:
        Whether each image is still wrong in it.
    """
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    (folder / "predictions").symlink_to(predictions)
    (folder / "classes.txt").write_text("\n".join(variant.classes(data)) + "\n")
    wrong = {}
    for index, name in enumerate(data.names):
        mask = variant.labels(data, data.mask(name, number))
        published = variant.labels(data, data.mask(name, None))
        wrong[name] = int((mask != published).sum()) >= _LEAST_CHANGED_PX
        size = _size(mask.shape, variant.scale(index))
        Image.fromarray(_smooth(mask, size)).save(folder / f"annotations/{name}.png")
        with Image.open(data.root / f"images/{name}.png") as photo:
            photo.resize(size[::-1]).save(folder / f"images/{name}.png")
    return wrong


def _size(shape: Any, scale: float) -> tuple[int, int]:
    height, width = shape
    return round(height * scale), round(width * scale)


def _enlarged(plane: Logits, size: tuple[int, int]) -> Logits:
    picture = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR), np.float32)


def _smooth(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask enlarged as if it had been drawn at that size: borders are lines, not stairs."""
    if mask.shape == size:
        return mask
    values = np.unique(mask)
    planes = [_enlarged((mask == value).astype(np.float32), size) for value in values]
    return np.asarray(values[np.argmax(planes, 0)], np.uint8)


def variant_rows(
    data: CamVid, folder: Path, score: Callable[[Path], QaReport], sets: Sequence[int]
) -> list[Row]:
    """Figures of every variant, with straightness and without, means over sets.

    Args:
        data: the images.
        folder: where data sets may be written.
        score: gives the report of a data set.
        sets: numbers of the sets.
    """
    rows: list[Row] = []
    for number, variant in enumerate(VARIANTS):
        predictions = folder / f"variant-{number}"
        write_predictions(data, variant, predictions)
        found: dict[str, list[Ranking]] = {"suspicion": [], "without straightness": []}
        wrong_images = 0
        for own_set in sets:
            place = folder / f"variant-{number}-{own_set}"
            wrong = write_set(data, variant, own_set, place, predictions)
            wrong_images += sum(wrong.values())
            with score(place) as report:
                truth = np.array([wrong[image.name] for image in report])
                found["suspicion"].append(
                    ranking(truth, np.array([image.suspicion for image in report]))
                )
                found["without straightness"].append(ranking(truth, _of_losses(report)))
            shutil.rmtree(place)
        shutil.rmtree(predictions)
        rows.extend(
            {
                "data": variant.title,
                "wrong": wrong_images / len(sets),
                "score": label,
                "auroc": mean_of(figures, "auroc"),
                "average_precision": mean_of(figures, "average_precision"),
            }
            for label, figures in found.items()
        )
    return rows


def _of_losses(report: QaReport) -> npt.NDArray[np.float64]:
    """Suspicions of a report's images by the three sub-scores that are losses."""
    known = [image.sub_scores for image in report]
    rows = [(own.worst_loss, own.class_tail, own.boundary_loss) for own in known]
    values = np.array(rows, np.float64)  # None is NaN
    return suspicions(values, centres(values))
