"""The command `lossd-client qa`.

Exit statuses: 0, everything was scored; 1, finished, and what was left out is listed in
`problems.csv`; 2, the input is wrong and nothing was scored; 3, the service failed, and the same
command goes on where it was; 130, interrupted, likewise.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from lossd_client._client import Client
from lossd_client.errors import LossdError
from lossd_client.qa.classes import parse_map
from lossd_client.qa.dataset import DataSet, Paths, RefusedError, open_data_set
from lossd_client.qa.decisions import Decisions, read_decisions
from lossd_client.qa.passes import Options, StateError
from lossd_client.qa.predictions import RequestedKind
from lossd_client.qa.problems import DataError, Problem
from lossd_client.qa.progress import Progress
from lossd_client.qa.report import EXPORTS, OVERLAYS, VIEWS, Report, Views, Wanted
from lossd_client.qa.scoring import STATE, Shard, Start, observe_shard, score_data_set
from lossd_client.qa.tables import print_report

DONE, LEFT_OUT, REFUSED, FAILED, INTERRUPTED = 0, 1, 2, 3, 130

_URL = "http://127.0.0.1:8000"
_KEY_VARIABLE = "LOSSD_API_KEY"
_SHOWN_PROBLEMS = 20
_TIMEOUT_S = 120.0
_RETRIES = 5

_Number = TypeVar("_Number", int, float)


def describe(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the command."""
    parser.description = (
        "Scores a data set's annotations against a model's predictions and ranks the images, "
        "the most doubtful first."
    )
    _describe_data(parser.add_argument_group("data"))
    _describe_service(parser.add_argument_group("service"))
    _describe_report(parser.add_argument_group("report"))


def run(known: argparse.Namespace) -> int:
    """Runs the command; its exit status."""
    try:
        return _run(known)
    except RefusedError as error:
        _tell(error.problems)
        _say("nothing was scored")
        return REFUSED
    except DataError as error:
        _say(str(error))
        return REFUSED
    except (LossdError, StateError, OSError) as error:
        _say(f"{error}; what was scored is kept in {known.out / STATE}, run again to go on")
        return FAILED
    except KeyboardInterrupt:
        _say(f"interrupted; what was scored is kept in {known.out / STATE}, run again to go on")
        return INTERRUPTED


def _run(known: argparse.Namespace) -> int:
    paths = Paths(known.images, known.annotations, known.predictions, known.classes)
    data = open_data_set(
        paths, ignore_index=known.ignore_index, mapping=known.map, kind=known.prediction_kind
    )
    _say(f"predictions are {data.choice.kind}: {data.choice.reason}")
    _say(f"{len(data.pairs)} images, {len(data.classes)} classes")
    options = Options(known.disputed_margin, known.workers, known.progress)
    decisions = _decisions(known)
    with _client(known) as client:
        if known.shard is not None:
            return _observe(known, data, client, options)
        start: Start = "fresh" if known.fresh else "resume"
        with score_data_set(
            data, client, options, out=known.out, start=start, decisions=decisions
        ) as report:
            report.write(known.out, Wanted(known.overlays, known.views, known.export))
            report.tidy()
            return _finish(known, report)


def _decisions(known: argparse.Namespace) -> Decisions:
    """What is decided already; contradictions are told."""
    for path in known.decisions:
        for folder in (OVERLAYS, STATE):
            if path.resolve().is_relative_to((known.out / folder).resolve()):
                told = f"is in the folder {folder} of --out, which runs clear; move it first"
                raise DataError(str(path), told)
    decisions = read_decisions(known.decisions)
    for conflict in decisions.conflicts:
        _say(str(conflict))
    return decisions


def _observe(known: argparse.Namespace, data: DataSet, client: Client, options: Options) -> int:
    shard: Shard = known.shard
    problems = observe_shard(data, client, options, out=known.out, shard=shard)
    _tell(problems)
    _say(f"part {shard.number} of {shard.of} is observed; run without --shard when all are")
    return LEFT_OUT if problems else DONE


def _finish(known: argparse.Namespace, report: Report) -> int:
    print_report(report, known.top)
    _tell(report.problems)
    return LEFT_OUT if report.problems else DONE


def _describe_data(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder of the photos"
    )
    group.add_argument(
        "--annotations",
        type=Path,
        required=True,
        metavar="SOURCE",
        help="folder of index masks, COCO, CVAT, Label Studio, YOLO or Pascal VOC",
    )
    group.add_argument(
        "--predictions",
        type=Path,
        required=True,
        metavar="SOURCE",
        help="folder or .npz of [C, H, W] or binary [H, W] arrays by name, or of index masks",
    )
    group.add_argument(
        "--classes", type=Path, metavar="FILE", help="class names, one a line, or an export's file"
    )
    group.add_argument(
        "--ignore-index", type=int, metavar="N", help="label that does not count, after --map"
    )
    group.add_argument(
        "--map", type=_label_map, metavar="A:B,…", help="new labels of old ones, as 0:1,255:ignore"
    )
    group.add_argument(
        "--prediction-kind",
        choices=get_args(RequestedKind),
        default="auto",
        help="what the predictions are (default: %(default)s, which looks and says)",
    )


def _describe_service(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--url", default=_URL, help="where the service is (default: %(default)s)")
    group.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"file that holds the API key; else {_KEY_VARIABLE}, if it is set",
    )
    group.add_argument(
        "--workers",
        type=_number(int, low=1, high=64),
        default=4,
        metavar="N",
        help="requests under way at a time (default: %(default)s)",
    )


def _describe_report(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the report"
    )
    group.add_argument(
        "--disputed-margin",
        type=_number(float, low=0, high=1),
        default=0.5,
        metavar="P",
        help="disputed: another class leads the given one by more (default: %(default)s)",
    )
    group.add_argument(
        "--overlays",
        type=_overlays,
        default=20,
        metavar="N|all|none",
        help="pictures, of the worst (default: %(default)s)",
    )
    group.add_argument(
        "--views",
        type=_views,
        default=VIEWS,
        metavar="N|all|none",
        help="images of report.html that can be looked at closely, of the worst; none: no page "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--decisions",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="decisions that report.html saved; they are read, never written; may be repeated",
    )
    group.add_argument(
        "--export",
        action="append",
        choices=sorted(EXPORTS),
        default=[],
        help="also write regions for this tool; may be repeated",
    )
    group.add_argument(
        "--top",
        type=_number(int, low=0, high=10_000),
        default=20,
        metavar="N",
        help="rows of the ranking on the screen (default: %(default)s)",
    )
    group.add_argument(
        "--progress",
        choices=get_args(Progress),
        default="auto",
        help="a bar, lines, or none (default: %(default)s, a bar on a terminal)",
    )
    group.add_argument(
        "--fresh", action="store_true", help="forget what an earlier run into --out has scored"
    )
    group.add_argument(
        "--shard",
        type=_shard,
        metavar="K/N",
        help="only observe the K-th of N parts; processes share --out, and one without finishes",
    )


def _client(known: argparse.Namespace) -> Client:
    key = _key(known)
    try:
        return Client(known.url, api_key=key, timeout_s=_TIMEOUT_S, retries=_RETRIES)
    except ValueError as error:
        raise DataError("--url, --key-file", str(error)) from error


def _key(known: argparse.Namespace) -> str | None:
    if known.key_file is None:
        return os.environ.get(_KEY_VARIABLE)
    try:
        text: str = known.key_file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(str(known.key_file), f"cannot be read: {error}") from error
    return text.strip()


def _number(kind: Callable[[str], _Number], *, low: float, high: float) -> Callable[[str], _Number]:
    def parsed(text: str) -> _Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return value

    return parsed


def _label_map(text: str) -> Mapping[int, int]:
    try:
        return parse_map(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _overlays(text: str) -> int | None:
    if text in {"all", "none"}:
        return None if text == "all" else 0
    return _number(int, low=0, high=1_000_000)(text)


def _views(text: str) -> Views:
    if text == "all":
        return "all"
    if text == "none":
        return "none"
    return _number(int, low=0, high=1_000_000)(text)


def _shard(text: str) -> Shard:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with 1 <= K <= N")
    return Shard(int(number), int(of))


def _tell(problems: Sequence[Problem]) -> None:
    for problem in problems[:_SHOWN_PROBLEMS]:
        _say(str(problem))
    if len(problems) > _SHOWN_PROBLEMS:
        counts: dict[str, int] = {}
        for problem in problems:
            counts[problem.kind] = counts.get(problem.kind, 0) + 1
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        _say(f"and {len(problems) - _SHOWN_PROBLEMS} more; in all {told}")


def _say(line: str) -> None:
    sys.stderr.write(f"lossd-client: {line}\n")
