"""What is said of the regions of an image, as the JSON text that answers have.

There are dozens of regions in an image. Made as dictionaries they would be most of the work of an
answer, and what the garbage collector looks through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from lossd.qa.findings import Findings
from lossd.qa.outlines import Straightest
from lossd.qa.regions import Floats
from lossd.qa.runs import Indices
from lossd_client.qa_wire import ErrorKind

_MEANINGS: dict[ErrorKind, str] = {
    "missing": "an object of its own that is not annotated",
    "extra": "an annotated object where there seems to be none",
    "swapped": "an object annotated as another class",
    "shifted": "an outline off to one side",
    "dilated": "an outline too far out",
    "eroded": "an outline too far in",
    "coarse": "an outline with too few corners",
}


@dataclass(frozen=True)
class Told:
    """What is said of an image's regions.

    Attributes:
        regions: JSON, a list of the fields of `qa_wire.Region`.
        reason: that of the first; None where there is none.
    """

    regions: bytes
    reason: str | None


UNUSUAL_DEVIATIONS = 2.5
"""From so many standard deviations on, a reason tells of a straight outline. An image of some
twenty objects has that by chance once in eight times."""


class Words:
    """Words of a request's answers; for any thread.

    Args:
        class_names: names of the classes; None where nobody names them.
    """

    def __init__(self, class_names: Sequence[str] | None) -> None:
        self._class_names = class_names

    def name(self, index: int) -> str | None:
        """Name of a class; None where nobody names it."""
        return None if self._class_names is None else self._class_names[index]

    def with_outline(self, reason: str | None, straightest: Straightest) -> str | None:
        """An image's reason, and that an outline is straight where that is unusual.

        Args:
            reason: that of its first region; None where there is none.
            straightest: of its outlines.
        """
        if straightest.deviations < UNUSUAL_DEVIATIONS:
            return reason
        name = self.name(straightest.code) or f"class {straightest.code}"
        outline = (
            f"an outline of {name} straighter than others of its class and size by "
            f"{straightest.deviations:.1f} standard deviations"
        )
        return outline if reason is None else f"{reason}; {outline}"

    def tell(
        self,
        found: Findings,
        given: Indices,
        predicted: Indices,
        kinds: Sequence[ErrorKind],
    ) -> Told:
        """What is said of an image's described regions.

        Args:
            found: what was found in the image.
            given: `[K]` class of each of its regions in the annotation.
            predicted: `[K]` likewise in the prediction.
            kinds: of the M described regions.
        """
        numbers = found.chosen["region"]
        if not len(numbers):
            return Told(b"[]", None)
        area, ours, theirs = (array[numbers].tolist() for array in (found.area, given, predicted))
        probability, score = found.probability[numbers], found.score[numbers]
        called = {index: self.name(index) or f"class {index}" for index in {*ours, *theirs}}
        names = {index: _text(self.name(index)) for index in called}
        reasons = [
            f"labelled {called[one]}, predicted {called[other]}, p = {share:.2f} over {pixels} px: "
            f"{_MEANINGS[kind]}"
            for one, other, share, pixels, kind in zip(
                ours, theirs, probability.tolist(), area, kinds, strict=True
            )
        ]
        boxes = (found.chosen[side].tolist() for side in ("left", "top", "width", "height"))
        height, width = found.heat.shape
        texts = (
            f'{{"bbox":[{x},{y},{columns},{rows}],"area":{pixels},"given":{one},"given_name":'
            f'{names[one]},"predicted":{other},"predicted_name":{names[other]},"probability":'
            f'{share},"score":{doubt},"kind":"{kind}","reason":{_text(reason)},"rle":{{"size":'
            f'[{height},{width}],"counts":{_text(mask)}}}}}'
            for x, y, columns, rows, pixels, one, other, share, doubt, kind, reason, mask in zip(
                *boxes,
                *(area, ours, theirs, _texts(probability), _texts(score), kinds, reasons),
                found.masks,
                strict=True,
            )
        )
        return Told(f"[{','.join(texts)}]".encode(), reasons[0])


def _text(value: str | None) -> str:
    return orjson.dumps(value).decode()


def _texts(values: Floats) -> list[str]:
    return orjson.dumps(values.tolist())[1:-1].decode().split(",")
