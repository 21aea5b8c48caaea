"""How a loss is declared: one function, whose signature and docstring are all there is to say.

The function's name is the wire name, its keyword-only parameters are the options (their
annotations the validation, their defaults the defaults), its docstring holds the formula and the
source. A decorator says of which kind it is:

- `@region_loss`: sums per class `[B, C]` -> loss per class `[B, C]`. Which classes count and how
  they are averaged is common to all of them (`RegionOptions`).
- `@pooled_loss`: the same sums and the classes' weights -> one loss `[B]`.
- `@pixel_loss`: sums per label `[B, G, L]` -> terms per label, linear in the sums. Class weights
  and the normaliser are common to all of them (`PixelOptions`).
- `@compound_loss`: a combination of losses that exist already.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from torch import Tensor

from lossd.losses.sums import RegionSums, Sums, Task, class_sum, ratio
from lossd_client.errors import FieldError, InvalidParameterError, UnknownLossError

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ClassId = Annotated[int, Field(ge=0)]

Problem = tuple[str, str]
"""A parameter and what is wrong with it."""

_SHOWN_CHARACTERS = 40
"""How much of a wrong value an error repeats."""

ALL_TASKS: tuple[Task, ...] = ("binary", "multiclass", "multilabel")
SIGMOID_TASKS: tuple[Task, ...] = ("binary", "multilabel")


class Options(BaseModel):
    """Parameters of a loss; unknown names are refused, booleans are not numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def problems(self, task: Task, channels: int) -> Iterator[Problem]:
        """What is wrong with the options for a task and a number of channels."""
        del task
        weights = getattr(self, "class_weights", None)
        if weights is not None and len(weights) != channels:
            message = f"needs one weight per channel, {channels}, got {len(weights)}"
            yield "class_weights", message


class ClassOptions(Options):
    """Options of every loss over the regions of classes."""

    classes: Literal["present", "all"] | list[ClassId] | None = Field(
        None,
        description="Classes that count: those present in the sample's target, all, or a list of "
        "ids. Null: present for multiclass (all where none is present), all for binary and "
        "multilabel.",
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
        if not self.include_background and channels == 1:
            yield "include_background", "binary has one channel and no background to drop"


class RegionOptions(ClassOptions):
    """Options of a loss that is averaged over classes."""

    average: Literal["macro", "micro"] = Field(
        "macro", description="Average the classes' losses, or sum their statistics first."
    )

    def problems(self, task: Task, channels: int) -> Iterator[Problem]:
        """What is wrong with the options for a task and a number of channels."""
        yield from super().problems(task, channels)
        if self.class_weights is not None and self.average == "micro":
            yield "class_weights", "weighs a macro average; average is micro"


class PixelOptions(Options):
    """Options of every loss over pixels."""

    class_weights: list[NonNegative] | None = Field(
        None, description="One weight per channel, applied to the pixels of that class."
    )
    normalize: Literal["pixels", "weights"] = Field(
        "pixels", description="Divide by the valid pixels, or by the sum of the weights applied."
    )


Check = Callable[[Any, Task, int], Iterator[Problem]]


@dataclass(frozen=True)
class Values:
    """What a loss says of B samples."""

    value: Tensor
    """`[B]`, float64."""
    per_class: Tensor | None = None
    """`[B, C]`, NaN where a class does not count."""
    pixel_terms: Tensor | None = None
    """`[B]`, the value before its normaliser, for losses that have a per-pixel map."""


@dataclass(frozen=True)
class Loss(ABC):
    """A loss of the catalogue."""

    name: str
    function: Callable[..., Tensor]
    parameters: type[Options]
    family: str
    aliases: tuple[str, ...]
    tasks: tuple[Task, ...]
    focusing: str | None
    """Parameter that is the exponent of the kernels' focal sum, if the loss reads that sum."""
    check: Check | None
    """Problems of the loss's own parameters that their types cannot tell."""
    kind: ClassVar[str] = "pixel"
    returns: ClassVar[tuple[str, ...]] = ("value", "gradient")

    @abstractmethod
    def values(self, sums: Sums, options: Any) -> Values:
        """The loss of each sample."""

    def own_parameters(self, options: Options) -> dict[str, Any]:
        """The parameters that the function itself takes."""
        return {name: getattr(options, name) for name in _keywords(self.function)}

    def exponent(self, options: Options) -> float | None:
        """Focusing exponent with which the focal sum has to be made."""
        return None if self.focusing is None else float(getattr(options, self.focusing))

    def read_options(
        self, given: Mapping[str, Any], *, task: Task, channels: int, loc: Sequence[str | int]
    ) -> Options:
        """Parameters of a request, validated against the signature and the inputs.

        Raises:
            InvalidParameterError: a parameter is unknown, of the wrong type or out of range, or
                the loss does not take this task.
        """
        if task not in self.tasks:
            msg = f"{self.name} takes task {' or '.join(self.tasks)}, not {task}"
            raise InvalidParameterError(msg, errors=[FieldError((*loc, "name"), msg)])
        try:
            options = self.parameters.model_validate(dict(given))
        except ValidationError as error:
            raise _parameter_error(self, error, loc) from error
        problems = options.problems(task, channels)
        if self.check is not None:
            problems = itertools.chain(problems, self.check(options, task, channels))
        for name, message in problems:
            detail = f"{self.name}.{name}: {message}"
            raise InvalidParameterError(
                detail, errors=[FieldError((*loc, "params", name), message)]
            )
        return options


@dataclass(frozen=True)
class RegionLoss(Loss):
    """A function of the sums over regions, averaged over classes."""

    returns: ClassVar[tuple[str, ...]] = ("value", "gradient", "per_class", "statistics")

    def values(self, sums: Sums, options: Any) -> Values:
        """Macro: mean of the classes' losses. Micro: loss of the classes' summed statistics."""
        region = sums.region
        counted = counted_classes(region, sums.task, options)
        own = self.own_parameters(options)
        per_class = self.function(region, **own)
        if options.average == "micro":
            value = self.function(region.over_classes(counted), **own)[:, 0]
        else:
            weights = _average_weights(counted, options)
            value = ratio(
                class_sum(weights * torch.where(counted, per_class, 0.0)), class_sum(weights)
            )[:, 0]
        empty = region.pixels[:, 0] == 0
        return Values(
            value=torch.where(empty, 0.0, value),
            per_class=torch.where(counted, per_class, torch.nan),
        )


@dataclass(frozen=True)
class PooledLoss(Loss):
    """A function of the sums of all classes at once, with a weight for each of them."""

    returns: ClassVar[tuple[str, ...]] = ("value", "gradient", "statistics")

    def values(self, sums: Sums, options: Any) -> Values:
        """The function of the sums and of the classes' weights, 0 where one does not count."""
        weights = _average_weights(counted_classes(sums.region, sums.task, options), options)
        value = self.function(sums.region, weights, **self.own_parameters(options))
        return Values(value=torch.where(sums.region.pixels[:, 0] == 0, 0.0, value))


@dataclass(frozen=True)
class PixelLoss(Loss):
    """A sum of terms of single pixels, divided by their number or their weight."""

    returns: ClassVar[tuple[str, ...]] = ("value", "gradient", "maps", "statistics")
    label_weights: Callable[..., Tensor] | None = None
    """Weights `[B, G, L]` that the loss gives its labels where the request names none."""

    def values(self, sums: Sums, options: Any) -> Values:
        """Mean over a sample's valid pixels, and over channels for binary and multilabel."""
        terms = self.function(sums.pixel, **self.own_parameters(options))
        weights = _label_weights(terms, sums.task, options.class_weights)
        if options.class_weights is None and self.label_weights is not None:
            weights = self.label_weights(sums.pixel, **self.own_parameters(options))
        total = class_sum((weights * terms).flatten(1))[:, 0] / terms.shape[1]
        normalizer = sums.pixels
        if options.normalize == "weights":
            applied = (weights * sums.pixel.weight).flatten(1)
            normalizer = class_sum(applied)[:, 0] / terms.shape[1]
        return Values(value=ratio(total, normalizer), pixel_terms=total)


class Parts(Protocol):
    """Value `[B]` of a loss that exists already, with given parameters, on the same samples."""

    def __call__(self, loss: str, **parameters: Any) -> Tensor:
        """Value `[B]`."""


@dataclass(frozen=True)
class CompoundLoss(Loss):
    """A combination of other losses."""

    returns: ClassVar[tuple[str, ...]] = ("value", "gradient", "statistics")

    def values(self, sums: Sums, options: Any) -> Values:
        """What the function makes of its parts."""

        def part(loss: str, **parameters: Any) -> Tensor:
            other = LOSSES[loss]
            return other.values(sums, other.parameters.model_validate(parameters)).value

        given = {name: getattr(options, name) for name in type(options).model_fields}
        return Values(value=self.function(part, **given))


LOSSES: dict[str, Loss] = {}
"""Every loss by its wire name."""

ALIASES: dict[str, str] = {}
"""Wire name by alias."""


def find_loss(name: str) -> Loss:
    """Loss of a name or an alias.

    Raises:
        UnknownLossError: there is none; the message offers the nearest names.
    """
    loss = LOSSES.get(ALIASES.get(name, name))
    if loss is None:
        near = difflib.get_close_matches(name, [*LOSSES, *ALIASES], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; GET /v1/losses lists them"
        msg = f"there is no loss {name!r}{hint}"
        raise UnknownLossError(msg, errors=[FieldError(("losses",), msg)])
    return loss


Function = Callable[..., Tensor]


def region_loss(
    *, aliases: tuple[str, ...] = (), tasks: tuple[Task, ...] = ALL_TASKS
) -> Callable[[Function], Function]:
    """Declares `function(sums: RegionSums, *, …) -> [B, C]`."""
    return _register(RegionLoss, RegionOptions, family="region", aliases=aliases, tasks=tasks)


def pooled_loss(
    *, aliases: tuple[str, ...] = (), tasks: tuple[Task, ...] = ALL_TASKS
) -> Callable[[Function], Function]:
    """Declares `function(sums: RegionSums, weights [B, C], *, …) -> [B]`."""
    return _register(PooledLoss, ClassOptions, family="region", aliases=aliases, tasks=tasks)


def pixel_loss(
    *,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = ALL_TASKS,
    focusing: str | None = None,
    check: Check | None = None,
    label_weights: Callable[..., Tensor] | None = None,
) -> Callable[[Function], Function]:
    """Declares `function(sums: PixelSums, *, …) -> [B, G, L]`, linear in the sums."""
    return _register(
        PixelLoss,
        PixelOptions,
        family="distribution",
        aliases=aliases,
        tasks=tasks,
        focusing=focusing,
        check=check,
        label_weights=label_weights,
    )


def compound_loss(
    *, aliases: tuple[str, ...] = (), tasks: tuple[Task, ...] = ALL_TASKS
) -> Callable[[Function], Function]:
    """Declares `function(part: Parts, *, …) -> [B]`."""
    return _register(CompoundLoss, RegionOptions, family="compound", aliases=aliases, tasks=tasks)


def counted_classes(region: RegionSums, task: Task, options: ClassOptions) -> Tensor:
    """Which classes enter the average of each sample, `[B, C]` bool."""
    channels = region.target.shape[1]
    allowed = torch.ones(channels, dtype=torch.bool)
    if not options.include_background:
        allowed[0] = False
    chosen = options.classes or ("present" if task == "multiclass" else "all")
    if isinstance(chosen, list):
        listed = torch.zeros(channels, dtype=torch.bool)
        listed[chosen] = True
        return (allowed & listed).expand_as(region.target)
    if chosen == "all":
        return allowed.expand_as(region.target)
    present = allowed & (region.target.detach() > 0)
    return torch.where(present.any(-1, keepdim=True), present, allowed)


def _register(
    cls: type[Loss],
    options: type[Options],
    *,
    family: str,
    aliases: tuple[str, ...],
    tasks: tuple[Task, ...],
    focusing: str | None = None,
    check: Check | None = None,
    **more: Any,
) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        name = function.__name__
        LOSSES[name] = cls(
            name=name,
            function=function,
            parameters=_options_model(name, function, options),
            family=family,
            aliases=aliases,
            tasks=tasks,
            focusing=focusing,
            check=check,
            **more,
        )
        ALIASES.update(dict.fromkeys(aliases, name))
        return function

    return register


@functools.cache
def _keywords(function: Function) -> tuple[str, ...]:
    return tuple(
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    )


def _options_model(name: str, function: Function, base: type[Options]) -> type[Options]:
    signature = inspect.signature(function, eval_str=True)
    told = docstring_arguments(function)
    own: dict[str, Any] = {
        key: (
            Annotated[signature.parameters[key].annotation, Field(description=told.get(key))],
            signature.parameters[key].default,
        )
        for key in _keywords(function)
        if key not in base.model_fields
    }
    return create_model(f"{name}_options", __base__=base, **own)


def docstring_section(function: Function, title: str) -> str:
    """Text of one section of a docstring, dedented; empty if there is none."""
    text = inspect.cleandoc(function.__doc__ or "")
    found = re.search(rf"^{title}:\n((?:[ ]{{4}}.*\n?|\n)+)", text, re.MULTILINE)
    return inspect.cleandoc(found.group(1)).strip() if found else ""


def docstring_arguments(function: Function) -> dict[str, str]:
    """Description of each argument in the docstring's `Args`."""
    entries: dict[str, str] = {}
    name = ""
    for line in docstring_section(function, "Args").splitlines():
        head = re.match(r"(\w+): (.*)", line)
        if head and not line.startswith(" "):
            name = head.group(1)
            entries[name] = head.group(2)
        elif name:
            entries[name] += " " + line.strip()
    return entries


def _parameter_error(
    loss: Loss, error: ValidationError, loc: Sequence[str | int]
) -> InvalidParameterError:
    known = ", ".join(loss.parameters.model_fields)
    messages: dict[tuple[str | int, ...], list[str]] = {}
    for entry in error.errors(include_url=False, include_context=False):
        name, *inside = entry["loc"]
        # A union reports each of its members under the member's name; only indices are places.
        place = (name, *(step for step in inside if isinstance(step, int)))
        message = entry["msg"]
        if entry["type"] == "extra_forbidden":
            message = f"{loss.name} has no such parameter; it takes {known}"
        elif not isinstance(entry["input"], (list, dict)):
            message += f", got {repr(entry['input'])[:_SHOWN_CHARACTERS]}"
        messages.setdefault(place, []).append(message)
    errors = [
        FieldError((*loc, "params", *place), "; or: ".join(texts))
        for place, texts in messages.items()
    ]
    # The longest place is the most precise one.
    first = max(errors, key=lambda entry: len(entry.loc))
    field = ".".join(str(step) for step in first.loc[len(loc) + 1 :])
    return InvalidParameterError(f"{loss.name}.{field}: {first.message}", errors=errors)


def _average_weights(counted: Tensor, options: ClassOptions) -> Tensor:
    """Weights of the classes, `[B, C]` float64, 0 where one does not count."""
    weights = torch.ones(counted.shape[1], dtype=torch.float64)
    if options.class_weights is not None:
        weights = weights.new_tensor(options.class_weights)
    return torch.where(counted, weights, 0.0)


def _label_weights(terms: Tensor, task: Task, class_weights: list[float] | None) -> Tensor:
    """Class weights in the shape of the terms: `[1, L]` per label or `[G, 1]` per channel."""
    if class_weights is None:
        return terms.new_ones(1, 1)
    weights = terms.new_tensor(class_weights)
    return weights[None, :] if task == "multiclass" else weights[:, None]
