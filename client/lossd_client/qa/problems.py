"""What can be wrong with a data set: errors that end a reading, problems that are listed.

A reader raises `DataError` where nothing more can be read of a file. Whoever goes through many
files turns it into a `Problem` and goes on with the next one.
"""

from dataclasses import dataclass
from typing import Literal

ProblemKind = Literal[
    "unreadable", "unmatched", "duplicate", "size", "classes", "labels", "skipped"
]


class DataError(ValueError):
    """A file of the data set is not what it should be; the message names file and value."""

    def __init__(self, file: str, detail: str, *, kind: ProblemKind = "unreadable") -> None:
        self.file = file
        self.detail = detail
        self.kind: ProblemKind = kind
        super().__init__(f"{file}: {detail}")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set, told before anything is scored.

    Attributes:
        kind: `unreadable` file, `unmatched` name, `duplicate` name, `size`, number or names of
            `classes`, values of `labels`, or an annotation that was `skipped`.
        file: the file at fault; of a file with many items, with the item's place in it.
        detail: what was found, and what would have been allowed.

    Example:
        >>> print(Problem("labels", "masks/a.png", "3 pixels hold 255; allowed are 0 to 10"))
        masks/a.png: 3 pixels hold 255; allowed are 0 to 10
    """

    kind: ProblemKind
    file: str
    detail: str

    @classmethod
    def from_error(cls, error: DataError) -> "Problem":
        """The error as an entry of a list."""
        return cls(error.kind, error.file, error.detail)

    def __str__(self) -> str:
        return f"{self.file}: {self.detail}"
