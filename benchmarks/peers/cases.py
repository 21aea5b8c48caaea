"""What is asked: half-precision logits of a few sizes, and what lossd wants to reach with each."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.jobs import random_inputs
from benchmarks.peers.frame import Sample

_REQUESTS = 8
_PIXELS = 256 * 256
_MIXED_HEIGHTS = (256, 192, 320, 224, 288, 176, 352, 240)


@dataclass(frozen=True)
class Case:
    """Eight requests of one sample each, asked in turn."""

    name: str
    classes: int
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each request."""
    seconds: float
    """Of one turn's load; longer where an answer takes longer."""
    least_ratio: float
    """How many times the requests per second of the best peer lossd wants to answer."""

    def samples(self) -> list[Sample]:
        """The requests' contents, the same in every run."""
        return [
            Sample(**random_inputs((1, self.classes, *size), seed=seed, dtype="float16"))
            for seed, size in enumerate(self.sizes)
        ]


CASES = (
    Case("1x4x64x64", 4, ((64, 64),) * _REQUESTS, seconds=1.5, least_ratio=2.0),
    Case("1x4x256x256", 4, ((256, 256),) * _REQUESTS, seconds=2.5, least_ratio=5.0),
    Case("1x19x256x256", 19, ((256, 256),) * _REQUESTS, seconds=4.5, least_ratio=5.0),
    Case(
        "mixed sizes, C=4",
        4,
        tuple((height, round(_PIXELS / height)) for height in _MIXED_HEIGHTS),
        seconds=2.5,
        least_ratio=3.0,
    ),
)
