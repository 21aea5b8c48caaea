"""Losses that were recorded give torch's bits; what cannot be recorded is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from jobs import CASES, Case, Core, make_job
from lossd.core import compiled, in_place, program
from lossd.core import vocabulary as v
from lossd.core.heads import RECORDED_AFTER, Array, Evaluated, Heads, Kind, Tables
from lossd.core.job import LossCall, Outcome
from lossd.core.passes import Workspace
from lossd.core.program import Library
from lossd.core.recording import Function, UnrecordableError, record
from lossd.losses import LOSSES
from lossd.losses.declare import TileLoss
from lossd.settings import Settings
from variants import variants

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(compiled.choose_mode(CPU) == "eager", reason="needs a C++ compiler")

KINDS = (
    Kind("multiclass", by_channel=False),
    Kind("multiclass", by_channel=True),
    Kind("multilabel", by_channel=False),
    Kind("binary", by_channel=False),
)
TILE_LOSSES = {name: loss for name, loss in LOSSES.items() if isinstance(loss, TileLoss)}


@pytest.fixture(scope="module")
def library() -> Library:
    folder = compiled.cache_folder(Settings().cache_dir, CPU)
    folder.mkdir(parents=True, exist_ok=True)
    return Library(in_place.build(folder, program.SOURCE))


def tables(kind: Kind, samples: int, channels: int, seed: int) -> Tables:
    """Sums as they come, of odd samples too: a class absent, no pixel, a perfect mask."""
    random = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, dtype=torch.float64) * 100.0

    by_sigmoid = kind.by_channel or kind.task != "multiclass"
    sums = v.RICH_SIGMOID_PIXEL_SUMS if by_sigmoid else v.RICH_PIXEL_SUMS
    groups, labels = (channels, 2) if by_sigmoid else (1, channels)
    region = some(samples, v.RICH_REGION_SUMS, channels)
    region[:, v.TARGET] += 200.0
    pixel = [some(samples, sums, groups, labels) for _ in range(2)]
    pixels = torch.full((samples,), 4096.0, dtype=torch.float64)
    region[0, v.TARGET, 0] = region[0, v.FALSE_NEGATIVE, 0] = 0.0
    if samples > 2:
        for table in (region, *pixel, pixels):
            table[1] = 0.0
        region[2, v.FALSE_NEGATIVE : v.TARGET_SQUARED] = 0.0
        region[2, v.TARGET_SQUARED] = region[2, v.TARGET]
    return Tables(kind, region, pixel, pixels)


def calls(name: str, kind: Kind, channels: int) -> Iterator[LossCall[TileLoss]]:
    loss = TILE_LOSSES[name]
    if kind.task not in loss.tasks:
        return
    for params in variants(name, channels, kind.task):
        options = loss.parameters.model_validate(params).of_task(kind.task)
        yield LossCall(name, loss, options, 1.0)


def same_bits(one: Array | None, other: Array | None) -> bool:
    """Of arrays, of which None is zeros; 0 and -0 are told apart by nothing that follows."""
    if one is None or other is None:
        left = other if one is None else one
        return left is None or not left.any()
    return np.array_equal(one, other, equal_nan=True)


def evaluate(
    heads: Heads,
    call: LossCall[TileLoss],
    given: Tables,
    library: Library | None,
    weighted: Mapping[int, float] = MappingProxyType({0: 1.0}),
    *,
    is_aggregated: bool = False,
) -> Evaluated:
    return heads.evaluate(
        call,
        given,
        np.array(list(weighted)),
        np.array(list(weighted.values())),
        number=int(call.loss.focusing is not None),
        is_aggregated=is_aggregated,
        library=library,
    )


def after_many_uses(call: LossCall[TileLoss], given: Tables, library: Library) -> Heads:
    heads = Heads()
    for _ in range(RECORDED_AFTER):
        heads.record_next()
        evaluate(heads, call, given, library)
    assert heads.programs == 0
    heads.record_next()
    return heads


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.task}-{kind.by_channel}")
@pytest.mark.parametrize("name", TILE_LOSSES)
@pytest.mark.parametrize("is_aggregated", [False, True], ids=["by sample", "together"])
def test_a_recorded_loss_has_the_bits_of_torch(
    *,
    is_aggregated: bool,
    name: str,
    kind: Kind,
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lossd.core.heads.RECORDED_AFTER", 1)
    channels = 1 if kind.task == "binary" else 4
    one, six = tables(kind, 1, channels, seed=1), tables(kind, 6, channels, seed=2)
    weighted = {4: 1.0, 0: 0.0, 1: 0.3, 5: -2.0, 2: 1.7}
    for call in calls(name, kind, channels):
        heads, how = Heads(), partial(evaluate, is_aggregated=is_aggregated)
        how(heads, call, one, library)
        heads.record_next()
        assert heads.programs == 1
        found = astuple(how(heads, call, six, library, weighted))
        expected = astuple(how(Heads(), call, six, None, weighted))
        for ours, theirs in zip(found, expected, strict=True):
            assert same_bits(ours, theirs), call.options


@pytest.mark.parametrize("name", TILE_LOSSES)
def test_every_loss_of_sums_can_be_recorded(name: str, library: Library) -> None:
    for kind in KINDS:
        channels = 1 if kind.task == "binary" else 4
        for call in calls(name, kind, channels):
            given = tables(kind, 1, channels, seed=3)
            assert after_many_uses(call, given, library).programs == 1, call.options


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.task}-{kind.by_channel}")
@pytest.mark.parametrize("name", TILE_LOSSES)
def test_a_loss_has_the_same_bits_in_any_company(name: str, kind: Kind) -> None:
    """Of more numbers than a vector unit takes at once, and of some that are left over."""
    channels = 1 if kind.task == "binary" else 4
    given = tables(kind, 23, channels, seed=6)
    weighted = {sample: 1.0 + sample / 7.0 for sample in range(23)}
    for call in calls(name, kind, channels):
        together = astuple(evaluate(Heads(), call, given, None, weighted))
        for sample, weight in weighted.items():
            alone = astuple(evaluate(Heads(), call, given, None, {sample: weight}))
            for one, all_of_them in zip(alone, together, strict=True):
                own = None if all_of_them is None else all_of_them[sample : sample + 1]
                assert same_bits(one, own), (call.options, sample)


def test_what_cannot_be_recorded_stays_with_torch(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> NoReturn:
        raise UnrecordableError

    monkeypatch.setattr("lossd.core.heads.record", refusing)
    (call, *_) = calls("log_dice", KINDS[0], 4)
    given = tables(KINDS[0], 1, 4, seed=3)
    with capture_logs() as logs:
        heads = after_many_uses(call, given, library)
    assert not logs
    assert heads.programs == 0
    assert evaluate(heads, call, given, library).value[0] > 0.0


def test_a_recording_that_fails_is_told_and_harms_nobody(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> NoReturn:
        raise KeyError("missing")

    monkeypatch.setattr("lossd.core.heads.record", failing)
    (call, *_) = calls("dice", KINDS[0], 4)
    given = tables(KINDS[0], 1, 4, seed=3)
    with capture_logs() as logs:
        heads = after_many_uses(call, given, library)
    assert [(entry["event"], entry["loss"]) for entry in logs] == [("recording_failed", "dice")]
    assert heads.programs == 0
    assert evaluate(heads, call, given, library).value[0] > 0.0


def run(function: Function, *arguments: Tensor, library: Library) -> dict[str, Tensor]:
    """Recorded on the first sample, run on all."""
    recorded = record(function, [one[:1].clone() for one in arguments])
    found = recorded.run(library, [one.numpy() for one in arguments], np.arange(len(arguments[0])))
    return {name: torch.from_numpy(one) for name, one in found.items() if one is not None}


def doubles(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_views_and_what_is_written_into_them(library: Library) -> None:
    def function(x: Tensor) -> dict[str, Tensor | None]:
        copy = x.clone()
        copy[:, 0] = x[:, 1] * 2.0
        copy[:, 2].mul_(3.0)
        turned = torch.stack([copy.flip(1), x], dim=1).transpose(1, 2)
        larger = (x - x.clamp_min(0.5)).bool()
        return {
            "turned": turned,
            "larger": larger,
            "least": torch.where(larger, x, 2.0 - x).amin(-1),
            "zeros": torch.zeros_like(x),
        }

    x = doubles(4, 3)
    found = run(function, x, library=library)
    expected = function(x)
    assert set(found) == {"turned", "larger", "least"}
    for name, one in found.items():
        wanted = expected[name]
        assert wanted is not None
        assert torch.equal(one, wanted.double()), name


def test_a_constant_is_what_it_was_when_it_was_used(library: Library) -> None:
    def function(x: Tensor) -> dict[str, Tensor | None]:
        factor = torch.ones(3, dtype=torch.float64)
        first = x * factor
        factor[1] = 7.0
        return {"first": first, "second": x * factor}

    x = doubles(2, 3)
    found = run(function, x, library=library)
    assert torch.equal(found["first"], x)
    assert torch.equal(found["second"], x * torch.tensor([1.0, 7.0, 1.0], dtype=torch.float64))


def test_its_derivatives_are_recorded_too(library: Library) -> None:
    def function(x: Tensor) -> dict[str, Tensor | None]:
        leaf = x.detach().requires_grad_()
        value = (leaf.cumsum(-1)[:, -1] / (1.0 + leaf[:, 0] * leaf[:, 1])).clamp_min(0.9)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        return {"value": value.detach(), "slope": slope}

    x = doubles(8, 3)
    found, expected = run(function, x, library=library), function(x)
    assert {name: bool(one.any()) for name, one in found.items()} == {"value": True, "slope": True}
    for name, one in expected.items():
        assert one is not None
        assert torch.equal(found[name], one), name


def test_functions_that_torch_is_asked_for_have_its_bits(library: Library) -> None:
    def function(x: Tensor) -> dict[str, Tensor | None]:
        leaf = x.detach().requires_grad_()
        grown = torch.expm1(leaf[:, :2]) + leaf[:, 1:]
        value = torch.log1p(grown[:, 0] * grown[:, 1]) * leaf[:, 2].log()
        (slope,) = torch.autograd.grad((value.exp() + leaf[:, 0]).sum(), leaf)
        return {"value": value.detach(), "slope": slope}

    x = doubles(37, 3)
    found, expected = run(function, x, library=library), function(x)
    for name, one in expected.items():
        assert one is not None
        assert torch.equal(found[name], one), name


def test_powers_that_need_no_logarithm_are_recorded(library: Library) -> None:
    def function(x: Tensor) -> dict[str, Tensor | None]:
        return {"square": x**2, "same": x**1 + 1.0, "one": x**0.0 * x}

    x = doubles(5, 3)
    found = run(function, x, library=library)
    for name, one in function(x).items():
        assert one is not None
        assert torch.equal(found[name], one), name


def _chooses(x: Tensor) -> Tensor:
    return x * 2.0 if bool((x > 0.5).any()) else x


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (torch.sinh, "sinh"),
        (lambda x: x**1.5, "pow with 1.5"),
        (lambda x: x.sum(-1), "sum of 3"),
        (_chooses, "local_scalar"),
        (lambda x: x[x > 0.5], "index|nonzero"),
        (lambda x: x.to(torch.float32), "float32"),
        (lambda x: x.argmax(-1), "argmax"),
        (lambda x: (x > 0.2) + (x > 0.5), "add of bools"),
        (lambda x: torch.div(x, 0.3, rounding_mode="floor"), "rounding_mode"),
        (lambda x: x.repeat(1, 30_000) * 2.0, "more than"),
    ],
    ids=["sinh", "pow", "sum", "choice", "index", "float32", "argmax", "bools", "floor", "many"],
)
def test_what_a_program_cannot_say_is_refused(
    function: Callable[[Tensor], Tensor], why: str
) -> None:
    with pytest.raises(UnrecordableError, match=why):
        record(lambda x: {"found": function(x)}, [doubles(1, 3)])


def test_what_is_known_of_losses_is_bounded(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossd.core.heads._MAX_KNOWN", 3)
    heads, given = Heads(), tables(KINDS[0], 1, 3, seed=5)
    loss = TILE_LOSSES["dice"]
    for smooth in range(20):
        options = loss.parameters.model_validate({"smooth_nr": float(smooth)})
        for _ in range(RECORDED_AFTER):
            evaluate(heads, LossCall("dice", loss, options, 1.0), given, library)
    assert len(heads) == 3
    for _ in range(20):
        heads.record_next()
    assert heads.programs == 3


def test_a_library_of_another_source_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "program.cpp"
    text = program.SOURCE.read_text(encoding="utf-8")
    other.write_text(text.replace("int32_t reserved;", "int64_t reserved;"), encoding="utf-8")
    built = in_place.build(tmp_path, other)
    with pytest.raises(RuntimeError, match=r"another program\.cpp"):
        Library(built)


ASKED = [
    {"name": "dice", "weight": 2.0},
    {"name": "focal", "weight": -0.5},
    {"name": "focal", "label": "flat", "params": {"gamma": 0.5}, "weight": 3.0},
    "cross_entropy",
    "generalized_dice",
    "log_dice",
    "log_cosh_dice",
    "focal_tversky",
]


@pytest.mark.parametrize("gradient", ["total", "each"])
@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_an_answer_stays_the_same_when_its_losses_are_recorded(
    one: Case, gradient: str, library: Library
) -> None:
    kernels = compiled.eager_kernels()
    table = {key: replace(own, programs=library) for key, own in kernels.items()}
    core = Core(table, Workspace(CPU, 1 << 16))
    wanted = {"gradient": gradient, "per_class": True, "maps": True, "statistics": True}
    job = make_job(ASKED, one.inputs, **one.fields, **wanted)
    other = make_job(ASKED[::-1], one.inputs, **one.fields, **wanted)
    first = core.tensors(job)
    for _ in range(RECORDED_AFTER + len(ASKED)):
        core.workspace.heads.record_next()
        found = core.tensors(job)
    assert core.workspace.heads.programs == len(ASKED)
    _, beside = core.run([other, job])
    assert isinstance(beside, Outcome)
    for tensors in (found, beside.tensors):
        assert tensors.keys() == first.keys()
        for name, array in first.items():
            assert tensors[name].tobytes() == array.tobytes(), name
