"""A memory copy that no cache helps: what moving bytes costs on this machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

_LEAST_BYTES: Final = 256 << 20
_CACHES: Final = 4
"""How many times as large as the last cache the memory is that is copied from."""


class Copier:
    """Copies so many elements from one large memory to another, further on at each call.

    A short copy repeated in place runs in the cache, which neither logits just received nor a
    gradient about to be sent do.

    Args:
        shape: of what is copied.
        dtype: likewise.
        device: where.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._count = math.prod(shape)
        least = max(_LEAST_BYTES, _CACHES * last_cache_bytes()) // dtype.itemsize
        self._windows = max(2, -(-least // self._count))
        total = self._windows * self._count
        # Written once, so that the system has given the pages before anything is timed.
        self._source = torch.ones(total, dtype=dtype, device=device)
        self._target = torch.zeros(total, dtype=dtype, device=device)
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Of the memory that is copied from."""
        return self._source.nbytes

    def __call__(self) -> Tensor:
        """Copies the next window."""
        window = slice(self._next * self._count, (self._next + 1) * self._count)
        self._next = (self._next + 1) % self._windows
        return self._target[window].copy_(self._source[window])


def last_cache_bytes() -> int:
    """Size of the processor's last cache; 0 where the system does not say."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((bytes_of(path.read_text(encoding="ascii")) for path in sizes), default=0)


def bytes_of(text: str) -> int:
    """Bytes of a size with its unit, such as `32K`."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    text = text.strip()
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text or 0)
