"""Who asks: good callers whose every answer is checked, and those who do everything wrong."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from faults.known import TIMEOUT_S, Known, Line, learn, mark
from faults.service import Service
from faults.table import LIMITED, Fault, Site
from faults.tally import Tally
from loadtests.answers import Reply, UnexpectedAnswerError
from loadtests.bodies import Question, Sample, samples
from lossd.keys import add_key
from lossd_client import Client, Result, TensorRef
from lossd_client.errors import LossdError

CALLERS: Final = ("lab-a", "lab-b", "lab-c")
BY_CLIENT: Final = f"{CALLERS[0]}, client"
_LINES_PER_CALLER: Final = 2
_BODY_LIMIT_MIB: Final = 8
LARGEST_BYTES: Final = _BODY_LIMIT_MIB << 20
_OF_THE_CLIENT: Final = Question(4, ((96, 112),), ("dice", "focal"), "total")
_VARIANTS: Final = 3


@dataclass
class Traffic:
    """A service, those who ask it, and what they were answered in peace."""

    service: Service
    site: Site
    keys: dict[str, str]
    good: dict[str, list[Known]]
    """By name."""
    by_client: list[tuple[str, ...]]
    """Bits that the client got in peace, by variant."""
    seed: int
    tally: Tally = field(default_factory=Tally)
    excused: frozenset[int] = frozenset()
    """Statuses beside 200 that a good caller may get now; it asks again."""
    rounds: int = 0
    """How often the good callers were sent out; part of their requests' ids."""


@contextmanager
def traffic(
    folder: Path, *, kernels: str, seed: int, fuzz_bodies: int, largest_bytes: int
) -> Iterator[Traffic]:
    """A service with keys that has answered everything once, in peace."""
    folder.mkdir(parents=True, exist_ok=True)
    keys_file = folder.resolve() / "keys.json"
    keys_file.unlink(missing_ok=True)
    keys = {name: add_key(keys_file, name) for name in (*CALLERS, "stranger")}
    keys |= {name: add_key(keys_file, name, allowance) for name, allowance in LIMITED.items()}
    flags = {
        "--keys-file": keys_file,
        "--kernels": kernels,
        "--max-body-mib": _BODY_LIMIT_MIB,
        "--body-timeout-s": 2,
        "--head-timeout-s": 2,
    }
    service = Service(folder, [str(word) for pair in flags.items() for word in pair])
    try:
        service.start()
        line = Line(service.port, keys[CALLERS[0]])
        known = learn(line, fuzz_bodies=fuzz_bodies, largest_bytes=largest_bytes, seed=seed)
        line.close()
        yield _traffic(service, keys, keys_file, known, seed)
    finally:
        service.stop()


def _traffic(
    service: Service, keys: dict[str, str], keys_file: Path, known: Sequence[Known], seed: int
) -> Traffic:
    good: dict[str, list[Known]] = {}
    for one in known:
        if one.good:
            good.setdefault(one.asked.name, []).append(one)
    with Client(service.url, api_key=keys[CALLERS[0]]) as client:
        by_client = [_bits(_evaluate(client, variant)) for variant in range(_VARIANTS)]
    site = Site(
        port=service.port,
        keys_file=keys_file,
        keys=keys,
        body_limit_bytes=_BODY_LIMIT_MIB << 20,
        known_refusals=tuple(one for one in known if not one.good),
    )
    return Traffic(service, site, keys, good, by_client, seed)


# -- threads --------------------------------------------------------------------------------------

Work = Callable[[threading.Event], None]


@contextmanager
def working(traffic: Traffic, works: Sequence[Work]) -> Iterator[None]:
    """Does all of that meanwhile, each in a thread."""
    over = threading.Event()
    threads = [
        threading.Thread(target=_watched, args=(traffic, work, over), daemon=True) for work in works
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        until_s = time.monotonic() + 2 * TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))
            if thread.is_alive():
                traffic.tally.violation("a caller hangs", thread.name)


def _watched(traffic: Traffic, work: Work, over: threading.Event) -> None:
    try:
        work(over)
    except Exception as error:  # noqa: BLE001 - whatever it is, a run without this caller proves less
        traffic.tally.violation("a caller broke", repr(error))


# -- good callers ---------------------------------------------------------------------------------


def good_callers(traffic: Traffic, *, fuzz_weight: int = 6) -> list[Work]:
    """All of them: several lines for each key, and a program with the client.

    Args:
        traffic: whom they ask.
        fuzz_weight: how often one of the small requests of the fuzz is sent, relative to any other.
    """
    traffic.rounds += 1
    lines = [
        _on_a_line(traffic, caller, f"{traffic.rounds}-{caller}-{number}", fuzz_weight)
        for caller in CALLERS
        for number in range(_LINES_PER_CALLER)
    ]
    return [*lines, _with_the_client(traffic)]


def _on_a_line(traffic: Traffic, caller: str, name: str, fuzz_weight: int) -> Work:
    def work(over: threading.Event) -> None:
        random = Random(f"{traffic.seed} {name}")  # noqa: S311 - no secret
        line = Line(traffic.service.port, traffic.keys[caller])
        weights = [fuzz_weight if one == "fuzz" else 1 for one in traffic.good]
        count = 0
        while not over.is_set():
            (kind,) = random.choices(list(traffic.good), weights)
            known = random.choice(traffic.good[kind])
            while not _answered(traffic, line, known, caller, f"{name}-{count}"):
                count += 1
            count += 1
        line.close()

    return work


def _answered(traffic: Traffic, line: Line, known: Known, caller: str, request_id: str) -> bool:
    """One attempt; whether there need be no other."""
    tally = traffic.tally
    began_s = time.perf_counter()
    try:
        reply = line.ask(known.asked, request_id)
    except TimeoutError:
        tally.violation("no answer in time", f"{known.asked.name}, {request_id}")
        return True
    except (OSError, http.client.HTTPException) as error:
        tally.retried(type(error).__name__, request_id)
        time.sleep(0.1)
        return False
    if reply.status in traffic.excused | {429, 503}:
        tally.retried(f"{reply.status}")
        time.sleep(float(reply.headers.get("retry-after", "0.1")))
        return False
    tally.answered(caller, time.perf_counter() - began_s)
    _check(traffic, reply, known, request_id)
    return True


def _check(traffic: Traffic, reply: Reply, known: Known, request_id: str) -> None:
    found = mark(reply)
    if found != known.mark:
        traffic.tally.violation("other bits", f"{known.asked.name}: {found}, not {known.mark}")
    try:
        if known.asked.truth is not None:
            known.asked.truth.check(reply, request_id)
    except UnexpectedAnswerError as error:
        traffic.tally.violation("wrong answer", f"{known.asked.name}: {error.kind}, {error.detail}")


def _with_the_client(traffic: Traffic) -> Work:
    """What a program does that uses the client and knows nothing of outages."""

    def work(over: threading.Event) -> None:
        key = traffic.keys[CALLERS[0]]
        # As many tries as fit the time: an outage lasts as long as a start.
        with Client(traffic.service.url, api_key=key, retries=1000, timeout_s=900) as client:
            kept = [client.put(_sample(variant).logits) for variant in range(_VARIANTS)]
            count = 0
            while not over.is_set():
                variant = count % _VARIANTS
                began_s = time.perf_counter()
                try:
                    # By ref and as it is, in turn: a new process knows no ref, and is sent it.
                    result = _evaluate(client, variant, kept[variant] if count % 2 else None)
                except LossdError as error:
                    if error.status not in traffic.excused:
                        traffic.tally.violation("the client failed", repr(error))
                    continue
                if _bits(result) != traffic.by_client[variant]:
                    traffic.tally.violation("other bits", f"the client's variant {variant}")
                traffic.tally.answered(BY_CLIENT, time.perf_counter() - began_s)
                count += 1

    return work


def _sample(variant: int) -> Sample:
    (sample,) = samples(_OF_THE_CLIENT, variant)
    return sample


def _evaluate(client: Client, variant: int, kept: TensorRef | None = None) -> Result:
    sample = _sample(variant)
    return client.evaluate(
        list(_OF_THE_CLIENT.losses),
        logits=sample.logits if kept is None else kept,
        target=sample.target,
        gradient="total",
    )


def _bits(result: Result) -> tuple[str, ...]:
    arrays = [*(result[name] for name in _OF_THE_CLIENT.losses), result.gradient["logits"]]
    return tuple(array.tobytes().hex() for array in arrays)


# -- faults ---------------------------------------------------------------------------------------


def fault_makers(
    traffic: Traffic, faults: Sequence[Fault], count: int, *, pause_s: float = 0.0
) -> list[Work]:
    """So many, who together do each of the faults, and go on at random with pauses in between."""
    return [_faulty(traffic, faults, faults[first::count], pause_s) for first in range(count)]


def _faulty(
    traffic: Traffic, faults: Sequence[Fault], first: Sequence[Fault], pause_s: float
) -> Work:
    def work(over: threading.Event) -> None:
        random = Random(f"{traffic.seed} {first[0].name}")  # noqa: S311 - no secret
        shares = [fault.share for fault in faults]
        for fault in first:
            _commit(traffic, fault, random)
        while not over.wait(pause_s):
            (fault,) = random.choices(faults, shares)
            _commit(traffic, fault, random)

    return work


def _commit(traffic: Traffic, fault: Fault, random: Random) -> None:
    try:
        with traffic.tally.fault(fault.name):
            answered = fault.send(traffic.site, random)
    except (OSError, http.client.HTTPException) as error:
        answered = type(error).__name__
    traffic.tally.fault_answered(fault.name, answered)
    if answered not in fault.answers:
        traffic.tally.violation("a fault was answered otherwise", f"{fault.name}: {answered}")
