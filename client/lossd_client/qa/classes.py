"""Class names, label maps and the label that does not count.

A class's label is its place in the list of classes, which is also its channel in a prediction.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from lossd_client.qa.documents import items, read_json, read_xml, record, text, whole
from lossd_client.qa.painting import UNLABELLED, Mask
from lossd_client.qa.problems import DataError

IGNORED = -1
"""Label of pixels that do not count, in every mask that `LabelRules.apply` gives."""

BACKGROUND = "background"
"""Name of the class that pixels without annotation belong to, in any case of letters."""

_SHOWN_VALUES = 8
_MASK_DTYPES = (np.uint8, np.int16, np.int32)
"""Integers that can travel, the smallest first; the largest value of each is not a class."""

_BYTES = 256
_WRONG = 254
"""Byte that marks a label that is not allowed; not a class where masks are translated as bytes."""

_FEW_CHANGES = 3
"""So many labels are changed faster one by one than by a look into a table for every pixel."""


@dataclass(frozen=True)
class ClassList:
    """Names of the classes, in the order of their labels.

    Attributes:
        names: one per class, no two alike.
        file: where they stand, for messages.

    Raises:
        DataError: no name, an empty one, or one twice.

    Example:
        >>> ClassList(("background", "car"), "classes.txt").label("car", "a.json")
        1
    """

    names: tuple[str, ...]
    file: str

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError(self.file, "names no class", kind="classes")
        seen: set[str] = set()
        for place, name in enumerate(self.names):
            if not name or name in seen:
                what = f"{name!r} twice" if name else "an empty name"
                raise DataError(self.file, f"has {what}, at label {place}", kind="classes")
            seen.add(name)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def background(self) -> int | None:
        """Label of the background, if it is one of the classes."""
        for place, name in enumerate(self.names):
            if name.strip("_").lower() == BACKGROUND:
                return place
        return None

    def label(self, name: str, file: str) -> int:
        """Label of a class.

        Args:
            name: the class.
            file: where the name stands, for messages.

        Returns:
            Its place in the list.

        Raises:
            DataError: it is not in the list, which the message shows.
        """
        label = self._labels.get(name)
        if label is None:
            known = ", ".join(self.names)
            raise DataError(
                file, f"class {name!r} is not one of {self.file}: {known}", kind="classes"
            )
        return label

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.names)}


def classes_of(found: Iterable[str], file: str, given: ClassList | None) -> ClassList:
    """Classes of a source that names them itself.

    Args:
        found: names in the source, in its order.
        file: the source, for messages.
        given: what the user said, which then holds.

    Returns:
        `given`, or the found names with `background` before them unless it is among them.
    """
    if given is not None:
        return given
    names = tuple(found)
    plain = ClassList(names, file)
    return plain if plain.background is not None else ClassList((BACKGROUND, *names), file)


def read_classes(path: Path) -> ClassList:
    """Class names of a file.

    Args:
        path: text with a name a line (`classes.txt`, `obj.names`); YOLO's `data.yaml`; COCO JSON;
            CVAT's XML or Label Studio's labelling configuration.

    Returns:
        The names as they stand; of COCO JSON by rising category id. No background is added.

    Raises:
        DataError: the file cannot be read or names no class.
    """
    readers = {".json": _coco_names, ".xml": _xml_names, ".yaml": _yaml_names, ".yml": _yaml_names}
    reader = readers.get(path.suffix.lower(), _line_names)
    return ClassList(tuple(reader(path)), str(path))


def coco_categories(document: Any, file: str) -> list[tuple[int, str]]:
    """Ids and names of COCO's categories, by rising id.

    Args:
        document: content of the JSON file.
        file: the file, for messages.

    Returns:
        One pair per category.

    Raises:
        DataError: a category without id or name, or an id twice.
    """
    found = items(record(document, file), "categories", file)
    pairs = [(whole(record(entry, file), "id", file), text(entry, "name", file)) for entry in found]
    ids = [number for number, _ in pairs]
    if len(set(ids)) < len(ids):
        raise DataError(file, "has one category id twice", kind="classes")
    return sorted(pairs)


def parse_map(argument: str) -> dict[int, int]:
    """Map of labels out of `--map`.

    Args:
        argument: pairs `from:to` with commas between them; `to` may be `ignore`.

    Returns:
        New label of each old one, `IGNORED` for `ignore`.

    Raises:
        ValueError: a piece that is no pair, or an old label twice; the message names the piece.

    Example:
        >>> parse_map("0:1,255:ignore")
        {0: 1, 255: -1}
    """
    mapping: dict[int, int] = {}
    for piece in argument.split(","):
        old, colon, new = (part.strip() for part in piece.partition(":"))
        if not colon or not _is_label(old) or not (_is_label(new) or new == "ignore"):
            raise ValueError(f"{piece!r} in {argument!r} is not 'label:label' or 'label:ignore'")
        if int(old) in mapping:
            raise ValueError(f"{piece!r} in {argument!r} maps label {int(old)} a second time")
        mapping[int(old)] = IGNORED if new == "ignore" else int(new)
    return mapping


@dataclass(frozen=True)
class LabelRules:
    """What the labels of a mask mean.

    Attributes:
        class_count: labels that count are 0 to `class_count - 1`.
        mapping: new labels of old ones, `IGNORED` among the new; others stay as they are.
        ignore_index: label that does not count, after the map; None if there is none.
    """

    class_count: int
    mapping: Mapping[int, int] = field(default_factory=dict)
    ignore_index: int | None = None

    def apply(self, mask: Mask, file: str) -> npt.NDArray[np.int32]:
        """Mask with nothing but labels that count, and `IGNORED`.

        Args:
            mask: `[H, W]`, any integers.
            file: where they stand, for messages.

        Returns:
            `[H, W]` int32.

        Raises:
            DataError: a label that neither counts nor was declared as ignored; the message has
                each value, its number of pixels, and what is allowed.

        Example:
            >>> import numpy as np
            >>> rules = LabelRules(2, {7: 1}, ignore_index=255)
            >>> rules.apply(np.array([[0, 7, 255]]), "a.png").tolist()
            [[0, 1, -1]]
        """
        values, places = _distinct(mask)
        new = [self._new(value) for value in values]
        if wrong := [value for value, label in zip(values, new, strict=True) if label is None]:
            raise DataError(file, self._told(mask, wrong), kind="labels")
        return np.array(new, np.int32)[places].reshape(mask.shape)

    @property
    def ignored_label(self) -> int:
        """Label of what is ignored in the masks that `compacted` gives."""
        return compact(np.zeros((0, 0), np.int32), self.class_count)[1]

    def compacted(self, mask: Mask, file: str) -> Mask:
        """What `compact` makes of `apply`'s answer, without the steps between.

        Args:
            mask: `[H, W]`, any integers.
            file: where they stand, for messages.

        Returns:
            `[H, W]` uint8, int16 or int32, with `ignored_label` where nothing counts.

        Raises:
            DataError: as `apply`.

        Example:
            >>> import numpy as np
            >>> rules = LabelRules(2, {7: 1}, ignore_index=200)
            >>> rules.compacted(np.array([[0, 7, 200]], np.uint8), "a.png").tolist()
            [[0, 1, 255]]
        """
        if self.class_count <= _WRONG:
            small = self._translated(mask)
            if not (small == _WRONG).any():
                return small
        return compact(self.apply(mask, file), self.class_count)[0]

    def _translated(self, mask: Mask) -> npt.NDArray[np.uint8]:
        """The mask through a table of bytes; labels that are no bytes are wrong or unlabelled."""
        if mask.dtype == np.uint8:
            return self._looked_up(mask)
        is_byte = (mask >= 0) & (mask < _BYTES)
        small = self._looked_up(np.where(is_byte, mask, 0).astype(np.uint8))
        small = np.where(is_byte, small, np.uint8(_WRONG))
        small[mask == UNLABELLED] = _BYTES - 1
        return small

    def _looked_up(self, mask: Mask) -> npt.NDArray[np.uint8]:
        # 255, mostly the ignored label, becomes 0 here, and leaves the largest label the largest.
        largest = int((mask + np.uint8(1)).max(initial=0))
        changed = [(old, by) for old, by in self._changes if old < largest or old == _BYTES - 1]
        if len(changed) > _FEW_CHANGES:
            # Not numpy's indexing, which makes eight bytes of each index first.
            codes = mask.tobytes().translate(self._table)
            return np.frombuffer(codes, np.uint8).reshape(mask.shape)
        small = mask.astype(np.uint8, order="C")
        for old, by in changed:
            small += (mask == old).view(np.uint8) * np.uint8(by)
        return small

    @cached_property
    def _table(self) -> bytes:
        new = (self._new(value) for value in range(_BYTES))
        return bytes(
            _WRONG if label is None else _BYTES - 1 if label == IGNORED else label for label in new
        )

    @cached_property
    def _changes(self) -> list[tuple[int, int]]:
        """Values that the table changes, and what is to be added to them, modulo 256."""
        by = [(new - old) % _BYTES for old, new in enumerate(self._table)]
        return [(old, added) for old, added in enumerate(by) if added]

    def _new(self, value: int) -> int | None:
        label = self.mapping.get(value, value)
        declared = value in self.mapping and label == IGNORED
        if declared or label in {UNLABELLED, self.ignore_index}:
            return IGNORED
        return label if 0 <= label < self.class_count else None

    def _told(self, mask: Mask, wrong: Sequence[int]) -> str:
        counts = [f"{int((mask == value).sum())} pixels hold {value}" for value in wrong]
        more = (
            f" and {len(counts) - _SHOWN_VALUES} more values" if len(counts) > _SHOWN_VALUES else ""
        )
        ignored = "" if self.ignore_index is None else f" and the ignored {self.ignore_index}"
        mapped = " after the map" if self.mapping else ""
        return (
            f"{', '.join(counts[:_SHOWN_VALUES])}{more}; "
            f"allowed{mapped} are 0 to {self.class_count - 1}{ignored}"
        )


def compact(mask: npt.NDArray[np.int32], class_count: int) -> tuple[Mask, int]:
    """The mask in the smallest type that can travel, and the label for `IGNORED` in it.

    Args:
        mask: `[H, W]`, as `LabelRules.apply` gives it.
        class_count: number of classes.

    Returns:
        `[H, W]` uint8, int16 or int32, and that type's largest value.

    Example:
        >>> import numpy as np
        >>> small, ignored = compact(np.array([[0, -1]], np.int32), 2)
        >>> small.dtype, small.tolist(), ignored
        (dtype('uint8'), [[0, 255]], 255)
    """
    dtype = next(one for one in _MASK_DTYPES if class_count <= np.iinfo(one).max)
    ignored = int(np.iinfo(dtype).max)
    return np.where(mask == IGNORED, ignored, mask).astype(dtype), ignored


def _distinct(mask: Mask) -> tuple[list[int], npt.NDArray[np.intp]]:
    """The values of a mask, rising, and the place of each pixel's value among them."""
    if mask.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        values, places = np.unique(mask, return_inverse=True)
        return values.tolist(), places
    # Counting is ten times as fast as sorting, and pictures have few values.
    present = np.bincount(mask.ravel()) > 0
    table = np.cumsum(present) - 1
    return np.flatnonzero(present).tolist(), table[mask]


def _is_label(piece: str) -> bool:
    return piece.isascii() and piece.isdigit()


def _line_names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"cannot be read as text: {error}", kind="classes") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.strip() for line in lines]


def _coco_names(path: Path) -> list[str]:
    return [name for _, name in coco_categories(read_json(path), str(path))]


def _xml_names(path: Path) -> list[str]:
    root = read_xml(path)
    cvat = [name.text or "" for name in root.iterfind(".//meta//labels/label/name")]
    return cvat or [label.get("value", "") for label in root.iter("Label")]


def _yaml_names(path: Path) -> list[str]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(str(path), f"cannot be read as YAML: {error}", kind="classes") from error
    names = record(document, str(path)).get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            str(path), "'names' is neither a list nor numbered from 0 without a gap", kind="classes"
        )
    return names
