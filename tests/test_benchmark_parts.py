"""What the benchmarks are made of measures what it says."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import copying, cuda, eager_losses, families, jobs, libraries, never_seen, unseen
from benchmarks.copying import Copier
from benchmarks.footprint import Footprint
from benchmarks.timing import Elapsed, in_turns
from lossd.losses import LOSSES

# A stand-in for the worker of the other libraries: the protocol without the gigabytes.
FAKE_WORKER = """
import json, sys
import numpy as np
print(json.dumps({"versions": {"a": "1"}, "losses": {"a": ["dice"]}, "x": sys.argv[1]}), flush=True)
for line in sys.stdin:
    command = json.loads(line)
    if "open" in command:
        logits = np.load(command["open"]["logits"])
        answer = {}
    else:
        values = {name: float(logits.sum()) for name in command["run"][1]}
        answer = {"seconds": 123.0, "values": values}
    print(json.dumps(answer), flush=True)
"""


def test_a_copy_goes_on_to_the_next_window_and_starts_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copying, "_LEAST_BYTES", 100)
    monkeypatch.setattr(copying, "_CACHES", 0)
    copy = Copier((2, 3), torch.float32, torch.device("cpu"))
    windows = [copy().data_ptr() for _ in range(6)]
    assert len(set(windows)) == 5  # 24 bytes each, 100 at least
    assert windows[5] == windows[0]
    assert copy().tolist() == [1.0] * 6


def test_a_copy_never_fits_the_cache() -> None:
    copy = Copier((1, 1), torch.float16, torch.device("cpu"))
    assert copy.nbytes >= max(256 << 20, 2 * copying.last_cache_bytes())


@pytest.mark.parametrize(
    ("text", "nbytes"), [("32K\n", 32 << 10), ("16M", 16 << 20), ("1G", 1 << 30), ("512", 512)]
)
def test_a_cache_says_its_size_in_units(text: str, nbytes: int) -> None:
    assert copying.bytes_of(text) == nbytes


def test_work_that_measured_itself_is_taken_at_its_word() -> None:
    timings = in_turns({"own": lambda: Elapsed(9.0), "other": lambda: 9.0}, budget_s=0.0)
    assert timings.median_s("own") == 9.0
    assert timings.median_s("other") < 1.0


def test_labels_of_one_channel_are_binary_and_logits_lean_to_them() -> None:
    inputs = jobs.random_inputs((2, 1, 64, 64), seed=3)
    assert set(np.unique(inputs["target"])) == {0, 1}
    right = (inputs["logits"][:, 0] > 0) == (inputs["target"] == 1)
    assert 0.8 < right.mean() < 0.95


def test_labels_of_many_classes_are_no_bytes() -> None:
    for classes, dtype in ((256, np.uint8), (257, np.int16)):
        labels = jobs.random_inputs((1, classes, 64, 64), seed=3)["target"]
        assert labels.dtype == dtype
        assert labels.max() == classes - 1


def test_each_loss_by_itself_and_all_together_have_one_gradient() -> None:
    inputs = jobs.random_inputs((2, 3, 16, 16), seed=4)
    logits, label = (torch.from_numpy(inputs[name]) for name in ("logits", "target"))
    alone = eager_losses.separately(logits, label, jobs.TEN)
    shared = eager_losses.together(logits, label, jobs.TEN)
    for one, other in zip(alone, shared, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("new", unseen.NEW)
def test_no_two_requests_agree_in_what_is_new(new: unseen.New) -> None:
    cases = list(unseen.cases(new, 40, seed=1))
    sizes = {case.inputs["logits"].shape[2:] for case in cases}
    classes = {case.inputs["logits"].shape[1] for case in cases}
    losses = {frozenset(loss["name"] for loss in case.losses) for case in cases}
    assert len(sizes) == (40 if new in ("size", "all") else 1)
    assert len(classes) == (40 if new in ("classes", "all") else 1)
    assert len(losses) == (40 if new in ("losses", "all") else 1)
    assert {name for one in losses for name in one} <= set(LOSSES)


def test_each_request_is_sent_twice_and_first_as_new() -> None:
    order = list(never_seen.sending_order(50))
    first = {index: place for place, (index, is_first) in enumerate(order) if is_first}
    second = {index: place for place, (index, is_first) in enumerate(order) if not is_first}
    assert sorted(first) == sorted(second) == list(range(50))
    assert all(second[index] > first[index] for index in first)
    assert min(second[index] - first[index] for index in range(30)) > 16


def test_every_family_of_pixel_losses_is_measured_with_one_of_the_shapes() -> None:
    shapes = (*jobs.SHAPES, *families.WHOLE_SHAPES, families.BINARY)
    pixel = {loss.family for loss in LOSSES.values() if loss.kind == "pixel"}
    for family in pixel:
        assert any(families.losses_of(family, shape) for shape in shapes), family


def test_without_an_interpreter_the_libraries_are_not_there(tmp_path: Path) -> None:
    with libraries.libraries(tmp_path / "python", 1) as found:
        assert found is None


def test_a_library_gets_the_inputs_and_tells_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(FAKE_WORKER)
    monkeypatch.setattr(libraries, "_WORKER", worker)
    inputs = jobs.random_inputs((1, 2, 8, 8), seed=5)
    with libraries.libraries(Path(sys.executable), 1) as found:
        assert found is not None
        assert found.versions == {"a": "1"}
        found.open(inputs)
        assert found.values("a", ["dice"]) == {"dice": pytest.approx(inputs["logits"].sum())}
        took = found.round("a", ["dice"])
    assert isinstance(took, Elapsed)
    assert took == 123.0


def test_a_library_that_cannot_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("raise SystemExit(3)")
    monkeypatch.setattr(libraries, "_WORKER", worker)
    with (
        pytest.raises(RuntimeError, match=r"worker\.py has ended"),
        libraries.libraries(Path(sys.executable), 1),
    ):
        pass


def test_a_footprint_sees_what_was_there_for_a_moment() -> None:
    own = Footprint(os.getpid())
    before = own.resident_bytes()
    own.forget_peak()
    assert own.peak_bytes() < before + (16 << 20)
    block = np.ones(64 << 20, np.uint8)
    del block
    time.sleep(0)
    assert own.peak_bytes() >= before + (48 << 20)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_the_cuda_benchmark_says_so() -> None:
    report = cuda.run("eager", quick=True)
    rows = list(itertools.chain(*(section.rows for section in report.sections)))
    assert json.dumps(rows) == json.dumps([{"result": "no CUDA device: not run"}])
