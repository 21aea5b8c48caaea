"""How a loss is declared: one function, whose signature and docstring are all there is to say.

The function's name is the wire name, its keyword-only parameters are the options (their
annotations the validation, their defaults the defaults), its docstring holds the formula, when to
use it, the traps and the source. A decorator says what the function is given and gives:

tile losses, functions of the sums that the two fused passes make
- `@region_loss`: sums per class -> loss per class `[B, C]`, averaged over classes.
- `@pooled_loss`: all sums and the classes' weights -> one loss `[B]`.
- `@pixel_loss`: sums per label -> terms per label `[B, G, L]`, linear in the sums.
- `@compound_loss`: a combination of losses that exist already.

sample losses, functions of one whole sample
- `@class_loss`: a `MaskClass` -> its loss `[]`, or terms per pixel `[*S]`; differentiated by
  autograd and averaged over classes, which are taken one after the other.
- `@map_loss`: a `MaskSample` -> weights per pixel `[*S]` for the cross entropy of each channel,
  constant for autograd; their products are averaged over pixels.

row losses, functions of tables without pixels
- `@row_loss`: inputs with the sample axis first -> one loss `[B]`, rows independent.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor

from lossd.losses.averages import (
    class_mean,
    class_normalizer,
    class_weights,
    counted_classes,
    present_classes,
)
from lossd.losses.kinds import KINDS, Input, Kind
from lossd.losses.mask_class import MaskClass
from lossd.losses.mask_sample import MaskSample
from lossd.losses.options import (
    Check,
    ClassOptions,
    Options,
    PixelOptions,
    RegionOptions,
    WeightOptions,
)
from lossd.losses.registry import LOSSES, Function, Loss, input_names, register
from lossd.losses.slopes import Weighed
from lossd.losses.sums import ZERO, Sums, Task, class_sum, pixel_sum, ratio

ALL_TASKS: tuple[Task, ...] = ("binary", "multiclass", "multilabel")
SIGMOID_TASKS: tuple[Task, ...] = ("binary", "multilabel")

Vocabulary = Literal["lean", "rich"]
Decorator = Callable[[Function], Function]
MapFunction = Callable[..., Iterator[Tensor]]
MapDecorator = Callable[[MapFunction], MapFunction]


# -- tile losses ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Values:
    """What a tile loss says of B samples."""

    value: Tensor
    """`[B]`, float64."""
    per_class: Tensor | None = None
    """`[B, C]`, NaN where a class does not count."""
    pixel_terms: Tensor | None = None
    """`[B]`, the value before its normaliser, for losses that have a per-pixel map."""
    fell_back: Tensor | None = None
    """`[B]` bool: no class was present, so all of them counted."""
    empty: Tensor | None = None
    """`[B]` bool: there was nothing to divide by."""


@dataclass(frozen=True)
class TileLoss(Loss):
    """A function of sums over the sample's pixels."""

    focusing: str | None = None
    """Parameter that is the exponent of the kernels' focal and powered sums, if it reads those."""
    vocabulary: Vocabulary = "lean"
    """Which sums it reads."""

    @abstractmethod
    def values(self, sums: Sums, options: Any) -> Values:
        """The loss of each sample."""

    def exponent(self, options: Options) -> float | None:
        """Exponent with which the focal and powered sums have to be made."""
        return None if self.focusing is None else float(getattr(options, self.focusing))

    def reads(self, options: Options, *, soft_target: bool) -> Vocabulary:
        """Which sums these options need."""
        if soft_target and getattr(options, "soft_label", False):
            return "rich"
        return self.vocabulary


@dataclass(frozen=True)
class RegionLoss(TileLoss):
    """A function of the sums over regions, averaged over classes."""

    returns: ClassVar[tuple[str, ...]] = ("value", "gradient", "per_class", "statistics")
    overlap: Literal["asked", "product"] = "asked"
    """Whether `soft_label` changes the overlap, or it is the sum of p·y whatever is asked."""

    def values(self, sums: Sums, options: Any) -> Values:
        """Macro: mean of the classes' losses. Micro: loss of the classes' summed statistics."""
        region = sums.region
        if options.soft_label and self.overlap == "asked":
            region = region.semimetric()
        counted, fell_back = counted_classes(region, sums.task, options)
        own = self.own_parameters(options)
        per_class = self.function(region, **own)
        if options.average == "micro":
            pooled = region.over_classes(counted)
            value = self.function(pooled, **own)[:, 0]
            empty = _anywhere(pooled.empty, counted)
        else:
            value = class_mean(per_class, counted, options)
            empty = _anywhere(region.empty, counted)
        nothing = region.pixels[:, 0] == 0
        return Values(
            value=torch.where(nothing, ZERO, value),
            per_class=torch.where(counted, per_class, torch.nan),
            fell_back=fell_back & ~nothing,
            empty=None if empty is None else empty & ~nothing,
        )


@dataclass(frozen=True)
class PooledLoss(TileLoss):
    """A function of all sums at once, with a weight for each class."""

    returns: ClassVar[tuple[str, ...]] = ("value", "gradient", "statistics")

    def values(self, sums: Sums, options: Any) -> Values:
        """The function of the sums and of the classes' weights, 0 where one does not count."""
        if getattr(options, "soft_label", False):
            sums = replace(sums, region=sums.region.semimetric())
        counted, fell_back = counted_classes(sums.region, sums.task, options)
        weights = class_weights(counted, options)
        value = self.function(sums, weights, **self.own_parameters(options))
        nothing = sums.region.pixels[:, 0] == 0
        empty = _anywhere(sums.region.empty, counted)
        return Values(
            value=torch.where(nothing, ZERO, value),
            fell_back=fell_back & ~nothing,
            empty=None if empty is None else empty & ~nothing,
        )


@dataclass(frozen=True)
class PixelLoss(TileLoss):
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
        return Values(
            value=ratio(total, normalizer),
            pixel_terms=total,
            empty=(normalizer == 0) & (sums.pixels > 0),
        )


class Parts(Protocol):
    """Value `[B]` of a loss that exists already, with given parameters, on the same samples."""

    def __call__(self, loss: str, **parameters: Any) -> Tensor:
        """Value `[B]`."""


@dataclass(frozen=True)
class CompoundLoss(TileLoss):
    """A combination of other tile losses."""

    returns: ClassVar[tuple[str, ...]] = ("value", "gradient", "statistics")

    def values(self, sums: Sums, options: Any) -> Values:
        """What the function makes of its parts."""
        parts: list[Values] = []

        def part(loss: str, **parameters: Any) -> Tensor:
            other = LOSSES[loss]
            if not isinstance(other, TileLoss):
                msg = f"{loss} is no function of sums"
                raise TypeError(msg)
            parts.append(other.values(sums, other.parameters.model_validate(parameters)))
            return parts[-1].value

        given = {name: getattr(options, name) for name in type(options).model_fields}
        value = self.function(part, **given)
        return Values(
            value=value,
            fell_back=_either([one.fell_back for one in parts]),
            empty=_either([one.empty for one in parts]),
        )


# -- sample losses -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleValues:
    """What a sample loss says of one sample."""

    value: Tensor
    """`[]`, float64."""
    per_class: Tensor | None = None
    """`[C]`, NaN where a class does not count."""
    pixel_map: Tensor | None = None
    """`[*S]`, terms whose mean over the valid pixels is the value; 0 at removed pixels."""
    fell_back: bool = False
    """No class was present, so all of them counted."""
    empty: bool = False
    """There was nothing to divide by."""


@dataclass(frozen=True)
class SampleLoss(Loss):
    """A function of one whole sample of the pixel kind."""

    @abstractmethod
    def value(
        self, sample: MaskSample, options: Any, slopes: Weighed | None = None
    ) -> SampleValues:
        """The loss of a sample with at least one valid pixel.

        Args:
            sample: of which nothing is differentiated by the caller.
            options: of the loss.
            slopes: receives the derivatives, if they are wanted.
        """


@dataclass(frozen=True)
class ClassLoss(SampleLoss):
    """A function of one class of a sample, averaged over classes."""

    returns: ClassVar[tuple[str, ...]] = ("value", "gradient", "per_class")

    def value(
        self, sample: MaskSample, options: Any, slopes: Weighed | None = None
    ) -> SampleValues:
        """Mean over the classes that count; terms per pixel are averaged over pixels first."""
        options = options.of_task(sample.task)
        counted, fell_back = present_classes(sample.target_sums()[None], sample.task, options)
        weights = class_weights(counted, options)[0]
        shares = ratio(weights, class_normalizer(weights, options))
        per_class = torch.full_like(weights, torch.nan)
        pixel_map = None
        for channel in counted[0].nonzero()[:, 0].tolist():
            sample.checkpoint()
            share = float(shares[channel])
            wanted = slopes is not None and share != 0.0
            one = MaskClass(sample, channel, differentiate=wanted)
            value, terms = self._value(one, options, differentiate=wanted)
            per_class[channel] = value.detach()
            if terms is not None:
                part = terms * share
                pixel_map = part if pixel_map is None else pixel_map.add_(part)
            if slopes is not None and value.requires_grad:
                sample.checkpoint()
                (slope,) = torch.autograd.grad(value, one.leaf)
                slopes.add(channel, slope, share)
        total = (weights * torch.where(counted[0], per_class, 0.0)).sum()
        return SampleValues(
            value=ratio(total, class_normalizer(weights, options)),
            per_class=per_class,
            pixel_map=pixel_map,
            fell_back=bool(fell_back[0]),
        )

    def _value(
        self, one: MaskClass, options: Any, *, differentiate: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Value `[]` of a class and, of a loss that has them, its terms `[*S]`."""
        with torch.set_grad_enabled(differentiate):
            found = self.function(one, **self.own_parameters(options))
            if found.ndim == 0:
                return found, None
            terms = one.within(found)
            return pixel_sum(terms) / one.pixels, terms.detach()


@dataclass(frozen=True)
class MapClassLoss(ClassLoss):
    """A class loss of terms per pixel, so that there is a map."""

    returns: ClassVar[tuple[str, ...]] = ("value", "gradient", "per_class", "maps")


@dataclass(frozen=True)
class MapLoss(SampleLoss):
    """Cross entropy whose pixels weigh differently."""

    returns: ClassVar[tuple[str, ...]] = ("value", "gradient", "maps")

    def value(
        self, sample: MaskSample, options: Any, slopes: Weighed | None = None
    ) -> SampleValues:
        """Mean over valid pixels and channels, or their sum over the weights applied."""
        normalizer = float(sample.pixels)
        if getattr(options, "normalize", "pixels") == "weights":
            normalizer = sample.applied_weight()
        share = 1.0 / normalizer if normalizer else 0.0
        pixel_map = torch.zeros(sample.shape, dtype=torch.float64, device=sample.scores.device)
        for group, weights in enumerate(self.function(sample, **self.own_parameters(options))):
            sample.checkpoint()
            pixel_map += sample.cross_entropy(group) * weights
            if slopes is not None:
                for channel, slope in sample.cross_entropy_slopes(group, weights):
                    slopes.add(channel, slope, share / sample.groups)
        pixel_map /= sample.groups
        return SampleValues(
            value=(pixel_sum(pixel_map) * share).cpu(), pixel_map=pixel_map, empty=normalizer == 0.0
        )


# -- row losses ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowLoss(Loss):
    """A function of tables whose rows are samples."""

    inputs: tuple[Input, ...] = ()

    def value(self, tensors: Mapping[str, Tensor], options: Options) -> Tensor:
        """The loss of each row, `[B]`, float64."""
        positional = [tensors[name] for name in input_names(self.function)]
        return self.function(*positional, **self.own_parameters(options))


# -- decorators ----------------------------------------------------------------------------------


def region_loss(
    *,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = ALL_TASKS,
    overlap: Literal["asked", "product"] = "asked",
) -> Decorator:
    """Declares `function(sums: RegionSums, *, …) -> [B, C]`."""
    return register(
        RegionLoss, RegionOptions, family="region", aliases=aliases, tasks=tasks, overlap=overlap
    )


def pooled_loss(
    *,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = ALL_TASKS,
    options: type[Options] = ClassOptions,
    family: str = "region",
    focusing: str | None = None,
    vocabulary: Vocabulary = "lean",
) -> Decorator:
    """Declares `function(sums: Sums, weights [B, C], *, …) -> [B]`."""
    return register(
        PooledLoss,
        options,
        family=family,
        aliases=aliases,
        tasks=tasks,
        focusing=focusing,
        vocabulary=vocabulary,
    )


def pixel_loss(
    *,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = ALL_TASKS,
    focusing: str | None = None,
    vocabulary: Vocabulary = "lean",
    check: Check | None = None,
    label_weights: Callable[..., Tensor] | None = None,
) -> Decorator:
    """Declares `function(sums: PixelSums, *, …) -> [B, G, L]`, linear in the sums."""
    return register(
        PixelLoss,
        PixelOptions,
        family="distribution",
        aliases=aliases,
        tasks=tasks,
        focusing=focusing,
        vocabulary=vocabulary,
        check=check,
        label_weights=label_weights,
    )


def compound_loss(
    *, aliases: tuple[str, ...] = (), tasks: tuple[Task, ...] = ALL_TASKS
) -> Decorator:
    """Declares `function(part: Parts, *, …) -> [B]`."""
    return register(CompoundLoss, RegionOptions, family="compound", aliases=aliases, tasks=tasks)


def class_loss(
    *,
    family: str,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = ALL_TASKS,
    options: type[Options] = ClassOptions,
    gives: Literal["classes", "pixels"] = "classes",
    check: Check | None = None,
) -> Decorator:
    """Declares `function(one: MaskClass, *, …) -> []`, or `[*S]` if it gives pixels."""
    cls = MapClassLoss if gives == "pixels" else ClassLoss
    return register(cls, options, family=family, aliases=aliases, tasks=tasks, check=check)


def map_loss(
    *,
    family: str,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = ALL_TASKS,
    options: type[Options] = WeightOptions,
    check: Check | None = None,
) -> MapDecorator:
    """Declares `function(sample: MaskSample, *, …)`, which yields weights `[*S]` of G groups."""
    filed = register(MapLoss, options, family=family, aliases=aliases, tasks=tasks, check=check)
    return cast("MapDecorator", filed)


def row_loss(
    kind: Kind,
    *,
    family: str,
    aliases: tuple[str, ...] = (),
    replaced: tuple[Input, ...] = (),
    check: Check | None = None,
) -> Decorator:
    """Declares `function(first input, second input, …, *, …) -> [B]`.

    The positional parameters are named after the inputs of the kind. Tensors arrive in float64,
    targets of ids, labels and 0 or 1 in int64, on the CPU.

    Args:
        kind: which inputs it takes, see `kinds.KINDS`.
        family: heading under which the catalogue lists it.
        aliases: other names.
        replaced: inputs that are other than the kind's own of that name.
        check: finds problems of its parameters.
    """
    own = {one.name: one for one in replaced}
    inputs = tuple(own.get(one.name, one) for one in KINDS[kind])
    return register(
        RowLoss, Options, family=family, aliases=aliases, kind=kind, check=check, inputs=inputs
    )


def _anywhere(found: list[Tensor], counted: Tensor) -> Tensor | None:
    """Samples `[B]` bool in which something was found, of classes only where they count."""
    of_classes = [one & counted if one.shape == counted.shape else one for one in found]
    return _either([one if one.ndim == 1 else one.any(-1) for one in of_classes])


def _either(found: list[Tensor | None]) -> Tensor | None:
    """`[B]` bool: where any of `[B]` bool is true."""
    known = [one for one in found if one is not None]
    return torch.stack(known).any(0) if known else None


def _label_weights(terms: Tensor, task: Task, given: list[float] | None) -> Tensor:
    """Class weights in the shape of the terms: `[1, L]` per label or `[G, 1]` per channel."""
    if given is None:
        return terms.new_ones(1, 1)
    weights = terms.new_tensor(given)
    return weights[None, :] if task == "multiclass" else weights[:, None]
