"""Memory for what arrives."""

import numpy as np

_ALIGNMENT_BYTES = 4096


def fresh(nbytes: int) -> memoryview:
    """Writable memory of that size, with whatever was in it, from the beginning of a page.

    The system copies up to two and a half times slower into memory that begins in the middle of a
    cache line.
    """
    memory = np.empty(nbytes + _ALIGNMENT_BYTES, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[begin : begin + nbytes].data
