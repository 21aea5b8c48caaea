"""What probably went wrong in a disputed region, told from outlines alone.

No class is the background. Of the two sides of a disputed region the smaller given object is the
one that something happened to.

- Most of a given object is disputed: it is `extra` if what is predicted there is what lies around
  it, and `swapped` if not.
- Little of the region's outline lies at the predicted class in the annotation: an object is
  `missing` there.
- It lies along the outline of an object. Both sides of that are disputed, on opposite sides of its
  middle, and it is most of its side: it is `shifted`.
- That outline is straight nearly everywhere: it is `coarse`.
- Both sides are disputed in several regions: it is `shifted`.
- Else it is `dilated` where the object's own pixels are disputed, and `eroded` where its
  neighbour's are predicted as it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lossd.qa.outlines import LEAST_PLACES
from lossd.qa.regions import Floats
from lossd.qa.runs import Indices
from lossd_client.qa_wire import ErrorKind

Flags = npt.NDArray[np.bool_]
Table = np.ndarray[Any, Any]

_WHOLE: Final = 0.5
"""From such a share of a given object on, it is disputed as a whole."""
_AROUND: Final = 0.5
"""From such a share of the edge around an object on, a class is what lies around it."""
_TOUCHING: Final = 0.2
"""From such a share of its edge on, a region lies along the outline of the predicted class."""
_BOTH_SIDES: Final = 0.25
"""From such a ratio of areas on, two sides are about equally wrong."""
_MOST: Final = 0.5
"""From such a share of the area on its side of an object on, a region is that side."""
_STRAIGHT: Final = 0.9
"""From such a share of chords on, an outline has too few corners."""
_REGION_PLACES: Final = 8


def region_kinds(images: Sequence[tuple[Table, Indices]]) -> list[ErrorKind]:
    """Kind of each described region of some images, one after the other.

    Args:
        images: of each, rows of `findings.CHOSEN`, and pixels of all its regions; what is said of
            one does not depend on the others.
    """
    regions = np.concatenate([chosen for chosen, _ in images])
    area = np.concatenate([area[chosen["region"]] for chosen, area in images])
    image = np.repeat(np.arange(len(images)), [len(chosen) for chosen, _ in images])
    at_predicted = regions["edges_at_predicted"]
    is_whole = area >= _WHOLE * regions["own_area"]
    is_around = at_predicted >= _AROUND * np.maximum(1, regions["edges_at_others"])
    is_touching = at_predicted >= np.maximum(1.0, _TOUCHING * regions["edges"])
    is_inside = regions["own_area"] < regions["touched_area"]
    is_outline = ~is_whole & is_touching
    is_straight = _are_straight(
        regions["places"], regions["chords"], LEAST_PLACES
    ) & ~_are_straight(regions["region_places"], regions["region_chords"], _REGION_PLACES)
    is_opposite, is_alone = _opposite(regions, image, area, is_inside, is_outline)
    kinds: list[ErrorKind] = np.select(
        [
            is_whole & is_around,
            is_whole,
            ~is_touching,
            is_opposite & is_alone,
            is_straight,
            is_opposite,
            is_inside,
        ],
        ["extra", "swapped", "missing", "shifted", "coarse", "shifted", "dilated"],
        "eroded",
    ).tolist()
    return kinds


def _are_straight(places: Indices, chords: Indices, least: int) -> Flags:
    found: Flags = (places >= least) & (chords >= _STRAIGHT * places)
    return found


def _opposite(
    regions: Table, image: Indices, area: Indices, is_inside: Flags, is_outline: Flags
) -> tuple[Flags, Flags]:
    """Whether both sides of the object that a region lies along are disputed, opposite.

    And whether the region is most of what is disputed on its side: who moves an outline makes one
    region a side, who cuts corners makes many.
    """
    along = np.where(is_inside, regions["own"], regions["touched"])
    along = along * (int(image.max(initial=0)) + 1) + image  # objects are counted in each image
    objects, first, which = np.unique(along, return_index=True, return_inverse=True)
    count = len(objects)
    sums = np.stack((regions["row_sum"], regions["column_sum"]))
    doubled = 2 * regions["along_row_sum"][first], regions["along_column_sum"][first]
    centre = np.stack(doubled) / (2 * regions["along_area"][first])

    def middle(side: Flags) -> tuple[Floats, Floats]:
        """Area, and mean row and column, of the regions on a side of each object."""
        own = which[side]
        weight = np.bincount(own, weights=area[side], minlength=count)
        mean = [np.bincount(own, weights=axis[side], minlength=count) for axis in sums]
        return weight.astype(np.float64), np.stack(mean) / np.maximum(weight, 1)

    inner_area, inner = middle(is_outline & is_inside)
    outer_area, outer = middle(is_outline & ~is_inside)
    least = np.minimum(inner_area, outer_area)
    is_both = (least > 0) & (least >= _BOTH_SIDES * np.maximum(inner_area, outer_area))
    found: Flags = (is_both & (((inner - centre) * (outer - centre)).sum(0) < 0))[which]
    on_its_side = np.where(is_inside, inner_area[which], outer_area[which])
    is_alone: Flags = area >= _MOST * on_its_side
    return found, is_alone
