"""Which kept logits get a copy on the device, with a stand-in for the device."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs import Core, case, make_job
from lossd.callers import ANONYMOUS
from lossd.core.job import Job, Part
from lossd.device_tensors import DeviceTensors
from lossd.settings import Settings
from lossd.tensors import Finder, TensorStore
from lossd_client.wire import Array

NBYTES = 2 * 4 * 7 * 5 * 4
INPUTS = case("multiclass", dtype=np.float32).inputs


class Kit:
    """A store and a device with room for two copies, on which everything is doubled."""

    def __init__(self, copies: int = 2) -> None:
        self.copied: list[Tensor] = []
        self.on_device = DeviceTensors(copies * NBYTES, self.copy)
        self.store = TensorStore(Settings(), on_drop=self.on_device.forget)

    def copy(self, tensor: Tensor) -> Tensor:
        self.copied.append(tensor)
        return tensor * 2

    def keep(self, number: int = 0) -> str:
        return self.store.put(ANONYMOUS, {"t": logits(number)})["t"].ref

    def job(self, ref: str, **fields: Any) -> tuple[Job, Job]:
        """A job of a request that names the ref, as it was read and as it is placed."""
        find = Finder(self.store, ANONYMOUS)
        found = find(ref)
        assert found is not None
        job = make_job("dice", {**INPUTS, "logits": found}, **fields)
        placed = self.on_device.placed(job, find.used)
        assert isinstance(job, Job)
        assert isinstance(placed, Job)
        return job, placed

    def part(self, ref: str) -> Part:
        return self.job(ref)[1].parts[0]

    def has(self, ref: str) -> bool:
        before = len(self.copied)
        self.part(ref)
        return len(self.copied) == before


def logits(number: int) -> Array:
    array: Array = INPUTS["logits"]
    return array + np.float32(number)


def test_logits_are_copied_when_they_are_used_again_and_once() -> None:
    kit = Kit()
    ref = kit.keep()
    assert kit.part(ref).device_logits is None
    copies = [kit.part(ref).device_logits for _ in range(3)]
    assert len(kit.copied) == 1
    assert all(copy is copies[0] is not None for copy in copies)


def test_the_passes_read_the_copy_and_nothing_else_does(core: Core) -> None:
    kit = Kit()
    ref = kit.keep()
    kit.part(ref)
    job, placed = kit.job(ref, statistics=True)
    doubled = make_job("dice", {**INPUTS, "logits": logits(0) * 2}, statistics=True)
    got, want = core.tensors(placed), core.tensors(doubled)
    np.testing.assert_array_equal(got["loss/dice"], want["loss/dice"])
    assert not np.array_equal(got["loss/dice"], core.tensors(job)["loss/dice"])
    assert placed.nbytes == job.nbytes
    torch.testing.assert_close(placed.parts[0].logits, job.parts[0].logits)


def test_the_copy_used_longest_ago_goes() -> None:
    kit = Kit()
    refs = [kit.keep(number) for number in range(3)]
    for ref in refs:
        kit.part(ref)
    kit.part(refs[0])
    kit.part(refs[1])
    assert kit.has(refs[0])
    kit.part(refs[2])
    assert [kit.has(refs[2]), kit.has(refs[0])] == [True, True]
    assert not kit.has(refs[1])


def test_a_tensor_that_is_kept_no_more_has_no_copy() -> None:
    kit = Kit(copies=1)
    ref = kit.keep()
    kit.part(ref)
    job, _ = kit.job(ref)
    kit.store.delete(ANONYMOUS, ref)
    assert kit.on_device._nbytes == 0  # noqa: SLF001 - shown nowhere else
    kit.keep()
    assert kit.part(ref).device_logits is None
    assert job.parts[0].logits.shape == (2, 4, 35)


def test_a_tensor_that_goes_while_it_is_copied_leaves_no_copy_behind() -> None:
    kit = Kit()
    ref = kit.keep()
    kit.part(ref)
    copy = kit.copy

    def slow(tensor: Tensor) -> Tensor:
        kit.store.delete(ANONYMOUS, ref)
        return copy(tensor)

    kit.on_device._copy = slow  # noqa: SLF001 - the moment that matters
    assert kit.part(ref).device_logits is not None
    assert kit.on_device._nbytes == 0  # noqa: SLF001


def test_what_does_not_fit_or_finds_no_memory_stays_in_the_hosts() -> None:
    kit = Kit(copies=0)
    ref = kit.keep()
    assert [kit.part(ref).device_logits for _ in range(3)] == [None] * 3
    assert kit.copied == []
    kit = Kit()
    ref = kit.keep()

    def fail(_: Tensor) -> Tensor:
        msg = "no memory"
        raise torch.OutOfMemoryError(msg)

    kit.on_device._copy = fail  # noqa: SLF001
    assert [kit.part(ref).device_logits for _ in range(3)] == [None] * 3


def test_only_logits_are_copied_and_only_whole_ones() -> None:
    kit = Kit()
    find = Finder(kit.store, ANONYMOUS)
    kept = kit.store.put(ANONYMOUS, {**INPUTS, "probabilities": np.full((2, 4, 7, 5), 0.25)})
    arrays = {name: find(one.ref) for name, one in kept.items()}
    for entry in find.used:
        entry.uses = 2
    first = arrays["logits"]
    assert first is not None
    assert arrays["target"] is not None
    jobs = [
        make_job("dice", {"logits": logits(0), "target": arrays["target"]}),
        make_job("dice", {"logits": first[:1], "target": arrays["target"][:1]}),
        make_job("dice", {"probabilities": arrays["probabilities"], "target": INPUTS["target"]}),  # type: ignore[dict-item]
        make_job("l1", {"prediction": first, "target": logits(1)}),
    ]
    for job in jobs:
        kit.on_device.placed(job, find.used)
    assert kit.copied == []
