"""The service's own page: what a browser is sent, and that it says what the registry says."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import numpy as np
import pytest

from generate_page import EXAMPLE, PAGE, curve, description, drawn_places, mathml
from lossd.catalogue import describe
from lossd.keys import add_key
from lossd.losses import LOSSES
from lossd.pages.serving import FILES_PATH, page_files, wants_page
from lossd_client.wire import Array
from service_fixture import Caller, Json, Served, problem, serving
from sweeps import at_places, computed, figure

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
FILES = sorted(path.name for path in PAGE.iterdir())
WRITTEN = [name for name in FILES if name.endswith((".html", ".css", ".js"))]
CURVES: Json = httpx.Response(200, content=(PAGE / "curves.json").read_bytes()).json()
DESCRIPTIONS: Json = httpx.Response(200, content=(PAGE / "descriptions.json").read_bytes()).json()
MATHML = "{http://www.w3.org/1998/Math/MathML}"


def page(client: Caller, method: str = "GET", **headers: str) -> httpx.Response:
    return client.request(method, "/", headers={"Accept": BROWSER, **headers})


def text_of(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


# -- who gets it ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("application/json;q=0.5, TEXT/HTML ; q=0.9", True),
        ("text/html;q=0.5, application/json;q=0.5", False),
        ("application/json, text/html;q=0.9", False),
        ("*/*", False),
        ("text/*", False),
        ("text/html;q=0", False),
        ("text/html;q=much", False),
        ("", False),
    ],
)
def test_who_prefers_html_gets_the_page(app_client: Caller, accept: str, *, wanted: bool) -> None:
    assert wants_page([(b"accept", accept.encode())]) is wanted
    answer = app_client.get("/", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html" if wanted else "application/json")
    assert answer.headers["vary"] == "Accept"
    if not wanted:
        assert answer.json()["catalogue"] == "/v1/losses"


def test_the_index_for_programs_says_where_things_are(app_client: Caller) -> None:
    for path in (value for value in app_client.get("/").json().values() if value.startswith("/")):
        assert app_client.get(path).status_code in (200, 405), path


# -- how it is sent -------------------------------------------------------------------------------


def test_every_file_of_the_page_is_sent_as_what_it_is(app_client: Caller) -> None:
    kinds = {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".svg": "image/svg+xml",
        ".png": "image/png",
        ".npy": "application/octet-stream",
    }
    assert sorted(page_files()) == FILES
    for name in FILES:
        answer = app_client.get(f"{FILES_PATH}{name}")
        assert answer.content == (PAGE / name).read_bytes()
        assert answer.headers["content-type"] == kinds[Path(name).suffix]


def test_the_page_trusts_nothing_inline_and_nothing_from_elsewhere(app_client: Caller) -> None:
    for answer in (page(app_client), *map(app_client.get, ("/docs", f"{FILES_PATH}page.js"))):
        sources = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert sources["default-src"] == sources["base-uri"] == sources["form-action"] == "'none'"
        assert sources["script-src"] == sources["style-src"] == sources["connect-src"] == "'self'"
        assert sources["frame-ancestors"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/", f"{FILES_PATH}page.js"])
def test_a_browser_that_has_it_is_sent_no_content(app_client: Caller, path: str) -> None:
    headers = {"Accept": BROWSER}
    first = app_client.get(path, headers=headers)
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (etag, f"W/{etag}", f'"another", {etag}', "*"):
        again = app_client.get(path, headers={**headers, "If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    assert app_client.get(path, headers={**headers, "If-None-Match": '"another"'}).content


@pytest.mark.parametrize("path", ["/", f"{FILES_PATH}page.css"])
def test_head_says_what_get_would(app_client: Caller, path: str) -> None:
    whole = app_client.get(path, headers={"Accept": BROWSER})
    head = app_client.head(path, headers={"Accept": BROWSER})
    assert head.status_code == 200
    assert head.content == b""
    for name in ("content-length", "content-type", "etag", "content-security-policy"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("name", ["nowhere.js", "serving.py", "..%2Fserving.py", "", "page.js/x"])
def test_what_is_no_file_of_the_page_is_not_found(app_client: Caller, name: str) -> None:
    problem(app_client.get(f"{FILES_PATH}{name}"), 404, "not_found")


def test_files_are_read_only(app_client: Caller) -> None:
    for path in ("/", f"{FILES_PATH}page.js"):
        answer = app_client.post(path, headers={"Accept": BROWSER})
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD"


def test_openapi_tells_of_the_page_and_not_of_its_files(app_client: Caller) -> None:
    paths = app_client.get("/openapi.json").json()["paths"]
    assert set(paths["/"]) == {"get"}
    assert "text/html" in paths["/"]["get"]["responses"]["200"]["content"]
    assert not [path for path in paths if path.startswith(FILES_PATH)]


# -- with keys ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    folder = tmp_path_factory.mktemp("keys")
    key = add_key(folder / "keys.json", "lab-a")
    with serving(keys_file=folder / "keys.json", cache_dir=folder) as running:
        yield running, key


def test_the_page_needs_no_key_and_is_the_same_for_everybody(
    guarded: tuple[Served, str], app_client: Caller
) -> None:
    running, key = guarded
    without, with_key = {"Accept": BROWSER}, {"Accept": BROWSER, "X-API-Key": key}
    for path in ("/", "/docs", *(f"{FILES_PATH}{name}" for name in FILES)):
        for method in ("GET", "HEAD"):
            open_to_all = running.client.request(method, path, headers=without)
            assert open_to_all.status_code == 200
            opened = running.client.request(method, path, headers=with_key)
            assert opened.content == open_to_all.content
            elsewhere = app_client.request(method, path, headers=without)
            assert elsewhere.content == open_to_all.content


@pytest.mark.parametrize("path", ["/", f"{FILES_PATH}page.js"])
def test_a_wrong_key_is_refused_even_there(guarded: tuple[Served, str], path: str) -> None:
    headers = {"Accept": BROWSER, "X-API-Key": "wrong"}
    problem(guarded[0].client.get(path, headers=headers), 401, "unauthorized")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/losses"), ("POST", "/"), ("POST", "/page/page.js"), ("GET", "/page")],
)
def test_asking_for_html_opens_nothing_else(
    guarded: tuple[Served, str], method: str, path: str
) -> None:
    answer = guarded[0].client.request(method, path, headers={"Accept": BROWSER})
    problem(answer, 401, "unauthorized")


# -- what it holds --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_has_nothing_inline_and_names_no_other_place(name: str) -> None:
    text = text_of(name)
    # Names of namespaces are never asked for.
    assert set(re.findall(r"https?://[^\s\"'`)]*", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\s(style|on\w+)=\"|<style|innerHTML|insertAdjacentHTML|eval\(", text)
    assert not re.search(r"localStorage|sessionStorage|document\.cookie", text)
    if name.endswith(".html"):
        script = {"index.html": "page.js", "docs.html": "docs.js"}[name]
        assert re.findall(r"<script[^>]*>", text) == [f'<script type="module" src="page/{script}">']


def test_every_file_is_used_and_every_file_used_is_there() -> None:
    used = {"index.html", "docs.html"}
    named = re.compile(r"""["'](?:\./|page/)?([\w-]+\.(?:js|css|json|svg|npy|png))["']""")
    for name in WRITTEN:
        used.update(named.findall(text_of(name)))
    of_others = {"prediction.npy", "mask.png", "openapi.json"}
    assert used - of_others == set(FILES)


def test_addresses_are_relative_so_that_a_prefix_may_stand_before_them() -> None:
    for name in WRITTEN:
        assert not re.findall(r"""(?:href|src|action)=["']/|ask\(["']/""", text_of(name))


def test_labels_stand_for_every_field_and_ids_are_unique() -> None:
    text = text_of("index.html")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    fields = re.findall(r"<(?:input|select)[^>]*\bid=\"([^\"]+)\"", text)
    assert set(fields) == set(re.findall(r'<label for="([^"]+)"', text))
    pointed_at = re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', text)
    assert set(pointed_at) <= set(ids)


def test_what_a_first_visit_loads_before_it_shows_anything_is_small() -> None:
    assert sum(len((PAGE / name).read_bytes()) for name in WRITTEN) < 96 * 1024


# -- what it says of losses -----------------------------------------------------------------------


def test_the_page_knows_every_loss_and_no_other() -> None:
    assert set(CURVES) == set(DESCRIPTIONS) == set(LOSSES)


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_is_described_as_the_catalogue_says(name: str) -> None:
    assert DESCRIPTIONS[name] == description(describe(name)), "run make page"


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_formula_is_mathml(name: str) -> None:
    for line in DESCRIPTIONS[name]["formula"]:
        root = ET.fromstring(line)  # noqa: S314 - our own
        assert root.tag == f"{MATHML}math"
        assert {element.tag.removeprefix(MATHML) for element in root.iter()} <= {
            *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mstyle", "mfrac", "msqrt"),
            *("msub", "msup", "msubsup", "munder", "mover", "munderover"),
            *("mtable", "mtr", "mtd"),
        }
        assert not {key for element in root.iter() for key in element.attrib} & {"style", "href"}
        words = "".join(root.itertext())
        assert words
        assert "\\" not in words, "LaTeX that was not understood"


def test_functions_of_a_formula_stand_apart_and_words_together() -> None:
    space = '<mspace width="0.167em"/>'
    (line,) = mathml(r"a \ln p")
    assert f"<mi>a</mi>{space}<mi>ln</mi>{space}<mi>p</mi>" in line
    (line,) = mathml(r"-\ln(p)")
    assert "</mo><mi>ln</mi><mo" in line
    (line,) = mathml(r"\ln \hat y")
    assert f"<mi>ln</mi>{space}<mover" in line
    (line,) = mathml(r"\mathrm{mean}_c")
    assert "<mi>mean</mi>" in line
    assert len(mathml(r"a, \quad b = c")) == 2


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_curve_has_the_numbers_of_its_loss(name: str) -> None:
    """At three of its places: the others were computed with them."""
    told, drawn = CURVES[name], figure(name)
    every = drawn_places(drawn)
    some = np.linspace(0, len(every) - 1, 3).round().astype(int)
    assert (told["axis"], told["slope"]) == (drawn.axis, drawn.slope)
    near(told["positions"], drawn.positions[every])
    thin = at_places(drawn, every[some])
    assert len(told["sweeps"]) == len(thin.sweeps)
    for one, sweep in zip(told["sweeps"], thin.sweeps, strict=True):
        assert one["label"] == sweep.label
        values, slopes = computed(name, sweep)
        assert len(one["value"]) == len(one["gradient"]) == len(every)
        near(np.array(one["value"])[some], values)
        near(np.array(one["gradient"])[some], slopes)


def near(found: Array, expected: Array) -> None:
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6 * scale, err_msg="make page")


def test_a_whole_curve_is_written_as_it_is_computed() -> None:
    assert CURVES["focal"] == curve("focal")
    assert CURVES["l2"]["gradient_limits"] is None
    low, high = CURVES["ghm_regression"]["gradient_limits"] or (-np.inf, np.inf)
    assert low < high


def test_the_example_is_that_of_the_readme() -> None:
    for name, source in EXAMPLE.items():
        assert (PAGE / name).read_bytes() == source.read_bytes(), "run make page"
