"""Draws `docs/plots`, value and gradient of every loss: `make plots`."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lossd.losses import LOSSES
from sweeps import computed, figure, without_peaks

PLOTS = Path(__file__).resolve().parents[1] / "docs" / "plots"

# Okabe and Ito's colours, which people with any vision can tell apart; dashes do for print.
_LINES = [("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#000000", ":")]
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "lossd",  # else names of clips are drawn by lot
}


def svg(name: str) -> str:
    """The drawing of a loss as SVG."""
    text = io.StringIO()
    with mpl.rc_context(_STYLE):
        draw(name).savefig(text, format="svg", metadata={"Date": None})
    return re.sub(r' d="[^"]*"', _with_short_numbers, text.getvalue())


def draw(name: str) -> Canvas:
    """Value and gradient of a loss, side by side."""
    drawn = figure(name)
    layout = ConstrainedLayoutEngine(wspace=0.06)
    canvas = Canvas(figsize=(6.8, 2.7), facecolor="white", layout=layout)
    value, slope = canvas.subplots(1, 2)
    every: list[Any] = []
    for sweep, (colour, dashes) in zip(drawn.sweeps, _LINES, strict=False):
        line: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 1.4}
        values, slopes = computed(name, sweep)
        value.plot(drawn.positions, values, label=sweep.label, **line)
        slope.plot(drawn.positions, slopes, **line)
        every.append(slopes)
    slope.axhline(0.0, color="#888888", linewidth=0.6, zorder=1)
    value.set(xlabel=drawn.axis, ylabel="value", title=name)
    slope.set(xlabel=drawn.axis, ylabel=f"d value / d {drawn.slope}", title="gradient")
    for panel in (value, slope):
        panel.set_xlim(drawn.limits or (drawn.positions[0], drawn.positions[-1]))
    _leave_out_peaks(slope, np.concatenate(every))
    if len(drawn.sweeps) > 1:
        canvas.legend(loc="outside lower center", ncols=len(drawn.sweeps))
    return canvas


def _with_short_numbers(path: re.Match[str]) -> str:
    """A path to a hundredth of a point: nobody sees more, and every processor computes as much."""
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found.group(0)):.2f}", path.group(0))


def _leave_out_peaks(panel: Axes, numbers: Any) -> None:
    """Limits a panel to what nearly all numbers span, where a few would dwarf them."""
    limits = without_peaks(numbers)
    if limits is not None:
        panel.set(ylim=limits, title="gradient (peaks reach further)")


def main(names: list[str]) -> None:
    """Draws the losses that are named, or all, and removes plots of losses that are no more."""
    PLOTS.mkdir(exist_ok=True)
    for name in names or LOSSES:
        (PLOTS / f"{name}.svg").write_text(svg(name), encoding="utf-8")
        print(PLOTS / f"{name}.svg")
    for path in PLOTS.glob("*.svg"):
        if path.stem not in LOSSES:
            path.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
