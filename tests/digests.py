"""`python digests.py THREADS ORDER`: hashes of the answers to fixed jobs, one JSON line.

Run by test_batch_invariance in processes of their own, since the number of threads and the order
of compilation are fixed for a process's life.
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


def main(threads: int, *, reverse: bool) -> None:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    if compiled.choose_mode(device) == "eager":
        table = compiled.eager_kernels()
    else:
        cache = compiled.cache_folder(Settings().cache_dir, device)
        kinds: list[tuple[compiled.Family, torch.dtype]] = [
            ("softmax_labels", torch.float32),
            ("sigmoid", torch.float32),
        ]
        table = compiled.compile_kernels(device, cache, kinds[::-1] if reverse else kinds)
    core = Core(table, Workspace(device, 1 << 16))
    digests = []
    for inputs in fixed_inputs():
        job = make_job(LOSSES, inputs, gradient="total", task="multiclass")
        tensors = core.tensors(job)
        for b in range(job.samples):
            rows = b"".join(tensors[name][b].tobytes() for name in sorted(tensors))
            digests.append(hashlib.sha256(rows).hexdigest())
    sys.stdout.write(json.dumps(digests) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), reverse=sys.argv[2] == "reversed")
