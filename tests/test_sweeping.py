"""What callers keep and use no more goes, though no call comes; a sweep that ends is told."""

from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from lossd import sweeping
from lossd.tensors import TensorStore
from service_fixture import serving, tensor, wait_until

KEPT = {
    "lossd_tensor_evictions_total": ("/v1/tensors", tensor(np.zeros(9))),
    "lossd_qa_context_evictions_total": (
        "/v1/qa/contexts/mine",
        {"tensors": {"histogram": tensor(np.ones((2, 256), np.int64))}},
    ),
}


def evicted(counter: str) -> float:
    return REGISTRY.get_sample_value(counter, {"reason": "ttl"}) or 0.0


@pytest.mark.parametrize("counter", KEPT)
def test_what_nobody_uses_goes_though_no_call_comes(
    counter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "SWEEP_EVERY_S", 0.01)
    path, document = KEPT[counter]
    with serving(cache_dir=tmp_path, tensor_ttl_s=0.05, context_ttl_s=0.05) as running:
        before = evicted(counter)
        assert running.client.put(path, json=document).status_code == 201
        wait_until(lambda: evicted(counter) == before + 1)


def test_a_sweep_that_has_ended_is_told_and_nothing_else_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "SWEEP_EVERY_S", 0.01)

    def fail(_: TensorStore) -> None:
        msg = "no sweep"
        raise RuntimeError(msg)

    monkeypatch.setattr(TensorStore, "expire", fail)
    with capture_logs() as said, serving(cache_dir=tmp_path) as running:
        wait_until(lambda: any(one["event"] == "sweep_failed" for one in said))
        path, document = KEPT["lossd_tensor_evictions_total"]
        assert running.client.put(path, json=document).status_code == 201
