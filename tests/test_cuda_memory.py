"""Memory of a GPU that callers export, by a device that keeps its memory here.

What CUDA itself does is tried in `test_cuda.py`, where there is a device.
"""

import base64
import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from lossd.cuda_memory import HANDLE_BYTES, CudaError
from oip_fixture import LABELS, LOGITS
from service_fixture import Served, serving

DICE = "dice"


class HostDevice:
    """Exported memory by handle, in the memory of this process."""

    index = 3

    def __init__(self) -> None:
        self.exported: dict[bytes, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self.open = 0
        """How many handles are open now."""

    def export(self, nbytes: int) -> bytes:
        """A handle of new memory."""
        handle = os.urandom(HANDLE_BYTES)
        self.exported[handle] = np.zeros(nbytes, np.uint8)
        return handle

    @contextlib.contextmanager
    def opened(self, handle: bytes) -> Iterator[tuple[int, int]]:
        if handle not in self.exported:
            raise CudaError("cudaErrorInvalidValue")
        memory = self.exported[handle]
        self.open += 1
        try:
            yield memory.ctypes.data, memory.nbytes
        finally:
            self.open -= 1

    def read(self, address: int, into: memoryview) -> None:
        assert self.open == 1
        ctypes.memmove(np.frombuffer(into, np.uint8).ctypes.data, address, into.nbytes)

    def write(self, address: int, data: memoryview) -> None:
        assert self.open == 1
        ctypes.memmove(address, np.frombuffer(data, np.uint8).ctypes.data, data.nbytes)


@pytest.fixture(scope="module")
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, device: HostDevice) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lossd.app.find_device", lambda _: device)
        folder = tmp_path_factory.mktemp("lossd")
        with serving(cache_dir=folder, shared_memory="on") as running:
            yield running


@pytest.fixture
def client(service: Served) -> Iterator[Any]:
    with triton.InferenceServerClient(service.client.base_url.netloc.decode()) as made:
        yield made
        made.unregister_cuda_shared_memory()


def register(client: Any, name: str, handle: bytes, nbytes: int, *, device_id: int = 3) -> None:
    client.register_cuda_shared_memory(name, base64.b64encode(handle), device_id, nbytes)


def asked(client: Any, inputs: str | None, outputs: str | None = None) -> Any:
    logits = triton.InferInput("logits", list(LOGITS.shape), "FP32")
    labels = triton.InferInput("target", list(LABELS.shape), "UINT8")
    labels.set_data_from_numpy(LABELS)
    if inputs is None:
        logits.set_data_from_numpy(LOGITS)
    else:
        logits.set_shared_memory(inputs, LOGITS.nbytes, offset=8)
    gradient = triton.InferRequestedOutput("gradient/logits")
    if outputs is not None:
        gradient.set_shared_memory(outputs, LOGITS.nbytes, offset=16)
    wanted = [triton.InferRequestedOutput("loss/dice"), gradient]
    return client.infer(DICE, [logits, labels], outputs=wanted)


def test_tensors_go_in_and_come_out_by_memory_of_a_gpu(client: Any, device: HostDevice) -> None:
    sent, answered = device.export(LOGITS.nbytes + 8), device.export(LOGITS.nbytes + 16)
    device.exported[sent][8:] = LOGITS.reshape(-1).view(np.uint8)
    register(client, "in", sent, LOGITS.nbytes + 8)
    register(client, "out", answered, LOGITS.nbytes + 16)
    found, plain = asked(client, "in", "out"), asked(client, None)
    np.testing.assert_array_equal(found.as_numpy("loss/dice"), plain.as_numpy("loss/dice"))
    there = device.exported[answered][16:].view(np.float32).reshape(LOGITS.shape)
    np.testing.assert_array_equal(there, plain.as_numpy("gradient/logits"))
    assert not device.exported[answered][:16].any()
    assert device.open == 0


def test_status_is_that_of_the_kind(client: Any, device: HostDevice) -> None:
    register(client, "r", device.export(64), 48)
    assert client.get_cuda_shared_memory_status() == [
        {"name": "r", "device_id": 3, "byte_size": 48}
    ]
    assert client.get_system_shared_memory_status() == []
    client.unregister_system_shared_memory("r")
    assert len(client.get_cuda_shared_memory_status("r")) == 1
    client.unregister_cuda_shared_memory("r")
    assert client.get_cuda_shared_memory_status() == []


def test_the_server_says_that_it_shares_it(client: Any) -> None:
    assert "cuda_shared_memory" in client.get_server_metadata()["extensions"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device_id": 0}, "device_id is 0; this service computes on device 3"),
        ({"handle": bytes(HANDLE_BYTES)}, "cudaErrorInvalidValue"),
        ({"handle": b"short"}, "raw_handle has 5 bytes, a handle 64"),
        ({"nbytes": 65}, "Invalid shared memory region: 'r'"),
        ({"nbytes": -1}, "byte_size"),
    ],
)
def test_what_cannot_be_registered_is_refused(
    client: Any, device: HostDevice, change: dict[str, Any], message: str
) -> None:
    arguments = {"handle": device.export(64), "nbytes": 64, **change}
    with pytest.raises(InferenceServerException, match=message):
        register(client, "r", **arguments)
    assert client.get_cuda_shared_memory_status() == []


def test_what_is_no_base64_is_refused(service: Served) -> None:
    document = {"raw_handle": {"b64": "?"}, "device_id": 3, "byte_size": 1}
    answer = service.client.post("/v2/cudasharedmemory/region/r/register", json=document)
    assert answer.status_code == 400
    assert "base64" in answer.json()["error"]


def test_what_has_shrunk_or_gone_is_refused_at_its_use(client: Any, device: HostDevice) -> None:
    handle = device.export(LOGITS.nbytes + 8)
    register(client, "in", handle, LOGITS.nbytes + 8)
    device.exported[handle] = device.exported[handle][:-1]
    with pytest.raises(InferenceServerException, match="smaller than it was"):
        asked(client, "in")
    del device.exported[handle]
    with pytest.raises(InferenceServerException, match="failed to open CUDA IPC handle"):
        asked(client, "in")
    assert device.open == 0
