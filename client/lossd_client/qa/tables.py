"""What a report looks like on a terminal."""

from collections.abc import Iterator, Sequence
from itertools import islice

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lossd_client.qa.estimates import MIN_DECIDED
from lossd_client.qa.ranking import ClassRow, GroupRow, RankedImage
from lossd_client.qa.report import Report
from lossd_client.qa.reviews import Progress

_SHOWN_GROUPS = 20


def print_report(report: Report, top: int, console: Console | None = None) -> None:
    """Prints the worst images, the classes, annotators and jobs, and where the files are.

    Args:
        report: a scored data set.
        top: how many images are printed, of those that are not settled.
        console: where to; standard output if None.
    """
    console = console or Console()
    if top:
        console.print(_ranking(list(islice(report.unsettled(), top))))
    progress = report.progress()
    if progress is not None:
        for line in _progress(progress):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(_classes(report.per_class))
    for title, rows in (("annotator", report.per_annotator), ("job", report.per_job)):
        if rows:
            console.print(_groups(title, rows))
    for name, path in report.paths.items():
        console.print(f"{name:20} {path}", highlight=False, markup=False, soft_wrap=True)


def _ranking(images: Sequence[RankedImage]) -> Table:
    table = _table(f"the {len(images)} most doubtful images")
    for heading in ("rank", "suspicion", "disputed px"):
        table.add_column(heading, justify="right")
    table.add_column("name", overflow="fold")
    table.add_column("probably")
    table.add_column("why", overflow="fold")
    for image in images:
        numbers = (str(image.rank), f"{image.suspicion:.2f}", f"{image.disputed_pixels:,}")
        table.add_row(*numbers, Text(image.name), image.kind or "", Text(image.reason))
    return table


def _progress(progress: Progress) -> Iterator[str]:
    yield (
        f"decided: {progress.wrong} images wrong, {progress.right} right, "
        f"{progress.ambiguous} ambiguous"
    )
    if progress.precision is not None:
        yield f"precision so far: {progress.precision:.0%} of those wrong or right were wrong"
    yield (
        f"confirmed regions: {progress.unchanged} are as they were, {progress.changed} have changed"
    )
    if progress.left is None:
        yield f"fewer than {MIN_DECIDED} images are wrong or right: no estimate of the errors left"
    else:
        left = progress.left
        yield (
            f"errors left: about {left.count:.0f} ({left.low:.0f} to {left.high:.0f}) of "
            f"{progress.open_images} images that are not decided"
        )


def _classes(rows: Sequence[ClassRow]) -> Table:
    table = _table("classes")
    table.add_column("class", overflow="fold")
    for heading in ("pixels", "Dice", "disputed"):
        table.add_column(heading, justify="right")
    table.add_column("most often taken for")
    for row in rows:
        dice = "" if row.dice is None else f"{row.dice:.3f}"
        swap = ", ".join(f"{name} ({pixels:,} px)" for name, pixels in row.swaps)
        share = f"{row.disputed_share:.2%}"
        table.add_row(Text(row.name), f"{row.pixels:,}", dice, share, Text(swap))
    return table


def _groups(title: str, rows: Sequence[GroupRow]) -> Table:
    more = f", the {_SHOWN_GROUPS} worst of {len(rows)}" if len(rows) > _SHOWN_GROUPS else ""
    table = _table(f"by {title}{more}")
    table.add_column(title, overflow="fold")
    for heading in ("images", "mean suspicion", "disputed"):
        table.add_column(heading, justify="right")
    for row in rows[:_SHOWN_GROUPS]:
        share = f"{row.disputed_share:.2%}"
        table.add_row(Text(row.name), str(row.images), f"{row.mean_suspicion:.2f}", share)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
