"""Drops what callers keep here and use no more: tensors and contexts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)

SWEEP_EVERY_S = 30.0


class Expiring(Protocol):
    """A store whose content has a time to live."""

    def expire(self) -> None:
        """Drops what has not been used for too long."""


@contextlib.asynccontextmanager
async def swept(*stores: Expiring) -> AsyncIterator[None]:
    """Drops what nobody uses while the context is open, also when no call comes."""
    sweep = asyncio.create_task(_sweep(stores), name="sweep")
    sweep.add_done_callback(_tell)
    try:
        yield
    finally:
        sweep.cancel()
        await asyncio.wait([sweep])


async def _sweep(stores: Sequence[Expiring]) -> None:
    while True:
        await asyncio.sleep(SWEEP_EVERY_S)
        for store in stores:
            store.expire()


def _tell(sweep: asyncio.Task[None]) -> None:
    """Says that nothing is swept any more, unless that was asked for: the service does go on."""
    if not sweep.cancelled():
        log.error("sweep_failed", exc_info=sweep.exception())
