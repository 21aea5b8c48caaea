"""The core on a GPU: the same code, the same numbers to float32, its own bits in any company."""

import base64
import subprocess
import sys

import numpy as np
import pytest
import torch

from jobs import Core, case, make_job
from lossd.body_memory import BodyMemory
from lossd.callers import ANONYMOUS
from lossd.core import compiled
from lossd.core.job import Job
from lossd.core.passes import Workspace
from lossd.cuda_memory import CudaDevice, find_device_object
from lossd.device_tensors import DeviceTensors
from lossd.settings import Settings
from lossd.tensors import Finder, TensorStore
from lossd_client.errors import MalformedBodyError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
LOSSES = ["dice", "focal", "cross_entropy", "tversky"]


@pytest.fixture(scope="module")
def cuda_core() -> Core:
    device = torch.device("cuda")
    cache = compiled.cache_folder(Settings().cache_dir, device)
    return Core(compiled.compile_kernels(device, cache), Workspace(device, 1 << 20))


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_cuda_agrees_with_the_cpu(core: Core, cuda_core: Core, task: str) -> None:
    one = case(task, spatial=(130, 77), dtype=np.float32)
    job = make_job(LOSSES, one.inputs, task=task, gradient="total", maps=True)
    here, there = core.tensors(job), cuda_core.tensors(job)
    for name, array in here.items():
        np.testing.assert_allclose(there[name], array, rtol=2e-6, atol=1e-5 * np.abs(array).max())


def test_logits_that_lie_on_the_device_give_the_same_bits(cuda_core: Core) -> None:
    one = case("multiclass", batch=2, spatial=(130, 77), dtype=np.float32)
    store = TensorStore(Settings())
    find = Finder(store, ANONYMOUS)
    kept = store.put(ANONYMOUS, {"logits": one.inputs["logits"]})["logits"]
    logits = find(kept.ref)
    assert logits is not None
    find.used[0].uses = 2
    on_device = DeviceTensors(1 << 30, lambda tensor: tensor.to("cuda"))
    fields = {"gradient": "total", "maps": True, "statistics": True}
    losses = [*LOSSES, "lovasz_softmax"]
    job = make_job(losses, {**one.inputs, "logits": logits}, **fields)
    placed = on_device.placed(job, find.used)
    assert isinstance(placed, Job)
    assert placed.parts[0].device_logits is not None
    assert placed.parts[0].device_logits.is_cuda
    here, there = cuda_core.tensors(job), cuda_core.tensors(placed)
    for name, array in here.items():
        np.testing.assert_array_equal(there[name], array)


def test_company_changes_no_bit_on_cuda(cuda_core: Core) -> None:
    one = case("multiclass", batch=5, spatial=(100, 90), dtype=np.float32)
    together = cuda_core.tensors(make_job(LOSSES, one.inputs, gradient="total"))
    for b in range(5):
        alone = {name: array[b : b + 1] for name, array in one.inputs.items()}
        tensors = cuda_core.tensors(make_job(LOSSES, alone, gradient="total"))
        for name, array in tensors.items():
            np.testing.assert_array_equal(array[0], together[name][b])


_EXPORT = """
import base64, sys
import numpy as np
from cuda.bindings import runtime
import ctypes
def done(answer):
    assert answer[0] == 0, answer
    return answer[1] if len(answer) > 1 else None
done(runtime.cudaSetDevice(0))
address = done(runtime.cudaMalloc(4096))
here = np.arange(4096, dtype=np.uint16).astype(np.uint8)
kinds = runtime.cudaMemcpyKind
done(runtime.cudaMemcpy(address, here.ctypes.data, 4096, kinds.cudaMemcpyHostToDevice))
handle = done(runtime.cudaIpcGetMemHandle(address))
print(base64.b64encode(ctypes.string_at(handle.getPtr(), 64)).decode(), flush=True)
sys.stdin.readline()
done(runtime.cudaMemcpy(here.ctypes.data, address, 4096, kinds.cudaMemcpyDeviceToHost))
print(here[100:104].tolist(), flush=True)
"""


def test_memory_that_another_process_exports_is_read_and_written() -> None:
    device = CudaDevice(0)
    with pytest.raises(MalformedBodyError, match="CUDA IPC handle"):
        find_device_object(device, bytes(64))
    with subprocess.Popen(  # noqa: S603 - our own
        [sys.executable, "-c", _EXPORT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        shared = find_device_object(device, base64.b64decode(owner.stdout.readline()))
        assert shared.nbytes >= 4096
        read = shared.read(ANONYMOUS, 10, 5, BodyMemory(1 << 20))
        assert list(read) == [10, 11, 12, 13, 14]
        with pytest.raises(MalformedBodyError, match="smaller"):
            shared.read(ANONYMOUS, shared.nbytes, 1, BodyMemory(1 << 20))
        shared.write(ANONYMOUS, 101, [b"\1\2"])
        owner.stdin.write("\n")
        owner.stdin.flush()
        assert owner.stdout.readline() == "[100, 1, 2, 103]\n"
