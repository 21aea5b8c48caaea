"""Whose work is done in threads, and in how many."""

import asyncio
import threading

import pytest

from lossd import offload
from lossd.callers import Caller
from lossd.settings import Settings
from lossd_client.wire import JSON, MULTIPART, SAFETENSORS

LARGE = 1 << 20


async def fill(caller: Caller, opened: threading.Event) -> "tuple[list[asyncio.Task[bool]], int]":
    """Many pieces of work of a caller that all wait for something, and how many have begun."""
    begun: list[None] = []
    full = threading.Event()

    def work() -> bool:
        begun.append(None)
        if len(begun) >= offload._THREADS_OF_A_CALLER:  # noqa: SLF001 - what is claimed
            full.set()
        return opened.wait(30)

    tasks = [asyncio.ensure_future(offload.offload(caller, LARGE, work)) for _ in range(100)]
    await asyncio.to_thread(full.wait, 10)
    await asyncio.sleep(0.2)  # whether more of them begin
    return tasks, len(begun)


def test_a_caller_who_has_all_its_threads_at_work_holds_nobody_up() -> None:
    async def run() -> tuple[int, str, list[bool]]:
        opened = threading.Event()
        tasks, begun = await fill(Caller(name="a"), opened)
        other = await asyncio.wait_for(offload.offload(Caller(name="b"), LARGE, lambda: "b"), 5)
        opened.set()
        return begun, other, await asyncio.gather(*tasks)

    begun, other, done = asyncio.run(run())
    assert begun == offload._THREADS_OF_A_CALLER  # noqa: SLF001 - what is claimed
    assert other == "b"
    assert done == [True] * 100


def test_what_is_small_needs_no_thread() -> None:
    here = threading.get_ident()
    where = asyncio.run(offload.offload(Caller(name="a"), 10, threading.get_ident))
    assert where == here


@pytest.mark.parametrize(
    ("kind", "head_bytes", "nbytes", "inline"),
    [
        (JSON, 0, 1000, True),
        (JSON, 0, 1 << 17, False),
        (MULTIPART, 0, 1000, False),
        (SAFETENSORS, 400, 1 << 19, True),
        (SAFETENSORS, 1 << 17, 1 << 19, False),  # its document is long
        (SAFETENSORS, 400, 1 << 20, False),
    ],
)
def test_a_body_is_read_in_a_thread_if_that_takes_long(
    kind: str, head_bytes: int, nbytes: int, *, inline: bool
) -> None:
    body = head_bytes.to_bytes(8, "little") + bytes(nbytes - 8)
    here = threading.get_ident()
    decoding = offload.decode(
        Caller(name="a"), body, kind, Settings(), lambda _: threading.get_ident()
    )
    assert (asyncio.run(decoding) == here) == inline
