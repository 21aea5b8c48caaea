"""Scores a data set through the service and writes what a review needs."""

import tempfile
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lossd_client._client import Client
from lossd_client.qa.dataset import (
    DataSet,
    Item,
    Paths,
    RefusedError,
    check_data_set,
    open_data_set,
)
from lossd_client.qa.decisions import Decisions, read_decisions
from lossd_client.qa.passes import Context, Options, Passes
from lossd_client.qa.predictions import RequestedKind
from lossd_client.qa.problems import Problem
from lossd_client.qa.progress import Progress
from lossd_client.qa.ranking import ClassTotals, RankedImage, ranked, unranked
from lossd_client.qa.report import VIEWS, Export, Report, Views, Wanted
from lossd_client.qa.service import QaService
from lossd_client.qa.state import Judged, State

Start = Literal["resume", "fresh"]

STATE = "state"
"""Folder of a run's records, in that of its report."""


@dataclass(frozen=True)
class Shard:
    """A part of a data set: every `of`-th image, from the one numbered `number` on.

    Attributes:
        number: 1 to `of`.
        of: number of parts.
    """

    number: int
    of: int


def score(
    *,
    images: str | Path,
    annotations: str | Path,
    predictions: str | Path,
    client: Client,
    classes: str | Path | None = None,
    ignore_index: int | None = None,
    mapping: Mapping[int, int] | None = None,
    prediction_kind: RequestedKind = "auto",
    out: str | Path | None = None,
    disputed_margin: float = 0.5,
    overlays: int | None = 20,
    views: Views = VIEWS,
    exports: Sequence[Export] = (),
    decisions: Sequence[str | Path] = (),
    workers: int = 4,
    progress: Progress = "auto",
    start: Start = "resume",
) -> Report:
    """Ranks the images of a data set by how much their annotations are to be doubted.

    Every prediction is sent once. What was scored is kept in `out/state`, so that a run that was
    ended in any way goes on where it was; neither that, nor the order of the images, nor `workers`
    changes a byte of the ranking.

    Args:
        images: folder of photos, of any, mixed sizes.
        annotations: index masks, COCO, CVAT, Label Studio, YOLO or Pascal VOC.
        predictions: folder or `.npz` of `[C, H, W]` or binary `[H, W]` arrays, or of masks.
        client: the way to the service.
        classes: file of class names; what the annotations name, or numbers, if None.
        ignore_index: label that does not count.
        mapping: new labels of old ones, `-1` for ignored, see `parse_map`.
        prediction_kind: what the predictions are; `auto` looks.
        out: folder of the report; nothing is written if None.
        disputed_margin: a pixel is disputed where the predicted class's probability exceeds the
            given one's by more, in [0, 1].
        overlays: how many images get a picture, the worst first; None for all.
        views: how many images of `report.html` can be looked at closely, the worst first; `none`
            writes no page.
        exports: files for other tools.
        decisions: files that the page saved; regions that are decided are not written again.
        workers: how many requests are under way at a time.
        progress: a bar, lines or nothing on standard error.
        start: `resume` a run that was ended, or begin `fresh`.

    Returns:
        The report; close it, or use it in `with`, where `out` is None.

    Raises:
        RefusedError: the data contradicts what was said of it; nothing was scored.
        DataError: there is nothing to score, or a file of decisions is none.
        LossdError: the service failed; call again to go on.

    Example:
        >>> from lossd_client import Client
        >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
        ...     report = score(
        ...         images="images", annotations="annotations.xml", predictions="logits.npz",
        ...         client=client, ignore_index=255, out="report",
        ...     )
        ...     for image in report.ranking[:3]:
        ...         print(image.rank, image.name, image.suspicion, image.reason)
    """
    decided = read_decisions(map(Path, decisions))
    named = None if classes is None else Path(classes)
    paths = Paths(Path(images), Path(annotations), Path(predictions), named)
    data = open_data_set(paths, ignore_index=ignore_index, mapping=mapping, kind=prediction_kind)
    options = Options(disputed_margin, workers, progress)
    folder = None if out is None else Path(out)
    report = score_data_set(data, client, options, out=folder, start=start, decisions=decided)
    if folder is not None:
        report.write(folder, Wanted(overlays, views, exports))
    report.tidy()
    return report


def score_data_set(
    data: DataSet,
    client: Client,
    options: Options,
    *,
    out: Path | None,
    start: Start = "resume",
    decisions: Decisions | None = None,
) -> Report:
    """The two passes over a data set.

    Args:
        data: what is scored.
        client: the way to the service.
        options: what is asked for.
        out: folder that the run's state is kept in; a temporary one if None.
        start: `resume` a run that was ended, or begin `fresh`.
        decisions: what people have decided already.

    Returns:
        The report, of which nothing was written yet.

    Raises:
        RefusedError: labels or sizes that are not allowed; nothing was scored.
        DataError: no image can be scored.
        LossdError: the service failed.
    """
    items, unreadable = check_data_set(data, options.workers)
    with ExitStack() as opened:
        state = _state(out, start, opened)
        service = QaService(client)
        passes = Passes(data, service, state, options, service.numerics_version())
        failed = passes.observe(items)
        items = _without(items, failed)
        judged_in = Context(service, passes.counts(items))
        judged_in.put()
        refused = passes.judge(items, judged_in)
        items = _without(items, refused)
        failed |= refused
        if not items:
            raise RefusedError([*data.problems, *unreadable, *failed.values()])
        totals = ClassTotals(data.classes)
        images = [_counted(item, passes.judged(item, judged_in), totals) for item in items]
        sub_scores = [image.sub_scores for image in images]
        counts = passes.counts(items) if refused else judged_in.counts
        sealed = Context(service, counts, sub_scores)
        sealed.put()
        suspicions = sealed.using(lambda: service.suspicion(sealed.name, sub_scores))
        return Report(
            data=data,
            problems=[*data.problems, *unreadable, *failed.values()],
            ranking=ranked(images, suspicions),
            per_class=totals.rows(),
            passes=passes,
            state=state,
            judged_in=judged_in,
            sealed=sealed,
            service=service,
            closing=opened.pop_all(),
            decisions=decisions or Decisions(),
        )


def observe_shard(
    data: DataSet, client: Client, options: Options, *, out: Path, shard: Shard
) -> tuple[Problem, ...]:
    """The first pass over a part of a data set, whose state a later run of all of it takes up.

    Args:
        data: the whole data set.
        client: the way to the service.
        options: what is asked for.
        out: folder that all parts and the later run share.
        shard: which part.

    Returns:
        What cannot be read or scored.

    Raises:
        RefusedError: as `score_data_set`, of images of the part.
        LossdError: the service failed.
    """
    part = replace(data, pairs=data.pairs[shard.number - 1 :: shard.of])
    items, unreadable = check_data_set(part, options.workers)
    service = QaService(client)
    passes = Passes(part, service, State(out / STATE), options, service.numerics_version())
    return (*unreadable, *passes.observe(items).values())


def _state(out: Path | None, start: Start, opened: ExitStack) -> State:
    folder = out or Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lossd-qa-")))
    state = State(folder / STATE)
    opened.callback(state.close)
    if start == "fresh":
        state.forget()
    return state


def _without(items: Sequence[Item], failed: Container[str]) -> tuple[Item, ...]:
    return tuple(item for item in items if item.pair.name not in failed)


def _counted(item: Item, judged: Judged, totals: ClassTotals) -> RankedImage:
    totals.add(judged.per_class or ())
    return unranked(item, judged)
