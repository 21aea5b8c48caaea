"""A scored data set, and the files that are written of it."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from lossd_client._version import __version__
from lossd_client.qa.dataset import DataSet
from lossd_client.qa.decisions import Decisions
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
from lossd_client.qa.page import (
    THUMBNAIL_PX,
    Card,
    Settings,
    card_of,
    head_of,
    index_of,
    shown_regions,
    view_of,
    write_page,
)
from lossd_client.qa.painting import Mask
from lossd_client.qa.passes import Context, Passes
from lossd_client.qa.pictures import read_photo, read_thumbnail
from lossd_client.qa.problems import DataError, Problem
from lossd_client.qa.progress import stage
from lossd_client.qa.ranking import ClassRow, RankedImage, grouped, regions_of
from lossd_client.qa.reviews import ImageReview, Progress, progress_of, review_of
from lossd_client.qa.service import QaService
from lossd_client.qa.state import State
from lossd_client.qa.workers import in_order
from lossd_client.qa_wire import HEAT, LEVELS_PER_NAT, PREDICTED

Export = Literal["coco", "cvat", "label-studio"]
Views = int | Literal["all", "none"]
"""How many images of the page can be looked at closely, the worst first; `none`: no page."""

RANKING = "ranking.csv"
REGIONS = "regions.json"
PROBLEMS = "problems.csv"
OVERLAYS = "overlays"
PAGE = "report.html"
EXPORTS: Mapping[Export, str] = {
    "coco": REGIONS,
    "cvat": "cvat_issues.json",
    "label-studio": "label_studio.json",
}
"""Name of each export's file; that of COCO is written always."""

VIEWS = 200
"""How many images of the page can be looked at closely, unless something else is said."""

_SHOWN_REGIONS = 9
_REPORT_ID_LENGTH = 16


@dataclass(frozen=True)
class Wanted:
    """What is written of a report beside its tables.

    Attributes:
        overlays: how many images get a picture, the worst first; None for all.
        views: how many images of the page can be looked at closely.
        exports: files for other tools.
    """

    overlays: int | None = 20
    views: Views = VIEWS
    exports: Sequence[Export] = ()


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
        decisions: what people have decided about it already.
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
        decisions: Decisions,
    ) -> None:
        self.data = data
        self.problems = tuple(problems)
        self.ranking = tuple(ranking)
        self.per_class = tuple(per_class)
        self.per_annotator = grouped(ranking, lambda image: image.annotation.annotator)
        self.per_job = grouped(ranking, lambda image: image.annotation.job)
        self.paths: dict[str, Path] = {}
        self.decisions = decisions
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
        """Every image with its regions that nobody has decided, the worst first.

        They are read one at a time.
        """
        return ((image, self.review(image.name).open_regions) for image in self.ranking)

    def unsettled(self) -> Iterator[RankedImage]:
        """Images of which something is left to be decided, the worst first."""
        decided = self.decisions.by_image
        return (
            image
            for image in self.ranking
            if image.name not in decided or not self.review(image.name).is_settled
        )

    def review(self, name: str) -> ImageReview:
        """What is decided of an image.

        Args:
            name: the image's.

        Raises:
            KeyError: it is not in the ranking.
        """
        image = self[name]
        return review_of(image, self._regions(image), self.decisions)

    def progress(self) -> Progress | None:
        """How far the review is; None where nothing is decided."""
        if not len(self.decisions):
            return None
        reviews = ((self[name], review) for name, review in self._decided().items())
        return progress_of(reviews, self.ranking, self.decisions)

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
            regions=self.review(name).open_regions[:_SHOWN_REGIONS],
            points=image.points,
            ignored_label=self.data.rules.ignored_label,
        )

    def write(self, out: Path, wanted: Wanted) -> None:
        """Writes the files of the report.

        Args:
            out: folder; made where it is not there.
            wanted: what is written beside the tables.

        Raises:
            LossdError: the service failed.
        """
        out.mkdir(parents=True, exist_ok=True)
        write_ranking(self._written(out / RANKING), self.ranking, self._verdicts())
        regions = self._written(out / REGIONS)
        write_regions(regions, self.ranking, self.reviewed(), self.data.classes)
        if "cvat" in wanted.exports:
            path = self._written(out / EXPORTS["cvat"])
            self.problems += tuple(write_cvat_issues(path, self.reviewed()))
        if "label-studio" in wanted.exports:
            write_label_studio(self._written(out / EXPORTS["label-studio"]), self.reviewed())
        self._write_pictures(out, wanted)
        write_problems(self._written(out / PROBLEMS), self.problems)

    def tidy(self) -> None:
        """Removes from the state what a finished run needs no more."""
        items = [image.item for image in self.ranking]
        self._state.drop_evidence()
        self._state.keep_only(
            map(self._passes.observed_key, items),
            (self._passes.judged_key(item, self._judged_in) for item in items),
        )

    def _write_pictures(self, out: Path, wanted: Wanted) -> None:
        """Overlays and the page together, since most of either is an answer of the service."""
        folder = self._written(out / OVERLAYS)
        shutil.rmtree(folder, ignore_errors=True)  # pictures of another ranking
        overlays = len(self.ranking[: wanted.overlays])
        if wanted.views == "none":
            (out / PAGE).unlink(missing_ok=True)  # a page of another ranking
            for _ in self._cards(folder, self.ranking[:overlays], overlays, views=0):
                pass
            return
        views = len(self.ranking[: None if wanted.views == "all" else wanted.views])
        head = head_of(
            self.data,
            self._settings(overlays, views),
            classes=self.per_class,
            annotators=self.per_annotator,
            jobs=self.per_job,
            decisions=self.decisions,
            reviews=self._decided(),
        )
        index = (
            index_of(image, self.review(image.name), self.data.classes) for image in self.ranking
        )
        cards = self._cards(folder, self.ranking, overlays, views)
        write_page(self._written(out / PAGE), head, index, cards)

    def _cards(
        self, folder: Path, shown: Sequence[RankedImage], overlays: int, views: int
    ) -> Iterator[Card]:
        """Draws overlays into the folder; cards for the page, one at a time."""

        def make(image: RankedImage) -> tuple[Card, Problem | None]:
            try:
                return self._card(folder, image, overlays, views), None
            except DataError as error:
                nothing = card_of(image.rank, None, shown_regions(self.review(image.name)), None)
                return nothing, Problem.from_error(error)

        problems: list[Problem] = []
        workers = self._passes.options.workers
        with stage("drawing", len(shown), self._passes.options.progress) as done:
            for image, (card, problem) in zip(shown, in_order(shown, make, workers), strict=True):
                done(1, image.item.pixels)
                if problem is not None:
                    problems.append(problem)
                yield card
        self.problems += tuple(problems)

    def _card(self, folder: Path, image: RankedImage, overlays: int, views: int) -> Card:
        shown = shown_regions(self.review(image.name))
        path = image.item.pair.photo.path
        if image.rank > max(overlays, views):
            return card_of(image.rank, read_thumbnail(path, THUMBNAIL_PX), shown, None)
        overlay = self.overlay(image.name)
        if image.rank <= overlays:
            picture = folder / f"{image.name}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            draw(overlay, self.data.classes).save(picture)
        view = view_of(overlay, len(self.data.classes)) if image.rank <= views else None
        return card_of(image.rank, overlay.photo, shown, view)

    def _settings(self, overlays: int, views: int) -> Settings:
        digest = hashlib.sha256()
        for image in sorted(self.ranking, key=lambda image: image.name):
            digest.update(self._passes.judged_key(image.item, self._judged_in).encode())
        return Settings(
            report_id=digest.hexdigest()[:_REPORT_ID_LENGTH],
            numerics_version=self._passes.numerics_version,
            client_version=__version__,
            disputed_margin=self._passes.options.disputed_margin,
            overlays=overlays,
            views=views,
        )

    def _decided(self) -> dict[str, ImageReview]:
        """Reviews of the images that decisions are about."""
        names = [image.name for image in self.ranking if image.name in self.decisions.by_image]
        return {name: self.review(name) for name in names}

    def _verdicts(self) -> dict[str, str]:
        reviews = self._decided().items()
        return {name: review.verdict for name, review in reviews if review.verdict is not None}

    def _written(self, path: Path) -> Path:
        self.paths[path.name] = path
        return path

    def _regions(self, image: RankedImage) -> list[Region]:
        judged = self._passes.judged_regions(image.item, self._judged_in)
        return regions_of(image.name, judged.regions, judged.points, self.data.classes)
