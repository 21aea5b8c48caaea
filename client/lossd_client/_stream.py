"""What `evaluate_many` of both clients shares: arguments of an item, its outcome, the bar."""

from collections.abc import Mapping, Sized
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from tqdm import tqdm

from lossd_client._protocol import Losses

Progress = Literal["bar", "none"]
OnError = Literal["raise", "return"]

Call = Mapping[str, Any]
"""Keyword arguments of one `evaluate`."""

READ_AHEAD_FACTOR = 2
"""How many items per concurrent request may be held while the first of them is waited for."""


class Bar(Protocol):
    """The part of a progress bar that is used."""

    def update(self, n: int = 1) -> object:
        """Count items as done."""


def check_options(concurrency: int, progress: str, on_error: str) -> None:
    """Reject options before the first item is read.

    Raises:
        ValueError: one of them has no meaning.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    if progress not in ("bar", "none"):
        raise ValueError(f"progress must be 'bar' or 'none', not {progress!r}")
    if on_error not in ("raise", "return"):
        raise ValueError(f"on_error must be 'raise' or 'return', not {on_error!r}")


def common_arguments(losses: Losses | None, common: Mapping[str, object]) -> dict[str, Any]:
    """Arguments of every item that does not state its own."""
    return dict(common) if losses is None else {"losses": losses, **common}


def progress_bar(requests: object, progress: Progress) -> AbstractContextManager[Bar]:
    """Bar with rate and, where the number of requests is known, the time left."""
    total = len(requests) if isinstance(requests, Sized) else None
    bar: AbstractContextManager[Bar] = tqdm(
        total=total, unit=" requests", disable=progress == "none"
    )
    return bar
