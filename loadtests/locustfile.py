"""The load itself: `locust -f loadtests/locustfile.py --host URL`, see `README.md`."""

from __future__ import annotations

import http.client
import logging
import sys
import time
import uuid
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, events, task
from locust.env import Environment

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for Locust run from anywhere

from loadtests.answers import WHOLE, Case, NobodyWaits, Reply, UnexpectedAnswerError
from loadtests.arrivals import MODELS, OPEN_MODELS, Model, offsets_s
from loadtests.recording import Recording, Timing
from loadtests.scenarios import (
    MIXES,
    ORDERS,
    Scenario,
    among,
    mix_of,
    shares,
    stream,
)
from loadtests.transport import PATH, TIMEOUT_S, send_as_told
from lossd_client.wire import REQUEST_ID_HEADER

log = logging.getLogger("loadtests")

_MAX_IN_FLIGHT = 1000
"""Of one user of an open model. Beyond, requests begin late, and their latencies say so."""


@dataclass(frozen=True)
class Load:
    """What the run that is going on sends, and what it measured so far."""

    model: Model
    rate_per_s: float
    requests: Iterator[tuple[Scenario, Case]]
    """One stream for all users, so that its shares hold however many there are."""
    record_path: Path | None
    """None where nobody wants every latency, as in a run of days."""
    recording: Recording
    cpu_at_start_s: float


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # of locust's
def add_options(parser: ArgumentParser) -> None:
    """What beside Locust's own options a run can be told; its web page shows them too."""
    parser.add_argument("--mix", choices=sorted(MIXES), default="everything", help="what is asked")
    # Text: the web page would make text of anything that is None until then.
    parser.add_argument("--abuse-percent", default="", help="share of abuse, if not the mix's own")
    parser.add_argument(
        "--model", choices=MODELS, default="closed", help="when a user sends the next request"
    )
    parser.add_argument(
        "--rate", type=float, default=10.0, help="requests a second of each user, open models only"
    )
    parser.add_argument("--order", choices=ORDERS, default="by_share", help="of the scenarios")
    parser.add_argument("--record", default="", help="file for every latency, as JSON")


@events.init.add_listener  # type: ignore[untyped-decorator]  # of locust's
def make_bodies(environment: Environment, **_: Any) -> None:
    """Makes bodies and right answers before the time of a run is counted."""
    _make_bodies(environment)
    gevent.get_hub().loop.update_now()  # or timers would count from before they were made


@events.test_start.add_listener  # type: ignore[untyped-decorator]  # of locust's
def begin(environment: Environment, **_: Any) -> None:
    """A run with nothing measured yet; the web page may have chosen another mix for it."""
    options: Any = environment.parsed_options
    _make_bodies(environment)
    Caller.load = Load(
        model=options.model,
        rate_per_s=float(options.rate),
        requests=stream(_shares(environment), options.order),
        record_path=Path(options.record) if options.record else None,
        recording=Recording(),
        cpu_at_start_s=time.process_time(),
    )


@events.test_stop.add_listener  # type: ignore[untyped-decorator]  # of locust's
def end(**_: Any) -> None:
    """Writes what was measured."""
    load = Caller.load
    if load.record_path is not None:
        load.recording.cpu_s = time.process_time() - load.cpu_at_start_s
        load.recording.write(load.record_path)


@events.quitting.add_listener  # type: ignore[untyped-decorator]  # of locust's
def fail_where_nothing_was_asked(environment: Environment, **_: Any) -> None:
    """A run without a request proves nothing; failed requests Locust counts itself."""
    if not environment.stats.total.num_requests:
        environment.process_exit_code = 1


def _make_bodies(environment: Environment) -> None:
    for scenario in among(_shares(environment)):
        log.debug("%s: %d bodies", scenario.name, len(scenario.cases))


def _shares(environment: Environment) -> dict[str, float]:
    options: Any = environment.parsed_options
    percent = float(options.abuse_percent) if options.abuse_percent else None
    return shares(mix_of(options.mix, percent))


class Caller(FastHttpUser):
    """One caller of a closed loop, or one source of an open model's requests."""

    network_timeout = connection_timeout = TIMEOUT_S
    concurrency = _MAX_IN_FLIGHT
    load: ClassVar[Load]

    def on_start(self) -> None:
        """Begins its schedule, if it has one."""
        self._in_flight = Pool(_MAX_IN_FLIGHT)
        self._due_s = time.perf_counter()
        self._schedule: Iterator[float] | None = None
        if self.load.model in OPEN_MODELS:
            began_s = self._due_s
            schedule = offsets_s(self.load.model, self.load.rate_per_s, uuid.uuid4().int)
            self._schedule = (began_s + offset_s for offset_s in schedule)
            self._due_s = next(self._schedule)

    def on_stop(self) -> None:
        """Waits for what is under way: the slowest answers must not be left out."""
        self._in_flight.join()

    def wait_time(self) -> float:
        """Until the next request is due."""
        if self._schedule is None:
            return 0.0
        return max(0.0, self._due_s - time.perf_counter())

    @task
    def call(self) -> None:
        """Sends the next request, and in an open model does not wait for its answer."""
        scenario, case = next(self.load.requests)
        if self._schedule is None:
            self._send(scenario, case, time.perf_counter())
        else:
            self._in_flight.spawn(self._send, scenario, case, self._due_s)
            self._due_s = next(self._schedule)

    def _send(self, scenario: Scenario, case: Case, due_s: float) -> None:
        request_id = uuid.uuid4().hex
        begun_s, started = time.perf_counter(), time.time()
        failure: UnexpectedAnswerError | None = None
        reply: Reply | None = None
        try:
            reply = self._exchange(scenario, case, request_id)
        except UnexpectedAnswerError as error:
            failure = error
        timing = Timing(due_s, begun_s, time.perf_counter())
        failure = failure or _wrong(case, reply, request_id)
        self.environment.events.request.fire(
            request_type="POST",
            name=scenario.name,
            response_time=timing.latency_ms,
            response_length=0 if reply is None else len(reply.body),
            exception=failure,
            context={},
            start_time=started,
            url=f"{self.host}{PATH}",
        )
        if self.load.record_path is not None:
            self.load.recording.add(scenario.name, timing, failure)

    def _exchange(self, scenario: Scenario, case: Case, request_id: str) -> Reply | None:
        headers = {
            "Content-Type": scenario.content_type,
            "Accept-Encoding": "identity",
            REQUEST_ID_HEADER: request_id,
        }
        if case.delivery != WHOLE or isinstance(case.answer, NobodyWaits):
            try:
                return send_as_told(str(self.host), case, headers)
            except (OSError, http.client.HTTPException) as error:
                raise UnexpectedAnswerError("no answer", repr(error)) from error
        # Never entered as a context, so Locust reports nothing: `_send` does, for both ways alike.
        response = self.client.post(
            PATH,
            data=cast("Any", case.body),  # bytes are sent as they are, whatever the stubs say
            headers=headers,
            catch_response=True,
        )
        if not response.status_code:
            raise UnexpectedAnswerError("no answer", repr(getattr(response, "error", None)))
        headers = {name.lower(): value for name, value in (response.headers or {}).items()}
        return Reply(response.status_code, headers, response.content or b"")


def _wrong(case: Case, reply: Reply | None, request_id: str) -> UnexpectedAnswerError | None:
    try:
        case.answer.check(reply, request_id)
    except UnexpectedAnswerError as error:
        return error
    except Exception as error:  # noqa: BLE001 - uncounted, it would look like a request never sent
        return UnexpectedAnswerError("the check itself failed", repr(error))
    return None
