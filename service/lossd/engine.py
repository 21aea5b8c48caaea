"""The one thread that owns the device: it compiles the kernels, then turns batches into answers.

    starting -> compiling -> ready -> draining -> stopped
                     └───────┴───────────┴──────-> failed

`failed` is final: the thread has stopped, everything that waited was answered with an error,
readiness says so, and `on_failure` is called, which ends the process. An idle engine runs a
known-answer job now and then, so that ready means that a batch went through the real path lately
and came out right. After a job that failed it does so at once, since a device that has lost its
state fails every job from then on, each of them alone.
"""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import structlog
import torch

from lossd import metrics
from lossd.batching import Batch, Batcher, Depth, Limits, Reason, Wake
from lossd.callers import ANONYMOUS, Allowance, Caller
from lossd.core.canary import canary_job, check_canary
from lossd.core.compiled import KernelTable
from lossd.core.evaluation import evaluate
from lossd.core.job import AnyJob, Outcome
from lossd.core.passes import Workspace
from lossd.device_memory import is_out_of_memory
from lossd.kernels import (
    choose_device,
    choose_mode,
    device_name,
    load_find,
    load_kernels,
    numerics_version,
)
from lossd.qa.findings import Find, PlainFind
from lossd.settings import Settings
from lossd.tracing import NO_ORIGIN, NOT_TRACED, BatchTrace, Origin, Tracing
from lossd.waiting import DROPPED, Ticket
from lossd_client.errors import (
    DeadlineExceededError,
    InternalError,
    LossdError,
    NotReadyError,
    TooLargeError,
)

State = Literal["starting", "compiling", "ready", "draining", "stopped", "failed"]

CANARY_EVERY_S = 10.0
STALE_AFTER_S = 30.0

_BATCHES = {reason: metrics.BATCHES.labels(reason) for reason in get_args(Reason)}

log = structlog.get_logger(__name__)


class Completed(NamedTuple):
    """Outcome of a job and how it was computed; times on the clock of `time.monotonic`."""

    outcome: Outcome
    accepted_s: float
    started_s: float
    ended_s: float
    batch_samples: int
    batch_requests: int

    @property
    def queue_s(self) -> float:
        """How long it waited."""
        return self.started_s - self.accepted_s

    @property
    def compute_s(self) -> float:
        """How long its batch was computed."""
        return self.ended_s - self.started_s


EngineTicket = Ticket[AnyJob, Completed]


class AbandonedError(Exception):
    """Nobody waits any more for what is being computed."""


@dataclass
class _Run:
    """How a batch is computed; it runs again, in halves, if it fails."""

    trace: BatchTrace
    workspace: Workspace
    checkpoint: Callable[[Sequence[EngineTicket]], None] = lambda _: None
    """Called with the tickets that are computed, whenever that can be interrupted."""
    started_s: float = 0.0
    away_s: float = 0.0
    """Spent on batches that overtook it, since then."""
    computed_s: float = 0.0
    """Of all its computations, before their answers were given."""

    @property
    def computed_ms(self) -> float:
        """The same for people to read."""
        return round(self.computed_s * 1e3, 2)

    def begin(self) -> None:
        """It begins now."""
        self.started_s, self.away_s = time.monotonic(), 0.0

    def spent_s(self) -> float:
        """Seconds that it has been computed."""
        return time.monotonic() - self.started_s - self.away_s


class Engine:
    """Accepts jobs from any thread and computes them on its own."""

    def __init__(self, settings: Settings, tracing: Tracing = NOT_TRACED) -> None:
        self._settings = settings
        self.tracing = tracing
        """What is told of batches; requests belong to the same."""
        self.device = choose_device(settings.device)
        self.mode = choose_mode(settings, self.device)
        self._batcher: Batcher[AnyJob, Completed] = Batcher(
            Limits(
                batch_samples=settings.max_batch_samples,
                batch_bytes=settings.max_batch_mib << 20,
                queue_samples=settings.max_queue_samples,
                queue_bytes=settings.max_queue_mib << 20,
                max_delay_s=settings.max_delay_ms / 1e3,
                fair_batch_s=settings.fair_batch_ms / 1e3,
                gather_s=settings.gather_ms / 1e3,
                newcomer_weight=0.0 if settings.keys_file is None else Allowance().weight,
            )
        )
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.state: State = "starting"
        self.progress = (0, 1)
        """Kernels ready, kernels in all; none where they run eagerly."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called by the engine's thread as the last thing it does when it fails."""
        self.on_prepared: Callable[[], None] = lambda: None
        """Called by the engine's thread once, when all is loaded that a running engine needs."""
        self._last_run_s = 0.0
        self._drain_until_s: float | None = None
        self._computing: Sequence[EngineTicket] = ()
        self._busy_since_s: float | None = None
        self._failures = 0
        """Jobs that failed alone."""
        self._table: KernelTable = {}
        self.device_name = device_name(self.device, self.mode)
        """Device and how its kernels run, as the answers say it."""
        self.numerics_version = numerics_version(self.mode, self._table)
        """Equal for processes whose answers have equal bits on equal devices; known when ready."""
        self.find: Find = PlainFind()
        """What looks at images for annotation QA, in any thread."""
        self._workspace = Workspace(self.device, settings.chunk_logits)
        self._second_workspace = Workspace(
            self.device, settings.chunk_logits, self._workspace.heads
        )
        """Of batches that overtake another; empty until there is one."""

    def start(self) -> None:
        """Starts the thread; jobs are refused until it is ready."""
        self._thread.start()

    def submit(
        self,
        job: AnyJob,
        *,
        timeout_s: float,
        origin: Origin = NO_ORIGIN,
        caller: Caller = ANONYMOUS,
        wake: Wake = "now",
    ) -> EngineTicket:
        """Accepts a job; with `wake` "later" the caller calls `wake` in a moment.

        Raises:
            NotReadyError: the engine is starting or has failed.
            DrainingError: it is shutting down.
            QueueFullError: it has as much work as it accepts, all in all or of this caller.
        """
        if self.state in ("starting", "compiling", "failed"):
            raise NotReadyError(self.describe(), retry_after_s=5.0)
        return self._batcher.submit(
            job,
            group=job.group,
            workload=job.workload,
            samples=job.samples,
            nbytes=job.nbytes,
            timeout_s=timeout_s,
            caller=caller,
            origin=origin,
            wake=wake,
        )

    def wake(self) -> None:
        """Lets the thread see what was accepted with `wake` "later"."""
        self._batcher.wake()

    def check_room(self, caller: Caller, *, nbytes: int) -> None:
        """Refuses a request of which only the length is known, if it could not be accepted now.

        Raises:
            QueueFullError: it could not.
        """
        self._batcher.check_room(caller, nbytes=nbytes)

    def is_ready(self) -> bool:
        """Whether a job would be computed now."""
        if self.state != "ready" or not self._thread.is_alive():
            return False
        return self._stalled_s() is None and (
            self._busy_since_s is not None or time.monotonic() - self._last_run_s < STALE_AFTER_S
        )

    def describe(self) -> str:
        """State in words."""
        if self.state == "compiling":
            done, total = self.progress
            return f"compiling kernels, {done} of {total} ready"
        stalled_s = self._stalled_s()
        if self.state == "ready" and stalled_s is not None:
            return f"the engine has computed one batch for {stalled_s:.0f} seconds"
        if self.state == "ready" and not self.is_ready():
            return "the engine has not run lately"
        return self.state

    def _stalled_s(self) -> float | None:
        """How long it has been in one batch, if that is longer than anybody may wait for it."""
        since_s = self._busy_since_s  # read once: the engine's thread sets it back
        if since_s is None:
            return None
        busy_s = time.monotonic() - since_s
        return busy_s if busy_s > self._settings.timeout_ms / 1e3 else None

    def queue_depth(self) -> Depth:
        """What waits."""
        return self._batcher.depth()

    def announce_drain(self) -> None:
        """Is no longer ready, but still takes the requests that are on their way in."""
        if self._drain_until_s is None:
            self._drain_until_s = time.monotonic() + self._settings.drain_s
        if self.state in ("ready", "starting", "compiling"):
            self.state = "draining"

    def drain(self) -> None:
        """Accepts nothing more and lets the thread finish what it accepted."""
        self.announce_drain()
        self._batcher.close()

    def join(self) -> bool:
        """Waits for the thread until `drain_s` after the drain was announced; whether it has ended.

        What the requests' connections took of that time is not there a second time.
        """
        until_s = self._drain_until_s or time.monotonic()
        self._thread.join(max(0.0, until_s - time.monotonic()))
        return not self._thread.is_alive()

    # -- the engine's own thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._prepare()
            while not self._batcher.drained:
                self._take_turn()
                # Nothing of the last batch is held here: its callers may send their next bodies.
                self._workspace.heads.record_next()
            self.state = "stopped"
        except BaseException as error:
            # The thread ends here; whoever waits must hear of it, and readiness must say so.
            self.state = "failed"
            unanswered = [one for one in self._computing if not one.answer.done()]
            log.exception("engine_failed", **_origins(unanswered))
            self._batcher.close()
            stopped = InternalError(f"the engine stopped: {error!r}")
            failed = self._batcher.fail_waiting(stopped)
            for ticket in unanswered:
                ticket.answer.set_exception(stopped)
            metrics.JOB_FAILURES.inc(failed + len(unanswered))
            self.on_failure()

    def _take_turn(self) -> None:
        """The next batch, or the canary if there is none for long.

        The batch is known in this call alone: bodies and answers of requests that are over must not
        stay in memory until the next batch comes.
        """
        batch = self._batcher.next_batch(wait_s=CANARY_EVERY_S)
        if batch is not None and batch.tickets:
            self._compute(batch)
        elif batch is None and not self._batcher.drained:
            self._run_canary()

    def _prepare(self) -> None:
        torch.set_num_threads(self._settings.threads)
        started = time.perf_counter()
        if self.mode == "eager":
            self.progress = 0, 0
        elif self.state == "starting":
            self.state = "compiling"
        self._table = load_kernels(
            self._settings, self.device, self.mode, on_progress=self._on_progress
        )
        self.numerics_version = numerics_version(self.mode, self._table)
        self.find = load_find(self._settings, self.device, self.mode)
        self._run_canary()
        self.on_prepared()
        if self.state != "draining":
            self.state = "ready"
        seconds = time.perf_counter() - started
        metrics.START_UP_SECONDS.set(seconds)
        log.info(
            "engine_ready",
            device=self.device_name,
            threads=torch.get_num_threads(),
            seconds=round(seconds, 2),
        )

    def _on_progress(self, done: int, total: int) -> None:
        self.progress = done, total

    def _run_canary(self) -> None:
        self._busy_since_s = time.monotonic()
        (outcome,) = evaluate([canary_job()], self._table, self._workspace)
        check_canary(outcome)
        self._busy_since_s = None
        self._last_run_s = time.monotonic()

    def _compute(self, batch: Batch[AnyJob, Completed]) -> None:
        self._busy_since_s = time.monotonic()
        self._computing = tickets = batch.tickets
        facts = _count(batch)
        failures = self._failures
        with self.tracing.batch([ticket.origin.trace for ticket in tickets], facts) as trace:
            run = _Run(trace, self._workspace)
            run.checkpoint = partial(self._let_overtake, run)
            self._compute_tickets(tickets, run)
        self._computing = ()
        self._busy_since_s = None
        self._last_run_s = time.monotonic()
        log.debug("batch", ms=run.computed_ms, **facts, **_origins(tickets))
        if self._failures > failures:
            self._run_canary()

    def _let_overtake(self, run: _Run, tickets: Sequence[EngineTicket]) -> None:
        """Computes what should not wait for the rest of a batch, in the middle of it."""
        batch = self._batcher.overtaking(tickets, run.spent_s())
        if batch is None or not batch.tickets:
            return
        started_s, outer = time.monotonic(), self._computing
        self._computing = (*outer, *batch.tickets)
        facts = _count(batch)
        traces = [ticket.origin.trace for ticket in batch.tickets]
        # The checkpoint may be where nothing is differentiated.
        with self.tracing.batch(traces, facts) as trace, torch.enable_grad():
            inner = _Run(trace, self._second_workspace)
            self._compute_tickets(batch.tickets, inner)
        self._computing = outer
        run.away_s += time.monotonic() - started_s
        origins = _origins(batch.tickets)
        log.debug("batch", ms=inner.computed_ms, overtakes=len(tickets), **facts, **origins)

    def _compute_tickets(self, tickets: Sequence[EngineTicket], run: _Run) -> None:
        run.begin()

        def checkpoint() -> None:
            _go_on_while_wanted(tickets)
            run.checkpoint(tickets)

        try:
            outcomes = evaluate(
                [ticket.job for ticket in tickets], self._table, run.workspace, checkpoint
            )
        except AbandonedError:
            self._charge_failure(tickets, run)
            _answer_abandoned(tickets)
            return
        except Exception as error:  # noqa: BLE001 - each waiter gets it below
            self._charge_failure(tickets, run)
            run.trace.add_failure(error)
            if is_out_of_memory(error):
                self._free_memory(error)
            self._isolate(tickets, error, run)
            return
        seconds, started_s, ended_s = run.spent_s(), run.started_s, time.monotonic()
        run.computed_s += seconds
        metrics.COMPUTE_SECONDS.observe(seconds)
        self._batcher.complete(tickets, seconds)
        samples = sum(ticket.samples for ticket in tickets)
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            if isinstance(outcome, LossdError):
                ticket.answer.set_exception(outcome)
                continue
            ticket.answer.set_result(
                Completed(
                    outcome=outcome,
                    accepted_s=ticket.accepted_s,
                    started_s=started_s,
                    ended_s=ended_s,
                    batch_samples=samples,
                    batch_requests=len(tickets),
                )
            )

    def _charge_failure(self, tickets: Sequence[EngineTicket], run: _Run) -> None:
        """Counts the time of a computation without answers.

        Of several requests nobody knows yet whose fault it is; each is charged when it runs again.
        """
        seconds = run.spent_s()
        run.computed_s += seconds
        metrics.COMPUTE_SECONDS.observe(seconds)
        if len(tickets) == 1:
            self._batcher.charge(tickets, seconds)

    def _isolate(self, tickets: Sequence[EngineTicket], error: Exception, run: _Run) -> None:
        """Runs a failed batch again in halves, so that only the job at fault fails."""
        if len(tickets) == 1:
            self._failures += 1
            tickets[0].answer.set_exception(_explain(error, tickets[0]))
            return
        log.warning("batch_failed", error=repr(error), **_origins(tickets))
        metrics.BATCH_RERUNS.inc()
        half = len(tickets) // 2
        self._compute_tickets(tickets[:half], run)
        self._compute_tickets(tickets[half:], run)

    def _free_memory(self, error: Exception) -> None:
        """Gives back what the computation that ran out of memory still holds."""
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__context__
        self._workspace.release()
        self._second_workspace.release()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _explain(error: Exception, ticket: EngineTicket) -> LossdError:
    """What the caller of a job hears that failed alone; the log has the rest."""
    if is_out_of_memory(error):
        log.warning("job_out_of_memory", error=repr(error), **_origin(ticket))
        return TooLargeError(
            "the job needs more memory than the device has free; send fewer or smaller samples, "
            "or ask for fewer gradients and maps at a time"
        )
    log.error("job_failed", error=repr(error), exc_info=error, **_origin(ticket))
    metrics.JOB_FAILURES.inc()
    return InternalError(f"the job failed alone: {type(error).__name__}: {error}")


def _go_on_while_wanted(tickets: Sequence[EngineTicket]) -> None:
    """The checkpoint of a batch.

    Raises:
        AbandonedError: nobody waits for any of its tickets.
    """
    now_s = time.monotonic()
    if not any(ticket.is_wanted(now_s) for ticket in tickets):
        raise AbandonedError


def _answer_abandoned(tickets: Sequence[EngineTicket]) -> None:
    log.info("batch_abandoned", **_origins(tickets))
    for ticket in tickets:
        DROPPED["abandoned"].inc()
        msg = "the deadline passed while the request was computed"
        ticket.answer.set_exception(DeadlineExceededError(msg))


def _count(batch: Batch[AnyJob, Completed]) -> dict[str, str | int]:
    """Counts a batch; what log line and trace say of it, too."""
    samples, requests, nbytes = batch.samples, len(batch.tickets), batch.nbytes
    tiles = sum(ticket.job.tiles for ticket in batch.tickets)
    _BATCHES[batch.reason].inc()
    metrics.BATCH_SAMPLES.observe(samples)
    metrics.BATCH_REQUESTS.observe(requests)
    metrics.BATCH_BYTES.observe(nbytes)
    metrics.BATCH_TILES.observe(tiles)
    metrics.DISPATCH_QUEUE_REQUESTS.observe(batch.waiting_requests)
    metrics.DISPATCH_OLDEST_SECONDS.observe(batch.oldest_s)
    return {
        "reason": batch.reason,
        "samples": samples,
        "requests": requests,
        "bytes": nbytes,
        "tiles": tiles,
    }


def _origin(ticket: EngineTicket) -> dict[str, str]:
    """What a log line says of the request that a ticket came from."""
    trace_id = ticket.origin.trace.trace_id
    trace = {"trace_id": trace_id} if trace_id else {}
    return {"request_id": ticket.origin.request_id, **trace}


def _origins(tickets: Sequence[EngineTicket]) -> dict[str, list[str]]:
    """What a log line says of the requests of several tickets."""
    return {"request_ids": [ticket.origin.request_id for ticket in tickets]}
