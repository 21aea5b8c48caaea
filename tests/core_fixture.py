"""The core with the kernels this machine serves with; compiled once per test session."""

import pytest
import torch
from filelock import FileLock

from jobs import Core
from lossd.core import compiled
from lossd.core.passes import Workspace
from lossd.settings import Settings


@pytest.fixture(scope="session")
def core() -> Core:
    device = torch.device("cpu")
    if compiled.choose_mode(device) == "eager":
        return Core(compiled.eager_kernels(), Workspace(device, 1 << 16))
    cache = compiled.cache_folder(Settings().cache_dir, device)
    # The tests' processes would otherwise compile the same at the same time.
    with FileLock(cache.with_suffix(".tests.lock")):
        return Core(compiled.compile_kernels(device, cache), Workspace(device, 1 << 16))
