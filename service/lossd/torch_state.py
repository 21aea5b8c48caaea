"""What else a program does with torch, kept apart from what computes here, and the other way round.

A training loop sets torch to mixed precision, to inference, to a default device. None of that may
change a bit of an answer; and what compiling sets must not stay set in somebody else's program.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import structlog
import torch

_VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")
_CPU = torch.device("cpu")


@contextmanager
def own_state(device: torch.device, threads: int) -> Iterator[None]:
    """Computes as the service does, whatever the calling thread has set torch to.

    Args:
        device: that computes.
        threads: CPU threads to compute with.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in {"cpu", device.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != _CPU:
            stack.enter_context(_CPU)
        before = torch.get_num_threads()
        if before != threads:
            stack.callback(torch.set_num_threads, before)
            torch.set_num_threads(threads)
        yield


@contextmanager
def compiling_aside() -> Iterator[None]:
    """Compiles without a trace: variables, torch's stance and standard output are as before."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    with torch.compiler.set_stance("default"), _lines_of_a_library():
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@contextmanager
def _lines_of_a_library() -> Iterator[None]:
    """Log lines as a library's where the program has not said otherwise: warnings, to stderr."""
    if structlog.is_configured():
        yield
        return
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.reset_defaults()
