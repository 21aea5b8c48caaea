"""The catalogue of losses as outsiders see it, read from the functions themselves.

`GET /v1/losses`, `lossd losses`, `docs/losses.md` and the README's table are all made of this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lossd.losses import LOSSES, Loss, Options, find_loss
from lossd.losses.declare import RowLoss
from lossd.losses.docstring import docstring_section, docstring_summary
from lossd.losses.kinds import KINDS, Values

Entry = dict[str, Any]

_VALUES: dict[Values, str] = {
    "real": "finite numbers",
    "ids": "integers of at least 0",
    "label": "integers in [0, C - 1]",
    "zero_or_one": "0 or 1",
    "unit": "numbers in [0, 1]",
    "bin": "numbers in [0, C - 1]",
}

_MASKS: list[Entry] = [
    {
        "name": "logits",
        "axes": "B C *S",
        "values": "finite numbers; C = 1 for binary",
        "differentiable": True,
        "required": True,
    },
    {
        "name": "probabilities",
        "axes": "B C *S",
        "values": "numbers in [0, 1], in place of logits",
        "differentiable": True,
        "required": False,
    },
    {
        "name": "target",
        "axes": "B *S or B C *S",
        "values": "integer labels, or soft or multilabel numbers in [0, 1]",
        "differentiable": False,
        "required": True,
    },
    {
        "name": "mask",
        "axes": "B *S",
        "values": "0 removes the pixel",
        "differentiable": False,
        "required": False,
    },
]
_WEIGHT_MAP: Entry = {
    "name": "weight_map",
    "axes": "B *S",
    "values": "weights of at least 0",
    "differentiable": False,
    "required": False,
}

_SYMBOLS = {
    r"\bz\b|\bz_": ("z", "logit"),
    r"\bp\b|\bp_": ("p", "probability after the activation"),
    r"\by\b|\by_|\by'": ("y", "target, 1 where a pixel is of the class"),
    r"\bN\b": ("N", "number of valid pixels"),
    r"\bN_c\b": ("N_c", "number of valid pixels of class c"),
    r"\bY_c\b": ("Y_c", "sum of the target of class c"),
    r"\bTP\b|\bTP_": ("TP", "true positives, the sum of p·y"),
    r"\bFP\b|\bFP_": ("FP", "false positives, the sum of p·(1 - y)"),
    r"\bFN\b|\bFN_": ("FN", "false negatives, the sum of (1 - p)·y"),
    r"\bTN\b": ("TN", "true negatives, the sum of (1 - p)·(1 - y)"),
}
"""What stands for what in the formulas of the pixel kind, by a pattern that finds it."""


def catalogue() -> list[Entry]:
    """Every loss, in alphabetical order."""
    return [describe(name) for name in sorted(LOSSES)]


def families() -> dict[str, list[Entry]]:
    """Every loss by family, those of masks first."""
    kinds = list(KINDS)
    found: dict[str, list[Entry]] = {}
    for entry in sorted(catalogue(), key=lambda one: (kinds.index(one["kind"]), one["family"])):
        found.setdefault(entry["family"], []).append(entry)
    return found


def describe(name: str) -> Entry:
    """One loss by its name or an alias.

    Returns:
        `name`, `aliases`, `family`, `kind`, `tasks` (empty for kinds without), `summary`,
        `formula` (LaTeX), `symbols` (what stands for what in it), `value` (its range and special
        cases), `use` (when to use it), `traps` (list), `inputs` (each with `name`, `axes`,
        `values`, `differentiable`, `required`), `parameters` (JSON Schema), `shared_parameters`
        (names of those that many losses have), `returns` (what it can give) and `reference`
        (`text` and `url`).

    Raises:
        UnknownLossError: there is no such loss.

    Example:
        >>> describe("iou")["name"]
        'jaccard'
    """
    loss = find_loss(name)
    formula = _paragraph(loss, "Formula")
    return {
        "name": loss.name,
        "aliases": list(loss.aliases),
        "family": loss.family,
        "kind": loss.kind,
        "tasks": list(loss.tasks),
        "summary": summary(loss),
        "formula": formula,
        "symbols": _symbols(loss, formula),
        "value": _value(loss),
        "use": _paragraph(loss, "Use"),
        "traps": _traps(loss),
        "inputs": _inputs(loss),
        "parameters": loss.parameters.model_json_schema(),
        "shared_parameters": _shared_parameters(loss),
        "returns": list(loss.returns),
        "reference": _reference(loss),
    }


def summary(loss: Loss) -> str:
    """First line of the loss's docstring."""
    return docstring_summary(loss.function)


def parameters(entry: Entry) -> dict[str, Entry]:
    """JSON Schema of each parameter of a loss, its own before the shared ones."""
    properties: dict[str, Entry] = entry["parameters"]["properties"]
    shared = entry["shared_parameters"]
    return {name: properties[name] for name in sorted(properties, key=lambda one: one in shared)}


def schema_text(schema: Entry) -> str:
    """What a parameter may be, from its JSON Schema.

    Example:
        >>> schema_text({"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]})
        'number >= 0 or null'
        >>> schema_text({"type": "array", "items": {"enum": ["macro", "micro"]}})
        'list of "macro" or "micro"'
    """
    *others, last = _alternatives(schema)
    return f"{', '.join(others)} or {last}" if others else last


def capitalized(text: str) -> str:
    """The text with a capital letter first.

    Example:
        >>> capitalized("weight of a Dice")
        'Weight of a Dice'
    """
    return text[:1].upper() + text[1:]


def default_text(schema: Entry) -> str:
    """Default of a parameter as JSON writes it, without quotes.

    Example:
        >>> default_text({"default": None}), default_text({"default": True})
        ('null', 'true')
    """
    default = schema["default"]
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _alternatives(schema: Entry) -> Iterator[str]:
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from _alternatives(one)
    elif "const" in schema or "enum" in schema:
        yield from (f'"{name}"' for name in schema.get("enum", [schema.get("const")]))
    elif schema["type"] == "array":
        yield f"list of {schema_text(schema['items']).replace('er >=', 'ers >=')}"
    else:
        yield " ".join([schema["type"], *_bounds(schema)])


def _bounds(schema: Entry) -> Iterator[str]:
    if "minimum" in schema and "maximum" in schema:
        yield f"in [{schema['minimum']:g}, {schema['maximum']:g}]"
        return
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    for key, sign in signs.items():
        if key in schema:
            yield f"{sign} {schema[key]:g}"


def _paragraph(loss: Loss, section: str) -> str:
    return " ".join(docstring_section(loss.function, section).split())


def _symbols(loss: Loss, formula: str) -> dict[str, str]:
    if loss.kind != "pixel":
        return {}
    return dict(told for pattern, told in _SYMBOLS.items() if re.search(pattern, formula))


def _value(loss: Loss) -> str:
    """What `Returns` says of the value, without the shape that the function returns."""
    text = re.sub(r"^(Terms )?`\[[^`]*\]`[,.;:]? *", "", _paragraph(loss, "Returns"))
    return capitalized(text)


def _traps(loss: Loss) -> list[str]:
    entries = re.split(r"^- ", docstring_section(loss.function, "Traps"), flags=re.MULTILINE)
    return [" ".join(entry.split()) for entry in entries if entry.strip()]


def _inputs(loss: Loss) -> list[Entry]:
    if isinstance(loss, RowLoss):
        return [
            {
                "name": one.name,
                "axes": one.axes,
                "values": _VALUES[one.values],
                "differentiable": one.differentiable,
                "required": True,
            }
            for one in loss.inputs
        ]
    # Losses of single pixels are those that have a map, and only their pixels can weigh.
    return [*_MASKS, _WEIGHT_MAP] if "maps" in loss.returns else list(_MASKS)


def _shared_parameters(loss: Loss) -> list[str]:
    base = loss.parameters.__base__
    return list(base.model_fields) if base is not None and issubclass(base, Options) else []


def _reference(loss: Loss) -> dict[str, str]:
    text = _paragraph(loss, "References")
    found = re.search(r"https?://\S+", text)
    url = found.group(0) if found else ""
    return {"text": text.removesuffix(url).rstrip(", "), "url": url}
