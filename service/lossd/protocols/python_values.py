"""A request in the values of a Python program: numpy arrays, torch tensors, lists, loss objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from lossd.protocols.arrays import Loc, refuse
from lossd.protocols.json_body import Inputs, Sources, read_input
from lossd_client.wire import NUMPY_DTYPES, Array, LossChoice

_SCALARS = frozenset({bool, int, float, str})


@runtime_checkable
class SupportsChoice(Protocol):
    """A loss of `lossd_client.losses`."""

    def choice(self) -> LossChoice:
        """The loss as a request says it."""


@runtime_checkable
class SupportsDLPack(Protocol):
    """An array of any library, on any device."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Capsule of the data."""

    def __dlpack_device__(self) -> tuple[Any, int]:
        """Kind and number of the device that holds the data."""


LossLike = str | SupportsChoice | LossChoice | Mapping[str, Any]
"""A loss as callers may write it; a mapping has the keys `name`, `params`, `weight`, `label`."""

Losses = LossLike | Sequence[LossLike]
"""One loss or several."""

TensorLike = npt.ArrayLike | torch.Tensor | SupportsDLPack | Mapping[str, Any]
"""What stands for a tensor; a mapping is one of the forms it has in JSON, `{"rle": …}`."""

InputObject = Mapping[str, TensorLike | None]
"""Tensors of one input object by name; None stands for "not given"."""


def python_document(losses: Losses, options: Mapping[str, object]) -> dict[str, Any]:
    """Document of a request, for `read_request` to check.

    Args:
        losses: what to compute.
        options: the other fields; those that are None are not given.
    """
    document = {name: _plain(value) for name, value in options.items() if value is not None}
    if isinstance(losses, list | tuple):
        document["losses"] = [_loss(loss) for loss in losses]
    elif isinstance(losses, str | SupportsChoice | LossChoice | Mapping):
        document["losses"] = [_loss(losses)]
    else:
        document["losses"] = losses
    return document


def python_objects(
    tensors: InputObject, inputs: Sequence[InputObject] | None
) -> list[dict[str, TensorLike]]:
    """Input objects of a call: what it gave by keyword, or as `inputs`.

    Raises:
        InvalidInputError: it gave both, or nothing.
    """
    given = {name: value for name, value in tensors.items() if value is not None}
    if inputs is None:
        if not given:
            refuse(("inputs",), "a request needs its tensors")
        return [given]
    if given:
        refuse(("inputs",), f"give either inputs or {', '.join(given)}, not both")
    if not isinstance(inputs, list | tuple) or not inputs:
        refuse(("inputs",), "are a list of mappings from input name to tensor, at least one")
    objects = []
    for index, entry in enumerate(inputs):
        if not isinstance(entry, Mapping):
            refuse(("inputs", index), f"is a mapping from input name to tensor, got {type(entry)}")
        objects.append({name: value for name, value in entry.items() if value is not None})
    return objects


def read_python_objects(objects: Sequence[Mapping[str, TensorLike]], sources: Sources) -> Inputs:
    """Input objects as arrays, on the caller's memory where it is readable as it is.

    Raises:
        InvalidInputError: lists are ragged.
        MalformedBodyError: a mapping is in none of the forms of a tensor.
        UnknownRefError: a mapping is a ref.
    """
    several = len(objects) > 1
    return [
        {
            name: _array(value, ("inputs", index, name) if several else ("inputs", name), sources)
            for name, value in entry.items()
        }
        for index, entry in enumerate(objects)
    ]


def host_array(tensor: torch.Tensor) -> Array:
    """The values of a tensor as an array: its own memory on the CPU, a copy of another device's."""
    there = tensor.detach().cpu()
    if there.dtype == torch.bfloat16:  # which numpy() does not know
        return there.view(torch.int16).numpy().view(NUMPY_DTYPES["bfloat16"])
    return there.numpy()


def _array(value: TensorLike, loc: Loc, sources: Sources) -> Array:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, torch.Tensor):
        return host_array(value)
    if isinstance(value, Mapping):
        return read_input(_plain(value), loc, sources)
    if isinstance(value, SupportsDLPack):
        return host_array(from_dlpack(value))
    try:
        return np.asarray(value)
    except ValueError as error:
        return refuse(loc, f"is no array: {error}")


def _loss(loss: object) -> object:
    if isinstance(loss, str):  # first, as the other checks take longer
        return loss
    if isinstance(loss, SupportsChoice) and not isinstance(loss, type):
        loss = loss.choice()
    return _plain(loss.model_dump() if isinstance(loss, LossChoice) else loss)


def _plain(value: Any) -> Any:
    """A value with arrays, numpy scalars and tuples as the lists and numbers JSON knows."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        # Run lengths are long lists of numbers, which need no look at each.
        return list(value) if _SCALARS.issuperset(map(type, value)) else list(map(_plain, value))
    if isinstance(value, bytes):  # as pycocotools gives its counts
        return value.decode("ascii", errors="replace")
    return value
