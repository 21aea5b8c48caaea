"""What every kind of input needs of its arrays: a refusal that names the field, torch's view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from lossd_client.errors import FieldError, InvalidInputError
from lossd_client.wire import NUMPY_DTYPES, Array

Loc = tuple[str | int, ...]
"""Where something stands in a request."""

FLOATS = ("float16", "bfloat16", "float32", "float64")

SHOWN_CHARACTERS = 80
"""How much of what the caller sent an error repeats."""


class RequestLimits(NamedTuple):
    """What one request may hold."""

    samples: int
    classes: int


def refuse(loc: Loc, message: str) -> NoReturn:
    """Raises the error of a field.

    Raises:
        InvalidInputError: always.
    """
    detail = f"{'.'.join(map(str, loc))}: {message}"
    raise InvalidInputError(detail, errors=[FieldError(loc, message)])


def check_names(entry: Mapping[str, Array], known: tuple[str, ...], loc: Loc) -> None:
    """Refuses inputs that nothing reads.

    Raises:
        InvalidInputError: a name is not among the known ones.
    """
    for name in entry:
        if name not in known:
            shown = name[:SHOWN_CHARACTERS]
            refuse((*loc, shown), f"unknown input {shown!r}; there are {', '.join(known)}")


def native(array: Array, loc: Loc) -> Array:
    """The array in this machine's byte order; files bring the other, and things not numbers.

    Raises:
        InvalidInputError: it does not hold numbers.
    """
    if array.dtype.kind not in "biuf" and array.dtype != NUMPY_DTYPES["bfloat16"]:
        refuse(loc, f"dtype {array.dtype.name} is not a number")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def is_integer(array: Array) -> bool:
    """Whether the array holds integers or booleans."""
    return array.dtype.kind in "biu"


def agreed(values: set[Any], what: str) -> Any:
    """The one value of all input objects.

    Raises:
        InvalidInputError: they differ.
    """
    if len(values) != 1:
        refuse(("inputs",), f"{what} differ between the input objects: {sorted(map(str, values))}")
    return next(iter(values))


def first_index(wrong: Array) -> list[int]:
    """Place of the first true entry."""
    flat = int(wrong.reshape(-1).argmax())
    return [int(axis) for axis in np.unravel_index(flat, wrong.shape)]


def as_floats(array: Array) -> Array:
    """The array in float32, float64 if it is that already; what does not fit is infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float64 if array.dtype == np.float64 else np.float32)


def to_torch(array: Array) -> torch.Tensor:
    """Tensor on the array's memory, which nobody may write to; a copy where torch could not use it.

    torch knows no read-only tensors. The core writes to none of its inputs.
    """
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = array.copy()
    if not array.flags.writeable:
        array = array.view()
        try:
            array.flags.writeable = True
        except ValueError:  # its memory is that of an object that never changes
            array = array.copy()
    if array.dtype == NUMPY_DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
