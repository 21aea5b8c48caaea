"""Everything the service counts, once: name, meaning, unit, labels and buckets.

Labels take few values: route templates, codes of error classes, names of keys; never what a caller
may choose.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar, cast

from prometheus_client import Counter, Gauge, Histogram, Info, disable_created_metrics

from lossd.callers import ANONYMOUS

# A series that says when another one began doubles the page and no query here reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]

M = TypeVar("M", Counter, Histogram)

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_BYTES = tuple(4**power for power in range(6, 16))  # 4 KiB to 1 GiB
_TILES = (0, *(4**power for power in range(9)))
_SAMPLES = tuple(2**power for power in range(11))
_REQUESTS = tuple(2**power for power in range(9))

# -- requests -------------------------------------------------------------------------------------

REQUESTS = Counter(
    "lossd_requests_total",
    "Requests that ended, by route template, HTTP status, code of the error (or ok) and key.",
    ["route", "status", "code", "key"],
)
REQUEST_SECONDS = Histogram(
    "lossd_request_seconds",
    "Seconds from the head of a request to the end of its answer.",
    ["route"],
    buckets=_SECONDS,
)
REQUESTS_IN_PROGRESS = Gauge(
    "lossd_requests_in_progress", "Requests whose head has come and whose answer has not ended."
)
STAGE_SECONDS = Histogram(
    "lossd_stage_seconds",
    "Seconds of the parts of an evaluation, as far as it came: receive (the body arrives), read "
    "(it is decoded and checked), queue (it waits for the engine), compute (its batch is "
    "computed), judge (images of annotation QA are judged), write (the answer is encoded).",
    ["stage"],
    buckets=_SECONDS,
)
STAGE = {
    name: STAGE_SECONDS.labels(name)
    for name in ("receive", "read", "queue", "compute", "judge", "write")
}
"""The histogram of each stage."""
SAMPLES = Counter("lossd_samples_total", "Samples of evaluations that were answered.", ["key"])
RECEIVED_BYTES = Counter(
    "lossd_received_bytes_total",
    "Bytes of the bodies of evaluations and of tensors to keep, refused ones included.",
    ["key"],
)
SENT_BYTES = Counter("lossd_sent_bytes_total", "Bytes of answers' bodies.", ["key"])
QUOTA_REFUSALS = Counter(
    "lossd_quota_refusals_total",
    "Requests refused because their key had used what it may: requests, samples, bytes (of bodies) "
    "or concurrency (requests in progress).",
    ["quota", "key"],
)
CUT_CONNECTIONS = Counter(
    "lossd_cut_connections_total",
    "Connections that were cut before their request became one of lossd_requests_total, or while "
    "its answer was read: malformed_request, head_too_large, head_timeout, too_many_connections, "
    "slow_reader.",
    ["reason"],
)

# -- batches --------------------------------------------------------------------------------------

BATCHES = Counter(
    "lossd_batches_total",
    "Batches that left the queue, by why: idle (nothing else waited), full (a limit was reached), "
    "delay (its oldest request had been overtaken for long enough), largest (most samples of "
    "several groups), fair (it was the turn of one of several keys, or was kept short for others), "
    "drain (the service is shutting down).",
    ["reason"],
)
BATCH_SAMPLES = Histogram("lossd_batch_samples", "Samples of a batch.", buckets=_SAMPLES)
BATCH_REQUESTS = Histogram("lossd_batch_requests", "Requests of a batch.", buckets=_REQUESTS)
BATCH_BYTES = Histogram("lossd_batch_bytes", "Bytes of a batch's tensors.", buckets=_BYTES)
BATCH_TILES = Histogram(
    "lossd_batch_tiles",
    "Tiles of 4096 pixels of a batch; 0 for losses of tables without pixels.",
    buckets=_TILES,
)
DISPATCH_QUEUE_REQUESTS = Histogram(
    "lossd_dispatch_queue_requests",
    "Requests that still wait when a batch leaves the queue.",
    buckets=(0, *_REQUESTS, 1024, 4096),
)
DISPATCH_OLDEST_SECONDS = Histogram(
    "lossd_dispatch_oldest_seconds",
    "Seconds that the oldest request of a batch had waited when the batch left the queue.",
    buckets=_SECONDS,
)
COMPUTE_SECONDS = Histogram(
    "lossd_compute_seconds",
    "Seconds that the engine computed one batch, failed ones included; the rate of its sum is the "
    "share of time in which the engine is busy.",
    buckets=_SECONDS,
)
JOB_FAILURES = Counter(
    "lossd_job_failures_total",
    "Requests that the engine answered with an internal error: they failed alone, or the engine "
    "stopped.",
)
BATCH_RERUNS = Counter(
    "lossd_batch_reruns_total", "Batches of several requests that failed and ran again in halves."
)
DROPPED_REQUESTS = Counter(
    "lossd_dropped_requests_total",
    "Requests that were given up: deadline (their time was up while they waited), cancelled "
    "(nobody waited for them any more), abandoned (one of both while they were computed).",
    ["reason"],
)

# -- read when somebody asks, see gauges.py -------------------------------------------------------

QUEUE_REQUESTS = Gauge("lossd_queue_requests", "Requests that wait for the engine.")
QUEUE_SAMPLES = Gauge("lossd_queue_samples", "Samples that wait for the engine.")
QUEUE_BYTES = Gauge("lossd_queue_bytes", "Bytes of tensors that wait for the engine.")
QUEUE_OLDEST_SECONDS = Gauge(
    "lossd_queue_oldest_seconds", "Seconds that the oldest waiting request has waited."
)
READY = Gauge("lossd_ready", "1 if a job would be computed now, as /health/ready says; else 0.")
ENGINE_STATE = Gauge(
    "lossd_engine_state", "1 for the state the engine is in, 0 for every other one.", ["state"]
)
KERNELS_READY = Gauge(
    "lossd_kernels_ready", "Kernels that are compiled and have run; 0 where they run eagerly."
)
KERNELS_EXPECTED = Gauge(
    "lossd_kernels_expected", "Kernels that will be compiled; 0 where they run eagerly."
)
START_UP_SECONDS = Gauge(
    "lossd_start_up_seconds", "Seconds from the engine's start until it was ready; 0 until then."
)
DEVICE_MEMORY_BYTES = Gauge(
    "lossd_device_memory_bytes",
    "Memory in bytes. Of a GPU: allocated (tensors), reserved (by torch), used (by every process), "
    "total. Of the CPU: used (resident memory of this process), total (what it may use).",
    ["kind"],
)
BUILD = Info(
    "lossd_build", "1; the labels say what runs: version, device, numerics_version, torch."
)

# -- tensors kept by reference --------------------------------------------------------------------

TENSORS = Gauge("lossd_tensors", "Tensors that are kept for callers' refs.")
TENSOR_BYTES = Gauge(
    "lossd_tensor_bytes", "Bytes of tensors that are kept for callers' refs, 1 KiB more for each."
)
DEVICE_TENSOR_BYTES = Gauge(
    "lossd_device_tensor_bytes", "Bytes of copies of kept logits in a GPU's memory."
)
TENSOR_EVICTIONS = Counter(
    "lossd_tensor_evictions_total",
    "Tensors that are kept no more, by why: budget (their owner kept something newer), total (the "
    "budget of all was spent and their owner held most), ttl (nobody used them for too long).",
    ["reason"],
)
TENSOR_LOOKUPS = Counter(
    "lossd_tensor_lookups_total",
    "Tensors that requests named by a ref: hit (it was there), miss (it was not, or is another's).",
    ["outcome"],
)

# -- annotation QA --------------------------------------------------------------------------------

QA_CONTEXTS = Gauge("lossd_qa_contexts", "Contexts of annotation QA that are kept for callers.")
QA_CONTEXT_EVICTIONS = Counter(
    "lossd_qa_context_evictions_total",
    "Contexts that are kept no more, by why: budget (their owner kept something newer), ttl "
    "(nobody used them for too long).",
    ["reason"],
)

# -- the process ----------------------------------------------------------------------------------

EVENT_LOOP_LAG_SECONDS = Histogram(
    "lossd_event_loop_lag_seconds",
    "Seconds by which a sleep of 100 ms of the event loop ended late.",
    buckets=_SECONDS,
)

# What is known beforehand starts at 0: a rate needs a value before the first event.
for _counter in (SAMPLES, RECEIVED_BYTES, SENT_BYTES):
    _counter.labels(ANONYMOUS.name)
for _reason in ("budget", "total", "ttl"):
    TENSOR_EVICTIONS.labels(_reason)
for _reason in ("budget", "ttl"):
    QA_CONTEXT_EVICTIONS.labels(_reason)
for _outcome in ("hit", "miss"):
    TENSOR_LOOKUPS.labels(_outcome)


def series(metric: M, *labels: str) -> M:
    """A metric's series of these labels; those that were asked for before are found sooner.

    Example:
        >>> series(SAMPLES, "anonymous") is SAMPLES.labels("anonymous")
        True
    """
    return cast("M", _series(metric, labels))


@lru_cache(maxsize=4096)
def _series(metric: Any, labels: tuple[str, ...]) -> Any:
    return metric.labels(*labels)
