"""Short lists of operations on a sample's numbers, run in C++: `program.cpp`.

A loss of sums is some dozens of torch operations on a dozen numbers each, and its derivative as
many again. Each costs a thousand times its arithmetic and lets go of Python's lock, which another
thread of the service then has to be asked for. A program does the same to any number of samples in
one call that holds no lock. `recording` makes them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

SOURCE: Final = Path(__file__).with_suffix(".cpp")

Array = np.ndarray[Any, Any]

OPERATIONS: Final = (
    "add",
    "sub",
    "mul",
    "div",
    "maximum",
    "minimum",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "bitwise_and",
    "bitwise_or",
    "neg",
    "bitwise_not",
    "abs",
    "sgn",
    "reciprocal",
    "sqrt",
    "where",
)
"""Elementwise operations by torch's names, in the order of `program.cpp`."""


INSTRUCTION: Final = np.dtype(
    [(name, np.int32) for name in ("operation", "count", "to", "operands")]
)
READ: Final = np.dtype([(name, np.int32) for name in ("to", "table", "column", "reserved")])
_TABLE: Final = np.dtype([("first", np.uint64), ("width", np.int64)])


class Library:
    """The C++ that runs programs.

    Args:
        path: what `in_place.build` made of `SOURCE`.

    Raises:
        RuntimeError: it was made of another source.
    """

    def __init__(self, path: Path) -> None:
        loaded = ctypes.CDLL(str(path))
        if loaded.lossd_program_bytes() != sum(one.itemsize for one in (INSTRUCTION, READ, _TABLE)):
            msg = f"{path} was made of another {SOURCE.name}"
            raise RuntimeError(msg)
        self.run: Callable[..., None] = loaded.lossd_run


@dataclass(frozen=True)
class Program:
    """What is done to a sample's numbers; used by one thread."""

    instructions: Array
    """`INSTRUCTION`, in order."""
    operands: Array
    """Registers that they are done to, int32."""
    reads: Array
    """`READ`: what is taken from the caller's tables."""
    registers: Array
    """Float64: the constants, and room for the rest."""
    results: Array
    """Registers of the results, int32."""
    parts: Mapping[str, tuple[slice, tuple[int, ...]] | None]
    """Which of the results have which name, and their shape; None of a name that is absent, or zero
    whatever the numbers."""

    @cached_property
    def _given(self) -> tuple[object, ...]:
        return (
            *_pointer_and_length(self.instructions),
            ctypes.c_void_p(self.operands.ctypes.data),
            *_pointer_and_length(self.reads),
            *_pointer_and_length(self.results),
        )

    def run(
        self, library: Library, tables: Sequence[Array], rows: Array
    ) -> dict[str, Array | None]:
        """The function of some samples.

        Args:
            library: what runs it.
            tables: `[B, …]` float64, C-contiguous, as the program was recorded with.
            rows: which of the samples, `[R]` int64.

        Returns:
            The results by name, `[R, …]` float64.
        """
        given = np.array([(one.ctypes.data, one[0].size) for one in tables], _TABLE)
        found = np.empty((len(rows), len(self.results)))
        library.run(
            *self._given,
            ctypes.c_void_p(given.ctypes.data),
            *_pointer_and_length(rows),
            ctypes.c_void_p(self.registers.ctypes.data),
            ctypes.c_void_p(found.ctypes.data),
        )
        return {
            name: None if part is None else found[:, part[0]].reshape(len(rows), *part[1])
            for name, part in self.parts.items()
        }


def _pointer_and_length(array: Array) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
    return ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(len(array))
