"""The engine's thread: what it does when a job, the canary or the thread itself fails."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from jobs import make_job
from lossd import engine as engine_module
from lossd.core import compiled
from lossd.core.evaluation import evaluate
from lossd.core.job import AnyJob
from lossd.engine import Engine
from lossd.settings import Settings
from lossd.tracing import NotTraced, Origin
from lossd_client.errors import (
    DrainingError,
    InternalError,
    LossdError,
    NonFiniteLogitsError,
    NotReadyError,
)
from service_fixture import wait_until


@dataclass
class Trace(NotTraced):
    """A trace that has an id and no listener."""

    trace_id: str


def job(value: float = 0.0, samples: int = 1) -> AnyJob:
    logits = np.full((samples, 1, 2, 2), value, np.float32)
    return make_job("dice", {"logits": logits, "target": np.ones((samples, 2, 2), np.uint8)})


@contextmanager
def running(*, ready: bool = True) -> Iterator[Engine]:
    engine = Engine(Settings(kernels="eager", threads=2))
    engine.start()
    try:
        if ready:
            wait_until(engine.is_ready)
        yield engine
    finally:
        engine.drain()
        assert engine.join()


class Gate:
    """Holds the engine inside its first batch, so that the next ones gather behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.batches: list[int] = []
        self.then: Callable[[Sequence[AnyJob]], None] = lambda _: None
        monkeypatch.setattr("lossd.engine.evaluate", self)

    def __call__(self, jobs: Sequence[AnyJob], *rest: Any) -> Any:
        self.batches.append(len(jobs))
        self.entered.set()
        assert self.opened.wait(10)
        self.then(jobs)
        return evaluate(jobs, *rest)


def test_a_job_is_answered_with_how_it_was_computed() -> None:
    with running() as engine:
        done = engine.submit(job(), timeout_s=10).answer.result(10)
    assert done.outcome.tensors["total"].shape == (1,)
    assert (done.batch_samples, done.batch_requests) == (1, 1)
    assert done.queue_s >= 0
    assert done.compute_s > 0


def test_jobs_that_wait_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        first = engine.submit(job(), timeout_s=10)
        assert gate.entered.wait(10)
        others = [engine.submit(job(samples=2), timeout_s=10) for _ in range(3)]
        gate.opened.set()
        assert first.answer.result(10).batch_requests == 1
        assert [t.answer.result(10).batch_requests for t in others] == [3, 3, 3]
        assert [t.answer.result(10).batch_samples for t in others] == [6, 6, 6]


def test_a_job_that_fails_its_batch_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        engine.submit(job(), timeout_s=10)
        assert gate.entered.wait(10)
        jobs = [job(float(number)) for number in range(5)]
        tickets = [engine.submit(one, timeout_s=10) for one in jobs]

        def fail_with_the_guilty(batch: Sequence[AnyJob]) -> None:
            if any(one is jobs[3] for one in batch):
                msg = "kernel broke"
                raise RuntimeError(msg)

        gate.then = fail_with_the_guilty
        gate.opened.set()
        for number, ticket in enumerate(tickets):
            error = ticket.answer.exception(10)
            if number == 3:
                assert isinstance(error, InternalError)
                assert "kernel broke" in str(error)
            else:
                assert error is None
        assert gate.batches[:8] == [1, 5, 2, 3, 1, 2, 1, 1]  # and then the known job
        assert engine.is_ready()


def test_lines_about_jobs_name_their_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine, capture_logs() as lines:
        gate = Gate(monkeypatch)
        engine.submit(job(), timeout_s=10, origin=Origin("first"))
        assert gate.entered.wait(10)
        names = ["good", "bad", "fine"]
        jobs = [job() for _ in names]
        tickets = [
            engine.submit(one, timeout_s=10, origin=Origin(name, Trace("f" * 32)))
            for name, one in zip(names, jobs, strict=True)
        ]

        def fail_with_the_guilty(batch: Sequence[AnyJob]) -> None:
            if any(one is jobs[1] for one in batch):
                msg = "kernel broke"
                raise RuntimeError(msg)

        gate.then = fail_with_the_guilty
        gate.opened.set()
        assert [ticket.answer.exception(10) is None for ticket in tickets] == [True, False, True]
        wait_until(lambda: sum(line["event"] == "batch" for line in lines) == 2)
    by_event = {line["event"]: line for line in lines}
    (failed,) = [line for line in lines if line["event"] == "job_failed"]
    assert (failed["request_id"], failed["trace_id"]) == ("bad", "f" * 32)
    assert isinstance(failed["exc_info"], RuntimeError)
    halves = [line["request_ids"] for line in lines if line["event"] == "batch_failed"]
    assert halves == [names, ["bad", "fine"]]
    assert by_event["batch"]["request_ids"] == names
    assert by_event["batch"]["log_level"] == "debug"
    facts = {name: by_event["batch"][name] for name in ("reason", "requests", "samples", "tiles")}
    assert facts == {"reason": "idle", "requests": 3, "samples": 3, "tiles": 3}
    assert by_event["batch"]["ms"] > 0


def test_the_line_of_an_engine_that_dies_names_what_it_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*_: Any) -> Any:
        raise DeviceLostError

    with running() as engine, capture_logs() as lines:
        monkeypatch.setattr("lossd.engine.evaluate", die)
        ticket = engine.submit(job(), timeout_s=10, origin=Origin("last"))
        assert isinstance(ticket.answer.exception(10), InternalError)
    (line,) = [line for line in lines if line["event"] == "engine_failed"]
    assert line["request_ids"] == ["last"]


def test_neighbours_of_nan_get_the_bits_they_get_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        alone = engine.submit(job(0.3), timeout_s=10).answer.result(10)
        gate = Gate(monkeypatch)
        engine.submit(job(), timeout_s=10)
        assert gate.entered.wait(10)
        tickets = [engine.submit(job(value), timeout_s=10) for value in (0.3, np.nan, 0.3)]
        gate.opened.set()
        assert isinstance(tickets[1].answer.exception(10), NonFiniteLogitsError)
        for neighbour in (tickets[0], tickets[2]):
            done = neighbour.answer.result(10)
            assert done.batch_requests == 3
            assert done.outcome.tensors["total"] == alone.outcome.tensors["total"]


def test_a_cancelled_job_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        engine.submit(job(), timeout_s=10)
        assert gate.entered.wait(10)
        engine.submit(job(), timeout_s=10).answer.cancel()
        gate.opened.set()
        wait_until(lambda: engine.queue_depth().requests == 0)
    assert gate.batches == [1]


class DeviceLostError(BaseException):
    """What no handler of ordinary errors catches."""


def test_when_the_thread_dies_everybody_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        inside = engine.submit(job(), timeout_s=10)
        assert gate.entered.wait(10)
        waiting = engine.submit(job(), timeout_s=10)

        def die(_: Sequence[AnyJob]) -> None:
            raise DeviceLostError

        gate.then = die
        gate.opened.set()
        for ticket in (inside, waiting):
            error = ticket.answer.exception(10)
            assert isinstance(error, InternalError)
            assert "DeviceLostError" in str(error)
        wait_until(lambda: engine.state == "failed")
        assert not engine.is_ready()
        with pytest.raises(NotReadyError, match="failed"):
            engine.submit(job(), timeout_s=10)


def test_a_wrong_canary_fails_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(jobs: Sequence[AnyJob], *rest: Any) -> Any:
        (outcome,) = evaluate(jobs, *rest)
        assert not isinstance(outcome, LossdError)
        outcome.tensors["loss/cross_entropy"] += 1e-3
        return [outcome]

    monkeypatch.setattr("lossd.engine.evaluate", wrong)
    with running(ready=False) as engine:
        wait_until(lambda: engine.state == "failed")
        assert not engine.is_ready()


def test_after_a_device_error_the_engine_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        told = threading.Event()
        engine.on_failure = told.set
        ticket = engine.submit(job(), timeout_s=10)
        assert gate.entered.wait(10)

        def fail(_: Sequence[AnyJob]) -> None:
            msg = "CUDA error: an illegal memory access was encountered"
            raise RuntimeError(msg)  # an ordinary error, from then on for every job

        gate.then = fail
        gate.opened.set()
        assert "illegal memory access" in str(ticket.answer.exception(10))
        assert told.wait(10)
        assert engine.state == "failed"
        assert not engine.is_ready()


def test_after_a_job_that_failed_alone_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        bad = job()
        ticket = engine.submit(bad, timeout_s=10)
        assert gate.entered.wait(10)

        def fail(jobs: Sequence[AnyJob]) -> None:
            if jobs[0] is bad:
                msg = "out of memory"
                raise RuntimeError(msg)

        gate.then = fail
        gate.opened.set()
        assert "out of memory" in str(ticket.answer.exception(10))
        assert engine.submit(job(), timeout_s=10).answer.exception(10) is None
        assert engine.is_ready()


def test_an_engine_that_does_not_leave_a_batch_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        ticket = engine.submit(job(), timeout_s=10)
        assert gate.entered.wait(10)
        assert engine.is_ready()
        now_s = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now_s + 60.5)
        assert not engine.is_ready()
        assert "one batch for 6" in engine.describe()
        monkeypatch.setattr(time, "monotonic", lambda: now_s)
        gate.opened.set()
        assert ticket.answer.exception(10) is None


def test_an_idle_engine_runs_the_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CANARY_EVERY_S", 0.02)
    with running() as engine:
        gate = Gate(monkeypatch)
        gate.opened.set()
        wait_until(lambda: len(gate.batches) >= 3)
        assert engine.is_ready()


def test_an_engine_that_has_not_run_lately_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        monkeypatch.setattr(engine_module, "STALE_AFTER_S", 0.0)
        time.sleep(0.01)
        assert not engine.is_ready()
        assert engine.describe() == "the engine has not run lately"


def test_draining_finishes_what_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        tickets = [engine.submit(job(), timeout_s=10)]
        assert gate.entered.wait(10)
        tickets += [engine.submit(job(), timeout_s=10) for _ in range(4)]
        engine.drain()
        assert not engine.is_ready()
        with pytest.raises(DrainingError):
            engine.submit(job(), timeout_s=10)
        gate.opened.set()
        assert engine.join()
        assert all(ticket.answer.exception(0) is None for ticket in tickets)
        assert engine.state == "stopped"
        with pytest.raises(DrainingError):
            engine.submit(job(), timeout_s=10)


def test_the_wait_for_the_last_batch_ends_when_the_time_to_drain_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        last = engine.submit(job(), timeout_s=10)
        assert gate.entered.wait(10)
        engine.announce_drain()
        now_s = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now_s + 29.9)
        assert not engine.join()  # a tenth of a second is left of the 30
        monkeypatch.setattr(time, "monotonic", lambda: now_s)
        gate.opened.set()
        assert last.answer.exception(10) is None


def test_between_the_signal_and_the_drain_work_is_still_taken() -> None:
    with running() as engine:
        engine.announce_drain()
        assert engine.describe() == "draining"
        assert engine.submit(job(), timeout_s=10).answer.exception(10) is None


def test_a_starting_engine_takes_nothing() -> None:
    engine = Engine(Settings(kernels="eager", threads=2))
    with pytest.raises(NotReadyError) as refused:
        engine.submit(job(), timeout_s=10)
    assert refused.value.retry_after_s == 5.0


def test_progress_is_told_while_kernels_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, reported = threading.Event(), threading.Event()

    def slow(*_: Any, on_progress: Callable[[int, int], None]) -> Any:
        on_progress(1, 2)
        reported.set()
        assert opened.wait(10)
        return compiled.eager_kernels()

    monkeypatch.setattr(compiled, "compile_kernels", slow)
    engine = Engine(Settings(kernels="compiled", threads=2))
    engine.start()
    assert reported.wait(10)
    assert engine.describe() == "compiling kernels, 1 of 2 ready"
    with pytest.raises(NotReadyError, match="1 of 2"):
        engine.submit(job(), timeout_s=10)
    opened.set()
    wait_until(engine.is_ready)
    engine.drain()
    assert engine.join()
