"""Tensors that the service keeps: what stands for them here, and how one is uploaded again."""

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lossd_client.errors import UnknownRefError
from lossd_client.wire import Array, view_bytes

Keep = Literal["array", "nothing"]
"""What a `TensorRef` holds on to: the array, to upload it again, or nothing."""


@dataclass(frozen=True, eq=False, repr=False, slots=True, weakref_slot=True)
class TensorRef:
    """A tensor that the service keeps; stands wherever a tensor may stand.

    Made by `put`. The service forgets a tensor that was not used for a while, or that had to
    make room, and all of them when it starts anew. Then the client uploads the array again, so a
    `TensorRef` holds the array (or a copy, where it had to be fetched or converted) in memory for
    as long as it lives; with `put(…, keep="nothing")` it does not, and `UnknownRefError` is raised
    instead.

    Attributes:
        dtype: name of the dtype, e.g. `float32`.
        shape: shape, the sample axis first.
        nbytes: size of the values in bytes.
        upload: how it came to be kept, and how it can be again; for the client's own use.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    upload: "Upload"

    @property
    def ref(self) -> str:
        """What names the tensor in a request; another one after an upload to a new process."""
        return self.upload.ref

    def __repr__(self) -> str:
        return f"TensorRef({self.ref[:8]}…, {self.dtype}, {list(self.shape)})"


class Upload:
    """Where a kept tensor came from. Safe to share between threads.

    Made before the first upload, so that it knows the values that were sent.

    Attributes:
        ref: what the service called it last.
        count: how often it was uploaded.
        lock: held while it is uploaded again, so that many calls upload it once.
    """

    def __init__(self, array: Array | None) -> None:
        self.ref = ""
        self.count = 0
        self.lock = threading.Lock()
        self._array = array
        self._digest = b"" if array is None else _digest(array)

    def array(self) -> Array | None:
        """What to upload again; None where nothing was kept.

        Raises:
            ValueError: the array holds other values than at the time of `put`; results would be
                those of another tensor.
        """
        if self._array is not None and _digest(self._array) != self._digest:
            raise ValueError("an array was changed after put and cannot be uploaded again; put it")
        return self._array

    def done(self, ref: str) -> None:
        """Note that it is kept, under this ref."""
        self.ref = ref
        self.count += 1


@dataclass(frozen=True)
class Use:
    """A kept tensor in one request: which it was, and under which of its refs."""

    tensor: TensorRef
    ref: str
    count: int

    @classmethod
    def of(cls, tensor: TensorRef) -> "Use":
        """The use of a tensor now."""
        return cls(tensor, tensor.ref, tensor.upload.count)

    @property
    def is_outdated(self) -> bool:
        """Whether the tensor was uploaded again since."""
        return self.tensor.upload.count != self.count


class Renewals:
    """Which tensors one call has had uploaded again.

    Each at most once while the service answers. After an attempt that failed otherwise it may be
    another process, which never had what the one before was sent.
    """

    def __init__(self) -> None:
        self._done: dict[TensorRef, int] = {}

    def due(self, error: UnknownRefError, uses: Iterable[Use], failed: int) -> list[Use]:
        """What to upload before the call is repeated; nothing where that would not help.

        Args:
            error: what the service says.
            uses: of tensors in the request.
            failed: how many attempts of the call have failed otherwise so far.
        """
        told = " ".join([error.detail, *(each.message for each in error.errors)])
        due = {
            use.tensor: use
            for use in uses
            if use.ref in told and self._done.get(use.tensor, -1) < failed
        }
        self._done |= dict.fromkeys(due, failed)
        return list(due.values())


def _digest(array: Array) -> bytes:
    return hashlib.sha256(view_bytes(array)).digest()
