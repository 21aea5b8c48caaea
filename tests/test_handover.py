"""Calls from the engine's thread to an event loop: in order, none lost, one wake for many."""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any, TypeVarTuple
from weakref import ref

import pytest

from lossd.handover import handover_to

THREADS, CALLS = 4, 2000
Arguments = TypeVarTuple("Arguments")


class Counting(asyncio.SelectorEventLoop):
    """Counts how often it is woken."""

    woken = 0

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.Handle:
        self.woken += 1
        return super().call_soon_threadsafe(callback, *args, context=context)


def run(main: Callable[[Counting], Coroutine[Any, Any, None]]) -> None:
    """Runs a coroutine function of the loop."""
    loop = Counting()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main(loop))


def test_what_comes_together_wakes_the_loop_once() -> None:
    made: list[int] = []

    async def main(loop: Counting) -> None:
        handover, before = handover_to(loop), loop.woken
        for number in range(5):
            handover.call(partial(made.append, number))
        assert (loop.woken - before, made) == (1, [])
        await asyncio.sleep(0)
        assert made == [0, 1, 2, 3, 4]
        handover.call(partial(made.append, 5))
        await asyncio.sleep(0)
        assert (loop.woken - before, made[-1]) == (2, 5)

    run(main)


def test_what_is_asked_for_several_times_is_called_once_and_then_again() -> None:
    made: list[str] = []

    async def main(loop: Counting) -> None:
        handover = handover_to(loop)

        def note() -> None:
            made.append("once")

        for _ in range(3):
            handover.call_once(note)
        assert made == []
        await asyncio.sleep(0)
        assert made == ["once"]
        handover.call_once(note)
        await asyncio.sleep(0)
        assert made == ["once", "once"]

    run(main)


def test_what_comes_while_it_looks_is_not_lost() -> None:
    made: list[str] = []

    async def main(loop: Counting) -> None:
        handover = handover_to(loop)
        handover.call(lambda: handover.call(partial(made.append, "later")))
        await asyncio.sleep(0.01)

    run(main)
    assert made == ["later"]


def test_a_call_that_fails_keeps_nobody_waiting() -> None:
    made: list[str] = []
    told: list[str] = []

    def fail() -> None:
        raise ValueError("one of many")

    async def main(loop: Counting) -> None:
        loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        handover = handover_to(loop)
        handover.call(fail)
        handover.call(partial(made.append, "next"))
        await asyncio.sleep(0.01)

    run(main)
    assert (made, told) == (["next"], ["one of many"])


def test_threads_hand_over_everything_in_their_order() -> None:
    made: list[tuple[int, int]] = []

    async def main(loop: Counting) -> None:
        handover, done = handover_to(loop), asyncio.Event()

        def make(thread: int, number: int) -> None:
            made.append((thread, number))
            if len(made) == THREADS * CALLS:
                done.set()

        def work(thread: int) -> None:
            for number in range(CALLS):
                handover.call(partial(make, thread, number))

        for thread in range(THREADS):
            threading.Thread(target=work, args=(thread,)).start()
        await asyncio.wait_for(done.wait(), 30)

    run(main)
    for thread in range(THREADS):
        assert [number for own, number in made if own == thread] == list(range(CALLS))


def test_a_closed_loop_is_told_and_a_loop_is_forgotten() -> None:
    loop = asyncio.new_event_loop()
    handover = handover_to(loop)
    assert handover_to(loop) is handover
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            handover.call(loop.close)
    gone = ref(loop)
    del loop
    gc.collect()
    assert gone() is None
