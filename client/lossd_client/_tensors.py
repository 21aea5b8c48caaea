"""Arrays of the wire from whatever a caller holds: numpy, torch, other libraries, lists.

Torch is never imported: a tensor is recognised by what it can do, on CPU and on a GPU alike.
"""

import sys
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from lossd_client.wire import NUMPY_DTYPES, Array, Json, dtype_name

_DLPACK_CPU = 1
_SCALARS = frozenset({bool, int, float, str})
_JSON_FORMS = ("base64", "npy", "png", "ref", "rle")


@runtime_checkable
class TorchTensor(Protocol):
    """The part of `torch.Tensor` that leads to its values."""

    @property
    def dtype(self) -> Any:
        """Torch's element type."""

    def detach(self) -> Any:
        """The tensor without its history."""

    def cpu(self) -> Any:
        """The tensor in main memory."""


@runtime_checkable
class DLPackArray(Protocol):
    """An array of any library that exports DLPack."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Capsule of the data."""

    def __dlpack_device__(self) -> tuple[Any, int]:
        """Kind and number of the device that holds the data."""


@runtime_checkable
class _ConvertibleArray(Protocol):
    def __array__(self) -> Array: ...


TensorLike = npt.ArrayLike | TorchTensor | DLPackArray
"""What `evaluate` takes as a tensor."""


JsonTensor = Mapping[str, Any]
"""A tensor in one of the forms it has in JSON, e.g. `{"rle": {"size", "counts"}}`."""


def to_array(value: TensorLike, name: str) -> Array:
    """The tensor as a numpy array of a dtype that can travel; without a copy where possible.

    Args:
        value: numpy array, torch tensor (any device; its history is ignored), anything with
            `__array__` or `__dlpack__`, or nested lists and numbers, which become float64,
            int64 or bool as numpy decides.
        name: the input's name, for messages.

    Returns:
        An array of the value's shape and dtype.

    Raises:
        TypeError: the dtype cannot travel; the message names the input.
        ValueError: nested lists are ragged; the message names the input.

    Example:
        >>> to_array([[0.5, 1.0]], "logits")
        array([[0.5, 1. ]])
        >>> to_array(["a"], "target")
        Traceback (most recent call last):
        TypeError: input 'target': dtype str32 cannot be sent; use one of bool, uint8, int8, \
int16, int32, int64, float16, bfloat16, float32, float64
    """
    try:
        array = _numpy_array(value)
    except ValueError as error:
        raise ValueError(f"input {name!r}: {error}") from error
    try:
        dtype_name(array)
    except TypeError as error:
        raise TypeError(f"input {name!r}: {error}") from error
    return array


def json_tensor(value: JsonTensor, name: str) -> Json:
    """A tensor's JSON form, with arrays as lists and bytes as text.

    Args:
        value: what the caller gave; the service reads what it holds.
        name: the input's name, for messages.

    Raises:
        ValueError: it is in none of the forms, or holds bytes that are no text.

    Example:
        >>> json_tensor({"rle": {"size": np.array([2, 2]), "counts": b"04"}}, "target")
        {'rle': {'size': [2, 2], 'counts': '04'}}
    """
    if not any(form in value for form in _JSON_FORMS):
        raise ValueError(f"input {name!r}: a mapping needs one of {', '.join(_JSON_FORMS)}")
    try:
        return _plain(value)
    except UnicodeDecodeError as error:
        raise ValueError(f"input {name!r}: bytes are not text; write them in base64") from error


def _plain(value: object) -> Json:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, bytes):  # as pycocotools gives its counts
        return value.decode("ascii")
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        # Run lengths are long lists of numbers, which need no look at each.
        return value if _SCALARS.issuperset(map(type, value)) else [_plain(each) for each in value]
    return value


def _numpy_array(value: TensorLike) -> Array:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, TorchTensor):
        return _torch_array(value)
    if isinstance(value, DLPackArray) and not _is_readable_in_place(value):
        return np.from_dlpack(value, device="cpu")
    return np.asarray(value)


def _torch_array(tensor: TorchTensor) -> Array:
    there = tensor.detach().cpu()
    if str(tensor.dtype) != "torch.bfloat16":
        array: Array = there.numpy()
        return array
    # numpy() refuses bfloat16, so its bits travel as int16; a module that made the tensor is
    # loaded, which is not the same as importing it here.
    bits: Array = there.view(sys.modules["torch"].int16).numpy()
    return bits.view(NUMPY_DTYPES["bfloat16"])


def _is_readable_in_place(value: DLPackArray) -> bool:
    # __array__ also covers bfloat16, which numpy's DLPack does not, but not every library
    # fetches from a device that way.
    kind, _ = value.__dlpack_device__()
    return int(kind) == _DLPACK_CPU and isinstance(value, _ConvertibleArray)
