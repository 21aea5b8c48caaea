"""What every server is told by its environment, and the policy that all of them follow."""

from __future__ import annotations

import os
from typing import Literal, cast, get_args

Core = Literal["separate", "shared", "lossd"]
"""What computes behind a server: plain torch, each loss by itself as libraries have them and numpy
rounding the gradient; plain torch, softmax and one-hot target made once and torch rounding; lossd.
"""

CORES: tuple[Core, ...] = get_args(Core)

PORT_VARIABLE = "PEERS_PORT"
CORE_VARIABLE = "PEERS_CORE"
THREADS_VARIABLE = "PEERS_THREADS"

LOOPBACK = "127.0.0.1"
MAX_BATCH_SAMPLES = 16
MAX_DELAY_MS = 2
TIMEOUT_S = 60
MAX_BODY_BYTES = 64 << 20


def port() -> int:
    """Where to listen."""
    return int(os.environ[PORT_VARIABLE])


def threads() -> int:
    """Threads of torch."""
    return int(os.environ[THREADS_VARIABLE])


def core() -> Core:
    """What computes in this process."""
    return cast("Core", os.environ[CORE_VARIABLE])
