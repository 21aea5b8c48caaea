"""The data beside the project: street images with known annotation errors, as a user's folders.

It may be measured with, not shipped: CamVid is CC BY-NC 4.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "qa" / "camvid126"
SETS = range(6)
KINDS = ("drop", "extra", "swap", "shift", "dilate", "erode", "coarse")

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class CamVid:
    """126 images, their masks as published and spoilt, and a model's logits.

    Attributes:
        root: where they are.
    """

    root: Path

    @cached_property
    def _index(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.root / "index.json").read_text())
        return document

    @cached_property
    def _corruptions(self) -> dict[str, dict[str, dict[str, Any]]]:
        found: dict[str, Any] = json.loads((self.root / "corruptions.json").read_text())
        return found

    @property
    def names(self) -> list[str]:
        """The images."""
        return [item["name"] for item in self._index["items"]]

    @property
    def classes(self) -> list[str]:
        """The classes, without what is ignored."""
        names: list[str] = self._index["classes"][: self.ignore_index]
        return names

    @property
    def ignore_index(self) -> int:
        """The label that does not count."""
        label: int = self._index["ignore_index"]
        return label

    def kinds(self, number: int) -> dict[str, str]:
        """What was done to each spoilt image of a set."""
        return {name: said["kind"] for name, said in self._corruptions[f"seed{number}"].items()}

    def mask(self, name: str, number: int | None) -> Mask:
        """The mask of a set, or as published if None."""
        return np.asarray(Image.open(self._mask_path(name, number)))

    def changed(self, name: str, number: int) -> npt.NDArray[np.bool_]:
        """Pixels that were spoilt in a set."""
        return np.asarray(self.mask(name, number) != self.mask(name, None))

    def logits(self) -> Iterator[tuple[str, npt.NDArray[np.float16]]]:
        """Logits `[C, H, W]` of each image, one at a time."""
        with np.load(self.root / "logits.npz") as archive:
            for name in self.names:
                yield name, archive[name]

    def write_predictions(self, folder: Path) -> None:
        """Logits as plain files, so that no time goes into unpacking them."""
        folder.mkdir(parents=True)
        for name, values in self.logits():
            np.save(folder / f"{name}.npy", values)

    def write_set(self, number: int, folder: Path, predictions: Path, copies: int = 1) -> None:
        """A set as a user has it, every image `copies` times under other names; links only."""
        for part in ("images", "annotations", "predictions"):
            (folder / part).mkdir(parents=True)
        (folder / "classes.txt").write_text("\n".join(self.classes) + "\n")
        for name in self.names:
            for copy in range(copies):
                other = name if copies == 1 else f"{name}-{copy:03d}"
                (folder / f"images/{other}.png").symlink_to(self.root / f"images/{name}.png")
                (folder / f"annotations/{other}.png").symlink_to(self._mask_path(name, number))
                (folder / f"predictions/{other}.npy").symlink_to(predictions / f"{name}.npy")

    def write_enlarged(self, number: int, folder: Path, count: int, size: tuple[int, int]) -> None:
        """The first images of a set, nearest-neighbour enlarged, for speed alone."""
        for part in ("images", "annotations", "predictions"):
            (folder / part).mkdir(parents=True)
        (folder / "classes.txt").write_text("\n".join(self.classes) + "\n")
        wanted = set(self.names[:count])
        for name, values in self.logits():
            if name not in wanted:
                continue
            rows = np.arange(size[0]) * values.shape[1] // size[0]
            columns = np.arange(size[1]) * values.shape[2] // size[1]
            large = np.ascontiguousarray(values[:, rows][:, :, columns])
            np.save(folder / f"predictions/{name}.npy", large)
            paths = {"images": self.root / f"images/{name}.png"}
            paths["annotations"] = self._mask_path(name, number)
            for part, path in paths.items():
                with Image.open(path) as picture:
                    enlarged = picture.resize(size[::-1], Image.Resampling.NEAREST)
                    enlarged.save(folder / f"{part}/{name}.png")

    def _mask_path(self, name: str, number: int | None) -> Path:
        spoilt = number is not None and name in self._corruptions[f"seed{number}"]
        return self.root / (f"masks_seed{number}" if spoilt else "masks_clean") / f"{name}.png"
