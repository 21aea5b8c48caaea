"""`lossd.evaluate` stands in for the client: its parameters, its errors, and its bits."""

import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

import lossd
import lossd_client
from jobs import case
from lossd import in_process
from lossd.losses import LOSSES
from lossd_client import Client, losses
from lossd_client.errors import DeadlineExceededError, InvalidInputError, LossdError
from lossd_client.torch import RemoteLoss
from service_fixture import Served, runs
from test_every_encoding import inputs_and_fields

RNG = np.random.default_rng(20)
LOGITS = RNG.normal(0, 2, (2, 4, 9, 11)).astype(np.float32)
TARGET = RNG.integers(0, 4, (2, 9, 11), dtype=np.uint8)
BINARY = RNG.normal(0, 2, (2, 1, 9, 11)).astype(np.float32)
MASK = TARGET != 3
INPUTS: dict[str, Any] = {"logits": LOGITS, "target": TARGET}
ASKED: dict[str, Any] = {
    "losses": ["dice", "focal", "lovasz_softmax"],
    "gradient": "each",
    "maps": True,
    "per_class": True,
    "statistics": True,
}
OF_THE_SERVICE = ("timing_ms", "batch", "request_id")


@pytest.fixture(scope="module")
def evaluator() -> Iterator[lossd.Evaluator]:
    with lossd.Evaluator(device="cpu", kernels="eager") as made:
        yield made


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(str(served.client.base_url), retries=0) as made:
        yield made


def assert_equal(found: Any, wanted: Any, where: str = "result") -> None:
    """Equal to the bit, all the way down."""
    if isinstance(wanted, np.ndarray):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), where
        assert found.tobytes() == wanted.tobytes(), where
    elif isinstance(wanted, dict):
        assert set(found) == set(wanted), where
        for key in wanted:
            assert_equal(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_equal(one, other, f"{where}[{index}]")
    else:
        assert found == wanted, where


def assert_same(found: lossd.Result, wanted: lossd_client.Result | lossd.Result) -> None:
    for one in fields(lossd_client.Result):
        if one.name not in OF_THE_SERVICE:
            assert_equal(getattr(found, one.name), getattr(wanted, one.name), one.name)


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, lossd; print(lossd.__version__, dir(lossd)); "
        "assert not {'torch', 'numpy', 'lossd.evaluator'} & set(sys.modules)"
    )
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'evaluate'" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        _ = lossd.evaluat


def test_it_takes_what_the_client_takes_and_gives_what_it_gives() -> None:
    def shape(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(function).parameters.values()
        return [(one.name, one.default, one.kind) for one in parameters if one.name != "self"]

    wanted = shape(Client.evaluate)
    assert shape(lossd.evaluate) == shape(lossd.Evaluator.evaluate) == wanted
    assert "self" not in inspect.signature(lossd.evaluate).parameters
    assert [one.name for one in fields(lossd.Result)] == [
        one.name for one in fields(lossd_client.Result)
    ]


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_has_the_bits_of_the_service(
    evaluator: lossd.Evaluator, client: Client, name: str
) -> None:
    inputs, more, _ = inputs_and_fields(name)
    asked: dict[str, Any] = {"gradient": "total", "maps": True, "per_class": True, **more}
    if LOSSES[name].kind == "pixel":
        asked["statistics"] = True
    tensors: dict[str, Any] = inputs
    assert_same(
        evaluator.evaluate(name, **tensors, **asked), client.evaluate(name, **tensors, **asked)
    )
    halved = {**asked, "gradient": "each", "gradient_dtype": "float16", "inputs": [inputs, inputs]}
    assert_same(evaluator.evaluate([name], **halved), client.evaluate([name], **halved))


@pytest.mark.parametrize(
    "more",
    [
        {"mask": MASK, "weight_map": RNG.uniform(0, 2, TARGET.shape)},
        {"ignore_index": 3},
        {"preset": "monai", "losses": ["dice", "cross_entropy"]},
        {"preset": "nnunet", "losses": ["dice"]},
        {"aggregate": "batch", "losses": ["dice", "tversky"]},
        {"spacing": (2.0, 0.5), "losses": ["boundary", "hausdorff_dt"]},
        {"spacing": np.array([2.0, 0.5]), "losses": "boundary"},
        {"losses": losses.Tversky(fn_weight=0.9, label="recall"), "gradient_dtype": "bfloat16"},
        {
            "losses": [
                losses.Focal(gamma=1.5, total_weight=3.0),
                {"name": "cross_entropy", "params": {"class_weights": np.arange(1.0, 5.0)}},
                {"name": "dice", "params": {"classes": (1, 2)}, "weight": -1.0, "label": "two"},
            ]
        },
        {"logits": LOGITS.astype(np.float64)},
        {"logits": LOGITS.astype(np.float16), "gradient_dtype": "float16"},
        {"logits": LOGITS.tolist(), "target": TARGET.astype(np.int64).tolist()},
        {"logits": LOGITS[:, :, ::2, ::-1], "target": TARGET[:, ::2, ::-1]},
        {"logits": LOGITS.astype(">f4"), "target": TARGET.astype(">i4")},
        {"target": {"rle": [[runs(one == 1)] for one in TARGET], "labels": [[1], [2]]}},
        {"logits": np.abs(LOGITS) / np.abs(LOGITS).sum(1, keepdims=True)},
        {"logits": None, "losses": "dice", "probabilities": np.full(LOGITS.shape, 0.25)},
        {"logits": BINARY, "target": TARGET % 2, "losses": ["dice", "lovasz_hinge"]},
    ],
    ids="-".join,
)
def test_every_field_and_form_has_the_bits_of_the_service(
    evaluator: lossd.Evaluator, client: Client, more: dict[str, Any]
) -> None:
    arguments = {**INPUTS, **ASKED, **more}
    assert_same(evaluator.evaluate(**arguments), client.evaluate(**arguments))


def test_samples_of_mixed_sizes_are_one_call(evaluator: lossd.Evaluator, client: Client) -> None:
    sizes = [(3, 4), (70, 65), (9, 1), (130, 40)]
    inputs: list[dict[str, Any]] = [
        {
            "logits": RNG.normal(size=(1, 4, *size)).astype(np.float32),
            "target": RNG.integers(0, 4, (1, *size), dtype=np.uint8),
        }
        for size in sizes
    ]
    together = evaluator.evaluate(**ASKED, inputs=inputs)
    assert_same(together, client.evaluate(**ASKED, inputs=inputs))
    for number, each in enumerate(inputs):
        alone = evaluator.evaluate(**ASKED, **each)
        assert_equal(alone.total[0], together.total[number])
        for label in ASKED["losses"]:
            gradients = together.gradient["logits"][number]
            assert_equal(alone.gradient["logits"][label], gradients[label])
    assert (together.batch.samples, together.batch.requests) == (4, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_torch_tensors_have_the_bits_of_arrays(
    evaluator: lossd.Evaluator, client: Client, dtype: torch.dtype
) -> None:
    logits = torch.from_numpy(LOGITS).to(dtype).requires_grad_()
    target = torch.from_numpy(TARGET).long()
    asked = {**ASKED, "gradient": "total"}
    result = evaluator.evaluate(**asked, logits=logits * 1, target=target)
    assert_same(result, client.evaluate(**asked, logits=logits.detach(), target=target))
    gradient = torch.from_numpy(result.gradient["logits"])
    assert gradient.data_ptr() == result.gradient["logits"].ctypes.data
    (logits * 2).backward(gradient.to(logits))
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, gradient.to(logits) * 2)


class Exported:
    """An array of a library that knows nothing but DLPack."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **more: Any) -> Any:
        return self._array.__dlpack__(**more)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def test_arrays_of_other_libraries_and_arrays_that_must_not_be_written(
    evaluator: lossd.Evaluator,
) -> None:
    wanted = evaluator.evaluate(**ASKED, **INPUTS)
    read_only = LOGITS.copy()
    read_only.flags.writeable = False
    assert_same(evaluator.evaluate(**ASKED, logits=read_only, target=TARGET), wanted)
    frozen = np.frombuffer(LOGITS.tobytes(), np.float32).reshape(LOGITS.shape)
    assert_same(evaluator.evaluate(**ASKED, logits=frozen, target=TARGET), wanted)
    exported: Any = Exported(LOGITS)
    assert_same(evaluator.evaluate(**ASKED, logits=exported, target=TARGET), wanted)


@pytest.mark.parametrize(
    "more",
    [
        {"losses": "dicee"},
        {"losses": {"name": "dice", "params": {"smooth_nr": "a"}}},
        {"losses": {"name": "dice", "params": {"sharpness": 1}}},
        {"losses": ["dice", "giou"]},
        {"target": TARGET[:, :3]},
        {"target": TARGET + 2},
        {"target": None},
        {"logits": LOGITS[0, 0]},
        {"logits": TARGET},
        {"logits": np.where(LOGITS > 4, np.nan, LOGITS)},
        {"mask": np.full(TARGET.shape, np.nan)},
        {"weight_map": -np.ones(TARGET.shape)},
        {"probabilities": np.full(LOGITS.shape, 0.25)},
        {"logits": None, "probabilities": LOGITS},
        {"sharpness": TARGET},
        {"spacing": (1.0, 1.0, 1.0)},
        {"task": "binary"},
        {"target": {"rle": {"size": [9, 11], "counts": [5]}}},
        {"target": {"ref": "nothing"}},
        {"target": {"png": "bm90IGEgcGljdHVyZQ=="}},
    ],
    ids="-".join,
)
def test_what_the_service_refuses_is_refused_alike(
    evaluator: lossd.Evaluator, client: Client, more: dict[str, Any]
) -> None:
    arguments = {**INPUTS, **ASKED, **more}
    with pytest.raises(LossdError) as wanted:
        client.evaluate(**arguments)
    with pytest.raises(LossdError) as found:
        evaluator.evaluate(**arguments)
    assert type(found.value) is type(wanted.value)
    assert (found.value.detail, found.value.errors) == (wanted.value.detail, wanted.value.errors)
    assert_same(evaluator.evaluate(**ASKED, **INPUTS), client.evaluate(**ASKED, **INPUTS))


@pytest.mark.parametrize(
    ("more", "loc", "said"),
    [
        ({"losses": 5}, ("losses",), "valid list"),
        ({"losses": losses.Dice}, ("losses", 0), "LossChoice"),
        ({"losses": []}, ("losses",), "at least 1"),
        ({"losses": ["dice", "dice"]}, (), "more than once"),
        ({"gradient": "some"}, ("gradient",), "'none', 'total' or 'each'"),
        ({"timeout_ms": -1.0}, ("timeout_ms",), "greater than 0"),
        ({"inputs": [INPUTS]}, ("inputs",), "either inputs or logits, target"),
        ({"logits": None, "target": None}, ("inputs",), "needs its tensors"),
        ({"logits": None, "target": None, "inputs": []}, ("inputs",), "at least one"),
        ({"logits": None, "target": None, "inputs": [LOGITS]}, ("inputs", 0), "a mapping"),
        ({"target": [[1, 2], [3]]}, ("inputs", "target"), "no array"),
        ({"target": "dice"}, ("inputs", "target"), "not a number"),
        ({"logits": LOGITS * 1j}, ("inputs", "logits"), "complex"),
    ],
)
def test_what_the_client_would_not_send_names_its_field(
    evaluator: lossd.Evaluator, more: dict[str, Any], loc: tuple[str | int, ...], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said) as found:
        evaluator.evaluate(**{**INPUTS, **ASKED, **more})
    assert found.value.errors[0].loc == loc


def test_limits_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSD_MAX_CLASSES", "3")
    small = lossd.Evaluator(device="cpu", kernels="eager", max_request_samples=1)
    with pytest.raises(InvalidInputError, match="4 channels, at most 3"):
        small.evaluate("dice", logits=LOGITS, target=TARGET)
    with pytest.raises(InvalidInputError, match="2 samples, one request takes at most 1"):
        small.evaluate("dice", logits=LOGITS[:, :2], target=TARGET // 2)
    with pytest.raises(ValueError, match="no_such_setting"):
        lossd.Evaluator(no_such_setting=1)
    with pytest.raises(ValueError, match="device"):
        lossd.Evaluator(device="tpu")


def test_threads_share_an_evaluator(evaluator: lossd.Evaluator) -> None:
    cases = [case("multiclass", spatial=(40 + n, 30), seed=n, dtype=np.float32) for n in range(8)]
    wanted = [evaluator.evaluate(**ASKED, **one.inputs) for one in cases]
    found: list[lossd.Result | None] = [None] * len(cases)

    def work(number: int) -> None:
        found[number] = evaluator.evaluate(**ASKED, **cases[number].inputs)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert_same(one, other)


def test_a_deadline_counts_waiting_and_ends_a_computation(evaluator: lossd.Evaluator) -> None:
    with evaluator._lock, pytest.raises(DeadlineExceededError, match="20 ms"):  # noqa: SLF001
        evaluator.evaluate("dice", **INPUTS, timeout_ms=20.0)
    large = case("multiclass", spatial=(400, 400), dtype=np.float32)
    with pytest.raises(DeadlineExceededError):
        evaluator.evaluate(["soft_cldice", "boundary"], **large.inputs, timeout_ms=30.0)
    assert evaluator.evaluate("dice", **INPUTS, timeout_ms=1e6).batch.samples == 2


def test_a_closed_evaluator_says_so() -> None:
    with lossd.Evaluator(device="cpu", kernels="eager") as closed:
        assert repr(closed) == "Evaluator('cpu (eager)')"
        closed.warm_up()
    for call in (closed.warm_up, lambda: closed.evaluate("dice", **INPUTS)):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_memory_that_does_not_suffice_is_an_error_of_the_request(
    evaluator: lossd.Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> Any:
        def evaluate(*_: object) -> Any:
            raise error

        return evaluate

    with monkeypatch.context() as patch:
        patch.setattr("lossd.core.evaluation.evaluate", fail(MemoryError()))
        with pytest.raises(lossd_client.errors.TooLargeError, match="more memory"):
            evaluator.evaluate("dice", **INPUTS)
        patch.setattr("lossd.core.evaluation.evaluate", fail(ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            evaluator.evaluate("dice", **INPUTS)
    assert evaluator.evaluate("dice", **INPUTS).batch.samples == 2


def test_remote_loss_takes_an_evaluator(evaluator: lossd.Evaluator, client: Client) -> None:
    found, wanted = (torch.from_numpy(LOGITS).requires_grad_() for _ in range(2))
    here: Any = evaluator
    names: list[Any] = ["dice", "lovasz_softmax"]
    RemoteLoss(here, names)(found, TARGET).backward()
    RemoteLoss(client, names)(wanted, TARGET).backward()
    assert found.grad is not None
    assert wanted.grad is not None
    assert torch.equal(found.grad, wanted.grad)


FORKED = """
import os, sys
import numpy as np, torch
import lossd

torch.set_num_threads(1)
logits = np.arange(64.0).reshape(1, 2, 4, 8) % 7
inputs = {"logits": logits, "target": np.eye(4, 8, dtype=int)[None]}
own = lossd.Evaluator()
want = lossd.evaluate("dice", **inputs).total
lossd.in_process._of_the_process.get()._lock.acquire()
child = os.fork()
if not child:
    assert (lossd.evaluate("dice", **inputs).total == want).all()
    try:
        own.evaluate("dice", **inputs)
    except RuntimeError as error:
        assert "make one in each process" in str(error)
        os._exit(0)
    os._exit(1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_makes_an_evaluator_of_its_own() -> None:
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", FORKED],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "LOSSD_KERNELS": "eager", "LOSSD_DEVICE": "cpu"},
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_process_has_one_evaluator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSD_KERNELS", "eager")
    monkeypatch.setenv("LOSSD_DEVICE", "cpu")
    made: list[lossd.Evaluator] = []
    shared = in_process._OfTheProcess()  # noqa: SLF001 - the one of this process is others'
    threads = [threading.Thread(target=lambda: made.append(shared.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, made))) == 1
    assert made[0].device == "cpu (eager)"
    monkeypatch.setattr(in_process, "_of_the_process", shared)
    assert lossd.evaluate("dice", **INPUTS, request_id="mine").request_id == "mine"
