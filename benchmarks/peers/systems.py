"""The systems that are compared: what their version is of, how they start, how they are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.peers import wires
from benchmarks.peers.servers import settings


@dataclass(frozen=True)
class System:
    """One server."""

    name: str
    distribution: str
    """What it is installed as."""
    wire: wires.Wire
    arguments: tuple[str, ...]
    """Of its environment's Python; `{port}` stands for the port."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Added to its processes' environment."""
    beyond_loopback: bool = False
    """It listens on every address, whatever it is told, so it gets a network of its own."""
    note: str = ""
    """How its policy differs."""


LOSSD = System(
    name="lossd",
    distribution="lossd",
    wire=wires.LOSSD,
    arguments=("-m", "lossd", "serve", "--port", "{port}"),
    variables={
        "LOSSD_MAX_BATCH_SAMPLES": str(settings.MAX_BATCH_SAMPLES),
        "LOSSD_MAX_DELAY_MS": str(settings.MAX_DELAY_MS),
        "LOSSD_GATHER_MS": str(settings.MAX_DELAY_MS),
        "LOSSD_LOG_LEVEL": "error",
    },
)

PEERS = (
    System(
        name="pytriton",
        distribution="nvidia-pytriton",
        wire=wires.OPEN_INFERENCE,
        arguments=("-m", "benchmarks.peers.servers.pytriton"),
    ),
    System(
        name="ray",
        distribution="ray",
        wire=wires.FRAME,
        arguments=("-m", "benchmarks.peers.servers.ray"),
        variables={"RAY_USAGE_STATS_ENABLED": "0"},
        beyond_loopback=True,
    ),
    System(
        name="mosec",
        distribution="mosec",
        wire=wires.MOSEC,
        arguments=("-m", "benchmarks.peers.servers.mosec"),
    ),
    System(
        name="litserve",
        distribution="litserve",
        wire=wires.MULTIPART,
        arguments=("-m", "benchmarks.peers.servers.litserve"),
        note="bytes come as a form: it takes any other content for JSON",
    ),
    System(
        name="bentoml",
        distribution="bentoml",
        wire=wires.FRAME,
        arguments=(
            *("-m", "bentoml", "serve", "benchmarks.peers.servers.bentoml:Gateway"),
            *("--host", settings.LOOPBACK, "--port", "{port}", "--timeout", "60"),
        ),
        variables={"BENTOML_DO_NOT_TRACK": "true"},
        note="learns how long to wait for company; a delay cannot be set",
    ),
)

NAMES = tuple(system.name for system in PEERS)
