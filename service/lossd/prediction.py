"""How long work will take, learned from how long such work took.

A batch costs something before its first request; a request costs something by itself and by the
byte. How much, differs by orders of magnitude from loss to loss, so every workload has a factor of
its own, which follows what was measured.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

BATCH_S: Final = 2e-3
"""Seconds of a batch beside its requests; what a machine takes beyond is in the factors."""

_REQUEST_S = 3e-4
_BYTE_S = 2e-9
# Callers choose what a workload is; the table must not grow with what they think of.
_WORKLOADS = 1024
# How much of an error the newest batch mends: all of a workload's first one, later less.
_LEAST_GAIN = 0.2
# The least part of a batch's time that is its requests'.
_LEAST_SHARE = 0.1
# The least part of a factor that one batch leaves of it: of a guess, and of what was measured.
_LEAST_OF_GUESS = 1e-6
_LEAST_OF_KNOWN = 0.25
# A batch of known workloads counts for no more than so many times what was predicted: it may have
# been a neighbour's burst.
_MOST_OF_KNOWN = 4.0


@dataclass
class _Factor:
    """Seconds measured per second assumed, and how often it was measured."""

    value: float
    measured: int = 0

    @property
    def gain(self) -> float:
        """How much of an error is mended."""
        return max(_LEAST_GAIN, 1 / (self.measured + 1))


class Predictor:
    """Seconds of requests, by workload and bytes. Not for several threads at a time."""

    def __init__(self) -> None:
        self._factors: OrderedDict[Hashable, _Factor] = OrderedDict()
        self._typical = _Factor(1.0)

    def seconds(self, workload: Hashable, nbytes: int) -> float:
        """What a request will take in a batch, beside `BATCH_S`."""
        return self._factors.get(workload, self._typical).value * _assumed_s(nbytes)

    def knows(self, workload: Hashable) -> bool:
        """Whether it was measured."""
        return workload in self._factors

    def learn(self, requests: Sequence[tuple[Hashable, int]], seconds: float) -> None:
        """Takes in what a batch took.

        Where workloads share a batch, those that are less known and those that are more of it mend
        more of the error, as in a least mean squares filter: over batches of different company each
        comes to its own price.

        Args:
            requests: workload and bytes of each of its requests.
            seconds: measured, of the whole batch.
        """
        assumed: dict[Hashable, float] = {}
        for workload, nbytes in requests:
            assumed[workload] = assumed.get(workload, 0.0) + _assumed_s(nbytes)
        measured_s = max(seconds - BATCH_S, _LEAST_SHARE * seconds)
        parts = [(self._known(workload), own_s) for workload, own_s in assumed.items()]
        predicted_s = sum(factor.value * own_s for factor, own_s in parts)
        gain = max(factor.gain for factor, _ in parts)
        if gain <= _LEAST_GAIN:
            measured_s = min(measured_s, _MOST_OF_KNOWN * predicted_s)
        error_s = measured_s - predicted_s
        scale = sum(factor.gain * own_s**2 for factor, own_s in parts)
        for factor, own_s in parts:
            _mend(factor, gain * error_s * factor.gain * own_s / scale)
        whole_s = sum(assumed.values())
        typical = self._typical
        _mend(typical, typical.gain * (measured_s / whole_s - typical.value))

    def _known(self, workload: Hashable) -> _Factor:
        factor = self._factors.setdefault(workload, _Factor(self._typical.value))
        self._factors.move_to_end(workload)
        if len(self._factors) > _WORKLOADS:
            self._factors.popitem(last=False)
        return factor


def _assumed_s(nbytes: int) -> float:
    return _REQUEST_S + nbytes * _BYTE_S


def _mend(factor: _Factor, change: float) -> None:
    least = _LEAST_OF_KNOWN if factor.measured else _LEAST_OF_GUESS
    factor.value = max(factor.value + change, least * factor.value)
    factor.measured += 1
