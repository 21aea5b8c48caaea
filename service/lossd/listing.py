"""The catalogue on a terminal, or in a pipe: `lossd losses`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from rich.console import Console

from lossd.catalogue import (
    Entry,
    capitalized,
    default_text,
    families,
    parameters,
    schema_text,
)
from lossd.formula import plain_formula

_PAGE_COLUMNS = 80
_INDENT = "    "
_GAP = "  "


def print_losses(console: Console) -> None:
    """Prints every loss by family: a line each, or two where the terminal is narrow.

    In a pipe it is a line each, however long, so that tools that look for lines find whole ones.
    """
    listed = families()
    rows = {entry["name"]: _cells(entry) for entries in listed.values() for entry in entries}
    columns = [max(len(cell) for cell in cells) for cells in zip(*rows.values(), strict=True)]
    summaries = [entry["summary"] for entries in listed.values() for entry in entries]
    room = sum(columns) + len(columns) * len(_GAP) + len(_GAP) + max(map(len, summaries))
    wide = not console.is_terminal or console.width >= room
    for number, (family, entries) in enumerate(listed.items()):
        _print_heading(console, family, above="\n" if number else "")
        for entry in entries:
            cells = zip(rows[entry["name"]], columns, strict=True)
            line = _GAP + _GAP.join(cell.ljust(width) for cell, width in cells)
            if wide:
                _print(console, [f"{line}{_GAP}{entry['summary']}"])
            else:
                _print(console, [line.rstrip(), *_wrapped(entry["summary"], console.width)])


def print_loss(console: Console, entry: Entry) -> None:
    """Prints everything about one loss, for a page of 80 columns."""
    columns = min(_PAGE_COLUMNS, console.width) if console.is_terminal else _PAGE_COLUMNS
    aliases = f" ({', '.join(entry['aliases'])})" if entry["aliases"] else ""
    _print_heading(console, f"{entry['name']}{aliases}")
    _print(console, [*_wrapped(entry["summary"], columns, indent=""), "", *_facts(entry)])
    sections = {
        "Formula": _formula(entry, columns),
        "Value": _wrapped(entry["value"], columns),
        "When to use it": _wrapped(entry["use"], columns),
        "Parameters": _parameters(entry, columns),
        "Inputs": _inputs(entry, columns),
        "Traps": [
            line
            for trap in entry["traps"]
            for line in _wrapped(trap, columns, indent="  - ", hanging=_INDENT)
        ],
        "Reference": [
            *_wrapped(entry["reference"]["text"], columns),
            _INDENT + entry["reference"]["url"],
        ],
    }
    for title, lines in sections.items():
        _print_heading(console, title, above="\n")
        _print(console, lines)


def _cells(entry: Entry) -> list[str]:
    aliases = f" ({', '.join(entry['aliases'])})" if entry["aliases"] else ""
    return [entry["name"] + aliases, entry["kind"], " ".join(entry["tasks"])]


def _facts(entry: Entry) -> Iterator[str]:
    facts = {
        "family": entry["family"],
        "kind": entry["kind"],
        "tasks": ", ".join(entry["tasks"]),
        "returns": ", ".join(entry["returns"]),
    }
    for name, text in facts.items():
        if text:
            yield f"{name:<9}{text}"


def _formula(entry: Entry, columns: int) -> Iterator[str]:
    for line in plain_formula(entry["formula"]).splitlines():
        yield from _wrapped(line, columns, hanging=_INDENT * 2)
    if entry["symbols"]:
        yield ""
    width = max((len(symbol) for symbol in entry["symbols"]), default=0)
    for symbol, meaning in entry["symbols"].items():
        yield f"{_INDENT}{symbol:<{width}}{_GAP}{meaning}"


def _parameters(entry: Entry, columns: int) -> Iterator[str]:
    for name, schema in parameters(entry).items():
        yield from _wrapped(
            f"{name} = {default_text(schema)}   {schema_text(schema)}", columns, hanging=_INDENT * 2
        )
        yield from _wrapped(capitalized(schema["description"]), columns, indent=_INDENT * 2)
    if not parameters(entry):
        yield f"{_INDENT}none"


def _inputs(entry: Entry, columns: int) -> Iterator[str]:
    for one in entry["inputs"]:
        axes = " or ".join(f"[{', '.join(axes.split())}]" for axes in one["axes"].split(" or "))
        notes = [one["values"]]
        notes += [] if one["required"] else ["optional"]
        notes += ["has a gradient"] if one["differentiable"] else []
        yield from _wrapped(
            f"{one['name']} {axes}: {'; '.join(notes)}", columns, hanging=_INDENT * 2
        )


def _wrapped(
    text: str, columns: int, *, indent: str = _INDENT, hanging: str | None = None
) -> list[str]:
    return textwrap.wrap(
        text,
        columns,
        initial_indent=indent,
        subsequent_indent=indent if hanging is None else hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _print_heading(console: Console, text: str, *, above: str = "") -> None:
    console.print(f"{above}{text}", style="bold", markup=False, highlight=False, soft_wrap=True)


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
