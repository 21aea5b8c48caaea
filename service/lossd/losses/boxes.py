"""Losses of pairs of axis-parallel boxes, the prediction against its own target, row by row.

The geometry is written once, in `_Boxes` and `_Pair`, as sums of errors: how much area belongs to
one box only, instead of one minus a quotient, so that good boxes keep their digits and identical
ones cost exactly 0. Only elementwise operations touch the sample axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lossd.losses.declare import row_loss
from lossd.losses.sums import ratio

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]

_SMALLEST_IOU = 1e-6
"""Where the logarithmic form stops growing."""

_HALF = 0.5


@dataclass(frozen=True)
class _Boxes:
    """Corners of B boxes, each `[B, 2]` (x, y), `low` nowhere above `high`."""

    low: Tensor
    high: Tensor

    @property
    def size(self) -> Tensor:
        """Width and height, `[B, 2]`."""
        return self.high - self.low

    @property
    def center(self) -> Tensor:
        """`[B, 2]`."""
        return (self.low + self.high) / 2.0

    @property
    def angle(self) -> Tensor:
        """Arc tangent of width over height, `[B]`, in [0, pi/2]; 0 for a point."""
        # Not atan2: its last bit may differ between a processor's vectors and what is left over at
        # their end, and a row's bits with its place in the table.
        width, height = self.size.unbind(-1)
        wide = width > height
        short, long = torch.where(wide, height, width), torch.where(wide, width, height)
        slope = ratio(short, long).atan()
        return torch.where(wide, math.pi / 2.0 - slope, slope)


@dataclass(frozen=True)
class _Pair:
    """B predictions, each with its target."""

    prediction: _Boxes
    target: _Boxes

    @cached_property
    def shared(self) -> Tensor:
        """Width and height of the intersection, `[B, 2]`."""
        high = torch.minimum(self.prediction.high, self.target.high)
        low = torch.maximum(self.prediction.low, self.target.low)
        return (high - low).clamp_min(0.0)

    @cached_property
    def hull(self) -> Tensor:
        """Width and height of the smallest box around both, `[B, 2]`."""
        high = torch.maximum(self.prediction.high, self.target.high)
        low = torch.minimum(self.prediction.low, self.target.low)
        return high - low

    @cached_property
    def intersection(self) -> Tensor:
        """Area in both boxes, `[B]`."""
        return _area(self.shared)

    @cached_property
    def disagreement(self) -> Tensor:
        """Area in exactly one of the boxes, `[B]`."""
        return self._outside(self.prediction.size) + self._outside(self.target.size)

    @cached_property
    def union(self) -> Tensor:
        """Area in any of the boxes, `[B]`."""
        return self.intersection + self.disagreement

    @cached_property
    def identical(self) -> Tensor:
        """`[B]` bool."""
        same_low = self.prediction.low == self.target.low
        return (same_low & (self.prediction.high == self.target.high)).all(-1)

    @cached_property
    def miss(self) -> Tensor:
        """One minus IoU, `[B]`; of two boxes without area 0 if they are identical, else 1."""
        known = ratio(self.disagreement, self.union)
        return torch.where((self.union > 0) | self.identical, known, 1.0)

    @cached_property
    def center_distance(self) -> Tensor:
        """Squared distance of the centers over the hull's squared diagonal, `[B]`."""
        between = self.prediction.center - self.target.center
        return ratio(_squared_length(between), _squared_length(self.hull))

    def _outside(self, size: Tensor) -> Tensor:
        # area - intersection, from the differences of the sides.
        beyond = size - self.shared
        return beyond[:, 0] * size[:, 1] + self.shared[:, 0] * beyond[:, 1]


def _pair(prediction: Tensor, target: Tensor, layout: BoxFormat) -> _Pair:
    return _Pair(_boxes(prediction, layout), _boxes(target, layout))


def _boxes(values: Tensor, layout: BoxFormat) -> _Boxes:
    first, second = values[:, :2], values[:, 2:]
    if layout == "xywh":
        second = first + second
    elif layout == "cxcywh":
        first, second = first - second / 2.0, first + second / 2.0
    crossed = second < first
    middle = (first + second) / 2.0
    return _Boxes(torch.where(crossed, middle, first), torch.where(crossed, middle, second))


def _area(size: Tensor) -> Tensor:
    return size[:, 0] * size[:, 1]


def _squared_length(vector: Tensor) -> Tensor:
    return vector[:, 0].square() + vector[:, 1].square()


@row_loss("box", family="box")
def iou_box(
    prediction: Tensor,
    target: Tensor,
    *,
    form: Literal["linear", "log", "squared"] = "linear",
    format: BoxFormat = "xyxy",  # noqa: A002 (the name on the wire)
) -> Tensor:
    r"""One minus the intersection over union of two boxes, or its logarithm or square.

    Formula:
        \mathrm{IoU} = \frac{|A \cap B|}{|A \cup B|}, \quad
        L = 1 - \mathrm{IoU}, \quad -\ln \max(\mathrm{IoU}, 10^{-6}), \quad 1 - \mathrm{IoU}^2

    Use:
        To report how well a box fits, in the measure that detection is judged by, or to refine
        boxes that overlap their target already. `log` pulls harder on poor overlap and is UnitBox's
        original; `squared` pulls harder on good overlap. Where boxes may be disjoint it has nothing
        to say about the way back: take `giou` or `diou`.

    Args:
        prediction: boxes, `[B, 4]`.
        target: their targets, `[B, 4]`.
        form: `linear` is 1 - IoU, `log` is -ln IoU, `squared` is 1 - IoU squared.
        format: `xyxy` two corners, `xywh` the low corner and the size, `cxcywh` the center and the
            size; for both boxes.

    Returns:
        `[B]`; 0 for identical boxes. At most 1 for `linear` and `squared`, at most 6 ln 10 =
        13.8155 for `log`. Two boxes without area cost 0 if they are identical, otherwise as much as
        disjoint ones.

    Traps:
        - Disjoint boxes all cost the same and have gradient 0, wherever they are. That is the
          definition, not a fault.
        - At IoU 1 the linear form is 0 and not 1, and it does not grow without bound as IoU goes to
          0; the logarithm does, here up to the floor of 1e-6, below which its gradient is 0.
        - Widths are x2 - x1. Early mmdetection added one pixel to them, which shifts every value.
        - Corners in the wrong order (x2 < x1) or a negative size are read as size 0 at the middle
          of the two; no box is turned around. torchvision checks the order and raises.
        - Rows are pairs. There is no matrix of every prediction with every target.
        - The same word for masks is `jaccard`, which sums over pixels.

    Example:
        >>> import torch
        >>> box = torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float64)
        >>> iou_box(box, box + 1.0)  # IoU is 1/7
        tensor([0.8571], dtype=torch.float64)
        >>> iou_box(box, box + 1.0, form="log")
        tensor([1.9459], dtype=torch.float64)

    References:
        Yu et al., "UnitBox: An Advanced Object Detection Network", 2016,
        https://arxiv.org/abs/1608.01471
    """
    pair = _pair(prediction, target, format)
    if form == "linear":
        return pair.miss
    if form == "squared":
        return pair.miss * (2.0 - pair.miss)
    # -ln IoU = ln(1 + disagreement / intersection), exact for good boxes and for bad ones.
    floored = pair.intersection <= _SMALLEST_IOU * pair.union
    excess = pair.disagreement / torch.where(floored, 1.0, pair.intersection)
    worst = torch.where(pair.identical, 0.0, torch.full_like(excess, 1.0 / _SMALLEST_IOU - 1.0))
    return torch.where(floored, worst, excess).log1p()


@row_loss("box", family="box")
def giou(
    prediction: Tensor,
    target: Tensor,
    *,
    format: BoxFormat = "xyxy",  # noqa: A002 (the name on the wire)
) -> Tensor:
    r"""One minus the generalised IoU, which also charges for the empty space between two boxes.

    Formula:
        1 - \mathrm{IoU} + \frac{|H| - |A \cup B|}{|H|}, \quad H \text{ the smallest box around }
        A \text{ and } B

    Use:
        In place of `iou_box` wherever boxes may be disjoint: the hull shrinks as they approach, so
        there is a gradient that points home. It tends to widen a box until it touches its target
        before it moves; `diou` moves the center at once and usually gets there sooner.

    Args:
        prediction: boxes, `[B, 4]`.
        target: their targets, `[B, 4]`.
        format: `xyxy` two corners, `xywh` the low corner and the size, `cxcywh` the center and the
            size; for both boxes.

    Returns:
        `[B]`, in [0, 2); 0 for identical boxes, 1 - IoU for nested ones. Exactly 2 only if neither
        box has an area and the hull has.

    Traps:
        - Identical boxes of zero width or height cost 0. torchvision answers 1 for them
          (its issue 7746), since an empty union gives IoU 0 there.
        - A hull without area, as of two points one above the other, adds nothing.
        - Of a nested box it says no more than IoU: where inside its target a box lies is free.
        - Corners in the wrong order are read as size 0 at the middle of the two.
        - The value may be above 1, unlike that of `iou_box`: a mean of both losses is dominated by
          boxes that are far off.

    Example:
        >>> import torch
        >>> box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
        >>> apart = torch.tensor([[2.0, 0.0, 3.0, 1.0]], dtype=torch.float64)
        >>> giou(box, apart)
        tensor([1.3333], dtype=torch.float64)

    References:
        Rezatofighi et al., "Generalized Intersection over Union: A Metric and A Loss for Bounding
        Box Regression", 2019, https://arxiv.org/abs/1902.09630
    """
    pair = _pair(prediction, target, format)
    hull = _area(pair.hull)
    return pair.miss + ratio(hull - pair.union, hull)


@row_loss("box", family="box")
def diou(
    prediction: Tensor,
    target: Tensor,
    *,
    format: BoxFormat = "xyxy",  # noqa: A002 (the name on the wire)
) -> Tensor:
    r"""One minus IoU plus the distance of the centers, measured by the diagonal around both boxes.

    Formula:
        1 - \mathrm{IoU} + \frac{\rho^2(a, b)}{c^2}, \quad
        \rho \text{ the distance of the centers}, \quad c \text{ the diagonal of the hull}

    Use:
        The plain choice for training boxes: it pulls centers together whether the boxes overlap,
        touch, lie inside each other or far apart. For a report `iou_box` is easier to read. Where
        the shape matters beyond its overlap see `ciou` and `eiou`.

    Args:
        prediction: boxes, `[B, 4]`.
        target: their targets, `[B, 4]`.
        format: `xyxy` two corners, `xywh` the low corner and the size, `cxcywh` the center and the
            size; for both boxes.

    Returns:
        `[B]`, in [0, 2); 0 for identical boxes, 1 - IoU for boxes with one center. Exactly 2 only
        for two different points.

    Traps:
        - The distance is relative to the hull, so that it does not depend on the scale and stays
          below 1 for boxes that have a size.
        - The hull is differentiated too. Where a box far away grows, the quotient falls, which is a
          gradient for its size that has nothing to do with its fit.
        - Two identical points have neither union nor diagonal; they cost 0 here.
        - Corners in the wrong order are read as size 0 at the middle of the two, so that the
          distance of the centers still moves them, both corners alike.

    Example:
        >>> import torch
        >>> box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
        >>> apart = torch.tensor([[2.0, 0.0, 3.0, 1.0]], dtype=torch.float64)
        >>> diou(box, apart)  # centers 2 apart, diagonal squared 10
        tensor([1.4000], dtype=torch.float64)

    References:
        Zheng et al., "Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression",
        2019, https://arxiv.org/abs/1911.08287
    """
    pair = _pair(prediction, target, format)
    return pair.miss + pair.center_distance


@row_loss("box", family="box")
def ciou(
    prediction: Tensor,
    target: Tensor,
    *,
    alpha_gate: bool = False,
    format: BoxFormat = "xyxy",  # noqa: A002 (the name on the wire)
) -> Tensor:
    r"""`diou` plus a price for the wrong ratio of width to height, its weight not differentiated.

    Formula:
        1 - \mathrm{IoU} + \frac{\rho^2}{c^2} + \alpha v, \quad
        v = \frac{4}{\pi^2} \left(\arctan\frac{w_B}{h_B} - \arctan\frac{w_A}{h_A}\right)^2, \quad
        \alpha = \frac{v}{1 - \mathrm{IoU} + v}

    Use:
        What YOLO detectors train boxes with: overlap first, then the center, then the proportions.
        Take it to reproduce them. To compare sides rather than their ratio, use `eiou`; if you
        cannot say what the ratio is for, use `diou`.

    Args:
        prediction: boxes A, `[B, 4]`.
        target: their targets B, `[B, 4]`.
        alpha_gate: true sets alpha to 0 unless IoU is above 0.5, as the authors' later paper does;
            false never does, as torchvision and YOLOv5.
        format: `xyxy` two corners, `xywh` the low corner and the size, `cxcywh` the center and the
            size; for both boxes.

    Returns:
        `[B]`, in [0, 2.5]; 0 for identical boxes, the value of `diou` where the proportions agree.

    Traps:
        - Alpha is a constant for the gradient. Early mmdetection differentiated it (fixed in its
          pull request 5835): the same values, other gradients. So the gradient is not that of the
          value as a finite difference shows it, on purpose.
        - A box of zero height has a ratio all the same, an angle of pi/2. torchvision divides by
          the height and its gradient is NaN there. A point's angle counts as 0.
        - Proportions say nothing of size: of two boxes with one center and one ratio v is 0,
          however different they are.
        - The gradient of v with respect to the width is large for small boxes. The authors' code
          leaves a factor 1 / (w² + h²) out of it; here it is the true derivative.
        - With the gate the value jumps at IoU 0.5, where alpha does.

    Example:
        >>> import torch
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 2.0]], dtype=torch.float64)
        >>> half = torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float64)
        >>> ciou(box, half)
        tensor([0.5532], dtype=torch.float64)
        >>> ciou(box, half, alpha_gate=True)  # IoU is 0.5, not above
        tensor([0.5500], dtype=torch.float64)

    References:
        Zheng et al., "Enhancing Geometric Factors in Model Learning and Inference for Object
        Detection and Instance Segmentation", 2020, https://arxiv.org/abs/2005.03572
    """
    pair = _pair(prediction, target, format)
    difference = pair.target.angle - pair.prediction.angle
    proportion = 4.0 / math.pi**2 * difference.square()
    alpha = ratio(proportion, pair.miss + proportion).detach()
    if alpha_gate:
        alpha = torch.where(pair.miss < _HALF, alpha, 0.0)
    return pair.miss + pair.center_distance + alpha * proportion


@row_loss("box", family="box")
def eiou(
    prediction: Tensor,
    target: Tensor,
    *,
    format: BoxFormat = "xyxy",  # noqa: A002 (the name on the wire)
) -> Tensor:
    r"""`diou` plus the squared errors of width and height, measured by the hull's sides.

    Formula:
        1 - \mathrm{IoU} + \frac{\rho^2}{c^2} + \frac{(w_A - w_B)^2}{w_H^2}
        + \frac{(h_A - h_B)^2}{h_H^2}

    Use:
        Where the sides themselves have to be right, not only their ratio as in `ciou`: width and
        height have a gradient of their own, also where boxes are far apart. It charges an error in
        size twice, in IoU and in the sides, so that on noisy boxes `diou` is calmer.

    Args:
        prediction: boxes A, `[B, 4]`.
        target: their targets B, `[B, 4]`.
        format: `xyxy` two corners, `xywh` the low corner and the size, `cxcywh` the center and the
            size; for both boxes.

    Returns:
        `[B]`, in [0, 4]; 0 for identical boxes. The hull's width is w_H, its height h_H.

    Traps:
        - This is the "efficient" IoU loss. mmdetection's `eiou_loss` is another one of that name,
          the extended IoU with a smooth point.
        - The paper's focal factor IoU^0.5 is not part of it.
        - A hull of width 0 means that neither box has a width: the term is 0 there, and its
          gradient.
        - Identical boxes without area cost 0; two different ones pay for IoU in full.
        - The squares are of relative errors, at most 1 each, so that scale does not matter.

    Example:
        >>> import torch
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 2.0]], dtype=torch.float64)
        >>> half = torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float64)
        >>> eiou(box, half)
        tensor([0.8000], dtype=torch.float64)

    References:
        Zhang et al., "Focal and Efficient IOU Loss for Accurate Bounding Box Regression", 2021,
        https://arxiv.org/abs/2101.08158
    """
    pair = _pair(prediction, target, format)
    errors = ratio((pair.prediction.size - pair.target.size).square(), pair.hull.square())
    return pair.miss + pair.center_distance + errors[:, 0] + errors[:, 1]
