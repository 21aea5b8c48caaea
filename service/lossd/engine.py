"""The one thread that owns the device: it compiles the kernels, then turns batches into answers.

    starting -> compiling -> ready -> draining -> stopped
                     └───────┴───────────┴──────-> failed

`failed` is final: the thread has stopped, everything that waited was answered with an error, and
readiness says so. An idle engine runs a known-answer job now and then, so that ready means that a
batch went through the real path lately and came out right.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import structlog
import torch

from lossd import metrics
from lossd.batching import Batch, Batcher, Depth, Limits, Ticket
from lossd.core import compiled
from lossd.core.canary import canary_job, check_canary
from lossd.core.evaluation import evaluate
from lossd.core.job import AnyJob, Outcome
from lossd.core.passes import Workspace
from lossd.settings import Settings
from lossd_client.errors import InternalError, LossdError, NotReadyError

State = Literal["starting", "compiling", "ready", "draining", "stopped", "failed"]

NUMERICS = "2"
"""Counted up whenever the bits of an answer change for another reason than a new torch."""

CANARY_EVERY_S = 10.0
STALE_AFTER_S = 30.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Completed:
    """Outcome of a job and how it was computed."""

    outcome: Outcome
    queue_s: float
    compute_s: float
    batch_samples: int
    batch_requests: int


EngineTicket = Ticket[AnyJob, Completed]


class Engine:
    """Accepts jobs from any thread and computes them on its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.device = choose_device(settings.device)
        self.mode: compiled.Mode = compiled.choose_mode(self.device)
        if settings.kernels != "auto":
            self.mode = settings.kernels
        self._batcher: Batcher[AnyJob, Completed] = Batcher(
            Limits(
                batch_samples=settings.max_batch_samples,
                batch_bytes=settings.max_batch_mib << 20,
                queue_samples=settings.max_queue_samples,
                queue_bytes=settings.max_queue_mib << 20,
                max_delay_s=settings.max_delay_ms / 1e3,
            )
        )
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.state: State = "starting"
        self.progress = (0, 1)
        """Kernels ready, kernels in all."""
        self._last_run_s = 0.0
        self._computing: Sequence[EngineTicket] = ()
        self._busy_since_s: float | None = None
        self._table: compiled.KernelTable = {}
        self._workspace = Workspace(self.device, settings.chunk_logits)

    @property
    def device_name(self) -> str:
        """Device and how its kernels run, as the answers say it."""
        return f"{self.device} ({self.mode})"

    @property
    def numerics_version(self) -> str:
        """Equal for processes whose answers have equal bits on equal devices."""
        return f"{NUMERICS}-torch{torch.__version__}-{self.mode}"

    def start(self) -> None:
        """Starts the thread; jobs are refused until it is ready."""
        self._thread.start()

    def submit(self, job: AnyJob, *, timeout_s: float) -> EngineTicket:
        """Accepts a job.

        Raises:
            NotReadyError: the engine is starting or has failed.
            DrainingError: it is shutting down.
            QueueFullError: it has as much work as it accepts.
        """
        if self.state in ("starting", "compiling", "failed"):
            raise NotReadyError(self.describe(), retry_after_s=5.0)
        return self._batcher.submit(
            job, group=job.group, samples=job.samples, nbytes=job.nbytes, timeout_s=timeout_s
        )

    def is_ready(self) -> bool:
        """Whether a job would be computed now."""
        if self.state != "ready" or not self._thread.is_alive():
            return False
        busy = self._busy_since_s is not None
        return busy or time.monotonic() - self._last_run_s < STALE_AFTER_S

    def describe(self) -> str:
        """State in words."""
        if self.state == "compiling":
            done, total = self.progress
            return f"compiling kernels, {done} of {total} ready"
        if self.state == "ready" and not self.is_ready():
            return "the engine has not run lately"
        return self.state

    def queue_depth(self) -> Depth:
        """What waits."""
        return self._batcher.depth()

    def announce_drain(self) -> None:
        """Is no longer ready, but still takes the requests that are on their way in."""
        if self.state in ("ready", "starting", "compiling"):
            self.state = "draining"

    def drain(self) -> None:
        """Accepts nothing more and lets the thread finish what it accepted."""
        self.announce_drain()
        self._batcher.close()

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread; whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- the engine's own thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._prepare()
            while not self._batcher.drained:
                batch = self._batcher.next_batch(wait_s=CANARY_EVERY_S)
                if batch is not None and batch.tickets:
                    self._compute(batch)
                elif batch is None and not self._batcher.drained:
                    self._run_canary()
            self.state = "stopped"
        except BaseException as error:
            # The thread ends here; whoever waits must hear of it, and readiness must say so.
            self.state = "failed"
            log.exception("engine_failed")
            self._batcher.close()
            stopped = InternalError(f"the engine stopped: {error!r}")
            self._batcher.fail_waiting(stopped)
            for ticket in self._computing:
                if not ticket.answer.done():
                    ticket.answer.set_exception(stopped)

    def _prepare(self) -> None:
        torch.set_num_threads(self._settings.threads)
        started = time.perf_counter()
        if self.mode == "eager":
            self._table = compiled.eager_kernels()
        else:
            if self.state == "starting":
                self.state = "compiling"
            cache = compiled.cache_folder(self._settings.cache_dir, self.device)
            self._table = compiled.compile_kernels(
                self.device, cache, on_progress=self._on_progress
            )
        self._run_canary()
        if self.state != "draining":
            self.state = "ready"
        log.info(
            "engine_ready",
            device=self.device_name,
            threads=torch.get_num_threads(),
            seconds=round(time.perf_counter() - started, 2),
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
        metrics.BATCHES.labels(reason=batch.reason).inc()
        metrics.BATCH_SAMPLES.observe(batch.samples)
        self._computing = batch.tickets
        self._compute_tickets(batch.tickets)
        self._computing = ()
        self._busy_since_s = None
        self._last_run_s = time.monotonic()

    def _compute_tickets(self, tickets: Sequence[EngineTicket]) -> None:
        started_s = time.monotonic()
        try:
            outcomes = evaluate([ticket.job for ticket in tickets], self._table, self._workspace)
        except Exception as error:  # noqa: BLE001 - each waiter gets it below
            self._isolate(tickets, error)
            return
        compute_s = time.monotonic() - started_s
        metrics.COMPUTE_SECONDS.observe(compute_s)
        samples = sum(ticket.samples for ticket in tickets)
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            if isinstance(outcome, LossdError):
                ticket.answer.set_exception(outcome)
                continue
            ticket.answer.set_result(
                Completed(
                    outcome=outcome,
                    queue_s=started_s - ticket.accepted_s,
                    compute_s=compute_s,
                    batch_samples=samples,
                    batch_requests=len(tickets),
                )
            )

    def _isolate(self, tickets: Sequence[EngineTicket], error: Exception) -> None:
        """Runs a failed batch again in halves, so that only the job at fault fails."""
        if len(tickets) == 1:
            log.error("job_failed", error=repr(error), exc_info=error)
            metrics.JOB_FAILURES.inc()
            tickets[0].answer.set_exception(
                InternalError(f"the job failed alone: {type(error).__name__}: {error}")
            )
            return
        half = len(tickets) // 2
        self._compute_tickets(tickets[:half])
        self._compute_tickets(tickets[half:])


def choose_device(name: str) -> torch.device:
    """Device of a setting: `auto` is the first GPU, or the CPU where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
