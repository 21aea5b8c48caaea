"""Hashes of the answers to fixed jobs.

`python digests.py` writes those of one thread, with kernels compiled in reverse, as one JSON line;
test_batch_invariance runs it, since the order of compilation is fixed for a process's life.
"""

import hashlib
import json
import sys

import numpy as np
import torch

from jobs import Core, case, make_job
from lossd.core import compiled
from lossd.core.passes import Workspace
from lossd.settings import Settings
from lossd_client.wire import Array

LOSSES = ["dice", "focal", "cross_entropy", "tversky"]


def fixed_inputs() -> list[dict[str, Array]]:
    """Four samples alone, then the same four together."""
    wide = case("multiclass", batch=4, channels=7, spatial=(90, 101), dtype=np.float32)
    alone = [{name: array[b : b + 1] for name, array in wide.inputs.items()} for b in range(4)]
    return [*alone, wide.inputs]


def digests(core: Core) -> list[str]:
    """A hash of each sample's answer."""
    found = []
    for inputs in fixed_inputs():
        job = make_job(LOSSES, inputs, gradient="total", task="multiclass")
        tensors = core.tensors(job)
        for b in range(job.samples):
            rows = b"".join(tensors[name][b].tobytes() for name in sorted(tensors))
            found.append(hashlib.sha256(rows).hexdigest())
    return found


def reversed_core() -> Core:
    """Kernels that were compiled last first."""
    device = torch.device("cpu")
    if compiled.choose_mode(device) == "eager":
        return Core(compiled.eager_kernels(), Workspace(device, 1 << 16))
    cache = compiled.cache_folder(Settings().cache_dir, device)
    kinds: list[tuple[compiled.Family, torch.dtype]] = [
        ("sigmoid", torch.float32),
        ("softmax_labels", torch.float32),
    ]
    return Core(compiled.compile_kernels(device, cache, kinds), Workspace(device, 1 << 16))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(digests(reversed_core())) + "\n")
