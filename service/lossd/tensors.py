"""Tensors that callers keep here, to say `{"ref": …}` where a later request takes a tensor.

A ref is a keyed hash of the owner's name and the tensor, so that equal tensors of one caller are
one entry and nobody can name another's. What is kept is bounded in bytes: over a caller's own
budget, the tensors of theirs that were used longest ago go; over the budget of all, those of the
caller who holds most. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lossd import metrics
from lossd.callers import Caller
from lossd.settings import Settings
from lossd_client.errors import TooLargeError
from lossd_client.wire import Array, dtype_name, view_bytes

ENTRY_BYTES = 1024
"""What a tensor is charged beyond its bytes, or a budget would hold any number of small ones."""

_REF_DIGITS = 32  # of the hash's 64: nobody without the secret can look for two that are equal

Reason = Literal["budget", "total", "ttl"]


@dataclass(frozen=True)
class Kept:
    """What is said of a tensor that is kept."""

    ref: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    expires_in_s: float
    """Seconds until it goes, unless it is used before."""
    was_there: bool
    """Whether the caller had kept an equal one already."""


@dataclass(eq=False)
class Entry:
    """One tensor that is kept; whoever holds the entry has it, even when it is kept no more."""

    array: Array
    """Read-only."""
    used_s: float
    uses: int = 0
    is_kept: bool = True

    @property
    def nbytes(self) -> int:
        """What it is charged."""
        return self.array.nbytes + ENTRY_BYTES


@dataclass
class _Share:
    """One caller's tensors, by ref, the one used longest ago first."""

    entries: OrderedDict[str, Entry] = field(default_factory=OrderedDict)
    nbytes: int = 0


class Finder:
    """What one request finds by ref; however often it names a tensor, that is one use of it."""

    def __init__(self, store: TensorStore, caller: Caller) -> None:
        self._store = store
        self._caller = caller
        self._found: dict[str, Entry | None] = {}

    @property
    def used(self) -> list[Entry]:
        """What it has found."""
        return [entry for entry in self._found.values() if entry is not None]

    def __call__(self, ref: str) -> Array | None:
        """The caller's tensor under a ref, read-only; None if there is none."""
        if ref not in self._found:
            self._found[ref] = self._store.find(self._caller, ref)
        entry = self._found[ref]
        return None if entry is None else entry.array


class TensorStore:
    """Tensors by owner and ref; every method may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_drop: Callable[[Entry], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with nothing.

        Args:
            settings: budgets and time to live.
            on_drop: called with each tensor that is kept no more.
            clock: seconds that only grow.
        """
        self._total_bytes = settings.max_tensor_mib << 20
        self._default_bytes = settings.key_tensor_mib << 20
        self._ttl_s = settings.tensor_ttl_s
        self._on_drop = on_drop
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._shares: dict[str, _Share] = {}

    def put(self, caller: Caller, arrays: Mapping[str, Array]) -> dict[str, Kept]:
        """Keeps copies of arrays of wire dtypes; what is said of each, by the same names.

        Raises:
            TooLargeError: they are larger than the caller's budget, or than what is left of all by
                callers who hold no more than this one would.
        """
        nbytes = sum(array.nbytes + ENTRY_BYTES for array in arrays.values())
        budget_bytes = self.budget_bytes(caller)
        if nbytes > budget_bytes:
            msg = f"{len(arrays)} tensors take {nbytes} bytes, {ENTRY_BYTES} of them for each; "
            raise TooLargeError(msg + f"this caller may keep {budget_bytes}")
        return {name: self._put(caller, array) for name, array in arrays.items()}

    def _put(self, caller: Caller, array: Array) -> Kept:
        ref = self._ref(caller.name, array)
        with self._lock:
            self._expire()
            entry = self._use(caller.name, ref)
            if entry is not None:
                return self._kept(ref, entry, was_there=True)
        copy = np.array(array, order="C")  # outside of the lock: megabytes take milliseconds
        kept = copy.view()
        kept.flags.writeable = False
        with self._lock:
            entry = self._use(caller.name, ref)
            if entry is not None:  # an equal one has come in the meantime
                return self._kept(ref, entry, was_there=True)
            return self._kept(ref, self._insert(caller, ref, kept), was_there=False)

    def find(self, caller: Caller, ref: str) -> Entry | None:
        """A tensor of the caller's, which this counts as a use of; None if there is none."""
        with self._lock:
            self._expire()
            entry = self._use(caller.name, ref)
        metrics.TENSOR_LOOKUPS.labels("miss" if entry is None else "hit").inc()
        return entry

    def delete(self, caller: Caller, ref: str) -> bool:
        """Keeps a tensor no longer; whether there was one."""
        with self._lock:
            self._expire()
            share = self._shares.get(caller.name)
            if share is None or ref not in share.entries:
                return False
            self._drop(caller.name, ref)
            return True

    def budget_bytes(self, caller: Caller) -> int:
        """How much a caller may keep."""
        own_mib = caller.allowance.tensor_mib
        own_bytes = self._default_bytes if own_mib is None else own_mib << 20
        return min(self._total_bytes, own_bytes)

    def expire(self) -> None:
        """Drops what has not been used for too long; otherwise the next call does."""
        with self._lock:
            self._expire()

    # -- with the lock held ----------------------------------------------------------------------

    def _use(self, name: str, ref: str) -> Entry | None:
        share = self._shares.get(name)
        entry = None if share is None else share.entries.get(ref)
        if share is not None and entry is not None:
            entry.used_s = self._clock()
            entry.uses += 1
            share.entries.move_to_end(ref)
        return entry

    def _insert(self, caller: Caller, ref: str, array: Array) -> Entry:
        entry = Entry(array, self._clock())
        for name, victim, reason in list(self._victims(caller, entry.nbytes)):
            self._drop(name, victim)
            metrics.TENSOR_EVICTIONS.labels(reason).inc()
        share = self._shares.setdefault(caller.name, _Share())
        share.entries[ref] = entry
        self._account(share, entry.nbytes, 1)
        return entry

    def _victims(self, caller: Caller, nbytes: int) -> Iterator[tuple[str, str, Reason]]:
        """What has to go for so many bytes more of a caller's; nothing goes while this looks."""
        held = {name: share.nbytes for name, share in self._shares.items()}
        oldest = {name: iter(share.entries.items()) for name, share in self._shares.items()}
        held[caller.name] = held.get(caller.name, 0) + nbytes
        while True:
            name = caller.name
            reason: Reason = "budget"
            if held[name] <= self.budget_bytes(caller):
                if sum(held.values()) <= self._total_bytes:
                    return
                # Of several who hold equally much, not the one who brings something new.
                name, reason = (
                    max(held, key=lambda one: (held[one], one != caller.name, one)),
                    "total",
                )
            found = next(oldest.get(name, iter(())), None)
            if found is None:
                others = sum(held.values()) - held[caller.name]
                msg = f"the tensor takes {nbytes} bytes; of the {self._total_bytes} for all callers"
                raise TooLargeError(f"{msg}, {others} are taken by callers who keep less")
            ref, entry = found
            held[name] -= entry.nbytes
            yield name, ref, reason

    def _drop(self, name: str, ref: str) -> None:
        share = self._shares[name]
        entry = share.entries.pop(ref)
        entry.is_kept = False
        self._on_drop(entry)
        self._account(share, -entry.nbytes, -1)
        if not share.entries:
            del self._shares[name]

    def _account(self, share: _Share, nbytes: int, tensors: int) -> None:
        share.nbytes += nbytes
        metrics.TENSORS.inc(tensors)
        metrics.TENSOR_BYTES.inc(nbytes)

    def _expire(self) -> None:
        until_s = self._clock() - self._ttl_s
        for name, share in list(self._shares.items()):
            # Every use moves a tensor to the end, so the first one kept is younger than none.
            while share.entries:
                ref, entry = next(iter(share.entries.items()))
                if entry.used_s > until_s:
                    break
                self._drop(name, ref)
                metrics.TENSOR_EVICTIONS.labels("ttl").inc()

    def _kept(self, ref: str, entry: Entry, *, was_there: bool) -> Kept:
        array = entry.array
        left_s = max(0.0, self._ttl_s - (self._clock() - entry.used_s))
        return Kept(ref, dtype_name(array), array.shape, array.nbytes, left_s, was_there)

    # --------------------------------------------------------------------------------------------

    def _ref(self, name: str, array: Array) -> str:
        # A name holds no zero byte and neither do dtype and shape: no two tensors are one text.
        head = f"{name}\0{dtype_name(array)}\0{list(array.shape)}\0".encode()
        digest = hmac.new(self._secret, head, hashlib.sha256)
        digest.update(view_bytes(array))
        return digest.hexdigest()[:_REF_DIGITS]
