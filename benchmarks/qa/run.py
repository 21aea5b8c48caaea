"""The measurements: the command's Python call against a service of its own, cleanlab beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic_settings import CliApp

from benchmarks.qa.cleanlab import Arrays, Cleanlab, cleanlab, write_arrays
from benchmarks.qa.data import KINDS, SETS, CamVid
from benchmarks.qa.estimates import Ordered, estimate_rows
from benchmarks.qa.figures import Points, Ranking, hits, mean_of, ranking, shares
from benchmarks.qa.kinds import Told, confusion, told_kinds
from benchmarks.qa.rescore import rescoring
from benchmarks.qa.variants import variant_rows
from benchmarks.report import Cell, Report, Row, Section, environment
from benchmarks.start_up import free_port, serving, wait_for
from lossd.core.compiled import choose_mode
from lossd.kernels import choose_device
from lossd.settings import Settings
from lossd_client import Client
from lossd_client.qa import RankedImage, score
from lossd_client.qa import Report as QaReport

Kernels = Literal["auto", "compiled", "eager"]

_ROUNDS, _QUICK_ROUNDS = 5, 1
_COPIES, _QUICK_COPIES = 8, 2
_LARGE_IMAGES, _QUICK_LARGE_IMAGES = 24, 4
_LARGE_SIZE = (1024, 1024)
_WORKERS = 4  # as `score` and the command have it
_SPENT = ("passed_s", "own_s", "service_s")
_MEASURED = """
import sys
from pathlib import Path
from lossd_client.__main__ import main
status = main(sys.argv[1:])
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
sys.exit(status)
"""
"""The command, which then prints its peak memory in KiB. What `wait` says of a child begins with
the memory of the process that started it."""
_SOFTMIN, _ISSUES = "cleanlab softmin", "cleanlab num_pixel_issues"
_OWN: Mapping[str, Callable[[RankedImage], float]] = {
    "lossd suspicion": lambda image: image.suspicion,
    "worst loss alone": lambda image: image.sub_scores.worst_loss,
    "class tail alone": lambda image: image.sub_scores.class_tail,
    "boundary loss alone": lambda image: image.sub_scores.boundary_loss or 0.0,
    "straightness alone": lambda image: image.sub_scores.straightness or 0.0,
    "mean loss": lambda image: image.scores.mean_loss,
}
"""Scores of the report that are compared; what a mask does not have cannot be doubted."""


@dataclass(frozen=True)
class Bench:
    """What the measurements share."""

    data: CamVid
    folder: Path
    port: int
    service_pid: int
    cleanlab: Cleanlab | None
    quick: bool

    @property
    def sets(self) -> Sequence[int]:
        """Numbers of the sets that are looked at."""
        return SETS[:2] if self.quick else SETS

    @property
    def predictions(self) -> Path:
        """Folder of the logits."""
        return self.folder / "predictions"

    def arrays(self, folder: Path, names: Sequence[str]) -> Arrays:
        """Images of a data set for cleanlab, in files that lie beside it."""
        beside = folder.with_name(f"{folder.name}-arrays")
        beside.mkdir()
        return write_arrays(folder, names, beside)

    def score(self, folder: Path, out: Path | None = None) -> QaReport:
        """The report of a data set, begun afresh."""
        with Client(f"http://127.0.0.1:{self.port}", timeout_s=600.0) as client:
            return score(
                images=folder / "images",
                annotations=folder / "annotations",
                predictions=folder / "predictions",
                classes=folder / "classes.txt",
                ignore_index=self.data.ignore_index,
                client=client,
                out=out,
                overlays=0,
                views="none",
                workers=_WORKERS,
                progress="none",
                start="fresh",
            )


def run(
    data: CamVid, folder: Path, *, python: Path | None, kernels: Kernels, quick: bool
) -> Report:
    """Detection, pointing, speed and memory."""
    settings = CliApp.run(Settings, cli_args=[])
    device = choose_device(settings.device)
    data.write_predictions(folder / "predictions")
    with ExitStack() as opened:
        port, pid = opened.enter_context(_service(kernels))
        rival = None if python is None else opened.enter_context(cleanlab(python))
        bench = Bench(data, folder, port, pid, rival, quick)
        sections = _detection(bench)
        variants = variant_rows(data, folder, bench.score, bench.sets)
        sections.append(Section("the same images as other data sets are", variants))
        sections.append(Section("speed, in turns", _speed(bench)))
        edits = rescoring(folder, port, quick=quick)
        sections.append(Section("an edited mask of 1024 x 1024 x 4 scored again", edits))
        sections.append(Section("peak memory by number of images", _memory(bench)))
    return Report(
        name="qa",
        sections=sections,
        notes=_notes(rival),
        environment=environment(device, choose_mode(device) if kernels == "auto" else kernels),
    )


@contextmanager
def _service(kernels: Kernels) -> Iterator[tuple[int, int]]:
    port = free_port()
    with serving(port, flags=("--kernels", kernels)) as process:
        wait_for("/health/ready", port, process)
        yield port, process.pid


def _detection(bench: Bench) -> list[Section]:
    """Figures of every score, over all errors and by kind; of points, kinds and estimates."""
    found: dict[str, dict[str, list[Ranking]]] = {}
    points: dict[str, list[tuple[str, list[bool]]]] = {}
    named: list[Told] = []
    ordered: list[Ordered] = []
    for number in bench.sets:
        kinds = bench.data.kinds(number)
        told, pointed, own_kinds = _of_set(bench, number)
        named += own_kinds
        ours = told["lossd suspicion"]  # the largest first
        ordered.append(Ordered([*ours.values()], [name in kinds for name in ours]))
        for label, suspicion in told.items():
            for kind, figures in _by_kind(bench.data.names, kinds, suspicion):
                found.setdefault(label, {}).setdefault(kind, []).append(figures)
        changed = {name: bench.data.changed(name, number) for name in kinds}
        for label, places in pointed.items():
            points.setdefault(label, []).extend(
                (kind, hits(places[name], changed[name])) for name, kind in kinds.items()
            )
    attributes = ("auroc", "average_precision", "precision_at_k")
    pointing = [_pointing_row(label, own) for label, own in points.items()]
    return [
        *(
            Section(
                f"{attribute}, mean over sets",
                [_row(label, own, attribute) for label, own in found.items()],
            )
            for attribute in attributes
        ),
        Section("points on changed pixels, at most 2 px beside", pointing),
        Section("probable kind of the region at the error", confusion(named)),
        Section("wrong images as estimated, reviewed from the top", estimate_rows(ordered)),
    ]


def _of_set(
    bench: Bench, number: int
) -> tuple[dict[str, Mapping[str, float]], dict[str, Mapping[str, Points]], list[Told]]:
    """Suspicions and points by image, of every score, and what the kinds are."""
    folder = bench.folder / f"set-{number}"
    bench.data.write_set(number, folder, bench.predictions)
    with bench.score(folder) as report:
        told: dict[str, Mapping[str, float]] = {
            label: {image.name: of(image) for image in report} for label, of in _OWN.items()
        }
        pointed: dict[str, Mapping[str, Points]] = {
            "lossd": {image.name: image.points for image in report}
        }
        kinds = list(told_kinds(bench.data, number, report))
    if bench.cleanlab is not None:
        names = bench.data.names
        arrays = bench.arrays(folder, names)
        answer = bench.cleanlab.ask(arrays, bench.data.ignore_index, scores=True)
        shutil.rmtree(arrays.labels.parent)
        told[_SOFTMIN] = dict(zip(names, answer["softmin"], strict=True))
        told[_ISSUES] = dict(zip(names, answer["num_pixel_issues"], strict=True))
        pointed["cleanlab, largest regions"] = dict(zip(names, answer["points"], strict=True))
    return told, pointed, kinds


def _by_kind(
    names: Sequence[str], kinds: Mapping[str, str], suspicion: Mapping[str, float]
) -> Iterator[tuple[str, Ranking]]:
    for kind in ("all", *KINDS):
        kept = [name for name in names if kind == "all" or kinds.get(name, kind) == kind]
        wrong = np.array([name in kinds for name in kept])
        yield kind, ranking(wrong, np.array([suspicion[name] for name in kept]))


def _row(label: str, found: Mapping[str, Sequence[Ranking]], attribute: str) -> Row:
    means = {kind: mean_of(figures, attribute) for kind, figures in found.items()}
    spread = float(np.std([getattr(each, attribute) for each in found["all"]]))
    return {"score": label, **means, "sd over sets": spread}


def _pointing_row(label: str, found: Sequence[tuple[str, list[bool]]]) -> Row:
    cells: dict[str, Cell] = {"method": label, "images": len(found)}
    cells |= shares(each for _, each in found)
    for kind in KINDS:
        own = [each[:1] for name, each in found if name == kind]
        cells[f"first, {kind}"] = float(np.mean([any(each) for each in own]))
    return cells


@dataclass(frozen=True)
class Spent:
    """What one run took, in seconds.

    Attributes:
        passed_s: by the clock.
        own_s: of the processors, in the client or in cleanlab.
        service_s: of the processors, in the service.
    """

    passed_s: float
    own_s: float
    service_s: float = 0.0


def _speed(bench: Bench) -> list[Row]:
    """Whole runs from files to ranking, and cleanlab's part from arrays in memory, in turns."""
    large = bench.folder / "large"
    count = _QUICK_LARGE_IMAGES if bench.quick else _LARGE_IMAGES
    bench.data.write_enlarged(0, large, count, _LARGE_SIZE)
    small = bench.folder / "set-0"
    pixels = {"240 x 180": len(bench.data.names) * 180 * 240, "1024 x 1024": count << 20}
    tasks: dict[str, Callable[[], Spent]] = {
        "lossd qa, 240 x 180": lambda: _spent(bench, small),
        "lossd qa, 1024 x 1024": lambda: _spent(bench, large),
    }
    if bench.cleanlab is not None:
        rival, names = bench.cleanlab, bench.data.names
        for size, folder, own in (
            ("240 x 180", small, names),
            ("1024 x 1024", large, names[:count]),
        ):
            asked = partial(_rival_spent, rival, bench.arrays(folder, own), bench.data.ignore_index)
            tasks[f"cleanlab find_label_issues(n_jobs=1), {size}"] = asked
    found: dict[str, list[Spent]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(_QUICK_ROUNDS if bench.quick else _ROUNDS):
        for name, task in tasks.items():
            found[name].append(task())
    return [_speed_row(name, pixels[name.rpartition(", ")[2]], own) for name, own in found.items()]


def _spent(bench: Bench, folder: Path) -> Spent:
    own, service = time.process_time(), _cpu_s(bench.service_pid)
    began = time.perf_counter()
    bench.score(folder, bench.folder / "report").close()
    passed = time.perf_counter() - began
    return Spent(passed, time.process_time() - own, _cpu_s(bench.service_pid) - service)


def _rival_spent(rival: Cleanlab, arrays: Arrays, ignored: int) -> Spent:
    answer = rival.ask(arrays, ignored, scores=False)
    return Spent(answer["find_label_issues_s"], answer["find_label_issues_cpu_s"])


def _speed_row(name: str, pixels: int, found: Sequence[Spent]) -> Row:
    megapixels = pixels / 1e6
    passed, own, service = (
        float(np.median([getattr(each, which) for each in found])) for which in _SPENT
    )
    return {
        "what": name,
        "megapixels": megapixels,
        "median_s": passed,
        "best_s": min(each.passed_s for each in found),
        "mpixel_per_s": megapixels / passed,
        "own_cpu_ms_per_mpixel": own * 1e3 / megapixels,
        "service_cpu_ms_per_mpixel": service * 1e3 / megapixels,
    }


def _cpu_s(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(bench: Bench) -> list[Row]:
    """Peak resident memory of a client's process, and of the service after it."""
    rows: list[Row] = []
    for copies in (1, _QUICK_COPIES if bench.quick else _COPIES):
        folder = bench.folder / f"copies-{copies}"
        bench.data.write_set(0, folder, bench.predictions, copies)
        rows.append(
            {
                "images": copies * len(bench.data.names),
                "client_peak_mib": _client_peak_mib(bench, folder),
                "service_peak_mib": _peak_kib(bench.service_pid) / 1024,
            }
        )
    return rows


def _client_peak_mib(bench: Bench, folder: Path) -> float:
    command = [
        *(sys.executable, "-c", _MEASURED, "qa", "--images", str(folder / "images")),
        *("--annotations", str(folder / "annotations")),
        *("--predictions", str(folder / "predictions"), "--classes", str(folder / "classes.txt")),
        *("--ignore-index", str(bench.data.ignore_index), "--out", str(folder / "report")),
        *("--url", f"http://127.0.0.1:{bench.port}", "--overlays", "none", "--progress", "none"),
        *("--top", "0", "--workers", str(_WORKERS)),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
    return int(done.stdout.split()[-1]) / 1024


def _peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _notes(rival: Cleanlab | None) -> list[str]:
    return [
        "camvid126: 126 images, six sets of 42 known errors; one set is noisy",
        "a kind's figures are of that kind against untouched images",
        "lossd: from files to ranking.csv and regions.json, both passes, client and service",
        f"with {_WORKERS} requests under way at a time, on the processors that the service has too",
        "cleanlab is not run; name an interpreter with --cleanlab"
        if rival is None
        else f"cleanlab {rival.version}: from arrays in memory, one process, as its documentation "
        "advises; ignored pixels were given the predicted class, since it has no ignored label",
    ]
