"""Memory of the device that losses are computed on, in bytes by kind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

Kind = Literal["allocated", "reserved", "used", "total"]

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def device_memory(device: torch.device) -> dict[Kind, int]:
    """Memory of a GPU: torch's, everybody's and all of it; or what the process uses and may use.

    Of the CPU only Linux tells.

    Raises:
        RuntimeError: the GPU does not answer.
    """
    if device.type != "cuda":
        linux = sys.platform == "linux"
        return {"used": resident_bytes(), "total": usable_bytes()} if linux else {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "used": total - free,
        "total": total,
    }


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory of the device or of the machine did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # Of the CPU torch tells only in words.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def resident_bytes(proc: Path = _PROC) -> int:
    """Resident memory of this process."""
    pages = (proc / "self" / "statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def usable_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """The least of the machine's memory and the limits of the control groups around the process."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(proc, cgroups)])


def _limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """Limits of the process's group and of those that hold it, in version 2 or else version 1."""
    for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = root / group.lstrip("/")
        # In a container the path may be the host's, of which only the root can be seen.
        for folder in (own, *own.parents):
            text = _text(folder / name)
            if text.isdecimal():
                yield int(text)
            if folder == root:
                break


def _text(file: Path) -> str:
    return file.read_text(encoding="ascii").strip() if file.exists() else ""
