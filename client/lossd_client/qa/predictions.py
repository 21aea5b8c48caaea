"""Predictions of a model: arrays of scores or masks of labels, loaded one at a time.

`auto` looks at the first predictions and says what it takes them for:

- integers, pictures, and floats that are whole numbers above 1: `labels`;
- `[C, H, W]` in [0, 1] that adds up to 1 over the classes, and `[H, W]` or `[1, H, W]` in [0, 1]:
  `probabilities`;
- anything that leaves [0, 1]: `logits`.

`[C, H, W]` in [0, 1] that does not add up to 1 may be either, and has to be said.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lossd_client.qa.arrays import ArrayFile, file_version, members
from lossd_client.qa.names import files_below, name_below, path_name
from lossd_client.qa.pictures import mask_size, read_index_mask
from lossd_client.qa.problems import DataError, Problem

Kind = Literal["logits", "probabilities", "labels"]
RequestedKind = Literal["auto", "logits", "probabilities", "labels"]
Values = npt.NDArray[Any]

_SUFFIXES = frozenset({".npy", ".npz", ".png", ".bmp", ".tif", ".tiff"})
_LOOKED_AT = 3
_SUM_TOLERANCE = 0.02
"""How far from 1 a sum over classes may be: float16 leaves 0.0005 a class."""

_AXES_2D, _AXES_3D = 2, 3


@dataclass(frozen=True)
class PredictionEntry:
    """A prediction that can be loaded.

    Attributes:
        name: the image's path name, see `names`.
        file: where it stands.
        shape: `[C, H, W]` or `[H, W]`.
        holds: `floats` for scores, `integers` for labels.
        item_bytes: bytes of one value.
        read: gives the values, or raises `DataError`.
        version: says what changes when the values do, without reading them, or raises `DataError`.
        mapped: as `read`, for values that are sent and not looked at, see `ArrayFile.mapped`.
        blocks: as `read`, in pieces, see `ArrayFile.blocks`.
    """

    name: str
    file: str
    shape: tuple[int, ...]
    holds: Literal["floats", "integers"]
    item_bytes: int
    read: Callable[[], Values]
    version: Callable[[], str]
    mapped: Callable[[], Values]
    blocks: Callable[[], Iterator[Values]]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.shape[-2], self.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of the values in memory."""
        return math.prod(self.shape) * self.item_bytes

    @property
    def class_count(self) -> int | None:
        """Number of labels that the scores are of; None where labels were predicted.

        A single channel is the logit or probability of the second of two.
        """
        if self.holds == "integers":
            return None
        channels = self.shape[0] if len(self.shape) == _AXES_3D else 1
        return max(channels, 2)


@dataclass(frozen=True)
class PredictionSource:
    """Predictions of a data set.

    Attributes:
        path: from where.
        entries: one per prediction, in the order of their names.
        problems: files that cannot be read.
    """

    path: str
    entries: tuple[PredictionEntry, ...]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[PredictionEntry]:
        return iter(self.entries)


@dataclass(frozen=True)
class KindChoice:
    """What predictions are taken for, and why.

    Attributes:
        kind: `logits`, `probabilities` or `labels`.
        reason: what was seen, for people.
    """

    kind: Kind
    reason: str


def read_predictions(path: Path) -> PredictionSource:
    """Predictions of a folder or an `.npz`.

    Args:
        path: a folder with `NAME.npy` or index masks, also in folders below; or an `.npz` with
            one array per NAME, of which one member at a time is read; or a folder with one `.npz`.

    Returns:
        The source. Files that cannot be read are problems.

    Raises:
        DataError: nothing there is a prediction; the message says what was looked for.
    """
    files = list(files_below(path, _SUFFIXES)) if path.is_dir() else [path]
    entries, problems = [], []
    for file in files if path.exists() else []:
        for found in _entries(file, path):
            if isinstance(found, DataError):
                problems.append(Problem.from_error(found))
            else:
                entries.append(found)
    if not entries and not problems:
        looked = "a folder of .npy, .npz, .png, .bmp or .tif files, or an .npz file"
        raise DataError(str(path), f"holds no predictions. Looked for: {looked}")
    return PredictionSource(str(path), tuple(entries), tuple(problems))


def choose_kind(source: PredictionSource, requested: RequestedKind = "auto") -> KindChoice:
    """What the predictions are.

    Args:
        source: the predictions.
        requested: what the user said; `auto` looks at the first predictions that can be read.

    Returns:
        The kind and the reason.

    Raises:
        DataError: `auto` cannot tell, or the first predictions differ; the message says what to
            do. Or none can be read.
    """
    if requested != "auto":
        return KindChoice(requested, "as requested")
    readable = _readable(source)
    seen = [_guess(*each) for each in islice(readable, _LOOKED_AT)]
    if len({choice.kind for choice in seen}) > 1:
        told = "; ".join(choice.reason for choice in seen)
        raise DataError(source.path, f"differ: {told}. Say --prediction-kind")
    return seen[0]


def check_values(values: Values, kind: Kind, class_count: int, file: str) -> None:
    """Holds loaded values against what they are said to be.

    Args:
        values: `[C, H, W]` or `[H, W]`.
        kind: what they are said to be.
        class_count: number of classes.
        file: where they stand, for messages.

    Raises:
        DataError: labels that are no classes, probabilities outside [0, 1], scores that are no
            floats, or values that are not finite.
    """
    low, high = _finite_range(values.shape, [values], file)
    if kind == "labels":
        _check_labels(values, class_count, file)
    elif not np.issubdtype(values.dtype, np.floating):
        raise DataError(file, f"holds {values.dtype}; {kind} are floats", kind="labels")
    elif kind == "probabilities" and (low < 0 or high > 1):
        raise DataError(
            file, f"has probabilities {low} to {high}; allowed are 0 to 1", kind="labels"
        )


def _check_labels(values: Values, class_count: int, file: str) -> None:
    if values.ndim != _AXES_2D:
        told = f"has the shape {list(values.shape)}; predicted labels are [H, W]"
        raise DataError(file, told, kind="size")
    if not (values == np.floor(values)).all():
        raise DataError(file, "predicts labels that are no whole numbers", kind="labels")
    if values.min() < 0 or values.max() >= class_count:
        found = f"predicts labels {values.min()} to {values.max()}"
        raise DataError(file, f"{found}; allowed are 0 to {class_count - 1}", kind="labels")


def _entries(file: Path, root: Path) -> Iterator[PredictionEntry | DataError]:
    """Predictions of a file; a member that cannot be read does not keep the others from it."""
    if file.suffix.lower() != ".npz":
        yield _tried(partial(_single_entry, file, root))
        return
    try:
        arrays = members(file)
    except DataError as error:
        yield error
        return
    for array in arrays:
        yield _tried(partial(_member_entry, array))


def _tried(make: Callable[[], PredictionEntry]) -> PredictionEntry | DataError:
    try:
        return make()
    except DataError as error:
        return error


def _member_entry(array: ArrayFile) -> PredictionEntry:
    return _array_entry(array, path_name(array.member or "", str(array)))


def _single_entry(file: Path, root: Path) -> PredictionEntry:
    name = name_below(file, root) if root.is_dir() else path_name(file.name, str(file))
    if file.suffix.lower() == ".npy":
        return _array_entry(ArrayFile(file), name)
    read = partial(read_index_mask, file)
    version = partial(file_version, file)
    size = mask_size(file)
    return PredictionEntry(
        name, str(file), size, "integers", 1, read, version, read, lambda: iter((read(),))
    )


def _array_entry(array: ArrayFile, name: str) -> PredictionEntry:
    shape, dtype = array.header()
    floats = np.issubdtype(dtype, np.floating)
    if not floats and not np.issubdtype(dtype, np.integer) and dtype != np.bool_:
        raise DataError(str(array), f"holds {dtype}; predictions are floats or integers")
    if len(shape) not in {_AXES_2D, _AXES_3D} or (len(shape) == _AXES_3D and not floats):
        wanted = "[C, H, W] or [H, W]" if floats else "[H, W]"
        raise DataError(str(array), f"has the shape {list(shape)}; wanted is {wanted}", kind="size")
    holds: Literal["floats", "integers"] = "floats" if floats else "integers"
    return PredictionEntry(
        *(name, str(array), shape, holds, dtype.itemsize),
        *(array.read, array.version, array.mapped, array.blocks),
    )


def _readable(source: PredictionSource) -> Iterator[tuple[PredictionEntry, float, float]]:
    """Predictions that can be read and hold what floats should; the others do not tell a kind.

    Yields:
        Entry, and its smallest and largest value; 0 and 0 of integers.

    Raises:
        DataError: there is none; the message is that of the first.
    """
    first: DataError | None = None
    found = False
    for entry in source.entries:
        try:
            low, high = _range_of(entry)
        except DataError as error:
            first = first or error
            continue
        found = True
        yield entry, low, high
    if not found:
        raise first or DataError(source.path, "has no prediction that can be read")


def _range_of(entry: PredictionEntry) -> tuple[float, float]:
    if entry.holds == "integers":
        entry.read()
        return 0.0, 0.0
    low, high = _finite_range(entry.shape, entry.blocks(), entry.file)
    return float(low), float(high)


def _guess(entry: PredictionEntry, low: float, high: float) -> KindChoice:
    if entry.holds == "integers":
        return KindChoice("labels", f"{entry.file} holds integers")
    if low < 0 or high > 1:
        return _outside_unit(entry, low, high)
    if len(entry.shape) == _AXES_2D or entry.shape[0] == 1:
        return KindChoice("probabilities", f"{entry.file} lies in [{low:.3g}, {high:.3g}]")
    sums = entry.read().sum(axis=0, dtype=np.float32)
    if np.abs(sums - 1).max() <= _SUM_TOLERANCE:
        return KindChoice("probabilities", f"{entry.file} adds up to 1 over its classes")
    raise DataError(
        entry.file,
        f"lies in [0, 1] and adds up to {sums.min():.3g} to {sums.max():.3g} over its classes, "
        "which neither probabilities nor logits do; say --prediction-kind",
    )


def _outside_unit(entry: PredictionEntry, low: float, high: float) -> KindChoice:
    if len(entry.shape) == _AXES_2D and low >= 0:
        values = entry.read()
        if (values == np.floor(values)).all():
            return KindChoice("labels", f"{entry.file} holds whole numbers up to {high:.0f}")
    return KindChoice("logits", f"{entry.file} lies in [{low:.3g}, {high:.3g}]")


def _finite_range(shape: tuple[int, ...], pieces: Iterable[Values], file: str) -> tuple[Any, Any]:
    """Smallest and largest value of an array of that shape.

    Raises:
        DataError: there is no value, or one that is not finite.
    """
    if 0 in shape:
        raise DataError(file, f"has the shape {list(shape)}, without a value", kind="size")
    low: Any = math.inf
    high: Any = -math.inf
    not_finite = 0
    for piece in pieces:
        least, most = _range(piece)
        if not (np.isfinite(least) and np.isfinite(most)):
            not_finite += int((~np.isfinite(piece)).sum())
        low, high = min(low, least), max(high, most)
    if not_finite:
        raise DataError(file, f"{not_finite} values are not finite", kind="labels")
    return low, high


def _range(values: Values) -> tuple[Any, Any]:
    """Smallest and largest value; at least one is NaN if any value is."""
    return _half_range(values) if values.dtype == np.float16 else (values.min(), values.max())


_HALF_SIGN = 0x8000


def _half_range(values: Values) -> tuple[np.float16, np.float16]:
    """Smallest and largest value of half precision; at least one is NaN if any value is.

    numpy compares half precision one value at a time. As integers, those without a sign rise with
    their values, and those with a sign rise as their values fall.
    """
    bits = values.view(np.uint16)
    low, high = bits.max(), bits.min()
    if low < _HALF_SIGN:
        low, high = high, low
    elif high < _HALF_SIGN:
        high = bits.view(np.int16).max().view(np.uint16)
    return _half(low), _half(high)


def _half(bits: Any) -> np.float16:
    """The value of *bits*, zero without its sign; nothing is computed: a NaN may be signalling."""
    return np.float16(0) if bits == _HALF_SIGN else bits.view(np.float16)
