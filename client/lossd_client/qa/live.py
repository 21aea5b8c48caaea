"""Scores of an image whose labels somebody is changing, in the context of its data set."""

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lossd_client._refs import TensorRef
from lossd_client.errors import ServiceError, UnknownRefError
from lossd_client.qa.dataset import DataSet
from lossd_client.qa.export import Region
from lossd_client.qa.matching import size_error
from lossd_client.qa.painting import Mask
from lossd_client.qa.passes import Context
from lossd_client.qa.ranking import RankedImage, regions_of
from lossd_client.qa.service import Answered, Parts, QaService
from lossd_client.qa_wire import (
    HEAT,
    LEVELS_PER_NAT,
    PREDICTION,
    TARGET,
    ErrorKind,
    ObservedScores,
    ScoreRequest,
    SubScores,
)

_KEPT_PREDICTIONS = 16
"""Predictions that the service is asked to keep at a time."""


@dataclass(frozen=True, eq=False)
class Rescored:
    """What an image would be with other labels, all else as it was.

    Attributes:
        name: the image's.
        suspicion: as in the ranking.
        rank: the place that this suspicion has among the other images.
        kind: what probably is wrong still; None where nothing is disputed.
        reason: the same in words.
        disputed_pixels: pixels where the model contradicts the labels.
        sub_scores: what suspicion is made of.
        scores: scores that need no other image, in nats.
        points: columns and rows of pixels to be looked at first.
        regions: disputed regions, the most disputed first.
        heat_nats: `[H, W]` float32, how much each pixel is disputed.
    """

    name: str
    suspicion: float
    rank: int
    kind: ErrorKind | None
    reason: str
    disputed_pixels: int
    sub_scores: SubScores
    scores: ObservedScores
    points: tuple[tuple[int, int], ...]
    regions: tuple[Region, ...]
    heat_nats: npt.NDArray[np.float32]


class LiveScorer:
    """Rescoring of one data set. Safe to share between threads.

    Args:
        data: the data set.
        service: by whom it was scored.
        context: of its images, sealed.
        ranking: its images.
    """

    def __init__(
        self,
        data: DataSet,
        service: QaService,
        context: Context,
        ranking: Sequence[RankedImage],
    ) -> None:
        self._data = data
        self._service = service
        self._context = context
        self._images = {image.name: image for image in ranking}
        self._sorted = sorted(-image.suspicion for image in ranking)
        self._kept: OrderedDict[str, TensorRef] = OrderedDict()
        self._lock = threading.Lock()

    def image(self, name: str) -> RankedImage:
        """An image by its name.

        Raises:
            KeyError: it is not in the ranking.
        """
        if name not in self._images:
            raise KeyError(f"no image {name!r} in this ranking of {len(self._images)}")
        return self._images[name]

    def rescore(self, name: str, mask: Mask) -> Rescored:
        """As `Report.rescore`."""
        image = self.image(name)
        pair = image.item.pair
        target = self._data.rules.compacted(mask, name)
        if target.shape != pair.photo.size:
            raise size_error(name, (target.shape[0], target.shape[1]), pair.photo)
        return self._rescored(image, self._answered(image, target))

    def _answered(self, image: RankedImage, target: Mask) -> Answered:
        request = ScoreRequest(
            prediction_kind=self._data.choice.kind,
            ignore_index=self._data.rules.ignored_label,
            class_names=list(self._data.classes.names),
            context=self._context.name,
            arrays=["heat"],
        )

        def call() -> Answered:
            parts: Parts = {PREDICTION: self._prediction(image), TARGET: target}
            return self._service.score(request, [parts])[0]

        try:
            return self._context.using(call)
        except UnknownRefError:
            with self._lock:
                self._kept.pop(image.name, None)
            return self._context.using(call)

    def _prediction(self, image: RankedImage) -> TensorRef:
        with self._lock:
            if image.name not in self._kept:
                values = self._data.prediction(image.item.pair)
                self._kept[image.name] = self._service.keep(values)
            self._kept.move_to_end(image.name)
            while len(self._kept) > _KEPT_PREDICTIONS:
                self._service.drop(self._kept.popitem(last=False)[1])
            return self._kept[image.name]

    def _rescored(self, image: RankedImage, answered: Answered) -> Rescored:
        scores = answered.scores
        if scores.suspicion is None or scores.sub_scores is None:
            raise ServiceError("the answer has no suspicion, though the context is sealed")
        told = scores.model_dump(include={"regions", "points"})
        others_before = bisect_left(self._sorted, -scores.suspicion)
        if image.suspicion > scores.suspicion:
            others_before -= 1  # it does not stand before itself
        return Rescored(
            name=image.name,
            suspicion=scores.suspicion,
            rank=others_before + 1,
            kind=scores.kind,
            reason=scores.reason or "",
            disputed_pixels=scores.disputed_pixels or 0,
            sub_scores=scores.sub_scores,
            scores=scores.scores,
            points=tuple((point.x, point.y) for point in scores.points or ()),
            regions=tuple(
                regions_of(
                    image.name, told["regions"] or (), told["points"] or (), self._data.classes
                )
            ),
            heat_nats=np.divide(answered.arrays[HEAT], LEVELS_PER_NAT, dtype=np.float32),
        )
