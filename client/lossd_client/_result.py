"""What an evaluation gave, as numpy arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lossd_client.wire import Array, BatchInfo, FilledPreset, Timing


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Losses of one request, and what else it asked for.

    `result["dice"]` is short for `result.losses["dice"]`. `B` counts the samples of the request;
    of several input objects, those of the first come first.

    Attributes:
        losses: value of every sample by label, `[B]` float64.
        total: Σ weight · loss of every sample, `[B]` float64.
        mean: mean over the samples by label; None where it is not a number.
        gradient: gradient by input name, of that input's shape: `gradient["logits"]`; with
            `gradient="each"` a mapping by label: `gradient["logits"]["dice"]`. Where the request
            gave `inputs`, a list with one such entry per input object. Half precision is scaled
            back and returned as float32. Row `b` is the derivative of sample `b`'s own value.
        maps: value of every pixel by label, `[B, *S]`; where the request gave `inputs`, a list
            with one array per input object.
        per_class: value of every class by label, `[B, C]`; NaN where a class does not count.
        statistics: `soft_tp`, `hard_fn`, `pixels`, … of every class, `[B, C]`.
        warnings: what the service found odd about the request, one sentence each.
        preset: what the request's preset filled in; None where there was none.
        timing_ms: where the time went on the service, in milliseconds.
        batch: with how many samples and requests this one was computed.
        device: device that computed it.
        numerics_version: changes whenever the bits of any answer may change.
        request_id: id of the request in the service's log.
    """

    losses: Mapping[str, Array]
    total: Array
    mean: Mapping[str, float | None]
    gradient: Mapping[str, Any]
    maps: Mapping[str, Any]
    per_class: Mapping[str, Array]
    statistics: Mapping[str, Array]
    warnings: tuple[str, ...]
    preset: FilledPreset | None
    timing_ms: Timing
    batch: BatchInfo
    device: str
    numerics_version: str
    request_id: str

    def __getitem__(self, label: str) -> Array:
        """Values of one loss, `[B]` float64.

        Raises:
            KeyError: the request did not ask for that label; the message lists those it did.
        """
        if label not in self.losses:
            raise KeyError(f"no loss {label!r} in this result; it has {', '.join(self.losses)}")
        return self.losses[label]

    def __repr__(self) -> str:
        return f"Result(samples={len(self.total)}, mean={dict(self.mean)})"
