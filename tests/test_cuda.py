"""The core on a GPU: the same code, the same numbers to float32, its own bits in any company."""

import numpy as np
import pytest
import torch

from jobs import Core, case, make_job
from lossd.callers import ANONYMOUS
from lossd.core import compiled
from lossd.core.job import Job
from lossd.core.passes import Workspace
from lossd.device_tensors import DeviceTensors
from lossd.settings import Settings
from lossd.tensors import Finder, TensorStore

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
