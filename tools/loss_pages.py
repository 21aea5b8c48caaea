"""The catalogue as Markdown: `docs/losses.md` and the table of the README."""

from __future__ import annotations

from collections.abc import Iterator

from lossd.catalogue import (
    Entry,
    capitalized,
    catalogue,
    default_text,
    families,
    parameters,
    schema_text,
)


def readme_table() -> str:
    """Name and summary of every loss, by family."""
    lines = ["| loss | what it is |", "|---|---|"]
    for family, entries in families().items():
        lines.append(f"| **{family}** | |")
        lines += [f"| {_linked(entry)} | {_cell(entry['summary'])} |" for entry in entries]
    told = "Each name leads to formula, plot, traps and source in [docs/losses.md](docs/losses.md)."
    return "\n".join([*lines, "", told]) + "\n"


def losses_page() -> str:
    """Contents, every loss, and the parameters that losses share."""
    listed = families()
    lines = [*_contents(listed)]
    for family, entries in listed.items():
        lines += ["", f"## {_title(family)}"]
        for entry in entries:
            lines += ["", *_loss(entry)]
    return "\n".join([*lines, "", *_shared_parameters()]) + "\n"


def _contents(listed: dict[str, list[Entry]]) -> Iterator[str]:
    for family, entries in listed.items():
        names = ", ".join(f"[`{entry['name']}`](#{entry['name']})" for entry in entries)
        yield f"- [{_title(family)}](#{_title(family).lower().replace(' ', '-')}): {names}"
    yield "- [Shared parameters](#shared-parameters)"


def _loss(entry: Entry) -> Iterator[str]:
    yield f"### `{entry['name']}`"
    yield ""
    yield entry["summary"]
    yield ""
    yield " · ".join(_facts(entry))
    yield ""
    yield from ["```math", entry["formula"], "```"]
    yield ""
    yield f"**Value.** {entry['value']}"
    yield ""
    yield f"**When to use it.** {entry['use']}"
    yield ""
    yield from _parameters(entry)
    yield f"![Value and gradient of {entry['name']}](plots/{entry['name']}.svg)"
    yield ""
    yield "**Traps**"
    yield ""
    yield from (f"- {trap}" for trap in entry["traps"])
    yield ""
    yield f"**Reference.** {entry['reference']['text']}, <{entry['reference']['url']}>"


def _facts(entry: Entry) -> Iterator[str]:
    if entry["aliases"]:
        yield f"also `{'`, `'.join(entry['aliases'])}`"
    yield f"kind `{entry['kind']}`"
    if entry["tasks"]:
        yield f"tasks {', '.join(entry['tasks'])}"
    if entry["kind"] != "pixel":
        yield "inputs " + ", ".join(map(_input, entry["inputs"]))
    yield f"returns {', '.join(entry['returns'])}"


def _input(one: Entry) -> str:
    notes = [one["values"], *(["has a gradient"] if one["differentiable"] else [])]
    return f"`{one['name']}` `[{', '.join(one['axes'].split())}]` ({'; '.join(notes)})"


def _parameters(entry: Entry) -> Iterator[str]:
    shared = [name for name in parameters(entry) if name in entry["shared_parameters"]]
    own = {name: schema for name, schema in parameters(entry).items() if name not in shared}
    if own:
        yield from ["| parameter | may be | default | meaning |", "|---|---|---|---|"]
        yield from (_parameter_row(name, schema) for name, schema in own.items())
        yield ""
    if shared:
        also = "Also" if own else "Parameters"
        names = ", ".join(f"`{name}`" for name in shared)
        yield f"{also}: {names}, see [shared parameters](#shared-parameters)."
        yield ""
    if not own and not shared:
        yield from ["No parameters.", ""]


def _parameter_row(name: str, schema: Entry) -> str:
    meaning = capitalized(schema["description"])
    cells = [f"`{name}`", schema_text(schema), f"`{default_text(schema)}`", meaning]
    return f"| {' | '.join(map(_cell, cells))} |"


def _shared_parameters() -> Iterator[str]:
    """Each shared parameter once; one whose default depends on the loss once for each default."""
    yield "## Shared parameters"
    yield ""
    rows: dict[str, list[str]] = {}
    for entry in catalogue():
        for name in entry["shared_parameters"]:
            row = _parameter_row(name, entry["parameters"]["properties"][name])
            takers = rows.setdefault(row, [])
            takers += [] if entry["family"] in takers else [entry["family"]]
    yield "| parameter | may be | default | meaning | taken by losses of |"
    yield "|---|---|---|---|---|"
    yield from (f"{row} {', '.join(sorted(takers))} |" for row, takers in sorted(rows.items()))


def _title(family: str) -> str:
    return f"{capitalized(family)} losses"


def _linked(entry: Entry) -> str:
    link = f"[`{entry['name']}`](docs/losses.md#{entry['name']})"
    return f"{link} (`{'`, `'.join(entry['aliases'])}`)" if entry["aliases"] else link


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
