"""The lean passes of float32 jobs on a processor, on the requests' own tensors: `in_place.cpp`.

The compiled kernels read and write tiles, so that every logit is copied twice more than it need be,
and turned from half precision to float32 and back on the way. On a processor that costs more than
the arithmetic. What `softmax` and `sigmoid` say is said once more in C++ for the two families that
nearly every request takes; those two modules stay what CUDA runs and what this is tested against.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from lossd.core import vocabulary as v
from lossd.core.tiles import Sample

SOURCE: Final = Path(__file__).with_suffix(".cpp")
_FLAGS: Final = (
    "-std=c++17",
    "-O3",
    "-march=native",
    # 512 bits measured no faster and lower some processors' clocks.
    *(("-mprefer-vector-width=256",) if platform.machine() == "x86_64" else ()),
    "-fopenmp",
    "-fno-math-errno",  # errno and traps would forbid vectors; neither changes a number
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
)

Family = Literal["softmax_labels", "sigmoid"]
FAMILIES: Final[dict[Family, str]] = {"softmax_labels": "softmax", "sigmoid": "sigmoid"}
"""What is there, and what the functions are called."""

DTYPES: Final = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.int8: 3,
    torch.int16: 4,
    torch.int32: 5,
}
SCORES: Final = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of logits that are read, and of gradients that are written."""
_TARGETS: Final[dict[Family, tuple[torch.dtype, ...]]] = {
    "softmax_labels": (torch.int8, torch.int16, torch.int32),
    "sigmoid": (torch.int8, torch.float32),
}

SAMPLE: Final = np.dtype(
    [
        ("logits", np.uint64),
        ("target", np.uint64),
        ("weight", np.uint64),
        ("gradient", np.uint64),
        ("pixels", np.int64),
        ("groups", np.int64),
        ("first_tile", np.int64),
        ("first_group", np.int64),
        ("logits_dtype", np.int32),
        ("target_dtype", np.int32),
        ("gradient_dtype", np.int32),
        ("gamma", np.float32),
        ("scale", np.float32),
        ("reserved", np.int32),
    ]
)


class CompilerError(Exception):
    """The compiler does not take the source or the flags."""


class InPlace:
    """The two passes of one family; used by one thread.

    Args:
        library: what `build` made.
        family: whose passes.
    """

    def __init__(self, library: Path, family: Family) -> None:
        loaded = ctypes.CDLL(str(library))
        name = FAMILIES[family]
        self._sums: Callable[..., None] = getattr(loaded, f"lossd_{name}_sums")
        self._gradients: Callable[..., None] = getattr(loaded, f"lossd_{name}_gradients")
        if loaded.lossd_sample_bytes() != SAMPLE.itemsize:
            msg = f"{library} was made of another {SOURCE.name}"
            raise RuntimeError(msg)
        self._block_pixels: int = loaded.lossd_block_pixels()
        self._family: Family = family

    def sums(self, samples: Sequence[Sample], gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of every tile of every sample.

        Args:
            samples: float32 or half-precision logits.
            gamma: focusing exponent of each sample, `[B]`.

        Returns:
            Region sums `[tiles, 6, D]` and pixel sums `[tiles, 4, L]`, float32.
        """
        table, kept = self._table(samples, gamma)
        depth, labels = self._widths(samples)
        tiles = sum(sample.extent.total for sample in samples)
        region = torch.empty(tiles, v.REGION_SUMS, depth)
        pixel = torch.empty(tiles, v.PIXEL_SUMS, labels)
        sums = v.REGION_SUMS * depth + v.PIXEL_SUMS * labels
        doubles = torch.empty(torch.get_num_threads(), sums, dtype=torch.float64)
        self._call(self._sums, table, depth, region, pixel, doubles)
        del kept
        return region, pixel

    def gradients(
        self,
        samples: Sequence[Sample],
        gamma: Tensor,
        region: Tensor,
        pixel: Tensor,
        targets: Sequence[Tensor],
    ) -> list[float]:
        """Derivatives of `Σ_s coefficient_s · sum_s` with respect to the samples' logits.

        Args:
            samples: as in `sums`.
            gamma: as in `sums`.
            region: coefficients of the region sums of the samples' groups, `[ΣG, 6, D]`.
            pixel: coefficients of the pixel sums, `[ΣG, 4, L]`.
            targets: where they are written, contiguous, `[C, P]` each, of a dtype of `SCORES`.

        Returns:
            What each target was multiplied with: a power of two, 1 for float32.
        """
        table, kept = self._table(samples, gamma)
        table["gradient"] = [target.data_ptr() for target in targets]
        table["gradient_dtype"] = [DTYPES[target.dtype] for target in targets]
        depth, _ = self._widths(samples)
        region = region.to(torch.float32).contiguous()
        pixel = pixel.to(torch.float32).contiguous()
        largest = torch.empty(sum(sample.extent.total for sample in samples))
        self._call(self._gradients, table, depth, region, pixel, largest)
        del kept
        scales: list[float] = table["scale"].tolist()
        return scales

    def _call(
        self,
        function: Callable[..., None],
        table: np.ndarray[Any, Any],
        depth: int,
        *tensors: Tensor,
    ) -> None:
        """Calls one of the passes; Python's lock is let go of meanwhile."""
        threads = torch.get_num_threads()
        floats = torch.empty(threads, 2, depth, self._block_pixels)
        function(
            ctypes.c_void_p(table.ctypes.data),
            ctypes.c_int64(len(table)),
            ctypes.c_int(depth),
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (*tensors, floats)),
            ctypes.c_int(threads),
        )

    def _widths(self, samples: Sequence[Sample]) -> tuple[int, int]:
        """Depth of the samples, and how many labels their pixel sums have."""
        depth = samples[0].logits.shape[1]
        return depth, depth if self._family == "softmax_labels" else 2

    def _table(
        self, samples: Sequence[Sample], gamma: Tensor
    ) -> tuple[np.ndarray[Any, Any], list[Tensor]]:
        """What the C++ is told of the samples, and the tensors that must outlive the call."""
        table = np.zeros(len(samples), SAMPLE)
        kept: list[Tensor] = []
        tile = group = 0
        for row, sample in zip(table, samples, strict=True):
            extent = sample.extent
            logits = sample.logits.contiguous()
            target = sample.target.contiguous()
            if target.dtype not in _TARGETS[self._family]:
                target = target.to(_TARGETS[self._family][-1])
            kept += [logits, target]
            row["logits"], row["target"] = logits.data_ptr(), target.data_ptr()
            if sample.weight is not None:
                weight = sample.weight.to(torch.float32).contiguous()
                kept.append(weight)
                row["weight"] = weight.data_ptr()
            row["pixels"], row["groups"] = logits.shape[-1], extent.groups
            row["first_tile"], row["first_group"] = tile, group
            row["logits_dtype"] = DTYPES[logits.dtype]
            row["target_dtype"] = DTYPES[target.dtype]
            tile, group = tile + extent.total, group + extent.groups
        table["gamma"] = gamma.numpy()
        return table, kept


def build(folder: Path) -> Path:
    """Compiles the source into a folder, unless it is there, and returns the library.

    Args:
        folder: for this processor alone, as `compiled.cache_folder` names it.

    Raises:
        CompilerError: the compiler refuses; the message is what it says.
    """
    made_of = hashlib.sha256("\n".join([*_FLAGS, SOURCE.read_text(encoding="utf-8")]).encode())
    library = folder / f"in_place-{made_of.hexdigest()[:16]}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=folder) as made:
        partial = Path(made) / library.name
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        done = subprocess.run(  # noqa: S603 - the operator's own compiler
            [*compiler, *_FLAGS, str(SOURCE), "-o", str(partial)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            msg = f"{compiler[0]} cannot compile {SOURCE}: {done.stderr[:2000]}"
            raise CompilerError(msg)
        partial.replace(library)
    return library
