"""The passes in C++ say what the kernels in torch say, for every dtype, size and oddity."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from lossd.core import compiled, in_place, sigmoid, softmax
from lossd.core.in_place import InPlace
from lossd.core.tiles import TILE_PIXELS, Sample, tiles_of
from lossd.settings import Settings

in_place_build = in_place.build

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(compiled.choose_mode(CPU) == "eager", reason="needs a C++ compiler")


VECTORS = [(), ("-mno-avx512f",), ("-mno-avx",)] if platform.machine() == "x86_64" else [()]
"""Flags for as many lanes as this processor has, and for fewer."""


@pytest.fixture(scope="module", params=VECTORS, ids=" ".join)
def library(request: pytest.FixtureRequest) -> Path:
    folder = compiled.cache_folder(Settings().cache_dir, CPU)
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_place, "_FLAGS", (*in_place._FLAGS, *request.param))  # noqa: SLF001
        return in_place.build(folder)


def softmax_sample(
    classes: int, pixels: int, dtype: torch.dtype, label_dtype: torch.dtype, seed: int
) -> Sample:
    random = torch.Generator().manual_seed(seed)
    logits = (torch.randn(1, classes, pixels, generator=random) * 4).to(dtype)
    target = torch.randint(-1, classes, (1, 1, pixels), generator=random).to(label_dtype)
    logits[:, :, target[0, 0] < 0] = torch.nan
    weight = torch.rand(1, 1, pixels, generator=random) if seed % 2 else None
    return Sample(logits, target, weight)


def sigmoid_sample(
    channels: int, pixels: int, dtype: torch.dtype, seed: int, *, hard: bool
) -> Sample:
    random = torch.Generator().manual_seed(seed)
    logits = (torch.randn(channels, 1, pixels, generator=random) * 4).to(dtype)
    target = torch.rand(channels, 1, pixels, generator=random)
    target = target.round().to(torch.int8) if hard else target
    target[:, :, ::7] = -1
    logits[:, :, ::7] = torch.inf
    weight = torch.rand(1, 1, pixels, generator=random) if seed % 2 else None
    return Sample(logits, target, weight)


def as_tiles(values: Tensor, fill: float) -> Tensor:
    """`[G, D, P]` as `[K, D, TILE_PIXELS]`."""
    tiles = tiles_of(values.shape[-1])
    room = torch.full((*values.shape[:2], tiles * TILE_PIXELS), fill, dtype=torch.float64)
    room[:, :, : values.shape[-1]] = values.double()
    cut: Tensor = room.unflatten(2, (tiles, TILE_PIXELS))
    return cut.transpose(1, 2).flatten(0, 1)


def arguments(family: in_place.Family, sample: Sample, gamma: float) -> tuple[Tensor, ...]:
    """What the float64 kernels in torch are given for a sample."""
    logits, target = as_tiles(sample.logits, 0.0), as_tiles(sample.target, -1.0)
    weight = torch.ones(1, 1, sample.logits.shape[-1]) if sample.weight is None else sample.weight
    weights = as_tiles(weight.expand(sample.extent.groups, 1, -1), 0.0)[:, 0]
    exponents = torch.full((len(logits), 1), gamma, dtype=torch.float64)
    if family == "sigmoid":
        return logits[:, 0], target[:, 0], weights, exponents
    return logits, target[:, 0].to(torch.int32), weights, exponents


def per_tile(values: Tensor, sample: Sample) -> Tensor:
    """Coefficients `[G, S, D]` as the kernels take them, `[S, K, D]`."""
    return values.double().repeat_interleave(sample.extent.tiles, 0).transpose(0, 1).contiguous()


KERNELS: dict[in_place.Family, Any] = {"softmax_labels": softmax, "sigmoid": sigmoid}


def case(family: in_place.Family, number: int) -> Sample:
    dtype = in_place.SCORES[number % 3]
    pixels = (1, 255, 256, 257, 4096, 4097, 9000)[number % 7]
    if family == "sigmoid":
        return sigmoid_sample(1 + number % 4, pixels, dtype, number, hard=number % 2 == 0)
    labels = (torch.int8, torch.int16, torch.int32)[number % 3]
    return softmax_sample((2, 3, 4, 19, 64)[number % 5], pixels, dtype, labels, number)


@pytest.mark.parametrize("family", in_place.FAMILIES)
@pytest.mark.parametrize("number", range(24))
def test_sums_are_those_of_the_torch_kernels(
    library: Path, family: in_place.Family, number: int
) -> None:
    sample, gamma = case(family, number), (2.0, 0.5, 3.0)[number % 3]
    kernels = InPlace(library, family)
    region, pixel = kernels.sums(kernels.prepare([sample]), torch.tensor([gamma]))
    wanted = KERNELS[family].statistics(*arguments(family, sample, gamma))
    for found, truth in zip((region, pixel), wanted, strict=True):
        torch.testing.assert_close(
            found.double(), truth.transpose(0, 1).double(), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("family", in_place.FAMILIES)
@pytest.mark.parametrize("dtype", in_place.SCORES)
@pytest.mark.parametrize("number", range(8))
def test_gradients_are_those_of_the_torch_kernels(
    library: Path, family: in_place.Family, dtype: torch.dtype, number: int
) -> None:
    sample, gamma = case(family, number), (2.0, 0.5, 3.0)[number % 3]
    random = torch.Generator().manual_seed(number)
    depth = sample.logits.shape[1]
    labels = 2 if family == "sigmoid" else depth
    region = torch.randn(sample.extent.groups, 6, depth, generator=random)
    pixel = torch.randn(sample.extent.groups, 4, labels, generator=random)
    found = torch.empty(sample.logits.shape, dtype=dtype)
    kernels = InPlace(library, family)
    (factor,) = kernels.gradients(
        kernels.prepare([sample]), torch.tensor([gamma]), region, pixel, [found]
    )
    given = arguments(family, sample, gamma)
    truth = torch.empty_like(given[0])
    KERNELS[family].gradient(*given, per_tile(region, sample), per_tile(pixel, sample), truth)
    unscaled = as_tiles(found.double() / factor, 0.0).view(truth.shape)
    largest = float(truth.abs().max())
    digits = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(unscaled, truth, rtol=digits, atol=2e-6 * largest)


@pytest.mark.parametrize("family", in_place.FAMILIES)
def test_half_gradients_use_the_top_of_their_range(library: Path, family: in_place.Family) -> None:
    sample = case(family, 5)
    depth = sample.logits.shape[1]
    labels = 2 if family == "sigmoid" else depth
    region = torch.full((sample.extent.groups, 6, depth), 1e-9)
    pixel = torch.full((sample.extent.groups, 4, labels), 1e-9)
    found = torch.empty(sample.logits.shape, dtype=torch.float16)
    kernels = InPlace(library, family)
    (factor,) = kernels.gradients(
        kernels.prepare([sample]), torch.tensor([2.0]), region, pixel, [found]
    )
    assert torch.frexp(torch.tensor(factor)).mantissa == 0.5
    assert 2.0**14 <= float(found.abs().max()) <= 2.0**15


@pytest.mark.parametrize("family", in_place.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_blocks_of_different_sizes_share_the_scale_of_their_sample(
    library: Path, family: in_place.Family, dtype: torch.dtype
) -> None:
    sample = case(family, 6 if family == "softmax_labels" else 27)
    _, depth, pixels = sample.logits.shape
    sample.logits.copy_(torch.nan_to_num(sample.logits, 0.0, 0.0, 0.0))
    # Every block of 128 pixels weighs 64 times less than the one before, ten of them in turns.
    weight = 2.0 ** (-6.0 * (torch.arange(pixels) // 128 % 10))
    sample = Sample(sample.logits, sample.target, weight[None, None])
    region = torch.zeros(sample.extent.groups, 6, depth)
    pixel = torch.ones(sample.extent.groups, 4, 2 if family == "sigmoid" else depth)
    kernels = InPlace(library, family)
    gradients = {}
    for target in (dtype, torch.float32):
        found = torch.empty(sample.logits.shape, dtype=target)
        (factor,) = kernels.gradients(
            kernels.prepare([sample]), torch.tensor([2.0]), region, pixel, [found]
        )
        gradients[target] = found.double() / factor
    exact, rounded = gradients[torch.float32], gradients[dtype]
    digits = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    largest = float(exact.abs().max())
    torch.testing.assert_close(rounded, exact, rtol=digits, atol=largest * 2.0**-39)


@pytest.mark.parametrize("family", in_place.FAMILIES)
def test_a_scale_has_an_inverse_in_float32(library: Path, family: in_place.Family) -> None:
    sample = case(family, 5)
    depth = sample.logits.shape[1]
    region = torch.zeros(sample.extent.groups, 6, depth)
    pixel = torch.full((sample.extent.groups, 4, 2 if family == "sigmoid" else depth), 1e-41)
    found = torch.empty(sample.logits.shape, dtype=torch.float16)
    kernels = InPlace(library, family)
    (factor,) = kernels.gradients(
        kernels.prepare([sample]), torch.tensor([2.0]), region, pixel, [found]
    )
    assert factor == 2.0**126
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("family", in_place.FAMILIES)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_seen_in_the_sums(
    library: Path, family: in_place.Family, wrong: float
) -> None:
    for at in (0, 4100, 8999):
        sample = case(family, 6 if family == "softmax_labels" else 27)
        assert sample.logits.shape[-1] == 9000
        sample.target[:, :, at] = 0
        sample.logits[0, 0, at] = wrong
        if sample.weight is not None:
            sample.weight[:, :, at] = 1.0
        kernels = InPlace(library, family)
        _, pixel = kernels.sums(kernels.prepare([sample]), torch.tensor([2.0]))
        assert not bool(torch.isfinite(pixel[:, 3].double().sum(0)).all())


@pytest.mark.parametrize("family", in_place.FAMILIES)
def test_extreme_logits_stay_finite_and_right(library: Path, family: in_place.Family) -> None:
    sample = case(family, 3)
    sample.logits.copy_(torch.nan_to_num(sample.logits.float(), 0.0, 0.0, 0.0).sign() * 1e4)
    gamma = torch.tensor([2.0])
    kernels = InPlace(library, family)
    region, pixel = kernels.sums(kernels.prepare([sample]), gamma)
    wanted = KERNELS[family].statistics(*arguments(family, sample, 2.0))
    for found, truth in zip((region, pixel), wanted, strict=True):
        torch.testing.assert_close(
            found.double(), truth.transpose(0, 1).double(), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("family", in_place.FAMILIES)
def test_a_sample_has_the_same_bits_in_any_company(library: Path, family: in_place.Family) -> None:
    depth = 3
    samples = [
        sigmoid_sample(3, pixels, torch.float16, pixels, hard=True)
        if family == "sigmoid"
        else softmax_sample(depth, pixels, torch.float16, torch.int8, pixels)
        for pixels in (5000, 100, 9001, 4096)
    ]
    kernels = InPlace(library, family)
    gamma = torch.full((4,), 2.0)
    together = kernels.sums(kernels.prepare(samples), gamma)
    start = 0
    for number, sample in enumerate(samples):
        alone = kernels.sums(kernels.prepare([sample]), gamma[:1])
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one, all_of_them[start : start + sample.extent.total]), number
        start += sample.extent.total


def test_a_compiler_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(in_place.CompilerError, match="false cannot compile"):
        in_place.build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_header_makes_another_library(tmp_path: Path) -> None:
    source = tmp_path / "two.cpp"
    source.write_text('#include "two.h"\nextern "C" int two() { return TWO; }\n')
    header = tmp_path / "two.h"
    found = []
    for value in (2, 22):
        header.write_text(f"constexpr int TWO = {value};\n")
        found.append(ctypes.CDLL(str(in_place.build(tmp_path, source))).two())
    assert found == [2, 22]


def test_without_the_library_the_kernels_in_torch_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_place, "_FLAGS", ("--no-such-flag",))
    shared = compiled.cache_folder(Settings().cache_dir, CPU)  # only the library is to be missing
    monkeypatch.setattr(in_place, "build", lambda _, source: in_place_build(tmp_path, source))
    with capture_logs() as logs, torch.compiler.set_stance("default"):
        table = compiled.compile_kernels(CPU, shared, [("sigmoid", torch.float32)])
    kernels = table["sigmoid", torch.float32]
    assert kernels.in_place is None
    assert kernels.statistics is not sigmoid.statistics
    assert [entry["event"] for entry in logs if "in_place" in entry["event"]] == [
        "in_place_unavailable"
    ]
