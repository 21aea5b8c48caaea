"""`lossd.evaluate` beside a program that uses torch itself: neither changes the other."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import structlog
import torch

import lossd
from jobs import Core, make_job
from lossd import device_logits
from lossd.core import compiled
from lossd.core.job import Job
from lossd.torch_state import compiling_aside
from lossd_client.errors import LossdError
from test_in_process import ASKED, INPUTS, LOGITS, TARGET, assert_equal, assert_same


@pytest.fixture(scope="module")
def evaluator() -> Iterator[lossd.Evaluator]:
    with lossd.Evaluator(device="cpu", kernels="eager") as made:
        yield made


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def other_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        yield
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default_device": lambda: torch.device("meta"),
    "default_dtype": default_dtype,
    "deterministic": deterministic,
    "threads": other_threads,
}
LOSSES = ["dice", "structural_similarity", "lovasz_softmax"]


@pytest.mark.parametrize("state", list(STATES))
def test_what_torch_is_set_to_changes_no_bit(evaluator: lossd.Evaluator, state: str) -> None:
    asked: dict[str, Any] = {**ASKED, "losses": LOSSES}
    wanted = evaluator.evaluate(**asked, **INPUTS)
    with STATES[state]():
        logits = torch.from_numpy(LOGITS).clone()
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        found = evaluator.evaluate(**asked, logits=logits, target=TARGET)
        with lossd.Evaluator(device="cpu", kernels="eager") as made_here:
            again = made_here.evaluate(**asked, **INPUTS)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert torch.is_autocast_enabled("cpu") == (state == "autocast")
        assert torch.get_default_device().type == ("meta" if state == "default_device" else "cpu")
    assert_same(found, wanted)
    assert_same(again, wanted)
    assert_same(evaluator.evaluate(**asked, **INPUTS), wanted)


def test_compiled_kernels_give_the_bits_of_the_engine_and_leave_no_trace(core: Core) -> None:
    if compiled.choose_mode(torch.device("cpu")) == "eager":
        pytest.skip("there is no C++ compiler")
    asked: dict[str, Any] = {"gradient": "total", "maps": True}
    names = ["dice", "focal", "cross_entropy", "lovasz_softmax"]
    before = dict(os.environ)
    with torch.compiler.set_stance("default"), lossd.Evaluator(device="cpu") as here:
        assert here.device == "cpu (compiled)"
        for dtype in (np.float32, np.float16):
            logits: Any = LOGITS.astype(dtype)
            result = here.evaluate(names, logits=logits, target=TARGET, **asked)
            tensors = core.tensors(make_job(names, {"logits": logits, "target": TARGET}, **asked))
            assert_equal(result.total, tensors["total"])
            assert_equal(result.gradient["logits"], tensors["gradient/logits"])
            for name in result.maps:
                assert_equal(result.maps[name], tensors[f"map/{name}"])
        for state in STATES.values():
            with state():
                assert_same(here.evaluate(names, logits=logits, target=TARGET, **asked), result)
        assert result.numerics_version == here.numerics_version
        assert dict(os.environ) == before

        @torch.compile(backend="eager")
        def of_the_program(x: torch.Tensor) -> torch.Tensor:
            return x + 1

        assert of_the_program(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]


def test_what_compiling_sets_is_set_back(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    configured = structlog.get_config()
    structlog.reset_defaults()
    try:
        with compiling_aside():
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = "lossd's"
            os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
            structlog.get_logger().info("kernel_ready")
            structlog.get_logger().warning("in_place_unavailable")
        assert not structlog.is_configured()
    finally:
        structlog.configure(**configured)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    assert "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ
    said = capfd.readouterr()
    assert "kernel_ready" not in said.out + said.err
    assert said.out == ""
    assert "in_place_unavailable" in said.err


PROBABLE = np.full((2, 4, 30, 20), 0.25, np.float32)
LATE = np.where(np.arange(600).reshape(30, 20) > 300, 2.0, PROBABLE).astype(np.float32)
BROKEN = np.where(LOGITS > 4, np.inf, LOGITS)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"losses": ["dice", "focal"]},
        {"losses": ["dice", "focal"], "statistics": False},
        {"losses": "dice", "statistics": False, "logits": PROBABLE},
        {"losses": "dice", "statistics": False, "logits": LATE},
        {"losses": "dice", "statistics": False, "logits": LATE[:, :1], "task": "binary"},
        {"losses": "dice", "statistics": False, "logits": BROKEN},
        {"losses": "dice", "statistics": False, "logits": LOGITS[0]},
        {"losses": "dice", "statistics": False, "logits": LOGITS.astype(np.int64)},
        {"losses": "dice", "statistics": False, "ignore_index": 2, "mask": TARGET != 1},
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_logits_beside_the_kernels_stay_there_and_change_no_answer(
    evaluator: lossd.Evaluator,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    *,
    listed: bool,
) -> None:
    asked: dict[str, Any] = {**ASKED, **arguments}
    logits = asked.pop("logits", LOGITS)
    target = TARGET if logits.shape[-2:] == TARGET.shape[-2:] else np.zeros((2, 30, 20), np.uint8)
    mask = asked.pop("mask", None)

    def outcome(given: Any) -> lossd.Result | LossdError:
        inputs = {"logits": given, "target": target, "mask": mask}
        more = {"inputs": [inputs, inputs]} if listed else inputs
        try:
            return evaluator.evaluate(**asked, **more)
        except LossdError as error:
            return error

    wanted = outcome(logits)
    # As if the host's memory were the device's: the kernels read what lies beside them.
    monkeypatch.setattr(device_logits, "is_beside", lambda *_: True)
    found = outcome(torch.from_numpy(logits))
    if isinstance(wanted, LossdError):
        assert isinstance(found, LossdError)
        assert type(found) is type(wanted)
        assert (found.detail, found.errors) == (wanted.detail, wanted.errors)
    else:
        assert isinstance(found, lossd.Result)
        assert_same(found, wanted)


def test_the_job_of_logits_beside_the_kernels_holds_no_copy(
    evaluator: lossd.Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_logits, "is_beside", lambda *_: True)
    jobs: list[Any] = []
    place = device_logits._placed  # noqa: SLF001 - what is looked at

    def placed(*arguments: Any) -> Any:
        jobs.append(place(*arguments))
        return jobs[-1]

    monkeypatch.setattr(device_logits, "_placed", placed)
    logits = torch.from_numpy(LOGITS)
    evaluator.evaluate("dice", logits=logits, target=TARGET, gradient="total")
    (job,) = jobs
    assert isinstance(job, Job)
    assert job.parts[0].device_logits is not None
    assert job.parts[0].device_logits.data_ptr() == logits.data_ptr()
    assert not job.parts[0].logits.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("stream", [False, True])
def test_tensors_on_a_gpu_have_the_bits_of_arrays(*, stream: bool) -> None:
    with lossd.Evaluator(device="cuda") as there:
        for names in (["dice", "focal"], ["dice", "lovasz_softmax"]):
            wanted = there.evaluate(names, **INPUTS, gradient="total")
            beside = torch.cuda.stream(torch.cuda.Stream()) if stream else nullcontext()
            with beside, torch.autocast("cuda"):
                logits = torch.from_numpy(LOGITS).cuda().requires_grad_()
                target = torch.from_numpy(TARGET).cuda()
                found = there.evaluate(names, logits=logits, target=target, gradient="total")
            assert_same(found, wanted)
