"""The presets as Markdown: `docs/presets.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lossd.presets import PRESETS, Convention, Preset


def presets_page() -> str:
    """Every preset: the library, what is filled for which loss, and what cannot be had."""
    lines: list[str] = []
    for name, preset in PRESETS.items():
        lines += [*_preset(name, preset), ""]
    return "\n".join(lines[:-1]) + "\n"


def _preset(name: str, preset: Preset) -> Iterator[str]:
    yield f"## `{name}`"
    yield ""
    versions = ", ".join(f"{library} {version}" for library, version in preset.versions.items())
    pooled = " Fills `aggregate: batch`." if preset.aggregate == "batch" else ""
    yield f"{preset.library}, compared with {versions}. {preset.summary}{pooled}"
    yield ""
    yield "| loss | the library's | what is filled | to know |"
    yield "|---|---|---|---|"
    for loss, conventions in preset.losses.items():
        for convention in conventions:
            yield f"| {' | '.join(map(_cell, _cells(loss, convention)))} |"
    if preset.absent:
        yield ""
        yield "Not to be had:"
        yield ""
        yield from (f"- `{loss}`: {reason}" for loss, reason in preset.absent.items())


def _cells(loss: str, convention: Convention) -> Iterator[str]:
    tasks = f" ({', '.join(convention.tasks)})" if convention.tasks else ""
    yield f"`{loss}`{tasks}"
    yield f"`{convention.library}`"
    filled = convention.parameters.items()
    yield ", ".join(f"`{name}` {_literal(value)}" for name, value in filled) or "nothing"
    shifted = f"The library's value is this one minus {convention.shift:g}. "
    yield (shifted if convention.shift else "") + convention.remark


def _literal(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
