"""The parameters that losses share, and how a parameter is said to be wrong.

Every model here is a base of the parameters of many losses; a loss's own parameters are added to
it from the signature of its function, see `declare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from lossd.losses.sums import Task

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ClassId = Annotated[int, Field(ge=0)]

Problem = tuple[str, str]
"""A parameter and what is wrong with it."""

Check = Callable[[Any, Task, int], Iterator[Problem]]
"""Finds problems of options, given the task and the number of channels."""


class Options(BaseModel):
    """Parameters of a loss; unknown names are refused, booleans are not numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @cached_property
    def text(self) -> str:
        """Equal for equal options."""
        return self.model_dump_json()

    def of_task(self, task: Task) -> Self:
        """The same with the defaults that depend on the task filled in."""
        del task
        return self

    def problems(self, task: Task, channels: int) -> Iterator[Problem]:
        """What is wrong with the options for a task and a number of channels."""
        del task
        weights = getattr(self, "class_weights", None)
        if weights is not None and len(weights) != channels:
            message = f"needs one weight per channel, {channels}, got {len(weights)}"
            yield "class_weights", message


class ClassOptions(Options):
    """Options of every loss that is averaged over classes."""

    classes: Literal["present", "all", "present_of_all"] | list[ClassId] | None = Field(
        None,
        description="Classes that count: those present in the sample's target, all, or a list of "
        "ids. Null: present for multiclass (all where none is present), all for binary and "
        "multilabel. present_of_all: absent classes cost 0 but count in the mean.",
    )
    include_background: bool = Field(
        default=True, description="False drops class 0 after the activation."
    )
    class_weights: list[NonNegative] | None = Field(
        None,
        description="One weight per channel for the average over classes, renormalised over the "
        "classes that count.",
    )

    def problems(self, task: Task, channels: int) -> Iterator[Problem]:
        """What is wrong with the options for a task and a number of channels."""
        yield from super().problems(task, channels)
        if isinstance(self.classes, list) and (not self.classes or max(self.classes) >= channels):
            yield "classes", f"ids must lie in 0 … {channels - 1}, got {self.classes}"
        if (
            isinstance(self.classes, list)
            and not self.include_background
            and set(self.classes) <= {0}
        ):
            yield "classes", "holds nothing but class 0, which include_background drops"
        if not self.include_background and channels == 1:
            yield "include_background", "binary has one channel and no background to drop"


class AllClassesOptions(ClassOptions):
    """Options of a loss over classes in which absent classes count as well."""

    classes: Literal["present", "all", "present_of_all"] | list[ClassId] | None = Field(
        "all",
        description="Classes that count: all, those present in the sample's target, or a list of "
        "ids. present_of_all: absent classes cost 0 but count in the mean.",
    )


class OverlapOptions(ClassOptions):
    """Options of a loss of the overlap of prediction and target."""

    soft_label: bool = Field(
        default=False,
        description="True: the intersection is the sum of min(p, y) instead of p·y, so that a soft "
        "target is matched best by itself.",
    )


class RegionOptions(OverlapOptions):
    """Options of a loss of region sums that is averaged over classes."""

    average: Literal["macro", "micro"] = Field(
        "macro", description="Average the classes' losses, or sum their statistics first."
    )

    def problems(self, task: Task, channels: int) -> Iterator[Problem]:
        """What is wrong with the options for a task and a number of channels."""
        yield from super().problems(task, channels)
        if self.class_weights is not None and self.average == "micro":
            yield "class_weights", "weighs a macro average; average is micro"
        if self.classes == "present_of_all" and self.average == "micro":
            yield "classes", "present_of_all is a macro average; average is micro"


class WeightOptions(Options):
    """Options of a loss whose pixels may weigh differently by class."""

    class_weights: list[NonNegative] | None = Field(
        None, description="One weight per channel, applied to the pixels of that class."
    )


class PixelOptions(WeightOptions):
    """Options of every mean over pixels."""

    normalize: Literal["pixels", "weights"] = Field(
        "pixels", description="Divide by the valid pixels, or by the sum of the weights applied."
    )
