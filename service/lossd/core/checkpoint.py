"""Where a computation lets itself be stopped: between chunks, samples and losses."""

from __future__ import annotations

from collections.abc import Callable

Checkpoint = Callable[[], None]
"""Called often while a batch is computed; what it raises ends the computation."""


def go_on() -> None:
    """The checkpoint that stops nothing."""
