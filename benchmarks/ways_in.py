"""`python -m benchmarks.ways_in`: one job over HTTP and shared memory, to lossd and to a Triton.

20 MiB of float32 logits go to a server and as much gradient comes back: with lossd's client, with
the unmodified `tritonclient` to lossd, and with the same client to a real Triton (PyTriton, in an
environment of its own), whose callback computes with lossd's core. All in turns, in one run. What a
server says it computed is taken off, so that the ways are left.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import tritonclient.http as triton
import tritonclient.utils.shared_memory as triton_memory
from rich.console import Console

from benchmarks import report as reports
from benchmarks.peers.environments import DEFAULT_FOLDER, interpreter
from benchmarks.peers.processes import Server, Start, started
from benchmarks.peers.servers import settings
from benchmarks.peers.systems import LOSSD, PEERS, System
from benchmarks.report import Report, Row, Section, Target, environment
from benchmarks.timing import Elapsed, Timings, in_turns
from lossd.settings import processors
from lossd_client import Client
from lossd_client.wire import Array


class Trip(NamedTuple):
    """Seconds of one round trip, and of those the seconds that the server says it computed."""

    total_s: float
    computed_s: float


Way = Callable[[], Trip]

_LOSSES = ("cross_entropy", "dice")
_OWN_HTTP, _OWN_MEMORY = "lossd_client, HTTP", "lossd_client, shared memory"
_LOSSD_HTTP, _LOSSD_MEMORY = "tritonclient to lossd, HTTP", "tritonclient to lossd, shared memory"
_TRITON_HTTP = "tritonclient to Triton, HTTP"
_TRITON_MEMORY = "tritonclient to Triton, shared memory"
_SHAPE = (4, 5, 512, 512)  # 20 MiB of float32
_QUICK_SHAPE = (1, 4, 64, 64)
_SIZES = tuple((1, 4, side, side) for side in (64, 128, 256, 512, 1024))  # 64 KiB to 16 MiB
_BUDGET_S, _QUICK_BUDGET_S = 60.0, 0.5
_READY_WITHIN_S = 900.0  # its kernels, should nobody have compiled them yet
_ROUNDING = 1e-6
_TRITON_SERVER = "benchmarks.peers.servers.pytriton_float32"


@dataclass(frozen=True)
class _Job:
    """What is asked, and a place for it in shared memory."""

    logits: Array
    target: Array
    name: str = field(default_factory=lambda: f"lossd.anonymous.ways-{os.getpid()}")

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> _Job:
        """Random logits and labels."""
        rng = np.random.default_rng(0)
        logits = rng.standard_normal(shape, np.float32)
        return cls(logits, rng.integers(0, shape[1], (shape[0], *shape[2:]), np.uint8))


def main(arguments: list[str] | None = None) -> int:
    """Runs it; a missed target fails nothing, since it depends on the machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ways_in", description=__doc__)
    parser.add_argument(
        "--environments",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="FOLDER",
        help="of the peers' virtual environments; without FOLDER/pytriton Triton is left out",
    )
    parser.add_argument("--kernels", choices=("auto", "compiled", "eager"), default="auto")
    parser.add_argument("--quick", action="store_true", help="few rounds, writes nothing")
    parser.add_argument("--out", type=Path, help="folder of the JSON file")
    given = parser.parse_args(arguments)
    # Whoever ends this by a signal ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    found = run(given.environments.resolve(), given.kernels, quick=given.quick)
    reports.show(found, Console(width=None if sys.stdout.isatty() else 200))
    folder = given.out or (None if given.quick else reports.RESULTS)
    if folder is not None:
        sys.stdout.write(f"written {reports.write(found, folder)}\n")
    return 0


def run(environments: Path, kernels: str, *, quick: bool) -> Report:
    """Every way in turns."""
    shape = _QUICK_SHAPE if quick else _SHAPE
    python = interpreter(environments, "pytriton")
    with ExitStack() as stack:
        port = stack.enter_context(_serving(_own_system(), Path(sys.executable), kernels))
        triton_port = None
        if python.exists():
            triton_port = stack.enter_context(_serving(_triton_system(), python, kernels))
        rows, timings = _ways(_Job.of(shape), port, triton_port, quick=quick)
        sizes = [_size_row(one, port, quick=quick) for one in (_SIZES[:1] if quick else _SIZES)]
    mib = _Job.of(shape).logits.nbytes / (1 << 20)
    return Report(
        name="ways_in",
        sections=[
            Section(f"{mib:g} MiB of logits up, as much gradient down", rows),
            Section("lossd_client by size of the logits, outside of the computation", sizes),
        ],
        targets=_targets(timings),
        notes=[
            "outside_ms: the round trip without what the server says the computation took",
            "Triton's callback computes with lossd's core in its own process and times that itself",
            "in shared memory, inputs are copied in and the gradient is copied out every time",
            *([] if triton_port else ["Triton was left out: there is no environment with it"]),
        ],
        environment={
            **environment(torch.device("cpu"), kernels),
            "tritonclient": version("tritonclient"),
        },
    )


def _own_system() -> System:
    variables = {
        **LOSSD.variables,
        "LOSSD_SHARED_MEMORY": "on",
        # The code that this process runs, wherever it lies.
        "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
    }
    return replace(LOSSD, variables=variables)


def _triton_system() -> System:
    (system,) = [peer for peer in PEERS if peer.name == "pytriton"]
    return replace(system, arguments=("-m", _TRITON_SERVER))


@contextmanager
def _serving(system: System, python: Path, kernels: str) -> Iterator[int]:
    """A server that answers; gives its port."""
    start = Start(system, python, "lossd", processors(), kernels)
    with (
        tempfile.TemporaryDirectory(prefix="ways-in-") as home,
        started(start, Path(home)) as server,
    ):
        _wait(server, "evaluate" if system.name == "lossd" else "losses")
        yield server.port


def _wait(server: Server, model: str) -> None:
    until_s = time.monotonic() + _READY_WITHIN_S
    client = triton.InferenceServerClient(f"{settings.LOOPBACK}:{server.port}")
    while time.monotonic() < until_s and server.process.poll() is None:
        with suppress(OSError):  # it does not listen yet
            if client.is_model_ready(model):
                client.close()
                return
        time.sleep(0.3)
    raise TimeoutError(server.log.read_text(encoding="utf-8", errors="replace")[-2000:])


# -- the ways -------------------------------------------------------------------------------------


def _ways(
    job: _Job, port: int, triton_port: int | None, *, quick: bool
) -> tuple[list[Row], Timings]:
    lossd = _Lossd(port)
    with ExitStack() as stack:
        ways: dict[str, Way] = {
            _OWN_HTTP: _own(stack, job, port, "off"),
            _OWN_MEMORY: _own(stack, job, port, "auto"),
            _LOSSD_HTTP: _over_http(stack, job, lossd),
            _LOSSD_MEMORY: _in_memory(stack, job, lossd),
        }
        if triton_port is not None:
            ways[_TRITON_HTTP] = _over_http(stack, job, _Triton(triton_port))
            ways[_TRITON_MEMORY] = _in_memory(stack, job, _Triton(triton_port))
        budget_s = _QUICK_BUDGET_S if quick else _BUDGET_S
        timings, outside = _measured(ways, budget_s, max_rounds=100)
    return _rows(timings, outside), outside


def _measured(
    ways: Mapping[str, Way], budget_s: float, *, max_rounds: int
) -> tuple[Timings, Timings]:
    """Whole round trips, and what they took outside of the computation."""
    computed: dict[str, list[float]] = {name: [] for name in ways}

    def noted(name: str) -> Callable[[], Elapsed]:
        def round_trip() -> Elapsed:
            trip = ways[name]()
            computed[name].append(trip.computed_s)
            return Elapsed(trip.total_s)

        return round_trip

    timings = in_turns(
        {name: noted(name) for name in ways}, budget_s=budget_s, max_rounds=max_rounds
    )
    outside = {
        name: [
            total_s - computed_s
            for total_s, computed_s in zip(
                timings.seconds[name], computed[name][-timings.rounds :], strict=True
            )
        ]
        for name in ways
    }
    return timings, Timings(outside)


def _rows(timings: Timings, outside: Timings) -> list[Row]:
    return [
        {
            "way": name,
            "total_ms": timings.median_s(name) * 1e3,
            "outside_ms": outside.median_s(name) * 1e3,
            "outside_least_ms": outside.minimum_s(name) * 1e3,
            "outside_to_first": outside.ratio(name, to=_OWN_HTTP),
            "rounds": timings.rounds,
        }
        for name in timings.seconds
    ]


def _targets(outside: Timings) -> list[Target]:
    if _TRITON_HTTP not in outside.seconds:
        return []
    pairs = [
        (_LOSSD_HTTP, _TRITON_HTTP),
        (_LOSSD_MEMORY, _TRITON_MEMORY),
        (_OWN_MEMORY, _OWN_HTTP),
    ]
    return [
        Target(
            what=f"outside of the computation: {one} against {other}",
            wanted="below 1 times",
            measured=f"{outside.ratio(one, to=other):.2f} times",
            met=outside.ratio(one, to=other) < 1,
        )
        for one, other in pairs
    ]


def _own(stack: ExitStack, job: _Job, port: int, shared_memory: Any) -> Way:
    client = stack.enter_context(
        Client(f"http://{settings.LOOPBACK}:{port}", shared_memory=shared_memory)
    )

    def way() -> Trip:
        started_s = time.perf_counter()
        result = client.evaluate(
            _LOSSES, logits=job.logits, target=job.target, task="multiclass", gradient="total"
        )
        total_s = time.perf_counter() - started_s
        _check(job, result.gradient["logits"])
        return Trip(total_s, result.timing_ms.compute / 1e3)

    return way


class _Lossd:
    """lossd, as `tritonclient` sees it."""

    model, gradient = "evaluate", "gradient/logits"
    outputs = tuple(f"loss/{name}" for name in _LOSSES)
    parameters: Mapping[str, Any] = {"losses": ",".join(_LOSSES), "task": "multiclass"}

    _spent_ns = 0

    def __init__(self, port: int) -> None:
        self.port = port

    def computed_s(self, client: Any, answer: Any) -> float:
        """What the last answer took to compute; the model's figures count all so far."""
        del answer
        (found,) = client.get_inference_statistics(self.model)["model_stats"]
        before_ns, self._spent_ns = (
            self._spent_ns,
            found["inference_stats"]["compute_infer"]["ns"],
        )
        return (self._spent_ns - before_ns) / 1e9


class _Triton:
    """A Triton with the same job."""

    model, gradient = "losses", "gradient"
    outputs = (*_LOSSES, "compute_s")
    parameters: Mapping[str, Any] | None = None

    def __init__(self, port: int) -> None:
        self.port = port

    def computed_s(self, client: Any, answer: Any) -> float:
        """What the callback says."""
        del client
        return float(answer.as_numpy("compute_s").max())


_Server = _Lossd | _Triton


def _client(stack: ExitStack, server: _Server) -> Any:
    # A first answer may wait for kernels.
    client = triton.InferenceServerClient(
        f"{settings.LOOPBACK}:{server.port}", network_timeout=_READY_WITHIN_S
    )
    stack.callback(client.close)
    return client


def _asked(job: _Job) -> list[Any]:
    return [
        triton.InferInput("logits", job.logits.shape, "FP32"),
        triton.InferInput("target", job.target.shape, "UINT8"),
    ]


def _over_http(stack: ExitStack, job: _Job, server: _Server) -> Way:
    client = _client(stack, server)
    outputs = [triton.InferRequestedOutput(name) for name in (*server.outputs, server.gradient)]

    def way() -> Trip:
        started_s = time.perf_counter()
        inputs = _asked(job)
        inputs[0].set_data_from_numpy(job.logits)
        inputs[1].set_data_from_numpy(job.target)
        answer = client.infer(server.model, inputs, outputs=outputs, parameters=server.parameters)
        gradient = answer.as_numpy(server.gradient)
        total_s = time.perf_counter() - started_s
        _check(job, gradient)
        return Trip(total_s, server.computed_s(client, answer))

    return way


def _in_memory(stack: ExitStack, job: _Job, server: _Server) -> Way:
    client = _client(stack, server)
    name = f"{job.name}-{server.model}"
    nbytes = job.logits.nbytes + job.target.nbytes
    region = triton_memory.create_shared_memory_region(name, f"/{name}", nbytes)
    stack.callback(triton_memory.destroy_shared_memory_region, region)
    client.register_system_shared_memory(name, f"/{name}", nbytes)
    stack.callback(client.unregister_system_shared_memory, name)
    outputs = [triton.InferRequestedOutput(one) for one in (*server.outputs, server.gradient)]
    outputs[-1].set_shared_memory(name, job.logits.nbytes)

    def way() -> Trip:
        started_s = time.perf_counter()
        triton_memory.set_shared_memory_region(region, [job.logits, job.target])
        inputs = _asked(job)
        inputs[0].set_shared_memory(name, job.logits.nbytes)
        inputs[1].set_shared_memory(name, job.target.nbytes, job.logits.nbytes)
        answer = client.infer(server.model, inputs, outputs=outputs, parameters=server.parameters)
        gradient = triton_memory.get_contents_as_numpy(region, np.float32, job.logits.shape)
        gradient = gradient.copy()
        total_s = time.perf_counter() - started_s
        _check(job, gradient)
        return Trip(total_s, server.computed_s(client, answer))

    return way


def _check(job: _Job, gradient: Array) -> None:
    """That it is a gradient of this job: of a softmax, it sums to nothing over the classes."""
    if gradient.shape != job.logits.shape or abs(float(gradient[0, :, 0, 0].sum())) > _ROUNDING:
        raise AssertionError(gradient.shape)


# -- by size --------------------------------------------------------------------------------------


def _size_row(shape: tuple[int, ...], port: int, *, quick: bool) -> Row:
    """Both ways of lossd's client for one size, whatever the client thinks worthwhile."""
    job = _Job.of(shape)
    with ExitStack() as stack:
        stack.enter_context(mock.patch("lossd_client._shared_memory.WORTHWHILE_BYTES", 0))
        ways = {
            _OWN_HTTP: _own(stack, job, port, "off"),
            _OWN_MEMORY: _own(stack, job, port, "auto"),
        }
        budget_s = _QUICK_BUDGET_S if quick else _BUDGET_S / 6
        _, outside = _measured(ways, budget_s, max_rounds=400)
    return {
        "kib": job.logits.nbytes // 1024,
        "http_ms": outside.median_s(_OWN_HTTP) * 1e3,
        "shared_memory_ms": outside.median_s(_OWN_MEMORY) * 1e3,
        "http_least_ms": outside.minimum_s(_OWN_HTTP) * 1e3,
        "shared_memory_least_ms": outside.minimum_s(_OWN_MEMORY) * 1e3,
        "shared_memory_to_http": outside.ratio(_OWN_MEMORY, to=_OWN_HTTP),
        "rounds": outside.rounds,
    }


if __name__ == "__main__":
    sys.exit(main())
