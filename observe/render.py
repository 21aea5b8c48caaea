"""Draws the panels of the dashboard as one picture, from what a Prometheus has.

    python observe/render.py --prometheus http://127.0.0.1:9090 --minutes 15 --out dashboard.png

For reports and for whoever has no Grafana. The expressions are the dashboard's own; one that is an
error, or asks for a metric that the Prometheus has never heard of, ends the program with status 1
and the name of its panel.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import Any, TypeAlias

import httpx
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from PIL import Image

DASHBOARD = Path(__file__).parent / "grafana" / "dashboards" / "lossd.json"

Values: TypeAlias = npt.NDArray[np.floating[Any]]

_COLUMNS = 24
_COLUMN_INCHES, _LINE_INCHES, _GAP_INCHES = 0.62, 0.34, 0.06
_POINTS = 240
_PICTURE_COLORS = 128
_MOST_TICKS = 6
_ROUND_S = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
_NOTHING = "-"
_PLAIN, _LIGHT = "#24292e", "#8a9199"


class PanelError(Exception):
    """A panel cannot be drawn."""


@dataclass(frozen=True)
class Series:
    """What an expression gave for one set of labels; NaN where there was nothing."""

    name: str
    labels: Mapping[str, str]
    values: Values

    @property
    def last(self) -> float:
        """Its newest number, NaN if it has none."""
        numbers = self.values[np.isfinite(self.values)]
        return float(numbers[-1]) if len(numbers) else float("nan")


class Prometheus:
    """The answers of a Prometheus about one window of time."""

    def __init__(self, client: httpx.Client, *, end_s: float, seconds: float) -> None:
        self._client = client
        self._step_s = max(5.0, seconds / _POINTS)
        self.times_s = end_s - seconds + self._step_s * np.arange(int(seconds / self._step_s) + 1)

    def window_s(self, scrape_s: float) -> int:
        """The shortest window of a rate that always holds two scrapes and leaves no gap."""
        return round(max(self._step_s + scrape_s, 4 * scrape_s))

    def metrics(self) -> set[str]:
        """Names of all series that there are, and of those that a scraped service announces."""
        names = set(self._ask("label/__name__/values", **self._bounds()))
        for name, (about, *_) in self._ask("metadata").items():
            suffixes = ("_bucket", "_sum", "_count") if about["type"] == "histogram" else ("",)
            names |= {name + suffix for suffix in suffixes}
        return names

    def latest(self, expression: str, legend: str) -> list[Series]:
        """Value of an expression at the end of the window."""
        found = self._ask("query", query=expression, time=f"{self.times_s[-1]:.3f}")
        return [self._series(one["metric"], legend, [one["value"]]) for one in found["result"]]

    def course(self, expression: str, legend: str) -> list[Series]:
        """Values of an expression over the window."""
        step = f"{self._step_s:.3f}"
        found = self._ask("query_range", query=expression, step=step, **self._bounds())
        return [self._series(one["metric"], legend, one["values"]) for one in found["result"]]

    def _bounds(self) -> dict[str, str]:
        return {"start": f"{self.times_s[0]:.3f}", "end": f"{self.times_s[-1]:.3f}"}

    def _series(self, labels: Mapping[str, str], legend: str, pairs: Sequence[Any]) -> Series:
        values = np.full(len(self.times_s), np.nan)
        for moment_s, number in pairs:
            values[round((float(moment_s) - self.times_s[0]) / self._step_s)] = float(number)
        name = re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), legend)
        return Series(name, labels, values)

    def _ask(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        document = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        if document.get("status") == "error":
            raise PanelError(document["error"])
        if "data" not in document:
            raise PanelError(f"{answer.url} answers {answer.status_code}, it is no Prometheus")
        return document["data"]


# -- numbers as Grafana writes them ---------------------------------------------------------------

Scale: TypeAlias = tuple[tuple[float, str], ...]

_SCALES: dict[str, Scale] = {
    "s": ((1e-6, " µs"), (1e-3, " ms"), (1, " s"), (60, " min"), (3600, " h"), (86400, " d")),
    "bytes": ((1, " B"), (2**10, " KiB"), (2**20, " MiB"), (2**30, " GiB"), (2**40, " TiB")),
    "Bps": ((1, " B/s"), (1e3, " kB/s"), (1e6, " MB/s"), (1e9, " GB/s")),
    "reqps": ((1, " req/s"), (1e3, "K req/s")),
    "short": ((1, ""), (1e3, " K"), (1e6, " Mil")),
    "percentunit": ((0.01, "%"),),
    "none": ((1, ""),),
}


def written(value: float, unit: str) -> str:
    """A number with its unit, three digits of it.

    Example:
        >>> [written(0.0042, "s"), written(123456789, "bytes"), written(4.25, "suffix:samples/s")]
        ['4.2 ms', '118 MiB', '4.25 samples/s']
    """
    if not np.isfinite(value):
        return _NOTHING
    prefix, _, suffix = unit.partition(":")
    scale: Scale = ((1, f" {suffix}"),) if prefix == "suffix" else _SCALES[unit]
    fitting = [step for step in scale if abs(value) >= step[0]]
    size, text = fitting[-1] if fitting else scale[1 if value == 0 and unit == "s" else 0]
    number = value / size
    return f"{number:.0f}{text}" if abs(number) >= 100 else f"{number:.3g}{text}"  # noqa: PLR2004


# -- one panel ------------------------------------------------------------------------------------


def questions(panel: Mapping[str, Any], variables: Mapping[str, str]) -> list[tuple[str, str]]:
    """Expressions of a panel with the dashboard's variables filled in, and their legends."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise PanelError(f"there is no variable {match[0]}")
        return variables[match[1]]

    return [
        (re.sub(r"\$(\w+)", value, target["expr"]), target["legendFormat"])
        for target in panel["targets"]
    ]


def answers(
    panel: Mapping[str, Any], source: Prometheus, known: set[str], variables: Mapping[str, str]
) -> list[Series]:
    """Everything that a panel shows.

    Raises:
        PanelError: an expression is an error, or asks for a metric that does not exist.
    """
    ask = source.latest if panel["type"] == "stat" else source.course
    found: list[Series] = []
    try:
        for expression, legend in questions(panel, variables):
            # Every selector of the dashboard has braces, and nothing else has them behind a name.
            unknown = set(re.findall(r"([a-zA-Z_:][\w:]*)\{", expression)) - known
            if unknown:
                raise PanelError(f"no such metric: {', '.join(sorted(unknown))}")  # noqa: TRY301
            found += ask(expression, legend)
    except PanelError as error:
        raise PanelError(f"panel {panel['title']!r}: {error}") from error
    return found


def looks(panel: Mapping[str, Any], series: Sequence[Series]) -> list[tuple[Any, Any]]:
    """Colour and dashes of each series: the panel's own, or shades of its colour."""
    overrides = {
        override["matcher"]["options"]: {
            entry["id"]: entry["value"] for entry in override["properties"]
        }
        for override in panel["fieldConfig"]["overrides"]
    }
    base = np.array(to_rgb(panel["fieldConfig"]["defaults"]["color"]["fixedColor"]))
    found: list[tuple[Any, Any]] = []
    for index, one in enumerate(series):
        own = overrides.get(one.name, {})
        lightness = 0.75 * index / max(1, len(series))
        shade = tuple(base + (1.0 - base) * lightness)
        color = own["color"]["fixedColor"] if "color" in own else shade
        dash = own.get("custom.lineStyle", {}).get("dash")
        found.append((color, (0, [length / 2 for length in dash]) if dash else "solid"))
    return found


def draw_stat(axes: Axes, panel: Mapping[str, Any], series: Sequence[Series]) -> None:
    """Numbers or names, large."""
    axes.set_axis_off()
    defaults = panel["fieldConfig"]["defaults"]
    states = {
        value: (entry["text"], entry["color"])
        for mapping in defaults.get("mappings", [])
        for value, entry in mapping["options"].items()
    }
    lines: list[tuple[str, Any]] = []
    for one, (color, _) in zip(series, looks(panel, series), strict=True):
        plain = written(one.last, defaults["unit"]), color
        of_value = states.get(f"{one.last:g}", plain)
        lines.append(of_value if panel["options"]["textMode"] == "value" else (one.name, color))
    if not lines or all(text == _NOTHING for text, _ in lines):
        lines = [(defaults["noValue"], _LIGHT)]
    lines = [(line, color) for text, color in lines for line in wrap(text, width=28) or [text]]
    widest = max(len(text) for text, _ in lines)
    points = min(20.0, 60.0 * panel["gridPos"]["w"] / max(1, widest), 44.0 / len(lines))
    for index, (text, color) in enumerate(lines):
        height = 1 - (index + 0.5) / len(lines)
        axes.text(0.5, height, text, color=color, fontsize=points, ha="center", va="center")


def draw_lines(
    axes: Axes, panel: Mapping[str, Any], series: Sequence[Series], times: Values
) -> None:
    """Courses over time, stacked if the panel says so."""
    custom, unit = panel["fieldConfig"]["defaults"]["custom"], _unit(panel)
    shown = [(f"{one.name}  {written(one.last, unit)}", one.values) for one in series]
    styles = looks(panel, series)
    if custom["stacking"]["mode"] == "normal":
        heights = [np.nan_to_num(values) for _, values in shown]
        axes.stackplot(
            times,
            *heights,
            labels=[label for label, _ in shown],
            colors=[color for color, _ in styles],
            alpha=custom["fillOpacity"] / 100 + 0.25,
            linewidth=0,
        )
    else:
        for (label, values), (color, dash) in zip(shown, styles, strict=True):
            axes.plot(times, values, label=label, color=color, linestyle=dash, linewidth=1.3)
    if custom["scaleDistribution"]["type"] == "log":
        axes.set_yscale("log", base=custom["scaleDistribution"]["log"])
    else:
        highest = axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1.0
        axes.set_ylim(0, 1.05 * highest)
        # Powers of two are the round numbers of bytes.
        step = 2.0 ** math.ceil(math.log2(highest / 5)) if unit == "bytes" else 0.0
        axes.yaxis.set_major_locator(MultipleLocator(step) if step else MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit)))
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.12, -0.13),
        ncols=_legend_columns(panel),
        fontsize=7,
        frameon=False,
        handlelength=1.4,
        columnspacing=1.2,
    )


def _legend_columns(panel: Mapping[str, Any]) -> int:
    """As many as fit the width of a panel."""
    names = [override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]]
    longest = max((len(name) for name in names), default=16)
    return max(1, int(panel["gridPos"]["w"] * 11 / (longest + 18)))


def draw_heatmap(
    axes: Axes, panel: Mapping[str, Any], series: Sequence[Series], times: Values
) -> None:
    """Buckets of a histogram over time: how many fell between one bound and the next."""
    by_bound = sorted(series, key=lambda one: float(one.labels["le"]))
    counts = np.diff(np.array([one.values for one in by_bound]), axis=0, prepend=0.0)
    used = [row for row in range(len(counts)) if np.nansum(counts[row]) > 0]
    bounds = [one.labels["le"].removesuffix(".0") for one in by_bound]
    counts = np.where(counts > 0, counts, np.nan)
    scheme = panel["options"]["color"]["scheme"].lower()
    image = axes.pcolormesh(times, np.arange(len(bounds)), counts, cmap=scheme, shading="nearest")
    rows = np.arange(max(used, default=0) + 2)[: len(bounds)]
    axes.set_ylim(-0.5, rows[-1] + 0.5)
    axes.set_yticks(rows, [f"≤ {bounds[row]}" for row in rows])
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=25)
    bar.ax.tick_params(labelsize=6, length=2)


# -- the whole ------------------------------------------------------------------------------------


def draw(
    dashboard: Mapping[str, Any], content: Mapping[int, Sequence[Series]], times: Values
) -> Figure:
    """All panels on the dashboard's grid."""
    panels = dashboard["panels"]
    lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + 1
    size = (_COLUMNS * _COLUMN_INCHES, lines * _LINE_INCHES)
    figure = Figure(figsize=size, facecolor="#eef0f2")
    first, last = (datetime.fromtimestamp(float(moment_s), UTC) for moment_s in times[[0, -1]])
    heading = f"{dashboard['title']}, {first:%Y-%m-%d %H:%M} to {last:%H:%M} UTC"
    _text(figure, heading, 0.1, 0.5 * _LINE_INCHES, fontsize=12)
    for panel in panels:
        _draw_panel(figure, panel, content.get(panel["id"], ()), times)
    return figure


def _draw_panel(
    figure: Figure, panel: Mapping[str, Any], series: Sequence[Series], times: Values
) -> None:
    grid = panel["gridPos"]
    left, top = grid["x"] * _COLUMN_INCHES, (grid["y"] + 1) * _LINE_INCHES
    width, height = grid["w"] * _COLUMN_INCHES, grid["h"] * _LINE_INCHES
    if panel["type"] == "row":
        _text(figure, panel["title"], left + 0.1, top + 0.6 * height, fontsize=10)
        return
    background = Rectangle(
        (left + _GAP_INCHES / 2, top + _GAP_INCHES / 2),
        width - _GAP_INCHES,
        height - _GAP_INCHES,
        facecolor="white",
        zorder=-1,
        transform=_inches(figure),
    )
    figure.add_artist(background)
    _text(figure, panel["title"], left + 0.14, top + 0.18, fontsize=8.5)
    if panel["type"] == "stat":
        draw_stat(_axes(figure, left + 0.1, top + 0.3, width - 0.2, height - 0.4), panel, series)
        return
    lines = 0 if panel["type"] == "heatmap" else -(-len(series) // _legend_columns(panel))
    below = 0.32 + 0.14 * lines
    longest = max((len(written(one.last, _unit(panel))) for one in series), default=0)
    beside = 0.3 + 0.055 * max(8, longest)
    size = width - beside - 0.18, height - 0.36 - below
    axes = _axes(figure, left + beside, top + 0.36, *size)
    axes.tick_params(labelsize=7, length=2, colors=_PLAIN)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e3e6e8", linewidth=0.6)
    axes.set_axisbelow(True)
    if not any(np.isfinite(one.values).any() for one in series):
        text = panel["fieldConfig"]["defaults"]["noValue"]
        axes.text(0.5, 0.5, text, color=_LIGHT, transform=axes.transAxes, ha="center")
        axes.set_yticks([])
    else:
        draw_kind = draw_heatmap if panel["type"] == "heatmap" else draw_lines
        draw_kind(axes, panel, series, times)
    axes.set_xlim(times[0], times[-1])
    axes.set_xticks(*_clock(times))


def _unit(panel: Mapping[str, Any]) -> str:
    return str(panel["fieldConfig"]["defaults"]["unit"])


def _clock(times: Values) -> tuple[list[float], list[str]]:
    """At most six round moments of a window, and how a clock shows them."""
    length_s = float(times[-1] - times[0])
    step_s = next(step for step in (*_ROUND_S, length_s) if length_s / step <= _MOST_TICKS)
    ticks = [float(tick) for tick in np.arange(times[0] // step_s + 1, times[-1] // step_s + 1)]
    moments = [tick * step_s for tick in ticks]
    form = "%H:%M:%S" if step_s < 60 else "%H:%M"  # noqa: PLR2004
    return moments, [f"{datetime.fromtimestamp(moment, UTC):{form}}" for moment in moments]


def _inches(figure: Figure) -> Any:
    """Inches from the upper left corner, as places on the figure."""
    width, height = figure.get_size_inches()
    flipped = mpl.transforms.Affine2D().scale(1 / width, -1 / height).translate(0, 1)
    return flipped + figure.transFigure


def _text(figure: Figure, text: str, left: float, top: float, *, fontsize: float) -> None:
    place = {"transform": _inches(figure), "va": "center", "color": _PLAIN, "weight": "bold"}
    figure.text(left, top, text, fontsize=fontsize, **place)


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    all_width, all_height = figure.get_size_inches()
    bottom = all_height - top - height
    return figure.add_axes(
        (left / all_width, bottom / all_height, width / all_width, height / all_height)
    )


def drawing(
    dashboard: Mapping[str, Any], client: httpx.Client, options: argparse.Namespace
) -> Figure:
    """The dashboard, drawn from what a Prometheus answers."""
    source = Prometheus(client, end_s=options.until.timestamp(), seconds=60 * options.minutes)
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    known = source.metrics()
    content = {}
    for panel in panels:
        scrape_s = float(panel["interval"].removesuffix("s"))
        variables = {
            **{name: getattr(options, name) for name in ("job", "instance", "key")},
            "__rate_interval": f"{source.window_s(scrape_s)}s",
        }
        content[panel["id"]] = answers(panel, source, known, variables)
    return draw(dashboard, content, source.times_s)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address")
    parser.add_argument("--minutes", type=float, default=15.0, help="length of the window")
    parser.add_argument(
        "--until",
        type=datetime.fromisoformat,
        default=datetime.now(UTC),
        help="its end, such as 2026-01-31T12:00Z; now without",
    )
    parser.add_argument("--out", type=Path, default=Path("dashboard.png"), help="PNG to write")
    parser.add_argument("--dots-per-inch", type=int, default=100, help="100 is 1488 pixels wide")
    parser.add_argument("--job", default=".*", help="the dashboard's variable, a pattern")
    parser.add_argument("--instance", default=".*", help="likewise")
    parser.add_argument("--key", default=".*", help="likewise")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Draws the dashboard."""
    options = arguments(words)
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    try:
        with httpx.Client(base_url=options.prometheus, timeout=30.0) as client:
            figure = drawing(dashboard, client, options)
    except (PanelError, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    drawn = BytesIO()
    figure.savefig(drawn, dpi=options.dots_per_inch)
    # A palette: a third of the bytes, and nobody sees it.
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(_PICTURE_COLORS, dither=Image.Dither.NONE).save(options.out, optimize=True)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
