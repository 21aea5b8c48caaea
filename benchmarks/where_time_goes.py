"""One request over HTTP, stage by stage: from the client's first byte to its last.

Three clocks: the client's, the service's own (`Server-Timing`), and stopwatches around the same
code in this process, which split reading and computing further.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from benchmarks import jobs
from benchmarks.engine import Core, Kernels
from benchmarks.http_calls import Answer, Caller, request_body
from benchmarks.report import Report, Row, Section, environment
from benchmarks.stages import stage_seconds
from benchmarks.start_up import free_port, serving, wait_for
from lossd.core.job import AnyJob
from lossd.protocols.admission import RequestLimits, build_job, read_request
from lossd.protocols.answers import write_safetensors
from lossd.protocols.files import Budget
from lossd.protocols.json_body import Inputs, Sources
from lossd.protocols.safetensors_body import read_safetensors_body
from lossd_client.wire import Array, GradientDtype

T = TypeVar("T")

_SHAPES: Final[tuple[jobs.Shape, ...]] = (
    (1, 4, 64, 64),
    (1, 4, 256, 256),
    (1, 19, 256, 256),
    (1, 4, 1024, 1024),
)
_QUICK_SHAPES: Final = _SHAPES[:1]
_DTYPE: Final[GradientDtype] = "float16"
_ROUNDS, _QUICK_ROUNDS = 200, 5
_BUDGET_S: Final = 15.0
_WARM_UP: Final = 3
_BYTES: Final = 1 << 30
_HEADS: Final = ("per_tile", "add_tiles", "heads")
_SERVER: Final = ("receive", "read", "queue", "compute", "write")
_US: Final = 1e6


def run(core: Core, kernels: Kernels, *, quick: bool) -> Report:
    """Microseconds of each stage for requests of four sizes, with ten losses and with Dice alone.

    Args:
        core: kernels in this process.
        kernels: those of the service.
        quick: the smallest size, few rounds.
    """
    shapes = _QUICK_SHAPES if quick else _SHAPES
    rounds = _QUICK_ROUNDS if quick else _ROUNDS
    works = [
        _Work.of(shape, losses)
        for shape in shapes
        for losses in (jobs.available_of_ten(), ["dice"])
    ]
    port = free_port()
    with serving(port, flags=("--kernels", kernels)) as process, Caller(port) as caller:
        wait_for("/health/ready", port, process)
        outside = [_over_http(caller, work, rounds) for work in works]
    inside = [_in_process(core, work, rounds) for work in works]
    return Report(
        name="where_time_goes",
        sections=[
            Section("microseconds of one request over HTTP, by stage", outside),
            Section("of those, in this process: read and compute by what they do", inside),
        ],
        notes=[
            "float16 logits and gradient, uint8 labels, total gradient; one request at a time",
            "medians of each stage by itself, so a row need not add up to its total",
            "receive to write: the service's Server-Timing; queue includes waking its thread",
            "client_send: until the system has taken the request, while the service receives",
            "elsewhere: total less the service's stages: heads, routing, accounts, sending, client",
            "send: from the end of the answer's head until the client has all of it",
            "decode: body to arrays; document: its fields; checks: shapes, labels, warnings",
            "pack: 0 where the passes run on the request's own tensors",
            "heads: losses on sums and their derivatives; python: between the stages",
        ],
        environment=environment(core.device, core.mode),
    )


@dataclass(frozen=True)
class _Work:
    """One request, as it is sent and as it is computed."""

    shape: jobs.Shape
    losses: Sequence[str]
    inputs: Mapping[str, Array]
    body: bytes

    @classmethod
    def of(cls, shape: jobs.Shape, losses: Sequence[str]) -> _Work:
        inputs = jobs.random_inputs(shape, seed=1, dtype=_DTYPE)
        document = {"losses": list(losses), "gradient": "total", "gradient_dtype": _DTYPE}
        return cls(shape, losses, inputs, request_body(inputs, document))

    def case(self) -> dict[str, str | int]:
        """Columns that say which it is."""
        return {"shape": "x".join(map(str, self.shape)), "losses": len(self.losses)}


def _over_http(caller: Caller, work: _Work, rounds: int) -> Row:
    answers = _repeated(lambda: caller.evaluate(work.body), rounds)

    def median_us(of: Callable[[Answer], float]) -> float:
        return statistics.median(of(answer) for answer in answers) * _US

    def server_s(answer: Answer) -> float:
        return sum(answer.stages_ms[stage] for stage in _SERVER) / 1e3

    def stage_s(stage: str) -> Callable[[Answer], float]:
        return lambda answer: answer.stages_ms[stage] / 1e3

    return {
        **work.case(),
        "client_send_us": median_us(lambda answer: answer.sent_s),
        **{f"{stage}_us": median_us(stage_s(stage)) for stage in _SERVER},
        "send_us": median_us(lambda answer: answer.ended_s - answer.headed_s),
        "elsewhere_us": median_us(lambda answer: answer.ended_s - server_s(answer)),
        "total_us": median_us(lambda answer: answer.ended_s),
        "in_bytes": len(work.body),
        "out_bytes": len(answers[0].content),
    }


def _in_process(core: Core, work: _Work, rounds: int) -> Row:
    limits = RequestLimits(samples=1, classes=max(2, work.shape[1]))
    document, inputs = _decoded(work)
    request = read_request(document)
    job = build_job(request, inputs, limits)

    def once() -> dict[str, float]:
        return {
            "decode": _seconds(lambda: _decoded(work)),
            "document": _seconds(lambda: read_request(document)),
            "checks": _seconds(lambda: build_job(request, inputs, limits)),
            **_computed(core, job),
            "write": _seconds(lambda: write_safetensors({}, outcome.tensors)),
        }

    (outcome,) = core.evaluate(job)
    found = _repeated(once, rounds)
    names = list(found[0])
    return {
        **work.case(),
        **{f"{name}_us": statistics.median(one[name] for one in found) * _US for name in names},
    }


def _decoded(work: _Work) -> tuple[dict[str, Any], Inputs]:
    return read_safetensors_body(work.body, Sources(Budget(_BYTES)))


def _computed(core: Core, job: AnyJob) -> dict[str, float]:
    found = stage_seconds(core, job)
    return {
        "pack": found["pack"],
        "pass_1": found["pass_1"],
        "heads": sum(found[stage] for stage in _HEADS),
        "pass_2": found["pass_2"],
        "unpack": found["unpack"] + found["outcome"],
        "python": found["other"],
        "evaluate": found["total"],
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _repeated(work: Callable[[], T], rounds: int) -> list[T]:
    """What so many runs gave, fewer where they take long."""
    for _ in range(_WARM_UP):
        work()
    until = time.perf_counter() + _BUDGET_S
    found = [work()]
    while len(found) < rounds and time.perf_counter() < until:
        found.append(work())
    return found
