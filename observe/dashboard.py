"""The dashboard as a table; `python observe/dashboard.py` writes it as Grafana reads it.

One panel is one entry of `ROWS`. Everything that panels have in common, Grafana's names for it
included, is below the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lossd_client.errors import ERRORS

TARGET = Path(__file__).parent / "grafana" / "dashboards" / "lossd.json"
DATA_SOURCE_UID = "lossd-prometheus"
SCRAPE_INTERVAL = "5s"
COLUMNS = 24

# Okabe and Ito's colours, which the colour-blind can tell apart, less the two that vanish on white
# or on black.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILLION, GREY = "#56B4E9", "#D55E00", "#999999"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, GREY)
# What the eighth and later series have beside a colour that was used before.
DASHES: tuple[list[int], ...] = ([], [8, 4], [2, 4], [12, 4, 2, 4])

# Every selector names where it looks, so that a renderer can tell metrics from functions.
AT = 'job=~"$job",instance=~"$instance"'
EVALUATE = AT + ',route="/v1/evaluate"'
WINDOW = "[$__rate_interval]"


@dataclass(frozen=True)
class Query:
    """One expression and how its series are called."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture. `series` are the names that have a fixed colour, in the order of the palette."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["lines", "stack", "heatmap", "value", "name"] = "lines"
    width: int = 8
    series: tuple[str, ...] = ()
    empty: str = "no data"
    scale: Literal["linear", "log"] = "linear"
    # Of a `value`: text and colour of some values; of all others the value itself, in blue.
    states: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it, side by side."""

    title: str
    height: int
    panels: tuple[Panel, ...]


def rate(counter: str, by: str = "", at: str = AT) -> str:
    """Increase per second, summed over what `by` does not name."""
    return f"sum by ({by}) (rate({counter}{{{at}}}{WINDOW}))"


def mean(histogram: str, by: str = "") -> str:
    """Mean of what a histogram saw lately."""
    return f"{rate(histogram + '_sum', by)} / {rate(histogram + '_count', by)}"


def quantile(q: float, histogram: str, by: str = "le", at: str = AT) -> str:
    """Quantile of what a histogram saw lately, as exact as its buckets are fine."""
    return f"histogram_quantile({q}, {rate(histogram + '_bucket', by, at)})"


def quantiles(histogram: str, at: str = AT) -> tuple[Query, ...]:
    """Median, 90th and 99th percentile."""
    return tuple(
        Query(quantile(q, histogram, at=at), f"p{round(q * 100)}") for q in (0.5, 0.9, 0.99)
    )


def total(gauge: str, by: str = "") -> str:
    """A gauge, summed over what `by` does not name."""
    return f"sum by ({by}) ({gauge}{{{AT}}})"


QUANTILES = ("p50", "p90", "p99")
STAGES = ("receive", "read", "queue", "compute", "judge", "write")
CODES = (*(code for code in ERRORS if ERRORS[code].status), "client_gone")

ROWS = (
    Row(
        "Is it well?",
        4,
        (
            Panel(
                "Ready",
                "Whether a job would be computed now: kernels compiled and a batch ran right "
                "lately. Of several instances, the worst.",
                "none",
                (Query(f"min(lossd_ready{{{AT}}})", "ready"),),
                kind="value",
                width=3,
                states=(("0", "not ready", VERMILLION), ("1", "ready", BLUE)),
            ),
            Panel(
                "State",
                "State of the engine. Failed is final: the service has to be restarted.",
                "none",
                (Query(f"lossd_engine_state{{{AT}}} == 1", "{{state}}"),),
                kind="name",
                width=3,
                series=("ready", "compiling", "starting", "draining", "stopped", "failed"),
            ),
            Panel(
                "Failed answers",
                "Share of evaluations of the last 5 minutes that were answered 5xx. Errors of the "
                "callers, 4xx, do not count.",
                "percentunit",
                (
                    Query(
                        f'(sum(rate(lossd_requests_total{{{EVALUATE},status=~"5.."}}[5m])) '
                        f"or vector(0)) / (sum(rate(lossd_requests_total{{{EVALUATE}}}[5m])) > 0)",
                        "failed",
                    ),
                ),
                kind="value",
                width=3,
                empty="no requests",
            ),
            Panel(
                "Kernels",
                "Share of the kernels that are compiled. The first start on a machine compiles "
                "for minutes, later ones load. Eager kernels are not compiled.",
                "percentunit",
                (
                    Query(
                        f"{total('lossd_kernels_ready')} / ({total('lossd_kernels_expected')} > 0)",
                        "compiled",
                    ),
                ),
                kind="value",
                width=3,
                empty="eager",
            ),
            Panel(
                "Start-up",
                "From the start of the engine until it was ready; of several instances, the "
                "longest.",
                "s",
                (Query(f"max(lossd_start_up_seconds{{{AT}}})", "start-up"),),
                kind="value",
                width=3,
            ),
            Panel(
                "Up for",
                "Time since the start of the process; of several instances, the youngest.",
                "s",
                (Query(f"time() - max(process_start_time_seconds{{{AT}}})", "up"),),
                kind="value",
                width=3,
            ),
            Panel(
                "What runs",
                "Version of the service, device, torch, and the version of its numbers: equal "
                "versions give equal bits on equal devices.",
                "none",
                (
                    Query(
                        f"lossd_build_info{{{AT}}}",
                        "{{version}} on {{device}}, numbers {{numerics_version}}",
                    ),
                ),
                kind="name",
                width=6,
            ),
        ),
    ),
    Row(
        "How much is asked?",
        7,
        (
            Panel(
                "Requests by key",
                "Evaluations answered per second, errors included, by the key they came with.",
                "reqps",
                (Query(rate("lossd_requests_total", "key", EVALUATE + ',key=~"$key"'), "{{key}}"),),
                kind="stack",
            ),
            Panel(
                "Samples by key",
                "Samples evaluated per second, by the key they came with: what the device works "
                "for.",
                "suffix:samples/s",
                (Query(rate("lossd_samples_total", "key", AT + ',key=~"$key"'), "{{key}}"),),
                kind="stack",
            ),
            Panel(
                "Requests in progress",
                "Requests that have begun and are not yet answered: those that wait, those that "
                "compute, and those that arrive or leave.",
                "short",
                (Query(total("lossd_requests_in_progress"), "in progress"),),
                series=("in progress",),
            ),
        ),
    ),
    Row(
        "How long does it take?",
        7,
        (
            Panel(
                "Latency",
                "From the head of an evaluation to its answer.",
                "s",
                quantiles("lossd_request_seconds", EVALUATE),
                series=QUANTILES,
            ),
            Panel(
                "Latency parts",
                "Mean seconds of an evaluation in each stage; together, its mean latency. Queue "
                "is load, compute is work, receive is the network.",
                "s",
                (Query(mean("lossd_stage_seconds", "stage"), "{{stage}}"),),
                kind="stack",
                series=STAGES,
            ),
            Panel(
                "Slow parts",
                "99th percentile of each stage: which one makes the slowest requests slow.",
                "s",
                (Query(quantile(0.99, "lossd_stage_seconds", "stage, le"), "{{stage}}"),),
                series=STAGES,
            ),
        ),
    ),
    Row(
        "How well does it batch?",
        7,
        (
            Panel(
                "Mean batch",
                "Samples, requests and tiles (4096 pixels) of a batch.",
                "short",
                (
                    Query(mean("lossd_batch_samples"), "samples"),
                    Query(mean("lossd_batch_requests"), "requests"),
                    Query(mean("lossd_batch_tiles"), "tiles"),
                ),
                width=6,
                series=("samples", "requests", "tiles"),
                scale="log",
            ),
            Panel(
                "Why batches left",
                "Batches per second. Idle: nothing else waited. Largest: the group with most "
                "samples. Full: a limit was reached. Delay: its oldest request had been overtaken "
                "long enough. Fair: the turn of one of several keys, or kept short for others. "
                "Drain: the service stops.",
                "suffix:batches/s",
                (Query(rate("lossd_batches_total", "reason"), "{{reason}}"),),
                kind="stack",
                width=6,
                series=("idle", "largest", "full", "delay", "drain", "fair"),
            ),
            Panel(
                "Batch sizes",
                "How many batches had how many samples.",
                "short",
                (
                    Query(
                        f"sum by (le) (increase(lossd_batch_samples_bucket{{{AT}}}{WINDOW}))",
                        "{{le}}",
                    ),
                ),
                kind="heatmap",
                width=6,
            ),
            Panel(
                "Time of a batch",
                "Time that the device needs for a batch.",
                "s",
                quantiles("lossd_compute_seconds"),
                width=6,
                series=QUANTILES,
            ),
        ),
    ),
    Row(
        "What waits?",
        7,
        (
            Panel(
                "Queue",
                "Requests and samples that wait for the device.",
                "short",
                (
                    Query(total("lossd_queue_requests"), "requests"),
                    Query(total("lossd_queue_samples"), "samples"),
                ),
                width=6,
                series=("requests", "samples"),
            ),
            Panel(
                "Bytes that wait",
                "Memory of the tensors that wait for the device.",
                "bytes",
                (Query(total("lossd_queue_bytes"), "waiting"),),
                width=6,
                series=("waiting",),
            ),
            Panel(
                "Age of the oldest",
                "How long the oldest request has waited, seen now and then (waiting), and whenever "
                "a batch leaves (dispatched, 99th percentile). A device that hangs shows here.",
                "s",
                (
                    Query(f"max(lossd_queue_oldest_seconds{{{AT}}})", "waiting"),
                    Query(quantile(0.99, "lossd_dispatch_oldest_seconds"), "dispatched"),
                ),
                width=6,
                series=("waiting", "dispatched"),
            ),
            Panel(
                "Left behind",
                "Requests that still wait when a batch leaves.",
                "short",
                quantiles("lossd_dispatch_queue_requests"),
                width=6,
                series=QUANTILES,
            ),
        ),
    ),
    Row(
        "What goes wrong?",
        7,
        (
            Panel(
                "Errors by code",
                "Answers per second that are errors, probes of readiness left out. docs/http.md "
                "says what the codes mean; 4xx are the callers' to mend. client_gone: the caller "
                "hung up.",
                "reqps",
                (
                    Query(
                        rate(
                            "lossd_requests_total",
                            "code",
                            AT + ',key=~"$key",code!="ok",route!="/health/ready"',
                        ),
                        "{{code}}",
                    ),
                ),
                series=CODES,
                empty="no errors",
            ),
            Panel(
                "Given up",
                "Requests per second whose deadline passed, or that nobody waited for any more, "
                "while they waited or (abandoned) while they were computed.",
                "reqps",
                (Query(rate("lossd_dropped_requests_total", "reason"), "{{reason}}"),),
                kind="stack",
                series=("deadline", "cancelled", "abandoned"),
                empty="none dropped",
            ),
            Panel(
                "Batches that failed",
                "Per second: batches that failed and ran again in halves, and jobs that failed "
                "alone, each a mistake of the service with a line in its log.",
                "suffix:/s",
                (
                    Query(rate("lossd_batch_reruns_total"), "run again"),
                    Query(rate("lossd_job_failures_total"), "jobs failed"),
                ),
                series=("run again", "jobs failed"),
            ),
        ),
    ),
    Row(
        "How many bytes?",
        7,
        (
            Panel(
                "Bytes in and out",
                "Bodies of requests and of answers.",
                "Bps",
                (
                    Query(rate("lossd_received_bytes_total", "", AT + ',key=~"$key"'), "received"),
                    Query(rate("lossd_sent_bytes_total", "", AT + ',key=~"$key"'), "sent"),
                ),
                series=("received", "sent"),
            ),
            Panel(
                "Bytes of a batch",
                "Memory of the tensors of a batch: mean and 99th percentile.",
                "bytes",
                (
                    Query(mean("lossd_batch_bytes"), "mean"),
                    Query(quantile(0.99, "lossd_batch_bytes"), "p99"),
                ),
                series=("mean", "p99"),
            ),
            Panel(
                "Device memory",
                "Of a GPU: allocated by tensors, reserved by torch, used by all processes, and "
                "total. Of a CPU: resident memory of the process, and what it may use.",
                "bytes",
                (Query(total("lossd_device_memory_bytes", "kind"), "{{kind}}"),),
                series=("used", "total", "allocated", "reserved"),
                scale="log",
            ),
        ),
    ),
    Row(
        "How is the process?",
        7,
        (
            Panel(
                "Event-loop lag",
                "How late the event loop is: whatever keeps it from running delays every request.",
                "s",
                quantiles("lossd_event_loop_lag_seconds"),
                width=6,
                series=QUANTILES,
            ),
            Panel(
                "Engine busy",
                "Share of the time in which an engine computes a batch. Near 100% it is the limit "
                "of the service.",
                "percentunit",
                (Query(rate("lossd_compute_seconds_sum", "instance"), "{{instance}}"),),
                width=6,
            ),
            Panel(
                "Processors",
                "Processors that the service keeps busy.",
                "short",
                (Query(rate("process_cpu_seconds_total", "instance"), "{{instance}}"),),
                kind="stack",
                width=6,
            ),
            Panel(
                "Memory of the process",
                "Resident memory. It may rise to the limits of queue and batch and then has to "
                "stay.",
                "bytes",
                (Query(total("process_resident_memory_bytes", "instance"), "{{instance}}"),),
                kind="stack",
                width=6,
            ),
        ),
    ),
)

VARIABLES = (
    ("job", "Job", "label_values(lossd_ready, job)"),
    ("instance", "Instance", 'label_values(lossd_ready{job=~"$job"}, instance)'),
    ("key", "Key", f"label_values(lossd_requests_total{{{AT}}}, key)"),
)

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The document that Grafana provisions."""
    return {
        "uid": "lossd-service",
        "title": "lossd",
        "description": "What a lossd service is asked, how fast it answers, and what goes wrong.",
        "tags": ["lossd"],
        "schemaVersion": 42,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_data_source_variable(), *(_variable(*row) for row in VARIABLES)]},
        "panels": list(_panels()),
    }


def _data_source_variable() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "Prometheus", "value": DATA_SOURCE_UID},
        "hide": 2,
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for row in ROWS:
        number, x = number + 1, 0
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }
        for panel in row.panels:
            number += 1
            place = {"x": x, "y": y + 1, "w": panel.width, "h": row.height}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            x += panel.width
        y += 1 + row.height


def _panel(panel: Panel) -> dict[str, Any]:
    kinds = {"heatmap": "heatmap", "value": "stat", "name": "stat"}
    options = {"heatmap": _heatmap_options, "value": _stat_options, "name": _stat_options}
    return {
        "type": kinds.get(panel.kind, "timeseries"),
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "interval": SCRAPE_INTERVAL,
        "targets": [_target(panel, *each) for each in zip("ABCDEF", panel.queries, strict=False)],
        "fieldConfig": {"defaults": _field(panel), "overrides": _overrides(panel)},
        "options": options.get(panel.kind, _lines_options)(panel),
    }


def _target(panel: Panel, ref_id: str, query: Query) -> dict[str, Any]:
    instant = panel.kind in ("value", "name")
    return {
        "refId": ref_id,
        "datasource": _SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        "instant": instant,
        "range": not instant,
        "format": "heatmap" if panel.kind == "heatmap" else "time_series",
    }


def _field(panel: Panel) -> dict[str, Any]:
    lines = panel.kind in ("lines", "stack")
    return {
        "unit": panel.unit,
        "noValue": panel.empty,
        # A colour of the palette where names are known; shades of one where they are not.
        "color": {"mode": "shades" if lines else "fixed", "fixedColor": BLUE},
        **({"min": 0} if lines and panel.scale == "linear" else {}),
        **({"custom": _line_style(panel)} if lines else {}),
        **({"mappings": _mappings(panel)} if panel.states else {}),
    }


def _line_style(panel: Panel) -> dict[str, Any]:
    stacked = panel.kind == "stack"
    scale = {"type": "log", "log": 2} if panel.scale == "log" else {"type": "linear"}
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 60 if stacked else 0,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "scaleDistribution": scale,
    }


def _mappings(panel: Panel) -> list[dict[str, Any]]:
    texts = {
        value: {"index": index, "text": text, "color": color}
        for index, (value, text, color) in enumerate(panel.states)
    }
    return [{"type": "value", "options": texts}]


def _overrides(panel: Panel) -> list[dict[str, Any]]:
    return [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": _look(panel, *divmod(index, len(PALETTE))),
        }
        for index, name in enumerate(panel.series)
    ]


def _look(panel: Panel, turn: int, index: int) -> list[dict[str, Any]]:
    color = {"id": "color", "value": {"mode": "fixed", "fixedColor": PALETTE[index]}}
    if turn == 0 or panel.kind == "name":
        return [color]
    return [color, {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": DASHES[turn]}}]


def _lines_options(panel: Panel) -> dict[str, Any]:
    stacked = panel.kind == "stack"
    return {
        "legend": {
            "showLegend": True,
            "displayMode": "list",
            "placement": "bottom",
            "calcs": ["lastNotNull"],
        },
        "tooltip": {"mode": "multi", "sort": "none" if stacked else "desc"},
    }


def _heatmap_options(panel: Panel) -> dict[str, Any]:
    return {
        "calculate": False,
        "cellGap": 1,
        "showValue": "never",
        "color": {
            "mode": "scheme",
            "scheme": "Cividis",
            "fill": BLUE,
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
        },
        "yAxis": {"axisPlacement": "left", "unit": panel.unit},
        "cellValues": {"unit": panel.unit},
        "rowsFrame": {"layout": "auto"},
        "filterValues": {"le": 1e-9},
        "exemplars": {"color": ORANGE},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": False},
    }


def _stat_options(panel: Panel) -> dict[str, Any]:
    return {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": panel.kind,
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "center",
        "orientation": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    }


def text() -> str:
    """The document as it stands in the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


def main() -> None:
    """Writes the file."""
    TARGET.write_text(text(), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
