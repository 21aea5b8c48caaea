"""The catalogue says everything there is about a loss, to programs and to people."""

import io
from typing import Any

import pytest
from rich.console import Console

from lossd.catalogue import (
    catalogue,
    default_text,
    describe,
    families,
    parameters,
    schema_text,
)
from lossd.formula import plain_formula
from lossd.listing import print_loss, print_losses
from lossd.losses import LOSSES
from lossd.losses.kinds import KINDS
from lossd_client.errors import UnknownLossError
from service_fixture import lossd

KEYS = [
    "name",
    "aliases",
    "family",
    "kind",
    "tasks",
    "summary",
    "formula",
    "symbols",
    "value",
    "use",
    "traps",
    "inputs",
    "parameters",
    "shared_parameters",
    "returns",
    "reference",
]
PAGE_COLUMNS = 80


def on_terminal(columns: int, name: str | None = None) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=columns, color_system=None)
    if name is None:
        print_losses(console)
    else:
        print_loss(console, describe(name))
    return stream.getvalue()


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_is_described_completely(name: str) -> None:
    entry = describe(name)
    assert list(entry) == KEYS
    may_be_empty = {"aliases", "tasks", "symbols", "shared_parameters"}
    assert all(entry[key] for key in KEYS if key not in may_be_empty), entry
    assert bool(entry["tasks"]) == (entry["kind"] == "pixel")
    assert entry["value"][0].isupper() or entry["value"][0] in "-0123456789|`"
    assert len(entry["traps"]) > 1
    assert not any(trap.startswith("- ") for trap in entry["traps"])
    assert set(entry["shared_parameters"]) <= set(entry["parameters"]["properties"])
    for schema in entry["parameters"]["properties"].values():
        assert schema_text(schema)
        assert default_text(schema)


@pytest.mark.parametrize("name", list(LOSSES))
def test_inputs_are_named_with_their_axes(name: str) -> None:
    entry = describe(name)
    for one in entry["inputs"]:
        assert list(one) == ["name", "axes", "values", "differentiable", "required"]
    names = [one["name"] for one in entry["inputs"]]
    assert any(one["differentiable"] for one in entry["inputs"])
    if entry["kind"] == "pixel":
        assert names[:4] == ["logits", "probabilities", "target", "mask"]
        assert ("weight_map" in names) == ("maps" in entry["returns"])
        required = [one["name"] for one in entry["inputs"] if one["required"]]
        assert required == ["logits", "target"]
    else:
        assert set(names) == {one.name for one in KINDS[entry["kind"]]}
        assert all(one["required"] for one in entry["inputs"])


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_formula_reads_as_text(name: str) -> None:
    text = plain_formula(describe(name)["formula"])
    assert "\\" not in text
    assert "  " not in text
    for opening, closing in ("()", "[]"):
        # An interval may be half open, as in [0, 2); formulas have none.
        assert text.count(opening) == text.count(closing), text


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\frac{a + b}{c}", "(a + b) / c"),
        (r"\frac12 x_{ic}^2", "1/2 x_ic²"),
        (r"-\ln\frac{p}{q}", "-ln(p/q)"),
        (r"\sqrt{x} \le \lVert y \rVert", "√x <= ‖y‖"),
        (
            r"\begin{cases} 1 & x > 0 \\ 0 & \text{otherwise} \end{cases}",
            "{ 1, x > 0; 0, otherwise }",
        ),
        (r"a, \quad b", "a,\nb"),
        (r"\left(x\right)^{a + b}", "(x)^(a + b)"),
        (r"x \frac{", r"x \frac{"),
        (r"\unknown{x}", r"\unknown{x}"),
    ],
)
def test_latex_becomes_text_or_stays(latex: str, text: str) -> None:
    assert plain_formula(latex) == text


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "number"}, "number"),
        ({"type": "number", "minimum": 0, "maximum": 1}, "number in [0, 1]"),
        ({"type": "number", "exclusiveMinimum": 0}, "number > 0"),
        ({"const": "square"}, '"square"'),
        ({"enum": ["macro", "micro"]}, '"macro" or "micro"'),
        (
            {
                "anyOf": [
                    {"enum": ["all"]},
                    {"type": "array", "items": {"type": "integer", "minimum": 0}},
                ]
            },
            '"all" or list of integers >= 0',
        ),
    ],
)
def test_a_schema_reads_as_text(schema: dict[str, Any], text: str) -> None:
    assert schema_text(schema) == text


def test_families_hold_every_loss_once_and_masks_come_first() -> None:
    listed = families()
    names = [entry["name"] for entries in listed.values() for entry in entries]
    assert sorted(names) == sorted(LOSSES) == [entry["name"] for entry in catalogue()]
    kinds = [entries[0]["kind"] for entries in listed.values()]
    assert kinds == sorted(kinds, key=list(KINDS).index)


def test_own_parameters_come_before_those_that_losses_share() -> None:
    names = list(parameters(describe("tversky")))
    assert names[:4] == ["fp_weight", "fn_weight", "smooth_nr", "smooth_dr"]
    assert "classes" in names[4:]


def test_in_a_pipe_every_loss_is_one_whole_line() -> None:
    listed = lossd("losses", COLUMNS="40")
    assert listed.status == 0
    assert "\x1b" not in listed.stdout
    lines = listed.stdout.splitlines()
    for entry in catalogue():
        (line,) = [line for line in lines if line.startswith(f"  {entry['name']} ")]
        assert line.endswith(entry["summary"])
        assert all(text in line for text in [*entry["aliases"], entry["kind"], *entry["tasks"]])
    assert [line for line in lines if line and not line.startswith(" ")] == list(families())


def test_a_narrow_terminal_gets_lines_that_fit() -> None:
    narrow = on_terminal(PAGE_COLUMNS)
    assert max(map(len, narrow.splitlines())) <= PAGE_COLUMNS
    for entry in catalogue():
        assert " ".join(entry["summary"].split()) in " ".join(narrow.split())
    assert len(on_terminal(400).splitlines()) < len(narrow.splitlines())


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_page_about_a_loss_has_all_facts_in_80_columns(name: str) -> None:
    entry = describe(name)
    told = lossd("losses", name)
    assert told.status == 0
    assert "\x1b" not in told.stdout
    text = " ".join(told.stdout.split())
    for fact in (entry["summary"], entry["use"], entry["value"], *entry["traps"]):
        assert " ".join(fact.split()) in text
    for key in parameters(entry):
        assert f"{key} = " in text
    for one in entry["inputs"]:
        assert f"{one['name']} [" in text
    assert told.stdout.endswith(f"{entry['reference']['url']}\n")
    long = [line for line in told.stdout.splitlines() if len(line) > PAGE_COLUMNS]
    assert all("://" in line for line in long), long


def test_an_alias_finds_the_page() -> None:
    told = lossd("losses", "iou")
    assert told.status == 0
    assert told.stdout.startswith("jaccard (iou)\n")
    assert "1 - (TP + s_nr) / (TP + FP + FN + s_dr)" in told.stdout


def test_headings_are_bold_on_a_terminal_alone() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=PAGE_COLUMNS)
    print_loss(console, describe("dice"))
    assert "\x1b[1mdice\x1b[0m" in stream.getvalue()


def test_an_unknown_name_is_refused_with_its_neighbours() -> None:
    told = lossd("losses", "dicee")
    assert told.status == 1
    assert told.stdout == ""
    assert "did you mean dice" in told.stderr
    with pytest.raises(UnknownLossError):
        describe("dicee")
