"""The service's own page in a real browser; its form has a file of its own."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import (
    Browser,
    Page,
    Request,
    Route,
    expect,
)

from browser_fixture import Tab
from lossd.catalogue import catalogue
from lossd.keys import add_key
from lossd.losses import LOSSES
from lossd_client.wire import PROBLEM
from page_fixture import (
    compute,
    refused,
)
from service_fixture import Served, serving


@pytest.fixture(scope="module")
def url(served: Served) -> str:
    return str(served.client.base_url)


@pytest.fixture
def page(tab: Tab, url: str) -> Page:
    """The page, loaded."""
    opened = tab.open(url)
    opened.wait_for_selector(".loss")
    return opened


# -- what it says ---------------------------------------------------------------------------------


def test_it_says_whether_the_service_is_ready_and_what_it_may_be_asked(
    page: Page, tab: Tab, served: Served, url: str
) -> None:
    engine = served.engine
    expect(page.locator("#state")).to_have_text(f"ready on {engine.device_name}")
    facts = page.locator("#service-facts")
    for text in ("ready", engine.device_name, engine.numerics_version, "0.1.0"):
        expect(facts).to_contain_text(text)
    limits = page.locator("#limits")
    for name, value in served.client.get("/v1/limits").json().items():
        expect(limits).to_contain_text(name)
        if isinstance(value, int) and not name.endswith(("_bytes", "_ms", "_s")):
            expect(limits).to_contain_text(str(value))
    expect(limits).to_contain_text("256 MiB")
    assert all(asked.startswith(url) for asked in tab.requests), "it asks nobody else"
    expect(page.locator("#key")).to_be_hidden()


def test_every_link_leads_somewhere(page: Page, served: Served) -> None:
    targets = page.eval_on_selector_all("a", "links => links.map((link) => link.href)")
    for target in {one.partition("#")[0] for one in targets if one.startswith("http://127.")}:
        assert served.client.get(target).is_success, target
    for anchor in {one.partition("#")[2] for one in targets if "#" in one}:
        assert page.locator(f"#{anchor}").count() == 1


def test_it_asks_gently_whether_the_service_is_ready(tab: Tab, url: str) -> None:
    page = tab.page
    page.clock.install()
    asked: list[Request] = []
    page.on("request", lambda one: asked.append(one) if "health" in one.url else None)
    tab.open(url)
    page.wait_for_selector(".loss")
    expect(page.locator("#state")).to_contain_text("ready")
    assert len(asked) == 1
    page.clock.run_for(10_500)
    assert len(asked) == 2
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.clock.run_for(60_000)
    assert len(asked) == 2, "nobody looks"
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {value: false});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.clock.run_for(1)
    assert len(asked) == 3


def test_it_says_that_the_service_is_not_ready_or_gone_and_comes_back(tab: Tab, url: str) -> None:
    page = tab.page
    page.clock.install()
    tab.open(url)
    state = page.locator("#state")
    expect(state).to_contain_text("ready on")

    def starting(route: Route) -> None:
        document = {"title": "Not ready.", "detail": "compiling kernels", "errors": []}
        route.fulfill(status=503, content_type=PROBLEM, body=json.dumps(document))

    page.route("**/health/ready", starting)
    page.clock.run_for(10_500)
    expect(state).to_have_text("not ready: compiling kernels")
    page.unroute("**/health/ready")
    page.route("**/health/ready", lambda route: route.abort())
    page.clock.run_for(10_500)
    expect(state).to_have_text("does not answer")
    page.unroute("**/health/ready")
    page.clock.run_for(20_500)
    expect(state).to_contain_text("ready on")
    refused(tab, "503|ERR_FAILED")


# -- the catalogue --------------------------------------------------------------------------------


def test_every_loss_opens_with_formula_curves_and_parameters(page: Page) -> None:
    assert page.locator(".loss").count() == len(LOSSES)
    page.eval_on_selector_all(".loss", "all => all.forEach((one) => (one.open = true))")
    expect(page.locator(".loss .formula")).to_have_count(len(LOSSES))
    shown = page.eval_on_selector_all(
        ".loss",
        """all => Object.fromEntries(all.map((one) => [one.id, {
            text: one.innerText,
            formulas: one.querySelectorAll(".formula math").length,
            lines: one.querySelectorAll("svg.large polyline").length,
            buttons: one.querySelectorAll("button").length,
        }]))""",
    )
    for entry in catalogue():
        found = shown[f"loss-{entry['name']}"]
        said = [entry["use"], entry["value"], entry["reference"]["text"], *entry["traps"]]
        said += entry["parameters"]["properties"]
        assert not [text for text in said if text.replace("`", "") not in found["text"]]
        assert found["formulas"] >= 1
        assert found["lines"] >= 2
        assert found["buttons"] == (entry["kind"] == "pixel")
    heights = page.eval_on_selector_all(
        ".formula math", "all => all.map((one) => one.getBoundingClientRect().height)"
    )
    assert min(heights) > 10


@pytest.mark.parametrize(
    ("text", "family", "kind", "task"),
    [
        ("", "region", "", ""),
        ("", "", "box", ""),
        ("", "", "", "multilabel"),
        ("DICE  weighted", "compound", "", "binary"),
        ("no such loss", "", "", ""),
    ],
)
def test_the_list_is_filtered(page: Page, text: str, family: str, kind: str, task: str) -> None:
    page.fill("#filter-text", text)
    for name, value in (("family", family), ("kind", kind), ("task", task)):
        page.select_option(f"#filter-{name}", value)
    expected = set()
    for entry in catalogue():
        words = [entry["name"], *entry["aliases"], entry["family"], entry["summary"]]
        words += [entry["use"], *entry["traps"], entry["reference"]["text"]]
        searched = " ".join(words).lower()
        if (
            all(word in searched for word in text.lower().split())
            and family in ("", entry["family"])
            and kind in ("", entry["kind"])
            and (not task or task in entry["tasks"])
        ):
            expected.add(f"loss-{entry['name']}")
    visible = page.locator(".loss:visible")
    assert {one.get_attribute("id") for one in visible.all()} == expected
    expect(page.locator("#filter-count")).to_have_text(f"{len(expected)} of {len(LOSSES)} losses")


def test_an_address_leads_to_a_loss(tab: Tab, url: str) -> None:
    page = tab.open(f"{url}/#loss-matthews")
    expect(page.locator("#loss-matthews .formula")).to_be_in_viewport()
    assert page.locator(".loss[open]").count() == 1


def test_a_loss_goes_from_the_list_into_the_form(page: Page) -> None:
    page.click("#loss-tversky > summary")
    page.get_by_role("button", name="Try tversky").click()
    expect(page.locator("#try-losses")).to_contain_text("tversky")
    expect(page.locator("#try-compute")).to_be_focused()
    assert "tversky" in page.inner_text("#try-curl")


# -- keys -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    folder = tmp_path_factory.mktemp("keys")
    key = add_key(folder / "keys.json", "lab-a")
    with serving(keys_file=folder / "keys.json", cache_dir=folder) as running:
        yield running, key


def test_a_key_is_typed_used_and_kept_nowhere(tab: Tab, guarded: tuple[Served, str]) -> None:
    running, key = guarded
    page = tab.open(str(running.client.base_url))
    expect(page.locator("#key")).to_be_visible()
    expect(page.locator("#state")).to_contain_text("ready")
    expect(page.locator("#losses").get_by_role("alert")).to_have_count(1)
    assert "$LOSSD_API_KEY" in page.inner_text("#try-curl")
    page.fill("#key-field", "lossd_wrong")
    page.press("#key-field", "Enter")
    expect(page.locator("#key-said")).to_have_text("The service refuses this key.")
    page.fill("#key-field", key)
    page.click("#key-form button[type=submit]")
    expect(page.locator(".loss")).to_have_count(len(LOSSES))
    expect(page.locator("#limits")).to_contain_text("body_bytes")
    expect(page.locator("#key-said")).to_have_text("In use.")
    page.click("#try-example")
    page.wait_for_selector("#try-values")
    assert "$LOSSD_API_KEY" in page.inner_text("#try-curl")
    assert key not in page.content()
    assert page.input_value("#key-field") == ""
    assert (
        page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    )
    assert not [asked for asked in tab.requests if key in asked]
    page.click("#key-forget")
    expect(page.locator("#key-said")).to_have_text("Forgotten.")
    compute(page)
    expect(page.locator("#try-answer").get_by_role("alert")).to_contain_text("unauthorized")
    page.reload()
    expect(page.locator("#losses").get_by_role("alert")).to_have_count(1)
    refused(tab, "401")


def test_quotas_are_told_and_so_is_their_end(tab: Tab, tmp_path: Path) -> None:
    with serving(key_requests_per_minute=1, cache_dir=tmp_path) as running:
        page = tab.open(str(running.client.base_url))
        page.wait_for_selector(".loss")
        expect(page.locator("#limits")).to_contain_text("requests: 1 of 1 left")
        page.click("#try-example")
        page.wait_for_selector("#try-values")
        compute(page)
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("quota_exceeded")
        expect(alert).to_contain_text(re.compile(r"again in \d+ s"))
        refused(tab, "429")


# -- every call -----------------------------------------------------------------------------------


def test_every_call_is_described_with_nothing_from_elsewhere(
    tab: Tab, url: str, served: Served
) -> None:
    page = tab.open(f"{url}/docs")
    paths = served.client.get("/openapi.json").json()["paths"]
    expected = [f"{method.upper()} {path}" for path in paths for method in paths[path]]
    expect(page.locator(".call")).to_have_count(len(expected))
    assert page.locator(".call > summary h2 code").all_text_contents() == expected
    page.eval_on_selector_all("details", "all => all.forEach((one) => (one.open = true))")
    evaluate = page.locator(".call", has_text="POST /v1/evaluate").first
    expect(evaluate.get_by_label("Example of application/json")).to_contain_text("logits")
    expect(evaluate).to_contain_text("unauthorized")
    assert tab.accessibility_faults() == []
    assert all(asked.startswith(url) for asked in tab.requests), "it asks nobody else"


def test_calls_are_shown_with_a_key_that_is_typed(tab: Tab, guarded: tuple[Served, str]) -> None:
    running, key = guarded
    page = tab.open(str(running.client.base_url.join("/docs")))
    expect(page.locator("#key")).to_be_visible()
    expect(page.locator(".call")).to_have_count(0)
    page.fill("#key-field", key)
    page.press("#key-field", "Enter")
    expect(page.locator(".call").first).to_be_visible()
    expect(page.locator("#key")).to_be_hidden()
    assert key not in page.content()
    refused(tab, "401")


# -- for everybody --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    browser: Browser, url: str, scheme: Any, guarded: tuple[Served, str]
) -> None:
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce")
    tab = Tab(context.new_page())
    page = tab.open(url)
    page.wait_for_selector(".loss")
    page.click("#try-example")
    page.wait_for_selector("canvas")
    page.click("#loss-exponential_logarithmic > summary")  # all entries are made alike
    page.eval_on_selector_all("#try details", "all => all.forEach((one) => (one.open = true))")
    page.fill("#filter-text", "exponential_logarithmic")
    assert tab.accessibility_faults() == []
    page.fill("#param-focal-gamma", "-1")
    compute(page)
    page.wait_for_selector(".problem")
    assert tab.accessibility_faults() == []
    tab.open(str(guarded[0].client.base_url))
    expect(page.locator("#key")).to_be_visible()
    page.wait_for_selector(".problem")
    assert tab.accessibility_faults() == []
    context.close()


def test_nothing_is_too_wide_for_a_telephone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    page.click("#try-example")
    page.wait_for_selector("canvas")
    page.eval_on_selector_all("details", "all => all.forEach((one) => (one.open = true))")
    expect(page.locator(".loss .formula")).to_have_count(len(LOSSES))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_it_is_used_with_the_keyboard_alone(page: Page) -> None:
    focused = "document.activeElement.id || document.activeElement.textContent.trim()"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to the content"
    page.keyboard.press("Enter")
    reached = []
    while (at := page.evaluate(focused)) != "try-compute":
        page.keyboard.press("Tab")
        reached.append(at)
        assert len(reached) < 60
    order = ["try-example", "try-prediction", "try-target", "try-activation", "try-loss", "try-add"]
    assert [one for one in reached if one in order] == order
    page.focus("#try-example")
    page.keyboard.press("Enter")
    page.wait_for_selector("canvas")
    page.focus("#loss-dice > summary")
    page.keyboard.press("Enter")
    expect(page.locator("#loss-dice .formula")).to_be_visible()
    page.focus("#filter-text")
    page.keyboard.type("matthews")
    expect(page.locator(".loss:visible")).to_have_count(1)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


# -- behind a proxy -------------------------------------------------------------------------------


@pytest.fixture
def behind_a_prefix(url: str) -> Iterator[str]:
    """A proxy that serves the service below `/tools/lossd/`."""
    prefix = "/tools/lossd"

    class Proxy(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            assert self.path.startswith(f"{prefix}/"), self.path
            length = int(self.headers.get("Content-Length", 0))
            kept = ("accept", "content-type", "if-none-match")
            answer = httpx.request(
                self.command,
                url + self.path.removeprefix(prefix),
                headers={
                    name: value for name, value in self.headers.items() if name.lower() in kept
                },
                content=self.rfile.read(length),
            )
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = _pass_on  # noqa: N815 - names of the library

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}{prefix}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_works_below_a_prefix(tab: Tab, behind_a_prefix: str) -> None:
    page = tab.open(behind_a_prefix)
    page.wait_for_selector(".loss")
    expect(page.locator("#state")).to_contain_text("ready on")
    page.click("#try-example")
    page.wait_for_selector("#try-values")
    assert "LOSSD_API_KEY" not in page.inner_text("#try-curl")
    assert f"{behind_a_prefix}v1/evaluate" in page.inner_text("#try-curl")
    assert all(asked.startswith(behind_a_prefix) for asked in tab.requests)
    assert page.locator("nav a", has_text="HTTP interface").evaluate("a => a.href") == (
        f"{behind_a_prefix}docs"
    )
