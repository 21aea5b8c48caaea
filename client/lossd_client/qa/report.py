"""A scored data set, and the files that are written of it."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Self

import numpy as np

from lossd_client.qa.dataset import DataSet
from lossd_client.qa.export import Region
from lossd_client.qa.files import (
    write_cvat_issues,
    write_label_studio,
    write_problems,
    write_ranking,
    write_regions,
)
from lossd_client.qa.live import LiveScorer, Rescored
from lossd_client.qa.overlays import Overlay, draw
from lossd_client.qa.painting import Mask
from lossd_client.qa.passes import Context, Passes
from lossd_client.qa.pictures import read_photo
from lossd_client.qa.problems import DataError, Problem
from lossd_client.qa.progress import stage
from lossd_client.qa.ranking import ClassRow, RankedImage, grouped, regions_of
from lossd_client.qa.service import QaService
from lossd_client.qa.state import State
from lossd_client.qa.workers import in_order
from lossd_client.qa_wire import HEAT, LEVELS_PER_NAT, PREDICTED

Export = Literal["coco", "cvat", "label-studio"]

RANKING = "ranking.csv"
REGIONS = "regions.json"
PROBLEMS = "problems.csv"
OVERLAYS = "overlays"
EXPORTS: Mapping[Export, str] = {
    "coco": REGIONS,
    "cvat": "cvat_issues.json",
    "label-studio": "label_studio.json",
}
"""Name of each export's file; that of COCO is written always."""

_SHOWN_REGIONS = 9


class Report:
    """A scored data set. Iterating gives its images, the worst first.

    It holds a few numbers per image; regions are read from the run's state when asked for.

    Attributes:
        ranking: the images, the worst first.
        per_class: one row per class.
        per_annotator: one row per annotator, where the annotations name them.
        per_job: one row per job, likewise.
        problems: what was left out.
        paths: the files that were written, by their names.
        data: what was scored.
    """

    def __init__(
        self,
        *,
        data: DataSet,
        problems: Sequence[Problem],
        ranking: Sequence[RankedImage],
        per_class: Sequence[ClassRow],
        passes: Passes,
        state: State,
        judged_in: Context,
        sealed: Context,
        service: QaService,
        closing: ExitStack,
    ) -> None:
        self.data = data
        self.problems = tuple(problems)
        self.ranking = tuple(ranking)
        self.per_class = tuple(per_class)
        self.per_annotator = grouped(ranking, lambda image: image.annotation.annotator)
        self.per_job = grouped(ranking, lambda image: image.annotation.job)
        self.paths: dict[str, Path] = {}
        self._passes = passes
        self._state = state
        self._judged_in = judged_in
        self._sealed = sealed
        self._live = LiveScorer(data, service, sealed, self.ranking)
        self._closing = closing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[RankedImage]:
        return iter(self.ranking)

    def __len__(self) -> int:
        return len(self.ranking)

    def __getitem__(self, name: str) -> RankedImage:
        """An image by its name.

        Raises:
            KeyError: it is not in the ranking.
        """
        return self._live.image(name)

    def close(self) -> None:
        """Removes what was kept only for this object; files in `out` stay."""
        self._closing.close()

    def regions(self, name: str) -> list[Region]:
        """Disputed regions of an image, the most disputed first.

        Args:
            name: the image's.

        Raises:
            KeyError: it is not in the ranking.
        """
        return self._regions(self[name])

    def reviewed(self) -> Iterator[tuple[RankedImage, list[Region]]]:
        """Every image with its regions, the worst first, read one at a time."""
        return ((image, self._regions(image)) for image in self.ranking)

    def rescore(self, name: str, mask: Mask) -> Rescored:
        """Scores an image with other labels, in the context of the data set.

        The first call for an image has the service keep its prediction; each further call sends the
        labels only.

        Args:
            name: the image's.
            mask: `[H, W]` integers, labels as in the annotations' files.

        Returns:
            What the image would be in the ranking, with its heat and regions.

        Raises:
            KeyError: the image is not in the ranking.
            DataError: labels that are not allowed, or another size than the image's.
            LossdError: the service failed.

        Example:
            >>> fixed = report.rescore("street-7", new_mask)  # doctest: +SKIP
            >>> fixed.suspicion, fixed.rank  # doctest: +SKIP
            (-1.3, 411)
        """
        return self._live.rescore(name, mask)

    def overlay(self, name: str) -> Overlay:
        """What a picture of an image shows; `overlays.draw` draws it.

        Args:
            name: the image's.

        Raises:
            KeyError: it is not in the ranking.
            DataError: a file cannot be read any more.
            LossdError: the service failed.
        """
        image = self[name]
        answered = self._passes.answer(image.item, self._judged_in, ["heat", "evidence"])
        pair = image.item.pair
        return Overlay(
            title=f"{image.name}   {image.rank} of {len(self)}   suspicion {image.suspicion:.2f}",
            reason=image.reason,
            photo=read_photo(pair.photo.path),
            given=self.data.target(pair),
            predicted=answered.arrays[PREDICTED],
            heat_nats=(answered.arrays[HEAT] / LEVELS_PER_NAT).astype(np.float32),
            regions=self._regions(image)[:_SHOWN_REGIONS],
            points=image.points,
            ignored_label=self.data.rules.ignored_label,
        )

    def write(self, out: Path, *, overlays: int | None, exports: Sequence[Export]) -> None:
        """Writes the files of the report.

        Args:
            out: folder; made where it is not there.
            overlays: how many images get a picture, the worst first; None for all.
            exports: files for other tools.

        Raises:
            LossdError: the service failed.
        """
        out.mkdir(parents=True, exist_ok=True)
        write_ranking(self._written(out / RANKING), self.ranking)
        regions = self._written(out / REGIONS)
        write_regions(regions, self.ranking, self.reviewed(), self.data.classes)
        if "cvat" in exports:
            path = self._written(out / EXPORTS["cvat"])
            self.problems += tuple(write_cvat_issues(path, self.reviewed()))
        if "label-studio" in exports:
            write_label_studio(self._written(out / EXPORTS["label-studio"]), self.reviewed())
        self.problems += tuple(self._write_overlays(self._written(out / OVERLAYS), overlays))
        write_problems(self._written(out / PROBLEMS), self.problems)

    def tidy(self) -> None:
        """Removes from the state what a finished run needs no more."""
        items = [image.item for image in self.ranking]
        self._state.drop_evidence()
        self._state.keep_only(
            map(self._passes.observed_key, items),
            (self._passes.judged_key(item, self._judged_in) for item in items),
        )

    def _write_overlays(self, folder: Path, count: int | None) -> Iterator[Problem]:
        shutil.rmtree(folder, ignore_errors=True)  # pictures of another ranking
        shown = self.ranking[:count]

        def write(image: RankedImage) -> Problem | None:
            path = folder / f"{image.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                draw(self.overlay(image.name), self.data.classes).save(path)
            except DataError as error:
                return Problem.from_error(error)
            return None

        workers = self._passes.options.workers
        with stage("drawing", len(shown), self._passes.options.progress) as done:
            for image, problem in zip(shown, in_order(shown, write, workers), strict=True):
                done(1, image.item.pixels)
                if problem is not None:
                    yield problem

    def _written(self, path: Path) -> Path:
        self.paths[path.name] = path
        return path

    def _regions(self, image: RankedImage) -> list[Region]:
        judged = self._passes.judged_whole(image.item, self._judged_in)
        return list(regions_of(image.name, judged, self.data.classes))
