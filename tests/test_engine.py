"""The engine's thread: what it does when a job, the canary or the thread itself fails."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from jobs import make_job
from lossd import engine as engine_module
from lossd.callers import Caller
from lossd.core import compiled
from lossd.core.evaluation import evaluate
from lossd.core.heads import Heads
from lossd.core.job import AnyJob
from lossd.core.passes import Workspace
from lossd.engine import Engine
from lossd.settings import Settings
from lossd.tracing import NotTraced, Origin
from lossd_client.errors import (
    DeadlineExceededError,
    DrainingError,
    InternalError,
    LossdError,
    NonFiniteLogitsError,
    NotReadyError,
    QueueFullError,
    TooLargeError,
)
from lossd_client.wire import Array
from service_fixture import wait_until


@dataclass
class Trace(NotTraced):
    """A trace that has an id and no listener."""

    trace_id: str


def job(value: float = 0.0, samples: int = 1) -> AnyJob:
    logits = np.full((samples, 1, 2, 2), value, np.float32)
    return make_job("dice", {"logits": logits, "target": np.ones((samples, 2, 2), np.uint8)})


@contextmanager
def running(*, ready: bool = True, **values: Any) -> Iterator[Engine]:
    engine = Engine(Settings(kernels="eager", threads=2, **values))
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
        done = engine.submit(job(), timeout_s=60).answer.result(60)
    assert done.outcome.tensors["total"].shape == (1,)
    assert (done.batch_samples, done.batch_requests) == (1, 1)
    assert done.queue_s >= 0
    assert done.compute_s > 0


def answered(engine: Engine) -> weakref.ref[AnyJob]:
    """A job that was answered and that nobody but the engine may hold."""
    one = job()
    engine.submit(one, timeout_s=60).answer.result(60)
    return weakref.ref(one)


def test_an_idle_engine_holds_nothing_of_its_last_batch() -> None:
    with running() as engine:
        known = answered(engine)
        wait_until(lambda: known() is None, engine_module.CANARY_EVERY_S / 2)


def test_nothing_of_a_batch_is_held_while_a_loss_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called, go_on = threading.Event(), threading.Event()

    def record_next(_: Heads) -> None:
        called.set()
        go_on.wait(10)

    monkeypatch.setattr(Heads, "record_next", record_next)
    with running() as engine:
        known = answered(engine)
        assert called.wait(10)
        wait_until(lambda: known() is None, 5.0)
        go_on.set()


def test_jobs_that_wait_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        first = engine.submit(job(), timeout_s=60)
        assert gate.entered.wait(10)
        others = [engine.submit(job(samples=2), timeout_s=60) for _ in range(3)]
        gate.opened.set()
        assert first.answer.result(60).batch_requests == 1
        assert [t.answer.result(60).batch_requests for t in others] == [3, 3, 3]
        assert [t.answer.result(60).batch_samples for t in others] == [6, 6, 6]


def test_a_job_that_fails_its_batch_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        engine.submit(job(), timeout_s=60)
        assert gate.entered.wait(10)
        jobs = [job(float(number)) for number in range(5)]
        tickets = [engine.submit(one, timeout_s=60) for one in jobs]

        def fail_with_the_guilty(batch: Sequence[AnyJob]) -> None:
            if any(one is jobs[3] for one in batch):
                msg = "kernel broke"
                raise RuntimeError(msg)

        gate.then = fail_with_the_guilty
        gate.opened.set()
        for number, ticket in enumerate(tickets):
            error = ticket.answer.exception(60)
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
        assert [ticket.answer.exception(60) is None for ticket in tickets] == [True, False, True]
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
        assert isinstance(ticket.answer.exception(60), InternalError)
    (line,) = [line for line in lines if line["event"] == "engine_failed"]
    assert line["request_ids"] == ["last"]


def test_neighbours_of_nan_get_the_bits_they_get_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        alone = engine.submit(job(0.3), timeout_s=60).answer.result(60)
        gate = Gate(monkeypatch)
        engine.submit(job(), timeout_s=60)
        assert gate.entered.wait(10)
        tickets = [engine.submit(job(value), timeout_s=60) for value in (0.3, np.nan, 0.3)]
        gate.opened.set()
        assert isinstance(tickets[1].answer.exception(60), NonFiniteLogitsError)
        for neighbour in (tickets[0], tickets[2]):
            done = neighbour.answer.result(60)
            assert done.batch_requests == 3
            assert done.outcome.tensors["total"] == alone.outcome.tensors["total"]


def test_a_cancelled_job_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        engine.submit(job(), timeout_s=60)
        assert gate.entered.wait(10)
        engine.submit(job(), timeout_s=60).answer.cancel()
        gate.opened.set()
        wait_until(lambda: engine.queue_depth().requests == 0)
    assert gate.batches == [1]


class DeviceLostError(BaseException):
    """What no handler of ordinary errors catches."""


def test_when_the_thread_dies_everybody_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        inside = engine.submit(job(), timeout_s=60)
        assert gate.entered.wait(10)
        waiting = engine.submit(job(), timeout_s=60)

        def die(_: Sequence[AnyJob]) -> None:
            raise DeviceLostError

        gate.then = die
        gate.opened.set()
        for ticket in (inside, waiting):
            error = ticket.answer.exception(60)
            assert isinstance(error, InternalError)
            assert "DeviceLostError" in str(error)
        wait_until(lambda: engine.state == "failed")
        assert not engine.is_ready()
        with pytest.raises(NotReadyError, match="failed"):
            engine.submit(job(), timeout_s=60)


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


def test_what_is_to_be_done_when_all_is_loaded_is_done_before_the_engine_is_ready() -> None:
    engine = Engine(Settings(kernels="eager", threads=2))
    states: list[str] = []
    engine.on_prepared = lambda: states.append(engine.state)
    engine.start()
    wait_until(engine.is_ready)
    engine.drain()
    assert engine.join()
    assert states == ["starting"]


def test_after_a_device_error_the_engine_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        told = threading.Event()
        engine.on_failure = told.set
        ticket = engine.submit(job(), timeout_s=60)
        assert gate.entered.wait(10)

        def fail(_: Sequence[AnyJob]) -> None:
            msg = "CUDA error: an illegal memory access was encountered"
            raise RuntimeError(msg)  # an ordinary error, from then on for every job

        gate.then = fail
        gate.opened.set()
        assert "illegal memory access" in str(ticket.answer.exception(60))
        assert told.wait(10)
        assert engine.state == "failed"
        assert not engine.is_ready()


def test_after_a_job_that_failed_alone_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        bad = job()
        ticket = engine.submit(bad, timeout_s=60)
        assert gate.entered.wait(10)

        def fail(jobs: Sequence[AnyJob]) -> None:
            if jobs[0] is bad:
                msg = "out of memory"
                raise RuntimeError(msg)

        gate.then = fail
        gate.opened.set()
        assert "out of memory" in str(ticket.answer.exception(60))
        assert engine.submit(job(), timeout_s=60).answer.exception(60) is None
        assert engine.is_ready()


def test_an_engine_that_does_not_leave_a_batch_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        ticket = engine.submit(job(), timeout_s=60)
        assert gate.entered.wait(10)
        assert engine.is_ready()
        now_s = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now_s + 60.5)
        assert not engine.is_ready()
        assert "one batch for 6" in engine.describe()
        monkeypatch.setattr(time, "monotonic", lambda: now_s)
        gate.opened.set()
        assert ticket.answer.exception(60) is None


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
        tickets = [engine.submit(job(), timeout_s=60)]
        assert gate.entered.wait(10)
        tickets += [engine.submit(job(), timeout_s=60) for _ in range(4)]
        engine.drain()
        assert not engine.is_ready()
        with pytest.raises(DrainingError):
            engine.submit(job(), timeout_s=60)
        gate.opened.set()
        assert engine.join()
        assert all(ticket.answer.exception(0) is None for ticket in tickets)
        assert engine.state == "stopped"
        with pytest.raises(DrainingError):
            engine.submit(job(), timeout_s=60)


def test_the_wait_for_the_last_batch_ends_when_the_time_to_drain_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        last = engine.submit(job(), timeout_s=60)
        assert gate.entered.wait(10)
        engine.announce_drain()
        now_s = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now_s + 29.9)
        assert not engine.join()  # a tenth of a second is left of the 30
        monkeypatch.setattr(time, "monotonic", lambda: now_s)
        gate.opened.set()
        assert last.answer.exception(60) is None


def test_between_the_signal_and_the_drain_work_is_still_taken() -> None:
    with running() as engine:
        engine.announce_drain()
        assert engine.describe() == "draining"
        assert engine.submit(job(), timeout_s=60).answer.exception(60) is None


def test_a_starting_engine_takes_nothing() -> None:
    engine = Engine(Settings(kernels="eager", threads=2))
    with pytest.raises(NotReadyError) as refused:
        engine.submit(job(), timeout_s=60)
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
        engine.submit(job(), timeout_s=60)
    opened.set()
    wait_until(engine.is_ready)
    engine.drain()
    assert engine.join()


# -- work that nobody waits for, or that there is no memory for -----------------------------------


class Endless:
    """Lets one job compute until its checkpoint stops it; all others are computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, guilty: AnyJob) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self._guilty = guilty
        monkeypatch.setattr("lossd.engine.evaluate", self)

    def __call__(
        self, jobs: Sequence[AnyJob], table: Any, workspace: Any, checkpoint: Any = None
    ) -> Any:
        if any(one is self._guilty for one in jobs):
            self.entered.set()
            while not self.go_on.wait(0.001):
                checkpoint()
        return evaluate(jobs, table, workspace, checkpoint or (lambda: None))


def abandoned() -> float:
    value = REGISTRY.get_sample_value("lossd_dropped_requests_total", {"reason": "abandoned"})
    assert value is not None
    return value


def test_a_job_past_its_deadline_gives_the_engine_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        before, long = abandoned(), job()
        endless = Endless(monkeypatch, long)
        late = engine.submit(long, timeout_s=60)
        assert endless.entered.wait(10)
        late.deadline_s = time.monotonic()
        next_one = engine.submit(job(), timeout_s=60)
        error = late.answer.exception(60)
        assert isinstance(error, DeadlineExceededError)
        assert "computed" in str(error)
        assert next_one.answer.exception(60) is None
        assert abandoned() - before == 1
        assert engine.is_ready()


def test_a_job_whose_caller_has_gone_gives_the_engine_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running() as engine:
        long = job()
        endless = Endless(monkeypatch, long)
        left = engine.submit(long, timeout_s=60)
        assert endless.entered.wait(10)
        left.abandon()
        assert engine.submit(job(), timeout_s=60).answer.exception(60) is None


def test_a_batch_goes_on_for_those_who_still_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as engine:
        gate = Gate(monkeypatch)
        engine.submit(job(), timeout_s=60)
        assert gate.entered.wait(10)
        long = job()
        endless = Endless(monkeypatch, long)
        left, patient = (engine.submit(one, timeout_s=60) for one in (long, job()))
        gate.opened.set()
        assert endless.entered.wait(10)
        left.abandon()
        time.sleep(0.05)  # many checkpoints
        assert not patient.answer.done()
        endless.go_on.set()
        assert patient.answer.result(60).batch_requests == 2


@pytest.mark.parametrize(
    "losses", [["dice"], ["lovasz_softmax"], ["dice", "hausdorff_dt"]], ids=str
)
def test_every_computation_has_checkpoints(losses: list[str]) -> None:
    rng = np.random.default_rng(0)
    inputs: dict[str, Array] = {
        "logits": rng.normal(size=(2, 3, 8, 8)).astype(np.float32),
        "target": rng.integers(0, 3, (2, 8, 8), dtype=np.uint8),
    }
    assert checkpoints(make_job(losses, inputs, gradient="total")) >= 2


def test_tables_have_checkpoints() -> None:
    boxes = np.array([[0, 0, 2, 2]], np.float32)
    inputs: dict[str, Array] = {"prediction": boxes, "target": boxes + 1}
    assert checkpoints(make_job("giou", inputs, gradient="total")) >= 2


def checkpoints(one: AnyJob) -> int:
    """How many there are; the job is stopped at the last one."""

    class StoppedError(Exception):
        pass

    def run(limit: int) -> int:
        count = 0

        def checkpoint() -> None:
            nonlocal count
            count += 1
            if count == limit:
                raise StoppedError

        workspace = Workspace(torch.device("cpu"), 1 << 20)
        (outcome,) = evaluate([one], compiled.eager_kernels(), workspace, checkpoint)
        assert not isinstance(outcome, LossdError)
        return count

    total = run(0)
    with pytest.raises(StoppedError):
        run(total)
    return total


OUT_OF_MEMORY = {
    "torch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "torch on the CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
    "numpy": MemoryError("Unable to allocate 7.11 PiB"),
}


@pytest.mark.parametrize("name", OUT_OF_MEMORY)
def test_a_job_without_memory_is_told_so_and_the_others_are_computed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    freed: list[bool] = []
    with running() as engine:
        gate = Gate(monkeypatch)
        engine.submit(job(), timeout_s=60)
        assert gate.entered.wait(10)
        jobs = [job(float(number)) for number in range(3)]
        tickets = [engine.submit(one, timeout_s=60) for one in jobs]
        held: list[weakref.ref[Any]] = []

        def fail_with_the_large(batch: Sequence[AnyJob]) -> None:
            freed.extend(one() is None for one in held)
            if any(one is jobs[1] for one in batch):
                tensor = torch.zeros(1000)
                held.append(weakref.ref(tensor))
                raise OUT_OF_MEMORY[name]

        gate.then = fail_with_the_large
        gate.opened.set()
        error = tickets[1].answer.exception(60)
        assert isinstance(error, TooLargeError)
        assert "memory" in str(error)
        assert [tickets[0].answer.exception(60), tickets[2].answer.exception(60)] == [None, None]
        wait_until(lambda: len(freed) >= 3)  # the halves and the known job
        assert all(freed)  # what the failed batch held was given back before the next one began
        assert engine.is_ready()


# -- keys -----------------------------------------------------------------------------------------


def key(name: str) -> Caller:
    return Caller(name=name)


@pytest.mark.parametrize("chunk_logits", [1 << 13, 1 << 20], ids=["chunks", "one chunk"])
def test_another_key_overtakes_a_long_job_and_both_get_their_own_bits(
    monkeypatch: pytest.MonkeyPatch, chunk_logits: int
) -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, (6, 64, 64), dtype=np.uint8)
    logits = rng.normal(size=(6, 3, 64, 64)).astype(np.float32)
    long, short = (
        make_job(
            ["dice", "cross_entropy"],
            {"logits": logits[part], "target": target[part]},
            gradient="total",
        )
        for part in (slice(0, 5), slice(5, 6))
    )
    table = compiled.eager_kernels()
    alone = [
        evaluate([one], table, Workspace(torch.device("cpu"), chunk_logits))[0]
        for one in (long, short)
    ]
    order: list[str] = []
    with running(chunk_logits=chunk_logits) as engine:
        submitted: list[Any] = []

        def slowly(jobs: Sequence[AnyJob], *rest: Any) -> Any:
            if jobs[0] is long:
                table, workspace, checkpoint = rest

                calls: list[None] = []

                def between() -> None:
                    calls.append(None)
                    if len(calls) == 3:  # what fits one chunk is packed now and used again
                        submitted.append(engine.submit(short, timeout_s=10, caller=key("b")))
                        time.sleep(0.1)  # long enough for what nobody has priced yet
                    checkpoint()

                outcome = evaluate(jobs, table, workspace, between)
                order.append("long")
                return outcome
            if jobs[0] is short:
                order.append("short")
            return evaluate(jobs, *rest)

        monkeypatch.setattr("lossd.engine.evaluate", slowly)
        first = engine.submit(long, timeout_s=10, caller=key("a"))
        done = [first.answer.result(60), submitted[0].answer.result(60)]
    assert order == ["short", "long"]
    for one, expected in zip(done, alone, strict=True):
        assert not isinstance(expected, LossdError)
        assert one.batch_requests == 1
        for name, tensor in expected.tensors.items():
            assert one.outcome.tensors[name].tobytes() == tensor.tobytes(), name


def test_an_engine_with_keys_keeps_room_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running(keys_file=tmp_path / "keys.json", max_queue_samples=4) as engine:
        gate = Gate(monkeypatch)
        engine.submit(job(), timeout_s=10, caller=key("a"))
        assert gate.entered.wait(10)
        for _ in range(2):
            engine.submit(job(), timeout_s=10, caller=key("a"))
        with pytest.raises(QueueFullError, match="of this key") as refused:
            engine.submit(job(), timeout_s=10, caller=key("a"))
        assert refused.value.retry_after_s is not None
        with pytest.raises(QueueFullError):
            engine.check_room(key("a"), nbytes=0)
        engine.check_room(key("b"), nbytes=0)
        engine.submit(job(), timeout_s=10, caller=key("b"))
        gate.opened.set()
