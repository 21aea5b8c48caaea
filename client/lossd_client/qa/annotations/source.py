"""What every reader of annotations gives: entries that load one mask at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lossd_client.qa.classes import ClassList
from lossd_client.qa.painting import Mask
from lossd_client.qa.problems import DataError, Problem


@dataclass(frozen=True)
class Annotation:
    """The labels that people gave an image.

    Attributes:
        name: the image's path name.
        mask: `[H, W]` integer labels as the source has them; pixels that nothing was drawn on are
            the background, or `UNLABELLED` where the classes have none.
        annotator: who drew it, where the source says so.
        job: in which job, where the source says so.
    """

    name: str
    mask: Mask
    annotator: str | None = None
    job: str | None = None


@dataclass(frozen=True)
class Entry:
    """An annotation that can be loaded.

    Attributes:
        name: the image's path name, see `names`.
        file: where it stands; of a file with many entries, with the entry's place in it.
        read: gives the mask, `[H, W]` integers, or raises `DataError` or `ValueError`.
        size: rows and columns, where the source says so without being loaded.
        annotator: who drew it.
        job: in which job; CVAT's job id.
        task: task id of CVAT or Label Studio.
        frame: frame of the task in CVAT.
        url: address of the image in Label Studio, as it stands there.
    """

    name: str
    file: str
    read: Callable[[], Mask]
    size: tuple[int, int] | None = None
    annotator: str | None = None
    job: str | None = None
    task: int | None = None
    frame: int | None = None
    url: str | None = None

    def load(self) -> Annotation:
        """The annotation.

        Returns:
            Name and mask.

        Raises:
            DataError: the file cannot be read, or an object in it is malformed.
        """
        try:
            mask = self.read()
        except DataError:
            raise
        except ValueError as error:
            raise DataError(self.file, str(error)) from error
        return Annotation(self.name, mask, self.annotator, self.job)


@dataclass(frozen=True)
class AnnotationSource:
    """Annotations of a data set.

    Attributes:
        format: what was read, for people.
        path: from where.
        entries: one per annotation, in the order of the source.
        classes: the classes that labels are of; None where the source has labels without names.
        problems: what could not be used, each with its place.

    Example:
        >>> import numpy as np
        >>> entry = Entry("a", "a.npy", lambda: np.zeros((1, 2), np.uint8))
        >>> source = AnnotationSource("arrays", "masks", (entry,))
        >>> [annotation.mask.shape for annotation in source]
        [(1, 2)]
    """

    format: str
    path: str
    entries: tuple[Entry, ...]
    classes: ClassList | None = None
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Annotation]:
        """Loads one annotation after the other; the first that cannot be read ends it."""
        return (entry.load() for entry in self.entries)


def pixel_points(parts: list[tuple[float, float]], height: int, width: int) -> list[float]:
    """Flat pixel coordinates of points given in parts of an image's sides.

    Args:
        parts: x and y, 0 to 1 of width and height.
        height: rows of the image.
        width: columns of the image.

    Returns:
        x and y in turn.
    """
    scaled = np.array(parts, np.float64).reshape(-1, 2) * (width, height)
    flat: list[float] = scaled.ravel().tolist()
    return flat
