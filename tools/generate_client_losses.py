"""Writes `client/lossd_client/losses.py` from the service's registry: `make client`."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from lossd.catalogue import summary
from lossd.losses import LOSSES, Loss, Options

TARGET = Path(__file__).resolve().parents[1] / "client" / "lossd_client" / "losses.py"

_ABBREVIATIONS = ("bce", "ce")

_HEAD = '''"""The losses of the service, one frozen dataclass each.

Written by tools/generate_client_losses.py from the service's registry; do not edit.

A loss is a value: `losses.Dice(smooth_nr=0.0)`. Parameters that keep their default are not sent,
so that the service's default holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lossd_client._loss import Loss
'''


def source() -> str:
    """Text of the module, formatted as the rest of the repository."""
    # The linter's order of __all__: names in capitals alone come first.
    names = ["Loss", *(class_name(name) for name in LOSSES)]
    names.sort(key=lambda name: (not name.isupper(), name))
    exports = "\n".join(f'    "{name}",' for name in names)
    classes = [_class(LOSSES[name]) for name in sorted(LOSSES)]
    text = "\n".join([_HEAD, f"__all__ = [\n{exports}\n]\n", *classes])
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run(  # noqa: S603 - our own formatter on our own text
        [ruff, "format", "--stdin-filename", TARGET, "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def class_name(name: str) -> str:
    """Name of the client's class for a loss.

    Example:
        >>> class_name("binary_cross_entropy")
        'BinaryCrossEntropy'
    """
    return "".join(
        word.upper() if word in _ABBREVIATIONS else word.capitalize() for word in name.split("_")
    )


def _class(loss: Loss) -> str:
    fields = loss.parameters.model_fields
    base = loss.parameters.__base__
    common = base.model_fields if base is not None and issubclass(base, Options) else {}
    ordered = sorted(fields, key=lambda name: name in common)
    lines = [
        "",
        "@dataclass(frozen=True, kw_only=True)",
        f"class {class_name(loss.name)}(Loss):",
        *_docstring(loss, ordered),
        "",
        f'    name: ClassVar[str] = "{loss.name}"',
    ]
    for name in ordered:
        field = fields[name]
        lines.append(f"    {name}: {type_text(field.annotation)} = {_literal(field.default)}")
    return "\n".join(lines) + "\n"


def _docstring(loss: Loss, ordered: list[str]) -> list[str]:
    if not ordered:
        return [f'    """{summary(loss)}"""']
    text = [f'    """{summary(loss)}', "", "    Attributes:"]
    for name in ordered:
        told = loss.parameters.model_fields[name].description or ""
        entry = f"{name}: {told[:1].lower()}{told[1:]}"
        text += textwrap.wrap(entry, width=100, initial_indent=" " * 8, subsequent_indent=" " * 12)
    return [*text, '    """']


def type_text(annotation: Any) -> str:
    """Annotation as Python text; lists become sequences, bounds are the service's business.

    Example:
        >>> type_text(list[float] | None)
        'Sequence[float] | None'
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        return type_text(get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(one) for one in get_args(annotation))
    if origin is list:
        return f"Sequence[{type_text(get_args(annotation)[0])}]"
    if origin is Literal:
        values = ", ".join(_literal(value) for value in get_args(annotation))
        return f"Literal[{values}]"
    return "None" if annotation is type(None) else annotation.__name__


def _literal(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def main() -> None:
    """Writes the file."""
    TARGET.write_text(source(), encoding="utf-8")
    print(f"{TARGET}: {len(LOSSES)} losses")


if __name__ == "__main__":
    main()
