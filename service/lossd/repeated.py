"""What callers send again and again is read once: documents, and what follows from them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Mapping
from typing import Any, Final, Generic, TypeVar

import orjson

V = TypeVar("V")

_LONGEST_BYTES: Final = 4096
"""Of a text that is worth keeping; documents of requests have some hundred."""
_MOST_VALUES: Final = 16
"""That are kept of one object."""


def text_of(document: Mapping[str, Any]) -> bytes | None:
    """JSON text of a document, equal for equal ones; None where it cannot stand for it.

    That is where the document is long, or holds what JSON has no word for: orjson writes NaN as
    null, and would pass as that what is to be refused as NaN.

    Example:
        >>> text_of({"losses": ["dice"]}), text_of({"weight": float("nan")}), text_of({"at": {1}})
        (b'{"losses":["dice"]}', None, None)
    """
    try:
        text = orjson.dumps(document)
    except TypeError:
        return None
    return None if len(text) > _LONGEST_BYTES or b"null" in text else text


class Remembered(Generic[V]):
    """What was worked out for objects that are compared by value, for as long as they live.

    Safe to share between threads.

    Example:
        >>> request, areas = {1, 2}, Remembered[int]()
        >>> areas.keep(request, (64, 64), 4096)
        >>> areas.get(request, (64, 64)), areas.get(request, (1, 1)), areas.get({1, 2}, (64, 64))
        (4096, None, None)
    """

    def __init__(self) -> None:
        self._values: dict[int, dict[Hashable, V]] = {}
        self._owners: dict[int, weakref.ref[Any]] = {}
        self._lock = threading.Lock()

    def get(self, owner: object, key: Hashable) -> V | None:
        """What is kept of an object by a key, None if nothing is."""
        values = self._values.get(id(owner))
        return None if values is None else values.get(key)

    def keep(self, owner: object, key: Hashable, value: V) -> None:
        """Keeps it until the object is gone, or the object's many others have come since."""
        number = id(owner)

        def forget(_: object) -> None:
            self._values.pop(number, None)
            self._owners.pop(number, None)

        with self._lock:
            if number not in self._owners:
                self._owners[number] = weakref.ref(owner, forget)
            values = self._values.setdefault(number, {})
            if len(values) >= _MOST_VALUES:
                del values[next(iter(values))]
            values[key] = value
