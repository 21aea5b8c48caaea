"""The core as a benchmark holds it: kernels, a workspace, and nothing of the service around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic_settings import CliApp

from lossd.core import compiled
from lossd.core.evaluation import evaluate
from lossd.core.job import AnyJob, Outcome
from lossd.core.passes import Workspace
from lossd.kernels import choose_device
from lossd.settings import Settings
from lossd_client.errors import LossdError

Kernels = Literal["auto", "compiled", "eager"]


@dataclass(frozen=True)
class Core:
    """What `evaluate` needs besides jobs."""

    device: torch.device
    mode: str
    table: compiled.KernelTable
    workspace: Workspace

    def evaluate(self, *jobs: AnyJob) -> list[Outcome]:
        """Outcomes of jobs computed in one batch.

        Raises:
            LossdError: a job failed.
        """
        return self.evaluate_with(self.table, jobs)

    def evaluate_with(self, table: compiled.KernelTable, jobs: Sequence[AnyJob]) -> list[Outcome]:
        """The same with other kernels."""
        outcomes: list[Outcome] = []
        for outcome in evaluate(jobs, table, self.workspace):
            if isinstance(outcome, LossdError):
                raise outcome
            outcomes.append(outcome)
        self.workspace.heads.record_next()  # as the engine does behind a batch
        return outcomes

    def wait(self) -> None:
        """Returns when the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def open_core(kernels: Kernels) -> Core:
    """The core with the service's own settings; compiles if the cache is cold."""
    settings = CliApp.run(Settings, cli_args=[])
    device = choose_device(settings.device)
    torch.set_num_threads(settings.threads)
    mode = compiled.choose_mode(device) if kernels == "auto" else kernels
    if mode == "compiled":
        cache = compiled.cache_folder(settings.cache_dir, device)
        table = compiled.compile_kernels(device, cache)
    else:
        table = compiled.eager_kernels()
    return Core(device, mode, table, Workspace(device, settings.chunk_logits))
