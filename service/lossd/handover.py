"""How an event loop hears from the engine's thread.

Waking a loop takes a system call, in which the engine's thread lets go of Python's lock and may
have to wait until the loop has done with what it was woken for. The answers of a batch come within
microseconds, so the first of them wakes the loop and the others are there when it looks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary, ref


class Handover:
    """Calls that other threads ask a loop for; use `handover_to`, so that a loop has one.

    Args:
        loop: that makes them, in the order they were asked for.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # which is forgotten when nobody else holds it
        self._calls: deque[Callable[[], None]] = deque()
        self._will_look = False
        self._soon: set[Callable[[], None]] = set()

    def call(self, function: Callable[[], None]) -> None:
        """Has the loop call a function soon; from any thread.

        Raises:
            RuntimeError: the loop is closed.
        """
        loop = self._loop()
        if loop is None:  # nobody waits any more
            return
        self._calls.append(function)
        if not self._will_look:
            self._will_look = True  # before it is woken, or it might look before this is noted
            try:
                loop.call_soon_threadsafe(self._look)
            except RuntimeError:
                self._will_look = False
                self._calls.clear()
                raise

    def call_once(self, function: Callable[[], None]) -> None:
        """Has the loop call a function soon, once however often it is asked for until then.

        From the loop's own thread.
        """
        if function not in self._soon:
            self._soon.add(function)
            asyncio.get_running_loop().call_soon(self._call_once, function)

    def _call_once(self, function: Callable[[], None]) -> None:
        self._soon.discard(function)
        function()

    def _look(self) -> None:
        # Before it looks: what comes while it does is seen now, or wakes the loop again.
        self._will_look = False
        try:
            while self._calls:
                self._calls.popleft()()
        except BaseException:  # the loop tells of it; those behind it are not to suffer
            asyncio.get_running_loop().call_soon(self._look)
            raise


_OF_LOOP: WeakKeyDictionary[asyncio.AbstractEventLoop, Handover] = WeakKeyDictionary()


def handover_to(loop: asyncio.AbstractEventLoop) -> Handover:
    """The one that a loop has."""
    handover = _OF_LOOP.get(loop)
    if handover is None:
        handover = _OF_LOOP[loop] = Handover(loop)
    return handover
