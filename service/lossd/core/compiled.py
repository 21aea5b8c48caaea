"""The fixed set of kernels a process serves with, compiled before it says it is ready.

One callable per (activation and target, dtype, pass). The number of tiles and of classes are
dynamic, everything else is fixed, so no request can ask for a graph that is not there; after
`compile_kernels` a recompile is an error instead of a wait. Compiled code is kept on disk in a
folder named after the processor, torch and this package's kernels: a cache is never read by a
machine it was not made for. Kernels of a processor are kept whole (`kept.py`), by number of
threads, which is in their code.

Where no C++ compiler exists the same functions run eagerly, for the whole life of the process:
eager and compiled code differ in last bits, and one process must answer with one of them.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import structlog
import torch
from torch import Tensor

from lossd.core import distribution, in_place, kept, pointwise, program, sigmoid, softmax, summation
from lossd.core import vocabulary as v
from lossd.core.tiles import TILE_PIXELS

Family = Literal[
    "softmax_labels", "softmax_distribution", "softmax_rich", "sigmoid", "sigmoid_rich"
]
"""Which kernels: activation, target and vocabulary. Those of `softmax_rich` take distributions."""

Mode = Literal["compiled", "eager"]

LEAN_FAMILIES: tuple[Family, ...] = ("softmax_labels", "softmax_distribution", "sigmoid")
RICH_FAMILIES: tuple[Family, ...] = ("softmax_rich", "sigmoid_rich")
DISTRIBUTION_FAMILIES: tuple[Family, ...] = ("softmax_distribution", "softmax_rich")
SIGMOID_FAMILIES: tuple[Family, ...] = ("sigmoid", "sigmoid_rich")
"""Families in which every channel is a row of tiles of its own."""

SUM_COUNTS: dict[Family, tuple[int, int]] = {
    "softmax_labels": (v.REGION_SUMS, v.PIXEL_SUMS),
    "softmax_distribution": (v.REGION_SUMS, v.PIXEL_SUMS),
    "softmax_rich": (v.RICH_REGION_SUMS, v.RICH_PIXEL_SUMS),
    "sigmoid": (v.REGION_SUMS, v.PIXEL_SUMS),
    "sigmoid_rich": (v.RICH_REGION_SUMS, v.RICH_SIGMOID_PIXEL_SUMS),
}
"""How many region and pixel sums the kernels of a family make."""

KINDS: tuple[tuple[Family, torch.dtype], ...] = (
    *((family, torch.float32) for family in LEAN_FAMILIES),
    *((family, torch.float64) for family in (*LEAN_FAMILIES, *RICH_FAMILIES)),
)
"""All kernels there are. The rich sums are computed in float64 whatever was sent: their terms
cancel, and so do the derivatives of the losses made of them."""

# Sizes the graphs are made from: unequal, none of them 0 or 1, never taken from a request.
_CANONICAL_TILES, _CANONICAL_CLASSES = 40, 5
_PROBES = ((2, 2), (3, 2), (2, 19), (7, 7))
_CPU = torch.device("cpu")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Kernels:
    """The three passes of one family and dtype."""

    statistics: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], None]
    value_map: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    in_place: in_place.InPlace | None = None
    """What takes the place of the first two, where there is such a thing."""
    programs: program.Library | None = None
    """What runs the programs of heads, where there is such a thing."""


_SOURCE: dict[Family, Kernels] = {
    "softmax_labels": Kernels(softmax.statistics, softmax.gradient, softmax.value_map),
    "softmax_distribution": Kernels(
        distribution.statistics, distribution.gradient, distribution.value_map
    ),
    "softmax_rich": Kernels(
        distribution.rich_statistics, distribution.rich_gradient, distribution.rich_value_map
    ),
    "sigmoid": Kernels(sigmoid.statistics, sigmoid.gradient, sigmoid.value_map),
    "sigmoid_rich": Kernels(sigmoid.rich_statistics, sigmoid.rich_gradient, sigmoid.rich_value_map),
}

_KERNEL_SOURCES = (softmax, distribution, sigmoid, pointwise, summation, v, kept)

_Pass = Literal["statistics", "gradient", "value_map"]
_PASSES: tuple[_Pass, ...] = ("statistics", "gradient", "value_map")

Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Logits, target, weight, gamma, and the coefficients of region and pixel sums."""

KernelTable = dict[tuple[Family, torch.dtype], Kernels]


def choose_mode(device: torch.device) -> Mode:
    """`compiled` where the compiler's own tools are present, `eager` otherwise."""
    if device.type == "cuda":
        return "compiled"
    compiler = os.environ.get("CXX", "g++")
    return "compiled" if shutil.which(compiler) else "eager"


def cache_folder(root: Path, device: torch.device) -> Path:
    """Folder below `root` that only this processor, torch and kernel source may use."""
    identity = [torch.__version__, platform.machine(), device.type, _processor()]
    if device.type == "cuda":
        identity.append(str(torch.cuda.get_device_capability(device)))
    sources = (Path(str(module.__file__)) for module in _KERNEL_SOURCES)
    identity.extend(source.read_text(encoding="utf-8") for source in sources)
    return root / hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]


def seed_cache(cache: Path, seeds: Path) -> bool:
    """Fills an absent cache folder with what an image brought for this very processor.

    Args:
        cache: folder of compiled code, as `cache_folder` names it.
        seeds: folder that holds such folders, made elsewhere at the path of `cache`.

    Returns:
        Whether it was filled: not if it exists, nor if there is no seed of its name.
    """
    seed = seeds / cache.name
    if cache.exists() or not seed.is_dir():
        return False
    # Whole or not at all: a start that is cut off must not leave half a cache.
    partial = cache.with_name(f".{cache.name}.{os.getpid()}")
    shutil.copytree(seed, partial)
    try:
        partial.rename(cache)
    except OSError:
        if not cache.exists():
            raise
        shutil.rmtree(partial)  # another process was faster
        return False
    return True


def eager_kernels() -> KernelTable:
    """The kernels as plain torch functions."""
    return {kind: _SOURCE[kind[0]] for kind in KINDS}


def compile_kernels(
    device: torch.device,
    cache: Path,
    kinds: Sequence[tuple[Family, torch.dtype]] = KINDS,
    on_progress: Callable[[int, int], None] | None = None,
) -> KernelTable:
    """Kernels compiled and run; afterwards the process refuses to compile anything.

    Args:
        device: where the kernels will run.
        cache: folder of compiled code, made if absent.
        kinds: which ones, in which order.
        on_progress: called with (kernels ready, kernels in all).
    """
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    # Forked compile workers can deadlock in a process that has threads.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    library = (
        _built(cache, in_place.SOURCE, "in_place_unavailable") if device.type == "cpu" else None
    )
    programs = _built(cache, program.SOURCE, "programs_unavailable")
    runner = None if programs is None else program.Library(programs)
    table: KernelTable = {}
    for done, (family, dtype) in enumerate(kinds):
        if on_progress:
            on_progress(done, len(kinds))
        started = time.perf_counter()
        kernels = _compile(family, dtype, device, cache, library)
        table[family, dtype] = replace(kernels, programs=runner)
        log.info(
            "kernel_ready",
            family=family,
            dtype=str(dtype).removeprefix("torch."),
            seconds=round(time.perf_counter() - started, 2),
        )
    if on_progress:
        on_progress(len(kinds), len(kinds))
    torch.compiler.set_stance("fail_on_recompile")
    return table


def _built(cache: Path, source: Path, event: str) -> Path | None:
    """A source in C++; None where the compiler does not take it, as torch's may be another."""
    try:
        return in_place.build(cache, source)
    except in_place.CompilerError as error:
        log.warning(event, error=str(error))
        return None


def _compile(
    family: Family, dtype: torch.dtype, device: torch.device, cache: Path, library: Path | None
) -> Kernels:
    kernels, passes = _SOURCE[family], _PASSES
    if library is not None and dtype == torch.float32 and family in in_place.FAMILIES:
        kernels = replace(kernels, in_place=in_place.InPlace(library, family))
        passes = ("value_map",)
    if device.type != "cpu" or not kept.IS_AVAILABLE:
        return _compile_when_called(kernels, passes, family, dtype, device)
    name = f"{family}-{str(dtype).removeprefix('torch.')}-{torch.get_num_threads()}"
    paths = {one: cache / f"{name}-{one}.kernel" for one in passes}
    found = _read(kernels, paths, family, dtype)
    return _compile_ahead(kernels, paths, family, dtype) if found is None else found


def _read(
    kernels: Kernels, paths: Mapping[_Pass, Path], family: Family, dtype: torch.dtype
) -> Kernels | None:
    """Kernels that an earlier process kept; None if they are not there, or not what is needed."""
    try:
        found = _with(kernels, {one: kept.read(path) for one, path in paths.items()})
        _probe(found, family, dtype, _CPU)
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever it is, they are compiled anew
        log.warning("kernel_unreadable", family=family, error=repr(error))
        return None
    return found


def _compile_ahead(
    kernels: Kernels, paths: Mapping[_Pass, Path], family: Family, dtype: torch.dtype
) -> Kernels:
    arguments = example(family, dtype, _CPU, _CANONICAL_TILES, _CANONICAL_CLASSES)
    out = torch.empty_like(arguments[0])
    _mark_axes(arguments, out)
    made: dict[_Pass, Callable[..., Any]] = {}
    with torch.no_grad():
        for one, path in paths.items():
            function = _own_code(getattr(kernels, one))
            taken = _taken(one, arguments, out)
            made[one] = kept.compile_ahead(function, taken, _options(_CPU), path)
    found = _with(kernels, made)
    _probe(found, family, dtype, _CPU)
    return found


def _compile_when_called(
    kernels: Kernels,
    passes: Sequence[_Pass],
    family: Family,
    dtype: torch.dtype,
    device: torch.device,
) -> Kernels:
    compiled = partial(torch.compile, dynamic=True, fullgraph=True, options=_options(device))
    found = _with(kernels, {one: compiled(_own_code(getattr(kernels, one))) for one in passes})
    arguments = example(family, dtype, device, _CANONICAL_TILES, _CANONICAL_CLASSES)
    out = torch.empty_like(arguments[0])
    _mark_axes(arguments, out)
    _run(found, arguments, out)
    with torch.compiler.set_stance("fail_on_recompile"):
        _probe(found, family, dtype, device)
    return found


def _options(device: torch.device) -> dict[str, Any]:
    # Called from C++ a kernel lets go of Python's lock; called from Python it would hold up every
    # other thread of the service while it runs.
    return {"cpp_wrapper": device.type == "cpu"}


def _with(kernels: Kernels, passes: Mapping[_Pass, Callable[..., Any]]) -> Kernels:
    return Kernels(
        **{one: passes.get(one, getattr(kernels, one)) for one in _PASSES},
        in_place=kernels.in_place,
    )


def _own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copy of a function: the compiler counts graphs per code object, and dtypes share none."""
    assert isinstance(function, FunctionType)  # noqa: S101 - what _SOURCE holds
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def example(
    family: Family, dtype: torch.dtype, device: torch.device, tiles: int, classes: int
) -> Arguments:
    """Arguments of the kernels for a given number of tiles and classes; the values are plain."""

    def full(*shape: int, value: float = 0.5) -> Tensor:
        return torch.full(shape, value, dtype=dtype, device=device)

    gamma = full(tiles, 1, value=2.0)
    weight = full(tiles, TILE_PIXELS, value=1.0)
    region_sums, pixel_sums = SUM_COUNTS[family]
    if family in SIGMOID_FAMILIES:
        logits = full(tiles, TILE_PIXELS)
        region, pixel = full(region_sums, tiles, 1), full(pixel_sums, tiles, 2)
        return logits, torch.ones_like(logits), weight, gamma, region, pixel
    logits = full(tiles, classes, TILE_PIXELS)
    region, pixel = full(region_sums, tiles, classes), full(pixel_sums, tiles, classes)
    if family in DISTRIBUTION_FAMILIES:
        return logits, full(*logits.shape, value=1 / classes), weight, gamma, region, pixel
    label = torch.zeros(tiles, TILE_PIXELS, dtype=torch.int32, device=device)
    return logits, label, weight, gamma, region, pixel


def run_kernels(kernels: Kernels, arguments: Arguments) -> None:
    """Each pass once."""
    _run(kernels, arguments, torch.empty_like(arguments[0]))


def _probe(kernels: Kernels, family: Family, dtype: torch.dtype, device: torch.device) -> None:
    """Runs kernels with other numbers of tiles and classes than they were made with."""
    for tiles, classes in (*_PROBES, (_CANONICAL_TILES, _CANONICAL_CLASSES)):
        run_kernels(kernels, example(family, dtype, device, tiles, classes))


def _run(kernels: Kernels, arguments: Arguments, out: Tensor) -> None:
    with torch.no_grad():
        for one in _PASSES:
            getattr(kernels, one)(*_taken(one, arguments, out))


def _taken(one: _Pass, arguments: Arguments, out: Tensor) -> tuple[Tensor, ...]:
    """What a pass takes of the arguments."""
    logits, target, weight, gamma, region, pixel = arguments
    given: dict[_Pass, tuple[Tensor, ...]] = {
        "statistics": (logits, target, weight, gamma),
        "gradient": (logits, target, weight, gamma, region, pixel, out),
        "value_map": (logits, target, weight, gamma, pixel),
    }
    return given[one]


def _mark_axes(arguments: Arguments, out: Tensor) -> None:
    """Tells the compiler which axes will vary: tiles and, if any, classes."""
    logits, target, weight, gamma, region, pixel = arguments
    for tensor in (logits, target, out):
        _mark_dynamic(tensor, range(tensor.ndim - 1))  # all but the pixels of a tile
    for tensor in (weight, gamma):
        _mark_dynamic(tensor, (0,))
    for tensor in (region, pixel):
        _mark_dynamic(tensor, range(1, logits.ndim))


def _mark_dynamic(tensor: Tensor, axes: Iterable[int]) -> None:
    for axis in axes:
        torch._dynamo.mark_dynamic(tensor, axis)  # noqa: SLF001 - its documented entry


def _processor() -> str:
    """What the C++ compiler's `-march=native` would look at."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
