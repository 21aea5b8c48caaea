"""The kinds of inputs that losses take: names, shapes, dtypes and ranges, in one place.

The pixel kind has rules of its own (tasks, masks, several target layouts), which
`protocols.admission` holds; the others are tables with the sample axis first and are described
here completely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lossd_client.qa_wire import EVIDENCE, PREDICTION, SUB_SCORES_TENSOR, TARGET

Kind = Literal["pixel", "box", "value", "triplet", "pair", "center", "instance", "scores", "linear"]

Values = Literal["real", "ids", "label", "zero_or_one", "unit", "bin"]
"""What an input holds: finite numbers; integers of at least 0; integers in [0, C - 1]; 0 or 1;
numbers in [0, 1]; numbers in [0, C - 1]."""


@dataclass(frozen=True)
class Input:
    """One input of a kind.

    `axes` are the names of its axes: equal letters have equal sizes in all inputs of an object,
    `B` is the sample axis, a digit is a size, `*S` one to three further axes, `…` any number of
    further axes, none included. An input without `B` belongs to all samples of its object.
    """

    name: str
    axes: str
    values: Values = "real"
    differentiable: bool = False


_REAL_PAIR = (
    Input("first", "B D", differentiable=True),
    Input("second", "B D", differentiable=True),
)

KINDS: dict[Kind, tuple[Input, ...]] = {
    "pixel": (),
    "box": (Input("prediction", "B 4", differentiable=True), Input("target", "B 4")),
    "value": (Input("prediction", "B …", differentiable=True), Input("target", "B …")),
    "triplet": (
        Input("anchor", "B D", differentiable=True),
        Input("positive", "B D", differentiable=True),
        Input("negative", "B D", differentiable=True),
    ),
    "pair": (*_REAL_PAIR, Input("similar", "B", "zero_or_one")),
    "center": (
        Input("embeddings", "B D", differentiable=True),
        Input("target", "B", "label"),
        Input("centers", "C D", differentiable=True),
    ),
    "instance": (
        Input("embeddings", "B D *S", differentiable=True),
        Input("target", "B *S", "ids"),
    ),
    "scores": (Input("logits", "B C", differentiable=True), Input("target", "B", "label")),
    "linear": (
        Input("features", "B D", differentiable=True),
        Input("weights", "D C", differentiable=True),
        Input("target", "B", "label"),
    ),
}
"""Inputs of every kind but `pixel`. A loss may take another target, see `row_loss`."""

ACTIVATION_INPUTS = ("logits", "probabilities")
"""Inputs that are floats and, for pixels, have a channel axis."""

PIXEL_INPUTS = (*ACTIVATION_INPUTS, "target", "mask", "weight_map")
"""Inputs of the pixel kind."""

QA_INPUTS = (PREDICTION, TARGET, *EVIDENCE, SUB_SCORES_TENSOR)
"""Inputs of annotation QA, which is no loss."""

INPUT_NAMES = frozenset((*PIXEL_INPUTS, *QA_INPUTS)).union(
    one.name for inputs in KINDS.values() for one in inputs
)
"""Names of the inputs of every kind."""

SHARED_INPUTS = tuple(
    one.name for inputs in KINDS.values() for one in inputs if "B" not in one.axes.split()
)
"""Inputs that belong to all samples of their object."""
