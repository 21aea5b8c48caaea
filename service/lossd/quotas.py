"""How much callers have used lately, and what they may still. Knows nothing of HTTP.

A quota of n a minute is a bucket of n units that fills up within a minute: after a rest all of
them may be used at once, and within m minutes no more than n · (1 + m). A caller with nothing in
progress and full buckets is as good as a new one and is forgotten: nothing is kept of keys that
are gone. For one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from lossd import metrics
from lossd.callers import Allowance, Caller
from lossd_client.errors import QuotaExceededError, TooLargeError

Minutely = Literal["requests", "samples", "bytes"]
Quota = Literal[Minutely, "concurrency"]

WINDOW_S: Final = 60
_FORGET_EVERY_S: Final = 60.0
# Of a whole bucket: whoever has waited must not fail for the last bit of a float.
_ROUNDING: Final = 1e-9
_NEWEST_SHARE: Final = 0.2  # of the request that ended last, in the mean of their times
_SHORTEST_WAIT_S: Final = 1e-3  # for an end that can come at any moment


@dataclass(frozen=True)
class Standing:
    """How a caller stands with one quota."""

    quota: Quota
    limit: int
    left: int
    full_in_s: float | None
    """Seconds until all of it is there again; None of what has no time."""


class TokenBucket:
    """Units that may be used, `limit` at most; those used come back evenly within a minute."""

    def __init__(self, limit: int, now_s: float) -> None:
        self.limit = limit
        self._left = float(limit)
        self._filled_s = now_s

    def left(self, now_s: float) -> float:
        """Units there are; below 0 where more was taken than there was."""
        self._left = min(self.limit, self._left + self._rate * (now_s - self._filled_s))
        self._filled_s = now_s
        return self._left

    def wait_s(self, units: float, now_s: float) -> float:
        """Seconds until there are so many, if nobody takes any; 0 if there are."""
        missing = units - self.left(now_s)
        return missing / self._rate if missing > self.limit * _ROUNDING else 0.0

    def take(self, units: float, now_s: float) -> None:
        """Takes units, also such as are not there; fewer than none are put back."""
        self._left = self.left(now_s) - units

    def resize(self, limit: int, now_s: float) -> None:
        """Another limit; what is full stays full, and what is owed takes as long as before."""
        self._left = self.left(now_s) * limit / self.limit
        self.limit = limit

    @property
    def _rate(self) -> float:
        return self.limit / WINDOW_S


class Usage:
    """What one caller has used lately and has in progress."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self._buckets: dict[Minutely, TokenBucket] = {}
        self._concurrent_limit: int | None = None
        self._in_progress: dict[Work, float] = {}  # since when, the oldest first
        self._mean_s: float | None = None

    def allow(self, allowance: Allowance) -> None:
        """Limits from now on; None is without."""
        now_s = self._clock()
        mib = allowance.mib_per_minute
        limits: dict[Minutely, int | None] = {
            "requests": allowance.requests_per_minute,
            "samples": allowance.samples_per_minute,
            "bytes": None if mib is None else mib << 20,
        }
        self._concurrent_limit = allowance.concurrent_requests
        if self._concurrent_limit is not None:
            self._start_counting("concurrency")
        for quota, limit in limits.items():
            if limit is None:
                self._buckets.pop(quota, None)
            elif quota in self._buckets:
                self._buckets[quota].resize(limit, now_s)
            else:
                self._buckets[quota] = TokenBucket(limit, now_s)
                self._start_counting(quota)

    def let_in(self, announced_bytes: int | None) -> Work:
        """Takes a request in progress and charges it with what its head says.

        Args:
            announced_bytes: length of its body; None if that is known only at its end.

        Raises:
            TooLargeError: its body is more than a whole bucket.
            QuotaExceededError: a quota is used up; nothing is charged.
        """
        work = Work(self, announced_bytes)
        wanted: dict[Minutely, int] = {"requests": 1, "bytes": announced_bytes or 0}
        waits = self._waits(wanted)
        waits["concurrency"] = self._slot_wait_s()
        self._refuse_longest(waits, wanted)
        self._in_progress[work] = self._clock()
        for quota, units in wanted.items():
            self.charge(quota, units)
        return work

    def check(self, quota: Minutely, units: int) -> None:
        """Lets through what is there.

        Raises:
            TooLargeError: it is more than a whole bucket.
            QuotaExceededError: it is more than there is now.
        """
        self._refuse_longest(self._waits({quota: units}), {quota: units})

    def charge(self, quota: Minutely, units: int) -> None:
        """Takes units, also such as are not there; fewer than none are put back."""
        if quota in self._buckets:
            self._buckets[quota].take(units, self._clock())

    def check_unannounced(self, received_bytes: int) -> None:
        """Lets a body grow whose length nobody knows.

        Args:
            received_bytes: what has come of it, and is charged.

        Raises:
            TooLargeError: it is more than a whole bucket.
            QuotaExceededError: more than a whole bucket is owed, by several such bodies.
        """
        bucket = self._buckets.get("bytes")
        if bucket is None:
            return
        if received_bytes > bucket.limit:
            self._refuse_for_ever("bytes", received_bytes, bucket.limit)
        if bucket.left(self._clock()) < -bucket.limit:
            self._refuse_longest(self._waits({"bytes": 0}), {"bytes": received_bytes})

    def end(self, work: Work) -> None:
        """A request is no longer in progress."""
        took_s = self._clock() - self._in_progress.pop(work)
        mean_s = took_s if self._mean_s is None else self._mean_s
        self._mean_s = mean_s + _NEWEST_SHARE * (took_s - mean_s)

    def standings(self) -> list[Standing]:
        """How it stands with each quota that there is."""
        now_s = self._clock()
        found = []
        for quota, bucket in self._buckets.items():
            left = math.floor(bucket.left(now_s) + bucket.limit * _ROUNDING)
            full_in_s = bucket.wait_s(bucket.limit, now_s)
            found.append(Standing(quota, bucket.limit, max(0, left), full_in_s))
        limit = self._concurrent_limit
        if limit is not None:
            left = max(0, limit - len(self._in_progress))
            found.append(Standing("concurrency", limit, left, None))
        return found

    def document(self) -> dict[str, dict[str, float]]:
        """The same for callers who ask."""
        found: dict[str, dict[str, float]] = {}
        for each in self.standings():
            found[each.quota] = {"limit": each.limit, "left": each.left}
            if each.full_in_s is not None:
                found[each.quota] |= {"window_s": WINDOW_S, "full_in_s": round(each.full_in_s, 3)}
        return found

    def is_as_new(self) -> bool:
        """Whether nothing is lost with it."""
        return not self._in_progress and not any(each.full_in_s for each in self.standings())

    def _start_counting(self, quota: Quota) -> None:
        # A rate needs a value before the first event.
        metrics.QUOTA_REFUSALS.labels(quota, self._name)

    def _waits(self, wanted: Mapping[Minutely, int]) -> dict[Quota, float]:
        now_s = self._clock()
        waits: dict[Quota, float] = {}
        for quota, units in wanted.items():
            bucket = self._buckets.get(quota)
            if bucket is not None:
                if units > bucket.limit:
                    self._refuse_for_ever(quota, units, bucket.limit)
                waits[quota] = bucket.wait_s(units, now_s)
        return waits

    def _slot_wait_s(self) -> float:
        """Seconds until one of the requests in progress ends, if one must; an estimate.

        All take the mean time of those before, as old as the oldest is now; then one may end at any
        time, on average one of so many.
        """
        requests = len(self._in_progress)
        if self._concurrent_limit is None or requests < self._concurrent_limit:
            return 0.0
        oldest_s = self._clock() - next(iter(self._in_progress.values()))
        mean_s = oldest_s if self._mean_s is None else self._mean_s
        return max(mean_s - oldest_s, mean_s / requests, _SHORTEST_WAIT_S)

    def _refuse_longest(self, waits: Mapping[Quota, float], wanted: Mapping[Minutely, int]) -> None:
        """Refuses what has to wait, with the longest of the waits: only then it is let in."""
        if not any(waits.values()):
            return
        quota = max(waits, key=lambda each: waits[each])
        metrics.QUOTA_REFUSALS.labels(quota, self._name).inc()
        (standing,) = [each for each in self.standings() if each.quota == quota]
        wait_s = waits[quota]
        if quota == "concurrency":
            said = f"{standing.limit} requests at a time, which are in progress"
        else:
            said = f"{standing.limit} a minute, {standing.left} left, {wanted[quota]} wanted"
        msg = f"{quota}: {said}; try again in {wait_s:.3g} s"
        raise QuotaExceededError(msg, retry_after_s=wait_s)

    def _refuse_for_ever(self, quota: Quota, units: int, limit: int) -> NoReturn:
        metrics.QUOTA_REFUSALS.labels(quota, self._name).inc()
        msg = f"{quota}: {limit} a minute, {units} in this request, which will never be let in"
        raise TooLargeError(msg)


class Work:
    """A request that was let in, and what it is charged."""

    def __init__(self, usage: Usage, announced_bytes: int | None) -> None:
        self._usage = usage
        self._announced_bytes = announced_bytes
        self._received_bytes = 0
        self._returnable: dict[Minutely, int] = {"requests": 1}

    @property
    def announced_bytes(self) -> int:
        """Length of its body, 0 if that is known only at its end."""
        return self._announced_bytes or 0

    def receive_bytes(self, nbytes: int) -> None:
        """So much of the body has come; of an unannounced one it is charged only now.

        Raises:
            TooLargeError: it is more than a whole bucket.
            QuotaExceededError: more than a whole bucket is owed.
        """
        self._received_bytes += nbytes
        if self._announced_bytes is None:
            self._usage.charge("bytes", nbytes)
            self._usage.check_unannounced(self._received_bytes)

    def receive_shared_bytes(self, nbytes: int) -> None:
        """Charges what lies in shared memory, which no head announces.

        Raises:
            TooLargeError: it is more than a whole bucket.
            QuotaExceededError: it is more than there is now; nothing is charged.
        """
        self._usage.check("bytes", nbytes)
        self._usage.charge("bytes", nbytes)

    def charge_samples(self, samples: int) -> None:
        """Charges what is about to wait for the engine.

        Raises:
            TooLargeError: it is more than a whole bucket.
            QuotaExceededError: it is more than there is now; nothing is charged.
        """
        self._usage.check("samples", samples)
        self._usage.charge("samples", samples)
        self._returnable["samples"] = samples

    def give_back(self) -> None:
        """Nothing was done for it: only the bytes that have come stay charged."""
        for quota, units in self._returnable.items():
            self._usage.charge(quota, -units)

    def end(self, *, arrived_bytes: int = 0) -> None:
        """It is answered, or will never be; bytes that never came are given back.

        Args:
            arrived_bytes: what came of the body, where that is more than was received.
        """
        if self._announced_bytes is not None:
            came_bytes = max(self._received_bytes, arrived_bytes)
            self._usage.charge("bytes", min(0, came_bytes - self._announced_bytes))
        self._usage.end(self)


class Quotas:
    """The usage of every caller who has used anything lately.

    Args:
        defaults: what holds for whoever is allowed nothing else.
        clock: seconds, monotonic.
    """

    def __init__(self, defaults: Allowance, clock: Callable[[], float] = time.monotonic) -> None:
        self._defaults = defaults
        self._clock = clock
        self._usages: dict[str, tuple[Allowance, Usage]] = {}
        self._forget_s = clock() + _FORGET_EVERY_S

    def usage(self, caller: Caller) -> Usage:
        """A caller's usage, with the limits that hold for it now."""
        self._forget()
        allowance, usage = self._usages.get(caller.name, (None, None))
        if usage is None:
            usage = Usage(caller.name, self._clock)
        if allowance is not caller.allowance:
            usage.allow(self._effective(caller.allowance))
            self._usages[caller.name] = caller.allowance, usage
        return usage

    def _effective(self, own: Allowance) -> Allowance:
        return self._defaults.model_copy(update=own.model_dump(exclude_none=True))

    def _forget(self) -> None:
        now_s = self._clock()
        if now_s >= self._forget_s:
            self._forget_s = now_s + _FORGET_EVERY_S
            kept = {name: used for name, used in self._usages.items() if not used[1].is_as_new()}
            self._usages = kept
