"""Reads the sections of a loss's docstring: what the catalogue and the documents are made of."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any


def docstring_section(function: Callable[..., Any], title: str) -> str:
    """Text of one section of a docstring, dedented; empty if there is none."""
    text = inspect.cleandoc(function.__doc__ or "")
    found = re.search(rf"^{title}:\n((?:[ ]{{4}}.*\n?|\n)+)", text, re.MULTILINE)
    return inspect.cleandoc(found.group(1)).strip() if found else ""


def docstring_arguments(function: Callable[..., Any]) -> dict[str, str]:
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


def docstring_summary(function: Callable[..., Any]) -> str:
    """First line of a docstring."""
    return inspect.cleandoc(function.__doc__ or "").splitlines()[0]
