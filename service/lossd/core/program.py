"""Short lists of operations on a sample's numbers, run in C++: `program.cpp`.

A loss of sums is some dozens of torch operations on a dozen numbers each, and its derivative as
many again. Each costs a thousand times its arithmetic and lets go of Python's lock, which another
thread of the service then has to be asked for. A program does the same to any number of samples in
one call that holds no lock. `recording` makes them.

Exponentials and logarithms are torch's, so that their bits are: of all samples at once, between one
stretch of the program and the next.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

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

FUNCTIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
}
"""What torch computes; their codes follow those of `OPERATIONS`. Only functions belong here whose
bits do not depend on where in a tensor an element lies: not powers, sigmoids, hyperbolic ones."""

CODES: Final[Mapping[str, int]] = {
    name: code for code, name in enumerate((*OPERATIONS, *FUNCTIONS))
}

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
class _Call:
    """What torch is asked in the middle of a program."""

    function: Callable[[Tensor], Tensor]
    operands: Array
    """Registers that it is applied to, int32."""
    to: slice
    """Registers of its results."""

    def make(self, registers: Array) -> None:
        """Applies the function to its operands in all samples, `[R, registers]`."""
        values = torch.from_numpy(np.take(registers, self.operands, axis=1))
        registers[:, self.to] = self.function(values).numpy()


@dataclass(frozen=True)
class _Stretch:
    """Instructions that run without a stop."""

    arguments: tuple[object, ...]
    """Of `lossd_run`, those that are the same for all samples."""
    call: _Call | None
    """What follows; None at the program's end."""


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
    def _stretches(self) -> tuple[_Stretch, ...]:
        """The program, cut where torch is asked; the last stretch ends with the results."""
        functions = tuple(FUNCTIONS.values())
        first, found = 0, []
        for place in np.flatnonzero(self.instructions["operation"] >= len(OPERATIONS)).tolist():
            code, count, to, begin = self.instructions[place].tolist()
            function = functions[code - len(OPERATIONS)]
            call = _Call(function, self.operands[begin : begin + count], slice(to, to + count))
            found.append(_Stretch(self._arguments(first, place, is_last=False), call))
            first = place + 1
        return (
            *found,
            _Stretch(self._arguments(first, len(self.instructions), is_last=True), None),
        )

    def _arguments(self, first: int, last: int, *, is_last: bool) -> tuple[object, ...]:
        """Of `lossd_run`, for instructions from `first` to before `last`."""
        return (
            *_pointer_and_length(self.instructions[first:last]),
            ctypes.c_void_p(self.operands.ctypes.data),
            *_pointer_and_length(self.reads if first == 0 else self.reads[:0]),
            *_pointer_and_length(self.results if is_last else self.results[:0]),
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
        # Without torch in between, a row is done with when the next one begins.
        shared = len(self._stretches) == 1
        registers = self.registers if shared else np.tile(self.registers, (len(rows), 1))
        others = (
            ctypes.c_void_p(given.ctypes.data),
            *_pointer_and_length(rows),
            ctypes.c_void_p(registers.ctypes.data),
            ctypes.c_int64(0 if shared else registers.shape[1]),
            ctypes.c_void_p(found.ctypes.data),
        )
        for stretch in self._stretches:
            library.run(*stretch.arguments, *others)
            if stretch.call is not None:
                stretch.call.make(registers)
        return {
            name: None if part is None else found[:, part[0]].reshape(len(rows), *part[1])
            for name, part in self.parts.items()
        }


def _pointer_and_length(array: Array) -> tuple[ctypes.c_void_p, ctypes.c_int64]:
    return ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(len(array))
