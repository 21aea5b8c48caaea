"""A whole load test: unloaded latencies, capacity, load, thresholds, reports; see `README.md`."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python loadtests/run.py`

from loadtests import report as reports
from loadtests import thresholds
from loadtests.arrivals import MODELS, OPEN_MODELS, Model
from loadtests.recording import Recording, read_recording
from loadtests.scenarios import MIXES, Mix, Order, mix_of, shares

_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_RESULTS = Path(__file__).with_name("results")
_READY_WITHIN_S = 900.0
_POLL_S = 0.2
_POLL_TIMEOUT_S = 10.0
_LOG_TAIL_LINES = 20
_DRAIN_S = 90
"""Longer than a request may take: what is under way at the end is waited for."""
_BUILD_INFO = re.compile(r"^lossd_build_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    url: str | None
    mix_name: str
    abuse_percent: float | None
    model: Model
    users: int
    rate_per_s: float | None
    load_percent: float
    seconds: int
    baseline_seconds: int
    ratio: float
    out: Path

    @property
    def mix(self) -> Mix:
        """The mix, with another share of abuse if one was asked for."""
        return mix_of(self.mix_name, self.abuse_percent)


@dataclass(frozen=True)
class Phase:
    """One run of Locust."""

    name: str
    model: Model
    users: int
    seconds: int
    rate_per_s: float = 1.0
    """Of open models."""
    order: Order = "by_share"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all thresholds met, 1 not, 2 wrong usage."""
    options = read_options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with _service(options.url, console) as url:
            report = run(url, options, console)
    except (RuntimeError, httpx.HTTPError) as error:
        console.print(f"The load test could not be made: {error}", markup=False)
        return 1
    reports.write(report, options.out / "report.json")
    reports.show(report, console)
    console.print(f"Reports are in {options.out}", highlight=False)
    return 0 if report.passed else 1


def read_options(arguments: Sequence[str] | None) -> Options:
    """Options of a command line; exits with status 2 where they make no sense."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--url", help="of a running service; without, one is started and stopped")
    add("--mix", dest="mix_name", choices=sorted(MIXES), default="everything", help="what is sent")
    add("--abuse-percent", type=_percent, help="share of abuse, if not the mix's own")
    add("--model", choices=MODELS, default="constant", help="when a request is sent")
    add("--users", type=_positive_int, default=16, help="of the closed loop")
    add("--rate", dest="rate_per_s", type=_positive, help="requests a second, open models")
    add(
        "--load-percent",
        type=_positive,
        default=50.0,
        help="without --rate: how much of the rate that the closed loop reaches",
    )
    add("--seconds", type=_positive_int, default=20, help="of the load")
    add(
        "--baseline-seconds",
        type=_positive_int,
        default=8,
        help="of one user alone, and of the closed loop that measures the capacity",
    )
    add("--ratio", type=_positive, default=10.0, help="most that p99 / reference may be")
    add("--out", type=Path, default=_RESULTS, help="folder of the reports")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.rate_per_s is not None and options.model not in OPEN_MODELS:
        parser.error("--rate belongs to the models constant and poisson")
    if options.url is not None and not re.match(r"https?://[^/]", options.url):
        parser.error("--url begins with http:// or https://")
    return options


def run(url: str, options: Options, console: Console) -> reports.Report:
    """All phases against a service that is ready.

    Raises:
        RuntimeError: Locust did not run to its end, or there is no capacity to take a part of.
    """
    started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    generator = reports.describe_generator()
    phases: dict[str, Recording] = {}
    rate_per_s = options.rate_per_s
    for planned in _phases(options):
        phase = planned
        if phase.model in OPEN_MODELS:
            rate_per_s = rate_per_s or _part_of_capacity(phases["closed"], options)
            phase = replace(planned, rate_per_s=rate_per_s)
        console.print(f"{phase.name}: {phase.model}, {phase.seconds} s", highlight=False)
        phases[phase.name] = _run_locust(url, phase, options)
    by_share = shares(options.mix)
    references = thresholds.references_ms(
        phases["unloaded"], by_share, options.model, options.users
    )
    return reports.Report(
        started=started,
        generator=generator,
        service={"url": url, **_service_info(url)},
        mix={
            "name": options.mix_name,
            "abuse_percent": options.mix.abuse_percent,
            "shares": by_share,
        },
        model={
            "name": options.model,
            "users": options.users,
            "rate_per_s": rate_per_s,
            "load_percent": options.load_percent if "closed" in phases else None,
        },
        phases=phases,
        references_ms=references,
        verdicts=thresholds.judge(phases, references, ratio=options.ratio, rate_per_s=rate_per_s),
    )


def _phases(options: Options) -> Iterator[Phase]:
    yield Phase("unloaded", "closed", 1, options.baseline_seconds, order="in_turn")
    if options.model in OPEN_MODELS and options.rate_per_s is None:
        yield Phase("closed", "closed", options.users, options.baseline_seconds)
    # one user is the source of all requests of an open model
    users = 1 if options.model in OPEN_MODELS else options.users
    yield Phase("load", options.model, users, options.seconds)


def _part_of_capacity(closed: Recording, options: Options) -> float:
    rate_per_s = closed.rate_per_s * options.load_percent / 100
    if not rate_per_s:
        msg = "the closed loop got no answer, so there is no rate to take a part of"
        raise RuntimeError(msg)
    return rate_per_s


def _run_locust(url: str, phase: Phase, options: Options) -> Recording:
    """What one run of Locust measured; its page and its log are kept among the reports."""
    record = options.out / f"{phase.name}.recording"
    log = options.out / f"{phase.name}.log"
    told = {
        "--host": url,
        "--users": phase.users,
        "--spawn-rate": phase.users,
        "--run-time": f"{phase.seconds}s",
        "--stop-timeout": _DRAIN_S,
        "--html": options.out / f"{phase.name}.html",
        "--mix": options.mix_name,
        "--abuse-percent": options.mix.abuse_percent,
        "--model": phase.model,
        "--rate": phase.rate_per_s,
        "--order": phase.order,
        "--record": record,
        "--exit-code-on-error": 0,  # failed requests are judged here, with everything else
    }
    command = [sys.executable, "-m", "locust", "-f", str(_LOCUSTFILE), "--headless"]
    command += ["--only-summary", *(str(word) for pair in told.items() for word in pair)]
    with log.open("wb") as output:
        ended = subprocess.run(  # noqa: S603 - our own command
            command, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if ended.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        msg = "\n".join([f"Locust ended with {ended.returncode}:", *lines[-_LOG_TAIL_LINES:]])
        raise RuntimeError(msg)
    recording = read_recording(record)
    record.unlink()
    return recording


@contextlib.contextmanager
def _service(url: str | None, console: Console) -> Iterator[str]:
    """Address of a service that is ready: the one that runs, or one of our own."""
    if url is not None:
        _wait_until_ready(url, console)
        yield url.rstrip("/")
        return
    # only here: it needs torch and the service, which a machine that only makes load lacks
    from benchmarks.start_up import free_port, serving, wait_for  # noqa: PLC0415

    port = free_port()
    with serving(port) as process:
        console.print("a service of our own starts; the first start compiles for minutes")
        wait_for("/health/ready", port, process)
        yield f"http://127.0.0.1:{port}"


def _wait_until_ready(url: str, console: Console) -> None:
    until = time.monotonic() + _READY_WITHIN_S
    found = ""
    while time.monotonic() < until:
        try:
            answer = httpx.get(f"{url.rstrip('/')}/health/ready", timeout=_POLL_TIMEOUT_S)
            now = str(answer.status_code)
        except httpx.TransportError as error:
            now = type(error).__name__
        if now == "200":
            return
        if now != found:
            console.print(f"waiting for {url}: {now}", highlight=False)
            found = now
        time.sleep(_POLL_S)
    msg = f"{url} was not ready within {_READY_WITHIN_S:g} s: {found}"
    raise RuntimeError(msg)


def _service_info(url: str) -> dict[str, str]:
    """Version, device, numerics and torch of the service, as its metrics have them."""
    answer = httpx.get(f"{url}/metrics", timeout=_POLL_TIMEOUT_S).raise_for_status()
    found = _BUILD_INFO.search(answer.text)
    return dict(_LABEL.findall(found[1])) if found else {}


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        msg = f"{text} is not a number above 0"
        raise argparse.ArgumentTypeError(msg)
    return number


def _positive_int(text: str) -> int:
    number = int(text)
    _positive(text)
    return number


def _percent(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 100:  # noqa: PLR2004 - percent
        msg = f"{text} is not a percentage"
        raise argparse.ArgumentTypeError(msg)
    return number


if __name__ == "__main__":
    sys.exit(main())
