"""Programs of functions that are written with torch.

`record` runs a function, and autograd's backward if it calls that, on one sample and notes what is
done to which number. The program's results are torch's to the last bit, so that it does not matter
which of the two computed an answer. Only operations are noted that IEEE 754 leaves no choice in:
arithmetic, comparisons, running sums, which torch adds one after the other too; and exponentials
and logarithms, which torch is then asked for. Views, broadcasts and reversals say where a number
lies, and nothing is left of them, nor of what no result depends on. A function that needs a power,
adds up more than two numbers at once, looks at its numbers and goes another way, or does anything
else that is not known here is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lossd.core.program import CODES, INSTRUCTION, READ, Array, Program

_SAME_AS: Final = {
    "logical_and": "bitwise_and",
    "logical_or": "bitwise_or",
    "logical_not": "bitwise_not",
    "sign": "sgn",
    "clamp_min": "maximum",
    "clamp_max": "minimum",
}
_MOVES: Final = frozenset(
    {
        "cat",
        "clone",
        "copy",
        "expand_copy",
        "flip",
        "repeat",
        "select_backward",
        "slice_backward",
        "stack",
        "_to_copy",
    }
)
"""What puts numbers elsewhere, and zeros between them."""
_MAKES: Final = frozenset(
    {
        "empty_like",
        "full_like",
        "new_empty",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones_like",
        "zeros_like",
    }
)
"""What takes from a tensor its shape alone."""

_REDUCTIONS: Final = {
    "sum": "add",
    "any": "bitwise_or",
    "all": "bitwise_and",
    "amax": "maximum",
    "amin": "minimum",
}
"""What takes elements along axes together, and how two of them."""
_NOT_OF_BOOLS: Final = ("add", "sub", "neg", "div", "reciprocal", "sqrt")
_SQUARE: Final = 2
_PAIR: Final = 2
_MAX_REGISTERS: Final = 1 << 16
"""Beyond that torch is no slower."""

Function = Callable[..., Mapping[str, Tensor | None]]


class UnrecordableError(Exception):
    """The function does something that a program cannot say."""


@dataclass(frozen=True)
class _Instruction:
    operation: int
    to: Array
    operands: tuple[Array, ...]
    """Registers, each as long as `to`."""


class _Recorder(TorchDispatchMode):
    """Notes what is done to the numbers of some tensors, by where they lie in memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.instructions: list[_Instruction] = []
        self.constants: dict[bytes, int] = {}
        self.values: list[float] = []
        """What is in each register while it is recorded; NaN where that is of no interest."""
        self._places: dict[int, Array] = {}
        """Register of each element of a storage, by its address."""
        self._kept: list[Tensor] = []
        """What keeps an address from being given away again."""
        self._zero = self.constant(0.0)

    def constant(self, value: float) -> int:
        """Register of a number that is always the same, told apart by its bits."""
        bits = np.float64(value).tobytes()
        if bits not in self.constants:
            self.constants[bits] = self._registers(1)[0]
            self.values[-1] = value
        return self.constants[bits]

    def follow(self, tensor: Tensor) -> Array:
        """Gives a tensor's numbers registers of their own, in its shape."""
        registers = self._registers(tensor.numel()).reshape(tensor.shape)
        self._put(tensor, registers)
        return registers

    def registers_of(self, tensor: Tensor) -> Array:
        """Where a tensor's numbers are, in its shape."""
        if self._follows(tensor):
            return self._view(tensor).copy()  # something else may be written there later
        values = tensor.detach().to(torch.float64).numpy()
        places = [self.constant(float(value)) for value in values.reshape(-1)]
        return np.array(places, np.int32).reshape(values.shape)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Does what is asked, and notes it if a followed number takes part."""
        kwargs = kwargs or {}
        if not any(self._follows(one) for one in _tensors((*args, *kwargs.values()))):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__.removesuffix("_")  # changed in place or not
        if func.is_view or name in _MAKES:
            return func(*args, **kwargs)
        registers = self._noted(name, func, args, kwargs)
        result = func(*args, **kwargs)
        self._put(result, registers)
        return result

    def _noted(self, name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Array:
        if name in _MOVES:
            return self._moved(name, func, args, kwargs)
        if not kwargs.keys() <= {"alpha"}:
            raise UnrecordableError(f"{func} with {', '.join(kwargs)}")
        if name in _REDUCTIONS:
            return self._reduced(name, *args)
        if name == "cumsum":
            return self._running_sum(args[0], args[1])
        name = _SAME_AS.get(name, name)
        if name == "pow":
            return self._power(*args)
        if name == "rsub":
            name, args = "sub", (args[1], args[0])
        if name in CODES:
            return self._elementwise(name, args, kwargs)
        raise UnrecordableError(str(func))

    def _elementwise(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Array:
        if name in _NOT_OF_BOOLS and not any(_is_float(one) for one in args):
            msg = f"{name} of bools"
            raise UnrecordableError(msg)
        given = [self._operand(one) for one in args]
        if kwargs.get("alpha", 1) != 1:
            factor = np.array(self.constant(float(kwargs["alpha"])), np.int32)
            given[1] = self.do("mul", given[1], factor)
        return self.do(name, *given)

    def _power(self, base: Tensor, exponent: Any) -> Array:
        """Those that are no matter of rounding, as torch does them."""
        registers = self.registers_of(base)
        if exponent == _SQUARE:
            return self.do("mul", registers, registers)
        if exponent == 1:
            return registers
        if exponent == 0:
            return np.full_like(registers, self.constant(1.0))
        msg = f"pow with {exponent}"
        raise UnrecordableError(msg)

    def do(self, name: str, *operands: Array) -> Array:
        """Notes an elementwise operation on registers; where the result is, broadcast."""
        spread = np.broadcast_arrays(*operands)
        to = self._registers(spread[0].size)
        self.instructions.append(
            _Instruction(CODES[name], to, tuple(one.reshape(-1) for one in spread))
        )
        return to.reshape(spread[0].shape)

    def _moved(self, name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Array:
        """The same done to the registers themselves; where it puts a zero, there is register 0."""
        if name == "copy":
            return np.broadcast_to(self.registers_of(args[1]), args[0].shape)
        if name == "_to_copy":
            registers = self.registers_of(args[0])
            if kwargs.get("dtype") == torch.bool:
                return self.do("ne", registers, self._operand(0.0))
            return registers

        def places(one: Any) -> Any:
            if isinstance(one, Tensor):
                return torch.from_numpy(self.registers_of(one).astype(np.int64))
            return [places(each) for each in one] if isinstance(one, list) else one

        moved: Array = func(*map(places, args), **kwargs).numpy()
        return moved

    def _operand(self, one: Any) -> Array:
        if isinstance(one, Tensor):
            return self.registers_of(one)
        return np.array(self.constant(float(one)), np.int32)

    def _registers(self, count: int) -> Array:
        first = len(self.values)
        if first + count > _MAX_REGISTERS:
            msg = f"more than {_MAX_REGISTERS} numbers"
            raise UnrecordableError(msg)
        self.values.extend([np.nan] * count)
        return np.arange(first, first + count, dtype=np.int32)

    def _follows(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._places

    def _put(self, tensor: Tensor, registers: Array) -> None:
        """Says where a tensor's numbers are from now on."""
        if tensor.dtype not in (torch.float64, torch.bool):
            msg = f"numbers of {tensor.dtype}"
            raise UnrecordableError(msg)
        address = tensor.untyped_storage().data_ptr()
        if address not in self._places:
            self._places[address] = self._places_of(tensor)
            self._kept.append(tensor)
        self._view(tensor)[...] = registers

    def _places_of(self, tensor: Tensor) -> Array:
        """Registers of a whole storage that is followed from now on: constants so far."""
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() == storage.nbytes():
            return np.empty(tensor.numel(), np.int32)  # all of it is written to
        whole = torch.empty(0, dtype=tensor.dtype).set_(storage)
        return self.registers_of(whole)

    def _view(self, tensor: Tensor) -> Array:
        places = self._places[tensor.untyped_storage().data_ptr()]
        size = places.itemsize
        strides = [stride * size for stride in tensor.stride()]
        offset = tensor.storage_offset() * size
        return np.ndarray(tuple(tensor.shape), places.dtype, places, offset, strides)

    # -- along an axis ---------------------------------------------------------------------------

    def _running_sum(self, tensor: Tensor, dim: int) -> Array:
        values = np.moveaxis(self.registers_of(tensor), dim, 0)
        found = [values[0]]
        for value in values[1:]:
            found.append(self.do("add", found[-1], value))
        return np.moveaxis(np.stack(found), 0, dim)

    def _reduced(
        self, name: str, tensor: Tensor, dim: int | list[int] | None = None, *keepdim: bool
    ) -> Array:
        values = self.registers_of(tensor)
        axes = [dim] if isinstance(dim, int) else (dim or list(range(values.ndim)))
        axes = sorted(axis % values.ndim for axis in axes)
        found = np.moveaxis(values, axes, range(len(axes)))
        found = found.reshape(-1, *found.shape[len(axes) :])
        if name == "sum" and len(found) > _PAIR:
            msg = f"sum of {len(found)} numbers, whose order is torch's own affair"
            raise UnrecordableError(msg)
        total = found[0]
        for value in found[1:]:
            total = self.do(_REDUCTIONS[name], total, value)
        return np.expand_dims(total, tuple(axes)) if any(keepdim) else total


def record(function: Function, arguments: Sequence[Tensor]) -> Program:
    """The program of a function of one sample.

    Args:
        function: of tensors like the arguments; rows independent. Its results are `[1, …]`, float64
            or bool, or None. It may call autograd.
        arguments: `[1, …]` float64 contiguous, of usual values: what the function does must not
            depend on them.

    Raises:
        UnrecordableError: the function does something that a program cannot say.

    Example:
        >>> half = torch.full((1, 2), 0.5, dtype=torch.float64)
        >>> program = record(lambda x: {"square": (x * x).sum(-1)}, [half])
        >>> [part for part in program.parts]
        ['square']
    """
    recorder = _Recorder()
    inputs = [recorder.follow(argument) for argument in arguments]
    with recorder:
        results = function(*arguments)
    places = {
        name: None if result is None else recorder.registers_of(result)[0]
        for name, result in results.items()
    }
    return _assembled(recorder, inputs, places)


def _assembled(
    recorder: _Recorder, inputs: Sequence[Array], places: Mapping[str, Array | None]
) -> Program:
    """The program without what nothing depends on; registers are numbered anew."""
    zero = recorder.constant(0.0)
    kept = {name: one for name, one in places.items() if one is not None and (one != zero).any()}
    results = np.concatenate([one.reshape(-1) for one in kept.values()])
    used = np.zeros(len(recorder.values), np.bool_)
    used[results] = True
    instructions = []
    for one in reversed(recorder.instructions):
        if used[one.to].any():
            instructions.append(one)
            used[one.to] = True
            for operand in one.operands:
                used[operand] = True
    instructions.reverse()
    number = (np.cumsum(used) - 1).astype(np.int32)
    lists = [number[np.concatenate(one.operands)] for one in instructions]
    begins = np.cumsum([0, *map(len, lists)])[:-1]
    reads = [
        (number[register], table, column, 0)
        for table, registers in enumerate(inputs)
        for column, register in enumerate(registers.reshape(-1))
        if used[register]
    ]
    ends = np.cumsum([one.size for one in kept.values()])
    spans = {
        name: (slice(int(end) - one.size, int(end)), one.shape)
        for (name, one), end in zip(kept.items(), ends, strict=True)
    }
    return Program(
        np.array(
            [
                (one.operation, len(one.to), number[one.to[0]], begin)
                for one, begin in zip(instructions, begins, strict=True)
            ],
            INSTRUCTION,
        ),
        np.concatenate([np.zeros(0, np.int32), *lists]),
        np.array(reads, READ),
        np.array(recorder.values)[used],
        number[results],
        {name: spans.get(name) for name in places},
    )


def _is_float(one: Any) -> bool:
    return one.is_floating_point() if isinstance(one, Tensor) else isinstance(one, float)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
