"""Copies of kept logits on a GPU: those that are used again cross the bus once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

import structlog
import torch
from torch import Tensor

from lossd import metrics
from lossd.core.job import Job, Part, RowJob
from lossd.tensors import Entry

log = structlog.get_logger(__name__)

_HOT_USES = 2


class DeviceTensors:
    """Copies by the kept tensor they are of, the one used longest ago first."""

    def __init__(self, limit_bytes: int, copy: Callable[[Tensor], Tensor]) -> None:
        """Begins without any.

        Args:
            limit_bytes: of all copies together; 0 where the engine computes in the host's memory.
            copy: brings a tensor to the device.
        """
        self._limit_bytes = limit_bytes
        self._copy = copy
        self._lock = threading.Lock()
        self._copies: OrderedDict[Entry, Tensor] = OrderedDict()
        self._nbytes = 0

    def placed(self, job: Job | RowJob, used: Iterable[Entry]) -> Job | RowJob:
        """The job with its logits on the device where they are one of the kept tensors it used."""
        hot = {one.array.ctypes.data: one for one in used if one.uses >= _HOT_USES}
        if not self._limit_bytes or not hot or not isinstance(job, Job):
            return job
        return replace(job, parts=tuple(self._placed(part, hot) for part in job.parts))

    def forget(self, entry: Entry) -> None:
        """Drops the copy of a tensor that is kept no more."""
        with self._lock:
            if entry in self._copies:
                self._account(-self._copies.pop(entry).nbytes)

    def _placed(self, part: Part, hot: dict[int, Entry]) -> Part:
        # Logits that are views of a kept tensor begin where it does.
        entry = hot.get(part.logits.data_ptr())
        if entry is None or entry.array.nbytes != part.logits.nbytes:
            return part
        copy = self._copy_of(entry, part.logits)
        return part if copy is None else replace(part, device_logits=copy)

    def _copy_of(self, entry: Entry, logits: Tensor) -> Tensor | None:
        with self._lock:
            copy = self._copies.get(entry)
            if copy is not None:
                self._copies.move_to_end(entry)
                return copy
        if logits.nbytes > self._limit_bytes:
            return None
        try:
            copy = self._copy(logits)
        except torch.OutOfMemoryError as error:
            log.warning("no_memory_for_kept_logits", bytes=logits.nbytes, error=repr(error))
            return None
        with self._lock:
            # Another thread may have been quicker, and the tensor may be kept no more.
            if entry not in self._copies and entry.is_kept:
                while self._nbytes + copy.nbytes > self._limit_bytes:
                    self._account(-self._copies.popitem(last=False)[1].nbytes)
                self._copies[entry] = copy
                self._account(copy.nbytes)
        return copy

    def _account(self, nbytes: int) -> None:
        self._nbytes += nbytes
        metrics.DEVICE_TENSOR_BYTES.set(self._nbytes)
