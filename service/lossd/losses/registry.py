"""All losses by name, and how a function becomes an entry."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import orjson
from pydantic import Field, ValidationError, create_model
from torch import Tensor

from lossd.losses.docstring import docstring_arguments
from lossd.losses.kinds import Kind
from lossd.losses.options import Check, Options
from lossd.losses.sums import Task
from lossd.repeated import text_of
from lossd_client.errors import FieldError, InvalidParameterError, UnknownLossError

Function = Callable[..., Tensor]

_SHOWN_CHARACTERS = 40
"""How much of a wrong value an error repeats."""


_MOST_KEPT_OPTIONS = 1024
_KEPT_OPTIONS: dict[tuple[str, bytes, Task, int], Options] = {}
"""Callers ask for the same again and again: options by loss, JSON text, task and channels."""


@dataclass(frozen=True)
class Loss(ABC):
    """A loss of the catalogue."""

    name: str
    function: Function
    parameters: type[Options]
    family: str
    aliases: tuple[str, ...]
    kind: Kind
    tasks: tuple[Task, ...]
    """Empty for kinds without a task."""
    check: Check | None
    """Problems of the loss's own parameters that their types cannot tell."""
    returns: ClassVar[tuple[str, ...]] = ("value", "gradient")

    def own_parameters(self, options: Options) -> dict[str, Any]:
        """The parameters that the function itself takes."""
        return {name: getattr(options, name) for name in keywords(self.function)}

    def read_options(
        self, given: Mapping[str, Any], *, task: Task, channels: int, loc: Sequence[str | int]
    ) -> Options:
        """Parameters of a request, validated against the signature and the inputs.

        Args:
            given: parameters by name.
            task: of the request; looked at by kinds that have tasks.
            channels: of the logits; 0 for kinds without.
            loc: where the loss stands in the request.

        Raises:
            InvalidParameterError: a parameter is unknown, of the wrong type or out of range, or
                the loss does not take this task.
        """
        text = text_of(given)
        if text is None:
            return self._read_options(given, task, channels, loc)
        key = self.name, text, task, channels
        options = _KEPT_OPTIONS.get(key)
        if options is None:
            options = self._read_options(orjson.loads(text), task, channels, loc)
            if len(_KEPT_OPTIONS) >= _MOST_KEPT_OPTIONS:
                _KEPT_OPTIONS.clear()
            _KEPT_OPTIONS[key] = options
        return options

    def _read_options(
        self, given: Mapping[str, Any], task: Task, channels: int, loc: Sequence[str | int]
    ) -> Options:
        if self.tasks and task not in self.tasks:
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


def register(
    cls: type[Loss],
    options: type[Options],
    *,
    family: str,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = (),
    kind: Kind = "pixel",
    check: Check | None = None,
    **more: Any,
) -> Callable[[Function], Function]:
    """Decorator that files a function as a loss of a class, under the function's name.

    Args:
        cls: how the function is called.
        options: parameters that losses of this class share; the function's keyword-only
            parameters are added to them.
        family: heading under which the catalogue lists it.
        aliases: other names.
        tasks: tasks it takes; empty for kinds without.
        kind: what inputs it takes.
        check: finds problems of its own parameters.
        more: further fields of `cls`.
    """

    def file(function: Function) -> Function:
        name = function.__name__
        LOSSES[name] = cls(
            name=name,
            function=function,
            parameters=_options_model(name, function, options),
            family=family,
            aliases=aliases,
            kind=kind,
            tasks=tasks,
            check=check,
            **more,
        )
        ALIASES.update(dict.fromkeys(aliases, name))
        return function

    return file


@functools.cache
def keywords(function: Function) -> tuple[str, ...]:
    """Names of a function's keyword-only parameters."""
    return _named(function, inspect.Parameter.KEYWORD_ONLY)


@functools.cache
def input_names(function: Function) -> tuple[str, ...]:
    """Names of a function's positional parameters."""
    return _named(function, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _named(function: Function, kind: Any) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.items()
    return tuple(name for name, parameter in parameters if parameter.kind is kind)


def _options_model(name: str, function: Function, base: type[Options]) -> type[Options]:
    signature = inspect.signature(function, eval_str=True)
    told = docstring_arguments(function)
    own: dict[str, Any] = {
        key: (
            Annotated[signature.parameters[key].annotation, Field(description=told.get(key))],
            signature.parameters[key].default,
        )
        for key in keywords(function)
        if key not in base.model_fields
    }
    return create_model(f"{name}_options", __base__=base, **own)


def _parameter_error(
    loss: Loss, error: ValidationError, loc: Sequence[str | int]
) -> InvalidParameterError:
    known = ", ".join(loss.parameters.model_fields) or "none"
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
