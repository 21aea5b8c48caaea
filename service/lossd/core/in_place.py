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
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lossd.core import vocabulary as v
from lossd.core.tiles import Sample
from lossd_client.qa_wire import BYTE_CLASSES, LEVELS

SOURCE: Final = Path(__file__).with_suffix(".cpp")
_FLAGS: Final = (
    "-std=c++17",
    "-O3",
    "-march=native",
    # Of loops that the compiler makes vectors of; vectors.h says how wide its own are. In loops 512
    # bits measured no faster and lower some processors' clocks.
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
Array = np.ndarray[Any, Any]

_OBSERVED_SUMS = 4

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


SEEN: Final = np.dtype(
    [
        *((name, np.uint64) for name in ("loss", "levels", "predicted", "margin")),
        *((name, np.uint64) for name in ("counts", "sums")),
        *((name, np.int64) for name in ("height", "width", "is_finite")),
    ]
)


class CompilerError(Exception):
    """The compiler does not take the source or the flags."""


@dataclass(frozen=True)
class Lot:
    """Samples of one depth, computed in one call."""

    table: np.ndarray[Any, Any]
    """A row of `SAMPLE` for each."""
    depth: int
    tiles: int
    """Of all samples."""
    kept: list[Tensor]
    """The memory that the table points to."""


class Picture(NamedTuple):
    """An image to be looked at for annotation QA, P pixels in reading order."""

    logits: Tensor
    """`[C, P]` of a dtype of `SCORES`."""
    labels: Tensor
    """`[P]` int8, int16 or int32, -1 where a pixel does not count."""
    size: tuple[int, int]
    """Height and width."""


class Seen(NamedTuple):
    """What `qa.observation` says of an image, in an order that threads do not change."""

    loss: Array
    """`[P]` float32 in nats, 0 where a pixel does not count."""
    levels: Array
    """`[P]` uint8."""
    predicted: Array
    """`[P]` uint8, int16 beyond 256 classes."""
    margin: Array
    """`[P]` uint8."""
    counts: Array
    """`[C, 256]` int32, pixels that count by given class and level."""
    sums: Array
    """`[4]` float64: of the losses, of their fourth powers, of the losses that lie at a boundary,
    and how many pixels count there."""

    def of(self, number: int, begin: int, end: int) -> Seen:
        """That of one image, where this is memory of several."""
        return Seen(
            self.loss[begin:end],
            self.levels[begin:end],
            self.predicted[begin:end],
            self.margin[begin:end],
            self.counts[number],
            self.sums[number],
        )


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
        self._observe: Callable[..., None] = loaded.lossd_softmax_observe
        layout = loaded.lossd_sample_bytes(), loaded.lossd_seen_bytes()
        if layout != (SAMPLE.itemsize, SEEN.itemsize):
            msg = f"{library} was made of another {SOURCE.name}"
            raise RuntimeError(msg)
        self._tile_blocks: int = loaded.lossd_tile_blocks()
        self._thread_bytes: Callable[[int], int] = getattr(loaded, f"lossd_{name}_bytes")
        self._thread_bytes.restype = ctypes.c_int64
        self._family: Family = family

    def prepare(self, samples: Sequence[Sample]) -> Lot:
        """What the passes are told of some samples.

        Args:
            samples: float32 or half-precision logits.
        """
        kept: list[Tensor] = []
        rows = []
        tile = group = 0
        targets = _TARGETS[self._family]
        for sample in samples:
            extent = sample.extent
            logits, target = sample.logits.contiguous(), sample.target.contiguous()
            if target.dtype not in targets:
                target = target.to(targets[-1])
            kept += [logits, target]
            weight_at = 0
            if sample.weight is not None:
                weight = sample.weight.to(torch.float32).contiguous()
                kept.append(weight)
                weight_at = weight.data_ptr()
            rows.append(
                (
                    logits.data_ptr(),
                    target.data_ptr(),
                    weight_at,
                    0,
                    logits.shape[-1],
                    extent.groups,
                    tile,
                    group,
                    DTYPES[logits.dtype],
                    DTYPES[target.dtype],
                    0,
                    0.0,
                    0.0,
                    0,
                )
            )
            tile, group = tile + extent.total, group + extent.groups
        return Lot(np.array(rows, SAMPLE), samples[0].logits.shape[1], tile, kept)

    def sums(self, lot: Lot, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of every tile of every sample.

        Args:
            lot: the samples.
            gamma: focusing exponent of each sample, `[B]`.

        Returns:
            Region sums `[tiles, 6, D]` and pixel sums `[tiles, 4, L]`, float32.
        """
        labels = lot.depth if self._family == "softmax_labels" else 2
        region = torch.empty(lot.tiles, v.REGION_SUMS, lot.depth, dtype=torch.float32)
        pixel = torch.empty(lot.tiles, v.PIXEL_SUMS, labels, dtype=torch.float32)
        lot.table["gamma"] = gamma.numpy()
        self._call(self._sums, lot, region, pixel, self._memory(lot))
        return region, pixel

    def gradients(
        self,
        lot: Lot,
        gamma: Tensor,
        region: Tensor,
        pixel: Tensor,
        targets: Sequence[Tensor],
    ) -> list[float]:
        """Derivatives of `Σ_s coefficient_s · sum_s` with respect to the samples' logits.

        Args:
            lot: the samples.
            gamma: as in `sums`.
            region: coefficients of the region sums of the samples' groups, `[ΣG, 6, D]`.
            pixel: coefficients of the pixel sums, `[ΣG, 4, L]`.
            targets: where they are written, contiguous, `[C, P]` each, of a dtype of `SCORES`.

        Returns:
            What each target was multiplied with: a power of two, 1 for float32.
        """
        lot.table["gamma"] = gamma.numpy()
        lot.table["gradient"] = [target.data_ptr() for target in targets]
        lot.table["gradient_dtype"] = [DTYPES[target.dtype] for target in targets]
        region = region.to(torch.float32).contiguous()
        pixel = pixel.to(torch.float32).contiguous()
        largest = torch.empty(lot.tiles, self._tile_blocks, dtype=torch.float32)
        self._call(self._gradients, lot, region, pixel, largest, self._memory(lot))
        scales: list[float] = lot.table["scale"].tolist()
        return scales

    def observe(self, pictures: Sequence[Picture]) -> list[Seen | None]:
        """What annotation QA sees of images; only the softmax has that.

        Args:
            pictures: at least one, all of one number of classes, at least 2.

        Returns:
            Of each, in order; None if a loss that counts is not finite.
        """
        classes = len(pictures[0].logits)
        places = [0, *accumulate(picture.labels.numel() for picture in pictures)]
        memory = Seen(
            loss=np.empty(places[-1], np.float32),
            levels=np.empty(places[-1], np.uint8),
            predicted=np.empty(places[-1], np.uint8 if classes <= BYTE_CLASSES else np.int16),
            margin=np.empty(places[-1], np.uint8),
            counts=np.zeros((len(pictures), classes, LEVELS), np.int32),
            sums=np.zeros((len(pictures), _OBSERVED_SUMS)),
        )
        table = np.zeros(len(pictures), SAMPLE)
        seen = np.zeros(len(pictures), SEEN)
        kept = [(one.logits.contiguous(), one.labels.contiguous()) for one in pictures]
        table["logits"] = [logits.data_ptr() for logits, _ in kept]
        table["target"] = [labels.data_ptr() for _, labels in kept]
        table["pixels"] = np.diff(places)
        table["logits_dtype"] = [DTYPES[logits.dtype] for logits, _ in kept]
        table["target_dtype"] = [DTYPES[labels.dtype] for _, labels in kept]
        for name, array in memory._asdict().items():
            steps = places[:-1] if array.ndim == 1 else np.arange(len(pictures)) * array[0].size
            seen[name] = array.ctypes.data + np.array(steps, np.uint64) * array.itemsize
        seen["height"], seen["width"] = np.array([one.size for one in pictures]).T
        self._observe(
            ctypes.c_void_p(table.ctypes.data),
            ctypes.c_int64(len(pictures)),
            ctypes.c_int(classes),
            ctypes.c_void_p(seen.ctypes.data),
            ctypes.c_int(torch.get_num_threads()),
        )
        bounds = pairwise(places)
        return [
            memory.of(number, *pixels) if is_finite else None
            for number, (pixels, is_finite) in enumerate(
                zip(bounds, seen["is_finite"].tolist(), strict=True)
            )
        ]

    def _call(self, function: Callable[..., None], lot: Lot, *tensors: Tensor) -> None:
        """Calls one of the passes; Python's lock is let go of meanwhile."""
        function(
            ctypes.c_void_p(lot.table.ctypes.data),
            ctypes.c_int64(len(lot.table)),
            ctypes.c_int(lot.depth),
            *(ctypes.c_void_p(one.data_ptr()) for one in tensors),
            ctypes.c_int(torch.get_num_threads()),
        )

    def _memory(self, lot: Lot) -> Tensor:
        """Memory of every thread for the block that it works on and the sums of its tile."""
        threads = torch.get_num_threads()
        return torch.empty(threads, self._thread_bytes(lot.depth), dtype=torch.uint8)


def build(folder: Path, source: Path = SOURCE) -> Path:
    """Compiles a source into a folder, unless it is there, and returns the library.

    Args:
        folder: for this processor alone, as `compiled.cache_folder` names it.
        source: C++ that includes no file of its own but `*.h` of its folder.

    Raises:
        CompilerError: the compiler refuses; the message is what it says.
    """
    texts = [file.read_text(encoding="utf-8") for file in [source, *_headers(source.parent)]]
    made_of = hashlib.sha256("\n".join([*_FLAGS, *texts]).encode())
    library = folder / f"{source.stem}-{made_of.hexdigest()[:16]}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=folder) as made:
        partial = Path(made) / library.name
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        done = subprocess.run(  # noqa: S603 - the operator's own compiler
            [*compiler, *_FLAGS, str(source), "-o", str(partial)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            msg = f"{compiler[0]} cannot compile {source}: {done.stderr[:2000]}"
            raise CompilerError(msg)
        partial.replace(library)
    return library


def _headers(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.h"))
