"""A short chaos ends with every good answer right; what must not be is noticed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from faults import chaos
from faults.known import mark
from faults.service import Footprint
from faults.soak import GROWTH_MIB, Sample, growth
from faults.table import table
from loadtests.answers import Reply
from lossd_client.wire import JSON, SAFETENSORS, encode_safetensors

REQUESTS = 100_000


def test_a_short_chaos_breaks_nothing(tmp_path: Path) -> None:
    report = chaos.run(
        seconds=2,
        kernels="eager",
        fuzz_bodies=30,
        largest_bytes=40_000,
        outages=["SIGTERM"],
        folder=tmp_path,
    )
    assert not report.violations, report.examples
    assert report.faults.keys() == {fault.name for fault in table()}
    assert all(count > 0 for count in report.good.values())
    assert [one.exit_status for one in report.outages] == [0]


def as_json(value: float, **way: object) -> Reply:
    document = {"losses": {"dice": [value]}, "total": [value], **way}
    return Reply(200, {"content-type": JSON}, json.dumps(document).encode())


def as_safetensors(value: float, **way: object) -> Reply:
    tensors = {"loss/dice": np.array([value]), "total": np.array([value])}
    body = b"".join(encode_safetensors(tensors, {"response": json.dumps(way)}))
    return Reply(200, {"content-type": SAFETENSORS}, body)


@pytest.mark.parametrize("written", [as_json, as_safetensors])
def test_one_bit_makes_another_answer_and_its_way_does_not(written: Callable[..., Reply]) -> None:
    way = {"request_id": "a", "timing_ms": {"total": 1.0}, "batch": {"requests": 1}}
    other = {"request_id": "b", "timing_ms": {"total": 9.0}, "batch": {"requests": 5}}
    assert mark(written(0.25, **way)) == mark(written(0.25, **other))
    assert mark(written(0.25, **way)) != mark(written(np.nextafter(0.25, 1), **way))
    assert mark(written(0.25, **way)) != mark(written(0.25, **way, warnings=["odd"]))


def samples(resident_mib: Callable[[int], float]) -> list[Sample]:
    noise = np.random.default_rng(0).normal(0, 3, 201)
    return [
        Sample(at, Footprint(resident_mib(at) + jump, threads=9, descriptors=20))
        for at, jump in zip(range(0, REQUESTS + 1, REQUESTS // 200), noise, strict=True)
    ]


def test_memory_that_goes_up_and_down_is_flat() -> None:
    assert all(one.flat for one in growth(samples(lambda _: 600.0)).values())


def test_what_a_start_needs_is_no_growth() -> None:
    assert growth(samples(lambda at: 400.0 if at < 5000 else 600.0))["resident_mib"].flat


@pytest.mark.parametrize(
    "resident_mib",
    [
        lambda at: 600 + 2 * GROWTH_MIB * at / REQUESTS,
        lambda at: 600 if at < REQUESTS / 2 else 600 + 2 * GROWTH_MIB,
    ],
    ids=["leak", "step"],
)
def test_memory_that_grows_is_not_flat(resident_mib: Callable[[int], float]) -> None:
    found = growth(samples(resident_mib))
    assert [name for name, one in found.items() if not one.flat] == ["resident_mib"]
