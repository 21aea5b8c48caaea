"""The catalogue of losses as outsiders see it, read from the functions themselves."""

from __future__ import annotations

import inspect
import re
from typing import Any

from lossd.losses import LOSSES, Loss, find_loss
from lossd.losses.declare import docstring_section


def catalogue() -> list[dict[str, Any]]:
    """Every loss, in alphabetical order."""
    return [describe(name) for name in sorted(LOSSES)]


def describe(name: str) -> dict[str, Any]:
    """One loss by its name or an alias.

    Returns:
        `name`, `aliases`, `family`, `kind`, `tasks`, `summary`, `formula` (LaTeX), `reference`
        (`text` and `url`), `parameters` (JSON Schema) and `returns` (what it can give).

    Raises:
        UnknownLossError: there is no such loss.

    Example:
        >>> describe("iou")["name"]
        'jaccard'
    """
    loss = find_loss(name)
    return {
        "name": loss.name,
        "aliases": list(loss.aliases),
        "family": loss.family,
        "kind": loss.kind,
        "tasks": list(loss.tasks),
        "summary": summary(loss),
        "formula": " ".join(docstring_section(loss.function, "Formula").split()),
        "reference": _reference(loss),
        "parameters": loss.parameters.model_json_schema(),
        "returns": list(loss.returns),
    }


def summary(loss: Loss) -> str:
    """First line of the loss's docstring."""
    return inspect.cleandoc(loss.function.__doc__ or "").splitlines()[0]


def _reference(loss: Loss) -> dict[str, str]:
    text = " ".join(docstring_section(loss.function, "References").split())
    found = re.search(r"https?://\S+", text)
    url = found.group(0) if found else ""
    return {"text": text.removesuffix(url).rstrip(", "), "url": url}
