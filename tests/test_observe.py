"""What watches the service asks for nothing that the service does not count."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import yaml
from matplotlib.colors import is_color_like
from prometheus_client import PROCESS_COLLECTOR
from prometheus_client.metrics import MetricWrapperBase

from lossd import batching, metrics, waiting
from lossd.app import create_app
from lossd.device_memory import Kind
from lossd.engine import Engine, State
from lossd.gauges import read_gauges
from lossd.settings import Settings
from lossd_client.errors import ERRORS
from observe import render
from observe.dashboard import COLUMNS, DASHES, PALETTE, ROWS, TARGET, text

ROOT = Path(__file__).parents[1]
OBSERVE = ROOT / "observe"
PROVISIONING = OBSERVE / "grafana" / "provisioning"
DASHBOARD: dict[str, Any] = json.loads(TARGET.read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
SCRAPED = {"job", "instance"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


ALERTS = [rule for group in read(OBSERVE / "alerts.yml")["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(Settings(device="cpu", kernels="eager"))


@pytest.fixture(scope="module")
def exported(engine: Engine) -> dict[str, set[str]]:
    """Labels of every series that Prometheus finds, by name."""
    found = {"up": set(SCRAPED)}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            labels = set(metric._labelnames)  # noqa: SLF001 - the library shows them nowhere else
            for suffix in SUFFIXES.get(family.type, ()):
                bounds = {"le"} if suffix == "_bucket" else set()
                found[family.name + suffix] = labels | bounds | SCRAPED
    read_gauges(engine)
    for collected in (metrics.BUILD, PROCESS_COLLECTOR):
        for family in collected.collect():
            for sample in family.samples:
                found[sample.name] = set(sample.labels) | SCRAPED
    return found


def expressions() -> Iterator[tuple[str, str, str]]:
    """Where each expression stands, the expression, and the name its series are given."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]
    for rule in ALERTS:
        yield rule["alert"], rule["expr"], ""


EXPRESSIONS = [pytest.param(*each[1:], id=each[0]) for each in expressions()]


def metrics_of(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:lossd_\w+|process_\w+|up\b)", expression))


def matchers_of(expression: str) -> list[tuple[str, str, list[tuple[str, str, str]]]]:
    """Every selector: its metric, its text, and label, operator and value of its matchers."""
    return [
        (name, inside, re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', inside))
        for name, inside in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expression)
    ]


@pytest.mark.parametrize(("expression", "legend"), EXPRESSIONS)
def test_an_expression_asks_for_what_the_service_counts(
    exported: dict[str, set[str]], expression: str, legend: str
) -> None:
    names = metrics_of(expression)
    assert names
    assert names <= set(exported)
    for name, inside, matchers in matchers_of(expression):
        assert {label for label, _, _ in matchers} <= exported[name], inside
    labels = set.union(*(exported[name] for name in names))
    groups = re.findall(r"\b(?:by|on|ignoring)\s*\(([^)]*)\)", expression)
    grouped = {label for group in groups for label in re.findall(r"\w+", group)}
    assert grouped <= labels
    shown = set(re.findall(r"{{\s*(\w+)\s*}}", legend))
    assert shown <= (grouped if groups else labels)


@pytest.mark.parametrize(("expression", "legend"), EXPRESSIONS)
def test_a_matcher_asks_for_a_value_that_occurs(
    engine: Engine, expression: str, legend: str
) -> None:
    del legend
    app = create_app(Settings(device="cpu", kernels="eager"), engine)
    occur = {
        "code": {"ok", *ERRORS},
        "state": set(get_args(State)),
        "kind": set(get_args(Kind)),
        "job": {"lossd"},
        "route": {getattr(route, "path", "") for route in app.routes},
    }
    for _, _, matchers in matchers_of(expression):
        for label, operator, value in matchers:
            if operator in ("=", "!="):
                assert value in occur[label], (label, value)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_looks_where_the_reader_chose(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        selectors = matchers_of(target["expr"])
        assert {name for name, _, _ in selectors} == metrics_of(target["expr"])
        for name, inside, _ in selectors:
            assert inside.startswith('job=~"$job",instance=~"$instance"'), name
        used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
        assert used <= {variable["name"] for variable in DASHBOARD["templating"]["list"]}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    defaults = panel["fieldConfig"]["defaults"]
    assert "-" not in render.written(1.0, defaults["unit"])
    assert defaults["noValue"]
    assert all(target["refId"] for target in panel["targets"])
    assert len({target["legendFormat"] for target in panel["targets"]}) == len(panel["targets"])


def test_panels_have_ids_and_titles_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert len(titles) == len(set(titles))
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(COLUMNS))
    assert len(cells) == COLUMNS * (1 + max(y for _, y in cells)), "a hole in the grid"


def test_what_has_few_names_has_a_colour_for_each() -> None:
    series = {panel.title: set(panel.series) for row in ROWS for panel in row.panels}
    codes = {code for code, error in ERRORS.items() if error.status} | {"client_gone"}
    assert series["Latency parts"] == series["Slow parts"] == set(metrics.STAGE)
    assert series["Why batches left"] == set(get_args(batching.Reason))
    assert series["State"] == set(get_args(State))
    assert series["Device memory"] == set(get_args(Kind))
    assert series["Errors by code"] == codes
    assert series["Given up"] == set(get_args(waiting.DropReason))
    assert len(codes) <= len(PALETTE) * len(DASHES)
    assert all(is_color_like(color) for color in PALETTE)


def test_the_dashboard_is_what_its_table_says() -> None:
    assert TARGET.read_text(encoding="utf-8") == text(), "run make dashboard"


def test_grafana_finds_its_data_source_and_its_dashboards() -> None:
    (source,) = read(PROVISIONING / "datasources" / "prometheus.yml")["datasources"]
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    scrape = read(OBSERVE / "prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
    assert {panel["interval"] for panel in PANELS} == {scrape}


COMPOSE = read(ROOT / "docker-compose.yml")["services"]


def mounted(service: str) -> dict[str, Path]:
    """What a service reads of the repository, by where it finds it."""
    volumes = [volume.split(":") for volume in COMPOSE[service]["volumes"]]
    return {target: ROOT / source for source, target, *mode in volumes if mode == ["ro"]}


def test_grafana_is_given_its_settings_and_its_dashboard() -> None:
    mounts = mounted("grafana")
    assert mounts["/etc/grafana/provisioning"] == PROVISIONING
    (provider,) = read(PROVISIONING / "dashboards" / "lossd.yml")["providers"]
    folder = provider["options"]["path"]
    assert mounts[folder] == TARGET.parent
    environment = COMPOSE["grafana"]["environment"]
    home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/{TARGET.name}"
    (source,) = read(PROVISIONING / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_prometheus_is_given_its_settings_and_finds_the_service() -> None:
    ((folder, source),) = mounted("prometheus").items()
    assert source == OBSERVE
    assert f"--config.file={folder}/prometheus.yml" in COMPOSE["prometheus"]["command"]
    settings = read(OBSERVE / "prometheus.yml")
    assert all((OBSERVE / name).exists() for name in settings["rule_files"])
    (scrape,) = settings["scrape_configs"]
    ((target,),) = (static["targets"] for static in scrape["static_configs"])
    for name in ("lossd", "lossd-cpu"):
        aliases = COMPOSE[name]["networks"]["default"]["aliases"]
        assert target.removesuffix(":8000") in aliases


def test_what_watches_is_seen_from_this_machine_alone_and_has_no_password_to_guess() -> None:
    for name in ("prometheus", "grafana"):
        assert all(port.startswith("127.0.0.1:") for port in COMPOSE[name]["ports"])
        assert re.search(r":v?\d+\.\d+\.\d+$", COMPOSE[name]["image"])
    environment = COMPOSE["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_the_matter_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".")
    assert len(rule["annotations"]["action"].split()) > 8
    settings = {f"LOSSD_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"LOSSD_\w+", rule["annotations"]["action"])) <= settings


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    cases = (OBSERVE / "alerts_test.yml").read_text(encoding="utf-8")
    fired = set(re.findall(r'alertname="(\w+)"', cases))
    fired |= {
        case["alertname"]
        for test in read(OBSERVE / "alerts_test.yml")["tests"]
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in ALERTS}


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None and "CI" not in os.environ,
    reason="promtool, of the Debian package prometheus, is not installed",
)


def promtool(*words: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own files
        ["promtool", *words],  # noqa: S607 - wherever it is installed
        capture_output=True,
        text=True,
        check=False,
        cwd=OBSERVE,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_its_settings_and_every_alert_fires_when_it_should() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("test", "rules", "alerts_test.yml")


@needs_promtool
def test_prometheus_reads_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    variables = {"job": ".*", "instance": ".*", "key": ".*", "__rate_interval": "20s"}
    asked = [expression for panel in PANELS for expression, _ in render.questions(panel, variables)]
    rules = [{"record": f"panel:{n}", "expr": asked[n]} for n in range(len(asked))]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(file))


# -- the renderer ----------------------------------------------------------------------------------


def prometheus(answers: Callable[[str], Any]) -> httpx.Client:
    """A Prometheus that knows all metrics of the dashboard, and answers expressions as told."""
    names = {name for _, expression, _ in expressions() for name in metrics_of(expression)}

    def answer(request: httpx.Request) -> httpx.Response:
        path, asked = request.url.path, request.url.params
        if path.endswith("/__name__/values"):
            return httpx.Response(200, json={"status": "success", "data": sorted(names)})
        if path.endswith("/metadata"):
            return httpx.Response(200, json={"status": "success", "data": {}})
        found = answers(asked["query"])
        if isinstance(found, str):
            return httpx.Response(400, json={"status": "error", "error": found})
        moments = {"value": [float(asked["time"]), "3"]} if "time" in asked else {}
        if "start" in asked:
            moments = {"values": [[float(asked["start"]), "2"], [float(asked["end"]), "NaN"]]}
        result = [{"metric": labels, **moments} for labels in found]
        return httpx.Response(200, json={"status": "success", "data": {"result": result}})

    return httpx.Client(base_url="http://prometheus", transport=httpx.MockTransport(answer))


def test_the_picture_has_every_panel_and_says_where_there_is_nothing() -> None:
    def answers(expression: str) -> list[dict[str, str]]:
        if "process_cpu_seconds_total" in expression:
            return []
        return [{"le": bound, "key": "a", "code": "internal"} for bound in ("1.0", "2.0", "+Inf")]

    figure = render.drawing(DASHBOARD, prometheus(answers), render.arguments(["--minutes", "5"]))
    drawn = [one.get_text() for one in figure.texts]
    assert all(panel["title"] in drawn for panel in DASHBOARD["panels"])
    inside = [one.get_text() for axes in figure.axes for one in axes.texts]
    assert inside.count("no data") == 1
    legends = [axes.get_legend() for axes in figure.axes]
    labels = {text.get_text() for one in legends if one for text in one.get_texts()}
    assert {"p99  2 s", "internal  2 req/s", "received  2 B/s"} <= labels


def test_a_panel_whose_expression_is_an_error_is_named() -> None:
    client = prometheus(lambda expression: "parse error" if "batches_total" in expression else [])
    with pytest.raises(render.PanelError, match="'Why batches left': parse error"):
        render.drawing(DASHBOARD, client, render.arguments([]))


def test_a_panel_that_asks_for_an_unknown_metric_is_named() -> None:
    panel = {**PANELS[0], "targets": [{"expr": 'lossd_gone{job=~"$job"}', "legendFormat": ""}]}
    client = prometheus(lambda _: [])
    with pytest.raises(render.PanelError, match="'Ready': no such metric: lossd_gone"):
        render.drawing({**DASHBOARD, "panels": [panel]}, client, render.arguments([]))


def test_a_renderer_without_a_prometheus_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dashboard.png"
    assert render.main(["--prometheus", "http://127.0.0.1:9", "--out", str(out)]) == 1
    assert "refused" in capsys.readouterr().err
    assert not out.exists()


def test_a_renderer_that_asks_something_else_says_so() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"status": 404, "code": "not_found"})

    client = httpx.Client(base_url="http://lossd", transport=httpx.MockTransport(answer))
    with pytest.raises(render.PanelError, match="answers 404, it is no Prometheus"):
        render.drawing(DASHBOARD, client, render.arguments([]))


def test_a_picture_ends_when_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = prometheus(lambda _: [])
    asked: list[float] = []

    def note(request: httpx.Request) -> None:
        asked.append(float(request.url.params.get("end", 0)))

    fake.event_hooks = {"request": [note]}
    monkeypatch.setattr(httpx, "Client", lambda **_: fake)
    out = tmp_path / "dashboard.png"
    assert render.main(["--until", "2026-01-31T12:00:00+00:00", "--out", str(out)]) == 0
    assert max(asked) == pytest.approx(1769860800, abs=5)
    assert out.read_bytes().startswith(b"\x89PNG")
