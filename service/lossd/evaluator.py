"""The engine as a library: the answers of the service, to the bit, without a server.

    losses, arrays -> protocols.python_values -> protocols.admission -> core.evaluation -> Result

A call computes in the thread that makes it, one call at a time. There is no queue, no thread beside
it, and no copy of an array that can be read where it lies.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch

from lossd.core import evaluation
from lossd.core.canary import canary_job, check_canary
from lossd.core.compiled import KINDS, KernelTable, eager_kernels
from lossd.core.job import Job, Outcome, RowJob
from lossd.core.passes import Workspace
from lossd.device_logits import Objects, explained, job_on_device
from lossd.device_memory import is_out_of_memory
from lossd.kernels import choose_device, choose_mode, device_name, load_kernels, numerics_version
from lossd.protocols.admission import RequestLimits, build_job, read_request
from lossd.protocols.files import Budget
from lossd.protocols.json_body import Sources
from lossd.protocols.python_values import (
    InputObject,
    Losses,
    TensorLike,
    python_document,
    python_objects,
    read_python_objects,
)
from lossd.result import Result, finite_means, gradients_of, maps_of, table_of
from lossd.settings import Settings
from lossd.torch_state import compiling_aside, own_state
from lossd_client.errors import (
    DeadlineExceededError,
    LossdError,
    NonFiniteLogitsError,
    TooLargeError,
)
from lossd_client.wire import (
    Aggregate,
    BatchInfo,
    EvaluateRequest,
    FilledPreset,
    Gradient,
    GradientDtype,
    Preset,
    Task,
    Timing,
)

_FIRST_KIND = KINDS[0]
"""What most calls take and the canary needs."""


@dataclass(frozen=True)
class _Deadline:
    """How long a call may take."""

    asked_s: float
    timeout_ms: float | None

    def left_s(self) -> float:
        """Seconds that are left, infinitely many without a deadline.

        Raises:
            DeadlineExceededError: none.
        """
        if self.timeout_ms is None:
            return math.inf
        left_s = self.asked_s + self.timeout_ms / 1e3 - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceededError(f"the {self.timeout_ms:g} ms of the call have passed")
        return left_s

    def check(self) -> None:
        """Raises where none is left."""
        self.left_s()


@dataclass(frozen=True)
class _Computed:
    outcome: Outcome
    waiting_s: float
    """When it began to wait for the device; these are times of `time.monotonic`."""
    started_s: float
    ended_s: float

    def timing(self, asked_s: float) -> Timing:
        """Milliseconds of the call that was asked then and ends now."""
        return Timing(
            queue=(self.started_s - self.waiting_s) * 1e3,
            compute=(self.ended_s - self.started_s) * 1e3,
            total=(time.monotonic() - asked_s) * 1e3,
        )


class Evaluator:
    """The engine of one device in this process. Safe to share between threads.

    What is not given here is taken from the `LOSSD_*` variables and defaults of `lossd serve`.
    Kernels are compiled, or read from the same cache folder, when the first call needs them; making
    an evaluator compiles those that most calls take. `warm_up` compiles all of them.

    Args:
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        kernels: `compiled`, `eager`, or `auto`: compiled where a C++ compiler or a GPU is present.
        threads: CPU threads of a call; where neither this nor `LOSSD_THREADS` is given, as many as
            torch uses when the evaluator is made.
        cache_dir: folder of compiled kernels.
        **settings: any other setting of `lossd serve` by its name, `max_request_samples=10_000`
            for instance.

    Raises:
        pydantic.ValidationError: a setting is unknown or out of range.
        RuntimeError: the device computes a known answer wrong, or torch knows no such device.

    Example:
        >>> import numpy as np
        >>> logits, target = np.zeros((1, 2, 8, 8)), np.zeros((1, 8, 8), np.uint8)
        >>> with Evaluator(device="cpu", kernels="eager") as evaluator:
        ...     evaluator.evaluate("cross_entropy", logits=logits, target=target).total.round(6)
        array([0.693147])
    """

    def __init__(
        self,
        *,
        device: str | None = None,
        kernels: Literal["auto", "compiled", "eager"] | None = None,
        threads: int | None = None,
        cache_dir: str | Path | None = None,
        **settings: Any,
    ) -> None:
        own = {"device": device, "kernels": kernels, "threads": threads, "cache_dir": cache_dir}
        settings.update((name, value) for name, value in own.items() if value is not None)
        self._settings = Settings(**settings)
        said = "threads" in self._settings.model_fields_set
        self._threads = self._settings.threads if said else torch.get_num_threads()
        self._device = choose_device(self._settings.device)
        self._mode = choose_mode(self._settings, self._device)
        self._limits = RequestLimits(
            samples=self._settings.max_request_samples, classes=self._settings.max_classes
        )
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._is_open = True
        self._table: KernelTable = eager_kernels() if self._mode == "eager" else {}
        self._workspace = Workspace(self._device, self._settings.chunk_logits)
        with self._lock, own_state(self._device, self._threads):
            self._load(_FIRST_KIND)
            (outcome,) = evaluation.evaluate([canary_job()], self._table, self._workspace)
        check_canary(outcome)

    @property
    def device(self) -> str:
        """Device and how its kernels run, as results say it."""
        return device_name(self._device, self._mode)

    @property
    def numerics_version(self) -> str:
        """Equal for evaluators and services whose answers have equal bits on equal devices."""
        return numerics_version(self._mode, self._table)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.device!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the memory; the evaluator cannot be used afterwards.

        Raises:
            RuntimeError: it was made in another process.
        """
        self._check_process()
        with self._lock:
            self._is_open = False
            self._workspace.release()
            self._table = {}

    def warm_up(self) -> None:
        """Compile the kernels that no call has needed yet, so that no later call has to.

        Raises:
            RuntimeError: the evaluator is closed, or was made in another process.
        """
        self._check_process()
        with self._lock, own_state(self._device, self._threads):
            self._check_open()
            for kind in KINDS:
                self._load(kind)

    def evaluate(
        self,
        /,
        losses: Losses,
        *,
        logits: TensorLike | None = None,
        target: TensorLike | None = None,
        mask: TensorLike | None = None,
        weight_map: TensorLike | None = None,
        probabilities: TensorLike | None = None,
        task: Task | None = None,
        ignore_index: int | None = None,
        gradient: Gradient = "none",
        gradient_dtype: GradientDtype | None = None,
        maps: bool = False,
        per_class: bool = False,
        statistics: bool = False,
        aggregate: Aggregate | None = None,
        spacing: Sequence[float] | None = None,
        preset: Preset | None = None,
        timeout_ms: float | None = None,
        request_id: str | None = None,
        inputs: Sequence[InputObject] | None = None,
        **tensors: TensorLike | None,
    ) -> Result:
        """Losses of every sample, and on request their gradients, maps and statistics.

        Takes what `lossd_client.Client.evaluate` takes and gives what it gives. Tensors may be
        numpy arrays, torch tensors on any device, arrays with `__dlpack__` or `__array__`, nested
        lists, or mappings in one of the forms that a tensor has in JSON: `{"rle": …}`,
        `{"png": …}`, `{"npy": …}`, `{"dtype", "shape", "base64"}`. `B` samples, `C` classes, `*S`
        one to three spatial axes. Arrays are read where they lie and must not be written to
        meanwhile.

        Logits on the GPU that computes stay there, unless `statistics`, a loss of whole samples or
        one without pixels is asked for, or they lie in [0, 1]. All other tensors are checked on the
        host and copied there from a GPU; gradients and maps are in main memory in any case.

        Args:
            losses: one loss or several: names, `lossd_client.losses` values, or mappings with
                `name`, `params`, `weight`, `label`.
            logits: `[B, C, *S]`; float16, bfloat16, float32 or float64; before the activation.
            target: `[B, *S]` integer labels, or `[B, C, *S]` in [0, 1].
            mask: `[B, *S]`; 0 removes the pixel.
            weight_map: `[B, *S]`; factor of each pixel in pixelwise losses.
            probabilities: `[B, C, *S]` in [0, 1], in place of `logits`; the gradient is then with
                respect to them.
            task: `binary`, `multiclass` or `multilabel`; decided by shape if None.
            ignore_index: label that removes a pixel from every sum and mean.
            gradient: `none`, of the weighted `total`, or of `each` loss.
            gradient_dtype: dtype that gradients are rounded to; half precision is given as float32.
            maps: also the value of every pixel, for pixelwise losses.
            per_class: also the value of every class.
            statistics: also true and false positives and negatives of every class.
            aggregate: `sample`, or `batch` to sum region statistics over the call; `sample` if
                None, unless the preset says otherwise.
            spacing: physical size of a pixel along each of `*S`, for distances; ones if None.
            preset: library whose conventions hold where a loss is given no parameter; the result's
                `preset` says what was filled.
            timeout_ms: deadline, waiting for another thread's call included, in milliseconds; none
                if None.
            request_id: comes back in the result.
            inputs: several input objects (images of different sizes) instead of tensors by keyword:
                mappings from input name to tensor. One call with many costs less than many calls.
            **tensors: inputs of other kinds of losses: `prediction`, `anchor`, `embeddings`, …

        Returns:
            One value per sample and loss; of several input objects in their order.

        Raises:
            RequestError: what a service would refuse, with the same message and fields; subclasses
                say why, `TooLargeError` also that the device's memory does not suffice.
            DeadlineExceededError: the deadline passed.
            RuntimeError: the evaluator is closed, or was made in another process.

        Example:
            >>> import numpy as np
            >>> evaluator = Evaluator(device="cpu", kernels="eager")
            >>> small, large = np.zeros((1, 2, 8, 8)), np.zeros((1, 2, 9, 20))
            >>> result = evaluator.evaluate(
            ...     ["dice", {"name": "focal", "params": {"gamma": 1.0}}],
            ...     inputs=[
            ...         {"logits": small, "target": np.zeros((1, 8, 8), np.uint8)},
            ...         {"logits": large, "target": np.ones((1, 9, 20), np.uint8)},
            ...     ],
            ...     gradient="total",
            ... )
            >>> result["dice"].shape, [one.shape for one in result.gradient["logits"]]
            ((2,), [(1, 2, 8, 8), (1, 2, 9, 20)])
        """
        asked_s = time.monotonic()
        self._check_process()
        document = python_document(
            losses,
            {
                "task": task,
                "ignore_index": ignore_index,
                "gradient": gradient,
                "gradient_dtype": gradient_dtype,
                "maps": maps,
                "per_class": per_class,
                "statistics": statistics,
                "aggregate": aggregate,
                "spacing": spacing,
                "preset": preset,
                "timeout_ms": timeout_ms,
            },
        )
        request = read_request(document)
        by_keyword = {
            "logits": logits,
            "target": target,
            "mask": mask,
            "weight_map": weight_map,
            "probabilities": probabilities,
            **tensors,
        }
        job = self._job(request, python_objects(by_keyword, inputs))
        computed = self._compute(job, _Deadline(asked_s, request.timeout_ms))
        found = computed.outcome.tensors
        listed = inputs is not None
        return Result(
            losses={call.label: found[f"loss/{call.label}"] for call in job.calls},
            total=found["total"],
            mean=finite_means(computed.outcome.mean),
            gradient=gradients_of(job, found, listed=listed),
            maps=maps_of(job, found, listed=listed),
            per_class=table_of(found, "per_class"),
            statistics=table_of(found, "statistics"),
            warnings=computed.outcome.warnings,
            preset=None if job.preset is None else FilledPreset.model_validate(job.preset),
            timing_ms=computed.timing(asked_s),
            batch=BatchInfo(samples=job.samples, requests=1),
            device=self.device,
            numerics_version=self.numerics_version,
            request_id=request_id or "",
        )

    # --------------------------------------------------------------------------------------------

    def _job(self, request: EvaluateRequest, objects: Objects) -> Job | RowJob:
        settings = self._settings

        def build(objects: Objects) -> Job | RowJob:
            budget = Budget(settings.max_body_mib << 20, settings.max_json_mib << 20)
            arrays = read_python_objects(objects, Sources(budget))
            return build_job(request, arrays, self._limits)

        return job_on_device(request, objects, self._device, build)

    def _compute(self, job: Job | RowJob, deadline: _Deadline) -> _Computed:
        waiting_s = time.monotonic()
        if not self._lock.acquire(timeout=min(deadline.left_s(), threading.TIMEOUT_MAX)):
            deadline.check()
        try:
            self._check_open()
            started_s = time.monotonic()
            with own_state(self._device, self._threads), self._memory_errors():
                if isinstance(job, Job):
                    self._load((job.family, job.dtype))
                (outcome,) = evaluation.evaluate(
                    [job], self._table, self._workspace, deadline.check
                )
                ended_s = time.monotonic()
                self._workspace.heads.record_next()
        finally:
            self._lock.release()
        if isinstance(outcome, NonFiniteLogitsError) and isinstance(job, Job):
            raise explained(job, outcome)
        if isinstance(outcome, LossdError):
            raise outcome
        return _Computed(outcome, waiting_s, started_s, ended_s)

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._workspace.release()
            raise TooLargeError("the call needs more memory than the device has free") from error

    def _load(self, kind: tuple[Any, torch.dtype]) -> None:
        """Compiles the kernels of a kind, if they are not there; the lock is held."""
        if kind in self._table:
            return
        with compiling_aside():
            found = load_kernels(self._settings, self._device, self._mode, kinds=[kind])
        self._table = {**self._table, **found}

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                f"the evaluator was made in process {self._process} and is no use in a fork of it; "
                "make one in each process"
            )

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("the evaluator is closed")
