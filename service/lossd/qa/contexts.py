"""Contexts that callers keep here: what the images of a data set have in common.

A context is two tables of whole numbers, the histogram `[C, 256]` and the outlines `[C, 8, 4]`,
and, once the sub-scores of all images are known, their medians and spreads. None of it depends on
the order, the company or the sharding in which the images were scored. A name belongs to the caller
who gave it, putting is repeatable, and what is kept is bounded in bytes for each caller: beyond,
the contexts used longest ago go. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lossd import metrics
from lossd.callers import Caller
from lossd.qa.judging import Backdrop
from lossd.qa.levels import Counts
from lossd.qa.suspicion import Centres, Scores, centres
from lossd.settings import Settings
from lossd_client.errors import TooLargeError
from lossd_client.qa_wire import ContextState

ENTRY_BYTES = 1024
"""What a context is charged beyond its table."""

_DIGEST_DIGITS = 32


@dataclass(frozen=True, eq=False)
class Context:
    """One data set; it never changes, another one takes its name."""

    name: str
    histogram: Counts
    """`[C, 256]` int64, read-only."""
    outlines: Counts | None
    """`[C, 8, 4]` int64, read-only; None where nobody has said them."""
    centres: Centres | None
    backdrop: Backdrop
    digest: str

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.histogram.shape[0])

    @property
    def state(self) -> ContextState:
        """How much it is good for."""
        return "losses" if self.centres is None else "sealed"

    @property
    def nbytes(self) -> int:
        """What it is charged: its tables, and as much for what is computed from them."""
        tables = (self.histogram, self.outlines)
        return 2 * sum(table.nbytes for table in tables if table is not None) + ENTRY_BYTES


def make_context(
    name: str, histogram: Counts, outlines: Counts | None, sub_scores: Scores | None
) -> Context:
    """A context of a data set.

    Args:
        name: what its caller calls it.
        histogram: `[C, 256]` at least 0, with less than 2^53 pixels.
        outlines: `[C, 8, 4]`, as `qa_wire.OUTLINE_SUMS`; None where they are not known.
        sub_scores: `[N, 4]` of all images, finite or NaN; None where they are not known yet.
    """
    counts = _frozen(histogram)
    lines = None if outlines is None else _frozen(outlines)
    among = None if sub_scores is None else centres(sub_scores)
    digest = hashlib.sha256(f"{list(counts.shape)}\0{among}\0".encode())
    digest.update(counts.tobytes())
    digest.update(b"" if lines is None else lines.tobytes())
    backdrop = Backdrop.of(counts, lines, among)
    return Context(name, counts, lines, among, backdrop, digest.hexdigest()[:_DIGEST_DIGITS])


def _frozen(table: Counts) -> Counts:
    counts = np.array(table, np.int64)
    counts.flags.writeable = False
    return counts


@dataclass
class _Entry:
    context: Context
    used_s: float


@dataclass
class _Share:
    """One caller's contexts by name, the one used longest ago first."""

    entries: OrderedDict[str, _Entry] = field(default_factory=OrderedDict)
    nbytes: int = 0


class ContextStore:
    """Contexts by owner and name; every method may be called from any thread.

    Args:
        settings: budget of a caller and time to live.
        clock: seconds that only grow.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget_bytes = settings.key_context_mib << 20
        self._ttl_s = settings.context_ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._shares: dict[str, _Share] = {}

    @property
    def budget_bytes(self) -> int:
        """How much one caller may keep."""
        return self._budget_bytes

    def put(self, caller: Caller, context: Context) -> bool:
        """Keeps a context, in the place of one of the same name; whether there was one.

        Raises:
            TooLargeError: it is larger than the caller's budget.
        """
        if context.nbytes > self._budget_bytes:
            msg = f"the context takes {context.nbytes} bytes; this caller may keep "
            raise TooLargeError(f"{msg}{self._budget_bytes}")
        with self._lock:
            self._expire()
            share = self._shares.get(caller.name, _Share())
            was_there = context.name in share.entries
            if was_there:
                self._drop(caller.name, context.name)
            while share.nbytes + context.nbytes > self._budget_bytes:
                self._drop(caller.name, next(iter(share.entries)))
                metrics.QA_CONTEXT_EVICTIONS.labels("budget").inc()
            self._shares[caller.name] = share  # it went with its last context
            share.entries[context.name] = _Entry(context, self._clock())
            share.nbytes += context.nbytes
            metrics.QA_CONTEXTS.inc()
            return was_there

    def find(self, caller: Caller, name: str) -> Context | None:
        """A context of the caller's, which this counts as a use of; None if there is none."""
        with self._lock:
            self._expire()
            share = self._shares.get(caller.name)
            entry = None if share is None else share.entries.get(name)
            if share is None or entry is None:
                return None
            entry.used_s = self._clock()
            share.entries.move_to_end(name)
            return entry.context

    def delete(self, caller: Caller, name: str) -> bool:
        """Keeps a context no longer; whether there was one."""
        with self._lock:
            self._expire()
            share = self._shares.get(caller.name)
            if share is None or name not in share.entries:
                return False
            self._drop(caller.name, name)
            return True

    @property
    def ttl_s(self) -> float:
        """How long a context is kept after its last use, in seconds."""
        return self._ttl_s

    def expire(self) -> None:
        """Drops what has not been used for too long."""
        with self._lock:
            self._expire()

    # -- with the lock held ----------------------------------------------------------------------

    def _drop(self, owner: str, name: str) -> None:
        share = self._shares[owner]
        share.nbytes -= share.entries.pop(name).context.nbytes
        metrics.QA_CONTEXTS.dec()
        if not share.entries:
            del self._shares[owner]

    def _expire(self) -> None:
        until_s = self._clock() - self._ttl_s
        for owner, share in list(self._shares.items()):
            # Every use moves a context to the end, so the first one kept is younger than none.
            while share.entries:
                name, entry = next(iter(share.entries.items()))
                if entry.used_s > until_s:
                    break
                self._drop(owner, name)
                metrics.QA_CONTEXT_EVICTIONS.labels("ttl").inc()
