"""The two passes over a data set, and the context between them.

The first pass sends every prediction and keeps scores, counts and evidence. The sum of the counts,
which are integers, is the context; no order of images and no interruption changes it.
The second pass sends what was kept, and has every image judged in that context.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from lossd_client.errors import (
    InvalidInputError,
    LabelOutOfRangeError,
    LossdError,
    NonFiniteLogitsError,
    TooLargeError,
    UnknownContextError,
)
from lossd_client.qa.dataset import DataSet, Item
from lossd_client.qa.problems import DataError, Problem
from lossd_client.qa.progress import Progress, stage
from lossd_client.qa.service import Answered, JudgedText, Parts, QaService
from lossd_client.qa.state import Judged, JudgedRegions, Observed, State
from lossd_client.qa.workers import groups_of, in_order
from lossd_client.qa_wire import (
    COUNTS,
    EVIDENCE,
    HISTOGRAM,
    LEVELS,
    OUTLINE_SIZES,
    OUTLINE_SUMS,
    OUTLINES,
    PREDICTION,
    TARGET,
    AskedArray,
    ImageNote,
    ScoreRequest,
    SubScores,
)
from lossd_client.wire import Array

_LEAST_GROUP_BYTES, _GROUP_BYTES = 2 << 20, 16 << 20
"""What is worth a request, and what is not worth a larger one."""

_GROUP_IMAGES = 32
_SHARES_PER_WORKER = 2
_EVIDENCE_BYTES = len(EVIDENCE)
"""Bytes of a pixel's evidence."""
_RENEWALS = 3
_DIGEST_LENGTH = 40

_OF_AN_IMAGE = (InvalidInputError, LabelOutOfRangeError, NonFiniteLogitsError, TooLargeError)
"""Refusals that another image would not get."""

_NO_NOTE = ImageNote()

Problems = dict[str, Problem]
"""What is wrong with images, by their names."""

_Made = TypeVar("_Made")


class StateError(RuntimeError):
    """Somebody else removed records of a run that goes on."""


@dataclass(frozen=True)
class Options:
    """What a run is asked for beside its data.

    Attributes:
        disputed_margin: a pixel is disputed where the predicted class's probability exceeds the
            given one's by more, in [0, 1].
        workers: how many requests are under way at a time.
        progress: how it is shown.
    """

    disputed_margin: float = 0.5
    workers: int = 4
    progress: Progress = "auto"


class Context:
    """What a data set's images have in common, as the service knows it.

    Args:
        service: where it is put.
        counts: the tensors of `qa_wire.COUNTS`, int64, summed over all images; an attribute too.
        sub_scores: those of all images, which seal it; None while they are not known.
    """

    def __init__(
        self,
        service: QaService,
        counts: Mapping[str, Array],
        sub_scores: Sequence[SubScores] | None = None,
    ) -> None:
        self._service = service
        self.counts = counts
        self._sub_scores = sub_scores
        digest = hashlib.sha256()
        for name in COUNTS:
            digest.update(np.ascontiguousarray(counts[name]).data)
        for each in sub_scores or ():
            digest.update(each.model_dump_json().encode())
        # Named by what it holds, so that runs side by side cannot replace each other's.
        self.name = f"client-{digest.hexdigest()[:_DIGEST_LENGTH]}"

    def put(self) -> None:
        """Has the service know it."""
        self._service.put_context(self.name, self.counts, self._sub_scores)

    def using(self, call: Callable[[], _Made]) -> _Made:
        """Makes a call that names the context; puts it again where the service forgot it.

        Raises:
            UnknownContextError: it is forgotten again and again.
        """
        for _ in range(_RENEWALS):
            try:
                return call()
            except UnknownContextError:
                self.put()
        return call()


@dataclass(frozen=True)
class _Loaded:
    """An image's tensors by name, and what is said of it beside them."""

    item: Item
    parts: Mapping[str, Array]
    note: ImageNote = _NO_NOTE


class Passes:
    """The passes of one run. What they learn is in its state.

    Args:
        data: what is scored.
        service: by whom.
        state: what is known already.
        options: what is asked for; an attribute too.
        numerics_version: the service's; answers of another one are not mixed with its own. An
            attribute too.
    """

    def __init__(
        self,
        data: DataSet,
        service: QaService,
        state: State,
        options: Options,
        numerics_version: str,
    ) -> None:
        self._data = data
        self._service = service
        self._state = state
        self.options = options
        self.numerics_version = numerics_version
        self._asked = json.dumps([data.classes.names, options.disputed_margin])
        self._request = ScoreRequest(
            prediction_kind=data.choice.kind,
            ignore_index=data.rules.ignored_label,
            class_names=list(data.classes.names),
            disputed_margin=options.disputed_margin,
        )

    def observe(self, items: Sequence[Item]) -> Problems:
        """The first pass over images that it does not know yet.

        Args:
            items: the images.

        Returns:
            What is wrong with images that cannot be read or that the service refuses, by name.

        Raises:
            LossdError: the service failed.
        """
        missing = [item for item in items if self._state.observed(self.observed_key(item)) is None]
        request = self._asking(detail="scores", arrays=["histogram", "outlines", "evidence"])

        ask = partial(self._sent, request, self._service.score)

        def work(group: Sequence[Item]) -> Problems:
            return self._scored(group, self._first, ask, self._keep_observed)

        return self._in_groups("observing", missing, _prediction_bytes, work)

    def counts(self, items: Iterable[Item]) -> dict[str, Array]:
        """Sums of the counts of observed images, int64, out of their records."""
        classes = len(self._data.classes)
        total: dict[str, Array] = {
            HISTOGRAM: np.zeros((classes, LEVELS), np.int64),
            OUTLINES: np.zeros((classes, OUTLINE_SIZES, len(OUTLINE_SUMS)), np.int64),
        }
        for item in items:
            for name, own in self.observed(item).counts.items():
                total[name] += own
        return total

    def judge(self, items: Sequence[Item], context: Context) -> Problems:
        """The second pass over images that it does not know yet.

        Args:
            items: observed images.
            context: of all of them.

        Returns:
            As `observe`.

        Raises:
            LossdError: the service failed.
        """
        missing = [
            item for item in items if self._state.judged(self.judged_key(item, context)) is None
        ]
        request = self._asking(context=context.name)

        def keep(item: Item, _: _Loaded, judged: JudgedText) -> None:
            self._state.keep_judged(self.judged_key(item, context), judged.head, judged.regions)

        ask = partial(self._sent, request, self._service.judged)

        def work(group: Sequence[Item]) -> Problems:
            return context.using(lambda: self._scored(group, self._second, ask, keep))

        return self._in_groups("judging", missing, _second_bytes, work)

    def answer(self, item: Item, context: Context, arrays: Sequence[AskedArray]) -> Answered:
        """Everything the service says of an image in its context, with tensors; it is not kept.

        Args:
            item: an observed image.
            context: of the data set.
            arrays: the tensors.

        Returns:
            The answer.

        Raises:
            DataError: a file cannot be read any more.
            LossdError: the service failed.
        """
        loaded = self._second(item)
        request = self._asking(context=context.name, arrays=list(arrays))
        (answered,) = context.using(lambda: self._sent(request, self._service.score, [loaded]))
        return answered

    def observed(self, item: Item) -> Observed:
        """What the first pass said of an image that it has seen.

        Raises:
            StateError: the record has gone since.
        """
        return _there(self._state.observed(self.observed_key(item)), item)

    def judged(self, item: Item, context: Context) -> Judged:
        """What the second pass said of an image that it has seen, without its regions.

        Raises:
            StateError: the record has gone since.
        """
        return _there(self._state.judged(self.judged_key(item, context)), item)

    def judged_regions(self, item: Item, context: Context) -> JudgedRegions:
        """What the second pass said of the regions of an image that it has seen.

        Raises:
            StateError: the record has gone since.
        """
        return _there(self._state.judged_regions(self.judged_key(item, context)), item)

    def observed_key(self, item: Item) -> str:
        """Name of an image's first record."""
        return _digest(item.key, self.numerics_version)

    def judged_key(self, item: Item, context: Context) -> str:
        """Name of an image's second record."""
        return _digest(self.observed_key(item), context.name, self._asked)

    def _in_groups(
        self,
        title: str,
        items: Sequence[Item],
        bytes_of: Callable[[Item], int],
        work: Callable[[Sequence[Item]], Problems],
    ) -> Problems:
        problems: Problems = {}

        def counted(group: Sequence[Item]) -> tuple[Problems, Sequence[Item]]:
            return work(group), group

        workers = self.options.workers
        groups = _groups(items, bytes_of, _SHARES_PER_WORKER * workers)
        with stage(title, len(items), self.options.progress) as done:
            for found, group in in_order(groups, counted, workers):
                problems |= found
                done(len(group), sum(item.pixels for item in group))
        return problems

    def _scored(
        self,
        group: Sequence[Item],
        load: Callable[[Item], _Loaded],
        ask: Callable[[Sequence[_Loaded]], Sequence[_Made]],
        keep: Callable[[Item, _Loaded, _Made], None],
    ) -> Problems:
        """Loads, sends and keeps a group; an image at fault does not keep the others from it."""
        loaded: list[_Loaded] = []
        problems: Problems = {}
        for item in group:
            try:
                loaded.append(load(item))
            except DataError as error:
                problems[item.pair.name] = Problem.from_error(error)
        for one, answered in zip(loaded, _tried(loaded, ask), strict=True):
            if isinstance(answered, Problem):
                problems[one.item.pair.name] = answered
            else:
                keep(one.item, one, answered)
        return problems

    def _sent(
        self,
        request: ScoreRequest,
        call: Callable[[ScoreRequest, Sequence[Parts]], list[_Made]],
        loaded: Sequence[_Loaded],
    ) -> list[_Made]:
        notes = [one.note for one in loaded]
        if any(note is not _NO_NOTE for note in notes):
            request = request.model_copy(update={"images": notes})
        return call(request, [one.parts for one in loaded])

    def _asking(self, **fields: object) -> ScoreRequest:
        return self._request.model_copy(update=fields)

    def _first(self, item: Item) -> _Loaded:
        pair = item.pair
        target = self._data.target(pair) if item.target is None else item.target
        return _Loaded(item, {PREDICTION: self._data.prediction(pair), TARGET: target})

    def _second(self, item: Item) -> _Loaded:
        """The evidence, or the prediction again where there is none."""
        evidence = self._state.evidence(self.observed_key(item))
        if evidence is None:
            return self._first(item)
        return _Loaded(item, evidence.tensors, ImageNote(scores=evidence.scores))

    def _keep_observed(self, item: Item, loaded: _Loaded, answered: Answered) -> None:
        evidence: dict[str, Array] = {}
        if _is_replaced(item):
            evidence = {name: answered.arrays[name] for name in EVIDENCE}
            evidence[TARGET] = loaded.parts[TARGET]
        counts = {name: answered.arrays[name] for name in COUNTS}
        observed = Observed(answered.scores.scores, counts)
        self._state.keep_observed(self.observed_key(item), observed, evidence)


def _tried(
    loaded: Sequence[_Loaded], ask: Callable[[Sequence[_Loaded]], Sequence[_Made]]
) -> Sequence[_Made | Problem]:
    if not loaded:
        return []
    try:
        return ask(loaded)
    except _OF_AN_IMAGE as error:
        if len(loaded) == 1:
            return [_refused(loaded[0].item, error)]
    # The service names the first that it refuses; alone, each gets the answer it deserves.
    return [answered for one in loaded for answered in _tried([one], ask)]


def _groups(
    items: Sequence[Item], bytes_of: Callable[[Item], int], shares: int
) -> Iterator[list[Item]]:
    """Neighbours that together make a request of a size that is worth its while.

    There are at least so many shares, if there is enough for them: with fewer, most workers would
    be idle while the last of them are computed.
    """
    share_bytes = sum(map(bytes_of, items)) // shares
    most_bytes = min(max(share_bytes, _LEAST_GROUP_BYTES), _GROUP_BYTES)
    return groups_of(items, bytes_of, most_weight=most_bytes, most_items=_GROUP_IMAGES)


def _prediction_bytes(item: Item) -> int:
    return item.pair.prediction.nbytes


def _second_bytes(item: Item) -> int:
    evidence = _EVIDENCE_BYTES * item.pixels
    return evidence if _is_replaced(item) else _prediction_bytes(item)


def _is_replaced(item: Item) -> bool:
    """Whether evidence is smaller than the prediction, which is then sent once only."""
    return _prediction_bytes(item) > _EVIDENCE_BYTES * item.pixels


def _refused(item: Item, error: LossdError) -> Problem:
    return Problem("labels", item.pair.prediction.file, f"the service refuses it: {error.detail}")


def _there(record: _Made | None, item: Item) -> _Made:
    if record is None:
        raise StateError(f"the record of {item.pair.name} went while it was in use")
    return record


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
