"""Where and with which kernels a process computes, and what its answers say of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import torch

from lossd.core import compiled, in_place
from lossd.qa import compiled_findings, findings
from lossd.settings import Settings

NUMERICS = "9"
"""Counted up whenever the bits of an answer change for another reason than a new torch."""

log = structlog.get_logger(__name__)


def choose_device(name: str) -> torch.device:
    """Device of a setting: `auto` is the first GPU, or the CPU where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def choose_mode(settings: Settings, device: torch.device) -> compiled.Mode:
    """How the kernels of a device run, by the setting or by what the machine has."""
    return compiled.choose_mode(device) if settings.kernels == "auto" else settings.kernels


def load_kernels(
    settings: Settings,
    device: torch.device,
    mode: compiled.Mode,
    *,
    kinds: Sequence[tuple[compiled.Family, torch.dtype]] = compiled.KINDS,
    on_progress: Callable[[int, int], None] | None = None,
) -> compiled.KernelTable:
    """Kernels of some kinds, from the cache or compiled; seconds of the one, minutes of the other.

    Args:
        settings: where the cache is, and what fills it.
        device: where the kernels will run.
        mode: eager kernels are there at once, all of them.
        kinds: which ones to compile.
        on_progress: called with (kernels compiled, kernels in all).
    """
    if mode == "eager":
        return compiled.eager_kernels()
    cache = compiled.cache_folder(settings.cache_dir, device)
    seeds = settings.cache_seed_dir
    if seeds is not None and compiled.seed_cache(cache, seeds):
        log.info("kernels_seeded", source=str(seeds))
    return compiled.compile_kernels(device, cache, kinds, on_progress=on_progress)


def load_find(settings: Settings, device: torch.device, mode: compiled.Mode) -> findings.Find:
    """What looks at images for annotation QA: in C++ where the passes are, else with numpy.

    Both find the same to the bit.

    Args:
        settings: where the cache is.
        device: where the kernels run.
        mode: how.
    """
    if mode == "eager" or device.type != "cpu":
        return findings.PlainFind()
    cache = compiled.cache_folder(settings.cache_dir, device)
    try:
        library = in_place.build(cache, compiled_findings.SOURCE)
    except in_place.CompilerError as error:
        log.warning("findings_unavailable", error=str(error))
        return findings.PlainFind()
    return compiled_findings.CompiledFind(library)


def device_name(device: torch.device, mode: compiled.Mode) -> str:
    """Device and how its kernels run, as the answers say it."""
    return f"{device} ({mode})"


def numerics_version(mode: compiled.Mode, table: compiled.KernelTable) -> str:
    """Equal for processes whose answers have equal bits on equal devices."""
    in_place = any(kernels.in_place for kernels in table.values())
    passes = f"{mode}-in-place" if in_place else mode
    return f"{NUMERICS}-torch{torch.__version__}-{passes}"
