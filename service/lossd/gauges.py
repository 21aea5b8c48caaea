"""The gauges that are read when somebody asks for the metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

import structlog
import torch

from lossd import __version__, metrics
from lossd.device_memory import Kind, device_memory
from lossd.engine import Engine, State

log = structlog.get_logger(__name__)


def read_gauges(engine: Engine) -> None:
    """Sets them to what is true now."""
    depth = engine.queue_depth()
    metrics.QUEUE_REQUESTS.set(depth.requests)
    metrics.QUEUE_SAMPLES.set(depth.samples)
    metrics.QUEUE_BYTES.set(depth.nbytes)
    metrics.QUEUE_OLDEST_SECONDS.set(depth.oldest_s)
    metrics.READY.set(engine.is_ready())
    current = engine.state
    for state in get_args(State):
        metrics.ENGINE_STATE.labels(state).set(state == current)
    ready, expected = engine.progress
    metrics.KERNELS_READY.set(ready)
    metrics.KERNELS_EXPECTED.set(expected)
    _read_memory(engine.device)
    metrics.BUILD.info(
        {
            "version": __version__,
            "device": engine.device_name,
            "numerics_version": engine.numerics_version,
            "torch": torch.__version__,
        }
    )


def _read_memory(device: torch.device) -> None:
    memory: Mapping[Kind, float]
    try:
        memory = device_memory(device)
    except RuntimeError as error:
        # A broken device is when the other metrics are wanted most.
        log.warning("device_memory_unknown", error=repr(error))
        memory = dict.fromkeys(get_args(Kind), math.nan)
    for kind, nbytes in memory.items():
        metrics.DEVICE_MEMORY_BYTES.labels(kind).set(nbytes)
