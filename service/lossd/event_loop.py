"""How late the event loop is: what holds it up, holds up every request and every probe."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import structlog

from lossd import metrics

INTERVAL_S = 0.1

log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def watched_event_loop() -> AsyncIterator[None]:
    """Measures the running loop's lag while the context is open."""
    watch = asyncio.create_task(_watch(), name="event loop watch")
    watch.add_done_callback(_tell)
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.wait([watch])


async def _watch() -> None:
    while True:
        due_s = time.monotonic() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        metrics.EVENT_LOOP_LAG_SECONDS.observe(max(0.0, time.monotonic() - due_s))


def _tell(watch: asyncio.Task[None]) -> None:
    """Says that the lag is measured no more, unless it was asked for: the service does go on."""
    if not watch.cancelled():
        log.error("event_loop_watch_failed", exc_info=watch.exception())
