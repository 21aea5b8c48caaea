"""The names under which the service counts, once."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

REQUESTS = Counter("lossd_requests_total", "Answered requests.", ["route", "status", "code"])
REQUEST_SECONDS = Histogram(
    "lossd_request_seconds",
    "From the head of a request to its answer.",
    ["route"],
    buckets=_SECONDS,
)
STAGE_SECONDS = Histogram(
    "lossd_stage_seconds",
    "Parts of an evaluation: receive, read, queue, compute, write.",
    ["stage"],
    buckets=_SECONDS,
)
SAMPLES = Counter("lossd_samples_total", "Samples evaluated.")
RECEIVED_BYTES = Counter("lossd_received_bytes_total", "Bytes of request bodies.")
SENT_BYTES = Counter("lossd_sent_bytes_total", "Bytes of answer bodies.")
BATCHES = Counter("lossd_batches_total", "Batches computed, by why they left.", ["reason"])
BATCH_SAMPLES = Histogram(
    "lossd_batch_samples", "Samples per batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
COMPUTE_SECONDS = Histogram("lossd_compute_seconds", "Time of a batch.", buckets=_SECONDS)
JOB_FAILURES = Counter("lossd_job_failures_total", "Jobs that failed alone inside the engine.")
QUEUE_REQUESTS = Gauge("lossd_queue_requests", "Requests that wait.")
QUEUE_SAMPLES = Gauge("lossd_queue_samples", "Samples that wait.")
QUEUE_BYTES = Gauge("lossd_queue_bytes", "Bytes that wait.")
QUEUE_OLDEST_SECONDS = Gauge("lossd_queue_oldest_seconds", "Age of the oldest waiting request.")
READY = Gauge("lossd_ready", "1 if a job would be computed now.")
KERNELS_READY = Gauge("lossd_kernels_ready", "Kernels compiled and run.")
