"""Jobs and outcomes for tests of the core, built the way the service builds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lossd.core.compiled import KernelTable
from lossd.core.evaluation import evaluate
from lossd.core.job import AnyJob, Job, Outcome, RowJob
from lossd.core.passes import Workspace
from lossd.protocols.admission import RequestLimits, build_job, read_request
from lossd_client.errors import LossdError
from lossd_client.wire import Array

LIMITS = RequestLimits(samples=4096, classes=1024)


def make_job(
    losses: Any, inputs: dict[str, Array] | list[dict[str, Array]], **fields: Any
) -> Job | RowJob:
    """A job from a request's fields and arrays."""
    document = {"losses": losses if isinstance(losses, list) else [losses], **fields}
    return build_job(
        read_request(document), inputs if isinstance(inputs, list) else [inputs], LIMITS
    )


@dataclass(frozen=True)
class Core:
    """The core with one set of kernels."""

    table: KernelTable
    workspace: Workspace

    def run(self, jobs: Sequence[AnyJob]) -> list[Outcome | LossdError]:
        return evaluate(jobs, self.table, self.workspace)

    def tensors(self, job: AnyJob) -> dict[str, Array]:
        (outcome,) = self.run([job])
        if isinstance(outcome, LossdError):
            raise outcome
        return outcome.tensors

    def with_chunks_of(self, chunk_logits: int) -> "Core":
        return Core(self.table, Workspace(torch.device("cpu"), chunk_logits))


@dataclass(frozen=True)
class Case:
    """Inputs of a task, small enough for finite differences."""

    task: str
    soft: bool
    inputs: dict[str, Any]

    @property
    def fields(self) -> dict[str, Any]:
        return {"task": self.task}

    @property
    def name(self) -> str:
        return f"{self.task}-{'soft' if self.soft else 'hard'}"


def case(
    task: str,
    *,
    soft: bool = False,
    batch: int = 2,
    channels: int = 4,
    spatial: tuple[int, ...] = (7, 5),
    seed: int = 0,
    dtype: Any = np.float64,
) -> Case:
    """Random logits with a random target of the task's kind."""
    rng = np.random.default_rng(seed)
    channels = 1 if task == "binary" else channels
    shape = (batch, channels, *spatial)
    logits = rng.normal(0, 2, shape).astype(dtype)
    target: Array
    if task == "multiclass" and soft:
        raw = rng.gamma(0.5, 1, shape)
        target = raw / raw.sum(1, keepdims=True)
    elif task == "multiclass":
        target = rng.integers(0, channels, (batch, *spatial), dtype=np.uint8)
    elif soft:
        target = rng.uniform(0, 1, shape)
    else:
        target = rng.integers(0, 2, shape, dtype=np.uint8)
    return Case(task, soft, {"logits": logits, "target": target})


TASKS = ("binary", "multiclass", "multilabel")
CASES = [case(task, soft=soft) for task in TASKS for soft in (False, True)]
