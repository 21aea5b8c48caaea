"""Writes what the service's own page shows of every loss beside its description: `make page`.

`descriptions.json` has formulas as MathML and what parameters may be, in words; `curves.json` has
value and gradient along the sweeps that `docs/plots` are drawn from too; the example is the one of
README.md's curl command.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
from latex2mathml.converter import convert

from lossd.catalogue import Entry, catalogue, default_text, parameters, schema_text
from lossd.losses import LOSSES
from lossd_client.wire import Array
from sweeps import Figure, computed, figure, without_peaks

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "service" / "lossd" / "pages" / "home"
EXAMPLE: Final = {
    "example-prediction.npy": ROOT / "examples" / "curl" / "prediction.npy",
    "example-mask.png": ROOT / "examples" / "curl" / "mask.png",
}

_POINTS = 49
_DIGITS = 4
"""Significant digits of a curve's numbers: more than its drawing shows."""
# A word comes out as one element per letter, and would be read out letter by letter.
_WORD = re.compile(r'<mrow>((?:<mi mathvariant="normal">\w</mi>){2,})</mrow>')
_LETTER = re.compile(r"<[^>]*>")
_FUNCTION = re.compile(r"(</\w+>)?(<mi>(?:ln|log|exp|cosh|tanh|arctan)</mi>)(?=<(mo\b)?)")


def description(entry: Entry) -> dict[str, Any]:
    """Lines of a loss's formula, as MathML, and its parameters' values and defaults as text."""
    return {
        "formula": mathml(entry["formula"]),
        "parameters": {
            name: {"values": schema_text(schema), "default": default_text(schema)}
            for name, schema in parameters(entry).items()
        },
    }


def mathml(latex: str) -> list[str]:
    r"""MathML of what stands between the `, \quad` of a formula, a line each."""
    return [_one_line(part) for part in re.split(r",\s*\\quad", latex)]


def _one_line(latex: str) -> str:
    found: str = convert(latex.strip(), display="block")
    found = _WORD.sub(lambda word: f"<mi>{_LETTER.sub('', word.group(1))}</mi>", found)
    return _FUNCTION.sub(_set_apart, found)


def _set_apart(function: re.Match[str]) -> str:
    """A function's name with the spaces that TeX would put around it."""
    before, name, opens = function.groups()
    space = '<mspace width="0.167em"/>'
    left = f"{before}{space}" if before and before != "</mo>" else before or ""
    return f"{left}{name}{'' if opens else space}"


def drawn_places(drawn: Figure) -> Array:
    """Which of a figure's positions are drawn, the first and the last among them."""
    return np.linspace(0, len(drawn.positions) - 1, _POINTS).round().astype(int)


def curve(name: str) -> dict[str, Any]:
    """What a loss's two small drawings show: value and gradient, at the same positions."""
    drawn = figure(name)
    places = drawn_places(drawn)
    sweeps, every = [], []
    for sweep in drawn.sweeps:
        values, slopes = computed(name, sweep)
        every.append(slopes)
        sweeps.append(
            {
                "label": sweep.label,
                "value": _short(values[places]),
                "gradient": _short(slopes[places]),
            }
        )
    limits = without_peaks(np.concatenate(every))
    return {
        "axis": drawn.axis,
        "slope": drawn.slope,
        "positions": _short(drawn.positions[places]),
        "gradient_limits": None if limits is None else _short(np.array(limits)),
        "sweeps": sweeps,
    }


def _short(numbers: Array) -> list[float]:
    return [float(f"{number:.{_DIGITS}g}") for number in numbers]


def main() -> None:
    """Writes the files."""
    written = {
        "descriptions.json": {entry["name"]: description(entry) for entry in catalogue()},
        "curves.json": {name: curve(name) for name in sorted(LOSSES)},
    }
    for name, document in written.items():
        lines = (f"{json.dumps(key)}:{_compact(value)}" for key, value in document.items())
        (PAGE / name).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(PAGE / name)
    for name, source in EXAMPLE.items():
        (PAGE / name).write_bytes(source.read_bytes())
        print(PAGE / name)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    main()
