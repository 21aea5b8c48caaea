"""What happened, noted by many threads."""

from __future__ import annotations

import threading
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_EXAMPLES: Final = 20


class Tally:
    """Counts of everything, and examples of what must not be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()
        self.answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Of each fault, by what was answered."""
        self.neighbours: Counter[str] = Counter()
        """Good answers that were checked while a fault of that name was under way."""
        self.good: Counter[str] = Counter()
        """Answers to good requests, each of them checked, by caller."""
        self.latencies_s = array("d")
        """Of the same, in the order in which they came."""
        self.retries: Counter[str] = Counter()
        """Attempts of good callers that were followed by another, by why."""
        self.violations: Counter[str] = Counter()
        """What must not be, by kind."""
        self.examples: list[str] = []
        self.unanswered: set[str] = set()
        """Ids of attempts of good callers that ended without an answer."""

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """A fault is under way."""
        with self._lock:
            self._under_way[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way[name] -= 1

    def fault_answered(self, name: str, said: str) -> None:
        """What came of a fault."""
        with self._lock:
            self.answers[name][said] += 1

    def answered(self, caller: str, seconds: float) -> None:
        """A good request was answered; whether rightly, a violation says."""
        with self._lock:
            self.latencies_s.append(seconds)
            self.good[caller] += 1
            self.neighbours.update(name for name, count in self._under_way.items() if count)

    def retried(self, why: str, request_id: str | None = None) -> None:
        """A good request has to be sent again; the id of an attempt that got no answer."""
        with self._lock:
            self.retries[why] += 1
            if request_id is not None:
                self.unanswered.add(request_id)

    @property
    def requests(self) -> int:
        """Good and bad ones that are over."""
        with self._lock:
            return self.good.total() + sum(one.total() for one in self.answers.values())

    def violation(self, kind: str, example: str) -> None:
        """Something that must not be."""
        with self._lock:
            self.violations[kind] += 1
            if len(self.examples) < _EXAMPLES:
                self.examples.append(f"{kind}: {example[:300]}")
